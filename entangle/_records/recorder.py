"""The recorder: an observer that writes a log segment for every run.

It costs a run some writes to a file: a head when the run begins, a tail when it ends. Both are
mostly columns, copied as they are. Of a small run in a session, the head is written while its
worker begins. Whatever takes longer is done when a user looks. No failure in here reaches a run: it
is logged once, and the run has no record.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import weakref
from array import array
from collections.abc import Iterable
from typing import Any

from entangle._records import commit, surroundings, tags
from entangle._records import task_versions as tasks
from entangle._records.directory import find_directory, make_directory, recording, segments_of, whole_values
from entangle._records.load import Load
from entangle._records.log_segment import CANCELLED, FORM, Writer
from entangle._run import ObservedRun
from entangle._run.history import History
from entangle._shared import notes, printout
from entangle._shared.frame import LINK
from entangle._shared.kept_calls import FOLDER
from entangle._shared.masks import MASK, cleaned, is_secret, masked, masked_text, name_of, suspicious
from entangle._shared.missing_lines import with_lines
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, in_record
from entangle._shared.summaries import cut, home_of
from entangle._shared.table import BUSY, DONE, FAILED, FAILED_NODE, FINISHED, IN_RECORD, NOTING, RECORD, SLOT, STARTED_AT, STATE, Table
from entangle._shared.tracebacks import hide
from entangle._tasks import gremlin_address
from entangle._tasks.parameters import code_of
from entangle._worker import failures
from entangle.errors import GraphError, ProcessRetryException
from entangle.flow import AWAY, Body, Flow

#: The share of a long run's time that ingesting may take when the run has ended.
SHARE = 0.02
#: How many bytes of log segments are ingested in a second, by a cautious guess.
PACE = 5 << 20
#: How many log segments may wait to be ingested before a short run, now and then, does it.
MANY = 500
#: The most characters of the name of a call.
LONGEST_NAME = 300

#: A record names at most this many calls whose values were taken from a depot before the run.
_MOST_TAKEN = 1000

#: Heads are kept for this many plans.
_MOST_SAID = 64

#: The type of the error of a node whose attempts are used up.
USED_UP = f"{ProcessRetryException.__module__}.{ProcessRetryException.__qualname__}"

_warned = False


def complain(error: Exception) -> None:
    """Log once in a process that runs are not recorded, and why."""
    global _warned
    if not _warned:
        _warned = True
        with contextlib.suppress(Exception):  # importing it needs a descriptor
            import logging

            logging.getLogger("entangle").warning("runs are not recorded: %s: %s", type(error).__name__, error)


class Recorder:
    """Writes a log segment for every run of this process."""

    def __init__(self) -> None:
        self._segments: dict[str, tuple[Writer, str | None]] = {}
        self._loads: dict[str, Load] = {}
        #: What heads say of runs with these plans, after what else it depends on.
        self._said: dict[Flow, tuple[tuple[Any, ...], dict[str, str], str]] = {}
        #: Runs that have begun, and whose heads are not made yet.
        self._headless: set[str] = set()

    def started(self, run: ObservedRun) -> None:
        """Write the head of the run's log segment."""
        try:
            self._begin(run)
        except Exception as error:
            writer, _ = self._segments.pop(run.id, (None, None))
            if writer is not None:
                writer.discard()  # a tail without a head is no record
            complain(error)

    def looked(self, run: ObservedRun) -> None:
        """Note the run's CPU and memory now and then. All else is read when it has ended."""
        if self._headless:
            self._catch_up(run)
        load = self._loads.get(run.id)
        if load is not None and not run.brief:
            load.look(run)

    def _catch_up(self, run: ObservedRun) -> None:
        """Write the head of a run whose worker has been told to begin meanwhile."""
        writer, _ = self._segments.get(run.id, (None, None))
        if writer is None or run.id not in self._headless:
            return
        try:
            self._describe(run, writer)
            writer.begin()
        except Exception as error:
            del self._segments[run.id]
            writer.discard()
            complain(error)

    def ended(self, run: ObservedRun) -> None:
        """Write what became of the run."""
        if self._headless:
            self._catch_up(run)
        writer, root = self._segments.pop(run.id, (None, None))
        load = self._loads.pop(run.id, None)
        if writer is None:
            return
        self._keep_tasks(run)
        if (error := run.reason()) is not None:
            self._say_how_to_replay(run, error, writer)
        assert run.table is not None
        if run.table.header[NOTING] == notes.WHOLE:
            self._bound_kept_calls(writer)
        try:
            _write_tail(run, writer, root, load.samples if load is not None else [])
        except Exception as error:
            writer.discard()
            complain(error)
        finally:
            writer.close()
        if run.parent is None:
            try:
                _follow_up(run, os.path.dirname(os.path.dirname(writer.path)))
            except Exception as error:
                complain(error)

    def _keep_tasks(self, run: ObservedRun) -> None:
        """Keep the tasks of the calls that workers have kept."""
        with contextlib.suppress(Exception):  # importing it needs a descriptor
            assert run.table is not None
            assert run.site is not None
            whole = run.table.header[NOTING] == notes.WHOLE
            if whole or FAILED in bytes(run.table.states):
                from entangle._worker.keeping import keep_tasks  # not at the top: few runs need it

                keep_tasks(run.site, whole)

    def _say_how_to_replay(self, run: ObservedRun, error: BaseException, writer: Writer) -> None:
        """Add the command to an error that runs the failed call again, if the call was kept."""
        assert run.table is not None
        node = _failed_node(run.table)
        if node >= 0:
            from entangle._records import kept

            kept.add_command(error, os.path.dirname(os.path.dirname(writer.path)), run.id, node)

    def _bound_kept_calls(self, writer: Writer) -> None:
        from entangle._records import kept

        try:
            kept.trim(os.path.dirname(os.path.dirname(writer.path)))
        except Exception as error:
            complain(error)

    def destination_of(self, run: ObservedRun) -> tuple[str, bool] | None:
        """Where the log segment of a run goes, and whether values are kept whole; None for no
        record."""
        found = destination_of(run)
        if found is not None:
            _make_room_for_calls(found[0])
        return found

    def _begin(self, run: ObservedRun) -> None:
        assert run.table is not None
        assert run.site is not None
        found = self.destination_of(run)
        if found is None:
            return
        folder, whole = found
        site = run.site
        if site.directory and (site.frame is None or site.frame.link != folder):
            _say_where(site.directory, folder)
            if site.frame is not None:
                site.frame.link = folder
        writer = Writer(folder, run.id)
        if not run.brief:
            writer.begin()
        self._segments[run.id] = writer, None
        site.record = writer.path
        self._loads[run.id] = Load(run)
        # A stream may be endless, and so would be the notes of its values.
        run.table.header[NOTING] = notes.QUIET if run.flow.rearmed else notes.WHOLE if whole else notes.SHORT
        if run.brief:
            self._headless.add(run.id)
        else:
            self._describe(run, writer)

    def _describe(self, run: ObservedRun, writer: Writer) -> None:
        """Make the head of a segment."""
        assert run.table is not None
        self._headless.discard(run.id)
        # Of a rearmed run, its stages are remembered: its rows are used again and again.
        flow = run.history.flow() if run.history is not None else run.flow
        bodies = [tasks.described(body) for body in flow.bodies]
        root = None
        if not run.nested:
            root = _repository(flow.bodies)
            if root is not None:
                commit.ask(root)
                self._segments[run.id] = writer, root
        place, packages = surroundings.place(), {} if run.nested else surroundings.packages()
        git = commit.described(root) if root is not None else None
        parent, tagged = _parent_of(run), run.context.get(tags.current, None) or {}
        says = parent, run.way, place["pid"], _working_directory(), tagged, _server_of(flow.bodies), git
        # A program calls one task again and again.
        plan = flow.plan or flow.pattern
        known = self._said.get(plan) if plan is not None else None
        if known is not None and known[0] == says and known[1] is packages:
            said = known[2]
        else:
            head = {
                "form": FORM,
                "parent": parent,
                "name": cut(masked(run.name), LONGEST_NAME),
                "way": run.way,
                "place": place,
                "host": place["host"],
                "pid": os.getpid(),
                "cwd": says[3],
                "tags": cleaned(tagged),
                "graph": says[5],
                "packages": packages,
                "git": git,
                "labels": _labels(flow),
                **_names(flow),
            }
            said = f'{json.dumps(head, default=masked_text)[1:-1]}, "bodies": [{", ".join(bodies)}]'
            if plan is not None:
                if len(self._said) >= _MOST_SAID:
                    self._said.clear()
                self._said[plan] = says, packages, said
        clock = run.table.header[STARTED_AT]
        line = f'{{"id": "{run.id}", "began": {time.time_ns() - (time.monotonic_ns() - clock)}, "clock": {clock}, {said}'
        writer.write(line, (flow.body_of, flow.shape_of, flow.starts, flow.inputs))


