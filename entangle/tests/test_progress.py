"""Progress: on a terminal a line for each task name, in a log plain lines, and a last line that is
right.

Progress in notebooks: `test_jupyter.py`.
"""

from __future__ import annotations

import os
import pty
import re
import textwrap
import time
import types
from pathlib import Path

import pytest

from entangle._run.progress import wording
from entangle._run.progress.tally import BLOCK, Count, Left, Tally
from entangle._run.progress.wording import View
from entangle._shared.table import BEGUN, DONE, FAILED, NODE, RECORD, RUNNING, SINCE, SLOT, WAITING, Table
from entangle.task import compile_call
from entangle.thread import thread

from .callers import Caller, output_of
from .screens import Screen, on_a_terminal, plain

#: `SILENT = 0`: a run is shown from the first look on.
SOON = """
    import os, signal, sys, threading, time
    import entangle
    from entangle._run.progress import following
    from entangle.dataflow import dataflow
    from entangle.process import process
    from entangle.thread import thread
    from entangle.workflow import workflow

    following.SILENT = following.EVERY = 0.0

    def wait_for(name):
        while not os.path.exists(name):
            time.sleep(0.01)

    @process
    def load(n):
        time.sleep(0.1)
        return n

    @process
    def train(n):
        time.sleep(0.1)
        return n

    @process
    def total(*values):
        return sum(values)

    @process
    def fail(n):
        raise ValueError("no")

    @process
    def endless(n):
        open("began", "w").close()
        while True:
            time.sleep(0.01)

    def study(n):
        return total(*[train(load(i)) for i in range(n)])
"""


def script(program: str, soon: str = SOON) -> str:
    """A script that can be imported, as spawn requires."""
    program = textwrap.indent(textwrap.dedent(program).strip(), "    ")
    return textwrap.dedent(soon) + "\nif __name__ == '__main__':\n" + program + "\n"


SLOW = """
    import time
    import entangle
    from entangle.process import process

    @process
    def nap(n):
        time.sleep(0.2)
        return n

    @process
    def total(*values):
        return sum(values)

    def chain(n):
        call = nap(1)
        for _ in range(n - 1):
            call = nap(call)
        return call
"""
HOW = {
    "by an argument": "print('answer', total(chain(8), chain(8))(progress=True))",
    "by a block": "with entangle.progress():\n    print('answer', total(chain(8), chain(8))())",
    "by the environment": "print('answer', total(chain(8), chain(8))())",
}


def lines_of(shown: str, columns: int = 120) -> list[str]:
    """The lines on the screen at the end."""
    return without_times(Screen(columns).feed(shown).lines)


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"\b\d+:\d\d\b", "TIME", line) for line in lines]


def environment_of(how: str) -> dict[str, str]:
    return {"ENTANGLE_PROGRESS": "1"} if how == "by the environment" else {}


@pytest.mark.parametrize("how", HOW)
def test_on_a_terminal(tmp_path: Path, how: str) -> None:
    shown = on_a_terminal(Caller(tmp_path, script(HOW[how], SLOW), **environment_of(how)))
    assert re.search(r"━─+ nap \d+/16, total 0/1 · (\d+:\d\d\+|\?) left", plain(shown)), shown
    assert lines_of(shown) == ["17 done, 0 running, 0 waiting in TIME", "answer 2"]


@pytest.mark.parametrize("how", HOW)
def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, how: str) -> None:
    status, out, err = Caller(tmp_path, script(HOW[how], SLOW), **environment_of(how)).start().finish()
    assert (status, out) == (0, "answer 2\n")
    first, *_, last = without_times(err.splitlines())
    assert re.fullmatch(r"TIME nap \d+/16, total 0/1 · (TIME\+|\?) left", first), err
    assert last == "17 done, 0 running, 0 waiting in TIME"


def test_plain_lines_on_a_terminal_that_can_do_no_better(tmp_path: Path) -> None:
    shown = on_a_terminal(Caller(tmp_path, script(HOW["by an argument"], SLOW), TERM="dumb"))
    assert "\x1b" not in shown
    assert without_times(shown.splitlines())[-2:] == ["17 done, 0 running, 0 waiting in TIME", "answer 2"]


