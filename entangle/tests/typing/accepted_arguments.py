"""Right arguments of every kind: a value, a call in its place, and both in one call."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar

from typing_extensions import assert_type

from entangle.process import process
from entangle.task import Call, Task
from entangle.thread import thread
from entangle.workflow import workflow

T = TypeVar("T")
Id = NewType("Id", int)


class Shape: ...


class Circle(Shape): ...


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    depth: int


@dataclasses.dataclass
class Record:
    size: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    size: int


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


class Sized(Protocol):
    @property
    def size(self) -> int: ...


@process
def one() -> int:
    return 1


@process
def word() -> str:
    return "a"


@process
def nothing() -> None:
    return None


@process
def anything() -> Any:
    return 1


@process
def circle() -> Circle:
    return Circle()


@process
def point() -> Point:
    return Point(1, 2)


@process
async def later() -> int:
    return 1


@workflow
def flow() -> Call[int]:
    return one()


@process
def body_that_calls() -> Call[int]:
    return one()


@workflow
def countdown(n: int) -> Call[int] | int:
    return countdown(n - 1) if n else 0


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def size(text: str, *, scale: float = 1.0) -> float:
    return len(text) * scale


@process
def defaults(a: int, b: int = 2, *, name: str = "", on: bool = False) -> int:
    return a + b


@thread
def join(*parts: str) -> str:
    return "".join(parts)


@thread
def total(*numbers: int, sep: str = "") -> int:
    return sum(numbers)


@process
def log(path: str, *numbers: int) -> None: ...


@process
def optional(a: int | None = None, b: str | None = None, *, k: float | None = None) -> int:
    return 1


@process
def literal(mode: Literal["a", "b"], n: int) -> int:
    return n


@process
def shape(s: Shape, n: int = 0) -> int:
    return n


@process
def apply(f: Callable[[int], str], n: int) -> str:
    return f(n)


@process
def kind(t: type[Shape], n: int) -> int:
    return n


@process
def colour(c: Colour, n: int) -> int:
    return n


@process
def at(p: Point, n: int) -> int:
    return n


@process
def options(o: Options, n: int) -> int:
    return n


@process
def record(r: Record, n: int) -> int:
    return n


@process
def unhashable(u: Unhashable, n: int) -> int:
    return n


@process
def read(path: str | Path, n: int) -> str:
    return str(path)


@process
def by_id(i: Id, n: int) -> int:
    return n


@process
def sized(x: Sized, n: int) -> int:
    return n


@process
def keywords(**numbers: int) -> int:
    return 1


@process
def more_keywords(a: int, **texts: str) -> int:
    return a


@process
def whatever(a: Any, b: Any = None) -> int:
    return 1


@process
def objects(a: object, b: object = None) -> int:
    return 1


@process
def by_position(a: int, b: int, /, c: int) -> int:
    return c


@process
def eight(a: int, b: str, c: float, d: bytes, e: int, f: str, g: int, h: str) -> int:
    return a


@process
def number(x: float, y: complex = 1j) -> float:
    return x


@process
def first(values: list[T]) -> T:
    return values[0]


@process
def run_task(t: Task[[int, int], int], n: int = 0) -> int:
    return n


def text_of(i: int) -> str:
    return str(i)


def numbers() -> Iterator[int]:
    yield 1


def calls() -> None:
    assert_type(add(1, 2)(), int)
    assert_type(add(one(), 2)(), int)
    assert_type(add(one(), add(one(), one()))(), int)
    assert_type(add(2, one()), Call[int])
    assert_type(size(word())(), float)
    assert_type(join(join("x"), "y", word())(), str)
    add(a=1, b=2)
    add(1, b=2)
    add(a=one(), b=2)
    add(b=2, a=one())
    add(2, b=one())
    add(one(), b=2)
    add(one(), b=one())
    size(word(), scale=2)
    size("a", scale=number(1))
    size(word(), scale=one())
    defaults(one())
    defaults(one(), name=word(), on=True)
    defaults(on=True, a=one())
    defaults(1, one(), name=word())
    defaults(one(), one(), on=False)


def calls_that_give_calls() -> None:
    assert_type(add(flow(), 1)(), int)
    assert_type(add(later(), 1)(), int)
    assert_type(add(countdown(3), later())(), int)
    add(body_that_calls(), flow())
    add(a=flow(), b=later())


def many() -> None:
    ones = [one() for _ in range(3)]
    join()
    join(word())
    join("a", word(), "b", word(), "c", word(), "d", word())
    total(*ones)
    total(1, *ones)
    total(*ones, sep=",")
    total(*ones, sep=word())
    total(*(one() for _ in range(3)))
    total(*numbers())
    log("path", *ones)
    log(word(), 1, one(), 2)
    add(*ones)
    by_position(1, one(), c=2)
    by_position(one(), 1, one())
    by_position(1, 2, c=one())
    eight(1, "a", 1.0, b"", 1, "", 1, "")
    eight(one(), word(), 1.0, b"", one(), word(), 1, "")
    eight(one(), word(), 1.0, b"", one(), word(), one(), word())
    eight(1, "", 1.0, b"", 1, "", one(), "")
    keywords(a=1)
    keywords(a=one(), b=2)
    keywords(**{"a": 1})
    keywords(**{"a": one()})
    more_keywords(one())
    more_keywords(1, x=word())
    more_keywords(one(), x="a", y=word())


def types(something: Any) -> None:
    optional()
    optional(None)
    optional(one())
    optional(None, word())
    optional(one(), None)
    optional(b=word())
    optional(b=None, k=one())
    optional(1, k=None)
    optional(nothing(), nothing())
    literal("a", one())
    literal(mode="b", n=one())
    shape(circle())
    shape(Circle(), one())
    shape(s=Circle(), n=one())
    apply(text_of, one())
    apply(lambda i: str(i), one())
    apply(str, one())
    apply(f=text_of, n=one())
    kind(Circle, one())
    kind(t=Circle, n=one())
    colour(Colour.RED, one())
    colour(c=Colour.RED, n=one())
    at(Point(1, 2), one())
    at(point(), 2)
    at(p=Point(1, 2), n=one())
    options({"depth": 1}, one())
    options(o={"depth": 1}, n=one())
    record(Record(1), one())
    record(r=Record(1), n=one())
    unhashable(Unhashable(), one())
    unhashable(u=Unhashable(), n=one())
    read("a", one())
    read(path=Path("a"), n=one())
    by_id(Id(3), one())
    sized(Frozen(1), one())
    sized(x=Frozen(1), n=one())
    whatever(one(), [one()])
    whatever(b=one(), a=2)
    objects(one(), {"a": [one()]})
    objects(b=one(), a=2)
    number(one(), 1)
    number(x=1, y=one())
    optional(something)
    optional(anything())
    literal(something, one())
    add(something, b=one())
    assert_type(add(something, 1)(), int)


def generic() -> None:
    """A type that the arguments decide."""
    assert_type(first([1])(), int)
    assert_type(first(["a"])(), str)
    run_task(add)
    run_task(add, one())


def with_functions(function: Callable[..., int], functions: Sequence[Callable[[int], str]]) -> Iterable[Call[str]]:
    """Decorated by hand."""
    process(function)(1, one(), k=2)
    process(list)(range(3))
    process(int)("3")
    assert_type(process(int)(word())(), int)
    return [process(function)(one()) for function in functions]
