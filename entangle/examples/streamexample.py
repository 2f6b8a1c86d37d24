"""CSV files that keep coming: processes parse them, and windows of ten are summed up.

A thread stands for the shop: it writes a file of sales into the directory every few milliseconds.
Some are broken, and are skipped. The stream reads no faster than its results are written: a slow
disk would slow the source down, and memory stays bounded. On a terminal, a line shows the progress.

Prints the windows as they come, what was skipped, and how many results were written.
"""

import csv
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from entangle.dataflow import dataflow, process, thread, window
from entangle.sources import directory

FILES, ROWS, TOGETHER = 60, 200, 10


@dataflow
@thread
def arrive(path: Path) -> str:
    return str(path)


@dataflow
@process(retry=2)
def parse(path: str) -> dict[str, Any]:
    """The turnover by article of one file."""
    turnover: Counter[str] = Counter()
    rows = 0
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            turnover[row["article"]] += int(row["count"]) * int(row["cents"])
            rows += 1
    return {"turnover": turnover, "rows": rows}


@dataflow
@process
def add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The turnover of a window of files."""
    turnover: Counter[str] = Counter()
    for part in parts:
        turnover.update(part["turnover"])
    return {"files": len(parts), "rows": sum(part["rows"] for part in parts), "best": turnover.most_common(1)[0]}


def shop(folder: Path) -> None:
    """Write files under another name and rename them, so that half a file is never read."""
    chance = random.Random(7)
    for number in range(FILES):
        draft = folder / f"{number:03}.part"
        lines = [f"{chance.choice(('tea', 'salt', 'rope'))},{chance.randint(1, 9)},{chance.randint(99, 999)}" for _ in range(ROWS)]
        if number % 20 == 13:
            lines[5] = "tea,many,expensive"
        draft.write_text("\n".join(("article,count,cents", *lines)) + "\n")
        draft.rename(folder / f"{number:03}.csv")
        time.sleep(0.005)


def counted(paths: Iterator[Path], seen: Counter[str]) -> Iterator[Path]:
    """Pass the paths on and count them; a line on a terminal shows how many. Ends after the last
    file."""
    for path in islice(paths, FILES):
        seen["files"] += 1
        if sys.stdout.isatty():
            print(f"\r{seen['files']} files in, {seen['rows']} rows done ", end="", flush=True)
        yield path


def main() -> None:
    if find_spec("watchfiles") is None:
        print("This example follows a directory, for which it needs watchfiles: pip install 'py-entangle[dataflow]'")
        return
    with tempfile.TemporaryDirectory() as name:
        folder, results = Path(name, "sales"), Path(name, "results.jsonl")
        folder.mkdir()
        sales = directory(folder, "*.csv")
        seen: Counter[str] = Counter()
        writer = threading.Thread(target=shop, args=(folder,))
        writer.start()
        flow = arrive(parse(window(add_up(), count=TOGETHER)))
        with open(results, "w") as file:
            skipped: list[str] = []
            for (total,) in flow.stream(counted(iter(sales), seen), on_error=lambda node, path, error: skipped.append(Path(path).name)):
                seen["rows"] += total["rows"]
                file.write(json.dumps(total) + "\n")
                article, cents = total["best"]
                start = "\r" if sys.stdout.isatty() else ""
                print(f"{start}window of {total['files']} files: {total['rows']} rows, most by {article}: {cents / 100:.2f}")
        writer.join()
        sales.stop()
        print("skipped:", ", ".join(skipped))
        print(f"{len(results.read_text().splitlines())} results written")


if __name__ == "__main__":
    main()
