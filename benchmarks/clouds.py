"""How long a call to AWS takes, beside boto3 by hand. Emulators answer, so no network is in it.

    make test-clouds TESTS=entangle/tests/clouds/test_emulators_are_there.py   # the environments
    .venv-clouds/bin/python -m benchmarks.clouds [fargate] [lambda] [body] [--rounds 9]

It needs docker and its image (`make services`). It is no row of the table: times differ with CPUs
and emulators, and only the ratio means something.

- fargate: each call is a task of ECS, in ministack. By hand, the argument is put into S3, the
  command is one line of Python with two signed addresses, and its outcome is looked for every 50
  ms.
- lambda: a function that exists in Lambda, with a server that answers at once; also in a session,
  and a hundred calls in one graph: by hand, a pool of ten threads invokes it. Times are of a call.
- body: a body in Lambda, in a warm sandbox of AWS's runtime client. By hand, a handler of three
  lines fetches a pickle and puts one, and is invoked with `InvocationType="Event"`.

Rounds alternate between both orders, and each answer is checked. Times are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks import work
from entangle.tests.services import emulators, given
from entangle.tests.services.emulators import Emulator

#: How many calls one graph has.
MANY = 100
#: How often an outcome is looked for by hand (seconds).
EVERY = 0.05
ONE_LINE = (
    "import pickle,sys,urllib.request as u;x=pickle.load(u.urlopen(sys.argv[1]));"
    "u.urlopen(u.Request(sys.argv[2],pickle.dumps(x+1),{'Content-Type':'binary/octet-stream'},method='PUT'))"
)
HANDLER = """
import pickle, urllib.request
def handle(event, context):
    x = pickle.load(urllib.request.urlopen(event["get"]))
    urllib.request.urlopen(urllib.request.Request(event["put"], pickle.dumps(x + 1), {"Content-Type": "binary/octet-stream"}, method="PUT"))
"""

Way = Callable[[int], Any]


class ByHand:
    """A call by hand, with boto3: its argument and its outcome are in S3."""

    def __init__(self, moto: Emulator, bucket: str) -> None:
        self.s3, self.bucket = moto.client("s3"), bucket

    def put(self, number: int) -> tuple[str, str, str]:
        """Put an argument; gives the name of the outcome, and the addresses of both."""
        asked, told = (f"by-hand/{os.urandom(8).hex()}" for _ in range(2))
        self.s3.put_object(Bucket=self.bucket, Key=asked, Body=pickle.dumps(number))
        get = self.s3.generate_presigned_url("get_object", Params={"Bucket": self.bucket, "Key": asked}, ExpiresIn=3600)
        put = self.s3.generate_presigned_url(
            "put_object", Params={"Bucket": self.bucket, "Key": told, "ContentType": "binary/octet-stream"}, ExpiresIn=3600
        )
        return told, get, put

    def wait(self, told: str) -> Any:
        """Look for an outcome until it is there."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(self.s3.exceptions.NoSuchKey):
                return pickle.loads(self.s3.get_object(Bucket=self.bucket, Key=told)["Body"].read())
            time.sleep(EVERY)
        raise TimeoutError(told)


@contextlib.contextmanager
def in_fargate() -> Iterator[dict[str, tuple[Way, Way]]]:
    """Calls of @fargate, and ecs:RunTask."""
    from entangle.aws import aws, fargate

    with _emulated() as (moto, bucket), emulators.ministack_server(logs=moto) as ministack:
        os.environ["AWS_ENDPOINT_URL_ECS"] = ministack.endpoint
        cluster, image = emulators.FargateCluster(ministack, moto).name, given.image()
        task = aws(bucket=bucket)(fargate(image=image, cluster=cluster, cpu=0.25, ram=512)(work.increment))
        ecs, hand = ministack.client("ecs"), ByHand(moto, bucket)
        container = {"name": "body", "image": image, "essential": True, "linuxParameters": {"initProcessEnabled": True}}
        ecs.register_task_definition(
            family="by-hand",
            containerDefinitions=[container],
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu="256",
            memory="512",
        )
        (subnet,) = moto.client("ec2").describe_subnets()["Subnets"][:1]
        network = {"awsvpcConfiguration": {"subnets": [subnet["SubnetId"]], "assignPublicIp": "ENABLED"}}

        def by_hand(number: int) -> Any:
            told, get, put = hand.put(number)
            command = {"name": "body", "command": ["python3", "-c", ONE_LINE, get, put]}
            ecs.run_task(
                cluster=cluster,
                taskDefinition="by-hand",
                launchType="FARGATE",
                networkConfiguration=network,
                overrides={"containerOverrides": [command]},
            )
            return hand.wait(told)

        yield {"@fargate": (lambda number: task(number)(), by_hand)}


