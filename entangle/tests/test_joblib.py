"""joblib on warm workers, by `entangle.joblib.register`."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._warm.warm_pool import WarmPool
from entangle.errors import EntangleError, OptionError, ProcessTerminatedException, RemoteTraceback, StoreFullError, UnpicklableError
from entangle.process import process

from .callers import gone
from .evidence import note, notes, pids_in, wait_until
from .ways import installed

installed("joblib")

import joblib  # noqa: E402
from joblib import Parallel, delayed, parallel_config  # noqa: E402
from joblib.parallel import BACKENDS, get_active_backend  # noqa: E402

import entangle.joblib  # noqa: E402
from entangle._joblib import lease  # noqa: E402
from entangle._shared import shared_buffers  # noqa: E402
from entangle._shared.home import home  # noqa: E402

entangle.joblib.register()


#: Workers shared by all tests here. Tests that end workers have workers of their own.
_kept: list[Any] = []
OTHERS = 3


@pytest.fixture(scope="module", autouse=True)
def _warm_workers() -> Iterator[None]:
    while not _kept or len(_kept[0][1].pids) < 2:  # each test begins with two workers
        Parallel(n_jobs=2, backend="entangle", batch_size=1)(delayed(time.sleep)(0.05) for _ in range(4))
        _kept[:] = lease.unused
    yield
    _kept.clear()
    lease.end_unused()


@pytest.fixture(autouse=True)
def _two_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every `Parallel` here uses our backend, and must leave nothing behind."""
    monkeypatch.setattr(lease, "KEPT", 9)
    lease.unused[:] = _kept
    with parallel_config(backend="entangle", n_jobs=2):
        yield
    gc.collect()
    for kept in [kept for kept in lease.unused if kept in _kept]:
        lease.unused.remove(kept)
    lease.end_unused()
    assert home().budget.count() == home().budget.size, "cookies of the budget were kept"
    assert not [name for name in os.listdir(home().path) if name.startswith("b") and len(name) == 17], "buffers were left behind"


def double(x: Any) -> Any:
    return x + x


def pid(*_: Any) -> int:
    return os.getpid()


def fail(x: Any) -> Any:
    raise LookupError(f"no {x}")


def end(x: int, code: int = 7) -> int:
    if x == code:
        os._exit(code)
    return x


def nap(path: str, seconds: float) -> None:
    note(path, os.getpid())
    time.sleep(seconds)


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2, -1, -2, 5])
def test_values_come_in_order(n_jobs: int) -> None:
    assert Parallel(n_jobs=n_jobs)(delayed(double)(x) for x in range(40)) == [2 * x for x in range(40)]


def test_tasks_run_in_other_processes_and_the_next_call_finds_the_same_ones() -> None:
    first = set(Parallel(batch_size=1)(delayed(pid)(x) for x in range(20)))
    second = set(Parallel(batch_size=1)(delayed(pid)(x) for x in range(20)))
    assert os.getpid() not in first
    assert len(first | second) <= 2


def test_no_more_run_at_once_than_n_jobs_even_with_more_than_there_are_cpus(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    Parallel(n_jobs=5, batch_size=1)(delayed(nap)(path, 0.2) for _ in range(5))
    assert len(pids_in(path)) == 5


def test_lambdas_closures_and_nothing_at_all() -> None:
    k = 3
    assert Parallel()(delayed(lambda x: x * k)(x) for x in range(3)) == [0, 3, 6]
    assert Parallel()([]) == []
    assert Parallel()(delayed(double)(x) for x in ("", (), None or 0, False)) == ["", (), 0, 0]


def test_generators_in_order_and_as_they_end() -> None:
    assert list(Parallel(return_as="generator")(delayed(double)(x) for x in range(10))) == [2 * x for x in range(10)]
    assert sorted(Parallel(return_as="generator_unordered")(delayed(double)(x) for x in range(10))) == [2 * x for x in range(10)]


def test_two_generators_at_a_time_and_one_that_is_left() -> None:
    one = Parallel(return_as="generator")(delayed(double)(x) for x in range(6))
    other = Parallel(return_as="generator")(delayed(double)(x) for x in range(6, 9))
    assert next(one) == 0
    assert list(other) == [12, 14, 16]
    assert list(one) == [2, 4, 6, 8, 10]
    left = Parallel(n_jobs=OTHERS, return_as="generator")(delayed(time.sleep)(30) for _ in range(9))
    began = time.monotonic()
    with pytest.warns(UserWarning, match="have been"):  # noqa: PT031
        del left
        gc.collect()
    assert Parallel()(delayed(double)(x) for x in range(3)) == [0, 2, 4]
    assert time.monotonic() - began < 25


def test_calls_in_several_threads() -> None:
    found: dict[int, Any] = {}

    def call(k: int) -> None:
        found[k] = Parallel(n_jobs=2, backend="entangle")(delayed(double)(x + k) for x in range(20))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: [2 * (x + k) for x in range(20)] for k in range(3)}