ALL_RUNS = """
    @dataflow
    def odd(n):
        time.sleep(0.05)
        return n

    print(load(1)())
    print(odd(odd())(1))
    print(sum(n for n, in odd().stream(range(5))))
    print(sum(future.result() for future in entangle.as_completed([load(2), load(3)])))
    print(load(4)(progress=False))
"""
ALL_LINES = [
    "1 done, 0 running, 0 waiting in TIME",
    "1",
    "2 done, 0 running, 0 waiting in TIME",
    "(1,)",
    "done 5 items in TIME",
    "10",
    "2 done, 0 running, 0 waiting in TIME",
    "5",
    "4",
]


@pytest.mark.parametrize("how", ["by a block", "by the environment"])
def test_every_kind_of_run_is_shown(tmp_path: Path, how: str) -> None:
    """Except the one that has `progress=False`."""
    program = textwrap.dedent(ALL_RUNS)
    if how == "by a block":
        program = "with entangle.progress():" + textwrap.indent(program, "    ")
    assert lines_of(on_a_terminal(Caller(tmp_path, script(program), **environment_of(how)))) == ALL_LINES


def test_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert on_a_terminal(Caller(tmp_path, script(HOW["by the environment"], SLOW))).split() == ["answer", "2"]


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_nothing_for_short_runs(tmp_path: Path, where: str) -> None:
    program = """
        following.SILENT = 60.0
        print('answer', study(2)(progress=True))
    """
    caller = Caller(tmp_path, script(program))
    if where == "terminal":
        assert on_a_terminal(caller).split() == ["answer", "1"]
    else:
        assert caller.start().finish() == (0, "answer 1\n", "")


def test_nothing_else_is_needed(tmp_path: Path) -> None:
    """No other packages than those that entangle itself needs."""
    program = """
        print(study(2)(progress=True), sorted({'rich', 'tqdm', 'IPython'} & set(sys.modules)))
    """
    assert lines_of(on_a_terminal(Caller(tmp_path, script(program))))[-1] == "1 []"


def test_the_answer_is_not_mixed_with_the_line(tmp_path: Path) -> None:
    """If stdout is redirected, the progress stays on the terminal, and what is printed meanwhile
    goes to stdout."""
    program = """
        @thread
        def note(n):
            print("noted", n)
            time.sleep(0.2)
            return n

        print('answer', note(note(1))(progress=True))
    """
    with open(tmp_path / "out", "wb") as out:
        shown = on_a_terminal(Caller(tmp_path, script(program)), stdout=out.fileno())
    assert (tmp_path / "out").read_text() == "noted 1\nnoted 1\nanswer 1\n"
    assert lines_of(shown) == ["2 done, 0 running, 0 waiting in TIME"]


#: What a program does, and the last line on its terminal.
ENDS = {
    "all done": ("study(2)(progress=True)", "5 done, 0 running, 0 waiting in TIME"),
    "one has failed": (
        """
        try:
            total(load(1), train(fail(train(1))))(progress=True)
        except ValueError:
            pass
        """,
        r"failed in fail after TIME · [12] of 5 done · 1 failed, (1 stopped, )?2 not run",
    ),
    "interrupted": (
        """
        threading.Thread(target=lambda: (wait_for("began"), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
        try:
            total(load(1), endless(load(2)))(progress=True)
        except KeyboardInterrupt:
            pass
        """,
        r"interrupted after TIME · [12] of 4 done · [12] stopped, 1 not run",
    ),
    "cancelled": (
        """
        with entangle.progress():
            future = total(load(1), endless(load(2)))(proc=True)
            wait_for("began")
            future.cancel()
            try:
                future.result()
            except BaseException:
                pass
        """,
        r"cancelled after TIME · [12] of 4 done · [12] stopped, 1 not run",
    ),
    "terminated": (
        """
        pid = os.fork()
        if pid:
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
        else:
            threading.Thread(target=lambda: (wait_for("began"), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
            total(load(1), endless(load(2)))(progress=True)
        """,
        r"terminated after TIME · [12] of 4 done · [12] stopped, 1 not run",
    ),
}


@pytest.mark.parametrize(
    ("where", "ending"), [*(("terminal", ending) for ending in ENDS), ("pipe", "all done"), ("pipe", "one has failed")]
)
def test_the_last_line_says_how_a_run_has_ended(tmp_path: Path, ending: str, where: str) -> None:
    program, last = ENDS[ending]
    caller = Caller(tmp_path, script(program))
    if where == "terminal":
        lines = lines_of(on_a_terminal(caller))
        assert len(lines) == 1, lines  # the line that moved is gone
    else:
        lines = without_times(caller.start().finish()[2].splitlines())
    assert re.fullmatch(last, lines[-1]), lines


