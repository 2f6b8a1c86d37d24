"""A mailbox: where messages and outcomes lie that a service does not carry itself.

`Mailbox` is the caller's side, `FarMailbox` that of the program there. The first kind is a folder
that both sides see, below. Another is a bucket: `entangle._aws.bucket` here, and there addresses
that the caller has signed, `entangle._services.far.addresses`.

Each caller has a box of its own in the folder, which it removes::

    <folder>/p<pid>-<random>@<host>/     0700
        lease               changes while the caller lives; none where jobs outlive it
        code/<hash>         the program, the engine, modules of the project: once each
        messages/<id>       what to run
        claims/<id>         made once, before the body begins; touched while it runs
        prints/<id>.out     what the body prints; `.err`
        outcomes/<id>       its value or its error; the first one that is put stays
        cancelled/<id>      nobody waits for it any more
        new/                files until they are whole
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from entangle._remote.wire.frames import Bytes
from entangle._services import envelope
from entangle.errors import EntangleError, StoreFullError, UnreachableError

#: A message, or an outcome: its head and its parts.
Letter = tuple[dict[str, Any], list[bytearray]]

LEASE, CODE, MESSAGES, CLAIMS, PRINTS, OUTCOMES, CANCELLED, NEW = (
    "lease",
    "code",
    "messages",
    "claims",
    "prints",
    "outcomes",
    "cancelled",
    "new",
)
#: A box of a caller that died without a lease may still be wanted (seconds): its jobs go on.
KEPT = 7 * 86400.0
#: A box whose caller is dead is removed when its jobs have ended by themselves (seconds).
LAPSED = 600.0
#: How a Python is told to run the program. It has no quote, so that it passes through any shell.
COMMAND = "import sys;exec(open(sys.argv[1]).read())"
_BOX = re.compile(r"p(\d+)-[0-9a-z_]+@(.+)")


def default_folder() -> str:
    """The folder of mailboxes where none is named: ENTANGLE_MAILBOX, else one in the home
    directory, which the nodes of a cluster mostly share."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.environ.get("ENTANGLE_MAILBOX") or os.path.join(state, "entangle", "mailbox")


