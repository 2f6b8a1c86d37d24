"""What dask expects of any `get`: its own mixin of tests."""

from __future__ import annotations

from dask.utils_test import GetFunctionTestMixin

import entangle.dask


class TestGet(GetFunctionTestMixin):  # type: ignore[misc]
    """Each test gives `get` a graph."""

    get = staticmethod(entangle.dask.get)
