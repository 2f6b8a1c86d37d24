"""`cache=True`: a value that was computed once is found again, by any process, on any day."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import _run, gather
from entangle._depot import opened
from entangle.cache import Cache
from entangle.errors import DepotError, OptionError
from entangle.process import process
from entangle.task import Layer, task
from entangle.thread import thread

from . import bodies
from .callers import gone
from .evidence import note, notes, pids_in, wait_until
from .waiting_programs import BEGINS_AND_WAITS, WaitingPrograms

_PROGRAM = f"""
import os, sys, time
from entangle.process import process

@process(cache=True)
def slow(n):
{BEGINS_AND_WAITS}
    return [n, "value"]

if __name__ == "__main__":
    print(slow(int(sys.argv[1]))())
"""


class Programs(WaitingPrograms):
    """Runs of one program with one depot."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _PROGRAM)
        self.depot = folder / "depot"

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return super().start(*arguments, **{"ENTANGLE_DEPOT": str(self.depot), **environment})

    def run(self, *arguments: object, **environment: str) -> tuple[str, str]:
        return self.start(*arguments, **environment).communicate(timeout=50)

    def values(self) -> list[Path]:
        return [path for path in self.depot.glob("values/*/*") if path.is_file()]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_a_value_is_found_by_the_next_process(programs: Programs) -> None:
    programs.go()
    assert [programs.run(3), programs.run(3), programs.run(4)] == [("[3, 'value']\n", "")] * 2 + [("[4, 'value']\n", "")]
    assert len(programs.ran) == 2


def test_the_depot_is_for_its_user_alone(programs: Programs) -> None:
    programs.go()
    programs.run(3)
    found = [programs.depot, *programs.depot.rglob("*")]
    assert {oct(path.stat().st_mode & 0o777) for path in found if path.is_dir()} == {"0o700"}
    assert {oct(path.stat().st_mode & 0o777) for path in found if path.is_file()} == {"0o600"}


def test_two_programs_at_once_compute_once(programs: Programs) -> None:
    first, second = programs.start(3), programs.start(3)
    programs.wait_for(1)
    programs.go()
    assert first.communicate() == second.communicate() == ("[3, 'value']\n", "")
    assert len(programs.ran) == 1


def test_when_the_one_that_computes_is_killed_another_goes_on(programs: Programs) -> None:
    first = programs.start(3)
    programs.wait_for(1)
    second = programs.start(3)
    os.kill(programs.ran[0], signal.SIGKILL)
    programs.wait_for(2)
    programs.go()
    assert second.communicate() == ("[3, 'value']\n", "")
    out, error = first.communicate()
    assert out == ""
    assert "ProcessTerminatedException" in error
    assert not list(programs.depot.glob("locks/*"))


