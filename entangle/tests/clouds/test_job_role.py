"""Jobs that access their mailbox with their own role: signatures, credentials that change, and the
error if there are none."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from entangle._aws import bucket_addresses as near
from entangle._aws import container_jobs, job_role
from entangle._aws.account import Account
from entangle._aws.bucket import Bucket
from entangle._services import envelope
from entangle._services.caller import open_watchers
from entangle._services.far import addresses, connections
from entangle._services.far.addresses import FarAddresses
from entangle.aws import aws as in_account
from entangle.aws import batch
from entangle.errors import OptionError, UnreachableError
from entangle.process import process

from ..evidence import wait_until
from ..services.credentials_endpoint import CredentialsEndpoint
from ..services.emulators import Emulator, JobQueue
from . import bodies
from .test_doctor_aws import user

Client = Callable[[str], Any]
ROLE = "arn:aws:iam::123456789012:role/entangle-jobs"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    job_role.forget()
    yield
    job_role.forget()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[CredentialsEndpoint]:
    made = CredentialsEndpoint()
    for name in ("RELATIVE", "FULL"):
        monkeypatch.delenv(f"AWS_CONTAINER_CREDENTIALS_{name}_URI", raising=False)
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job_role, "PAUSES", (0.0, 0.0))
    yield made
    made.close()


# --- signatures -----------------------------------------------------------------------------------

KEYS = ("a", "entangle/p1-ab@host.lab/back/1-1.outcome", "a b/ä/ö%", "+&=?#;,:'()*!$", "~-._", "a//b/../c/", "日本")
QUERIES = (
    *("", "uploads", "uploads=", "partNumber=2&uploadId=x%2By%3D", "uploadId=b&partNumber=10&partNumber=9"),
    "list-type=2&prefix=entangle%2Fp1%40h%2F&continuation-token=&delimiter=%2F",
)
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"If-None-Match": "*", "X-Amz-Tagging": "entangle=call", "Content-Type": "application/octet-stream"},
    {"X-Amz-Meta-Words": "  two   words ", "Range": "bytes=0-9"},
)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_signatures_are_those_of_botocore(method: str) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    hosts = ("127.0.0.1:5000/calls", "calls.s3.eu-central-1.amazonaws.com", "[::1]:9000/calls")
    bodies_of = (b"", bytes(range(256))) if method in ("PUT", "POST") else (None,)
    tokens = ("", "FwoGZXIvYXdzEBYaD/+token==", "t" * 1200)
    count = 0
    for host, key, query, headers, token, body in itertools.product(hosts, KEYS, QUERIES, HEADERS, tokens, bodies_of):
        url = f"http://{host}/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
        theirs: Any = AWSRequest(method, url, dict(headers), body)
        S3SigV4Auth(Credentials("AKIAEXAMPLE", "s3cr/et+", token or None), "s3", "eu-central-1").add_auth(theirs)
        when = time.strptime(theirs.context["timestamp"], "%Y%m%dT%H%M%SZ")
        request = urllib.request.Request(f"{url}#eu-central-1", body, headers, method=method)
        found = {"AccessKeyId": "AKIAEXAMPLE", "SecretAccessKey": "s3cr/et+", "Token": token}
        ours = job_role.signed(request, "eu-central-1", found, when)
        assert ours["authorization"] == theirs.headers["Authorization"], (url, headers)
        assert ours["x-amz-content-sha256"] == theirs.headers["X-Amz-Content-SHA256"]
        count += 1
    assert count >= 1000


def test_what_is_sent_is_what_was_signed(moto: Emulator, bucket: str, aws: Client, endpoint: CredentialsEndpoint) -> None:
    """A server that checks signatures: moto, with the policy of `deploy/aws` alone."""
    endpoint.keys = [role_keys(aws, bucket)] * 3
    start = f"{moto.endpoint}/{bucket}/entangle/p1-ab%40h"
    tagged = {"x-amz-tagging": "entangle=call", "Content-Type": "application/octet-stream"}
    with moto.permissions():
        once = {**tagged, "If-None-Match": "*"}
        assert addresses._request("PUT", f"{start}/claims/1-1#us-east-1", b"me", once).status == 200
        assert addresses._request("PUT", f"{start}/claims/1-1#us-east-1", b"you", once).status == 412
        assert addresses._request("PUT", f"{start}/back/1-1.outcome#us-east-1", bytearray(b"value"), tagged).status == 200
        assert addresses._request("GET", f"{start}/claims/1-1#us-east-1").body == b"me"
        assert addresses._request("GET", f"{start}/cancelled/1-1#us-east-1").status == 404
        assert addresses._request("DELETE", f"{start}/claims/1-1#us-east-1").status == 204
        with pytest.raises(job_role.RoleError, match=r"may not write to its mailbox.*deploy/aws/job-role\.json"):
            addresses._request("PUT", f"{start}/code/evil#us-east-1", b"code", tagged)
        with pytest.raises(job_role.RoleError, match="may not read its mailbox"):
            addresses._request("GET", f"{moto.endpoint}/{bucket}/other#us-east-1")


def role_keys(aws: Client, bucket: str) -> tuple[str, str, str]:
    """The keys of a user with the policy of a job's role, because moto checks users' policies
    only."""
    key, secret = user(aws, "job-role", bucket=bucket).values()
    return key, secret, ""


# --- credentials ----------------------------------------------------------------------------------


def test_credentials_are_used_until_shortly_before_they_expire(endpoint: CredentialsEndpoint) -> None:
    first = job_role.credentials()
    assert job_role.credentials() == first
    assert len(endpoint.given) == 1
    job_role.forget()
    endpoint.lasts = job_role.EARLY - 10
    second = job_role.credentials()
    assert second["AccessKeyId"] == endpoint.given[1] != first["AccessKeyId"]
    assert job_role.credentials()["AccessKeyId"] == endpoint.given[2]
    # While the endpoint fails, the latest credentials are used on.
    endpoint.instead = [(500, "trouble")]
    assert job_role.credentials()["AccessKeyId"] == endpoint.given[2]


def test_credentials_of_a_moment_of_trouble(endpoint: CredentialsEndpoint) -> None:
    endpoint.instead = [(500, "trouble"), (200, "no JSON")]
    assert job_role.credentials()["AccessKeyId"] == endpoint.given[0]


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ([(500, "trouble inside")] * 3, "role/?.*: 500 trouble inside"),
        ([(200, "{}")] * 3, "KeyError: 'AccessKeyId'"),
        ([(0, "")], "403 the token is wrong|RemoteDisconnected"),
        ([(403, "you may not")], "403 you may not"),
    ],
)
def test_no_credentials(endpoint: CredentialsEndpoint, instead: list[tuple[int, str]], said: str) -> None:
    endpoint.instead = instead * 3 if instead == [(0, "")] else instead
    with pytest.raises(job_role.RoleError, match=said) as caught:
        job_role.credentials()
    assert caught.value.exit_status == job_role.NONE


def test_nobody_gives_credentials(endpoint: CredentialsEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/role")
    with pytest.raises(job_role.RoleError, match="refused"):
        job_role.credentials()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://203.0.113.1/role")
    with pytest.raises(job_role.RoleError, match=r"without TLS at 203\.0\.113\.1"):
        job_role.credentials()
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    with pytest.raises(job_role.RoleError, match="no credentials of its role"):
        job_role.credentials()


def test_the_token_may_be_in_a_file_and_proxies_are_not_asked(
    endpoint: CredentialsEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"] + "\n")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "old")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(file))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr(job_role, "ENDPOINT", endpoint.url)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1")
    monkeypatch.setattr(job_role, "NEAR", ("127.0.0.1",))
    assert job_role.credentials()["AccessKeyId"] == endpoint.given[0]
    assert endpoint.asked[0].startswith("GET /v2/credentials/1 ")


# --- the mailbox ----------------------------------------------------------------------------------


@pytest.fixture
def box(aws_environment: Emulator, bucket: str, endpoint: CredentialsEndpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A mailbox whose caller has credentials for five minutes."""
    monkeypatch.setattr(Account, "expires", lambda self: 300.0)
    made = Bucket(Account(bucket=bucket), job_role=True)
    yield made
    made.close()


