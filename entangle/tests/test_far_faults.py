"""What goes wrong between this process and another place: interrupts in the middle of messages,
cancels that come early, ends that must come.

In each case the next call works at once, and a program ends in a few seconds.
"""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._remote.caller.open_channels import channel_to, close_all
from entangle._remote.transport.interpreter import InterpreterTransport
from entangle._shared.interrupts import whole
from entangle.errors import RunCancelledError
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.task import task
from entangle.thread import ThreadTimeoutException, thread

from . import bodies
from .callers import Caller
from .evidence import alive, notes, pids_in, wait_until
from .far_bodies import Slow, freezes, give, print_for_ever, size, touch
from .services import given as services

#: The limit for the next call to return, and for a program to end, on a busy machine (seconds).
SOON = 15.0
LARGE = 300 << 20


@pytest.fixture(scope="session")
def hosts() -> None:
    """Start the hosts before a test is checked for what it leaves behind. If there are none, the
    tests of other Pythons still run."""
    with contextlib.suppress(pytest.skip.Exception):
        services.shared_hosts()


@pytest.fixture(params=["interpreter", "openssh", pytest.param("paramiko", marks=pytest.mark.drill)])
def door(request: pytest.FixtureRequest, hosts: None) -> Callable[..., Any]:
    """Another Python, through a pipe, the ssh program or paramiko."""
    if request.param == "interpreter":
        return interpreter()
    return ssh(**services.shared_hosts().options("alpha", transport=request.param))


def program(folder: Path, text: str) -> str:
    """A Python program that is used in place of an interpreter."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def slow_python(tmp_path: Path) -> str:
    """A Python behind a connection of 4 MB a second in each direction."""
    return program(
        tmp_path,
        f"""
