"""`entangle top`: the runs of this machine, read from their tables."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
from rich.console import Group
from rich.live import Live
from rich.text import Text

from entangle._watch.live_runs import LiveRun, cookies, live_homes, live_runs, pid_of_home
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, duration, fitted, size, table_lines, text

#: The most workers that are shown of one run.
MOST_WORKERS = 16
#: The most runs that are shown, the outermost first.
MOST_RUNS = 12
#: The most places that are shown of one run.
MOST_PLACES = 6


def top(as_json: bool, every: float, looks: int, program: str | None) -> None:
    """Look again and again, or once where the output is no terminal. Ctrl-C or q ends it. Of
    `program`, if one is named, and of no other."""
    eye = Eye(program)
    if as_json:
        for _ in _times(every, looks or 1):
            print_json(eye.look())
        return
    out = console()
    if not out.is_terminal or looks == 1:
        eye.look()
        time.sleep(min(every, 0.2))  # CPU use is a difference between two looks
        out.print(picture(eye.look(), out.width, program))
        return
    with _keys() as pressed, Live(console=out, auto_refresh=False, screen=not looks) as live:
        for _ in _times(every, looks, pressed):
            live.update(picture(eye.look(), out.width, program), refresh=True)


def _times(every: float, looks: int, ended: Any = None) -> Iterator[int]:
    """Count up to `looks` (0: for ever), `every` seconds apart. `ended(seconds)` waits so long, and
    says whether to stop."""
    count = 0
    while not looks or count < looks:
        yield count
        count += 1
        if looks and count >= looks:
            return
        if ended is None:
            time.sleep(every)
        elif ended(every):
            return


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Read keys as they are pressed, without Enter. Gives a function that waits, and tells whether
    the key was q."""
    import select
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _only_wait
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([fd], [], [], seconds)
        return bool(ready) and sys.stdin.read(1) in ("q", "Q", "\x1b", "")

    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


#: Of a worker whose body runs in its own process.
_HERE = {"place": "", "ticket": "", "why": ""}


class Eye:
    """Observes the machine, or the runs of one program. CPU use is the difference between two
    looks, so the first has none."""

    def __init__(self, program: str | None = None) -> None:
        self._program = program
        self._processes: dict[int, psutil.Process] = {}

    def look(self) -> dict[str, Any]:
        """What runs now, as plain data: runs with their workers, each before those nested in it;
        cookies, the load of the machine. CPU use is in percent of one CPU."""
        runs: list[dict[str, Any]] = []
        with contextlib.ExitStack() as opened:
            found = [opened.enter_context(run) for run in live_runs()]
            for run in _nested_after_outer(found):
                runs.append(self._run(run, runs))
                if self._program is not None and not _is_called(runs[-1], self._program):
                    runs.pop()
        seen = {worker["pid"] for run in runs for worker in run["workers"]}
        self._processes = {pid: process for pid, process in self._processes.items() if pid in seen}
        homes = {pid_of_home(home): home for home in live_homes()}
        pids = set(homes) if self._program is None else {run["program_pid"] for run in runs}
        return {
            "time": time.time(),
            "cpus": psutil.cpu_count(),
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "cookies": {str(pid): cookies(home) for pid, home in homes.items() if pid in pids},
            "runs": runs,
        }

    def _run(self, run: LiveRun, before: list[dict[str, Any]]) -> dict[str, Any]:
        done, running, waiting, failed = run.counts()
        skipped = run.table.nodes - done - running - waiting - failed
        if stages := run.stages():  # items: its rows are used again and again
            done, skipped = stages[-1].get("done", 0), 0
            running, waiting, failed = (sum(stage.get(state, 0) for stage in stages) for state in ("running", "waiting", "failed"))
        outline = run.outline
        pids = set()
        workers = []
        nodes, counts = run.whereabouts()
        for worker in run.workers():
            cpu, memory = self._use(worker.pid) if worker.pid not in pids else (None, None)
            pids.add(worker.pid)
            there = nodes.get(worker.node)
            place = {"place": there.place, "ticket": there.ticket, "why": there.why} if there is not None else _HERE
            workers.append({**vars(worker), "cpu_percent": cpu, "memory": memory, **place})
        outer = next((one for one in before if one["run"] == run.outer), None)
        command = outline.about["command"] if outline else []
        return {
            "run": run.id,
            "outer": run.outer,
            "depth": outer["depth"] + 1 if outer is not None else 0,
            "pid": run.pid,
            "program": outer["program"] if outer is not None else command[0] if command else "",
            "program_pid": outer["program_pid"] if outer is not None else pid_of_home(run.home),
            "command": " ".join(command),
            "task": stages[0]["name"] if stages else run.task(run.table.nodes - 1),
            "name": stages[0]["name"] if stages else run.name(run.table.nodes - 1),
            "seconds": run.seconds,
            "nodes": len(stages) or run.table.nodes,
            "done": done,
            "running": running,
            "waiting": waiting,
            "failed": failed,
            "skipped": skipped,
            "stages": stages,
            "away": [one._asdict() for one in counts],
            "workers": workers,
        }

    def _use(self, pid: int) -> tuple[float | None, int | None]:
        try:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
            with process.oneshot():
                return process.cpu_percent(), process.memory_info().rss
        except psutil.Error:
            return None, None


