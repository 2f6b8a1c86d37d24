"""Rows: what the records say of runs, tasks, nodes and values, as frozen values.

They know neither where they are read from (`reading.py`) nor how they are drawn (`drawing/`).
`views.py` builds on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from entangle._records.log_segment import LogSegment
from entangle._shared.pickling import loads_kept
from entangle.errors import RecordsError

#: The states that a run may have.
STATES = ("done", "failed", "cancelled", "running", "killed")


@dataclass(frozen=True)
class Value:
    """A value, in short: its type, its size in bytes, the SHA-256 of its pickle (hex; None where it
    was large, never pickled or secret), and a text of at most some hundred characters."""

    type: str
    size: int | None
    hash: str | None
    text: str
    _whole: bytes | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Whether the value itself was kept (ENTANGLE_RECORD=values)."""
        return self._whole is not None

    @property
    def pickled(self) -> bytes:
        """Its pickle, where it was kept; else nothing."""
        return self._whole or b""

    def load(self) -> Any:
        """The value itself, where it was kept. Unpickling runs what the pickle says: do it only
        with records that you trust. Raises RecordsError where it was not kept."""
        if self._whole is None:
            raise RecordsError("this value was not kept; with ENTANGLE_RECORD=values, runs keep their values, up to 1 MiB each")
        return loads_kept(self._whole)


def value_of(kind: str | None, size: int | None, digest: bytes | None, text: str | None, whole: bytes | None = None) -> Value | None:
    """A value from the columns of the file."""
    return Value(kind, size, digest.hex() if digest else None, text or "", whole) if kind is not None else None


@dataclass(frozen=True)
class TaskRecord:
    """One version of a task: the SHA-256 of its code and layers, the code, and what its author says
    of it. `entangle.records.Task` is the same class."""

    name: str
    qualified: str
    module: str
    version: str
    source: str
    file: str
    line: int
    layers: tuple[str, ...]
    terms: dict[str, Any]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Error:
    """What ended a run, or why a node failed: the type of the error, its message, the traceback as
    the worker saw it, its notes, and the node."""

    type: str
    message: str
    traceback: str
    notes: tuple[str, ...]
    node: int | None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def text(self) -> str:
        """The traceback, or the error itself where there is none, and the notes that are not in it:
        from Python 3.11 on a traceback has those that its errors had then."""
        told = (self.traceback or str(self)).rstrip()
        return "\n".join([told, *(note for note in self.notes if f"\n{note.rstrip()}\n" not in f"{told}\n")])


@dataclass(frozen=True)
class Taken:
    """A call whose value was taken from a depot before the run began, so that it is no node of it:
    the task, when the value was made (seconds since 1970), and the start of its key."""

    task: str
    made: float
    key: str


@dataclass(frozen=True)
class Retirement:
    """The end of a warm worker after its last run: its pid, when that was noticed (seconds since
    1970), and why."""

    pid: int
    at: float
    reason: str


@dataclass(frozen=True)
class Input:
    """An argument of a node, or a part of one (`items[0]`): the value of node `source`, or a
    constant."""

    argument: str
    source: int | None
    value: Value | None


class Edge(NamedTuple):
    """The value of node `source` is the argument `argument` (or the part of one) of node
    `target`."""

    source: int
    target: int
    argument: str


@dataclass(frozen=True)
class Git:
    """The commit that the code came from; `dirty` is None where git did not tell in time."""

    root: str
    commit: str | None
    branch: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Times:
    """Where the time of a node went, in seconds: until its arguments arrived, until a worker took
    it, until it had a cookie, in its body, and in moving large values from and to the store. Of a
    node that was tried again: in earlier attempts, and in the pauses after them. Of one that ran
    at a service: in its queue there."""

    arguments: float = 0.0
    worker: float = 0.0
    cookie: float = 0.0
    running: float = 0.0
    moving: float = 0.0
    tried: float = 0.0
    pauses: float = 0.0
    queued: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            self.arguments + other.arguments,
            self.worker + other.worker,
            self.cookie + other.cookie,
            self.running + other.running,
            self.moving + other.moving,
            self.tried + other.tried,
            self.pauses + other.pauses,
            self.queued + other.queued,
        )