def _follow_up(run: ObservedRun, place: str) -> None:
    """Send the run to its Gremlin server, if it has one; else ingest log segments, where that costs
    next to nothing."""
    graph = _graph_of(run.flow.bodies)
    if graph is not None:
        from entangle._records.courier import deliver

        deliver(place, graph)
        return
    assert run.table is not None
    lasted = (time.monotonic_ns() - run.table.header[STARTED_AT]) / 1e9
    worth_it = lasted * SHARE > 0.05 + run.flow.count * 20e-6
    # A program that calls only short runs, and never looks, would pile up segments: one run in 256
    # checks.
    if worth_it or (run.id.endswith("00") and len(os.listdir(segments_of(place))) > MANY):
        from entangle._records.ingest import ingest

        seconds = max(0.5, lasted * SHARE)
        # Another program's large run is for whoever looks at records: this caller wants its value.
        ingest(place, seconds, largest=int(seconds * PACE))


def _parent_of(run: ObservedRun) -> tuple[str, int] | None:
    """The run and the node in whose body this run was called; of a rearmed run, the stage."""
    if run.parent is None:
        return None
    from entangle._worker.worker import here

    outer, node = run.parent
    flow = here.worker.site.flow if here.worker is not None else None
    if flow is not None and 0 <= node < len(flow.stage_of):
        node = max(0, flow.stage_of[node])
    return outer, node


