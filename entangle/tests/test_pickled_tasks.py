"""Tasks and calls that a program pickles itself, for another of its processes or for another
library's pool."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from entangle.process import process

from . import bodies

_SCRIPT = """
import copy, multiprocessing, pickle, subprocess, sys
import cloudpickle
from concurrent.futures import ProcessPoolExecutor
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

@process
def more(x): return x + 1

@thread
@process
def stacked(x): return x + 2

class Kind:
    @process
    def method(self, x): return x + 3
    @staticmethod
    @process
    def static(x): return x + 4

@workflow
def twice(x): return more(more(x))

def local(by):
    @process
    def inner(x): return x + by
    return inner

def run(call): return call()

def read_elsewhere(pickled):
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)())"
    return int(subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True).stdout)

if __name__ == "__main__":
    tasks = {more: 2, stacked: 3, Kind.static: 5, local(5): 6, process(lambda x: x + 6): 7, twice: 3}
    assert pickle.loads(pickle.dumps(more)) is more
    for task, wanted in tasks.items():
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(task, protocol))(1)() == wanted
            assert pickle.loads(pickle.dumps(task(1), protocol))() == wanted
    assert pickle.loads(pickle.dumps(Kind().method))(1)() == 4
    assert read_elsewhere(pickle.dumps(more(more(1)))) == read_elsewhere(cloudpickle.dumps(more(more(1)))) == 3
    calls = [task(1) for task in tasks]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(sys.argv[1])) as pool:
        assert list(pool.map(run, calls)) == list(tasks.values())
        assert repr(pool.submit(more, 1).result()) == "<call more(1)>"
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        assert pool.map(run, calls) == list(tasks.values())
    print("all")
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_tasks_and_calls_of_a_script_go_to_pools(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    ran = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=110)
    assert (ran.stdout, ran.stderr) == ("all\n", "")


def test_a_task_of_a_module_is_found_by_its_name() -> None:
    from .made_classes import same

    assert pickle.loads(pickle.dumps(same)) is same


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_tasks_are_values_of_tasks(start: Any) -> None:
    """Also if the other process has another main module; with the variables of their closures."""
    by = [1]

    @process
    def inner(x: int) -> int:
        return x + by[0]

    @process
    def made() -> Any:
        return inner, inner(2)

    task, call = process(lambda held: held)(made())(start=start)
    assert (task(1)(), call()) == (2, 3)


def test_copies_of_tasks_and_calls() -> None:
    add = process(bodies.add)
    assert copy.copy(add) is copy.deepcopy(add) is add
    numbers = [1, 2]
    call = process(len)(numbers)
    deep, flat = copy.deepcopy(call), copy.copy(call)
    numbers.append(3)
    assert (deep(), flat(), call()) == (2, 3, 3)
