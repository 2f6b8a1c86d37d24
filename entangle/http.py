"""@request: the body gets what a web server answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, overload
from urllib.parse import urlsplit, urlunsplit

from entangle._shared.frames import edge
from entangle._shared.masks import beginning, masked
from entangle._shared.short import value_in_short
from entangle.errors import OptionError, RequestError
from entangle.task import Layer, Task, decorate, refuse_unknown

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("url", "method", "timeout", "headers")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_QUERY = ("GET", "HEAD", "DELETE", "OPTIONS")
#: Characters of an error's body that its message shows.
_START = 300


class Request(Layer):
    """The layer of @request: asks first, then runs the function with the answer's content."""

    takes_arguments = True

    def __init__(self, url: str, method: str, timeout: float, headers: Mapping[str, str]) -> None:
        self.url = url
        self.method = method
        self.timeout = timeout
        self.headers = dict(headers)

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Send the keyword arguments, and call the function with the content, followed by the positional arguments."""
        return inner(self._ask(kwargs), *args)

    def _ask(self, fields: dict[str, Any]) -> bytes:
        try:
            import httpx
        except ImportError:
            raise RequestError("@request needs httpx: pip install 'py-entangle[http]'") from None

        url = httpx.URL(self.url)
        sent: dict[str, Any] = {}
        if fields and self.method in _QUERY:
            url = url.copy_merge_params(fields)
        elif fields:
            said = {name.lower(): value for name, value in self.headers.items()}.get("content-type", "")
            sent["json" if "json" in said else "data"] = fields
        shown = _without_secrets(self.url)
        try:
            # Redirects of GET are followed, as browsers do; a body is not sent to where its author did not mean it to go.
            response = httpx.request(
                self.method,
                url,
                headers=self.headers,
                timeout=self.timeout,
                follow_redirects=self.method in _QUERY,
                **sent,
            )
        except httpx.TimeoutException as error:
            raise RequestError(f"{self.method} {shown}: no answer within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise RequestError(f"{self.method} {shown}: {type(error).__name__}: {error}") from error
        if response.status_code >= 400:
            start, _ = beginning(response.text.strip(), _START)
            raise RequestError(
                f"{self.method} {shown}: status {response.status_code} {response.reason_phrase}"
                + (f"; the answer begins: {start}" if start else "")
            )
        content: bytes = response.content
        return content


def _without_secrets(url: str) -> str:
    """The URL without a password and without its query, which may hold a token."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return masked(urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", "")))


@overload
def request(function: None = None, /, **options: Any) -> Callable[[Callable[..., R]], Task[..., R]]: ...
@overload
def request(function: Callable[..., R], /) -> Task[..., R]: ...
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
    """Ask a web server, and give the answer's content (bytes) to the function as its first argument.

    Keyword arguments of the call become the query (GET, HEAD, DELETE, OPTIONS), or with other methods the form; where
    `headers` say `Content-Type: application/json`, the JSON body. `timeout` is in seconds. Needs httpx (the extra
    `http`). Raises OptionError here for bad options; a run raises RequestError for a status of 400 and above, and where there is no answer.

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
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
        raise OptionError(f"@request: timeout={value_in_short(timeout)}; it is a number of seconds above 0")
    said: dict[Any, Any] = {"": ""}
    with contextlib.suppress(TypeError, ValueError):
        said = {} if headers is None else dict(headers)
    if not all(isinstance(name, str) and name and isinstance(value, str) for name, value in said.items()):
        raise OptionError("@request: headers: they are a dict of names and values, all of them texts")
    layer = Request(url, chosen, float(timeout), said)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("request", inner, layer)

    return wrap if function is None else wrap(function)
