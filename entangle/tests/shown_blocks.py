"""Code blocks of pages, and the output that the page shows: read, run and compared.

The first line of a block, and an HTML comment before it, tell how to run it:

- a `python` block without a title: one program together with all others of its page, in order;
- a `python title="name.py"` block: a program of its own, in a directory shared with the others;
- another block with a title: a file in that directory;
- a `console` block: each line that begins with `$ ` is a command, run in that directory;
- `<!-- before: … -->`: lines of Python that the next block needs, and readers do not;
- `<!-- not run: reason -->`: the next block cannot be run here;
- `<!-- run by: file of tests -->`: those tests run the titled blocks of this page, as
  `shown_programs.py` does where they need a service.

A `text` block right after a block shows its output. So does a comment after a `print(…)` that
stands on one line outside functions: the comment begins with what the line prints. "…" in it
stands for anything within the line, and a line of "…" alone for any lines.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .callers import ROOT
from .ways import missing

_DOCS = Path(ROOT) / "docs"

#: Seconds that one program of a page may take.
LONGEST = 100

#: Printed between the blocks of a page. No page prints it.
_MARK = "@@ shown block"
#: Printed before and after a line that shows its output.
_LINE = "@@ shown line"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w.+-]*)(?P<rest>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL
)
_NOTE = re.compile(r"^ *<!-- (?P<kind>before|not run|run by):\s(?P<said>.*?)-->[ \t]*$", re.MULTILINE | re.DOTALL)


def documentation() -> Path:
    """The directory of the pages. Only a checkout has it: elsewhere tests are skipped, and in CI
    they fail."""
    if not _DOCS.is_dir():
        missing("the documentation, which only a checkout has")
    return _DOCS


@dataclass(frozen=True)
class Block:
    """A block of a page, with what the page says of it."""

    line: int
    """The line of the page at which its code begins, from 1."""
    language: str
    title: str | None
    code: str
    before: tuple[tuple[int, str], ...] = ()
    """Hidden code that it needs, each part with its line of the page."""
    not_run: str | None = None
    printed: str | None = None
    """The `text` block after it."""


@dataclass(frozen=True)
class Page:
    """The blocks of a page, and the file of tests that runs the titled ones, if there is one."""

    path: Path
    blocks: list[Block]
    run_by: str | None

    @property
    def name(self) -> str:
        return os.path.relpath(self.path, ROOT)


def read(path: Path) -> Page:
    """The blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    inside = [range(*fence.span()) for fence in fences]
    notes = [note for note in _NOTE.finditer(text) if not any(note.start() in span for span in inside)]
    run_by = next((note["said"].strip() for note in notes if note["kind"] == "run by"), None)
    blocks: list[Block] = []
    end = 0
    for fence in fences:
        above = [note for note in notes if end <= note.start() < fence.start()]
        if fence["language"] == "text" and blocks and not text[end : fence.start()].strip():
            blocks[-1] = Block(**{**vars(blocks[-1]), "printed": _dedent(fence)})
        else:
            title = re.search(r'title="([^"]+)"', fence["rest"])
            why = [note["said"].strip() for note in above if note["kind"] == "not run"]
            hidden = tuple((text.count("\n", 0, note.start("said")) + 1, note["said"]) for note in above if note["kind"] == "before")
            line = text.count("\n", 0, fence.start("code")) + 1
            blocks.append(Block(line, fence["language"], title and title[1], _dedent(fence), hidden, why[-1] if why else None))
        end = fence.end()
    return Page(path, blocks, run_by)


def _dedent(fence: re.Match[str]) -> str:
    indent = len(fence["indent"])
    return "".join(line[indent:] if line[:indent].isspace() else line for line in fence["code"].splitlines(keepends=True))


# --- running --------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How the blocks of a page ran."""

    run: list[Block] = field(default_factory=list)
    compared: int = 0
    """Outputs that the page shows, and that were compared."""
    wrong: list[str] = field(default_factory=list)


