"""A line about a run, and its last line: `load 31/80, train 2/80 · 2 failed · 1:10 left`."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from entangle._run.progress.tally import Count, Left

#: How a run can end.
DONE, FAILED, CANCELLED, INTERRUPTED, TIMED_OUT, TERMINATED = (
    "done",
    "failed",
    "cancelled",
    "interrupted",
    "timed out",
    "terminated",
)
#: More task names than this are not shown in full: those that are done are left out.
MANY = 6
#: The most characters of a reason why nodes wait.
LONGEST = 48


@dataclass
class View:
    """What is shown of a run: its name, its counts by task name, seconds since it began."""

    run: str
    name: str
    counts: list[Count]
    seconds: float
    left: Left = field(default_factory=Left)
    at_once: float = 0.0
    #: How it has ended; None while it lasts.
    end: str | None = None
    #: The name of the call, or else of the tasks, whose failure has ended it.
    failed_in: str = ""
    #: Of a stream: how many items have come out, failed ones included, and how many come a second
    #: of late.
    items: int | None = None
    rate: float = 0.0
    #: How many nodes wait at other places, by why those do not run them yet.
    waits: dict[str, int] = field(default_factory=dict)
    #: How many calls are no nodes of it, since a depot had their values.
    taken: int = 0

    def sum(self, what: str) -> int:
        """The sum of one number over all task names."""
        return sum(getattr(count, what) for count in self.counts)

    @property
    def share(self) -> float:
        """How much of it has ended, from 0 to 1."""
        total = self.sum("total") - self.sum("lost")
        return (total - self.sum("left")) / total if total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest may take; None where nothing is known."""
        left = self.left
        if not left.known:
            return 0.0 if not left.unknown else None
        at_once = max(1.0, min(self.at_once, self.sum("left")))
        return max(left.work / at_once, left.longest)


def clock(seconds: float) -> str:
    """A time as `0:42`, `1:02:03` or `3 d 04:05:06`."""
    whole = int(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}:{whole % 60:02}"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def time_left(view: View) -> str:
    """`1:10 left`; `1:10+ left` while tasks are to come of which none has ended; `? left` while
    nothing is known."""
    seconds = view.seconds_left
    if seconds is None:
        return "? left"
    return f"{clock(math.ceil(seconds))}{'+' if view.left.unknown else ''} left"


def _count(count: Count, many: bool) -> str:
    return f"{count.name} {count.done:,}" + ("" if many else f"/{count.total - count.lost:,}")


def chosen(counts: Sequence[Count], most: int) -> list[Count]:
    """The task names to show, at most so many: all of them; else those that are not done; else the
    first that run."""
    shown = [count for count in counts if count.total > count.lost or count.done]
    if len(shown) > most:
        shown = [count for count in shown if count.left] or shown
    if len(shown) > most:
        first = set(map(id, sorted(shown, key=lambda count: not count.running)[:most]))
        shown = [count for count in shown if id(count) in first]
    return shown


def names(counts: Sequence[Count], room: int, many: bool = False) -> str:
    """The counts by task name, in `room` columns. What finds no room is counted."""
    all_of_them = sum(count.total > count.lost for count in counts)
    told = ""
    for most in (all_of_them, *range(min(MANY, all_of_them), 0, -1)):
        if most > MANY:
            continue
        shown = chosen(counts, most)
        more = sum(bool(count.left) for count in counts) - sum(bool(count.left) for count in shown)
        told = ", ".join(_count(count, many) for count in shown) + (f", {more} more" if more > 0 else "")
        if width(told) <= room:
            return told
    shown = chosen(counts, 1)
    if not shown:
        return ""
    tail = _count(shown[0], many)[len(shown[0].name) :]
    return cut(shown[0].name, max(1, room - len(tail))) + tail


def waits(view: View) -> str:
    """Why nodes wait at other places: the reason of most, and how many wait for others."""
    if not view.waits:
        return ""
    why, count = max(view.waits.items(), key=lambda one: one[1])
    others = sum(view.waits.values()) - count
    return f"{count:,} {cut(why, LONGEST)}" + (f", {others:,} for other reasons" if others else "")


def summary(view: View) -> str:
    """Why nodes wait at other places, what has failed, and how long the rest may take; of a stream,
    how many items a second."""
    told = ("failed", "skipped") if view.items is None else ("failed",)
    lost = ", ".join(f"{view.sum(what):,} {what}" for what in told if view.sum(what))
    rest = time_left(view) if view.items is None else rate(view.rate)
    return " · ".join(part for part in (waits(view), _taken(view), lost, rest) if part)


def _taken(view: View) -> str:
    return f"{view.taken:,} from the depot" if view.taken else ""


def line(view: View, room: int, prefix: str = "") -> str:
    """A run that lasts, in `room` columns."""
    rest = " · " + summary(view)
    return cut(prefix + names(view.counts, max(8, room - width(prefix) - width(rest)), view.items is not None) + rest, room)


def last_line(view: View, prefix: str = "") -> str:
    """How a run has ended."""
    took = clock(view.seconds)
    where = f" in {view.failed_in}" if view.failed_in and view.end == FAILED else ""
    if view.items is not None:
        failed = view.sum("failed")
        items = f"{view.items - failed:,} items"
        told = f"done {items} in {took}" if view.end == DONE else f"{view.end}{where} after {took} · {items} done"
        return prefix + told + (f" · {failed:,} failed" if failed else "")
    done, total, running = view.sum("done"), view.sum("total"), view.sum("running")
    if view.end == DONE:
        told = f"{done:,} done, 0 running, 0 waiting in {took}"
        rest = [("failed", view.sum("failed")), ("skipped", view.sum("skipped"))]
    else:
        told = f"{view.end}{where} after {took} · {done:,} of {total:,} done"
        stopped = ("stopped", running)
        rest = [("failed", view.sum("failed")), ("skipped", view.sum("skipped")), stopped, ("not run", view.sum("lost") - running)]
    told_of = ", ".join(f"{count:,} {what}" for what, count in rest if count > 0)
    return prefix + " · ".join(part for part in (told, _taken(view), told_of) if part)


def rate(rate: float) -> str:
    """So many a second, or a minute."""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 0.1 or not rate else f"{60 * rate:.1f}/min"


def spelled(text: str, encoding: str | None) -> str:
    """The text in characters that a stream of that encoding has."""
    if "utf" in (encoding or "").lower():
        return text
    for char, plain in ("━#", "─-", "…~", "·|"):
        text = text.replace(char, plain)
    return text.encode("ascii", "replace").decode()


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """The text, cut to that many columns."""
    if width(text) <= room:
        return text
    kept, left = [], room - 1
    for char in text:
        left -= width(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept) + "…"
