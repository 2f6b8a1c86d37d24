"""The history of a rearmed run: what each of its stages has done, kept in bounded room.

Its rows are used again and again, so the table tells of the last use only. The supervisor adds each
set of rows that is done. A stage is a row of a port between its source and its gather.

::

    stages      items, failures, time in bodies                    one entry a stage
    bins        items of each stage over time                      at most MOST_BINS
    stretches   which worker ran which stage, and when             at most MOST_STRETCHES

Where bins or stretches would be more, neighbours are joined, so a stream of a week takes as much
room as one of a minute.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from entangle._shared.table import DONE, FAILED, RECORD, SKIPPED, WAITING
from entangle.flow import Body, Flow, Shape

MOST_BINS, MOST_STRETCHES = 240, 1500
#: How long the first bins and the shortest joined stretches are (ns).
_FIRST_BIN, _FIRST_GAP = 50_000_000, 500_000


class Stage(NamedTuple):
    """A row of a port that does work. `inputs` are stages; a value that is fed is no stage."""

    body: Body
    port: int
    inputs: tuple[int, ...]


class History:
    """What the stages of a rearmed run have done so far. Changed by the supervisor's thread alone.

    `ports` has the rows of each port: pairs of a body and the rows that it takes. `feeds` maps a
    port to the port and the row that feed it.
    """

    def __init__(self, ports: Sequence[Sequence[Any]], feeds: dict[int, tuple[int, int]], began: int = 0) -> None:
        self.began = began
        self.stages: list[Stage] = []
        self.firsts: list[int] = []
        #: For each stage, those of its port whose failures never reach it.
        self._above: list[set[int]] = []
        for number, rows in enumerate(ports):
            first = len(self.stages)
            self.firsts.append(first)
            fed = feeds.get(number)
            source = (self.firsts[fed[0]] + fed[1] - 1,) if fed is not None and fed[1] > 0 else ()
            for row in rows[1:-1]:
                taken = [source if at == 0 else (first + at - 1,) for at in row.inputs]
                inputs = tuple(dict.fromkeys(one for part in taken for one in part))
                above = {one for one in inputs if one >= first}
                self._above.append(above.union(*(self._above[one] for one in above)))
                self.stages.append(Stage(row.body, number, inputs))
        count = len(self.stages)
        self.items = [0] * count
        self.failed = [0] * count
        self.busy = [0] * count
        self.started = [0] * count
        self.ended = [0] * count
        self.where: list[tuple[int, int, int]] = [(0, -1, 0)] * count
        self.every = _FIRST_BIN
        self.bins: list[list[int]] = []
        self.gap = _FIRST_GAP
        #: slot, pid, cpu, started, ended, stage, items, and by how much (ns) that stage leads.
        self.stretches: list[list[int]] = []
        self._last: dict[int, list[int]] = {}
        #: The stages of nodes by their numbers in the plan; the stage that failed last.
        self._numbered = {getattr(stage.body.function, "number", None): at for at, stage in enumerate(self.stages)}
        self.latest = -1
        #: For each stage that has failed with items, the first failure.
        self.failures: dict[int, Any] = {}

    # While it runs --------------------------------------------------------------------------------

    def add(self, port: int, records: Sequence[tuple[int, ...]], items: int) -> None:
        """A set of a port is done: `records` are those of its stages, which have done so many
        items."""
        stage = self.firsts[port]
        for started, ended, _, _, _, pid, cpu, slot in records:
            self.items[stage] += items
            self.busy[stage] += ended - started
            if not self.started[stage]:
                self.started[stage] = started
            if ended > self.ended[stage]:
                self.ended[stage] = ended
            self.where[stage] = pid, cpu, slot
            at = (ended - self.began) // self.every
            if at >= len(self.bins):
                at = self._bin(ended)
            self.bins[at][stage] += items
            last = self._last.get(slot)
            if last is not None and last[1] == pid and 0 <= started - last[4] < self.gap and (last[5] == stage or self.gap > _FIRST_GAP):
                _extend(last, started, ended, stage, items)
            else:
                last = self._last[slot] = [slot, pid, cpu, started, ended, stage, items, ended - started]
                self.stretches.append(last)
            stage += 1
        while len(self.stretches) > MOST_STRETCHES:
            self._join()

    def fail(self, numbers: Iterable[int]) -> None:
        """The nodes of these numbers have each failed with an item."""
        for number in numbers:
            at = self._numbered.get(number)
            if at is not None:
                self.failed[at] += 1
                self.latest = at

    def keep(self, number: int, failure: Any) -> None:
        """Keep a failure of the node of this number, if it is its first."""
        at = self._numbered.get(number)
        if at is not None:
            self.failures.setdefault(at, failure)

    def _bin(self, ended: int) -> int:
        at = max(0, (ended - self.began) // self.every)
        while at >= MOST_BINS:
            pairs = zip(self.bins[::2], [*self.bins[1::2], [0] * len(self.stages)], strict=False)
            self.bins = [[a + b for a, b in zip(one, other, strict=True)] for one, other in pairs]
            self.every *= 2
            at = (ended - self.began) // self.every
        while at >= len(self.bins):
            self.bins.append([0] * len(self.stages))
        return at

    def _join(self) -> None:
        """Join stretches of a worker that are near each other, with a longer gap each time."""
        self.gap *= 4
        self._last.clear()
        kept: list[list[int]] = []
        for one in self.stretches:
            last = self._last.get(one[0])
            if last is not None and last[1] == one[1] and one[3] - last[4] < self.gap:
                _extend(last, one[3], one[4], one[5], one[6])
            else:
                self._last[one[0]] = one
                kept.append(one)
        self.stretches = kept

    # Told -----------------------------------------------------------------------------------------

    def told(self) -> dict[str, Any]:
        """All of it as JSON takes it. Times are nanoseconds since the run began."""
        began = self.began
        stages = []
        for at, (stage, (done, failed, skipped)) in enumerate(zip(self.stages, self.counts(), strict=True)):
            counts = {"done": done, "failed": failed, "skipped": skipped, "busy": self.busy[at]}
            stages.append({"name": stage.body.name, "port": stage.port, "inputs": stage.inputs, **counts})
        return {
            "stages": stages,
            "every": self.every,
            "bins": self.bins,
            "stretches": [[slot, pid, cpu, a - began, b - began, stage, items] for slot, pid, cpu, a, b, stage, items, _ in self.stretches],
        }

    def counts(self) -> list[tuple[int, int, int]]:
        """For each stage, how many items it has done, has failed with and has skipped."""
        both = zip(self.items, self.failed, self._skipped(), strict=True)
        return [(items - failed - skipped, failed, skipped) for items, failed, skipped in both]

    def out(self) -> int:
        """How many items have gone through all stages of the first port, failed ones included."""
        taken = {one for stage in self.stages for one in stage.inputs if stage.port == 0}
        return min((self.items[at] for at, stage in enumerate(self.stages) if stage.port == 0 and at not in taken), default=0)

    def _skipped(self) -> list[int]:
        """For each stage, how many items have passed it by, since they had failed before."""
        return [sum(self.failed[one] for one in above) for above in self._above]

    def flow(self) -> Flow:
        """The stages as a flow: a node each."""
        bodies: dict[int, int] = {}
        known: list[Body] = []
        shapes: dict[int, int] = {}
        body_of, shape_of, starts, inputs = array("i"), array("i"), array("q", (0,)), array("q")
        for stage in self.stages:
            which = bodies.setdefault(id(stage.body), len(known))
            if which == len(known):
                known.append(stage.body)
            body_of.append(which)
            shape_of.append(shapes.setdefault(len(stage.inputs), len(shapes)))
            inputs.extend(stage.inputs)
            starts.append(len(inputs))
        return Flow(known, [Shape(count) for count in shapes], body_of, shape_of, starts, inputs, [], leaves=0)

    def columns(self, failed: bool, well: bool) -> tuple[array[int], bytes, bytes, bytes]:
        """What a table of those nodes would have at the end: times of readiness, records, states,
        attempts. `failed`: a failure has ended the run; `well`: nothing has ended it early."""
        records, states, skipped = bytearray(), bytearray(), self._skipped()
        for stage in range(len(self.stages)):
            pid, cpu, slot = self.where[stage]
            records += RECORD.pack(self.started[stage], self.ended[stage], 0, 0, 0, pid, cpu, slot)
            states.append(self._state(stage, failed, well, skipped[stage]))
        return array("q", self.started), bytes(records), bytes(states), bytes(len(self.stages))

    def _state(self, stage: int, failed: bool, well: bool, skipped: int) -> int:
        """The state of a stage at the end. One that was done with no item has failed with all that
        came to it, or was skipped by all."""
        if failed and stage == self.latest:
            return FAILED
        if self.items[stage] > self.failed[stage] + skipped:
            return DONE
        return FAILED if self.failed[stage] else SKIPPED if skipped else DONE if well else WAITING


def _extend(last: list[int], started: int, ended: int, stage: int, items: int) -> None:
    """Add work to a stretch. Its stage is the one that took most of it, by the majority vote of
    Boyer and Moore, weighted by time."""
    last[4] = max(last[4], ended)
    last[6] += items
    long = ended - started
    if last[5] == stage:
        last[7] += long
    elif long > last[7]:
        last[5], last[7] = stage, long - last[7]
    else:
        last[7] -= long
