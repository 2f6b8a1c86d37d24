"""`entangle top`: the runs of this machine, read from their tables."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from entangle._watch.live_runs import LiveRun, cookies, live_homes, live_runs, pid_of_home
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, duration, size, text

#: The most workers that are shown of one run.
MOST_WORKERS = 16
#: The most runs that are shown, the outermost first.
MOST_RUNS = 12


def top(as_json: bool, every: float, looks: int) -> None:
    """Look again and again, or once where the output is no terminal. Ctrl-C or q ends it."""
    eye = Eye()
    if as_json:
        for _ in _times(every, looks or 1):
            print_json(eye.look())
        return
    out = console()
    if not out.is_terminal or looks == 1:
        eye.look()
        time.sleep(min(every, 0.2))  # CPU use is a difference between two looks
        out.print(picture(eye.look()))
        return
    with _keys() as pressed, Live(console=out, auto_refresh=False, screen=not looks) as live:
        for _ in _times(every, looks, pressed):
            live.update(picture(eye.look()), refresh=True)


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


class Eye:
    """Looks at the machine. CPU use is the difference between two looks, so the first has none."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def look(self) -> dict[str, Any]:
        """What runs now, as plain data: runs with their workers, cookies, the load of the machine.
        CPU use is in percent of one CPU."""
        runs: list[dict[str, Any]] = []
        seen: set[int] = set()
        for run in live_runs():
            with run:
                runs.append(self._run(run))
                seen.update(worker["pid"] for worker in runs[-1]["workers"])
        self._processes = {pid: process for pid, process in self._processes.items() if pid in seen}
        return {
            "time": time.time(),
            "cpus": psutil.cpu_count(),
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "cookies": {str(pid_of_home(home)): cookies(home) for home in live_homes()},
            "runs": runs,
        }

    def _run(self, run: LiveRun) -> dict[str, Any]:
        done, running, waiting, failed = run.counts()
        outline = run.outline
        pids = set()
        workers = []
        for worker in run.workers():
            cpu, memory = self._use(worker.pid) if worker.pid not in pids else (None, None)
            pids.add(worker.pid)
            workers.append({**vars(worker), "cpu_percent": cpu, "memory": memory})
        return {
            "run": run.id,
            "outer": run.outer,
            "pid": run.pid,
            "command": " ".join(outline.about["command"]) if outline else "",
            "task": run.name(run.table.nodes - 1),
            "seconds": run.seconds,
            "nodes": run.table.nodes,
            "done": done,
            "running": running,
            "waiting": waiting,
            "failed": failed,
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


def picture(look: dict[str, Any]) -> Group:
    """A look, for people."""
    free = "  ".join(
        f"{pid}: " + ", ".join(f"{name} {count}" for name, count in queues.items()) for pid, queues in look["cookies"].items() if queues
    )
    head = text(
        ("entangle top", "bold"),
        f"   {time.strftime('%H:%M:%S', time.localtime(look['time']))}   {look['cpus']} CPUs at {look['cpu_percent']:.0f} %",
        f"   memory {look['memory_percent']:.0f} %",
        f"   free cookies {free}" if free else "",
    )
    parts: list[Any] = [head]
    if not look["runs"]:
        parts += ["", text("Nothing runs. What ran: entangle runs", style="dim")]
    for run in look["runs"][:MOST_RUNS]:
        parts += ["", _title(run), _workers(run["workers"])]
    left = len(look["runs"]) - MOST_RUNS
    if left > 0:
        parts += ["", text(f"… and {left} more runs", style="dim")]
    return Group(*parts)


def _title(run: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 1))
    name = text(
        "  ↳ " if run["outer"] else "",
        (run["task"] or "a run", "bold cyan"),
        f"  {run['run']}",
        (f"  pid {run['pid']}" if run["pid"] else "", "dim"),
        (f"  {run['command']}" if run["command"] and not run["outer"] else "", "dim"),
    )
    numbers = f"{run['done']:,} of {run['nodes']:,} done, {run['running']:,} running, {run['waiting']:,} waiting"
    tail = text(numbers, (f", {run['failed']} failed" if run["failed"] else "", "red"), f"   {duration(run['seconds'])}")
    grid.add_row(name)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(1, run["nodes"]), completed=run["done"], width=24), tail)
    grid.add_row(bar)
    return grid


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("pid", justify="right")
    for name in ("kind", "state", "task"):
        table.add_column(name)
    for name in ("for", "done", "cpu", "memory"):
        table.add_column(name, justify="right")
    table.add_column("cookie")
    order = {"busy": 0, "starting": 1, "idle": 2}
    shown = sorted(workers, key=lambda worker: (order.get(worker["state"], 3), worker["slot"]))
    for worker in shown[:MOST_WORKERS]:
        state = {"run": "waits for a run", "cookie": "waits for a cookie"}.get(worker["waits_for"], worker["state"])
        colour = {"busy": "green", "idle": "dim", "starting": "blue"}.get(state, "yellow")
        table.add_row(
            str(worker["pid"]),
            worker["kind"],
            text(state, style=colour),
            text(worker["task"] or (f"node {worker['node']}" if worker["node"] >= 0 else "")),
            duration(worker["seconds"]) if worker["seconds"] else "",
            f"{worker['done']:,}",
            f"{worker['cpu_percent']:.0f} %" if worker["cpu_percent"] is not None else "",
            size(worker["memory"]) if worker["memory"] is not None else "",
            "yes" if worker["cookie"] else "",
        )
    if len(shown) > MOST_WORKERS:
        table.add_row("", "", f"… {len(shown) - MOST_WORKERS} more")
    return table
