"""The home of a process: the one place where it keeps files while its runs last.

::

    <parent>/entangle-<uid>/            0700, ours, no symlink
        p<pid>-<random>/                a process; locked (flock) for as long as it, or a worker of it, lives
            budget                      the cookies of its process tree
            cookies-<n>                 the cookies of @scheduler(cpus=n)
            tree                        of an agent: a link to the directory that it shares with others of its tree
            r<random>/                  a run: table, values, flow, attempts; a nested run lies in the run around it
        t<home>-<depth>/                what the agents of one process tree share on this machine, locked by each of them
            cookies-<n>-<cpu>           locked by who has that cookie

`<parent>` is ENTANGLE_RUN_DIR, else /dev/shm, else the temporary directory. A home that nobody holds locked is stale:
its process was killed. The next run of anybody sweeps it, and so does `python -m entangle clean`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import stat
import threading
import time

from entangle.cookies import CookieQueue, SharedQueue, available_cpus, budget_of, forget_jobserver, jobserver_flags, registered_pools
from entangle.errors import EntangleError

_homes: dict[str, Home] = {}
_guard = threading.Lock()

#: In an agent: the name of the directory that it shares with the other agents of its tree on this machine.
_branch = ""


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


def nameless() -> int:
    """An open file where homes lie, without a name and gone when it is closed; -1 where there is no such thing."""
    try:
        return os.open(_parent(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (AttributeError, OSError):  # macOS; some file systems
        return -1


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


def _join(base: str, name: str) -> tuple[str, int]:
    """Make the directory that agents share, or find it; gives its path and the descriptor that holds our share of the lock."""
    path = os.path.join(base, name)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # waits for whoever just removes it
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return path, fd
        except FileNotFoundError:
            pass
        os.close(fd)


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
        self._shared = ("", -1)
        if _branch:
            self._shared = _join(base, _branch)
            os.symlink(self._shared[0], os.path.join(self.path, "tree"))
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
        found.pid, found.path, found.spill, found._locks, found._shared = -1, path, spill, [], ("", -1)
        found.cpus = available_cpus()
        found.budget = CookieQueue(os.path.join(path, "budget"))
        found.pools = {}
        found.makeflags = jobserver_flags(found.budget.path)
        _homes[_parent()] = found

    def open_pools(self, sizes: set[int]) -> None:
        """Make the pools of these sizes, and of every scheduler that was decorated so far, unless they are there."""
        wanted = sizes | registered_pools
        if wanted <= self.pools.keys():
            return
        with _guard:  # runs begin in several threads at once
            for size in wanted - self.pools.keys():
                path = os.path.join(self.path, f"cookies-{size}")
                made: CookieQueue | None = None
                with contextlib.suppress(FileExistsError):  # in a worker: there for the whole tree
                    made = CookieQueue.create(path, pool_cookies(self.cpus, size))
                self.pools[size] = pool_at(path, self.path)
                if made is not None:
                    made.close()

    def remove(self) -> None:
        """Remove the directories; the locks go with the process."""
        if os.getpid() != self.pid:
            return
        self.budget.close()
        forget_jobserver(self.budget.path)
        for pool in self.pools.values():
            pool.close()
        for path in (self.path, self.spill):
            for _ in range(5):
                _remove_tree(path)
                if not os.path.exists(path):
                    break
                time.sleep(0.01)  # somebody who is being killed was still writing
        for fd in self._locks:
            os.close(fd)
        shared, fd = self._shared
        if shared:
            with contextlib.suppress(BlockingIOError):  # the last one removes it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_tree(shared)
            os.close(fd)


def _remove_tree(path: str) -> None:
    """As `shutil.rmtree`, which is not to be imported while a program ends: its import evaluates text, and after that Python no longer
    knows that it was Ctrl-C that has ended the program, and exits with 1."""
    for directory, folders, files in os.walk(path, topdown=False):
        for name in (*folders, *files):
            inside = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                os.rmdir(inside) if name in folders and not os.path.islink(inside) else os.unlink(inside)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def pool_at(path: str, home: str) -> CookieQueue:
    """The queue of a pool that lies at `path`, for the processes that live in that home."""
    tree = os.path.join(home, "tree")
    return SharedQueue(path, tree) if os.path.islink(tree) else CookieQueue(path)


def pool_cookies(cpus: list[int], size: int) -> bytes:
    """The cookies of a pool: the numbers of its CPUs. A byte names at most 256 of them."""
    return bytes(cpu for cpu in cpus[:size] if cpu < 256)


def branch() -> str:
    """What an agent that is started from here is told: agents with the same word, on one machine, share the cookies of pools.

    They are those that processes of one tree have started at the same depth: the caller and his workers at 1, agents of theirs
    at 2. One of depth 2 may have to be waited for by somebody who holds a cookie at depth 1, so these do not share.
    """
    found = home().path
    with contextlib.suppress(OSError):
        root, _, depth = os.path.basename(os.readlink(os.path.join(found, "tree"))).rpartition("-")
        return f"{root}-{int(depth) + 1}"
    return f"t{os.path.basename(found)}-1"


def join(word: str) -> None:
    """In an agent, before it has a home: belong to the tree that `branch` has named."""
    global _branch
    _branch = os.path.basename(word)


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
            if path in ours or not name.startswith(("p", "t")):
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
