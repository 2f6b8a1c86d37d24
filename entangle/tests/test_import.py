"""Importing any module of the package starts nothing, opens nothing and changes nothing."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from typing import Any, cast

import cloudpickle
import pytest

import entangle
from entangle.errors import OptionError

from .callers import ROOT

#: `entangle.logging` is there to configure logging when it is imported. The tests are not imported
#: by users.
EXCEPT = ("entangle.logging.", "entangle.tests")

MODULES = sorted(module.name for module in pkgutil.walk_packages(entangle.__path__, "entangle.") if not module.name.startswith(EXCEPT))

_WATCH = """
import json, os, signal, sys, threading

WATCHED = {
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn",
    "_thread.start_new_thread", "_thread.start_joinable_thread", "socket.__new__", "socket.bind", "socket.connect",
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.chmod", "os.putenv", "os.unsetenv",
    "signal.pthread_kill", "os.kill", "mmap.__new__", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp",
}
heard = []

def hear(event, arguments):
    if event in WATCHED:
        heard.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        heard.append(f"open {arguments[0]}")

def state():
    numbers = sorted(n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP))
    return {
        "signals": [str(signal.getsignal(n)) for n in numbers],
        "threads": threading.active_count(),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook)],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "affinity": sorted(os.sched_getaffinity(0)),
        "path": list(sys.path),
    }

import encodings.idna, ctypes, subprocess, socket, logging  # what the standard library does in its own imports
before = state()
sys.addaudithook(hear)
told = {}
import importlib
for name in json.loads(sys.argv[1]):
    heard.clear()
    try:
        importlib.import_module(name)
    except ImportError as error:
        told[name] = [f"cannot be imported: {error}"]
        continue
    except SystemExit:
        told[name] = ["ends the interpreter"]
        continue
    after = state()
    wrong = [*heard, *(f"{key} changed" for key in before if before[key] != after[key])]
    wrong += [f"{len(logging.getLogger().handlers)} log handlers"] if logging.getLogger().handlers else []
    if wrong:
        told[name] = wrong
    before = after
print(json.dumps(told))
"""


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_importing_any_module_does_nothing() -> None:
    assert json.loads(_python(_WATCH, json.dumps([name for name in MODULES if not name.endswith("__main__")]))) == {}


def test_there_are_modules_to_look_at() -> None:
    assert {"entangle.process", "entangle.task", "entangle._worker.worker", "entangle.examples.example"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("entangle.process", ["process", "ProcessTimeoutException", "ProcessTerminatedException", "ProcessRetryException"]),
        ("entangle.thread", ["thread", "ThreadTimeoutException", "ThreadTerminatedException"]),
        ("entangle.task", ["task"]),
        ("entangle.workflow", ["workflow"]),
        ("entangle.scheduler", ["scheduler", "DefaultScheduler"]),
        ("entangle.limit", ["limit"]),
        ("entangle.local", ["local"]),
        ("entangle.place", ["place"]),
        ("entangle.http", ["request"]),
        ("entangle.logging.info", ["logging"]),
        ("entangle.logging.debug", ["logging"]),
        ("entangle", ["progress", "__version__"]),
    ],
)
def test_the_paths_that_users_write(module: str, names: list[str]) -> None:
    code = f"from {module} import {', '.join(names)}; print({', '.join(names)})"
    assert _python(code)


def test_a_door_is_light() -> None:
    """What only some tasks need is imported where it is used."""
    code = "import sys, entangle.process; print(*sorted(sys.modules))"
    loaded = {name.partition(".")[0] for name in _python(code).split()}
    heavy = {"numpy", "httpx", "rich", "psutil", "asyncio", "multiprocessing", "sqlite3", "paramiko", "docker", "pytest"}
    heavy |= {"dataclasses", "inspect", "json", "shutil", "subprocess", "tempfile"}
    assert not loaded & heavy


@pytest.mark.parametrize("module", ["entangle._worker.keeping", "entangle._shared.identity"])
def test_what_keeps_a_failed_call_loads_little(module: str) -> None:
    """Each worker would load it anew."""
    code = f"import sys; before = {{*sys.modules}}; import {module}; print(*{{*sys.modules}} - before)"
    heavy = {"cloudpickle", "importlib.metadata", "logging", "decimal", "fractions", "uuid", "pathlib", "tempfile"}
    heavy |= {"entangle._shared.identity"} - {module}
    assert not heavy & {*_python(code).split()}


def test_doors_are_modules_and_not_shadowed() -> None:
    code = """
import types, entangle
import entangle.process, entangle.thread, entangle.task, entangle.workflow, entangle.scheduler, entangle.limit
import entangle.local, entangle.logging
for name in ("process", "thread", "task", "workflow", "scheduler", "limit", "local", "logging"):
    assert isinstance(getattr(entangle, name), types.ModuleType), name
print("modules")
"""
    assert _python(code) == "modules\n"


@pytest.mark.parametrize(
    "name",
    [
        *("dataflow", "docker", "interpreter", "limit", "local", "on", "place", "process"),
        *("scheduler", "slurm", "ssh", "task", "thread", "workflow"),
    ],
)
def test_a_module_that_is_taken_for_its_decorator_says_so(name: str) -> None:
    module = importlib.import_module(f"entangle.{name}")
    uses: list[Any] = [module, lambda function: cast("Any", module)(option=1)(function)]
    for use in uses:
        with pytest.raises(OptionError, match=f"from entangle.{name} import {name}$"):
            use(len)
    assert cloudpickle.loads(cloudpickle.dumps(module)) is module


def test_the_package_says_what_it_is() -> None:
    assert entangle.__doc__
    assert "floor" in entangle.__doc__.lower()
    assert entangle.__version__
