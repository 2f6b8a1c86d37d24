"""`entangle runs`: the runs that are remembered, live ones among them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from entangle._records.rows import STATES
from entangle._shared.summaries import cut
from entangle.cli.exit_status import ABSENT, USAGE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import COLOURS, console, duration, moment, print_table, text

if TYPE_CHECKING:
    from rich.text import Text

    from entangle.records import Run

#: A name of more characters is cut, so that one line of a pipe stays readable.
_NAMED = 40
HEADS = ("run", "task", "state", "began", "took", "nodes", "undone", "what")


def runs(as_json: bool, limit: int, task: str | None, state: str | None) -> None:
    """List runs, the latest first. Raises Refused for an unknown state."""
    from entangle import records

    if state not in (None, *STATES):
        raise Refused(
            f"--state must be {', '.join(STATES[:-1])} or {STATES[-1]} (which is shown as {told('killed')}), not {state!r}", USAGE
        )
    found = records.runs(limit, name=task, state=state)
    if as_json:
        print_json([summary(run) for run in found])
        return
    if not found:
        said = "No run is remembered" + (" that fits." if task or state else f" in {records.place()}. Run something, then look again.")
        console().print(text(said), soft_wrap=True)
        return
    print_table(HEADS, [_row(run) for run in found], right=("took", "nodes", "undone"), optional=("undone", "began", "nodes", "took"))


def _row(run: Run) -> list[Text]:
    what = run.error.message.splitlines()[0] if run.error is not None and run.error.message else ""
    what = what or "  ".join(part for part in (went_on(run), *(f"{name}={value}" for name, value in run.tags.items())) if part)
    missing = run.node_count - run.done_count if run.done_count is not None and run.state == "failed" else 0
    return [
        text(run.id),
        text(cut(run.name, _NAMED)),
        text(told(run.state), style=COLOURS.get(run.state, "")),
        text(moment(run.started)),
        text(duration(time.time() - run.started) if run.state == "running" else duration(run.seconds)),
        text(f"{run.node_count:,}"),
        text(f"{missing:,}" if missing else ""),
        text(what),
    ]


def went_on(run: Run) -> str:
    """What a run that ended well has lost, as "10 failed, 3 skipped" or "2 items failed"; empty for
    any other."""
    if run.state != "done":
        return ""
    if run.stream:
        return f"{run.failed_count:,} item{'' if run.failed_count == 1 else 's'} failed" if run.failed_count else ""
    counts = ((run.failed_count, "failed"), (run.skipped_count, "skipped"))
    return ", ".join(f"{count:,} {state}" for count, state in counts if count)


def told(state: str) -> str:
    """A state of a run in words."""
    return "ended abruptly" if state == "killed" else state


def summary(run: Run) -> dict[str, Any]:
    """A run as the list shows it, as plain data."""
    return {
        "id": run.id,
        "name": run.name,
        "task": run.task,
        "state": run.state,
        "started": run.started,
        "seconds": run.seconds,
        "nodes": run.node_count,
        "done": run.done_count,
        "failed": run.failed_count,
        "skipped": run.skipped_count,
        "host": run.host,
        "pid": run.pid,
        "commit": run.git.commit if run.git else None,
        "tags": run.tags,
        "error": {"type": run.error.type, "message": run.error.message, "node": run.error.node} if run.error else None,
        "parent": run.parent_id,
    }


def run_called(name: str) -> Run:
    """A run by its id, by the beginning of its id, or `last`. Raises Refused where there is none,
    and RecordsError where the records cannot be read."""
    from entangle import records

    try:
        return records.run(name)
    except records.RecordsError as error:
        if error.__cause__ is not None:
            raise
        raise Refused(str(error), ABSENT) from None


def names() -> list[tuple[str, str]]:
    """Ids of runs, with a word on each, for a shell that completes."""
    from entangle import records

    return [(run.id, f"{run.name}, {told(run.state)}, {moment(run.started)}") for run in records.runs(30)]


def last_of_process(pid: int, since: float) -> str | None:
    """The id of the last run that this process has made since then; None where runs are not
    recorded."""
    from entangle import records
    from entangle._records.directory import recording

    if not recording():
        return None
    mine = [run for run in records.runs(20, since=since - 1) if run.pid == pid]
    return mine[0].id if mine else None


def database() -> str:
    """The path of the file in which runs are remembered."""
    from entangle import records
    from entangle._records.database import NAME

    return os.path.join(records.place(), NAME)
