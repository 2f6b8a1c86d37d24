"""Functions of a script in another version of Python, where they go as the lines in which they were written."""

from __future__ import annotations

import textwrap
from pathlib import Path

from .callers import output_of
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
    """The lines that a script prints. It has `far`, which runs a function in another version of Python; `before` comes first in it."""
    return output_of(folder, before + _HEAD.format(python=far_pythons(same=False)) + textwrap.dedent(script)).splitlines()


# --- Its own name ----------------------------------------------------------------------------------------------------------


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


# --- A file that changes ---------------------------------------------------------------------------------------------------

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
