"""Durable runs: `with entangle.durable(NAME)` keeps what the runs inside have done.

Before such a run begins, its nodes are looked up in the ledger, from the value down. A node that
has ended well is not run again, and the nodes below it are not looked up. What is left is a flow of
its own, whose workers write into the ledger.

The runs that a body makes are kept as well. Their nodes are told apart by the place of the node in
whose body they are made, so they are found again whatever order workers take.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import hashlib
import json
import os
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

from entangle import task as tasks
from entangle._depot import durable_directory, ledger
from entangle._depot.durable_directory import DurableDirectory
from entangle._depot.kept_values import in_ledger, is_there, value_of
from entangle._depot.ledger import LENGTH, NO_NODE, Ledger, LedgerOfFlow, Outcomes
from entangle._depot.warned_once import warn_once
from entangle._run import ObservedRun
from entangle._run.run import Run
from entangle._shared.documentation import more
from entangle._shared.identity.flow_keys import digest, keys_of
from entangle._shared.pickling import dumps_for_others
from entangle._shared.summaries import call_in_short, value_in_short
from entangle._shared.table import FAILED
from entangle._shared.tracebacks import hide
from entangle._tasks.left_over import Loaded, left_over
from entangle._worker.worker import here
from entangle.errors import DurableError, MayHaveRunError, OptionError, add_note
from entangle.flow import UNCHANGING, Body, Flow

#: Pauses while waiting for another process to leave the run: short at first (seconds).
_FIRST, _LONGEST = 0.002, 0.1
#: How many nodes an error names.
_NAMED = 10
_counting = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_counting=threading.Lock()))


class Scope(NamedTuple):
    """Where runs are made that are kept: at the top of a durable run, or in the body of a node."""

    of_flow: LedgerOfFlow
    place: bytes
    counts: dict[bytes, int]
    outcomes: Callable[[], Outcomes]
    #: The block, for runs at the top.
    block: Durable | None


class Durable:
    """The runs in a `with` block are kept. Made by `entangle.durable`."""

    def __init__(self, name: str, busy: str = "wait", sync: str | None = None, keep_program: bool = False) -> None:
        if not isinstance(name, str) or not name.strip() or len(durable_directory.file_name(name)) > 200:
            raise OptionError(f"durable({value_in_short(name)}): a name is a string of 1 to about 200 characters")
        if busy not in ("wait", "raise"):
            raise OptionError(f"durable: busy={value_in_short(busy)}; it is 'wait' or 'raise'")
        if sync not in (None, "disk"):
            raise OptionError(f"durable: sync={value_in_short(sync)}; it is 'disk', or None")
        self.name = name
        self._may_wait = busy == "wait"
        self._to_disk = sync == "disk"
        self._keep_program = keep_program
        self._entered: list[contextvars.Token[_Opened | None] | None] = []
        self._directory: DurableDirectory | None = None
        #: What the ledgers said when the block was entered.
        self.outcomes = Outcomes()
        #: Whether there is something left of it even if the block ends well.
        self.left_over = False
        self._ledger: Ledger | None = None
        self._under_way: set[DurableRun] = set()
        #: The streams of the block: they end with it.
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._guard = threading.Lock()

    @property
    def directory(self) -> DurableDirectory:
        """Its directory. Raises DurableError outside the block."""
        if self._directory is None:
            raise DurableError(f"the block of durable run {self.name!r} has not been entered; write `with durable(…):` around what uses it")
        return self._directory

    def __repr__(self) -> str:
        return f"<durable run {self.name!r}>"

    def __enter__(self) -> Durable:
        try:
            for pause in self._entering():
                worker = here.worker
                with worker.lending() if worker is not None else contextlib.nullcontext():
                    time.sleep(pause)
        except BaseException as error:
            hide(error)
            raise
        return self

    async def __aenter__(self) -> Durable:
        for pause in self._entering():
            await asyncio.sleep(pause)
        return self

    def _entering(self) -> Any:
        """Enter it; each step is a pause (seconds)."""
        if _name_around() == self.name:  # it is that one
            self._entered.append(None)
            return
        if self._directory is not None:
            raise DurableError(f"this block of durable run {self.name!r} has been entered already; make another one")
        directory = DurableDirectory(self.name, self._to_disk)
        pause = _FIRST
        for _ in directory.enter(None if self._keep_program else _program(), self._may_wait):
            yield pause
            pause = min(_LONGEST, 1.5 * pause)
        try:
            self.outcomes = directory.outcomes()
            of_flow = directory.of_flow()
            self._ledger = of_flow.open()
            durable_directory.trim(but=self.name)
        except BaseException as error:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
            directory.leave(finished=False)
            if isinstance(error, OSError):
                raise _unusable(self.name, directory.path, error) from None
            raise
        self._directory = directory
        worker = here.worker
        self.scope = Scope(of_flow, b"", {}, lambda: self.outcomes, self)
        self._entered.append(_opened.set(_Opened(self.scope, os.getpid(), worker, worker.node() if worker is not None else -1)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        token = self._entered.pop()
        if token is None:
            return
        _opened.reset(token)
        directory, self._directory = self._directory, None
        if directory is None or not directory.is_held():  # a forked child
            return
        finished = False
        try:
            for stream in list(self.streams):
                stream.leave()
            with self._guard:
                left = list(self._under_way)
            for run in left:
                if error is not None:
                    run.cancel()
            for run in left:
                run.over.wait()
            finished = error is None and not self.left_over
        finally:  # also after a Ctrl-C while it waits
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
            self.outcomes = Outcomes()
            directory.leave(finished)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._guard:
            left = list(self._under_way)
        for run in left:
            if error is not None:
                run.cancel()
            await asyncio.to_thread(run.over.wait)
        self.__exit__(kind, error, at)

    # What runs at the top write down --------------------------------------------------------------

    def begins(self, run: DurableRun) -> None:
        """A run of this block begins."""
        with self._guard:
            self._under_way.add(run)

    def ends(self, run: DurableRun) -> None:
        """A run of this block is over."""
        with self._guard:
            self._under_way.discard(run)

    scope: Scope

    def note_run(self, flow: Flow, number: bytes, parts: dict[str, dict[str, str]]) -> None:
        """Write down what a run is, before it begins. Raises OSError."""
        if not self._is_new(number, flow.name(flow.sinks[0]), parts):
            return
        try:
            pickled = dumps_for_others(flow)
        except Exception:  # it cannot be taken up without its program
            pickled = b""
        self._note(number, pickled)

    def note_stream(self, number: bytes, name: str, parts: dict[str, dict[str, str]]) -> None:
        """Write down that there is a stream, which only its program can take up. Raises
        DurableError."""
        try:
            if self._is_new(number, f"{name}.stream", parts):
                self._note(number, b"")
        except OSError as error:
            raise _unusable(self.name, self.directory.path, error) from None

    def _is_new(self, number: bytes, name: str, parts: dict[str, dict[str, str]]) -> bool:
        """Note the code of a run, and whether the run itself is to be noted."""
        outcomes = self.outcomes
        with self._guard:
            if self._ledger is None:
                raise DurableError(f"the block of durable run {self.name!r} has been left; run its calls inside the block")
            for task, of_code in parts.items():
                told = json.dumps(of_code, separators=(",", ":")).encode()
                if outcomes.code.get(task) != told:
                    outcomes.code[task] = told
                    self._ledger.append(ledger.CODE, NO_NODE, NO_NODE, task.encode() + b"\n" + told)
            if number in outcomes.runs:
                return False
            outcomes.runs[number] = name
        return True

    def _note(self, number: bytes, pickled: bytes) -> None:
        assert self._ledger is not None
        path = os.path.join(self.directory.path, "runs", number.hex())
        with open(f"{path}-", "wb") as file:
            file.write(pickled)
        os.rename(f"{path}-", path)
        self._ledger.append(ledger.RUN, number, NO_NODE, self.outcomes.runs[number].encode())


def _unusable(name: str, directory: str, error: OSError) -> DurableError:
    return DurableError(
        f"durable run {name!r}: {directory} cannot be used: {error.strerror or error}; make it writable or make room there, and start "
        "the program again"
    )


class _Opened(NamedTuple):
    """The innermost block around, and where it was entered."""

    scope: Scope
    pid: int
    worker: Any
    node: int
    #: Of the body of an item of a stream: the item, as the ledger knows it.
    item: bytes = NO_NODE


_opened: contextvars.ContextVar[_Opened | None] = contextvars.ContextVar("entangle.durable", default=None)


def scope_here() -> Scope | None:
    """Where the runs that begin here are kept; None if nowhere."""
    worker, opened = here.worker, _opened.get()
    if opened is not None and opened.pid == os.getpid() and opened.worker is worker and (worker is None or opened.node == worker.node()):
        return opened.scope
    if worker is None or worker.books is None or worker.forked:
        return None
    books, node = worker.books, worker.node()
    if node < 0 or books.of_flow.node(node) == NO_NODE:
        return None
    begun_before = books.of_flow.earlier[node] or worker.site.table.attempts[node]
    outcomes = books.outcomes if begun_before else Outcomes
    return Scope(books.of_flow, books.of_flow.place(node), books.counts, outcomes, None)


@contextlib.contextmanager
def in_body_of_item(item: bytes, place: bytes) -> Iterator[None]:
    """Within, the runs that begin here are those of an item of a stream, in its worker."""
    worker = here.worker
    assert worker is not None
    assert worker.books is not None
    scope = Scope(worker.books.of_flow, place, {}, worker.books.outcomes, None)
    token = _opened.set(_Opened(scope, os.getpid(), worker, worker.node(), item))
    try:
        yield
    finally:
        _opened.reset(token)


def number_of_stream(scope: Scope, task: str) -> bytes:
    """A stream of a task, as the ledger knows it: those of one name are counted."""
    name = digest(scope.place + b"s" + task.encode())
    with _counting:
        number = scope.counts.get(name, 0)
        scope.counts[name] = number + 1
    return digest(name + number.to_bytes(8, "little"))


def doubt_of_item(flow: Flow, item: bytes, scope: Scope, outcomes: Outcomes) -> MayHaveRunError:
    """The error for an item of a stream whose body had begun; `flow` is that of its call alone."""
    sink = flow.sinks[0]
    ids = [NO_NODE] * flow.count
    ids[sink] = item
    return _in_doubt(flow, [sink], ids, scope, outcomes)


def _name_around() -> str | None:
    scope = scope_here()
    return scope.of_flow.name if scope is not None else None


def _program() -> list[str]:
    main = sys.modules.get("__main__")
    found = getattr(getattr(main, "__spec__", None), "name", None)
    return [*(["-m", found] if found else sys.argv[:1]), *sys.argv[1:]]


class Planned(NamedTuple):
    """What a run comes to: its value, or the flow that is left of it, with the nodes of the whole
    flow that its nodes are (`left_over.py`)."""

    is_known: bool
    value: Any
    flow: Flow
    nodes: list[int] | None


def planned(whole: Flow, scope: Scope) -> Planned:
    """Look in the ledger for what a run has done already.

    Raises MayHaveRunError where bodies had begun and not ended that may not run twice.
    """
    flow_keys = keys_of(whole)
    ids, places, sinks = numbered(whole, flow_keys.keys, flow_keys.places, scope)
    outcomes = scope.outcomes()
    directory = scope.of_flow.directory
    if scope.block is not None:
        scope.block.note_run(whole, digest(b"run" + b"".join(sinks)), flow_keys.parts)
    known: dict[int, Any] = {}
    wanted: list[int] = []
    if not outcomes.begun:
        wanted = [*range(whole.count)]
    else:
        doubtful: list[int] = []
        seen = bytearray(whole.count)
        stack = list({*whole.sinks, *whole.kept})
        for node in stack:
            seen[node] = 1
        ended, may_run = outcomes.ended, {number: may_run_again(body) for number, body in enumerate(whole.bodies)}
        starts, inputs, body_of = whole.starts, whole.inputs, whole.body_of
        while stack:
            node = stack.pop()
            name = ids[node]
            outcome = ended.get(name)
            if outcome is not None and is_there(directory, name, outcome):
                known[node] = outcome
                continue
            wanted.append(node)
            if (name in outcomes.open or name in outcomes.unkept) and not may_run[body_of[node]]:
                doubtful.append(node)
            for taken in inputs[starts[node] : starts[node + 1]]:
                if taken >= 0 and not seen[taken]:
                    seen[taken] = 1
                    stack.append(taken)
        if doubtful:
            raise _in_doubt(whole, sorted(doubtful), ids, scope, outcomes)
        wanted.sort()
    if len(whole.sinks) == 1 and whole.sinks[0] in known and not whole.kept:
        sink = whole.sinks[0]
        return Planned(True, value_of(directory, ids[sink], known[sink]), whole, None)
    if not known:
        flow, nodes = copy.copy(whole), None
        flow.plan = flow.pattern = None
    else:
        given = {node: _given(directory, ids[node], outcome) for node, outcome in known.items()}
        flow, nodes = left_over(whole, wanted, given, value_of)
    order = range(whole.count) if nodes is None else nodes
    flow.ledger = scope.of_flow.like(
        b"".join([ids[node] if node >= 0 else NO_NODE for node in order]),
        b"".join([places[node] if node >= 0 else NO_NODE for node in order]),
        array("I", [outcomes.begun.get(ids[node], 0) if node >= 0 else 0 for node in order] if outcomes.begun else bytes(4 * len(order))),
    )
    return Planned(False, None, flow, nodes)


def numbered(flow: Flow, keys: list[bytes], places: list[bytes], scope: Scope) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The nodes of a flow and their places, as the ledger knows them; and those of its sinks, also
    where these are not kept."""
    counts, start, place_start = scope.counts, scope.place + b"n", scope.place + b"p"
    unkept = {number for number, body in enumerate(flow.bodies) if getattr(body, "task", None) in (tasks.GATHER, tasks.GATHER_THERE)}
    ids: list[bytes] = []
    found_places: list[bytes] = []
    told: list[bytes] = []
    sinks = {*flow.sinks, *flow.kept}
    hashed, blake = digest, hashlib.blake2b
    with _counting:
        count = counts.get
        for node, (key, place) in enumerate(zip(keys, places, strict=True)):
            name = blake(start + key, digest_size=LENGTH).digest()
            number = count(name, 0)
            counts[name] = number + 1
            if number:
                name = hashed(name + number.to_bytes(8, "little"))
            if node in sinks:
                told.append(name)
            if unkept and flow.body_of[node] in unkept:
                ids.append(NO_NODE)
                found_places.append(NO_NODE)
                continue
            ids.append(name)
            name = blake(place_start + place, digest_size=LENGTH).digest()
            number = count(name, 0)
            counts[name] = number + 1
            found_places.append(hashed(name + number.to_bytes(8, "little")) if number else name)
    return ids, found_places, told