def run_page(page: Page, folder: Path) -> Outcome:
    """Run the blocks of a page that can be run, in `folder`."""
    outcome = Outcome()
    for block in page.blocks:
        if block.title is not None and block.not_run is None and not page.run_by:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(said for _, said in block.before) + block.code, encoding="utf-8")
    plain = [block for block in page.blocks if block.language == "python" and block.title is None and block.not_run is None]
    if plain:
        _run_together(page, plain, folder, outcome)
    for block in page.blocks:
        if block.not_run is not None or page.run_by:
            continue
        if block.title is not None:
            if block.language == "python" and not _is_part(page, block):
                done = _start([sys.executable, block.title], folder)
                _ended(page, block, done, folder, outcome)
        elif block.language == "console":
            _run_console(page, block, folder, outcome)
    return outcome


def _is_part(page: Page, block: Block) -> bool:
    """Whether commands of the page run this file. It is then not run on its own, unless the page
    shows its output."""
    return block.printed is None and any(
        other.language == "console" and block.title is not None and block.title in other.code for other in page.blocks
    )


def _run_together(page: Page, blocks: list[Block], folder: Path, outcome: Outcome) -> None:
    """Run blocks as one program. Each keeps its line numbers of the page, so that tracebacks show
    them."""
    lines: list[str] = []

    def put(at: int, code: str) -> None:
        lines.extend([""] * (at - 1 - len(lines)))
        lines.extend(code.splitlines())

    for number, block in enumerate(blocks):
        for at, said in block.before:
            put(at, said)
        # The line of the fence has no code.
        put(block.line - 1, f'print("{_MARK} {number}", flush=True)')
        put(block.line, _with_marks(block.code))
    program = folder / f"{page.path.stem}_blocks.py"
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = _start([sys.executable, program.name], folder)
    outcome.run += blocks
    if done.returncode:
        outcome.wrong.append(f"{page.name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return
    parts = re.split(rf"^{_MARK} \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for block, printed in zip(blocks, parts, strict=True):
        _compare_lines(page, block, printed, outcome)
        if block.printed is not None:
            whole = re.sub(rf"^{_LINE} .*\n", "", printed, flags=re.MULTILINE)
            _compare(page, block, block.printed, whole, outcome)


def shown_lines(code: str) -> dict[int, str]:
    """Lines that print and show the output in a comment: the comment by the line number."""
    found = {}
    rows = code.splitlines()
    below: list[ast.stmt] = list(ast.parse(code).body)
    while below:
        statement = below.pop()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        below += [child for child in ast.walk(statement) if isinstance(child, ast.stmt) and child is not statement]
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and statement.lineno == statement.end_lineno):
            continue
        named = statement.value.func
        row = rows[statement.lineno - 1]
        behind = re.match(r"\s*# (.+)", row[statement.end_col_offset or 0 :]) if row.isascii() else re.search(r"  # (.+)", row)
        if isinstance(named, ast.Name) and named.id == "print" and behind and not row[: statement.col_offset].strip():
            found[statement.lineno] = behind[1]
    return found


def _with_marks(code: str) -> str:
    rows = code.splitlines()
    for number in shown_lines(code):
        row = rows[number - 1]
        indent = row[: len(row) - len(row.lstrip())]
        statement, _, comment = row.lstrip().rpartition("  # ")
        mark = f'print("{_LINE} {number}", flush=True)'
        rows[number - 1] = f"{indent}{mark}; {statement}; {mark}  # {comment}"
    return "\n".join(rows)


def _compare_lines(page: Page, block: Block, printed: str, outcome: Outcome) -> None:
    for number, said in shown_lines(block.code).items():
        found = re.search(rf"^{_LINE} {number}\n(.*?)^{_LINE} {number}$", printed, re.MULTILINE | re.DOTALL)
        if not found:
            outcome.wrong.append(f"{page.name}:{block.line + number - 1}: this line shows what it prints, and was not reached")
            continue
        outcome.compared += 1
        if not re.match(_pattern(found[1].strip(), wild=False), said) and not re.fullmatch(_pattern(said), found[1].strip()):
            outcome.wrong.append(f"{page.name}:{block.line + number - 1}: it prints {found[1].strip()!r}, and the comment says {said!r}")


def _run_console(page: Page, block: Block, folder: Path, outcome: Outcome) -> None:
    for command, printed in commands(block.code):
        done = _start(["bash", "-c", command], folder)
        outcome.run.append(block)
        outcome.compared += 1
        if not matches(printed, done.stdout + done.stderr):
            outcome.wrong.append(f"{page.name}:{block.line}: $ {command}\nshows\n{printed}\nand prints\n{done.stdout}{done.stderr}")


def commands(code: str) -> list[tuple[str, str]]:
    """The commands of a `console` block, each with the output that the page shows."""
    found: list[tuple[str, str]] = []
    for line in code.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        elif found:
            command, printed = found[-1]
            if command.endswith("\\") and not printed:
                found[-1] = (f"{command[:-1]} {line.strip()}", "")
            else:
                found[-1] = (command, printed + line)
    return found


def _ended(page: Page, block: Block, done: subprocess.CompletedProcess[str], folder: Path, outcome: Outcome) -> None:
    outcome.run.append(block)
    fails = block.printed is not None and "Traceback (most recent call last)" in block.printed
    if bool(done.returncode) != fails:
        outcome.wrong.append(f"{page.name}:{block.line}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    elif block.printed is not None:
        printed = done.stdout + (done.stderr if fails else "")
        # Show paths as a user in that directory would see them.
        _compare(page, block, block.printed, printed.replace(f"{folder}/", ""), outcome)
    for number, said in shown_lines(block.code).items():
        # Which line printed it is unknown here; check only that something printed it.
        outcome.compared += 1
        rows = [row for row in map(str.strip, done.stdout.splitlines()) if row]
        if not any(re.match(_pattern(row, wild=False), said) or re.fullmatch(_pattern(said), row) for row in rows):
            outcome.wrong.append(f"{page.name}:{block.line + number - 1}: nothing that it prints begins as {said!r}\n{done.stdout}")


def _compare(page: Page, block: Block, said: str, printed: str, outcome: Outcome) -> None:
    outcome.compared += 1
    if not matches(said, printed):
        outcome.wrong.append(f"{page.name}:{block.line}: the page says\n{said}\nand it prints\n{printed}")


def _start(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would, with its own records and depot, and with `entangle` on
    PATH."""
    environment = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "PYTHONDONTWRITEBYTECODE": "1",
        "ENTANGLE_RECORD_DIR": str(folder / "records"),
        "ENTANGLE_DEPOT": str(folder / "depot"),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    environment.pop("PYTHONUNBUFFERED", None)
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if error.stderr else ""
        return subprocess.CompletedProcess(command, -1, "", f"{shlex.join(command)} took over {LONGEST} s\n{said}")


# --- comparing ------------------------------------------------------------------------------------


def _pattern(said: str, wild: bool = True) -> str:
    return ".*?".join(map(re.escape, said.split("…"))) if wild else re.escape(said)


def matches(said: str, printed: str) -> bool:
    """Whether the output is what a page shows. Trailing spaces do not count, nor do the marks below
    the lines of a traceback: they differ between versions of Python."""
    said, printed = (re.sub(r"^ +[~^]+ *\n", "", f"{text}\n", flags=re.MULTILINE) for text in (said, printed))
    rows = [row.rstrip() for row in said.strip("\n").splitlines()]
    pattern = "".join(r"(?:[^\n]*\n)*?" if row.strip() == "…" else _pattern(row) + r"\n" for row in rows)
    text = "\n".join(row.rstrip() for row in printed.strip("\n").splitlines())
    return re.fullmatch(pattern.replace(".*?", r"[^\n]*?"), f"{text}\n" if text else "") is not None
