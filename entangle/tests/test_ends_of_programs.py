"""A program ends while a run that it has started still runs: by an error, by Ctrl-C, or
normally."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from .callers import ROOT
from .evidence import alive, wait_until
from .ways import missing

PROGRAM = """
import os, sys, time
from entangle.process import process

@process
def hang(path, seconds):
    with open(path + ".draft", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".draft", path)  # whoever finds the file finds the number in it
    time.sleep(seconds)
    open(path + ".done", "w").close()

if __name__ == "__main__":
    future = hang(sys.argv[1], float(sys.argv[2]))(proc=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    {end}
"""


def ended(tmp_path: Path, end: str, seconds: float, interrupt: bool = False) -> tuple[int, str]:
    """The exit status and the last line on stderr of the program, once its run has ended too."""
    script, pid = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(PROGRAM.replace("{end}", end))
    environment = {**os.environ, "PYTHONPATH": ROOT}
    program = subprocess.Popen([sys.executable, str(script), str(pid), str(seconds)], stderr=subprocess.PIPE, text=True, env=environment)
    if interrupt:
        wait_until(pid.exists)
        program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=40)
    number = int(pid.read_text())
    wait_until(lambda: not alive(number))
    return program.returncode, (said.splitlines() or [""])[-1]


def test_an_error_ends_what_has_been_started(tmp_path: Path) -> None:
    assert ended(tmp_path, "raise ValueError('no')", 300) == (1, "ValueError: no")
    assert not (tmp_path / "pid.done").exists()


@pytest.mark.parametrize("end", ["future.result()", "time.sleep(300)"])
def test_ctrl_c_ends_what_has_been_started(end: str, tmp_path: Path) -> None:
    assert ended(tmp_path, end, 300, interrupt=True) == (-signal.SIGINT, "KeyboardInterrupt")


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)"])
def test_a_program_that_ends_in_good_order_gets_what_it_has_started(end: str, tmp_path: Path) -> None:
    assert ended(tmp_path, end, 1) == (0, "")
    assert (tmp_path / "pid.done").exists()


def test_the_first_process_of_a_container_ends_by_sigterm(tmp_path: Path) -> None:
    """The kernel ends no such process by a signal that it does not handle."""
    script, begun = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(PROGRAM.partition("    future = ")[0] + "    hang(sys.argv[1], 300)()\n")
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, str(script), str(begun)]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    wait_until(lambda: begun.exists() or program.poll() is not None)
    if program.poll() is None:
        (first,) = psutil.Process(program.pid).children()
        first.terminate()
    _, said = program.communicate(timeout=40)
    if "unshare" in said:
        missing(f"a namespace of process ids, which root may make: {said}")
    assert program.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
