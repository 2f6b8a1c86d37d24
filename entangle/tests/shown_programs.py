"""Pages that show whole programs, each followed by what it prints: they are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .callers import ROOT

DOCS = Path(ROOT) / "docs"


def programs_of(page: str) -> dict[str, tuple[str, str]]:
    """The programs of a page by their title: the code, and what it must print."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r'^```python title="([^"]+)"\n(.*?)^```\n\n```text\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert len(found) == text.count("```python"), f"{page}: a program without a title, or without what it prints"
    return {title: (code, printed) for title, code, printed in found}


def run_shown(page: str, title: str, folder: Path, replaced: dict[str, str] | None = None) -> None:
    """Run one program, with addresses of the page replaced, and compare what it prints."""
    code, printed = programs_of(page)[title]
    for shown, real in (replaced or {}).items():
        assert shown in code
        code = code.replace(shown, real)
    (folder / title).write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, title], cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
