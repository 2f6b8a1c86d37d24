"""What is remembered of runs: find them, walk through their graphs, draw them, ask what made a
value.

    from entangle import records

    run = records.run("last")
    for node in run.critical_path():
        print(node.name, node.seconds)

Every run is remembered unless ENTANGLE_RECORD=0 is set: in the nearest directory called `.entangle`
upward from where it was called, else in the user's state directory. ENTANGLE_RECORD_DIR names
another directory. Of a value, type, size, hash and a short text are remembered;
ENTANGLE_RECORD=values keeps it whole. What has the name of a secret, or looks like one, is masked.

More: docs/records.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from entangle._records.database import is_there
from entangle._records.directory import find_directory
from entangle._records.ingest import absorb_segments, ingest, take_segments
from entangle._records.reading import find_run, find_runs, to_be_forgotten
from entangle._records.retention import forget_run
from entangle._records.retention import retain as retain_in
from entangle._records.rows import STATES, Edge, Error, Git, Input, PlaceShare, Retirement, Times, Value
from entangle._records.rows import TaskRecord as Task
from entangle._records.views import NodeRecord as Node
from entangle._records.views import RunRecord as Run
from entangle._records.views import made as made_by
from entangle._records.views import record_of
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.option_values import check_strings, check_whether, is_number
from entangle.errors import GraphError, OptionError, RecordsError

__all__ = [
    "Edge",
    "Error",
    "Git",
    "GraphError",
    "Input",
    "Node",
    "PlaceShare",
    "RecordsError",
    "Retirement",
    "Run",
    "Task",
    "Times",
    "Value",
    "absorb",
    "clear_graph",
    "forget",
    "hash_of",
    "made",
    "place",
    "retain",
    "run",
    "runs",
    "send",
    "take_home",
]


@edge
def place() -> str:
    """The directory in which a run that is called here and now is remembered.

    It need not exist yet.

        print(records.place())
    """
    return find_directory()


@edge
def runs(
    limit: int | None = 100,
    *,
    name: str | None = None,
    state: str | None = None,
    tags: dict[str, Any] | None = None,
    since: float | datetime | None = None,
    nested: bool = False,
) -> list[Run]:
    """The runs that are remembered, the latest first, at most `limit` (None: all). Runs that are
    still running are among them.

    `name` is the task whose value a run gives, or the name that its call was given. `state` is
    done, failed, cancelled, killed or running. `tags` are tags that a run must have. `since` is a
    time (seconds since 1970, or a datetime). Runs that were called in the bodies of others are left
    out unless `nested`.

    Raises OptionError for bad options, and RecordsError where the records cannot be read.

        for run in records.runs(state="failed"):
            print(run.id, run.error.message)
    """
    if limit is not None and (type(limit) is not int or limit < 0):
        raise OptionError(f"runs: limit={value_in_short(limit)}; it must be a whole number from 0 up, or None for all")
    check_strings("runs", name=name)
    if state is not None and state not in STATES:
        raise OptionError(f"runs: state={value_in_short(state)}; choose one of {', '.join(STATES)}")
    if tags is not None and not isinstance(tags, dict):
        raise OptionError(f"runs: tags={value_in_short(tags)}; it must be a dict of names and values")
    when = since.timestamp() if isinstance(since, datetime) else since
    if when is not None and not is_number(when):
        raise OptionError(f"runs: since={value_in_short(since)}; it must be a datetime, or seconds since 1970")
    check_whether("runs", nested=nested)
    found = find_runs(find_directory(), limit=limit, name=name, state=state, tags=tags, since=when, nested=nested)
    return [record_of(row) for row in found]


@edge
def run(run_id: str = "last") -> Run:
    """A run by its id, or by the beginning of its id; `last` is the latest. Raises RecordsError
    where no run fits, or several do; OptionError for what is no string.

        print(records.run("last").to_mermaid())
    """
    _check_id("run", run_id)
    return record_of(find_run(find_directory(), run_id))


@edge
def hash_of(value: Any) -> str:
    """The hash by which a value is remembered: the SHA-256 of its pickle, in hex. Raises what
    pickling it raises.

        records.hash_of(42) == node.value.hash
    """
    import hashlib

    from entangle._shared.pickling import dumps

    return hashlib.sha256(dumps(value)).hexdigest()


@edge
def made(value_hash: str) -> list[Node]:
    """The nodes that made a value of this hash (hex), the latest first. Raises RecordsError for
    what is no hash.

        for node in records.made(records.hash_of(result)):
            print(node.run.id, node.name, [input.argument for input in node.inputs])
    """
    try:
        digest = bytes.fromhex(value_hash)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise RecordsError(f"{value_in_short(value_hash)} is not a SHA-256 in hex; records.hash_of(value) gives the hash of a value")
    directory = find_directory()
    ingest(directory)
    if not is_there(directory):
        return []
    return made_by(directory, digest)


@edge
def forget(run_id: str) -> None:
    """Remove a run, and the runs called in it, from the records. Raises RecordsError where there is
    no such run, or it is still running; OptionError for what is no string.

        records.forget(records.run("last").id)
    """
    _check_id("forget", run_id)
    directory = find_directory()
    forget_run(directory, to_be_forgotten(directory, run_id))


@edge
def retain(days: float | None = None, size: int | None = None) -> int:
    """Remove runs that are older than `days`, then the oldest until the file has at most `size`
    bytes. Gives how many were removed.

    The defaults are ENTANGLE_RECORD_DAYS (90) and ENTANGLE_RECORD_BYTES (1 GiB). With these it also
    happens by itself, at most once an hour. Raises OptionError for bad options.

        records.retain(days=7)
    """
    for name, value in (("days", days), ("size", size)):
        # Infinity keeps them for ever; NaN is below nothing.
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0):
            raise OptionError(f"retain: {name}={value_in_short(value)}; it must be a number from 0 up, or None for the usual")
    return retain_in(find_directory(), days, size)


@edge
def send(address: str | None = None, run_ids: list[str] | None = None, everything: bool = False) -> int:
    """Send runs to a Gremlin server (`ws://…`, `wss://…`; None: ENTANGLE_GRAPH). Gives how many
    were sent.

    Without `run_ids`, sends the runs that were meant for that server and are not there yet; with
    `everything`, all runs that are not there yet. Sending a run again changes nothing. Needs
    gremlinpython (`pip install 'py-entangle[graph]'`).

    Raises GraphError where the server fails, and OptionError for bad options.

        records.send("ws://localhost:8182/gremlin", everything=True)
    """
    import os

    from entangle._records.gremlin import send as send_to

    if address is not None:
        _check_address("send", address)
    if run_ids is not None:
        _check_ids("send", run_ids)
    check_whether("send", everything=everything)
    return send_to(find_directory(), address or os.environ.get("ENTANGLE_GRAPH", ""), run_ids, everything)


@edge
def clear_graph(address: str) -> None:
    """Remove everything that any entangle has ever sent to that Gremlin server. Raises GraphError
    where the server fails, and OptionError for what is no address.

        records.clear_graph("ws://localhost:8182/gremlin")
    """
    from entangle._records.gremlin import clear

    _check_address("clear_graph", address)
    clear(address)


@edge
def take_home(run_ids: list[str]) -> list[bytes]:
    """The log segments of runs of this machine that are over and not ingested yet. They are removed
    here: whoever absorbs them has the records then. Raises OptionError for what is no list.

        channel.send(records.take_home([run.id]))
    """
    _check_ids("take_home", run_ids)
    return take_segments(find_directory(), run_ids)


@edge
def absorb(sheets: list[bytes], parent: tuple[str, int] | None = None) -> list[str]:
    """Remember runs that took place elsewhere. `sheets` are their log segments, as `take_home` gave
    them; `parent` is the run and the node that called them. Gives their ids. A run that is
    remembered already stays as it is. Raises RecordsError for what is no log segment.

        records.absorb(channel.receive(), parent=(run_id, node))
    """
    return absorb_segments(find_directory(), sheets, parent)


def _check_id(where: str, run_id: object) -> None:
    if not isinstance(run_id, str):
        raise OptionError(f"{where}({value_in_short(run_id)}): a run is named by its id, a string; records.runs() gives runs")


def _check_ids(where: str, run_ids: object) -> None:
    if isinstance(run_ids, str) or not isinstance(run_ids, Iterable):
        raise OptionError(f"{where}: run_ids={value_in_short(run_ids)}; it must be a list of ids")


def _check_address(where: str, address: object) -> None:
    if not isinstance(address, str):
        raise OptionError(f"{where}: address={value_in_short(address)}; it must be a string such as 'ws://localhost:8182/gremlin'")
