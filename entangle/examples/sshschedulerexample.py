"""A workflow on one host that calls tasks on two others, each host with a scheduler of its own.

`whole` goes to the third host, with its decorators. There it calls `two` and `three`, which that
host sends on to the first and the second, and `add`, which stays. `@scheduler` takes its cookies on
the host where its task runs, so no process in the middle knows of all three. Prints the value, and
on which host each part ran. `hosts.py` says which hosts it uses.
"""

import os
from typing import Any, NamedTuple

from entangle.examples.hosts import three_hosts
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.workflow import workflow

config: dict[str, Any] = {"cpus": 1, "impl": "entangle.scheduler.DefaultScheduler"}


class Part(NamedTuple):
    """A number, and for each task that made it: its name, host, ssh port and process."""

    value: int
    makers: tuple[str, ...]


def maker(task: str) -> tuple[str, ...]:
    """This task, and where it runs."""
    port = os.environ.get("SSH_CONNECTION", "- - - here").split()[3]
    return (f"{task:<6} on {os.uname().nodename}, ssh port {port}, process {os.getpid()}",)


def main() -> None:
    with three_hosts() as (miko, radiant, phoenix):

        @ssh(**miko)
        @scheduler(**config)
        @process
        def two() -> Part:
            return Part(2, maker("two"))

        @ssh(**radiant)
        @scheduler(**config)
        @process
        def three() -> Part:
            return Part(3, maker("three"))

        @scheduler(**config)
        @process
        def add(a: Part, b: Part) -> Part:
            return Part(a.value + b.value, a.makers + b.makers + maker("add"))

        @ssh(**phoenix)
        @scheduler(**config)
        @workflow
        def whole() -> Any:
            return add(three(), two())

        value, makers = whole()()
    for line in makers:
        print(f"  {line}")
    print(f"The result is {value}.")


if __name__ == "__main__":
    main()
