"""What is measured. Importing this package registers every row. It runs nothing, and imports no
contestant."""

from benchmarks.rows import (
    arrays,
    away,
    durable,
    engines,
    everyday,
    graphs,
    hits,
    identity,
    load,
    lock,
    memory,
    places,
    pools,
    sessions,
    size,
    startup,
    streams,
)

__all__ = [
    "arrays",
    "away",
    "durable",
    "engines",
    "everyday",
    "graphs",
    "hits",
    "identity",
    "load",
    "lock",
    "memory",
    "places",
    "pools",
    "sessions",
    "size",
    "startup",
    "streams",
]
