"""`Cache`: the options of `cache=`; see its docstring."""

from __future__ import annotations

from entangle._tasks.cache_options import Cache

__all__ = ["Cache"]
