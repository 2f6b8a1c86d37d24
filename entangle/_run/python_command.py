"""The command and the environment that start a new Python which reads code as this one does."""

from __future__ import annotations

import contextlib
import os
import sys

from entangle._worker import importing

#: Code that a new Python runs first if it could not find our modules otherwise. An agent sets it.
prelude = ""


def environment() -> dict[str, str]:
    """The environment of an interpreter that finds the same modules as this one, in any
    directory."""
    variables = dict(os.environ)
    found = []
    for entry in sys.path:
        with contextlib.suppress(FileNotFoundError):  # our working directory was removed
            found.append(os.path.abspath(entry))
    variables["PYTHONPATH"] = os.pathsep.join(found)
    return variables


def command(code: str) -> list[str]:
    """The command of an interpreter that reads code as this one does: same assertions, same
    encoding."""
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    flags += ["-X", f"utf8={sys.flags.utf8_mode}"]
    flags += ["-X", "dev"] if sys.flags.dev_mode else []
    flags += ["-b"] * sys.flags.bytes_warning
    return [sys.executable, *flags, "-c", importing.prelude + prelude + code]
