"""What the exit status of a command means, and how a command ends with one."""

from __future__ import annotations

DONE, FAILED, USAGE, ABSENT, UNINSTALLED, UNREACHABLE = range(6)
INTERRUPTED = 130
#: What programs are told instead of a status.
KINDS = {FAILED: "Failed", USAGE: "UsageError", ABSENT: "NotFound", UNINSTALLED: "NotInstalled", UNREACHABLE: "NotReachable"}


class Refused(Exception):
    """A command cannot do what was asked. It is shown as one line, and the program ends with
    `status`."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def need(module: str, extra: str, what: str) -> None:
    """Check that a module can be imported. Raises Refused, with the extra that brings it, where it
    cannot."""
    import importlib

    try:
        importlib.import_module(module)
    except ImportError:
        raise Refused(f"{what} needs {module}: pip install 'py-entangle[{extra}]'", UNINSTALLED) from None
