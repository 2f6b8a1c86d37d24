"""What @request sends, and what an answer means: the same for a thread that waits and for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from entangle._shared.masks import beginning, masked
from entangle.errors import RequestError

#: Methods whose fields go into the query, and whose redirects are followed.
QUERY = ("GET", "HEAD", "DELETE", "OPTIONS")
#: Characters of an error page that the message shows.
_START = 300


class Exchange:
    """A URL, and how it is asked. `timeout` is in seconds."""

    def __init__(self, url: str, method: str, timeout: float, headers: Mapping[str, str]) -> None:
        self.url = url
        self.method = method
        self.timeout = timeout
        self.headers = dict(headers)

    @property
    def host(self) -> str:
        """Who is asked, as records tell it: without a password."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def follows(self) -> bool:
        """Whether redirects are followed. A body is not sent on: its author named this URL, and no
        other."""
        return self.method in QUERY

    def sent(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What httpx needs for a request with these fields. Raises RequestError without httpx."""
        httpx = imported()
        url = httpx.URL(self.url)
        sent: dict[str, Any] = {}
        if fields and self.method in QUERY:
            url = url.copy_merge_params(fields)
        elif fields:
            said = {name.lower(): value for name, value in self.headers.items()}.get("content-type", "")
            sent["json" if "json" in said else "data"] = fields
        return {"method": self.method, "url": url, "headers": self.headers, "timeout": self.timeout, **sent}

    def ask(self, fields: dict[str, Any]) -> bytes:
        """The content of the answer. This thread waits for it."""
        sent = self.sent(fields)
        try:
            answer = imported().request(follow_redirects=self.follows, **sent)
        except Exception as error:
            failure = self.failure(error)
            if failure is error:
                raise
            raise failure from error
        return self.content(answer)

    def failure(self, error: Exception) -> Exception:
        """The error of a call for what httpx raises."""
        if isinstance(error, RequestError):
            return error
        httpx = imported()
        if isinstance(error, httpx.TimeoutException):
            return RequestError(f"{self.method} {self._shown}: no answer within {self.timeout:g} s")
        if isinstance(error, httpx.HTTPError):
            return RequestError(f"{self.method} {self._shown}: {type(error).__name__}: {error}")
        return error

    def content(self, answer: Any) -> bytes:
        """The content of an answer. Raises RequestError for a status of 400 and above."""
        if answer.status_code >= 400:
            start, _ = beginning(answer.text.strip(), _START)
            raise RequestError(
                f"{self.method} {self._shown}: status {answer.status_code} {answer.reason_phrase}"
                + (f"; the answer begins: {start}" if start else "")
            )
        content: bytes = answer.content
        return content

    @property
    def _shown(self) -> str:
        """The URL without a password and without its query, which may hold a token."""
        parts = urlsplit(self.url)
        return masked(urlunsplit((parts.scheme, self.host, parts.path, "…" if parts.query else "", "")))


def imported() -> Any:
    """The module httpx. Raises RequestError, which says how to get it."""
    try:
        import httpx
    except ImportError:
        raise RequestError("@request needs httpx: pip install 'py-entangle[http]'") from None
    return httpx
