"""`wait=` on another engine: seconds from the begin of what a node takes until all is there."""

from __future__ import annotations

from collections.abc import Iterable

from entangle._shared.summaries import named_call
from entangle._shared.table import DONE, FAILED, SKIPPED, Table
from entangle.errors import EntangleError, ProcessTimeoutException, ThreadTimeoutException
from entangle.flow import THREAD, Flow

#: How many arguments that came too late an error names.
_NAMED = 4
_OVER = (DONE, FAILED, SKIPPED)


class ArgumentWaits:
    """The nodes of a run whose arguments have a deadline."""

    def __init__(self, flow: Flow, nodes: Iterable[int]) -> None:
        self._flow = flow
        #: For each, all nodes that it depends on.
        self._left = {node: flow.behind(node) for node in nodes if flow.body(node).wait is not None}
        #: When nodes have begun (ns, CLOCK_MONOTONIC).
        self._begun: dict[int, int] = {}

    def begun(self, node: int, at: int) -> None:
        """A node has begun, or had by then."""
        if self._left:
            self._begun[node] = min(at, self._begun.get(node, at))

    def late(self, table: Table, now: int) -> list[tuple[int, EntangleError]]:
        """The nodes whose arguments come too late, each with its error. Each is given once."""
        found: list[tuple[int, EntangleError]] = []
        for node, behind in list(self._left.items()):
            missing = [source for source in self._flow.sources(node) if table.states[source] not in _OVER]
            if not missing:
                del self._left[node]
                continue
            first = min((self._begun[source] for source in behind if source in self._begun), default=0)
            wait = self._flow.body(node).wait
            assert wait is not None
            if first and now - first >= wait * 1e9:
                del self._left[node]
                found.append((node, self._error(node, wait, missing)))
        return found

    def _error(self, node: int, wait: float, missing: list[int]) -> EntangleError:
        flow = self._flow
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        names = ", ".join(named_call(flow, source) for source in missing[:_NAMED]) + more
        kind = ThreadTimeoutException if flow.body(node).carrier == THREAD else ProcessTimeoutException
        return kind(f"task {flow.name(node)!r} waited {wait:g} s for its arguments, and {names} had not arrived")
