"""A dataflow over three hosts: each node gets the value of another one, wherever that ran.

`emit` runs on this machine, `echo` and `printx` on one host, `printz` on another, `printy` in a
process here. The callback runs here whenever a node is done, so the values can be watched on their
way. Prints them, and in the end the values of the leaves. `hosts.py` says which hosts it uses.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

from entangle.dataflow import dataflow
from entangle.examples.hosts import three_hosts
from entangle.process import process
from entangle.ssh import ssh


def tag(name: str, value: str) -> str:
    """The value, with the task that had it, and where."""
    port = os.environ.get("SSH_CONNECTION", "- - - here").split()[3]
    return f"{value} > {name}@{port}"


def main() -> None:
    seen = threading.Lock()

    def triggered(function: Callable[..., Any], result: str) -> None:
        with seen:
            print(f"  {function.__name__:<6} gave {result}")

    with three_hosts() as (miko, radiant, _):

        @dataflow(callback=triggered)
        @ssh(**miko)
        @process
        def printz(value: str) -> str:
            return tag("printz", value)

        @dataflow(callback=triggered)
        @ssh(**radiant)
        @process
        def printx(value: str) -> str:
            return tag("printx", value)

        @dataflow(callback=triggered)
        @process
        def printy(value: str) -> str:
            return tag("printy", value)

        @dataflow(callback=triggered)
        @ssh(**radiant)
        @process
        def echo(value: str) -> str:
            return tag("echo", value)

        @dataflow(callback=triggered, maxworkers=3)
        def emit(value: str) -> str:
            return tag("emit", value)

        flow = emit(printx(printz(echo())), printy(printz()), printy())
        leaves = flow("hello")
    print("The leaves are:")
    for leaf in leaves:
        print(f"  {leaf}")


if __name__ == "__main__":
    main()
