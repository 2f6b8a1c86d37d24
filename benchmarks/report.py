"""The tables: for the terminal, for the page of benchmarks, and the short one of the README."""

from __future__ import annotations

import importlib.util
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contest import DISTURBED
from benchmarks.contestants import CONTESTANTS, PEERS

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

#: What the README shows: the key of a row, the label of the line, and the work in a few words.
SHORT = (
    ("P1", "by fork", "a tree of 1,023 small tasks, a task"),
    ("P3", "by a warm forkserver", "a chain of 200 tasks, a hop"),
    ("P4", "by a warm forkserver", "one call of one task"),
    ("P5", "", "64 tasks of 20 ms of CPU"),
    ("P6", "", "200 tasks that sleep for half a second"),
    ("P7", "", "an array of 100 MB through five tasks"),
    ("D1", "", "100,000 small items through three stages, an item"),
    ("W3", "chunksize left alone: at most 1/5 of futures", "10,000 squares by `map` of a warm Executor"),
)


def number(value: float | None) -> str:
    """Give a figure with three digits and no exponent."""
    if value is None:
        return "—"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio(value: float | None) -> str:
    """Give how many times as long the best peer takes."""
    return "—" if value is None else f"{number(value)}x"


def verdict(line: Json) -> str:
    """Say whether the target of a line was met."""
    return {None: "—", True: "yes", False: "**no**"}[line["met"]]


def title(row: Json, line: Json) -> str:
    """Give what a line measures, with its unit."""
    label = f": {line['label']}" if line["label"] else ""
    return f"{row['work']}{label}, {line['unit']}"


def references(line: Json) -> str:
    """Give the figures of the references, such as the same lines in one process."""
    return ", ".join(
        f"{CONTESTANTS[name].short if name in CONTESTANTS else name} {number(value)}"
        for name, value in line["others"].items()
        if name not in PEERS and value is not None
    )


def markdown(session: Json) -> str:
    """Give the table of the page."""
    heads = ["", "work", "entangle", "target", "met", "best peer ÷ entangle"]
    heads += [CONTESTANTS[name].short for name in PEERS] + ["beside"]
    out = ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 3) + "---|"]
    for row in session["rows"]:
        for line in row["lines"]:
            cells = [row["key"], title(row, line), f"**{number(line['ours'])}**"]
            cells += [f"≤ {number(line['target'])}" if line["target"] is not None else "—", verdict(line)]
            cells += [ratio(line["best_peer_over_ours"])]
            cells += [number(line["others"].get(name)) for name in PEERS] + [references(line)]
            out.append("| " + " | ".join(cells) + " |")
    notes = [f"- {row['key']}: {row['note']}." for row in session["rows"] if row["note"]]
    few = [
        f"{CONTESTANTS[name].short} in {row['key']} ({count})"
        for row in session["rows"]
        for name, kept in row["rounds"].items()
        if name in CONTESTANTS and 0 < (count := len(kept["ours first"]) + len(kept["peers first"])) < min(5, session["rounds"])
    ]
    noisy = [
        f"{CONTESTANTS[name].short} in {row['key']} ({kept['others_cpus']:.1f})"
        for row in session["rows"]
        for name, kept in row["rounds"].items()
        if name in CONTESTANTS and kept.get("others_cpus", 0.0) >= DISTURBED
    ]
    if speed := how_fast(session):
        notes.append(f"- {speed}")
    if noisy:
        notes.append(f"- Disturbed, as other processes of the machine used so many CPUs meanwhile: {', '.join(noisy)}.")
    if few:
        notes.append(f"- Fewer rounds, for it takes so long: {', '.join(few)}.")
    machine = session["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    footer = (
        f"Medians of {session['rounds']} rounds, half of them with entangle first and half with the peers first, measured "
        f"in one session on {machine['cpus']} CPUs ({machine['cpu']}), Python {machine['python']}, {session['date']}; "
        f"{versions}."
    )
    return "\n".join([*out, "", footer, "", *notes])


