"""`entangle show RUN`: a run as a tree, or in a form for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from entangle.cli.exit_status import ABSENT, USAGE, Refused
from entangle.cli.json_lines import as_json, print_json
from entangle.cli.printing import COLOURS, MARKS, console, duration, moment, size, text
from entangle.cli.runs import run_called, summary, told
from entangle.cli.terminal_text import plain, stdout

if TYPE_CHECKING:
    from entangle.records import Node, Run

FORMS = {"mermaid": "to_mermaid", "dot": "to_dot", "svg": "to_svg", "trace": "to_trace", "prov": "to_prov"}
#: Up to so many nodes, a tree shows nodes; above, tasks.
MOST = 200
#: The most inputs that are shown of one node.
INPUTS = 12


def show(run_id: str, form: str, output: Path | None, node: int | None) -> None:
    """Show a run or a node. Raises Refused where there is no such run, node or form."""
    from entangle.errors import RecordsError

    if form not in (*FORMS, "tree", "json"):
        raise Refused(f"--format must be {', '.join(('tree', *FORMS, 'json'))}, not {form!r}", USAGE)
    run = run_called(run_id)
    try:
        chosen = run.node(node) if node is not None else None
    except RecordsError as error:
        raise Refused(str(error), ABSENT) from None
    if chosen is not None:
        if form not in ("tree", "json"):
            raise Refused(f"--node goes with --format tree or json, not {form}", USAGE)
        _print_node(chosen, form == "json", output)
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
        console().print(tree(run))
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            console(file=file).print(tree(run))
    except OSError as error:
        raise Refused(f"{output} cannot be written: {error.strerror}", ABSENT) from None


def tree(run: Run) -> Tree:
    """A run as a tree: on top the node whose value it is, under each node its inputs. A large run
    is shown by task."""
    head = text(
        (run.name, "bold"),
        f"  {run.id}  ",
        (told(run.state), COLOURS.get(run.state, "red" if run.state == "killed" else "")),
        f"  {run.node_count:,} node{'s' if run.node_count != 1 else ''}  {duration(run.seconds)}  {moment(run.started)}",
        ("  " + " ".join(f"{name}={value}" for name, value in run.tags.items()) if run.tags else "", "dim"),
    )
    top = Tree(head, guide_style="dim")
    if run.error is not None:
        top.add(Text(plain(f"{run.error.type}: {run.error.message}", lines=True), style="red"))
    if run.node_count > MOST:
        _add_tasks(run, top)
    else:
        # A node that several others take is shown once, and after that by its name alone. The stack
        # is our own: a chain may be deeper than Python's.
        shown: set[int] = set()
        states = _states_now(run)
        waiting: list[tuple[Node | None, Tree, str]] = [(run.root, top, "")]
        while waiting:
            node, above, argument = waiting.pop()
            if node is None:
                above.add(text(argument, style="dim"))
                continue
            branch = above.add(_line(node, argument, node.number in shown, states.get(node.number, node.state)))
            if node.number in shown:
                continue
            shown.add(node.number)
            later: list[tuple[Node | None, Tree, str]] = []
            for given in node.inputs[:INPUTS]:
                if given.source is not None:
                    later.append((run.nodes[given.source], branch, given.argument))
                elif given.value is not None:
                    branch.add(text((f"{given.argument} = ", "dim"), given.value.text))
            if len(node.inputs) > INPUTS:
                later.append((None, branch, f"… and {len(node.inputs) - INPUTS} more"))
            for inner in node.children:
                branch.add(text(("ran inside: ", "dim"), inner.name, (f"  {inner.id}, {inner.node_count} nodes", "dim")))
            waiting += reversed(later)
    return top


def _states_now(run: Run) -> dict[int, str]:
    """The states of the nodes of a live run, from its table. Empty for a run that is over, or on
    another machine."""
    if run.state != "running":
        return {}
    from entangle._watch.live_runs import live_runs

    found: dict[int, str] = {}
    for live in live_runs():
        with live:
            if live.id == run.id:
                found = dict(enumerate(live.states()))
    return found


def _line(node: Node, argument: str, again: bool, state: str) -> Text:
    state = {"stopped": "cancelled", "unknown": "waiting"}.get(state, state)
    line = text((f"{argument} = ", "dim") if argument else "", (MARKS.get(state, "·"), COLOURS.get(state, "")), " ", (node.name, "cyan"))
    if again:
        return line.append("  as above", style="dim")
    if node.value is not None:
        line.append(text(f" → {node.value.text}"))
    if node.seconds is not None:
        line.append(f"  {duration(node.seconds)}", style="dim")
    if node.pid:
        line.append(f"  pid {node.pid}" + (f" cpu {node.cpu}" if node.cpu is not None else ""), style="dim")
    return line


def _add_tasks(run: Run, top: Tree) -> None:
    """Add tasks instead of nodes, and which takes values of which."""
    groups: dict[str, list[Node]] = {}
    for node in run.nodes:
        groups.setdefault(node.name, []).append(node)
    links: dict[str, dict[str, int]] = {}
    for edge in run.edges:
        taken = links.setdefault(run.nodes[edge.target].name, {})
        taken[run.nodes[edge.source].name] = taken.get(run.nodes[edge.source].name, 0) + 1
    for name, nodes in sorted(groups.items(), key=lambda group: -len(group[1]))[:50]:
        states: dict[str, int] = {}
        for node in nodes:
            states[node.state] = states.get(node.state, 0) + 1
        spent = sum(node.seconds or 0.0 for node in nodes)
        line = text((name, "cyan"), f" x{len(nodes):,}  ", ", ".join(f"{count:,} {state}" for state, count in states.items()))
        branch = top.add(line.append(f"  {duration(spent)} in all, {duration(spent / len(nodes))} each", style="dim"))
        for source, count in sorted(links.get(name, {}).items(), key=lambda link: -link[1])[:INPUTS]:
            branch.add(text(("takes ", "dim"), source, (f" x{count:,}", "dim")))


def _print_node(node: Node, for_programs: bool, output: Path | None) -> None:
    found = _node_as_dict(node)
    found["state"] = state = _states_now(node.run).get(node.number, node.state)
    if for_programs:
        _write_json(found, output)
        return
    lines = [f"{node.name}, node {node.number} of run {node.run.id}: {state}"]
    for given in found["inputs"]:
        lines.append(
            f"  {given['argument']} = {given['text']}"
            + (f"   from {given['task']}, node {given['source']}" if given["source"] is not None else "")
        )
    if node.value is not None:
        value = node.value
        lines.append(f"  → {value.text}   {value.type}, {size(value.size)}" + (f", sha-256 {value.hash}" if value.hash else ""))
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found["times"].items() if seconds)
    not_yet = "the run is still running; times and values are known when it has ended"
    lines.append(f"  {times or (not_yet if node.run.state == 'running' else 'never ran')}")
    if node.pid:
        lines.append(f"  pid {node.pid} on {node.run.host}, cpu {node.cpu}, {node.attempts} attempt{'s' if node.attempts != 1 else ''}")
    if node.error is not None:
        lines += ["", node.error.traceback or f"{node.error.type}: {node.error.message}"]
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
                "task": run.nodes[given.source].name if given.source is not None else None,
                "text": value.text if value is not None else "?",
                "hash": value.hash if value is not None else None,
            }
        )
    return {
        "run": summary(run),
        "node": node.number,
        "task": node.name,
        "state": node.state,
        "attempts": node.attempts,
        "times": vars(node.times),
        "pid": node.pid,
        "cpu": node.cpu,
        "peak_memory": node.peak_memory,
        "inputs": inputs,
        "value": {"type": node.value.type, "size": node.value.size, "hash": node.value.hash, "text": node.value.text}
        if node.value
        else None,
        "error": vars(node.error) if node.error else None,
        "code": {"version": node.task.version, "file": node.task.file, "line": node.task.line, "source": node.task.source},
        "attributes": node.task.attributes,
    }
