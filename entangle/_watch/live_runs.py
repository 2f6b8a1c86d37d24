"""Finds the homes of other processes, and maps the tables of their runs read-only.

Watching never disturbs a run. Values that are read one after another may be a few microseconds
apart, so numbers need not add up.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from entangle._depot.key_lock import is_held
from entangle._shared import home as homes
from entangle._shared import notes, removal, whereabouts
from entangle._shared.masks import masked
from entangle._shared.table import (
    BEGUN,
    BODIES,
    BUSY,
    COOKIE,
    COUNT,
    DONE,
    FAILED,
    FREE,
    HEADER,
    LANE,
    MAGIC,
    NESTED,
    NODE,
    PID,
    POOLS,
    READY,
    RESTING,
    RUNNING,
    SINCE,
    SKIPPED,
    SLOT,
    STARTED_AT,
    STARTING,
    STATE,
    WAITING,
    WAITING_POOL,
    Table,
)
from entangle._shared.whereabouts import Waiting, Whereabout
from entangle._shared.whole_files import open_file, read_whole
from entangle._watch.outline import HOW_FAR, Outline, read_outline
from entangle.flow import AWAY, DEVICE

_LANES = ("process", "thread", "fresh", "caller", "away", "gpu")
_NODE_STATES = {WAITING: "waiting", READY: "ready", RUNNING: "running", DONE: "done", FAILED: "failed", SKIPPED: "skipped"}
#: The names of runs and of queues of cookies in a home.
_RUN = re.compile(r"r[0-9a-f]+")
#: Directories that may hold runs: that of an executor, and those of its workers.
_AROUND = re.compile(r"x[0-9a-f]+|w[0-9]+")
_QUEUE = re.compile(r"budget|cookies-[1-9][0-9]*")
_PLACES = re.compile(r"(limit-[0-9a-f]+)-00([1-9][0-9]{0,3})")
#: The most nodes, workers and nested runs that are looked at. A file that claims more is no table.
MOST_NODES, MOST_SLOTS, MOST_DEPTH = 1 << 26, 1 << 16, 200
_STATES = {FREE: "free", STARTING: "starting", BUSY: "busy", RESTING: "idle"}


@dataclass(frozen=True)
class WorkerView:
    """What a worker does now.

    `seconds` is how long it has been at its node. `task` and `name`, the name that its call may
    have been given, are '' until the outline is written. `pool` names the pool of which it waits
    for a cookie: `limit 'db': at_once=5`.
    """

    slot: int
    pid: int
    kind: str
    state: str
    node: int
    task: str
    name: str
    seconds: float
    done: int
    cookie: bool
    waits_for: str
    pool: str = ""


class LiveRun:
    """A run of another process, with its table mapped. Close it, or use it in a `with`.

    `id` is the id under which it is recorded.
    """

    def __init__(self, directory: str, home: str, outer: str | None) -> None:
        self.directory = directory
        self.home = home
        self.id = os.path.basename(directory)[1:]
        self._around = outer
        self._outline: Outline | None = None
        self._whereabouts: tuple[dict[int, Whereabout], list[Waiting]] | None = None
        self.table = _map(os.path.join(directory, "table"))

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the table."""
        self.table.close()

    @property
    def outline(self) -> Outline | None:
        """Names and edges; None in the first moments of a run."""
        if self._outline is None:
            self._outline = read_outline(self.directory)
        return self._outline

    @property
    def parent(self) -> tuple[str, int] | None:
        """The run and the node in whose body this run was called; None if there is none, and in the
        first moments of a run."""
        outline = self.outline
        parent = outline.about["parent"] if outline is not None else None
        return (parent[0], parent[1]) if parent else None

    @property
    def outer(self) -> str | None:
        """The run in whose body this run was called. In its first moments, only the name of its
        directory tells that, and only if a worker process called it."""
        parent = self.parent
        return parent[0] if parent is not None else self._around

    @property
    def pid(self) -> int:
        """The process that supervises the run."""
        outline = self.outline
        if outline is not None:
            return int(outline.about["pid"])
        return pid_of_home(self.home) if self._around is None else 0

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return max(0.0, (time.monotonic_ns() - self.table.header[STARTED_AT]) / 1e9)

    @property
    def began_ns(self) -> int:
        """When the run began, by CLOCK_MONOTONIC."""
        return int(self.table.header[STARTED_AT])

    @property
    def alive(self) -> bool:
        """Whether the run is still under way: its table is removed when it ends."""
        return os.path.exists(os.path.join(self.directory, "table"))

    def counts(self) -> tuple[int, int, int, int]:
        """How many nodes are done, running, waiting and failed. The rest were skipped."""
        states = bytes(self.table.states)
        done, running, failed, skipped = (states.count(state) for state in (DONE, RUNNING, FAILED, SKIPPED))
        running = max(0, running - self.queued())
        return done, running, len(states) - done - running - failed - skipped, failed

    def stages(self) -> list[dict[str, Any]]:
        """The stages of a stream, as it has last written them down: name, done, failed, skipped,
        running, waiting, and busy (nanoseconds). Empty for other runs, and in the first moments of
        a stream."""
        told = read_whole(os.path.join(self.directory, HOW_FAR))
        found = told.get("stages") if isinstance(told, dict) else None
        return [stage for stage in found if isinstance(stage, dict)] if isinstance(found, list) else []

    def queued(self) -> int:
        """How many nodes were sent to other places and do not run there yet. They count as
        waiting."""
        return sum(one.nodes for one in self.whereabouts()[1] if one.why)

    def whereabouts(self) -> tuple[dict[int, Whereabout], list[Waiting]]:
        """The place of each node that runs elsewhere, and how many wait at which place for which
        reason."""
        if self._whereabouts is None:
            self._whereabouts = self._look_for_whereabouts()
        return self._whereabouts

    def _look_for_whereabouts(self) -> tuple[dict[int, Whereabout], list[Waiting]]:
        nodes, counts = whereabouts.read(self.directory)
        states, slots = self.table.states, self.table.slots
        nodes = {node: one for node, one in nodes.items() if 0 <= node < len(states) and states[node] == RUNNING}
        for base in range(SLOT, self.table.slot_count * SLOT, SLOT):
            if slots[base + STATE] == BUSY and slots[base + LANE] != AWAY and slots[base + NODE] >= 0 and slots[base + BEGUN]:
                one = whereabouts.read_of(self.directory, base // SLOT)
                if one is not None and one.node == slots[base + NODE]:
                    if one.node not in nodes:
                        counts.append(Waiting(one.place, one.why, 1))
                    nodes[one.node] = one
        total: Counter[tuple[str, str]] = Counter()
        for one_of in counts:
            total[one_of.place, one_of.why] += one_of.nodes
        words = {word for one in nodes.values() for word in (one.place, one.why)} | {word for pair in total for word in pair}
        shown = {word: masked(word) for word in words}
        nodes = {node: one._replace(place=shown[one.place], why=shown[one.why]) for node, one in nodes.items()}
        return nodes, [Waiting(shown[place], shown[why], count) for (place, why), count in total.most_common()]

    def places(self) -> dict[int, Whereabout]:
        """The place of each node that runs or ran elsewhere. The places of nodes that are over are
        known only while the run is recorded."""
        found: dict[int, Whereabout] = {}
        try:
            if not any(name.startswith(whereabouts.NAME) for name in os.listdir(self.directory)):
                return found  # nothing has been away
            told = notes.gather(self.directory, []).places
            for node, place, ticket, _ in zip(told[::4], told[1::4], told[2::4], told[3::4], strict=True):
                found[int(node)] = Whereabout(int(node), str(place), str(ticket), "", 0)
        except (OSError, ValueError, TypeError, EOFError):  # the run is ending
            pass
        return {**found, **self.whereabouts()[0]}

    def states(self) -> list[str]:
        """The state of each node: waiting, ready, running, done, failed or skipped. A node that
        pauses between attempts is waiting. A node that its place does not run yet is ready."""
        found = [_NODE_STATES.get(state, "waiting") for state in bytes(self.table.states)]
        for node, one in self.whereabouts()[0].items():
            if one.why:
                found[node] = "ready"
        return found

    def name(self, node: int) -> str:
        """The name that the call of a node was given, else its task; '' if there is none or no
        outline yet."""
        outline = self.outline
        return outline.name(node) if outline is not None and 0 <= node < self.table.nodes else ""

    def task(self, node: int) -> str:
        """The task of a node, '' if there is none or no outline yet."""
        outline = self.outline
        return outline.task(node) if outline is not None and 0 <= node < self.table.nodes else ""

    def _pool(self, number: int) -> str:
        """A pool of the run, as its decorator states it; '' if it is unknown."""
        pools = self.outline.about["pools"] if self.outline is not None else []
        return pools[number] if 0 <= number < len(pools) else ""

    def _away(self) -> int:
        """How many nodes run elsewhere: those that run and are in no slot."""
        slots, running = self.table.slots, bytes(self.table.states).count(RUNNING)
        slots_used = [base for base in range(SLOT, self.table.slot_count * SLOT, SLOT) if slots[base + STATE] == BUSY]
        here = sum(slots[base + NODE] >= 0 and slots[base + LANE] != AWAY for base in slots_used)
        return max(0, running - here)

    def workers(self) -> list[WorkerView]:
        """What each worker of the run does now."""
        slots, now = self.table.slots, time.monotonic_ns()
        found = []
        for slot in range(1, self.table.slot_count):
            base = slot * SLOT
            state = slots[base + STATE]
            if state not in (STARTING, BUSY, RESTING):
                continue
            busy = state == BUSY and bool(slots[base + BEGUN])
            node = slots[base + NODE] if busy else -1
            waits, pool = "", slots[base + WAITING_POOL]
            if slots[base + NESTED] >= 0 and busy:
                waits = "run"
            elif pool or (state == BUSY and slots[base + LANE] >= DEVICE and slots[base + NODE] < 0):
                waits = "cookie"
            found.append(
                WorkerView(
                    slot,
                    slots[base + PID],
                    _LANES[max(0, min(slots[base + LANE], DEVICE))],
                    _STATES[state],
                    node,
                    self.task(node),
                    self.name(node) if slots[base + LANE] != AWAY else f"{self._away():,} away",
                    max(0.0, (now - slots[base + SINCE]) / 1e9) if busy and slots[base + SINCE] else 0.0,
                    slots[base + COUNT],
                    slots[base + COOKIE] != 0,
                    waits,
                    self._pool(pool - 1) if waits == "cookie" else "",
                )
            )
        return found


def _map(path: str) -> Table:
    """Map a table for reading.

    Raises OSError if it is gone, ValueError if it is no table, or another version's.
    """
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size < HEADER * 8:
            raise ValueError(f"{path} is not written yet")
        # Check the header before mapping: the file may be anything, of any size.
        header = os.pread(fd, HEADER * 8, 0)
        magic, nodes, slots = struct.unpack_from("<qqq", header)
        (bodies,), (pools,) = (struct.unpack_from("<q", header, 8 * field) for field in (BODIES, POOLS))
        right = 0 <= nodes <= MOST_NODES and 0 <= slots <= MOST_SLOTS and 0 <= bodies <= MOST_NODES and 0 <= pools <= MOST_NODES
        if magic != MAGIC or not right or Table.size(nodes, slots, bodies, pools) > size:
            raise ValueError(f"{path} is no table of this version of entangle; look with the version that runs it")
        memory = mmap.mmap(fd, Table.size(nodes, slots, bodies, pools), prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return Table(memory, -1, nodes, slots)


def pid_of_home(path: str) -> int:
    """The process whose home this is."""
    return int(os.path.basename(path)[1:].partition("-")[0])


def live_homes() -> list[str]:
    """The homes of live processes of this user, except our own."""
    found: list[str] = []
    ours = {home.path for home in homes._homes.values()}
    path = homes.base_in(homes._parent())
    try:
        base = removal.open_ours(path)
    except OSError:
        return found
    try:
        for name in sorted(os.listdir(base)):
            inside = os.path.join(path, name)
            # Not ours: to close a file drops all locks that this process has on it.
            if inside not in ours and homes.is_home(name) and _held(name, base):
                found.append(inside)
    finally:
        os.close(base)
    return found


def _held(home: str, base: int) -> bool:
    """Whether a process holds the lock of the home."""
    try:
        fd = removal.open_ours(home, base)
    except OSError:
        return False
    try:
        return is_held(fd)
    finally:
        os.close(fd)


def live_runs() -> list[LiveRun]:
    """The runs of other processes that are under way, each after the run around it. Close each."""
    found = [run for home in live_homes() for run in _runs_in(home, home, None)]
    # A run that was called in a thread lies beside the run around it, and may be listed first.
    depths: dict[str, int] = {}
    outer = {run.id: run.outer for run in found}
    for run in found:
        depth, around = 0, run.outer
        while around is not None and depth < len(found):
            depth, around = depth + 1, outer.get(around)
        depths[run.id] = depth
    return sorted(found, key=lambda run: depths[run.id])


def _runs_in(directory: str, home: str, outer: str | None, depth: int = 0) -> Iterator[LiveRun]:
    for name in _folders_in(directory):
        path = os.path.join(directory, name)
        if _AROUND.fullmatch(name) and depth < MOST_DEPTH:
            yield from _runs_in(path, home, outer, depth + 1)
        if _RUN.fullmatch(name):
            try:
                run = LiveRun(path, home, outer)
            except (OSError, ValueError):  # ended meanwhile, or not begun
                continue
            yield run
            if depth < MOST_DEPTH:
                yield from _runs_in(path, home, run.id, depth + 1)


def _folders_in(directory: str) -> list[str]:
    """The names of the directories in a directory, sorted. Links are left out."""
    try:
        fd = os.open(directory, removal.DIRECTORY)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    finally:
        os.close(fd)


def cookies(home: str) -> dict[str, int]:
    """How many cookies are free in a home now: 'budget', 'cpus=n' for each `@scheduler(cpus=n)`,
    and "limit 'db'" for the places of each `@limit(name, at_once=n)`."""
    import array
    import stat
    import termios

    found: dict[str, int] = {}
    try:
        base = os.open(home, removal.DIRECTORY)
    except OSError:
        return found
    try:
        for name in sorted(os.listdir(base)):
            if (places := _PLACES.fullmatch(name)) is not None:
                limit = read_whole(os.path.join(home, places[1]))
                if isinstance(limit, dict) and isinstance(limit.get("name"), str):
                    found[f"limit {limit['name']!r}"] = _free_places(os.path.join(home, name), int(places[2]))
            if not _QUEUE.fullmatch(name) or not stat.S_ISFIFO(os.stat(name, dir_fd=base, follow_symlinks=False).st_mode):
                continue
            # Read-only and non-blocking: counting takes no cookie.
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=base)
            try:
                held = array.array("i", [0])
                fcntl.ioctl(fd, termios.FIONREAD, held)
            finally:
                os.close(fd)
            found["budget" if name == "budget" else f"cpus={name.partition('-')[2]}"] = held[0]
    except OSError:
        pass  # the home is gone
    finally:
        os.close(base)
    return found


def _free_places(path: str, most: int) -> int:
    """How many of the cells of a queue are free. Its pipe may be empty while nobody has it open."""
    try:
        with open(open_file(path), "rb") as file:
            cells = file.read(8 * (2 + 3 * most) + most)
    except (OSError, ValueError):
        return 0
    return cells[8 * (2 + 3 * most) :].count(0)
