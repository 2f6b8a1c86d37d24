"""Pages whose blocks are followed from the top, as a reader does: files are written, programs and
commands are run, and what they print is compared.

    ```python title="one.py"     a program: written and, where ```text follows, run
    ```toml title="entangle.toml"     a file
    ```sh                        commands, run where ```text follows

In the text, "…" stands for anything within a line, and a line of "…" for any lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A block of a page: its language, its title, what it says, and what it must print (None: it is
    not run)."""

    language: str
    title: str
    code: str
    printed: str | None
    line: int


def blocks_of(page: Path) -> Iterator[Shown]:
    """The blocks of a page, from the top."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        yield Shown(found[1], found[2] or "", found[3], found[4], text.count("\n", 0, found.start()) + 1)


def written(block: Shown, folder: Path, replaced: Mapping[str, str]) -> list[str]:
    """Put a block into the folder; the command that runs it, if it is one to run."""
    code = block.code
    for shown, real in replaced.items():
        code = code.replace(shown, real)
    if block.title:
        (folder / block.title).write_text(code, encoding="utf-8")
    if block.printed is None:
        return []
    return ["bash", "-ec", code] if block.language == "sh" else [sys.executable, block.title]


def follow(page: Path, folder: Path, replaced: Mapping[str, str] | None = None, **environment: str) -> Iterator[tuple[Shown, str]]:
    """Run a page in a folder; each block that was run, and what it printed."""
    scripts = str(Path(sys.executable).parent)
    settings = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent),
        "ENTANGLE_RECORD_DIR": str(folder / "records"),
        "NO_COLOR": "1",
        **environment,
    }
    for block in blocks_of(page):
        if command := written(block, folder, replaced or {}):
            done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=110, check=False)
            assert done.returncode == 0, f"{page.name}, line {block.line}: status {done.returncode}\n{done.stdout}{done.stderr}"
            yield block, done.stdout


def fits(printed: str, shown: str) -> bool:
    """Whether what was printed is what is shown."""
    pattern = "".join(r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n" for line in shown.splitlines())
    return re.fullmatch(pattern, printed) is not None
