"""Cookies of devices: the right of a process to one GPU or several, or to a share of each.

A file in the home, mapped by all processes of a tree, has the names of devices and a row for each
worker that serves some::

    names   64 of 96 bytes                  a device's number is its place here
    rows    holder, thread, allowed, bound, held, waits, count, wanted, run

A worker is *bound* to the devices that its first cookie names, since a library that has opened a
device keeps it. From then on it takes cookies of these alone. Whoever wants several takes all at
once or none, so no two wait for each other while each holds a part. Those who wait are served in
the order in which they came: what the first of them could use is not given to later ones.

A cookie is a share of a device, so functions with different shares do not take more than there is.

All changes are made under a record lock, and one word says whether a row holds anything: a process
may be killed at any instruction. Rows of dead processes are freed by whoever finds no room.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import posix
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from entangle._shared.polling import readable
from entangle.cookies import identity, lives, mapped, place
from entangle.errors import DeviceError

#: How many devices a process tree can tell apart: their numbers are bits of a word.
MOST_DEVICES = 62
#: What a device has to give. Divisible by all numbers up to 16, so that shares leave no rest.
WHOLE = 720720

_NAME = 96
_ROWS = 1024
(_HOLDER, _THREAD, _ALLOWED, _BOUND, _HELD, _WAITS, _COUNT, _WANTED, _RUN) = range(9)
_ROW = 9
_FIRST_ROW = _NAME * 64
_TICKET, _WAITING = 0, 1
_FIRST_NAME = 16
#: Seconds between two checks whether a holder is dead.
_PATIENCE = 0.1
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Claim(NamedTuple):
    """What a body wants of devices: how many, the share of each (1 of `share`), and whether its
    process is for it alone."""

    gpus: int
    share: int
    fresh: bool

    @property
    def wanted(self) -> int:
        """What it takes of each device, of WHOLE."""
        return WHOLE // self.share

    def most(self, devices: int) -> int:
        """How many bodies with this claim can run on `devices` devices at a time."""
        return devices * self.share // self.gpus


class Visible(NamedTuple):
    """The devices that a run may use: their names, and which variables show them to a process."""

    names: tuple[str, ...] = ()
    #: "" for all of them; "nvml": the numbers are those of NVML; "rocr", "hip": see `shown`.
    style: str = ""


def shown(names: Sequence[str], style: str) -> dict[str, str]:
    """The environment that shows these devices, and no others, to a process.

    On ROCm, HIP counts the devices that ROCR_VISIBLE_DEVICES leaves ("rocr"), and where the user
    has set that, it stays as it is ("hip").
    """
    listed = ",".join(names)
    if style == "rocr":
        inner = ",".join(map(str, range(len(names))))
        return {"ROCR_VISIBLE_DEVICES": listed, "HIP_VISIBLE_DEVICES": inner, "CUDA_VISIBLE_DEVICES": inner}
    if style == "hip":
        return {"HIP_VISIBLE_DEVICES": listed, "CUDA_VISIBLE_DEVICES": listed}
    found = {f"{kind}_VISIBLE_DEVICES": listed for kind in ("CUDA", "HIP", "ROCR")}
    if style == "nvml":
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return found


class Devices:
    """The cookies of all devices of a process tree, in the file at `path`."""

    def __init__(self, path: str, spill: str = "") -> None:
        waker = f"{path}-0"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(waker, 0o600)
        if not os.path.lexists(path):
            with contextlib.suppress(FileExistsError):
                place(path, bytes(_FIRST_ROW + 8 * _ROW * _ROWS), spill)
        with contextlib.suppress(OSError):
            path = os.readlink(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | _NO_LINK)
        try:
            self._waker = os.open(waker, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINK)
        except BaseException:
            os.close(self._fd)
            raise
        self._memory = mapped(self._fd)
        self._whole = memoryview(self._memory)
        self._head = self._whole[:_FIRST_NAME].cast("q")
        self._rows = self._whole[_FIRST_ROW:].cast("q")
        self._guard = threading.RLock()
        self._pid = os.getpid()

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers of these devices; new names get one."""
        with self._locked():
            known = self._names()
            found = []
            for name in names:
                if name not in known:
                    if len(known) == MOST_DEVICES:
                        raise DeviceError(
                            f"more than {MOST_DEVICES} devices have been named in one process tree; name fewer, or start another program"
                        )
                    raw = name.encode("utf-8", "surrogateescape")
                    if len(raw) >= _NAME:
                        raise DeviceError(f"{name!r:.120} is too long for the name of a device; use a number, or the start of a UUID")
                    at = _FIRST_NAME + _NAME * len(known)
                    self._whole[at : at + len(raw)] = raw
                    known.append(name)
                found.append(known.index(name))
            return found

    def join(self, claim: Claim, names: Sequence[str], run: str, bound: Sequence[str] = ()) -> int:
        """A row for this thread of this process, which may take cookies of these devices. It is
        `bound` to some of them if it has served those before."""
        allowed, kept = _mask(self.numbers(names)), _mask(self.numbers(bound))
        me = identity(os.getpid())
        with self._locked():
            for _ in range(2):
                for row in range(0, _ROW * _ROWS, _ROW):
                    if not self._rows[row + _HOLDER]:
                        values = (0, threading.get_ident(), allowed, kept, 0, 0, claim.gpus, claim.wanted, int(run[:15] or "0", 16))
                        self._rows[row : row + _ROW] = memoryview(bytes(8 * _ROW)).cast("q")
                        for at, value in enumerate(values):
                            self._rows[row + at] = value & 0x7FFFFFFFFFFFFFFF
                        self._rows[row + _HOLDER] = me
                        return row
                self._reclaim()
        raise DeviceError(f"more than {_ROWS} workers serve devices at a time; lower share=")

    def leave(self, row: int) -> None:
        """Give back what this row holds, and free it."""
        with self._locked():
            if self._rows[row + _HOLDER] == identity(os.getpid()):
                self._rows[row + _HOLDER] = 0
                self._wake()

    def take(self, row: int) -> bool:
        """Take the cookies that the row wants, if they are free. Never waits."""
        with self._locked():
            return self._take(row) or (self._reclaim() and self._take(row))

    def wait(self, row: int, until: Callable[[], bool]) -> bool:
        """Take the cookies that the row wants; sleep until they are free, or `until` says so.

        Returns whether it has them.
        """
        if self.take(row):
            return True
        with self._locked():
            self._head[_TICKET] += 1
            self._rows[row + _WAITS] = self._head[_TICKET]
            self._count_waiting()
        try:
            while not until():
                if self.take(row):
                    return True
                if readable((self._waker,), _PATIENCE):
                    with contextlib.suppress(BlockingIOError):
                        posix.read(self._waker, 1)
            return False
        finally:
            with self._locked():
                self._rows[row + _WAITS] = 0
                self._count_waiting()
                if self._head[_WAITING]:
                    self._wake()  # what was kept for this row

    def give(self, row: int) -> None:
        """Give back the cookies of this row. It stays bound to its devices."""
        with self._locked():
            if self._rows[row + _HELD] and self._rows[row + _HOLDER] == identity(os.getpid()):
                self._rows[row + _HELD] = 0
                self._wake()

    def holds(self, row: int) -> bool:
        """Whether this row has its cookies."""
        return bool(self._rows[row + _HELD])

    def bound(self, row: int) -> list[str]:
        """The names of the devices to which this row is bound."""
        known = self._names()
        return [known[number] for number in _numbers(self._rows[row + _BOUND])]

    def others_wait(self) -> bool:
        """Whether anybody waits for a cookie."""
        return bool(self._head[_WAITING])

    def room(self, claim: Claim, names: Sequence[str]) -> int:
        """How many more bodies with this claim could begin now on these devices."""
        allowed = self.numbers(names)
        with self._locked():
            self._reclaim()
            free = self._free()
            places = sorted((free[number] // claim.wanted for number in allowed), reverse=True)
        found = 0
        while len(places) >= claim.gpus and places[claim.gpus - 1] > 0:
            for at in range(claim.gpus):
                places[at] -= 1
            places.sort(reverse=True)
            found += 1
        return found

    def close(self) -> None:
        """Close the files."""
        if self._fd < 0:
            return
        for view in (self._rows, self._head, self._whole):
            view.release()
        self._memory.close()
        os.close(self._fd)
        os.close(self._waker)
        self._fd = self._waker = -1

    # Under the lock -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._pid != os.getpid():
            self._guard, self._pid = threading.RLock(), os.getpid()  # a forked child
        with self._guard:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX)
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _names(self) -> list[str]:
        found = []
        for number in range(MOST_DEVICES):
            at = _FIRST_NAME + _NAME * number
            raw = bytes(self._whole[at : at + _NAME]).rstrip(b"\0")
            if not raw:
                break
            found.append(raw.decode("utf-8", "surrogateescape"))
        return found

    def _used(self) -> list[int]:
        """The rows that belong to somebody."""
        return [_ROW * at for at, holder in enumerate(self._rows[_HOLDER::_ROW].tolist()) if holder]

    def _free(self) -> list[int]:
        free = [WHOLE] * MOST_DEVICES
        for row in self._used():
            if self._rows[row + _HELD]:
                for number in _numbers(self._rows[row + _BOUND]):
                    free[number] -= self._rows[row + _WANTED]
        return free

    def _take(self, row: int) -> bool:
        rows = self._rows
        if rows[row + _HELD]:
            return True
        used, free = self._used(), self._free()
        mine = rows[row + _WAITS]
        before = [other for other in used if other != row and rows[other + _WAITS] and (not mine or rows[other + _WAITS] < mine)]
        for other in sorted(before, key=lambda other: rows[other + _WAITS]):
            for number in self._choose(other, used, free):
                free[number] -= rows[other + _WANTED]
        chosen = self._choose(row, used, free)
        if len(chosen) < rows[row + _COUNT]:
            return False
        rows[row + _BOUND] = _mask(chosen)
        rows[row + _HELD] = 1  # last: from here on they are taken
        return True

    def _choose(self, row: int, used: Sequence[int], free: Sequence[int]) -> list[int]:
        """The devices that the row would take now; fewer than it wants if there are not enough."""
        rows = self._rows
        bound = rows[row + _BOUND]
        fits = [number for number in _numbers(bound or rows[row + _ALLOWED]) if free[number] >= rows[row + _WANTED]]
        if bound:
            return fits
        serving = [other for other in used if other != row and rows[other + _BOUND]]

        def load(number: int) -> tuple[int, int, int, int]:
            """Few workers of this run first, then few workers, then little held."""
            there = [other for other in serving if rows[other + _BOUND] >> number & 1]
            return sum(rows[other + _RUN] == rows[row + _RUN] for other in there), len(there), -free[number], number

        return sorted(fits, key=load)[: rows[row + _COUNT]]

    def _reclaim(self) -> bool:
        """Free the rows of dead processes. Returns whether there were any."""
        found = False
        for row in self._used():
            if not lives(self._rows[row + _HOLDER]):
                self._rows[row + _HOLDER] = 0
                found = True
        if found:
            self._count_waiting()
            self._wake()
        return found

    def _count_waiting(self) -> None:
        self._head[_WAITING] = sum(self._rows[row + _WAITS] > 0 for row in self._used())

    def _wake(self) -> None:
        """Wake those who wait: they see for themselves what there is."""
        if self._head[_WAITING]:
            with contextlib.suppress(BlockingIOError):
                posix.write(self._waker, b"!" * self._head[_WAITING])


def _mask(numbers: Sequence[int]) -> int:
    return sum(1 << number for number in numbers)


def _numbers(mask: int) -> list[int]:
    return [number for number in range(MOST_DEVICES) if mask >> number & 1]
