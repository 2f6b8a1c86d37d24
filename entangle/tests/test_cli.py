"""The command line as a user types it.

Commands that run something, and each command at least once, get a process of their own. Commands
that only look run in this process, which has already loaded the packages that they need."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from entangle.cli import main
from entangle.cli.doctor import _cpus
from entangle.cli.exit_status import ABSENT, DONE, FAILED, INTERRUPTED, UNINSTALLED, UNREACHABLE, USAGE

from .callers import ROOT, Caller
from .evidence import wait_until
from .test_records import damage
from .test_watch import LASTING
from .ways import installed

WORK = """
    import sys, time
    import entangle
    from entangle.process import process
    from entangle.task import Layer, task

    @process
    def double(n, times=1):
        return n * 2 ** times

    @process
    def add(a, b):
        return a + b

    @process
    def fail(n):
        raise ValueError(f"no {n}")

    call = add(double(1), double(2))
    number = 3

    def plain(text, **more):
        return {"text": text, **more}

    def rest(*words):
        return words

    class Asks(Layer):
        takes_arguments = True

        def run(self, inner, args, kwargs):
            return inner(*args, kwargs["c"])

    asking = task(lambda one, other: [one, other], Asks())

    @process
    def mistaken(n):
        return n + "1"

    def many():
        return add(add(double(1), double(2)), add(double(3), double(4)))

    if __name__ == "__main__":
        print("arguments", sys.argv[1:])
        print("value", call())
        if "bad" in sys.argv:
            fail(1)()
        if "leave" in sys.argv:
            sys.exit(7)
"""


#: Commands that only look.
_LOOK = ("runs", "show", "top")
#: The variables that these read.
_SEEN_HERE = ("ENTANGLE_RUN_DIR", "ENTANGLE_RECORD_DIR", "ENTANGLE_RECORD_DAYS", "COLUMNS", "TERM", "NO_COLOR")


class Line:
    """A shell in a directory of its own, with its own records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "runs").mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "PYTHONWARNINGS": "error",
            "ENTANGLE_RUN_DIR": str(folder / "runs"),
            "ENTANGLE_RECORD_DIR": str(folder / "records"),
            "COLUMNS": "160",
            "HOME": str(folder),
        }
        self.environment.pop("PYTHONUNBUFFERED", None)
        (folder / "work.py").write_text(textwrap.dedent(WORK), encoding="utf-8")

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        if words and words[0] in _LOOK and environment.keys() <= set(_SEEN_HERE):
            return self._looks(words, environment)
        return self.process(*words, **environment)

    def _looks(self, words: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
        with open(os.devnull, encoding="utf-8") as nothing:
            status = self.here(words, environment, nothing, out, err)
        told = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]
        return subprocess.CompletedProcess(words, status, *told)

    def here(self, words: tuple[str, ...], environment: dict[str, str], *streams: Any) -> int:
        """Run a command in this process, with these streams as stdin, stdout and stderr. Return its
        status."""
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(self.folder)
            whole = {**self.environment, **environment}
            for name in _SEEN_HERE:
                patched.setenv(name, whole[name]) if name in whole else patched.delenv(name, raising=False)
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patched.setattr(sys, name, stream)
            try:
                return main(words)
            finally:
                for stream in streams[1:]:
                    stream.flush()

    def process(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "entangle", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=50,
        )

    def json(self, *words: str, status: int = DONE) -> Any:
        """Run a command, and return its JSON output."""
        done = self(*words)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


@pytest.fixture(scope="module")
def records_of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of one run that no command has read yet."""
    line = Line(tmp_path_factory.mktemp("many"))
    assert line("run", "work.py:many").stdout == "20\n"
    return line.folder / "records"


@pytest.fixture
def many(line: Line, records_of_many: Path) -> Line:
    """A directory in which `work.py:many` has run."""
    shutil.copytree(records_of_many, line.folder / "records")
    return line


@pytest.fixture
def here(line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command in this process, where it needs none of its own. Returns its status and
    output."""
    monkeypatch.chdir(line.folder)
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", line.environment["ENTANGLE_RECORD_DIR"])
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "argv", sys.argv[:])

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    sys.modules.pop("work", None)


# --- run ------------------------------------------------------------------------------------------


def test_a_program_runs_as_python_would_run_it(line: Line) -> None:
    done = line("run", "work.py", "one", "--two", "-h")
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "arguments ['one', '--two', '-h']\nvalue 6\n", "")


