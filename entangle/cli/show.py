"""`entangle show RUN`: a run as a tree, or in a form for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from entangle.cli.exit_status import ABSENT, USAGE, Refused
from entangle.cli.json_lines import as_json, print_json
from entangle.cli.long_lists import Branches, Item, chosen
from entangle.cli.printing import COLOURS, MARKS, WIDE, console, duration, fitted, moment, print_table, size, table_lines, text
from entangle.cli.runs import run_called, summary, told, went_on
from entangle.cli.terminal_text import plain, stdout

if TYPE_CHECKING:
    from entangle.records import Error, Input, Node, Run

FORMS = {"mermaid": "to_mermaid", "dot": "to_dot", "svg": "to_svg", "trace": "to_trace", "prov": "to_prov"}
#: Up to this many nodes, a tree shows nodes; above, tasks.
MOST = 200
#: The most inputs that are shown of one node; lines of an error on a terminal; tasks, and failures
#: of a task; workers that ended after a run.
INPUTS, LINES, TASKS, FAILURES, RETIRED = 12, 6, 50, 3, 8


def show(run_id: str, form: str, output: Path | None, node: int | None, by: str | None = None) -> None:
    """Show a run or a node, or what each place has done of a run. Raises Refused where there is no
    such run, node or form."""
    from entangle.errors import RecordsError

    if by not in (None, "place") or (by and (node is not None or form not in ("tree", "json"))):
        raise Refused(f"--by must be place, not {by!r}" if by != "place" else "--by place goes with --json and --output alone", USAGE)
    if form not in (*FORMS, "tree", "json"):
        raise Refused(f"--format must be {', '.join(('tree', *FORMS, 'json'))}, not {form!r}", USAGE)
    run = run_called(run_id)
    try:
        chosen = run.node(node) if node is not None else None
    except RecordsError as error:
        raise Refused(str(error), ABSENT) from None
    if chosen is not None:
        if form not in ("tree", "json"):
            raise Refused(f"--node goes with --format tree or json, not with {form}", USAGE)
        _print_node(chosen, form == "json", output)
        return
    if by is not None:
        _print_places(run, form == "json", output)
        return
    if form == "tree":
        _print_tree(run, output)
        return
    if form == "json":
        _write_json(run.to_dict(), output)
        return
    drawn = getattr(run, FORMS[form])()
    # The other forms are JSON, which escapes such characters itself.
    drawn = plain(drawn, lines=True) if form in ("mermaid", "dot", "svg") else drawn
    _write(drawn.rstrip("\n") + "\n", output)


def _write(made: str, output: Path | None) -> None:
    if output is None:
        stdout().write(made)
        return
    try:
        output.write_text(made, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{output} cannot be written: {error.strerror}", ABSENT) from None


def _write_json(value: Any, output: Path | None) -> None:
    if output is None:
        print_json(value)
    else:
        _write(as_json(value) + "\n", output)


def _print_tree(run: Run, output: Path | None) -> None:
    if output is None:
        out = console()
        out.print(tree(run, out.width))
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            console(file=file).print(tree(run, WIDE))
    except OSError as error:
        raise Refused(f"{output} cannot be written: {error.strerror}", ABSENT) from None


def _print_places(run: Run, for_programs: bool, output: Path | None) -> None:
    shares = run.places()
    if for_programs:
        _write_json([asdict(share) for share in shares], output)
        return
    heads = ("place", "nodes", "failed", "tried again", "ran", "queued")
    rows = [
        [
            text(share.name, (" (here)", "dim") if share.here else ""),
            text(f"{share.nodes:,}"),
            text(f"{share.failed:,}" if share.failed else "", style="red"),
            text(f"{share.further_attempts:,}" if share.further_attempts else ""),
            text(duration(share.running)),
            text(duration(share.queued) if share.queued else ""),
        ]
        for share in shares
    ]
    if output is None:
        print_table(heads, rows, right=heads[1:])
        return
    lines = table_lines(heads, rows, WIDE, right=range(1, len(heads)))
    _write("".join(f"{line.plain.rstrip()}\n" for line in lines), output)


def tree(run: Run, width: int) -> Tree:
    """A run as a tree: on top the node whose value it is, under each node its inputs. A large run
    is shown by task. No line is longer than `width` columns."""
    counts = went_on(run)
    head = text(
        (run.name, "bold"),
        f"  {run.id}  ",
        (told(run.state), COLOURS.get(run.state, "red" if run.state == "killed" else "")),
        f"  {run.node_count:,} node{'s' if run.node_count != 1 else ''}",
        (f"  {counts}" if counts else "", "red"),
        f"  {duration(run.seconds)}  {moment(run.started)}",
        (f"  {run.taken_count:,} more from the depot" if run.taken_count else "", "cyan"),
        ("  " + " ".join(f"{name}={value}" for name, value in run.tags.items()) if run.tags else "", "dim"),
    )
    top = Tree(fitted(head, width), guide_style="dim")
    if run.error is not None:
        _add_error(run, top, width - _STEP)
    for line in _taken(run):
        top.add(fitted(text(line, style="cyan"), width - _STEP))
    if run.node_count > MOST:
        _add_tasks(run, top, width - _STEP)
    else:
        _add_nodes(run, top, width)
    for ended in run.retirements[:RETIRED]:
        top.add(fitted(text(f"worker {ended.pid} ended after this run: {ended.reason}", style="dim"), width - _STEP))
    if len(run.retirements) > RETIRED:
        top.add(text(f"… and {len(run.retirements) - RETIRED:,} more workers", style="dim"))
    return top


def _taken(run: Run) -> list[str]:
    """The calls whose values a depot had, by task: how many, and when they were made."""
    made: dict[str, list[float]] = {}
    for taken in run.taken:
        made.setdefault(taken.task, []).append(taken.made)
    lines = []
    for task, at in made.items():
        first, last = moment(min(at)), moment(max(at))
        lines.append(f"{task} x{len(at):,} from the depot, made {first}" + (f" to {last}" if last != first else ""))
    return lines


#: Columns by which a tree is indented with each level, the fewest that a line gets, and the most
#: levels.
_STEP, _FEWEST, _DEEPEST = 4, 28, 30


def _add_error(run: Run, top: Tree, width: int) -> None:
    """Add what ended a run: the error, the path of calls, and the arguments of the call that
    failed."""
    error = run.error
    assert error is not None
    branch = top
    for number, part in enumerate(str(error).splitlines() or [error.type]):
        if number == LINES and width < WIDE - _STEP:
            where = f" --node {error.node}" if error.node is not None else " --json"
            branch.add(fitted(text(f"… entangle show {run.id}{where}", style="dim"), width - _STEP))
            break
        line = fitted(text(part, style="red"), width if number == 0 else width - _STEP)
        branch = top.add(line) if number == 0 else branch
        if number:
            branch.add(line)
    for note in error.notes:
        kind, colon, said = note.partition(": ")
        if not colon or kind not in ("call path", "call"):
            branch.add(fitted(text(note, style="dim"), width - _STEP))
            continue
        # A call a line: the last one, which has failed, must not be cut off.
        for number, call in enumerate(said.split(" → ") if kind == "call path" else [said]):
            label = f"{kind}: " if number == 0 else " " * (len(kind) - 1) + " → "
            branch.add(fitted(text((label, "dim"), call), width - _STEP))
    if error.node is not None and error.node < len(run.nodes):
        inputs = run.nodes[error.node].inputs
        for given in inputs[:INPUTS]:
            branch.add(fitted(text((f"{given.argument} = ", "dim"), _text_of(run, given)), width - _STEP))
        if len(inputs) > INPUTS:
            told = f"… and {len(inputs) - INPUTS:,} more: entangle show {run.id} --node {error.node}"
            branch.add(fitted(text(told, style="dim"), width - _STEP))


def _text_of(run: Run, given: Input) -> str:
    value = run.nodes[given.source].value if given.source is not None else given.value
    return value.text if value is not None else f"the value of {run.nodes[given.source].name}" if given.source is not None else "?"


def _add_nodes(run: Run, top: Tree, width: int) -> None:
    """Add the nodes. One that several others take is shown once, and after that by its name
    alone."""
    shown: set[int] = set()
    branches = Branches(run, _states_now(run))
    deepest = min(max(2, (width - _FEWEST) // _STEP), _DEEPEST)
    taken = {edge.source for edge in run.edges}
    # The stack is our own: a chain may be deeper than Python's. A level deeper than there is room
    # for is added beside the one above it.
    waiting: list[tuple[Node | None, Tree, str, int]] = [(node, top, "", 1) for node in run.nodes if node.number not in taken]
    while waiting:
        node, above, argument, depth = waiting.pop()
        room = width - _STEP * min(depth, deepest)
        if node is None:
            above.add(fitted(text(argument, style="dim"), room))
            continue
        again, state = node.number in shown, branches.state(node)
        deeper = "↳ " if depth > deepest else ""
        branch = above.add(_line(node, f"{deeper}{argument}", again, state, room))
        if again:
            continue
        shown.add(node.number)
        branch = branch if depth < deepest else above
        room = width - _STEP * min(depth + 1, deepest)
        for number, tried in enumerate(node.tries, 1):
            branch.add(fitted(text((f"attempt {number}: ", "dim"), (tried.partition("\n")[0], "yellow")), room))
        fused = {given.argument for given in node.inputs} >= _OF_FUSED
        inputs = [given for given in node.inputs if not (fused and given.argument in _OF_FUSED)]
        constants = [(given.argument, given.value.text) for given in inputs if given.source is None and given.value is not None]
        for name, said in constants[:INPUTS]:
            branch.add(fitted(text((f"{name} = ", "dim"), said), room))
        if len(constants) > INPUTS:
            branch.add(fitted(text(f"… and {len(constants) - INPUTS:,} more", style="dim"), room))
        later: list[tuple[Node | None, Tree, str, int]] = []
        sources = [(given.argument, given.source) for given in inputs if given.source is not None]
        numbers, begin = [number for _, number in sources], 0
        for at in branches.chosen(numbers, INPUTS):
            if begin < at:
                later.append((None, branch, branches.left_out(numbers[begin:at], last=False), depth + 1))
            later.append((run.nodes[numbers[at]], branch, sources[at][0], depth + 1))
            begin = at + 1
        if begin < len(numbers):
            later.append((None, branch, branches.left_out(numbers[begin:], last=True), depth + 1))
        for inner in node.children:
            about = f"  {inner.id}, {inner.node_count} nodes"
            branch.add(fitted(text(("ran inside: ", "dim"), inner.name, (about, "dim")), room))
        waiting += reversed(later)


def _states_now(run: Run) -> dict[int, str]:
    """The states of the nodes of a live run, from its table. Empty for a run that is over, or on
    another machine."""
    if run.state != "running":
        return {}
    from entangle._watch.live_runs import live_runs

    found: dict[int, str] = {}
    for live in live_runs():
        with live:
            if live.id != run.id:
                continue
            if stages := live.stages():  # their rows are used again and again
                under_way = [stage.get("running") or stage.get("waiting") for stage in stages]
                found = {at: "running" if some else "waiting" for at, some in enumerate(under_way)}
            elif live.table.nodes == run.node_count:
                found = dict(enumerate(live.states()))
    return found


def _line(node: Node, argument: str, again: bool, state: str, room: int) -> Text:
    """A node: its name, its value or what it lacks, its time and, where there is room, its
    process."""
    state = {"stopped": "cancelled", "unknown": "waiting"}.get(state, state)
    colour = COLOURS.get(state, "")
    line = text((f"{argument} = ", "dim") if argument.strip("↳ ") else argument, (MARKS.get(state, "·"), colour), " ", (node.name, "cyan"))
    if again:
        return fitted(line.append("  as above", style="dim"), room)
    said = Text()
    if node.items is not None:
        said = text(f"  {items_of(node)}", (f": {_in_short(node.error)}" if node.error is not None else "", "red"))
    elif node.error is not None:
        said = text((f"  {_in_short(node.error)}", "red"))
    elif node.cause is not None:
        said = text((f"  skipped, since {node.run.nodes[node.cause].name} (node {node.cause}) failed", colour))
    elif node.value is not None:
        said = text(f" → {node.value.text}")
    elif _is_lost(node):
        said = text((f" → {_LOST}", "dim"))
    tail = f"  #{node.number}"  # for --node
    tail += f"  {node.attempts} attempts" if node.attempts is not None and node.attempts > 1 else ""
    tail += f"  from the depot, made {moment(node.made)}" if node.made is not None else ""
    tail += f"  {duration(node.seconds)}" if node.seconds is not None else ""
    place = f"  pid {node.pid}" + (f" cpu {node.cpu}" if node.cpu is not None else "") if node.pid else ""
    if node.place is not None:
        place = f"  on {node.place}" + (f", {node.ticket}" if node.ticket else "")
    if line.cell_len + said.cell_len + len(tail) + len(place) > room:
        place = ""
    left = room - line.cell_len - len(tail) - len(place)
    if said.cell_len > left:
        said.truncate(max(left, 4), overflow="ellipsis")
    return fitted(Text.assemble(line, said, (tail, "dim"), (place, "dim")), room)


#: What dask passes to tasks that it has fused into one, beside their values.
_OF_FUSED = {"inner_dsk", "outkey", "inkeys"}
#: Why a task that is done has no value in the record of a run that was ended.
_LOST = "not recorded: its worker was stopped first"


def _is_lost(node: Node) -> bool:
    """Whether the value of a task is not in the record since the run was ended: a worker writes
    what it notes of values when it has nothing else to do."""
    return node.state == "done" and node.value is None and node.items is None and node.run.state not in ("done", "running")


def _in_short(error: Error) -> str:
    """An error without the module of its class, and the first line of its message."""
    kind, message = error.type.rpartition(".")[2], error.message.partition("\n")[0]
    return f"{kind}: {message}" if message else kind


def items_of(node: Node) -> str:
    """The items of a stage, as "20 items, 2 failed, 3 skipped"."""
    said = f"{node.items:,} item{'' if node.items == 1 else 's'}"
    for count, state in ((node.items_failed, "failed"), (node.items_skipped, "skipped")):
        said += f", {count:,} {state}" if count else ""
    return said


def _add_tasks(run: Run, top: Tree, width: int) -> None:
    """Add tasks instead of nodes, with the first of their failures, their slowest node, and which
    takes values of which."""
    groups: dict[str, list[Node]] = {}
    for node in run.nodes:
        groups.setdefault(node.task.name, []).append(node)
    links: dict[str, dict[str, int]] = {}
    for edge in run.edges:
        taken = links.setdefault(run.nodes[edge.target].task.name, {})
        taken[run.nodes[edge.source].task.name] = taken.get(run.nodes[edge.source].task.name, 0) + 1
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    for name, nodes in [ranked[at] for at in chosen([_as_item(nodes) for _, nodes in ranked], TASKS)]:
        states: dict[str, int] = {}
        for node in nodes:
            states[node.state] = states.get(node.state, 0) + 1
        again = sum((node.attempts or 0) > 1 for node in nodes)
        spent = sum(node.seconds or 0.0 for node in nodes)
        told_of = [(f"{count:,} {state}", COLOURS.get(state, "") if state != "done" else "") for state, count in states.items()]
        line = text((name, "cyan"), f" x{len(nodes):,}  ", *[part for one in told_of for part in (one, ", ")][:-1])
        line.append(f", {again:,} tried again" if again else "", style="yellow")
        line.append(f"  {duration(spent)} in all, {duration(spent / len(nodes))} each", style="dim")
        branch = top.add(fitted(line, width))
        failed = [node for node in nodes if node.error is not None]
        for node in failed[:FAILURES]:
            branch.add(_line(node, "", False, node.state, width - _STEP))
        if len(failed) > FAILURES:
            branch.add(text(f"… and {len(failed) - FAILURES:,} more that failed", style="dim"))
        slowest = max(nodes, key=lambda node: node.seconds or 0.0)
        if len(nodes) > 1 and slowest.seconds and slowest not in failed[:FAILURES]:
            label = text(("slowest: ", "dim"))
            branch.add(label + _line(slowest, "", False, slowest.state, width - _STEP - label.cell_len))
        feeding = sorted(links.get(name, {}).items(), key=lambda link: -link[1])
        for source, count in feeding[:INPUTS]:
            branch.add(fitted(text(("takes ", "dim"), source, (f" x{count:,}", "dim")), width - _STEP))
        if len(feeding) > INPUTS:
            branch.add(text(f"… and {len(feeding) - INPUTS:,} more", style="dim"))
    if len(ranked) > TASKS:
        top.add(text(f"… and {len(ranked) - TASKS:,} more tasks", style="dim"))


def _as_item(nodes: list[Node]) -> Item:
    """The nodes of a task as one item."""
    states = {node.state for node in nodes}
    state = next((state for state in ("failed", "skipped") if state in states), "done")
    return Item(state, sum(node.seconds or 0.0 for node in nodes))


def _print_node(node: Node, for_programs: bool, output: Path | None) -> None:
    found = _node_as_dict(node)
    found["state"] = state = _states_now(node.run).get(node.number, node.state)
    if for_programs:
        _write_json(found, output)
        return
    task = f" ({node.task.name})" if node.name != node.task.name else ""
    lines = [f"{node.name}{task}, node {node.number} of run {node.run.id}: {state}"]
    if node.cause is not None:
        lines.append(f"  skipped, since {node.run.nodes[node.cause].name} (node {node.cause}) failed")
    if node.items is not None:
        lines.append(f"  {items_of(node)}")
    for given in found["inputs"]:
        lines.append(
            f"  {given['argument']} = {given['text']}"
            + (f"   from {given['name']}, node {given['source']}" if given["source"] is not None else "")
        )
    if node.value is not None:
        value = node.value
        lines.append(f"  → {value.text}   {value.type}, {size(value.size)}" + (f", sha-256 {value.hash}" if value.hash else ""))
    elif _is_lost(node):
        lines.append(f"  → {_LOST}")
    if node.made is not None:
        lines.append(f"  from the depot, made {moment(node.made)}, key {node.depot_key}")
    elif node.hit is not None:
        lines.append(f"  not in the depot before, key {node.depot_key}")
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found["times"].items() if seconds)
    not_yet = "the run is still running; times and values are known when it has ended"
    lines.append(f"  {times or (not_yet if node.run.state == 'running' else 'never ran')}")
    if node.place is not None:
        lines.append(f"  ran on {node.place}" + (f", as {node.ticket}" if node.ticket else ""))
    if node.pid:
        lines.append(f"  pid {node.pid} on {node.run.host}, cpu {node.cpu}, {node.attempts} attempt{'s' if node.attempts != 1 else ''}")
    for number, (tried, at) in enumerate(zip(node.tries, node.tried_at, strict=True), 1):
        lines.append(f"  attempt {number}{f' on {at[0]}, {at[1]}'.rstrip(', ') if at is not None else ''}: {tried}")
    if found["printed"]:
        lines += ["  printed:", *(f"    {line}" for line in found["printed"].splitlines())]
    if node.error is not None:
        lines += ["", node.error.text]
    if node.task.source:
        lines += ["", f"# {node.task.file}:{node.task.line}, version {node.task.version[:12]}", node.task.source]
    _write(plain("\n".join(lines), lines=True).rstrip() + "\n", output)


def _node_as_dict(node: Node) -> dict[str, Any]:
    run = node.run
    inputs = []
    for given in node.inputs:
        value = run.nodes[given.source].value if given.source is not None else given.value
        inputs.append(
            {
                "argument": given.argument,
                "source": given.source,
                "name": run.nodes[given.source].name if given.source is not None else None,
                "task": run.nodes[given.source].task.name if given.source is not None else None,
                "text": value.text if value is not None else "?",
                "hash": value.hash if value is not None else None,
            }
        )
    return {
        "run": summary(run),
        "node": node.number,
        "name": node.name,
        "task": node.task.name,
        "state": node.state,
        "attempts": node.attempts,
        "tries": list(node.tries),
        "items": node.items,
        "items_failed": node.items_failed,
        "items_skipped": node.items_skipped,
        "cause": node.cause,
        "hit": node.hit,
        "made": node.made,
        "depot_key": node.depot_key,
        "times": asdict(node.times),
        "printed": node.printed,
        "place": node.place,
        "ticket": node.ticket,
        "pid": node.pid,
        "cpu": node.cpu,
        "peak_memory": node.peak_memory,
        "inputs": inputs,
        "value": {"type": node.value.type, "size": node.value.size, "hash": node.value.hash, "text": node.value.text}
        if node.value
        else None,
        "error": asdict(node.error) if node.error else None,
        "code": {"version": node.task.version, "file": node.task.file, "line": node.task.line, "source": node.task.source},
        "attributes": node.task.attributes,
    }
