"""Graphs of dask on the engine: `dask.config.set(scheduler=entangle.dask.get)`.

Needs dask: `pip install 'py-entangle[dask]'`.

More: docs/coming_from_dask.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any

from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import hide, passes_on
from entangle.errors import OptionError

__all__ = ["close", "get"]


def get(
    dsk: Any,
    keys: Any,
    num_workers: int | None = None,
    cache: MutableMapping[Any, Any] | None = None,
    callbacks: Any = None,
    rerun_exceptions_locally: bool | None = None,
    **others: Any,
) -> Any:
    """Compute keys of a dask graph in worker processes: a scheduler for dask.

    `keys` is a key, or a list of keys and of such lists, for which the value is a tuple. Options
    are given to `compute` or to `dask.config.set`, as to dask's own schedulers:

    - `num_workers`: at most so many processes run tasks at a time. By default as many as there are
      CPUs, more while some only wait.
    - `cache`: a dict of values that are known, by key. Those of `keys` are added.
    - `callbacks`: callbacks of dask for this graph, instead of those that are registered.
      Progress bars and profilers of dask work. A callback for ended tasks gets their values, so
      that every value is copied to this process.
    - `rerun_exceptions_locally`: a task that fails runs once more in this process, where a debugger
      can look at it.

    Other options are ignored, as dask does: `pool` and `initializer` too, since the workers are the
    engine's own. Those stay warm for the next graph, until they have had nothing to do for a
    minute, or `entangle.dask.close()`; in an `entangle.session`, graphs use its workers. A value
    goes from worker to worker through shared memory; arrays are mapped there, not copied. A graph
    is a run like any other, for records, progress and `entangle top`.

    Raises the error of the task that failed first, with the worker's traceback as its cause;
    KeyError for a key that the graph does not have.

        with dask.config.set(scheduler=entangle.dask.get):
            x.sum().compute()
    """
    try:
        return _get(dsk, keys, num_workers, cache, callbacks, rerun_exceptions_locally)
    except BaseException as error:
        hide(error)
        raise


def close() -> None:
    """End the warm workers that graphs of dask have in this process. The next graph starts others.

    Those of an `entangle.session` stay.
    """
    from entangle._dask.graph_run import close

    close()


@passes_on
def _get(dsk: Any, keys: Any, num_workers: int | None, cache: MutableMapping[Any, Any] | None, callbacks: Any, rerun: bool | None) -> Any:
    try:
        from dask import config
        from dask._task_spec import DataNode, convert_legacy_graph
        from dask.callbacks import local_callbacks
        from dask.core import flatten
        from dask.local import nested_get
        from dask.utils import ensure_dict
    except ImportError as error:
        raise ImportError(f"entangle.dask needs dask (2025.3 or newer): pip install 'py-entangle[dask]' ({error})") from error

    workers = num_workers if num_workers is not None else config.get("num_workers", None)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise OptionError(f"entangle.dask.get: num_workers={value_in_short(workers)}; it must be a whole number, at least 1, or None")
    if rerun is None:
        rerun = bool(config.get("rerun_exceptions_locally", False))
    if cache is None:
        cache = config.get("cache", None)
    wanted = list(dict.fromkeys(flatten(keys))) if isinstance(keys, list) else [keys]
    whole = ensure_dict(dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk)
    known = {key: DataNode(key, value) for key, value in (cache or {}).items()}
    graph = {**convert_legacy_graph(whole, {*whole, *known}), **known}
    with local_callbacks(callbacks) as told:
        values = _told(graph, wanted, cache, list(told), rerun, workers) if told else _values(graph, wanted, rerun, workers)
    if cache is not None:
        cache.update(values)
    return nested_get(keys, values)


def _values(
    graph: Mapping[Hashable, Any], wanted: Sequence[Hashable], rerun: bool, workers: int | None, telling: Any = None
) -> dict[Hashable, Any]:
    """The values of these keys, each once."""
    from entangle._dask.graph_flow import compile_graph
    from entangle._dask.graph_run import GraphRun, forks
    from entangle._run.progress import observer_for

    compiled = compile_graph(graph, wanted, forks)
    if telling is not None:
        telling = telling(compiled)
    if compiled.flow is None:
        return {key: compiled.constants[~compiled.places[key]] for key in wanted}
    value = GraphRun(compiled, telling, rerun, workers, observer_for(None)).value()
    return dict(zip(wanted, value, strict=True)) if len(wanted) > 1 else {wanted[0]: value}


def _told(
    graph: dict[Hashable, Any],
    wanted: Sequence[Hashable],
    cache: MutableMapping[Any, Any] | None,
    callbacks: list[tuple[Any, ...]],
    rerun: bool,
    workers: int | None,
) -> dict[Hashable, Any]:
    """The same, and callbacks are told of it, in the order in which dask's schedulers do that."""
    from dask._task_spec import convert_legacy_graph, cull

    from entangle._dask.telling import Telling

    started: list[tuple[Any, ...]] = []
    telling: Telling | None = None
    failed = True
    graph = dict(cull(graph, wanted))
    try:
        for callback in callbacks:
            if callback[0]:
                callback[0](graph)
            started.append(callback)
        graph = convert_legacy_graph(graph)  # a callback may have put in what it has kept

        def tell(compiled: Any) -> Telling:
            nonlocal telling
            telling = Telling(callbacks, graph, compiled, set(wanted), cache)
            return telling

        values = _values(graph, wanted, rerun, workers, tell)
        failed = False
        return values
    finally:
        for callback in started:
            if callback[4]:
                callback[4](graph, telling.state if telling is not None else {}, failed)