def test_one_parallel_for_several_calls_goes_on_after_an_error() -> None:
    with Parallel(n_jobs=OTHERS) as parallel:
        assert parallel(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]
        with pytest.raises(LookupError):
            parallel(delayed(fail)(x) for x in range(4))
        assert parallel(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]
        # The batch after the one that cannot be sent was ready when the call failed.
        with pytest.raises(UnpicklableError):
            parallel(delayed(double)(x) for x in (threading.Lock(), 7))
        assert parallel(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]


def test_a_callback_of_a_call_that_failed_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parallel(n_jobs=OTHERS, batch_size=1, pre_dispatch=2, timeout=0.2) as parallel:
        backend = parallel._backend
        go, waited = threading.Event(), threading.Event()
        start, completed = backend.start_call, backend.batch_completed

        def start_call() -> None:
            if waited.is_set():
                go.set()
            start()

        def batch_completed(*args: Any) -> None:
            if not waited.is_set():
                waited.set()
                go.wait(60)
            completed(*args)

        monkeypatch.setattr(backend, "start_call", start_call)
        monkeypatch.setattr(backend, "batch_completed", batch_completed)
        with pytest.raises(joblib.parallel.TimeoutError):
            parallel(delayed(time.sleep)(seconds) for seconds in (0, 60, 60, 60))
        parallel.timeout = None
        assert parallel(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]


# Errors ------------------------------------------------------------------------------------------


def test_an_error_keeps_its_type_and_has_the_workers_traceback_and_names_the_call() -> None:
    with pytest.raises(LookupError, match="no 3") as caught:
        Parallel(n_jobs=OTHERS, batch_size=5)(delayed(fail if x == 3 else double)(x) for x in range(5))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "raise LookupError" in str(caught.value.__cause__)
    assert [line for line in getattr(caught.value, "__notes__", ()) if line.startswith("call:")] == ["call: fail(3)"]


def test_a_worker_that_dies_is_named_and_the_next_call_works() -> None:
    with pytest.raises(ProcessTerminatedException, match=r"of 'end' ended by exit code 7|while it ran 'end'"):
        Parallel(n_jobs=OTHERS, batch_size=1)(delayed(end)(x) for x in range(8))
    assert Parallel(n_jobs=OTHERS)(delayed(end)(x) for x in range(7)) == list(range(7))


def test_a_second_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual, went = WarmPool.take, threading.Event()

    def take(pool: WarmPool) -> Any:
        if pool.started:
            wait_until(lambda: pids_in(str(tmp_path / "pids")))  # until the first one runs a task
            went.set()
            raise OSError("no more descriptors")
        return usual(pool)

    monkeypatch.setattr(WarmPool, "take", take)
    with pytest.raises(EntangleError, match="no worker can be started"):
        Parallel(n_jobs=OTHERS, batch_size=1, pre_dispatch=OTHERS)(delayed(nap)(str(tmp_path / "pids"), 60) for _ in range(OTHERS))
    assert went.is_set()


def test_a_worker_killed_between_two_calls_is_replaced() -> None:
    found = Parallel(n_jobs=OTHERS, batch_size=1)(delayed(pid)(x) for x in range(6))
    for number in set(found):
        os.kill(number, signal.SIGKILL)
    gone(found)
    assert Parallel(n_jobs=OTHERS)(delayed(double)(x) for x in range(6)) == [0, 2, 4, 6, 8, 10]


def test_what_cannot_be_sent_is_named_and_nothing_hangs() -> None:
    with pytest.raises(UnpicklableError, match=r"argument 'x' of double\(\).*_thread.lock") as caught:
        Parallel(n_jobs=OTHERS, pre_dispatch=2, batch_size=1)(delayed(double)(x=threading.Lock() if x == 5 else x) for x in range(9))
    assert isinstance(caught.value, pickle.PicklingError)
    with pytest.raises(UnpicklableError, match="the value of 'open'"):
        Parallel(n_jobs=OTHERS)(delayed(open)(os.devnull) for _ in range(2))