def how_fast(session: Json) -> str:
    """Say how fast the machine was during the session; "" if the session did not measure it."""
    paces = [one for row in session["rows"] for kept in row["rounds"].values() for one in kept.get("paces", [])]
    if not paces:
        return ""
    loops, forks = ([one[name] for one in paces] for name in ("loop_ns", "fork_ms"))
    return (
        f"The pace of the machine meanwhile: a turn of an empty Python loop took {number(min(loops))} to {number(max(loops))} ns "
        f"(median {number(statistics.median(loops))}), a bare fork, exit and wait {number(min(forks))} to {number(max(forks))} ms "
        f"(median {number(statistics.median(forks))})."
    )


def terminal(session: Json) -> None:
    """Print the table, with ``rich`` where it is installed."""
    lines = [(row, line) for row in session["rows"] for line in row["lines"]]
    if importlib.util.find_spec("rich") is None:
        for row, line in lines:
            print(
                f"{row['key']:4}{title(row, line):75.75} {number(line['ours']):>8}  target {number(line['target']):>6} "
                f"{verdict(line).strip('*'):4} best peer {ratio(line['best_peer_over_ours']):>7}"
            )
            print("      " + ", ".join(f"{name} {number(one)}" for name, one in line["others"].items()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"medians of {session['rounds']} rounds, both orders", caption="÷: best peer ÷ entangle")
    table.add_column("")
    table.add_column("work", max_width=44)
    for head in ("entangle", "target", "met", "÷"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("others")
    for row, line in lines:
        met = {None: Text("—"), True: Text("yes", "green"), False: Text("no", "bold red")}[line["met"]]
        best = line["best_peer"]
        others = Text(", ").join(
            Text(
                f"{CONTESTANTS[name].short if name in CONTESTANTS else name} {number(one)}",
                "bold" if name == best else "",
            )
            for name, one in line["others"].items()
        )
        table.add_row(
            row["key"],
            title(row, line),
            Text(number(line["ours"]), "bold"),
            number(line["target"]),
            met,
            ratio(line["best_peer_over_ours"]),
            others,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(table)


def short(session: Json) -> str:
    """Give the table of the README: eight lines, among them the one in which entangle is slowest
    beside a peer."""
    lines = {(row["key"], line["label"]): line for row in session["rows"] for line in row["lines"]}
    chosen = [(work, lines[key, label]) for key, label, work in SHORT if (key, label) in lines]
    out = ["| work | entangle | the fastest other | how many times as long it takes |", "|---|--:|--:|--:|"]
    for work, line in chosen:
        if line["best_peer_over_ours"] is None:
            continue
        best = line["best_peer"]
        name = CONTESTANTS[best].short if best in CONTESTANTS else best
        unit = line["unit"].partition(" ")[0] if line["unit"][0] in "µmns" else "x"
        theirs = f"{number(line['others'][best])} {unit} ({name})"
        out.append(f"| {work} | {number(line['ours'])} {unit} | {theirs} | **{ratio(line['best_peer_over_ours'])}** |")
    machine = session["machine"]
    return "\n".join(
        [
            *out,
            "",
            f"Below 1x entangle is the slower one. Medians of {session['rounds']} rounds in one session, both orders, on "
            f"{machine['cpus']} CPUs, {session['date']}. The peers' pools were warm; the start and end of our workers are in our figures.",
        ]
    )


def publish(session: Json) -> list[Path]:
    """Put the tables between the markers of page and README; give the files without markers."""
    missing = []
    for path, table in ((PAGE, markdown(session)), (README, short(session))):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if BEGIN not in text or END not in text:
            missing.append(path)
            continue
        between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
        path.write_text(between.sub(lambda _, table=table: f"{BEGIN}\n{table}\n{END}", text), encoding="utf-8")
    return missing