@pytest.fixture
def depot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A depot for this test alone."""
    monkeypatch.setenv("ENTANGLE_DEPOT", str(tmp_path / "depot"))
    return tmp_path / "depot"


def values_in(depot: Path) -> list[Path]:
    return [path for path in depot.glob("values/*/*") if path.is_file()]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("where", [0.0, 0.0001, 0.5, 1.0])
def test_a_damaged_value_is_computed_again_and_put_aside(
    large: bool, where: float, depot: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    sent = os.urandom(1_000_000) if large else "a value"
    assert noted(log, sent)() == sent
    (value,) = values_in(depot)
    with value.open("r+b") as file:
        file.seek(round((value.stat().st_size - 1) * where))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    assert [noted(log, sent)(), noted(log, sent)()] == [sent, sent]
    assert len(notes(log)) == 2
    assert ["is damaged" in record.message for record in caplog.records] == [True]
    assert len(list((depot / "quarantine").iterdir())) == 1


def test_a_truncated_value_is_computed_again(depot: Path, tmp_path: Path) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    for size in (0, 50):
        assert noted(log, 1)() == 1
        (value,) = values_in(depot)
        os.truncate(value, size)
    assert noted(log, 1)() == 1
    assert len(notes(log)) == 3


def test_a_value_under_the_name_of_another_is_none(depot: Path, tmp_path: Path) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    noted(log, 1)()
    (one,) = values_in(depot)
    noted(log, 2)()
    (two,) = set(values_in(depot)) - {one}
    two.write_bytes(one.read_bytes())
    assert noted(log, 2)() == 2


def test_the_value_is_given_where_the_depot_cannot_be_written_to(programs: Programs) -> None:
    programs.go()
    programs.depot.write_text("a file")
    out, error = programs.run(3)
    assert out == "[3, 'value']\n"
    assert f"the depot {programs.depot} cannot be read (Not a directory)" in error
    assert error.count("\n") == 2  # the other line: it cannot be written to


def test_the_value_is_given_where_there_is_no_room(depot: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @thread(cache=True)
    def noise(n: int) -> bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        return os.urandom(n)

    try:
        assert [len(noise(100_000)()), len(noise(100_000)()), len(noise(200_000)())] == [100_000, 100_000, 200_000]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (record,) = caplog.records
    assert record.message == f"the depot {depot} cannot be written to (File too large): values are not remembered"
    assert not list(depot.glob("values/*/*"))
    assert not list(depot.glob("drafts/*"))


def test_a_value_that_cannot_be_pickled_is_given_and_a_warning_says_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    @thread(cache=True)
    def opened(path: str) -> Any:
        return open(path, "rb")

    (tmp_path / "some").write_bytes(b"some")
    for _ in range(2):
        with opened(str(tmp_path / "some"))() as file:
            assert file.read() == b"some"
    (record,) = caplog.records
    assert "the value of task 'opened' cannot be pickled" in record.message
    assert "cache=True does not remember it" in record.message


class Unloadable:
    """An object that can be pickled but not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_value_that_cannot_be_loaded_is_computed_anew_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    @thread(cache=True)
    def unloadable() -> Any:
        return Unloadable()

    for _ in range(3):
        assert type(unloadable()()) is Unloadable
    (record,) = caplog.records
    assert "a value of task 'unloadable' in the depot" in record.message
    assert "cannot be loaded (ValueError: invalid literal" in record.message


