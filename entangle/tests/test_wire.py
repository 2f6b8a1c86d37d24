"""Frames: what is decoded is what was encoded, however the bytes are split, and no input harms the
decoder."""

from __future__ import annotations

import itertools
import os
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangle._remote.wire import frames
from entangle._remote.wire.frames import (
    CALL,
    CANCEL,
    COUNT,
    DATA,
    FRAME_LIMIT,
    HEAD,
    HELLO,
    INLINE,
    PING,
    PRINT,
    RECORD,
    SIZE,
    VALUE,
    ZLIB,
    ZSTD,
    Decoder,
    Message,
    Press,
)
from entangle.errors import ProtocolError

from .ways import installed

quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def encoded(kind: int, number: int, parts: Sequence[frames.Segments], press: Press | None = None) -> bytes:
    return b"".join(bytes(piece) for frame in frames.encode(kind, number, parts, press) for piece in frame)


def plain(message: Message) -> tuple[int, int, list[bytes]]:
    return message.kind, message.number, [bytes(part) for part in message.parts]


def read(decoder: Decoder, data: bytes, cuts: Sequence[int] = ()) -> list[tuple[int, int, list[bytes]]]:
    """The messages of a decoder that receives these bytes split at `cuts`."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    return [plain(message) for piece in pieces for message in decoder.feed(piece)]


parts_of_messages = st.lists(st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 90_000).map(bytes)), max_size=3), max_size=4)
messages = st.tuples(st.sampled_from([CALL, VALUE, PRINT]), st.integers(0, 2**64 - 1), parts_of_messages)


@quick
@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_what_is_sent_comes_out_however_it_is_cut(sent: list[Any], cuts: list[int]) -> None:
    data = b"".join(encoded(*message) for message in sent)
    expected = [(kind, number, [b"".join(part) for part in parts]) for kind, number, parts in sent]
    assert read(Decoder(), data, cuts) == expected


def test_large_parts_arrive_in_memory_of_their_own() -> None:
    big = os.urandom(3 * FRAME_LIMIT + 5)
    (message,) = Decoder().feed(encoded(VALUE, 7, [[b"head"], [big[:100], big[100:]], []]))
    assert plain(message) == (VALUE, 7, [b"head", big, b""])
    message.parts[1][:3] = b"abc"  # writable
    assert message.parts[1].nbytes == len(big)


def test_messages_may_take_turns() -> None:
    first = list(frames.encode(CALL, 1, [[os.urandom(2 * FRAME_LIMIT)]]))
    second = list(frames.encode(CALL, 2, [[os.urandom(2 * FRAME_LIMIT)]]))
    mixed = [frame for pair in zip(first, second, strict=True) for frame in pair]
    decoder = Decoder()
    got = [m.number for frame in mixed for piece in frame for m in decoder.feed(piece)]
    assert got == [1, 2]


@pytest.mark.parametrize("flag", [ZLIB, ZSTD])
def test_a_slow_connection_gets_compressed_frames(flag: int) -> None:
    if flag == ZSTD and sys.version_info < (3, 14):
        installed("zstandard")
    text = b"the same words again and again, " * 100_000
    press = Press(["zstd"] if flag == ZSTD else ["zlib"])
    # Nothing is known of the connection: not compressed.
    assert encoded(CALL, 1, [[text]], press).count(text[:1000])
    press.wrote(Press.ENOUGH, 60.0)
    packed = encoded(CALL, 1, [[text]], press)
    assert len(packed) < len(text) / 10
    ((_, _, parts),) = read(Decoder(), packed)
    assert parts == [text]
    noise = os.urandom(FRAME_LIMIT)
    # What does not shrink is sent uncompressed.
    assert len(encoded(CALL, 1, [[noise]], press)) >= len(noise)
    press.wrote(1 << 40, 0.1)
    # So is everything, once the connection is fast again.
    assert len(encoded(CALL, 1, [[text]], press)) >= len(text)


def test_a_press_that_does_not_press_hands_on_what_it_was_given() -> None:
    """It does not compress while nothing is known of the connection, nor a small last piece. Data
    that did not shrink is not tried again at once."""
    press = Press(frames.compressions())
    text, noise = bytes(FRAME_LIMIT + 100), os.urandom(FRAME_LIMIT)
    for seconds in (0.0, 60.0):
        press.wrote(Press.ENOUGH, seconds)
        for data in (text, noise, text):
            assert read(Decoder(), encoded(CALL, 1, [[data]], press)) == [(CALL, 1, [data])]


def test_a_slow_connection_is_believed_after_some_megabytes_and_stays_slow() -> None:
    """At first even a slow connection takes bytes at once, into pipes and TCP windows."""
    text = b"the same words again and again, " * (FRAME_LIMIT // 32)
    press = Press()
    press.wrote(4 << 20, 60.0)
    assert len(encoded(CALL, 1, [[text]], press)) > len(text)
    press.wrote(Press.ENOUGH, 60.0)
    for _ in range(40):  # it also measures how fast it compresses
        assert len(encoded(CALL, 1, [[text]], press)) < len(text) / 10


def test_what_this_python_says_it_can_unpack_it_can() -> None:
    text = bytes(FRAME_LIMIT)
    assert "zlib" in frames.compressions()
    for name in frames.compressions():
        press = Press([name])
        press.wrote(Press.ENOUGH, 60.0)
        packed = encoded(CALL, 1, [[text]], press)
        assert len(packed) < len(text) / 10
        assert read(Decoder(), packed) == [(CALL, 1, [text])]


def test_bytes_are_those_of_the_protocol() -> None:
    """The bytes that docs/protocol.md shows to authors of other implementations."""
    ping = "000000100a0100000000000000000007000000010000000000000004" + b"text".hex()
    assert frames.control(PING, 7, b"text").hex() == ping
    assert read(Decoder(), frames.control(PING, 7, b"text")) == [(PING, 7, [b"text"])]
    announced = "0000000c020000000000000000000001000000010000000000100000"
    press = Press(["zlib"])
    press.wrote(Press.ENOUGH, 60.0)
    packed = encoded(CALL, 1, [[bytes(FRAME_LIMIT)]], press)
    assert packed[:28].hex() == announced
    assert packed[32:40].hex() == "0502000000000000"
    assert packed[44:48].hex() == "00100000"
    assert zlib.decompress(packed[48:]) == bytes(FRAME_LIMIT)


def test_thousands_of_small_messages_in_pieces_that_end_anywhere() -> None:
    """Pieces may end within a header, and at the end of the decoder's buffer."""
    for size, more, piece in ((72, 900, 1013), (85, 1, 791)):
        sent = [(PRINT, number, [os.urandom(size + number % more)]) for number in range(5000)]
        before = 28 + size - 5
        data = bytes(before) + b"".join(encoded(kind, number, [parts]) for kind, number, parts in sent)
        decoder, got = Decoder(), []
        for start in range(0, len(data), piece):
            assert len(decoder.room()) > 0
            got += [plain(message) for message in decoder.feed(data[max(before, start) : start + piece])]
        assert got == sent