def test_a_program_that_fails_or_leaves_tells_by_its_status(line: Line) -> None:
    failed = line("run", "work.py", "bad")
    assert failed.returncode == FAILED
    assert "ValueError: no 1" in failed.stderr
    assert "runpy" not in failed.stderr
    assert line("run", "work.py", "leave").returncode == 7


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("work.py:double", "4"), 8),
        (("work.py:double", "4", "times=3"), 32),
        (("work.py:double", "[1, 2]"), [1, 2, 1, 2]),
        (("work.py:double", "word"), "wordword"),
        (("work.py:call",), 6),
        (("work.py:many",), 20),
        (("work.py:rest", "a=b", "1"), ["a=b", 1]),
        (("work.py:asking", "1", "c=3"), [1, 3]),
        (("work.py:double", "'n=1'"), "n=1n=1"),
        (("work.py:double", "a == b"), "a == ba == b"),
    ],
)
def test_a_task_a_call_or_a_function_runs_with_arguments(
    here: Callable[..., tuple[int, str, str]], words: tuple[str, ...], value: Any
) -> None:
    status, said, _ = here("run", "--json", *words)
    found = json.loads(said)
    assert (status, found["value"]) == (DONE, value)
    if "work.py:rest" not in words:  # not a task, so no run is recorded
        assert found["run"]
        assert json.loads(here("runs", "--json")[1])[0]["id"] == found["run"]


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "--start", "fork", "work.py:rest", "1", "x"),
        ("work.py:rest", "--json", "1", "--start=fork", "x"),
        ("work.py:rest", "1", "x", "--start", "fork", "--json"),
        ("--start=spawn", "work.py:rest", "1", "--json", "x", "--start", "fork"),
        ("--json", "--", "work.py:rest", "1", "x"),
        ("work.py:rest", "1", "--json", "--", "x"),
    ],
    ids=" ".join,
)
def test_options_stand_before_or_behind_the_arguments(
    here: Callable[..., tuple[int, str, str]], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTANGLE_START", "auto")
    status, said, _ = here("run", *words)
    assert (status, json.loads(said)["value"]) == (DONE, [1, "x"])
    assert os.environ["ENTANGLE_START"] == ("fork" if any("fork" in word for word in words) else "auto")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("work.py:rest", "--", "--json", "--start=fork", "-h", "--", "x"), "('--json', '--start=fork', '-h', '--', 'x')"),
        (("--", "work.py:rest", "--json"), "('--json',)"),
        (("work.py:rest", "-1", "-x", "-", "1"), "(-1, '-x', '-', 1)"),
        (("work.py:rest", "1", "--"), "(1,)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_the_tasks_reaches_it(here: Callable[..., tuple[int, str, str]], words: tuple[str, ...], value: str) -> None:
    assert here("run", *words)[:2] == (DONE, value + "\n")


def test_a_task_may_have_parameters_that_are_called_like_options(here: Callable[..., tuple[int, str, str]], line: Line) -> None:
    (line.folder / "named.py").write_text("def named(json=0, start=0, progress=0):\n    return json, start, progress\n", encoding="utf-8")
    assert here("run", "named.py:named", "json=1", "start='fork'", "progress=2")[1] == "(1, 'fork', 2)\n"
    sys.modules.pop("named", None)


def test_an_option_that_is_none_is_not_handed_to_the_task(here: Callable[..., tuple[int, str, str]]) -> None:
    status, said, complaint = here("run", "work.py:rest", "1", "--strat=fork")
    assert (status, said) == (USAGE, "")
    assert "run has no option --strat; to pass it to the task, write -- before it: -- --strat=fork" in complaint
    for words in (("--strat", "work.py:rest"), ("work.py:rest", "--start"), ("work.py:rest", "--json=1"), ("work.py:rest", "--start", "x")):
        status, said, complaint = here("run", *words)
        assert (status, said) == (USAGE, ""), complaint
    assert "Usage: entangle run" in here("run", "work.py:rest", "1", "--help")[1]


def test_a_value_is_printed_and_keywords_reach_a_function(line: Line) -> None:
    assert line("run", "work.py:plain", "a", "b=2").stdout == "{'text': 'a', 'b': 2}\n"


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_a_task_of_a_file_runs_however_workers_are_started(line: Line, how: str) -> None:
    assert line("run", "--start", how, "work.py:double", "21").stdout == "42\n"


LEAVING = """
    import sys
    from entangle.process import process
    from entangle.task import task

    def plain(code):
        sys.exit(code)

    @task
    def here(code):
        sys.exit(code)

    @process
    def there(code):
        sys.exit(code)
"""


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        *(("plain", code, status) for code, status in (("need a licence", FAILED), ("3", 3), ("0", DONE), ("None", DONE))),
        ("here", "0", FAILED),
        ("there", "need a licence", FAILED),
        ("there", "0", FAILED),
    ],
)
def test_a_body_that_leaves_says_why_and_with_which_status(line: Line, name: str, code: str, status: int) -> None:
    (line.folder / "leaving.py").write_text(textwrap.dedent(LEAVING), encoding="utf-8")
    done = line("run", "--json", f"leaving.py:{name}", code)
    told = json.loads(done.stdout)
    if name != "plain":  # a task that exits its interpreter has failed, wherever it ran
        assert (done.returncode, told["status"], "TerminatedException" in done.stderr) == (status, status, True)
    else:
        assert (done.returncode, told["status"], told["value"]) == (status, status, None)
        assert done.stderr == ("need a licence\n" if status == FAILED else "")


def test_a_file_that_leaves_while_it_is_imported(line: Line) -> None:
    (line.folder / "leaving.py").write_text("import sys\nsys.exit('need a licence')\n", encoding="utf-8")
    done = line("run", "leaving.py:call")
    assert (done.returncode, done.stderr) == (
        FAILED,
        'need a licence\nentangle: leaving.py cannot be imported: it calls sys.exit; put that below `if __name__ == "__main__":`\n',
    )


FILED = """
    import dataclasses
    from entangle.process import process

    @dataclasses.dataclass
    class Point:
        x: int

    FACTOR = 3

    def scaled(n):
        return FACTOR * n

    @process
    def point(n):
        return Point(scaled(n))

    @process
    def number(point):
        return point.x if isinstance(point, Point) else None

    def both():
        first = point(1)()
        return isinstance(first, Point), number(first)(), number(point(2))()

    if __name__ == "__main__":
        print("this is the program")
"""


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dots.in.it.py", "spawn"),
        ("json.py", "spawn"),
        ("my-script.py", "fork"),
        ("two words.py", "forkserver"),
    ],
)
def test_a_file_of_any_name_is_imported_and_not_run(line: Line, name: str, how: str) -> None:
    (line.folder / "files").mkdir()
    (line.folder / "files" / name).write_text(textwrap.dedent(FILED), encoding="utf-8")
    done = line("run", "--start", how, f"files/{name}:both")
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "(True, 3, 6)\n", "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("run", "nothing.py"), ABSENT, "there is no file nothing.py"),
        (("run", "."), ABSENT, "is a directory"),
        (("run", "work.py:nothing"), ABSENT, "there is no 'nothing' in work.py; there are: double, add, fail, call, asking, mistaken"),
        (("run", "work.py:number"), USAGE, "is a int"),
        (("run", "work.py:1x"), USAGE, "is not a name"),
        (("run", "--start", "magic", "work.py"), USAGE, "auto, fork, forkserver or spawn"),
        (
            ("run", "work.py:double"),
            USAGE,
            "double cannot be called with these arguments: missing a required argument: 'n'; it takes n, times",
        ),
        (("run", "work.py:add", "1", "2", "3"), USAGE, "too many positional arguments; it takes a, b"),
        (("run", "work.py:add", "1", "a=3"), USAGE, "multiple values for argument 'a'; it takes a, b"),
        (("run", "work.py:add", "1", "c=3"), USAGE, "add has no parameter 'c'; it takes a, b."),
        (("run", "work.py:call", "1"), USAGE, "too many positional arguments"),
        (
            ("run", "work.py:many", "1"),
            USAGE,
            "many cannot be called with these arguments: too many positional arguments; it takes no arguments",
        ),
        (("run", "work.py:plain", "a=b", "c=[None]"), USAGE, "missing a required argument: 'text'; it takes text, **more"),
        (("run", "work.py:mistaken", "1"), FAILED, "TypeError"),
        (("run", "work.py:fail", "1"), FAILED, "ValueError: no 1"),
        (("runs", "--state", "nonsense"), USAGE, "done, failed, cancelled, running or killed (which is shown as ended abruptly)"),
        (("show", "beef"), ABSENT, "is remembered"),
        (("show",), ABSENT, "no run is remembered"),
        (("show", "--format", "gif"), USAGE, "tree, mermaid, dot, svg, trace, prov, json"),
        (("nothing",), USAGE, "No such command"),
        (("run",), USAGE, "Missing argument"),
        (("graph", "send"), USAGE, "no server is named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_a_line(
    here: Callable[..., tuple[int, str, str]], words: tuple[str, ...], status: int, said: str
) -> None:
    found, _, complaint = here(*words)
    assert (found, said in complaint) == (status, True), complaint
    assert "site-packages" not in complaint


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "runs", "-n", "1"),
        ("runs", "--json", "-n", "1"),
        ("runs", "-n", "1", "--json"),
        ("--json", "runs", "--limit=1"),
        ("show", "--json", "last"),
        ("show", "last", "--json"),
        ("--json", "show"),
        ("--json", "show", "--node", "0", "last"),
        ("show", "--node=0", "last", "--json"),
        ("--json", "run", "work.py:double", "1"),
        ("run", "--json", "work.py:double", "1"),
        ("run", "work.py:double", "1", "--json"),
        ("--json", "--version"),
        ("--version", "--json"),
        ("--json", "clean"),
        ("--json", "cache", "ls"),
    ],
    ids=" ".join,
)
def test_options_stand_before_the_command_and_anywhere_behind_it(here: Callable[..., tuple[int, str, str]], words: tuple[str, ...]) -> None:
    assert here("run", "work.py:double", "21")[0] == DONE
    status, out, err = here(*words)
    assert (status, err) == (DONE, "")
    found = json.loads(out)
    if "runs" in words:
        assert [run["task"] for run in found] == ["double"]
    elif "--node" in words:
        assert found["value"]["text"] == "42"


