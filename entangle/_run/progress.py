"""Progress of a run on a terminal: done, running, waiting, failed, and the time left.

It is read from the table, so it costs the run nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from entangle._run import ObservedRun, observers
from entangle._shared.table import BEGUN, DONE, FAILED, FAILED_NODE, RUNNING, SLOT, Table
from entangle.errors import EntangleError

#: Runs shorter than this (seconds) show nothing.
SILENT = 1.0
#: Seconds between two looks at the table.
EVERY = 0.1


def counts(table: Table) -> tuple[int, int, int, int]:
    """How many nodes of a run are done, running, waiting and failed now."""
    slots = table.slots
    done = table.done()
    running = sum(bool(slots[base + BEGUN]) for base in range(SLOT, table.slot_count * SLOT, SLOT))
    failed = int(table.header[FAILED_NODE] >= 0)
    return done, running, max(0, table.nodes - done - running - failed), failed


def final_counts(run: ObservedRun, table: Table) -> tuple[int, dict[str, int]]:
    """How many nodes of a run that has ended are done, and what became of the others.

    Only the states are read: slots may still show bodies of workers that were killed.
    """
    # Nodes of a rearmed run are done many times; their states are those of the last round.
    if run.flow.rearmed:
        return table.done(), {"failed": int(table.header[FAILED_NODE] >= 0)}
    states = bytes(table.states)
    done, failed, stopped = (states.count(state) for state in (DONE, FAILED, RUNNING))
    return done, {"failed": failed, "stopped": stopped, "not run": len(states) - done - failed - stopped}


class Bar:
    """An observer that draws a progress bar for one run."""

    def __init__(self) -> None:
        self._began = 0.0
        self._last = 0.0
        self._live: Any = None
        self._task: Any = None

    def started(self, run: ObservedRun) -> None:
        """Note the time; nothing is shown yet."""
        self._began = time.monotonic()

    def looked(self, run: ObservedRun) -> None:
        """Draw, if it is time and stderr is a terminal."""
        now = time.monotonic()
        if now - self._began < SILENT or now - self._last < EVERY or run.table is None:
            return
        self._last = now
        if self._live is None:
            if not sys.stderr.isatty():
                return
            self._open(run.table.nodes)
        self._draw(run.table)

    def ended(self, run: ObservedRun) -> None:
        """Draw the end of the run, and leave the bar there."""
        live, table = self._live, run.table
        self._live = None
        if live is None:
            return
        with contextlib.suppress(OSError):  # the terminal may be gone
            if table is not None:
                done, ends = final_counts(run, table)
                rest = f"{done} done, 0 running, 0 waiting" + _in_red(ends.pop("failed"))
                rest += "".join(f", {count} {end}" for end, count in ends.items() if count)
                live.update(self._task, completed=done, rest=rest)
            live.stop()

    def _open(self, nodes: int) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            raise EntangleError("showing progress needs rich: pip install 'py-entangle[progress]'") from None
        # We refresh it ourselves: rich's thread would make a fork of this process unsafe.
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rest]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._live.add_task("entangle", total=nodes, rest="")
        self._live.start()

    def _draw(self, table: Table) -> None:
        done, running, waiting, failed = counts(table)
        rest = f"{done} done, {running} running, {waiting} waiting" + _in_red(failed)
        with contextlib.suppress(OSError):
            self._live.update(self._task, completed=done, rest=rest)
            self._live.refresh()


def _in_red(failed: int) -> str:
    return f", [red]{failed} failed[/red]" if failed else ""


class _EveryRun:
    """An observer that draws a bar for each run of a block that is not nested."""

    def __init__(self) -> None:
        self._bars: dict[str, Bar] = {}

    def started(self, run: ObservedRun) -> None:
        if run.nested:
            return
        bar = self._bars[run.id] = Bar()
        bar.started(run)

    def looked(self, run: ObservedRun) -> None:
        if run.id in self._bars:
            self._bars[run.id].looked(run)

    def ended(self, run: ObservedRun) -> None:
        bar = self._bars.pop(run.id, None)
        if bar is not None:
            bar.ended(run)


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """Show the progress of every run of the block."""
    observer = _EveryRun()
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
