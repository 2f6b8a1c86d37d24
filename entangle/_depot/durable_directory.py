"""The directories of durable runs, beside the records.

::

    durable/<name>/            0700
        lock                   held by the process that is in the run
        alive                  shared by its workers while they can append to the ledger
        ledger.<n>             one for each time the run was entered
        values/<node>          large values
        runs/<node>            what each run at the top was, to take it up without its program
        about                  JSON: the name, the program, the secret
        finished               the time of this file is when the run was left in good order
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import NamedTuple

from entangle._depot import ledger
from entangle._depot.bounds import bounds
from entangle._depot.kept_values import sync_directory
from entangle._depot.key_lock import KeyLock, is_held
from entangle._depot.ledger import NO_NODE, Ledger, LedgerOfFlow, Outcomes
from entangle._shared.state_directory import find_directory, make_directory_of_state
from entangle.errors import DurableError

_LEDGER = re.compile(r"ledger\.(\d+)")
#: How long workers of a process that is gone may take to end, where the caller does not want to
#: wait (seconds).
_ENDING = 5.0


class UnfinishedRun(NamedTuple):
    """A durable run that was not left in good order, or is in use now.

    `begun` and `changed` are seconds since the epoch. `open` are the tasks that had begun and not
    ended, `ended` counts nodes that have ended well.
    """

    name: str
    in_use: bool
    begun: float
    changed: float
    ended: int
    open: list[str]
    program: list[str]
    directory: str


class DurableDirectory:
    """The directory of one durable run."""

    def __init__(self, name: str, to_disk: bool = False) -> None:
        self.name = name
        self._to_disk = to_disk
        self.path = os.path.join(root(), file_name(name))
        self.number = 0
        self.secret = b""
        self._lock: KeyLock | None = None

    def enter(self, program: list[str] | None, may_wait: bool) -> Iterator[None]:
        """Take the run: each step of this iterator is a moment to wait. Raises DurableError, at
        once where another process has it and we may not wait.

        `program` is what enters it; None: it is not the run's own program."""
        try:
            yield from self._enter(program, may_wait)
        except OSError as error:
            self.leave(finished=False)
            raise DurableError(
                f"durable run {self.name!r}: {self.path} cannot be used: {error.strerror or error}; make it writable or make room there, "
                "or name another place by ENTANGLE_RECORD_DIR"
            ) from None
        except BaseException:
            self.leave(finished=False)
            raise

    def _enter(self, program: list[str] | None, may_wait: bool) -> Iterator[None]:
        make_directory_of_state(find_directory())
        while (lock := self._take()) is None:
            if not may_wait:
                raise DurableError(
                    f"durable run {self.name!r} is in use by another process or thread; with busy='wait' this one would wait"
                )
            yield
        self._lock = lock
        yield from self._fence(may_wait)
        for name in ("values", "runs"):
            os.makedirs(os.path.join(self.path, name), mode=0o700, exist_ok=True)
        self._know(program)
        finished = os.path.join(self.path, "finished")
        if os.path.exists(finished):
            # Streams begin again. It is written first: a kill between the two does no harm.
            opened = self.of_flow().open()
            try:
                opened.append(ledger.AFRESH, NO_NODE, NO_NODE, b"")
            finally:
                opened.close()
            os.unlink(finished)

    def _take(self) -> KeyLock | None:
        while True:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                _check(self.path)
                return KeyLock.take(os.path.join(self.path, "lock"), 0o600)

    def _fence(self, may_wait: bool) -> Iterator[None]:
        """Wait until no worker of the process before is left, and begin a ledger."""
        fd = os.open(os.path.join(self.path, "alive"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            until = time.monotonic() + _ENDING
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not may_wait and time.monotonic() > until:
                        raise DurableError(
                            f"durable run {self.name!r}: workers of the process before are still running; try again when they have "
                            "ended, or wait for them with busy='wait'"
                        ) from None
                    yield
            numbers = self.numbers()
            self.number = numbers[-1] + 1 if numbers else 0
            Ledger.create(os.path.join(self.path, f"ledger.{self.number}"))
        finally:
            os.close(fd)

    def _know(self, program: list[str] | None) -> None:
        path = os.path.join(self.path, "about")
        try:
            with open(path, encoding="utf-8") as file:
                about = json.load(file)
            self.secret = bytes.fromhex(about["secret"])
        except (OSError, ValueError, KeyError):
            self.secret = os.urandom(16)
            about = {"name": self.name, "begun": time.time(), "secret": self.secret.hex()}
        if program is not None:
            about.update(program=program, directory=os.getcwd(), python=sys.executable)
        elif "program" not in about:
            about.update(program=[], directory="", python="")
        draft = f"{path}-{os.getpid()}"
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(about, file)
            if self._to_disk:
                file.flush()
                os.fsync(file.fileno())
        os.rename(draft, path)
        if self._to_disk:
            sync_directory(self.path)

    def numbers(self) -> list[int]:
        """The numbers of its ledgers, in order."""
        found = [_LEDGER.fullmatch(name) for name in os.listdir(self.path)]
        return sorted(int(one[1]) for one in found if one)

    def outcomes(self) -> Outcomes:
        """What its ledgers say. Raises OSError."""
        known = Outcomes()
        for number in self.numbers():
            known.read(os.path.join(self.path, f"ledger.{number}"))
        return known

    def of_flow(self) -> LedgerOfFlow:
        """What the runs inside know of the ledger."""
        return LedgerOfFlow(self.name, self.path, self.number, self._to_disk, self.secret)

    def is_held(self) -> bool:
        """Whether this process is in the run: not a child that it has forked."""
        return self._lock is not None and self._lock.pid == os.getpid()

    def leave(self, finished: bool) -> None:
        """Let others have the run. In a forked child, does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            if finished:
                with contextlib.suppress(OSError):
                    os.close(os.open(os.path.join(self.path, "finished"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            lock.give()

    def remove(self, unused_for: float | None = None) -> bool:
        """Remove it; where a time is given (seconds), only if it was finished that long ago. Gives
        whether it was removed. Raises DurableError where it is in use, or there is none."""
        if not os.path.isdir(self.path):
            raise DurableError(f"there is no durable run {self.name!r} in {root()}")
        lock = KeyLock.take(os.path.join(self.path, "lock"), 0o600)
        if lock is None:
            raise DurableError(f"durable run {self.name!r} is in use; end the process that runs it, and try again")
        try:
            if unused_for is not None and not self._is_finished_for(unused_for):
                return False  # it was entered meanwhile
            gone = f"{self.path}.removed-{os.getpid()}"
            os.rename(self.path, gone)
            shutil.rmtree(gone, ignore_errors=True)
            return True
        finally:
            lock.give()

    def _is_finished_for(self, seconds: float) -> bool:
        try:
            return time.time() - os.stat(os.path.join(self.path, "finished")).st_mtime > seconds
        except OSError:
            return False


def root() -> str:
    """Where durable runs lie."""
    return os.path.join(find_directory(), "durable")


def file_name(name: str) -> str:
    """The name of the directory of a durable run."""
    quoted = urllib.parse.quote(name, safe=" +=@,")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def _check(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise DurableError(f"{path} is not yours alone, and what it holds are pickles, which are code: chmod go-w, or remove it")


def unfinished_runs() -> list[UnfinishedRun]:
    """All durable runs that were not left in good order, or are in use now, by name."""
    return [found for name in names() if (found := look(name)) is not None and not is_finished(name)]


def look(name: str) -> UnfinishedRun | None:
    """What is known of a durable run; None where there is none."""
    place = DurableDirectory(name)
    try:
        outcomes = place.outcomes()
        changed = max(os.stat(os.path.join(place.path, f"ledger.{number}")).st_mtime for number in place.numbers())
        with open(os.path.join(place.path, "about"), encoding="utf-8") as file:
            about = json.load(file)
        return UnfinishedRun(
            name,
            is_in_use(place.path),
            about["begun"],
            changed,
            len(outcomes.ended),
            list(outcomes.open.values()),
            about["program"],
            about["directory"],
        )
    except (OSError, ValueError, KeyError):
        return None


def is_finished(name: str) -> bool:
    """Whether it was left in good order."""
    return os.path.exists(os.path.join(root(), file_name(name), "finished"))


def is_in_use(path: str) -> bool:
    """Whether a process is in the run now."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return is_held(fd)
    finally:
        os.close(fd)


def names() -> list[str]:
    """The names of all durable runs, in order."""
    try:
        found = sorted(os.listdir(root()))
    except OSError:
        return []
    return [urllib.parse.unquote(name) for name in found if ".removed-" not in name]


def trim(but: str | None = None, said: Callable[[str], object] = lambda name: None) -> None:
    """Remove finished runs that were not used for as long as the bounds of the depot say."""
    age = bounds().age
    for name in names() if age else ():
        directory = DurableDirectory(name)
        with contextlib.suppress(OSError, DurableError):
            if name != but and directory._is_finished_for(age) and directory.remove(unused_for=age):
                said(name)
