"""How commands print for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TextIO

from rich.console import Console
from rich.text import Text

from entangle.cli.terminal_text import plain, stdout

#: How a state looks.
COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "skipped": "magenta",
    "cancelled": "yellow",
    "ended abruptly": "red",
    "ready": "blue",
    "waiting": "dim",
}
MARKS = {"done": "✓", "running": "▶", "failed": "✗", "skipped": "↷", "cancelled": "○", "ready": "·", "waiting": "·"}


#: Columns of a file or a pipe: it has no edge, so nothing is cut or wrapped.
WIDE = 1 << 20


def console(stderr: bool = False, file: TextIO | None = None) -> Console:
    """Where people read. A line that goes to a pipe or a file stays one line."""
    # No markup: names of tasks and directories may have brackets.
    out = Console(stderr=stderr, file=file or (None if stderr else stdout()), highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = WIDE
    return out


def text(*parts: str | tuple[str, str], style: str = "") -> Text:
    """A text of parts, each alone or with its style. Names, values and errors may contain anything,
    so characters that would control the terminal are escaped."""
    return Text.assemble(*(plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts), style=style)


def fitted(line: Text, width: int) -> Text:
    """The line, cut to so many columns."""
    line.truncate(max(width, 1), overflow="ellipsis")
    return line


def table_lines(
    heads: Sequence[str],
    rows: Sequence[Sequence[Text]],
    width: int,
    right: Collection[int] = (),
    optional: Sequence[int] = (),
    least: int = 12,
) -> list[Text]:
    """Rows under their heads, if these have any words, a line each; columns in `right` are aligned
    to the right. Columns that have nothing in any row are left out.

    The `optional` columns are left out, the first of them first, while the last column would have
    fewer than `least` columns of the line. Then only the last one is cut: an id or a number that is
    cut is useless.
    """
    shown = [at for at in range(len(heads)) if at in (0, len(heads) - 1) or any(row[at].cell_len for row in rows)]
    lines = [*([[text(head, style="dim") for head in heads]] if any(heads) else []), *rows]
    widths = [max((row[at].cell_len for row in lines), default=0) for at in range(len(heads))]
    wanted = min(least, max((row[-1].cell_len for row in rows), default=0))
    leaving = [at for at in optional if at in shown]
    while leaving and width - sum(widths[at] + 2 for at in shown[:-1]) < wanted:
        shown.remove(leaving.pop(0))
    left = max(1, width - sum(widths[at] + 2 for at in shown[:-1]))
    made = []
    for row in lines:
        for at in shown[:-1]:
            row[at].align("right" if at in right else "left", widths[at])
        line = Text("  ").join([*(row[at] for at in shown[:-1]), fitted(row[-1], left)])
        line.rstrip()
        made.append(line)
    return made


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Text]], right: Collection[str] = (), optional: Sequence[str] = ()) -> None:
    """Print a table within the width of the terminal, as `table_lines` makes it."""
    out = console()
    place = heads.index
    for line in table_lines(heads, rows, out.width, right=[*map(place, right)], optional=[*map(place, optional)]):
        out.print(line, soft_wrap=True)


def duration(seconds: float | None) -> str:
    """A time span in the unit that fits: 12 µs, 3.4 ms, 1.2 s, 2 min 5 s, 1 h 3 min."""
    if seconds is None:
        return "—"
    for below, unit, factor in ((1e-3, "µs", 1e6), (1.0, "ms", 1e3), (60.0, "s", 1.0)):
        if seconds < below:
            return f"{seconds * factor:.3g} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(seconds: float | None) -> str:
    """A point in time, in local time."""
    if seconds is None:
        return "—"
    then = datetime.fromtimestamp(seconds)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def size(count: float | None) -> str:
    """Bytes in the unit that fits."""
    if count is None:
        return "—"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