def may_run_again(body: Body) -> bool:
    """Whether a body may run again where nobody knows whether it has ended."""
    task = getattr(body, "task", None)
    return body.repeatable or body.ours or (task is not None and any(layer.builds_calls for layer in task.layers))


def _given(directory: str, node: bytes, outcome: Any) -> Any:
    """A value that is known, or what loads it in a worker."""
    if in_ledger(outcome):
        value = value_of(directory, node, outcome)
        if type(value) in UNCHANGING:
            return value
    return Loaded((directory, node, bytes(outcome)))


def _in_doubt(flow: Flow, nodes: list[int], ids: list[bytes], scope: Scope, outcomes: Outcomes) -> MayHaveRunError:
    known = {node: ids[node].hex()[:8] for node in nodes}
    calls = {node: call_in_short(flow, node) for node in nodes}
    lines = [f"  {known[node]}  {calls[node]}{_why(outcomes, ids[node])}" for node in nodes[:_NAMED]]
    if len(nodes) > _NAMED:
        lines.append(f"  … and {len(nodes) - _NAMED} more")
    name = scope.of_flow.name
    first = known[nodes[0]]
    error = MayHaveRunError(
        f"durable run {name!r} was ended while {'this task' if len(nodes) == 1 else f'these {len(nodes)} tasks'} ran, and nobody knows "
        "whether the body has had its effects:\n" + "\n".join(lines) + "\n"
        "Look, and decide: with idempotent=True the task may always run again. For once,\n"
        f"  entangle resume {_quoted(name)} --again {first}          lets it run again (--again all: all of these)\n"
        f"  entangle resume {_quoted(name)} --ended {first} VALUE    takes VALUE, a Python literal, for what it gave"
    )
    error.nodes, error.calls = tuple(known.values()), tuple(calls.values())
    add_note(error, more("durable"))
    return error


