"""Compression of pickles, where it pays and this Python can do it: zstd, of the standard library
from 3.14 on, else of the package zstandard."""

from __future__ import annotations

import functools
from typing import Any

#: Smaller pickles stay as they are: a page of the disk is taken anyway.
_LEAST = 8192


class Unreadable(Exception):
    """A value is compressed in a way that this Python cannot read."""


def smaller(body: bytes) -> tuple[str, bytes]:
    """The codec and the compressed bytes; "" and the bytes themselves where it does not pay."""
    if len(body) < _LEAST:
        return "", body
    zstd = _zstd()
    if zstd is None:
        return "", body
    packed: bytes = zstd.compress(body)
    return ("zstd", packed) if len(packed) < 0.8 * len(body) else ("", body)


def original(codec: str, packed: Any) -> bytes:
    """The bytes again. Raises Unreadable."""
    zstd = _zstd() if codec == "zstd" else None
    if zstd is None:
        raise Unreadable(f"it is compressed by {codec}; install the package zstandard to read it")
    unpacked: bytes = zstd.decompress(packed)
    return unpacked


@functools.cache
def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            import zstandard
        except ImportError:
            return None
        return zstandard
    return zstd
