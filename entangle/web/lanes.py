"""Timelines for the page: a lane for each worker, CPU or place. What is narrower than a pixel is
joined with its neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

#: The most lanes that are drawn. A run with more workers shows the first of them.
MOST = 400


class Stretch(NamedTuple):
    """One node on a worker, in seconds since the run began. `lane` sorts, `label` is shown.

    `failed` is its error in short, or "". `items` is how many items it did. `attempt` is the number
    of an attempt that others followed, else 0.
    """

    lane: tuple[int | str, ...]
    label: str
    started: float
    ended: float
    task: str
    node: str
    failed: str = ""
    items: int = 1
    attempt: int = 0


_BEGAN = itemgetter(2)


#: The name of the run's own machine, if its real name is not known.
HERE = "here"


def lane_of(by: str, pid: int | None, cpu: int | None, worker: int | None, place: str = HERE) -> tuple[tuple[int | str, ...], str]:
    """The lane of a node, and its label."""
    if by == "place":
        return (place,), place
    if by == "cpu":
        return (cpu if cpu is not None else -1,), f"cpu {cpu}" if cpu is not None and cpu >= 0 else "cpu ?"
    return (pid or 0, worker or 0), f"{worker or 0} · pid {pid or '?'}"


def timeline(
    stretches: Iterable[Stretch], total: float, width: int, start: float | None = None, end: float | None = None
) -> dict[str, Any]:
    """Lanes and bars between `start` and `end`, for a picture of `width` pixels.

    A bar is lane, started, ended, task, node, how many nodes or items, whether one of them failed
    (1: for good, 2: an attempt that others followed), and its error.
    """
    low, high = start if start is not None else 0.0, end if end is not None else max(total, 1e-9)
    narrow = max(high - low, 1e-9) / max(1, width)
    by_lane: dict[tuple[int | str, ...], list[Stretch]] = {}
    labels: dict[tuple[int | str, ...], str] = {}
    tasks: dict[str, int] = {}
    worked = 0.0
    for stretch in stretches:
        lane, label, began, ended, task = stretch[:5]
        mine = by_lane.get(lane)
        if mine is None:
            mine = by_lane[lane] = []
            labels[lane] = label
        mine.append(stretch)
        if task not in tasks:
            tasks[task] = len(tasks)
        worked += ended - began
    lanes = sorted(by_lane)
    bars: list[list[Any]] = []
    for number, lane in enumerate(lanes[:MOST]):
        mine = by_lane[lane]
        if start is not None or end is not None:
            mine = [stretch for stretch in mine if stretch.ended >= low and stretch.started <= high]
        mine.sort(key=_BEGAN)
        bars += _joined(number, mine, narrow, tasks)
    return {
        "total": total,
        "lanes": [labels[lane] for lane in lanes[:MOST]],
        "tasks": list(tasks),
        "bars": bars,
        "busy": min(1.0, worked / (total * len(lanes))) if total > 0 and lanes else 0.0,
    }


def _joined(number: int, stretches: Sequence[Stretch], narrow: float, tasks: dict[str, int]) -> list[list[Any]]:
    bars: list[list[Any]] = []
    at: list[Any] | None = None
    # A joined bar has the colour of the task that took most of its time: by the majority vote of
    # Boyer and Moore, weighted by time.
    lead = 0.0
    for _, _, started, ended, task, node, reason, items, attempt in stretches:
        index = tasks[task]
        failed = 0 if not reason else 2 if attempt else 1
        long = ended - started
        # A failure is joined with others only within a pixel: it must be seen, and must not look
        # larger than it is.
        near = at is not None and long < 2 * narrow and started - at[2] < narrow
        if at is not None and near and at[2] - at[1] < (narrow if failed != at[6] else (2 + (at[5] > 1) * 30) * narrow):
            at[2] = max(at[2], ended)
            at[5] += items
            if failed and at[6] != 1:
                at[6], at[7] = failed, reason
            if at[3] == index:
                lead += long
            elif long > lead:
                at[3], lead = index, long - lead
            else:
                lead -= long
            continue
        at = [number, round(started, 9), ended, index, node, items, failed, reason]
        lead = long
        bars.append(at)
    for bar in bars:
        bar[2] = round(bar[2], 9)
        if not bar[7]:
            del bar[7]
    return bars
