"""E1 to E3: everyday work, with records on, as by default."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import Contestant, Entangle, EntangleFork, Futures, Joblib, Mpire, PoolMap
from benchmarks.row import Line, Measured, check, row, seconds
from benchmarks.warm import EntangleSession

ITEMS, CALLS, NODES = 10_000, 1_000, 100_000


class Recording:
    """Records runs in a temporary directory."""

    def __enter__(self) -> Recording:
        self._before = {name: os.environ.get(name) for name in ("ENTANGLE_RECORD", "ENTANGLE_RECORD_DIR")}
        self.place = os.environ["ENTANGLE_RECORD_DIR"] = tempfile.mkdtemp(prefix="records-")
        os.environ["ENTANGLE_RECORD"] = "1"
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.place, ignore_errors=True)


@row(
    "E1",
    "square.map(range(10_000)), each item a node, recorded",
    group="everyday",
    lines=[
        Line("cold, times futures.map", "ms", "time", Entangle.name, 1.0, relative_to=Futures.name),
        Line("cold, times Pool.map", "ms", "time", Entangle.name, None, relative_to=PoolMap.name),
        Line("in a session, at most 1 times futures.map", "ms", "time", EntangleSession.name, 1.0, relative_to=Futures.name),
        Line("in a session, at most 3 times Pool.map", "ms", "time", EntangleSession.name, 3.0, relative_to=PoolMap.name),
    ],
    others=(Futures.name, PoolMap.name, Joblib.name, Mpire.name),
    note="cold: start and end of our workers included, the peers' pools warm; each as its documentation writes it, with its default chunks",
)
def mapped(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Square ten thousand numbers."""
    wanted = [x * x for x in range(ITEMS)]

    def once() -> list[int]:
        return contestant.map(work.square, range(ITEMS))

    with Recording():
        once()
        for _ in rounds:
            yield {"time": seconds(once, wanted) * 1e3}


@row(
    "E2",
    "1,000 calls of which 10 fail, all told",
    group="everyday",
    lines=[Line("times the same without failures", "x", "ratio", EntangleFork.name, 1.2)],
    others=(),
    note="gather(…, return_exceptions=True), recorded; every error has its call and arguments",
)
def failures(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Gather a thousand calls, with and without failures."""
    from entangle import gather

    fails, succeeds = contestant.task(work.fails_for_hundredth), contestant.task(work.leaf)

    def told() -> list[str]:
        values = contestant.value(gather(*[fails(x) for x in range(CALLS)], return_exceptions=True))
        return [notes[1] for value in values if isinstance(value, ValueError) and (notes := value.__notes__)]  # type: ignore[attr-defined,unused-ignore]

    def plain() -> int:
        return len(contestant.value(gather(*[succeeds(x) for x in range(CALLS)], return_exceptions=True)))

    wanted = [f"call: fails_for_hundredth({x})" for x in range(50, CALLS, 100)]
    with Recording():
        told()
        for number in rounds:
            took = {}
            for which in (0, 1) if number % 2 else (1, 0):
                took[which] = seconds(told, wanted) if which else seconds(plain, CALLS)
            yield {"ratio": took[1] / took[0]}


@row(
    "E3",
    "the page of a run of 100,000 nodes, until it has what it first shows",
    group="everyday",
    lines=[Line("", "s", "first", EntangleFork.name, 1)],
    others=(),
    note="what the server answers for the header, the graph and the timeline, as JSON; nothing is kept between rounds",
)
def first_page(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Make what the page shows first of a large run."""
    from entangle import records
    from entangle.web import recorded
    from entangle.web.lanes import timeline
    from entangle.web.page_graph import drawn

    leaf, total = contestant.task(work.leaf), contestant.task(work.total)
    with Recording():
        check(contestant.value(total(*[leaf(i) for i in range(NODES - 1)])), (NODES - 1) * (NODES - 2) // 2)
        (run,) = records.runs(limit=1)
        for _ in rounds:
            began = time.perf_counter()
            answers = [recorded.info(run.id), drawn(recorded.parts(run.id), []), timeline(*recorded.stretches(run.id, "worker"), 1200)]
            text = json.dumps(answers, default=str)
            took = time.perf_counter() - began
            check("leaf" in text and "total" in text, True)
            yield {"first": took}