import os, subprocess, sys, threading, time
child = subprocess.Popen([{sys.executable!r}, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
def pump(source, sink):
    while data := os.read(source, 1 << 16):
        view = memoryview(data)
        while view: view = view[os.write(sink, view):]
        time.sleep(len(data) / 4e6)
    os.close(sink)
threading.Thread(target=pump, args=(0, child.stdin.fileno()), daemon=True).start()
pump(child.stdout.fileno(), 1)
""",
    )


@pytest.fixture(params=["interpreter", *(pytest.param(by, marks=pytest.mark.drill) for by in ("openssh", "paramiko"))])
def any_door(request: pytest.FixtureRequest, hosts: None) -> Callable[..., Any]:
    """As `door`, for tests to which the kind of connection should not matter."""
    if request.param == "interpreter":
        return interpreter()
    return ssh(**services.shared_hosts().options("alpha", transport=request.param))


@contextlib.contextmanager
def ctrl_c(after: float) -> Iterator[None]:
    """Check that Ctrl-C interrupts the block."""
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
        time.sleep(SOON)
    except KeyboardInterrupt:
        return
    finally:
        timer.join()
    raise AssertionError("nobody was interrupted")


def works_at_once(call: Callable[[], Any], value: Any) -> None:
    began = time.monotonic()
    assert call() == value
    assert time.monotonic() - began < SOON


# --- the middle of a message ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["there", "back"])
def test_ctrl_c_in_the_middle_of_a_large_message(door: Callable[..., Any], way: str) -> None:
    there, back = door(size), door(give)
    assert there(b"x")() == 1
    data = bytes(LARGE)
    for after in (0.03, 0.2):
        with ctrl_c(after):
            there(data)() if way == "there" else back(LARGE)()
        works_at_once(there(b"12"), 2)


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_slow_connection_is_free_for_the_next_call(slow_python: str, way: str) -> None:
    """After Ctrl-C, a cancel, a deadline or the failure of another call, in the middle of a
    transfer that takes a minute."""
    door = interpreter(python=slow_python)
    there, back = door(size), door(give)
    assert there(b"x")() == 1
    call = there(bytes(LARGE)) if way == "there" else back(LARGE)
    with ctrl_c(0.7):
        call()
    works_at_once(there(b"12"), 2)
    future = call.future()
    future.start()
    time.sleep(0.5)
    future.cancel()
    works_at_once(there(b"123"), 3)
    with pytest.raises(RunCancelledError):
        future.result(SOON)
    with pytest.raises(ThreadTimeoutException):
        (thread(timeout=0.5)(there)(bytes(LARGE)) if way == "there" else thread(timeout=0.5)(back)(LARGE))()
    works_at_once(there(b"1234"), 4)

    @thread
    def fails() -> None:
        time.sleep(0.5)
        raise LookupError("fail fast")

    with pytest.raises(LookupError, match="fail fast"):
        together(call, fails())()
    works_at_once(there(b"12345"), 5)


@task
def together(*values: Any) -> int:
    return len(values)


def test_who_is_interrupted_breaks_no_call_of_another_thread() -> None:
    """Ctrl-C comes anywhere in many calls of the main thread, while two other threads use the same
    agent. The agent must still serve them all."""
    same, pid = interpreter(bodies.same), interpreter(bodies.pid)
    agent = pid()()
    over = threading.Event()
    wrong: list[object] = []
    done = [0, 0]

    def calls(number: int) -> None:
        data = os.urandom(40 + number * 500_000)
        try:
            while not over.is_set():
                if same(data)() != data:
                    wrong.append("another value")
                done[number] += 1
        except BaseException as error:
            wrong.append(error)

    there = channel_to(InterpreterTransport(sys.executable))
    others = [threading.Thread(target=calls, args=(number,)) for number in range(2)]
    for other in others:
        other.start()
    interrupted = 0
    # An exception in a callback of the garbage collector, such as that of Hypothesis, is lost.
    gc.disable()
    try:
        for turn in range(60):
            data = bytes(3_000_000 if turn % 3 else 10)
            timer = threading.Timer(0.0003 * turn, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                # Without a run, so that only the message is interrupted.
                assert len(there.call(task(bodies.same), (data,), {})) == len(data)
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
    finally:
        gc.enable()
        over.set()
        for other in others:
            other.join()
    assert wrong == []
    assert interrupted > 30
    assert min(done) > 0
    assert pid()() == agent


def test_what_a_handler_raises_is_the_callers(tmp_path: Path) -> None:
    """This holds for any signal whose handler raises. Afterwards the handlers are as before."""

    class Late(Exception):
        pass

    def late(*_: object) -> None:
        raise Late

    there = interpreter(size)
    assert there(b"x")() == 1
    before = signal.signal(signal.SIGALRM, late)
    mine = signal.getsignal(signal.SIGINT)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Late):
            there(bytes(LARGE))()
        assert signal.getsignal(signal.SIGALRM) is late
        assert signal.getsignal(signal.SIGINT) is mine
        works_at_once(there(b"12"), 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_waits_for_the_end_of_a_step() -> None:
    steps: list[str] = []

    def take() -> None:
        with whole.held():
            with whole:
                os.kill(os.getpid(), signal.SIGINT)
                steps.extend(str(number) for number in range(3))
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        take()
    assert steps == ["0", "1", "2"]


def test_ctrl_c_while_an_agent_is_dialled_is_nothing_to_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    again = f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])"
    python = program(tmp_path, f"import os, sys, time; open({str(log)!r}, 'a').write('x'); time.sleep(1); {again}")
    num = interpreter(python=python)(bodies.num)
    found: list[int] = []

    def waits() -> None:
        wait_until(log.exists)
        found.append(num(5)())

    other = threading.Thread(target=waits)
    other.start()
    with ctrl_c(0.6):
        num(4)()
    other.join()
    assert found == [5]


def test_an_agent_that_was_stopped_is_given_up_with_the_call(door: Callable[..., Any], tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    future = door(freezes)(log).future()
    future.start()
    pid = wait_until(lambda: pids_in(log))[0]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result(SOON)
    try:
        works_at_once(door(bodies.num)(3), 3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # closing a connection of ssh does not kill it
    wait_until(lambda: not alive(pid))


def test_lines_of_several_threads_that_are_long(capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of more than one frame must not be mixed."""

    @interpreter
    def prints() -> int:
        each = [threading.Thread(target=lambda c=c: print(c * 100_000)) for c in "abcd"]
        for one in each:
            one.start()
        for one in each:
            one.join()
        return 7

    assert prints()() == 7
    said = capfd.readouterr().out
    assert {c: said.count(c) for c in "bcd"}.keys() == {"b", "c", "d"}
    assert min(said.count(c) for c in "bcd") >= 100_000


# --- a cancel that comes early --------------------------------------------------------------------


def cancelled_in(future: Any) -> None:
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result(SOON)


@pytest.mark.parametrize("below", ["nothing", "process", "thread", "retry", "scheduler"])
def test_a_cancel_while_arguments_are_made_there(any_door: Callable[..., Any], below: str, tmp_path: Path) -> None:
    layers: dict[str, Callable[[Any], Any]] = {
        "nothing": lambda body: body,
        "process": process,
        "thread": thread,
        "retry": process(retry=3),
        "scheduler": scheduler(cpus=1),
    }
    making, ran = str(tmp_path / "making"), str(tmp_path / "ran")
    far = any_door(layers[below](touch))
    assert any_door(bodies.num)(1)() == 1
    future = far(ran, Slow(making, 1.0)).future()
    future.start()
    wait_until(lambda: os.path.exists(making))
    cancelled_in(future)
    assert far(str(tmp_path / "after"))() is None
    time.sleep(1.2)
    assert not os.path.exists(ran)


def test_a_cancel_before_a_cookie_was_free_there(any_door: Callable[..., Any], tmp_path: Path) -> None:
    held, go, ran = (str(tmp_path / name) for name in ("held", "go", "ran"))

    def hold(held: str, go: str) -> None:
        Path(held).touch()
        while not os.path.exists(go):
            time.sleep(0.01)

    holder = any_door(scheduler(cpus=1)(hold))(held, go).future()
    holder.start()
    wait_until(lambda: os.path.exists(held))
    waits = any_door(scheduler(cpus=1)(touch))(ran).future()
    waits.start()
    time.sleep(0.5)
    cancelled_in(waits)
    Path(go).touch()
    holder.result(SOON)
    assert any_door(scheduler(cpus=1)(bodies.num))(2)() == 2  # takes the same cookie in its turn
    assert not os.path.exists(ran)


@pytest.mark.parametrize("carrier", ["none", "process", "thread"])
def test_a_cancel_between_two_attempts(carrier: str, tmp_path: Path) -> None:
    """There is no further attempt, and nothing waits for the end of the pause."""
    log = str(tmp_path / "log")

    def fails(log: str) -> None:
        from entangle.tests.evidence import note

        note(log, os.getpid())
        raise LookupError

    body = process(retry=5, sleep=1.0)(fails) if carrier != "thread" else thread(retry=5, sleep=1.0)(fails)
    future = (body if carrier == "none" else interpreter(body))(log).future()
    future.start()
    wait_until(lambda: notes(log))
    cancelled_in(future)
    count = len(notes(log))
    time.sleep(1.5)
    assert len(notes(log)) == count == 1


def test_a_cancel_in_the_pause_after_a_lost_line(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def dies(log: str, agent: int) -> None:
        from entangle.tests.evidence import note

        note(log, os.getpid())
        os.kill(agent, signal.SIGKILL)
        time.sleep(60)

    agent = interpreter(bodies.pid)()()
    future = interpreter(process(retry=3, sleep=30)(dies))(log, agent).future()
    future.start()
    wait_until(lambda: notes(log) and not alive(agent))
    time.sleep(0.3)
    cancelled_in(future)
    assert len(notes(log)) == 1


# --- ends that must come --------------------------------------------------------------------------

FLOODS = {
    "print": "threading.Thread(target=lambda: [print('tick\\n' * 2000, flush=True) for _ in iter(int, 1)], daemon=True).start()",
    "a program that prints": "subprocess.Popen(['yes'])",
    "a program that complains": "subprocess.Popen('yes >&2', shell=True)",
    "questions": "threading.Thread(target=ask, daemon=True).start()",
    "a stop": "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()",
}

ENDING = """
import os, signal, subprocess, sys, threading, time
from entangle.interpreter import interpreter
from entangle.thread import thread
@interpreter
def talk(waits):
    import entangle._remote.agent.agent, itertools, subprocess
    def ask():
        for n in itertools.count():
            entangle._remote.agent.agent.agent.send(8, n + 1, [[b'nobody_has_this_%d' % n]])
    {flood}
    time.sleep(60 if waits else 0)
    return 42
if __name__ == "__main__":
    if {waits}:
        def stop():
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=stop, daemon=True).start()
    print("value", talk({waits})(), file=sys.stderr, flush=True)
    time.sleep(0.5)
"""


RARE = ("a program that prints", "a program that complains")


@pytest.mark.parametrize("flood", [pytest.param(name, marks=pytest.mark.drill) if name in RARE else name for name in FLOODS])
@pytest.mark.parametrize("waits", [False, True], ids=["after its value", "by SIGTERM in the middle"])
def test_a_program_ends_whatever_a_far_side_does(flood: str, waits: bool, tmp_path: Path) -> None:
    caller = Caller(tmp_path, ENDING.format(flood=FLOODS[flood], waits=waits))
    caller.start(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        status = caller.process.wait(30)
        assert time.monotonic() - began < 2.5 + SOON
        assert status in ([-signal.SIGTERM, 1] if waits else [0])  # 1: too many questions end it before that
    finally:
        family = caller.family()
        caller.stop()
    wait_until(lambda: not any(map(alive, family)))


def test_ctrl_c_ends_the_end(tmp_path: Path) -> None:
    """The program waits a few seconds for an agent that was stopped. Ctrl-C ends this wait."""
    caller = Caller(
        tmp_path,
        """
        import os, signal, threading, time
        from entangle.interpreter import interpreter
        @interpreter
        def stops():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
            return os.getpid()
        if __name__ == "__main__":
            print(stops()(), flush=True)
            time.sleep(0.5)
        """,
    ).start()
    try:
        assert caller.process.stdout is not None
        agent = int(caller.process.stdout.readline())
        time.sleep(1.2)
        caller.process.send_signal(signal.SIGINT)
        caller.finish(SOON)
        wait_until(lambda: not alive(agent))
    finally:
        caller.stop()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_body_that_prints_for_ever_is_given_up(door: Callable[..., Any], how: str, capfd: pytest.CaptureFixture[str]) -> None:
    one = door(bodies.num)
    assert one(1)() == 1
    if how == "cancel":
        future = door(print_for_ever)().future()
        future.start()
        time.sleep(0.5)
        cancelled_in(future)
    else:
        with pytest.raises(ThreadTimeoutException):
            thread(timeout=0.5)(door(print_for_ever))()()
    works_at_once(one(2), 2)
    close_all()
    capfd.readouterr()
