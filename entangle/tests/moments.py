"""Every moment of the engine: a worker is killed, or its caller interrupted, after the first write
or call, after the second …

The engine's own files are traced by instruction. A moment is an instruction that follows a store
that others may see, or a call: a write to the table, to a pool or to a pipe is always one of these.
Only the first two moments at each place in the code count; else most moments would come from
loops."""

from __future__ import annotations

import collections
import contextlib
import dis
import functools
import gc
import itertools
import mmap
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import entangle.cookies
from entangle._run import life
from entangle._shared.home import home
from entangle.cookies import CookieQueue
from entangle.errors import ProcessTerminatedException
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread

from .evidence import note, notes, wait_until

#: The engine: what processes share, what runs in a worker and in the caller, and the cookies.
_ENGINE = tuple(os.path.join(os.path.dirname(entangle.cookies.__file__), name) for name in ("_shared/", "_worker/", "_run/", "cookies.py"))
_ALIKE = 2
_TOOL = 4


@functools.cache
def _after(code: CodeType, stores: bool) -> frozenset[int]:
    """The offsets of the moments in the code: after calls and, with `stores`, after stores."""
    wanted = ("CALL", "STORE_SUBSCR", "STORE_SLICE") if stores else ("CALL",)
    found, before = set(), ""
    for instruction in dis.get_instructions(code):
        if before.startswith(wanted) and instruction.opname not in ("PRECALL", "CALL"):
            found.add(instruction.offset)
        before = instruction.opname
    return frozenset(found)


