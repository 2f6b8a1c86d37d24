"""Recovery of a node whose worker has died.

Items that were done stay done. The item that ran is tried again, or has failed.
"""

from __future__ import annotations

from typing import Any

from entangle._dataflow.outcome import Attempt
from entangle._dataflow.stages import summary_of
from entangle._shared.journal import read_journal
from entangle._worker.failures import pause
from entangle.errors import add_note
from entangle.flow import Flow


class Recovery:
    """How far the interrupted nodes of a flow had come."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._known: dict[int, tuple[Any, list[Any], list[str]]] = {}

    def lost(self, node: int, slot: int, value: Any, error: Exception, directory: str) -> tuple[Any, float]:
        """Outcomes and failed attempts to resume from, and seconds until the next attempt."""
        stage: Any = self._flow.body(node).function
        label = value[0]
        known = self._known.get(node)
        done: list[Any] = []
        attempts: list[str] = []
        if known is not None and known[0] == label:
            _, done, attempts = known
        for entry in read_journal(directory, slot, (label, node)) if directory else ():
            if type(entry) is Attempt:
                attempts.append(entry.text)
            else:
                done.append(entry)
                attempts = []
        wait = 0.0
        if len(done) < len(value[2]):
            attempts.append(summary_of(error))
            allowed = _matches(error, stage.terms.on)
            if len(attempts) <= stage.terms.retry and allowed:
                wait = pause(stage.terms, len(attempts))
            else:
                add_note(error, f"attempt {len(attempts)}")
                used_up = stage.terms.retry > 0 and allowed
                done.append(stage.failure(value[2][len(done)], error, attempts, used_up, sent=False))
                attempts = []
        self._known[node] = label, done, attempts
        return (done, attempts), wait


def _matches(error: Exception, wanted: tuple[type[BaseException], ...]) -> bool:
    """Whether `retry` covers the death of a worker.

    An `on` that names a subclass of the error counts too: it can only mean this error.
    """
    return any(isinstance(error, kind) or issubclass(kind, type(error)) for kind in wanted)
