"""Pages that show two ways to write the same: reads their parts, and runs each side."""

from __future__ import annotations

import ast
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from .callers import ROOT

DOCS = Path(ROOT) / "docs"
SIDES = ("you wrote", "you write")

#: The program keeps the value of each expression, and what each block assigns, if it is plain data.
_KEEP = """
import pickle as _pickle
import sys as _sys

_kept = []

_PLAIN = (int, float, str, bool, list, tuple, dict)

def _is_kept(value):
    try:
        return type(value) in _PLAIN and _pickle.loads(_pickle.dumps(value)) is not Ellipsis
    except Exception:
        return False

def _run(code, names, title):
    space = globals()
    try:
        if names is None:
            value = eval(code, space)
            assert _is_kept(value), f"its value is not plain: {value!r}"
            _kept.append(value)
        else:
            exec(compile(code, title, "exec"), space)
            _kept.append({name: space[name] for name in names if _is_kept(space.get(name))})
    except BaseException as error:
        raise AssertionError(f"this failed: {code}") from error
"""

Part = tuple[str, str]

#: Names that differ from run to run.
_NO_RESULTS = {"began", "path"}


def parts_of(page: str) -> dict[str, list[Part]]:
    """The parts of each side of a page, in order: rows of tables and blocks, each with its kind."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found: dict[str, list[Part]] = {side: [] for side in SIDES}
    pattern = r'^```python title="(?P<side>[^"]+)"\n(?P<block>.*?)^```$|^\| `(?P<left>.+?)` \| `(?P<right>.+?)` \|$'
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match["side"]:
            found[match["side"]].append(("block", match["block"]))
        else:
            for side, code in zip(SIDES, (match["left"], match["right"]), strict=True):
                found[side].append(("row", code.replace("\\|", "|")))
    return found


def unread_code(page: str) -> list[str]:
    """Code of the page that belongs to neither side, and rows that do not match the pattern."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = [line for line in re.findall(r"^```.+$", text, re.MULTILINE) if line not in (f'```python title="{side}"' for side in SIDES)]
    rows = [line for line in re.findall(r"^\|.*$", text, re.MULTILINE) if line not in ("| you wrote | you write |", "|---|---|")]
    return blocks + [row for row in rows if not re.fullmatch(r"\| `.+?` \| `.+?` \|", row)]


def run_side(page: str, side: str, folder: Path, guarded: bool) -> list[Any]:
    """Run one side of a page as a program. Return the value of each part.

    `guarded`: all but definitions stand below `if __name__ == "__main__":`.
    """
    above, below = [_KEEP], []
    for kind, code in parts_of(page)[side]:
        names = None
        if kind == "block":
            statements = ast.parse(code).body
            defined = [
                at for at in statements if isinstance(at, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))
            ]
            if guarded:
                above += map(ast.unparse, defined)
                statements = [at for at in statements if at not in defined]
                code = ast.unparse(ast.Module(statements, []))
            names = sorted(
                {name.id for at in statements for name in ast.walk(at) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
            )
        below.append(f"_run({code!r}, {names!r}, {side!r})")
    below.append('with open(_sys.argv[1], "wb") as _file:\n    _pickle.dump(_kept, _file)')
    text = "\n".join(below)
    program = folder / f"{side.replace(' ', '_')}.py"
    text = 'if __name__ == "__main__":\n' + textwrap.indent(text, "    ") if guarded else text
    program.write_text("\n".join([*above, text]) + "\n", encoding="utf-8")
    kept = folder / f"{side}.kept"
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(kept)], env=environment, capture_output=True, text=True, timeout=100, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = pickle.loads(kept.read_bytes())
    return found


def compare(page: str, folder: Path) -> int:
    """Run both sides of a page, compare their values, and return the number of parts."""
    parts = parts_of(page)
    kinds = [[kind for kind, _ in parts[side]] for side in SIDES]
    assert kinds[0] == kinds[1], f"{page}: a part of one side has none on the other"
    left, right = (run_side(page, side, folder, guarded=side == SIDES[0]) for side in SIDES)
    for (kind, wrote), (_, write), one, other in zip(*parts.values(), left, right, strict=True):
        if kind == "block":
            both = (one.keys() & other.keys()) - _NO_RESULTS
            assert both or not one, f"nothing to compare in:\n{wrote}\n{write}"
            one, other = ({name: of[name] for name in sorted(both)} for of in (one, other))
        # Errors are equal if their texts are.
        assert one == other or repr(one) == repr(other), f"{wrote}\ngives {one!r}\n{write}\ngives {other!r}"
    return len(left)
