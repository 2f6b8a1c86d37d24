"""Progress in a notebook: a small table by task name that moves, without any widget library.

Jupyter and its kin (VS Code, Colab) update what was displayed under an id, from any thread. In
marimo, a thread that it does not know cannot write: updates from another thread go to the loop that
runs the cell, which is free while a cell awaits.

Styles stand in the elements themselves, and texts have the color of the notebook, light or dark.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from html import escape
from typing import Any

from entangle._run.progress.tally import Count
from entangle._run.progress.wording import View, chosen, last_line, line, summary

#: Seconds between two updates.
EVERY = 0.25
#: The most rows of a table.
ROWS = 16
#: The most outputs of a cell of marimo beside which one is looked for.
_MOST_OUTPUTS = 256

_GREEN, _RED, _TRACK = "#2e9e5b", "#d9453d", "rgba(127,127,127,.25)"
_CELL = "border:0;background:none;padding:1px 12px 1px 0;text-align:left;font-variant-numeric:tabular-nums"


class Jupyter:
    """The output of a cell of Jupyter, updated in place."""

    takes_prints = False  # the kernel shows what is printed apart

    def __init__(self) -> None:
        # Which cell it is: a thread that the run has started does not know.
        self._context = contextvars.copy_context()
        self._shown: dict[str, float] = {}

    def begin(self, run: str) -> None:
        """Nothing to do yet."""

    def leave(self, run: str) -> None:
        """Nothing is shown of it any more."""
        self._shown.pop(run, None)

    def show(self, view: View) -> None:
        """Display a run, or update it if it is time."""
        now = time.monotonic()
        last = self._shown.get(view.run)
        if last is None or now - last >= EVERY:
            self._shown[view.run] = now
            self._publish(view, last is not None)

    def ended(self, view: View) -> None:
        """Update a run for the last time."""
        if self._shown.pop(view.run, None) is not None:
            self._publish(view, True)

    def forget(self) -> None:
        """Show nothing more: in a forked child."""
        self._shown.clear()

    def _publish(self, view: View, update: bool) -> None:
        from IPython.display import display, update_display

        data = {"text/html": html_of(view), "text/plain": line(view, 160) if view.end is None else last_line(view)}
        with contextlib.suppress(Exception):  # a kernel that goes away; the run goes on
            self._context.run(update_display if update else display, data, raw=True, display_id=f"entangle-{view.run}")


class Marimo:
    """The output of a cell of marimo, updated in place."""

    takes_prints = False

    def __init__(self, marimo: Any) -> None:
        self._marimo = marimo
        self._context = contextvars.copy_context()
        self._thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._shown: dict[str, float] = {}
        #: The places of runs among the outputs of the cell.
        self._places: dict[str, int] = {}

    def begin(self, run: str) -> None:
        """Nothing to do yet."""

    def leave(self, run: str) -> None:
        """Nothing is shown of it any more."""
        self._shown.pop(run, None)

    def show(self, view: View) -> None:
        """Show a run, or update it if it is time."""
        now = time.monotonic()
        if now - self._shown.get(view.run, 0.0) >= EVERY:
            self._shown[view.run] = now
            self._pass_on(view)

    def ended(self, view: View) -> None:
        """Update a run for the last time."""
        if self._shown.pop(view.run, None) is not None:
            self._pass_on(view)

    def forget(self) -> None:
        """Show nothing more: in a forked child."""
        self._shown.clear()

    def _pass_on(self, view: View) -> None:
        if threading.get_ident() == self._thread:
            self._put(view.run, html_of(view))
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._put, view.run, html_of(view), context=self._context.copy())

    def _put(self, run: str, html: str) -> None:
        output, value = self._marimo.output, self._marimo.Html(html)
        with contextlib.suppress(Exception):
            if run in self._places:
                try:
                    output.replace_at_index(value, self._places[run])
                    return
                except IndexError:  # the user has cleared the outputs
                    pass
            # marimo does not say how many outputs there are. One more can be put at the end alone.
            for place in range(_MOST_OUTPUTS, -1, -1):
                try:
                    output.replace_at_index(value, place)
                except IndexError:
                    continue
                self._places[run] = place
                return


def notebook() -> Jupyter | Marimo | None:
    """The notebook in whose cell this thread is, if it is in one."""
    marimo = sys.modules.get("marimo")
    if marimo is not None:
        with contextlib.suppress(Exception):
            if marimo.running_in_notebook():
                return Marimo(marimo)
    ipython = sys.modules.get("IPython")
    if ipython is not None:
        with contextlib.suppress(Exception):
            if getattr(ipython.get_ipython(), "kernel", None) is not None:
                return Jupyter()
    return None


# What is shown ----------------------------------------------------------------------------------


def html_of(view: View) -> str:
    """A run as a table: a row for each task name, with a bar."""
    many = view.items is not None
    rows = [_row(count, many, view.end is not None) for count in chosen(view.counts, ROWS)]
    more = sum(count.total > count.lost for count in view.counts) - len(rows)
    if more > 0:
        rows.append(f'<tr style="background:none"><td style="{_CELL};opacity:.7" colspan="3">{more:,} more</td></tr>')
    told = summary(view) if view.end is None else last_line(view)
    return (
        '<div class="entangle-progress" style="color:inherit">'
        f'<div style="margin-bottom:2px"><b>{escape(view.name)}</b> · {escape(told)}</div>'
        f'<table style="border:0;border-collapse:collapse;margin:0;width:auto;font-size:inherit">{"".join(rows)}</table></div>'
    )


def _row(count: Count, many: bool, over: bool) -> str:
    total = count.total - (0 if over else count.lost)
    parts = [(count.done, _GREEN, 1.0), (count.failed, _RED, 1.0), (count.skipped, _RED, 0.4), (0 if over else count.running, _GREEN, 0.4)]
    filled = "".join(
        f'<div style="width:{100 * part / total:.2f}%;background:{color};opacity:{opacity}"></div>'
        for part, color, opacity in parts
        if part and total
    )
    bar = (
        f'<div role="progressbar" aria-label="{escape(count.name)}" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{count.done}" '
        f'style="display:flex;width:14em;height:.7em;border-radius:.35em;overflow:hidden;background:{_TRACK}">{filled}</div>'
    )
    told = f"{count.done:,}" if many else f"{count.done:,}/{total:,}"
    lost = ", ".join(f"{number:,} {what}" for number, what in ((count.failed, "failed"), (count.skipped, "skipped")) if number)
    cells = [escape(count.name), *([] if many else [bar]), f"{told} · {lost}" if lost else told]
    return '<tr style="background:none">' + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"
