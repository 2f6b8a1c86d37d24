"""Error texts for users who write as in another library, or at the wrong place."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import as_completed, gather
from entangle.dataflow import dataflow
from entangle.errors import ArgumentError, OptionError
from entangle.process import process
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import ROOT


@process
def square(n: int) -> int:
    return n * n


@process
def shown(n: int, size: int = 1, *, chunk: int = 2) -> int:
    return n


@process
def timed(n: int, timeout: float = 1.0) -> float:
    return timeout


@process
def anything(**more: Any) -> dict[str, Any]:
    return more


class Shop:
    @process
    def price(self, n: int) -> int:
        return n


@dataflow
@thread
def doubled(n: int) -> int:
    return 2 * n


price: Any = Shop().price
#: Untyped, because what is written below is wrong on purpose.
untyped: Any = square
untyped_shown: Any = shown
untyped_timed: Any = timed
call: Any = square(3)
many: Any = square.map([1, 2])
node: Any = doubled()


@pytest.mark.parametrize(
    "of", [call, price(3), many, gather(call, call), square.map(call)], ids=["task", "method", "map", "gather", "later map"]
)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 2}, "; for the whole run write call.run(timeout=2)"),
        ({"workers": 2}, "; for the whole run write call.run(workers=2)"),
        ({"max_workers": 2}, "; for the whole run write call.run(workers=2)"),
        ({"timout": 2}, "; for the whole run write call.run(timeout=2)"),
        ({"prog": True}, "; a call's own options are proc=, progress= and start="),
        ({"n_jobs": -1}, "; for the whole run write call.run(workers=-1)"),
        ({"timeout": 2, "proc": True}, "; for the whole run write call.run(timeout=2)"),
    ],
)
def test_options_of_a_run_where_arguments_go(of: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        of(**options)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(("of", "said"), [(call, "call"), (price(1), "call"), (many, "*calls")])
def test_failures_as_values_where_arguments_go(of: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        of(return_exceptions=True)
    assert str(caught.value).endswith(f"; write gather({said}, return_exceptions=True)")


def test_parameters_of_the_function_come_first() -> None:
    assert timed(1)(timeout=2) == 2
    assert anything()(timeout=2, workers=3) == {"timeout": 2, "workers": 3}


@pytest.mark.parametrize(
    ("use", "parts"),
    [
        (
            lambda: call.run(max_workers=2),
            ["call.run has no option 'max_workers'", "did you mean 'workers'?", "timeout, workers, start, progress"],
        ),
        (lambda: call.run(n_jobs=2), ["'n_jobs'", "did you mean 'workers'?"]),
        (lambda: call.run(time_out=2), ["'time_out'", "did you mean 'timeout'?"]),
        (lambda: call.run(return_exceptions=True), ["write gather(call, return_exceptions=True)"]),
        (lambda: call.future(timeout=2), ["call.future has no option 'timeout'", "It has: callback"]),
        (lambda: gather(call, n_jobs=2), ["gather has no option 'n_jobs'", "call.run(workers=2)", "It has: return_exceptions"]),  # type: ignore[call-overload, unused-ignore]
        (lambda: as_completed([call], workers=2), ["as_completed has no option 'workers'", "It has: timeout"]),  # type: ignore[call-overload, unused-ignore]
        (
            lambda: untyped.stream([1], timeout=1),
            ["square.stream has no option 'timeout'", "@process(timeout=1)", "inflight, ordered, on_error, start"],
        ),
        (lambda: untyped.stream([1], max_workers=1), ["square.stream has no option 'max_workers'", "inflight="]),
        (lambda: untyped.stream([1], order=False), ["did you mean 'ordered'?"]),
        (lambda: price.stream([1], timeout=1), ["price.stream has no option 'timeout'", "@process(timeout=1)"]),
        (lambda: node.stream([1], return_exceptions=True), ["doubled.stream has no option", "on_error='skip'"]),
        (lambda: node(1, timeout=3), ["a push into doubled has no option 'timeout'", "@process(timeout=3)", "It has: start"]),
        (lambda: node(1, workers=3), ["@dataflow(maxworkers=3)"]),
        (lambda: node.future(1, timeout=3), ["doubled.future has no option 'timeout'", "It has: callback"]),
    ],
)
def test_options_that_a_way_to_run_has_not(use: Any, parts: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        use()
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "__wrapped__" not in str(caught.value)
    assert [entry.name for entry in caught.traceback if "tests" not in str(entry.path)] == []


@pytest.mark.parametrize("decorator", [process, thread, task, workflow])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 3}, "; for the whole run write call.run(workers=3)."),
        ({"max_workers": 3}, "; for the whole run write call.run(workers=3)."),
        ({"n_jobs": 3}, "; for the whole run write call.run(workers=3)."),
        ({"progress": True}, "; for the whole run write call.run(progress=True)."),
        ({"return_exceptions": True}, "; write gather(call, return_exceptions=True)."),
    ],
)
def test_options_of_a_run_at_a_decorator(decorator: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        decorator(**options)
    assert said in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_a_decorator_that_has_such_an_option_names_it() -> None:
    with pytest.raises(OptionError, match="did you mean 'maxworkers'"):
        dataflow(max_workers=3)  # type: ignore[call-overload, unused-ignore]


@pytest.mark.parametrize("value", ["yes", "", [], 0.0])
@pytest.mark.parametrize(
    "use",
    [
        lambda value: call.run(progress=value),
        lambda value: call(progress=value),
        lambda value: call(proc=value),
        lambda value: gather(call, return_exceptions=value),
        lambda value: untyped.stream([1], ordered=value),
        lambda value: node.stream([1], ordered=value),
    ],
)
def test_what_is_neither_true_nor_false(use: Any, value: Any) -> None:
    with pytest.raises(OptionError, match="it must be True or False"):
        use(value)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: untyped.map([1], chunk_size=2), "square.map takes no 'chunk_size'; did you mean 'chunksize'?"),
        (lambda: untyped.starmap([(1,)], chunk_size=2), "square.starmap takes no 'chunk_size'; did you mean 'chunksize'?"),
        (lambda: price.map([1], chunk_size=2), "price.map takes no 'chunk_size'; did you mean 'chunksize'?"),
        (lambda: price.starmap([(1,)], batch=2), "price.starmap takes no 'batch'; its one option is chunksize"),
        (lambda: untyped.map([1], timeout=3), "for the whole run write square.map(xs).run(timeout=3)"),
        (lambda: untyped.starmap([(1,)], n_jobs=3), "for the whole run write square.starmap(pairs).run(workers=3)"),
        (lambda: untyped_timed.map([1], timeout=3), "write gather(*[timed(x, timeout=…) for x in xs])"),
        (lambda: untyped_shown.starmap([(1,)], size=3), "write gather(*[shown(*pair, size=…) for pair in pairs])"),
        (lambda: price.starmap([(1,)], return_exceptions=True), "gather(*[price(*pair) for pair in pairs], return_exceptions=True)"),
    ],
)
def test_keywords_of_map_and_starmap(use: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        use()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: untyped(m=2), "got an unexpected keyword argument 'm'; did you mean 'n'?"),
        (lambda: price(m=2), "got an unexpected keyword argument 'm'; did you mean 'n'?"),
        (lambda: untyped_shown(1, siz=2), "got an unexpected keyword argument 'siz'; did you mean 'size'?"),
        (lambda: untyped_shown(1, 2, chunks=2), "got an unexpected keyword argument 'chunks'; did you mean 'chunk'?"),
        (lambda: untyped(1, colour=2), "got an unexpected keyword argument 'colour'"),
        (lambda: untyped(), "missing a required argument: 'n'"),
    ],
)
def test_a_misspelt_argument_is_named_before_a_missing_one(use: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        use()
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize("of", [many, square.starmap([(1,)]), gather(square(1), square(2)), square.map(call), square.starmap(call)])
def test_many_calls_in_one_are_no_calls_to_wait_for(of: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        as_completed(of)
    assert str(caught.value).endswith("; write [square(x) for x in xs], or square.stream(xs, ordered=False)")


def test_one_call_to_wait_for() -> None:
    with pytest.raises(ArgumentError) as caught:
        as_completed(call)
    assert str(caught.value).endswith("not square(…); write as_completed([square(…)])")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("remote", "square(…) builds a call"),
        ("submit", "square(…) builds a call"),
        ("delay", "square(…) builds a call"),
        ("apply_async", "`call(proc=True)` a future at once"),
        ("delayed", "square(…) is already a call"),
        ("s", "square(…) is already a call"),
        ("run", "build a call first: square(…).run(…)"),
        ("imap", "write square.stream(xs)"),
        ("imap_unordered", "square.stream(xs, ordered=False)"),
        ("map_async", "write square.map(xs)(proc=True)"),
    ],
)
def test_methods_of_other_libraries(name: str, said: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(square, name)
    assert said in str(caught.value)
    with pytest.raises(AttributeError) as caught:
        getattr(price, name)
    assert said.replace("square", "price") in str(caught.value)
    with pytest.raises(AttributeError, match=r"doubled\(…\) builds a node"):
        getattr(doubled, name)


@pytest.mark.parametrize("of", [square, price, doubled])
def test_other_attributes_stay_plain(of: Any) -> None:
    with pytest.raises(AttributeError) as caught:
        of.nonsense  # noqa: B018
    assert str(caught.value).endswith("object has no attribute 'nonsense'")
    assert caught.value.name == "nonsense"
    assert not hasattr(of, "__array__")


def test_modules_are_attributes_of_the_package() -> None:
    """Classes with public names are, too."""
    asked = (
        f"import sys, entangle; print(*[getattr(entangle, name).__name__ for name in {sorted(entangle._MODULES)}]); "
        "print(entangle.Session, entangle.Executor, entangle.executor.BrokenExecutorError)"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    modules, classes = done.stdout.splitlines()
    assert (modules.split(), done.stderr) == ([f"entangle.{name}" for name in sorted(entangle._MODULES)], "")
    assert classes == ("<class 'entangle.Session'> <class 'entangle.executor.Executor'> <class 'entangle.executor.BrokenExecutorError'>")
    public = {name for name in dir(entangle) if not name.startswith("__")}
    assert public == {
        *entangle._MODULES,
        *entangle._CLASSES,
        "as_completed",
        "attempt",
        "durable",
        "engine",
        "gather",
        "progress",
        "session",
        "tags",
    }
    # Type checkers learn of each from a line of its own.
    source = Path(ROOT, "entangle", "__init__.py").read_text(encoding="utf-8")
    assert all(f"    from entangle import {name} as {name}\n" in source for name in entangle._MODULES)
    assert all(f" import {name}\n" in source for name in entangle._CLASSES)


_DECORATED = """
import sys, entangle
assert "entangle.process" not in sys.modules
assert not hasattr(entangle, "nonsense")
try:
    @entangle.{way}
    def square(n): return n * n