def _names(flow: Flow) -> dict[str, Any]:
    """The names that calls were given, by node; the task of the run, where its call has one."""
    if not flow.names:
        return {}
    found: dict[str, Any] = {"names": {str(node): cut(masked(name), LONGEST_NAME) for node, name in flow.names.items()}}
    if flow.sinks and flow.sinks[0] in flow.names:
        found["task"] = flow.body(flow.sinks[0]).name
    return found


def _labels(flow: Flow) -> dict[str, list[tasks.Label]]:
    """For each pair of a body and a shape: the names of the flat inputs of its nodes."""
    return {
        f"{body} {shape}": tasks.arguments_of(tasks.parameters_of(flow.bodies[body]), flow.shapes[shape]) for body, shape in flow.pairs()
    }


def destination_of(run: ObservedRun) -> tuple[str, bool] | None:
    """Where the log segment of a run goes, and whether values are kept whole; None for no
    record."""
    if run.nested:
        from entangle._worker.worker import here

        assert here.worker is not None
        outer = here.worker.site
        mode = outer.table.header[NOTING]
        if not mode:
            return None
        try:
            with open(os.path.join(outer.directory, LINK), "rb", buffering=0) as file:
                return os.fsdecode(file.read()), mode == notes.WHOLE
        except OSError:
            return None
    if not recording():
        return None
    return make_directory(find_directory()), whole_values()


@functools.lru_cache(maxsize=64)
def _make_room_for_calls(segments: str) -> None:
    """Make the directory of kept calls: without it, none is kept."""
    with contextlib.suppress(OSError):  # what is wrong there is told with the records of runs
        os.makedirs(os.path.join(os.path.dirname(segments), FOLDER), mode=0o700, exist_ok=True)


def _say_where(directory: str, folder: str) -> None:
    """Tell nested runs where log segments go: their processes may have another working directory or
    environment."""
    path = os.path.join(directory, LINK)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # in a frame, that of an earlier run
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, os.fsencode(folder))
    finally:
        os.close(fd)


