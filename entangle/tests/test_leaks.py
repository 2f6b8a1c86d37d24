"""The check that every test leaves nothing behind must be able to fail. So here, tests that leave
something behind are caught."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .callers import ROOT

LEAKS = """
import os, subprocess, threading, time
from entangle.process import process
from entangle.tests import bodies

kept = []

def test_child():
    kept.append(subprocess.Popen(["sleep", "4"]))

def test_zombie():
    if os.fork() == 0:
        os._exit(0)

def test_orphan():
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(4)
        os._exit(0)
    os.waitpid(child, 0)

def test_thread():
    threading.Thread(target=time.sleep, args=(2,)).start()

def test_descriptor():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_run(tmp_path):
    kept.append(process(bodies.linger)(str(tmp_path / "log"), 3)(proc=True))

def test_nothing():
    kept[-1].result()
    assert process(bodies.one)()(start="forkserver") == 1
"""
TOLD = {
    "test_child": "sleep 4",
    "test_zombie": "a zombie",
    "test_orphan": "lives on without its parent",
    "test_thread": "the thread 'Thread-",
    "test_descriptor": "/dev/null",
    "test_run": "the run directory",
}


@pytest.mark.timeout(120)
def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "entangle.tests.conftest", "-p", "no:cacheprovider", "test_leaks.py"]
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_TESTS_PATIENCE": "0.3"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert "7 passed, 6 errors" in done.stdout, done.stdout + done.stderr
    parts = done.stdout.split("ERROR at teardown of ")
    assert len(parts) == 7
    for part in parts[1:]:
        name = part.split()[0]
        assert TOLD[name] in part