class Watch:
    """Calls `act` at the moment with that number. Moments are counted from 1, from `begin` on, in
    this process."""

    def __init__(self, number: int, act: Callable[[], None], stores: bool) -> None:
        self._number, self._act, self._stores = number, act, stores
        self._met: collections.Counter[tuple[CodeType, int]] = collections.Counter()
        self._count = 0
        # Find them now: the garbage collector of a worker does not list what the caller has loaded,
        # and each worker would have to find the moments again.
        self._codes = _codes(len(sys.modules))
        for code in self._codes:
            _after(code, stores)

    def begin(self) -> None:
        """Begin to count."""
        if sys.version_info < (3, 12):
            sys.settrace(self._enter)
            return
        self.end()  # left by a test that was broken off
        events = sys.monitoring
        events.use_tool_id(_TOOL, "moments")
        events.register_callback(_TOOL, events.events.INSTRUCTION, self._instruction)
        for code in self._codes:
            events.set_local_events(_TOOL, code, events.events.INSTRUCTION)

    def end(self) -> None:
        """Stop counting."""
        if sys.version_info < (3, 12):
            sys.settrace(None)
            return
        events = sys.monitoring
        if events.get_tool(_TOOL) is not None:
            for code in self._codes:
                events.set_local_events(_TOOL, code, 0)
            events.register_callback(_TOOL, events.events.INSTRUCTION, None)
            events.free_tool_id(_TOOL)
            events.restart_events()

    def _instruction(self, code: CodeType, offset: int) -> Any:
        more = offset in _after(code, self._stores) and self._meet(code, offset)
        return None if more else sys.monitoring.DISABLE  # type: ignore[attr-defined,unused-ignore]

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_ENGINE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._inside

    def _inside(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in _after(frame.f_code, self._stores):
            self._meet(frame.f_code, frame.f_lasti)
        return self._inside

    def _meet(self, code: CodeType, offset: int) -> bool:
        """Count a moment; False if further ones at this place do not count."""
        self._met[code, offset] += 1
        if self._met[code, offset] <= _ALIKE:
            self._count += 1
            if self._count == self._number:
                self._act()
        return self._met[code, offset] < _ALIKE


@functools.cache
def _codes(modules: int) -> list[CodeType]:
    """All loaded code of the engine. A change in the number of modules renews the cache."""
    found: set[CodeType] = set()
    for function in [each for each in gc.get_objects() if isinstance(each, FunctionType)]:
        waiting = [function.__code__]
        while waiting:
            code = waiting.pop()
            if code not in found and code.co_filename.startswith(_ENGINE):
                found.add(code)
                waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return list(found)


def rooms_of_moments() -> set[str]:
    """The names of the directories that contain moments."""
    return {os.path.basename(os.path.dirname(code.co_filename)) for code in _codes(len(sys.modules))}


class Killing:
    """Kills one worker of a run at one moment: the one with that serial number, in a run nested so
    deep.

    The first worker is the only one until it is replaced, so every run of a graph meets the same
    moments. That does not hold for the second."""

    def __init__(self, number: int, depth: int, serial: int) -> None:
        self.number, self.depth, self.serial = number, depth, serial
        self._here = 0
        self._hit = mmap.mmap(-1, mmap.PAGESIZE)
        self._live = life.live
        self._watch = Watch(number, self._kill, stores=True)

    def __enter__(self) -> Killing:
        self._most = os.environ.get("ENTANGLE_MAX_WORKERS")
        if self.serial == 1:
            os.environ["ENTANGLE_MAX_WORKERS"] = "1"
        life.live = self._begin
        return self

    def __exit__(self, *_: object) -> None:
        life.live = self._live
        os.environ.pop("ENTANGLE_MAX_WORKERS", None)
        if self._most is not None:
            os.environ["ENTANGLE_MAX_WORKERS"] = self._most

    @property
    def hit(self) -> bool:
        """Whether the moment came."""
        return self._hit[0] != 0

    def _begin(self, worker: Any) -> int:
        self._here += 1
        victim = not self.hit and self._here == self.depth + 1 and worker.serial == self.serial
        if victim:
            self._watch.begin()
        else:
            self._watch.end()  # a fork of the victim inherits the watch
        return self._live(worker)

    def _kill(self) -> None:
        self._hit[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)


class Interrupting:
    """Sends SIGINT once, at one moment of the thread that enters it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.hit = False
        #: Whether Python has discarded the interrupt, as it does in the callback of a weak
        #: reference or in `__del__`.
        self.dropped = False
        self._watch = Watch(number, self._interrupt, stores=False)

    def __enter__(self) -> Interrupting:
        self._pid = os.getpid()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        self._watch.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.end()
        sys.unraisablehook = self._hook

    def _dropped(self, what: Any) -> None:
        if what.exc_type is KeyboardInterrupt:
            self.dropped = True
        else:
            self._hook(what)

    def _interrupt(self) -> None:
        if os.getpid() == self._pid:  # a worker inherits the watch
            self.hit = True
            signal.raise_signal(signal.SIGINT)


# What is run, and what must hold afterwards -------------------------------------------------------


def leaf(log: str, name: str, value: int) -> int:
    """A leaf that takes long enough for a second worker to start and take the next one."""
    note(log, name)
    time.sleep(0.003)
    return value


def plus(log: str, name: str, *values: int) -> int:
    note(log, name)
    return sum(values)


def tree(log: str, how: Any, name: str = "") -> Any:
    """Six leaves, added in pairs: 15."""
    level = [how(leaf)(log, f"{name}leaf{number}", number) for number in range(6)]
    while len(level) > 1:
        level = [how(plus)(log, f"{name}plus{at}of{len(level)}", *level[at : at + 2]) for at in range(0, len(level), 2)]
    return level[0]


def leaves(log: str, how: Any, name: str = "") -> Any:
    """Six leaves into one sum: 15."""
    return process(plus)(log, f"{name}sum", *(how(leaf)(log, f"{name}leaf{number}", number) for number in range(6)))


def chain(log: str, how: Any) -> Any:
    """A chain of six calls: 15."""
    call = how(leaf)(log, "leaf", 0)
    for number in range(1, 6):
        call = how(plus)(log, f"plus{number}", call, number)
    return call


def pooled(body: Any) -> Any:
    """A task with at most one call at a time."""
    return scheduler(cpus=1)(process(body))


def limited(body: Any) -> Any:
    """A task that needs a place in each of two limits, a CPU and a token."""
    return limit("moments", at_once=2)(limit("one moment", at_once=1, per_second=1e6)(scheduler(cpus=1)(process(body))))


def on_gpu(body: Any) -> Any:
    """A task for a worker that serves a device."""
    return scheduler(gpus=1)(process(body))


def in_thread_limited(body: Any) -> Any:
    """A task in a thread that needs a place in a limit."""
    return limit("moments", at_once=2)(thread(body))


def inner_tree(log: str, name: str) -> Any:
    """A body that runs a graph."""
    note(log, name)
    return tree(log, process, name)(start="fork")


def inner_pool(log: str, name: str) -> Any:
    """A body that runs a graph with a scheduler."""
    note(log, name)
    return leaves(log, pooled, name)(start="fork")


def inner_limit(log: str, name: str) -> Any:
    """A body that holds a place, and runs a graph with the same limits."""
    note(log, name)
    return leaves(log, limited, name)(start="fork")


def inner_gpu(log: str, name: str) -> Any:
    """A body that holds a device, and runs a graph of bodies that need one."""
    note(log, name)
    return leaves(log, on_gpu, name)(start="fork")


def limits(log: str) -> Any:
    """Threads and processes that share the places of one limit: 15."""
    kinds = itertools.cycle((limited, in_thread_limited))
    return process(plus)(log, "sum", *(next(kinds)(leaf)(log, f"leaf{number}", number) for number in range(6)))


def mixed(log: str) -> Any:
    """Threads that take values of processes, and a process that takes theirs: 15."""
    pairs = (thread(plus)(log, f"plus{number}", process(leaf)(log, f"leaf{number}", number), 0) for number in range(6))
    return process(plus)(log, "sum", *pairs)


def bad(log: str, name: str) -> int:
    note(log, name)
    raise ValueError(name)


def judge(log: str, outcomes: list[Any]) -> int:
    """15 if the outcomes are two failures, what depends on one, and two values. Any of them may be
    a death instead."""
    note(log, "judge")
    wanted = (ValueError, ValueError, ValueError, 3, 4)
    for outcome, expected in zip(outcomes, wanted, strict=True):
        if not isinstance(outcome, ProcessTerminatedException):
            assert type(outcome) is expected if isinstance(expected, type) else outcome == expected, outcomes
    return 15


def quick(log: str, name: str, value: int) -> int:
    """A leaf that takes no time. It fails if its name contains a question mark."""
    note(log, name)
    if "?" in name:
        raise ValueError(name)
    return value


def fan(log: str) -> Any:
    """Many small leaves of one consumer, which a worker runs in stretches: 15."""
    values = [int(number % 4 == 1) for number in range(60)]
    return process(plus)(log, "sum", *(process(quick)(log, f"leaf{number}", value) for number, value in enumerate(values)))


def judge_many(log: str, outcomes: list[Any]) -> int:
    """15 if every tenth outcome is a failure. Any of them may be a death instead."""
    note(log, "judge")
    for number, outcome in enumerate(outcomes):
        if not isinstance(outcome, ProcessTerminatedException):
            assert type(outcome) is ValueError if number % 10 == 7 else outcome == number, (number, outcome)
    return 15


def failing_fan(log: str) -> Any:
    """As `fan`, but every tenth leaf fails: 15."""
    leaves = [process(quick)(log, f"leaf{number}{'?' if number % 10 == 7 else ''}", number) for number in range(60)]
    return process(judge_many)(log, entangle.gather(*leaves, return_exceptions=True))


def failing(log: str) -> Any:
    """Failures returned as values, and the calls skipped because of them: 15."""
    leaf_of, plus_of, bad_of = process(leaf), process(plus), process(bad)
    skipped = plus_of(log, "never", bad_of(log, "bad1"), leaf_of(log, "leaf1", 1))
    calls = (
        skipped,
        plus_of(log, "never too", skipped, leaf_of(log, "leaf2", 2)),
        bad_of(log, "bad2"),
        plus_of(log, "plus", leaf_of(log, "leaf3", 2), leaf_of(log, "leaf4", 1)),
        leaf_of(log, "leaf5", 4),
    )
    return process(judge)(log, entangle.gather(*calls, return_exceptions=True))


def two(log: str, body: Any, how: Any = process) -> Any:
    """Two nested runs: 30."""
    return process(plus)(log, "both", how(body)(log, "a"), how(body)(log, "b"))


class Shape(NamedTuple):
    """A graph, its value, how often a body may run, and the workers to be killed: how deep their
    run is nested, and their serial number in it."""

    call: Callable[[str], Any]
    value: int
    most: int
    victims: tuple[tuple[int, int], ...]


SHAPES = {
    "tree": Shape(lambda log: tree(log, process), 15, 1, ((0, 1), (0, 2))),
    "leaves": Shape(lambda log: leaves(log, process), 15, 1, ((0, 1), (0, 2))),
    "chain": Shape(lambda log: chain(log, process), 15, 1, ((0, 1),)),
    "pool": Shape(lambda log: leaves(log, pooled), 15, 1, ((0, 1), (0, 2))),
    "nested": Shape(lambda log: two(log, inner_tree), 30, 1, ((0, 1), (0, 2), (1, 1))),
    "nested pool": Shape(lambda log: two(log, inner_pool), 30, 1, ((0, 1), (0, 2), (1, 1))),
    "limits": Shape(limits, 15, 1, ((0, 1), (0, 2))),
    "nested limits": Shape(lambda log: two(log, inner_limit, limited), 30, 1, ((0, 1), (0, 2), (1, 1))),
    "devices": Shape(lambda log: leaves(log, on_gpu), 15, 1, ((0, 1), (0, 2))),
    "chain on a device": Shape(lambda log: chain(log, on_gpu), 15, 1, ((0, 1),)),
    "nested devices": Shape(lambda log: two(log, inner_gpu, on_gpu), 30, 1, ((0, 1), (0, 2), (1, 1))),
    "retry": Shape(lambda log: tree(log, process(retry=2)), 15, 3, ((0, 1), (0, 2))),
    "mixed": Shape(mixed, 15, 1, ((0, 1), (0, 2))),
    "failing": Shape(failing, 15, 1, ((0, 1), (0, 2))),
    "fan": Shape(fan, 15, 1, ((0, 1), (0, 2))),
    "failing fan": Shape(failing_fan, 15, 1, ((0, 1), (0, 2))),
}


def queues() -> list[CookieQueue]:
    """The queues of CPUs of this process: its budget and its pools."""
    here = home()
    return [here.budget, *here.pools.values()]


def places_held() -> int:
    """How many places in limits are held in this process tree."""
    held = 0
    for name in os.listdir(home().path):
        if re.fullmatch("limit-[0-9a-f]+-[1-9][0-9]*", name):
            queue = CookieQueue(os.path.join(home().path, name))
            queue.refill()
            held += queue.held()
            assert queue.held() + queue.count() == queue.size
            queue.close()
    return held


def descriptors() -> dict[str, str]:
    """The open descriptors of this process, and their targets."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself, closed by now
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def meets(shape: Shape, log: Path, moment: Killing | Interrupting) -> bool:
    """Run the graph, and meet the moment in it. False if the moment never came.

    Afterwards these must hold: the value is right or the error is ours; no body has run too often;
    all cookies are back; nothing is left open; and a next run succeeds."""
    log.unlink(missing_ok=True)
    call, before = shape.call(str(log)), descriptors()
    value = error = None
    try:
        with moment:
            value = call(start="fork")
    except (ProcessTerminatedException, KeyboardInterrupt) as raised:
        error = raised.with_traceback(None)
    told = f"at moment {moment.number}"
    if error is None:
        assert value == shape.value, told
    if isinstance(moment, Killing):
        assert error is None or (isinstance(error, ProcessTerminatedException) and shape.most == 1), told
    else:
        assert isinstance(error, KeyboardInterrupt) or not moment.hit or moment.dropped, told
    counts = collections.Counter(name for (name,) in notes(log))
    assert max(counts.values(), default=0) <= shape.most, f"{told}: {counts}"
    with contextlib.suppress(AssertionError):
        wait_until(lambda: all(queue.count() == queue.size and not queue.held() for queue in queues()), 2)
    assert [(queue.count(), queue.held()) for queue in queues()] == [(queue.size, 0) for queue in queues()], told
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not places_held(), 2)
    assert places_held() == 0, told
    try:  # one check suffices: what ends the killed worker opens descriptors for an instant
        wait_until(lambda: len(descriptors()) <= len(before), 5)
    except AssertionError:
        raise AssertionError(f"{told}: {dict(descriptors().items() - before.items())}") from None
    assert process(plus)(str(log), "next", 1, 2)(start="fork") == 3, told
    return moment.hit
