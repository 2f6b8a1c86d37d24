"""Frames: what goes over the stream between a caller and an agent. docs/protocol.md has the table.

::

    frame    = length (4 bytes) kind (1) flags (1) zero (2) number (8) payload    all big-endian
    message  = one frame of any kind but DATA. Its payload has the sizes of the message's parts,
               and the parts themselves if they are small;
               otherwise DATA frames of the same number follow and bring the parts in order.

A message has a kind, a number (the call it belongs to) and parts. The first part is mostly a
pickle; the others are the large buffers that it refers to. Each part arrives in memory of its own
and is never copied again.

This module knows no sockets or pipes. It runs on both sides, so it needs the standard library only.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from entangle.errors import ProtocolError

VERSION = 1
HEAD = struct.Struct("!IBBHQ")
COUNT = struct.Struct("!I")
SIZE = struct.Struct("!Q")

# Kinds. To the agent: CALL, MODULE. From the agent: HELLO, VALUE, ERROR, RECORD, PRINT, FIND.
# Both ways: PING, which PONG answers with the same number, and CANCEL. CANCEL also withdraws an
# unfinished message of its number.
HELLO, CALL, VALUE, ERROR, DATA, CANCEL, PRINT, FIND, MODULE, PING, PONG, RECORD = range(1, 13)
_KINDS = frozenset(range(1, 13))

INLINE, ZLIB, ZSTD = 1, 2, 4

#: Payload of a frame at most (bytes).
FRAME_LIMIT = 1 << 20
#: A message up to this size goes in one frame (bytes).
SMALL = 32 << 10
#: Unfinished messages at most, all together (bytes). An announced size costs no memory.
LIMIT = 1 << 36
#: Unfinished messages at most in one direction.
MOST_OPEN = 4096
#: Parts of a message at most. A sender with more buffers puts the rest into the pickle.
MOST_PARTS = 4096
#: A part of this size or more gets pages of its own, which the system provides on the first write.
_PAGES = 256 << 10

Bytes = bytes | bytearray | memoryview


class Message(NamedTuple):
    """A complete message. Large parts are writable."""

    kind: int
    number: int
    parts: list[Any]


def _memory(size: int) -> Any:
    """Writable memory for a part."""
    if size < _PAGES:
        return memoryview(bytearray(size))
    try:
        return memoryview(mmap.mmap(-1, size))
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"no memory for {size:,} bytes that the other side sends: {error}") from None


class _Open:
    """An unfinished message. A part takes memory with its first byte, not when it is announced."""

    __slots__ = ("at", "kind", "parts", "position", "size", "sizes")

    def __init__(self, kind: int, sizes: Sequence[int]) -> None:
        self.kind = kind
        self.sizes = sizes
        self.size = sum(sizes)
        self.parts: list[Any] = []
        self.at = 0
        self.position = 0
        self._skip()

    def _skip(self) -> None:
        while self.at < len(self.sizes) and self.position == self.sizes[self.at]:
            if not self.position:
                self.parts.append(b"")
            self.at += 1
            self.position = 0

    @property
    def complete(self) -> bool:
        return self.at == len(self.sizes)

    def place(self, size: int) -> Any:
        """Where the next `size` bytes go. A frame never crosses from one part into the next."""
        if self.complete or size > self.sizes[self.at] - self.position:
            raise ProtocolError("a DATA frame brings more than its message has announced")
        if self.at == len(self.parts):
            self.parts.append(_memory(self.sizes[self.at]))
        return self.parts[self.at][self.position : self.position + size]

    def filled(self, size: int) -> None:
        self.position += size
        self._skip()


class Decoder:
    """Bytes in, messages out. Read into `room`, then tell `received` how many bytes have come.

    No input makes it hang, or take much more memory than `limit`. Input that breaks the protocol
    raises ProtocolError, and the stream cannot be used any more.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._scratch = memoryview(bytearray(HEAD.size + 2 * FRAME_LIMIT // 16))
        self._start = self._end = 0
        self._open: dict[int, _Open] = {}
        self._pending = 0
        # Where the payload of the current frame goes, unless it goes into the scratch buffer.
        self._payload: Any = None
        self._filled = 0
        self._frame: tuple[int, int, int] | None = None
        self._broken: str | None = None

    @property
    def inside(self) -> bool:
        """Whether the bytes so far end within a message."""
        return self._payload is not None or self._start != self._end or bool(self._open)

    def room(self) -> Any:
        """Where the next bytes go: a writable memoryview, never empty."""
        if self._payload is not None:
            return self._payload[self._filled :]
        if self._start:
            rest = self._end - self._start
            self._scratch[:rest] = bytes(self._scratch[self._start : self._end])
            self._start, self._end = 0, rest
        return self._scratch[self._end :]

    def received(self, size: int) -> Iterator[Message]:
        """The messages that `size` more bytes in `room` complete. Take all, then ask `room`."""
        if self._broken is not None:
            raise ProtocolError(self._broken)
        try:
            if self._payload is not None:
                self._filled += size
            else:
                self._end += size
            while True:
                if self._payload is None and not self._begin():
                    return
                if self._payload is not None and self._filled < len(self._payload):
                    return
                message = self._finish()
                if message is not None:
                    yield message
        except ProtocolError as error:
            self._broken = str(error)
            self._open.clear()
            self._payload = None
            raise

    def feed(self, data: Bytes) -> Iterator[Message]:
        """The messages that these bytes complete."""
        rest = memoryview(data)
        while len(rest):
            room = self.room()
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            rest = rest[size:]
            yield from self.received(size)

    def _begin(self) -> bool:
        """Read the head of the next frame, and find room for its payload. False: too few bytes."""
        have = self._end - self._start
        if have < HEAD.size:
            return False
        length, kind, flags, zero, number = HEAD.unpack_from(self._scratch, self._start)
        if kind not in _KINDS or zero or flags & ~(INLINE | ZLIB | ZSTD):
            raise ProtocolError("the other side sends what is no frame; does something print into the stream?")
        if length > FRAME_LIMIT:
            raise ProtocolError(f"a frame of {length:,} bytes; the most is {FRAME_LIMIT:,}")
        have -= HEAD.size
        self._start += HEAD.size
        self._frame = (kind, flags, number)
        here = min(have, length)
        if kind == DATA and not flags:
            found = self._open.get(number)
            if found is None:
                raise ProtocolError("a DATA frame for a message that nobody has announced")
            self._payload = found.place(length)
        else:
            self._payload = memoryview(bytearray(length))
        self._payload[:here] = self._scratch[self._start : self._start + here]
        self._start += here
        if self._start == self._end:
            self._start = self._end = 0
        self._filled = here
        return True

    def _finish(self) -> Message | None:
        """The payload of the current frame is complete. Gives the message that this completes."""
        assert self._frame is not None
        (kind, flags, number), payload = self._frame, self._payload
        self._payload, self._filled, self._frame = None, 0, None
        if kind != DATA:
            return self._announced(kind, flags, number, payload)
        found = self._open.get(number)
        if found is None:
            raise ProtocolError("a DATA frame for a message that nobody has announced")
        size = len(payload)
        if flags:
            raw = unpack(flags, payload)
            size = len(raw)
            found.place(size)[:] = raw
        found.filled(size)
        if not found.complete:
            return None
        del self._open[number]
        self._pending -= found.size
        return Message(found.kind, number, found.parts)

    def _announced(self, kind: int, flags: int, number: int, payload: Any) -> Message | None:
        """The first frame of a message. Gives the message if it is complete."""
        if flags & ~INLINE or len(payload) < COUNT.size:
            raise ProtocolError("a message without the sizes of its parts")
        (count,) = COUNT.unpack_from(payload)
        at = COUNT.size + count * SIZE.size
        if count > MOST_PARTS or at > len(payload):
            raise ProtocolError(f"a message of {count:,} parts in a frame of {len(payload):,} bytes")
        sizes = [SIZE.unpack_from(payload, COUNT.size + index * SIZE.size)[0] for index in range(count)]
        total = sum(sizes)
        if kind == CANCEL:
            self._drop(number)
        if flags & INLINE:
            if at + total != len(payload):
                raise ProtocolError("a message whose parts do not fit its sizes")
            parts = []
            for size in sizes:
                parts.append(payload[at : at + size])
                at += size
            return Message(kind, number, parts)
        if at != len(payload):
            raise ProtocolError("a message whose parts do not fit its sizes")
        if total + self._pending > self._limit:
            raise ProtocolError(f"a message of {total:,} bytes; there is room for {self._limit - self._pending:,} (ENTANGLE_WIRE_LIMIT)")
        if number in self._open or len(self._open) >= MOST_OPEN:
            raise ProtocolError("a message is announced before the one before it is complete")
        opened = _Open(kind, sizes)
        if opened.complete:
            return Message(kind, number, opened.parts)
        self._open[number] = opened
        self._pending += opened.size
        return None

    def _drop(self, number: int) -> None:
        """The other side will not send the rest of this message."""
        opened = self._open.pop(number, None)
        if opened is not None:
            self._pending -= opened.size


def unpack(flags: int, payload: Any) -> Any:
    """The bytes of a compressed DATA frame, never more than a frame may have."""
    if len(payload) < COUNT.size or flags not in (ZLIB, ZSTD):
        raise ProtocolError("a compressed frame that does not say how")
    (size,) = COUNT.unpack_from(payload)
    if not 0 < size <= FRAME_LIMIT:
        raise ProtocolError(f"a compressed frame of {size:,} bytes; the most is {FRAME_LIMIT:,}")
    packed = payload[COUNT.size :]
    try:
        if flags == ZLIB:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(packed, size)
            complete = unpacker.eof or not unpacker.unconsumed_tail
        else:
            raw, complete = _zstd_unpack(bytes(packed), size), True
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a compressed frame is damaged: {error}") from None
    if len(raw) != size or not complete:
        raise ProtocolError("a compressed frame has another size than it says")
    return raw


# Sending --------------------------------------------------------------------------------------

Segments = Sequence[Bytes]


def control(kind: int, number: int = 0, text: bytes = b"") -> bytes:
    """A message of one small part, as the bytes of its one frame."""
    return HEAD.pack(COUNT.size + SIZE.size + len(text), kind, INLINE, 0, number) + COUNT.pack(1) + SIZE.pack(len(text)) + text


def encode(kind: int, number: int, parts: Sequence[Segments], press: Press | None = None) -> Iterator[list[Bytes]]:
    """The frames of a message, as the pieces to write. The segments of a part belong together."""
    sizes = [sum(map(len, part)) for part in parts]
    total = sum(sizes)
    if len(sizes) > MOST_PARTS:
        raise ValueError(f"a message of {len(sizes)} parts; the most is {MOST_PARTS}")
    table = COUNT.pack(len(sizes)) + b"".join(map(SIZE.pack, sizes))
    if total <= SMALL:
        small: list[Bytes] = [HEAD.pack(len(table) + total, kind, INLINE, 0, number) + table]
        small += [segment for part in parts for segment in part]
        yield [b"".join(small)] if total < 4096 else small
        return
    yield [HEAD.pack(len(table), kind, 0, 0, number) + table]
    for part in parts:
        for piece in _pieces(part):
            size = sum(map(len, piece))
            flags, packed = press.pack(piece, size) if press is not None else (0, piece)
            if flags:
                piece = [COUNT.pack(size), *packed]
                size = sum(map(len, piece))
            yield [HEAD.pack(size, DATA, flags, 0, number), *piece]


def _pieces(part: Segments) -> Iterator[list[Bytes]]:
    """The segments of a part, cut into pieces that each fill a frame, except for the last."""
    piece: list[Bytes] = []
    room = FRAME_LIMIT
    for segment in part:
        view = memoryview(segment).cast("B") if len(segment) else memoryview(b"")
        while len(view):
            taken = view[:room]
            piece.append(taken)
            view = view[len(taken) :]
            room -= len(taken)
            if not room:
                yield piece
                piece, room = [], FRAME_LIMIT
    if piece:
        yield piece


class Press:
    """Compresses if that pays on this link: it measures how fast bytes go out, and how they shrink.

    A link is slow if writing waits. Bytes that go out faster than they could be compressed are sent
    as they are. After bytes that did not shrink, it does not try again for a while.
    """

    #: The speed of a link counts after this many bytes: pipes and windows take the first at once.
    ENOUGH = 8 << 20
    #: Compressed bytes above this share of the size are not sent.
    WORTH = 0.85

    def __init__(self, methods: Sequence[str] = ("zlib",)) -> None:
        #: The method that both sides have: flag, function, bytes a second (a guess until measured).
        self._flag, self._squeeze, self._speed = (ZSTD, _zstd_pack, 300e6) if "zstd" in methods else (ZLIB, _zlib_pack, 50e6)
        self._written = 0
        self._waited = 0.0
        self._skip = 0

    def wrote(self, size: int, seconds: float) -> None:
        """`size` bytes went out in `seconds`."""
        self._written += size
        self._waited += seconds
        if self._written > 4 * self.ENOUGH:  # forget the past by and by
            self._written /= 2  # type: ignore[assignment]
            self._waited /= 2

    @property
    def pays(self) -> bool:
        """Whether the link is slower than compression would be."""
        return self._written >= self.ENOUGH and self._written < self._speed * self._waited

    def pack(self, piece: list[Bytes], size: int) -> tuple[int, list[Bytes]]:
        """The flag and the bytes to send: the piece, compressed if that pays."""
        if size < 4096 or not self.pays:
            return 0, piece
        if self._skip:
            self._skip -= 1
            return 0, piece
        began = time.perf_counter()
        packed = self._squeeze(b"".join(piece))
        took = time.perf_counter() - began
        self._speed = 0.7 * self._speed + 0.3 * size / max(took, 1e-6)
        if len(packed) > size * self.WORTH:
            self._skip = 16
            return 0, piece
        return (self._flag, [packed])


def _zlib_pack(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def compressions() -> list[str]:
    """The ways to compress that this Python has."""
    return ["zlib", "zstd"] if zstd_module() is not None else ["zlib"]


def zstd_module() -> Any:
    """The zstd module, if any: of the standard library (3.14) or the package `zstandard`."""
    if sys.version_info >= (3, 14):
        try:
            from compression import zstd

            return zstd
        except ImportError:
            return None
    try:
        import zstandard

        return zstandard
    except ImportError:
        return None


def _zstd_pack(data: bytes) -> bytes:
    module = zstd_module()
    packed: bytes = module.compress(data, 1)
    return packed


def _zstd_unpack(data: bytes, size: int) -> bytes:
    module = zstd_module()
    if module is None:
        raise ProtocolError("a frame is compressed by zstd, which is not here")
    raw: bytes
    if hasattr(module, "ZstdDecompressor") and hasattr(module.ZstdDecompressor, "stream_reader"):  # the package
        with module.ZstdDecompressor(max_window_size=1 << 23).stream_reader(data) as reader:
            raw = reader.read(size + 1)
    else:
        raw = module.ZstdDecompressor(options={module.DecompressionParameter.window_log_max: 23}).decompress(data, size + 1)
    return raw
