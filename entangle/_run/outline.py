"""The outline of a run: names and edges, written beside its table once it has lasted a while.

The table holds numbers alone, and the names are in the memory of the process that runs. Who watches from outside
(`entangle top`, the page) needs both. A run that is over before anybody could look writes nothing.

::

    one line of JSON       when it began, who runs it, the names of its bodies, how many nodes and inputs there are
    body_of                4 bytes a node
    starts                 8 bytes a node, and one more
    inputs                 8 bytes each: a node, or a constant where negative
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from typing import Any, NamedTuple

from entangle.flow import Flow

#: Seconds that a run lasts before it is written down.
LASTING = 0.15
NAME = "outline"
_FORM = 1


class Outline(NamedTuple):
    """What is known of a run from outside, besides its table. `began` is in seconds since 1970; `sources` are edges."""

    about: dict[str, Any]
    names: list[str]
    body_of: array[int]
    starts: array[int]
    inputs: array[int]

    def name(self, node: int) -> str:
        """The name of the task of a node."""
        return self.names[self.body_of[node]]

    def sources(self, node: int) -> list[int]:
        """The nodes whose values a node takes, each once, in the order of its parameters."""
        return list(dict.fromkeys(x for x in self.inputs[self.starts[node] : self.starts[node + 1]] if x >= 0))


def write_outline(directory: str, flow: Flow, **about: Any) -> None:
    """Write the outline of a flow that runs in `directory`. Where there is no room, there is none: nothing depends on it."""
    import json

    head = {
        "form": _FORM,
        "began": time.time() - LASTING,
        "pid": os.getpid(),
        "command": sys.argv[:20],
        "nodes": flow.count,
        "inputs": len(flow.inputs),
        "names": [body.name for body in flow.bodies],
        **about,
    }
    path = os.path.join(directory, NAME)
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(head, default=str).encode("ascii") + b"\n")
            for column in (flow.body_of, flow.starts, flow.inputs):
                file.write(memoryview(column))
        os.rename(f"{path}.new", path)  # whole, or not there
    except OSError:
        pass


def read_outline(directory: str) -> Outline | None:
    """The outline of the run in `directory`; None where it has not been written, or by another version."""
    import json

    try:
        fd = os.open(os.path.join(directory, NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(fd, "rb") as file:
        try:
            about = json.loads(file.readline())
            if about["form"] != _FORM:
                return None
            columns = array("i"), array("q"), array("q")
            for column, count in zip(columns, (about["nodes"], about["nodes"] + 1, about["inputs"]), strict=True):
                column.fromfile(file, count)
        except (ValueError, KeyError, TypeError, EOFError):
            return None
    return Outline(about, about.pop("names"), *columns)
