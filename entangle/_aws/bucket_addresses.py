"""Addresses of what lies in a box of a bucket: signed here, or to be opened by the job's own role.

A signed one lasts no longer than the credentials that signed it. Where a call may take longer, and
its job has a role, nothing is signed: an address then ends with "#" and the region, and its job
signs each request as that role (`_aws/job_role.py`, which the command brings).
"""

from __future__ import annotations

import base64
import functools
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from entangle._aws import job_role
from entangle._aws.account import LONGEST, Account
from entangle.errors import OptionError

#: Addresses that last no longer than this are refused: a job waits in its queue (seconds).
SHORTEST = 900.0
#: The Python there gets the program by its address. Quotes would not pass through every shell.
COMMAND = "import sys,urllib.request as u;exec(u.urlopen(sys.argv[1],timeout=60).read())"


class Addresses:
    """Addresses of one box. `box` is what the keys of its objects begin with."""

    def __init__(self, account: Account, box: str, role: bool) -> None:
        self._account, self._box, self._role = account, box, role
        self._client, self._bucket = account.client("s3"), account.bucket_name()
        #: Signed ones of code, and when they were signed (of the monotonic clock).
        self._codes: dict[str, tuple[str, float]] = {}
        #: How long one lasts that is signed now (seconds).
        self.seconds = 0
        self.reach(None)

    def reach(self, seconds: float | None) -> bool:
        """Whether the addresses of a call of so many seconds are signed. Raises OptionError where
        they would expire, and the job has no role."""
        self.seconds = self._account.lasts()
        lasts = self.seconds >= (seconds or 0.0) + SHORTEST
        if self._role:  # nobody knows how long a call takes that has no timeout
            return lasts and (seconds is not None or self.seconds == LONGEST)
        if self.seconds < SHORTEST:
            raise OptionError(
                f"{self._account.place}: the credentials expire in {self.seconds} s, and with them the addresses that a job has; "
                "log in anew, name keys that last, or give the job a role that may use the bucket, job_role='arn:…' of @batch and @fargate"
            )
        if not lasts:
            raise OptionError(
                f"{self._account.place}: the addresses of a call last as long as the credentials, {self.seconds} s, and its timeout= "
                f"is {seconds:g} s, beside the time in a queue; give the job a role that may use the bucket, job_role='arn:…' of @batch "
                "and @fargate (deploy/aws has its policy), or log in anew"
            )
        return True

    def to(self, method: str, name: str, signed: bool, **more: Any) -> str:
        """The address for one method ("put_object") and one object of the box."""
        if not signed:
            return unsigned(self._account, self._box) + f"{name}#{self._client.meta.region_name}"
        found: str = self._client.generate_presigned_url(
            method, Params={"Bucket": self._bucket, "Key": self._box + name, **more}, ExpiresIn=self.seconds
        )
        return found

    def to_parts(self, name: str, upload: str, count: int, signed: bool) -> dict[str, Any]:
        """Those for an upload in parts: one for each, and one for its end."""
        if not signed:
            start, _, region = self.to("upload_part", name, signed).partition("#")
            same = f"uploadId={quote(upload, safe='')}#{region}"
            return {"parts": [f"{start}?partNumber={number}&{same}" for number in range(1, count + 1)], "complete": f"{start}?{same}"}
        self.seconds = self._account.lasts()
        sign, given = self._client.generate_presigned_url, {"Bucket": self._bucket, "Key": self._box + name, "UploadId": upload}
        return {
            "parts": [
                sign("upload_part", Params={**given, "PartNumber": number}, ExpiresIn=self.seconds) for number in range(1, count + 1)
            ],
            "complete": sign("complete_multipart_upload", Params=given, ExpiresIn=self.seconds, HttpMethod="POST"),
        }

    def to_code(self, code: str, signed: bool) -> str:
        """The address of code; a signed one is signed anew when half of its time is over."""
        if not signed:
            return self.to("get_object", f"code/{code}", signed)
        address, when = self._codes.get(code, ("", -float(LONGEST)))
        if time.monotonic() - when > self.seconds / 2:
            address = self.to("get_object", f"code/{code}", signed)
            self._codes[code] = address, time.monotonic()
        return address


@functools.lru_cache(maxsize=64)
def unsigned(account: Account, start: str) -> str:
    """How addresses begin of objects of the bucket whose keys begin so."""
    return account.address("get_object", f"{start}x").partition("?")[0][:-1]


@functools.lru_cache(maxsize=1)
def brought() -> str:
    """What a command begins with that opens unsigned addresses: the module, named `r`, as a text
    without quotes that a shell would see, but for single ones."""
    text = base64.b64encode(zlib.compress(Path(job_role.__file__).read_bytes(), 9)).decode()
    return (
        "import sys,types,zlib,base64 as b;"
        f"r=sys.modules[{job_role.__name__!r}]=types.ModuleType({job_role.__name__!r});"
        f"exec(zlib.decompress(b.b64decode({text!r})),r.__dict__);"
    )


def command(signed: bool) -> str:
    """How the Python there is told to run the program at the address that follows."""
    return COMMAND if signed else brought() + "exec(r.fetched(sys.argv[1]))"
