"""An item of a stream that is kept in a durable run, as it goes to the worker that runs it.

What comes back is the pair of its node in the ledger and the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from entangle._shared.tracebacks import passes_on
from entangle._tasks.call import CALLS
from entangle._worker.worker import here

if TYPE_CHECKING:
    from entangle.errors import MayHaveRunError


class KeptItem:
    """An item, and what the ledger knows of it.

    `outcome`: it has ended well. `doubt`: it had begun, and may not run twice.
    """

    __slots__ = ("doubt", "item", "node", "outcome", "place")

    def __init__(self, item: Any, node: bytes, place: bytes, outcome: bytes | None, doubt: MayHaveRunError | None) -> None:
        self.item = item
        self.node = node
        self.place = place
        self.outcome = outcome
        self.doubt = doubt

    @passes_on
    def run(self, task: str, inner: Callable[..., Any], filled: dict[str, Any]) -> tuple[bytes, Any]:
        """Run the body for it between two records, in a worker; or take the value that is known.

        Raises MayHaveRunError where it is in doubt, and DurableError.
        """
        worker = here.worker
        assert worker is not None
        books = worker.books
        assert books is not None
        if self.doubt is not None:
            raise self.doubt
        if self.outcome is not None:
            from entangle._depot.kept_values import value_of

            return self.node, value_of(books.of_flow.directory, self.node, self.outcome)
        from entangle._tasks.durable import in_body_of_item

        item = self.item
        with in_body_of_item(self.node, self.place):
            return self.node, books.run_known(
                self.node, self.place, task, lambda: inner(item() if type(item) in CALLS else item, **filled), (), {}
            )


def item_of(value: Any) -> Any:
    """The item itself, as people know it."""
    return value.item if type(value) is KeptItem else value
