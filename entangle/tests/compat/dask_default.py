"""A pytest plugin for dask's own tests: entangle is dask's scheduler unless a test names another.

Tests that must fail then are listed here with the reason, and in `docs/compatibility.md`. If one
passes, that is an error: the list must be true.
"""

from __future__ import annotations

from typing import Any

import dask
import pytest

import entangle.dask

#: How many graphs the engine has received.
_graphs = 0
#: At least this many in the tests that `make compat` runs. If there are fewer, something else runs
#: them.
_LEAST = 700

_ONE_DEFAULT = "it expects that no scheduler is set as the default"
_OBJECT = "it expects that a value is the object in this process, not a copy"
_GLOBALS = "its tasks change an object of this process, from another one"
_DIFFERENT = {
    "dask.tests.test_base::test_compute_array_bag": _ONE_DEFAULT,
    "dask.tests.test_base::test_persist_array_bag": _ONE_DEFAULT,
    "dask.tests.test_base::test_get_scheduler": _ONE_DEFAULT,
    "dask.tests.test_delayed::test_traverse_false": _OBJECT,
    "dask.bag.tests.test_bag::test_to_delayed_optimize_graph": _GLOBALS,
    "dask.array.tests.test_array_core::test_store_delayed_target": _GLOBALS,
    "dask.array.tests.test_array_core::test_zarr_risky_shards_warns": "it fails with dask's own schedulers, too, with this zarr",
}


def _get(graph: Any, keys: Any, **options: Any) -> Any:
    global _graphs
    _graphs += 1
    return entangle.dask.get(graph, keys, **options)


def pytest_configure() -> None:
    """Set the default scheduler."""
    dask.config.set(scheduler=_get)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the known failures."""
    for item in items:
        module = getattr(item, "module", None)
        reason = _DIFFERENT.get(f"{module.__name__}::{item.name}") if module is not None else None
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if the tests' graphs did not run on the engine."""
    entangle.dask.close()
    if not session.exitstatus and session.config.option.markexpr == "" and not session.config.option.keyword and _graphs < _LEAST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many did."""
    terminalreporter.write_line(f"{_graphs} graphs ran on entangle; at least {_LEAST} of all tests should")
