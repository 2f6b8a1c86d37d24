"""The home of a process: the one directory where it keeps files while its runs last.

::

    <parent>/entangle-<uid>/      0700, ours, no symlink
        p<pid>-<random>/          a process; locked (flock) while it, or a worker of it, lives
            budget                cookies of its process tree; and `budget-0`, `budget-00`
            cookies-<n>           cookies of @scheduler(cpus=n); `cookies-0<n>`, `cookies-00<n>`
            limit-<name>          figures of a @limit, and who has stated them (names are hashed)
            limit-<name>-<n>      its places: a queue, as of a scheduler
            tokens-<name>-<x>-<n> its tokens
            told-<hash>           that a warning about a depot has been given
            devices               cookies of @scheduler(gpus=n); and `devices-0`
            tree                  of an agent: a link to the directory that agents of its tree share
            r<random>/            a run: table, values, flow, attempts; nested runs lie inside
            x<random>/            an executor: large values of its calls
                w<pid>/           the runs that calls in this worker have begun
            w<pid>/               executors that bodies in this worker of a session have made; runs
                                  of a child that the program has forked
        t<home>-<depth>/          shared by the agents of one process tree here, locked by each
            cookies-<n>-<cpu>     locked by the holder of that cookie; `limit-<name>-<n>-<place>`

`pools.py` says which queues of cookies there are; `cookies.py` and `token_bucket.py` describe them.
`<parent>` is ENTANGLE_RUN_DIR, else /dev/shm, else the temporary directory. A home that nobody
holds locked is stale: its process was killed. The next run of any process removes it, and so does
`python -m entangle clean`.
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
from collections.abc import Iterator

from entangle._shared import removal
from entangle._shared.devices import Devices
from entangle.cookies import (
    ANY_CPU,
    CookieQueue,
    SharedQueue,
    available_cpus,
    budget_of,
    cells_at,
    forget_jobserver,
    jobserver_flags,
)
from entangle.errors import EntangleError
from entangle.pools import TOKENS, CookieSource, Pool, registered
from entangle.token_bucket import TokenBucket

#: The names of homes, of their spill directories, and of what the agents of one process tree share.
#: A directory of any other name is not ours, and is never removed.
_HOME = re.compile(r"p[0-9]+-[0-9a-f]{12}(\.spill)?")
_TREE = re.compile(r"tp[0-9]+-[0-9a-f]{12}-[0-9]+")
_CHILD = re.compile(r"w[0-9]{1,10}")

#: How long workers of nested runs may take to die when a run is broken off (seconds).
_DYING = 0.2

_homes: dict[str, Home] = {}
#: Homes whose locks the program has closed. What they have open is never closed: the numbers are
#: other files'.
_unlocked: list[Home] = []
#: The cookies of devices, by the path of the home.
_devices: dict[str, Devices] = {}
_guard = threading.Lock()
_sweeper: _Sweeper | None = None

#: In an agent: the name of the directory that it shares with agents of its tree on this machine.
_branch = ""


def _after_fork() -> None:
    global _guard, _sweeper
    _guard, _sweeper = threading.Lock(), None  # threads that held a lock do not exist in the child


os.register_at_fork(after_in_child=_after_fork)


def _parent() -> str:
    chosen = os.environ.get("ENTANGLE_RUN_DIR")
    if chosen:
        return os.path.abspath(chosen)
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        return "/dev/shm"
    return _on_disk()


def _on_disk() -> str:
    """The temporary directory. Avoids `tempfile` if possible: it would double the import time."""
    for usual in (os.environ.get("TMPDIR"), "/tmp"):
        if usual and os.access(usual, os.W_OK | os.X_OK):
            return os.path.abspath(usual)
    import tempfile

    return tempfile.gettempdir()


def is_home(name: str) -> bool:
    """Whether a process's home may have this name."""
    return _HOME.fullmatch(name) is not None and not name.endswith(".spill")


def base_in(parent: str) -> str:
    """Our directory under `parent`."""
    return os.path.join(parent, f"entangle-{os.getuid()}")


def _open_base(parent: str) -> int:
    """Open our directory under `parent`.

    Makes it if missing; refuses a link, or one others can use.
    """
    path = base_in(parent)
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise EntangleError(
                f"cannot make a directory for runs in {parent} ({error.strerror}); set ENTANGLE_RUN_DIR to a place that can be written to"
            ) from None
        try:
            return removal.open_ours(path)
        except FileNotFoundError:  # removed in between: make it again
            pass
        except removal.NotOurs as error:
            raise EntangleError(
                f"{path} is not a directory that only this user can use: {removal.why(error)}; remove it, or set ENTANGLE_RUN_DIR to "
                f"another place"
            ) from None


