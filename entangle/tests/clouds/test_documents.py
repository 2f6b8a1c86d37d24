"""What the project's documents say about AWS, run against emulators; and one graph over several
places of a cloud."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle import records
from entangle.aws import aws, ec2
from entangle.aws import fargate as on_fargate
from entangle.errors import ImageError, OptionError
from entangle.process import process

from ..callers import ROOT
from ..services.ec2_machines import Cloud
from ..services.emulators import Emulator, FargateCluster, JobQueue
from ..services.lambda_functions import LambdaFunctions
from ..test_examples import TELLING

Client = Callable[[str], Any]


def test_a_processor_is_no_number_of_cpus() -> None:
    with pytest.raises(OptionError, match=r"cpu='Xeon'.*Fargate.*0\.25"):

        @process
        @aws(keys=[])
        @on_fargate(ram="2GB", cpu="Xeon")
        def myfunc() -> None:
            return


FARGATE = """
import sys
from entangle.aws import aws, fargate
from entangle.process import process

@process
@aws(keys=[])
@fargate(ram='2GB', cpu=4, image=sys.argv[1], cluster=sys.argv[2])
def taskA():
    return 5

if __name__ == "__main__":
    print(taskA()())
"""


def test_fargate(aws_environment_with_ecs: Emulator, fargate: FargateCluster, bucket: str, test_image: str, tmp_path: Path) -> None:
    done = run(FARGATE, tmp_path, test_image, fargate.name, ENTANGLE_BUCKET=bucket)
    assert "5" in done.splitlines()
    assert "8 GB" in done  # the least memory that Fargate allows with 4 CPUs


def run(text: str, folder: Path, *words: str, **variables: str) -> str:
    """Run a program. Return its output."""
    program = folder / "program.py"
    program.write_text(text)
    command = [sys.executable, str(program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_an_image_that_the_region_does_not_have(cloud: Cloud) -> None:
    @process
    @aws(keys=[])
    @ec2(ami="ami-12345")
    def myfunc() -> None:
        return

    with pytest.raises(ImageError, match="ami-12345"):
        myfunc()()


#: The General Example, completed with the imports and the value that it lacks, and a server for its
#: request.
GENERAL = """
import sys
from entangle.process import process
from entangle.thread import thread
from entangle.task import task
from entangle.local import local
from entangle.aws import aws
from entangle.aws import ec2
from entangle.aws import lmbda
from entangle.http import request

@process(timeout=60)
@local(cpus=4)
def add(a, b):
    return a + b

@process(cache=True)
@aws(keys=[])
@ec2
def one():
    return 1

@thread
@local
def two():
    return 2

@lmbda(function='name')
@aws(keys=[])
def proxy():
    # lambda proxy
    pass

@process
def subtract(a, b):
    return int(a) - int(b)

@process
def five():
    return 5

@process
def num(n):
    return n

@process
@request(url=sys.argv[1], method='POST')
def request(data):
    # Manipulate http response data here and return new result
    return data

if __name__ == "__main__":
    value = 3
    # 1,2,3 get passed to lambda function and result returned
    result = proxy(1,2,3)
    print(result())
    # Pass key:value params and get result from your function
    result = request(key1=value, key2=value )
    print(result())

    # parallel workflow is just "plain old python"
    result = add(
                add(
                    num(6),
                    two() if False else one()
                ),
                subtract(
                    five(),
                    two()
                )
            )

    print(result())
"""


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Log nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that returns what it receives."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(180)
def test_the_general_example(
    cloud: Cloud, lambda_functions: LambdaFunctions, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", lambda_functions.endpoint)
    lambda_functions.add("name", "def handle(event, context):\n    return sum(event['args'])\n")
    first, second, third = run(GENERAL, tmp_path, echo).splitlines()[:3]
    assert (first, third) == ("6", "10")
    assert "key1" in second
    assert cloud.asked.count("RunInstances") == 1


# --- One graph over several places ----------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("where", ["mixed", "batch", "lambda"])
def test_one_graph_over_several_places(
    where: str,
    aws_environment: Emulator,
    lambda_functions: LambdaFunctions,
    bucket: str,
    job_queue: JobQueue,
    test_image: str,
    aws: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TwinGraph's demonstrations 6, 7 and 8."""
    iam = aws("iam")
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName="of-the-example", AssumeRolePolicyDocument="{}")
    variables = {
        **os.environ,
        "AWS_ENDPOINT_URL_LAMBDA": lambda_functions.endpoint,
        "ENTANGLE_BUCKET": bucket,
        "ENTANGLE_QUEUE": job_queue.name,
        "ENTANGLE_ROLE": iam.get_role(RoleName="of-the-example")["Role"]["Arn"],
        "ENTANGLE_IMAGE": test_image,
        "ENTANGLE_RECORD_DIR": str(tmp_path / "records"),
    }
    command = [sys.executable, "-m", "entangle.examples.cloudsexample", where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for wanted in TELLING["cloudsexample"]:
        assert re.search(wanted, done.stdout.splitlines(keepends=True)[-1])
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", variables["ENTANGLE_RECORD_DIR"])
    places = {node.task.name: node.place.partition(":")[0] for node in records.run("last").nodes if node.place}
    for made in aws("lambda").list_functions()["Functions"]:
        aws("lambda").delete_function(FunctionName=made["FunctionName"])
    expected = {
        "mixed": {"multiply": "lambda", "sample": "batch", "disturb": "batch"},
        "batch": {"multiply": "batch", "sample": "batch", "disturb": "batch"},
        "lambda": {"add": "lambda", "multiply": "lambda", "sample": "lambda", "disturb": "lambda"},
    }[where]
    assert {task: places.get(task) for task in expected} == expected
