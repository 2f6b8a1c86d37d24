"""The command and the environment with which a new Python is started, so that it reads code as this one does."""

from __future__ import annotations

import contextlib
import os
import sys

from entangle._worker import importing

#: Code that a new Python runs first where it cannot find our modules by itself. An agent sets it.
prelude = ""


def environment() -> dict[str, str]:
    """The environment for an interpreter that is to find the modules that this one finds, whatever its working directory."""
    variables = dict(os.environ)
    found = []
    for entry in sys.path:
        with contextlib.suppress(FileNotFoundError):  # our own working directory has been removed
            found.append(os.path.abspath(entry))
    variables["PYTHONPATH"] = os.pathsep.join(found)
    return variables


def command(code: str) -> list[str]:
    """The command that starts an interpreter which reads code as this one does: assertions and the encoding of text are as here."""
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    flags += ["-X", f"utf8={sys.flags.utf8_mode}"]
    flags += ["-X", "dev"] if sys.flags.dev_mode else []
    flags += ["-b"] * sys.flags.bytes_warning
    return [sys.executable, *flags, "-c", importing.prelude + prelude + code]
