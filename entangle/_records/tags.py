"""Tags: what the caller says of the runs of a block."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator

from entangle._shared.block import block

Tag = str | int | float | bool

current: contextvars.ContextVar[dict[str, Tag] | None] = contextvars.ContextVar("entangle-tags", default=None)


@block
def tagging(tags: dict[str, Tag]) -> Iterator[None]:
    """Add tags to those that are there, for as long as the block lasts."""
    token = current.set({**(current.get() or {}), **tags})
    try:
        yield
    finally:
        current.reset(token)
