"""Writes `entangle/_tasks/task_arguments.pyi`: what type checkers know of the arguments of a task.

    python docs/task_arguments.py       writes it; the tests see that it is fresh

It has an overload for each shape of arguments. The shapes are regular, so a program writes them.
`docs/architecture/typing.md` says why these, and why in this order.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "entangle" / "_tasks" / "task_arguments.pyi"

#: Positional arguments whose types are checked one by one. Beyond these, see `_loose`.
MOST = 6
NAMES = "abcdefg"
REST = "/, *args: Q.args, **kwargs: Q.kwargs"

#: What a parameter takes, and the form of an argument with calls inside it.
LIST = ("list[X]", "ListOf[Given[X]]")
DICT = ("dict[X, Y]", "DictOf[X, Given[Y]]")
SET = ("set[X]", "SetOf[Given[X]]")
TUPLE = ("tuple[X, ...]", "tuple[Given[X], ...]")
PAIR = ("tuple[X, Y]", "tuple[Given[X], Given[Y]]")
TRIPLE = ("tuple[X, Y, Z]", "tuple[Given[X], Given[Y], Given[Z]]")
FLAT = (LIST, DICT, TUPLE, PAIR, TRIPLE, SET)
NESTED = (
    ("list[list[X]]", "ListOf[ListOf[Given[X]] | CallOf[list[X]]]"),
    ("list[tuple[X, Y]]", "ListOf[tuple[Given[X], Given[Y]] | CallOf[tuple[X, Y]]]"),
    ("list[dict[X, Y]]", "ListOf[DictOf[X, Given[Y]] | CallOf[dict[X, Y]]]"),
    ("dict[X, list[Y]]", "DictOf[X, ListOf[Given[Y]] | CallOf[list[Y]]]"),
)
#: How many positional arguments may have one container among them, and which containers.
ONE_CONTAINER = ((1, FLAT), (2, FLAT), (3, (LIST, DICT, TUPLE, PAIR)), (1, NESTED), (2, NESTED))

#: Arguments of any type. If one of them is a call, or may hold calls, `ArgumentsDoNotFit` becomes
#: Any; if none is, it breaks its bound, and mypy names it.
_UNHASHABLE = "Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit"
CALL_COUNTS = f"Hashable[ArgumentsDoNotFit] | {_UNHASHABLE}"
CONTAINER_COUNTS = f"HashableInPlace[ArgumentsDoNotFit] | {_UNHASHABLE}"
NONE_COUNTS = "InPlace[ArgumentsDoNotFit] | ArgumentsDoNotFit"
CHUNKS = "*, chunksize: int | None = None"
CONTAINER = "list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...]"

HEAD = '''\
# Written by docs/task_arguments.py: change it there.
"""What type checkers know of the arguments of a task. There is no such module when programs run.

