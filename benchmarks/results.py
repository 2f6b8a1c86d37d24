"""Medians and verdicts, and the file that keeps them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.contest import Tallies, Tally
from benchmarks.contestants import CONTESTANTS, REFERENCES
from benchmarks.row import Line, Row

Json = dict[str, Any]

FILE = Path(__file__).with_name("results.json")


def figure(tally: Tally | None, line: Line) -> float | None:
    """Give the figure of a contestant in a line: the median of all rounds, or the largest where the
    line says so."""
    values = tally.values(line.metric) if tally else []
    if not values:
        return None
    return max(values) if line.worst else statistics.median(values)


def rounded(value: float) -> float:
    """Keep four digits: the rest is noise."""
    return float(f"{value:.4g}")


def judge(row: Row, line: Line, tallies: Mapping[str, Tally]) -> Json:
    """Give one line of the table: the figures of ours and of each other contestant, the target, the
    verdict, and the ratio to the best peer."""
    ours = figure(tallies.get(line.ours), line)
    others = {name: figure(tallies[name], line) for name in row.others if name in tallies}
    peers = {name: one for name, one in others.items() if one is not None and name not in REFERENCES}
    best = min(peers, key=peers.__getitem__) if peers else None
    target = line.target
    if target is not None and line.relative_to is not None:
        names = (line.relative_to,) if isinstance(line.relative_to, str) else line.relative_to
        beside = [others.get(name) for name in names]
        # Where one of them failed, it is not known which is the better.
        target = target * min(one for one in beside if one is not None) if None not in beside else None
    return {
        "label": line.label,
        "unit": line.unit,
        "statistic": "largest" if line.worst else "median",
        "contestant": line.ours,
        "ours": None if ours is None else rounded(ours),
        "target": None if target is None else rounded(target),
        # Without a figure, a target is not met.
        "met": None if target is None else ours is not None and ours <= target,
        "best_peer": best,
        "best_peer_over_ours": rounded(peers[best] / ours) if best is not None and ours else None,
        "others": {name: None if one is None else rounded(one) for name, one in others.items()},
    }


def rounds_of(tally: Tally) -> Json:
    """Give all that a contestant measured, rounded."""
    kept: Json = {
        "ours first": [{name: rounded(value) for name, value in one.items()} for one in tally.ours_first],
        "peers first": [{name: rounded(value) for name, value in one.items()} for one in tally.peers_first],
    }
    kept["others_cpus"] = round(tally.disturbed, 2)
    kept["paces"] = [{name: rounded(value) for name, value in one.items()} for one in tally.paces]
    if tally.error:
        kept["error"] = tally.error
    return kept


def summary(rows: Sequence[Row], tallies: Tallies) -> list[Json]:
    """Give every row with its verdicts and all of its rounds."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return [
        {
            "key": row.key,
            "work": row.work,
            "note": row.note,
            "date": today,
            "lines": [judge(row, line, tallies[row.key]) for line in row.lines],
            "rounds": {name: rounds_of(tally) for name, tally in tallies[row.key].items()},
        }
        for row in rows
    ]


def machine() -> Json:
    """Give what the figures depend on: CPUs, memory, Python, versions. Nothing of it names the
    machine."""
    model = ""
    if platform.system() == "Linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    versions: dict[str, str] = {}
    for distribution in ("numpy", *sorted({one.distribution for one in CONTESTANTS.values() if one.distribution})):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def gather(rows: Sequence[Row], tallies: Tallies, rounds: int) -> Json:
    """Give everything that the file keeps of a session."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "rounds": rounds,
        "machine": machine(),
        "rows": summary(rows, tallies),
    }


def write(session: Json, order: Sequence[str]) -> Json:
    """Write a session to ``results.json``. Rows of earlier sessions that were not run again stay.

    Each row is a comparison of its own, with its date. Rows of another machine or of other versions
    are dropped.
    """
    merged = dict(session)
    if FILE.exists():
        earlier: Json = json.loads(FILE.read_text(encoding="utf-8"))
        if earlier["machine"] == session["machine"]:
            rows = {row["key"]: row for row in (*earlier["rows"], *session["rows"])}
            merged["rows"] = [rows[key] for key in order if key in rows]
    FILE.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return merged


def read() -> Json:
    """Give what the last sessions have written."""
    kept: Json = json.loads(FILE.read_text(encoding="utf-8"))
    return kept
