"""The terms of a benchmark: a row of the table, its lines, and how a round is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.contestants import Contestant

Measured = dict[str, float]
"""What one round measured: a metric's name and its value, in the unit of the lines that show it."""

Body = Callable[["Contestant", Iterable[int]], Iterator[Measured]]


class WrongAnswer(AssertionError):
    """A contestant gave a wrong value: its time means nothing."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a metric, the contestant of ours that it judges, and the target.

    ``target`` is in ``unit``; with ``relative_to`` it is a factor on what that contestant took in
    the same session; of several, on the least. A line without a target is only shown. ``worst``
    takes the largest round instead of the median.
    """

    label: str
    unit: str
    metric: str
    ours: str
    target: float | None
    relative_to: str | tuple[str, ...] | None = None
    worst: bool = False


@dataclass(frozen=True)
class Row:
    """One benchmark: what it is, its contestants, and the function that measures a contestant.

    Rows of one ``group`` share a visit to each contestant, so that a daemon that takes seconds to
    start is started once for all of them. ``workers`` is how many workers a peer is told to keep
    (``None``: one for each CPU). ``bare`` rows start nothing beforehand, because they measure the
    start.
    """

    key: str
    work: str
    group: str
    lines: tuple[Line, ...]
    others: tuple[str, ...]
    body: Body
    note: str = ""
    workers: int | None = None
    bare: bool = False

    @property
    def ours(self) -> tuple[str, ...]:
        """The contestants of ours that this row runs, each once, in the order of the lines."""
        return tuple(dict.fromkeys(line.ours for line in self.lines))

    @property
    def contestants(self) -> tuple[str, ...]:
        """All contestants, ours first."""
        return (*self.ours, *self.others)


ROWS: dict[str, Row] = {}


def row(
    key: str,
    work: str,
    *,
    group: str,
    lines: Sequence[Line],
    others: Sequence[str] = (),
    note: str = "",
    workers: int | None = None,
    bare: bool = False,
) -> Callable[[Body], Body]:
    """Make a benchmark of a function that takes a contestant and the numbers of the rounds, and
    yields what each round measured.

    @row("X1", "one task", group="small", lines=[Line("", "µs", "time", "entangle", 10)],
    others=PEERS) def one(contestant, rounds): ...
    """

    def register(body: Body) -> Body:
        if key in ROWS:
            raise ValueError(f"two benchmarks are called {key}")
        ROWS[key] = Row(key, work, group, tuple(lines), tuple(others), body, note, workers, bare)
        return body

    return register


def check(given: Any, wanted: Any) -> None:
    """Raise ``WrongAnswer`` unless the contestant's value is the right one."""
    if given != wanted:
        raise WrongAnswer(f"{given!r:.200} where {wanted!r:.200} was due")


def seconds(once: Callable[[], Any], wanted: Any, *, fill: float = 0.25, most: int = 25) -> float:
    """Time one round of short work: repeat it for ``fill`` seconds, at most ``most`` times, and
    take the median.

    The answer is checked each time; the time of that is not counted. Work that takes longer than
    ``fill`` is run once.
    """
    took: list[float] = []
    while not took or (sum(took) < fill and len(took) < most):
        began = time.perf_counter()
        value = once()
        took.append(time.perf_counter() - began)
        check(value, wanted)
    return statistics.median(took)


def within(rounds: Iterable[int], budget: float) -> Iterator[int]:
    """Give the rounds one by one, until they have taken more than ``budget`` seconds.

    One is always given. This is for contestants that need many seconds for what takes the others a
    moment: their figures have fewer rounds, which the report says. With such differences, a few are
    enough.
    """
    began: float | None = None
    for number in rounds:
        if began is None:
            began = time.monotonic()
        elif time.monotonic() - began > budget:
            return
        yield number