`docs/architecture/typing.md` says how these overloads work, and what they cannot say.
"""

from collections.abc import AsyncIterable, Coroutine, Iterable, Iterator
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from entangle._tasks import OnError, Values
from entangle._tasks.call import Call, Start

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
V = TypeVar("V")
W = TypeVar("W")
X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")
X_co = TypeVar("X_co", covariant=True)
Y_co = TypeVar("Y_co", covariant=True)
'''

MIDDLE = '''
class NeverFits:
    """The bound of `ArgumentsDoNotFit`: no argument is one."""

ArgumentsDoNotFit = TypeVar("ArgumentsDoNotFit", bound=NeverFits)
Fit_co = TypeVar("Fit_co", covariant=True)

class ArgumentsAreMissing:
    """What a call without arguments gives where the task must have some."""

#: A call that gives the value in the end, and a value or such a call.
CallOf: TypeAlias = Call[X | Call[X] | Coroutine[Any, Any, X]]
Given: TypeAlias = X | CallOf[X]

# Containers as a reader sees them: a list of calls is one of "calls or values".

class ListOf(Protocol[X_co]):
    """A list."""

    def __iter__(self) -> Iterator[X_co]: ...
    def reverse(self) -> None: ...

class SetOf(Protocol[X_co]):
    """A set."""

    def __iter__(self) -> Iterator[X_co]: ...
    def issubset(self, other: Iterable[Any], /) -> bool: ...

class DictOf(Protocol[X_co, Y_co]):
    """A dict."""

    def keys(self) -> Iterable[X_co]: ...
    def values(self) -> Iterable[Y_co]: ...
    def popitem(self) -> tuple[X_co, Y_co]: ...

# Every object is one of these, by a method that all have. The type of that method's value tells
# what counts as a call: Any. `Call` alone says Any of its hash. What cannot be hashed counts, too,
# for it may hold calls.

class Hashable(Protocol[Fit_co]):
    """A value that can be hashed, which does not count, or a call, which counts."""

    def __hash__(self) -> Fit_co: ...  # type: ignore[override]
    def __sizeof__(self) -> int: ...

class HashableInPlace(Protocol[Fit_co]):
    """A value that can be hashed, or a call; neither counts."""

    def __hash__(self) -> int: ...
    @property  # type: ignore[misc]
    def __class__(self) -> Fit_co: ...  # type: ignore[override]

class InPlace(Protocol[Fit_co]):
    """Any value; it does not count."""

    @property  # type: ignore[misc]
    def __class__(self) -> Fit_co: ...  # type: ignore[override]

class Unhashable(Protocol[Fit_co]):
    """A list, a dict, a set, an array: it counts, for it may hold calls."""

    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __getattribute__(self, name: str, /) -> Fit_co: ...

class UnhashableToo(Protocol[Fit_co]):
    """As Unhashable, of classes that do not say ClassVar."""

    @property
    def __hash__(self) -> None: ...  # type: ignore[override]
    def __getattribute__(self, name: str, /) -> Fit_co: ...

# Tasks by what they take: so many positional arguments, and others.
'''

TASK = '''
class TaskArguments(Generic[P, R]):
    """What can be called with arguments, each a value or a call: a task, or one of an instance."""

    def _takes(self, *args: P.args, **kwargs: P.kwargs) -> R: ...'''

FIRST = '''\
        """A call of this task with these arguments, each a value or a call.

        Raises ArgumentError if they do not fit the function.
        """'''

MAP = '''\
        """A call whose value is the list of the values for each item of `xs`.

        With several iterables, the task gets one item of each, until the shortest ends. Each item
        is a node of its own, with its own errors, name, retries and records. An item may be a call.
        `xs` may be a call, too, whose value is iterable: the items are then mapped when it is
        there. `chunksize` is how many items a worker takes at a time, by default as many as seem
        best.

        Raises ArgumentError if `xs` is no iterable, or the items do not fit the function.

            total(square.map(range(10_000)))()
        """'''

STARMAP = '''\
        """A call whose value is the list of the values for each tuple of arguments in `pairs`.

        As `map`, whose items are single arguments.

            power.starmap([(2, 3), (3, 2)])()
        """'''


STREAM = '''\
        """The values for each item of `xs`, as they come, several items at a time.

        `xs` is any iterable; it may be endless, or asynchronous. Each item is one argument.
        `inflight` is the most items under way, from `xs` to the loop; None: as many as keep the
        workers busy. `xs` waits while there are so many. `ordered=False` gives values as they are
        done. `on_error` says what happens to an item with which the task fails: "raise" ends the
        stream with the error; "skip" leaves the item out and logs it; a function of (task, item,
        error) is called, and the item left out. The stream ends with `xs`, or when the loop is
        left.

        Raises ArgumentError where `xs` is no iterable or the task does not take one argument.

            for image in shrink.stream(paths): show(image)
        """'''


def written() -> str:
    """The text of the module."""
    lines = [HEAD]
    for name in NAMES.upper():
        lines += [f'{name} = TypeVar("{name}")', f'{name}_contra = TypeVar("{name}_contra", contravariant=True)']
    lines.append(MIDDLE)
    for count in range(1, MOST + 1):
        types = ", ".join(f"{name}_contra" for name in NAMES[:count].upper())
        taken = ", ".join(f"{name}: {name.upper()}_contra" for name in NAMES[:count])
        lines += [
            f"class Takes{count}(Protocol[{types}, Q, R_co]):",
            f"    def _takes(self, {taken}, {REST}) -> R_co: ...",
            "",
            f"class TakesOnly{count}(Protocol[{types}, R_co]):",
            f"    def _takes(self, {taken}, /) -> R_co: ...",
            "",
        ]
    taken = ", ".join(f"{name}: A_contra" for name in NAMES)
    lines += ["class TakesMany(Protocol[A_contra, R_co]):", f"    def _takes(self, {taken}, /) -> R_co: ...", TASK]
    lines += [*_exact(), *_containers(), *_loose(), *_map(), *_starmap(), *_stream()]
    return "\n".join(lines) + "\n"


def _overload(name: str, parameters: Iterable[str], gives: str, ignored: str = "", text: str = "") -> list[str]:
    """An overload. Its lines may be long: programs read them."""
    ignore = f"  # type: ignore[{ignored}]" if ignored else ""
    return ["    @overload", f"    def {name}({', '.join(parameters)}) -> {gives}:{'' if text else ' ...'}{ignore}", *filter(None, [text])]


def _call(*parameters: str, gives: str = "Call[V]", ignored: str = "", text: str = "") -> list[str]:
    return _overload("__call__", parameters, gives, ignored, text)


def _given(count: int) -> list[str]:
    return [f"{name}: Given[{name.upper()}]" for name in NAMES[:count]]


def _exact() -> list[str]:
    """Values alone; then calls among the first arguments, values after them; then any number of
    calls where all arguments are of one type."""
    lines = _call("self", "/, *args: P.args, **kwargs: P.kwargs", gives="Call[R]", text=FIRST)
    for count in range(1, MOST + 1):
        lines += _call(f"self: Takes{count}[{', '.join(NAMES[:count].upper())}, Q, V]", *_given(count), REST)
    return lines + _call("self: TakesMany[A, V]", "/, *args: Given[A]")


def _containers() -> list[str]:
    """Calls inside one list, tuple, dict or set; inside two; inside each of many."""
    lines = []
    for count, kinds in ONE_CONTAINER:
        for place in range(count):
            for pattern, form in kinds:
                types, given = [*NAMES[:count].upper()], _given(count)
                types[place], given[place] = pattern, f"{NAMES[place]}: {form}"
                lines += _call(f"self: Takes{count}[{', '.join(types)}, Q, V]", *given, REST)
    for pattern, form in (LIST, DICT):
        for second, its_form in (("list[Z]", "ListOf[Given[Z]]"), ("dict[Z, W]", "DictOf[Z, Given[W]]")):
            lines += _call(f"self: Takes2[{pattern}, {second}, Q, V]", f"a: {form}", f"b: {its_form}", REST)
    for pattern, form in (LIST, DICT, TUPLE, PAIR):
        lines += _call(f"self: TakesMany[{pattern}, V]", f"/, *args: {form}")
    return lines


def _loose() -> list[str]:
    """The rest: there is a call somewhere, and everything is accepted."""
    named = f"**kwargs: {CALL_COUNTS}"
    lines = _call("self", "/", gives="Coroutine[Any, Any, ArgumentsAreMissing]", ignored="overload-cannot-match")
    lines += _call("self", f"/, *args: {NONE_COUNTS}", named, gives="Call[R]")
    lines += _call("self", f"/, **kwargs: Call[Any] | {CONTAINER}", gives="Call[R]")
    for without in (2, 1, 0):  # two containers among the first three
        first = [f"{name}: {'Any' if place == without else CONTAINER}" for place, name in enumerate(NAMES[:3])]
        lines += _call("self", *first, "/, *args: Any, **kwargs: Any", gives="Call[R]")
    for count, counts in ((4, CONTAINER_COUNTS), (MOST + 1, CALL_COUNTS)):
        first = [f"{name}: {counts}" for name in NAMES[:count]]
        lines += _call("self", *first, f"/, *args: {counts}", named, gives="Call[R]")
    # Once more, at the end: pyright explains a mistake by the last overload that might fit.
    return lines + _call("self", "/, *args: P.args, **kwargs: P.kwargs", gives="Call[R]", ignored="overload-cannot-match")


def _map() -> list[str]:
    names, lines = ("xs", "ys", "zs", "ws"), []
    for count in range(1, len(names) + 1):
        types = NAMES[:count].upper()
        columns = [f"{name}: Iterable[Given[{kind}]] | Call[Iterable[{kind}]]" for name, kind in zip(names, types, strict=False)]
        for value in ("Coroutine[Any, Any, V]", "V"):
            task = f"self: TakesOnly{count}[{', '.join(types)}, {value}]"
            lines += _overload("map", [task, *columns, "/", CHUNKS], "Call[list[V]]", text="" if lines else MAP)
    columns = [f"{name}: Iterable[Any] | Call[Any]" for name in (*names, "vs")]
    return lines + _overload("map", ["self", *columns, "/", "*more: Iterable[Any] | Call[Any]", CHUNKS[3:]], "Call[list[R]]")


def _starmap() -> list[str]:
    lines: list[str] = []

    def add(count: int, types: str, pair: str, plain: str) -> None:
        pairs = f"pairs: Iterable[tuple[{pair}]] | Call[Iterable[tuple[{plain}]]]"
        for value in ("Coroutine[Any, Any, V]", "V"):
            task = f"self: TakesOnly{count}[{types}, {value}]"
            lines.extend(_overload("starmap", [task, pairs, "/", CHUNKS], "Call[list[V]]", text="" if lines else STARMAP))

    for count in range(1, 5):
        kinds = ", ".join(NAMES[:count].upper())
        add(count, kinds, ", ".join(f"Given[{kind}]" for kind in NAMES[:count].upper()), kinds)
    for count in (2, 3):  # for itertools.product, which gives tuples of any length
        add(count, ", ".join("A" * count), "Given[A], ...", "A, ...")
    longer = " | ".join(["list[Any]", *(f"tuple[{', '.join(['Any'] * count)}]" for count in (5, 6, 7))])
    return lines + _overload("starmap", ["self", f"pairs: Iterable[{longer}] | Call[Iterable[{longer}]]", "/", CHUNKS], "Call[list[R]]")


def _stream() -> list[str]:
    options = "*, inflight: int | None = None, ordered: bool = True, on_error: OnError = 'raise', start: Start | None = None"
    lines: list[str] = []
    for value in ("Coroutine[Any, Any, V]", "Call[V]", "V"):
        parameters = [f"self: TakesOnly1[A, {value}]", "xs: Iterable[Given[A]] | AsyncIterable[Given[A]]", "/", options]
        lines += _overload("stream", parameters, "Values[V]", text="" if lines else STREAM)
    return lines


if __name__ == "__main__":
    TARGET.write_text(written(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(TARGET)], check=True)
