"""Other places: one agent over any byte stream. Private; the doors are ssh, docker, containers,
slurm, aws (@ec2), interpreter and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from entangle._run import Observer
    from entangle._run.run import Run
    from entangle._worker.worker import Worker


class Travels(Protocol):
    """Brings records of what ran elsewhere to the caller (`_records/travels.py`)."""

    def destination(self, worker: Worker, /) -> str:
        """Here: the directory for records of calls that this worker makes;
        "" where none are wanted."""

    def keep(self, destination: str, records: list[bytes], /) -> None:
        """Here: write records that have arrived. Never raises."""

    def host(self, run: Run, wanted_by: str, node: int, whole: bool, /) -> None:
        """There: have a run recorded for a node of another run elsewhere. Never raises."""

    def host_of(self, wanted_by: str, whole: bool, /) -> Observer | None:
        """There, on another engine: what records runs that nodes of that run call. Never raises."""

    def forget(self, wanted_by: str, /) -> None:
        """There, on another engine: drop what was not collected for that run."""

    def collect(self, wanted_by: str = "", /) -> list[bytes]:
        """There: take the records of all runs that are over; on another engine, of those that this
        run wants. Never raises."""


#: `entangle/__init__.py` says who brings them. A function, so that the records are imported
#: with the first call alone.
travels: Callable[[], Travels]
