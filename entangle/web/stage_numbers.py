"""The numbers of a stream for the page: by stage, over time, and on the timeline. They come from
the history of the run (`_run/history.py`), whether it is live or over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entangle.web.lanes import HERE, Stretch, lane_of
from entangle.web.page_graph import GraphPart

#: Seconds over which the rate of a live stream is averaged.
_LATELY = 3.0


def items_of(told: dict[str, Any], seconds: float, live: bool) -> list[dict[str, Any]]:
    """For each stage: items done, failed, skipped, in the body, waiting; items a second; seconds in
    the body."""
    rates = _rates(told, seconds, live)
    return [
        {
            **{name: stage.get(name, 0) for name in ("done", "failed", "skipped", "running", "waiting")},
            "rate": rate,
            "busy": stage["busy"] / 1e9,
        }
        for stage, rate in zip(told["stages"], rates, strict=True)
    ]


def _rates(told: dict[str, Any], seconds: float, live: bool) -> list[float]:
    every, bins = told["every"] / 1e9, told["bins"]
    if not live:
        return [stage["done"] / seconds if seconds > 0 else 0.0 for stage in told["stages"]]
    # Only whole bins: the last one is still filling.
    first = max(0, int((seconds - _LATELY) / every))
    lately = bins[first : max(first + 1, int(seconds / every))]
    span = max(every, min(_LATELY, seconds)) if lately else 1.0
    return [sum(column) / span for column in zip(*lately, strict=True)] or [0.0] * len(told["stages"])


def summary(told: dict[str, Any], seconds: float, live: bool) -> dict[str, Any]:
    """A stream as a whole: how many items came from its source and left, how full it is, items over
    time."""
    names = ("pulled", "taken", "left_out", "most", "waited", "full", "drained")
    return {
        **{name: told[name] for name in names if name in told},
        "stages": [{"name": stage["name"], **items} for stage, items in zip(told["stages"], items_of(told, seconds, live), strict=True)],
        "every": told["every"] / 1e9,
        "bins": told["bins"],
    }


def part(run_id: str, told: dict[str, Any], seconds: float, inside: tuple[str, int] | None) -> GraphPart:
    """The graph of a live stream: a node for each stage."""
    stages = told["stages"]
    names = list(dict.fromkeys(stage["name"] for stage in stages))
    items = items_of(told, seconds, live=True)
    states = [state_of(one) for one in items]
    edges = [(taken, number) for number, stage in enumerate(stages) for taken in stage["inputs"]]
    return GraphPart(run_id, names, [names.index(stage["name"]) for stage in stages], states, edges, inside=inside, items=items)


def state_of(items: dict[str, Any]) -> str:
    """The state of a stage of a live stream: it runs from its first item on, even while it is
    empty."""
    begun = any(items[name] for name in ("done", "failed", "skipped", "running"))
    return "running" if begun else "ready" if items["waiting"] else "waiting"


def stretches(told: dict[str, Any], by: str, named: Callable[[int], str]) -> list[Stretch]:
    """Which worker ran which stage, in seconds since the run began. `named` names a stage."""
    found = []
    for slot, pid, cpu, started, ended, stage, items in told["stretches"]:
        name = told["stages"][stage]["name"]
        lane, label = lane_of(by, pid, cpu, slot, told["stages"][stage].get("place", HERE))
        found.append(Stretch(lane, label, started / 1e9, ended / 1e9, name, named(stage), "", items))
    return found


def totals(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a stream, with their items."""
    return [
        {
            "task": stage["name"],
            "code": None,
            "count": stage["done"] + stage["failed"] + stage["skipped"] + stage.get("running", 0) + stage.get("waiting", 0),
            **{name: stage.get(name, 0) for name in ("done", "running", "failed", "skipped")},
            "total": stage["busy"] / 1e9,
            "mean": stage["busy"] / 1e9 / stage["done"] if stage["done"] else None,
            "longest": None,
        }
        for stage in told["stages"]
    ]