def _why(outcomes: Outcomes, node: bytes) -> str:
    why = outcomes.unkept.get(node)
    return f" (has ended, but its value could not be kept: {why})" if why else ""


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)


class _Failures:
    """Writes down which nodes have failed without their workers being able to: past a deadline, or
    with a worker that died."""

    def __init__(self, of_flow: LedgerOfFlow) -> None:
        self._of_flow = of_flow

    def started(self, run: ObservedRun) -> None:
        """Nothing yet."""

    def looked(self, run: ObservedRun) -> None:
        """Nothing yet."""

    def ended(self, run: ObservedRun) -> None:
        """Write it down, if there are any."""
        # What has run, and could not be written down, had ended well: it stays open, to be named.
        if run.table is None or isinstance(run.reason(), DurableError):
            return
        states = bytes(run.table.states)
        node = states.find(FAILED)
        if node < 0:
            return
        with contextlib.suppress(OSError, DurableError):  # then they count as begun
            known = self._of_flow.outcomes(Outcomes()).open
            opened = self._of_flow.open()
            try:
                while node >= 0:
                    if self._of_flow.node(node) in known:
                        opened.append(ledger.FAILED, self._of_flow.node(node), self._of_flow.place(node), b"")
                    node = states.find(FAILED, node + 1)
            finally:
                opened.close()


