"""A cached analysis that is edited: only what depends on the edit is computed again.

Four programs share a depot: the analysis, again, with another comment, with another `middle`.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from entangle.process import process


def middle(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]  # the upper one of two


@process(cache=True)
def read(month: int) -> list[float]:
    print("read")
    return [random.Random(month * 100 + day).gauss(month, 3.0) for day in range(30)]


@process(cache=True)
def typical(readings: list[float]) -> float:
    print("typical")
    return round(middle(readings), 2)


@process(cache=True)
def spread(readings: list[float]) -> float:
    print("spread")
    return round(max(readings) - min(readings), 2)


@process(cache=True)
def report(typicals: list[float], spreads: list[float]) -> str:
    print("report")
    return f"December: {typicals[-1]} ± {spreads[-1] / 2:.2f}"


def main() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    comment, helper = text.replace("# the upper", "# always the upper"), text.replace("sorted(numbers)[len(numbers) // 2]", "max(numbers)")
    edits = {"first": text, "again": text, "comment": comment, "helper": helper}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ENTANGLE_DEPOT": f"{folder}/depot"}
        for name, edited in edits.items():
            (program := Path(folder, "analysis.py")).write_text(edited, encoding="utf-8")
            *ran, value = subprocess.check_output([sys.executable, program, "once"], env=environment, text=True).splitlines()
            counts = [f"{count} {task}" for task, count in sorted(Counter(ran).items())]
            print(f"{name:8}{value}, computed: {', '.join(counts) or 'nothing'}")


if __name__ == "__main__":
    year = [read(month) for month in range(1, 13)]
    print(report([typical(m) for m in year], [spread(m) for m in year])()) if sys.argv[1:] == ["once"] else main()