def sent(box: Bucket, name: str, *parts: bytes) -> FarAddresses:
    """Send a message, and open the mailbox as the message's program does."""
    box.send(name, envelope.written({"name": name}, [[part] for part in parts]))
    _, program, address, _ = box.command(box.add_code("program", b"pass"), name, ["program"], 3600.0)
    assert "Signature" not in program + address
    assert job_role.fetched(program) == b"pass"
    box.flush()
    return FarAddresses(address)


@pytest.fixture
def signers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which key signed which request."""
    found: list[tuple[str, str]] = []
    real = job_role.headers_of

    def headers_of(method: str, address: str, data: Any, headers: Mapping[str, str]) -> dict[str, str]:
        made = real(method, address, data, headers)
        found.append((made["authorization"].partition("Credential=")[2].partition("/")[0], f"{method} {address}"))
        return made

    monkeypatch.setattr(job_role, "headers_of", headers_of)
    return found


def test_a_call_that_outlives_two_credentials(box: Bucket, endpoint: CredentialsEndpoint, signers: list[tuple[str, str]]) -> None:
    there = sent(box, "1-1", b"x" * 100_000)
    assert there.claim("1-1", "me")
    assert not FarAddresses(there._address).claim("1-1", "a twin")
    assert there.message("1-1") == ({"name": "1-1"}, [bytearray(b"x" * 100_000)])
    job_role.forget()  # the body runs for as long as the first credentials are valid
    there.live("1-1")
    assert not there.is_cancelled("1-1")
    assert there.lease_is_fresh(60)
    assert there.put("1-1", envelope.written({"given": True}, [[b"value"]]))
    assert not there.put("1-1", envelope.written({"given": True}, [[b"another"]]))
    assert box.take("1-1") == ({"given": True}, [bytearray(b"value")])
    assert next(key for key, what in signers if "claims/1-1" in what) == endpoint.given[0]
    assert {key for key, what in signers if "1-1.outcome" in what} == {endpoint.given[1]}


def test_credentials_that_s3_takes_no_more(box: Bucket, endpoint: CredentialsEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    there = sent(box, "1-1")
    answers: list[tuple[int, Any, bytes]] = [
        (400, {}, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>")
    ]
    real = connections.request

    def request(*given: Any) -> Any:
        return answers.pop() if answers else real(*given)

    monkeypatch.setattr(addresses, "request", request)
    monkeypatch.setattr(addresses, "PAUSES", (0.0,))
    assert addresses._request("PUT", there._given["claim"], b"me", pauses=(0.0,)).status == 200
    assert len(endpoint.given) == 2


def test_an_outcome_in_parts(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "LARGE", 1 << 20)
    monkeypatch.setattr(addresses, "PART", 5 << 20)
    there, value = sent(box, "1-1"), os.urandom(6 << 20)
    answered = threading.Thread(target=lambda: wait_until(lambda: "1-1" in box.arrived()))
    answered.start()
    assert there.put("1-1", envelope.written({"given": True}, [[value]]))
    answered.join()
    assert box.take("1-1") == ({"given": True}, [bytearray(value)])
    box.discard("1-1")


def test_a_role_that_may_not_list_is_told_before_the_claim(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    there, real = sent(box, "1-1"), connections.request

    def request(method: str, address: str, *more: Any) -> Any:
        if "/cancelled/" in address:
            return 403, {}, b"<Error><Code>AccessDenied</Code><Message>no s3:ListBucket</Message></Error>"
        return real(method, address, *more)

    monkeypatch.setattr(addresses, "request", request)
    with pytest.raises(job_role.RoleError, match="no s3:ListBucket"):
        FarAddresses(there._address)


def test_when_addresses_are_signed(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def signed(box: Bucket, seconds: float | None) -> bool:
        made = box.command("program", "1-1", [], seconds)
        box.flush()
        assert all(("X-Amz-Signature" in address) == (made[0] == near.COMMAND) for address in made[1:3])
        return made[0] == near.COMMAND

    assert not signed(box, None)
    assert not signed(box, 1.0)
    monkeypatch.setattr(Account, "expires", lambda self: 3600.0)
    assert signed(box, 2000.0)
    assert not signed(box, 3000.0)
    assert not signed(box, None)  # the duration is unknown
    monkeypatch.setattr(Account, "expires", lambda self: None)
    assert signed(box, None)
    assert not signed(box, 8 * 86400.0)
    other = Bucket(box.account)
    assert signed(other, 3600.0)
    with pytest.raises(OptionError, match="job_role="):
        other.reach(8 * 86400.0)
    other.close()


def test_the_command_is_short_enough_for_ecs(box: Bucket) -> None:
    made = box.command("program", "1-1", [], None)
    box.flush()
    assert len(json.dumps(made)) < 6000
    assert "AKIA" not in json.dumps(made)


# --- containers -----------------------------------------------------------------------------------


@pytest.fixture
def short(aws_environment: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The caller's credentials are valid for two seconds; then it gets new ones."""
    monkeypatch.setattr(Account, "expires", lambda self: 2.0)
    yield
    open_watchers.close_all()


