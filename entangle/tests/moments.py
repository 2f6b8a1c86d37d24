"""Every moment of the engine: a worker is killed, or its caller interrupted, after the first write or call, after the second …

The engine's own files are traced by instruction. A moment is an instruction after one that has stored something where others may
see it, or has called something: a write to the table, to a pool or to a pipe is always one of these. Of the moments at one place
in the code the first two count: loops would else be most of them.
"""

from __future__ import annotations

import collections
import dis
import functools
import mmap
import os
import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import entangle.cookies
from entangle._run import start

_ENGINE = os.path.dirname(start.__file__) + os.sep
_ALIKE = 2

Trace = Callable[[FrameType, str, Any], Any]


@functools.cache
def _after(code: CodeType, stores: bool) -> frozenset[int]:
    """Where in the code a moment is: after calls, and after stores where those count."""
    wanted = ("CALL", "STORE_SUBSCR", "STORE_SLICE") if stores else ("CALL",)
    found, before = set(), ""
    for instruction in dis.get_instructions(code):
        if before.startswith(wanted):
            found.add(instruction.offset)
        before = instruction.opname
    return frozenset(found)


def _trace(number: int, act: Callable[[], None], stores: bool) -> Trace:
    """A trace function that calls `act` at the moment of that number, counted from 1."""
    met: collections.Counter[tuple[CodeType, int]] = collections.Counter()
    count = 0

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "opcode" and frame.f_lasti in _after(frame.f_code, stores):
            place = frame.f_code, frame.f_lasti
            met[place] += 1
            if met[place] <= _ALIKE:
                count += 1
                if count == number:
                    sys.settrace(None)
                    act()
        return inside

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_ENGINE) and name != entangle.cookies.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return inside

    return enter


class Killing:
    """Kills one worker of a run at one moment: the one of that serial number, in a nested run of that depth."""

    def __init__(self, number: int, depth: int, serial: int) -> None:
        self.number, self.depth, self.serial = number, depth, serial
        self._here = 0
        self._hit = mmap.mmap(-1, mmap.PAGESIZE)
        self._live = start.live

    def __enter__(self) -> Killing:
        start.live = self._begin
        return self

    def __exit__(self, *_: object) -> None:
        start.live = self._live

    @property
    def hit(self) -> bool:
        """Whether the moment came."""
        return self._hit[0] != 0

    def _begin(self, worker: Any) -> int:
        self._here += 1
        victim = not self.hit and self._here == self.depth + 1 and worker.serial == self.serial
        sys.settrace(_trace(self.number, self._kill, stores=True) if victim else None)
        try:
            return self._live(worker)
        finally:
            sys.settrace(None)

    def _kill(self) -> None:
        self._hit[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)


class Interrupting:
    """Presses Ctrl-C once, at one moment of the thread that enters it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.hit = False

    def __enter__(self) -> Interrupting:
        self._pid = os.getpid()
        self._before = sys.gettrace()
        sys.settrace(_trace(self.number, self._interrupt, stores=False))
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _interrupt(self) -> None:
        if os.getpid() == self._pid:  # a worker inherits the trace function
            self.hit = True
            signal.raise_signal(signal.SIGINT)
