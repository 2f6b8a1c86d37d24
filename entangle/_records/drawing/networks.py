"""A run as a networkx graph."""

from __future__ import annotations

from typing import Any

from entangle._records.rows import RunGraph
from entangle.errors import RecordsError


def to_networkx(run: RunGraph) -> Any:
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
            task=node.task.name,
            state=node.state,
            error=str(node.error) if node.error else None,
            cause=node.cause,
            seconds=node.seconds,
            text=node.value.text if node.value else None,
            hash=node.value.hash if node.value else None,
            place=node.place,
            ticket=node.ticket,
            pid=node.pid,
            cpu=node.cpu,
        )
    graph.add_edges_from((edge.source, edge.target, {"argument": edge.argument}) for edge in run.edges)
    return graph
