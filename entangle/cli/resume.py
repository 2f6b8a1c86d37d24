"""`entangle resume`: durable runs that are unfinished; taking one up; deciding; removing."""

from __future__ import annotations

import ast
import os
import shlex
import sys
import time
from typing import Any

from entangle._depot.durable_directory import DurableDirectory, UnfinishedRun, look, root, unfinished_runs
from entangle._tasks.durable import Durable
from entangle._tasks.taking_up import decide, runs_of
from entangle.cli.exit_status import ABSENT, DONE, FAILED, USAGE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, duration, moment, print_table, text
from entangle.cli.terminal_text import plain
from entangle.errors import DurableError

HEADS = ("name", "state", "begun", "last change", "ended", "had begun", "program")
#: How many tasks that had begun are named.
_NAMED = 3


def ls(as_json: bool) -> None:
    """List the durable runs that are unfinished."""
    found = unfinished_runs()
    if as_json:
        print_json([_told(one) for one in found])
        return
    if not found:
        console().print(text(f"No durable run is unfinished in {root()}."), soft_wrap=True)
        return
    rows = [
        [
            text(one.name),
            text("in use" if one.in_use else "unfinished"),
            text(moment(one.begun)),
            text(moment(one.changed)),
            text(f"{one.ended:,}"),
            text(", ".join(one.open[:_NAMED]) + (f" and {len(one.open) - _NAMED:,} more" if len(one.open) > _NAMED else "")),
            text(shlex.join(one.program)),
        ]
        for one in found
    ]
    print_table(HEADS, rows, right=("ended",))


def _told(one: UnfinishedRun) -> dict[str, Any]:
    return {**one._asdict(), "state": "in use" if one.in_use else "unfinished"}


def resume(name: str, again: list[str], ended: tuple[str, str] | None, remove: bool, as_json: bool) -> int:
    """Decide, remove or take up; gives the exit status. Raises Refused."""
    try:
        if remove:
            DurableDirectory(name).remove()
            _say(f"durable run {name!r} is removed")
            return DONE
        if again or ended:
            values = [(ended[0], _literal(ended[1]))] if ended else []
            for line in decide(name, again, values):
                _say(line)
            return DONE
        return _take_up(name, as_json)
    except DurableError as error:
        raise Refused(str(error), ABSENT if "there is no" in str(error) else FAILED) from None


def _literal(written: str) -> Any:
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError):
        raise Refused(f"--ended: {written!r} is no Python literal: write strings in quotes of their own, as '\"paid\"'", USAGE) from None


def _take_up(name: str, as_json: bool) -> int:
    known = look(name)
    if known is None:
        raise Refused(f"there is no durable run {name!r}: entangle resume lists those that are unfinished", ABSENT)
    if os.path.isdir(known.directory):
        os.chdir(known.directory)
    script = known.program[0] if known.program else ""
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)) if script.endswith(".py") else os.getcwd())
    told: list[dict[str, Any]] = []
    status = DONE
    with Durable(name, "raise", keep_program=True) as block:
        for found in runs_of(block):
            for one in found.changed:
                nodes = "1 of its calls runs" if one.nodes == 1 else f"{one.nodes:,} of its calls run"
                _say(f"{one.task}: {nodes} again{': ' if one.words else ''}{'; '.join(one.words)}")
            if found.run is None:
                start = f"cd {shlex.quote(known.directory)} && python {shlex.join(known.program)}"
                _say(f"{found.name}: only its program can take it up: {start}")
                status = FAILED
                block.left_over = True
                break
            began = time.monotonic()
            value = found.run.value()
            if as_json:
                told.append({"run": found.name, "value": repr(value), "changed": [one._asdict() for one in found.changed]})
            else:
                console().print(text(f"{found.name}: {plain(repr(value))}"), soft_wrap=True)
                _say(f"{found.name} took {duration(time.monotonic() - began)}")
    if as_json:
        print_json(told)
    return status


def _say(line: str) -> None:
    console(stderr=True).print(text(plain(line)), soft_wrap=True)
