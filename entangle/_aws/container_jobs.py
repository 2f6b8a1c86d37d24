"""What jobs in containers have in common, at Batch and at Fargate: their name, the Python of their
image, the end of their log, and why they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from entangle._aws.account import Account, asking
from entangle._aws.bucket import PREFIX, TAG
from entangle._aws.bucket_addresses import brought, unsigned
from entangle._aws.job_role import FORBIDDEN, NONE
from entangle._services import OVER, TOLD, Service, State, Submission, known_python
from entangle.errors import (
    EntangleError,
    ImageError,
    ProcessTerminatedException,
    ProcessTimeoutException,
    UnfitPythonError,
    UnreachableError,
)

#: Seconds of a job beside the deadline of its call, for the start of the Python there.
START = 120
#: How long a job may wait that asks the Python there what it is (seconds).
ASKING = 1800.0
#: The Python of an image puts what it says of itself into the bucket: a log may not be allowed.
#: urllib would say that it is a form.
_TELL = (
    "import sys,json,importlib.util as u,urllib.request as q;"
    f"OPEN(q.Request(sys.argv[1],json.dumps({TOLD}).encode(),"
    "{'Content-Type':'application/octet-stream','x-amz-tagging':sys.argv[2]},method='PUT'),timeout=60)"
)
#: What AWS says when a container has ended, and what that is to a call. The first that fits: an
#: image that cannot be had may be so because of a timeout.
_ENDED: tuple[tuple[str, type[EntangleError], str], ...] = (
    (
        r"CannotPull|ImageNotFound|No such image|not found: manifest",
        ImageError,
        "the image cannot be had; name another one, image=, or push it, and see that the network of the container leads there",
    ),
    (r"exec format error", ImageError, "the image is for another kind of processor than the machine; say architecture="),
    (r"executable file not found|exit status 127$", UnfitPythonError, "the image has no such program; name its Python, python="),
    (
        rf"exit status {NONE}$",
        UnreachableError,
        "it has no credentials of its role: does job_role= name one, and does its trust policy name ecs-tasks.amazonaws.com?",
    ),
    (
        rf"exit status {FORBIDDEN}$",
        UnreachableError,
        "its role may not use the bucket; deploy/aws/job-role.json is the policy that job_role= needs",
    ),
    (r"ResourceInitializationError", UnreachableError, "the container could not be started: see the network and the execution role"),
    (r"OutOfMemory", ProcessTerminatedException, "it needed more memory than it had; ask for more: {memory}"),
    (r"Host EC2.*terminated", ProcessTerminatedException, "its machine was taken back, as spot machines are; retry=1 submits it again"),
    (r"[Ss]pot", ProcessTerminatedException, "its spot capacity was taken back; retry=1 submits it again"),
    (r"Capacity is unavailable", ProcessTerminatedException, "it has not begun; retry=1 submits it again"),
    (
        r"attempt duration exceeded|its time is over",
        ProcessTimeoutException,
        "its time was over; timeout= of a layer below says how long it may take",
    ),
)
_abouts: dict[tuple[Account, str, Sequence[str]], dict[str, Any]] = {}


def job_name(messages: Sequence[Submission]) -> str:
    """What people see of them in the console: letters, digits, hyphens and underscores alone."""
    names = dict.fromkeys(re.sub(r"[^A-Za-z0-9_-]+", "-", message.name).strip("-") for message in messages)
    return f"entangle-{'-'.join(filter(None, names))}"[:100]


def ended(status: str, told: Sequence[str], exit_status: int | None, memory: str) -> State:
    """The state of a job that is over, of which AWS tells this; `memory` is the option for more."""
    words = [*dict.fromkeys(filter(None, told)), *([f"exit status {exit_status}"] if exit_status is not None else [])]
    why = ", ".join(words)
    for pattern, error, hint in _ENDED:
        if re.search(pattern, why):
            return State(OVER, f"{status} ({why}): {hint.format(memory=memory)}", error)
    return State(OVER, f"{status} ({why})" if why else status)


def end_of_log(account: Account, group: str, stream: str) -> str:
    """The end of a stream in CloudWatch. Raises UnreachableError."""
    with asking(account, "logs"):
        events = account.client("logs").get_log_events(logGroupName=group, logStreamName=stream, limit=100)["events"]
    return "\n".join(event["message"] for event in events)[-2000:]


def about(service: Service, account: Account, image: str) -> dict[str, Any]:
    """What `Service.about` gives of an image: told by its tag where that says it, else by a job.

    Raises ImageError, UnfitPythonError, UnreachableError.
    """
    if (known := re.search(r"(?:^|/)python:(3\.\d+)", image)) is not None:
        return known_python(known[1])
    key = account, image, tuple(service.python)
    if key not in _abouts:
        _abouts[key] = _ask(service, account, image)
    return _abouts[key]


def _ask(service: Service, account: Account, image: str) -> dict[str, Any]:
    """Have a job tell of its Python."""
    s3, name = account.client("s3"), os.urandom(8).hex()
    there = {"Bucket": account.bucket_name(), "Key": f"{PREFIX}asked/back/{name}"}
    if getattr(service, "job_role", None) and account.lasts() < ASKING:
        tell, address = brought() + _TELL.replace("OPEN", "r.opened"), f"{unsigned(account, there['Key'])}#{s3.meta.region_name}"
    else:
        tell, address = _TELL.replace("OPEN", "q.urlopen"), account.address("put_object", there["Key"], Tagging=TAG)
    asked = Submission(name, "python", (*service.python, "-c", tell, address, TAG), float(START))
    until, reason = time.monotonic() + ASKING, "it takes no more jobs"
    ticket = ""
    try:
        while time.monotonic() < until:
            if not ticket:
                ticket = next(iter(service.submit([asked])), "")
            state = service.outcomes([ticket]).get(ticket) if ticket else None
            if (told := _told(account, there)) is not None:
                return told
            if state is not None and state.state == OVER:
                raise _no_answer(service, image, ticket, state)
            reason = state.reason if state is not None else reason
            time.sleep(0.5)
        raise UnreachableError(
            f"{service.place}: the first job, which asks for the version of its Python, has not ended within {ASKING:.0f} s: {reason}. "
            "Look at it in the console: does the queue have machines, and can they pull the image?"
        )
    except BaseException:
        with contextlib.suppress(Exception):
            service.cancel([ticket] if ticket else [])
        raise
    finally:
        with contextlib.suppress(Exception):  # a rule of the bucket removes it
            s3.delete_object(**there)


def _told(account: Account, there: dict[str, str]) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    with asking(account, "s3"):
        try:
            told: dict[str, Any] = json.loads(account.client("s3").get_object(**there)["Body"].read())
            return told
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise


def _no_answer(service: Service, image: str, ticket: str, state: State) -> EntangleError:
    """The error of a job that was to tell of its Python, and has ended."""
    said = ""
    with contextlib.suppress(Exception):
        said = service.logs(ticket)[-600:]
    if state.error is not ProcessTerminatedException:
        return state.error(f"{service.place}: image {image!r} cannot be used: {state.reason} {said}".rstrip())
    return UnfitPythonError(
        f"{service.place}: image {image!r} has no Python at {' '.join(service.python)!r} that entangle can use; name one with python=…: "
        f"{state.reason} {said}".rstrip()
    )
