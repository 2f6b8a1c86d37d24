"""Callers that are killed, interrupted, terminated or exit early: none of their processes and files
is left."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entangle.process import ProcessTimeoutException, process

from . import bodies
from .callers import ORPHANS_GONE, ROOT, Caller, gone, output_of, output_of_next
from .evidence import alive, note, notes, pids_in, wait_until

one = process(bodies.one)
add = process(bodies.add)
same = process(bodies.same)
gather = process(bodies.gather)


#: Sixteen bodies: some compute, some run programs, some wait for nested runs that do the same.
BUSY = """
    import os, signal, subprocess, sys, time
    from entangle.process import process
    from entangle.thread import thread
    from entangle.workflow import workflow

    log = sys.argv[1]

    def here(what):
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{what} {os.getpid()}\\n".encode())
        os.close(fd)

    @process
    def sleep(n):
        here("sleep")
        time.sleep(100)

    @process
    def compute(n):
        here("compute")
        while True:
            n += 1

    @process
    def program(n):
        here("program")
        subprocess.run(["sleep", "100"])

    @process
    def nested(n, depth=2):
        here("nested")
        return gather(nested(n, depth - 1), program(n))() if depth else sleep(n)()

    @thread
    def threaded(n):
        here("threaded")
        return program(n)()

    @process
    def gather(*values):
        return values

    WORK = [sleep(1), sleep(2), program(1), program(2), nested(1), compute(1), threaded(1)]
    EXPECTED = {"sleep": 3, "program": 5, "nested": 3, "compute": 1, "threaded": 1}
"""
RUN_FOR_EVER = BUSY + "\n    gather(*WORK)()\n"
EXPECTED = {"sleep": 3, "program": 5, "nested": 3, "compute": 1, "threaded": 1}


def busy(caller: Caller, log: Path) -> list[int]:
    """Wait until all bodies and programs of RUN_FOR_EVER run. Return the numbers of all
    processes."""

    def under_way() -> bool:
        assert caller.process.poll() is None, caller.finish()
        counts: dict[str, int] = {}
        for line in notes(log):
            counts[line[0]] = counts.get(line[0], 0) + 1
        sleeping = 0
        for pid in caller.family():
            try:
                sleeping += Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00100\x00"
            except OSError:
                return False
        return counts == EXPECTED and sleeping == EXPECTED["program"]

    wait_until(under_way, 30, "all the bodies to be under way")
    return sorted({*caller.family(), *(int(line[1]) for line in notes(log)), caller.process.pid})


@pytest.mark.parametrize("how", ["clean", "next run"])
def test_kill_the_caller(tmp_path: Path, start: str, how: str) -> None:
    """No process is left after a second, and no file after the next run or a `clean`."""
    log = tmp_path / "log"
    caller = Caller(tmp_path, RUN_FOR_EVER, ENTANGLE_START=start).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGKILL)
        gone(pids)
    finally:
        caller.stop()
    if how == "clean":
        done = subprocess.run(
            [sys.executable, "-m", "entangle", "clean"], env=caller.environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
    else:
        after = tmp_path / "after"
        after.mkdir()
        output_of_next(after, caller)
    assert caller.files() == []


def test_kill_the_caller_of_bodies_whose_programs_have_left_the_group(tmp_path: Path, start: str) -> None:
    """A program in a session of its own, and one whose parent has exited, belong to the run as
    well."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        """
        import subprocess, sys
        from entangle.process import process

        @process
        def session(log):
            child = subprocess.Popen(["sleep", "100"], start_new_session=True)
            print("session", child.pid, file=open(log, "a"))
            child.wait()

        @process
        def daemon(log):
            subprocess.run(["bash", "-c", f"setsid bash -c 'echo daemon $$ >> {log}; exec sleep 100' & disown"])
            subprocess.run(["sleep", "100"])

        @process
        def gather(*values):
            return values

        gather(session(sys.argv[1]), daemon(sys.argv[1]))()
        """,
        ENTANGLE_START=start,
    )
    caller.environment["PYTHONWARNINGS"] = "default"
    caller.start(str(log))
    try:
        wait_until(lambda: len(notes(log)) == 2)
        os.kill(caller.process.pid, signal.SIGKILL)
        gone(pids_in(log))
    finally:
        for pid in filter(alive, pids_in(log)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        caller.stop()


def test_clean_and_other_runs_leave_living_runs_alone(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    caller = Caller(
        tmp_path,
        """
        import os, sys, time
        from entangle.process import process

        @process
        def make(n):
            return [b"x" * 100_000 for _ in range(n)]

        @process
        def wait(values, gate):
            print("waiting", flush=True)
            while not os.path.exists(gate):
                time.sleep(0.01)
            return values

        @process
        def length(first, second):
            return len(first) + len(second)

        made = make(20)
        print(length(wait(made, sys.argv[1]), made)())
        """,
    ).start(str(gate))
    try:
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == "waiting\n"
        subprocess.run([sys.executable, "-m", "entangle", "clean"], env=caller.environment, check=True, timeout=30, capture_output=True)
        output_of_next_beside(tmp_path, caller)
        gate.touch()
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "40\n"), err
    assert caller.files() == []


def output_of_next_beside(folder: Path, caller: Caller) -> None:
    """Run once more beside a living run. The directories need not be empty afterwards."""
    (folder / "beside").mkdir()
    beside = Caller(
        folder / "beside",
        "from entangle.process import process\nprint(process(int)('3')())",
        ENTANGLE_RUN_DIR=str(caller.runs),
        TMPDIR=str(caller.temporary),
    ).start()
    assert beside.finish()[0] == 0


def test_clean_with_nothing_to_clean(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "entangle", "clean"],
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("to", ["the caller", "the group"])
def test_control_c(tmp_path: Path, start: str, to: str) -> None:
    """The caller gets a KeyboardInterrupt, as from any other code, and cleans up before it
    exits."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY + "\n    try:\n        gather(*WORK)()\n    except KeyboardInterrupt:\n        print('interrupted')\n        raise\n",
        ENTANGLE_START=start,
    ).start(str(log))
    try:
        pids = busy(caller, log)
        (os.killpg if to == "the group" else os.kill)(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
        gone(pids)
    finally:
        caller.stop()
    assert status in (-signal.SIGINT, 130), err
    assert out == "interrupted\n"
    assert err.count("Traceback") == 1, err  # that of the caller, and none of a worker
    assert caller.files() == []


def test_go_on_after_control_c(tmp_path: Path) -> None:
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY
        + """
    try:
        gather(*WORK)()
    except KeyboardInterrupt:
        print(gather(gather(1), 2)())
""",
    ).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
        gone([pid for pid in pids if pid != caller.process.pid])
    finally:
        caller.stop()
    assert (status, out) == (0, "((1,), 2)\n"), err
    assert caller.files() == []


