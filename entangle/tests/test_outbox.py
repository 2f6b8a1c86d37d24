"""The queue of messages to be written to a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from entangle._remote.caller.outbox import FEW, LITTLE, MOST_OWED, Outbox
from entangle._remote.wire.frames import SMALL, Bytes
from entangle.errors import ProtocolError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    yield reads, writes
    os.close(reads)
    os.close(writes)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe. `written` closes its writing end."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    yield reads, writes
    os.close(reads)


def written(outbox: Outbox, pipe: tuple[int, int]) -> bytes:
    """Everything that the outbox writes, while the other side reads whenever the pipe is full."""
    reads, writes = pipe
    got = b""
    while outbox.next():
        try:
            outbox.write(writes)
        except BlockingIOError:
            got += os.read(reads, 1 << 20)
    os.close(writes)
    while data := os.read(reads, 1 << 20):
        got += data
    return got


def test_frames_leave_in_order_however_little_the_stream_takes() -> None:
    pipe = os.pipe()
    os.set_blocking(pipe[1], False)
    frames = [os.urandom(size) for size in (200_000, 1, 70_000)]
    outbox = Outbox()
    assert not outbox
    outbox.begin([frames[0][:5], b"", frames[0][5:]])
    outbox.post(frames[1])
    outbox.owe([[frames[2][:60_000], frames[2][60_000:]]])
    assert outbox
    assert written(outbox, pipe) == b"".join(frames)
    assert not outbox
    os.close(pipe[0])


def test_what_was_copied_no_longer_follows_its_memory(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    values = bytearray(b"a" * 10)
    outbox = Outbox()
    outbox.begin([values])
    outbox.copy()
    values[:] = b"b" * 10
    assert outbox.next()
    outbox.write(writes)
    assert os.read(reads, 100) == b"a" * 10


def test_an_agent_that_never_reads_is_owed_so_much_and_no_more() -> None:
    block = bytes(1 << 20)
    outbox = Outbox()
    fits: list[list[Bytes]] = [[block]] * (MOST_OWED >> 20)
    outbox.check_room(fits)
    outbox.owe(fits)
    with pytest.raises(ProtocolError, match="does not read the answers"):
        outbox.check_room([[b"x"]])
    null = os.open(os.devnull, os.O_WRONLY)
    while outbox.next():
        outbox.write(null)
    os.close(null)
    outbox.check_room(fits)


def frames(number: int, sizes: list[int]) -> Iterator[list[Bytes]]:
    """A message with frames of these sizes."""
    for size in sizes:
        yield [bytes([number]) * size]


def test_messages_take_turns_frame_by_frame(ends: tuple[int, int]) -> None:
    outbox = Outbox()
    outbox.add(1, frames(1, [SMALL] * 3), 3 * SMALL)
    outbox.add(2, frames(2, [10]), 10)
    outbox.post(b"first")
    assert written(outbox, ends) == b"first" + b"\1" * SMALL + b"\2" * 10 + b"\1" * (2 * SMALL)
    assert not outbox
    assert not outbox.holds(1)
    assert not outbox.holds(2)


def test_a_message_that_is_withdrawn_leaves_no_more_of_itself(ends: tuple[int, int]) -> None:
    outbox = Outbox()
    outbox.add(1, frames(1, [SMALL] * 3), 3 * SMALL)
    outbox.add(2, frames(2, [10]), 10)
    assert outbox.next()  # its first frame is being written
    assert not outbox.withdraw(1)
    assert outbox.withdraw(2)
    assert not outbox.withdraw(2)
    assert written(outbox, ends) == b"\1" * SMALL
    assert not outbox


def test_there_is_room_for_few_messages_or_for_little() -> None:
    outbox = Outbox()
    for number in range(FEW):
        assert outbox.has_room
        outbox.add(number, frames(number, [LITTLE]), LITTLE)
    assert not outbox.has_room
    outbox.withdraw(0)
    assert outbox.has_room
    for number in range(1, FEW):
        outbox.withdraw(number)
    for number in range(100):
        outbox.add(number, frames(number, [10]), 10)
    assert outbox.has_room


def test_without_messages_their_turn_does_not_come(ends: tuple[int, int]) -> None:
    outbox = Outbox()
    outbox.add(1, frames(1, [10]), 10)
    outbox.post(b"now")
    assert outbox.next(messages=False)
    outbox.write(ends[1])
    assert not outbox.next(messages=False)
    assert outbox.holds(1)
    assert written(outbox, ends) == b"now" + b"\1" * 10