def in_batch(queue: JobQueue, bucket: str, image: str, function: Any, variables: Mapping[str, str], **options: Any) -> Any:
    return in_account(bucket=bucket)(batch(queue=queue.name, image=image, memory=512, env=dict(variables), **options)(function))


def test_a_body_longer_than_the_credentials_of_its_caller(
    short: None, job_queue: JobQueue, bucket: str, test_image: str, endpoint: CredentialsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    nap = process(timeout=60)(bodies.sleep)
    with pytest.raises(OptionError, match=r"expire in 2 s.*job_role="):
        in_batch(job_queue, bucket, test_image, nap, {})(0)()
    endpoint.lasts = 1.0
    assert in_batch(job_queue, bucket, test_image, nap, endpoint.variables, job_role=ROLE)(2.5)() == "slept"
    assert len(endpoint.given) > 2


def test_an_array_and_a_role(short: None, job_queue: JobQueue, bucket: str, test_image: str, endpoint: CredentialsEndpoint) -> None:
    square = in_batch(job_queue, bucket, test_image, bodies.square, endpoint.variables, job_role=ROLE)
    assert square.map(range(3))() == [0, 1, 4]


def test_credentials_do_not_travel(short: None, job_queue: JobQueue, bucket: str, test_image: str, endpoint: CredentialsEndpoint) -> None:
    found = in_batch(job_queue, bucket, test_image, bodies.environment, endpoint.variables, job_role=ROLE)()()
    assert not any("entangle-tests-secret" in value or "AKIAENTANGLETESTS000" in value for value in found.values())


def test_the_caller_is_told_that_there_are_no_credentials(
    short: None, job_queue: JobQueue, bucket: str, test_image: str, endpoint: CredentialsEndpoint
) -> None:
    assert in_batch(job_queue, bucket, test_image, bodies.square, endpoint.variables, job_role=ROLE)(2)() == 4
    endpoint.instead = [(500, "trouble inside")] * 40
    with pytest.raises(UnreachableError, match=r"no credentials of its role(.|\n)*trouble inside"):
        in_batch(job_queue, bucket, test_image, bodies.square, endpoint.variables, job_role=ROLE)(2)()


def test_the_caller_is_told_what_the_role_may_not(
    short: None, moto: Emulator, job_queue: JobQueue, bucket: str, test_image: str, aws: Client, endpoint: CredentialsEndpoint
) -> None:
    may, (key, secret) = user(aws, "bucket", "batch", bucket=bucket), user(aws, bucket=bucket).values()
    layer = batch(queue=job_queue.name, image=test_image, memory=512, env=endpoint.variables, job_role=ROLE)
    square = in_account(bucket=bucket, keys=[*may.values()])(layer(bodies.square))
    assert square(2)() == 4
    endpoint.keys = [(key, secret, "")] * 40
    with moto.permissions():
        with pytest.raises(UnreachableError, match=r"its role may not use the bucket; deploy/aws/job-role\.json"):
            square(2)()
        open_watchers.close_all()


def test_what_a_status_tells_where_there_is_no_log() -> None:
    said = ["Essential container in task exited"]
    assert container_jobs.ended("STOPPED", said, job_role.NONE, "ram=").error is UnreachableError
    assert container_jobs.ended("STOPPED", said, job_role.FORBIDDEN, "ram=").error is UnreachableError
