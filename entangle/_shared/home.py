"""The home of a process: the one place where it keeps files while its runs last.

::

    <parent>/entangle-<uid>/            0700, ours, no symlink
        p<pid>-<random>/                a process; locked (flock) for as long as it, or a worker of it, lives
            budget                      the cookies of its process tree; beside it `budget-0` and `budget-00` (`cookies.py`)
            cookies-<n>                 the cookies of @scheduler(cpus=n); beside it `cookies-0<n>` and `cookies-00<n>`
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
import errno
import fcntl
import os
import re
import threading
import time

from entangle._shared import removal
from entangle.cookies import (
    ANY_CPU,
    CookieQueue,
    SharedQueue,
    available_cpus,
    budget_of,
    forget_jobserver,
    jobserver_flags,
    registered_pools,
)
from entangle.errors import EntangleError

#: The names of homes, of their directories for what has spilled, and of what the agents of one process tree share. What has another
#: name is none of ours, and is never removed.
_HOME = re.compile(r"p[0-9]+-[0-9a-f]{12}(\.spill)?")
_TREE = re.compile(r"tp[0-9]+-[0-9a-f]{12}-[0-9]+")

#: What workers of nested runs may take to die when a run is broken off (seconds).
_DYING = 0.2

_homes: dict[str, Home] = {}
_guard = threading.Lock()
_watch: _Watch | None = None

#: In an agent: the name of the directory that it shares with the other agents of its tree on this machine.
_branch = ""


def _after_fork() -> None:
    global _guard, _watch
    _guard, _watch = threading.Lock(), None  # whoever held a lock did not come along


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


def is_home(name: str) -> bool:
    """Whether a process's directory could have this name."""
    return _HOME.fullmatch(name) is not None and not name.endswith(".spill")


def base_in(parent: str) -> str:
    """Where our directory under `parent` is."""
    return os.path.join(parent, f"entangle-{os.getuid()}")


def _open_base(parent: str) -> int:
    """Our directory under `parent`, opened: made if missing, refused where it is a link or not ours alone."""
    path = base_in(parent)
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise EntangleError(
                f"no directory for runs can be made in {parent} ({error.strerror}); set ENTANGLE_RUN_DIR to a place that can be written to"
            ) from None
        try:
            return removal.open_ours(path)
        except FileNotFoundError:  # removed in this moment
            pass
        except removal.NotOurs as error:
            raise EntangleError(
                f"{path} is not a directory that only this user can use: {removal.why(error)}; remove it, or set ENTANGLE_RUN_DIR to "
                f"another place"
            ) from None


def private_folder() -> str:
    """A directory on disk that is this user's alone, and stays. Raises EntangleError where somebody else has put something there."""
    os.close(_open_base(_on_disk()))
    return base_in(_on_disk())


def private(path: str, flags: int) -> int:
    """The `opener` of files that lie in a home: for this user alone, whatever his umask says."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def nameless() -> int:
    """An open file where homes lie, without a name and gone when it is closed; -1 where there is no such thing."""
    try:
        return os.open(_parent(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (AttributeError, OSError):  # macOS; some file systems
        return -1


def _make_locked(base: int, name: str) -> int:
    """Make a directory and lock it; gives the descriptor that holds the lock. FileExistsError: choose another name."""
    os.mkdir(name, 0o700, dir_fd=base)
    try:
        fd = os.open(name, removal.DIRECTORY, dir_fd=base)
    except FileNotFoundError:
        raise FileExistsError(name) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if removal.is_named(fd, name, base):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)  # swept in the moment before we had the lock
    raise FileExistsError(name)


def _join(base: int, name: str) -> int:
    """Make the directory that agents share, or find it; gives the descriptor that holds our share of the lock."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=base)
        try:
            fd = os.open(name, removal.DIRECTORY, dir_fd=base)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_SH)  # waits for whoever just removes it
        if removal.is_named(fd, name, base):
            return fd
        os.close(fd)


class Home:
    """This process's directory, its spill directory on disk, and its budget of cookies."""

    def __init__(self, parent: str) -> None:
        base, spill_base = base_in(parent), base_in(_on_disk())
        with contextlib.ExitStack() as opened:
            around = _open_base(parent)
            opened.callback(os.close, around)
            spill_around = _open_base(_on_disk())
            opened.callback(os.close, spill_around)
            while True:
                name = f"p{os.getpid()}-{os.urandom(6).hex()}"
                spill_name = f"{name}.spill"
                try:
                    lock = _make_locked(around, name)
                except FileExistsError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                        raise
                    raise EntangleError(
                        f"no directory for runs can be made in {base} ({error.strerror}); set ENTANGLE_RUN_DIR to a place that can be "
                        "written to"
                    ) from None
                try:
                    self._locks = [lock, _make_locked(spill_around, spill_name)]
                    break
                except FileExistsError:
                    os.close(lock)  # swept by the next
            self.pid = os.getpid()
            self.path = os.path.join(base, name)
            self._shared = ("", -1)
            if _branch:
                self._shared = (os.path.join(base, _branch), _join(around, _branch))
                os.symlink(self._shared[0], os.path.join(self.path, "tree"))
        self.spill = os.path.join(spill_base, spill_name)
        self.cpus = available_cpus()
        budget = (ANY_CPU,) * (budget_of(self.cpus) - 1)
        self.budget = CookieQueue.create(os.path.join(self.path, "budget"), budget, self.spill)
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
        """One run less. With no other under way, make the queues whole: programs that were killed with a worker, such as `make`,
        may have held cookies that nobody else knows of."""
        with self._count:
            self._runs -= 1
            if self._runs:
                return
            queues = [self.budget, *self.pools.values()]
            if not in_order:
                # Nested runs that were killed with their caller die a moment after it.
                until = time.monotonic() + _DYING
                while any(queue.held_by_others() for queue in queues) and time.monotonic() < until:
                    time.sleep(0.002)
            for queue in queues:
                queue.refill()

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
                    made = CookieQueue.create(path, self.cpus[:size], self.spill)
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
        for path, fd in zip((self.path, self.spill), self._locks, strict=True):
            for _ in range(5):
                if _remove_open(path, fd):
                    break
                time.sleep(0.01)  # somebody who is being killed was still writing
            os.close(fd)
        shared, fd = self._shared
        if shared:
            with contextlib.suppress(BlockingIOError):  # the last one removes it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_open(shared, fd)
            os.close(fd)


