"""The arguments of a call that failed are kept, and `entangle replay` runs it again. If values are
kept, this also holds for calls that succeeded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from entangle._records import kept
from entangle._shared import kept_calls
from entangle.cli.exit_status import ABSENT, DONE, FAILED

from .callers import ROOT

PROGRAM = """
    import os, sys, threading, time
    import entangle
    from entangle.interpreter import interpreter
    from entangle.process import process
    from entangle.thread import thread
    from entangle.task import task

    class Point:
        def __init__(self, x):
            self.x = x

    def scaled(x):
        return 2 * x

    @process
    def make(x):
        return Point(x)

    @process
    def fail(point, *more, unit="m", **others):
        raise ValueError(f"{type(point).__name__} {getattr(point, 'x', point)} {more} {unit} {others} {scaled(3)}")

    @process
    def silent(point):
        raise ValueError("nothing of it is shown")

    @process
    def change(numbers, words):
        numbers.append(4)
        words["b"] = 2
        raise LookupError(f"{numbers} {words}")

    @process
    def numbers():
        return [1, 2, 3]

    @thread
    def in_thread(a, b=2):
        raise RuntimeError(f"{a} {b}")

    @task
    def in_caller(a):
        raise RuntimeError(f"here {a}")

    @process(retry=2)
    def again(n):
        raise OSError(f"{n} at attempt")

    @process
    async def later(n):
        raise KeyError(n)

    @process
    def outer(n):
        return fail(make(n), n)()

    @process
    def login(user, password):
        raise PermissionError("refused")

    @process
    def lives(n):
        return n

    @process(shared_memory=True)
    def shares(n, smm=None, sm=None):
        segment = smm.SharedMemory(8)
        segment.buf[0] = n
        raise ValueError(f"there lies {segment.buf[0]}")

    @process(retry=1)
    def gather_first(point):
        return point

    @process(fresh=True)
    def dies(point, n):
        if os.environ.get("ENTANGLE_RECORD") != "0":
            os.kill(os.getpid(), 9)
        raise ValueError(f"{point.x} {n}")

    @process(timeout=0.2, retry=1)
    def slow(n, m):
        if os.environ.get("ENTANGLE_RECORD") != "0":
            time.sleep(60)
        raise ValueError(f"{n} {m}")

    @thread(timeout=0.2)
    def slow_thread(n):
        if os.environ.get("ENTANGLE_RECORD") != "0":
            time.sleep(1)
        raise ValueError(f"{n}")

    @interpreter(python=sys.executable)
    @process
    def far(point, n):
        raise ValueError(f"{point.x} {n}")

    @process
    def here(n):
        raise ValueError(f"{os.path.basename(os.getcwd())} {os.environ.get('MODE')} {sys.argv[1:]} {n}")

    class Model:
        def __init__(self, rate):
            self.rate = rate

        @process
        def fit(self, n):
            raise ValueError(f"{self.rate} {n}")

        @classmethod
        @process
        def of(cls, n):
            raise ValueError(f"{cls.__name__} {n}")

    def closure(k):
        @process
        def inner(n):
            raise ValueError(f"closure {k} {n}")
        return inner

    if __name__ == "__main__":
        entangle.__version__
        eval(sys.argv[1])()