class Mailbox(Protocol):
    """The caller's side. One thread uses it, but for `renew`."""

    #: The shortest and the longest pause between two looks into it (seconds).
    pauses: tuple[float, float]

    def command(self, program: str, name: str, codes: Iterable[str], seconds: float | None) -> tuple[str, ...]:
        """What a Python there is given to run a message: `program` is what `add_code` gave for it,
        `codes` the other names of code that it needs. It may take so many seconds."""

    def is_there(self) -> bool:
        """Whether nobody has removed it."""

    def add_code(self, name: str, data: bytes) -> str:
        """Put a file there, once; gives what it can be read by there."""

    def send(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Put a message there; one that may be late is there after `flush`. Raises
        StoreFullError."""

    def reach(self, seconds: float | None) -> None:
        """Raises OptionError where a call that may take so long would outlive its way back."""

    def flush(self) -> None:
        """Wait until all that was sent is there. Raises the first trouble."""

    def send_again(self, name: str, again: str) -> None:
        """Put a message there under another name, and discard the first but for its claim."""

    def arrived(self) -> set[str]:
        """The names of all messages that have an outcome now."""

    def take(self, name: str) -> Letter | None:
        """The outcome of a message; None if there is none."""

    def withdraw(self, name: str) -> bool:
        """Nobody waits for it. True: it has not begun, and never will."""

    def sign_of_life(self, name: str) -> object:
        """Something that changes while it is being run; None where nobody has claimed it."""

    def printed(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """What these, or all, have printed since the last time: the name, the stream (1 or 2), the
        bytes."""

    def tail(self, name: str, size: int) -> str:
        """The end of what it has printed."""

    def discard(self, name: str, keep: bool = False) -> None:
        """Remove all that belongs to a message whose end is known, or all but its claim: where it
        may still run, or be started, it must not run again."""

    def renew(self) -> None:
        """Say that the caller lives."""

    def rest(self) -> None:
        """Nothing is under way: end threads of its own, if it has any."""

    def close(self) -> None:
        """Remove the box."""


class MailboxMaker(Protocol):
    """Where mailboxes are made, if not in a folder. Hashable; equal for the same place."""

    def open(self, leased: bool) -> Mailbox:
        """Make one. Raises UnreachableError and OptionError."""


#: A folder, or who makes another kind.
Where = str | MailboxMaker


def open_mailbox(where: Where, leased: bool) -> Mailbox:
    """A new mailbox there."""
    return Folder(where, leased) if isinstance(where, str) else where.open(leased)


class FarMailbox(Protocol):
    """The side of the program there."""

    #: The longest pause between two looks at the lease and at what was cancelled (seconds).
    seldom: float

    def claim(self, name: str, who: str) -> bool:
        """Claim a message. False: it was claimed before."""

    def unclaim(self, name: str) -> None:
        """Take back a claim to what is not there."""

    def message(self, name: str) -> Letter | None:
        """The message; None if it is there no more, since its end is known."""

    def live(self, name: str) -> None:
        """Say that it is being run."""

    def lease(self) -> object:
        """Something that changes while the caller lives; None once the box is gone."""

    def lease_is_fresh(self, seconds: float) -> bool:
        """Whether the lease has changed in these seconds, as far as the mailbox itself can tell."""

    def is_cancelled(self, name: str) -> bool:
        """Whether nobody waits for it any more."""

    def prints(self, name: str) -> tuple[int, int]:
        """Open descriptors for what it prints, and for its errors."""

    def put(self, name: str, pieces: Iterable[Bytes]) -> bool:
        """Put the outcome. False: there was one, or the box is gone. Raises StoreFullError."""

    def make_room(self, name: str) -> None:
        """Give up the room of a message that was read, for a word of why it has failed."""


class Folder:
    """A box in a folder that both sides see, at the caller."""

    pauses = (0.01, 0.5)

    def __init__(self, folder: str, leased: bool = True) -> None:
        folder = os.path.abspath(os.path.expanduser(folder))
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _sweep(folder)
            self.address = tempfile.mkdtemp(f"@{socket.gethostname()}", f"p{os.getpid()}-", folder)
            for part in (CODE, MESSAGES, CLAIMS, PRINTS, OUTCOMES, CANCELLED, NEW):
                os.mkdir(os.path.join(self.address, part), 0o700)
        except OSError as error:
            raise _refused(folder, error) from None
        self._beats = 0
        self._shown: dict[tuple[str, int], int] = {}
        self._lease = os.path.join(self.address, LEASE) if leased else ""
        if leased:
            try:
                with open(self._lease, "xb") as file:
                    file.write(b"%020d" % 0)
            except OSError as error:
                shutil.rmtree(self.address, ignore_errors=True)
                raise _refused(folder, error) from None

    def is_there(self) -> bool:
        """Whether nobody has removed it, as those do who clean up in a folder of all."""
        return os.path.isdir(os.path.join(self.address, NEW))

    def add_code(self, name: str, data: bytes) -> str:
        """Put a file there, once; gives its path."""
        path = os.path.join(self.address, CODE, name)
        if not os.path.exists(path):
            _put(self.address, CODE, name, [data])
        return path

    def command(self, program: str, name: str, codes: Iterable[str], seconds: float | None) -> tuple[str, ...]:
        """The paths of the program and of the box; the code lies beside the program."""
        return COMMAND, program, self.address, name

    def send(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Put a message there. Raises StoreFullError."""
        _put(self.address, MESSAGES, name, pieces)

    def reach(self, seconds: float | None) -> None:
        """A folder stays."""

    def flush(self) -> None:
        """What was sent is there."""

    def send_again(self, name: str, again: str) -> None:
        """Put a message there under another name, and discard the first but for its claim."""
        try:
            os.rename(os.path.join(self.address, MESSAGES, name), os.path.join(self.address, MESSAGES, again))
        except OSError as error:
            raise _refused(self.address, error) from None
        self.discard(name, keep=True)

    def arrived(self) -> set[str]:
        """The names of all messages that have an outcome now."""
        try:
            return set(os.listdir(os.path.join(self.address, OUTCOMES)))
        except OSError as error:
            raise UnreachableError(f"the mailbox {self.address} cannot be read: {error.strerror}") from None

    def take(self, name: str) -> Letter | None:
        """The outcome of a message; None if there is none."""
        return _read(self.address, OUTCOMES, name)

    def withdraw(self, name: str) -> bool:
        """Nobody waits for it. True: it has not begun, and never will."""
        with contextlib.suppress(OSError, EntangleError):
            if _claim(self.address, name, "the caller, which has cancelled it"):
                return True
            _put(self.address, CANCELLED, name, [b"-"])
        return False

    def sign_of_life(self, name: str) -> object:
        """The time and size of its claim, in the clock of whoever runs it; None without a claim."""
        try:
            with open(os.path.join(self.address, CLAIMS, name), "rb") as file:  # opened: asks the server
                found = os.fstat(file.fileno())
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def printed(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """What these, or all, have printed since the last time."""
        folder = os.path.join(self.address, PRINTS)
        sizes: list[tuple[str, int]] = []
        if names is None:
            with contextlib.suppress(OSError), os.scandir(folder) as found:
                sizes = [(entry.name, entry.stat().st_size) for entry in found]
        else:
            sizes = [(f"{name}.{kind}", sys.maxsize) for name in names for kind in ("out", "err")]
        for file_name, size in sizes:
            name, _, kind = file_name.rpartition(".")
            stream = 1 if kind == "out" else 2
            seen = self._shown.get((name, stream), 0)
            if size > seen:
                with contextlib.suppress(OSError), open(os.path.join(folder, file_name), "rb") as file:
                    file.seek(seen)
                    while data := file.read(1 << 20):
                        seen += len(data)
                        self._shown[name, stream] = seen
                        yield name, stream, data

    def tail(self, name: str, size: int) -> str:
        """The end of what it has printed, for an error."""
        told = b""
        for kind in ("out", "err"):
            with contextlib.suppress(OSError), open(os.path.join(self.address, PRINTS, f"{name}.{kind}"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                told += file.read(size)
        return told.decode("utf-8", "replace")

    def discard(self, name: str, keep: bool = False) -> None:
        """Remove all that belongs to a message whose end is known, or all but its claim.

        The message goes before its claim. If it is delivered once more, then whoever claims it
        finds no message; the other way round it would run again.
        """
        files = [(MESSAGES, name), (OUTCOMES, name), (PRINTS, f"{name}.out"), (PRINTS, f"{name}.err")]
        for part, file in files if keep else [*files, (CANCELLED, name), (CLAIMS, name)]:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.address, part, file))
        for stream in (1, 2):
            self._shown.pop((name, stream), None)

    def renew(self) -> None:
        """Say that the caller lives. What has changed is the content: no clock is compared."""
        if self._lease:
            self._beats += 1
            with contextlib.suppress(OSError), open(self._lease, "r+b") as file:  # the next one may get through
                file.write(b"%020d" % self._beats)  # as long as before, so it needs no room

    def rest(self) -> None:
        """It has no threads."""

    def close(self) -> None:
        """Remove the box. Programs there that still run see that their lease is gone."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.address, LEASE))  # first: it may take long to remove all
        shutil.rmtree(self.address, ignore_errors=True)


class FarFolder:
    """A box in a folder that both sides see, there."""

    seldom = 5.0

    def __init__(self, address: str) -> None:
        self.address = address

    def claim(self, name: str, who: str) -> bool:
        """Claim a message. False: it was claimed before, or the box is gone."""
        return _claim(self.address, name, who)

    def unclaim(self, name: str) -> None:
        """Take back a claim to what is not there."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.address, CLAIMS, name))

    def message(self, name: str) -> Letter | None:
        """The message; None if it is there no more, since its end is known."""
        return _read(self.address, MESSAGES, name)

    def live(self, name: str) -> None:
        """Say that it is being run."""
        with contextlib.suppress(OSError):
            os.utime(os.path.join(self.address, CLAIMS, name))

    def lease(self) -> object:
        """What the caller has written last; None once the box is gone."""
        path = os.path.join(self.address, LEASE)
        try:
            with open(path, "rb") as file:  # opened anew: a network file system then asks its server
                return file.read(64)
        except FileNotFoundError:
            return None
        except OSError as error:  # the file system has a bad moment, or for ever: no change
            return f"errno {error.errno}"

    def lease_is_fresh(self, seconds: float) -> bool:
        """Whether it has changed in these seconds, by the clock of the file system."""
        try:
            with tempfile.NamedTemporaryFile(dir=os.path.join(self.address, NEW)) as now:
                age = os.fstat(now.fileno()).st_mtime - os.stat(os.path.join(self.address, LEASE)).st_mtime
        except OSError:
            return False
        return abs(age) < seconds  # far in the future: the clocks of the two hosts differ, so it says nothing

    def is_cancelled(self, name: str) -> bool:
        """Whether nobody waits for it any more."""
        return os.path.exists(os.path.join(self.address, CANCELLED, name))

    def prints(self, name: str) -> tuple[int, int]:
        """Open descriptors for what it prints, and for its errors."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        out, err = (os.open(os.path.join(self.address, PRINTS, f"{name}.{kind}"), flags, 0o600) for kind in ("out", "err"))
        return out, err

    def put(self, name: str, pieces: Iterable[Bytes]) -> bool:
        """Put the outcome. False: there was one, or the box is gone. Raises StoreFullError."""
        try:
            return _put(self.address, OUTCOMES, name, pieces)
        except UnreachableError:
            return False

    def make_room(self, name: str) -> None:
        """Give up the room of a message that was read, for a word of why it has failed."""
        with contextlib.suppress(OSError):
            os.truncate(os.path.join(self.address, MESSAGES, name), 0)


def _put(box: str, part: str, name: str, pieces: Iterable[Bytes]) -> bool:
    """Write a file that is there whole or not at all. False if there was one by that name.

    Raises StoreFullError, or UnreachableError for other trouble.
    """
    path = os.path.join(box, part, name)
    new = os.path.join(box, NEW, f"{name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        try:
            with open(new, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())  # a delayed "no space" must be said now
            return _name(new, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
    except OSError as error:
        raise _refused(box, error) from None


def _name(new: str, path: str) -> bool:
    """Give a whole file its name. False if another has it."""
    try:
        os.link(new, path)
    except FileExistsError:
        # A network file system may have made the link and lost the answer.
        return os.stat(new).st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        try:  # no links there
            os.close(os.open(path + ".taken", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        os.rename(new, path)
    return True


def _claim(box: str, name: str, who: str) -> bool:
    """Make the claim of a message, whole; False if there is one or the box is gone."""
    try:
        fd = os.open(os.path.join(box, CLAIMS, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except (FileExistsError, FileNotFoundError):
        return False
    with open(fd, "w") as file, contextlib.suppress(OSError):  # full: the file itself is the claim
        file.write(who)
        file.flush()
    return True


def _read(box: str, part: str, name: str) -> Letter | None:
    try:
        with open(os.path.join(box, part, name), "rb") as file:
            return envelope.read(file)
    except FileNotFoundError:
        return None


def _refused(where: str, error: OSError) -> EntangleError:
    """The error for a mailbox that does not take what it is given."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(
            error.errno, f"the mailbox {where} is full ({os.strerror(error.errno)}); make room there, or name another folder with mailbox=…"
        )
    return UnreachableError(
        f"the mailbox {where} cannot be used: {error.strerror or error}; name a folder that both sides see with mailbox=…"
    )


def _sweep(folder: str) -> None:
    """Remove boxes of this host whose callers are gone, once what they have started has ended."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            box = _BOX.fullmatch(entry.name)
            if box is None or box[2] != socket.gethostname() or os.path.exists(f"/proc/{box[1]}"):
                continue
            with contextlib.suppress(OSError):
                lease = os.path.join(entry.path, LEASE)
                leased = os.path.exists(lease)
                changed = os.stat(lease if leased else os.path.join(entry.path, OUTCOMES)).st_mtime
                if time.time() - changed > (LAPSED if leased else KEPT):
                    shutil.rmtree(entry.path, ignore_errors=True)