def _repository(bodies: list[Body]) -> str | None:
    """The working tree of the run's code; where that has none, of the working directory."""
    for body in reversed(bodies):
        task = getattr(body, "task", None)
        code = code_of(task.function) if task is not None else None
        if code is not None and os.path.isabs(code.co_filename) and "site-packages" not in code.co_filename:
            found = commit.repository(os.path.dirname(code.co_filename))
            if found is not None:
                return found
    where = _working_directory()
    return commit.repository(where) if where else None


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _graph_of(bodies: list[Body]) -> str | None:
    """The Gremlin server that this run is meant for."""
    for body in bodies:
        task = getattr(body, "task", None)
        for layer in task.layers if task is not None else ():
            graph = getattr(layer, "graph", None)
            if isinstance(graph, str):
                return graph
    return os.environ.get("ENTANGLE_GRAPH") or None


def _server_of(bodies: list[Body]) -> str | None:
    """The name of that server in records; None where its address is wrong, which is reported when
    the run is to be sent."""
    graph = _graph_of(bodies)
    try:
        return gremlin_address.name_of(graph) if graph is not None else None
    except GraphError:
        return None


def _write_tail(run: ObservedRun, writer: Writer, root: str | None, load: list[Any]) -> None:
    table, site = run.table, run.site
    assert table is not None
    assert site is not None
    ended = time.monotonic_ns()
    if run.flow.count > 1:
        _await_notes(table)  # one node's are there before its value
    nodes, values, extras, places = notes.gather(site.directory, site.noted, notes.memory_of(site))
    extras, looked_up = _looked_up_among(extras)
    flow = run.flow
    noted = _failures_among(nodes, values) if FAILED in bytes(table.states) else {}
    constants, outputs = _secret_inputs(flow)
    _hide_outputs(flow, nodes, values, outputs)
    records = _without_hidden(flow, table, nodes, values, outputs)
    secrets = [constant for constant in (flow.constants[index] for index in constants) if type(constant) is str]
    tail: dict[str, Any] = {
        "ended": ended,
        "workers": run.workers_started,
        "error": _unquoted(_error_of(run, table), secrets),
        "tries": _unquoted(_tries(site, table), secrets),
        "dirty": commit.hear(root) if root is not None else None,
        "extras": extras,
        "nodes": nodes,
        "values": _without_secrets(values),
        "constants": _constants(run, flow, constants),
        "load": load,
    }
    if looked_up:
        tail["looked_up"] = looked_up
    if run.taken:
        tail["taken"] = [[masked(task), int(made * 1e9), key[: notes.SHOWN]] for task, key, made in run.taken[:_MOST_TAKEN]]
        tail["taken_count"] = len(run.taken)
    if places:
        tail["places"] = [masked(word) if type(word) is str else word for word in places]
    if printed := printout.gather(site.directory) if site.directory else site.printed:
        tail["prints"] = _printed(run, printed, outputs, secrets)
    columns: tuple[Any, ...] = (table.ready_at, records, table.states, table.attempts)
    if isinstance(tail["constants"], array):
        columns = *columns, tail["constants"]
        tail["constants"] = tail["constants"].typecode
    if run.history is not None:
        tail["stream"] = run.how_far()
        for number, stage in enumerate(tail["stream"]["stages"]):
            if "place" in stage:
                stage["place"] = masked(stage["place"])
                tail.setdefault("places", []).extend((number, stage["place"], "", 0))
        # A stage may have failed with an item that was skipped, before somebody stopped the run.
        ending = tail["error"]
        failed = ending is not None and not ending["type"].endswith(CANCELLED) and run.history.latest >= 0
        columns = run.history.columns(failed, tail["error"] is None)
        if failed:
            tail["error"]["node"] = run.history.latest
        lost = _failed_stages(run.history, tail["error"])
    else:
        lost = _failed(run, table, noted, tail["error"])
    if lost:
        tail["failures"] = _unquoted(lost, secrets)
    line = _encode(tail)[:-1]
    writer.write(line, columns)


def _looked_up_among(extras: list[int]) -> tuple[list[int], list[int]]:
    """The extras without what was looked up in a depot; and that, in threes: the node, when its
    value was made, the start of its key."""
    if notes.MADE not in extras[1::3]:
        return extras, []
    others: list[int] = []
    made: dict[int, int] = {}
    keys: dict[int, int] = {}
    for node, what, much in zip(extras[::3], extras[1::3], extras[2::3], strict=True):
        if what == notes.MADE:
            made[node] = much
        elif what == notes.KEY:
            keys[node] = much
        else:
            others += (node, what, much)
    return others, [part for node, at in made.items() for part in (node, at, keys.get(node, 0))]