def test_a_timeout_ends_the_workers(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    Parallel(n_jobs=OTHERS, batch_size=1)(delayed(nap)(path, 0.1) for _ in range(3))
    with pytest.raises(joblib.parallel.TimeoutError):
        Parallel(n_jobs=OTHERS, timeout=0.5, batch_size=1)(delayed(nap)(path, 60) for _ in range(4))
    gone(pids_in(path))


def test_options_that_are_not_known_or_make_no_sense() -> None:
    with pytest.raises(OptionError, match=r"no option 'initialiser'; did you mean 'initializer'\?"):
        parallel_config(backend="entangle", initialiser=print)
    with pytest.raises(OptionError, match="no option 'env'"):
        Parallel(env={})(delayed(double)(x) for x in range(3))
    with pytest.raises(OptionError, match="idle_worker_timeout=-1"):
        Parallel(idle_worker_timeout=-1)(delayed(double)(x) for x in range(3))
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(double)(x) for x in range(3))


# Workers -----------------------------------------------------------------------------------------


def _begin(path: str, value: str) -> None:
    note(path, value)
    os.environ["OF_THE_INITIALIZER"] = value


def test_an_initializer_runs_once_in_each_worker(tmp_path: Path) -> None:
    path = str(tmp_path / "begun")
    given = (path, "1")
    for _ in range(2):
        with Parallel(initializer=_begin, initargs=given, batch_size=1) as parallel:
            assert set(parallel(delayed(os.getenv)("OF_THE_INITIALIZER") for _ in range(8))) == {"1"}
    assert 1 <= len(notes(path)) <= 2


def test_a_worker_with_nothing_to_do_ends_after_its_idle_time_and_the_next_call_works() -> None:
    with parallel_config(backend="entangle", n_jobs=2, idle_worker_timeout=0.2):
        gone(Parallel(batch_size=1)(delayed(pid)(x) for x in range(4)))
        assert Parallel()(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]


def test_libraries_keep_to_their_share_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = str(max(1, joblib.cpu_count() // 2))
    assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))) == {share}
    with parallel_config(backend="entangle", n_jobs=2, inner_max_num_threads=7):
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))) == {"7"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))) == {"3"}


def test_batches_grow_while_tasks_are_short() -> None:
    with Parallel() as parallel:
        parallel(delayed(double)(x) for x in range(3000))
        assert parallel._backend._effective_batch_size > 1
    assert parallel._backend._effective_batch_size == 1


# Nested ------------------------------------------------------------------------------------------


def _inner(n_jobs: int) -> tuple[int, list[int], str]:
    backend = type(get_active_backend()[0]).__name__
    return os.getpid(), Parallel(n_jobs=n_jobs, batch_size=1)(delayed(pid)(x) for x in range(3)), backend


def test_all_levels_share_the_cpus() -> None:
    """Two workers have two CPUs, so calls inside them run in the same process. If there are more
    CPUs than workers, calls inside take the rest."""
    budget = home().budget.size + 1
    for outer, inner, backend in Parallel(n_jobs=max(2, budget), batch_size=1)(delayed(_inner)(2) for _ in range(2)):
        assert set(inner) == {outer}
        assert backend == "EntangleBackend"


def test_a_call_in_a_thread_of_a_call() -> None:
    with parallel_config(backend="threading", n_jobs=2):
        found = Parallel()(delayed(_in_thread)(k) for k in range(2))
    assert found == [[0, 2, 4], [2, 4, 6]]


def _in_thread(k: int) -> list[int]:
    values: list[int] = Parallel(n_jobs=2, backend="entangle")(delayed(double)(x + k) for x in range(3))
    return values


@process
def in_a_task(count: int) -> list[int]:
    entangle.joblib.register()
    found: list[int] = Parallel(n_jobs=2, backend="entangle")(delayed(double)(x) for x in range(count))
    return found


def test_in_a_task_of_entangle() -> None:
    assert in_a_task(4)() == [0, 2, 4, 6]


def test_a_task_of_entangle_in_a_call() -> None:
    # Not the shared workers: one that has started processes keeps a janitor as long as it lives.
    assert Parallel(n_jobs=OTHERS)(delayed(_graph)(x) for x in range(3)) == [0, 2, 4]


def _graph(x: int) -> int:
    value: int = process(double)(x)()
    return value


def test_in_a_forked_child() -> None:
    Parallel()(delayed(double)(x) for x in range(3))
    if not (child := os.fork()):
        code = 1
        try:
            code = Parallel()(delayed(double)(x) for x in range(3)) != [0, 2, 4]
            lease.end_unused()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert Parallel()(delayed(double)(x) for x in range(3)) == [0, 2, 4]


# Arrays ------------------------------------------------------------------------------------------

numpy = pytest.importorskip("numpy")


def _threads_of_blas() -> set[int]:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    numpy.ones((50, 50)) @ numpy.ones((50, 50))
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


def test_a_library_that_the_server_has_loaded_already_keeps_to_its_share() -> None:
    pytest.importorskip("threadpoolctl")
    with parallel_config(backend="entangle", n_jobs=2, inner_max_num_threads=3):
        for _ in range(2):
            found = set().union(*Parallel(batch_size=1)(delayed(_threads_of_blas)() for _ in range(2)))
            # A library that is only loaded now starts at most as many threads as there are CPUs.
            assert found <= {3, min(3, os.cpu_count() or 1)}