def test_arrays_are_mapped_and_each_caller_has_its_own(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")

    @thread(cache=True)
    def ramp(n: int) -> Any:
        with (tmp_path / "ran").open("a") as file:
            file.write("x")
        return numpy.arange(n)

    first = ramp(1_000_000)()
    first[0] = 7
    second = ramp(1_000_000)()
    second[1] = 8
    third = ramp(1_000_000)()
    assert third.flags.writeable
    assert list(second[:3]) == [0, 8, 2]
    assert list(third[:3]) == [0, 1, 2]
    assert (tmp_path / "ran").read_text() == "x"


def test_a_value_that_is_mapped_lasts_when_it_is_removed_from_the_depot(depot: Path) -> None:
    numpy = pytest.importorskip("numpy")

    @thread(cache=True)
    def ramp(n: int) -> Any:
        return numpy.arange(n)

    ramp(1_000_000)()
    mapped = ramp(1_000_000)()
    (value,) = depot.glob("values/*/*")
    value.unlink()
    assert int(mapped.sum()) == 999_999 * 500_000


def test_the_least_used_values_go_when_the_depot_is_full(depot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_DEPOT_SIZE", "1M")
    log = str(tmp_path / "log")

    @thread(cache=True)
    def noise(n: int) -> bytes:
        with open(log, "a") as file:
            print(n, file=file)
        return os.urandom(50_000)

    kept = noise(0)()
    for n in range(1, 40):
        noise(n)()
        for value in depot.glob("values/*/*"):  # as if each had last been used long ago
            used = value.stat().st_atime - 100
            os.utime(value, (used, value.stat().st_mtime))
        assert noise(0)() == kept
    assert sum(path.stat().st_size for path in depot.glob("values/*/*")) <= 1.1 * 2**20
    assert Path(log).read_text().split() == [str(n) for n in range(40)]


@pytest.mark.parametrize(("name", "value"), [("SIZE", "10X"), ("SIZE", "-1"), ("SIZE", "ten"), ("AGE", "3 months"), ("AGE", "1e3")])
def test_bounds_that_cannot_be_read_are_told_before_a_body_runs(
    name: str, value: str, depot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    noted(log, 1)()
    monkeypatch.setenv(f"ENTANGLE_DEPOT_{name}", value)
    with pytest.raises(DepotError, match=rf"ENTANGLE_DEPOT_{name}='{value}'; it is written in"):
        noted(log, 2)()
    assert len(notes(log)) == 1
    assert entangle_cache_error("gc").startswith(f"entangle: ENTANGLE_DEPOT_{name}='{value}'")


def test_values_that_were_not_used_for_long_go(depot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "2d")
    noted = thread(cache=True)(bodies.noted)
    noted(str(tmp_path / "log"), 1)()
    (old,) = depot.glob("values/*/*")
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    os.utime(depot / "trimmed", (time.time() - 2 * 86400,) * 2)
    noted(str(tmp_path / "log"), 2)()
    assert not old.exists()
    assert len(list(depot.glob("values/*/*"))) == 1


def test_a_depot_that_others_may_write_to_is_refused_without_a_key(depot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depot.mkdir()
    depot.chmod(0o770)
    noted = thread(cache=True)(bodies.noted)
    log = str(tmp_path / "log")
    with pytest.raises(DepotError, match=r"others may write to it.*ENTANGLE_KEY.*chmod"):
        noted(log, 1)()
    monkeypatch.setenv("ENTANGLE_KEY", "a secret")
    assert [noted(log, 1)(), noted(log, 1)()] == [1, 1]
    assert len(notes(log)) == 1
    monkeypatch.setenv("ENTANGLE_KEY", "another")
    with pytest.raises(DepotError, match=r"signed with another key.*entangle cache rm"):
        noted(log, 1)()


def test_a_large_value_that_another_user_changes_is_not_loaded(depot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value was already compared once, and its modification time is restored."""
    monkeypatch.setenv("ENTANGLE_KEY", "a secret")
    depot.mkdir()
    depot.chmod(0o777)
    honest = os.urandom(1 << 20)  # random, so that it is not compressed
    kept = thread(cache=True)(bytes)
    assert [kept(honest)(), kept(honest)()] == [honest] * 2
    (path,) = depot.glob("values/*/*")
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(was.st_size // 2)
        file.write(b"forged")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    for _ in range(2):
        assert kept(honest)() == honest
        opened._opened.clear()
    assert len(list(depot.glob("quarantine/*"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory to another user")
def test_a_depot_of_another_user_is_refused_without_a_key(depot: Path, tmp_path: Path) -> None:
    depot.mkdir(mode=0o700)
    os.chown(depot, 12345, 12345)
    with pytest.raises(DepotError, match=r"it belongs to user 12345, and you are user 0.*ENTANGLE_KEY.*let ENTANGLE_DEPOT name"):
        thread(cache=True)(bodies.noted)(str(tmp_path / "log"), 1)()


_FORKS = """
import os, sys, time
from entangle.process import process

@process(cache=True)
def forks():
    if os.path.exists(os.environ["GO"]):
        return "second"
    child = os.fork()
    if not child:
        os.setsid()
        open(os.environ["RAN"], "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.005)
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    try:
        print(forks()())
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_child_that_a_body_has_forked_does_not_hold_the_key(programs: Programs) -> None:
    (programs.folder / "program.py").write_text(_FORKS)
    first = programs.start(0)
    programs.wait_for(1)
    programs.go()
    assert programs.run(0) == ("second\n", "")
    first.communicate()


def test_who_waits_for_another_lends_its_cookie(tmp_path: Path) -> None:
    """Otherwise two calls of one key deadlock if the first of them waits for a cookie in a nested
    run."""
    program = tmp_path / "program.py"
    program.write_text(_LENDS)
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("[1, 1]\n", "")


def test_a_body_that_needs_a_call_with_its_own_key_has_it(tmp_path: Path) -> None:
    """An ignored argument may count down. The body may run in this process, or in a worker of a
    nested run."""
    program = tmp_path / "program.py"
    program.write_text(_RECURS)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("3 3 3 3\n", "")


_RECURS = """
import entangle
from entangle.process import process
from entangle.thread import thread

@thread(cache=entangle.Cache(ignore=["left"]))
def in_threads(n, left):
    return n if left == 0 else in_threads(n, left - 1)()

@process(cache=entangle.Cache(ignore=["left"]))
def in_processes(n, left):
    return n if left == 0 else in_processes(n, left - 1)()

@process(cache=entangle.Cache(ignore=["left"]))
def started_otherwise(n, left):
    return n if left == 0 else started_otherwise(n, left - 1).run(start="forkserver")

@process(cache=entangle.Cache(ignore=["left"]))
def through_another(n, left):
    return n if left == 0 else entangle.gather(through_another(n, left - 1), through_another(n, left - 1))()[0]

if __name__ == "__main__":
    print(in_threads(3, 2)(), in_processes(3, 2)(), started_otherwise(3, 2)(), through_another(3, 2)())
"""


_LENDS = """
import os, sys, time
from pathlib import Path
import entangle
from entangle.process import process
from entangle.scheduler import scheduler

folder = Path(sys.argv[1])

@process
@scheduler(cpus=1)
def inner():
    return 1

@scheduler(cpus=1)
@process(cache=True)
def outer(n):
    (folder / "began").touch()
    while not (folder / "second").exists():
        time.sleep(0.005)
    time.sleep(0.3)  # the second queues for the cookie, before `inner` does
    return inner()()

@process
def late():
    while not (folder / "began").exists():
        time.sleep(0.005)

@process
def after(_, n):
    (folder / "second").touch()
    return outer(n)()

if __name__ == "__main__":
    print(entangle.gather(outer(0), after(late(), 0))())
"""


# --- options --------------------------------------------------------------------------------------


def test_a_version_counts_in_place_of_the_code(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for version, value in ((1, "a"), (1, "b"), (2, "c")):
        there: dict[str, Any] = {}
        exec(f"def f(log):\n  from entangle.tests.evidence import note\n  note(log)\n  return {value!r}", there)
        assert thread(cache=Cache(version=version))(there["f"])(log)() == {"a": "a", "b": "a", "c": "c"}[value]
    assert len(notes(log)) == 2


def test_arguments_that_are_ignored_do_not_count(tmp_path: Path) -> None:
    noted = thread(cache=Cache(ignore=["value"]))(bodies.noted)
    log = str(tmp_path / "log")
    assert [noted(log, 1)(), noted(log, 2)(), noted(log, value=3)()] == [1, 1, 1]


def test_a_value_that_has_expired_is_computed_anew(depot: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = thread(cache=Cache(expire=1000))(bodies.noted)
    soon = thread(cache=Cache(expire=timedelta(microseconds=1)))(bodies.noted)
    assert [noted(log, 1)(), noted(log, 1)()] == [1, 1]
    assert len(notes(log)) == 1
    assert soon(log, 1)() == 1
    assert len(notes(log)) == 2
    assert len(values_in(depot)) == 1


def test_values_may_stay_elsewhere(depot: Path, tmp_path: Path) -> None:
    noted = thread(cache=Cache(where=tmp_path / "other"))(bodies.noted)
    assert [noted(str(tmp_path / "log"), 1)() for _ in range(2)] == [1, 1]
    assert len(values_in(tmp_path / "other")) == 1
    assert not depot.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"version": ["1"]},
        {"version": True},
        {"ignore": "verbose"},
        {"ignore": [1]},
        {"expire": 0},
        {"expire": "1d"},
        {"packages": "numpy"},
        {"packages": ["no-such-package"]},
        {"where": 3},
        {"where": ""},
        {"where": "nowhere://depot"},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_an_error_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Cache(**options)


def test_an_argument_to_be_ignored_has_to_be_there() -> None:
    with pytest.raises(OptionError, match=r"ignore=\['valeu'\]: noted has no parameter"):
        thread(cache=Cache(ignore=["valeu"]))(bodies.noted)


def test_the_options_travel() -> None:
    options = Cache(version="2", ignore=["a"], expire=3)
    assert pickle.loads(pickle.dumps(options)) == options
    assert repr(options) == "Cache(expire=3, ignore=('a',), version='2')"
    assert entangle.Cache is Cache


# --- other stores ---------------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """A depot in the memory of this process."""
    fsspec = pytest.importorskip("fsspec")
    yield f"memory:/{tmp_path}"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_values_behind_a_url(memory: str, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    log = str(tmp_path / "log")
    noted = thread(cache=Cache(where=memory))(bodies.noted)
    assert [noted(log, 1)(), noted(log, 1)(), noted(log, None)(), noted(log, None)()] == [1, 1, None, None]
    array = [noted(log, numpy.arange(100_000))() for _ in range(2)][1]
    array[0] = 5
    assert len(notes(log)) == 3
    place = opened.depot(memory)
    assert sorted(place.about(file.key).task for file in place.entries()) == ["noted"] * 3
    assert all(place.remove(file.key) for file in list(place.entries()))
    assert noted(log, 1)() == 1
    assert len(notes(log)) == 4


def test_two_threads_on_a_store_compute_once(memory: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    slow = thread(cache=Cache(where=memory))(_slowly)
    values = [slow(log, 1)(proc=True) for _ in range(3)]
    assert [value.result() for value in values] == [1, 1, 1]
    assert len(notes(log)) == 1
    assert not pytest.importorskip("fsspec").filesystem("memory").find(f"{tmp_path}/locks")


def _slowly(log: str, x: int) -> int:
    note(log)
    time.sleep(0.1)
    return x


def test_a_lease_that_has_ended_is_taken_by_one(memory: str) -> None:
    place = opened.depot(memory)
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.pipe_file(place._path("locks", "abc", "1"), json.dumps({"until": time.time() - 1}).encode())
    lease = place.try_alone("abc")
    assert lease is not None
    assert place.try_alone("abc") is None
    lease.give()
    again = place.try_alone("abc")
    assert again is not None
    again.give()


def test_a_damaged_value_in_a_store_is_computed_again(memory: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = str(tmp_path / "log")
    noted = thread(cache=Cache(where=memory))(bodies.noted)
    noted(log, "a value")()
    files = pytest.importorskip("fsspec").filesystem("memory")
    (path,) = files.find(f"{tmp_path}/values")
    files.pipe_file(path, files.cat_file(path)[:-3] + b"...")
    assert [noted(log, "a value")(), noted(log, "a value")()] == ["a value"] * 2
    assert len(notes(log)) == 2
    assert "is damaged" in caplog.records[0].message


def test_a_store_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DepotError, match=r"ENTANGLE_KEY"):
        thread(cache=Cache(where=f"local://{tmp_path}/there"))(bodies.noted)(str(tmp_path / "log"), 1)()
    monkeypatch.setenv("ENTANGLE_KEY", "secret")
    noted = thread(cache=Cache(where=f"local://{tmp_path}/there"))(bodies.noted)
    assert [noted(str(tmp_path / "log"), 1)() for _ in range(2)] == [1, 1]
    assert len(notes(tmp_path / "log")) == 1


# --- calls whose value is found -------------------------------------------------------------------


@pytest.fixture
def runs() -> Iterator[list[list[str]]]:
    """The names of the tasks of each run that has begun."""
    begun: list[list[str]] = []

    class Observer:
        def started(self, run: Any) -> None:
            begun.append(sorted(run.flow.body(node).name for node in range(run.flow.count)))

        def looked(self, run: Any) -> None: ...
        def ended(self, run: Any) -> None: ...

    observer = Observer()
    _run.observers.append(observer)
    yield begun
    _run.observers.remove(observer)


def test_a_hit_starts_nothing(tmp_path: Path, runs: list[list[str]]) -> None:
    noted = process(cache=True)(bodies.noted)
    log = str(tmp_path / "log")
    assert [noted(log, 1)() for _ in range(3)] == [1] * 3
    assert noted(log, 1).run(timeout=5) == 1
    assert noted(log, 1).future().result() == 1
    assert noted(log, 1)(proc=True).result() == 1
    assert runs == [["noted"]]


@pytest.mark.parametrize("way", ["proc", "await"])
def test_what_is_left_after_hits_is_run_for_its_caller(tmp_path: Path, way: str) -> None:
    """It ends with the body that called it, whichever thread runs it."""

    @process(cache=True)
    def kept() -> int:
        return 1

    @process
    def long(number: int) -> None:
        note(str(tmp_path / "pid"), os.getpid())
        time.sleep(120)

    @thread
    def with_proc() -> None:
        long(kept())(proc=True).result()

    @thread
    async def with_await() -> None:
        await long(kept())

    @process
    def fails() -> None:
        wait_until(lambda: pids_in(tmp_path / "pid"))
        raise ValueError("enough")

    kept()()
    with pytest.raises(ValueError, match="enough"):
        gather(with_proc() if way == "proc" else with_await(), fails())()
    gone(pids_in(str(tmp_path / "pid")), 10.0)


def test_what_lies_below_a_hit_falls_away(tmp_path: Path, runs: list[list[str]]) -> None:
    log = str(tmp_path / "log")
    noted, plain = process(cache=True)(bodies.noted), process(bodies.add)

    def tree() -> Any:
        return plain(noted(log, noted(log, [1])), noted(log, noted(log, [2])))

    assert tree()() == [1, 2]
    assert tree()() == [1, 2]
    assert runs == [["add", *["noted"] * 4], ["add"]]
    assert gather(noted(log, noted(log, [1])), noted(log, [2]))() == [[1], [2]]
    assert noted.starmap([(log, [1]), (log, [2])])() == [[1], [2]]
    assert len(runs) == 2
    assert len(notes(log)) == 2
    assert noted.starmap([(log, [1]), (log, [3]), (log, [2])])() == [[1], [3], [2]]
    assert runs[2:] == [["gather", "noted"]]


def test_a_changed_value_upstream_is_seen(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = process(cache=True)(bodies.noted)
    (tmp_path / "input").write_text("1")
    read = thread(lambda: (tmp_path / "input").read_text())
    assert [noted(log, read())(), noted(log, read())()] == ["1", "1"]
    (tmp_path / "input").write_text("2")
    assert noted(log, read())() == "2"


def test_a_layer_of_the_users_own_runs_around_a_hit(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    outer = task(process(cache=True)(bodies.noted), _Twice())
    assert [outer(log, [1])(), outer(log, [1])()] == [[1, 1]] * 2
    assert len(notes(log)) == 1


class _Twice(Layer):
    def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
        return inner(*args, **kwargs) * 2


def test_a_large_hit_among_arguments_is_fetched_by_its_worker(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    log = str(tmp_path / "log")
    noted, total = process(cache=True)(bodies.noted), process(lambda array: float(array.sum()))
    for _ in range(2):
        assert total(noted(log, numpy.ones(200_000)))() == 200_000.0
    assert len(notes(log)) == 1


def test_shared_memory_is_no_part_of_the_key(tmp_path: Path) -> None:
    log = tmp_path / "log"

    @process(cache=True, shared_memory=True)
    def f(x: int, smm: Any = None, sm: Any = None) -> int:
        note(log)
        return x if smm is not None and sm is not None else -1

    assert [f(1)(), f(1)()] == [1, 1]
    assert len(notes(log)) == 1


def test_methods_and_async_functions_are_remembered(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    class Model:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @process(cache=True)
        def times(self, x: int) -> int:
            note(log)
            return self.factor * x

        @thread(cache=True)
        async def later(self, x: int) -> int:
            note(log)
            return self.factor * x

    values = [Model(2).times(3)(), Model(2).times(3)(), Model(3).times(3)(), Model(2).later(3)(), Model(2).later(3)()]
    assert values == [6, 6, 9, 6, 6]
    assert len(notes(log)) == 3


def test_generators_cannot_be_remembered(caplog: pytest.LogCaptureFixture) -> None:
    @thread(cache=True)
    def several(n: int) -> Any:
        yield from range(n)

    assert [list(several(3)()), list(several(3)())] == [[0, 1, 2]] * 2
    assert "cannot be pickled" in caplog.records[0].message


# --- entangle cache -------------------------------------------------------------------------------


def entangle_cache(*words: object) -> tuple[int, Any]:
    """Run a command, and return its status and its JSON output."""
    done = subprocess.run(
        [sys.executable, "-m", "entangle", "cache", *map(str, words), "--json"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def entangle_cache_error(*words: object) -> str:
    """Return what a failing command writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "entangle", "cache", *map(str, words)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode != 0
    return done.stderr


def test_the_commands(depot: Path, tmp_path: Path) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    for value in (1, 2, 2):
        noted(log, value)()
    status, listed = entangle_cache("ls")
    assert (status, [one["task"] for one in listed]) == (0, ["noted", "noted"])
    last = max(listed, key=lambda one: one["made"])["key"]
    _, told = entangle_cache("why", last[:10])
    assert told["differs"] == ["argument value is another"]
    values_in(depot)[0].write_bytes(b"damaged")
    status, found = entangle_cache("verify")
    assert (status, found["good"], len(found["damaged"])) == (1, 1, 1)
    _, found = entangle_cache("rm", "--task", "noted")
    assert len(found["removed"]) == 1
    assert entangle_cache("gc") == (0, {"removed": [], "bytes": 0})
    assert entangle_cache("ls") == (0, [])


def test_why_a_call_has_no_value(depot: Path, tmp_path: Path) -> None:
    noted, log = thread(cache=True)(bodies.noted), str(tmp_path / "log")
    assert entangle.cache.why(noted(log, 1)) == [f"no value of noted is kept in {depot}"]
    noted(log, 1)()
    noted(log, 2)()
    assert entangle.cache.why(noted(log, 1)) == []
    assert entangle.cache.why(noted(log, 3)) == ["argument value is another"]
    assert entangle.cache.why(noted(log, noted(log, 2))) == []
    assert entangle.cache.why(noted(log, [noted(log, 1)])) == ["argument value is another"]
    with pytest.raises(OptionError, match="has no value yet"):
        entangle.cache.why(noted(log, [noted(log, 4)]))
    with pytest.raises(OptionError, match="that has cache="):
        entangle.cache.why(thread(bodies.noted)(log, 1))
    assert len(notes(log)) == 2


def test_as_completed_gives_what_is_there_and_runs_the_rest(depot: Path, tmp_path: Path, runs: list[list[str]]) -> None:
    noted, log = process(cache=True)(bodies.noted), str(tmp_path / "log")
    noted(log, 1)()
    noted(log, [1])()
    shared = noted(log, 5)
    calls = [noted(log, [shared]), noted(log, 1), noted(log, [noted(log, 1)]), noted(log, [shared, 2]), noted(log, 1)]
    del runs[:]
    futures = list(entangle.as_completed(calls))
    assert [(future.call, future.result()) for future in futures[:3]] == [(calls[1], 1), (calls[2], [1]), (calls[4], 1)]
    assert {future.call: future.result() for future in futures[3:]} == {calls[0]: [5], calls[3]: [5, 2]}
    assert runs == [["noted"] * 3]
    assert len(notes(log)) == 5
    again = list(entangle.as_completed(calls))
    assert [future.call for future in again] == calls
    assert len(runs) == 1


def test_a_hit_starts_nothing_after_a_durable_run(tmp_path: Path, runs: list[list[str]]) -> None:
    importlib.import_module("entangle._tasks.durable")  # `entangle.durable` imports it
    noted = process(cache=True)(bodies.noted)
    log = str(tmp_path / "log")
    assert [noted(log, 1)() for _ in range(3)] == [1] * 3
    assert len(runs) == 1