"""


class Folder:
    """A directory with a program and its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "runs").mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "ENTANGLE_RUN_DIR": str(path / "runs"),
            "ENTANGLE_RECORD_DIR": str(path / "records"),
            "COLUMNS": "200",
        }
        self.write("work.py", PROGRAM)

    def write(self, name: str, source: str) -> None:
        (self.path / name).write_text(textwrap.dedent(source), encoding="utf-8")

    def python(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {**self.environment, **environment}
        return subprocess.run([sys.executable, *words], cwd=self.path, env=known, capture_output=True, text=True, timeout=120)

    def fails(self, call: str, *words: str, **environment: str) -> str:
        """Run a call of the program that fails. Return the line that says how to run it again."""
        done = self.python("work.py", call, *words, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        return next((line for line in done.stderr.splitlines() if "replay: " in line), "")

    def replay(self, *words: str, entered: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        known = {**self.environment, **environment}
        command = [sys.executable, "-m", "entangle", "replay", *words]
        return subprocess.run(command, cwd=self.path.parent, env=known, input=entered, capture_output=True, text=True, timeout=120)

    def kept(self) -> list[Path]:
        return sorted((self.path / "records" / "calls").glob("*.call"))

    def tasks(self) -> list[Path]:
        return sorted((self.path / "records" / "calls").glob("*.task"))

    def files(self) -> list[Path]:
        return sorted((self.path / "records" / "calls").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "work"
    path.mkdir()
    return Folder(path)


CALLS = {
    "fail(make(3), 4, unit='s', other=[5])": "ValueError: Point 3 (4,) s {'other': [5]} 6",
    "fail([lives(1), 2], {'k': lives(3)})": "ValueError: list [1, 2] ({'k': 3},) m {} 6",
    "in_thread(1)": "RuntimeError: 1 2",
    "in_caller(lives(7))": "RuntimeError: here 7",
    "again(3)": "OSError: 3 at attempt",
    "later(3)": "KeyError: 3",
    "shares(9)": "ValueError: there lies 9",
    "Model(0.5).fit(lives(3))": "ValueError: 0.5 3",
    "Model.of(4)": "ValueError: Model 4",
    "closure(5)(lives(6))": "ValueError: closure 5 6",
    "fail(None)": "ValueError: NoneType None () m {} 6",
    "outer(3)": "ValueError: Point 3 (3,) m {} 6",
    "entangle.gather(fail(1), lives(2))": "ValueError: int 1 () m {} 6",
    "dies(gather_first(make(2)), 3)": "ValueError: 2 3",
    "slow(lives(1), 2)": "ValueError: 1 2",
    "slow_thread(lives(1))": "ValueError: 1",
    "far(make(2), 3)": "ValueError: 2 3",
    "fail.map([8])": "ValueError: int 8 () m {} 6",
}


@pytest.mark.parametrize("call", CALLS)
def test_the_error_of_a_run_prints_the_command_that_runs_the_call_again(folder: Folder, call: str) -> None:
    line = folder.fails(call)
    found = re.fullmatch(r"replay: entangle (replay [0-9a-f]{16} --node \d+)", line)
    assert found is not None, line
    done = folder.replay(*found[1].split()[1:])
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert CALLS[call] in done.stderr.splitlines()
    assert f'{folder.path / "work.py"}", line' in done.stderr
    assert os.path.join("entangle", "_") not in done.stderr  # no frame of entangle itself
    assert "call path: " in done.stderr


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_of_every_kind_keep_calls(folder: Folder, start: str) -> None:
    folder.fails("fail(make(3), 4)", ENTANGLE_START=start)
    assert "ValueError: Point 3 (4,) m {} 6" in folder.replay("last").stderr.splitlines()


def test_arguments_are_as_they_were_before_the_body_changed_them(folder: Folder) -> None:
    folder.fails("change([1, 2, 3], {'a': 1})")
    done = folder.replay()
    assert "LookupError: [1, 2, 3, 4] {'a': 1, 'b': 2}" in done.stderr.splitlines()
    assert "as the body left it" not in done.stderr


def test_an_argument_that_was_in_no_store_is_as_the_body_left_it_and_that_is_said(folder: Folder) -> None:
    # Passed on within one worker, so that it was never pickled.
    folder.fails("change(numbers(), {'a': 1})")
    done = folder.replay()
    assert "LookupError: [1, 2, 3, 4, 4] {'a': 1, 'b': 2}" in done.stderr.splitlines()
    assert "argument numbers is as the body left it: it was in no store" in done.stderr.splitlines()


def test_the_code_is_that_of_now_and_what_has_changed_is_said(folder: Folder) -> None:
    folder.fails("fail(make(3))")
    assert "has changed" not in folder.replay().stderr
    source = (folder.path / "work.py").read_text(encoding="utf-8")
    mended = source.replace("return 2 * x", "return 200 * x").replace("raise ValueError(f", "return (f", 1)
    (folder.path / "work.py").write_text("# moved by a comment\n" + mended, encoding="utf-8")
    done = folder.replay()
    assert (done.returncode, done.stdout) == (DONE, "'Point 3 () m {} 600'\n")
    changed = [line for line in done.stderr.splitlines() if line.startswith("the code has changed since: ")]
    assert len(changed) == 2
    assert all(any(name in line for line in changed) for name in ("fail", "scaled"))


def test_a_script_without_a_guard_is_not_run_and_its_code_is_that_of_then(folder: Folder) -> None:
    folder.write("bare.py", PROGRAM.replace('    if __name__ == "__main__":\n', "    if True:\n"))
    assert folder.python("bare.py", "fail(make(3))").returncode == 1
    (folder.path / "bare.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    done = folder.replay()
    assert "ValueError: Point 3 () m {} 6" in done.stderr.splitlines()
    assert "is not imported: its functions are as they were kept" in done.stderr


def test_a_module_that_is_gone(folder: Folder) -> None:
    folder.write("other.py", PROGRAM)
    folder.write("use.py", "import other\nother.fail(3)()\n")
    assert folder.python("use.py").returncode == 1
    assert "ValueError: int 3 () m {} 6" in folder.replay().stderr.splitlines()
    (folder.path / "other.py").unlink()
    done = folder.replay()
    assert done.returncode == FAILED
    assert "entangle: task other.fail is not found (ModuleNotFoundError: No module named 'other')" in done.stderr


def test_directory_variables_and_words_are_those_of_then(folder: Folder) -> None:
    folder.fails("here(1)", "--fast", MODE="quick", API_TOKEN="abcdef0123456789")
    done = folder.replay(MODE="slow")
    assert f"ValueError: work quick {['here(1)', '--fast']} 1" in done.stderr.splitlines()
    assert all("abcdef0123456789" not in path.read_text("latin-1") for path in folder.files())


def test_what_may_be_a_secret_is_not_kept(folder: Folder) -> None:
    # A file, since command lines are recorded.
    folder.write("words.py", "one, other = 'hunter22', 'postgres://ann:hunter22@db/x'")
    folder.write("work.py", PROGRAM.replace("import os,", "from words import one, other; import os,"))
    assert folder.fails("login('ann', one)") == "no replay: argument password may be a secret, by its name"
    assert folder.fails("fail({'api_key': lives(one)})") == "no replay: argument point may hold a secret, by a name in it"
    assert folder.fails("fail(other)") == "no replay: argument point may be a secret, by its look"
    assert all("hunter22" not in path.read_text("latin-1") for path in folder.files())
    done = folder.replay()
    assert (done.returncode, done.stdout) == (ABSENT, "")
    assert "cannot be run again: argument point may be a secret, by its look" in done.stderr


HIDDEN = """
    import collections, numpy, typing
    from words import one
    import work
    from entangle.process import process

    class Login(typing.NamedTuple):
        user: str
        password: str

    def enclosed(password):
        @process
        def inner(n):
            raise ValueError(len(password))
        return inner(1)

    kept = collections.defaultdict(lambda password=one: 1, a=work.lives(1))

    import sys
    eval(sys.argv[1])()
"""
WITHOUT = {
    "enclosed(one)": "",
    "work.fail(numpy.array(['password=' + one] * 2000))": "argument point may hold a secret",
    "work.fail([bytes(2 << 20), Login('ann', one)])": "argument point may hold a secret",
    "work.fail([Login('ann', work.lives(one))])": "argument point may hold a secret",
    "work.fail(kept)": "argument point may hold a secret",
    "work.fail('mysql', '--password', one)": "argument more may hold a secret",
    "work.fail(1).named('load https://ann:' + one + '@db/x')": "",
}


@pytest.mark.parametrize("call", WITHOUT)
def test_a_secret_is_in_no_part_of_a_kept_call(folder: Folder, call: str) -> None:
    pytest.importorskip("numpy")
    folder.write("words.py", "one = 'hunter22xyz'")
    folder.write("hidden.py", HIDDEN)
    done = folder.python("hidden.py", call)
    said = [line for line in done.stderr.splitlines() if "replay: " in line]
    assert len(said) == 1, done.stderr
    assert said == [f"no replay: {WITHOUT[call]}"] if WITHOUT[call] else "replay: entangle replay" in said[0]
    assert len(folder.kept()) == len(folder.tasks()) == 1
    assert all("hunter22xyz" not in path.read_bytes().replace(b"\0", b"").decode("latin-1") for path in folder.files())


@pytest.mark.parametrize("dies", ["os.kill(os.getpid(), 9)", "raise ValueError(n)"])
def test_no_module_is_imported_to_keep_a_call(folder: Folder, dies: str) -> None:
    """Neither the worker nor, if that process is gone, the caller imports a module for it."""
    folder.write("lazy.py", "open('imported', 'a').write('x')\n")
    folder.write(
        "bare.py",
        f"""
        import os
        from entangle.process import process

        @process(fresh=True)
        def load(n):
            if n:
                {dies}
            import lazy

        if __name__ == "__main__":
            load(3)()
        """,
    )
    assert "replay: entangle replay" in folder.python("bare.py").stderr
    assert not (folder.path / "imported").exists()


def test_a_function_with_a_large_array_of_its_own(folder: Folder) -> None:
    pytest.importorskip("numpy")
    folder.write("large.py", PROGRAM.replace("import os,", "import numpy, os,").replace('if __name__ == "__main__":', "if True:"))
    done = folder.python("large.py", "closure(numpy.ones(200_000))(2)")
    assert "replay: entangle replay" in done.stderr
    assert "ValueError: closure [1. 1." in folder.replay().stderr


def test_arguments_that_cannot_be_pickled_or_are_too_large(folder: Folder) -> None:
    assert folder.fails("in_thread(threading.Lock())").startswith("no replay: argument a cannot be pickled: ")
    huge = "no replay: argument point is too large: the arguments of a call may have 64 MiB together"
    assert folder.fails("silent(bytes(70 << 20))") == huge
    assert folder.fails("silent([bytes(40 << 20), bytes(40 << 20)])") == huge
    assert sum(path.stat().st_size for path in folder.files()) < 1 << 20


def test_arrays_are_kept_whole(folder: Folder) -> None:
    pytest.importorskip("numpy")
    folder.write("arrays.py", PROGRAM.replace("import os,", "import numpy, os,"))
    done = folder.python("arrays.py", "fail(lives(numpy.arange(1e6)), numpy.ones(9))")
    assert "replay: entangle replay" in done.stderr
    assert folder.kept()[0].stat().st_size > 8e6
    assert "ValueError: ndarray [0.0" in folder.replay().stderr.replace("e+00", "")


def test_the_debugger_starts_in_the_frame_of_the_body(folder: Folder) -> None:
    folder.write("deep.py", PROGRAM.replace("return 2 * x", "raise IndexError(x)"))
    folder.python("deep.py", "fail(make(3))")
    done = folder.replay("--pdb", entered="p unit, point.x\nq\n")
    assert "('m', 3)" in done.stdout
    assert "IndexError: 3" in done.stderr
    assert done.returncode == FAILED


def test_a_value_that_was_in_a_killed_worker_alone(folder: Folder) -> None:
    folder.write("work.py", PROGRAM.replace("@process(fresh=True)", "@process"))
    assert folder.fails("dies(make(2), 3)") == "no replay: argument point was in its worker alone, which is gone"


def test_a_body_that_had_run_elsewhere_runs_here(folder: Folder) -> None:
    folder.fails("far(make(2), 3)")
    assert [len(folder.kept()), len(folder.tasks())] == [1, 1]  # here, not there
    assert "the body had run elsewhere, by @interpreter; it runs here now" in folder.replay().stderr.splitlines()


def test_for_programs(folder: Folder) -> None:
    folder.fails("fail(3)")
    told: dict[str, Any] = json.loads(folder.replay("--json").stdout)
    assert (told["status"], told["value"], told["error"]["type"], told["said"]) == (1, None, "ValueError", [])
    assert told["error"]["message"] == "int 3 () m {} 6"


def test_runs_and_nodes_that_are_not_there(folder: Folder) -> None:
    assert "no run" in folder.replay("last").stderr
    done = folder.python("work.py", "entangle.gather(fail(1), fail(2), lives(3), return_exceptions=True)")
    assert (done.returncode, done.stderr) == (0, "")
    done = folder.replay("last")
    assert done.returncode == ABSENT
    assert "has kept 2 failed calls; choose one by --node: 0 (fail), 1 (fail)" in done.stderr
    assert "ValueError: int 2 () m {} 6" in folder.replay("last", "--node", "1").stderr.splitlines()
    assert "the call of node 2 (lives, done)" in folder.replay("last", "--node", "2").stderr
    missing = folder.replay("last", "--node", "77")
    assert (missing.returncode, "77" in missing.stderr) == (ABSENT, True)
    assert folder.replay("ffff").returncode == ABSENT


def test_nothing_is_kept_where_nothing_is_recorded_and_of_runs_that_end_well(folder: Folder) -> None:
    assert "replay" not in folder.fails("fail(1)", ENTANGLE_RECORD="0")
    assert folder.python("work.py", "lives(1)").returncode == 0
    assert folder.files() == []


def test_files_are_for_their_user_alone(folder: Folder) -> None:
    folder.fails("fail(1)")
    assert len(folder.files()) == 2
    for path in folder.files():
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        path.chmod(0o666)
        done = folder.replay()
        assert done.returncode == ABSENT
        assert f"{path} is not a file of yours that you alone may write to" in done.stderr
        path.chmod(0o600)


def test_kept_calls_go_with_their_runs(folder: Folder) -> None:
    folder.fails("fail(1)")
    folder.fails("outer(2)")
    old = [path.name for path in folder.files()]
    assert len(folder.kept()) == len(folder.tasks()) == 3  # two of them: the outer call and the one in its nested run
    folder.fails("fail(3)")
    code = "from entangle import records; [records.forget(run.id) for run in records.runs()[1:]]"
    assert folder.python("-c", code).returncode == 0
    left = folder.files()
    assert len(folder.kept()) == len(folder.tasks()) == 1
    assert not {path.name for path in left} & {*old}
    names = ("1.call", "1.task", "2.call.77", "2.task.77", "3.call", "3.task")
    others = [left[0].parent / f"{'0' * 16}-{name}" for name in names]
    for path in others:
        path.write_bytes(b"")
    for path in (*others[:4], *left):
        os.utime(path, (1, 1))
    done = folder.python("-m", "entangle", "clean", "--json")
    assert sorted(json.loads(done.stdout)["removed"]) == sorted(map(str, others[:4]))
    assert folder.files() == sorted([*others[4:], *left])


def test_all_kept_calls_together_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    for number in range(5):
        path = tmp_path / "calls" / f"{'a' * 16}-{number}.call"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    task = tmp_path / "calls" / f"{'a' * 16}-0.task"
    task.write_bytes(bytes(50))
    kept.trim(str(tmp_path), 250)
    assert [call.node for call in kept.all_kept(str(tmp_path))] == [3, 4]
    kept.trim(str(tmp_path), calls=1)
    assert [call.node for call in kept.all_kept(str(tmp_path))] == [4]
    assert task.exists()
    os.utime(task, (3, 3))  # older than what has all the room
    kept.trim(str(tmp_path), 100)
    assert [call.node for call in kept.all_kept(str(tmp_path))] == [4]
    assert not task.exists()


# --- tasks, which are kept apart from their calls -------------------------------------------------


def test_two_tasks_fail_in_one_run_and_each_is_kept_once(folder: Folder) -> None:
    call = "entangle.gather(fail(1), closure(5)(2), fail(3), lives(4), return_exceptions=True)"
    folder.write("bare.py", PROGRAM.replace('    if __name__ == "__main__":\n', "    if True:\n"))
    assert folder.python("bare.py", call).returncode == 0
    assert (len(folder.kept()), len(folder.tasks())) == (3, 2)
    (folder.path / "bare.py").unlink()
    for node, told in enumerate(["int 1 () m {} 6", "closure 5 2", "int 3 () m {} 6"]):
        assert f"ValueError: {told}" in folder.replay("last", "--node", str(node)).stderr.splitlines()


def test_the_task_of_a_run_in_a_run_is_kept_where_that_was_begun(folder: Folder) -> None:
    folder.write("bare.py", PROGRAM.replace('    if __name__ == "__main__":\n', "    if True:\n"))
    run = re.findall(r"replay: entangle replay (\w+)", folder.python("bare.py", "outer(3)").stderr)[0]
    assert any(path.name.startswith(run) for path in folder.tasks())
    (folder.path / "bare.py").unlink()
    assert "ValueError: Point 3 (3,) m {} 6" in folder.replay(run).stderr.splitlines()


KILLED = """
    import os, signal, time
    import entangle
    from entangle.process import process
    from entangle.thread import thread

    def scaled(x):
        return 2 * x

    @process
    def fails(n):
        raise ValueError(scaled(n))

    @thread
    def kills():
        while not os.path.exists("kept"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def closure():
        @process
        def inner(n):
            raise KeyError(n)
        return inner

    if __name__ == "__main__":
        entangle.gather(fails(4), closure()(5), kills(), return_exceptions=True)()
"""


def test_a_call_of_a_killed_program_is_found_by_its_name(folder: Folder) -> None:
    """Its task was not kept: that is done when a run ends."""
    folder.write("killed.py", KILLED)
    running = subprocess.Popen([sys.executable, "killed.py"], cwd=folder.path, env=folder.environment)
    try:
        deadline = time.monotonic() + 60
        while not (folder.path / "records" / "calls").is_dir() or len(folder.kept()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (folder.path / "kept").touch()
        assert running.wait(60) == -signal.SIGKILL
    finally:
        running.kill()
        running.wait()
    assert folder.tasks() == []
    folder.write("killed.py", KILLED.replace("2 * x", "3 * x"))
    done = folder.replay("last", "--node", "0")
    assert "ValueError: 12" in done.stderr.splitlines()
    assert "has changed" not in done.stderr  # nobody can tell
    done = folder.replay("last", "--node", "1")
    assert "task __main__.closure.<locals>.inner is not found (it has no name in a module), and it was not kept" in done.stderr


def test_a_task_that_cannot_be_pickled_or_holds_a_secret_is_found_by_its_name(folder: Folder) -> None:
    for line in ("lock = threading.Lock()", "password = 'hunter' + '22'"):
        source = PROGRAM.replace("def scaled(x):", f"{line}\n    def scaled(x):")
        folder.write("work.py", source.replace("return 2 * x", f"return {line.split()[0]} and 2 * x"))
        assert folder.fails("fail(make(3))").startswith("replay: entangle replay")
        assert "ValueError: Point 3 () m {} 6" in folder.replay().stderr.splitlines()
    assert all("hunter22" not in path.read_text("latin-1") for path in folder.files())


# --- calls that have ended well -------------------------------------------------------------------

WELL = """
    import sys
    import entangle
    from entangle.process import process
    from entangle.thread import thread

    class Point:
        def __init__(self, x):
            self.x = x

    @process
    def make(x):
        return Point(x)

    @process
    def shifted(point, by=1, *more):
        point.x += by + sum(more)
        return point.x

    @process
    def grown(numbers):
        numbers.append(4)
        return numbers

    @process
    def first(n):
        return [n]

    @thread
    def in_thread(a):
        return {"a": a}

    @process
    def num(n):
        return n

    @process
    def text(n):
        return "t" * n

    @process
    def total(*all):
        return sum(map(len, all)) if isinstance(all[0], str) else sum(all)

    @process
    def empty():
        return None

    @process
    def signs(password, n):
        return n

    @process
    def sized(data):
        return len(data)

    @process
    def odd(n):
        if n % 2:
            raise ValueError(n)
        return n

    @process
    def outer(n):
        return shifted(make(n), 2)()

    if __name__ == "__main__":
        print(eval(sys.argv[1])())
"""
VALUES = {"ENTANGLE_RECORD": "values"}


@pytest.fixture
def well(folder: Folder) -> Folder:
    folder.write("work.py", WELL)
    return folder


def ends_well(folder: Folder, call: str, **environment: str) -> str:
    done = folder.python("work.py", call, **{**VALUES, **environment})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


SAID = ["the value is the one that was recorded"]


@pytest.mark.parametrize(
    ("call", "value"),
    {
        "shifted(make(3), 2, num(5))": "10",
        "grown(first(1))": "[1, 4]",  # as it was made, before the body changed it
        "grown([1])": "[1, 4]",
        "in_thread(num(3))": "{'a': 3}",
        "total(num(1), num(2))": "3",
        "total(*[num(n) for n in range(50)])": "1225",
        "empty()": "None",
        "outer(3)": "5",
    }.items(),
)
def test_a_call_that_has_ended_well_is_run_again_where_values_are_kept(well: Folder, call: str, value: str) -> None:
    assert ends_well(well, call, ENTANGLE_START="spawn" if "make" in call else "fork") == f"{value}\n"
    done = well.replay("last")
    # A value that was never pickled has no hash to compare with.
    said = [] if "thread" in call else SAID
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (DONE, f"{value}\n", said)


@pytest.mark.parametrize("count", [3, 60])
def test_every_node_of_a_small_run_is_kept_and_leaves_that_run_in_a_row_are(well: Folder, count: int) -> None:
    ends_well(well, f"total(*[text(n) for n in range({count})])")
    assert len(well.kept()) == count + 1
    told = json.loads(well.replay("last", "--node", "2", "--json").stdout)
    assert (told["value"], told["said"], told["name"]) == ("tt", SAID, "text")


def test_a_value_that_differs_now_is_told(well: Folder) -> None:
    ends_well(well, "total(num(1), num(2))")
    well.write("work.py", WELL.replace("sum(all)", "max(all)"))
    done = well.replay("last")
    assert done.stdout == "2\n"
    assert done.stderr.splitlines()[-1] == "the value differs from the one that was recorded: 3"
    assert "the code has changed since" in done.stderr


def test_failures_are_kept_beside_them(well: Folder) -> None:
    done = well.python("work.py", "entangle.gather(odd(1), odd(2), return_exceptions=True)", **VALUES)
    assert done.returncode == 0
    assert len(well.kept()) == 2
    assert "ValueError: 1" in well.replay("last", "--node", "0").stderr.splitlines()
    assert well.replay("last", "--node", "1").stdout == "2\n"
    assert "has kept 1 failed calls; choose one by --node: 0 (odd)" in well.replay("last").stderr


def test_of_a_run_of_many_nodes_some_are_kept_and_they_have_bounded_room(well: Folder) -> None:
    ends_well(well, "total(*[num(n) for n in range(20_000)])")
    kept_ones = [int(path.stem.split("-")[1]) for path in well.kept()]
    assert 900 <= len(kept_ones) <= 1001
    assert all(node % 21 == 0 for node in kept_ones)
    assert well.replay("last", "--node", "2100").stdout == "2100\n"
    missing = well.replay("last", "--node", "2101")
    assert missing.returncode == ABSENT
    assert re.search(r"was not kept; kept are: 0, 21, .* and \d{3} more", missing.stderr)
    before = {path.name for path in well.kept()}
    ends_well(well, "total(*[sized(num(bytes(1 << 19))) for n in range(4)], *[num(n) for n in range(1200)])")
    heads = [kept_calls.head_of(str(path)) for path in well.kept() if path.name not in before]
    assert {value["why"] for head in heads if head["name"] == "sized" for value in head["values"]} == {
        "is too large: the arguments of a call may have 262 KiB together"
    }
    assert len(well.tasks()) < 20  # two or three of each run
    assert sum(path.stat().st_size for path in well.files()) < 64 << 20


def test_secrets_are_not_in_calls_that_have_ended_well(well: Folder) -> None:
    ends_well(well, "signs('hunter' + '22', num(3))")
    assert len(well.kept()) == 2
    assert all("hunter22" not in path.read_text("latin-1").replace("'hunter' + '22'", "") for path in well.files())
    done = well.replay("last")
    assert "argument password may be a secret, by its name" in done.stderr


DURABLE = """
    import os, entangle
    from entangle.process import process

    @process
    def table(n):
        return {"n": [n] * 3}

    @process
    def checked(table, n):
        table["n"].append(n)
        if not os.path.exists("mended"):
            raise ValueError(f"{table} {n}")
        return table

    if __name__ == "__main__":
        with entangle.durable("night"):
            print(checked(table(1), 2)())
"""


def test_calls_in_a_durable_run_that_is_taken_up(folder: Folder) -> None:
    folder.write("work.py", DURABLE)
    for _ in range(2):  # the second time, the table's value is loaded from the ledger
        done = folder.python("work.py")
        assert done.returncode == 1
        assert re.search(r"replay: entangle replay [0-9a-f]{16} --node \d+", done.stderr)
        assert "ValueError: {'n': [1, 1, 1, 2]} 2" in re.sub(r"\[1, 1, 1, 2, 2\]", "[1, 1, 1, 2]", folder.replay().stderr).splitlines()
    (folder.path / "mended").touch()
    assert folder.python("work.py", **VALUES).stdout == "{'n': [1, 1, 1, 2]}\n"
    done = folder.replay("last")
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (DONE, "{'n': [1, 1, 1, 2]}\n", SAID)


def test_without_values_no_call_that_ends_well_is_kept(well: Folder) -> None:
    ends_well(well, "total(num(1), num(2))", ENTANGLE_RECORD="1")
    assert well.files() == []
