"""Jupyter and marimo: functions of a notebook, a kernel with many threads, an event loop that
already runs, and what the notebook displays."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

import entangle
from entangle.dataflow import dataflow
from entangle.process import process

from .bodies import add, one
from .callers import ROOT
from .shown_programs import programs_of
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
    "try:\n    add(1, fail())()\nexcept KeyError as error:\n    print('caught', error, 'add(1, fail()) → fail' in str(error.__notes__))",
    "scale = 100\nprint(point(1)().x)",
    "@workflow\ndef flow(n):\n    return add(n, one())\nprint(flow(3)())",
    "add(1, one())",
    "import json\nprint(json.dumps(add(one(), 1).graph()))",
    "print('graph', add(one(), 1)(progress=True))",
    "for how in ('fork', 'forkserver', 'spawn'):\n    print(how, point(1)(start=how).x, add(one(), 1)(start=how))",
    """
for how in ('fork', 'forkserver', 'spawn'):
    try:
        fail()(start=how)
    except KeyError as error:
        print(how, 'raise KeyError("from a body")' in str(error.__cause__))
""",
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
    assert "a body prints" in outputs[2]  # in the notebook, below the cell that ran it
    assert "True 20" in outputs[2]
    assert outputs[3] == "6\n"
    assert outputs[4] == "[2, 3]\n"
    assert outputs[5] == "caught 'from a body' True\n"
    assert "100" in outputs[6].split()
    assert outputs[7] == "4\n"
    assert "add" in outputs[8]  # how a call is displayed when it is the value of a cell
    assert json.loads(outputs[9]) == {"add": [{"one": []}, {"1": []}]}
    assert outputs[10].endswith("graph 2\n")  # its progress may come before it
    for how in ("fork", "forkserver", "spawn"):
        assert f"{how} 100 2" in outputs[11]
        assert f"{how} True" in outputs[12]  # the line of the cell that failed
    assert list(runs.glob("entangle-*/*")) == []


def test_the_page_on_notebooks_shows_what_runs(tmp_path: Path) -> None:
    shown = programs_of("how_to/notebooks.md")["study.ipynb"]
    (cell,) = shown_in_jupyter(tmp_path, [shown.code])
    assert cell.errors == []
    assert f"{cell.value['text/plain']}\n" == shown.printed


STUDY = """
import time
import entangle
from entangle._run.progress import following, notebook
following.SILENT = following.EVERY = notebook.EVERY = 0.0

from entangle.dataflow import dataflow
from entangle.process import process
from entangle.thread import thread

@process
def load(n):
    time.sleep(0.1)
    print("loaded", n)
    return n

@process
def total(*values):
    return sum(values)

@thread
def fail(n):
    raise ValueError("no")

@dataflow
def odd(n):
    time.sleep(0.02)
    return n

def study(n):
    return total(*[load(i) for i in range(n)])
"""


class Cell(NamedTuple):
    """What a cell has displayed: its text, and all states of each display, by display id."""

    text: str
    displays: dict[str, list[dict[str, str]]]
    errors: list[str]
    value: dict[str, str]


#: Acts as a front end: reads cells, runs them, and writes all messages of each. It needs a process
#: of its own, since the library leaves its event loop open.
FRONT_END = """
import json, os, sys
from jupyter_client.manager import KernelManager

manager = KernelManager(kernel_name="python3", connection_file=os.path.abspath("connection.json"), transport="ipc")
manager.start_kernel()
client = manager.client()
client.start_channels()
try:
    client.wait_for_ready(timeout=60)
    for cell in json.load(sys.stdin):
        number, messages, over = client.execute(cell), [], False
        while not over:
            message = client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            assert message["parent_header"].get("msg_id") == number, (kind, content)
            messages.append((kind, content))
            over = kind == "status" and content["execution_state"] == "idle"
        print(json.dumps(messages))
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


def shown_in_jupyter(folder: Path, cells: list[str]) -> list[Cell]:
    """Run cells in a Jupyter kernel, one after the other. Return what the kernel sends to a front
    end for each."""
    for name in ("jupyter_client", "ipykernel"):
        if importlib.util.find_spec(name) is None:
            missing(f"{name} is not installed")
    (folder / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FRONT_END],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(folder / "runs"), "IPYTHONDIR": str(folder / "ipython")},
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return [_cell(json.loads(line)) for line in done.stdout.splitlines()]