@pytest.mark.parametrize(
    ("words", "status", "kind", "said"),
    [
        (("--json", "nothing"), USAGE, "UsageError", "No such command 'nothing'."),
        (("runs", "--json", "--bogus"), USAGE, "UsageError", "No such option: --bogus"),
        (("runs", "--limit", "x", "--json"), USAGE, "UsageError", "--limit"),
        (("--json",), USAGE, "UsageError", "name a command"),
        (("run", "--json"), USAGE, "UsageError", "Missing argument"),
        (("graph", "--json", "send"), USAGE, "UsageError", "no server is named"),
        (("--json", "graph", "send"), USAGE, "UsageError", "no server is named"),
        (("--json", "hosts", "check"), USAGE, "UsageError", "Missing argument"),
        (("show", "beef", "--json"), ABSENT, "NotFound", "is remembered"),
        (("run", "no.py:x", "--json"), ABSENT, "NotFound", "there is no file no.py"),
        (("run", "work.py:double", "--json"), USAGE, "UsageError", "missing a required argument: 'n'"),
        (("run", "work.py:double", "1", "--json", "--bogus"), USAGE, "UsageError", "run has no option --bogus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_of_the_command_line_are_json_where_that_is_asked_for(
    here: Callable[..., tuple[int, str, str]], words: tuple[str, ...], status: int, kind: str, said: str
) -> None:
    found, out, complaint = here(*words)
    assert (found, complaint) == (status, "")
    told = json.loads(out)
    assert (told["status"], told["error"]["type"], set(told["error"])) == (status, kind, {"type", "message"})
    assert said in told["error"]["message"]


def test_json_behind_two_dashes_is_the_tasks(here: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = here("run", "work.py:rest", "--", "--json")
    assert (status, out) == (DONE, "('--json',)\n")
    status, _, complaint = here("run", "nothing.py:rest", "--", "--json")
    assert (status, complaint) == (ABSENT, "entangle: there is no file nothing.py\n")


def test_a_run_that_fails_tells_programs_its_error(line: Line) -> None:
    found = line.json("run", "work.py:fail", "4", "--json", status=FAILED)
    assert set(found) == {"status", "value", "error", "run", "seconds"}
    assert (found["status"], found["value"], found["run"]) == (FAILED, None, line.json("runs", "--json")[0]["id"])
    assert (found["error"]["type"], found["error"]["message"]) == ("ValueError", "no 4")
    assert "call: fail(4)" in found["error"]["notes"]
    assert "in fail" in found["error"]["traceback"]
    assert "\ncall: fail(4)\n" in line("run", "work.py:fail", "4").stderr
    whole = line.json("run", "--json", "work.py:double", "4")
    assert (whole["error"], whole["value"]) == (None, 8)


def test_a_program_that_fails_or_leaves_tells_programs_why(line: Line) -> None:
    (line.folder / "leaves.py").write_text("import sys\nsys.exit('no more' if len(sys.argv) == 1 else 7)\n", encoding="utf-8")
    found = line.json("run", "--json", "leaves.py", status=FAILED)
    assert (found["error"]["type"], found["error"]["message"]) == ("SystemExit", "no more")
    assert line.json("run", "--json", "leaves.py", "x", status=7)["error"]["message"] == "7"
    (line.folder / "broken.py").write_text("raise KeyError('x')\n", encoding="utf-8")
    found = line.json("run", "--json", "broken.py", status=FAILED)
    assert (found["error"]["type"], found["error"]["message"]) == ("KeyError", "'x'")
    imported = line("run", "--json", "broken.py:x")
    assert json.loads(imported.stdout)["error"]["message"] == "broken.py cannot be imported: KeyError: 'x'"
    assert "Traceback" in imported.stderr


# --- runs and show --------------------------------------------------------------------------------


def test_runs_are_listed_and_shown(line: Line) -> None:
    assert line("run", "work.py:many").stdout == "20\n"
    line("run", "work.py:fail", "1")
    listed = line("runs")
    assert listed.returncode == DONE
    failed, done = listed.stdout.splitlines()[1:]
    assert "fail" in failed
    assert "no 1" in failed
    assert re.search(r"add +done .* 7", done)
    (run,) = line.json("runs", "--state", "done", "--json")
    tree = line("show", run["id"][:8]).stdout
    numbered = re.findall(r"✓ (\w+).*  #(\d+)", tree)
    assert len(numbered) == 7  # three sums of four products
    for name, number in numbered:
        assert line.json("show", run["id"], "--node", number, "--json")["name"] == name
    # Three nodes and the head. The name of the run may contain these letters too.
    assert len(re.findall(r"\badd\b", tree)) == 4
    assert "double → 8" in tree
    assert "n = 4" in tree
    assert line("show", "last").stdout == line("show").stdout
    assert "ValueError: no 1" in line("show").stdout


WENT_ON = """
    import os, sys, time
    from entangle import gather
    from entangle.dataflow import dataflow
    from entangle.process import process

    @process(retry=2, sleep=0)
    def load(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise OSError(f"{path} is not there yet\\nsecond line")
        return [1.5, 2.5]

    @process
    def train(xs, lr, password=None):
        if lr == 3:
            raise ValueError("the loss is not a number, and here is " + "more " * 40 + "\\n" + "and more\\n" * 20)
        return sum(xs) * lr

    @process
    def total(parts, label):
        return sum(parts)

    folds = [train(load(f"mark{k}"), k, password="hunter2").named(f"fold {k}") for k in range(2, 5)]
    fails = total(folds, "the label")

    @process
    def stays(x):
        open("began", "w").close()
        time.sleep(60)

    @process(retry=1)
    def ends(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        raise ValueError("over")

    cut = total([stays(total([1], "one")), ends("began")], "the label").named("over and over " * 9)

    def goes_on():
        return len(gather(fails, *folds, return_exceptions=True)())

    def many():
        return len(gather(*[train([k % 10], k % 10).named(f"fold {k}") for k in range(300)], return_exceptions=True)())

    @dataflow
    @process
    def halve(x):
        if x % 2:
            raise ValueError(f"{x} is odd")
        return x // 2

    @dataflow
    @process
    def keep(x):
        return x

    def streams():
        return len(list(halve(keep(), keep()).stream(range(10), on_error="skip")))
"""


@pytest.fixture
def went_on(line: Line) -> Line:
    (line.folder / "went_on.py").write_text(textwrap.dedent(WENT_ON), encoding="utf-8")
    return line


def test_a_run_that_failed_shows_the_path_of_calls_and_the_arguments(went_on: Line) -> None:
    assert went_on("run", "went_on.py:fails").returncode == FAILED
    lines = [shown.strip("├─│└ ") for shown in went_on("show").stdout.splitlines()]
    at = next(number for number, shown in enumerate(lines) if shown.startswith("call path: "))
    assert lines[at : at + 3] == [
        "call path: total([fold 2, fold 3, fold 4], 'the label')",
        "→ fold 3",
        "call: train([1.5, 2.5], 3, password=***)",
    ]
    assert lines[at + 3].startswith("host ")
    assert lines[at + 4] == "no replay: argument password may be a secret, by its name"
    assert lines[at + 5 : at + 8] == ["xs = [1.5, 2.5]", "lr = 3", "password = ***"]
    assert lines.count("and more") == 20
    node = went_on("show", "--node", str(went_on.json("runs", "--json")[0]["error"]["node"])).stdout
    assert node.startswith("fold 3 (train), node ")
    assert "\ncall path: total([fold 2, fold 3, fold 4], 'the label') → fold 3\ncall: train(" in node
    assert "hunter2" not in node


def test_the_end_of_a_program_is_no_reason_why_a_worker_of_its_session_ended(line: Line) -> None:
    assert line("run", "work.py:many", ENTANGLE_SESSION="1").returncode == DONE
    assert "ended after" not in line("show").stdout


def test_a_run_that_was_cut_off_says_each_thing_once_and_what_is_lost(went_on: Line) -> None:
    assert went_on("run", "went_on.py:cut").returncode == FAILED
    (run,) = went_on.json("runs", "--json")
    assert run["name"] == "over and over " * 9
    assert " over and over over and over over and ov…  failed " in went_on("runs").stdout
    node = went_on("show", "--node", str(run["error"]["node"])).stdout
    assert node.startswith("ends, node ")
    # Once with the error of the last attempt, and once with that of the task.
    assert node.count("\ncall: ends('began')\n") == (2 if sys.version_info >= (3, 11) else 1)
    # One worker ran both, one after the other, and had no time to write the value of the first.
    lost = re.search(r"✓ total → not recorded: its worker was stopped first  #(\d+)", went_on("show").stdout)
    assert lost is not None
    assert "\n  → not recorded: its worker was stopped first\n" in went_on("show", "--node", lost[1]).stdout


def test_a_run_that_went_on_says_what_failed_and_what_was_skipped(went_on: Line) -> None:
    assert went_on("run", "went_on.py:goes_on").stdout == "4\n"
    assert re.search(r"gather +done .* 1 failed, 1 skipped$", went_on("runs").stdout.splitlines()[1])
    (run,) = went_on.json("runs", "--json")
    assert (run["state"], run["failed"], run["skipped"], run["error"]) == ("done", 1, 1, None)
    tree = went_on("show").stdout
    assert re.search(r"gather  \w+  done  8 nodes  1 failed, 1 skipped  ", tree)
    assert re.search(r"↷ total  skipped, since fold 3 \(node \d\) failed", tree)
    assert re.search(r"✗ fold 3  ValueError: the loss is not a number, and here is .* more   *#\d+  \d", tree)
    assert tree.count("3 attempts") == 3
    assert tree.count("attempt 1: OSError: mark2 is not there yet\n") == 1
    nodes = {node["name"]: node for node in went_on.json("show", "--json")["node_list"]}
    assert nodes["total"]["cause"] == nodes["fold 3"]["number"]
    one = went_on("show", "--node", str(nodes["total"]["number"])).stdout
    assert f"skipped, since fold 3 (node {nodes['fold 3']['number']}) failed" in one
    told = went_on.json("show", "--json", "--node", str(nodes["fold 3"]["number"]))
    assert (told["name"], told["task"], told["error"]["type"]) == ("fold 3", "train", "ValueError")
    tried = went_on("show", "--node", str(nodes["load"]["number"])).stdout
    assert "attempt 1: OSError: mark" in tried


def test_a_large_run_shows_the_first_failures_of_a_task(went_on: Line) -> None:
    went_on("run", "went_on.py:many")
    lines = [shown.strip("├─│└ ") for shown in went_on("show").stdout.splitlines()]
    assert re.match("train x300  270 done, 30 failed  ", lines[1])
    assert [shown.partition(":")[0] for shown in lines[2:5]] == [f"✗ fold {k}  ValueError" for k in (3, 13, 23)]
    assert lines[5] == "… and 27 more that failed"


LONG_LISTS = """
    import time
    from entangle import gather
    from entangle.process import process
    from entangle.thread import thread

    @thread
    def wait(n, slow=()):
        time.sleep(0.3 if n in slow else 0.001)
        return n

    @thread
    def check(n, bad=()):
        if n in bad:
            raise ValueError(f"no {n}")
        return n

    @thread
    def add(ns):
        return len(ns)

    hundred = add([wait(n, slow=(77,)) for n in range(100)])
    # What is slow, or has failed, is below the item. All items have the slowest node in common.
    first = wait(0, slow=(0,))
    deep = add([add([wait(n, slow=(40,)), first]) for n in range(60)])
    wide = add([wait(n, slow=(777,)) for n in range(1000)])
    constants = add([*range(40), wait(1)])

    def fails():
        return len(gather(*[check(n, bad=(13, 20)) for n in range(30)], return_exceptions=True)())

    def skips():
        return len(gather(*[add([check(n, bad=(13,))]) for n in range(30)], return_exceptions=True)())

    def all_fail():
        return len(gather(*[check(n, bad=range(5, 90)) for n in range(90)], return_exceptions=True)())

    def many_tasks():
        calls = []
        for k in range(80):
            def body(n, k=k):
                time.sleep(0.3 if k == 70 and n == 2 else 0)
                if k == 60 and n == 1:
                    raise ValueError("over")
                return n
            body.__name__ = body.__qualname__ = f"body{k}"
            calls += [thread(body)(n) for n in range(3)]
        return len(gather(*calls, return_exceptions=True)())
"""


@pytest.fixture
def long_lists(line: Line) -> Line:
    (line.folder / "long.py").write_text(textwrap.dedent(LONG_LISTS), encoding="utf-8")
    return line


def shown_of(line: Line, program: str) -> list[str]:
    """Run that program, and return the lines of its tree without the characters that draw it."""
    done = line("run", f"long.py:{program}")
    assert done.returncode == DONE, done.stderr
    return [shown.strip("├─│└ ") for shown in line("show").stdout.splitlines()]


def items_in(shown: list[str], name: str) -> list[int]:
    """The numbers of the shown items of the argument with that name."""
    return [int(found[1]) for line in shown if (found := re.match(rf"{name}\[(\d+)\] = \S ", line))]


def slowest_of(line: Line, task: str, most: int) -> list[int]:
    """The numbers of the slowest nodes of a task."""
    nodes = [node for node in line.json("show", "--json")["node_list"] if node["name"] == task]
    return [node["number"] for node in sorted(nodes, key=lambda node: -node["seconds"])[:most]]


def left_out_of(shown: list[str]) -> list[str]:
    return [line for line in shown if re.match(r"… (and )?\d+ more", line)]


def test_a_long_list_shows_its_slowest_item(long_lists: Line) -> None:
    shown = shown_of(long_lists, "hundred")
    items = items_in(shown, "ns")
    assert (len(items), items, 0 in items) == (12, sorted(items), True)
    assert {77, *slowest_of(long_lists, "wait", 3)} <= set(items)
    assert sum(int(re.findall(r"\d+", line)[0]) for line in left_out_of(shown)) == 88
    (slow,) = [line for line in shown if line.startswith("ns[77] = ")]
    number = re.search(r"#(\d+)  \d", slow)
    assert number is not None
    assert "n = 77\n" in long_lists("show", "--node", number[1]).stdout


def test_a_long_list_shows_the_item_below_which_it_took_long(long_lists: Line) -> None:
    assert 40 in items_in(shown_of(long_lists, "deep"), "ns")


def test_a_long_list_shows_what_failed_and_what_was_skipped(long_lists: Line) -> None:
    shown = shown_of(long_lists, "fails")
    assert any(re.match(r"values\[13\] = ✗ check  ValueError: no 13  #13", line) for line in shown)
    assert {13, 20} < set(items_in(shown, "values"))
    shown = shown_of(long_lists, "skips")
    assert any(re.match(r"values\[13\] = ↷ add  skipped, since check \(node \d+\) failed", line) for line in shown)
    assert any(re.match(r"ns\[0\] = ✗ check  ValueError: no 13", line) for line in shown)


def test_what_a_list_leaves_out_says_how_many_of_it_failed(long_lists: Line) -> None:
    shown = shown_of(long_lists, "all_fail")
    assert len(items := items_in(shown, "values")) == 12
    hidden = [re.findall(r"(\d+) (more|failed)", line) for line in left_out_of(shown)]
    told = {word: sum(int(count) for found in hidden for count, kind in found if kind == word) for word in ("more", "failed")}
    assert told == {"more": 78, "failed": 85 - sum(item >= 5 for item in items)}


def test_constants_take_no_room_from_calls_in_a_list(long_lists: Line) -> None:
    shown = shown_of(long_lists, "constants")
    assert items_in(shown, "ns") == [40]
    assert left_out_of(shown) == ["… and 28 more"]


def test_a_large_run_shows_the_slowest_node_of_a_task(long_lists: Line) -> None:
    shown = shown_of(long_lists, "wide")
    (slowest,) = [line for line in shown if line.startswith("slowest: ")]
    (number,) = slowest_of(long_lists, "wait", 1)
    assert slowest.startswith(f"slowest: ✓ wait → {number}  #{number}  ")
    assert f"#{number})" in long_lists("show", "--format", "mermaid").stdout


def test_of_many_tasks_those_that_failed_or_took_long_are_shown(long_lists: Line) -> None:
    shown = shown_of(long_lists, "many_tasks")
    assert any(line.startswith("body60 x3  2 done, 1 failed") for line in shown)
    assert any(line.startswith("✗ body60  ValueError: over") for line in shown)
    assert any(re.match(r"slowest: ✓ body70 → 2  #\d+  \d", line) for line in shown)
    assert shown[-1] == "… and 31 more tasks"


def test_a_stream_is_shown_by_its_stages_with_their_items(went_on: Line) -> None:
    assert went_on("run", "went_on.py:streams").stdout == "5\n"
    assert re.search(r"halve +done .* 5 items failed$", went_on("runs").stdout.splitlines()[1])
    shown = went_on("show").stdout
    assert shown.count("✓ keep  5 items, 5 skipped  ") == 2
    assert "x = ✓ halve  5 items, 5 failed: ValueError: 1 is odd  " in shown
    (halve, *_) = went_on.json("show", "--json")["node_list"]
    assert (halve["items"], halve["items_failed"], halve["items_skipped"], halve["state"]) == (5, 5, 0, "done")


def test_what_a_terminal_shows_fits_into_its_width(went_on: Line) -> None:
    for name in ("fails", "goes_on", "many", "streams"):
        went_on("run", f"went_on.py:{name}")
    runs = went_on.json("runs", "--json")
    for columns in (40, 80):
        for run in runs:
            shown = at_a_terminal(went_on, "show", run["id"], columns=columns)
            assert max(map(len, shown)) <= columns
            assert run["id"] in shown[0]
        listed = at_a_terminal(went_on, "runs", columns=columns)
        assert max(map(len, listed)) <= columns
        assert [run["id"] for run in runs] == [shown.split()[0] for shown in listed[1:]]
        assert all(run["state"] in shown for run, shown in zip(runs, listed[1:], strict=True))


def test_colours_are_for_terminals_that_want_them(went_on: Line) -> None:
    went_on("run", "went_on.py:fails")
    colour = re.compile(r"\x1b\[(\d+;)*[39]\d[;m]")
    for words in (("runs",), ("show",), ("show", "--node", "0"), ("doctor",), ("--help",)):
        done = went_on(*words)
        assert "\x1b" not in done.stdout + done.stderr, words
        assert colour.search(drawn(went_on, *words, NO_COLOR="1")) is None, words
    refused = drawn(went_on, "runs", "--bogus", status=USAGE, NO_COLOR="1")
    assert colour.search(refused) is None
    assert colour.search(drawn(went_on, "runs")) is not None


MESSY = """
    from entangle.process import process

    @process
    def fail(n):
        raise ValueError("this is what went wrong, in words, and then in some more words " * n)

    def steer(name):
        raise ValueError("\\x1b[31mred\\x1b]0;title\\x07 \\x9b31m\\rover \\u202egnp.exe\\nnext line")

    steer.__name__ = "g[/nope]\\x1b[2J"
    steer = process(steer)
"""


def test_a_long_message_leaves_the_rest_of_the_list_as_it_is(many: Line) -> None:
    (many.folder / "messy.py").write_text(textwrap.dedent(MESSY), encoding="utf-8")
    many("run", "messy.py:fail", "3")
    ids = [run["id"] for run in many.json("runs", "--json")]
    told = (r" +fail +failed +\S.*:\d\d +\S+ m?s +1 +1  this is what", r" +add +done +\S.*:\d\d +\S+ m?s +7$")
    piped = many("runs", COLUMNS="80").stdout.splitlines()
    assert piped[1].endswith("this is what went wrong, in words, and then in some more words")
    seen = at_a_terminal(many, "runs", columns=80)
    assert [len(shown) <= 80 for shown in seen] == [True] * 3
    assert seen[1].endswith("…")
    for lines in (piped, seen):
        for shown, run_id, expected in zip(lines[1:], ids, told, strict=True):
            assert re.match(run_id + expected, shown), shown
    tree = many("show", COLUMNS="80").stdout
    assert "this is what went wrong, in words, and then in some more words " * 2 in tree


def test_what_would_steer_a_terminal_is_shown_and_not_done(
    line: Line, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line.folder / "messy.py").write_text(textwrap.dedent(MESSY), encoding="utf-8")
    there = str(line.folder / "records[/b]")
    line("run", "messy.py:steer", "[/bold]\x1b[31m", ENTANGLE_RECORD_DIR=there)
    words = (("runs",), ("show",), ("show", "--node", "0"), ("show", "-f", "mermaid"), ("show", "-f", "svg"), ("show", "-f", "trace"))
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", there)
    for command in (*words, ("runs", "--json")):
        status, out, err = here(*command)
        assert (status, err) == (DONE, "")
        assert re.findall("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", out) == []
        assert "g[/nope]" in out
    assert r"\x1b[31mred\x1b]0;title\x07 \x9b31m\rover \u202egnp.exe" in line("show", ENTANGLE_RECORD_DIR=there).stdout
    assert here("runs", "--task", "none")[0] == DONE
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", f"{there}[/b]")
    status, out, _ = here("runs")
    assert (status, "records[/b][/b]" in out) == (DONE, True)
    absent = line("show", ENTANGLE_RECORD_DIR=f"{there}\x1b[31m")
    assert (absent.returncode, absent.stderr.count("\x1b")) == (ABSENT, 0)


STRANGE = """
    from entangle.process import process

    class Mute:
        def __repr__(self):
            raise ValueError("no words")

    @process
    def mute():
        return Mute()

    @process
    def half():
        return "\\udcff"

    @process
    def umlaut(ä=1):
        return "ü✓😀"
"""


@pytest.fixture
def strange(line: Line) -> Line:
    (line.folder / "strange.py").write_text(textwrap.dedent(STRANGE), encoding="utf-8")
    return line


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["latin-1", "C"],
)
def test_a_stream_that_cannot_say_it_is_told_it_escaped(strange: Line, environment: dict[str, str]) -> None:
    ran = strange("run", "strange.py:umlaut", **environment)
    assert (ran.returncode, ran.stdout[-15:], ran.stderr) == (DONE, r"\u2713\U0001f600'"[-14:] + "\n", "")
    for command in ("run --json strange.py:umlaut", "show --node 0 --json"):
        done = strange(*command.split(), **environment)
        assert (done.returncode, done.stderr) == (DONE, "")
        told = json.loads(done.stdout)
        if command.startswith("run "):
            assert told["value"] == "ü✓😀"
    for command in ("show", "runs", "--help"):
        done = strange(*command.split(), **environment)
        assert (done.returncode, done.stderr) == (DONE, "")


def test_a_program_has_the_streams_that_python_would_give_it(strange: Line) -> None:
    (strange.folder / "says.py").write_text("print('\\u2713')\n", encoding="utf-8")
    done = strange("run", "says.py", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout, "UnicodeEncodeError" in done.stderr) == (FAILED, "", True)


def test_words_that_are_no_text_name_nothing(many: Line) -> None:
    absent = many("show", "\udcff")
    assert (absent.returncode, absent.stderr.count("\n")) == (ABSENT, 1)
    assert "no run" in absent.stderr
    none = many("runs", "--task", "\udcff")
    assert (none.returncode, none.stdout) == (DONE, "No run is remembered that fits.\n")


def test_a_value_that_has_no_text_is_told_as_that(strange: Line) -> None:
    assert strange("run", "strange.py:mute").stdout == "<Mute: its text raises ValueError>\n"
    assert strange.json("run", "--json", "strange.py:mute")["value"] == "<Mute: its text raises ValueError>"


def test_halves_of_characters_are_told(strange: Line) -> None:
    assert strange("run", "strange.py:half").stdout == r"'\udcff'" + "\n"
    assert strange.json("run", "--json", "strange.py:half")["value"] == "\udcff"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words", [("runs",), ("runs", "--json"), ("run", "work.py:many"), ("show", "-f", "svg"), ("--help",)], ids=" ".join
)
def test_a_disk_that_is_full_is_told_in_a_line(many: Line, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "entangle", *words]
        done = subprocess.run(command, cwd=many.folder, env=many.environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (FAILED, "entangle: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("spoilt", ["damaged", "a file", "days"])
def test_records_that_cannot_be_read_spoil_no_run(line: Line, spoilt: str) -> None:
    environment = {}
    told = "move it away"
    if spoilt == "damaged":
        line("run", "work.py:many")
        line("runs")
        damage(line.folder / "records")
    elif spoilt == "a file":
        environment["ENTANGLE_RECORD_DIR"] = str(line.folder / "work.py")
        told = "ENTANGLE_RECORD_DIR names another place"
    else:
        environment["ENTANGLE_RECORD_DAYS"] = "nan"
    ran = line("run", "work.py:many", **environment)
    assert (ran.returncode, ran.stdout, "Traceback" in ran.stderr) == (DONE, "20\n", False)
    ran = line("run", "--json", "work.py:many", **environment)
    assert (ran.returncode, json.loads(ran.stdout)["value"], "Traceback" in ran.stderr) == (DONE, 20, False)
    for word in ("runs", "show"):
        looked = line(word, **environment)
        if spoilt == "days":
            assert (looked.returncode, "many" in looked.stdout or "add" in looked.stdout) == (DONE, True)
        else:
            assert (looked.returncode, looked.stdout, told in looked.stderr, looked.stderr.count("\n")) == (FAILED, "", True, 1)


def at_a_terminal(line: Line, *words: str, columns: int) -> list[str]:
    """The lines that a command shows on a terminal of that width, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", drawn(line, *words, columns=columns, NO_COLOR="1")).splitlines()


def drawn(line: Line, *words: str, columns: int = 80, status: int = DONE, **environment: str) -> str:
    """All that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # the other end is closed
            while part := terminal.read(65536):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    seen = {"COLUMNS": str(columns), "TERM": "xterm", **environment}
    with open(theirs, "r+b", buffering=0) as terminal:
        if words[0] in _LOOK:
            streams = [io.TextIOWrapper(cast("Any", terminal), encoding="utf-8", write_through=True) for _ in range(3)]
            ended = line.here(words, seen, *streams)
            for stream in streams:
                stream.detach()
        else:
            command = [sys.executable, "-m", "entangle", *words]
            ended = subprocess.call(
                command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=line.folder, env={**line.environment, **seen}, timeout=50
            )
    reader.join()
    assert ended == status
    return b"".join(shown).decode()


def test_a_run_is_shown_in_other_forms(many: Line) -> None:
    forms = {"mermaid": "flowchart", "dot": "digraph", "svg": "<svg", "trace": "traceEvents", "prov": "wasGeneratedBy", "json": '"nodes"'}
    for form, expected in forms.items():
        done = many("show", "--format", form, "--output", "out")
        assert (done.returncode, done.stdout, done.stderr) == (DONE, "", "")
        text = (many.folder / "out").read_text(encoding="utf-8")
        assert expected in text
        if form in ("trace", "prov", "json"):
            json.loads(text)


def test_a_node_is_shown_with_all_that_is_known_of_it(many: Line) -> None:
    shown = many("show", "--node", "0").stdout  # a leaf
    assert "def double(n, times=1):" in shown
    assert "sha-256" in shown
    found = many.json("show", "--node", "6", "--json")
    assert found["value"]["text"] == "20"
    assert [given["task"] for given in found["inputs"]] == ["add", "add"]
    assert many("show", "--node", "70").returncode == ABSENT


def test_a_chain_of_a_thousand_and_a_wide_run_are_shown_by_task(line: Line) -> None:
    (line.folder / "big.py").write_text(
        "from work import add, double\ncall = double(1)\nfor _ in range(1000):\n    call = add(call, 1)\n", encoding="utf-8"
    )
    assert line("run", "big.py:call").stdout == "1002\n"
    shown = line("show").stdout
    assert "add x1,000" in shown
    assert len(shown.splitlines()) < 10


def test_a_pipe_that_closes_early_is_no_error(many: Line) -> None:
    command = f"{sys.executable} -m entangle show --format json | head -c 1"
    done = subprocess.run(["sh", "-c", command], cwd=many.folder, env=many.environment, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("{", "")


# --- top ------------------------------------------------------------------------------------------


@pytest.fixture
def lasting(line: Line) -> Iterator[Caller]:
    """A run that lasts, of the same user and with the same directories as `line`."""
    folder = line.folder / "lasting"
    folder.mkdir()
    caller = Caller(
        folder, LASTING, ENTANGLE_RUN_DIR=line.environment["ENTANGLE_RUN_DIR"], ENTANGLE_RECORD_DIR=line.environment["ENTANGLE_RECORD_DIR"]
    )
    caller.start()
    try:
        yield caller
    finally:
        caller.stop()


def _under_way(line: Line) -> Any:
    """What `top` shows of `lasting` once all bodies run and both runs have published their
    names."""

    def look() -> Any:
        found = line.json("top", "--json")
        return found if sum(run["running"] for run in found["runs"]) == 4 and all(run["task"] for run in found["runs"]) else None

    return wait_until(look)


def test_top_tells_programs_what_runs(line: Line, lasting: Caller) -> None:
    found = _under_way(line)
    outer, inner = found["runs"]
    assert outer["pid"] == lasting.process.pid
    assert (outer["nodes"], outer["done"], outer["running"], outer["waiting"]) == (5, 1, 3, 1)
    assert inner["outer"] == outer["run"]
    assert {worker["task"] for worker in outer["workers"] if worker["node"] >= 0} == {"waiting", "inside", "bound"}
    assert found["cookies"][str(lasting.process.pid)]["cpus=1"] == 0


def test_top_looks_at_one_program(line: Line, lasting: Caller) -> None:
    (path,) = {run["program"] for run in _under_way(line)["runs"]}
    name = os.path.basename(path)
    for program in (path, name, name.removesuffix(".py"), str(lasting.process.pid), os.path.relpath(path, line.folder)):
        found = line.json("top", "--json", "--program", program)
        assert [run["depth"] for run in found["runs"]] == [0, 1], program
        assert set(found["cookies"]) == {str(lasting.process.pid)}
    none = line.json("--json", "top", "--program", "nothing.py")
    assert (none["runs"], none["cookies"]) == ([], {})
    assert "Nothing runs of nothing.py." in line("top", "--program", "nothing.py").stdout
    shown = line("top", "--program", name).stdout.splitlines()
    assert f"pid {lasting.process.pid}" in shown[2]
    assert sum("↳ " in one for one in shown) == 1


STREAMING = """
    import time
    from entangle.dataflow import dataflow, thread
    from entangle.process import process

    @dataflow
    @thread
    def halve(x):
        time.sleep(0.01)
        if x % 2:
            raise ValueError(x)
        return x

    @dataflow
    @thread
    def keep(x):
        return x

    import logging
    logging.disable()
    for _ in halve(keep()).stream(range(1_000_000), on_error="skip"):
        pass
"""


def test_top_shows_streams_by_stage_and_fits_into_a_terminal(line: Line, lasting: Caller) -> None:
    folder = line.folder / "streaming"
    folder.mkdir()
    caller = Caller(
        folder,
        STREAMING,
        ENTANGLE_RUN_DIR=line.environment["ENTANGLE_RUN_DIR"],
        ENTANGLE_RECORD_DIR=line.environment["ENTANGLE_RECORD_DIR"],
    ).start()
    try:

        def stages() -> Any:
            found = line.json("top", "--json", "--program", str(caller.process.pid))["runs"]
            return found[0] if found and found[0]["stages"] and found[0]["stages"][0]["failed"] else None

        run = wait_until(stages)
        assert [stage["name"] for stage in run["stages"]] == ["halve", "keep"]
        assert (run["nodes"], run["task"]) == (2, "halve")
        assert run["done"] == run["stages"][1]["done"]
        live = line.json("runs", "--json", "--task", "halve")[0]["id"]
        assert re.search("[▶·] keep +#1\n.*x = [▶·] halve +#0\n", line("show", live).stdout)
        for columns in (40, 80):
            shown = at_a_terminal(line, "top", "--looks", "1", columns=columns)
            assert max(map(len, shown)) <= columns
            assert len([one for one in shown if re.match(r"  (halve|keep) +[\d,]+ done", one)]) == 2
            assert any("waits for a run" in one for one in shown)
    finally:
        caller.stop()


def test_a_run_that_lasts_is_listed_and_shown_as_it_is_now(line: Line, lasting: Caller) -> None:
    wait_until(lambda: sum(run["running"] for run in line.json("top", "--json")["runs"]) == 4)
    assert "running" in line("runs").stdout
    shown = line("show").stdout
    assert "✓ quick" in shown
    assert "▶ bound" in shown
    assert "· total" in shown
    states = {"quick": "done", "bound": "running", "total": "waiting"}
    for node in line.json("show", "--json")["node_list"]:
        if state := states.get(node["name"]):
            one = line("show", "last", "--node", str(node["number"])).stdout
            assert re.match(rf"{node['name']}, node \d of run \w+: {state}$", one.splitlines()[0])
            assert "the run is still running" in one
            assert "never ran" not in one
            assert line.json("show", "--node", str(node["number"]), "--json")["state"] == state


def test_top_shows_people_what_runs_and_ends_at_a_key(line: Line, lasting: Caller) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "entangle", "top", "--every", "0.1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=line.folder,
        env={**line.environment, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "50"},
    )
    os.close(theirs)
    shown = b""
    pressed = False
    try:
        while True:
            try:
                if select.select([ours], [], [], 20)[0]:
                    shown += os.read(ours, 65536)
                else:
                    raise AssertionError(shown.decode())
            except OSError:  # the other end is closed
                break
            if not pressed and b"waits for a run" in shown and b"bound" in shown and b"total" in shown:
                os.write(ours, b"q")
                pressed = True
        assert process.wait(20) == DONE
        assert pressed
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_top_of_a_quiet_machine(line: Line) -> None:
    done = line("top")
    assert (done.returncode, "Nothing runs" in done.stdout, done.stderr) == (DONE, True, "")


def test_an_interrupt_ends_with_its_own_status(line: Line) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "entangle", "top", "--json", "--looks", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=line.folder,
        env=line.environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in complaint


def test_what_cannot_be_read_among_the_records_is_said_in_a_line_and_the_rest_is_shown(line: Line) -> None:
    line("run", "work.py:double", "1")
    line("run", "work.py:double", "2")
    os.mkfifo(line.folder / "records" / "sheets" / "x.run")
    listed = line.process("runs")
    assert (listed.returncode, listed.stdout.count("double")) == (DONE, 2)
    assert len(listed.stderr.splitlines()) == 1
    assert "x.run is no record of a run" in listed.stderr
    shown = line.process("show", "last")
    assert (shown.returncode, "double" in shown.stdout, shown.stderr) == (DONE, True, listed.stderr)
    assert len(json.loads(line("runs", "--json").stdout)) == 2


# --- clean, doctor, and the rest ------------------------------------------------------------------


def test_clean_removes_what_a_killed_process_has_left(line: Line, lasting: Caller) -> None:
    wait_until(lambda: line.json("top", "--json")["runs"])
    os.kill(lasting.process.pid, signal.SIGKILL)
    lasting.process.wait()
    removed: list[str] = []

    def clean() -> bool:
        removed.extend(line.json("clean", "--json")["removed"])
        return any(f"p{lasting.process.pid}-" in path for path in removed)

    wait_until(clean)  # a dying worker may still hold the home for a moment


def test_the_core_alone_cleans_and_says_how_to_get_the_rest(line: Line) -> None:
    """As in an installation without the extras: typer and rich cannot be imported."""
    (line.folder / "typer.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    (line.folder / "rich.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    path = f"{line.folder}{os.pathsep}{ROOT}"
    assert line("clean", PYTHONPATH=path).returncode == DONE
    assert json.loads(line("clean", "--json", PYTHONPATH=path).stdout)["removed"] == []
    assert line("--version", PYTHONPATH=path).stdout.startswith("entangle ")
    helped = line("--help", PYTHONPATH=path)
    assert helped.returncode == DONE
    assert "py-entangle[cli]" in helped.stdout
    missing = line("run", "work.py", PYTHONPATH=path)
    assert (missing.returncode, missing.stderr) == (
        UNINSTALLED,
        "entangle: the command 'run' needs typer and rich: pip install 'py-entangle[cli]'\n",
    )
    assert line("nonsense", PYTHONPATH=path).returncode == USAGE


def test_the_core_alone_knows_every_command() -> None:
    import typer.main

    from entangle.cli.app import app
    from entangle.cli.bare import OTHERS

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted((*OTHERS, "clean")) == sorted(name for name, command in commands.items() if not command.hidden)


def test_the_page_without_its_extra_says_how_to_get_it(line: Line) -> None:
    (line.folder / "starlette.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    for name in ("ui", "web"):  # the name of the extra works too
        done = line(name, PYTHONPATH=f"{line.folder}{os.pathsep}{ROOT}")
        assert (done.returncode, done.stderr) == (UNINSTALLED, "entangle: the page needs starlette: pip install 'py-entangle[web]'\n")
    assert " web " not in line("--help").stdout


def test_a_port_that_is_taken(line: Line) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = line("ui", "--port", str(taken.getsockname()[1]))
    assert done.returncode == UNREACHABLE
    assert "--port 0" in done.stderr


def test_the_doctor_looks_at_everything_and_leaves_no_record(line: Line) -> None:
    found = {finding["what"]: finding for finding in line.json("doctor", "--json")}
    for what in ("start by fork", "start by forkserver", "start by spawn", "cookies"):
        assert found[what]["state"] == "works", found[what]
    assert {"python", "cpus", "shared memory", "records", "ssh", "docker", "gpu", "gremlin", "extras"} <= set(found)
    assert all(finding["state"] in ("works", "off", "broken") for finding in found.values())
    assert line.json("runs", "--json") == []
    told = found["extras"]["detail"] + " " + found["extras"]["advice"]
    project = Path(ROOT, "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.MULTILINE)
    listed = Path(ROOT, "docs", "reference", "extras.md").read_text(encoding="utf-8")
    for extra in set(extras) - {"test", "dev"}:
        assert extra == "all" or re.search(rf"\b{extra}\b", told), extra
        assert f"\n| `{extra}` | " in listed


def test_the_doctor_says_what_is_broken(line: Line) -> None:
    done = line("doctor", "--json", ENTANGLE_GRAPH="http://nowhere")
    assert done.returncode == FAILED
    assert {finding["what"] for finding in json.loads(done.stdout) if finding["state"] == "broken"} == {"gremlin"}


def test_the_doctor_tells_the_quota_that_runs_keep_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a unit of systemd the control group is not at the top of the tree, as in a container."""
    monkeypatch.setattr("entangle.cookies.cpu_quota", lambda: 0.5)
    monkeypatch.setattr("entangle.cookies.available_cpus", lambda: [0, 1])
    assert "of which the control group allows 0.5 at a time" in _cpus().detail
    monkeypatch.setattr("entangle.cookies.cpu_quota", lambda: 2.0)
    assert "control group" not in _cpus().detail


def test_a_graph_server_that_is_down(many: Line) -> None:
    installed("gremlin_python")
    assert many("graph", "send", "--all", "--to", "ws://127.0.0.1:1/gremlin").returncode == UNREACHABLE


def test_help_tells_every_command_and_the_meaning_of_the_status(line: Line) -> None:
    done = line("--help")
    assert done.returncode == DONE
    for word in ("run", "runs", "show", "top", "graph", "clean", "doctor", "ui", "hosts", "130"):
        assert word in done.stdout


def test_help_names_a_page_of_each_command() -> None:
    """test_docs.py checks that each page exists."""
    from entangle.cli.app import app

    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    commands = {f"{before}{command.name}": command.epilog for before, group in groups if group for command in group.registered_commands}
    assert len(commands) > 15
    assert [name for name, told in commands.items() if not told or not told.startswith("more: docs/")] == []


def test_help_shows_the_page(line: Line) -> None:
    assert "more: docs/index.md" in line("--help").stdout
    for words, page in {("resume",): "durable", ("cache",): "caching", ("cache", "rm"): "caching"}.items():
        assert f"more: docs/{page}.md" in line(*words, "--help").stdout


def test_shells_complete_runs(many: Line) -> None:
    (run,) = many.json("runs", "--json")
    for shell in ("bash", "zsh", "fish"):
        asked = {
            "_ENTANGLE_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": "entangle show ",
            "COMP_CWORD": "2",
            "_TYPER_COMPLETE_ARGS": "entangle show ",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        assert run["id"] in many(**asked).stdout, shell
