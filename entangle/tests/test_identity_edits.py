"""Edits of a small project on disk: those that must change the key of a call, and those that must
not. Each is made in a copy of the project, and the key is computed in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = {
    "study.py": '''
"""A study."""
import functools
import shapes
from tools import scale, smooth as smoothed
import settings

LIMIT = 10
UNUSED = 1


def counted(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) + settings.OFFSET

    return wrapper


@counted
def offset(x):
    return x


def make(step):
    def stepped(x):
        return x + step

    return stepped


stepped = make(3)
doubled = functools.partial(scale, factor=2)


def answer(n, grid=None, *, exact=True, mode="fast"):
    """The answer."""
    from late import correction

    if n > LIMIT:
        n = LIMIT
    total = scale(n) + offset(n) + stepped(n) + doubled(n) + smoothed(n) + correction(n)
    total += shapes.Square(n).area() + shapes.Kind.ROUND.value + shapes.Point().x
    return total + sum(value for value in settings.TABLE["weights"] if value > 0)
''',
    "tools.py": '''
BASE = 1


def inner(x):
    """Helps."""
    if x > 3:
        return x + BASE
    return x


def scale(x, factor=1):
    return inner(x) * factor


def smooth(x):
    return [one for one in (x, x + 1) if one][0]


def unused(x):
    return x
''',
    "late.py": "def correction(x):\n    return x - 1\n",
    "settings.py": 'OFFSET = 5\nTABLE = {"weights": [1, 2, 3]}\nCOLOUR = "red"\n',
    "shapes.py": '''
import dataclasses
import enum


class Kind(enum.Enum):
    ROUND = 1
    SQUARE = 2


class Shape:
    """A shape."""

    sides = 0

    def area(self):
        return self.width * self.height


class Square(Shape):
    sides = 4

    def __init__(self, width):
        self.width = width

    @property
    def height(self):
        return self.width


@dataclasses.dataclass
class Point:
    x: int = 0
''',
}

SMOOTH = "def smooth(x):\n    return [one for one in (x, x + 1) if one][0]\n"
UNUSED = "def unused(x):\n    return x\n"
IMPORTS = "import shapes\nfrom tools import scale, smooth as smoothed\nimport settings"

#: A file, a text in it, and its replacement; or another call.
CHANGES = {
    "the body": ("study.py", "n = LIMIT", "n = LIMIT - 1"),
    "a helper": ("tools.py", "inner(x) * factor", "inner(x) ** factor"),
    "a helper's helper": ("tools.py", "return x + BASE", "return x - BASE"),
    "a constant of a helper's helper": ("tools.py", "if x > 3", "if x > 4"),
    "a global": ("study.py", "LIMIT = 10", "LIMIT = 11"),
    "a global of a helper's helper": ("tools.py", "BASE = 1", "BASE = 2"),
    "an item of a global dict": ("settings.py", "[1, 2, 3]", "[1, 2, 4]"),
    "a global that a decorator reads": ("settings.py", "OFFSET = 5", "OFFSET = 6"),
    "a decorator": ("study.py", "+ settings.OFFSET", "- settings.OFFSET"),
    "a decorator that is removed": ("study.py", "@counted\ndef offset", "def offset"),
    "what a closure holds": ("study.py", "make(3)", "make(4)"),
    "an argument of a partial": ("study.py", "factor=2)", "factor=3)"),
    "a default of a helper": ("tools.py", "factor=1", "factor=4"),
    "a default of the function": ("study.py", 'mode="fast"', 'mode="slow"'),
    "a method of a base class": ("shapes.py", "self.width * self.height", "self.width + self.height"),
    "a base class": ("shapes.py", "class Square(Shape)", "class Square(dict, Shape)"),
    "a class attribute": ("shapes.py", "sides = 4", "sides = 5"),
    "a property": ("shapes.py", "return self.width\n", "return self.width + 1\n"),
    "a member of an enum": ("shapes.py", "ROUND = 1", "ROUND = 3"),
    "a field of a dataclass": ("shapes.py", "x: int = 0", "x: int = 1"),
    "what the body imports": ("late.py", "x - 1", "x - 2"),
    "a comprehension": ("tools.py", "if one][0]", "if one > 0][0]"),
    "a number's type": ("study.py", "LIMIT = 10", "LIMIT = 10.0"),
    "an argument": ("call", "7", "8"),
    "an argument's type": ("call", "7", "7.0"),
    "a keyword": ("call", "7", "7, exact=False"),
}
SAME = {
    "a comment": ("tools.py", "return inner(x) * factor", "# Scales.\n    return inner(x) * factor  # so"),
    "lines above": ("study.py", "import functools\n", "\n\n\n\nimport functools\n"),
    "a docstring": ("study.py", '"""The answer."""', '"""Another word."""'),
    "a docstring that is removed": ("tools.py", '    """Helps."""\n', ""),
    "a class's docstring": ("shapes.py", '"""A shape."""', '"""Any shape."""'),
    "a line that is broken": ("study.py", "scale(n) + offset(n)", "(\n        scale(\n            n,\n        )\n        + offset(n))"),
    "a condition in one line": ("tools.py", "if x > 3:\n        return", "if x > 3: return"),
    "a comprehension in several lines": (
        "tools.py",
        "for one in (x, x + 1) if one]",
        "\n        for one in (x, x + 1)\n        if one\n    ]",
    ),
    "parentheses and spaces": ("tools.py", "inner(x) * factor", "( inner( x )*factor )"),
    "annotations": ("study.py", "def answer(n, grid=None,", "def answer(n: int, grid: 'list[int] | None' = None,"),
    "annotations of a helper": ("tools.py", "def scale(x, factor=1):", "def scale(x: int, factor: int = 1) -> int:"),
    "annotations as text": ("tools.py", "\nBASE", "from __future__ import annotations\nBASE"),
    "imports in another order": ("study.py", IMPORTS, "import settings\nimport shapes\nfrom tools import smooth as smoothed, scale"),
    "an unused global": ("study.py", "UNUSED = 1", "UNUSED = 2"),
    "an unused global that is new": ("tools.py", "BASE = 1", "BASE = 1\nMORE = 2"),
    "an unused setting": ("settings.py", '"red"', '"blue"'),
    "an unused import": ("study.py", "import functools\n", "import functools\nimport json\nimport sys\n"),
    "an unused helper": ("tools.py", UNUSED, UNUSED.replace("x\n", "x + 1\n")),
    "helpers in another order": ("shapes.py", "import dataclasses\nimport enum", "import enum\nimport dataclasses"),
    "functions in another order": ("tools.py", f"{SMOOTH}\n\n{UNUSED}", f"{UNUSED}\n\n{SMOOTH}"),
    "a helper in another module": ("tools.py", SMOOTH, "from late import smooth\n"),
    "a default that is given": ("call", "7", '7, None, mode="fast"'),
    "keywords in another order": ("call", "7", 'mode="fast", exact=True, n=7'),
}

_TAKE = """
import json, sys
from entangle._shared.identity import identify

