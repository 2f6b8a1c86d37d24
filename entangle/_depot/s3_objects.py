"""Objects of a bucket of S3, with the few methods of fsspec's file systems that a depot needs.

By boto3, not by s3fs: that pins one botocore, runs in a thread of its own that a forked child does
not have, and cannot say "only if it is as I have seen it" (If-Match).
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from entangle.errors import DepotError

T = TypeVar("T")

#: The most that one request may put (bytes).
MOST = 5 << 30
_making = threading.Lock()  # sessions of boto3 are for one thread


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Changed(OSError):
    """The object is not the one that was seen, or it is gone."""


class S3Objects:
    """Objects, by paths as "bucket/name". Errors are OSError, with what to do in `strerror`."""

    #: So many objects are asked for at once.
    page = 1000

    def __init__(self, place: str) -> None:
        try:
            import boto3  # noqa: F401
        except ImportError:
            raise DepotError(f"the depot {place} needs the package boto3: pip install 'py-entangle[aws]'") from None
        self._place = place

    def cat_file(self, path: str) -> bytes:
        """The bytes of an object. Raises FileNotFoundError."""
        return self.cat_with_tag(path)[0]

    def cat_with_tag(self, path: str) -> tuple[bytes, str]:
        """The bytes of an object, and what tells it from others of the name."""
        bucket, _, name = path.partition("/")

        def get() -> tuple[bytes, str]:
            answer = self._client().get_object(Bucket=bucket, Key=name)
            return answer["Body"].read(), answer["ETag"]

        return self._asked(path, get)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", instead_of: str = "") -> str:
        """Put an object; gives its tag. Raises FileExistsError where `mode` is "create" and another
        was first, and Changed where it is no longer the one with the tag `instead_of`."""
        if len(value) > MOST:
            raise DepotError(
                f"a value of {len(value):,} bytes is more than S3 takes in one request ({MOST:,}); divide it among several tasks, or leave "
                "out cache="
            )
        bucket, _, name = path.partition("/")
        condition = {"IfNoneMatch": "*"} if mode == "create" else {"IfMatch": instead_of} if instead_of else {}

        def put() -> str:
            return str(self._client().put_object(Bucket=bucket, Key=name, Body=value, **condition)["ETag"])

        return self._asked(path, put, bool(instead_of))

    def rm_file(self, path: str) -> None:
        """Remove an object. Raises FileNotFoundError where there is none."""
        bucket, _, name = path.partition("/")

        def remove() -> None:
            self._client().head_object(Bucket=bucket, Key=name)  # to delete what is not there is no error
            self._client().delete_object(Bucket=bucket, Key=name)

        self._asked(path, remove)

    def ls(self, path: str, detail: bool = False) -> list[str]:
        """What lies right below a path."""
        return [found for page in self._pages(path, Delimiter="/") for found in _below(path, page)]

    def find(self, path: str, detail: bool = True) -> dict[str, dict[str, Any]]:
        """All objects below a path, with "size" and "LastModified"."""
        bucket = path.partition("/")[0]
        return {
            f"{bucket}/{one['Key']}": {"size": one["Size"], "LastModified": one["LastModified"]}
            for page in self._pages(path)
            for one in page.get("Contents", ())
        }

    def invalidate_cache(self, path: str = "") -> None:
        """Nothing is remembered."""

    def _pages(self, path: str, **how: str) -> Iterator[dict[str, Any]]:
        bucket, _, name = path.partition("/")
        given: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{name}/", "MaxKeys": self.page, **how}
        while True:
            answer = self._asked(path, lambda: self._client().list_objects_v2(**given))
            yield answer
            if not answer.get("IsTruncated"):
                return
            given["ContinuationToken"] = answer["NextContinuationToken"]

    def _client(self) -> Any:
        with _making:
            return _client(self._place, os.getpid())

    def _asked(self, path: str, ask: Callable[[], T], conditional: bool = False) -> T:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        bucket = path.partition("/")[0]
        try:
            return ask()
        except ClientError as error:
            told = error.response.get("Error", {})
            code, text = str(told.get("Code", "")), str(told.get("Message") or error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in ("NoSuchKey", "404", "NotFound") and conditional:
                raise Changed(errno.ESTALE, text, path) from None
            if code in ("NoSuchKey", "404", "NotFound"):
                raise FileNotFoundError(errno.ENOENT, text, path) from None
            # 409: another put of this name was under way
            if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
                raise (Changed(errno.ESTALE, text, path) if conditional else FileExistsError(errno.EEXIST, text, path)) from None
            if code == "NoSuchBucket":
                raise OSError(errno.EIO, f"there is no bucket {bucket!r}: make it, or name another in ENTANGLE_DEPOT or where=") from None
            if status in (401, 403):
                needs = "s3:ListBucket of the bucket, s3:GetObject, s3:PutObject and s3:DeleteObject of what is in it"
                raise OSError(errno.EACCES, f"bucket {bucket!r}: {code}: {text} (a depot needs {needs})") from None
            if code == "NotImplemented":
                raise OSError(
                    errno.ENOTSUP,
                    f"bucket {bucket!r}: this store does not know conditional writes ({text}); use one that does, or a directory",
                ) from None
            raise OSError(errno.EIO, f"bucket {bucket!r}: {code}: {text}") from None
        except NoCredentialsError:
            raise OSError(
                errno.EACCES, f"bucket {bucket!r}: no credentials of AWS were found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret"
            ) from None
        except BotoCoreError as error:
            raise OSError(errno.EIO, f"bucket {bucket!r}: {error}") from None


def _below(path: str, page: dict[str, Any]) -> Iterator[str]:
    bucket = path.partition("/")[0]
    for one in page.get("Contents", ()):
        yield f"{bucket}/{one['Key']}"
    for one in page.get("CommonPrefixes", ()):
        yield f"{bucket}/{one['Prefix'].rstrip('/')}"


@functools.lru_cache(maxsize=16)
def _client(place: str, pid: int) -> Any:
    """A client of this process: a forked child must not use its parent's connections."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        user_agent_extra="entangle",
        signature_version="s3v4",
        s3={"addressing_style": "path"} if endpoint else None,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise OSError(errno.EIO, f"{place}: {error}") from None
