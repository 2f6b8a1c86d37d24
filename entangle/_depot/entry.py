"""One value in a depot, as bytes: head, header, pickle, large buffers.

::

    head      magic, size of the whole, length of the header, SHA-256, HMAC-SHA-256 or zeros
    header    JSON: task, when it was made, seconds that its body took, parts of its key, sizes
    pickle    protocol 5, perhaps compressed
    buffers   each from a page boundary on: they are mapped where they are, without a copy

The checksum counts the key, the header, the pickle and the buffers, so a file under another name is
damaged as well. The signature is of the checksum.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from entangle._depot import compression
from entangle._shared.spare_files import Part
from entangle._shared.store import round_up
from entangle.errors import DepotError

MAGIC = b"entdep1\n"
HEAD = struct.Struct("<8sQQ32s32s")
_SIZES = struct.Struct("<QQ")
_UNSIGNED = bytes(32)


class Damaged(Exception):
    """The bytes are not those that were written."""


class BadlySigned(Exception):
    """The value has no signature, or one by another key."""


def refused(depot: str, key: str, error: BadlySigned) -> DepotError:
    """What a badly signed value is told as."""
    return DepotError(
        f"a value in the depot {depot} is {error}: it is not loaded, since it may be anybody's code. Set ENTANGLE_KEY to the secret of "
        f"those who share the depot, or remove the value: entangle cache rm {key[:12]}"
    )


class About(NamedTuple):
    """What is known of a value: its task, when it was made (seconds since the epoch), how long its
    body took, and the parts of its key."""

    task: str
    made: float
    seconds: float
    parts: dict[str, str]


class Kept(NamedTuple):
    """A value as it was found: pickled."""

    about: About
    body: Any
    buffers: list[memoryview]


def pack(key: str, about: About, body: bytes, buffers: Sequence[memoryview], secret: bytes) -> tuple[list[Part], int]:
    """The parts of an entry with their offsets, and the size of the whole."""
    codec = ""
    if not buffers:
        codec, body = compression.smaller(body)
    buffers = [buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer for buffer in buffers]
    told = {**about._asdict(), "codec": codec, "body": len(body), "buffers": [buffer.nbytes for buffer in buffers]}
    header = json.dumps(told, separators=(",", ":")).encode()
    start = HEAD.size + len(header)
    parts: list[Part] = [(memoryview(header), HEAD.size), (memoryview(body), start)]
    at = start + len(body)
    for buffer in buffers:
        at = round_up(at)
        parts.append((buffer, at))
        at += buffer.nbytes
    digest = _digest(key, at, len(header), [part for part, _ in parts])
    head = HEAD.pack(MAGIC, at, len(header), digest, sign(digest, secret) if secret else _UNSIGNED)
    return [(memoryview(head), 0), *parts], at


def unpack(key: str, whole: memoryview, secret: bytes, verify: bool = True) -> Kept:
    """An entry's value. Raises Damaged, and BadlySigned where there is a secret.

    Without `verify`, the checksum is not compared: that has been done on this machine.
    """
    try:
        magic, size, length, digest, signature = HEAD.unpack_from(whole)
        if magic != MAGIC or size != len(whole):
            raise Damaged("it has another size, or is no value of a depot")
        header = whole[HEAD.size : HEAD.size + length]
        told = json.loads(bytes(header))
        at = HEAD.size + length
        body = whole[at : at + told["body"]]
        at += len(body)
        buffers = []
        for nbytes in told["buffers"]:
            at = round_up(at)
            buffers.append(whole[at : at + nbytes])
            at += nbytes
        about = About(told["task"], told["made"], told["seconds"], told["parts"])
        codec = told["codec"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None
    if verify and (at != size or _digest(key, size, length, [header, body, *buffers]) != digest):
        raise Damaged("its checksum is another one")
    if secret and not hmac.compare_digest(sign(digest, secret), signature):
        raise BadlySigned("unsigned" if signature == _UNSIGNED else "signed with another key")
    return Kept(about, compression.original(codec, body) if codec else body, buffers)


def _digest(key: str, size: int, length: int, parts: Sequence[memoryview]) -> bytes:
    sum_of = hashlib.sha256(key.encode() + b"\n" + _SIZES.pack(size, length))
    for part in parts:
        sum_of.update(part)
    return sum_of.digest()


def sign(digest: bytes, secret: bytes) -> bytes:
    """The signature of a checksum."""
    return hmac.digest(secret, digest, "sha256")
