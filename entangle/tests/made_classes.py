"""Classes of every kind, defined in a function, with an instance of each.

As a script, `python made_classes.py START`, its classes belong to `__main__`. It prints the values
that a task did not return as it got them. START says how to start workers."""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import sys
from typing import Any, Generic, NamedTuple, NewType, Protocol, TypedDict, TypeVar

from entangle.dataflow import dataflow
from entangle.process import process
from entangle.thread import thread

T = TypeVar("T")


class Same:
    """Equal if the class is the identical one and the attributes are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.told() == other.told()

    def __hash__(self) -> int:
        return 0

    def told(self) -> Any:
        return vars(self)


class Registry(type):
    def __new__(metacls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        made: Any = super().__new__(metacls, name, bases, space)
        made.known_as = name
        return made


class Part(Same):
    names: tuple[str, ...] = ()

    def __init_subclass__(cls, /, name: str) -> None:
        super().__init_subclass__()
        cls.names = (*cls.names, name)


class Old(Same):
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 4

    def told(self) -> Any:
        return self.a


def instances() -> list[Any]:
    """One instance of each kind."""

    class Colour(enum.Enum):
        RED = 1
        CRIMSON = 1

    class Planet(enum.Enum):
        EARTH = (1, 2)
        MARS = (3, 4)

        def __init__(self, mass: int, radius: int) -> None:
            self.mass, self.radius = mass, radius

    class Bits(enum.Flag):
        A = enum.auto()
        B = enum.auto()

    class Text(str, enum.Enum):
        X = "x"

    @dataclasses.dataclass
    class Point:
        x: int
        more: list[int] = dataclasses.field(default_factory=list)

    @dataclasses.dataclass(slots=True)
    class Slots:
        x: int = 3

    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen:
        x: int

    Row = collections.namedtuple("Row", "a b", defaults=[5])

    class Typed(NamedTuple):
        a: int
        b: str = "b"

    class Older(Same):
        __slots__ = ("__hidden", "__weakref__", "a")

        def __init__(self, a: int) -> None:
            self.a, self.__hidden = a, a + 1

        def told(self) -> Any:
            return self.a, self.__hidden

    class Younger(Older):
        __slots__ = ("__dict__", "b")

        def __init__(self) -> None:
            super().__init__(1)
            self.b, self.free = 2, 3

        def told(self) -> Any:
            return super().told(), self.b, vars(self)

    class Bare:
        __slots__ = "only"

        def __init__(self) -> None:
            self.only = 7

        def __eq__(self, other: object) -> bool:
            return type(other) is Bare and other.only == self.only and not hasattr(other, "__dict__")

        __hash__ = None  # type: ignore[assignment]

    class Box(Same, Generic[T]):
        def __init__(self, held: T) -> None:
            self.held = held

    class Acting(Protocol):
        def act(self) -> int: ...

    class Actor(Same, Acting):
        def act(self) -> int:
            return 4

    class Abstract(abc.ABC):
        __slots__ = ()

        @abc.abstractmethod
        def act(self) -> int: ...

    class Concrete(Abstract):
        __slots__ = ("value",)

        def __init__(self) -> None:
            self.value = 9

        def act(self) -> int:
            return self.value

        def __eq__(self, other: object) -> bool:
            return type(other) is Concrete and other.act() == self.act() and isinstance(other, Abstract)

        __hash__ = None  # type: ignore[assignment]

    class WithMeta(Same, metaclass=Registry):
        def told(self) -> Any:
            return self.known_as  # type: ignore[attr-defined]

    class Lazy(Same):
        def __init__(self) -> None:
            self.n = 1

        @functools.cached_property
        def twice(self) -> int:
            return 2 * self.n

        def told(self) -> Any:
            return self.n, self.twice

    class Dispatching(Same):
        @functools.singledispatchmethod
        def of(self, value: Any) -> str:
            return "any"

        @of.register(int)
        def _(self, value: int) -> str:
            return "int"

    class Outer(Same):
        class Inner(Same):
            pass

        def __init__(self) -> None:
            self.inner = self.Inner()

    class Named(Part, name="named"):
        def told(self) -> Any:
            return self.names

    class Mapping(dict[str, int]):
        pass

    class Film(TypedDict):
        title: str

    class Mine(Exception):
        def __eq__(self, other: object) -> bool:
            return type(other) is Mine and other.args == self.args

        __hash__ = None  # type: ignore[assignment]

    made = dataclasses.make_dataclass("made", ["a"])
    held: list[Any] = [Colour.RED, Colour.CRIMSON, Planet.MARS, Bits.A | Bits.B, Text.X, Point(1), Slots(2), Frozen(1), Row(1), Typed(1)]
    held += [
        Older(1),
        Younger(),
        Bare(),
        Box(1),
        Actor(),
        Concrete(),
        WithMeta(),
        Lazy(),
        Dispatching(),
        Outer(),
        Named(),
        Mapping(a=1),
        Film(title="f"),
    ]
    return [*held, Mine("m"), made(1), [Colour.RED, {"p": Point(2)}], Colour, Abstract, Film]


@process
def same(value: Any) -> Any:
    return value


@process
def equal(one: Any, other: Any) -> list[str]:
    """Where two lists that came from two workers differ."""
    return [repr(pair) for pair in zip(one, other, strict=True) if pair[0] != pair[1] or type(pair[0]) is not type(pair[1])]


@process
def told(planet: Any, dispatching: Any) -> Any:
    return planet.mass, planet.radius, dispatching.of(1), dispatching.of("")


@thread
def given(value: Any) -> Any:
    return value


UserId = NewType("UserId", int)


@functools.singledispatch
def kind_of(value: object) -> str:
    return "any"


@kind_of.register
def _(value: int) -> str:
    return "int"


@process
def dispatched(value: UserId) -> str:
    return kind_of(value)


def wrong(start: Any) -> list[str]:
    """What does not return as it was sent."""
    values = instances()

    @process
    def closing_over() -> Any:
        return values, [type(value) for value in values]

    found = []
    there, kinds = closing_over()(start=start)
    for how, came in (("through two tasks", same(same(values))(start=start)), ("from a closure", there)):
        for value, back in zip(values, came, strict=True):
            one_and_only = isinstance(value, (enum.Enum, type))
            if type(back) is not type(value) or back != value or (one_and_only and back is not value):
                found.append(f"{how}: {value!r} as {back!r}")
    found += [f"{kind!r} itself" for value, kind in zip(values, kinds, strict=True) if kind is not type(value)]
    found += [f"between tasks: {pair}" for pair in equal(same(values), same(values))(start=start)]
    (dispatching,) = (value for value in values if type(value).__name__ == "Dispatching")
    dispatching.of(1)  # from Python 3.13 on this caches the instance
    # These are pickled in the caller's own process, for workers that may have another `__main__`.
    pushed = [value for (value,) in dataflow(same)().stream([Part(), Old()], start=start)]
    if pushed != [Part(), Old()] or not isinstance(pushed[1], Old) or same(given(Part()))(start=start) != Part():
        found.append("items of a stream, or values of threads")
    if told(values[2], dispatching)(start=start) != (3, 4, "int", "any"):
        found.append("attributes of an enum member, or a method by the type of its argument")
    if dispatched(UserId(1))(start=start) != "int":
        found.append("singledispatch")
    return found


if __name__ == "__main__":
    print("\n".join(wrong(sys.argv[1])) or "all")