class DurableRun:
    """One execution of a call, of which what was done before is not done again."""

    def __init__(self, whole: Run, scope: Scope) -> None:
        self._whole = whole
        self._scope = scope
        self.over = threading.Event()

    def value(self) -> Any:
        """The value of the call. Raises what the run raises."""
        block = self._scope.block
        if block is not None:
            block.begins(self)
        try:
            try:
                plan = planned(self._whole.flow, self._scope)
            except OSError as error:
                raise _unusable(self._scope.of_flow.name, self._scope.of_flow.directory, error) from None
            if plan.is_known and not self._whole.cancelled:
                return plan.value
            self._whole.flow = plan.flow
            if plan.flow.ledger is not None:
                self._whole.observers.append(_Failures(plan.flow.ledger))
            return self._whole.value()
        finally:
            self.over.set()
            if block is not None:
                block.ends(self)

    def cancel(self) -> None:
        """Cancel the run, also one that has not begun."""
        self._whole.cancel()


def run_kept(run: Any) -> Any:
    """The run in the place of one that begins here: kept, if it is in a durable block."""
    scope = scope_here()
    if scope is None:
        return run
    if type(run) is not Run:
        raise DurableError(f"durable run {scope.of_flow.name!r}: runs on another engine are not kept; leave the block, or the engine")
    return DurableRun(run, scope)