def test_ctrl_c_leaves_the_terminal_whole(tmp_path: Path) -> None:
    """Ctrl-C is typed on the terminal, in which the script is the foreground process."""
    program = """
        import fcntl, termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        before = termios.tcgetattr(0)

        @process
        def endless_and_says(n):
            print("it has begun")
            endless.function(n)

        try:
            total(load(1), endless_and_says(load(2)))(progress=True)
        except KeyboardInterrupt:
            print("whole", termios.tcgetattr(0) == before, "write" not in vars(sys.stderr))
    """
    caller = Caller(tmp_path, script(program))
    typed: list[bytes] = []

    def press(shown: str) -> bytes | None:
        if "it has begun" in shown and not typed:
            typed.append(b"\x03")
            return typed[0]
        return None

    _, first, second = lines_of(on_a_terminal(caller, seen=press))
    assert re.fullmatch(r"interrupted after TIME · [12] of 4 done · [12] stopped, 1 not run", first), first
    assert second == "whole True True"


def test_the_last_line_of_threads(tmp_path: Path) -> None:
    program = """
        @thread
        def nap(n):
            time.sleep(0.1)
            return n

        nap(nap(1))(progress=True)
    """
    assert lines_of(on_a_terminal(Caller(tmp_path, script(program)))) == ["2 done, 0 running, 0 waiting in TIME"]


def test_an_error_while_progress_is_shown(tmp_path: Path) -> None:
    program = """
        try:
            total(chain(6), process(int)('x'))(progress=True)
        except ValueError as error:
            print('told', 'invalid literal' in str(error))
    """
    assert output_of(tmp_path, script(program, SLOW)) == "told True\n"


@pytest.mark.parametrize("carrier", ["process", "thread"])
def test_what_is_printed_meanwhile_stays_whole(tmp_path: Path, carrier: str) -> None:
    """Lines of stdout and stderr appear above the progress: whole, once each, and in order."""
    program = f"""
        import logging
        logging.basicConfig(level="INFO", format="%(message)s")  # it keeps sys.stderr as it is now

        @{carrier}
        def say(n):
            time.sleep(0.02)
            print("out", n, "x" * 40)
            print("err", n, "y" * 100, file=sys.stderr)
            logging.info("log %s", n)
            print("two\\nlines", n)
            if {carrier == "process"}:
                os.system("echo a program prints")
            return n

        @{carrier}
        def say_in_parts(n):
            print("begun", end=" ", flush=True)
            time.sleep(0.02)
            print("ended", n)
            return n

        call = say(0)
        for _ in range(5):
            call = train(say(call))
        say_in_parts(train(call))(progress=True)
    """
    shown = on_a_terminal(Caller(tmp_path, script(program)), columns=80)
    lines = lines_of(shown, 80)
    assert lines[-1] == "13 done, 0 running, 0 waiting in TIME", "\n".join(lines)
    said = "\n".join(lines[:-1])
    for text in ("out 0 " + "x" * 40, "two\nlines 0"):
        assert said.count(text) == 6, said
    assert said.replace("\n", "").count("err 0 " + "y" * 100) == 6, said
    if carrier == "thread":  # workers write no logs unless configured to
        assert said.count("log 0") == 6, said
    assert "begun ended 0" in said
    assert said.count("\na program prints") == (6 if carrier == "process" else 0), said
    assert "━" not in said


@pytest.mark.parametrize("silent", [0.0, 0.2])
def test_a_prompt_stays_whole(tmp_path: Path, silent: float) -> None:
    """Progress never overwrites an unfinished line of output, even if it began before progress was
    shown."""
    program = f"""
        following.SILENT = {silent}
        future = total(train(endless_until(1)))(proc=True, progress=True)
        wait_for("began")
        print("your name? ", end="", flush=True)
        time.sleep(0.3)
        open("go on", "w").close()
        future.result()
    """
    body = """
        @process
        def endless_until(n):
            open("began", "w").close()
            wait_for("go on")
            return n
    """
    shown = on_a_terminal(Caller(tmp_path, script(program, SOON + body.replace("\n        ", "\n    "))))
    assert lines_of(shown) == ["your name?", "3 done, 0 running, 0 waiting in TIME"]