def _failures_among(nodes: list[int], values: list[Any]) -> dict[int, list[str]]:
    """Take the failures out of the notes of values."""
    found = {node: value for node, value in zip(nodes, values, strict=True) if type(value) is list}
    if found:
        kept = [(node, value) for node, value in zip(nodes, values, strict=True) if type(value) is not list]
        nodes[:], values[:] = [node for node, _ in kept], [value for _, value in kept]
    return found


def _failed(run: ObservedRun, table: Table, noted: dict[int, list[str]], ending: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Why nodes failed that have not ended the run, whose error is `ending`."""
    site, flow = run.site, run.flow
    assert site is not None
    told = []
    states = bytes(table.states)
    node = states.find(FAILED)
    while node >= 0:
        failure = noted.get(node)
        if failure is None and node in site.errors:  # a thread's, or that of a process that is gone
            report = failures.describe(site.errors[node], flow.name(node), table.attempts[node] + 1, site.failed.get(node, ""))
            failure = [report["type"], report["message"], report["text"], report["call"], ""]
        elif failure is None and site.stores:  # its worker has not written its notes yet
            offset, size, place = table.record(node)[2:5]
            report = site.stores[0].get((place, offset, size)) if place != NOWHERE else {}
            if "type" in report:
                failure = [report[part] for part in ("type", "message", "text", "call", "where")]
        if failure is not None and (ending is None or ending["node"] != node):
            kind, message, text, call, where = failure
            body, attempts = flow.body(node), table.attempts[node] + 1
            if body.retry and attempts > body.retry:
                message = failures.text_of_used_up(flow.name(node), attempts, kind.rpartition(".")[2], message)
                kind = USED_UP
            about = [*failures.notes_of_call(flow, node, call), *([where] if where else [])]
            told.append(_told(kind, message, text, about, node, notes.LONGEST_TEXT // 2))
        node = states.find(FAILED, node + 1)
    return told


def _failed_stages(history: History, ending: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Why stages failed with items: of each, the first of its failures. Not of the one that has
    ended the run, whose error is `ending`."""
    ended = ending["node"] if ending is not None else None
    return [_described(failure.error(), stage) for stage, failure in history.failures.items() if stage != ended]


def _described(error: BaseException, node: int | None) -> dict[str, Any]:
    cause = getattr(error.__cause__, "text", None)
    if cause is None:
        import traceback

        hide(error)
        cause = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return _told(failures.name_of_type(error), failures.text_of(error), cause, getattr(error, "__notes__", []), node)


def _told(kind: str, message: str, text: str, about: Iterable[object], node: int | None, most: int = 100_000) -> dict[str, Any]:
    return {
        "type": kind,
        # Mask before cutting: half of a secret is not recognised.
        "message": masked(message[:20_000])[:10_000],
        "traceback": masked(with_lines(text[-2 * most :]))[-most:],
        "notes": [masked(str(note)[:20_000])[:10_000] for note in about],
        "node": node,
    }


#: Secret arguments with fewer characters stay in texts that quote them: they occur in any text.
_SHORTEST = 6


def _unquoted(told: Any, secrets: list[str]) -> Any:
    """What is said of an error, with the secret arguments masked that it may quote, as `raise
    LoginError(password)` does."""
    if type(told) is str:
        for secret in secrets:
            if len(secret) >= _SHORTEST:
                told = told.replace(secret, MASK)
        return told
    if type(told) is dict:
        return {key: _unquoted(value, secrets) for key, value in told.items()} if secrets else told
    if type(told) in (list, tuple):
        return [_unquoted(value, secrets) for value in told] if secrets else told
    return told


def _await_notes(table: Table) -> None:
    """Wait a moment for workers that have just delivered their last value: they are writing their
    notes."""
    if not table.header[FINISHED]:
        return
    until = time.monotonic() + 0.02
    states = range(SLOT + STATE, table.slot_count * SLOT, SLOT)
    while any(table.slots[at] == BUSY for at in states) and time.monotonic() < until:
        time.sleep(0)


def _bytes_as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else masked_text(value)


_encode = json.JSONEncoder(default=_bytes_as_text).encode


def _without_secrets(values: list[Any]) -> list[Any]:
    """The noted values; of texts that look like a secret, only a description."""
    if any(type(value) is str for value in values) and suspicious("\n".join([value for value in values if type(value) is str])):
        return [notes.describe(value) if type(value) is str and masked(value) != value else value for value in values]
    return values


def _printed(run: ObservedRun, printed: dict[int, str], outputs: set[int], secrets: list[str]) -> dict[int, str]:
    """What bodies have printed, with secrets masked; nothing of one whose value is a secret by its
    name or by that of the parameter that takes it."""
    flow = run.flow
    known = {node: text for node, text in printed.items() if 0 <= node < flow.count}
    hidden = outputs | {node for node in known if is_secret(flow.body(node).name)}
    return {node: MASK if node in hidden else _unquoted(masked(text), secrets) for node, text in known.items()}


def _hidden(value: Any) -> notes.Described:
    kind = value[0] if type(value) is tuple and value and type(value[0]) is str else type(value).__name__
    return kind, None, None, MASK, None


def _hide_outputs(flow: Flow, nodes: list[int], values: list[Any], outputs: set[int]) -> None:
    """Mask the values of tasks that are named like a secret, and those that a parameter takes which
    is named like one."""
    secret = {index for index, body in enumerate(flow.bodies) if is_secret(body.name)}
    if secret or outputs:
        for index, node in enumerate(nodes):
            if flow.body_of[node] in secret or node in outputs:
                values[index] = _hidden(values[index])


def _without_hidden(flow: Flow, table: Table, nodes: list[int], values: list[Any], outputs: set[int]) -> Any:
    """The records, without the values in them that `_hide_outputs` would mask: those are noted."""
    secret = {index for index, body in enumerate(flow.bodies) if is_secret(body.name)}
    if not secret and not outputs:
        return table.records
    records = bytearray(table.records)
    for node, place in enumerate(table.places):
        if place == IN_RECORD and table.states[node] == DONE and (flow.body_of[node] in secret or node in outputs):
            nodes.append(node)
            values.append(_hidden(in_record(table.numbers[node], table.kinds[node])))
            began, ended, _, _, _, *others = table.record(node)
            RECORD.pack_into(records, node * RECORD.size, began, ended, 0, 0, NOWHERE, *others)
    return records


def _constants(run: ObservedRun, flow: Flow, hidden: set[int]) -> list[Any] | array[int]:
    """The constants of the flow, as values are noted; those in `hidden` are masked. Small numbers
    as an array."""
    if not hidden and (small := flow.constants_in_short or _all_small(flow.constants)) is not None:
        return small
    assert run.table is not None
    now = time.monotonic_ns()
    until = now + max(notes.ALLOWANCE, (now - run.table.header[STARTED_AT]) // notes.SHARE)
    mode = run.table.header[NOTING]
    known: dict[int, Any] = {}
    told: list[Any] = []
    plain = notes.plain
    for index, constant in enumerate(flow.constants):
        if index in hidden:
            told.append(_hidden(constant))
        elif plain(constant):
            told.append(constant)
        else:
            found = known.get(id(constant))
            if found is None and (mode == notes.WHOLE or time.monotonic_ns() < until):
                found = known[id(constant)] = notes.describe(constant, _pickle_of(constant), mode == notes.WHOLE)
            told.append(found or (notes.named(type(constant)),))
    return _without_secrets(told)


def _all_small(constants: list[Any]) -> list[Any] | array[int] | None:
    """The constants, if all are numbers that are noted as they are. Hardly takes any time."""
    # By identity: a metaclass may define what its classes are equal to.
    kinds = set(map(id, map(type, constants)))
    if kinds == {id(int)}:
        try:
            return array("q", constants)
        except OverflowError:
            return None
    return constants if kinds <= {id(float), id(bool), id(type(None))} else None


def _pickle_of(value: Any) -> bytes | None:
    """The pickle of a small value that can be pickled without running code of its class; None for
    all other values."""
    kind = type(value)
    if kind is str or kind is bytes:
        cheap = len(value) <= notes.HASHED
    elif kind is list or kind is tuple:
        cheap = len(value) <= 100 and all(map(notes.plain, value))
    elif home_of(kind) == ("numpy", "ndarray"):
        cheap = value.nbytes <= notes.HASHED and not value.dtype.hasobject
    else:
        cheap = False
    if not cheap:
        return None
    import pickle

    return pickle.dumps(value, 5)


def _secret_inputs(flow: Flow) -> tuple[set[int], set[int]]:
    """The constants, and the nodes with values, that are arguments named like a secret: by their
    parameter or, in a dict, by the key beside them."""
    plan = flow.plan or flow.pattern
    if plan is not None and plan in _without_any:
        return set(), set()
    secret: dict[tuple[int, int], list[int]] = {}
    keyed: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    secret_name = functools.lru_cache(maxsize=None)(is_secret)  # ten thousand items have one name
    for pair in flow.pairs():
        labels: list[tuple[int, str]] = []
        # The name of a parameter, and names of fields of named tuples in it.
        places: list[int] = []
        index = 0
        for label in tasks.arguments_of(tasks.parameters_of(flow.bodies[pair[0]]), flow.shapes[pair[1]]):
            name, count = (label, 1) if isinstance(label, str) else (label["of"], label["count"])
            if any(secret_name(part.partition("[")[0].partition("{")[0]) for part in name.split(".")):
                places += range(index, index + count)
            if isinstance(label, str):
                labels.append((index, label))
            index += count
        if places:
            secret[pair] = places
        named = _named_by_others(labels)
        if named:
            keyed[pair] = named
    constants: set[int] = set()
    outputs: set[int] = set()
    if plan is not None and not secret and not keyed:
        _without_any.add(plan)
    if secret or keyed:
        for node in range(flow.count):
            pair = (flow.body_of[node], flow.shape_of[node])
            first = flow.starts[node]
            hidden = list(secret.get(pair, ()))
            for key, beside_it in keyed.get(pair, ()):
                name = flow.inputs[first + key]
                if name < 0 and is_secret(name_of(flow.constants[~name])):
                    hidden += beside_it
            for place in hidden:
                taken = flow.inputs[first + place]
                constants.add(~taken) if taken < 0 else outputs.add(taken)
    return constants, outputs


#: Plans of which no argument is named like a secret.
_without_any: weakref.WeakSet[Flow] = weakref.WeakSet()


def _named_by_others(labels: list[tuple[int, str]]) -> list[tuple[int, list[int]]]:
    """The arguments that may name others, and those others: keys of a dict, and the first of a
    pair, as in ("password", x)."""
    naming: dict[int, str] = {}
    for index, label in labels:
        before, _, last = label.rpartition("{key ")
        if before:
            naming[index] = f"{before}{{value {last}"
        elif label.endswith("[0]"):
            third = f"{label[:-3]}[2]"
            if not any(other.startswith(third) for _, other in labels):
                naming[index] = f"{label[:-3]}[1]"
    if not naming:
        return []
    wanted = tuple(naming.values())
    within: dict[str, list[int]] = {}
    for index, label in labels:
        if label.startswith(wanted):
            for at, letter in enumerate(label):
                if letter in "]}":
                    within.setdefault(label[: at + 1], []).append(index)
    return [(index, within[beside]) for index, beside in naming.items() if beside in within]


def _tries(site: Site, table: Table) -> list[dict[str, Any]]:
    """The errors of attempts that were followed by further attempts."""
    told = site.tries
    away = AWAY in site.lanes  # where a place may begin further attempts itself
    if site.directory and (away or bytes(table.attempts).strip(b"\0")):
        try:
            with open(os.path.join(site.directory, "attempts"), encoding="utf-8") as lines:
                told = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []
    return [{**one, "error": masked(one["error"])} for one in told]


def _failed_node(table: Table) -> int:
    """The node whose failure has ended a run; -1 if none has."""
    node: int = table.header[FAILED_NODE]
    return node if node >= 0 else bytes(table.states).find(bytes([FAILED]))


def _error_of(run: ObservedRun, table: Table) -> dict[str, Any] | None:
    """The error that ended the run; None for a value."""
    error = run.reason()
    if error is None:
        return None
    node = _failed_node(table)
    return _described(error, node if node >= 0 else None)