def private_folder() -> str:
    """A directory on disk that only this user can use, and that stays.

    Raises EntangleError if something else has taken its place.
    """
    os.close(_open_base(_on_disk()))
    return base_in(_on_disk())


def private(path: str, flags: int) -> int:
    """The `opener` of files in a home: for this user alone, whatever the umask."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def nameless() -> int:
    """An open, unnamed file beside the homes, gone when it is closed; -1 if not supported."""
    try:
        return os.open(_parent(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (AttributeError, OSError):  # macOS; some file systems
        return -1


def _make_locked(base: int, name: str) -> int:
    """Make a directory and lock it; gives the descriptor that holds the lock.

    Raises FileExistsError: choose another name.
    """
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
    os.close(fd)  # swept before we had the lock
    raise FileExistsError(name)


def _join(base: int, name: str) -> int:
    """Find or make the directory that agents share; gives the descriptor with our shared lock."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=base)
        try:
            fd = os.open(name, removal.DIRECTORY, dir_fd=base)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_SH)  # waits if another process is removing it
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
                        f"cannot make a directory for runs in {base} ({error.strerror}); set ENTANGLE_RUN_DIR to a place that can be "
                        "written to"
                    ) from None
                try:
                    self._locks = [lock, _make_locked(spill_around, spill_name)]
                    break
                except FileExistsError:
                    os.close(lock)  # another process will sweep it
            self.pid = os.getpid()
            self.path = self._runs_in = os.path.join(base, name)
            self._shared = ("", -1)
            if _branch:
                self._shared = (os.path.join(base, _branch), _join(around, _branch))
                os.symlink(self._shared[0], os.path.join(self.path, "tree"))
        self.spill = self._runs_spill = os.path.join(spill_base, spill_name)
        self.cpus = available_cpus()
        #: How many CPUs the process tree may keep busy.
        self.most = budget_of(self.cpus)
        budget = (ANY_CPU,) * (self.most - 1)
        self.budget = CookieQueue.create(os.path.join(self.path, "budget"), budget, self.spill)
        self.pools: dict[Pool, CookieQueue] = {}
        self._runs = 0
        self._count = threading.Lock()
        # Computed here: a worker just forked is slow at anything.
        self.makeflags = jobserver_flags(self.budget.path)

    def run_begins(self) -> None:
        """Count a run that this process starts."""
        with self._count:
            self._runs += 1

    def run_ends(self, in_order: bool) -> None:
        """Count a run that has ended.

        After the last one, refill the queues: programs killed with a worker, such as `make`, may
        have held cookies that nobody else knows of.
        """
        with self._count:
            self._runs -= 1
            if self._runs:
                return
            queues = [self.budget, *self.pools.values()]
            if not in_order:
                # Nested runs that were killed with their caller die a moment later.
                until = time.monotonic() + _DYING
                while any(queue.held_by_others() for queue in queues) and time.monotonic() < until:
                    time.sleep(0.002)
            for queue in queues:
                queue.refill()
            close_devices(self.path)

    def make_directory(self, name: str) -> tuple[str, str]:
        """Make the directory of a run or an executor that lies in no other. Return it with the name
        of its twin on disk."""
        if self.pid not in (os.getpid(), -1):  # a child that the program has forked may be killed
            name = os.path.join(f"w{os.getpid()}", name)
        directory = os.path.join(self._runs_in, name)
        try:
            os.mkdir(directory, 0o700)
        except FileNotFoundError:
            if not os.path.exists(self.path):
                raise
            os.makedirs(directory, mode=0o700, exist_ok=True)
        return directory, os.path.join(self._runs_spill, name)

    def sweep_children(self) -> None:
        """Remove what children that the program has forked have left here."""
        with contextlib.suppress(OSError):  # somebody has removed the directory
            for name in os.listdir(self.path):
                if _CHILD.fullmatch(name) and not _exists(int(name[1:])):
                    remove_of_worker(int(name[1:]))

    @classmethod
    def adopt(cls, path: str, spill: str, runs: tuple[str, str] | None = None) -> None:
        """In a worker not forked from its supervisor: use the home of its process tree.

        One that stays for other runs has adopted it already, unless another took its place. `runs`
        is where the runs of its bodies lie, here and on disk: whoever keeps it removes them if it
        is killed. Else they lie in the run around them.
        """
        known = _homes.get(_parent())
        if known is not None:
            if known.path == path:
                if runs is not None:
                    known._runs_in, known._runs_spill = runs
                return
            known.budget.close()
            for queue in known.pools.values():
                queue.close()
        found = cls.__new__(cls)
        found.pid, found.path, found.spill, found._locks, found._shared = -1, path, spill, [], ("", -1)
        found._runs_in, found._runs_spill = runs or (path, spill)
        found.cpus = available_cpus()
        found.most = len(found.cpus)  # workers have a share of the budget (`library_threads.py`)
        found.budget = CookieQueue(os.path.join(path, "budget"))
        found.pools = {}
        found.makeflags = jobserver_flags(found.budget.path)
        _homes[_parent()] = found

    def open_pools(self, pools: set[Pool]) -> None:
        """Make these pools of CPUs, and those of every `@scheduler` so far, if missing."""
        wanted = pools | registered
        if wanted <= self.pools.keys():
            return
        with _guard:  # runs may begin in several threads at once
            for pool in wanted - self.pools.keys():
                self.pools[pool] = open_queue(pool, self.path, self.path, self.cpus, self.spill)

    def remove(self) -> None:
        """Remove the directories. The locks go with the process."""
        if os.getpid() != self.pid:
            return
        for close in (self.budget.close, *(pool.close for pool in self.pools.values())):
            with contextlib.suppress(OSError):  # the program has closed it
                close()
        close_devices(self.path)
        with contextlib.suppress(OSError):
            forget_jobserver(self.budget.path)
        self.remove_directories()
        shared, fd = self._shared
        if shared:
            with contextlib.suppress(BlockingIOError):  # the last agent removes it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_open(shared, fd)
            os.close(fd)

    def is_locked(self) -> bool:
        """Whether the locks are still there: the program may have closed them."""
        return all(_is_open(path, fd) for path, fd in zip((self.path, self.spill), self._locks, strict=False))

    def remove_directories(self) -> None:
        """Remove the directories alone."""
        for path, fd in zip((self.path, self.spill), self._locks, strict=True):
            with contextlib.suppress(OSError), _still_open(path, fd) as directory:
                for _ in range(5):
                    if _remove_open(path, directory):
                        break
                    time.sleep(0.01)  # a process being killed was still writing


