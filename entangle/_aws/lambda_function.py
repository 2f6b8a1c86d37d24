"""A function that stands in AWS Lambda, as the body of a task: it is asked, and its answer is the
value.

No thread waits for an answer: the web client of the process has all requests under way. Lambda may
have begun whenever a request has reached it, so a request is sent once more only where it says that
it has not.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from entangle._aws.account import Account, asking, told
from entangle._aws.layers import InAccount
from entangle._remote.wire.controls import escaped
from entangle._shared.summaries import value_in_short
from entangle._tasks.layer import Decorated, Layer, kept_here
from entangle._tasks.web_exchange import Exchange, Later, imported
from entangle._tasks.web_request import RequestPlace
from entangle._worker.away import AwayFunction
from entangle.errors import ArgumentError, LambdaError, LinkLostError, OptionError, UnreachableError
from entangle.flow import AWAY

#: The largest event, and the largest answer (bytes). Source: Lambda quotas, synchronous invocation.
LARGEST = 6 << 20
#: How long an answer may take (seconds): a function runs for 900 s at most. No client of ours gives
#: up earlier, since the function would run on.
ANSWERS, CONNECTS = 960.0, 10.0
#: A name, or an ARN, with or without a version or an alias.
NAME = re.compile(
    r"(?:arn:aws[a-z-]*:lambda:(?P<region>[a-z0-9-]+):\d{12}:function:|(?:\d{12}:)?(?:function:)?)"
    r"(?P<name>[A-Za-z0-9_-]{1,64})(?::(?P<version>\$LATEST|[A-Za-z0-9_-]{1,128}))?"
)
#: Errors that say that the function was not run, and may be later.
_BUSY = frozenset(
    (
        *("TooManyRequestsException", "EC2ThrottledException", "ENILimitReachedException", "SnapStartNotReadyException"),
        *("ResourceNotReadyException", "ResourceConflictException", "EFSMountConnectivityException", "ThrottlingException"),
    )
)
#: What Lambda says of a function that has failed, and what to do.
_HINTS = (
    (r"Sandbox\.Timedout|Task timed out", "its own timeout was over; raise that of the function"),
    (r"OutOfMemory|signal: killed", "it needed more memory than it has; raise that of the function"),
    (
        r"ResponseSizeTooLarge|payload size exceeded",
        "its answer is larger than 6 MB; have it put the value into S3 and answer with the key",
    ),
    (r"ImportModuleError|HandlerNotFound", "its handler cannot be loaded"),
)
#: Types of items that need no look each.
_PLAIN = frozenset((str, int, bool, type(None)))
#: What the engine keeps here of layers below.
_KEPT = ("timeout", "retry", "sleep", "backoff", "jitter", "on", "idempotent")


class AtFunction(InAccount, Layer):
    """Has a function of Lambda answer in place of the one that is decorated."""

    carrier = AWAY
    ships = takes_arguments = True
    door = recorded_as = "lmbda"

    def __init__(self, function: str, qualifier: str | None, account: Account | None = None) -> None:
        self.function, self.qualifier, self.account = function, qualifier, account

    def of(self, account: Account) -> AtFunction:
        """The same in that account."""
        return type(self)(self.function, self.qualifier, account)

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """What runs here: it asks."""
        return AwayFunction(RequestPlace(Invocation(self.account or Account(), self.function, self.qualifier, rest.__name__)), rest)

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """Layers below have no other place: what they state holds here."""
        terms = {name: value for layer in reversed(rest.layers) for name, value in layer.terms().items() if name in _KEPT}
        return {**terms, **kept_here(rest)}


class Invocation(Exchange):
    """How a function is asked, and what its answers mean."""

    keeps = stays = signs = runs_on = True
    ticket = "x-amzn-requestid"

    def __init__(self, account: Account, function: str, qualifier: str | None, task: str) -> None:
        found = NAME.fullmatch(function)
        if found is not None and found["region"] and account.region is None:
            account = replace(account, region=found["region"])
        self.account, self.task = account, task
        self.function = f"{function}:{qualifier}" if qualifier else function
        self.host = f"lambda:{found['name'] if found is not None else function}"
        self._url = self._region = ""

    def prepare(self) -> None:
        """Import httpx and boto3, and make the client, which takes some time."""
        imported()
        self._find()

    def _find(self) -> None:
        if not self._url:
            meta = self.account.client("lambda").meta
            self._region = meta.region_name
            self._url = f"{meta.endpoint_url}/2015-03-31/functions/{quote(self.function, safe='')}/invocations"

    # Out ----------------------------------------------------------------------------------------

    def sent(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The event. Raises ArgumentError where an argument cannot be one, or it is too large."""
        self._find()
        data = self._written(args, kwargs)
        headers = {"Content-Type": "application/json", "X-Amz-Invocation-Type": "RequestResponse", "X-Amz-Log-Type": "Tail"}
        timeout = imported().Timeout(ANSWERS, connect=CONNECTS, pool=None)
        return {"method": "POST", "url": self._url, "headers": headers, "content": data, "timeout": timeout}

    def signed(self, sent: dict[str, Any]) -> dict[str, Any]:
        """The same, signed as of now."""
        with asking(self.account, "lambda"):
            headers = self.account.signed("lambda", self._region, sent["method"], sent["url"], sent["headers"], sent["content"])
        return {**sent, "headers": headers}

    def waits_to_sign(self) -> bool:
        """Whether credentials must be looked for first."""
        return self.account.waits_to_sign()

    def _written(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        try:
            data = _json(event_of(args, kwargs))
        except (TypeError, ValueError, RecursionError):
            data = b""
        for name, value in _named(args, kwargs):
            if wrong := not_json(value, sound=data != b""):
                raise ArgumentError(
                    f"task {self.task!r}: argument {name} cannot be sent to {self.host}, which takes JSON: {wrong}. "
                    "Give it strings, numbers, True, False, None, lists, and dicts whose keys are strings"
                )
        if not data:
            raise ArgumentError(f"task {self.task!r}: its arguments cannot be written as JSON; give it less deeply nested ones")
        if len(data) > LARGEST:
            size, name = max((len(_json(value)), name) for name, value in _named(args, kwargs))
            raise ArgumentError(
                f"task {self.task!r}: its event has {len(data):,} bytes, and Lambda takes {LARGEST:,} (argument {name} has {size:,}); "
                "put what is large into S3, and send its key"
            )
        return data

    # In -----------------------------------------------------------------------------------------

    def content(self, answer: Any) -> Any:
        """The value. Raises LambdaError where the function has failed."""
        headers, body = answer.headers, answer.content
        if answer.status_code >= 300:
            raise self._refused(answer)
        self.heard = time.monotonic()
        log = _log(headers.get("x-amz-log-result", ""))
        request = headers.get(self.ticket, "")
        if "x-amz-function-error" in headers:
            raise self._failed(body, log, request)
        try:
            return json.loads(body) if body else None
        except ValueError:
            raise self._error("", f"its answer is no JSON: {value_in_short(body[:200])}", (), log, request) from None

    def failure(self, error: Exception) -> Exception:
        """What it means that there was no answer."""
        httpx = imported()
        if not isinstance(error, httpx.HTTPError):
            return error
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)):
            refused = UnreachableError(f"{self.account.place}: lambda cannot be reached ({self._url.partition('/2015')[0]}): {why}")
            return Later("lambda cannot be reached", refused) if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) else refused
        return LinkLostError(
            f"task {self.task!r}: the connection to {self.host} ended before its answer came ({why}). The function may have run, "
            "so it was not asked again; retry= says that it may be"
        )

    def _refused(self, answer: Any) -> Exception:
        from botocore.exceptions import ClientError

        code, message, reason = _error_of(answer)
        if answer.status_code == 404 or code == "ResourceNotFoundException":
            return UnreachableError(
                f"{self.account.place}: there is no function {self.function!r} in {self._region} ({code}: {message}); name another one: "
                "@lmbda(function='…', qualifier='…')"
            )
        if answer.status_code == 413 or code == "RequestTooLargeException":
            return ArgumentError(
                f"task {self.task!r}: Lambda does not take its event: {message}; put what is large into S3, and send its key"
            )
        error = told(ClientError({"Error": {"Code": code, "Message": message}}, "Invoke"), self.account, "lambda")
        if answer.status_code == 429 or code in _BUSY:
            return Later(f"{self.host} takes no more at the moment ({reason or code})", error)
        if answer.status_code >= 500:
            return LinkLostError(
                f"task {self.task!r}: {self.host} did not answer: {code}: {message}. The function may have run, so it was not asked again; "
                "retry= says that it may be"
            )
        return error

    def _failed(self, body: bytes, log: str, request: str) -> LambdaError:
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            said = {"errorMessage": body.decode("utf-8", "replace") if said is None else json.dumps(said)}
        trace = said.get("stackTrace") or said.get("trace") or ()
        stack = tuple(_frame(line) for line in trace) if isinstance(trace, (list, tuple)) else ()
        return self._error(str(said.get("errorType") or ""), str(said.get("errorMessage") or ""), stack, log, request)

    def _error(self, kind: str, message: str, stack: tuple[str, ...], log: str, request: str) -> LambdaError:
        kind, message, log = escaped(kind), escaped(message), escaped(log)
        stack = tuple(map(escaped, stack))
        what = ": ".join(filter(None, (kind, message))) or "it says nothing of why"
        text = f"task {self.task!r}: the function {self.host} has failed: {what}"
        for pattern, hint in _HINTS:
            if re.search(pattern, f"{kind} {message}"):
                text += f"; {hint}"
                break
        if stack:
            text += "\n" + "\n".join(line.rstrip("\n") for line in stack)
        if log:
            text += f"\nthe end of its log (request {request}):\n{log}"
        error = LambdaError(text)
        error.error_type, error.error_message, error.stack, error.log, error.request = kind, message, stack, log, request
        return error


