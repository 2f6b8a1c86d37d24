"""Inside Jupyter: functions of a notebook, a kernel full of threads, a loop that already runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .callers import ROOT
from .ways import missing

CELLS = [
    """
import os
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

class Point:
    def __init__(self, x):
        self.x = x

scale = 10

@process
def one():
    return 1

@process
def add(a, b):
    return a + b

@process
def point(x):
    print("a body prints")
    return Point(x * scale)

@process
def fail():
    raise KeyError("from a body")
""",
    "print(add(add(one(), 2), thread(lambda: 3)())())",
    "p = point(add(1, 1))()\nprint(type(p) is Point, p.x)",
    "print(await add(one(), 5))",
    "import asyncio\nprint(await asyncio.gather(add(1, one()), add(2, one())))",
    "try:\n    add(1, fail())()\nexcept KeyError as error:\n    print('caught', error, 'add → fail' in str(error.__notes__))",
    "scale = 100\nprint(point(1)().x)",
    "@workflow\ndef flow(n):\n    return add(n, one())\nprint(flow(3)())",
    "add(1, one())",
    "import json\nprint(json.dumps(add(one(), 1).graph()))",
    "print('graph', add(one(), 1)(progress=True))",
    "for how in ('fork', 'forkserver', 'spawn'):\n    print(how, point(1)(start=how).x, add(one(), 1)(start=how))",
]


def _notebook(cells: list[str]) -> dict[str, Any]:
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {"cell_type": "code", "id": f"cell{number}", "metadata": {}, "source": cell, "outputs": [], "execution_count": None}
            for number, cell in enumerate(cells)
        ],
    }


@pytest.mark.timeout(180)
def test_a_notebook(tmp_path: Path) -> None:
    for needed in ("nbconvert", "ipykernel"):
        if importlib.util.find_spec(needed) is None:
            missing(f"{needed} is not installed")
    source, result = tmp_path / "book.ipynb", tmp_path / "done.ipynb"
    source.write_text(json.dumps(_notebook(CELLS)))
    runs = tmp_path / "runs"
    runs.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", str(source), "--output", result.name],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": ROOT,
            "ENTANGLE_RUN_DIR": str(runs),
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        },
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    outputs = []
    for cell in json.loads(result.read_text())["cells"]:
        text = ""
        for output in cell["outputs"]:
            told = output.get("text", output.get("data", {}).get("text/plain", ""))
            text += "".join(told)
        outputs.append(text)
    assert outputs[1] == "6\n"
    assert "a body prints" in outputs[2]  # in the notebook, under the cell that ran it
    assert "True 20" in outputs[2]
    assert outputs[3] == "6\n"
    assert outputs[4] == "[2, 3]\n"
    assert outputs[5] == "caught 'from a body' True\n"
    assert "100" in outputs[6].split()
    assert outputs[7] == "4\n"
    assert "add" in outputs[8]  # what a call looks like when a cell ends with one
    assert json.loads(outputs[9]) == {"add": [{"one": []}, {"1": []}]}
    assert outputs[10].startswith("graph 2")
    for how in ("fork", "forkserver", "spawn"):
        assert f"{how} 100 2" in outputs[11]
    assert list(runs.glob("entangle-*/*")) == []
