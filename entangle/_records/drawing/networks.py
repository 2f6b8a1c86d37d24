"""A run as a networkx graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entangle.errors import RecordsError

if TYPE_CHECKING:
    from entangle._records.views import Run


def to_networkx(run: Run) -> Any:
    """A MultiDiGraph: two arguments of a node may be one value."""
    try:
        import networkx
    except ImportError:
        raise RecordsError("a networkx graph needs networkx: pip install 'py-entangle[graph]'") from None
    graph = networkx.MultiDiGraph(run=run.id, name=run.name, state=run.state)
    for node in run.nodes:
        graph.add_node(
            node.number,
            name=node.name,
            state=node.state,
            seconds=node.seconds,
            text=node.value.text if node.value else None,
            hash=node.value.hash if node.value else None,
            pid=node.pid,
            cpu=node.cpu,
        )
    graph.add_edges_from((edge.source, edge.target, {"argument": edge.argument}) for edge in run.edges)
    return graph
