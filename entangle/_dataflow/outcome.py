"""The outcome of a node for one item: a value, values of a lambda, the end, or a failure."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from entangle._shared.call_notes import add_call, add_host
from entangle._shared.pickling import dumps
from entangle._shared.tracebacks import hide
from entangle._worker.failures import describe, few_of, set_traceback, text_of
from entangle.errors import EntangleError, ProcessRetryException, add_note


class Ended:
    """The branch ends here: a lambda has chosen nothing, or a window keeps the item."""

    def __reduce__(self) -> str:
        return "ENDED"


ENDED = Ended()


class Several:
    """The values of all leaves below the nodes that a lambda has chosen."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


class Attempt:
    """An entry of a journal: an attempt at the next item has failed."""

    def __init__(self, text: str) -> None:
        self.text = text


class Failure:
    """A node has failed for good with an item.

    Holds which node it is (`number`, `name`, `path`), the item (`value`), the error, and the texts
    of the errors of all attempts. `call` is the call of the node with that item, in short.
    """

    def __init__(
        self,
        number: int,
        name: str,
        path: str,
        call: str,
        value: Any,
        error: BaseException,
        attempts: list[str],
        used_up: bool,
        sent: bool = True,
    ) -> None:
        self.number = number
        self.name = name
        self.path = path
        self.call = call
        self.value = value
        self.attempts = attempts
        self.used_up = used_up
        #: Identifies the failure, however many branches have passed it on.
        self.key = id(self), number
        self._error: BaseException | None = error
        self._report: dict[str, Any] | None = None
        self._sent = sent
        #: The node; known only in the process that built the graph.
        self.node: Any = None

    def __getstate__(self) -> dict[str, Any]:
        known = dict(self.__dict__)
        if self._report is None:
            assert self._error is not None
            known["_report"] = describe(self._error, self.name, len(self.attempts), self.call)
        known["_error"] = known["node"] = None
        try:
            dumps(self.value)
        except Exception:
            known["value"] = None
        return known

    def error(self) -> BaseException:
        """The error as the caller gets it."""
        error, report = self._error, self._report
        if error is None:
            assert report is not None
            try:
                error = pickle.loads(report["error"])
            except Exception as problem:
                error = EntangleError(f"task {self.name!r} failed with an error that cannot be unpickled here ({problem})")
            if self._sent:  # a body has raised it; a dead process has no traceback
                set_traceback(error, report["text"])
                add_host(error, report["where"])
            self._error = error
        hide(error)
        add_call(error, [f"call path: {self.path}", f"call: {self.call}"])
        if not self.used_up:
            return error
        failed = f"task {self.name!r} failed {len(self.attempts)} times; the last time with {type(error).__name__}: {text_of(error)}"
        last, error = error, ProcessRetryException(failed)
        error.__cause__ = last
        for note in few_of([f"attempt {number}: {text}" for number, text in enumerate(self.attempts[:-1], 1)]):
            add_note(error, note)
        add_note(error, f"call path: {self.path}")
        add_note(error, f"call: {self.call}")
        return error


#: Outcomes that are no values. A node that is given one passes it on.
PASSED = frozenset((Ended, Failure))


def leaves_of(outcomes: Iterable[Any]) -> tuple[tuple[Any, ...], list[Failure]]:
    """The values of the leaves for one item, in order; and the failures, each once."""
    values: list[Any] = []
    failures: dict[Any, Failure] = {}
    for outcome in outcomes:
        kind = type(outcome)
        if kind is Failure:
            failures.setdefault(outcome.key, outcome)
        elif kind is Several:
            values += outcome.values
        elif kind is not Ended:
            values.append(outcome)
    return tuple(values), list(failures.values())
