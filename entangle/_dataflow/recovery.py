"""What becomes of a node whose worker is gone: items that were done stay done, the one that ran is tried again or has failed."""

from __future__ import annotations

from typing import Any

from entangle._dataflow.outcome import Attempt
from entangle._dataflow.stages import summary_of
from entangle._shared.journal import read_journal
from entangle._worker.failures import pause
from entangle.errors import add_note
from entangle.flow import Flow


class Recovery:
    """How far nodes of a flow had come that have been interrupted."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._known: dict[int, tuple[Any, list[Any], list[str]]] = {}

    def lost(self, node: int, slot: int, value: Any, error: Exception, directory: str) -> tuple[Any, float]:
        """Outcomes and failed attempts that the next worker goes on from, and seconds until it may."""
        stage: Any = self._flow.body(node).function
        label = value[0]
        known = self._known.get(node)
        done: list[Any] = []
        told: list[str] = []
        if known is not None and known[0] == label:
            _, done, told = known
        for entry in read_journal(directory, slot, (label, node)) if directory else ():
            if type(entry) is Attempt:
                told.append(entry.text)
            else:
                done.append(entry)
                told = []
        wait = 0.0
        if len(done) < len(value[2]):
            told.append(summary_of(error))
            allowed = _matches(error, stage.terms.on)
            if len(told) <= stage.terms.retry and allowed:
                wait = pause(stage.terms, len(told))
            else:
                add_note(error, f"attempt {len(told)}")
                used_up = stage.terms.retry > 0 and allowed
                done.append(stage.failure(value[2][len(done)], error, told, used_up, sent=False))
                told = []
        self._known[node] = label, done, told
        return (done, told), wait


def _matches(error: Exception, wanted: tuple[type[BaseException], ...]) -> bool:
    """Whether a lost worker is among the errors that are tried again: whoever asked for a narrower kind of its error did mean it."""
    return any(isinstance(error, kind) or issubclass(kind, type(error)) for kind in wanted)
