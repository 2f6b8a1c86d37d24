"""The home of a process: the one place where it keeps files while its runs last.

::

    <parent>/entangle-<uid>/            0700, ours, no symlink
        p<pid>-<random>/                a process; locked (flock) for as long as it, or a worker of it, lives
            budget                      the cookies of its process tree
            cookies-<n>                 the cookies of @scheduler(cpus=n)
            r<random>/                  a run: table, values, flow, attempts; a nested run lies in the run around it

`<parent>` is ENTANGLE_RUN_DIR, else /dev/shm, else the temporary directory. A home that nobody holds locked is stale:
its process was killed. The next run of anybody sweeps it, and so does `python -m entangle clean`.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import stat
import threading
import time

from entangle.cookies import CookieQueue, available_cpus, budget_of, forget_jobserver, jobserver_flags, registered_pools
from entangle.errors import EntangleError

_homes: dict[str, Home] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()  # whoever held it did not come along


os.register_at_fork(after_in_child=_after_fork)


def _parent() -> str:
    chosen = os.environ.get("ENTANGLE_RUN_DIR")
    if chosen:
        return os.path.abspath(chosen)
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        return "/dev/shm"
    return _on_disk()


def _on_disk() -> str:
    """The temporary directory. `tempfile` is asked only where the usual answer is no: it would double the time of an import."""
    for usual in (os.environ.get("TMPDIR"), "/tmp"):
        if usual and os.access(usual, os.W_OK | os.X_OK):
            return os.path.abspath(usual)
    import tempfile

    return tempfile.gettempdir()


def _base(parent: str) -> str:
    """Our directory under `parent`: made if missing, refused where it is somebody else's."""
    path = os.path.join(parent, f"entangle-{os.getuid()}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise EntangleError(
            f"no directory for runs can be made in {parent} ({error.strerror}); set ENTANGLE_RUN_DIR to a place that can be written to"
        ) from None
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EntangleError(f"{path} is not a directory that only this user can use; remove it, or set ENTANGLE_RUN_DIR to another place")
    return path


def private(path: str, flags: int) -> int:
    """The `opener` of files that lie in a home: for this user alone, whatever his umask says."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _make_locked(base: str, name: str) -> int:
    """Make a directory and lock it; gives the descriptor that holds the lock. FileExistsError: choose another name."""
    path = os.path.join(base, name)
    os.mkdir(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileExistsError(path) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path)
    except (BlockingIOError, FileNotFoundError):  # swept in the moment before we had the lock
        os.close(fd)
        raise FileExistsError(path) from None
    return fd


class Home:
    """This process's directory, its spill directory on disk, and its budget of cookies."""

    def __init__(self, parent: str) -> None:
        base = _base(parent)
        spill_base = _base(_on_disk())
        while True:
            name = f"p{os.getpid()}-{os.urandom(6).hex()}"
            spill_name = f"{name}.spill"
            try:
                self._locks = [_make_locked(base, name), _make_locked(spill_base, spill_name)]
                break
            except FileExistsError:
                continue
        self.pid = os.getpid()
        self.path = os.path.join(base, name)
        self.spill = os.path.join(spill_base, spill_name)
        self.cpus = available_cpus()
        self._cookies = b"+" * (budget_of(self.cpus) - 1)
        self.budget = CookieQueue.create(os.path.join(self.path, "budget"), self._cookies)
        self.pools: dict[int, CookieQueue] = {}
        self._runs = 0
        self._count = threading.Lock()
        # Made here, since a worker just forked is slow at anything.
        self.makeflags = jobserver_flags(self.budget.path)

    def run_begins(self) -> None:
        """Count a run that this process has started itself."""
        with self._count:
            self._runs += 1

    def run_ends(self, in_order: bool) -> None:
        """One run less. After one that was broken off, with no other under way, make the queues whole: nested runs that were
        killed with it may have held cookies that nobody else knows of."""
        with self._count:
            self._runs -= 1
            if not in_order and not self._runs:
                self.budget.refill(self._cookies)
                for size, pool in self.pools.items():
                    pool.refill(pool_cookies(self.cpus, size))

    @classmethod
    def adopt(cls, path: str, spill: str) -> None:
        """In a worker that was not forked from its supervisor: live in the home of its process tree."""
        found = cls.__new__(cls)
        found.pid, found.path, found.spill, found._locks = -1, path, spill, []
        found.cpus = available_cpus()
        found.budget = CookieQueue(os.path.join(path, "budget"))
        found.pools = {}
        found.makeflags = jobserver_flags(found.budget.path)
        _homes[_parent()] = found

    def open_pools(self, sizes: set[int]) -> None:
        """Make the pools of these sizes, and of every scheduler that was decorated so far, unless they are there."""
        for size in sizes | registered_pools:
            if size not in self.pools:
                path = os.path.join(self.path, f"cookies-{size}")
                self.pools[size] = CookieQueue.create(path, pool_cookies(self.cpus, size))

    def remove(self) -> None:
        """Remove the directories; the locks go with the process."""
        if os.getpid() != self.pid:
            return
        self.budget.close()
        forget_jobserver(self.budget.path)
        for pool in self.pools.values():
            pool.close()
        import shutil

        for path in (self.path, self.spill):
            for _ in range(5):
                shutil.rmtree(path, ignore_errors=True)
                if not os.path.exists(path):
                    break
                time.sleep(0.01)  # somebody who is being killed was still writing
        for fd in self._locks:
            os.close(fd)


def pool_cookies(cpus: list[int], size: int) -> bytes:
    """The cookies of a pool: the numbers of its CPUs. A byte names at most 256 of them."""
    return bytes(cpu for cpu in cpus[:size] if cpu < 256)


def home() -> Home:
    """The home of this process tree, made when the first run wants it."""
    parent = _parent()
    with _guard:
        found = _homes.get(parent)
        if found is None or not os.path.exists(found.path):
            if not _homes:
                _open_standard_streams()
                atexit.register(leave)
            found = _homes[parent] = Home(parent)
    if found.pid == os.getpid():
        sweep()
    return found


def leave() -> None:
    """Remove every home of this process."""
    for found in _homes.values():
        found.remove()
    _homes.clear()


def _open_standard_streams() -> None:
    """Put /dev/null where a caller has closed one of the descriptors 0, 1, 2.

    Else a pipe of ours would take the number, and a worker, who gets those three anew, would lose it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def sweep() -> list[str]:
    """Remove the homes that dead processes have left behind; gives what was removed."""
    removed = []
    ours = {found.path for found in _homes.values()} | {found.spill for found in _homes.values()}
    for parent in {_parent(), _on_disk()}:
        base = os.path.join(parent, f"entangle-{os.getuid()}")
        try:
            names = os.listdir(base)
        except OSError:
            continue
        for name in names:
            path = os.path.join(base, name)
            if path in ours or not name.startswith("p"):
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            else:
                import shutil

                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
            finally:
                os.close(fd)
    return removed
