"""Streams in durable runs: programs that are killed between and within items, and started again."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

import entangle
from entangle.dataflow import dataflow
from entangle.errors import CacheKeyError, DurableError
from entangle.process import process
from entangle.tests.test_durable import Program

#: When the loop has consumed all values before it, the item `killer` kills the program.
STREAM = """
from pathlib import Path
from entangle._depot.ledger import CONSUMED, read

def consumed():
    ledgers = Path(HERE, "records", "durable", "a").glob("ledger.*")
    return sum(record.kind == CONSUMED for ledger in ledgers for record in read(str(ledger)))

@{task}
def square(x):
    ran(f"square {{x}}")
    if x == {killer}:
        while consumed() < x:
            time.sleep(0.01)
        kill_once("body")
    return x * x

if __name__ == "__main__":
    with entangle.durable("a"):
        for value in square.stream({source}, inflight={inflight}, ordered={ordered}):
            print(value, flush=True)
            if value == {stop}:
                kill_once("loop")
    print("over")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    return Program(tmp_path)


def stream(program: Program, **given: object) -> Program:
    known = {"task": "process(retry=1)", "killer": -1, "source": "range(40)", "inflight": 8, "ordered": True, "stop": -1}
    return program.write(STREAM.format(**{**known, **given}))


def numbers(text: str) -> list[int]:
    return [int(line) for line in text.split("\n") if line.isdigit()]


@pytest.mark.parametrize(("task", "ordered"), [("process", True), ("thread", False), ("process(retry=1)", False)])
def test_the_loop_goes_on_after_the_last_item_that_it_has_consumed(program: Program, task: str, ordered: bool) -> None:
    stream(program, ordered=ordered, task=task, stop=100, source="range(12)", inflight=2)
    killed = program.start()
    assert killed.returncode == -signal.SIGKILL
    before = numbers(killed.stdout)
    assert before[-1] == 100
    doubtful = program.start()
    after = numbers(doubtful.stdout)
    assert doubtful.returncode == 0 or "MayHaveRunError" in doubtful.stderr
    if doubtful.returncode:
        assert program.command("resume", "a", "--again", "all").returncode == 0
        after += numbers(program.gives())
    # The loop had this value, but had not asked for the next one: so this one was not consumed.
    assert 100 in after
    assert not set(before[:-1]) & set(after)
    seen = {*before, *after}
    assert seen == {x * x for x in range(12)}
    if ordered:
        assert before == sorted(before)
        assert sorted(set(after)) == list(dict.fromkeys(after))


def test_values_that_had_ended_are_taken_and_the_rest_runs(program: Program) -> None:
    stream(program, killer=20, inflight=4)
    killed = program.start()
    assert killed.returncode == -signal.SIGKILL
    before = numbers(killed.stdout)
    first = program.ran()
    program.forget()
    after = numbers(program.gives())
    again = program.ran()
    assert (before, after) == ([x * x for x in range(20)], [x * x for x in range(20, 40)])
    # Only the item whose body was killed, and those that ran beside it, have run twice.
    assert again["square 20"] == 1
    assert all(x >= 20 for x in range(40) if first[f"square {x}"] and again[f"square {x}"])
    # The program ended normally, so all values are available again, and nothing runs.
    program.forget()
    assert numbers(program.gives()) == [x * x for x in range(40)]
    assert not program.ran()


def test_an_item_that_had_begun_is_named_when_the_loop_reaches_it(program: Program) -> None:
    stream(program, task="process", killer=5, inflight=1)
    program.killed()
    ended = program.start()
    assert numbers(ended.stdout) == []  # the loop had asked for the value of 5, and so consumed that of 4
    assert "MayHaveRunError" in ended.stderr
    assert "square(5)" in ended.stderr
    assert "square" in program.command("resume").stdout
    assert program.ran()["square 6"] == 0
    taken = program.command("resume", "a", "--again", "all")
    assert taken.returncode == 0
    assert numbers(program.gives()) == [x * x for x in range(5, 40)]
    assert program.ran()["square 5"] == 2


def test_resume_says_that_only_the_program_can_go_on(program: Program) -> None:
    stream(program, stop=100)
    program.killed()
    ended = program.command("resume", "a")
    assert ended.returncode != 0
    assert "only its program can take it up" in ended.stdout + ended.stderr
    assert numbers(program.gives()) == [x * x for x in range(10, 40)]


def test_a_source_that_gives_other_items_and_equal_ones(program: Program) -> None:
    stream(program, source="[1, 1, 2, 1, 3]", stop=4, inflight=1)
    program.killed()
    stream(program, source="[0, 2, 1, 1, 1, 1, 4]", inflight=1)
    assert numbers(program.gives()) == [0, 4, 1, 1, 16]