def _cell(messages: list[tuple[str, Any]]) -> Cell:
    text = "".join(content["text"] for kind, content in messages if kind == "stream")
    cell = Cell(text, {}, [content["ename"] for kind, content in messages if kind == "error"], {})
    for kind, content in messages:
        if kind in ("display_data", "update_display_data"):
            states = cell.displays.setdefault(content["transient"]["display_id"], [])
            assert bool(states) == (kind == "update_display_data")
            states.append(content["data"])
        elif kind == "execute_result":
            cell.value.update(content["data"])
    return cell


def said_by(states: list[dict[str, str]]) -> list[str]:
    return [re.sub(r"\b\d+:\d\d\b", "TIME", state["text/plain"]) for state in states]


WRITTEN = [
    "study(4)(progress=True)",
    "study(4).run(progress=True)",
    "with entangle.progress(): await study(4)",
    "with entangle.progress(): study(4)(proc=True).result()",
    "study(4)(start='spawn', progress=True)",
]
SEVERAL = """
import asyncio
with entangle.progress():
    await asyncio.gather(study(2), study(3))
    print(sum(n for n, in odd().stream(range(20))))
"""


@pytest.mark.timeout(180)
def test_progress_in_a_notebook(tmp_path: Path) -> None:
    """Each run has one display, below its cell. The display changes, and its last state is
    right."""
    more = ["total(fail(load(1)))(progress=True)", SEVERAL, "study(3)"]
    _, *cells, failed, several, drawn = shown_in_jupyter(tmp_path, [STUDY, *WRITTEN, *more])
    for written, cell in zip(WRITTEN, cells, strict=True):
        assert cell.errors == [], written
        (states,) = cell.displays.values()
        said = said_by(states)
        assert len(said) > 1, written
        assert re.fullmatch(r"load \d/4, total 0/1 · (\?|TIME\+) left", said[0]), said
        assert said[-1] == "5 done, 0 running, 0 waiting in TIME"
        assert said.count(said[-1]) == 1
        page = states[-1]["text/html"]
        assert "<b>total</b> · 5 done, 0 running, 0 waiting" in page
        assert 'aria-label="load" aria-valuemin="0" aria-valuemax="4" aria-valuenow="4"' in page
        assert not re.search("<script|<style|http", page)
        assert sorted(cell.text.splitlines()) == [f"loaded {n}" for n in range(4)], written  # as without progress

    assert failed.errors == ["ValueError"]
    (states,) = failed.displays.values()
    assert said_by(states)[-1] == "failed in fail after TIME · 1 of 3 done · 1 failed, 1 not run"
    assert "1 failed" in states[-1]["text/html"]

    assert several.errors == []
    assert sorted(said_by(states)[-1] for states in several.displays.values()) == [
        "3 done, 0 running, 0 waiting in TIME",
        "4 done, 0 running, 0 waiting in TIME",
        "done 20 items in TIME",
    ]
    assert "190\n" in several.text

    # A cell whose value is a call displays its graph.
    assert drawn.value["text/plain"] == "<call total(load(…), load(…), load(…))>"
    assert texts_of(drawn.value["text/html"]) == ["load", "0", "load", "1", "load", "2", "total"]
    assert drawn.text == ""


def texts_of(page: str) -> list[str]:
    """The texts in a picture. It must be XML, and use the colours of the page."""
    root = ElementTree.fromstring(page)
    assert not re.search("<script|<style|<img|href|url[(]|prefers-color", page)
    assert root[0].get("fill") == "currentColor"
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def arrows_of(page: str) -> int:
    return page.count("stroke-width")


def page_of(call: Any) -> str:
    page = call._repr_html_()
    assert isinstance(page, str)
    return page


def test_a_call_is_drawn() -> None:
    x = process(one)()
    page = page_of(process(add)(x, process(add)(x, b=(1, 2)).named("fold 3")))
    assert texts_of(page) == ["one", "fold 3", "add(b=(1, 2))", "add"]
    assert arrows_of(page) == 3
    anything: Any = process(one)
    assert texts_of(page_of(anything.map([]))) == ["one.map"]
    assert texts_of(page_of(entangle.gather(x, x))) == ["one", "gather"]


def test_a_picture_of_many_calls_has_a_box_for_each_task() -> None:
    page = page_of(process(len)([process(add)(process(one)(), n) for n in range(20_000)]))
    assert texts_of(page) == ["one", "20,000 calls", "add", "20,000 calls", "len", "1 call"]
    assert arrows_of(page) == 2
    chain = process(one)()
    for _ in range(3000):
        chain = process(add)(chain, 1)
    assert texts_of(page_of(chain)) == ["one", "1 call", "add", "3,000 calls"]


