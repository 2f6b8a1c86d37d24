"""The layer of @request: ask a web server, then call the function with the answer's content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from entangle._shared.masks import beginning, masked
from entangle._tasks.layer import Layer
from entangle.errors import RequestError

#: Methods whose fields go into the query, and whose redirects are followed.
_QUERY = ("GET", "HEAD", "DELETE", "OPTIONS")
#: Characters of an error page that the message shows.
_START = 300


class Request(Layer):
    """The layer of @request."""

    takes_arguments = True

    def __init__(self, url: str, method: str, timeout: float, headers: Mapping[str, str]) -> None:
        self.url = url
        self.method = method
        self.timeout = timeout
        self.headers = dict(headers)

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Send the keyword arguments; the function gets the content, then the positional ones."""
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
            # Redirects of GET are followed, as by browsers. A body is not sent on: its author named
            # this URL, and no other.
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