except TypeError as error:
    print(error)
"""


@pytest.mark.parametrize("way", ["process", "process(timeout=3)", "thread", "workflow", "scheduler(cpus=2)", "ssh(host='one')"])
def test_a_module_as_a_decorator_says_where_the_decorator_is(way: str) -> None:
    name = way.partition("(")[0]
    done = subprocess.run([sys.executable, "-c", _DECORATED.format(way=way)], cwd=ROOT, capture_output=True, text=True, check=False)
    said = f"@{name}: this is the module entangle.{name}, not the decorator; write: from entangle.{name} import {name}\n"
    assert (done.stdout, done.stderr) == (said, "")


_INTERRUPTED = """
import signal, sys, threading, time
import entangle
from entangle.process import process
from entangle.dataflow import dataflow

@process
def slow(n):
    print("begun", flush=True)
    time.sleep(600)

@dataflow
@process
def node(n):
    print("begun", flush=True)
    time.sleep(600)

def value_of(future):
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise

if __name__ == "__main__":
    {use}
"""


@pytest.mark.parametrize(
    "use",
    [
        "slow(1)()",
        "slow(1).run(timeout=500)",
        "value_of(slow(1)(proc=True))",
        "for f in entangle.as_completed([slow(1)]): pass",
        "for f in entangle.as_completed([slow(1)], timeout=500): pass",
        "for y in slow.stream([1]): pass",
        "for y in node().stream([1]): pass",
        "node()(1)",
        "value_of(node().future(1))",
    ],
)
def test_ctrl_c_shows_the_code_of_the_user(use: str, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(_INTERRUPTED.format(use=use))
    options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **options) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "begun\n"
            program.send_signal(signal.SIGINT)
            said = program.communicate(timeout=60)[1]
        finally:
            program.kill()
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    files = {line.split('"')[1] for line in said.splitlines() if line.startswith('  File "')}
    assert files == {str(script)}, said
