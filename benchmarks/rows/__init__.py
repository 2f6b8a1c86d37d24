"""What is measured. Importing this package registers every row; nothing runs, and
no contestant is imported."""

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