def _fill(array: Any, value: float, go: Path) -> tuple[float, bool]:
    wait_until(go.exists)
    before = float(array[0])
    array[:] = value
    return before, float(array.sum()) == value * len(array)


def test_a_large_array_is_stored_once_and_writes_to_it_stay_in_their_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = []
    usual = shared_buffers._write

    def write(buffer: memoryview) -> shared_buffers.Reference:
        written.append(buffer.nbytes)
        return usual(buffer)

    monkeypatch.setattr(shared_buffers, "_write", write)
    array = numpy.zeros(100_000)

    def tasks() -> Iterator[Any]:
        yield from (delayed(_fill)(array, k + 1.0, tmp_path / "go") for k in range(8))
        (tmp_path / "go").touch()  # no task ends before all are started

    found = Parallel(batch_size=1, pre_dispatch="all")(tasks())
    assert found == [(0.0, True)] * 8
    assert written == [array.nbytes]
    assert not array.any()


def test_an_array_that_was_changed_is_seen_with_its_new_values() -> None:
    array = numpy.zeros(100_000)
    with Parallel(batch_size=1, pre_dispatch="all") as parallel:
        assert parallel(delayed(numpy.sum)(array) for _ in range(3)) == [0.0] * 3
        array[-1] = 1
        assert parallel(delayed(numpy.sum)(array) for _ in range(3)) == [1.0] * 3

        def changing() -> Iterator[Any]:
            for k in range(6):
                array[-1] = k
                yield delayed(numpy.sum)(array)

        # joblib takes two tasks from the iterator before it sends the first.
        assert parallel(changing()) == [1.0, 1.0, 3.0, 3.0, 5.0, 5.0]


def test_arrays_of_any_order_inside_other_things_and_read_only() -> None:
    array = numpy.arange(200_000.0).reshape(400, 500)
    frozen = array.copy()
    frozen.flags.writeable = False
    given = [array, numpy.asfortranarray(array), array[::2], frozen, {"a": [array]}["a"][0]]
    assert all(numpy.array_equal(one, two) for one, two in zip(Parallel()(delayed(_same)({"a": [x]}) for x in given), given, strict=True))


def _same(x: Any) -> Any:
    return x["a"][0]


def _write_row(array: Any, row: int) -> str:
    array[row] = row
    return type(array).__name__


def test_tasks_write_to_the_file_of_a_memmap(tmp_path: Path) -> None:
    array = numpy.memmap(tmp_path / "rows", float, "w+", shape=(6, 50_000))
    assert Parallel(batch_size=1)(delayed(_write_row)(array[2:], row) for row in range(4)) == ["memmap"] * 4
    assert array[:, 7].tolist() == [0, 0, 0, 1, 2, 3]
    copied = numpy.memmap(tmp_path / "rows", float, "c", shape=(6, 50_000))
    copied[0, 0] = 9
    assert Parallel()(delayed(numpy.max)(copied) for _ in range(2)) == [9.0, 9.0]


def test_no_room_for_a_large_array_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_buffers, "reserve", full)
    with pytest.raises(StoreFullError, match="no room for 800,000 bytes of an argument"):
        Parallel()(delayed(numpy.sum)(numpy.zeros(100_000)) for _ in range(3))


# Programs ----------------------------------------------------------------------------------------

_PROGRAM = """
import joblib, os, sys
import entangle.joblib
from entangle.process import process
entangle.joblib.register({default})

class Box:
    def __init__(self, value): self.value = value

def twice(value): return 2 * value

def double(box): return Box(process(twice)(box.value)())

boxes = joblib.Parallel(n_jobs=2, backend={backend!r})(joblib.delayed(double)(Box(x)) for x in range(3))
print([box.value for box in boxes])
"""


@pytest.mark.parametrize(("default", "backend"), [("", "entangle"), ("make_default=True", None)])
def test_a_script_with_functions_and_classes_of_its_own_and_no_main_guard(tmp_path: Path, default: str, backend: str | None) -> None:
    script = tmp_path / "script.py"
    script.write_text(_PROGRAM.format(default=default, backend=backend))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 2, 4]\n", "", 0)


def test_registering_changes_nothing_else_and_needs_joblib() -> None:
    assert {"loky", "threading", "entangle"} <= BACKENDS.keys()
    code = "import sys; sys.modules['joblib'] = None; import entangle.joblib; entangle.joblib.register()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stderr.strip().endswith("ImportError: entangle.joblib needs joblib: pip install 'py-entangle[joblib]'")
