"""entangle: run ordinary Python functions in parallel, on one machine or many, without a server in the middle.

A decorator makes a function a task, calling it builds a graph, calling the graph runs it::

    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    print(add(add(1, 2), add(3, 4))())

The floors of the house; imports point down only, and `tests/test_floors.py` sees to it:

    0  errors                                        every error, as one tree
    1  flow, cookies                                 what can be run; the right to a CPU
    2  _run/                                         running: table, store, worker, start, supervisor, run
    3  task                                          tasks, layers, calls; a call tree as a flow
    4  process thread workflow scheduler local http  doors: a signature, a docstring, a layer
       logging/
    6  cli, examples/                                people
"""

from __future__ import annotations

from contextlib import AbstractContextManager

__version__ = "0.3.0"


def progress() -> AbstractContextManager[None]:
    """Show how far runs are, for as long as the block lasts: on a terminal, for runs that take more than a second.

    Needs `rich` (`pip install 'py-entangle[progress]'`).

        with entangle.progress():
            flow()
    """
    from entangle._run.progress import showing

    return showing()
