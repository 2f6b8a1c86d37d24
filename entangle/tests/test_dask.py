"""Graphs of dask, run by `entangle.dask.get`."""

from __future__ import annotations

import io
import operator
import os
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import CycleError, OptionError, ProcessTerminatedException, RemoteTraceback, UnpicklableError

from .callers import Caller, gone, output_of
from .evidence import alive, note, notes, notes_of, wait_until
from .ways import installed, second_thread

installed("dask")

import dask  # noqa: E402
from dask import delayed  # noqa: E402
from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple  # noqa: E402
from dask.callbacks import Callback  # noqa: E402
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar  # noqa: E402

import entangle.dask  # noqa: E402
from entangle import records, session  # noqa: E402


@pytest.fixture(autouse=True)
def _by_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm workers import this module, which takes long, so only a few tests use them."""
    monkeypatch.setenv("ENTANGLE_START", "fork")


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Warm workers, as users have them."""
    monkeypatch.delenv("ENTANGLE_START")
    yield
    entangle.dask.close()


get = entangle.dask.get
Pair = namedtuple("Pair", ["left", "right"])


def inc(x: Any) -> Any:
    return x + 1


def pair(*args: Any, **named: Any) -> Any:
    return args, named


def where(*_: Any) -> int:
    return os.getpid()


def refuse(x: Any) -> Any:
    raise LookupError(f"no {x}")


def end(x: Any) -> Any:
    os._exit(3)


def noted(path: str, *values: Any) -> Any:
    note(path, os.getpid(), *values)
    return values


# --- values of a graph ----------------------------------------------------------------------------


def test_values_of_keys_nested_twice_and_as_they_are() -> None:
    graph = {"a": 1, "b": (inc, "a"), ("c", 0): (inc, "b"), "same": "b", 5: (operator.add, "same", ("c", 0))}
    assert get(graph, 5) == 5
    assert get(graph, ["a", ["b", [("c", 0)]], "same", "b", 5, []]) == (1, (2, (3,)), 2, 2, 5, ())
    assert get(graph, [["b"]]) == ((2,),)


def test_values_that_are_false_or_none_are_values() -> None:
    graph: dict[Any, Any] = {"none": None, "empty": (list,), "zero": (int,), "of none": (operator.is_, "none", None), "": (str,)}
    assert get(graph, ["none", "empty", "zero", "of none", ""]) == (None, [], 0, True, "")
    assert get(graph, "none") is None
    assert get({"f": (bool, "none"), "none": None}, "f") is False


def test_graphs_that_run_nothing() -> None:
    data = object()
    assert get({}, []) == ()
    assert get({"x": data}, "x") is data
    assert get({"x": data, "y": "x"}, ["y", ["x"]]) == (data, (data,))


def test_arguments_of_every_kind() -> None:
    inner = Task(None, inc, TaskRef("a"))
    graph = {
        "a": DataNode("a", 1),
        "b": Alias("b", "a"),
        "c": Task("c", inc, TaskRef("b")),
        "plain": Task("plain", pair, TaskRef("c"), [1, ("a",)], x=TaskRef("a"), y="a"),
        "nested": Task("nested", pair, inner, Task(None, pair, TaskRef("c"), k=Alias("b"))),
        "lists": Task("lists", pair, List(TaskRef("c"), List(TaskRef("b"), 5), Tuple(TaskRef("a"))), x=Set(TaskRef("a"), 7)),
        "dict": Task("dict", pair, Dict({"x": TaskRef("c"), "y": List(TaskRef("c"))}), List(), Dict({}), List(1, 2)),
        "within": Task("within", pair, List(inner, TaskRef("c"))),
        "list": List(TaskRef("c"), inner),
        "data in it": Task("data in it", pair, DataNode("z", "a"), List(DataNode(None, 2), TaskRef("a"))),
    }
    assert get(graph, ["plain", "nested", "lists"]) == (
        ((2, [1, ("a",)]), {"x": 1, "y": "a"}),
        ((2, ((2,), {"k": 1})), {}),
        (([2, [1, 5], (1,)],), {"x": {1, 7}}),
    )
    assert get(graph, ["dict", "within", "list", "data in it"]) == (
        (({"x": 2, "y": [2]}, [], {}, [1, 2]), {}),
        (([2, 2],), {}),
        [2, 2],
        (("a", [2, 1]), {}),
    )