@pytest.mark.parametrize("handled", [False, True])
def test_terminate_the_caller(tmp_path: Path, start: str, handled: bool) -> None:
    log = tmp_path / "log"
    handler = "\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" if handled else ""
    caller = Caller(tmp_path, BUSY + handler + "\n    gather(*WORK)()\n", ENTANGLE_START=start).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGTERM)
        status, _, err = caller.finish()
        gone(pids)
    finally:
        caller.stop()
    assert status == (7 if handled else -signal.SIGTERM), err
    if not handled:  # no process was left to clean up: the next run does it
        (tmp_path / "after").mkdir()
        output_of_next(tmp_path / "after", caller)
    assert caller.files() == []


#: Bodies in the caller's main thread: alone, around a run, and one that runs in another place.
HERE = """
    import os, signal, sys, time
    from entangle.interpreter import interpreter
    from entangle.process import process
    from entangle.task import task
    from entangle.workflow import workflow

    def rest(log):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(60)

    bodies = {
        "plain": task(rest),
        "workflow": workflow(lambda log: process(rest)(log)()),
        "far": interpreter(rest),
        "far, with retry": interpreter(process(retry=3)(rest)),
    }
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "handler"])
@pytest.mark.parametrize("body", ["plain", "workflow", "far", "far, with retry"])
def test_a_signal_ends_a_body_in_the_main_thread_and_its_caller(tmp_path: Path, body: str, how: str) -> None:
    """The signal is for the program. It is not an error of the body, which an `except Exception`
    would catch, and the body is not tried again."""
    log = tmp_path / "log"
    handler = "\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" if how == "handler" else ""
    main = f"""
    try:
        bodies[{body!r}](sys.argv[1])()
    except Exception as error:
        print("skipped", error)
    print("on it goes")
