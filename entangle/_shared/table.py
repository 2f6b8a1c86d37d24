"""The table: what workers need to know to find their next step, in memory that all of them share.

::

    header    holder of the lock, ready lists, idle workers, whether to stop       264 numbers
    slots     one row a worker: pid, its node, its range of leaves …               16 numbers each
    columns   per node: state, pending inputs, readers, next on its list, time of readiness
    records   per node: when it ran, where its value is, which worker ran it       48 bytes each
    habits    per body: how much of a CPU it uses, from how many calls, how long one takes
    pools     per pool: the list of nodes deferred until a worker has a cookie; whether one waits

Everything changes under the lock, except a worker's own slot and the record of the node that it
runs. The lock is `fcntl.lockf` on the table's file: the kernel releases it when its holder dies.
The owner word that a dead holder leaves tells the next one to recount first. Record locks do not
exclude threads of one process, so if threads take part, a thread lock comes before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import time
from array import array
from collections.abc import Iterable, Iterator
from operator import sub
from typing import Literal, Protocol

from entangle.flow import DEVICE, PROCESS, THREAD, Flow, in_a_row

#: The last byte is the version of the layout: other versions refuse to read the table.
MAGIC = 0x656E7461_6E676C07

# States of a node.
WAITING, READY, RUNNING, DONE, FAILED = range(5)
# … of a node whose set of rows is not in use, or that pauses between attempts. A recount skips it.
UNARMED = 5
# … of a node that depends on a failed one, in a run that goes on. Its record has the number of the
# failed node as its offset.
SKIPPED = 6
#: The pending inputs of a node that is skipped or given up: no delivery makes it ready.
NEVER = 1 << 30

# Header fields. READY_HEAD, READY_COUNT, IDLE and READY_TAIL have one field for each lane.
# READY_TAIL is the last node of a ready list, and undefined while the list is empty.
(MAGIC_AT, NODES, SLOTS, OWNER, STOP, FINISHED, FAILED_NODE, SINKS_LEFT, HUNGRY, STARTED_AT, PLANNED, SEGMENTS) = range(12)
FREE_SEGMENT, CROWDED, NOTING, BODIES = range(12, 16)
LANES = 16
READY_HEAD, READY_COUNT, IDLE, READY_TAIL = 200, 216, 232, 248
# The queue of slots that may have a range left (0: none), and whether a search of all other slots
# has found none.
RANGES_HEAD, RANGES_TAIL, NO_RANGES = 28, 29, 30
# How many processes, and how many threads, this run and those in its bodies may have; 0: no limit.
MOST_WORKERS = 31
# How many pools the flow has.
POOLS = 32
# Which bodies may begin (`_worker/admission.py`): the CPUs that the run has a right to; what
# running bodies are assumed to use (both thousandths of a CPU); whether ready nodes wait for room.
RIGHT, COMMITTED, HELD_BACK = range(196, 199)
# How many nodes of a group run, and the list of those deferred until fewer do.
LIMIT_RUNNING, LIMIT_HEAD = 64, 128
MOST_LIMITS = 64
HEADER = 264

# Fields of a slot. NESTED is how much of a CPU the nested run uses that the worker waits for, in
# thousandths, or -1. COOKIE says whether the worker holds cookies of the pools of its body; the
# pools know which. WAITING_POOL is one more than the index of the pool for whose cookie it sleeps,
# or 0. NEXT_NODE is written before a worker goes on to a consumer without
# the lock, so that a recount skips that node. NEXT_RANGE is the next slot in the queue of ranges: 0
# for a slot outside of it, NOBODY for the last. SHARE is how much of a CPU its body is assumed to
# use, in thousandths.
(PID, STATE, NODE, SINCE, LOW, HIGH, COUNT, BEGUN, COOKIE, WAITING_POOL, NEXT_RANGE, NESTED, DOOMED, NEXT_NODE, LANE, SHARE) = range(16)
# Leaves of a fan that the worker has claimed at once, from its node on: their consumer is told of
# them together (`_worker/fans.py`).
STRETCH_LOW, STRETCH_HIGH = 16, 17
SLOT = 18

#: How many ranges a claim compares before it takes from the longest.
COMPARED = 8

# BEGUN: the worker's progress with its node. Its body has not begun (0), runs, or is over and its
# value is being published. A body that has begun must not run again unasked, whatever becomes of
# its worker.
RUNS, OVER = 1, 2

# States of a slot.
FREE, STARTING, BUSY, RESTING, GONE, ABANDONED = range(6)

# HUNGRY: which workers the supervisor could still start: all kinds, or only threads and processes
# for one body.
HUNGRY_FOR_ALL, HUNGRY_FOR_OTHERS = 1, 2

# Slot 0 belongs to no worker: its range holds the leaves that are not claimed yet.
UNCLAIMED = 0

#: started, ended (ns, CLOCK_MONOTONIC), offset, size, where the value is, pid, cpu, slot.
RECORD = struct.Struct("<qqqqiiii")
#: Where a value is that stands in the record itself, in the place of the offset. The size says of
#: which type it is: an int of 64 bits, a float, None, or a bool.
IN_RECORD = 5
INT, FLOAT, NONE, BOOL = range(4)

NOBODY = -1

#: More than a write takes to reach other processors (seconds).
_MOMENT = 0.0001

_ZEROS = memoryview(bytes(1 << 16))

_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_TRIES = 20


class AnyLock(Protocol):
    """A lock that knows its thread: releasing it in another thread raises RuntimeError."""

    def acquire(self) -> bool:
        """Take the lock."""

    def release(self) -> None:
        """Release the lock."""


class Table:
    """The shared state of one run, with room for `slots` workers."""

    def __init__(self, memory: mmap.mmap, fd: int, nodes: int, slots: int) -> None:
        self.memory = memory
        self.fd = fd
        #: The unnamed file of a table that no other process needs yet.
        self.nameless = -1
        self.nodes = nodes
        self.slot_count = slots
        (bodies,) = struct.unpack_from("<q", memory, 8 * BODIES)
        (pools,) = struct.unpack_from("<q", memory, 8 * POOLS)
        self.thread_lock: AnyLock | None = None
        #: Set by processes that change the table: a recount after a holder's death needs them.
        self.flow: Flow | None = None
        self.lanes: list[int] = []
        whole = memoryview(memory)
        at = 0

        def cut(form: Literal["q", "i", "B"], width: int, count: int) -> memoryview[int]:
            nonlocal at
            view = whole[at : at + width * count].cast(form)
            at += (width * count + 7) & ~7
            return view

        self.header = cut("q", 8, HEADER)
        self.slots = cut("q", 8, SLOT * slots)
        self.ready_at = cut("q", 8, nodes)
        self.records = cut("B", 1, RECORD.size * nodes)
        #: Fields of the records, each as a column: for many nodes at once.
        fields = self.records.cast("q")
        self.started, self.ended, self.numbers, self.kinds = fields[0::6], fields[1::6], fields[2::6], fields[3::6]
        # Another thread may look at all frames just now, and keep this one with what it names.
        fields.release()
        self.fractions = self.records.cast("d")[2::6]
        self.places = self.records.cast("i")[8::12]
        self.pending = cut("i", 4, nodes)
        self.readers = cut("i", 4, nodes)
        self.next = cut("i", 4, nodes)
        self.states = cut("B", 1, nodes)
        self.attempts = cut("B", 1, nodes)
        self.habits = cut("q", 8, bodies)
        self.learned = cut("q", 8, bodies)
        self.spans = cut("q", 8, bodies)
        self.deferred = cut("q", 8, pools)
        self.waiting = cut("q", 8, pools)
        #: The last node of each list of deferred nodes; undefined while the list is empty.
        self.last = cut("q", 8, pools)
        self._whole = whole

    @staticmethod
    def size(nodes: int, slots: int, bodies: int, pools: int = 0) -> int:
        """The size of a table in bytes."""
        return 8 * HEADER + 8 * SLOT * slots + (8 + RECORD.size + 4 + 4 + 4 + 1 + 1) * nodes + 24 * bodies + 24 * pools + 64

    @classmethod
    def create(cls, flow: Flow, slots: int, lanes: list[int], path: str | None, nameless: int = -1) -> Table:
        """Make the table of a flow, in a file at `path`, or for this process alone if that is None.

        In the latter case it lies in the open file `nameless`, if there is one with room: `show`
        can then give it a name later. Raises OSError (ENOSPC) if there is no room. All of it is
        reserved here, since a write to a full tmpfs is a SIGBUS.
        """
        size = cls.size(flow.count, slots, len(flow.bodies), len(flow.pools))
        fd = -1
        if path is not None:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        elif nameless >= 0:
            try:
                reserve(nameless, 0, size)
            except OSError:
                os.close(nameless)
                nameless = -1
        file = fd if path is not None else nameless
        try:
            if fd >= 0:
                reserve(fd, 0, size)
            memory = mmap.mmap(file, size)
            table = cls._begun(memory, fd, flow, slots, lanes)
        except BaseException:
            if file >= 0:
                os.close(file)
            raise
        table.nameless = nameless
        return table

    @classmethod
    def again(cls, memory: mmap.mmap, fd: int, flow: Flow, slots: int, lanes: list[int]) -> Table:
        """Make the table of a flow where that of another run was, which nobody uses any more. The
        memory must be large enough."""
        size = cls.size(flow.count, slots, len(flow.bodies), len(flow.pools))
        for at in range(0, size, len(_ZEROS)):
            memory[at : min(size, at + len(_ZEROS))] = _ZEROS[: size - at]
        return cls._begun(memory, fd, flow, slots, lanes)

    @classmethod
    def _begun(cls, memory: mmap.mmap, fd: int, flow: Flow, slots: int, lanes: list[int]) -> Table:
        """The table of a flow that begins, in memory that is all zeros."""
        struct.pack_into("<q", memory, 8 * BODIES, len(flow.bodies))
        struct.pack_into("<q", memory, 8 * POOLS, len(flow.pools))
        table = cls(memory, fd, flow.count, slots)
        table.flow, table.lanes = flow, lanes
        header = table.header
        header[MAGIC_AT], header[NODES], header[SLOTS] = MAGIC, flow.count, slots
        header[FAILED_NODE] = header[FREE_SEGMENT] = NOBODY
        for lane in range(LANES):
            header[READY_HEAD + lane] = NOBODY
        for pool in range(len(flow.pools)):
            table.deferred[pool] = NOBODY
        for group in range(len(flow.limits)):
            header[LIMIT_HEAD + group] = NOBODY
        header[STARTED_AT] = time.monotonic_ns()
        header[SINKS_LEFT] = len(flow.sinks)
        for body in range(len(flow.bodies)):
            table.habits[body] = NOBODY
        table.pending[:] = memoryview(flow.pending)
        starts = flow.consumer_starts
        single = flow.leaves if starts[: flow.leaves + 1] == in_a_row("i", 0, flow.leaves + 1) else 0
        readers = in_a_row("i", 1, single, 0)
        readers.extend(map(sub, starts[single + 1 :], starts[single:]))  # one reader a consumer
        for node in flow.sinks:
            readers[node] = 1  # kept for the caller
        for node in flow.kept.difference(flow.sinks):
            readers[node] += 1
        table.readers[:] = memoryview(readers)
        table.slots[UNCLAIMED * SLOT + LOW] = 0
        table.slots[UNCLAIMED * SLOT + HIGH] = flow.leaves
        if flow.rearmed:
            table.states[:] = memoryview(bytes((UNARMED,)) * flow.count)
            return table
        for node in range(flow.count - 1, flow.leaves - 1, -1):
            if not flow.pending[node]:
                table.push(lanes[flow.body_of[node]], node)
        return table

    @classmethod
    def attach(cls, path: str) -> Table:
        """Map the table that another process has made for a run."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        memory = mmap.mmap(fd, os.fstat(fd).st_size)
        if struct.unpack_from("<q", memory, 0)[0] != MAGIC:
            os.close(fd)
            raise ValueError(f"{path} is not the table of a run of this version of entangle")
        return cls.seen_in(memory, fd)

    @classmethod
    def seen_in(cls, memory: mmap.mmap, fd: int) -> Table:
        """The table that another process has made in this memory."""
        _, nodes, slots = struct.unpack_from("<qqq", memory, 0)
        return cls(memory, fd, nodes, slots)

    def fits(self) -> bool:
        """Whether the memory holds a table of this form, after another run has begun in it."""
        header, bodies, pools = self.header, len(self.habits), len(self.waiting)
        return (header[NODES], header[SLOTS], header[BODIES], header[POOLS]) == (self.nodes, self.slot_count, bodies, pools)

    # The lock ------------------------------------------------------------------------------------

    def lock(self, owner: int) -> None:
        """Take the lock as slot `owner`. Recounts if the last holder died with it."""
        if self.thread_lock is not None:
            self.thread_lock.acquire()
        if self.fd >= 0:
            try:
                fcntl.lockf(self.fd, _TRY)
            except OSError:
                self._spin_for_lock()
        if self.header[OWNER] and self.flow is not None:
            self.recount(self.flow, self.lanes)
        self.header[OWNER] = owner + 1

    def _spin_for_lock(self) -> None:
        """Take a file lock that is held. Spin first: it is held for less than a sleep takes."""
        for _ in range(_TRIES):
            try:
                fcntl.lockf(self.fd, _TRY)
                return
            except OSError:
                continue
        fcntl.lockf(self.fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Release the lock."""
        self.header[OWNER] = 0
        if self.fd >= 0:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
        if self.thread_lock is not None:
            self.thread_lock.release()

    def let_go(self) -> None:
        """Release the lock if this thread has it, and recount: a signal may come at any point."""
        if self.thread_lock is not None:
            try:
                self.thread_lock.release()
            except RuntimeError:
                return
        # For the kernel it may still be ours. Take it once more, so that a recount repairs what was
        # left half done.
        self.lock(UNCLAIMED)
        self.unlock()

    @contextlib.contextmanager
    def locked(self, owner: int) -> Iterator[None]:
        """The lock as a context manager, for code that is not on the hot path."""
        self.lock(owner)
        try:
            yield
        finally:
            self.unlock()

    def recount(self, flow: Flow, lanes: list[int]) -> None:
        """Repair counts and lists after a holder of the lock died within a change. Lock held.

        The state of a node is written before all that follows from it, so the rest can be derived.
        """
        header, states = self.header, self.states
        claimed: set[int] = set()
        untold: set[int] = set()
        for slot in range(self.slot_count):
            base = slot * SLOT
            claimed.update(range(self.slots[base + LOW], self.slots[base + HIGH]))
            if self.slots[base + STRETCH_LOW] < self.slots[base + STRETCH_HIGH]:
                untold.update(range(self.slots[base + STRETCH_LOW], self.slots[base + STRETCH_HIGH]))
            if slot and self.slots[base + STATE] == BUSY:
                claimed.add(self.slots[base + NEXT_NODE])
        for lane in range(LANES):
            header[READY_HEAD + lane] = NOBODY
            header[READY_COUNT + lane] = 0
        for pool in range(len(self.deferred)):
            self.deferred[pool] = NOBODY
            self.waiting[pool] = 0
        for slot in range(1, self.slot_count):
            pool = self.slots[slot * SLOT + WAITING_POOL]
            if pool and self.slots[slot * SLOT + STATE] in (STARTING, BUSY):
                self.waiting[pool - 1] = 1
        for group in range(len(flow.limits)):
            header[LIMIT_RUNNING + group] = sum(
                states[node] == RUNNING and group in flow.bodies[flow.body_of[node]].limits for node in range(flow.count)
            )
            header[LIMIT_HEAD + group] = NOBODY
        guarded = flow.guarded or bytes(flow.count)
        if flow.guarded is not None:
            self._skip_again(flow)
        for node in range(flow.count - 1, -1, -1):
            if states[node] in (WAITING, READY) and node not in claimed and node not in untold:
                accepted = flow.accepts.get(node, ())
                missing = sum(
                    taken in untold or (states[taken] != DONE and not (taken in accepted and states[taken] in (FAILED, SKIPPED)))
                    for taken in flow.sources(node)
                )
                self.pending[node] = missing
                if not missing:
                    self.push(lanes[flow.body_of[node]], node)
        header[SINKS_LEFT] = sum(states[node] not in ((DONE, FAILED, SKIPPED) if guarded[node] else (DONE,)) for node in flow.sinks)
        if flow.sinks and not header[SINKS_LEFT]:
            header[FINISHED] = 1
        if header[FAILED_NODE] < 0 and FAILED in bytes(states):
            failed = next((node for node in range(flow.count) if states[node] == FAILED and not guarded[node]), NOBODY)
            if failed >= 0:
                header[FAILED_NODE] = failed
                header[STOP] = 1
        self._find_ranges()
        for lane in (PROCESS, THREAD, *range(DEVICE, LANES)):
            header[IDLE + lane] = sum(
                self.slots[base + STATE] == RESTING and self.slots[base + LANE] == lane
                for base in range(SLOT, self.slot_count * SLOT, SLOT)
            )

    def _skip_again(self, flow: Flow) -> None:
        """Skip what depends on failed nodes, where a holder of the lock died before it had."""
        states = self.states
        for node in range(flow.count):  # a node stands before those that take it
            if states[node] == FAILED:
                self.readers[node] = NEVER
            elif states[node] in (WAITING, SKIPPED):
                accepted = flow.accepts.get(node, ())
                for taken in flow.sources(node):
                    if states[taken] in (FAILED, SKIPPED) and taken not in accepted:
                        self._skip(node, self.cause(taken))
                        break

    def _skip(self, node: int, cause: int) -> None:
        RECORD.pack_into(self.records, node * RECORD.size, 0, 0, cause, 0, 0, 0, 0, 0)
        self.states[node] = SKIPPED
        self.pending[node] = NEVER

    def cause(self, node: int) -> int:
        """The failed node for whose failure this one was skipped; itself if it has failed."""
        found: int = RECORD.unpack_from(self.records, node * RECORD.size)[2] if self.states[node] == SKIPPED else node
        return found

    def spread_failure(self, flow: Flow, lanes: list[int], failed: int) -> tuple[int, list[int]]:
        """Tell those that depend on a failed node whose failure does not end the run. Lock held.

        Nodes that take it as a value have one pending input fewer; others are skipped, with all
        that depends on them. Gives how many nodes are ready now, and the nodes of which a skipped
        one would have read the value.
        """
        header, states, pending, readers = self.header, self.states, self.pending, self.readers
        pushed, unread = 0, list[int]()
        readers[failed] = NEVER  # its report stays, for all that was skipped
        now = time.monotonic_ns()
        stack = [failed]
        while stack:
            node = stack.pop()
            takers = flow.takers(node)
            for taker in takers:
                if states[taker] != WAITING:
                    continue
                if node in flow.accepts.get(taker, ()):
                    pending[taker] -= 1
                    if not pending[taker]:
                        self.ready_at[taker] = now
                        self.push(lanes[flow.body_of[taker]], taker)
                        pushed += 1
                    continue
                self._skip(taker, failed)
                stack.append(taker)
                for taken in flow.sources(taker):
                    if states[taken] == DONE:
                        unread.append(taken)
                    elif states[taken] not in (FAILED, SKIPPED):
                        readers[taken] -= 1
            if not len(takers):
                header[SINKS_LEFT] -= 1
                if not header[SINKS_LEFT]:
                    header[FINISHED] = 1
        return pushed, unread

    # Lists, lock held ----------------------------------------------------------------------------

    def push(self, lane: int, node: int) -> None:
        """Put a node at the head of a ready list."""
        header = self.header
        self.states[node] = READY
        first = self.next[node] = header[READY_HEAD + lane]
        header[READY_HEAD + lane] = node
        if first < 0:
            header[READY_TAIL + lane] = node
        header[READY_COUNT + lane] += 1

    def append(self, lane: int, node: int) -> None:
        """Put a node at the end of a ready list."""
        header = self.header
        self.states[node] = READY
        self.next[node] = NOBODY
        if header[READY_HEAD + lane] < 0:
            header[READY_HEAD + lane] = node
        else:
            self.next[header[READY_TAIL + lane]] = node
        header[READY_TAIL + lane] = node
        header[READY_COUNT + lane] += 1

    def pop(self, lane: int) -> int:
        """Take the head of a ready list; NOBODY if it is empty."""
        header = self.header
        node: int = header[READY_HEAD + lane]
        if node >= 0:
            header[READY_HEAD + lane] = self.next[node]
            header[READY_COUNT + lane] -= 1
        return node

    def defer_for_cookie(self, pool: int, node: int) -> None:
        """Defer a node until the worker that waits for a cookie of its pool has one.

        The first to be deferred has its turn first: of an endless stream none waits for ever.
        """
        self.states[node] = READY
        self.next[node] = NOBODY
        if self.deferred[pool] < 0:
            self.deferred[pool] = node
        else:
            self.next[self.last[pool]] = node
        self.last[pool] = node

    def take_deferred(self, pool: int) -> int:
        """Take the first deferred node of a pool; NOBODY if there is none."""
        node: int = self.deferred[pool]
        if node >= 0:
            self.deferred[pool] = self.next[node]
        return node

    def pass_turn(self, pools: Iterable[int], lanes: list[int], body_of: array[int]) -> list[int]:
        """Make ready one deferred node of each of these pools for which no worker sleeps.

        Returns these nodes.

        A node that waits for several pools lies on the list of one. Whoever takes it from the ready
        list, and begins it or defers it once more, passes the turn of all its pools on.
        """
        turn = []
        for pool in pools:
            if not self.waiting[pool]:
                node = self.take_deferred(pool)
                if node >= 0:
                    self.push(lanes[body_of[node]], node)
                    turn.append(node)
        return turn

    def full(self, groups: tuple[int, ...], most: list[int]) -> int:
        """The first of these groups that has reached its limit; NOBODY if none has."""
        for group in groups:
            if self.header[LIMIT_RUNNING + group] >= most[group]:
                return group
        return NOBODY

    def defer_for_limit(self, group: int, node: int) -> None:
        """Defer a node until fewer nodes of its group run."""
        self.states[node] = READY
        self.next[node] = self.header[LIMIT_HEAD + group]
        self.header[LIMIT_HEAD + group] = node

    def release_limits(self, groups: tuple[int, ...], lanes: list[int], body_of: array[int]) -> int:
        """Count a node of these groups as ended; make ready and count what was deferred."""
        header, count = self.header, 0
        for group in groups:
            header[LIMIT_RUNNING + group] -= 1
            node = header[LIMIT_HEAD + group]
            header[LIMIT_HEAD + group] = NOBODY
            while node >= 0:
                after = self.next[node]
                self.push(lanes[body_of[node]], node)
                node, count = after, count + 1
        return count

    def claim_leaves(self, slot: int, least: int = 1) -> int:
        """Claim leaves for a worker that has none left, and take the first. Lock held.

        It gets a share of the unclaimed leaves, at least `least` of them, else the upper half of a
        long range of another worker, which may be asleep. NOBODY if all are taken.

        A worker may be killed after each of the writes. Its own range is empty until the last one:
        a recount before that finds these leaves unclaimed, and makes them ready.
        """
        slots, mine = self.slots, slot * SLOT
        low, high = slots[LOW], slots[HIGH]
        if low < high:
            # Guided self-scheduling (Polychronopoulos and Kuck, 1987): large pieces first, so that
            # neighbours stay together; smaller ones later, so that all workers end at one time.
            # Leaves begin nearly in the order written.
            chunk = self.flow.chunk if self.flow is not None else 0
            share = chunk or max(least, -(-(high - low) // (4 * max(1, self.header[PLANNED]))))
            high = min(high, low + share)
            slots[mine + HIGH] = 0
            slots[mine + LOW] = low + 1
            slots[LOW] = high
        else:
            victim = self._long_range()
            if not victim:
                return NOBODY
            high = slots[victim * SLOT + HIGH]
            low = high - (high - slots[victim * SLOT + LOW] + 1) // 2
            slots[mine + HIGH] = 0
            slots[mine + LOW] = low + 1
            slots[victim * SLOT + HIGH] = low
        slots[mine + HIGH] = high
        if low + 1 < high:
            self._queue_range(slot)
        return low

    def take_back(self, slot: int, flow: Flow, lanes: list[int]) -> int:
        """Take the leaves of a stretch back that its worker has not begun; gives how many.

        For the supervisor, which holds the lock. See `_worker/fans.py`.
        """
        base = slot * SLOT
        node, high = self.slots[base + NODE], self.slots[base + STRETCH_HIGH]
        if not self.slots[base + STRETCH_LOW] <= node < high - 1:
            return 0
        self.slots[base + STRETCH_HIGH] = node + 1
        # The worker writes where it is, and reads this then. Its processor may do the read first,
        # but not that much earlier.
        time.sleep(_MOMENT)
        if self.slots[base + NODE] != node or self.ended[node]:
            self.slots[base + STRETCH_HIGH] = high
            return 0
        self.return_leaves(slot, node + 1, high, lanes[flow.body_of[node]])
        return high - 1 - node

    def return_leaves(self, slot: int, low: int, high: int, lane: int) -> bool:
        """Give back leaves of a worker's stretch that have not begun. Lock held.

        They go back to its range, where it or another worker finds many at once. Where that is
        elsewhere by now they become ready, which is told.
        """
        base = slot * SLOT
        # They leave the stretch first: if the worker dies in here, another that has taken them from
        # its range must not find them made ready as well.
        self.slots[base + STRETCH_HIGH] = low
        self.forget_records(low, high)
        self.states[low:high] = bytes(high - low)  # WAITING
        if self.slots[base + LOW] == high and self.slots[base + HIGH] >= high:
            self.slots[base + LOW] = low
            self._queue_range(slot)
            return False
        for leaf in range(high - 1, low - 1, -1):
            self.push(lane, leaf)
        return True

    def settle_stretch(self, slot: int, over: bool = False) -> None:
        """Write down how far a worker is in its stretch, as if each of its leaves were told of by
        itself. Lock held.

        `over`: the worker is gone. One that is not writes its node itself.
        """
        slots, base = self.slots, slot * SLOT
        low, high = slots[base + STRETCH_LOW], slots[base + STRETCH_HIGH]
        begun = slots[base + BEGUN]
        if low >= high or not begun:
            return
        node = low
        while node < high and self.ended[node]:
            node += 1
        self.end_leaves(low, node)
        runs = node < high and begun == RUNS
        if over:
            slots[base + NODE] = node if runs else max(low, node - 1)
        if runs:
            slots[base + SINCE] = self.ended[node - 1] if node > low else self.started[low]
            self.states[node] = RUNNING

    def end_leaves(self, low: int, high: int) -> None:
        """Mark leaves of a stretch as done that its worker has run one after the other. Lock
        held."""
        if low < high:
            self.started[low + 1 : high] = self.ended[low : high - 1]
            self.states[low:high] = bytes((DONE,)) * (high - low)

    def forget_records(self, low: int, high: int) -> None:
        """Clear the records of leaves that have not begun."""
        size = RECORD.size
        self.records[low * size : high * size] = bytes(max(0, high - low) * size)

    def _queue_range(self, slot: int) -> None:
        """Append a slot that has a range to the queue of ranges, unless it is in it."""
        header, slots = self.header, self.slots
        header[NO_RANGES] = 0
        if slots[slot * SLOT + NEXT_RANGE]:
            return
        slots[slot * SLOT + NEXT_RANGE] = NOBODY
        if header[RANGES_HEAD]:
            slots[header[RANGES_TAIL] * SLOT + NEXT_RANGE] = slot
        else:
            header[RANGES_HEAD] = slot
        header[RANGES_TAIL] = slot

    def _long_range(self) -> int:
        """The slot with the longest of the first ranges in the queue; 0 if there is none.

        Comparing all ranges of hundreds of workers would hold the lock longer than a short body
        runs.
        """
        header, slots = self.header, self.slots
        longest = most = seen = before = 0
        at = header[RANGES_HEAD]
        while at > 0 and seen < COMPARED:
            left = slots[at * SLOT + HIGH] - slots[at * SLOT + LOW]
            after = slots[at * SLOT + NEXT_RANGE]
            if left <= 0:  # used up: take it out of the queue
                slots[at * SLOT + NEXT_RANGE] = 0
                if before:
                    slots[before * SLOT + NEXT_RANGE] = after
                else:
                    header[RANGES_HEAD] = max(0, after)
                if after < 0:
                    header[RANGES_TAIL] = before
            else:
                seen, before = seen + 1, at
                if left > most:
                    longest, most = at, left
            at = after
        if not longest and not header[NO_RANGES]:
            self._find_ranges()
            return header[RANGES_HEAD] and self._long_range()
        return longest

    def _find_ranges(self) -> None:
        """Rebuild the queue of ranges. Lock held."""
        header, slots = self.header, self.slots
        header[RANGES_HEAD] = header[RANGES_TAIL] = 0
        for base in range(SLOT, self.slot_count * SLOT, SLOT):
            slots[base + NEXT_RANGE] = 0
        for slot in range(1, self.slot_count):
            if slots[slot * SLOT + LOW] < slots[slot * SLOT + HIGH]:
                self._queue_range(slot)
        header[NO_RANGES] = 1

    # Looking -------------------------------------------------------------------------------------

    def leaves_left(self) -> int:
        """How many leaves no worker has taken."""
        slots = self.slots
        return sum(max(0, slots[base + HIGH] - slots[base + LOW]) for base in range(0, self.slot_count * SLOT, SLOT))

    def waiting_for_worker(self) -> int:
        """How many nodes a worker process could take now."""
        ready: int = self.header[READY_COUNT + PROCESS]
        return ready + self.leaves_left()

    def done(self) -> int:
        """How many nodes are done."""
        slots = self.slots
        return sum(slots[base + COUNT] for base in range(0, self.slot_count * SLOT, SLOT))

    def record(self, node: int) -> tuple[int, int, int, int, int, int, int, int]:
        """started, ended, offset, size, where, pid, cpu, slot of a node."""
        found: tuple[int, int, int, int, int, int, int, int] = RECORD.unpack_from(self.records, node * RECORD.size)
        return found

    def release(self) -> None:
        """Let go of the memory, which stays mapped, and of the flow with its arguments."""
        self.flow = None
        columns = ("ready_at", "records", "pending", "readers", "next", "states", "attempts")
        fields = ("started", "ended", "numbers", "kinds", "fractions", "places")
        others = ("habits", "learned", "spans", "deferred", "waiting", "last")
        for name in ("header", "slots", *fields, *columns, *others, "_whole"):
            getattr(self, name).release()

    def close(self) -> None:
        """Unmap the table and close its file."""
        self.release()
        self.memory.close()
        for fd in (self.fd, self.nameless):
            if fd >= 0:
                os.close(fd)
        self.fd = self.nameless = -1

    def show(self, path: str) -> None:
        """Give a private table a name, for others to see. Raises OSError if that fails."""
        if self.nameless < 0:
            raise FileNotFoundError(path)
        # Python follows the link only if it gets a descriptor of its directory.
        links = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(self.nameless), path, src_dir_fd=links, follow_symlinks=True)
        finally:
            os.close(links)


def reserve(fd: int, offset: int, size: int) -> None:
    """Reserve these bytes of a file. Raises OSError (ENOSPC) if there is no room."""
    try:
        os.posix_fallocate(fd, offset, size)
    except AttributeError:  # macOS has no such call
        if os.fstat(fd).st_size < offset + size:
            os.ftruncate(fd, offset + size)
