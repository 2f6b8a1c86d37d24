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
