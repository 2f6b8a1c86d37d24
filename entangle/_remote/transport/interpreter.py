"""Another Python of this machine: another version, or a virtual environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle.errors import UnfitPythonError


@dataclass(frozen=True)
class InterpreterTransport(Transport):
    """`python` is the path of an interpreter, or a name to be found on PATH."""

    python: str

    name: ClassVar[str] = "interpreter"

    @property
    def place(self) -> str:
        """The interpreter's path."""
        return self.python

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start it in this process's working directory and environment.

        The variables that would make it find this Python's packages are left out.
        """
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")}
        try:
            return ProcessStream([self.python, *arguments], environment)
        except OSError as error:
            raise UnfitPythonError(
                f"@interpreter: {self.python!r} cannot be started: {error.strerror}; name a Python that runs on this machine"
            ) from None