def test_failures_that_are_left_out_run_again(program: Program) -> None:
    program.write(
        """
        @process
        def part(x):
            ran(f"part {x}")
            if x == 2 and not os.path.exists(os.path.join(HERE, "mended")):
                raise ValueError("two")
            if x == 3 and not os.path.exists(os.path.join(HERE, "mended")):
                os._exit(3)
            return x

        def tell(task, item, error):
            print(task.__name__, item, type(error).__name__, flush=True)

        if __name__ == "__main__":
            with entangle.durable("a"):
                for value in part.stream(range(6), on_error=tell, inflight=1):
                    print(value, flush=True)
                    if value == 5:
                        kill_once("loop")
        """
    )
    killed = program.start()
    assert killed.returncode == -signal.SIGKILL
    assert "part 2 ValueError" in killed.stdout
    assert "part 3 ProcessTerminatedException" in killed.stdout
    (program.directory / "mended").touch()
    assert numbers(program.gives()) == [2, 3, 5]


def test_a_failure_that_ends_the_stream(program: Program) -> None:
    program.write(
        """
        @process
        def part(x):
            ran(f"part {x}")
            if x == 3 and len(sys.argv) > 1:
                raise ValueError("three")
            return x

        if __name__ == "__main__":
            with entangle.durable("a"):
                for value in part.stream(range(6), inflight=1):
                    print(value, flush=True)
        """
    )
    ended = program.start("fail")
    assert "ValueError: three" in ended.stderr
    assert numbers(ended.stdout) == [0, 1, 2]
    assert numbers(program.gives()) == [3, 4, 5]
    assert program.ran() == {**{f"part {x}": 1 for x in range(6)}, "part 3": 2}


@pytest.mark.parametrize("source", ["count()", "range(10)"])
def test_awaited(program: Program, source: str) -> None:
    program.write(
        f"""
        import asyncio

        @process(idempotent=True)
        def square(x):
            ran(f"square {{x}}")
            return x * x

        async def count():
            for x in range(10):
                await asyncio.sleep(0)
                yield x

        async def main():
            async with entangle.durable("a"):
                async for value in square.stream({source}, inflight=2):
                    print(value, flush=True)
                    if value == 25:
                        kill_once("loop")

        if __name__ == "__main__":
            asyncio.run(main())
        """
    )
    program.killed()
    assert numbers(program.gives()) == [25, 36, 49, 64, 81]
    assert program.ran()["square 3"] == 1


def test_a_loop_that_is_left_early(program: Program) -> None:
    program.write(
        """
        @process
        def same(x):
            ran(f"same {x}")
            return x

        @process(idempotent=True)
        def after():
            kill_once("after")
            return "after"

        if __name__ == "__main__":
            with entangle.durable("a"):
                for value in same.stream(range(1000)):
                    print(value, flush=True)
                    if value == 5:
                        break
                print(after()())
        """
    )
    program.killed()
    program.forget()
    assert program.gives() == "5\nafter"  # the loop breaks at the same item again
    assert program.ran()["same 5"] == 0
    assert numbers(program.gives()) == [0, 1, 2, 3, 4, 5]


def test_a_stream_that_a_body_leaves_open_ends_with_its_run(program: Program) -> None:
    """The warm worker survives, and holds nothing of the run."""
    program.write(
        """
        import json

        @thread
        def same(x):
            return x

        @process
        def leaves():
            json.loads.left = stream = same.stream(iter(range(100)))
            return next(stream) + next(stream)

        if __name__ == "__main__":
            with entangle.session():
                for _ in range(2):
                    with entangle.durable("a", busy="raise"):
                        print(leaves()(), flush=True)
        """
    )
    assert program.gives() == "1\n1"


def test_runs_in_the_bodies_of_items_and_attempts(program: Program) -> None:
    program.write(
        """
        @process
        def part(x):
            ran(f"part {x}")
            return x

        @process(retry=2)
        def whole(x):
            attempt = entangle.attempt()
            print("attempt", x, attempt.number, attempt.key, flush=True)
            value = part(x)() + part(x)()
            if x == 2:
                kill_once("whole")
            if x == 3 and attempt.number == 1:
                raise ValueError("once")
            return value

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(list(whole.stream(range(5), inflight=1)))
        """
    )
    killed = program.start()
    assert killed.returncode == -signal.SIGKILL
    ended = program.start()
    assert ended.returncode == 0, ended.stderr
    attempts = [line.split() for line in (killed.stdout + ended.stdout).split("\n") if line.startswith("attempt")]
    assert [(line[1], line[2]) for line in attempts] == [("0", "1"), ("1", "1"), ("2", "1"), ("2", "2"), ("3", "1"), ("3", "2"), ("4", "1")]
    assert len({line[3] for line in attempts}) == 5
    assert program.ran() == {f"part {x}": 2 for x in range(5)}


