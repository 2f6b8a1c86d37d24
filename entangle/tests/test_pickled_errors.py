"""An error arrives with its class, arguments and attributes, whatever arguments its `__init__`
takes."""

from __future__ import annotations

import builtins
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import ProcessRetryException, RemoteTraceback
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .places import far_pythons

START = ("fork", "forkserver", "spawn")


class Plan:
    name = "the plan"


class NeedsPlan(Exception):
    """The argument of its `__init__` is not in its `args`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.name)
        self.code = 7


class Wordy(Exception):
    """Its `__init__` adds to the message: called with `args`, it would add twice."""

    def __init__(self, what: str) -> None:
        super().__init__(f"failed: {what}")
        self.what = what


class Named(ValueError):
    def __init__(self, *, name: str) -> None:
        super().__init__()
        self.name = name


class NoFile(FileNotFoundError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(2, "there is no such file", path)
        self.why = why


class Slots(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class Made(Exception):
    def __new__(cls, one: int, two: int) -> Any:
        return super().__new__(cls, one + two)

    def __init__(self, one: int, two: int) -> None:
        self.sum = one + two


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    a: int
    b: int = 2


class Says(Exception):
    """Has a `__reduce__` of its own."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two

    def __reduce__(self) -> Any:
        return _says, (self.args[0], self.two)


def _says(one: int, two: int) -> Says:
    made = Says(one, two)
    made.by_itself = True  # type: ignore[attr-defined]
    return made


class HoldsMuch(Exception):
    def __init__(self, what: str, lock: Any) -> None:
        super().__init__(what, lock)
        self.kept, self.lock = 5, lock


ERRORS: list[tuple[Callable[[], BaseException], Callable[[Any], Any], Any]] = [
    (lambda: NeedsPlan(Plan()), lambda e: (e.args, e.code), (("the plan",), 7)),
    (lambda: Wordy("it"), lambda e: (str(e), e.what), ("failed: it", "it")),
    (lambda: Named(name="n"), lambda e: (e.args, e.name), ((), "n")),
    (lambda: NoFile("f", "w"), lambda e: (e.errno, e.strerror, e.filename, e.why), (2, "there is no such file", "f", "w")),
    (lambda: Slots(3), lambda e: (e.args, e.code), ((3,), 3)),
    (lambda: Made(1, 2), lambda e: (e.args, e.sum), ((3,), 3)),
    (lambda: Frozen(1), lambda e: (e.a, e.b), (1, 2)),
    (lambda: Says(1, 2), lambda e: (e.args, e.two), ((1,), 2)),
    (lambda: json.JSONDecodeError("m", "doc", 1), lambda e: (e.msg, e.doc, e.pos), ("m", "doc", 1)),
    (lambda: subprocess.CalledProcessError(3, "cmd", "out"), lambda e: (e.returncode, e.output), (3, "out")),
    (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), lambda e: (e.object, e.reason), (b"\xff", "bad")),
    (lambda: ImportError("m", name="n", path="p"), lambda e: (e.msg, e.name, e.path), ("m", "n", "p")),
]
IDS = [type(make()).__name__ for make, _, _ in ERRORS]


def fail(make: Callable[[], BaseException]) -> None:
    raise make()


def nested(make: Callable[[], BaseException]) -> Any:
    return process(fail)(make)


def _arrives(call: Callable[[], Any], make: Callable[[], BaseException], told: Callable[[Any], Any], wanted: Any) -> None:
    kind = type(make())
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert told(caught.value) == wanted


@pytest.mark.parametrize(("make", "told", "wanted"), ERRORS, ids=IDS)
def test_however_it_was_run(make: Any, told: Any, wanted: Any) -> None:
    for task in (process(fail), thread(fail), workflow(fail), process(nested)):
        _arrives(task(make), make, told, wanted)
    pushed = dataflow(process(fail))()
    _arrives(lambda: pushed(make), make, told, wanted)
    _arrives(lambda: list(pushed.stream([make])), make, told, wanted)


@pytest.mark.parametrize("start", START)
def test_however_workers_start_and_after_the_last_attempt(start: Any) -> None:
    make, told, wanted = ERRORS[0]
    _arrives(lambda: process(fail)(make)(start=start), make, told, wanted)
    for task in (process(retry=1)(fail), process(lambda make: process(retry=1)(fail)(make))):
        with pytest.raises(ProcessRetryException) as caught:
            task(make)(start=start)
        assert type(caught.value.__cause__) is NeedsPlan
        assert told(caught.value.__cause__) == wanted
        assert isinstance(caught.value.__cause__.__cause__, RemoteTraceback)


@pytest.mark.parametrize("same", [True, False], ids=["this version", "another version"])
def test_from_another_python_after_the_last_attempt(same: bool) -> None:
    there = interpreter(python=far_pythons(same))
    with pytest.raises(ProcessRetryException) as caught:
        there(process(retry=1)(bodies.raise_needs_two))()()
    last: Any = caught.value.__cause__
    assert (type(last), last.args, last.code) == (bodies.NeedsTwo, ("no (7)",), 7)


@pytest.mark.parametrize("start", START)
def test_what_does_not_travel_stays_and_a_note_says_so(start: Any) -> None:
    @process
    def hold() -> None:
        raise HoldsMuch("held", threading.Lock())

    with pytest.raises(HoldsMuch) as caught:
        hold()(start=start)
    assert (caught.value.args, caught.value.kept, hasattr(caught.value, "lock")) == (("held", "<lock>"), 5, False)
    assert any("attribute 'lock' (a lock)" in note and "argument 2 (a lock)" in note for note in vars(caught.value)["__notes__"])


def test_what_it_was_raised_from_is_its_context() -> None:
    @process
    def chained() -> None:
        try:
            raise NeedsPlan(Plan())
        except NeedsPlan as error:
            raise Wordy("it") from error

    with pytest.raises(Wordy) as caught:
        chained()()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "NeedsPlan: the plan" in str(caught.value.__cause__)
    assert type(caught.value.__context__) is NeedsPlan


def test_an_error_that_is_a_value() -> None:
    back = process(lambda: Wordy("it"))()()
    assert (type(back), str(back), back.what) == (Wordy, "failed: it", "it")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups before Python 3.11")
@pytest.mark.parametrize("start", START)
def test_the_members_of_a_group(start: Any) -> None:
    group = vars(builtins)["ExceptionGroup"]

    def several() -> None:
        own = type("Own", (group,), {"derive": lambda self, held: type(self)(self.message, held)})
        raise group("several", [NeedsPlan(Plan()), Wordy("it"), own("inner", [HoldsMuch("held", 1), ValueError("v")])])

    with pytest.raises(group, match="several") as caught:
        process(several)()(start=start)
    plan, wordy, inner = caught.value.exceptions
    assert (type(plan), plan.code, type(wordy), str(wordy)) == (NeedsPlan, 7, Wordy, "failed: it")
    assert [type(one) for one in inner.exceptions] == [HoldsMuch, ValueError]
