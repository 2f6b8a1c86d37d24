"""The outline of a run: names and edges, in a file beside its table.

The table holds only numbers; the names are in the memory of the process that runs. Programs that
watch from outside (`entangle top`, the page) need both. A run writes the file once it has lasted a
while; a short run writes nothing.

::

    one line of JSON       when it began, its process, its bodies, counts of nodes and inputs
    body_of                4 bytes a node
    starts                 8 bytes a node, and one more
    inputs                 8 bytes each: a node, or a constant where negative
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from itertools import islice
from typing import Any, NamedTuple

from entangle._shared.masks import cleaned
from entangle._shared.summaries import constants_in_short
from entangle._shared.whole_files import LONGEST, open_file
from entangle.flow import Flow

#: The outline of a run is written once the run has lasted this long (seconds).
LASTING = 0.15
NAME = "outline"
#: Files beside the outline: what a rearmed run says of its stages; CPU and memory over time.
HOW_FAR, LOAD = "how-far", "load"
_FORM = 3
#: The most names that calls were given; the most nodes whose arguments are told.
_MOST_GIVEN, _MOST_CALLS = 20_000, 400


class Outline(NamedTuple):
    """What others can read of a run besides its table. `began` is in seconds since 1970."""

    about: dict[str, Any]
    names: list[str]
    body_of: array[int]
    starts: array[int]
    inputs: array[int]

    def name(self, node: int) -> str:
        """The name of a node: the one that its call was given, else its task's."""
        return self.about["given"].get(str(node)) or self.task(node)

    def task(self, node: int) -> str:
        """The name of the task of a node."""
        body = self.body_of[node]
        return self.names[body] if 0 <= body < len(self.names) else ""

    def sources(self, node: int) -> list[int]:
        """The nodes whose values a node takes, each once, in the order of its parameters."""
        return list(dict.fromkeys(x for x in self.inputs[self.starts[node] : self.starts[node + 1]] if x >= 0))


def write_outline(directory: str, flow: Flow, **about: Any) -> None:
    """Write the outline of a flow that runs in `directory`. If the disk is full, there is none:
    nothing depends on it."""
    import json

    head = {
        "form": _FORM,
        "began": time.time() - LASTING,
        "pid": os.getpid(),
        "command": cleaned(sys.argv[:20]),
        "nodes": flow.count,
        "inputs": len(flow.inputs),
        "names": [body.name for body in flow.bodies],
        "calls": [] if flow.rearmed or flow.count > _MOST_CALLS else [_call(flow, node) for node in range(flow.count)],
        "pools": cleaned([str(pool) for pool in flow.pools]),
        "given": cleaned({str(node): name for node, name in islice(flow.names.items(), _MOST_GIVEN)}),
        **about,
    }
    path = os.path.join(directory, NAME)
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(head, default=str).encode("ascii") + b"\n")
            for column in (flow.body_of, flow.starts, flow.inputs):
                file.write(memoryview(column))
        os.rename(f"{path}.new", path)  # all of it appears at once
    except OSError:
        pass


def _call(flow: Flow, node: int) -> str:
    """The arguments of a node, as far as they are known before it runs."""
    try:
        constants = constants_in_short(flow, node)
    except Exception:  # nothing depends on it
        constants = ""
    others = "…" if any(taken >= 0 for taken in flow.inputs[flow.starts[node] : flow.starts[node + 1]]) else ""
    return ", ".join(filter(None, (constants, others)))


def read_outline(directory: str) -> Outline | None:
    """Read the outline of the run in `directory`. None if it is not there, is another version's, or
    is damaged."""
    import json

    try:
        fd = open_file(os.path.join(directory, NAME))
    except (OSError, ValueError):
        return None
    with open(fd, "rb") as file:
        try:
            about = json.loads(file.readline(LONGEST))
            names, parent = about["names"], about["parent"]
            if about["form"] != _FORM or not all(isinstance(name, str) for name in (*names, *about["pools"])):
                return None
            if not (isinstance(about["pid"], int) and isinstance(about["began"], float)):
                return None
            if parent is not None and not (isinstance(parent[0], str) and isinstance(parent[1], int)):
                return None
            given, calls = about["given"], about["calls"]
            if not (isinstance(calls, list) and all(isinstance(call, str) for call in calls) and len(calls) in (0, about["nodes"])):
                return None
            if not (isinstance(given, dict) and all(isinstance(name, str) for name in given.values())):
                return None
            about["command"] = [str(word) for word in about["command"]]
            columns = array("i"), array("q"), array("q")
            counts = about["nodes"], about["nodes"] + 1, about["inputs"]
            # Check the counts against the size of the file before allocating memory for them.
            if file.tell() + sum(column.itemsize * count for column, count in zip(columns, counts, strict=True)) != os.fstat(fd).st_size:
                return None
            for column, count in zip(columns, counts, strict=True):
                column.fromfile(file, count)
        except (ValueError, LookupError, TypeError, EOFError, RecursionError, MemoryError, OverflowError):
            return None
    return Outline(about, about.pop("names"), *columns)