def test_messages_under_way_have_room_together_up_to_the_limit() -> None:
    """To the last byte; and a cancelled message makes room again."""
    half = 1 << 16

    def announced(number: int, size: int) -> bytes:
        return HEAD.pack(12, CALL, 0, 0, number) + COUNT.pack(1) + SIZE.pack(size)

    decoder = Decoder(2 * half)
    assert list(decoder.feed(announced(1, half) + announced(2, half))) == []
    back = frames.control(CANCEL, 2)
    assert [message.kind for message in decoder.feed(back)] == [CANCEL]
    assert list(decoder.feed(announced(2, half))) == []
    brought = HEAD.pack(half, DATA, 0, 0, 1) + bytes(half)
    assert [message.number for message in decoder.feed(brought)] == [1]
    assert list(decoder.feed(announced(3, half))) == []
    with pytest.raises(ProtocolError, match="room for 0"):
        list(decoder.feed(announced(4, 1)))


# --- invalid bytes --------------------------------------------------------------------------------

#: Bytes that often look like frames.
heads = st.builds(
    lambda length, kind, flags, zero, number: HEAD.pack(length, kind, flags, zero, number),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(1, 11), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, INLINE, ZLIB, ZSTD]), st.integers(0, 255)),
    st.one_of(st.just(0), st.integers(0, 65535)),
    st.integers(0, 3),
)
sizes = st.lists(st.one_of(st.integers(0, 4096), st.integers(0, 2**64 - 1)), max_size=6).map(
    lambda found: COUNT.pack(len(found)) + b"".join(map(SIZE.pack, found))
)
announcements = st.builds(
    lambda kind, flags, number, table: HEAD.pack(len(table), kind, flags, 0, number) + table,
    st.sampled_from([CALL, VALUE, PING]),
    st.sampled_from([0, INLINE]),
    st.integers(0, 3),
    sizes,
)
brought = st.builds(
    lambda flags, number, data: HEAD.pack(len(data), DATA, flags, 0, number) + data,
    st.sampled_from([0, 0, ZLIB, ZSTD]),
    st.integers(0, 3),
    st.one_of(st.binary(max_size=5000), st.binary(max_size=500).map(lambda raw: COUNT.pack(len(raw)) + zlib.compress(raw))),
)
nonsense = st.lists(st.one_of(heads, announcements, brought, st.binary(max_size=200)), max_size=30).map(b"".join)


