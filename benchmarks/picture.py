"""The chart: one panel for each line that has something beside it, on a logarithmic scale."""

from __future__ import annotations

import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, REFERENCES
from benchmarks.report import number

FILE = Path(__file__).resolve().parent.parent / "images" / "benchmarks.png"
OURS, PEER, REFERENCE, TARGET = "#0b7285", "#adb5bd", "#e9c46a", "#c92a2a"
COLUMNS = 3

Json = dict[str, Any]
Panel = tuple[str, list[tuple[str, float, str]], list[float | None]]
"""A title, bars (name, figure, colour; ours first), and the target of each bar of ours."""


def panels(session: Json) -> list[Panel]:
    """Give the panels of a session.

    Lines of a row that differ only in which contestant of ours they judge share a panel.
    """
    found: list[Panel] = []
    for row in session["rows"]:
        shared: dict[tuple[str, str], list[Json]] = {}
        for line in row["lines"]:
            same_others = repr(sorted(line["others"].items()))
            shared.setdefault((line["unit"], same_others), []).append(line)
        for (unit, _), lines in shared.items():
            lines = [line for line in lines if line["ours"] is not None]
            if not lines:
                continue
            together = len(lines) > 1
            bars = [
                (f"entangle, {line['label'].removeprefix('by ').removeprefix('made ')}" if together else "entangle", line["ours"], OURS)
                for line in lines
            ]
            bars += [
                (CONTESTANTS[name].short, one, REFERENCE if name in REFERENCES else PEER)
                for name, one in sorted(lines[0]["others"].items(), key=lambda item: item[1] or 0.0)
                if one is not None
            ]
            label = "" if together or not lines[0]["label"] else f": {lines[0]['label']}"
            found.append((f"{row['key']}  {row['work']}{label}, {unit}", bars, [line["target"] for line in lines]))
    return found


def draw(session: Json) -> None:
    """Draw ``images/benchmarks.png`` from a session."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    plots: Any = import_module("matplotlib.pyplot")
    ticks: Any = import_module("matplotlib.ticker")
    todo = panels(session)
    if not todo:
        return
    rows = -(-len(todo) // COLUMNS)
    drawing, grid = plots.subplots(rows, COLUMNS, figsize=(5.6 * COLUMNS, 3.0 * rows), squeeze=False, constrained_layout=True)
    for axes in grid.flat[len(todo) :]:
        axes.set_visible(False)
    for axes, (heading, bars, targets) in zip(grid.flat, todo, strict=False):
        shown = bars[::-1]
        # A difference of two starts may be 0 or less: it is drawn as a sliver.
        lengths = [max(one, 1e-3) for _, one, _ in shown]
        axes.barh(range(len(shown)), lengths, color=[colour for _, _, colour in shown], height=0.72)
        axes.set_xscale("log")
        reach = [*lengths, *(target for target in targets if target)]
        low, high = min(reach), max(reach)
        room = (high / low) ** 0.22
        # A logarithmic scale has no 0 for bars to begin at: give the shortest one a visible length.
        axes.set_xlim(low / max(2.0, room), high * max(1.6, room))
        axes.set_yticks(range(len(shown)), [name for name, _, _ in shown], fontsize=9)
        for place, (_, one, colour) in enumerate(shown):
            axes.text(
                lengths[place],
                place,
                " " + number(one),
                va="center",
                fontsize=8.5,
                fontweight="bold" if colour == OURS else "normal",
            )
        if len(set(targets)) == 1 and targets[0]:
            axes.axvline(targets[0], color=TARGET, linestyle="--", linewidth=1)
        else:
            for place, target in enumerate(targets):
                if target:
                    top = len(shown) - 1 - place
                    axes.plot([target, target], [top - 0.5, top + 0.5], color=TARGET, linestyle="--", linewidth=1)
        axes.set_ylim(min(-0.6, len(shown) - 6.6), len(shown) - 0.4)  # keeps bars as thick where there are few
        axes.set_title(textwrap.fill(heading, 46), fontsize=9.5, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.xaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.minorticks_off()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    machine = session["machine"]
    drawing.suptitle(
        f"entangle beside its peers: less is better, scales are logarithmic. Median of {session['rounds']} rounds in both "
        f"orders, {machine['cpus']} CPUs, Python {machine['python']}, {session['date']}. Dashed: target",
        fontsize=11,
    )
    FILE.parent.mkdir(exist_ok=True)
    drawing.savefig(FILE, dpi=110)
    plots.close(drawing)
