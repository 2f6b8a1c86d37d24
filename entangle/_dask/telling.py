"""Calls dask's callbacks for the tasks of a run.

No scheduler stands between the tasks of a run. So the caller looks at the table every few
milliseconds, and sooner where a value is kept for it. Each look calls the callbacks for what has
begun and ended since the last one, for every task after its inputs. dask's own functions keep the
state that its schedulers would pass to callbacks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from typing import Any

from entangle._dask.graph_flow import GraphFlow

#: A callback of dask: what it has for start, start_state, pretask, posttask and finish.
Callback = tuple[Callable[..., Any] | None, ...]


class Telling:
    """Calls callbacks for the tasks of one run. `graph` is the graph that they get."""

    def __init__(
        self,
        callbacks: Iterable[Callback],
        graph: dict[Hashable, Any],
        compiled: GraphFlow,
        wanted: set[Hashable],
        cache: MutableMapping[Hashable, Any] | None,
    ) -> None:
        from dask._task_spec import Alias
        from dask.local import finish_task, start_state_from_dask

        self._graph, self._compiled, self._wanted, self._finish = graph, compiled, wanted, finish_task
        self._sortkey = compiled.places.__getitem__
        self.state: dict[str, Any] = start_state_from_dask(graph, cache=cache, sortkey=self._sortkey)
        for callback in callbacks:
            if callback[1]:
                callback[1](graph, self.state)
        self._pretask = [callback[2] for callback in callbacks if callback[2]]
        self._posttask = [callback[3] for callback in callbacks if callback[3]]
        self._profilers = _profilers(self._posttask)
        self._aliases = {key for key, task in graph.items() if type(task) is Alias}
        self._begun: set[Hashable] = set()
        #: What to add to a time of the table for the clock of dask's profilers (seconds).
        self._shift = time.perf_counter() - time.monotonic()
        self._tell_aliases(self.state["ready"], 0, 0, 0)

    @property
    def takes_values(self) -> bool:
        """Whether a callback gets the values of tasks."""
        return bool(self._posttask)

    def begun(self, node: int) -> None:
        """Tell that a task runs, unless the end of one of its inputs has not been told yet."""
        key = self._compiled.key_of[node]
        if key not in self._begun and key not in self.state["waiting"]:
            self._begin(key)

    def ended(self, node: int, value: Any, started: int, ended: int, pid: int) -> None:
        """Tell that a task has ended: its value, when it ran (ns, CLOCK_MONOTONIC), and where."""
        key = self._compiled.key_of[node]
        if key not in self._begun:
            self._begin(key)
        self._end(key, value, started, ended, pid)
        self._tell_aliases(self.state["dependents"][key], started, ended, pid)

    def looked(self) -> None:
        """Drop tasks that have begun from the list of those that are ready."""
        self.state["ready"][:] = [key for key in self.state["ready"] if key not in self._begun]

    def _begin(self, key: Hashable) -> None:
        state = self.state
        self._begun.add(key)
        if state["ready"] and state["ready"][-1] == key:
            state["ready"].pop()
        state["running"].add(key)
        for tell in self._pretask:
            tell(key, self._graph, state)

    def _end(self, key: Hashable, value: Any, started: int, ended: int, pid: int) -> None:
        state = self.state
        if self.takes_values:
            state["cache"][key] = value
        self._finish(self._graph, key, state, self._wanted, self._sortkey, delete=self.takes_values)
        for tell in self._posttask:
            tell(key, value, self._graph, state, pid)
        for profiler in self._profilers:
            # The profiler took the time when it was called. The table knows when the task ran.
            first = profiler._results[key]
            profiler._results[key] = (*first[:2], started / 1e9 + self._shift, ended / 1e9 + self._shift, pid)

    def _tell_aliases(self, keys: Iterable[Hashable], started: int, ended: int, pid: int) -> None:
        """Tell of aliases that are ready: dask takes them for tasks, a flow has no nodes for
        them."""
        ready = [key for key in keys if key in self._aliases and key not in self.state["waiting"] and key not in self._begun]
        while ready:
            key = ready.pop()
            self._begin(key)
            value = self.state["cache"].get(self._graph[key].target)
            self._end(key, value, started, ended, pid)
            ready += [taker for taker in self.state["dependents"][key] if taker in self._aliases and taker not in self.state["waiting"]]


def _profilers(posttask: list[Callable[..., Any]]) -> list[Any]:
    """dask's profilers among the callbacks: their times can be corrected. Those that other
    callbacks take cannot."""
    module = sys.modules.get("dask.diagnostics.profile")
    owners = [getattr(tell, "__self__", None) for tell in posttask]
    return [owner for owner in owners if module is not None and isinstance(owner, module.Profiler)]