@quick
@given(nonsense, st.lists(st.integers(0, 1 << 16), max_size=8))
def test_no_input_hurts(data: bytes, cuts: list[int]) -> None:
    """Decoding ends with messages or with ProtocolError, and takes little more memory than its
    limit."""
    limit = 1 << 20
    tracemalloc.start()
    try:
        decoder = Decoder(limit)
        try:
            for kind, _, parts in read(decoder, data, cuts):
                assert HELLO <= kind <= RECORD
                assert sum(map(len, parts)) <= limit + FRAME_LIMIT
        except ProtocolError:
            with pytest.raises(ProtocolError):  # and so for ever
                list(decoder.feed(b"more"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < limit + 3 * FRAME_LIMIT


@pytest.mark.parametrize(
    "data",
    [
        b"Last login: yesterday from elsewhere\r\n",
        HEAD.pack(FRAME_LIMIT + 1, CALL, 0, 0, 1),
        HEAD.pack(4, CALL, 0, 0, 1) + COUNT.pack(3),
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(1 << 60),
        HEAD.pack(3, DATA, 0, 0, 9) + b"abc",
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(2) + HEAD.pack(3, DATA, 0, 0, 1) + b"abc",
        (HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(2)) * 2,
        HEAD.pack(2, PING, 0, 0, 0) + b"xx",
        HEAD.pack(15, PING, INLINE, 0, 0) + COUNT.pack(1) + SIZE.pack(2) + b"xxx",
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(9) + HEAD.pack(2, DATA, ZLIB, 0, 1) + b"xx",
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(9) + HEAD.pack(9, DATA, ZLIB, 0, 1) + COUNT.pack(9) + b"no zip",
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(9) + HEAD.pack(12, DATA, ZLIB, 0, 1) + COUNT.pack(0) + zlib.compress(b""),
        HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(9) + HEAD.pack(9, DATA, INLINE, 0, 1) + bytes(9),
    ],
    ids=[
        "a banner",
        "too long",
        "parts missing",
        "too large",
        "nobody's data",
        "too much data",
        "announced twice",
        "no sizes",
        "more than its parts",
        "packed and no size",
        "damaged",
        "packed and empty",
        "packed nobody knows how",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(data))


def test_a_small_frame_does_not_unpack_into_a_large_one() -> None:
    bomb = zlib.compress(bytes(1 << 26))
    for claimed in (100, FRAME_LIMIT, 1 << 26):
        payload = COUNT.pack(claimed) + bomb
        data = HEAD.pack(12, CALL, 0, 0, 1) + COUNT.pack(1) + SIZE.pack(1 << 26) + HEAD.pack(len(payload), DATA, ZLIB, 0, 1) + payload
        with pytest.raises(ProtocolError):
            list(Decoder().feed(data))


def test_many_announcements_take_no_memory() -> None:
    """An announced size takes no memory until its bytes come, and the number of announcements is
    limited."""
    tracemalloc.start()
    decoder = Decoder()
    table = COUNT.pack(4096) + SIZE.pack(200_000) * 4096
    for number in range(80):
        assert list(decoder.feed(HEAD.pack(len(table), CALL, 0, 0, number) + table)) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64 << 20
    one = COUNT.pack(1) + SIZE.pack(1)
    announced = b"".join(HEAD.pack(len(one), CALL, 0, 0, number) + one for number in range(80, 81 + frames.MOST_OPEN))
    with pytest.raises(ProtocolError):
        list(decoder.feed(announced))
