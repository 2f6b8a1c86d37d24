"""Records of runs in other places: kept there for the length of a call, and sent home before its answer.

On the far side a guest of the agent's runs writes their sheets into the home of the agent, which goes with it: no file stays there.
On this side the sheets are laid on the shelf of the run that wanted them, where whoever looks next binds them with the others.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from entangle import _run
from entangle._records import directory as shelf
from entangle._records.log_segment import SUFFIX, parse, read
from entangle._records.recorder import LINK, Recorder, complain, shelf_of
from entangle._run import ObservedRun
from entangle._shared.home import home

if TYPE_CHECKING:
    from entangle._run.run import Run
    from entangle._worker.worker import Worker

# Here ----------------------------------------------------------------------------------------------------------------


def destination(worker: Worker) -> str:
    """The directory for sheets of the run that this worker works for; "" where there is none."""
    try:
        if worker.site.directory:
            with open(os.path.join(worker.site.directory, LINK), "rb", buffering=0) as file:
                return os.fsdecode(file.read())
        return shelf.make_shelf(shelf.find_shelf())
    except OSError:
        return ""


def keep(sheets: str, bodies: list[bytes]) -> None:
    """Lay sheets that have come home with the others. Never raises: no call fails for what is remembered of it."""
    for body in bodies:
        try:
            name = parse(body).id
            if not name.isalnum():
                raise ValueError(f"{name!r} is not the name of a run")
            path = os.path.join(sheets, name)
            fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(body)
                # Whoever binds sheets meanwhile must not find half of one.
                os.rename(path + ".part", path + SUFFIX)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(path + ".part")
                raise
        except (OSError, ValueError) as error:
            complain(error)


# There ---------------------------------------------------------------------------------------------------------------


class Guest(Recorder):
    """Writes the sheets of runs that somebody elsewhere wants remembered, and of those that their bodies call."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: dict[str, bool] = {}
        self.place = os.path.join(home().path, "kept")
        self.sheets = shelf.make_shelf(self.place)

    def expect(self, run: ObservedRun, whole: bool) -> None:
        """This run is to be remembered."""
        self._whole[run.id] = whole

    def shelf_of(self, run: ObservedRun) -> tuple[str, bool] | None:
        """The agent's own shelf, for runs that are wanted."""
        if run.nested:
            return shelf_of(run)
        if run.id not in self._whole and run.parent is not None and run.parent[0] in self._whole:
            self._whole[run.id] = self._whole[run.parent[0]]
        whole = self._whole.get(run.id)
        return None if whole is None else (self.sheets, whole)

    def ended(self, run: ObservedRun) -> None:
        """Write what became of the run."""
        super().ended(run)
        self._whole.pop(run.id, None)


_guest: Guest | None = None


def host(run: Run, wanted_by: str, node: int, whole: bool) -> None:
    """Have a run of this agent remembered for the run and the node elsewhere that want it. Never raises."""
    global _guest
    try:
        if _guest is None:
            _guest = Guest()
            # Of all other runs of this process nothing is to be remembered: they have no shelf here.
            _run.observers[:] = [_guest]
    except OSError as error:
        complain(error)
        return
    run.parent = (wanted_by, node)
    run.observers = [_guest, *(observer for observer in run.observers if observer is not _guest)]
    _guest.expect(run, whole)


def collect() -> list[bytes]:
    """Take the sheets of all runs that are over. Never raises."""
    found: list[bytes] = []
    if _guest is None:
        return found
    try:
        for name in os.listdir(_guest.sheets):
            path = os.path.join(_guest.sheets, name)
            with contextlib.suppress(OSError, ValueError):  # another call has taken it
                if not name.endswith(SUFFIX) or read(path).lasts:
                    continue
                with open(path, "rb") as file:
                    body = file.read()
                os.unlink(path)
                found.append(body)
    except OSError as error:
        complain(error)
    return found
