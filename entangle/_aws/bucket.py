"""A mailbox in a bucket of S3, at the caller. There it is addresses (`bucket_addresses.py`).

::

    entangle/<box>/lease              put anew while the caller lives
                   code/<hash>
                   addresses/<id>     all that its program may get and put, and a small message
                   messages/<id>      a large one
                   claims/<id>        put only if it is not there (If-None-Match), then put anew
                   back/<id>.outcome  put only if it is not there
                   back/<id>.out .err .ask
                   cancelled/<id>  answers/<id>

One listing of `back/` tells all that has come. All objects have the tag `entangle=call`, so that a
rule of the bucket can remove what a caller has left that was killed.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from entangle._aws.account import Account, asking
from entangle._aws.bucket_addresses import Addresses, command
from entangle._remote.wire.frames import Bytes
from entangle._services import envelope
from entangle._services.mailbox import LAPSED, Letter
from entangle.errors import EntangleError

T = TypeVar("T")

#: Where boxes lie in a bucket.
PREFIX = "entangle/"
#: What is larger goes in parts (bytes); S3 takes up to 5 GiB at once.
LARGE = 100 << 20
TAG = "entangle=call"
#: A message that is no larger goes with its addresses (bytes).
SMALL = 64 << 10
#: Objects that one request removes.
MANY = 1000
#: Requests under way at once, and outcomes fetched ahead.
AT_ONCE, AHEAD = 8, 64
#: The name of a box: the pid and the host of its caller.
BOX = re.compile(r"p(\d+)-[0-9a-f]+@(.+)")


@dataclass(frozen=True)
class Buckets:
    """Mailboxes in the bucket of an account."""

    account: Account
    #: Whether jobs have a role of their own, which may use the bucket where addresses would expire.
    job_role: bool = False

    def open(self, leased: bool) -> Bucket:
        """Make one. Raises OptionError where no bucket is named, UnreachableError."""
        return Bucket(self.account, self.job_role)


class Bucket:
    """A box in a bucket, at the caller."""

    pauses = (0.05, 1.0)

    def __init__(self, account: Account, job_role: bool = False) -> None:
        self.account, self.bucket = account, account.bucket_name()
        self._client = account.client("s3")
        self._box = f"{PREFIX}p{os.getpid()}-{os.urandom(6).hex()}@{socket.gethostname()}/"
        #: Small messages whose end is not known, and keys of what nobody needs any more.
        self._small: dict[str, str] = {}
        self._gone: list[str] = []
        self._codes = set[str]()
        self._beats = 0
        self._shown: dict[tuple[str, int], int] = {}
        self._listed: dict[str, tuple[str, int]] = {}
        self._addresses = Addresses(account, self._box, job_role)
        #: Messages whose addresses nobody has signed; and uploads of outcomes in parts.
        self._unsigned = set[str]()
        self._uploads: dict[str, tuple[str, str]] = {}
        self._coming: dict[str, None] = {}
        self._fetched: dict[str, Future[bytes | None]] = {}
        self._sent: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._guard = threading.Lock()
        with asking(account, "s3"):
            self._put("lease", b"%020d" % 0)
            self._sweep()

    def is_there(self) -> bool:
        """Whether nobody has closed it; one bucket is not made anew in another."""
        return not self._closed

    def add_code(self, name: str, data: bytes) -> str:
        """Put a file there, once; gives its name."""
        if name not in self._codes:
            with asking(self.account, "s3"):
                self._put(f"code/{name}", data)
            self._codes.add(name)
        return name

    def reach(self, seconds: float | None) -> None:
        """Raises OptionError where the addresses of a call of so many seconds would expire."""
        self._addresses.reach(seconds)

    def command(self, program: str, name: str, codes: Iterable[str], seconds: float | None) -> tuple[str, ...]:
        """The addresses of the program, and of the list of all addresses, which is put there."""
        tag, there, signed = {"Tagging": TAG}, self._addresses, self._addresses.reach(seconds)
        body = self._small.get(name)
        listed = {
            "code": {code: there.to_code(code, signed) for code in codes},
            "headers": {"x-amz-tagging": TAG},
            "lease": there.to("get_object", "lease", signed),
            **({"body": body} if body is not None else {"message": there.to("get_object", f"messages/{name}", signed)}),
            "cancelled": there.to("get_object", f"cancelled/{name}", signed),
            "answer": there.to("get_object", f"answers/{name}", signed),
            "claimed": there.to("get_object", f"claims/{name}", signed),
            "claim": there.to("put_object", f"claims/{name}", signed, **tag),
            "unclaim": there.to("delete_object", f"claims/{name}", signed),
            **{kind: there.to("put_object", f"back/{name}.{kind}", signed, **tag) for kind in ("out", "err", "outcome", "ask")},
        }
        (self._unsigned.discard if signed else self._unsigned.add)(name)
        self._later(f"addresses/{name}", json.dumps(listed).encode())
        return command(signed), there.to_code(program, signed), there.to("get_object", f"addresses/{name}", signed), name

    def send(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Put a message there, by the time of the next `flush`; a small one goes with `command`."""
        body = b"".join(memoryview(piece).cast("B") for piece in pieces)
        if len(body) <= SMALL:
            self._small[name] = base64.b64encode(body).decode()
        else:
            self._later(f"messages/{name}", body)

    def flush(self) -> None:
        """Wait until all that was sent is there. Raises the first trouble."""
        sent, self._sent = self._sent, []
        with asking(self.account, "s3"):
            for future in sent:
                future.result()

    def send_again(self, name: str, again: str) -> None:
        """Put a message there under another name, and discard the first but for its claim."""
        body = self._small.get(name)
        if body is not None:
            self._small[again] = body
        else:
            source = {"Bucket": self.bucket, "Key": self._key(f"messages/{name}")}
            with asking(self.account, "s3"):
                self._client.copy(
                    source, self.bucket, self._key(f"messages/{again}"), ExtraArgs={"Tagging": TAG, "TaggingDirective": "REPLACE"}
                )
        self.discard(name, keep=True)

    def arrived(self) -> set[str]:
        """The names of all messages that have an outcome now. One request for each thousand."""
        with asking(self.account, "s3"):
            self._listed = {key[len("back/") :]: found for key, found in self._list("back/")}
        names = set()
        for key in self._listed:
            name, _, kind = key.rpartition(".")
            if kind == "outcome":
                names.add(name)
            elif kind == "ask" and name not in self._uploads:
                self._answer(name)
        if len(names) > 1:
            self._coming = dict.fromkeys(names)
            self._fetch_ahead()
        return names

    def _fetch_ahead(self) -> None:
        """Fetch outcomes that will be taken next."""
        while self._coming and len(self._fetched) < AHEAD:
            name = next(iter(self._coming))
            del self._coming[name]
            if name not in self._fetched:
                fetched = self._in_thread(self._get, f"back/{name}.outcome")
                if fetched is None:
                    self._coming.clear()  # `take` gets them
                    break
                self._fetched[name] = fetched

    def take(self, name: str) -> Letter | None:
        """The outcome of a message; None if there is none."""
        self._coming.pop(name, None)
        fetched = self._fetched.pop(name, None)
        self._fetch_ahead()
        with asking(self.account, "s3"):
            body = fetched.result() if fetched is not None else self._get(f"back/{name}.outcome")
        return envelope.read(io.BytesIO(body)) if body is not None else None

    def withdraw(self, name: str) -> bool:
        """Nobody waits for it. True: it has not begun, and never will."""
        with contextlib.suppress(EntangleError), asking(self.account, "s3"):
            if self._put_once(f"claims/{name}", b"the caller, which has cancelled it"):
                return True
            self._put(f"cancelled/{name}", b"-")
        return False

    def sign_of_life(self, name: str) -> object:
        """The tag of its claim, which whoever runs it puts anew; None without a claim."""
        with contextlib.suppress(Exception):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(f"claims/{name}"))["ETag"]
        return None

    def printed(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """What these, or all, have printed since the last time. What all have is seen with
        `arrived`."""
        if names is None:
            sizes = [(key, size) for key, (_, size) in self._listed.items() if key.endswith((".out", ".err"))]
        else:
            # Prints are put before an outcome: the listing that shows it shows them.
            names = list(names)
            if not all(f"{name}.outcome" in self._listed for name in names):
                self._list_again(names)
            sizes = [(key, self._listed[key][1]) for name in names for kind in ("out", "err") if (key := f"{name}.{kind}") in self._listed]
        for key, size in sizes:
            name, _, kind = key.rpartition(".")
            stream = 1 if kind == "out" else 2
            seen = self._shown.get((name, stream), 0)
            if size > seen:
                with contextlib.suppress(Exception):
                    answer = self._client.get_object(Bucket=self.bucket, Key=self._key(f"back/{key}"), Range=f"bytes={seen}-")
                    data = answer["Body"].read()
                    self._shown[name, stream] = seen + len(data)
                    yield name, stream, data

    def _list_again(self, names: Iterable[str]) -> None:
        with contextlib.suppress(EntangleError), asking(self.account, "s3"):
            self._listed.update({key[len("back/") :]: found for name in names for key, found in self._list(f"back/{name}.")})

    def tail(self, name: str, size: int) -> str:
        """The end of what it has printed, for an error."""
        told = b""
        for kind in ("out", "err"):
            with contextlib.suppress(Exception):
                told += (self._get(f"back/{name}.{kind}") or b"")[-size:]
        return told.decode("utf-8", "replace")

    def discard(self, name: str, keep: bool = False) -> None:
        """Remove all that belongs to a message whose end is known, or all but its claim.

        The message goes before its claim: whoever claims it then finds none.
        """
        files = [
            f"messages/{name}",
            f"addresses/{name}",
            f"answers/{name}",
            *(f"back/{name}.{kind}" for kind in ("outcome", "out", "err", "ask")),
        ]
        if not keep:
            files += [f"cancelled/{name}", f"claims/{name}"]
        self._fetched.pop(name, None)
        if (upload := self._uploads.pop(name, None)) is not None:
            with contextlib.suppress(Exception):  # of one that was completed nothing is left
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload[0], UploadId=upload[1])
        for stream in (1, 2):
            self._shown.pop((name, stream), None)
        self._small.pop(name, None)
        self._unsigned.discard(name)
        self._gone += files
        if len(self._gone) + len(files) > MANY:
            self._remove()

    def renew(self) -> None:
        """Say that the caller lives."""
        self._beats += 1
        if not self._closed:
            with contextlib.suppress(Exception):  # the next one may get through
                self._put("lease", b"%020d" % self._beats)

    def _remove(self) -> None:
        """Remove what nobody needs any more, by one request."""
        gone, self._gone = self._gone, []
        if gone and not self._closed and self._in_thread(self._delete, gone) is None:
            with contextlib.suppress(Exception):
                self._delete(gone)

    def rest(self) -> None:
        """End the threads; what they have begun is done before."""
        self._remove()
        with self._guard:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def close(self) -> None:
        """Remove the box. Programs there that still run see that their lease is gone."""
        with self._guard:
            self._closed = True
        self._small.clear()
        with contextlib.suppress(Exception):
            self._delete(["lease"])
        self.rest()
        with contextlib.suppress(Exception):
            self._delete([key for key, _ in self._list("")])

    def _in_thread(self, function: Callable[..., T], *args: Any) -> Future[T] | None:
        """Have a thread do it. None where none does any more: the caller does it then."""
        # Python shuts pools down when the main thread ends; other threads may go on.
        with self._guard, contextlib.suppress(RuntimeError):
            if not self._closed:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(AT_ONCE, "entangle-bucket")
                return self._pool.submit(function, *args)
        return None

    # Requests -------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self._box + name

    def _put(self, name: str, data: Bytes, **more: Any) -> None:
        if memoryview(data).nbytes > LARGE:
            self._client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name), ExtraArgs={"Tagging": TAG})
        else:
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data, Tagging=TAG, **more)

    def _put_once(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._put(name, data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return False
            raise
        return True

    def _later(self, name: str, data: Bytes) -> None:
        sent = self._in_thread(self._put, name, data)
        if sent is not None:
            self._sent.append(sent)
            return
        with asking(self.account, "s3"):
            self._put(name, data)

    def _get(self, name: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise
        return body

    def _list(self, name: str) -> Iterator[tuple[str, tuple[str, int]]]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(name)):
            for found in page.get("Contents", ()):
                yield found["Key"][len(self._box) :], (found["ETag"], found["Size"])

    def _delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self._key(name)} for name in names]
        for at in range(0, len(keys), MANY):
            self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys[at : at + MANY], "Quiet": True})

    def _answer(self, name: str) -> None:
        """Give the addresses of the parts of a large outcome."""
        with asking(self.account, "s3"):
            asked = self._get(f"back/{name}.ask")
            if asked is None:
                return
            key = self._key(f"back/{name}.outcome")
            upload = self._client.create_multipart_upload(Bucket=self.bucket, Key=key, Tagging=TAG)["UploadId"]
            self._uploads[name] = key, upload
            parts = self._addresses.to_parts(f"back/{name}.outcome", upload, json.loads(asked)["parts"], name not in self._unsigned)
            self._put(f"answers/{name}", json.dumps(parts).encode())

    def _sweep(self) -> None:
        """Remove boxes of this host whose callers are gone, once what they started has ended."""
        with contextlib.suppress(Exception):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=PREFIX, Delimiter="/"):
                for found in page.get("CommonPrefixes", ()):
                    box = BOX.fullmatch(found["Prefix"][len(PREFIX) : -1])
                    if box is None or box[2] != socket.gethostname() or os.path.exists(f"/proc/{box[1]}"):
                        continue
                    inside = self._client.list_objects_v2(Bucket=self.bucket, Prefix=found["Prefix"]).get("Contents", [])
                    newest = max((each["LastModified"].timestamp() for each in inside), default=0.0)
                    if time.time() - newest > LAPSED:
                        keys = [{"Key": each["Key"]} for each in inside]
                        self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