def _remove_open(path: str, fd: int) -> bool:
    """Remove the directory at `path`, which is open as `fd`; gives whether it is gone from there."""
    try:
        base = removal.open_ours(os.path.dirname(path))
    except OSError:
        return True  # gone, or somebody has put something else in its place, which is not for us to remove
    try:
        return removal.remove_tree(os.path.basename(path), fd, base)
    finally:
        os.close(base)


def pool_at(path: str, home: str) -> CookieQueue:
    """The queue of a pool that lies at `path`, for the processes that live in that home."""
    tree = os.path.join(home, "tree")
    return SharedQueue(path, tree) if os.path.islink(tree) else CookieQueue(path)


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
    if word and not _TREE.fullmatch(word):
        raise ValueError(f"{word!r:.100} is no name of a process tree")
    _branch = word


def home() -> Home:
    """The home of this process tree, made when the first run wants it."""
    global _watch
    parent = _parent()
    with _guard:
        if _watch is None:
            _watch = _Watch()
        found = _homes.get(parent)
        if found is None or not os.path.exists(found.path):
            if not _homes:
                _open_standard_streams()
                atexit.register(leave)
            found = _homes[parent] = Home(parent)
    if found.pid == os.getpid():
        _watch.look()
    return found


class _Watch:
    """Sees at each run whether there is something to sweep, without a look into each home that is there.

    A home that has not been seen before is looked at once; one that was in use then, when its process has gone. All are looked at
    once a second in any case: a number may be another process's by now, and homes of a container have others' numbers.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: For each directory of homes when it last changed, and the homes in it that were in use, with the numbers of their processes.
        self._known: dict[str, tuple[int, dict[str, int]]] = {}
        self._next = 0.0

    def look(self) -> None:
        """Sweep what there is to sweep."""
        if not self._guard.acquire(blocking=False):
            return  # another thread is at it
        try:
            bases = {base_in(parent) for parent in (_parent(), _on_disk())}
            if bases != self._known.keys() or time.monotonic() >= self._next or any(self._is_due(base) for base in bases):
                sweep()
                self._known = {base: _homes_in(base) for base in bases}
                self._next = time.monotonic() + 1.0
        finally:
            self._guard.release()

    def _is_due(self, base: str) -> bool:
        changed, homes = self._known[base]
        try:
            if os.stat(base).st_mtime_ns != changed:
                known = _homes_in(base)
                ours = {os.path.basename(path) for found in _homes.values() for path in (found.path, found.spill)}
                if known[1].keys() - homes.keys() - ours:
                    return True
                self._known[base] = known
            return not all(map(_exists, set(self._known[base][1].values())))
        except OSError:
            return True


def _homes_in(base: str) -> tuple[int, dict[str, int]]:
    """When a directory of homes last changed, and the homes in it, with the numbers of the processes that exist."""
    try:
        changed = os.stat(base).st_mtime_ns
        names = [name for name in os.listdir(base) if _HOME.fullmatch(name) or _TREE.fullmatch(name)]
    except OSError:
        return 0, {}
    pids = {name: int(name[1:].partition("-")[0]) if name.startswith("p") else os.getpid() for name in names}
    return changed, {name: pid if _exists(pid) else os.getpid() for name, pid in pids.items()}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


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


def sweep(left: list[str] | None = None) -> list[str]:
    """Remove the homes that dead processes have left behind; gives what was removed. What cannot be removed or looked at is added to
    `left`, with the reason."""
    removed: list[str] = []
    told: list[str] = []
    ours = {found.path for found in _homes.values()} | {found.spill for found in _homes.values()}
    for parent in {_parent(), _on_disk()}:
        path = base_in(parent)
        try:
            base = removal.open_ours(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            told.append(f"{path}: {removal.why(error)}, so nothing in it was removed; see whose it is, and remove it if it is not wanted")
            continue
        try:
            for name in os.listdir(base):
                inside = os.path.join(path, name)
                if inside in ours or not (_HOME.fullmatch(name) or _TREE.fullmatch(name)):
                    continue
                trouble = _sweep_one(name, base)
                if trouble:
                    told.append(f"{inside}: {trouble}")
                elif trouble is not None:
                    removed.append(inside)
        finally:
            os.close(base)
    if left is not None:
        left += told
    return removed


def _sweep_one(name: str, base: int) -> str | None:
    """Remove a home if nobody holds it: '' where it is gone, None where it is in use, else why it is still there."""
    try:
        fd = removal.open_ours(name, base)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{removal.why(error)}, so it was not removed"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not removal.is_named(fd, name, base):
            return None  # somebody else has removed it meanwhile
        return "" if removal.remove_tree(name, fd, base) else "something in it cannot be removed"
    except BlockingIOError:
        return None
    except OSError as error:
        return f"{removal.why(error)}, so it was not removed"
    finally:
        os.close(fd)