@pytest.mark.parametrize("columns", [20, 40])
def test_a_narrow_terminal(tmp_path: Path, columns: int) -> None:
    shown = on_a_terminal(Caller(tmp_path, script("study(4)(progress=True)")), columns=columns)
    assert "".join(lines_of(shown, columns)) == "9 done, 0 running, 0 waiting in TIME"


def test_several_runs_at_once_have_a_line_each(tmp_path: Path) -> None:
    program = """
        @process
        def other(n):
            time.sleep(0.5)
            return n

        with entangle.progress():
            futures = [study(3)(proc=True), other(other(1))(proc=True)]
            [future.result() for future in futures]
    """
    seen: list[list[str]] = []
    shown = on_a_terminal(Caller(tmp_path, script(program)), seen=lambda text: seen.append(lines_of(text)))
    both = [lines for lines in seen if len(lines) == 2 and {"total: load", "other: other"} <= set(re.findall(r"\w+: \w+", str(lines)))]
    assert both, seen
    assert sorted(lines_of(shown)) == ["other: 2 done, 0 running, 0 waiting in TIME", "total: 7 done, 0 running, 0 waiting in TIME"], shown


def test_what_a_workflow_runs_counts_with_it(tmp_path: Path) -> None:
    program = """
        @workflow
        def whole(n):
            return study(n)

        whole(3)(progress=True)
    """
    shown = on_a_terminal(Caller(tmp_path, script(program)))
    assert "whole 0/1, load " in plain(shown), shown
    assert lines_of(shown) == ["8 done, 0 running, 0 waiting in TIME"]


def test_runs_of_bodies_have_no_line_of_their_own(tmp_path: Path) -> None:
    program = """
        @process
        def outer(n):
            return study(n)(progress=True)

        outer(outer(3))()
        outer(3)(progress=True)
    """
    shown = on_a_terminal(Caller(tmp_path, script(program), ENTANGLE_PROGRESS="1"))
    assert "train" not in shown, shown
    assert lines_of(shown) == ["2 done, 0 running, 0 waiting in TIME", "1 done, 0 running, 0 waiting in TIME"]


def test_a_list_of_values_is_no_task_and_every_task_of_a_user_is_one(tmp_path: Path) -> None:
    program = """
        from entangle.interpreter import interpreter

        @interpreter(python=sys.executable)
        def far(n):
            print("from afar", n)
            time.sleep(0.2)
            return n

        load.map(range(4)).run(progress=True)
        load.map(load.map(range(2))).run(progress=True)
        load(far(3)).run(progress=True)
    """
    lines = lines_of(on_a_terminal(Caller(tmp_path, script(program))))
    assert [line for line in lines if "afar" not in line] == [
        "4 done, 0 running, 0 waiting in TIME",
        "4 done, 0 running, 0 waiting in TIME",
        "2 done, 0 running, 0 waiting in TIME",
    ]
    assert sum(line.endswith("] from afar 3") for line in lines) == 1, lines


def test_a_run_that_goes_on_after_a_failure(tmp_path: Path) -> None:
    program = """
        total(entangle.gather(load(1), train(fail(2)), return_exceptions=True)).run(progress=True)
    """.replace("total(", "process(len)(")
    assert lines_of(on_a_terminal(Caller(tmp_path, script(program)))) == ["2 done, 0 running, 0 waiting in TIME · 1 failed, 1 skipped"]


def test_the_last_line_names_the_call_that_has_ended_the_run(tmp_path: Path) -> None:
    """It does not name calls whose failures became values."""
    program = """
        try:
            total(process(len)(entangle.gather(fail(1), return_exceptions=True)), train(fail(load(2)).named("fold\\t3"))).run(progress=True)
        except ValueError:
            pass
    """
    (line,) = lines_of(on_a_terminal(Caller(tmp_path, script(program))))
    assert re.match("failed in fold\ufffd3 after TIME · [0123] of 6 done · [12] failed, ", line), line