def test_streams_in_bodies_and_of_methods_and_items_that_are_calls(program: Program) -> None:
    program.write(
        """
        class Scale:
            def __init__(self, by):
                self.by = by

            @thread
            def times(self, x):
                ran(f"times {self.by} {x}")
                return self.by * x

        @process
        def two():
            return 2

        @process(retry=1)
        def inner(n):
            found = []
            for value in Scale(n).times.stream([1, two(), 3], inflight=1):
                found.append(value)
                if value == 9:
                    kill_once("inner")
            return found

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(sorted(Scale(10).times.stream([1, two(), 3])))
                print(inner(3)())
        """
    )
    program.killed()
    ended = program.gives()
    # What a loop had gathered in memory is lost, as the page says.
    assert ended.split("\n")[-1] == "[9]"
    assert all(times == 1 for times in program.ran().values())


def test_large_values_and_none(program: Program) -> None:
    program.write(
        """
        @process
        def make(x):
            ran(f"make {x}")
            return bytes(1_000_000 + x) if x % 2 else None

        if __name__ == "__main__":
            with entangle.durable("a"):
                for value in make.stream(range(6), inflight=1):
                    print(0 if value is None else len(value), flush=True)
                    if value is not None and len(value) == 1_000_003:
                        kill_once("loop")
        """
    )
    program.killed()
    assert numbers(program.gives()) == [1_000_003, 0, 1_000_005]
    assert numbers(program.gives()) == [0, 1_000_001, 0, 1_000_003, 0, 1_000_005]
    assert all(times == 1 for times in program.ran().values())
    # A damaged value is an error that names the file, also where failed items are skipped.
    values = program.directory / "records" / "durable" / "a" / "values"
    for path in values.iterdir():
        content = bytearray(path.read_bytes())
        content[-10] ^= 1
        path.write_bytes(content)
    ended = program.start()
    assert "DurableError" in ended.stderr
    assert "Remove the file" in ended.stderr
    for path in values.iterdir():
        path.unlink()
    assert numbers(program.gives()) == [1_000_001, 0, 1_000_003, 0, 1_000_005]


def test_killed_at_any_instant(program: Program) -> None:
    """No value is lost. The loop gets a value twice only if it was killed while it held it. An item
    that had ended does not run again."""
    program.write(
        """
        import random, threading

        @process(idempotent=True)
        def square(x):
            value = x * x
            ran(f"square {x}")
            return value

        if __name__ == "__main__":
            pause = float(sys.argv[1])
            with entangle.durable("a"):
                if pause:
                    threading.Timer(pause, os.kill, (os.getpid(), signal.SIGKILL)).start()
                for value in square.stream(range(300)):
                    with open(os.path.join(HERE, "seen"), "a") as file:
                        file.write(f"{value}\\n")
        """
    )
    kills = 0
    for number in range(10):
        ended = program.start(str(0.004 * 2**number) if number < 7 else "0.2")
        kills += ended.returncode == -signal.SIGKILL
        if ended.returncode == 0:
            break
    else:
        assert program.gives("0") == ""
    assert kills
    seen = numbers((program.directory / "seen").read_text())
    assert list(dict.fromkeys(seen)) == [x * x for x in range(300)]
    assert seen == sorted(seen)
    assert len(seen) <= 300 + kills


@process
def same(x: object) -> object:
    return x


def test_an_item_that_cannot_be_told_and_a_stream_whose_block_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    with (
        open(__file__, encoding="utf-8") as file,
        entangle.durable("a"),
        pytest.raises(CacheKeyError, match="cannot be told"),
    ):
        list(same.stream([1, file]))
    with entangle.durable("b"):
        values = same.stream(iter(range(100)))
        assert next(values) == 0
    with pytest.raises(DurableError, match="has been left"):
        next(values)
    with entangle.durable("c"):
        assert list(same.stream([])) == []
        assert list(same.stream([0, 0, None])) == [0, 0, None]
        assert list(same.stream([0, 0, None])) == [0, 0, None]


def test_in_the_thread_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entangle_inline: None) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    seen = []
    for last in (3, 9, 9):
        with contextlib.suppress(ZeroDivisionError), entangle.durable("a"):
            for value in same.stream(range(10)):
                seen.append(value)
                if value == last and last == 3:
                    raise ZeroDivisionError
    assert seen == [*range(4), *range(3, 10), *range(10)]


@dataflow
def node(x: int) -> int:
    return x + 1


def test_a_dataflow_says_that_it_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    assert node()(1) == (2,)
    assert not caplog.records
    with entangle.durable(f"pushed {tmp_path}"):
        assert node()(1) == (2,)
        assert node()(1) == (2,)
    with entangle.durable(f"streamed {tmp_path}"):
        assert list(node().stream([1, 2])) == [(2,), (3,)]
    said = "what goes through the dataflow of 'node' is not kept"
    assert [said in record.getMessage() for record in caplog.records] == [True, True]
