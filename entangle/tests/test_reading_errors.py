"""What a user reads of an error: which call failed, with which arguments, and a traceback of the
user's own code."""

from __future__ import annotations

import enum
import functools
import mmap
import os
import re
import subprocess
import sys
import textwrap
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from entangle._shared import module_lookup
from entangle.dataflow import dataflow
from entangle.errors import (
    ArgumentError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    ThreadTimeoutException,
    UnpicklableError,
)
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from .evidence import notes_of, text_of
from .ways import needed


def boom(number: Any, *more: Any, **named: Any) -> Any:
    if number == 777:
        raise ValueError("bad")
    return number


async def later(number: Any) -> Any:
    raise ValueError("bad")


def failed(run: Callable[[], Any], kind: type[BaseException] = ValueError) -> BaseException:
    with pytest.raises(kind) as caught:
        run()
    assert len(notes_of(caught.value)) < 1000
    return caught.value


CARRIERS = [
    process,
    thread,
    workflow,
    process(fresh=True),
    process(timeout=60),
    process(retry=1, on=KeyError),
    lambda function: scheduler(cpus=1)(process(function)),
    lambda function: thread(timeout=60)(function),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("body", [boom, later])
def test_the_call_that_failed_is_named_with_its_arguments(carrier: Any, body: Any) -> None:
    task = carrier(body)
    error = failed(process(boom)(1, task(777), 3))
    assert f"call: {body.__name__}(777)" in notes_of(error)
    assert f"call path: boom(1, {body.__name__}(…), 3) → {body.__name__}\n" in notes_of(error)


def test_the_path_of_calls_has_their_arguments_and_their_names() -> None:
    secret = "hunter2-hunter2"

    def login(number: Any, password: str, rows: Any) -> Any:
        return number

    task = process(boom)
    inner = task(777, [1, 2], key="x" * 500).named("fold 3")
    call = process(login)(task(task(1), inner, "text", unit="m"), secret, list(range(1000)))
    (path,) = [note for note in notes_of(failed(call)).splitlines() if note.startswith("call path: ")]
    assert path == "call path: login(boom(…), ***, [0, 1, 2, 3, …]) → boom(boom(…), fold 3, 'text', unit='m') → fold 3"
    assert secret not in notes_of(failed(call))
    outer = task(0, call).named("all of it")
    assert f"call path: all of it: boom(0, login(…)) → {path[11:]}" in notes_of(failed(outer))


def test_a_path_of_many_calls_and_of_many_arguments_is_told_in_short() -> None:
    task = process(boom)
    call = task(777)
    for number in range(60):
        call = task(number, call, "x" * 100, *range(1000))
    (path,) = [note for note in notes_of(failed(call)).splitlines() if note.startswith("call path: ")]
    assert path.startswith("call path: boom(59, boom(…")
    assert "more … → " in path
    assert path.endswith(" → boom")
    assert len(path) < 900


class Unreadable:
    """Raises whatever it is asked."""

    def __repr__(self) -> str:
        raise RuntimeError("not to be asked")

    __str__ = __format__ = __repr__  # type: ignore[assignment]


def test_a_path_runs_no_code_of_an_argument() -> None:
    error = failed(process(boom)(Unreadable(), process(boom)(777)))
    assert "call path: boom(<Unreadable>, boom(…)) → boom\n" in notes_of(error)


@pytest.mark.parametrize("decorator", [process, thread, workflow])
def test_wrong_arguments_show_no_default_that_is_a_secret_or_long(decorator: Any) -> None:
    def login(user: Any, password: Any = "hunter2-hunter2", rows: Any = [1] * 1000, *, what: Any = Unreadable(), unit: str = "m") -> None:  # noqa: B008
        pass

    calls: tuple[Callable[[], Any], ...] = (lambda: decorator(login)(), lambda: decorator(login)(1, x=2))
    for call in calls:
        with pytest.raises(ArgumentError) as caught:
            call()
        told = str(caught.value)
        assert "password: 'Any' = ***, rows: 'Any' = [1, 1, 1, 1, …], *, what: 'Any' = <Unreadable>, unit: 'str' = 'm')" in told


def test_of_a_thousand_siblings_one_is_named() -> None:
    task = process(boom)
    error = failed(process(boom)(0, *[task(number) for number in range(1000)]))
    assert "call: boom(777)" in notes_of(error)
    # The call itself may take a thousand values, too: it is abbreviated.
    error = failed(process(boom)(777, *[task(number) for number in range(700)]))
    assert "call: boom(777, 0, 1, 2," in notes_of(error)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_the_call_is_named_by_workers_that_were_not_forked(start: Any) -> None:
    error = failed(lambda: process(boom)(process(boom)(1), process(boom)(777, unit="m"))(start=start))
    assert "call: boom(777, unit='m')" in notes_of(error)


def test_computed_arguments_are_told_by_their_values() -> None:
    number = process(int)("777")
    items: Any = process(list)(range(20_000))
    error = failed(process(boom)(number, [number, 2], items, key=number))
    assert "call: boom(777, [777, 2], [0, 1, 2, 3, …], key=777)" in notes_of(error)


def test_what_has_no_short_text_is_told_by_its_type_and_where_it_comes_from() -> None:
    def load() -> Any:
        return enum.Enum("Colour", "RED").RED.__class__  # type: ignore[attr-defined]

    error = failed(lambda: process(boom)(777, process(load)(), object(), self=threading.Event())(start="fork"))
    assert "<EnumType Colour> from load" in notes_of(error) or "<EnumMeta Colour> from load" in notes_of(error)
    assert "<object>" in notes_of(error)
    assert "self=<Event>" in notes_of(error)


def test_a_method_is_told_without_its_object() -> None:
    class Model:
        def __init__(self) -> None:
            self.weights = [1.0] * 100_000

        def __repr__(self) -> str:
            raise AssertionError("asked for its text")

        @process
        def fit(self, rate: float, *, steps: int = 3) -> Any:
            raise ValueError("bad")

    error = failed(Model().fit(0.5, steps=4))
    assert "call: fit(<Model>, 0.5, steps=4)" in notes_of(error)


def test_secrets_are_masked() -> None:
    def login(user: str, password: str, *token: str, **more: Any) -> NoReturn:
        raise ValueError("refused")

    def get_token() -> str:
        return "computed-and-secret"

    call = process(login)(
        "ann", "hunter2", "t1-secret", process(get_token)(), api_key="k3-secret", told={"secret": "d4-secret"}, url="http://u:p5-secret@h/"
    )
    error = failed(call)
    told = notes_of(error)
    assert "call: login('ann', ***, ***" in told
    assert "secret@" not in told
    for secret in ("hunter2", "t1-secret", "computed", "k3-secret", "d4-secret", "p5-secret"):
        assert secret not in told
    error = failed(
        process(login)("ann", told="see ghp_" + "a1B2" * 9 + " or -----BEGIN RSA PRIVATE KEY-----\n" + "MIIE" * 500, password="")
    )
    assert "a1B2" not in notes_of(error)
    assert "MIIE" not in notes_of(error)


def test_arguments_are_told_without_running_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a class does when its instance is inspected, compared or converted to a string, the
    task's own error arrives."""
    monkeypatch.setenv("ENTANGLE_RECORD", "0")  # recording the arguments would pickle them
    asked: list[str] = []
    failing = threading.Event()

    def ask(what: str) -> None:
        if failing.is_set():
            asked.append(what)
            raise RuntimeError(what)

    class Meta(type):
        def __eq__(cls, other: object) -> bool:
            ask("equals")
            return cls is other

        def __hash__(cls) -> int:
            ask("hash")
            return 1

        def __getattribute__(cls, name: str) -> Any:
            ask(f"class {name}")
            return super().__getattribute__(name)

    class Touchy(metaclass=Meta):
        def __repr__(self) -> str:
            ask("repr")
            return ""

        def __getattribute__(self, name: str) -> Any:
            ask(name)
            return super().__getattribute__(name)

    class Words(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            ask("items")
            return super().items()

        def __iter__(self) -> Any:
            ask("iter")
            return super().__iter__()

        def __len__(self) -> int:
            ask("len")
            return super().__len__()

    def fail(*args: Any) -> NoReturn:
        failing.set()
        raise ValueError("bad")

    try:
        thread(fail)(Touchy(), Words(a=1), [Touchy()], {1: Touchy()}, "x" * 10**7, 10**5000, b"y" * 10**6, list(range(10**6)))()
    except ValueError as error:
        told, seen = notes_of(error), list(asked)
    failing.clear()
    assert seen == []
    assert "call: fail(<Touchy>, <Words>, [<Touchy>], {1: <Touchy>}, 'xxxx" in told
    assert len(told) < 1000


def test_arrays_and_tables_are_told_by_their_shape() -> None:
    numpy = needed("numpy")
    error = failed(thread(boom)(777, numpy.zeros((3, 2)), numpy.float64(1.5)))
    assert "call: boom(777, <ndarray float64 (3, 2)>, 1.5)" in notes_of(error)
    array = process(numpy.zeros)((1000, 20))
    assert "<ndarray float64 (1000, 20)> from zeros" in notes_of(failed(process(boom)(777, array)))


def test_well_known_values_are_told_as_people_write_them() -> None:
    import datetime
    import decimal

    class Colour(enum.Enum):
        RED = 1

    error = failed(thread(boom)(777, Colour.RED, Path("/tmp/x"), datetime.date(2026, 1, 2), decimal.Decimal("1.50"), print))
    told = notes_of(error)
    assert "Colour.RED, PosixPath('/tmp/x'), datetime.date(2026, 1, 2), Decimal('1.50'), <builtin_function_or_method print>" in told


def test_what_a_body_did_to_its_arguments_is_not_told() -> None:
    def spoil(items: list[int]) -> NoReturn:
        items.clear()
        raise ValueError("bad")

    for carrier in (process, thread):
        assert "call: spoil([1, 2, 3])" in notes_of(failed(carrier(spoil)([1, 2, 3])))


def test_a_killed_process_is_told_with_its_arguments() -> None:
    def die(*args: Any) -> None:
        os._exit(3)

    def three() -> int:
        return 3

    error = failed(process(die)(1, process(three)(), [process(three)(), "x"]), ProcessTerminatedException)
    # Values that did not leave the dead process are shown as the calls that made them.
    assert re.search(r"call: die\(1, (3|three\(\)), \[(3|three\(\)), 'x'\]\)", notes_of(error))
    error = failed(process(retry=1)(die)(1), ProcessRetryException)
    assert "call: die(1)" in notes_of(error)
    assert "call: die(1)" in notes_of(error.__cause__ or error)


def test_a_deadline_is_told_with_the_arguments() -> None:
    def sleep(seconds: float, what: str) -> None:
        threading.Event().wait(seconds)

    error = failed(process(timeout=0.1)(sleep)(30, "p"), ProcessTimeoutException)
    assert "call: sleep(30, 'p')" in notes_of(error)
    over = threading.Event()

    def stay(seconds: float, what: str) -> None:
        over.wait(seconds)

    error = failed(thread(timeout=0.1)(stay)(30, "t"), ThreadTimeoutException)
    over.set()
    assert "call: stay(30, 't')" in notes_of(error)
    error = failed(process(wait=0.1)(boom)(1, process(sleep)(30, "w")), ProcessTimeoutException)
    assert "call: boom(1, sleep(30, 'w'))" in notes_of(error)


def test_attempts_that_are_used_up_are_told_with_the_arguments() -> None:
    for carrier in (process(retry=20), thread(retry=20)):
        error = failed(carrier(boom)(777, key=[1]), ProcessRetryException)
        assert "call: boom(777, key=[1])" in notes_of(error)
        assert "call: boom(777, key=[1])" in notes_of(error.__cause__ or error)
        assert "attempt 1: ValueError: bad" in notes_of(error)


def test_a_value_that_cannot_travel_is_told_with_its_call() -> None:
    def lock(number: int) -> Any:
        return threading.Lock()

    error = failed(process(lock)(5), UnpicklableError)
    assert "call: lock(5)" in notes_of(error)


def test_runs_in_runs_tell_the_call_that_failed_and_those_around_it() -> None:
    def deeper(depth: int) -> Any:
        return process(deeper)(depth - 1)() if depth else process(boom)(777)()

    error = failed(process(deeper)(2))
    told = notes_of(error).splitlines()
    assert [line for line in told if line.startswith("call: ")] == [
        "call: boom(777)",
        "call: deeper(0)",
        "call: deeper(1)",
        "call: deeper(2)",
    ]

    def with_a_long_name_that_somebody_has_chosen_for_it(depth: int, text: str = "x" * 200) -> Any:
        task = thread(with_a_long_name_that_somebody_has_chosen_for_it)
        return task(depth - 1, "y" * 200)() if depth else boom(777)

    error = failed(thread(with_a_long_name_that_somebody_has_chosen_for_it)(12))
    assert "it(0, 'yyyy" in notes_of(error)
    assert "it(12)" in notes_of(error)


def test_items_of_a_dataflow_are_told() -> None:
    for executor in ("thread", "process"):
        flow = dataflow(boom)(dataflow(executor=executor)(later)())
        assert "call: later({'a': 1})" in notes_of(failed(functools.partial(flow, {"a": 1})))
        assert "call: later(0)" in notes_of(failed(functools.partial(list, flow.stream(range(30)))))
    seen: list[str] = []
    flow = dataflow(executor="process")(boom)()
    assert len(list(flow.stream(range(770, 780), on_error=lambda node, value, error: seen.append(notes_of(error))))) == 9
    assert "call: boom(777)" in seen[0]

    def die(item: int) -> int:
        os._exit(3)

    flow = dataflow(executor="process")(die)()
    assert "call: die(5)" in notes_of(failed(lambda: flow(5), ProcessTerminatedException))


def test_calls_to_other_places_are_told() -> None:
    error = failed(process(boom)(interpreter(process(boom))(process(int)("777"), password="no")))
    told = notes_of(error)
    assert told.count("call: ") == told.count("call: boom(777, password=***)") == 1
    assert our_frames("".join(traceback.format_exception(error))) == []


# Tracebacks ---------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, logging, math, sys, traceback
from entangle.dataflow import dataflow
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

class Mine(Exception):
    pass

def boom(number):
    raise ValueError("bad")

def around(number):
    return process(boom)(number)()

def translated(number):
    try:
        process(boom)(number)()
    except ValueError as error:
        raise Mine("translated") from error

def meanwhile(number):
    try:
        process(boom)(number)()
    except ValueError:
        raise Mine("meanwhile")

def grouped(number):
    errors = []
    for task in (process(boom), thread(boom)):
        try:
            task(number)()
        except ValueError as error:
            errors.append(error)
    raise ExceptionGroup("some", errors)

async def awaited(number):
    await process(boom)(number)

async def streamed():
    async for _ in dataflow(boom)().stream([1]):
        pass

def asynchronous(number):
    asyncio.run(awaited(number))

async def coroutine(number):
    raise ValueError("bad")

ways = {
    "process": lambda: process(boom)(1)(),
    "thread": lambda: thread(boom)(1)(),
    "workflow": lambda: workflow(lambda: process(boom)(1))()(),
    "nested": lambda: process(around)(1)(),
    "nested_in_thread": lambda: thread(around)(1)(),
    "retry": lambda: process(retry=1)(boom)(1)(),
    "retry_in_thread": lambda: thread(retry=1)(boom)(1)(),
    "coroutine": lambda: process(coroutine)(1)(),
    "coroutine_in_thread": lambda: thread(coroutine)(1)(),
    "translated": lambda: thread(translated)(1)(),
    "translated_here": lambda: translated(1),
    "meanwhile": lambda: thread(meanwhile)(1)(),
    "awaited": lambda: asyncio.run(awaited(1)),
    "awaited_in_thread": lambda: thread(asynchronous)(1)(),
    "future": lambda: process(boom)(1).future().result(),
    "running": lambda: process(boom)(1)(proc=True).result(),
    "entangle": lambda: thread(boom)(1).future().entangle(),
    "push": lambda: dataflow(boom)()(1),
    "push_process": lambda: dataflow(executor="process")(boom)()(1),
    "stream": lambda: list(dataflow(boom)().stream([1])),
    "async_stream": lambda: asyncio.run(streamed()),
    "python": lambda: process(math.sqrt)(-1)(),
    "python_in_thread": lambda: thread(math.sqrt)(-1)(),
    "lambda": lambda: dataflow(lambda x: x)(lambda x: boom(x))(1),
}
if sys.version_info >= (3, 11):
    ways["grouped"] = lambda: thread(grouped)(1)()
    ways["grouped_here"] = lambda: grouped(1)

if __name__ == "__main__":
    for name, way in ways.items():
        print("##", name)
        try:
            way()
        except Exception as error:
            print("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            print("-- logged")
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            logging.exception("logged")
    print("## uncaught", flush=True)
    process(boom)(2)()
"""


def run_program(tmp_path: Path, text: str, full: bool = False) -> str:
    """The output of a program that ends with an error, stderr included."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "ENTANGLE_TRACEBACK"}
    if full:
        environment["ENTANGLE_TRACEBACK"] = "full"
    ended = subprocess.run(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, env=environment, check=False
    )
    assert ended.returncode == 1, ended.stdout
    return ended.stdout


def our_frames(text: str) -> list[str]:
    """The lines of a traceback that show entangle's own code."""
    tests = os.path.dirname(__file__)
    ours = os.path.dirname(tests) + os.sep
    return [line for line in text.splitlines() if line.lstrip(" |").startswith(f'File "{ours}') and tests not in line]


def test_tracebacks_show_the_program_and_not_us(tmp_path: Path) -> None:
    told = run_program(tmp_path, PROGRAM)
    program = tmp_path / "program.py"
    parts = told.split("## ")[1:]
    assert parts[-1].startswith("uncaught")
    for part in parts:
        name = part.split()[0]
        assert our_frames(part) == [], part
        assert f'File "{program}"' in part, name
        if "python" not in name:
            assert "in boom" in part or "in coroutine" in part, part
        assert "concurrent/futures" not in part, part
        if "await" not in name and "async" not in name:
            assert "asyncio" not in part.replace("asyncio.run(", ""), part
    assert "ENTANGLE" not in told


def test_all_of_a_traceback_where_that_is_asked_for(tmp_path: Path) -> None:
    told = run_program(tmp_path, PROGRAM, full=True)
    parts = told.split("## ")[1:]
    assert parts[-1].startswith("uncaught")
    for part in parts:
        assert len(our_frames(part)) > 3, part


def test_a_fault_of_ours_is_shown_with_our_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system whose memory maps behave differently."""
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: None)
    with pytest.raises(TypeError) as caught:
        process(boom)(1)()
    assert len(our_frames("".join(traceback.format_exception(caught.value)))) > 2


#: Untyped: a type checker would report the mistakes.
any_of: Any = types.SimpleNamespace(
    process=process,
    thread=thread,
    scheduler=scheduler,
    workflow=workflow,
    interpreter=interpreter,
    dataflow=dataflow,
    door=sys.modules["entangle.process"],
)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda: any_of.process(timout=3), OptionError),
        (lambda: any_of.process(timeout=-3)(boom), OptionError),
        (lambda: any_of.process(3), OptionError),
        (lambda: any_of.thread(retry="x")(boom), OptionError),
        (lambda: any_of.scheduler(cpus=0)(boom), OptionError),
        (lambda: any_of.workflow(graph=3), OptionError),
        (lambda: any_of.interpreter(python="/nowhere/python")(boom), OptionError),
        (lambda: any_of.dataflow(executor="x")(boom), OptionError),
        (lambda: any_of.process(later)(1, 2), ArgumentError),
        (lambda: any_of.dataflow(boom)(3), ArgumentError),
        (lambda: any_of.dataflow(boom)()(1, 2), ArgumentError),
        (lambda: any_of.dataflow(boom)().stream(3), ArgumentError),
        (lambda: any_of.process(boom)(1)(start="frok"), OptionError),
        (lambda: any_of.process(later)(1)(2), ArgumentError),
        (lambda: bool(any_of.process(boom)(1)), TypeError),
        (lambda: list(any_of.process(boom)(1)), TypeError),
        (lambda: setattr(any_of.process(boom)(1), "x", 1), AttributeError),
        (lambda: setattr(any_of.process(boom), "x", 1), AttributeError),
        (lambda: any_of.door(boom), OptionError),
    ],
)
def test_a_mistake_is_shown_on_the_line_that_makes_it(wrong: Callable[[], Any], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        wrong()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames] == [__file__, __file__]
    assert "lambda: " in (frames[-1].line or "")


def test_a_debugger_lands_in_the_users_code() -> None:
    for task, function in ((process(boom), "test_a_debugger_lands_in_the_users_code"), (thread(boom), "boom")):
        try:
            task(777)()
        except ValueError as error:
            at: Any = error.__traceback__
        while at.tb_next is not None:
            at = at.tb_next
        assert at.tb_frame.f_code.co_name == function
        del at


def test_an_interrupted_run_shows_the_line_that_called(tmp_path: Path) -> None:
    program = """
        import os, signal, threading, time
        from entangle.process import process

        def interrupt(path):
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(30)

        if __name__ == "__main__":
            try:
                process(interrupt)(1)()
            except KeyboardInterrupt:
                import traceback
                traceback.print_exc()
                raise SystemExit(1)
    """
    told = run_program(tmp_path, program)
    assert "process(interrupt)(1)()" in told
    assert our_frames(told) == [], told


def test_frames_of_other_libraries_stay() -> None:
    import json

    for carrier in (process, thread):
        with pytest.raises(ValueError) as caught:
            carrier(json.loads)("{")()
        assert "in raw_decode" in "".join(traceback.format_exception(caught.value))


def test_callbacks_of_a_future_get_an_error_without_our_frames() -> None:
    seen: list[BaseException | None] = []
    future = thread(boom)(777)(proc=True)
    future.add_done_callback(lambda done: seen.append(done.exception()))
    with pytest.raises(ValueError):
        future.entangle()
    assert seen[0] is not None
    assert our_frames("".join(traceback.format_exception(seen[0]))) == []
    assert "in boom" in text_of(seen[0])


# Values that cannot be unpickled ------------------------------------------------------------------


class Bad:
    def __init__(self) -> None:
        self.v = 1

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("no such state")


class Slotted:
    __slots__ = ("parts",)

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)


class Model:
    def __init__(self, *parts: Any) -> None:
        self.inner = Slotted(*parts)


class OnlyThere:
    """Can be unpickled only in the process that made it."""

    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


def only_in(pid: int) -> OnlyThere:
    if os.getpid() != pid:
        raise KeyError("only there")
    return OnlyThere()


def give_bad() -> Any:
    return {"model": Model(1, {"k": Bad()}), "z": [1] * 10}


def give_only_there(*_: Any) -> Any:
    return [1, OnlyThere()]


def nothing(*_: Any, **__: Any) -> None:
    pass


def test_a_value_that_cannot_be_made_in_the_caller_is_named() -> None:
    error = failed(process(give_bad)(), UnpicklableError)
    assert "the value of task 'give_bad' cannot be unpickled in this process" in str(error)
    assert "Bad at ['model'].inner.parts[1]['k'] raises RuntimeError: no such state" in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    assert "call: give_bad()" in notes_of(error)
    error = failed(dataflow(executor="process")(give_only_there)().future(1).result, UnpicklableError)
    assert "the value of task 'give_only_there'" in str(error)
    assert "only_in at [1] raises KeyError" in str(error)


def test_a_value_that_cannot_be_made_in_a_consumer_is_named() -> None:
    bad = process(give_bad)()
    error = failed(process(nothing)(process(nothing)(bad), process(nothing)(bad)), UnpicklableError)
    assert "the value of task 'give_bad' cannot be unpickled in the process of task 'nothing'" in str(error)
    assert "Bad at ['model'].inner.parts[1]['k']" in str(error)
    assert "call: nothing(give_bad())" in notes_of(error)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_an_argument_that_cannot_be_made_in_a_worker_is_named(start: Any) -> None:
    call = process(nothing)(process(nothing)(1), [2], key={"a": Model(OnlyThere())})
    error = failed(lambda: call(start=start), UnpicklableError)
    assert "argument 'key' of nothing(nothing(1), [2], key={'a': <Model>}) cannot be unpickled" in str(error)
    assert "only_in at ['a'].inner.parts[0] raises KeyError: 'only there'" in str(error)
    assert "in only_in" in str(error.__cause__)


def test_what_cannot_be_made_in_another_place_is_named() -> None:
    error = failed(interpreter(nothing)(1, {"a": OnlyThere()}), UnpicklableError)
    assert "argument 2 of task 'nothing' cannot be unpickled there: " in str(error)
    assert "at ['a'] raises KeyError: 'only there'" in str(error)
    error = failed(interpreter(give_only_there)(), UnpicklableError)
    assert "the value of task 'give_only_there'" in str(error)
    assert "at [1] raises KeyError: 'only there'" in str(error)


def test_a_module_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of a module that the worker has and the caller lacks."""

    def give() -> Any:
        import sys
        import types

        module = types.ModuleType("only_in_the_worker")
        exec("class Thing: pass", vars(module))
        vars(module)["Thing"].__module__ = "only_in_the_worker"
        sys.modules["only_in_the_worker"] = module
        return {"things": (1, vars(module)["Thing"]())}

    # A module that was sent by value before would be sent by value again.
    monkeypatch.setattr(module_lookup, "travelled", set())
    error = failed(process(give)(), UnpicklableError)
    assert "only_in_the_worker.Thing at ['things'][1] raises ModuleNotFoundError" in str(error)
    assert "The module must be there for every process" in str(error)


def test_the_part_of_any_pickle_is_found() -> None:
    import collections
    import pickle

    from entangle._shared.unpickling import failing_part

    class_like = collections.namedtuple("class_like", "a b")
    globals()["class_like"] = class_like
    class_like.__module__ = __name__
    bad = Bad()
    for value, path in (
        ([1, 2, bad], "[2]"),
        ([bad], "[0]"),
        ((1, bad), "[1]"),
        ((1, 2, 3, 4, bad), "[4]"),
        ({"a": 1, "b": bad}, "['b']"),
        ({1: {2: [{3: bad}]}}, "[1][2][0][3]"),
        (collections.OrderedDict(a=1, b=bad), "['b']"),
        (collections.deque([1, bad]), "[1]"),
        (class_like(1, bad), " → argument 2"),
        (ValueError("x", bad), " → argument 2"),
        (bad, ""),
        ([[1], [1], [bad]], "[2][0]"),
    ):
        for protocol in range(2, 6):
            part = failing_part(pickle.dumps(value, protocol))
            assert part is not None, value
            assert "".join(part.steps) == path, (value, protocol, part)
            assert part.kind.endswith("Bad"), (value, protocol, part)
    assert failing_part(pickle.dumps([1])) is None
    assert failing_part(b"nonsense") is None


def test_how_errors_are_told_holds_in_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    def login(user: str, shoesize: int) -> NoReturn:
        raise ValueError("refused")

    monkeypatch.setenv("ENTANGLE_SECRETS", "shoesize")
    error = failed(interpreter(login)("ann", 4711))
    assert "call: login('ann', ***)" in notes_of(error)
    assert "4711" not in notes_of(error)
    assert our_frames(str(error.__cause__)) == []
    monkeypatch.setenv("ENTANGLE_TRACEBACK", "full")
    error = failed(interpreter(login)("ann", 4711))
    assert "in work" in str(error.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 prints no notes")
def test_the_documentation_shows_what_is_printed(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "faq.md"
    if not docs.exists():
        pytest.skip("the documentation is in a checkout only")
    page = docs.read_text(encoding="utf-8").partition("## How do I read an error?")[2]
    program = page.partition('```python title="shares.py"\n')[2].partition("```")[0]
    shown = page.partition("```text\n")[2].partition("```")[0]
    told = run_program(tmp_path, program).replace(str(tmp_path / "program.py"), "shares.py")
    told = re.sub(r"host \S+, pid \d+, cpu \d+", "host …, pid …, cpu …", told)
    told = re.sub(r"replay [0-9a-f]{16}", "replay …", told)
    # Newer Pythons underline the failing expression.
    lines = [line for line in told.splitlines() if line.strip(" ~^") or not line]
    assert lines == shown.splitlines()


def test_a_wrong_option_is_told_in_short_and_without_secrets() -> None:
    from entangle.docker import docker

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    for wrong, told in (
        (lambda: any_of.process(timeout=Broken())(boom), "timeout=<Broken>"),
        (lambda: any_of.process(retry=10**5000)(boom), "retry=<int of"),
        (lambda: any_of.process(foo=3), "no option 'foo'. It has: timeout"),
        (lambda: docker(image="x", env={"API_KEY": "s3cret", "N": None})(boom), "'API_KEY': ***"),  # type: ignore[dict-item]
        (lambda: any_of.scheduler(cpus=[1])(boom), "cpus=[1]"),
        (lambda: any_of.dataflow(boom)(Broken()), "not Broken: <Broken>"),
        (lambda: any_of.process(10**5000), "not int: <int of"),
    ):
        error = failed(wrong, TypeError)
        assert told in str(error)
        assert "s3cret" not in str(error)


def test_a_call_shows_no_secret() -> None:
    def login(user: str, password: str, *token: str) -> None: ...

    call = process(login)("ann", "hunter2", "t1", "t2")
    assert repr(call) == "<call login('ann', ***, ***, ***)>"
    assert repr(process(boom)(10**5000, api_key="x")).endswith("bits>, api_key=***)>")


def test_a_callback_that_fails_is_reported_without_our_frames(caplog: pytest.LogCaptureFixture) -> None:
    def callback(function: Any, value: Any) -> NoReturn:
        raise LookupError("in the callback")

    def skip(node: Any, value: Any, error: BaseException) -> NoReturn:
        raise LookupError("in on_error")

    dataflow(callback=callback)(len)()("x")
    list(dataflow(boom)().stream([777], on_error=skip))
    assert "in the callback" in caplog.text
    assert "in on_error" in caplog.text
    assert our_frames(caplog.text) == []
    list(dataflow(boom)().stream([777], on_error="skip"))
    assert "boom(777)" in caplog.text


def test_an_iteration_over_a_source_shows_the_line_that_asked(tmp_path: Path) -> None:
    from entangle.sources import lines

    with pytest.raises(FileNotFoundError) as caught:
        next(iter(lines(tmp_path / "absent", follow=False)))
    assert our_frames("".join(traceback.format_exception(caught.value))) == []


def test_an_argument_that_cannot_travel_is_told_with_its_call() -> None:
    one, lock = process(nothing)(1), threading.Lock()
    call = process(nothing)([one, one, 3], {"a": one, "lock": lock})
    error = failed(lambda: call(start="forkserver"), UnpicklableError)
    assert "argument 2 of task 'nothing' cannot travel" in str(error)
    assert "call: nothing([nothing(1), nothing(1), 3], {'a': nothing(1), 'lock': <lock>})" in notes_of(error)


class Strange(Exception):
    """An error whose attributes are not what they should be."""

    __notes__: Any = 3

    @property
    def exceptions(self) -> Any:
        raise RuntimeError


def be_strange() -> NoReturn:
    raise Strange("bad")


def test_an_error_that_does_as_it_likes_arrives() -> None:
    for carrier in (thread, workflow):
        with pytest.raises(Strange):
            carrier(be_strange)()()
