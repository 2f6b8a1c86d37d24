"""What @request sends, and what an answer means: the same for a thread that waits and for none."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from entangle._shared.masks import beginning, masked
from entangle.errors import RequestError

#: Methods whose fields go into the query, and whose redirects are followed.
QUERY = ("GET", "HEAD", "DELETE", "OPTIONS")
#: Characters of an error page that the message shows.
_START = 300


#: How long a server may put off all requests of an exchange before they fail, and the longest pause
#: (seconds).
PATIENCE, LONGEST_PAUSE = 300.0, 20.0


class Later(Exception):
    """In place of an error: the server has done nothing, and is to be asked once more. `why` is for
    those who look on; `error` is what a call raises if the server never does."""

    def __init__(self, why: str, error: Exception) -> None:
        super().__init__(why)
        self.why, self.error = why, error


class Exchange:
    """What is asked of a server for a call, and what its answer means.

    `host` names it in records. `follows`: redirects are followed, and a request whose connection
    was closed before it was answered is sent once more. `keeps`: connections are used again.
    `stays`: they stay open between runs. `signs`: `signed` is called just before a request is sent,
    in a thread that it may block where `waits_to_sign` says so. `runs_on`: what was asked for goes
    on when the request is aborted. `ticket` is the header of an answer that names the request
    there.
    """

    host = ticket = ""
    follows = keeps = stays = signs = runs_on = False
    #: When the server last did what it was asked (monotonic clock, seconds).
    heard = 0.0

    def sent(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What httpx needs for a request with these arguments. Raises what is wrong with them."""
        raise NotImplementedError

    def signed(self, sent: dict[str, Any]) -> dict[str, Any]:
        """The same, signed as of now."""
        return sent

    def waits_to_sign(self) -> bool:
        """Whether `signed` may have to wait now."""
        return True

    def content(self, answer: Any) -> Any:
        """The value of an answer. Raises what it means else, or Later."""
        raise NotImplementedError

    def failure(self, error: Exception) -> Exception:
        """The error of a call, or Later, for what httpx raises."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Import what it takes."""
        imported()

    def ask(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The value of the answer. This thread waits for it."""
        sent = self.sent(args, kwargs)
        pauses = Pauses(self)
        while True:
            try:
                try:
                    answer = imported().request(follow_redirects=self.follows, **self.signed(sent))
                except Exception as error:
                    failure = self.failure(error)
                    if failure is error:
                        raise
                    raise failure from error
                return self.content(answer)
            except Later as later:
                time.sleep(pauses.after(later))


class Pauses:
    """The pauses of one call before it asks once more."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._count = 0
        self._since = time.monotonic()

    def after(self, later: Later) -> float:
        """How long to wait (seconds). Raises its error where the server has done nothing for too
        long."""
        if time.monotonic() - max(self._since, self._exchange.heard) > PATIENCE:
            raise later.error from None
        self._count += 1
        return min(LONGEST_PAUSE, 0.1 * 2.0**self._count) * random.uniform(0.5, 1.0)


class Page(Exchange):
    """A URL, and how it is asked. `timeout` is in seconds."""

    def __init__(self, url: str, method: str, timeout: float, headers: Mapping[str, str]) -> None:
        self.url = url
        self.method = method
        self.timeout = timeout
        self.headers = dict(headers)
        # A body is not sent on: its author named this URL, and no other.
        self.follows = self.keeps = method in QUERY
        #: Who is asked, as records tell it: without a password.
        self.host = urlsplit(url).netloc.rpartition("@")[2]

    def sent(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What httpx needs for a request with these keyword arguments. Raises RequestError without
        httpx."""
        fields = kwargs
        httpx = imported()
        url = httpx.URL(self.url)
        sent: dict[str, Any] = {}
        if fields and self.method in QUERY:
            url = url.copy_merge_params(fields)
        elif fields:
            said = {name.lower(): value for name, value in self.headers.items()}.get("content-type", "")
            sent["json" if "json" in said else "data"] = fields
        return {"method": self.method, "url": url, "headers": self.headers, "timeout": self.timeout, **sent}

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