for folder, call in json.load(sys.stdin):
    sys.path.insert(0, folder)
    before = set(sys.modules)
    import study
    made = {"identity": lambda *args, **kwargs: identify("answer", study.answer, args, kwargs)}
    identity = eval(f"identity({call})", made)
    study.answer(7)
    assert eval(f"identity({call})", made) == identity  # running it has changed nothing
    print(json.dumps(identity), flush=True)
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and sys.modules[name].__file__.startswith(folder):
            del sys.modules[name]
"""


def _identities(projects: list[tuple[str, str]], seed: str = "random") -> list[tuple[str, dict[str, str]]]:
    """The identities of calls in copies of the project, all computed in one fresh process."""
    ran = subprocess.run(
        [sys.executable, "-B", "-c", _TAKE],
        input=json.dumps(projects),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
        timeout=100,
    )
    return [tuple(json.loads(line)) for line in ran.stdout.splitlines()]


def _written(folder: Path, change: tuple[str, str, str] | None = None) -> tuple[str, str]:
    """Write a copy of the project with the change. Return its directory, and the call."""
    folder.mkdir(parents=True)
    for name, text in PROJECT.items():
        if change is not None and change[0] == name:
            assert text.count(change[1]) == 1, change
            text = text.replace(*change[1:])
        (folder / name).write_text(text)
    if change is not None and "from late import smooth" in change[2]:
        with open(folder / "late.py", "a") as file:
            file.write(f"\n\n{SMOOTH}")
    return str(folder), "7".replace(*change[1:]) if change is not None and change[0] == "call" else "7"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, str]]]:
    """The identity after each edit, by its name. "" is the identity before any edit, computed in
    each process."""
    folder = tmp_path_factory.mktemp("projects")
    edits = [("changes", name, change) for name, change in CHANGES.items()] + [("same", name, change) for name, change in SAME.items()]
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for start in (0, 1):
        some = edits[start::2]
        written = [_written(folder / str(start))]
        written += [_written(folder / f"{kind} {name}".replace("/", " "), change) for kind, name, change in some]
        base, *rest = _identities(written)
        assert found.setdefault("", base) == base  # two processes, with two hash seeds
        found |= {f"{kind} {name}": identity for (kind, name, _), identity in zip(some, rest, strict=True)}
    return found


@pytest.mark.parametrize("edit", CHANGES)
def test_this_edit_changes_the_key(edit: str, keys: dict[str, tuple[str, dict[str, str]]]) -> None:
    key, parts = keys[f"changes {edit}"]
    assert key != keys[""][0]
    assert parts != keys[""][1]  # so `why` can tell which part


@pytest.mark.parametrize("edit", SAME)
def test_this_edit_does_not_change_the_key(edit: str, keys: dict[str, tuple[str, dict[str, str]]]) -> None:
    assert keys[f"same {edit}"][0] == keys[""][0], set(keys[f"same {edit}"][1].items()) ^ set(keys[""][1].items())