def test_a_run_that_is_timed_out(tmp_path: Path) -> None:
    # On a busy machine the time may be over before a body has begun: try again with more time.
    program = """
        for seconds in (0.5, 2, 8, 32):
            try:
                train(endless(load(1))).run(timeout=seconds, progress=True)
            except entangle.errors.RunTimeoutException:
                pass
            if os.path.exists("began"):
                break
    """
    lines = lines_of(on_a_terminal(Caller(tmp_path, script(program))))
    assert re.fullmatch(r"timed out after TIME · 1 of 3 done · 1 stopped, 1 not run", lines[-1]), lines


def test_a_stream_shows_its_items(tmp_path: Path) -> None:
    program = """
        @dataflow
        def odd(n):
            time.sleep(0.02)
            if n % 5 == 4:
                raise ValueError(n)
            return n

        import logging
        logging.disable(logging.WARNING)
        with entangle.progress():
            print(sum(n for n, in odd().stream(range(20), on_error="skip")))
    """
    shown = on_a_terminal(Caller(tmp_path, script(program)))
    assert re.search(r"odd \d+ · (\d failed · )?[\d.]+/s", plain(shown)), shown
    assert lines_of(shown) == ["done 16 items in TIME · 4 failed", "144"]


def test_a_value_pushed_into_a_dataflow(tmp_path: Path) -> None:
    program = """
        @dataflow
        def first(n):
            time.sleep(0.1)
            return n

        @dataflow
        def second(n):
            time.sleep(0.2)
            return n

        with entangle.progress():
            print(first(second(), second())(1))
    """
    shown = on_a_terminal(Caller(tmp_path, script(program)))
    assert "first 1/1, second 0/2" in plain(shown), shown
    assert lines_of(shown) == ["3 done, 0 running, 0 waiting in TIME", "(1, 1)"]


def test_a_terminal_that_goes_away_ends_no_run(tmp_path: Path) -> None:
    """A terminal window is closed, and a program that was started in it with nohup continues."""
    program = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        print(study(6)(progress=True), flush=True)
    """
    ours, theirs = pty.openpty()
    caller = Caller(tmp_path, script(program))
    caller.environment["TERM"] = "xterm"
    caller.start(stderr=theirs)
    os.close(theirs)
    try:
        os.read(ours, 1)
    finally:
        os.close(ours)
    assert caller.process.stdout is not None
    try:
        assert caller.process.stdout.read() == "15\n"
        assert caller.process.wait(20) == 0
    finally:
        caller.stop()


def test_a_terminal_that_is_stopped_holds_up_no_run(tmp_path: Path) -> None:
    """Ctrl-S stops the output of the terminal. The run continues to its end."""
    program = """
        import termios
        termios.tcflow(2, termios.TCOOFF)
        value = study(6)(progress=True)
        termios.tcflow(2, termios.TCOON)
        print(value, flush=True)

        @thread
        def stop(n):
            time.sleep(0.3)  # the line is there
            termios.tcflow(2, termios.TCOOFF)
            return n

        value = stop(load(7))(progress=True)
        termios.tcflow(2, termios.TCOON)
        print(value, flush=True)
    """
    lines = lines_of(on_a_terminal(Caller(tmp_path, script(program))))
    assert lines[0] == "15"
    assert "load 1/1, stop 0/1" in lines[1]  # the last state before the terminal was stopped
    assert lines[1].endswith("7") or lines[2:] == ["7"]


def test_a_log_that_nobody_reads_holds_up_no_run(tmp_path: Path) -> None:
    program = """
        from entangle._run.progress import log
        log.SOONEST = log.PART = 0
        print(study(6)(progress=True), flush=True)
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    caller = Caller(tmp_path, script(program)).start(stderr=writer)
    try:
        assert caller.process.stdout is not None
        assert caller.process.stdout.read() == "15\n"
    finally:
        caller.stop()
        os.close(reader)
        os.close(writer)


