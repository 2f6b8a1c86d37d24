"""`entangle replay RUN`: a call that was kept, run again in the foreground."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from entangle.cli.exit_status import ABSENT, Refused
from entangle.cli.runs import run_called

if TYPE_CHECKING:
    from entangle._shared.kept_calls import KeptCall
    from entangle.records import Run


#: How many nodes are named.
_NAMED = 20


def replay(run_id: str, node: int | None, debugger: bool, as_json: bool) -> int:
    """Run a kept call in the place of this process, which does not come back.

    Raises Refused where there is no such run or node, or where its call was not kept.
    """
    from entangle._records import replaying

    run = run_called(run_id)
    call = _call(run, node)
    if lacks := call.lacks:
        told = "; ".join(f"argument {value.argument} {value.why}" for value in lacks)
        raise Refused(f"node {call.head['node']} of run {run.id} ({call.head['name']}) cannot be run again: {told}", ABSENT)
    program, words, environment = replaying.command(call.head, run._directory, debugger, as_json)
    sys.stdout.flush()
    os.execve(program, words, environment)


def _call(run: Run, node: int | None) -> KeptCall:
    """The kept call of a node; without one, of that which ended the run, of the only one, or of
    that which gave the value of the run."""
    from entangle._records import kept
    from entangle._shared.kept_calls import NotKept, read
    from entangle.errors import RecordsError

    there = {one.node: one.path for one in kept.all_kept(run._directory, run.id)}
    if node is None:
        ended = run.error.node if run.error is not None else None
        if ended is not None:
            node = ended
        elif len(there) == 1:
            (node,) = there
        elif there:
            failed = [one for one in there if one in run.failures]
            if not failed and run.state == "done" and run.root.number in there:
                node = run.root.number
            else:
                named = failed or list(there)
                told = ", ".join(f"{one} ({run.nodes[one].name})" for one in named[:_NAMED] if one < len(run.nodes))
                more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
                kind = "failed calls" if failed else "calls"
                raise Refused(f"run {run.id} has kept {len(named):,} {kind}; choose one by --node: {told}{more}", ABSENT)
        else:
            raise Refused(
                f"run {run.id} has kept no call: none failed, or none has arguments that may be kept. With ENTANGLE_RECORD=values, "
                "runs also keep calls that end well",
                ABSENT,
            )
    try:
        chosen = run.node(node)
    except RecordsError as error:
        raise Refused(str(error), ABSENT) from None
    if node not in there:
        more = f" and {len(there) - _NAMED:,} more" if len(there) > _NAMED else ""
        kept_ones = f"; kept are: {', '.join(map(str, list(there)[:_NAMED]))}{more}" if there else ""
        raise Refused(f"the call of node {node} ({chosen.name}, {chosen.state}) of run {run.id} was not kept{kept_ones}", ABSENT)
    try:
        return read(there[node])
    except (OSError, NotKept) as error:
        raise Refused(f"the call of node {node} of run {run.id} cannot be read: {error}", ABSENT) from None
