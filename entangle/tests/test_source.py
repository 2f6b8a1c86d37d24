"""Functions of a script in another version of Python: they are sent as source lines."""

from __future__ import annotations

import textwrap
from pathlib import Path

from .callers import Caller
from .places import far_pythons

_HEAD = """
import functools
import os
import sys
from entangle.errors import UnpicklableError
from entangle.interpreter import interpreter
far = interpreter(python={python!r})
"""


def told(folder: Path, script: str, before: str = "") -> list[str]:
    """The lines that a script prints. In it, `far` runs a function in another version of Python.
    `before` is put at its beginning."""
    caller = Caller(folder, before + _HEAD.format(python=far_pythons(same=False)) + textwrap.dedent(script)).start()
    try:
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert status == 0, f"exit status {status}\n{out}\n{err}"
    return out.splitlines()


# --- Its own name ---------------------------------------------------------------------------------


def test_a_recursion_calls_what_its_name_stands_for(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        def plus_one(f):
            @functools.wraps(f)
            def w(n):
                return f(n) + 1
            return w

        @plus_one
        def depth(n):
            return 0 if n == 0 else depth(n - 1)

        @far
        def use(n):
            return depth(n), depth.__name__

        @far
        def fact(n):
            return 1 if n == 0 else n * fact(n - 1)()

        def local():
            @plus_one
            def down(n):
                return 0 if n == 0 else down(n - 1)

            def bare(n):
                return 0 if n == 0 else bare(n - 1) + 1

            @far
            def both(n):
                return down(n), bare(n)

            return both

        print(depth(3), *use(3)())
        print(fact(3)())
        print(*local()(3)())
        """,
    ) == ["4 4 depth", "6", "4 3"]


# --- A file that changes --------------------------------------------------------------------------

_EDITED = """
class Point:
    x: int = 1

    def both(self):
        return self.x, 0

@far
def same():
    return "same"

@far
def number():
    return 1

@far
def point():
    return Point().both()

twice = far(lambda n: n * 2)

text = open(__file__).read()

def tell(edited):
    with open(__file__, "w") as file:
        file.write(edited)
    for call in (same(), number(), point(), twice(4)):
        try:
            print(call())
        except UnpicklableError as error:
            print("changed" if f"{__file__} has changed since it was loaded" in str(error) else error)
"""


def test_what_is_in_a_file_now_must_be_what_was_loaded(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        _EDITED
        + """
tell(text)
tell(text.replace("return " + "1", "return " + "True").replace("n * " + "2", "n + " + "2").replace("self.x, " + "0", "self.x, " + "5"))
tell(text.replace("x: int = " + "1", "y: int = " + "1"))
tell("")
tell(text)
""",
    ) == ["same", "1", "(1, 0)", "8"] + ["same", "changed", "changed", "changed"] + ["same", "1", "changed", "8"] + ["changed"] * 4 + [
        "same",
        "1",
        "(1, 0)",
        "8",
    ]


def test_lines_that_have_moved_are_found(tmp_path: Path) -> None:
    assert told(tmp_path, _EDITED + "\ntell('# one more\\n' + text)") == ["same", "1", "(1, 0)", "8"]


# --- Values ---------------------------------------------------------------------------------------


def test_attributes_that_were_set_later_go_along(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        import threading

        class Settings:
            path = "/nowhere"
            lock = threading.Lock()
            sizes = [1]

            def where(self):
                return self.path, self.more, self.sizes, type(self.lock).__name__

        Settings.path = "/data/in"
        Settings.more = 7
        Settings.sizes.append(2)
        Settings.twice = lambda self, n: n * 2

        def f():
            return f.k

        f.k = 5

        @far
        def use():
            return Settings().where(), Settings().twice(4), Settings.path, f(), f.k

        print(use()())
        Settings.more = threading.Lock()
        try:
            use()()
        except UnpicklableError as error:
            print("attribute 'more' of class 'Settings'" in str(error), "lock" in str(error))
        del Settings.more
        Settings.path = threading.Lock()
        try:
            use()()
        except UnpicklableError as error:
            print("attribute 'path' of class 'Settings'" in str(error))
        """,
    ) == ["(('/data/in', 7, [1, 2], 'lock'), 8, '/data/in', 5, 5)", "True True", "True"]