def _is_open(path: str, fd: int) -> bool:
    """Whether this descriptor leads there."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


@contextlib.contextmanager
def _still_open(path: str, fd: int) -> Iterator[int]:
    """The directory at `path`, open as `fd` unless the program has closed that; closed in the
    end."""
    opened = fd if _is_open(path, fd) else os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def _remove_open(path: str, fd: int) -> bool:
    """Remove the directory at `path`, open as `fd`; gives whether it is gone from there."""
    try:
        base = removal.open_ours(os.path.dirname(path))
    except OSError:
        return True  # gone, or replaced by something that is not ours to remove
    try:
        return removal.remove_tree(os.path.basename(path), fd, base)
    finally:
        os.close(base)


def make_pool(pool: Pool, directory: str, cpus: list[int], spill: str) -> None:
    """Make a pool that any process can fill again, unless it is there."""
    path = os.path.join(directory, pool.file)
    if os.path.exists(path if pool.kind == TOKENS else cells_at(path)):
        return
    with contextlib.suppress(FileExistsError):
        if pool.kind == TOKENS:
            TokenBucket.create(path, spill)
        else:
            CookieQueue.create(path, pool.numbers(cpus), spill).close()


def open_queue(pool: Pool, directory: str, home: str, cpus: list[int], spill: str) -> CookieQueue:
    """Open the queue of a pool for the first of `cpus` in `directory`; make it if missing."""
    path, made = os.path.join(directory, pool.file), None
    with contextlib.suppress(FileExistsError):  # a worker finds those of its tree
        made = CookieQueue.create(path, pool.numbers(cpus), spill)
    queue = _queue_at(path, home)
    if made is not None:
        made.close()
    return queue


def open_pool(pool: Pool, directory: str, home: str) -> CookieSource:
    """Open a pool that is there, for processes that live in that home."""
    path = os.path.join(directory, pool.file)
    if pool.kind == TOKENS:
        return TokenBucket(path, pool.rate, pool.size)
    queue = _queue_at(path, home)
    if pool.stays:
        queue.refill()  # a pipe that nobody had open has lost its bytes
    return queue


def _queue_at(path: str, home: str) -> CookieQueue:
    tree = os.path.join(home, "tree")
    return SharedQueue(path, tree) if os.path.islink(tree) else CookieQueue(path)


def remove_of_worker(pid: int) -> None:
    """Remove what a worker or a forked child that has ended, or is about to, has in its home."""
    for found in list(_homes.values()):
        for path in (found.path, found.spill):
            if os.path.exists(left := os.path.join(path, f"w{pid}")):
                import shutil

                shutil.rmtree(left, ignore_errors=True)


def home_of_tree(path: str) -> Home | None:
    """The home at `path`, if this process uses it."""
    return next((found for found in list(_homes.values()) if found.path == path), None)


def devices_of(path: str) -> Devices:
    """The cookies of devices of the process tree whose home is at `path`; made if missing.

    One for each process: closing a file drops the record locks that the process has on it. Agents
    of one tree on one machine share theirs.
    """
    found = _devices.get(path)
    if found is None:
        with _guard:
            found = _devices.get(path)  # another thread may have been faster
            if found is None:
                tree = os.path.join(path, "tree")
                where = os.path.realpath(tree) if os.path.islink(tree) else path
                known = [home for home in _homes.values() if home.path == path]
                spill = known[0].spill if known and where == path else ""
                found = _devices[path] = Devices(os.path.join(where, "devices"), spill)
    return found


def close_devices(path: str) -> None:
    """Close the cookies of devices of that home, where this process has them open."""
    with _guard:
        found = _devices.pop(path, None)
        if found is not None:
            found.close()


def branch() -> str:
    """The word for agents started from here: agents with the same word share cookies of pools.

    Those are agents on one machine that processes of one tree have started at one depth: 1 for
    those of the caller and its workers, 2 for agents of these agents. Different depths do not
    share: the holder of a cookie at depth 1 may wait for an agent of depth 2.
    """
    found = home().path
    with contextlib.suppress(OSError):
        root, _, depth = os.path.basename(os.readlink(os.path.join(found, "tree"))).rpartition("-")
        return f"{root}-{int(depth) + 1}"
    return f"t{os.path.basename(found)}-1"


def join(word: str) -> None:
    """In an agent that has no home yet: belong to the tree that `branch` has named."""
    global _branch
    if word and not _TREE.fullmatch(word):
        raise ValueError(f"{word!r:.100} is not the name of a process tree")
    _branch = word


def home() -> Home:
    """The home of this process tree; the first run makes it."""
    global _sweeper
    parent = _parent()
    with _guard:
        if _sweeper is None:
            _sweeper = _Sweeper()
        found = _homes.get(parent)
        if found is None or not os.path.exists(found.path):
            if not _homes:
                _open_standard_streams()
                atexit.register(leave)
            found = _homes[parent] = Home(parent)
    if found.pid == os.getpid():
        _sweeper.look()
    return found


def locked_home() -> Home:
    """The same; a new one where the program has closed the locks of the old one, so that others
    take that for dead and remove it."""
    found = home()
    if found.pid == os.getpid() and not found.is_locked():
        with _guard:
            if _homes.get(_parent()) is found:
                _unlocked.append(_homes.pop(_parent()))
        found = home()
    return found


#: Seconds between two looks of one process for homes to sweep: runs may follow each other closely.
_PAUSE = 0.0005


class _Sweeper:
    """Decides at each run whether to sweep, without looking into every home.

    A home not seen before is looked at once; one that was in use, when its process has gone. All
    are looked at once a second: a pid may have been reused, and homes of containers have other
    pids.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: For each directory of homes: when it last changed, and its homes in use, with their pids.
        self._known: dict[str, tuple[int, dict[str, int]]] = {}
        self._next = self._again = 0.0

    def look(self) -> None:
        """Sweep if there is something to sweep."""
        now = time.monotonic()
        if now < self._again or not self._guard.acquire(blocking=False):
            return  # another thread does it, or it has just been done
        self._again = now + _PAUSE
        try:
            bases = {base_in(parent) for parent in (_parent(), _on_disk())}
            if bases != self._known.keys() or time.monotonic() >= self._next or any(self._is_due(base) for base in bases):
                sweep()
                for found in list(_homes.values()):
                    if found.pid == os.getpid():
                        found.sweep_children()
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
    """When a directory of homes last changed; the homes in it, with the pids that exist."""
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
    for found in _unlocked:
        if found.pid == os.getpid():
            found.remove_directories()
    _unlocked.clear()


def _open_standard_streams() -> None:
    """Open /dev/null in place of the descriptors 0, 1 and 2 that a caller has closed.

    Otherwise a pipe of ours would take the number, and a worker, which gets new standard streams,
    would lose it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def sweep(left: list[str] | None = None) -> list[str]:
    """Remove the homes of dead processes; gives what was removed.

    What cannot be removed or looked at is added to `left`, with the reason.
    """
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
    """Remove a home that nobody holds: '' if it is gone, None if in use, else why it remains."""
    try:
        fd = removal.open_ours(name, base)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{removal.why(error)}, so it was not removed"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not removal.is_named(fd, name, base):
            return None  # another process has removed it
        return "" if removal.remove_tree(name, fd, base) else "something in it cannot be removed"
    except BlockingIOError:
        return None
    except OSError as error:
        return f"{removal.why(error)}, so it was not removed"
    finally:
        os.close(fd)