def test_graphs_of_tuples() -> None:
    graph = {
        "a": 1,
        "sum": (sum, ["a", (inc, (inc, "a")), 3]),
        "list": ["a", (inc, "a"), ["sum", "unknown"]],
        "named": Pair("a", (inc, "a")),
        "kept": (pair, {"a": "a"}, ("a", "b")),
    }
    wanted: Any = (7, [1, 2, [7, "unknown"]], Pair(1, 2), (({"a": "a"}, (1, "b")), {}))
    assert get(graph, ["sum", "list", "named", "kept"]) == dask.get(graph, ["sum", "list", "named", "kept"]) == wanted


def test_the_same_as_dask_itself_gives() -> None:
    leaves = [delayed(inc)(x) for x in range(40)]
    level = [delayed(sum)(leaves[at : at + 7]) for at in range(0, 40, 5)]
    whole = delayed(dict)(a=level, b=delayed(max)(level[0], leaves[3]), c={"x": [leaves[0]]})
    wanted = dask.compute(whole, *leaves, scheduler="synchronous")
    assert dask.compute(whole, *leaves, scheduler=get) == wanted


def test_what_is_not_needed_does_not_run(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    graph = {"a": (noted, path, 1), "b": (noted, path, 2), "c": (inc, (operator.itemgetter(0), "a"))}
    assert get(graph, "c") == 2
    assert [words[1:] for words in notes(path)] == [["1"]]


def test_tasks_run_in_workers_and_each_once(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    graph: dict[str, Any] = {"x": (noted, path, 1), **{f"y{at}": (noted, path, 2, "x") for at in range(20)}}
    graph["z"] = (len, [f"y{at}" for at in range(20)])
    assert get(graph, ["z", "x"]) == (20, (1,))
    told = notes(path)
    assert len(told) == 21
    assert str(os.getpid()) not in {words[0] for words in told}


def test_graphs_of_many_tasks_and_long_ones() -> None:
    wide: dict[Any, Any] = {("x", at): (inc, at) for at in range(10_000)}
    wide["sum"] = (sum, list(wide))
    assert get(wide, "sum") == 50_005_000
    long: dict[Any, Any] = {("x", at): (inc, ("x", at - 1)) for at in range(1, 5_000)}
    long["x", 0] = 0
    assert get(long, ("x", 4_999)) == 4_999


def test_workers_are_as_many_as_wanted(tmp_path: Path) -> None:
    graph = {("x", at): (where, at) for at in range(50)}
    assert len(set(get(graph, list(graph), num_workers=1))) == 1
    with dask.config.set(num_workers=1):
        assert len(set(get(graph, list(graph)))) == 1
    wrong: Any
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(OptionError, match="num_workers"):
            get({}, [], num_workers=wrong)


def test_what_a_task_computes_with_dask_runs_on_the_engine_too() -> None:
    def nested(x: int) -> Any:
        return dask.compute(*[delayed(inc)(x + at) for at in range(5)], scheduler=get), os.getpid()

    values, pid = delayed(nested)(1).compute(scheduler=get)
    assert values == (2, 3, 4, 5, 6)
    assert pid != os.getpid()


def test_two_threads_at_once() -> None:
    def compute(at: int) -> None:
        values[at] = get({"x": at, "y": (inc, "x"), "z": (inc, "y")}, ["z", "y"])

    values: dict[int, Any] = {}
    threads = [threading.Thread(target=compute, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == {at: (at + 2, at + 1) for at in range(4)}


def test_workers_stay_for_the_next_graph_and_agree_on_hashes(warm: None, tmp_path: Path) -> None:
    # A task may depend on a key that was asked for as well.
    assert get({"x": 1, "y": (inc, "x"), "z": (operator.add, "y", "x")}, ["x", "y", "z"]) == (1, 2, 3)
    graph: dict[Any, Any] = {("h", at): (hash, f"text {at % 2}") for at in range(40)}
    graph["where"] = (where, 1)
    first, second = get(graph, list(graph), num_workers=1), get(graph, list(graph), num_workers=1)
    assert first == second
    assert len(set(first[:-1])) == 2
    whole = get({**GRAPH, "list": (pair, "b", [1, "e"], {"k": "c"})}, ["e", "list"])
    assert whole == (5, ((2, [1, 5], {"k": "c"}), {}))
    entangle.dask.close()
    wait_until(lambda: not alive(first[-1]))
    with session():
        inside, again = get(graph, ["where", ("h", 0)], num_workers=1)[0], get(graph, "where", num_workers=1)
        assert inside == again
    assert not alive(inside)


def test_the_errors_of_warm_workers(warm: None) -> None:
    for _ in range(2):
        with pytest.raises(LookupError, match="no 2") as caught:
            get({"a": (inc, 1), "bad": (refuse, "a")}, "bad")
        assert "refuse(2)" in notes_of(caught.value)
        with pytest.raises(ProcessTerminatedException):
            get({"a": (inc, 1), "b": (end, "a")}, "b")
    telling = Telling()
    with telling.callback:
        assert get(GRAPH, ["e", "c"]) == (5, 3)
    assert telling.values == {"b": 2, "c": 3, "d": 3, "e": 5}
    # What cannot be pickled reaches workers by fork, if forking is safe.
    assert get({"x": (list, (at for at in range(3)))}, "x") == [0, 1, 2]
    with second_thread(), pytest.raises(UnpicklableError, match="argument 1 of task 'x'"):
        get({"x": (list, (at for at in range(3)))}, "x")


def test_what_takes_a_lock_runs_in_this_process() -> None:
    """In another process a lock would exclude nothing."""
    lock = threading.Lock()
    graph = {"a": (where, 1), "b": (where, lock, "a"), "c": (pair, (where, "b", lock), "b"), "d": (pair, "c", "a")}
    (here, there), _ = get(graph, "d")
    assert here == ((os.getpid(), os.getpid()), {})
    assert there != os.getpid()
    with pytest.raises(LookupError, match="no <unlocked"):
        get({"a": (inc, 1), "b": (refuse, lock)}, ["b", "a"])


def test_a_forked_child_has_workers_of_its_own(warm: None) -> None:
    assert get({"x": (inc, 1)}, "x") == 2
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, repr(get({"x": (inc, 2), "y": (inc, "x")}, ["x", "y"])).encode())
            entangle.dask.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"(3, 4)"
    for fd in (read, write):
        os.close(fd)
    assert get({"x": (inc, 1)}, "x") == 2


def test_a_run_is_recorded_with_the_keys_of_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    get({("part-1", 0): (inc, 1), ("part-1", 1): (inc, 2), "total-9": (operator.add, ("part-1", 0), ("part-1", 1))}, "total-9")
    (run,) = records.runs()
    assert (run.name, run.state, run.node_count) == ("total-9", "done", 3)
    assert sorted(node.name for node in run.nodes) == ["('part-1', 0)", "('part-1', 1)", "total-9"]
    assert {node.task.name for node in run.nodes} == {"part", "total"}
    installed("typer")
    from entangle.cli.show import show

    fused = Task.fuse(Task("one", inc, 1), Task("two", inc, TaskRef("one")))
    assert get({"two": fused}, "two") == 3
    show(records.run("last").id, "tree", tmp_path / "shown", None)
    shown = (tmp_path / "shown").read_text(encoding="utf-8")
    assert "two → 3" in shown
    assert "inner_dsk" not in shown
    assert "outkey" not in shown


ARRAYS = """
import os, threading
import dask, dask.array as da, dask.bag as db, numpy, entangle.dask
from entangle._dask import graph_flow

def held(x):
    at, lines = x.__array_interface__["data"][0], open("/proc/self/maps").read().splitlines()
    files = [line.split()[5:] for line in lines if int(line.split("-")[0], 16) <= at < int(line.split()[0].split("-")[1], 16)]
    return any("/entangle-" in name for name in files[0]), x.nbytes, float(x.sum())

def at(block):
    return numpy.full(block.shape, os.getpid())

class Counting:
    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def acquire(self, *args):
        self.lock.acquire(*args)
        self.count += 1

    def release(self):
        self.lock.release()

    __enter__ = acquire

    def __exit__(self, *args):
        self.release()

if __name__ == "__main__":
    with dask.config.set(scheduler=entangle.dask.get):
        x = da.random.default_rng(3).random((2000, 1000), chunks=(500, 1000))
        y = (x + 1).sum(axis=0)
        with dask.config.set(scheduler="synchronous"):
            wanted = y.compute()
        assert numpy.array_equal(y.compute(), wanted)
        whole = x.compute()
        assert whole.shape == (2000, 1000)
        whole[0, 0] = 7  # writable, and nobody else sees it
        assert x[0, 0].compute() != 7
        print(dask.delayed(held)(dask.delayed(numpy.ones)((1000, 1000))).compute()[1:])
        target = numpy.zeros((2000, 1000))
        lock = Counting()
        da.store([x, x + 1], [target, numpy.zeros((2000, 1000))], lock=lock)
        print(numpy.array_equal(target, whole := x.compute(scheduler="synchronous")), lock.count)
        locked = da.from_array(whole, chunks=500, lock=lock)
        print(bool(numpy.isclose(locked.sum().compute(), whole.sum())), lock.count > 8)
        stop = threading.Event()
        threading.Thread(target=stop.wait, daemon=True).start()  # a fork is not safe now
        big = numpy.arange(1_000_000.0)
        parts = dask.delayed(held)(big), dask.delayed(held)(big[:500_000]), dask.delayed(big)
        told = dask.compute(*parts, da.from_array(big, chunks=200_000).sum(), num_workers=1)
        print(*told[:2], told[2] is big, told[3])
        graph_flow.MUCH = big.nbytes
        parts = da.from_array(big, chunks=200_000)
        print(float((parts + 1).sum().compute()), set(parts.map_blocks(at).compute()) == {os.getpid()})
        stop.set()
        words = db.from_sequence([f"word {n % 7}" for n in range(100)], npartitions=5)
        print(sorted((key, len(items)) for key, items in words.groupby(lambda word: word).compute()))
"""

#: Workers do not copy large arrays of the program.
BIG = "(True, 8000000, 499999500000.0) (True, 4000000, 124999750000.0) True 499999500000.0"


def test_arrays_and_bags(tmp_path: Path) -> None:
    """In a program of its own: this process would keep the libraries loaded."""
    installed("numpy")
    told = output_of(tmp_path, ARRAYS, PYTHONWARNINGS="", ENTANGLE_START="").splitlines()
    assert told == [
        "(8000000, 1000000.0)",
        "True 8",
        "True True",
        BIG,
        "500000500000.0 True",
        str([(f"word {n}", 15 if n < 2 else 14) for n in range(7)]),
    ]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_the_error_of_a_task_is_its_own(several: bool) -> None:
    graph = {"a": (inc, 1), "bad-1": (refuse, "a"), "b": (inc, "bad-1")}
    with pytest.raises(LookupError, match=r"^no 2") as caught:
        get(graph, ["b", "a"] if several else "b")
    assert type(caught.value) is LookupError
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert 'raise LookupError(f"no {x}")' in str(caught.value.__cause__)
    told = notes_of(caught.value)
    assert "bad-1" in told
    assert "bad(2)" in told
    assert [entry.name for entry in caught.traceback][-1] == "test_the_error_of_a_task_is_its_own"


def test_errors_of_graphs() -> None:
    with pytest.raises(KeyError, match="unknown"):
        get({"a": 1}, "unknown")
    with pytest.raises(KeyError, match="unknown"):
        get({"a": 1}, [["a"], ["unknown"]])
    with pytest.raises(ValueError, match="'x' takes the value of 'gone', which is not in the graph"):
        get({"x": Task("x", inc, TaskRef("gone"))}, "x")
    with pytest.raises(CycleError, match="'a'"):
        get({"a": (inc, "b"), "b": (inc, "c"), "c": "a"}, "a")
    with pytest.raises(CycleError, match="'a'"):
        get({"a": Task("a", inc, TaskRef("a"))}, ["a"])


def test_a_task_that_ends_its_process_is_named() -> None:
    with pytest.raises(ProcessTerminatedException, match=r"'ender-1'.* 3") as caught:
        get({"a": (inc, 1), "ender-1": (end, "a")}, "ender-1")
    assert "ender(a)" in notes_of(caught.value)


def test_values_and_arguments_that_cannot_be_sent_are_named() -> None:
    with pytest.raises(UnpicklableError, match="'lock-1'"):
        get({"lock-1": (threading.Lock,), "x": (str, "lock-1"), "y": (str, "lock-1")}, ["x", "y"])


def test_an_error_can_be_looked_at_in_this_process(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    def fails(*values: Any) -> None:
        note(path, os.getpid(), values)
        raise LookupError(values)

    graph = {"once": (noted, path, 1), "b": (inc, 1), "bad": (fails, "once", "b", 3), "top": (inc, "bad")}
    with pytest.raises(LookupError) as caught:
        get(graph, ["top", "b"], rerun_exceptions_locally=True)
    assert caught.traceback[-1].name == "fails"
    ours = [words[1:] for words in notes(path) if words[0] == str(os.getpid())]
    assert ours == [["((1,),", "2,", "3)"]]
    assert len(notes(path)) == 3
    with dask.config.set(rerun_exceptions_locally=True):
        assert get({**graph, "bad": (pair, "once", "b")}, ["bad", "b"]) == ((((1,), 2), {}), 2)


def test_an_interrupt_ends_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    caller = Caller(
        tmp_path,
        """
        import os, time, dask, entangle.dask

        def wait(x):
            open(f"begun-{x}", "w").close()
            time.sleep(60)

        try:
            dask.compute(*[dask.delayed(wait)(x) for x in range(2)], scheduler=entangle.dask.get)
        except KeyboardInterrupt:
            print("interrupted")
        print(entangle.dask.get({"x": (sum, [1, 2])}, "x"))
        """,
    ).start()
    try:
        wait_until(lambda: (tmp_path / "begun-0").exists() and (tmp_path / "begun-1").exists())
        family = caller.family()
        os.kill(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "interrupted\n3\n"), err
    gone(family)
    assert caller.files() == []


# --- callbacks, cache -----------------------------------------------------------------------------


class Telling:
    """Callbacks that record their arguments, and check the state at each call."""

    def __init__(self, **also: Callable[..., None]) -> None:
        self.told: list[Any] = []
        self.failed: bool | None = None
        self.values: dict[Any, Any] = {}
        self.workers: set[int] = set()
        self.callback = Callback(
            **{**{name: getattr(self, name) for name in ("start", "start_state", "pretask", "posttask", "finish")}, **also}
        )

    def start(self, graph: Any) -> None:
        self.told.append(("start", set(graph)))

    def start_state(self, graph: Any, state: Any) -> None:
        self.told.append(("start_state", set(state["ready"]), set(state["waiting"])))

    def pretask(self, key: Any, graph: Any, state: Any) -> None:
        assert key in state["running"]
        assert key not in state["waiting"]
        assert state["dependencies"][key] <= state["finished"] | {one for one, task in graph.items() if isinstance(task, DataNode)}
        self.told.append(("pretask", key))

    def posttask(self, key: Any, value: Any, graph: Any, state: Any, worker: int) -> None:
        assert key in state["finished"]
        assert key not in state["running"]
        self.values[key] = value
        self.workers.add(worker)
        self.told.append(("posttask", key))

    def finish(self, graph: Any, state: Any, failed: bool) -> None:
        assert state["running"] == set() or failed
        self.told.append(("finish", failed))


GRAPH = {"a": 1, "b": (inc, "a"), "c": (inc, "b"), "d": "c", "e": (operator.add, "b", "d"), "unneeded": (inc, "e")}


def test_callbacks_are_told_in_order() -> None:
    telling = Telling()
    with telling.callback:
        assert get(GRAPH, ["e", "c"]) == (5, 3)
    told = telling.told
    assert told[:2] == [("start", {"a", "b", "c", "d", "e"}), ("start_state", {"b"}, {"c", "d", "e"})]
    assert told[2:-1] == [(what, key) for key in "bcde" for what in ("pretask", "posttask")]
    assert told[-1] == ("finish", False)
    assert telling.values == {"b": 2, "c": 3, "d": 3, "e": 5}
    assert os.getpid() not in telling.workers


def test_only_the_outermost_graph_tells_callbacks_and_a_key_that_is_data_too() -> None:
    telling = Telling()
    assert get({"a": 1, "b": "a"}, ["a", "b"], callbacks=[telling.callback._callback]) == (1, 1)
    assert [what[0] for what in telling.told] == ["start", "start_state", "pretask", "posttask", "finish"]
    assert telling.values == {"b": 1}


def test_callbacks_of_many_tasks_keep_count() -> None:
    telling = Telling()
    graph: dict[Any, Any] = {("x", at): (inc, at) for at in range(1_500)}
    graph["sum"] = (sum, list(graph))
    with telling.callback:
        assert get(graph, "sum") == sum(range(1, 1_501))
    assert len(telling.values) == 1_501
    assert telling.told[-2:] == [("posttask", "sum"), ("finish", False)]


def test_callbacks_of_a_graph_that_fails() -> None:
    telling = Telling()
    with telling.callback, pytest.raises(LookupError):
        get({"a": (inc, 1), "bad": (refuse, "a")}, "bad")
    assert telling.values == {"a": 2}
    assert telling.told[-1] == ("finish", True)


def test_an_error_of_a_callback_ends_the_run() -> None:
    def pretask(*_: Any) -> None:
        raise ZeroDivisionError

    telling = Telling(pretask=pretask)
    with telling.callback, pytest.raises(ZeroDivisionError):
        get(GRAPH, "e")
    assert telling.told[-1] == ("finish", True)


def test_a_callback_may_put_in_what_it_has_kept() -> None:
    def start(graph: dict[Any, Any]) -> None:
        graph["c"] = 10

    telling = Telling(start=start)
    with telling.callback:
        assert get(GRAPH, "e") == 12
    assert "c" not in telling.values


def test_profilers_and_the_progress_bar_of_dask(tmp_path: Path) -> None:
    nap = Task("nap", time.sleep, 0.05)
    graph = {"nap": nap, "x": Task("x", pair, TaskRef("nap")), "y": Task("y", pair, TaskRef("nap"))}
    shown = io.StringIO()
    with Profiler() as profiler, CacheProfiler() as cached, ProgressBar(out=shown):
        get(graph, ["x", "y"])
    assert "100% Completed" in shown.getvalue()
    (first, *others) = sorted(profiler.results, key=lambda one: one.start_time)
    assert first.key == "nap"
    assert first.task is nap
    assert first.end_time - first.start_time >= 0.05
    assert profiler.start_time < first.start_time
    assert all(first.end_time <= one.start_time <= one.end_time <= profiler.end_time for one in others)
    assert os.getpid() not in {one.worker_id for one in profiler.results}
    assert {one.key for one in cached.results} == {"nap", "x", "y"}


def test_what_is_in_the_cache_does_not_run_and_what_is_wanted_comes_into_it() -> None:
    cache = {"b": 10}
    assert get(GRAPH, ["e", "a"], cache=cache) == (21, 1)
    assert cache == {"b": 10, "e": 21, "a": 1}
    with dask.config.set(cache=cache):
        assert get(GRAPH, "e") == 21
        assert get({"f": (inc, "b")}, "f") == 11
    told = Telling()
    with told.callback:
        assert get(GRAPH, "d", cache={"b": 5}) == 6
    assert "b" not in told.values
