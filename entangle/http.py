"""@request: the body gets what a web server answers.

More: docs/reference/decorators.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit

from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.option_values import is_number
from entangle._tasks.web_request import Request
from entangle.errors import OptionError, RequestError
from entangle.task import InjectingDecorator, Task, decorate, refuse_unknown

__all__ = ["RequestError", "request"]

R = TypeVar("R")

_OPTIONS = ("url", "method", "timeout", "headers")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


# The function gets the content, and what a call takes is up to the server.
@overload
def request(*, url: str, method: str = "GET", timeout: float = 30.0, headers: Mapping[str, str] | None = None) -> InjectingDecorator: ...
@overload
def request(function: Callable[..., R], /, *, url: str, **options: Any) -> Task[..., R]: ...
@edge
def request(
    function: Any = None,
    /,
    *,
    url: str = "",
    method: str = "GET",
    timeout: float = 30.0,
    headers: Mapping[str, str] | None = None,
    **unknown: Any,
) -> Any:
    """Ask a web server; the function gets the answer's content (bytes) as its first argument.

    Keyword arguments of the call become the query (GET, HEAD, DELETE, OPTIONS), or with other
    methods the form; where `headers` say `Content-Type: application/json`, the JSON body. `timeout`
    is in seconds: for the connection, and for each part of the answer. Needs httpx (the extra
    `http`).

    Within a run a call that waits for its server costs no thread and no process: the server is
    asked before a worker takes the call, and up to 1,000 requests of a process are under way at
    once. Then the function runs as the other decorators say. `timeout` of `@process` counts for
    both together, and aborts the request; `retry` asks again, also where the function has failed;
    places and tokens of `@limit` are taken for the request, cookies of `@scheduler` for the
    function alone. Requests of GET, HEAD, DELETE and OPTIONS may use a connection again.

    Raises OptionError here for bad options. Running a call raises RequestError for a status of 400
    and above, and where there is no answer.

        @process
        @request(url="http://127.0.0.1:8000/data", method="GET")
        def size(content): return len(content)
    """
    refuse_unknown("request", _OPTIONS, unknown)
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        raise OptionError(f"@request: url={value_in_short(url)}; write a whole URL, @request(url='https://…')")
    chosen = str(method).upper()
    if chosen not in _METHODS:
        raise OptionError(f"@request: method={value_in_short(method)}; choose one of {', '.join(_METHODS)}")
    if not is_number(timeout) or not timeout > 0:
        raise OptionError(f"@request: timeout={value_in_short(timeout)}; it must be a number of seconds above 0")
    said: dict[Any, Any] = {"": ""}
    with contextlib.suppress(TypeError, ValueError):
        said = {} if headers is None else dict(headers)
    if not all(isinstance(name, str) and name and isinstance(value, str) for name, value in said.items()):
        raise OptionError("@request: headers must be a dict whose keys and values are strings")
    layer = Request(url, chosen, float(timeout), said)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("request", inner, layer)

    return wrap if function is None else wrap(function)
