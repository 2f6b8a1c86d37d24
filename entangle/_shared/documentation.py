"""How messages, helps and errors name the page that explains something."""

from __future__ import annotations

#: How such a line begins.
MORE = "more: docs/"


def more(page: str) -> str:
    """The line that names a page of the documentation: of `durable`, "more: docs/durable.md"."""
    return f"{MORE}{page}.md"
