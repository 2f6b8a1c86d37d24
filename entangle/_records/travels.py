"""Records of runs in other places: kept there during the call, and sent home before its answer.

On the far side, a guest recorder writes the log segments of the agent's runs into the home of the
agent, which is removed with it: no file stays there. On this side, they join the log segments of
the run that called, and are ingested with those.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from entangle import _run
from entangle._records import retirements
from entangle._records.directory import find_directory, make_directory
from entangle._records.log_segment import PART, SUFFIX, parse, read
from entangle._records.recorder import Recorder, complain, destination_of
from entangle._run import ObservedRun, Observer
from entangle._shared.frame import LINK
from entangle._shared.home import home
from entangle._shared.table import NOTING

if TYPE_CHECKING:
    from entangle._run.run import Run
    from entangle._worker.worker import Worker

# Here ---------------------------------------------------------------------------------------------


def destination(worker: Worker) -> str:
    """Where log segments go that belong to the run of this worker; "" where it has no record."""
    try:
        if worker.site.directory:
            if not worker.site.table.header[NOTING]:
                return ""
            with open(os.path.join(worker.site.directory, LINK), "rb", buffering=0) as file:
                return os.fsdecode(file.read())
        return make_directory(find_directory())
    except OSError:
        return ""


def keep(folder: str, bodies: list[bytes]) -> None:
    """Write log segments that have come home. Never raises: no call fails for the sake of its
    record."""
    for body in bodies:
        try:
            if retirements.keep(folder, body):
                continue
            name = parse(body).id
            if not name.isalnum():
                raise ValueError(f"{name!r} is not the name of a run")
            path = os.path.join(folder, name)
            fd = os.open(path + PART, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(body)
                # Only now under its own name: a process that ingests meanwhile must not find half
                # of it.
                os.rename(path + PART, path + SUFFIX)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(path + PART)
                raise
        except (OSError, ValueError, LookupError, TypeError) as error:
            complain(error)


# There --------------------------------------------------------------------------------------------


class Guest(Recorder):
    """Writes the log segments of runs whose caller, elsewhere, wants records, and of the runs that
    their bodies call."""

    def __init__(self, place: str = "kept") -> None:
        super().__init__()
        self._whole: dict[str, bool] = {}
        self.place = os.path.join(home().path, place)
        self.folder = make_directory(self.place)

    def expect(self, run: ObservedRun, whole: bool) -> None:
        """Record this run."""
        self._whole[run.id] = whole

    def destination_of(self, run: ObservedRun) -> tuple[str, bool] | None:
        """The agent's own directory, for runs to be recorded."""
        if run.nested:
            return destination_of(run)
        if run.id not in self._whole and run.parent is not None and run.parent[0] in self._whole:
            self._whole[run.id] = self._whole[run.parent[0]]
        whole = self._whole.get(run.id)
        return None if whole is None else (self.folder, whole)

    def ended(self, run: ObservedRun) -> None:
        """Write what became of the run."""
        super().ended(run)
        self._whole.pop(run.id, None)


class GuestOf(Guest):
    """Writes the log segments of what the nodes of one run elsewhere call here. Its agent, a worker
    of another engine, may work for several callers."""

    def __init__(self, wanted_by: str, whole: bool) -> None:
        super().__init__(f"kept-{wanted_by}")
        self._whole[wanted_by] = whole


_guest: Guest | None = None
_made: dict[str, Guest] = {}
#: For runs on other engines, by those runs.
_guests: dict[str, Guest] = {}


def host(run: Run, wanted_by: str, node: int, whole: bool) -> None:
    """Record a run of this agent for the run and the node elsewhere that called it. Never
    raises."""
    global _guest
    try:
        if _guest is None:
            _guest = _made.setdefault("guest", Guest())  # one, also where two threads come here
            # No other run of this process is recorded: this machine has no directory of records for
            # them.
            _run.observers[:] = [_guest]
    except OSError as error:
        complain(error)
        return
    run.parent = (wanted_by, node)
    run.observers = [_guest, *(observer for observer in run.observers if observer is not _guest)]
    _guest.expect(run, whole)


def host_of(wanted_by: str, whole: bool) -> Observer | None:
    """What records the runs that nodes of a run elsewhere call here. Never raises."""
    try:
        return _guests.get(wanted_by) or _guests.setdefault(wanted_by, GuestOf(wanted_by, whole))
    except OSError as error:
        complain(error)
        return None


def forget(wanted_by: str) -> None:
    """Drop what was not collected for that run elsewhere."""
    import shutil

    guest = _guests.pop(wanted_by, None)
    if guest is not None:
        shutil.rmtree(guest.place, ignore_errors=True)


def collect(wanted_by: str = "") -> list[bytes]:
    """Take the log segments of all runs that are over, or of those that this run elsewhere wants.
    Never raises."""
    found: list[bytes] = []
    guest = _guests.get(wanted_by) if wanted_by else _guest
    if guest is None:
        return found
    try:
        for name in os.listdir(guest.folder):
            path = os.path.join(guest.folder, name)
            with contextlib.suppress(OSError, ValueError):  # another call has taken it
                if not name.endswith((SUFFIX, retirements.ENDING)) or (name.endswith(SUFFIX) and read(path).live):
                    continue
                with open(path, "rb") as file:
                    body = file.read()
                os.unlink(path)
                found.append(body)
    except OSError as error:
        complain(error)
    return found
