"""Durable runs for people: which are unfinished, what to do where nobody knows, taking one up."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from entangle._depot import ledger
from entangle._depot.durable_directory import DurableDirectory
from entangle._depot.kept_values import written
from entangle._depot.ledger import NO_NODE, Outcomes
from entangle._run.run import Run
from entangle._shared.identity import difference
from entangle._shared.identity.flow_keys import keys_of
from entangle._tasks.durable import Durable, DurableRun, Scope, numbered
from entangle.errors import DurableError
from entangle.flow import Flow


class ChangedTask(NamedTuple):
    """A task that changed code makes run again: how many of its nodes, and what has changed."""

    task: str
    nodes: int
    words: list[str]


class TakenUp(NamedTuple):
    """A run of a durable run, as it is taken up: its name, what changed code makes run again, and
    the run. `run` is None where only its program can take it up."""

    name: str
    changed: list[ChangedTask]
    run: DurableRun | None


def runs_of(block: Durable) -> Iterator[TakenUp]:
    """The runs of a block that has been entered, in the order in which they were begun first.

    Each has to be run before the next is asked for.
    """
    scope, outcomes, directory = block.scope, block.outcomes, block.directory
    counts = dict(scope.counts)
    for number, name in list(outcomes.runs.items()):
        with open(os.path.join(directory.path, "runs", number.hex()), "rb") as file:
            pickled = file.read()
        try:
            flow: Flow | None = pickle.loads(pickled) if pickled else None
        except Exception:  # its modules are not there, or not as they were
            flow = None
        if flow is None:
            yield TakenUp(name, [], None)
            continue
        yield TakenUp(name, changed_tasks(flow, scope._replace(counts=counts), outcomes), DurableRun(Run(flow), scope))


def changed_tasks(flow: Flow, scope: Scope, outcomes: Outcomes) -> list[ChangedTask]:
    """The tasks of a run whose nodes had ended and run again, since code was changed."""
    keys = keys_of(flow)
    ids, places, _ = numbered(flow, keys.keys, keys.places, scope)
    found: Counter[str] = Counter()
    for node, (name, place) in enumerate(zip(ids, places, strict=True)):
        if name != NO_NODE and name not in outcomes.ended and place in outcomes.places:
            found[flow.body(node).name] += 1
    told = []
    for task, nodes in found.items():
        before = outcomes.code.get(task)
        words = difference(keys.parts.get(task, {}), json.loads(before)) if before is not None else []
        told.append(ChangedTask(task, nodes, words))
    return told


def decide(name: str, again: list[str], ended: list[tuple[str, Any]]) -> list[str]:
    """Say of nodes that had begun and not ended that they may run again, or what they gave.

    A node is named by the start of its name in the ledger; "all" are all of them. Gives what was
    decided, in words. Raises DurableError where there is no such node.
    """
    directory = DurableDirectory(name)
    if not os.path.isdir(directory.path):
        raise DurableError(f"there is no durable run {name!r}; entangle resume lists those that are unfinished")
    for _ in directory.enter(None, may_wait=False):
        pass  # workers of a process that has just been killed end within a second
    told: list[str] = []
    try:
        outcomes = directory.outcomes()
        open_nodes = {**outcomes.unkept, **outcomes.open}
        writer = directory.of_flow().open()
        try:
            for start in again:
                for node in open_nodes if start == "all" else [_one(open_nodes, start, name)]:
                    writer.append(ledger.FAILED, node, NO_NODE, b"may run again")
                    told.append(f"{node.hex()[:8]} {outcomes.open.get(node, '')} runs again")
            for start, value in ended:
                node = _one(open_nodes, start, name)
                task = outcomes.open.get(node, "")
                writer.append(ledger.ENDED, node, NO_NODE, written(directory.path, node, task, value, ledger.TIMES.pack(0, 0), False))
                told.append(f"{node.hex()[:8]} {task} has given {value!r}")
        finally:
            writer.close()
    finally:
        directory.leave(finished=False)
    return told


def _one(nodes: dict[bytes, str], start: str, name: str) -> bytes:
    found = [node for node in nodes if node.hex().startswith(start.lower())]
    if len(found) != 1 or len(start) < 4:
        known = ", ".join(f"{node.hex()[:8]} {task}" for node, task in list(nodes.items())[:10])
        raise DurableError(
            f"durable run {name!r}: {start!r} names {'none' if not found else 'several'} of the tasks that had begun and not ended: "
            f"{known or 'there are none'}"
        )
    return found[0]
