"""Several hosts under one name: the first that can be reached is the place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport


@dataclass(frozen=True)
class SeveralTransport(Transport):
    """`called` is the name of the place; `hosts` are tried in turn."""

    called: str
    hosts: tuple[Transport, ...]

    name: ClassVar[str] = "place"

    @property
    def alternatives(self) -> tuple[Transport, ...]:
        """The hosts, in turn."""
        return self.hosts

    @property
    def place(self) -> str:
        """The name of the place."""
        return self.called