def completions_kept(flow: Flow) -> tuple[Flow, list[int] | None, list[Any]]:
    """What is left of a flow whose kept nodes are told as they end: see `Keeps`."""
    scope = scope_here()
    if scope is None:
        return flow, None, []
    try:
        plan = planned(flow, scope)
    except OSError as error:
        raise _unusable(scope.of_flow.name, scope.of_flow.directory, error) from None
    nodes = None if plan.nodes is None else [node if node >= 0 else ~node for node in plan.nodes]
    return plan.flow, nodes, [_Failures(plan.flow.ledger)]


def warn_of_dataflow(node: str) -> None:
    """Say that what a dataflow does in a durable run is not kept, once for each."""
    scope = scope_here()
    if scope is not None:
        name = scope.of_flow.name
        warn_once(
            f"durable run {name!r}: what goes through the dataflow of {node!r} is not kept, and runs again when the run is taken up; the "
            "stream of a task is kept",
            f"dataflow {name} {node}",
        )


class BodyAttempt(NamedTuple):
    """One attempt to run a body: its number, from 1, and a key that all attempts have."""

    number: int
    key: str


def attempt() -> BodyAttempt:
    """The attempt that runs here, as `entangle.attempt` says."""
    worker = here.worker
    node = worker.node() if worker is not None else -1
    if worker is None or node < 0:
        raise DurableError("attempt() tells of the body around it, and none runs here; call it in the body of a task")
    number = worker.site.table.attempts[node] + 1
    books, opened = worker.books, _opened.get()
    if books is not None and opened is not None and opened.item != NO_NODE and opened.worker is worker and opened.node == node:
        return BodyAttempt(books.outcomes().begun[opened.item], digest(books.of_flow.secret + opened.item).hex())
    if books is None or books.of_flow.node(node) == NO_NODE:
        return BodyAttempt(number, digest(f"{worker.site.run_id} {node}".encode()).hex())
    of_flow = books.of_flow
    return BodyAttempt(number + of_flow.earlier[node], digest(of_flow.secret + of_flow.node(node)).hex())


def durable(name: str, busy: str = "wait", sync: str | None = None) -> Durable:
    """Make a block, as `entangle.durable` says."""
    return Durable(name, busy, sync)