@contextlib.contextmanager
def in_lambda() -> Iterator[dict[str, tuple[Way, Way]]]:
    """Calls of a function that exists there, and lambda:Invoke."""
    import boto3

    import entangle
    from entangle.aws import aws, lmbda

    with _served("answering") as endpoint:
        keys = {name.lower(): value for name, value in emulators.CREDENTIALS.items()}
        os.environ.update({**emulators.CREDENTIALS, "AWS_DEFAULT_REGION": emulators.REGION, "AWS_EC2_METADATA_DISABLED": "true"})
        task = aws(endpoint=endpoint)(lmbda(function="increment")(work.increment))
        client = boto3.client("lambda", endpoint_url=endpoint, region_name=emulators.REGION, **keys)

        def ours(number: int) -> Any:
            return task(number)()

        def in_session(number: int) -> Any:
            with entangle.session():
                task(number)()
                began = time.perf_counter()
                return task(number)(), time.perf_counter() - began

        def by_hand(number: int) -> Any:
            payload = json.dumps({"args": [number]}).encode()
            return json.loads(client.invoke(FunctionName="increment", LogType="Tail", Payload=payload)["Payload"].read())

        def many(number: int) -> Any:
            began = time.perf_counter()
            answers = entangle.gather(*(task(number + i) for i in range(MANY)))()
            return _checked(answers, number), (time.perf_counter() - began) / MANY

        def many_by_hand(number: int) -> Any:
            began = time.perf_counter()
            answers = list(pool.map(by_hand, range(number, number + MANY)))
            return _checked(answers, number), (time.perf_counter() - began) / MANY

        with ThreadPoolExecutor(10) as pool:
            yield {
                "@lmbda(function=)": (ours, by_hand),
                "@lmbda(function=), session": (in_session, by_hand),
                "@lmbda(function=), a hundred": (many, many_by_hand),
            }
        client.close()


def _checked(answers: list[int], number: int) -> int:
    """The first of the answers, which must all be right."""
    if answers != list(range(number + 1, number + 1 + MANY)):
        raise AssertionError(f"{answers!r} for {number}")
    return answers[0]


@contextlib.contextmanager
def in_sandboxes() -> Iterator[dict[str, tuple[Way, Way]]]:
    """Calls of a body in Lambda, and a handler by hand."""
    import boto3

    from entangle.aws import aws, lmbda

    with _emulated() as (moto, bucket), _served("sandboxes", moto.endpoint) as endpoint:
        os.environ["AWS_ENDPOINT_URL_LAMBDA"] = endpoint
        role = moto.client("iam").create_role(RoleName="body", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        task = aws(bucket=bucket)(lmbda(role=role)(work.increment))
        client, hand = boto3.client("lambda", endpoint_url=endpoint), ByHand(moto, bucket)

        def by_hand(number: int) -> Any:
            told, get, put = hand.put(number)
            client.invoke(FunctionName="by-hand", InvocationType="Event", Payload=json.dumps({"get": get, "put": put}).encode())
            return hand.wait(told)

        yield {"@lmbda(role=)": (lambda number: task(number)(), by_hand)}
        client.close()


@contextlib.contextmanager
def _emulated() -> Iterator[tuple[Emulator, str]]:
    """moto, with the settings by which boto3 finds it, and a bucket there."""
    with emulators.moto_server() as moto:
        os.environ.update(moto.environment())
        yield moto, moto.bucket("clouds")


# The servers, in processes of their own -----------------------------------------------------------


@contextlib.contextmanager
def _served(which: str, *more: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.clouds", "--serve", which, *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()  # ends it
            server.wait()


def _serve(which: str, *more: str) -> None:
    if which == "sandboxes":
        from entangle.tests.services.lambda_functions import LambdaFunctions

        with tempfile.TemporaryDirectory() as folder:
            functions = LambdaFunctions(Path(folder), *more)
            functions.add("by-hand", HANDLER)
            print(functions.endpoint, flush=True)
            sys.stdin.read()
            functions.close()
        return

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(event["args"][0] + 1).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    ThreadingHTTPServer.request_queue_size = 1024
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


# Rounds -------------------------------------------------------------------------------------------


def _compare(ways: tuple[Way, Way], rounds: int) -> tuple[list[float], list[float]]:
    """Time both ways, in alternating order, after a cold call of each."""
    taken: tuple[list[float], list[float]] = [], []
    for number in range(-1, rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            answer = ways[which](number)
            took = time.perf_counter() - began
            if isinstance(answer, tuple):
                answer, took = answer
            if answer != number + 1:
                raise AssertionError(f"{answer!r} for {number}")
            if number >= 0:
                taken[which].append(took)
    return taken


CONTESTS = {"fargate": in_fargate, "lambda": in_lambda, "body": in_sandboxes}


def main() -> None:
    """Compare each pair, and print a line for it."""
    parser = argparse.ArgumentParser("python -m benchmarks.clouds")
    parser.add_argument("contests", nargs="*", metavar="CONTEST", help=f"{', '.join(CONTESTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each (9)")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return _serve(*options.serve)
    if unknown := [name for name in options.contests if name not in CONTESTS]:
        parser.error(f"no such contest: {', '.join(unknown)}; there are {', '.join(CONTESTS)}")
    for name in options.contests or CONTESTS:
        with CONTESTS[name]() as contests:
            for what, ways in contests.items():
                # A call in Lambda takes milliseconds, and one in a container hundreds of them.
                ours, by_hand = _compare(ways, options.rounds * (20 if name == "lambda" else 1))
                mine, theirs = statistics.median(ours), statistics.median(by_hand)
                print(f"{what:28} {mine * 1e3:8.1f} ms   by hand {theirs * 1e3:8.1f} ms   {mine / theirs:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