def test_a_dataflow_is_drawn() -> None:
    first: Any = dataflow(str)
    second: Any = dataflow(abs)
    shared = second()
    page = page_of(first(shared, first(shared), lambda x: None))
    assert texts_of(page) == ["str", "abs", "str", "<lambda>"]
    assert arrows_of(page) == 4
    many = first(*[second() for _ in range(60)])
    assert texts_of(page_of(many)) == ["str", "1 node", "abs", "60 nodes"]


def test_nothing_in_a_picture_is_read_as_html() -> None:
    def odd(text: str, token: str = "") -> str:
        return text

    odd.__name__ = "<b onclick=alert(1)>&\x1b\ud800"
    page = page_of(process(odd)("</svg><script>alert(1)</script>&\x00", token="hunter2").named("<i>'\"&"))
    assert "hunter2" not in page
    assert texts_of(page)[0] == "<i>'\"&"
    assert "script" not in "".join(element.tag for element in ElementTree.fromstring(page).iter())


def test_secrets_are_masked_in_a_picture() -> None:
    def connect(host: str, password: str, url: str = "") -> None: ...

    page = page_of(process(connect)("db", "hunter2", url="https://me:hunter3@db/x"))
    assert "hunter" not in page
    assert "db" in page


def test_a_call_that_cannot_be_run_has_no_picture() -> None:
    endless: list[Any] = [process(one)()]
    endless.append(endless)
    assert process(len)(endless)._repr_html_() is None


def test_names_in_a_notebook_are_text() -> None:
    """Whatever the name of a task is, it is never interpreted as HTML."""
    from entangle._run.progress.notebook import html_of
    from entangle._run.progress.tally import Count
    from entangle._run.progress.wording import View

    name = "<img src=x onerror=alert(1)>\"'&"
    page = html_of(View("", name, [Count(name, 4, 1, failed=1, running=1), Count("empty")], 1.0))
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;") == 3
    assert "empty" not in page


def test_a_notebook_shows_so_many_rows() -> None:
    from entangle._run.progress.notebook import ROWS, html_of
    from entangle._run.progress.tally import Count
    from entangle._run.progress.wording import View

    counts = [Count(f"task_{n}", 4, 1, running=n == 77) for n in range(100)]
    page = html_of(View("", "study", counts, 1.0))
    assert page.count("<tr") == ROWS + 1
    assert ">task_77<" in page
    assert f">{100 - ROWS} more<" in page


NOTEBOOK = """
    import marimo

    app = marimo.App()


    @app.cell
    def _():
        import time
        import marimo as mo
        import entangle
        from entangle._run.progress import following, notebook
        from entangle.process import process

        following.SILENT = following.EVERY = notebook.EVERY = 0.0
        states = []
        put = mo.output.replace_at_index

        def watched(value, place):
            put(value, place)
            states.append((place, value.text))

        mo.output.replace_at_index = watched

        @process
        def load(n):
            time.sleep(0.1)
            return n

        @process
        def total(*values):
            return sum(values)

        def study(n):
            return total(*[load(i) for i in range(n)])

        return entangle, load, mo, states, study


    @app.cell
    def _(mo, states, study):
        mo.output.append("what was there")
        study(4)(progress=True)
        print("places", sorted({place for place, _ in states}), len(states) > 2)
        done = True
        return (done,)


    @app.cell
    async def _(done, entangle, states, study):
        states.clear()
        with entangle.progress():
            print("awaited", await study(5))
        print("places", sorted({place for place, _ in states}), len(states) > 2)
        return


    @app.cell
    def _(load):
        load("a text")
        return


    if __name__ == "__main__":
        app.run()
"""


@pytest.mark.timeout(180)
def test_a_notebook_of_marimo(tmp_path: Path) -> None:
    """A marimo program, run by marimo: what its cells display in the end."""
    if importlib.util.find_spec("marimo") is None:
        missing("marimo is not installed: pip install marimo-base")
    (tmp_path / "book.py").write_text(textwrap.dedent(NOTEBOOK))
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "marimo", "-q", "export", "session", "book.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path / "runs"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    session = json.loads((tmp_path / "__marimo__" / "session" / "book.py.json").read_text())
    cells = [(str(cell["outputs"]), "".join(part.get("text", "") for part in cell["console"])) for cell in session["cells"]]
    assert "what was there" in cells[1][0]
    assert "<b>total</b> · 5 done, 0 running, 0 waiting" in cells[1][0]
    assert cells[1][1] == "places [1] True\n"
    assert "<b>total</b> · 6 done, 0 running, 0 waiting" in cells[2][0]
    assert cells[2][1] == "awaited 10\nplaces [0] True\n"
    assert "<svg" in cells[3][0]
    assert "a text" in cells[3][0]