def test_a_child_that_the_program_forks_meanwhile_has_its_streams_for_itself(tmp_path: Path) -> None:
    program = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        future = study(6)(proc=True, progress=True)
        while "write" not in vars(sys.stderr):
            time.sleep(0.01)
        time.sleep(0.1)
        pid = os.fork()
        if not pid:
            os._exit(0 if not {"write"} & {*vars(sys.stderr), *vars(sys.stdout)} else 3)
        print("child", os.waitpid(pid, 0)[1], future.result())
    """
    assert lines_of(on_a_terminal(Caller(tmp_path, script(program)))) == ["13 done, 0 running, 0 waiting in TIME", "child 0 15"]


def test_streams_of_other_kinds(tmp_path: Path) -> None:
    """As other programs put into `sys`."""
    program = """
        class Stream:
            __slots__ = ("stream",)

            def __init__(self, stream):
                self.stream = stream

            def __getattr__(self, name):
                return getattr(self.stream, name)

        sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
        print(study(2)(progress=True))
        import io
        sys.stderr = io.StringIO()
        print(study(2)(progress=True))
        told = sys.stderr.getvalue()
        sys.stderr = sys.__stderr__
        print(told.splitlines()[-1])
    """
    shown = lines_of(on_a_terminal(Caller(tmp_path, script(program))))
    assert shown == ["5 done, 0 running, 0 waiting in TIME", "1", "1", "5 done, 0 running, 0 waiting in TIME"]


def test_without_a_stderr(tmp_path: Path) -> None:
    program = """
        sys.stderr = None
        print(study(2)(progress=True))
    """
    assert output_of(tmp_path, script(program)) == "1\n"


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_other_characters(tmp_path: Path, where: str) -> None:
    """A stderr that encodes ASCII only, and names that contain control characters or are very
    long."""
    program = r"""
        def renamed(name):
            def body(n):
                time.sleep(0.1)
                return n
            body.__name__ = name
            return process(body)

        renamed("x" * 10_000)(renamed("l\x1b[2Jöad")(1))(progress=True)
    """
    caller = Caller(tmp_path, script(program), PYTHONIOENCODING="ascii")
    if where == "terminal":
        shown = on_a_terminal(caller)
        assert lines_of(shown) == ["2 done, 0 running, 0 waiting in TIME"]
    else:
        shown = caller.start().finish()[2]
        assert without_times(shown.splitlines())[-1] == "2 done, 0 running, 0 waiting in TIME"
    assert shown.isascii()
    assert "\\" not in shown
    assert "\x1b[2J" not in shown
    assert "l?[2J?ad 0/1, " + "x" * 59 + "~ 0/1 | ? left" in shown


# --- what the line says ---------------------------------------------------------------------------


def view(*counts: Count, **more: object) -> View:
    return View("", "study", list(counts), 12.0, **more)  # type: ignore[arg-type]


def test_the_line() -> None:
    left = Left(work=140.0, longest=10.0, known=127)
    run = view(Count("load", 80, 31, running=1), Count("train", 80, 2, failed=2, running=1), left=left, at_once=2.0)
    assert wording.line(run, 120) == "load 31/80, train 2/80 · 2 failed · 1:10 left"


@pytest.mark.parametrize("room", range(12, 90))
def test_the_line_fits(room: int) -> None:
    run = view(*[Count(f"stage_{n}", 1000, 20 * n, running=n == 3) for n in range(12)], Count("数据处理数据处理", 9, 0))
    assert wording.width(wording.line(run, room)) <= room
    assert wording.width(wording.line(view(Count("数据处理数据处理数据处理", 9, 0)), room)) <= room


def test_of_many_names_those_that_run_are_shown() -> None:
    counts = [Count(f"done_{n}", 5, 5) for n in range(20)] + [Count(f"next_{n}", 5, 0) for n in range(20)]
    counts += [Count("here", 5, 2, running=2)]
    assert wording.line(view(*counts), 60).startswith("next_0 0/5, ")
    assert "here 2/5" in wording.line(view(*counts), 60)
    assert "done" not in wording.line(view(*counts), 60)
    assert "more" in wording.line(view(*counts), 60)


@pytest.mark.parametrize(
    ("left", "at_once", "said"),
    [
        (Left(unknown=4), 2.0, "? left"),
        (Left(work=60.0, longest=1.0, known=10), 2.0, "0:30 left"),
        (Left(work=60.0, longest=1.0, known=10, unknown=1), 2.0, "0:30+ left"),
        # Two workers cannot share one body.
        (Left(work=60.0, longest=50.0, known=10), 2.0, "0:50 left"),
        (Left(work=60.0, longest=1.0, known=10), 0.0, "1:00 left"),
        (Left(work=100_000.0, longest=1.0, known=10), 1.0, "1 d 03:46:40 left"),
        (Left(), 1.0, "0:00 left"),
    ],
)
def test_the_time_left(left: Left, at_once: float, said: str) -> None:
    assert wording.time_left(view(Count("load", 20, 10), left=left, at_once=at_once)) == said


def test_failures_that_were_accepted() -> None:
    run = view(Count("load", 80, 74, failed=2, skipped=4), end="done")
    assert wording.last_line(run) == "74 done, 0 running, 0 waiting in 0:12 · 2 failed, 4 skipped"


# --- how it is counted ----------------------------------------------------------------------------


def made_up(names: int, nodes: int) -> tuple[Table, Tally, list[str]]:
    """The table of a flow that does not run. Its nodes belong to the tasks in turn."""

    def body(n: object) -> object:
        return n

    tasks = []
    for number in range(names):
        function = types.FunctionType(body.__code__, {}, f"task_{number}")
        function.__name__ = f"task_{number}"
        tasks.append(thread(function))

    @thread
    def total(*values: object) -> int:
        return len(values)

    flow = compile_call(total(*[tasks[n % names](n) for n in range(nodes)]))
    table = Table.create(flow, 4, [0] * len(flow.bodies), None)
    return table, Tally(flow), [flow.body(node).name for node in range(flow.count)]


@pytest.mark.parametrize("names", [1, 3, 300])
def test_counting_only_what_has_changed_counts_right(names: int) -> None:
    import random

    table, tally, name_of = made_up(names, 3 * BLOCK + 7)
    chosen = random.Random(3)
    states = [WAITING, RUNNING, DONE, FAILED]
    try:
        for _ in range(12):
            for _ in range(chosen.randrange(400)):
                table.states[chosen.randrange(len(name_of))] = chosen.choice(states)
            tally.look(table)
            for count in tally.counts:
                own = [state for name, state in zip(name_of, bytes(table.states), strict=True) if name == count.name]
                assert (count.total, count.done) == (len(own), own.count(DONE))
                assert (count.running, count.failed) == (own.count(RUNNING), own.count(FAILED))
    finally:
        table.close()


def test_the_time_left_follows_from_what_each_task_has_taken() -> None:
    table, tally, _ = made_up(2, 1000)
    try:
        for node in range(600):
            seconds = 2 if node % 2 == 0 else 5
            RECORD.pack_into(table.records, node * RECORD.size, 10**9, (1 + seconds) * 10**9, 0, 0, 0, 1, 0, 1)
            table.states[node] = DONE
        tally.look(table)
        left = tally.left(set())
        assert left.work == pytest.approx(200 * 2 + 200 * 5)
        # The one unknown node is `total`.
        assert (left.longest, left.known, left.unknown) == (5.0, 400, 1)
    finally:
        table.close()


def test_a_body_that_takes_much_longer_than_others_did_is_unknown() -> None:
    table, tally, _ = made_up(1, 10)
    try:
        for node in range(9):
            RECORD.pack_into(table.records, node * RECORD.size, 10**9, 2 * 10**9, 0, 0, 0, 1, 0, 1)
            table.states[node] = DONE
        table.states[9] = RUNNING
        table.slots[SLOT + NODE], table.slots[SLOT + BEGUN] = 9, 1
        table.slots[SLOT + SINCE] = time.monotonic_ns() - 10**9
        tally.look(table)
        left = tally.left(set())
        assert (left.known, left.unknown) == (1, 1)  # one of each is `total`
        table.slots[SLOT + SINCE] = time.monotonic_ns() - 60 * 10**9
        tally.look(table)
        left = tally.left(set())
        assert (left.known, left.unknown, left.work) == (0, 2, 0.0)
    finally:
        table.close()


def test_a_look_counts_only_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking must cost next to nothing, even with 100,000 nodes."""
    table, tally, _ = made_up(3, 100_000)
    counted: list[int] = []
    ask = Tally._ask

    def asked(self: Tally, at: int, now: bytes, before: bytes, table: Table) -> None:
        counted.append(at)
        ask(self, at, now, before, table)

    monkeypatch.setattr(Tally, "_ask", asked)
    try:
        tally.look(table)
        counted.clear()
        for node in (3, 4, 50_000):
            table.states[node] = DONE
        tally.look(table)
        tally.look(table)
        assert counted == [0, 50_000 // BLOCK * BLOCK]
    finally:
        table.close()
