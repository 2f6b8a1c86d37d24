"""AWS Lambda as a service: a call is an asynchronous invocation of a function that runs messages.

The function is made once for its options, by the hash of its content. Lambda says nothing of an
asynchronous invocation. So the handler there puts into the box of the caller that it runs, and how
it has ended where there is no outcome (`lambda_handler.py`); one listing tells of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import sys
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from entangle._aws import lambda_handler
from entangle._aws.account import Account, asking
from entangle._aws.bucket import TAG
from entangle._services import OVER, PENDING, RUNNING, Limits, Service, State, Submission, known_python
from entangle._shared.summaries import value_in_short
from entangle._tasks.option_values import is_number
from entangle.errors import (
    EntangleError,
    ImageError,
    OptionError,
    ProcessTerminatedException,
    ProcessTimeoutException,
    UnfitPythonError,
    UnreachableError,
)

#: The longest that Lambda lets a function run (seconds), and what it has beside the time of a call,
#: for the start of the program. Source: Lambda quotas.
LONGEST_RUN, START = 900, 30
#: The largest event of an asynchronous invocation (bytes), and how long Lambda keeps one (seconds).
LARGEST, AGE = 256 << 10, 21_600
#: How long a function may take to be made (seconds).
MAKING = 600.0
#: A call that has said that it runs, and then nothing for so long, runs no more (seconds).
STALE = 4.5 * lambda_handler.BEATS
#: Invocations under way at once; and objects that are removed by one request.
AT_ONCE, MANY = 16, 100
#: A call that waits for longer is said to wait (seconds).
WAITED = 10.0
PREFIX = "entangle-"
_BOX = re.compile(r"/(entangle/p\d+-[0-9a-f]+@[^/]+/)addresses/")
#: What the log says of a sandbox that has ended.
_ENDED: tuple[tuple[str, type[EntangleError], str], ...] = (
    (r"Task timed out|Sandbox\.Timedout", ProcessTimeoutException, "its time was over; timeout= of @lmbda says how long it may take"),
    (r"OutOfMemory|signal: killed", ProcessTerminatedException, "it needed more memory than it had; ask for more: memory="),
)


@dataclass(frozen=True)
class LambdaCalls(Service):
    """Calls of a function of Lambda with these options."""

    account: Account
    role: str
    image: str | None = None
    #: The version of the runtime, as "3.13".
    version: str = f"3.{sys.version_info[1]}"
    #: In MiB.
    memory: int = 1769
    #: How long a call may take (seconds).
    seconds: int = LONGEST_RUN
    architecture: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    layers: tuple[str, ...] = ()

    name: ClassVar[str] = "lambda"
    every: ClassVar[float] = 2.0
    grace: ClassVar[float] = 3.0

    @property
    def python(self) -> Sequence[str]:
        """The handler starts it."""
        return ["python3"]

    def limits(self) -> Limits:
        """An event has the command, and two more addresses."""
        return Limits(message=LARGEST // 2, life=float(self.seconds), at_once=1000)

    def about(self) -> dict[str, Any]:
        """The Python of the runtime; that of an image tells it."""
        function = self._function()
        if self.image is None:
            return known_python(self.version)
        with asking(self.account, "lambda"):
            answer = self.account.client("lambda").invoke(FunctionName=function, Payload=b'{"about": 1}', LogType="Tail")
            told = json.loads(answer["Payload"].read())
        if "FunctionError" in answer or not isinstance(told, dict) or "python" not in told:
            raise UnfitPythonError(
                f"{self.place}: image {self.image!r} does not answer as entangle's handler does: {json.dumps(told)[:600]}; "
                "make it with entangle image build --for lambda"
            )
        return told

    # The function -------------------------------------------------------------------------------

    def _wanted(self) -> dict[str, Any]:
        """What makes the function, but for its name and its code."""
        wanted: dict[str, Any] = {
            "Role": self.role,
            "Timeout": min(LONGEST_RUN, self.seconds + START),
            "MemorySize": self.memory,
            "Environment": {"Variables": dict(self.environment)},
        }
        if self.architecture:
            wanted["Architectures"] = [self.architecture.lower()]
        if self.layers:
            wanted["Layers"] = list(self.layers)
        if self.image is not None:
            return {**wanted, "PackageType": "Image"}
        return {**wanted, "Runtime": f"python{self.version}", "Handler": "lambda_handler.handler"}

    def _function(self) -> str:
        """The name of the function for these options, which is made where it is not there."""
        wanted, code = self._wanted(), _zipped() if self.image is None else b""
        content = json.dumps([wanted, self.image, hashlib.sha256(code).hexdigest()], sort_keys=True)
        name = f"{PREFIX}{hashlib.sha256(content.encode()).hexdigest()[:20]}"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        if _functions.get((self.account, name)) != today:  # once a day it is said that it is used
            with asking(self.account, "lambda"):
                self._make(name, today, wanted, {"ImageUri": self.image} if self.image is not None else {"ZipFile": code})
            _functions[self.account, name] = today
        return name

    def _make(self, name: str, today: str, wanted: dict[str, Any], code: dict[str, Any]) -> None:
        client = self.account.client("lambda")
        try:
            found = client.get_function(FunctionName=name)
        except client.exceptions.ResourceNotFoundException:
            try:
                client.create_function(FunctionName=name, Code=code, Tags={"entangle": "function", "used": today}, **wanted)
            except client.exceptions.ResourceConflictException:
                pass  # another caller makes it just now
            except client.exceptions.InvalidParameterValueException as error:
                if self.image is not None and "image" in str(error):
                    raise ImageError(
                        f"{self.place}: {error.response['Error']['Message']} Lambda takes images of ECR, of its own region: "
                        "entangle image build --for lambda --push"
                    ) from None
                if "cannot be assumed" not in str(error):
                    raise
                raise OptionError(
                    f"@lmbda: role={self.role!r} cannot be assumed by Lambda: is there such a role, and does its trust policy name "
                    "lambda.amazonaws.com? A new one can be used after some seconds"
                ) from None
            found = {"Tags": {"used": today}}
        if found.get("Tags", {}).get("used") != today:  # for `entangle aws gc`
            with contextlib.suppress(Exception):
                arn = found["Configuration"]["FunctionArn"]
                client.tag_resource(Resource=arn, Tags={"entangle": "function", "used": today})
        self._wait_for(name)
        # Whether a body may run twice, its task says. Events that Lambda has no room for stay.
        client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0, MaximumEventAgeInSeconds=AGE)

    def _wait_for(self, name: str) -> None:
        client, until = self.account.client("lambda"), time.monotonic() + MAKING
        while True:
            found = client.get_function_configuration(FunctionName=name)
            state, why = found.get("State", "Active"), found.get("StateReason") or ""
            if state in ("Active", "Inactive"):
                return
            if state == "Failed" or time.monotonic() > until:
                kind = ImageError if self.image is not None else UnreachableError
                raise kind(f"{self.place}: the function {name} cannot be used: {state}: {why}")
            time.sleep(0.5)

    @property
    def _calls(self) -> dict[str, _Call]:
        return _known.setdefault(self, {})

    # The verbs ----------------------------------------------------------------------------------

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        """Invoke it for each, several at once. What was invoked behind one that was refused comes
        again, and its claim sees to it that it runs once."""
        function = self._function()
        if len(messages) == 1:
            return [self._invoke(function, messages[0])]
        tickets: list[str] = []
        with ThreadPoolExecutor(min(AT_ONCE, len(messages)), "entangle-invoke") as pool:
            futures = [pool.submit(self._invoke, function, message) for message in messages]
            for future in futures:
                try:
                    tickets.append(future.result())
                except EntangleError:
                    for other in futures:
                        other.cancel()
                    if not tickets:
                        raise
                    break
        return tickets

    def _invoke(self, function: str, message: Submission) -> str:
        key = _key_of(message)
        addresses = {
            kind: self.account.address("put_object", name, Tagging=TAG) for kind, name in (("began", key), ("ended", f"{key}.ended"))
        }
        event = json.dumps({"name": message.name, "command": message.command, "seconds": self.seconds, **addresses}).encode()
        client = self.account.client("lambda")
        with asking(self.account, "lambda"):
            try:
                answer = client.invoke(FunctionName=function, InvocationType="Event", Payload=event)
            except client.exceptions.ResourceNotFoundException:  # removed meanwhile, as by `entangle aws gc`
                _functions.pop((self.account, function), None)
                answer = client.invoke(FunctionName=self._function(), InvocationType="Event", Payload=event)
        ticket = str(answer.get("ResponseMetadata", {}).get("RequestId") or hashlib.sha256(event).hexdigest()[:32])
        self._calls[ticket] = _Call(key, function)
        return ticket

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        """One listing of the box tells of all; and one request more for each that has ended without
        an outcome."""
        calls = {ticket: call for ticket in tickets if (call := self._calls.get(ticket)) is not None}
        for ticket, call in list(self._calls.items()):  # those that have died are asked for no more
            if ticket not in calls and time.monotonic() - call.submitted > STALE:
                self._calls.pop(ticket, None)
        there: dict[str, str] = {}
        for prefix in dict.fromkeys(call.key.rpartition("/")[0] + "/" for call in calls.values()):
            there.update(self._listed(prefix))
        return {ticket: self._state(ticket, call, there) for ticket, call in calls.items()}

    def _listed(self, prefix: str) -> Iterator[tuple[str, str]]:
        with asking(self.account, "s3"):
            pages = self.account.client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.account.bucket_name(), Prefix=prefix)
            for page in pages:
                for found in page.get("Contents", ()):
                    yield found["Key"], found["ETag"]

    def _state(self, ticket: str, call: _Call, there: Mapping[str, str]) -> State:
        now = time.monotonic()
        if f"{call.key}.ended" in there:
            return _how(self._told(f"{call.key}.ended").get("how", ""))
        if (tag := there.get(call.key)) is None:
            if now - call.submitted > AGE + LONGEST_RUN:
                return State(OVER, "Lambda has not begun it for six hours, and has dropped it")
            waits = now - call.submitted > WAITED
            return State(PENDING, "Lambda starts a sandbox for it, or runs as many as it may" if waits else "")
        if tag != call.tag:
            call.tag, call.heard = tag, now
        if now - call.heard < STALE:
            return State(RUNNING)
        log = ""
        with contextlib.suppress(Exception):
            log = self.logs(ticket)
        for pattern, error, hint in _ENDED:
            if re.search(pattern, log):
                return State(OVER, f"its sandbox has ended: {hint}", error)
        return State(
            OVER, f"its sandbox has said nothing for {STALE:.0f} s; it was ended, as by Lambda where it needs more memory than it has"
        )

    def cancel(self, tickets: Collection[str]) -> None:
        """Lambda has no way to end one. Its program looks after that by itself: the message is
        marked."""
        for ticket in tickets:
            self._calls.pop(ticket, None)

    def logs(self, ticket: str) -> str:
        """The end of its log in CloudWatch."""
        call = self._calls.get(ticket)
        if call is None:
            return ""
        told = {**self._told(call.key), **self._told(f"{call.key}.ended")}
        request, client = told.get("request") or ticket, self.account.client("logs")
        group = told.get("group") or f"/aws/lambda/{call.function}"
        with asking(self.account, "logs"):
            if stream := told.get("stream"):
                events = client.get_log_events(logGroupName=group, logStreamName=stream, limit=200)["events"]
                lines = [event["message"].rstrip("\n") for event in events]
                starts = [number for number, line in enumerate(lines) if line.startswith("START") and request in line]
                lines = lines[starts[-1] :] if starts else lines
            else:  # it has said nothing
                events = client.filter_log_events(logGroupName=group, filterPattern=f'"{request}"', limit=50)["events"]
                lines = [event["message"].rstrip("\n") for event in events]
        return "\n".join(lines)[-2000:]

    def kept(self, ticket: str) -> str:
        """Where people find it."""
        call = self._calls.get(ticket)
        return f"request {ticket} of {call.function}; its log is in the group /aws/lambda/{call.function} of CloudWatch" if call else ""

    def forget(self, tickets: Collection[str]) -> None:
        """Nothing is kept of those that have given values."""
        for ticket in tickets:
            if (call := self._calls.pop(ticket, None)) is not None and call.tag:
                _over.setdefault(self.account, []).append(call.key)
        keys = _over.get(self.account, [])
        if len(keys) >= MANY:  # the others go with the box
            del _over[self.account]
            with contextlib.suppress(Exception):
                objects = [{"Key": key} for key in keys]
                self.account.client("s3").delete_objects(Bucket=self.account.bucket_name(), Delete={"Objects": objects, "Quiet": True})

    def _told(self, key: str) -> dict[str, Any]:
        """What the handler has put there."""
        with contextlib.suppress(Exception):
            told = json.loads(self.account.client("s3").get_object(Bucket=self.account.bucket_name(), Key=key)["Body"].read())
            if isinstance(told, dict):
                return told
        return {}


def lambda_options(role: Any, image: Any, python: Any, memory: int, timeout: Any, layers: Any) -> dict[str, Any]:
    """The fields of a LambdaCalls for options of @lmbda. Raises OptionError."""
    for name, value in (("role", role), ("image", image), ("python", python)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise OptionError(f"@lmbda: {name}={value_in_short(value)}; it must be a string that is not empty")
    if not role.startswith("arn:"):
        raise OptionError(f"@lmbda: role={role!r}; it must be the ARN of a role, arn:aws:iam::ACCOUNT:role/NAME")
    if python is not None and image is not None:
        raise OptionError("@lmbda: python= is the version of a runtime of Lambda, and an image has its own; leave one out")
    if python is not None and not re.fullmatch(r"3\.1\d", python):
        raise OptionError(f"@lmbda: python={python!r}; it must be the version of a runtime of Lambda, such as '3.12'")
    if not 128 <= memory <= 10_240:
        raise OptionError(f"@lmbda: memory={memory} MiB; it must be 128 to 10,240 MiB")
    if not is_number(timeout) or not 0 < timeout <= LONGEST_RUN:
        raise OptionError(
            f"@lmbda: timeout={value_in_short(timeout)}; Lambda runs nothing for more than {LONGEST_RUN} s. "
            "@batch and @fargate have no such limit"
        )
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(one, str) and one for one in layers):
        raise OptionError("@lmbda: layers= must be a list of ARNs of layers of Lambda")
    version = {} if python is None else {"version": python}
    return {"role": role, "image": image, "memory": memory, "seconds": math.ceil(timeout), "layers": tuple(layers), **version}


class _Call:
    """An invocation: the key of what is said of it, and when that has changed last."""

    def __init__(self, key: str, function: str) -> None:
        self.key, self.function = key, function
        self.submitted = self.heard = time.monotonic()
        self.tag = ""


#: What this process knows: functions that are there, and the day on which that was said last; and
#: invocations by their tickets.
_functions: dict[tuple[Account, str], str] = {}
_known: dict[LambdaCalls, dict[str, _Call]] = {}
#: What was said of calls that are over.
_over: dict[Account, list[str]] = {}


def _key_of(message: Submission) -> str:
    """Where is said of a message how it is: in the box of its caller, which goes with it."""
    for part in message.command:
        if part.startswith("http") and (found := _BOX.search(unquote(urlsplit(part).path))) is not None:
            return f"{found[1]}lambda/{message.id}"
    raise OptionError("@lmbda needs a mailbox in a bucket")


def _how(how: str) -> State:
    if "its time was over" in how:
        return State(OVER, f"it {how}; timeout= of @lmbda says how long it may take", ProcessTimeoutException)
    if "signal 9" in how:
        return State(OVER, f"its process {how}: its own kill, or it needed more memory than it had (memory=)")
    return State(OVER, f"its process {how}")


def _zipped() -> bytes:
    """The handler as a file of zip, the same for the same handler."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("lambda_handler.py", (2020, 1, 1, 0, 0, 0))
        info.external_attr = 0o644 << 16
        archive.writestr(info, Path(lambda_handler.__file__).read_bytes())
    return file.getvalue()
