"""The tests that dask has for any `get`: its own mixin."""

from __future__ import annotations

from dask.utils_test import GetFunctionTestMixin

import entangle.dask


class TestGet(GetFunctionTestMixin):  # type: ignore[misc]
    """Each test calls `get` with a graph."""

    get = staticmethod(entangle.dask.get)
