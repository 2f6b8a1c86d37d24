"""The mailbox of a program that has addresses alone: those that its caller has signed for it.

No credentials, and nothing but the standard library. The program is given the address of a list in
JSON, which has all others (`Bucket.command` puts it there). Each is for one object and one method.
Where those would expire, nobody signs them; the role of the job opens them (`_aws/job_role.py`).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from entangle._remote.wire.frames import Bytes
from entangle._services import envelope
from entangle._services.far.connections import ROLE, request
from entangle._services.mailbox import Letter
from entangle.errors import FarError, StoreFullError

#: The pauses before the next attempts (seconds).
PAUSES = 0.2, 1.0, 3.0, 8.0
#: The size of an outcome that goes in parts, and of each part (bytes). S3 takes 10,000 parts.
LARGE, PART = 100 << 20, 64 << 20
#: How long the caller may take to give the addresses of parts (seconds).
ANSWERS = 120.0
#: What is printed is put as a whole while it is this small; beyond, when it has doubled, and at the
#: end. What is beyond the second figure is in the log of the platform alone (bytes).
PRINTED, PRINTED_AT_MOST = 256 << 10, 64 << 20


class FarAddresses:
    """A mailbox behind addresses, there.

    `claim`, `out`, `err`, `outcome` and `ask` are put, `unclaim` is deleted, all others are got.
    """

    seldom = 5.0

    def __init__(self, address: str, given: dict[str, Any] | None = None) -> None:
        """`given` is what lies at the address, where that was got already."""
        if given is None and (told := _request("GET", address).body) is not None:
            given = json.loads(told)
        if given is None:
            raise FarError("the list of addresses is gone: the call has ended")
        self._address, self._given = address, given
        if "#" in address:  # a role that may not list the bucket is refused what is not there, and would see no end of its call
            _request("GET", self._given["cancelled"])
        self._spools: list[_Spool] = []
        self._who = b""
        self._beats = 0

    def claim(self, name: str, who: str) -> bool:
        """Claim a message. False: it was claimed before."""
        self._who = f"{who}, {os.urandom(8).hex()}".encode()
        answer = self._put("claim", self._who, once=True)
        if answer.status != 412:
            return True
        # The answer to a claim of ours may have been lost, and the claim been made again.
        return _request("GET", self._given["claimed"]).body == self._who

    def unclaim(self, name: str) -> None:
        """Take back a claim to what is not there."""
        with contextlib.suppress(OSError):
            _request("DELETE", self._given["unclaim"])

    def message(self, name: str) -> Letter | None:
        """The message; None if it is there no more, since its end is known."""
        if "body" in self._given:  # a small one comes with the addresses, and goes with them
            gone = _request("GET", self._address).body is None
            body = None if gone else base64.b64decode(self._given["body"])
        else:
            body = _request("GET", self._given["message"]).body
        return envelope.read(io.BytesIO(body)) if body is not None else None

    def live(self, name: str) -> None:
        """Say that it is being run, and show what it has printed."""
        self._beats += 1
        with contextlib.suppress(OSError):
            self._put("claim", self._who + b" %d" % self._beats)
        for spool in self._spools:
            with contextlib.suppress(OSError):
                spool.show(self)

    def lease(self) -> object:
        """What the caller has written last; None once the box is gone."""
        try:
            return _request("GET", self._given["lease"], pauses=()).body
        except OSError as error:  # trouble of the network, brief or lasting: counts as no change
            return str(type(error))

    def lease_is_fresh(self, seconds: float) -> bool:
        """Whether it has changed in these seconds, by the clock of the bucket."""
        try:
            answer = _request("GET", self._given["lease"])
            now, changed = (parsedate_to_datetime(answer.headers[name]) for name in ("Date", "Last-Modified"))
        except (OSError, KeyError, TypeError, ValueError):
            return False
        return answer.body is not None and (now - changed).total_seconds() < seconds

    def is_cancelled(self, name: str) -> bool:
        """Whether nobody waits for it any more."""
        with contextlib.suppress(OSError):
            return _request("GET", self._given["cancelled"], pauses=()).body is not None
        return False

    def prints(self, name: str) -> tuple[int, int]:
        """Open descriptors for what it prints, and for its errors. They are files: a pipe would
        need a reader, which a body that never lets go of the interpreter would stop."""
        self._spools = [_Spool("out", 1), _Spool("err", 2)]
        out, err = (os.dup(spool.fd) for spool in self._spools)
        return out, err

    def put(self, name: str, pieces: Iterable[Bytes]) -> bool:
        """Put the outcome. False: there was one, or the box is gone. Raises StoreFullError."""
        for spool in self._spools:
            with contextlib.suppress(OSError):
                spool.show(self, at_the_end=True)
        held = [memoryview(piece).cast("B") for piece in pieces]
        size = sum(piece.nbytes for piece in held)
        if size <= LARGE:
            answer = self._put("outcome", b"".join(held), once=True)
        else:
            answer = self._put_in_parts(held, size)
        return answer.status != 412

    def make_room(self, name: str) -> None:
        """A bucket has room."""

    def put_printed(self, kind: str, data: bytes) -> None:
        """Put all that it has printed on one stream."""
        self._put(kind, data)

    def _put(self, what: str, data: Bytes, once: bool = False) -> _Answer:
        return _request("PUT", self._given[what], data, {**self._given["headers"], **({"If-None-Match": "*"} if once else {})})

    def _put_in_parts(self, held: list[memoryview], size: int) -> _Answer:
        """Put an outcome that is too large for one request: the caller is asked for addresses of
        its parts."""
        from xml.sax.saxutils import escape

        count = -(-size // PART)
        self._put("ask", json.dumps({"parts": count, "size": size}).encode())
        until = time.monotonic() + ANSWERS
        while (body := _request("GET", self._given["answer"]).body) is None:
            if time.monotonic() > until:
                raise FarError(
                    f"an outcome of {size:,} bytes needs addresses of its parts, and the caller has given none in {ANSWERS:.0f} s"
                )
            time.sleep(0.5)
        given = json.loads(body)
        tags = []
        for address, part in zip(given["parts"], _in_parts(held), strict=True):
            answer = _request("PUT", address, part)
            if answer.status == 404:  # a twin of this program has put its outcome, or nobody waits for it any more
                return _Answer(412, answer.headers, b"")
            tags.append(answer.headers["ETag"])
        listed = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>" for number, tag in enumerate(tags, 1))
        whole = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        answer = _request("POST", given["complete"], whole, {"If-None-Match": "*", "Content-Type": "application/xml"})
        if answer.body and b"<Error>" in answer.body:  # S3 may say so in an answer of status 200
            raise FarError(f"the outcome of {size:,} bytes was not taken: {_said(answer.body)}")
        return answer


class _Spool:
    """What a body prints on one stream: a file, shown to the platform and to the caller."""

    def __init__(self, kind: str, stream: int) -> None:
        self.kind = kind
        self.fd, path = tempfile.mkstemp()
        os.unlink(path)
        self._platform = os.dup(stream)
        self._shown = self._put = 0

    def show(self, mailbox: FarAddresses, at_the_end: bool = False) -> None:
        """Pass on what is new: to the log of the platform, and to the mailbox."""
        size = os.fstat(self.fd).st_size
        while self._shown < size:
            data = os.pread(self.fd, 1 << 20, self._shown)
            if not data:
                break
            self._shown += len(data)
            with contextlib.suppress(OSError):
                os.write(self._platform, data)
        if size > self._put and (at_the_end or size <= PRINTED or size >= 2 * self._put):
            mailbox.put_printed(self.kind, os.pread(self.fd, min(size, PRINTED_AT_MOST), 0))
            self._put = size

    def close(self) -> None:
        """Give up its descriptors."""
        os.close(self.fd)
        os.close(self._platform)


class _Answer:
    """What a server has said. `body` is None where the object is not there."""

    def __init__(self, status: int, headers: Any, body: bytes | None) -> None:
        self.status, self.headers, self.body = status, headers, body


def _request(
    method: str, address: str, data: Bytes | None = None, headers: dict[str, str] | None = None, pauses: tuple[float, ...] = PAUSES
) -> _Answer:
    """One request, again after trouble of the network or of the server. 404 and 412 are answers.

    Raises OSError, or StoreFullError.
    """
    role: Any = sys.modules[ROLE] if "#" in address else None
    for pause in (*pauses, None):
        try:
            status, told, body = request(method, address, data, headers)
        except OSError as error:
            if pause is None or (role and isinstance(error, role.RoleError)):
                raise
        else:
            if status == 404:
                return _Answer(404, told, None)
            if status < 300 or status == 412:
                return _Answer(status, told, body)
            # Two that put the same at one moment: 409 says to try again.
            if pause is None or (status < 500 and status not in (409, 429) and not (role and role.is_over(body))):
                trouble = refused(method, status, body)
                raise role.RoleError(role.FORBIDDEN, role.forbidden(method, str(trouble))) if role and status == 403 else trouble
        time.sleep(pause)
    raise AssertionError


def refused(method: str, status: int, said: bytes) -> OSError:
    """The error for a request that a bucket has refused."""
    told = _said(said)
    if "expired" in told.lower():
        return OSError(
            f"the signed address has expired ({told}): addresses last no longer than the credentials that signed them; "
            "have the caller log in with credentials that last longer"
        )
    if "QuotaExceeded" in told or "StorageFull" in told:
        return StoreFullError(28, f"the bucket takes no more: {told}")
    return OSError(f"{method} was refused by the bucket with status {status}: {told}")


def _said(body: bytes) -> str:
    """The code and the words of an error in XML."""
    found = [re.search(rb"<%s>([^<]*)</%s>" % (tag, tag), body) for tag in (b"Code", b"Message")]
    return ": ".join(match[1].decode("utf-8", "replace") for match in found if match) or body[:200].decode("utf-8", "replace")


def _in_parts(held: list[memoryview]) -> Iterator[bytes]:
    """The same bytes in pieces of PART."""
    part = bytearray()
    for piece in held:
        at = 0
        while at < piece.nbytes:
            more = piece[at : at + PART - len(part)]
            part += more
            at += more.nbytes
            if len(part) == PART:
                yield bytes(part)
                part.clear()
    if part:
        yield bytes(part)
