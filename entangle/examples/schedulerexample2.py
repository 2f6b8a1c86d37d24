"""A scheduler of your own: a class whose `register` gets a function and returns one that wraps it.

`Considerate` keeps tasks to the last few CPUs, and leaves the first one to the user of the machine.
It has no cookies, so it does not limit how many tasks run: the system shares the CPUs among them.
`impl=` names the class; here it is in the same file.

Prints the CPUs of this process, and those on which each task ran.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from entangle.process import process
from entangle.scheduler import scheduler


def allowed_cpus() -> list[int]:
    """The CPUs that this process may use now; all, where the system binds no process to a CPU."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def move_to(cpus: list[int]) -> None:
    """Run on these CPUs from now on, where the system lets us."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


class Considerate:
    """Runs tasks on the last `cpus` CPUs, never on the first unless there is only one."""

    def register(self, f: Callable[..., Any], cpus: int = 12) -> Callable[..., Any]:
        @wraps(f)
        def considerate(*args: Any, **kwargs: Any) -> Any:
            all_of_them = allowed_cpus()
            move_to(all_of_them[1:][-cpus:] or all_of_them)
            try:
                return f(*args, **kwargs)
            finally:
                # The worker runs other tasks next, which are not wrapped by this.
                move_to(all_of_them)

        return considerate


@scheduler(cpus=1, impl=f"{__name__}.Considerate")
@process
def considerate(name: str) -> str:
    return f"{name}: CPUs {allowed_cpus()}, considerate"


@process
def ordinary(name: str) -> str:
    return f"{name}: CPUs {allowed_cpus()}, as usual"


@process
def lines(*of: str) -> str:
    return "\n  ".join(of)


def main() -> None:
    print(f"This process may use the CPUs {allowed_cpus()}. Its tasks use:")
    print(" ", lines(considerate("render"), ordinary("edit"), considerate("encode"), ordinary("play"))())


if __name__ == "__main__":
    main()
