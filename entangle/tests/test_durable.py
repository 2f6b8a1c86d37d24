"""Durable runs: programs that are killed and started again."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import entangle
from entangle._depot.key_lock import KeyLock, is_held
from entangle._depot.ledger import ENDED, Ledger, read
from entangle._tasks.durable import scope_here
from entangle.errors import DepotError, DurableError, OptionError
from entangle.process import process
from entangle.tests import shown_blocks
from entangle.tests.callers import ROOT

HEAD = """
import os, signal, sys, time
import entangle
from entangle import gather
from entangle.errors import *
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ.setdefault("TOP", str(os.getpid()))

def ran(what):
    with open(os.path.join(HERE, "log"), "a") as log:
        log.write(f"{what}\\n")

def kill_once(name, number=signal.SIGKILL):
    "Kill the program, the first time that this is called with that name."
    try:
        os.close(os.open(os.path.join(HERE, f"killed-{name}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(int(os.environ["TOP"]), number)
    time.sleep(60)
"""


class Program:
    """A program in a directory of its own, which can be started repeatedly."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, text: str) -> Program:
        (self.directory / "program.py").write_text(HEAD + textwrap.dedent(text))
        return self

    def start(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": ROOT}
        environment.pop("TOP", None)
        return subprocess.run(
            [sys.executable, "program.py", *args], cwd=self.directory, env=environment, capture_output=True, text=True, timeout=60
        )

    def killed(self, *args: str) -> None:
        ended = self.start(*args)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    def gives(self, *args: str) -> str:
        ended = self.start(*args)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run `entangle ARGS`."""
        environment = {**os.environ, "PYTHONPATH": ROOT, "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "entangle", *args], cwd=self.directory, env=environment, capture_output=True, text=True, timeout=60
        )

    def ran(self) -> Counter[str]:
        """How often each body has run."""
        try:
            return Counter((self.directory / "log").read_text().split("\n")[:-1])
        except FileNotFoundError:
            return Counter()

    def forget(self) -> None:
        (self.directory / "log").unlink(missing_ok=True)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    return Program(tmp_path)


def test_what_has_ended_is_not_run_again(program: Program) -> None:
    program.write(
        """
        @process
        def square(x):
            ran(f"square {x}")
            return x * x

        @process(retry=1)
        def total(xs):
            ran("total")
            kill_once("total")
            return sum(xs)

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(total(square.map(range(40)))())
        """
    )
    program.killed()
    assert program.gives() == str(sum(x * x for x in range(40)))
    assert program.ran() == {**{f"square {x}": 1 for x in range(40)}, "total": 2}
    program.forget()
    assert program.gives() == str(sum(x * x for x in range(40)))
    assert not program.ran()


@pytest.mark.parametrize("terms", ["", "retry=1", "idempotent=True"])
def test_one_that_had_begun_is_named_or_runs_again(program: Program, terms: str) -> None:
    program.write(
        f"""
        @process({terms})
        def charge(card, amount):
            ran("charge")
            kill_once("charge")
            return amount

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(charge("x", amount=17)())
        """
    )
    program.killed()
    if terms:
        assert program.gives() == "17"
        assert program.ran() == {"charge": 2}
        return
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr
    if sys.version_info >= (3, 11):  # older versions print no notes
        assert "more: docs/durable.md" in ended.stderr
    assert "charge('x', amount=17)" in ended.stderr
    assert program.ran() == {"charge": 1}


def test_what_has_failed_runs_again(program: Program) -> None:
    program.write(
        """
        @process
        def fails_once(x):
            ran("fails_once")
            if not os.path.exists(os.path.join(HERE, "mended")):
                raise ValueError("not yet")
            return x

        @process
        def before():
            ran("before")
            return 3

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(fails_once(before())())
        """
    )
    assert "not yet" in program.start().stderr
    (program.directory / "mended").touch()
    assert program.gives() == "3"
    assert program.ran() == {"fails_once": 2, "before": 1}


def test_equal_calls_are_nodes_of_their_own(program: Program) -> None:
    program.write(
        """
        @process
        def draw():
            ran("draw")
            return os.urandom(8).hex()

        @process(idempotent=True)
        def both(a, b, c):
            kill_once("both")
            return a, b, c

        if __name__ == "__main__":
            with entangle.durable("a"):
                first = draw()()
                print(first, *both(draw(), draw(), draw())())
        """
    )
    program.killed()
    values = program.gives().split()
    assert len(set(values)) == 4
    assert program.gives().split() == values
    assert program.ran() == {"draw": 4}


def test_bad_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    for bad in ({"name": ""}, {"name": 3}, {"name": "x", "busy": "no"}, {"name": "x", "sync": True}, {"name": "x" * 300}):
        with pytest.raises(OptionError):
            entangle.durable(**bad)
    assert not list(tmp_path.iterdir())


def test_attempts_have_one_key(program: Program) -> None:
    program.write(
        """
        @process(retry=2)
        def body(x):
            told = entangle.attempt()
            ran(f"{x} {told.number} {told.key}")
            if told.number == 1:
                raise ValueError
            kill_once("body")
            return told.number

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(body(1)(), body(2)(), body(1)())
        """
    )
    program.killed()
    assert program.gives() == "3 2 2"
    told = [line.split() for line in program.ran()]
    assert sorted(number for x, number, _ in told if x == "2") == ["1", "2"]
    assert len({key for _, _, key in told}) == 3
    first = [key for _, number, key in told if number == "3"]
    assert len([1 for _, _, key in told if [key] == first]) == 3


def test_attempt_without_a_body() -> None:
    with pytest.raises(DurableError, match="none runs here"):
        entangle.attempt()


@process
def _attempt() -> tuple[int, str]:
    number, key = entangle.attempt()
    return number, key


def test_attempt_without_a_durable_run() -> None:
    number, key = _attempt()()
    assert number == 1
    assert len(key) == 32
    assert key != _attempt()()[1]


def test_in_threads(program: Program) -> None:
    program.write(
        """
        @thread
        def part(x):
            ran(f"part {x}")
            return [x]

        @thread(retry=1)
        def total(xs):
            ran("total")
            kill_once("total")
            return xs

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(total(part.map(range(5)))())
        """
    )
    program.killed()
    assert program.gives() == str([[x] for x in range(5)])
    assert program.ran() == {**{f"part {x}": 1 for x in range(5)}, "total": 2}


PIPELINE = """
    from work import scale

    @process
    def load(x):
        ran(f"load {x}")
        return x

    @process
    def clean(x):
        ran(f"clean {x}")
        return scale(x)

    @process(idempotent=True)
    def report(xs):
        ran("report")
        kill_once("report")
        return sum(xs)
"""


def test_changed_code_runs_again_and_nothing_else(program: Program) -> None:
    (program.directory / "work.py").write_text("def scale(x):\n    return 10 * x\n")
    (program.directory / "steps.py").write_text(HEAD + textwrap.dedent(PIPELINE))
    program.write(
        """
        from steps import load, clean, report

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(report([clean(load(x)) for x in range(3)])())
        """
    )
    program.killed()
    (program.directory / "work.py").write_text("def scale(x):\n    # more\n    return 100 * x\n")
    program.forget()
    ended = program.command("resume", "a")
    assert ended.returncode == 0, ended.stderr
    assert "clean: 3 of its calls run again: the function work.scale has changed" in ended.stderr
    assert "report: 300" in ended.stdout
    assert program.ran() == {"clean 0": 1, "clean 1": 1, "clean 2": 1, "report": 1}
    program.forget()
    assert program.gives() == "300"
    assert not program.ran()


def test_unfinished_runs_are_listed_decided_and_removed(program: Program) -> None:
    program.write(
        """
        @process
        def charge(card):
            ran(f"charge {card}")
            kill_once(card)
            return card

        if __name__ == "__main__":
            with entangle.durable("a b/c"):
                print(charge("x")() + charge("y")())
        """
    )
    program.killed()
    (listed,) = json.loads(program.command("resume", "--json").stdout)
    assert (listed["name"], listed["state"], listed["ended"], listed["open"]) == ("a b/c", "unfinished", 0, ["charge"])
    node = re.search(r"^  ([0-9a-f]{8})  charge", program.start().stderr, re.M)
    assert node is not None
    assert program.command("resume", "a b/c", "--ended", node[1], "nonsense(").returncode == 2
    assert program.command("resume", "a b/c", "--ended", "00000000", "1").returncode == 1
    assert program.command("resume", "a b/c", "--ended", node[1], "'given'").returncode == 0
    program.killed()
    ended = program.command("resume", "a b/c")
    assert ended.returncode == 1
    assert "charge('y')" in ended.stderr
    assert program.command("resume", "a b/c", "--again", "all").returncode == 0
    assert program.gives() == "giveny"
    assert program.ran() == {"charge x": 1, "charge y": 2}
    assert json.loads(program.command("resume", "--json").stdout) == []
    assert program.command("resume", "a b/c", "--rm").returncode == 0
    assert not list((program.directory / "records" / "durable").iterdir())
    assert program.command("resume", "a b/c").returncode == 3


def test_runs_that_bodies_make(program: Program) -> None:
    program.write(
        """
        @process
        def step(x, y):
            ran(f"step {x} {y}")
            if (x, y) == (1, 2):
                kill_once("step")
            return x * y

        @workflow
        def row(x):
            return gather(*[cell(x, y) for y in range(3)])

        @workflow
        def cell(x, y):
            return step(x, y)

        @process(retry=1)
        def rows(n):
            return [row(x)() for x in range(n)]

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(rows(3)())
        """
    )
    program.killed()
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr
    assert "step(1, 2)" in ended.stderr
    assert program.command("resume", "a", "--again", "all").returncode == 0
    assert program.gives() == str([[0, 0, 0], [0, 1, 2], [0, 2, 4]])
    assert program.ran() == {f"step {x} {y}": 2 if (x, y) == (1, 2) else 1 for x in range(3) for y in range(3)}


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    order: list[str] = []

    def other() -> None:
        with entangle.durable("a"):
            order.append("other")

    with ThreadPoolExecutor(2) as pool:
        with entangle.durable("a"):
            with entangle.durable("a"):  # the same run
                pass
            waits = pool.submit(other)
            with pytest.raises(DurableError, match="in use"):
                pool.submit(entangle.durable("a", busy="raise").__enter__).result(20)
            order.append("first")
            assert not waits.done()
            if os.fork() == 0:  # a child is in no run, and does not hold this one
                os._exit(int(scope_here() is not None))
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        waits.result(20)
    assert order == ["first", "other"]


def test_whoever_looks_takes_the_run_from_nobody(tmp_path: Path) -> None:
    """Not at the moment of the check, and not after the run was removed and created again."""
    path = str(tmp_path / "lock")
    (tmp_path / "lock").touch()
    with open(path) as looked:
        assert not is_held(looked.fileno())
        threading.Timer(0.2, looked.close).start()
        lock = KeyLock.take(path, 0o600)
    assert lock is not None
    (tmp_path / "lock").rename(tmp_path / "removed")
    another = KeyLock.take(path, 0o600)
    assert another is not None
    lock.give()
    assert KeyLock.take(path, 0o600) is None
    another.give()


def test_a_block_that_cannot_be_entered_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "nonsense")
    with pytest.raises(DepotError), entangle.durable("a"):
        pass
    monkeypatch.delenv("ENTANGLE_DEPOT_AGE")
    with entangle.durable("a", busy="raise"):
        pass


def test_a_ledger_that_is_torn_anywhere(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.0")
    Ledger.create(path)
    writer = Ledger(path, False)
    sizes = []
    for number in range(20):
        writer.append(ENDED, bytes([number]) * 16, bytes(16), os.urandom(number * 7))
        sizes.append(os.path.getsize(path))
    whole = Path(path).read_bytes()
    rng = random.Random(3)
    for _ in range(200):
        torn, cut = rng.randrange(20), rng.randrange(1, 40)
        first, last = ([8, *sizes])[torn], sizes[torn]
        Path(path).write_bytes(whole[: max(first, last - cut)] + whole[last:])
        assert [record.node[0] for record in read(path)] == [number for number in range(20) if number != torn]
        flipped = bytearray(whole)
        flipped[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        Path(path).write_bytes(flipped)
        assert [record.node[0] for record in read(path)] == [number for number in range(20) if number != torn]
    writer.close()


def test_large_and_falsy_values_and_those_that_cannot_be_kept(program: Program) -> None:
    program.write(
        """
        import threading

        @process
        def make(kind):
            ran(f"make {kind}")
            return {"large": bytes(3_000_000), "none": None, "list": [], "zero": 0}[kind]

        @thread
        def lock():
            ran("lock")
            return threading.Lock()

        @thread(idempotent=True)
        def use(values, lock):
            kill_once("use")
            with lock:
                return [len(values[0]), *values[1:]]

        if __name__ == "__main__":
            with entangle.durable("a", sync="disk"):
                print(use([make(kind) for kind in ("large", "none", "list", "zero")], lock())())
        """
    )
    program.killed()
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr
    assert "its value could not be kept" in ended.stderr
    assert program.command("resume", "a", "--again", "all").returncode == 0
    assert program.gives() == "[3000000, None, [], 0]"
    assert program.ran() == {"make large": 1, "make none": 1, "make list": 1, "make zero": 1, "lock": 2}


def test_a_large_value_that_is_damaged_is_an_error_that_names_its_file(program: Program) -> None:
    program.write(
        """
        @process
        def make():
            ran("make")
            return bytes(1_000_000)

        @process(retry=1)
        def size(value):
            ran("size")
            kill_once("size")
            return len(value)

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(size(make())())
        """
    )
    program.killed()
    (path,) = (program.directory / "records" / "durable" / "a" / "values").iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:500_000] + b"x" + whole[500_001:]):
        path.write_bytes(damaged)
        ended = program.start()
        assert "DurableError" in ended.stderr
        assert str(path) in ended.stderr
        assert "Remove the file: its task then runs again" in ended.stderr
    path.write_bytes(whole)
    assert program.ran()["make"] == 1
    path.unlink()
    assert program.gives() == "1000000"
    assert program.ran()["make"] == 2


def test_tasks_that_a_failure_has_stopped_count_as_begun_only_where_they_had(program: Program) -> None:
    program.write(
        """
        @process
        def part(x):
            ran(f"begun {x}")
            if x == 0:
                until = time.monotonic() + 5  # where there is one CPU, nothing runs beside it
                while time.monotonic() < until and not os.path.exists(os.path.join(HERE, "beside")):
                    time.sleep(0.01)
                raise ValueError("zero")
            open(os.path.join(HERE, "beside"), "w").close()
            time.sleep(60)

        if __name__ == "__main__":
            with entangle.durable("a"):
                gather(*[part(x) for x in range(60)])()
        """
    )
    assert "ValueError: zero" in program.start().stderr
    begun = set(program.ran()) - {"begun 0"}
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr if begun else "ValueError" in ended.stderr
    assert {f"begun {x}" for x in re.findall(r"part\((\d+)\)", ended.stderr)} == begun


def test_clean_removes_what_was_finished_long_ago(program: Program) -> None:
    program.write(
        """
        @process
        def one():
            if len(sys.argv) > 2:
                raise ValueError
            return 1

        if __name__ == "__main__":
            with entangle.durable(sys.argv[1]):
                one()()
        """
    )
    program.gives("old")
    program.gives("new")
    program.start("unfinished", "fail")
    durable = program.directory / "records" / "durable"
    long_ago = time.time() - 91 * 86400
    os.utime(durable / "old" / "finished", (long_ago, long_ago))
    for path in (durable / "unfinished").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    cleaned = program.command("clean", "--json")
    assert cleaned.returncode == 0, cleaned.stderr
    assert json.loads(cleaned.stdout)["removed"].count(str(durable / "old")) == 1
    assert sorted(path.name for path in durable.iterdir()) == ["new", "unfinished"]


def test_a_full_disk_is_an_error_and_no_outcome_is_lost(program: Program) -> None:
    program.write(
        """
        import resource

        @process
        def part(x):
            ran(f"part {x}")
            if x == 3 and len(sys.argv) > 1:
                import signal
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            return bytes(200_000) if x == 3 else x

        @process
        def join(*parts):
            return len(parts)

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(join(part(3))())
        """
    )
    ended = program.start("full")
    assert "has run, and its outcome cannot be kept" in ended.stderr
    assert "DurableError" in ended.stderr
    again = program.start().stderr
    assert "MayHaveRunError" in again
    assert "has ended, but its value could not be kept: File too large" in again
    assert program.ran() == {"part 3": 1}


def test_calls_as_they_are_completed_and_failures_that_are_values(program: Program) -> None:
    program.write(
        """
        from entangle import as_completed

        @process(idempotent=True)
        def part(x):
            ran(f"part {x}")
            if x == 2:
                raise ValueError("two")
            return [x]

        if __name__ == "__main__":
            with entangle.durable("a"):
                calls = [part(x) for x in range(4)]
                ended = {calls.index(future.call): repr(future.exception() or future.result()) for future in as_completed(calls)}
                print(sorted(ended.items()))
                print(gather(*[part(x) for x in range(4)], return_exceptions=True)())
                kill_once("end")
        """
    )
    program.killed()
    values = [(x, "ValueError('two')" if x == 2 else f"[{x}]") for x in range(4)]
    assert program.gives() == f"{values}\n[[0], [1], ValueError('two'), [3]]"
    assert program.ran() == {f"part {x}": 4 if x == 2 else 2 for x in range(4)}


def test_awaited_and_as_futures(program: Program) -> None:
    program.write(
        """
        import asyncio

        @process(idempotent=True)
        def part(x):
            ran(f"part {x}")
            return x

        async def main():
            async with entangle.durable("a"):
                future = part(3)(proc=True)
                print(await part(1), *await asyncio.gather(part(2), part(2)), future.result())
                left = part(4)(proc=True)
            assert left.done()
            kill_once("end")

        if __name__ == "__main__":
            asyncio.run(main())
        """
    )
    program.killed()
    assert program.gives() == "1 2 2 3"
    assert program.ran() == {"part 1": 1, "part 2": 2, "part 3": 1, "part 4": 1}


def test_a_block_within_another(program: Program) -> None:
    program.write(
        """
        @process
        def part(x):
            ran(f"part {x}")
            return x

        @process(retry=1)
        def inner():
            with entangle.durable("inner"):
                value = part(1)()
            value += part(2)()
            kill_once("inner")
            return value

        if __name__ == "__main__":
            with entangle.durable("outer"), entangle.session():
                print(inner()())
        """
    )
    program.killed()
    assert program.gives() == "3"
    assert program.ran() == {"part 1": 1, "part 2": 1}


def test_a_deadline_and_a_worker_that_dies_are_failures(program: Program) -> None:
    program.write(
        """
        @process(timeout=0.5)
        def late():
            ran("late")
            time.sleep(60 if not os.path.exists(os.path.join(HERE, "mended")) else 0)
            return 1

        @process
        def dies():
            ran("dies")
            if not os.path.exists(os.path.join(HERE, "mended")):
                os._exit(3)
            return 2

        if __name__ == "__main__":
            with entangle.durable("a"):
                print((late() if sys.argv[1] == "late" else dies())())
        """
    )
    assert "ProcessTimeoutException" in program.start("late").stderr
    assert "ProcessTerminatedException" in program.start("dies").stderr
    (program.directory / "mended").touch()
    assert (program.gives("late"), program.gives("dies")) == ("1", "2")
    assert program.ran() == {"late": 2, "dies": 2}


def test_the_transcript_of_the_page(program: Program) -> None:
    """Start the page's program, kill it, edit it and start it again: it prints what the page
    shows."""
    page = shown_blocks.read(Path(ROOT) / "docs" / "durable.md")
    shown = {block.title: block.code for block in page.blocks if block.title}
    (program.directory / "pipeline.py").write_text(shown["pipeline.py"])
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown["transcript"], re.M)
    assert len(commands) == 5
    for command, told in commands:
        words = shlex.split(command)
        words[0] = sys.executable if words[0] == "python" else words[0]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        wanted = told.split("\n")[:-1]
        with subprocess.Popen(words, cwd=program.directory, env=environment, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            if wanted[-1:] == ["Killed"]:
                found = [started.stdout.readline().rstrip("\n") for _ in wanted[:-1]]
                started.kill()
                found.append("Killed")
            else:
                found = started.stdout.read().split("\n")[:-1]
        assert started.returncode == (-signal.SIGKILL if "Killed" in found else 0)
        assert sorted(found) == sorted(wanted), command
        assert found[-1:] == wanted[-1:]


def test_bodies_elsewhere(program: Program) -> None:
    program.write(
        """
        from concurrent.futures import ThreadPoolExecutor
        from entangle.on import on

        pool = ThreadPoolExecutor(2)

        @on(pool)
        def part(x):
            ran(f"part {x}")
            if x == 3:
                kill_once("part")
            return x

        @process(retry=1)
        def total(*xs):
            ran("total")
            kill_once("total")
            return sum(xs)

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(total(part(1), part(2))(), total(part(3), 0)())
        """
    )
    program.killed()
    program.killed()
    assert program.ran() == {"part 1": 1, "part 2": 1, "total": 2, "part 3": 1}
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr
    assert "part(3)" in ended.stderr
    assert program.command("resume", "a", "--again", "all").returncode == 0
    assert program.gives() == "3 3"
    assert program.ran() == {"part 1": 1, "part 2": 1, "total": 3, "part 3": 2}