def checked_name(function: object, qualifier: object) -> None:
    """Raise OptionError for what is no name of a function, or no version or alias."""
    found = NAME.fullmatch(function) if isinstance(function, str) else None
    if found is None:
        raise OptionError(f"@lmbda: function={value_in_short(function)}; it must be the name or the ARN of a function of Lambda")
    if qualifier is None:
        return
    if not isinstance(qualifier, str) or not re.fullmatch(r"\$LATEST|[A-Za-z0-9_-]{1,128}", qualifier):
        raise OptionError(f"@lmbda: qualifier={value_in_short(qualifier)}; it must be a version, such as '3', or an alias")
    if found["version"] is not None:
        raise OptionError(f"@lmbda: function={function!r} names a version or an alias already; leave qualifier= out")


def event_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a function gets for these arguments: a single dict as it is, else those by their place
    as `args`, and those by their names as `kwargs`."""
    if len(args) == 1 and not kwargs and isinstance(args[0], dict):
        return args[0]
    return {**({"args": list(args)} if args else {}), **({"kwargs": kwargs} if kwargs else {})}


def not_json(value: Any, sound: bool = False) -> str:
    """What in a value JSON does not have, and where; "" if it has all. Keys that are no strings
    would arrive as strings, so they are refused. `sound`: it was written already, so only keys can
    be wrong.
    """
    if not sound:
        try:
            _json(value)
        except RecursionError:
            return "it is nested too deeply"
        except (TypeError, ValueError) as error:
            if "Circular" in str(error):
                return "it contains itself"
    open_ones: list[tuple[str, Any]] = [("", value)]
    while open_ones:
        where, one = open_ones.pop()
        if one is None or isinstance(one, (str, int)):
            continue
        if isinstance(one, float):
            if not math.isfinite(one):
                return f"{one}{where and ' at ' + where}"
        elif isinstance(one, dict):
            for key in one:
                if not isinstance(key, str):
                    return f"the key {value_in_short(key)} of a dict{where and ' at ' + where}"
            open_ones += [(f"{where}[{key!r}]", item) for key, item in one.items()]
        elif not isinstance(one, (list, tuple)):
            return f"{value_in_short(one)} of type {type(one).__name__}{where and ' at ' + where}"
        elif not _PLAIN.issuperset(map(type, one)):
            open_ones += [(f"{where}[{index}]", item) for index, item in enumerate(one)]
    return ""


def _error_of(answer: Any) -> tuple[str, str, str]:
    """The code, the words and the reason of an answer that refuses; in XML where it comes from what
    stands before Lambda."""
    said: Any = {}
    try:
        said = json.loads(answer.content)
    except ValueError:
        found = {tag: re.search(f"<{tag}>([^<]*)</{tag}>", answer.text) for tag in ("Code", "Message")}
        said = {tag: match[1] for tag, match in found.items() if match} or {"Message": answer.text[:300]}
    if not isinstance(said, dict):
        said = {}
    code = answer.headers.get("x-amzn-errortype", "").partition(":")[0]
    code = code or str(said.get("__type") or said.get("code") or said.get("Code") or answer.status_code)
    message = str(said.get("message") or said.get("Message") or said.get("errorMessage") or "")
    return escaped(code), escaped(message), escaped(str(said.get("Reason") or ""))


def _named(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((str(number), value) for number, value in enumerate(args, 1))
    yield from ((repr(name), value) for name, value in kwargs.items())


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _frame(line: Any) -> str:
    """A line of a stack: a string, or of other runtimes a list."""
    return line if isinstance(line, str) else " ".join(map(str, line)) if isinstance(line, list) else json.dumps(line)


def _log(encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode("utf-8", "replace").strip()
    except ValueError:
        return ""