@dataclass(frozen=True)
class PlaceShare:
    """What one place has done of a run and the runs in its bodies: nodes that have begun there, by
    state, further attempts, and seconds in bodies and in the queue of the place. `name` is the
    machine of the run for nodes that ran where it did (`here`)."""

    name: str
    here: bool
    nodes: int = 0
    done: int = 0
    failed: int = 0
    further_attempts: int = 0
    running: float = 0.0
    queued: float = 0.0


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run. `state` is done, failed, cancelled, killed (it ended abruptly) or running."""

    id: str
    name: str
    state: str
    started_ns: int = field(repr=False)
    """Nanoseconds since 1970."""
    ended_ns: int | None = field(repr=False)
    """Nanoseconds since 1970; None where the end is not known."""
    node_count: int
    done_count: int | None
    workers: int | None
    host: str
    pid: int
    user: str
    cwd: str
    program: str
    python: str
    platform: str
    entangle: str
    way: str
    git: Git | None
    packages: dict[str, str]
    tags: dict[str, Any]
    parent_id: str | None
    parent_node: int | None
    error: Error | None
    graph: str | None
    #: The directory of records that it was read from.
    _directory: str = field(repr=False)
    #: Its key in the file; None for a live run, of which only its log segment is known.
    _key: int | None = field(repr=False)
    _tries: list[dict[str, Any]] = field(repr=False, default_factory=list)
    _segment: LogSegment | None = field(repr=False, default=None)
    failed_count: int | None = None
    """How many nodes have failed; of a stream: with how many items a stage has. A run may have some
    and end well, where a gather accepts failures."""
    skipped_count: int | None = None
    """How many nodes were skipped since they depend on one that has failed."""
    stream: bool = False
    """Whether it is a dataflow, whose nodes are stages."""
    taken: tuple[Taken, ...] = ()
    """The calls whose values a depot had, so that they are no nodes; of very many, the first
    1,000."""
    taken_count: int = 0
    """How many calls these are, all of them."""
    #: The task of the call whose value it gives; `name` where None: that call was given no name.
    _task: str | None = field(repr=False, default=None)

    @property
    def task(self) -> str:
        """The task whose value it gives; `name` is the name that its call was given, if any."""
        return self._task if self._task is not None else self.name

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        return self.started_ns / 1e9

    @property
    def ended(self) -> float | None:
        """When it ended, in seconds since 1970; None where that is not known."""
        return self.ended_ns / 1e9 if self.ended_ns is not None else None

    @property
    def seconds(self) -> float | None:
        """How long it took; None where its end is not known."""
        return (self.ended_ns - self.started_ns) / 1e9 if self.ended_ns is not None else None


class NodeRow:
    """One node of a run."""

    __slots__ = ("_row", "number", "run", "task")

    def __init__(self, run: RunGraph, number: int, task: TaskRecord, row: tuple[Any, ...]) -> None:
        self.run = run
        self.number = number
        self.task = task
        #: Its columns, from `state` on. Properties read them: a run may have a hundred thousand
        #: nodes, and few are looked at closely.
        self._row = row

    def __repr__(self) -> str:
        return f"<node {self.number} of run {self.run.id}: {self.name}, {self.state}>"

    @property
    def state(self) -> str:
        """done, failed, skipped (what it depends on has failed, and the run went on), stopped (its
        run ended while it ran), waiting (it never began), or unknown (its run was killed, or is
        live)."""
        return str(self._row[0])

    @property
    def attempts(self) -> int | None:
        """How often its body was begun."""
        return _number(self._row[1])

    @property
    def ready_ns(self) -> int | None:
        """When its last argument had arrived, in nanoseconds since 1970; None where it never
        had."""
        return _number(self._row[2])

    @property
    def started_ns(self) -> int | None:
        """When its body began, in nanoseconds since 1970; None where it never did."""
        return _number(self._row[3])

    @property
    def ended_ns(self) -> int | None:
        """When its body ended, in nanoseconds since 1970; None where it never did."""
        return _number(self._row[4])

    @property
    def pid(self) -> int | None:
        """The process that ran it."""
        return _number(self._row[5])

    @property
    def cpu(self) -> int | None:
        """The CPU on which its body ended."""
        return _number(self._row[6])

    @property
    def worker(self) -> int | None:
        """The number of the worker that ran it, among those of the run."""
        return _number(self._row[7])

    @property
    def peak_memory(self) -> int | None:
        """The peak memory of its process until then, in bytes; known for bodies of a millisecond or
        more."""
        return _number(self._row[8])

    @property
    def place(self) -> str | None:
        """Where else its body ran, as `me@miko`; None where that was the machine of its run."""
        return _text(self._row[21])

    @property
    def ticket(self) -> str | None:
        """What its place calls it, as the number of a job; None where that has no names."""
        return _text(self._row[22])

    @property
    def hit(self) -> bool | None:
        """Whether its value was taken from a depot; False where that did not have it; None where
        nobody looked, since its task has no `cache=`."""
        return None if self._row[24] is None else bool(self._row[24])

    @property
    def made(self) -> float | None:
        """When a value was made that was taken from a depot, in seconds since 1970."""
        return int(self._row[24]) / 1e9 if self._row[24] else None

    @property
    def depot_key(self) -> str | None:
        """The start of the key under which a depot was asked for its value, as `entangle cache`
        takes it."""
        return _text(self._row[25])

    @property
    def value(self) -> Value | None:
        """Its value, in short."""
        return value_of(*self._row[11:16])

    @property
    def items(self) -> int | None:
        """Of a stage of a dataflow: how many items it is done with. None for other nodes, here and
        below."""
        return _number(self._row[17])

    @property
    def items_failed(self) -> int | None:
        """With how many items it has failed."""
        return _number(self._row[18])

    @property
    def items_skipped(self) -> int | None:
        """How many items never came to it, since a stage above had failed with them."""
        return _number(self._row[19])

    @property
    def name(self) -> str:
        """The name that its call was given; without one, that of its task."""
        return str(self._row[16]) if self._row[16] is not None else self.task.name

    @property
    def ready(self) -> float | None:
        """When its last argument had arrived, in seconds since 1970; None where it never had."""
        return self.ready_ns / 1e9 if self.ready_ns is not None else None

    @property
    def started(self) -> float | None:
        """When its body began, in seconds since 1970; None where it never did."""
        return self.started_ns / 1e9 if self.started_ns is not None else None

    @property
    def ended(self) -> float | None:
        """When its body ended, in seconds since 1970; None where it never did."""
        return self.ended_ns / 1e9 if self.ended_ns is not None else None

    @property
    def seconds(self) -> float | None:
        """How long its body ran; of a stage, for all items together."""
        if self._row[20] is not None:
            return int(self._row[20]) / 1e9
        return (self.ended_ns - self.started_ns) / 1e9 if self.ended_ns is not None and self.started_ns is not None else None

    @property
    def times(self) -> Times:
        """Where its time went."""
        if self.ready_ns is None:
            return Times()
        arguments = max(0, self.ready_ns - self.run.started_ns)
        if self.started_ns is None:
            return Times(arguments / 1e9)
        cookie, moved, queued = self._row[9] or 0, self._row[10] or 0, self._row[23] or 0
        mine = [one for one in self.run._tries if one["node"] == self.number and "began" in one]
        first = min([one["began"] for one in mine], default=self.started_ns)
        tried = sum(one["ended"] - one["began"] for one in mine)
        queued += sum(one.get("queued", 0) for one in mine)
        # Of the attempts together: a node with a cookie has one for each.
        waited = self.started_ns - self.ready_ns - tried - cookie - queued
        pauses = min(max(0, self.started_ns - first - tried), max(0, waited))
        queue = max(0, waited - pauses)
        running = self.seconds or 0.0
        return Times(arguments / 1e9, queue / 1e9, cookie / 1e9, running, moved / 1e9, tried / 1e9, pauses / 1e9, queued / 1e9)

    @property
    def error(self) -> Error | None:
        """The error with which it failed."""
        error = self.run.error
        return error if error is not None and error.node == self.number else self.run.failures.get(self.number)

    @property
    def cause(self) -> int | None:
        """The node whose failure is why this one was skipped."""
        return self.run.causes.get(self.number)

    @property
    def tries(self) -> tuple[str, ...]:
        """The errors of attempts that were followed by further attempts."""
        return tuple(one["error"] for one in self.run._tries if one["node"] == self.number)

    @property
    def tried_at(self) -> tuple[tuple[str, str] | None, ...]:
        """Where else each of those attempts was: its place and its ticket there; None for one on
        the machine of its run."""
        mine = (one for one in self.run._tries if one["node"] == self.number)
        return tuple((str(one["place"]), str(one.get("ticket", ""))) if one.get("place") else None for one in mine)


class RunGraph(RunRow, ABC):
    """A run with the ways through its graph. Drawings take one; `views.RunRecord` is one."""

    @property
    @abstractmethod
    def nodes(self) -> Sequence[NodeRow]:
        """Its nodes, by number."""

    @property
    @abstractmethod
    def failures(self) -> Mapping[int, Error]:
        """The errors of nodes that have not ended the run, by node."""

    @property
    @abstractmethod
    def causes(self) -> Mapping[int, int]:
        """For each node that was skipped, the node whose failure is why."""

    @property
    @abstractmethod
    def edges(self) -> Sequence[Edge]:
        """Which node takes whose value."""

    @property
    @abstractmethod
    def tasks(self) -> Sequence[TaskRecord]:
        """The versions of tasks that took part, each once."""

    @property
    @abstractmethod
    def children(self) -> Sequence[RunGraph]:
        """The runs that were called in the bodies of its nodes, oldest first."""

    @property
    @abstractmethod
    def retirements(self) -> Sequence[Retirement]:
        """The warm workers of a session whose last run it was, if they ended for a reason."""

    @abstractmethod
    def inputs_of(self, node: int) -> tuple[Input, ...]:
        """The arguments of a node."""


def _text(value: Any) -> str | None:
    return value if value is None else str(value)


def _number(value: Any) -> int | None:
    return value if value is None else int(value)
