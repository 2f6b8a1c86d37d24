"""A message or an outcome in one file: a head in JSON, and parts, which are bytes.

Both sides, and Pythons of different versions, read the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from entangle._remote.wire.frames import Bytes, Segments
from entangle.errors import ProtocolError

#: The first bytes of each: what it is, and the version of this form.
MAGIC = b"entangle-1\n"
_COUNT = struct.Struct(">I")
_SIZE = struct.Struct(">Q")


def written(head: dict[str, Any], parts: Iterable[Segments]) -> Iterator[Bytes]:
    """The pieces of the file, large ones uncopied."""
    parts = [[json.dumps(head).encode()], *parts]
    sizes = [sum(memoryview(piece).nbytes for piece in part) for part in parts]
    yield MAGIC + _COUNT.pack(len(parts)) + b"".join(map(_SIZE.pack, sizes))
    for part in parts:
        yield from part


def read(file: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """The head and the parts, each in memory of its own that may be written to.

    Raises ProtocolError for anything that `written` has not made.
    """
    try:
        if file.read(len(MAGIC)) != MAGIC:
            raise ProtocolError("it is not an envelope of this version")
        (count,) = _COUNT.unpack(file.read(_COUNT.size))
        left = file.seek(0, 2) - len(MAGIC) - _COUNT.size - count * _SIZE.size
        file.seek(len(MAGIC) + _COUNT.size)
        sizes = [_SIZE.unpack(file.read(_SIZE.size))[0] for _ in range(count)] if left >= 0 else []
        if not sizes or sum(sizes) != left:
            raise ProtocolError("it is cut off, or longer than it says")
        parts = []
        for size in sizes:
            part = bytearray(size)
            if file.readinto(part) != size:  # type: ignore[attr-defined]
                raise ProtocolError("it is cut off")
            parts.append(part)
        head = json.loads(bytes(parts.pop(0)))
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"it is damaged ({error})") from None
    if not isinstance(head, dict):
        raise ProtocolError("its head is damaged")
    return head, parts
