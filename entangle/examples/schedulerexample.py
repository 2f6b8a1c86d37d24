"""Tasks that get a CPU of their own: at most as many run at a time as there are cookies.

`@scheduler(cpus=2)` lets a task run only while it holds one of two cookies. A cookie names a CPU,
and the task is bound to that CPU as long as it holds it. Six tasks share the two here. A scheduler
wraps a workflow just as well: the workflow lends its cookie to the tasks that it waits for, so
nothing blocks.

Prints when each task ran and on which CPU, and how many ran at a time at most.
"""

import os
import time
from typing import Any, NamedTuple

from entangle.process import process
from entangle.scheduler import scheduler
from entangle.workflow import workflow

COOKIES = 2
two_at_a_time = scheduler(cpus=COOKIES, impl="entangle.scheduler.DefaultScheduler")


class Shift(NamedTuple):
    """When a task worked, in seconds, on which CPUs and as which process."""

    start: float
    end: float
    name: str
    cpus: tuple[int, ...]
    pid: int


def allowed_cpus() -> tuple[int, ...]:
    """The CPUs to which this task is bound; none where the system binds no process to a CPU."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


@two_at_a_time
@process
def work(name: str, seconds: float) -> Shift:
    """Keep a CPU busy for some seconds."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        pass
    return Shift(start, time.monotonic(), name, allowed_cpus(), os.getpid())


@two_at_a_time
@process
def roster(*shifts: Shift) -> list[Shift]:
    return sorted(shifts)


@two_at_a_time
@workflow
def day() -> Any:
    return roster(*(work(name, 0.1) for name in ("fetch", "peel", "slice", "boil", "stir", "serve")))


def most_at_a_time(shifts: list[Shift]) -> int:
    """How many shifts overlapped at most."""
    return max(sum(other.start <= shift.start < other.end for other in shifts) for shift in shifts)


def main() -> None:
    shifts: list[Shift] = day()()
    first = shifts[0].start
    for shift in shifts:
        bar = " " * round((shift.start - first) * 100) + "=" * round((shift.end - shift.start) * 100)
        cpus = " and ".join(map(str, shift.cpus)) or "any"
        print(f"  {shift.name:<6} process {shift.pid}, CPU {cpus:<3} {bar}")
    print(f"At most {most_at_a_time(shifts)} at a time, by {COOKIES} cookies.")


if __name__ == "__main__":
    main()
