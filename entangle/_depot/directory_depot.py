"""A depot in a directory.

::

    <depot>/                   0700; one that others may write to needs ENTANGLE_KEY
        values/<aa>/<key>      a value, as `entry.py` says; its access time is that of its last use
        drafts/                values that are being written; each is renamed when it is whole
        locks/<key>            held by the process that computes it
        waits/<any>            held by one that computes a key and waits for another, which it names
        verified/<boot>/       a mark for each large value whose checksum this machine has compared
        quarantine/            values that were damaged
        pins/<owner>           keys that an owner needs, as `pins.py` says; the lock is `pinning`
        grown, trimmed         how much was put since the bounds were last applied, and when
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Sequence

from entangle._depot import trimming
from entangle._depot.bounds import bounds
from entangle._depot.circles import Wait, read_wait
from entangle._depot.entry import HEAD, About, BadlySigned, Damaged, Kept, pack, refused, unpack
from entangle._depot.key_lock import KeyLock
from entangle._depot.pins import DirectoryPins, Owner
from entangle._shared.spare_files import write_all
from entangle._shared.state_directory import PROJECT, make_directory_of_state
from entangle._shared.store import map_privately
from entangle.errors import DepotError

#: A file of more bytes is mapped, and its checksum compared once a boot.
_LARGE = 256 * 1024
#: The time of the last use is noted at most once in this time (seconds).
_NOTED_EVERY = 60.0


class DirectoryDepot:
    """Values in a directory of this machine, or of a file system that machines share.

    Its methods raise OSError where the directory cannot be used.
    """

    #: Whoever waits for a value looks again at least this often (seconds).
    looks_again = 0.02

    def __init__(self, path: str, secret: bytes) -> None:
        self.name = path
        self._path = path
        self._secret = secret
        self._mode = 0o700
        self._mapped: dict[int, tuple[int, str]] = {}
        self._verified: dict[str, tuple[int, int]] = {}
        self._made = False
        self._pins = DirectoryPins(path)

    # Trust ---------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Whether the directory is there. Raises DepotError if others can write to it, and no
        secret tells our values from theirs."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._path)
        if found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022:
            self._secret = b""
        elif not self._secret:
            ours = found.st_uid in (0, os.geteuid())
            who = "others may write to it" if ours else f"it belongs to user {found.st_uid}, and you are user {os.geteuid()}"
            way_out = "take the right to write from others: chmod go-w" if ours else "let ENTANGLE_DEPOT name a directory of your own"
            raise DepotError(
                f"the depot {self._path} is not yours alone: {who}. What it holds are pickles, which are code. Set ENTANGLE_KEY to a "
                f"secret that all who share it have, or {way_out}"
            )
        else:
            self._mode = stat.S_IMODE(found.st_mode) & 0o777
        return True

    def _make(self) -> None:
        if self._made:
            return
        if not self._look():
            above = os.path.dirname(self._path)
            if os.path.basename(above) == PROJECT:
                make_directory_of_state(above)
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._look()
        for name in ("values", "drafts", "locks", "pins", "waits"):
            self._make_folder(name)
        self._made = True

    def _make_folder(self, *names: str) -> str:
        path = os.path.join(self._path, *names)
        try:
            os.mkdir(path, self._mode)
            if self._mode != 0o700:
                os.chmod(path, self._mode)  # whatever the umask is, those who share it can write
        except FileExistsError:
            pass
        return path

    @property
    def _file_mode(self) -> int:
        return self._mode & 0o666

    # Values --------------------------------------------------------------------------------------

    def _value(self, key: str) -> str:
        return os.path.join(self._path, "values", key[:2], key)

    def find(self, key: str) -> Kept | None:
        """The value under a key. One that is damaged goes to quarantine: see `damaged`.

        Raises DepotError where it is not signed as it has to be.
        """
        path = self._value(key)
        if not self._made and not self._look():
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
            # Whoever else may write to the depot could change a file after it was compared. So what
            # is signed is compared each time, in memory of our own.
            ours = found.st_size <= _LARGE or bool(self._secret)
            whole = memoryview(_read(fd, found.st_size)) if ours else None
        finally:
            os.close(fd)
        try:
            if whole is not None:
                kept = unpack(key, whole, self._secret)
                if kept.buffers:  # they are given as they are mapped: the value may be changed
                    kept = kept._replace(buffers=[memoryview(bytearray(buffer)) for buffer in kept.buffers])
            else:
                kept = self._map(key, path, found)
        except FileNotFoundError:  # removed meanwhile
            return None
        except BadlySigned as error:
            raise refused(self._path, key, error) from None
        except Damaged as error:
            self._quarantine(key, str(error))
            return None
        if time.time() - found.st_atime > _NOTED_EVERY:
            with contextlib.suppress(OSError):  # read-only, or somebody else's
                os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return kept

    def _map(self, key: str, path: str, found: os.stat_result) -> Kept:
        whole = map_privately(path, self._mapped)
        seen = found.st_ino, found.st_mtime_ns
        if self._verified.get(key) == seen:
            return unpack(key, whole, self._secret, verify=False)
        mark = os.path.join(self._path, "verified", _boot(), f"{key}.{found.st_ino}")
        with contextlib.suppress(OSError):
            if os.stat(mark).st_mtime_ns == found.st_mtime_ns:
                self._verified[key] = seen
                return unpack(key, whole, self._secret, verify=False)
        kept = unpack(key, whole, self._secret)
        self._verified[key] = seen
        with contextlib.suppress(OSError):  # read-only: every process compares for itself
            self._make_folder("verified")
            self._make_folder("verified", _boot())
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self._file_mode))
            os.utime(mark, ns=(found.st_mtime_ns, found.st_mtime_ns))
        return kept

    def put(self, key: str, about: About, body: bytes, buffers: Sequence[memoryview]) -> None:
        """Keep a value under a key, in place of one that is there. Applies the bounds."""
        self._make()
        parts, size = pack(key, about, body, buffers, self._secret)
        limits = bounds()
        if limits.size and size > limits.size:
            raise DepotError(
                f"a value of {size:,} bytes is more than the depot {self._path} may hold ({limits.size:,}): set ENTANGLE_DEPOT_SIZE"
            )
        draft = os.path.join(self._path, "drafts", f"{key[:16]}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, self._file_mode)
            try:
                for part, at in parts:
                    write_all(fd, part, at)
                if self._mode != 0o700:
                    os.fchmod(fd, self._file_mode)
            finally:
                os.close(fd)
            try:
                os.rename(draft, self._value(key))
            except FileNotFoundError:
                self._make_folder("values", key[:2])
                os.rename(draft, self._value(key))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            self._made = False  # somebody may have removed the directory
            raise
        if trimming.grow(self._path, size, limits, self._file_mode):
            trimming.trim(self._path, limits, self._file_mode)

    def _quarantine(self, key: str, why: str) -> None:
        from entangle._depot.warned_once import warn_once

        to = os.path.join(self._make_folder("quarantine"), f"{key}.{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._value(key), to)
            warn_once(f"a value in the depot {self._path} is damaged ({why}): it is now {to}, and is computed again", to)

    # One at a time -------------------------------------------------------------------------------

    def try_alone(self, key: str) -> KeyLock | None:
        """The right to compute a key, until it is given back; None where another has it."""
        self._make()
        return KeyLock.take(os.path.join(self._path, "locks", key), self._file_mode)

    def say_waiting(self, wait: Wait) -> KeyLock | None:
        """Let others read what this process waits for, until what is given is given back."""
        path = os.path.join(self._path, "waits", os.urandom(8).hex())
        said = KeyLock.take(path, self._file_mode)
        if said is not None:
            with open(path, "wb") as file:
                file.write(wait.written())
        return said

    def waits(self) -> list[Wait]:
        """What others that compute a key wait for."""
        found = []
        for name in os.listdir(os.path.join(self._path, "waits")):
            path = os.path.join(self._path, "waits", name)
            with contextlib.suppress(FileNotFoundError):
                if (left := KeyLock.take(path, self._file_mode)) is not None:
                    left.give()  # its holder was killed
                    continue
                with open(path, "rb") as file:
                    if (wait := read_wait(file.read())) is not None:
                        found.append(wait)
        return found

    # Pins ----------------------------------------------------------------------------------------

    def pin(self, owner: Owner, keys: Sequence[str]) -> None:
        """Keep the values of keys from eviction and removal, as long as `owner.path` is there.

        A key may be pinned before it has a value. A value that is there after this stays; its key
        may be given another one, as where `expire=` says so.
        """
        try:
            self._make()
            self._pins.add(owner, keys, self._file_mode)
        except FileNotFoundError:  # somebody has removed the directory
            self._made = False
            self._make()
            self._pins.add(owner, keys, self._file_mode)

    def unpin(self, owner: Owner) -> None:
        """End all pins of an owner."""
        if self._look():
            self._pins.remove(owner, self._file_mode)

    def pinned(self) -> dict[str, list[str]]:
        """The keys that are pinned, with the names of their owners."""
        return self._pins.read()

    # For people ----------------------------------------------------------------------------------

    def entries(self) -> Iterator[trimming.File]:
        """The files of all values, in no order."""
        if self._look():
            yield from trimming.files(os.path.join(self._path, "values"))

    def about(self, key: str) -> About | None:
        """What is known of a value, without reading all of it; None where it is gone or damaged."""
        try:
            with open(self._value(key), "rb") as file:
                _, size, length, _, _ = HEAD.unpack(file.read(HEAD.size))
                told = json.loads(file.read(min(length, size)))
                return About(told["task"], told["made"], told["seconds"], told["parts"])
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None

    def verify(self, key: str) -> bool:
        """Compare the checksum of a value, whether or not this was done before; False where it was
        damaged. Raises DepotError where it is not signed as it has to be."""
        self._verified.pop(key, None)
        with contextlib.suppress(FileNotFoundError):
            number = os.stat(self._value(key)).st_ino
            os.unlink(os.path.join(self._path, "verified", _boot(), f"{key}.{number}"))
        return self.find(key) is not None

    def remove(self, key: str) -> bool:
        """Remove a value, pinned or not. Gives whether it was there."""
        try:
            os.unlink(self._value(key))
        except FileNotFoundError:
            return False
        return True

    def remove_all(self, keys: Iterable[str]) -> list[str]:
        """Remove values that are not pinned. Gives the keys of those that were removed."""
        chosen = (trimming.File(key, self._value(key), 0, 0.0) for key in keys)
        return [file.key for file in trimming.remove_unpinned(self._path, chosen, self._file_mode)] if self._look() else []

    def trim(self) -> list[trimming.File]:
        """Apply the bounds now. Gives what was removed."""
        return trimming.trim(self._path, bounds(), self._file_mode) if self._look() else []


def _read(fd: int, size: int) -> bytes:
    read = os.read(fd, size + 1)
    while len(read) < size and (more := os.read(fd, size - len(read))):
        read += more
    return read


@functools.cache
def _boot() -> str:
    """What tells this machine, since it was started, from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        import socket

        return f"{socket.gethostname()}-{os.getppid()}"
