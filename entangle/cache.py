"""`Cache`: the options of `cache=`; and `why`, which says why a call has no value.

More: docs/caching.md.
"""

from __future__ import annotations

from entangle._tasks.cache_options import Cache
from entangle._tasks.missing_value import why

__all__ = ["Cache", "why"]
