"""Progress: on a terminal, for runs that take a while, and never anywhere else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import textwrap
from pathlib import Path

import pytest

from .callers import Caller, output_of
from .ways import needed

SLOW = """
    import time
    import entangle
    from entangle.process import process

    @process
    def nap(n):
        time.sleep(0.25)
        return n

    @process
    def total(*values):
        return sum(values)

    def chain(n):
        call = nap(1)
        for _ in range(n - 1):
            call = nap(call)
        return call

    flow = total(chain(9), chain(9))
"""
HOW = {
    "by an argument": "print('answer', flow(progress=True))",
    "by a block": "with entangle.progress():\n        print('answer', flow())",
    "by the environment": "print('answer', flow())",
}


def on_a_terminal(caller: Caller) -> str:
    """Run a script with a terminal of its own, and give what it shows there."""
    ours, theirs = pty.openpty()
    try:
        caller.environment["TERM"] = "xterm-256color"
        caller.environment["COLUMNS"] = "120"
        caller.start(stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            if select.select([ours], [], [], 30)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                shown += part
            elif caller.process.poll() is not None:
                break
        assert caller.process.wait(30) == 0, shown.decode()
    finally:
        caller.stop()
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.parametrize("how", HOW)
def test_on_a_terminal(tmp_path: Path, how: str) -> None:
    needed("rich")
    environment = {"ENTANGLE_PROGRESS": "1"} if how == "by the environment" else {}
    shown = on_a_terminal(Caller(tmp_path, SLOW + "\n    " + HOW[how] + "\n", **environment))
    assert "answer 2" in shown
    for word in ("done", "running", "waiting"):
        assert word in shown.lower(), shown
    assert re.search(r"\d+\s*/\s*19|19", shown)


@pytest.mark.parametrize("how", HOW)
def test_not_on_a_terminal(tmp_path: Path, how: str) -> None:
    environment = {"ENTANGLE_PROGRESS": "1"} if how == "by the environment" else {}
    source = SLOW.replace("0.25", "0.08") + "\n    " + HOW[how] + "\n"
    caller = Caller(tmp_path, source, **environment).start()
    assert caller.finish() == (0, "answer 2\n", "")


def test_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    shown = on_a_terminal(Caller(tmp_path, SLOW.replace("0.25", "0.15") + "\n    print('answer', flow())\n"))
    assert shown.split() == ["answer", "2"]


def test_nothing_for_short_runs(tmp_path: Path) -> None:
    source = SLOW.replace("chain(9), chain(9)", "chain(1)") + "\n    print('answer', flow(progress=True))\n"
    assert on_a_terminal(Caller(tmp_path, source)).split() == ["answer", "1"]


def test_the_answer_is_not_mixed_with_the_bar(tmp_path: Path) -> None:
    """With stdout going elsewhere, the bar stays on the terminal."""
    needed("rich")
    ours, theirs = pty.openpty()
    caller = Caller(tmp_path, SLOW + "\n    print('answer', flow(progress=True))\n")
    caller.environment["TERM"] = "xterm"
    caller.start(stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        assert caller.process.stdout is not None
        while caller.process.poll() is None:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    os.read(ours, 65536)
                except OSError:
                    break
        assert caller.process.stdout.read() == "answer 2\n"
    finally:
        caller.stop()
        os.close(ours)


def test_an_error_while_progress_is_shown(tmp_path: Path) -> None:
    source = (
        SLOW
        + """
    try:
        total(chain(6), process(int)('x'))(progress=True)
    except ValueError as error:
        print('told', 'invalid literal' in str(error))
"""
    )
    assert output_of(tmp_path, source) == "told True\n"


ENDS = """
    import os, signal, time
    import entangle
    from entangle._run import progress
    from entangle.process import process
    from entangle.thread import thread

    progress.SILENT = progress.EVERY = 0.0

    @CARRIER
    def work(n):
        if n < 0:
            raise ValueError("no")
        time.sleep(0.15)
        return n

    @CARRIER
    def both(a, b):
        time.sleep(0.15)
        return a

    @CARRIER
    def endless(n):
        open("began", "w").close()
        while True:
            time.sleep(0.01)

    def began():
        while not os.path.exists("began"):
            time.sleep(0.01)

    if __name__ == "__main__":
"""
#: What a program does, what the last line says of done, running and waiting, and what else.
LAST_LINES = {
    "all done": ("both(both(work(1), work(2)), work(3))(progress=True)", ("5", "0", "0"), ""),
    "one has failed": (
        """
        try:
            both(work(work(-1)), work(2))(progress=True)
        except ValueError:
            pass
        """,
        (None, "0", "0"),
        "1 failed",
    ),
    "interrupted": (
        """
        import threading
        threading.Thread(target=lambda: (began(), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
        try:
            both(work(1), endless(work(2)))(progress=True)
        except KeyboardInterrupt:
            pass
        """,
        (None, "0", "0"),
        "1 not run",
    ),
    "cancelled": (
        """
        with entangle.progress():
            future = both(work(1), endless(work(2)))(proc=True)
            began()
            future.cancel()
            try:
                future.result()
            except BaseException:
                pass
        """,
        (None, "0", "0"),
        "1 not run",
    ),
}


@pytest.mark.parametrize(
    ("ending", "carrier"),
    # A thread that never ends cannot be ended.
    [*((ending, "process") for ending in LAST_LINES), ("all done", "thread"), ("one has failed", "thread")],
)
def test_the_last_line_of_a_run_that_is_over_says_so(tmp_path: Path, ending: str, carrier: str) -> None:
    needed("rich")
    program, counts, more = LAST_LINES[ending]
    source = textwrap.dedent(ENDS).replace("CARRIER", carrier) + textwrap.indent(textwrap.dedent(program).strip(), "    ") + "\n"
    shown = on_a_terminal(Caller(tmp_path, source))
    said = list(re.finditer(r"(\d+) done, (\d+) running, (\d+) waiting([^\r\n]*)", shown))
    assert said, shown
    last = said[-1]
    assert all(wanted in (None, found) for wanted, found in zip(counts, last.groups()[:3], strict=True)), last[0]
    assert more in last[4]


def test_a_terminal_that_goes_away_ends_no_run(tmp_path: Path) -> None:
    """A window is closed, and what was started in it with nohup goes on."""
    needed("rich")
    source = textwrap.dedent(ENDS).replace("CARRIER", "process") + textwrap.indent(
        textwrap.dedent(
            """
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            print(both(work(work(work(1))), work(2))(progress=True), flush=True)
            """
        ),
        "    ",
    )
    ours, theirs = pty.openpty()
    caller = Caller(tmp_path, source)
    caller.environment["TERM"] = "xterm"
    caller.start(stderr=theirs)
    os.close(theirs)
    try:
        os.read(ours, 1)
    finally:
        os.close(ours)
    assert caller.process.stdout is not None
    try:
        assert caller.process.stdout.read() == "1\n"
        assert caller.process.wait(20) in (0, 120)  # Python's own word for a stderr that cannot be flushed
    finally:
        caller.stop()