def _nested_after_outer(runs: list[LiveRun]) -> list[LiveRun]:
    """The runs, each followed by those that were called in its bodies."""
    inner: dict[str | None, list[LiveRun]] = {}
    known = {run.id for run in runs}
    for run in runs:
        inner.setdefault(run.outer if run.outer in known else None, []).append(run)
    ordered: list[LiveRun] = []
    waiting = inner.pop(None, [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += inner.pop(ordered[-1].id, [])[::-1]
    return ordered


def _is_called(run: dict[str, Any], program: str) -> bool:
    """Whether a run is of that program: its path, the name of its file, with or without what it
    ends in; or its pid."""
    path = run["program"]
    name = os.path.basename(path)
    return program in (path, name, os.path.splitext(name)[0], str(run["program_pid"])) or os.path.realpath(program) == path


def picture(look: dict[str, Any], width: int, program: str | None = None) -> Group:
    """A look, for people, in so many columns."""
    moment = time.strftime("%H:%M:%S", time.localtime(look["time"]))
    load = f"  {look['cpus']} CPUs {look['cpu_percent']:.0f} %  memory {look['memory_percent']:.0f} %"
    parts = [fitted(text(("entangle top", "bold"), f"  {moment}{load}"), width)]
    if not look["runs"]:
        nothing = f"Nothing runs of {program}." if program is not None else "Nothing runs (calls of an Executor or joblib are not shown)."
        parts += [Text(), fitted(text(f"{nothing} What ran: entangle runs", style="dim"), width)]
    last = None
    for run in look["runs"][:MOST_RUNS]:
        if run["program_pid"] != last:
            last = run["program_pid"]
            mine = [one for one in look["runs"] if one["program_pid"] == last]
            parts += [Text(), _heading(mine, look["cookies"].get(str(last), {}), width)]
        parts += [*_title(run, width), *_stages(run, width), *_away(run, width), *_workers(run["workers"], 2 * run["depth"] + 2, width)]
    left = len(look["runs"]) - MOST_RUNS
    if left > 0:
        parts += [Text(), text(f"… and {left} more runs", style="dim")]
    return Group(*parts)


def _heading(runs: list[dict[str, Any]], free: dict[str, int], width: int) -> Text:
    """A program: its file, its pid, what it uses, its free cookies."""
    workers = {worker["pid"]: worker for run in runs for worker in run["workers"] if worker["cpu_percent"] is not None}
    use = f"  {sum(worker['cpu_percent'] for worker in workers.values()):.0f} % CPU"
    use += f"  {size(sum(worker['memory'] or 0 for worker in workers.values()))}"
    command = runs[0]["command"] or "a program"
    path, _, rest = command.partition(" ")
    if len(command) > width // 2:
        command = f"{os.path.basename(path)} {rest}".strip()
    cookies = "  free: " + ", ".join(f"{name} {count}" for name, count in free.items()) if free else ""
    tail = text((f"  pid {runs[0]['program_pid']}", "dim"), use, (cookies, "dim"))
    return fitted(Text.assemble(fitted(text((command, "bold")), max(12, width - tail.cell_len)), tail), width)


def _title(run: dict[str, Any], width: int) -> list[Text]:
    """A run: its name, its id and its time; how far it is."""
    indent = "  " * run["depth"]
    head = text(f"{indent}↳ " if run["depth"] else "", (run["name"] or "a run", "bold cyan"), f"  {run['run']}  {duration(run['seconds'])}")
    if run["stages"]:
        return [fitted(head, width)]
    told = f"  {run['done']:,} of {run['nodes']:,} done, {run['running']:,} running"
    told += f", {run['waiting']:,} waiting" if run["waiting"] else ""
    lost = "".join(f", {run[state]:,} {state}" for state in ("failed", "skipped") if run[state])
    filled = _BAR * run["done"] // max(1, run["nodes"])
    bar = text(f"{indent}  ", ("━" * filled, "green"), ("━" * (_BAR - filled), "dim"), told, (lost, "red"))
    return [fitted(head, width), fitted(bar, width)]


#: Columns of a bar.
_BAR = 16


def _stages(run: dict[str, Any], width: int) -> list[Text]:
    """The stages of a stream, a line each."""
    rows = []
    for stage in run["stages"]:
        done = stage.get("done", 0)
        under_way = f"{stage.get('running', 0):,} in it, {stage.get('waiting', 0):,} before it"
        lost = "".join(f", {stage[state]:,} {state}" for state in ("failed", "skipped") if stage.get(state))
        at = f" at {stage['place']}" if stage.get("place") else ""
        about = text(f"{done / max(run['seconds'], 1e-3):,.0f}/s, {under_way}", (lost, "red"), (at, "dim"))
        rows.append([text(str(stage.get("name", "")), style="cyan"), text(f"{done:,} done"), about])
    return _indented(table_lines(("", "", ""), rows, width - 2 * run["depth"] - 2, right=(1,)), 2 * run["depth"] + 2)


def _away(run: dict[str, Any], width: int) -> list[Text]:
    """What is elsewhere: a line for each place, with how many wait there, and why."""
    places: dict[str, list[dict[str, Any]]] = {}
    for one in run["away"]:
        places.setdefault(one["place"], []).append(one)
    lines = []
    for place, there in list(places.items())[:MOST_PLACES]:
        told: list[tuple[str, str]] = []
        for one in sorted(there, key=lambda one: bool(one["why"])):
            told.append((f"{', ' if told else ''}{one['nodes']:,} {one['why'] or 'there'}", "yellow" if one["why"] else "green"))
        lines.append(fitted(text((place, "cyan"), "  ", *told), width - 2 * run["depth"] - 2))
    if len(places) > MOST_PLACES:
        lines.append(text(f"… and {len(places) - MOST_PLACES} more places", style="dim"))
    return _indented(lines, 2 * run["depth"] + 2)


def _workers(workers: list[dict[str, Any]], indent: int, width: int) -> list[Text]:
    order = {"busy": 0, "starting": 1}
    working = sorted((worker for worker in workers if worker["state"] != "idle"), key=lambda one: (order.get(one["state"], 2), one["slot"]))
    rows = []
    for worker in working[:MOST_WORKERS]:
        state = {"run": "waits for a run", "cookie": "waits for a cookie"}.get(worker["waits_for"], worker["state"])
        if worker["pool"].startswith("limit "):
            state = f"waits for {worker['pool'].rpartition(': ')[0]}"
        colour = {"busy": "green", "starting": "blue"}.get(state, "yellow")
        name = worker["name"] or (f"node {worker['node']}" if worker["node"] >= 0 else "")
        there = " ".join(part for part in (worker["place"], worker["ticket"], worker["why"]) if part)
        rows.append(
            [
                text(str(worker["pid"])),
                text(worker["kind"] if worker["kind"] != "process" else ""),
                text(state, style=colour),
                text(duration(worker["seconds"]) if worker["seconds"] else ""),
                text(f"{worker['done']:,}"),
                text(f"{worker['cpu_percent']:.0f} %" if worker["cpu_percent"] is not None else ""),
                text(size(worker["memory"]) if worker["memory"] is not None else ""),
                text("yes" if worker["cookie"] else ""),
                text(
                    name,
                    (f" ({worker['task']})" if worker["task"] not in ("", name) else "", "dim"),
                    (f" at {there}" if there else "", "dim"),
                ),
            ]
        )
    heads = ("pid", "kind", "state", "for", "done", "cpu", "memory", "cookie", "task")
    lines = table_lines(heads, rows, width - indent, right=(0, 3, 4, 5, 6), optional=(7, 4, 6, 1, 3)) if rows else []
    idle = len(workers) - len(working)
    more = [f"{len(working) - MOST_WORKERS} more"] if len(working) > MOST_WORKERS else []
    more += [f"{idle} idle"] if idle else []
    if more:
        lines.append(text(f"{'… ' if rows else ''}{', '.join(more)}", style="dim"))
    return _indented(lines, indent)


def _indented(lines: list[Text], columns: int) -> list[Text]:
    return [Text.assemble(" " * columns, line) for line in lines]