def test_classes_come_after_what_they_are_made_of(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        import abc
        import dataclasses
        import enum
        import typing

        T = typing.TypeVar("T")

        def name_of(n):
            return Base.name + str(n)

        class Base(abc.ABC):
            name = "base"

            @abc.abstractmethod
            def m(self): ...

            def child(self):
                return Child().m()

        class Child(Base, typing.Generic[T]):
            label = name_of(1)

            def m(self):
                return super().child.__name__, self.label, [c.__name__ for c in type(self).__mro__[:2]]

        class First:
            def second(self):
                return Second()

        class Second(First):
            def first(self):
                return First()

        class Both:
            kinds = [First, Second]

        class Colour(enum.Enum):
            RED = 1
            BLUE = 2

        class Pair(typing.NamedTuple):
            a: int
            b: Colour = Colour.BLUE

        @dataclasses.dataclass
        class Line:
            pairs: list = dataclasses.field(default_factory=list)
            colour: Colour = Colour.RED

        @far
        def use():
            return Child().child(), Colour(1).name, tuple(Pair(3)), Line([Pair(1)]).pairs[0].b is Colour.BLUE, Line().colour.name

        print(use()())
        print(far(lambda: (type(First().second()).__name__, [kind.__name__ for kind in Both.kinds]))()())
        """,
    ) == ["(('child', 'base1', ['Child', 'Base']), 'RED', (3, <Colour.BLUE: 2>), True, 'RED')", "('Second', ['First', 'Second'])"]


def test_instances_go_and_come_back_as_what_they_are(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        import dataclasses
        import enum
        import threading

        class Colour(enum.Enum):
            RED = 1

        class Point:
            def __init__(self, x):
                self.x = x

            class Inner:
                n = 4

            @far
            def plus(self, other):
                return Point(self.x + other.x)

            @staticmethod
            @far
            def new(n):
                return Point(n)

            @classmethod
            @far
            def made(cls, n):
                return cls(n)

        class Sub(Point):
            def __init__(self, x):
                super().__init__(x)
                self.inner = Point.Inner()

            @far
            def double(self):
                return Sub(self.x * 2)

        class Broken(Exception):
            def __init__(self, n):
                super().__init__(n)
                self.n = n

        default = Point(1)
        missing = object()

        @far
        def use(points, colour=Colour.RED, gone=missing):
            return [default.x, gone is missing, colour is Colour.RED, *(p.x for p in points)], points[-1], colour, Point

        @far
        def fail(n):
            raise Broken(n)

        numbers, point, colour, kind = use([Point(5), Sub(6)])()
        print(numbers, type(point) is Sub, type(point.inner) is Point.Inner, colour is Colour.RED, kind is Point)
        print(Point(1).plus(Sub(2))().x, type(Point.new(3)()) is Point, type(Sub.made(4)()) is Sub, Sub(4).double()().x)
        try:
            fail(3)()
        except Broken as error:
            print("broken", error.n)
        try:
            use(points=[Point(1), Point(threading.Lock())])()
        except UnpicklableError as error:
            print(all(part in str(error) for part in ("argument 'points' of task 'use'", "lock at [1].x", "has Python", "here is")))
        """,
    ) == [
        "[1, True, True, 5, 6] True True True True",
        "3 True True 8",
        "broken 3",
        "True",
    ]


def test_local_classes_use_what_is_around_them(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        def around(k, base):
            def helper(n):
                return n + k

            class Local(base):
                def m(self, n):
                    return helper(n) * k, Local.__name__

            class Further(Local):
                def m(self, n):
                    return super().m(n + 1)

            @far
            def use():
                return Local().m(1), Further().m(1), isinstance(Further(), base)

            @far
            def give(value):
                return value

            return use()(), type(give(Further())()) is Further

        class Top:
            pass

        print(around(3, Top))
        """,
    ) == ["(((12, 'Local'), (15, 'Local'), True), True)"]


def test_what_the_file_imports_from_the_future_holds_there(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        import dataclasses

        @dataclasses.dataclass
        class Node:
            value: int
            next: Node | None = None

        @far
        def use():
            def inner(x: NoSuchName) -> NorThis:
                return x.next.value
            return inner(Node(1, Node(2)))

        print(use()())
        """,
        before="from __future__ import annotations\n",
    ) == ["2"]


def test_names_with_underscores_go_along(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        __version__ = "1.2"

        @far
        def use():
            return __version__, os.path.basename(__file__), __name__, __package__

        print(use()())
        """,
    ) == ["('1.2', 'script.py', '__main__', None)"]


def test_what_has_no_class_statement_is_told(tmp_path: Path) -> None:
    assert told(
        tmp_path,
        """
        @functools.lru_cache(maxsize=None)
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        Made = type("Made", (), {})

        @far
        def use(n):
            return fib(n), fib.cache_info().hits > 0

        print(use(30)())
        try:
            use(Made())()
        except UnpicklableError as error:
            print("'Made'" in str(error), "argument 1" in str(error), "no class statement" in str(error))

        Pair = collections.namedtuple("Pair", "x y", defaults=[5])

        @far
        def swap(pair):
            return Pair(pair.y, pair.x), Pair(1)

        class Other:
            n = 3

        def method(self, k):
            return self.n + k

        print(*swap(Pair(1, 2))(), type(swap(Pair(1, 2))()[0]) is Pair, far(types.MethodType(method, Other()))(4)())

        found = {}

        def register(kind):
            found[kind.__name__] = kind
            return kind

        @register
        class Registered:
            pass

        try:
            far(lambda: Registered())()()
        except UnpicklableError as error:
            print("'Registered'" in str(error), "'found'" in str(error))
        """,
        before="import collections\nimport types\n",
    ) == ["(832040, True)", "True True True", "Pair(x=2, y=1) Pair(x=1, y=5) True 7", "True True"]