"""
    caller = Caller(tmp_path, HERE + handler + main).start(str(log))
    try:
        wait_until(log.exists)
        pids = wait_until(lambda: pids_in(log))
        os.kill(caller.process.pid, signal.SIGINT if how == "SIGINT" else signal.SIGTERM)
        status, out, err = caller.finish()
        gone([pid for pid in pids if pid != caller.process.pid] or [caller.process.pid])
    finally:
        caller.stop()
    assert out == ""
    assert status in {"SIGTERM": (-signal.SIGTERM,), "SIGINT": (-signal.SIGINT, 130), "handler": (7,)}[how], err
    assert len(pids_in(log)) == 1


def test_a_handler_that_a_body_has_set_stays(tmp_path: Path) -> None:
    source = """
        import signal
        from entangle.workflow import workflow

        def mine(*_): pass

        workflow(lambda: signal.signal(signal.SIGTERM, mine) and None)()()
        print(signal.getsignal(signal.SIGTERM) is mine)
    """
    assert output_of(tmp_path, source) == "True\n"


def test_an_error_of_the_caller_while_it_waits(tmp_path: Path, start: str) -> None:
    """Any exception that a handler of the caller raises ends the run, and reaches the caller."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY
        + """
    class Enough(Exception):
        pass

    def enough(*_):
        raise Enough

    signal.signal(signal.SIGUSR1, enough)
    try:
        gather(*WORK)()
    except Enough:
        print("enough", flush=True)
        input()
""",
        ENTANGLE_START=start,
    ).start(str(log), stdin=subprocess.PIPE)
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGUSR1)
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == "enough\n"
        # The caller survives, but its run does not. The warm server and its spare workers do not
        # belong to the run.
        server = {child for child in caller.family() if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()}
        gone([pid for pid in pids if pid != caller.process.pid and pid not in server])
        assert caller.process.stdin is not None
        caller.process.stdin.write("\n")
        status, _, err = caller.finish()
    finally:
        caller.stop()
    assert status == 0, err
    assert caller.files() == []


def test_a_script_that_ends_before_its_background_run(tmp_path: Path, start: str) -> None:
    """A run that was started with `proc=True` may be awaited or killed, but it leaves nothing
    behind."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    caller = Caller(
        tmp_path,
        """
        import os, sys, time
        from entangle.process import process

        @process
        def wait(log, gate):
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\\n")
            while not os.path.exists(gate):
                time.sleep(0.01)
            return 3

        future = wait(sys.argv[1], sys.argv[2])(proc=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        raise SystemExit(5)
        """,
        ENTANGLE_START=start,
    ).start(str(log), str(gate))
    try:
        wait_until(lambda: pids_in(log))
        gate.touch()
        status, _, err = caller.finish()
        gone(pids_in(log))
    finally:
        caller.stop()
    assert status == 5, err
    assert err == ""
    assert caller.files() == []


def test_signals_are_the_callers_again_after_a_run(start: str) -> None:
    numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
    before = [signal.getsignal(n) for n in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert add(one(), 1)() == 2
    with pytest.raises(ValueError):
        process(bodies.fail)()()
    assert [signal.getsignal(n) for n in numbers] == before
    after = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(after)
    assert after == wakeup


def test_a_callers_signal_handlers_run_while_it_waits(tmp_path: Path) -> None:
    """A user's handler that does not raise does not end the wait."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    log = str(tmp_path / "log")
    try:

        @process
        def tell(caller: int, path: str) -> int:
            for _ in range(5):
                os.kill(caller, signal.SIGUSR1)
                note(path, "told")
            return 3

        assert add(tell(os.getpid(), log), 1)() == 4
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard


def test_workers_ignore_the_callers_handlers() -> None:
    """A worker does not run a handler that the caller has installed for itself."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:

        @process(timeout=1)
        def sleep() -> None:
            import time

            time.sleep(30)

        with pytest.raises(ProcessTimeoutException):
            sleep()()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_how_long_a_test_waits_is_the_designs_second() -> None:
    assert ORPHANS_GONE == 1.0
    assert alive(os.getpid())
