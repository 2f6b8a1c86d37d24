"""`cache=True` returns a remembered value exactly if nothing that the task uses has changed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import CacheKeyError
from entangle.process import process
from entangle.thread import thread

#: The text of a module, a change to it, and the values of its task before and after.
CHANGES = {
    "a helper": ("def h(x): return x\ndef f(x): return h(x)", "def h(x): return x + 1", 1, 2),
    "a helper's helper": ("def g(x): return x\ndef h(x): return g(x)\ndef f(x): return h(x)", "def g(x): return x + 1", 1, 2),
    "a helper that calls itself": ("def h(x): return x and h(x - 1)\ndef f(x): return h(x)", "def h(x): return x and h(x - 1) + 1", 0, 1),
    "a constant": ("N = 1\ndef f(x): return x + N", "N = 2", 2, 3),
    "an item of a list": ("N = [1]\ndef f(x): return x + N[0]", "N[0] = 2", 2, 3),
    "a method": ("class K:\n  def m(self, x): return x\ndef f(x): return K().m(x)", "K.m = lambda self, x: x + 1", 1, 2),
    "a class attribute": ("class K:\n  n = 1\nclass L(K): pass\ndef f(x): return x + L.n", "K.n = 2", 2, 3),
    "a property": ("class K:\n  @property\n  def n(self): return 1\ndef f(x): return K().n", "K.n = property(lambda self: 2)", 1, 2),
    "an object's attribute": ("class K: pass\nk = K()\nk.n = 1\ndef f(x): return x + k.n", "k.n = 2", 2, 3),
    "a bound method's object": (
        "class K:\n  n = 1\n  def m(self, x): return x + self.n\nm = K().m\ndef f(x): return m(x)",
        "m.__self__.n = 2",
        2,
        3,
    ),
    "an enum": ("import enum\nE = enum.Enum('E', {'A': 1})\ndef f(x): return x + E.A.value", "E = enum.Enum('E', {'A': 2})", 2, 3),
    "a default of a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n  n: int = 1\ndef f(x): return x + D().n",
        "@dataclasses.dataclass\nclass D:\n  n: int = 2",
        2,
        3,
    ),
    "a partial": ("import functools\nh = functools.partial(pow, 2)\ndef f(x): return h(x)", "h = functools.partial(pow, 3)", 2, 3),
    "what a decorator wraps": (
        "import functools\ndef deco(f):\n  @functools.wraps(f)\n  def w(x): return f(x)\n  return w\n"
        "@deco\ndef h(x): return x\ndef f(x): return h(x)",
        "@deco\ndef h(x): return x + 1",
        1,
        2,
    ),
    "a function in a dict": ("def h(x): return x\nhs = {'h': h}\ndef f(x): return hs['h'](x)", "hs['h'] = lambda x: x + 1", 1, 2),
    "a helper of an inner function": ("def h(x): return x\ndef f(x): return [h(y) for y in [x]][0]", "def h(x): return x + 1", 1, 2),
    "a helper of a lambda": ("def h(x): return x\nl = lambda x: h(x)\ndef f(x): return l(x)", "def h(x): return x + 1", 1, 2),
    "a task that the body calls": (
        "def t(x): return x\nt = thread(t)\ndef f(x): return t(x)()",
        "def t(x): return x + 1\nt = thread(t)",
        1,
        2,
    ),
    "a builtin's name": ("def f(x): return abs(x)", "def abs(x): return x + 1", 1, 2),
    "another module's helper": ("import OTHER\ndef f(x): return OTHER.h(x)", "OTHER.h = lambda x: x + 1", 1, 2),
    "another module's constant": ("import OTHER\ndef f(x): return OTHER.g(x)", "OTHER.N = 2", 2, 3),
    "what the body imports": ("import OTHER\ndef f(x):\n  from OTHER import h\n  return h(x)", "OTHER.h = lambda x: x + 1", 1, 2),
    "a part of a package": ("import PACKAGE.part\ndef f(x): return PACKAGE.part.h(x)", "PACKAGE.part.h = lambda x: x + 1", 1, 2),
    "what the body imports of a package": (
        "def f(x):\n  import PACKAGE.part as p\n  return p.h(x)",
        "import PACKAGE.part\nPACKAGE.part.h = lambda x: x + 1",
        1,
        2,
    ),
    "a module with the name of one of Python's": ("import cmd_\ndef f(x): return cmd_.h(x)", "cmd_.h = lambda x: x + 1", 1, 2),
    "a text that is a docstring, too": ("def h():\n  'a'\n  return 'a'\ndef f(x): return h()", "def h():\n  'b'\n  return 'b'", "a", "b"),
    "a keyword default": ("def h(x, *, n=1): return x + n\ndef f(x): return h(x)", "def h(x, *, n=2): return x + n", 2, 3),
    "an attribute of a helper": ("def h(x): return x + h.n\nh.n = 1\ndef f(x): return h(x)", "h.n = 2", 2, 3),
    "an attribute of a function that the body reads": ("def h(): pass\nh.n = 1\ndef f(x): return x + h.n", "h.n = 2", 2, 3),
    "a number's type": ("def f(x): return type(h(x)).__name__\ndef h(x): return 1", "def h(x): return 1.0", "int", "float"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes modules from texts, beside other modules of the user. Removes them afterwards."""
    number = sum(map(ord, str(tmp_path)))
    other, package = f"other_{tmp_path.name}{number}", f"package_{tmp_path.name}{number}"
    (tmp_path / f"{other}.py").write_text("N = 1\ndef h(x): return x\ndef g(x): return x + N\n")
    (tmp_path / "cmd_.py").write_text("def h(x): return x\n")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / package / "part.py").write_text("def h(x): return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def make(text: str) -> Any:
        name = f"main_{tmp_path.name}{number}"
        (tmp_path / f"{name}.py").write_text("from entangle.thread import thread\n" + named(text))
        return importlib.import_module(name)

    def named(text: str) -> str:
        return text.replace("OTHER", other).replace("PACKAGE", package)

    make.named = named  # type: ignore[attr-defined]
    yield make
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("change", CHANGES)
def test_a_value_is_not_remembered_when_this_has_changed(change: str, project: Any) -> None:
    text, then, before, after = CHANGES[change]
    module = project(text)
    cached = thread(cache=True)(module.f)
    assert [cached(1)(), cached(1)()] == [before, before]
    exec(project.named(then), vars(module))
    assert cached(1)() == after
    # By another start, workers would import the file, which has not changed.
    assert process(cache=True)(module.f)(1)(start="fork") == after


_SEEDS = """
import os, sys, enum, dataclasses
from entangle.process import process

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    names: frozenset = frozenset(("one", "two", "three"))

SOME = {"a", "b", "c"}

def helper(x):
    return x in {"red", "green", "blue"} or x in SOME

@process(cache=True)
def member(x, more=1, *rest, last=Colour.RED, **others):
    open(sys.argv[1], "a").write("x")
    return helper(x) and Point(1).x

@process
def nested(x):
    return member(x)()

if __name__ == "__main__":
    for start in ("fork", "forkserver", "spawn", "spawn"):
        member("red")(start=start)
        nested("red")(start=start)
    member("red", 1)(), member(x="red")(), member("red", more=1, last=Colour.RED)()
    member("red", a=1, b={"x", "y", "z"})(start="spawn")
    member(a=1, b={"z", "y", "x"}, more=1, x="red")(start="spawn")
    member(Point(2))(start="spawn"), member(Point(2))()
    print(len(open(sys.argv[1]).read()))
"""


def test_one_call_is_one_key_in_every_process(tmp_path: Path) -> None:
    """The hash seed, the way to start workers, and spelled-out default arguments do not matter."""
    script = tmp_path / "script.py"
    script.write_text(_SEEDS)
    ran = subprocess.run([sys.executable, script, tmp_path / "ran"], capture_output=True, text=True, timeout=100)
    assert (ran.stdout, ran.stderr) == ("3\n", "")


def test_comments_positions_and_docstrings_do_not_count(project: Any) -> None:
    module = project("lasts = []\ndef h(x): return x\ndef f(x):\n  lock.ran.set()\n  return h(x)")
    module.lock = threading.Event()  # not part of the key
    module.lock.ran = ran = threading.Event()
    thread(cache=True)(module.f)(1)()
    assert ran.is_set()
    ran.clear()
    exec("\n\n\ndef h(x):  # the same\n\n  return x", vars(module))
    thread(cache=True)(module.f)(1)()
    assert not ran.is_set()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import socket\ns = socket.socket()\ndef f(x): return s and x", r"the global 's' that f uses \(a socket.socket\)"),
        ("g = (i for i in range(3))\ndef h(x): return g\ndef f(x): return h(x)", r"the global 'g' that h uses \(a generator\)"),
        (
            "class K: pass\nk = K()\nk.on = [iter(open(__file__))]\ndef f(x): return k.on and x",
            r"k' that f uses.on\[0\] \(a _io.TextIOWrapper\)",
        ),
    ],
)
def test_what_has_no_form_to_be_remembered_by_is_named(text: str, told: str, project: Any) -> None:
    module = project(text)
    with pytest.raises(CacheKeyError, match=r"cache=True of task 'f': .*" + told):
        thread(cache=True)(module.f)(1)()
    for held in (vars(module).get("s"), *getattr(vars(module).get("k"), "on", ())):
        if held is not None:
            held.close()


def test_locks_and_loggers_are_no_part_of_a_value(project: Any) -> None:
    module = project(
        "import threading, logging\nl = threading.Lock()\nlog = logging.getLogger('x')\ndef f(x):\n  with l: log.debug('x')\n  return x"
    )
    assert thread(cache=True)(module.f)(1)() == 1


def test_an_argument_that_cannot_be_told_is_named() -> None:
    def f(x: Any) -> Any:
        return next(x)

    with pytest.raises(CacheKeyError, match=r"argument x \(a generator\)"):
        thread(cache=True)(f)(i for i in range(3))()
