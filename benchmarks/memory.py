"""``python -m benchmarks.memory``: the memory of the whole tree while 1,000,000 items stream
through, drawn as images/stream_memory.png."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.contestants import CONTESTANTS, Entangle, ImapInChunks
from benchmarks.rows.streams import STAGES
from benchmarks.watch import proportional, tree

ITEMS = 1_000_000
PICTURE = Path(__file__).resolve().parent.parent / "images" / "stream_memory.png"


def measure(name: str) -> list[tuple[int, float]]:
    """Give the items that have come out, and the MB that all processes held then, about ten times a
    second."""
    contestant = CONTESTANTS[name](len(os.sched_getaffinity(0)))
    contestant.start()
    seen: list[tuple[int, float]] = []
    done = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.append((done[0], sum(map(proportional, tree(os.getpid()))) / 1e6))

    # The contestant forks before there is a second thread.
    values = iter(contestant.stream(STAGES, range(ITEMS)))
    first = next(values)
    eye = threading.Thread(target=look)
    eye.start()
    assert first == 2
    for number, value in enumerate(values, 1):
        assert value == number + 2
        done[0] = number
        if number % 64 == 0:
            work.spin(3e-4)  # a slow consumer: 5 µs an item
    over.set()
    eye.join()
    contestant.stop()
    return seen


def draw(curves: dict[str, list[tuple[int, float]]]) -> None:
    """Draw one curve for each contestant."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 3.4), dpi=130)
    for name, points in curves.items():
        axes.plot([at / 1e3 for at, _ in points], [held for _, held in points], label=name, lw=2 if name == Entangle.name else 1.2)
    axes.set_xlabel("items that have come out (thousands)")
    axes.set_ylabel("MB (PSS), all processes")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title("1,000,000 items through three process stages", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE)


def main() -> None:
    """Run each contestant in a process of its own, then draw the picture."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    curves = {}
    for name in (Entangle.name, ImapInChunks.name):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "benchmarks.memory", name], check=True, stdout=subprocess.PIPE, text=True)
        curves[name] = [tuple(point) for point in json.loads(done.stdout)]
        held = [mb for _, mb in curves[name]]
        print(f"{name}: {time.monotonic() - began:.1f} s, {held[len(held) // 10]:.0f} MB at a tenth, {max(held):.0f} MB at most")
    draw(curves)


if __name__ == "__main__":
    main()
