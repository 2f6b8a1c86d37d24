"""Cookies: the right to use one CPU, held in a queue that any process of the tree can take from.

A cookie is one byte in a named pipe. To take one is to read a byte; to give it back is to write it.
No process coordinates; the kernel keeps the queue. This is the protocol of the GNU make jobserver
(https://www.gnu.org/software/make/manual/html_node/Job-Slots.html), so `make`, `ninja` and `cargo`
that a task starts take from the same queue.

There are two kinds of queue. The *budget* of a process tree holds one cookie fewer than there are
CPUs: whoever starts a run waits for it, and leaves its own CPU to the run. A *pool* (`pools.py`)
belongs to `@scheduler(cpus=n)`, where each of its cookies stands for one CPU, to which the holder
binds itself; or to `@limit(name, at_once=n)`, where each is a place.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import posix  # gevent patches `os`: its `close` and `waitpid` come late
import select
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import ParamSpec, TypeVar

from entangle.errors import OptionError, StoreFullError

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: The capacity of a pipe of one page: as many bytes are written without blocking.
MOST_COOKIES = 4096

#: The CPU of a cookie of the budget: none in particular.
ANY_CPU = -1

#: Seconds between two checks whether a holder is dead.
PATIENCE = 0.1

#: make writes this byte back, whichever it has read.
_BYTE = b"+"
#: Each byte that is spliced into a pipe takes a slot of its ring; a pipe has so many by default.
_RING = 16
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PIPE = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINK


def available_cpus() -> list[int]:
    """The numbers of the CPUs that this thread may use; without affinity (macOS), of all CPUs."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:
        return list(range(os.cpu_count() or 1))


def cpu_quota(groups: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> float | None:
    """How many CPUs' worth of time the control groups of this process allow; None for no limit.

    `docker run --cpus=1.5` sets such a limit. Looks at each group from this process's own up to the
    top, of version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`). The kernel describes these files in
    Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst.
    """
    found: list[float] = []
    try:
        with open(membership) as lines:
            memberships = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:  # no Linux
        return None
    for _, controllers, path in memberships:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = os.path.join(groups, "cpu") if controllers else groups
        parts = [part for part in path.split("/") if part and part != ".."]
        # A container sees its own group as the top, whatever its path says.
        for depth in range(len(parts) + 1):
            group = os.path.join(top, *parts[:depth])
            with contextlib.suppress(OSError, ValueError, IndexError):
                if controllers:
                    quota, period = (_words(os.path.join(group, f"cpu.cfs_{name}_us"))[0] for name in ("quota", "period"))
                else:
                    quota, period = _words(os.path.join(group, "cpu.max"))
                if int(quota) > 0:
                    found.append(int(quota) / int(period))
    return min(found, default=None)


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def budget_of(cpus: list[int]) -> int:
    """How many CPUs a process tree may keep busy: all of these, or fewer where a quota says so."""
    quota = cpu_quota()
    return len(cpus) if quota is None else max(1, min(len(cpus), math.ceil(quota)))


def bind(cpu: int) -> set[int]:
    """Bind this thread to one CPU. Returns the CPUs that it could use before."""
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
    except (AttributeError, OSError):  # no affinity (macOS), or the CPU is no longer ours
        return set()
    return before


def roam(cpus: set[int]) -> None:
    """Let this thread use these CPUs again."""
    if cpus:
        os.sched_setaffinity(0, cpus)


class CookieQueue:
    """A queue of cookies in a named pipe at `path`. Every process of a tree may open it.

    The queue lasts as long as one process has it open.

    The bytes in the pipe are all alike. All processes map a file beside it, which has a cell for
    each cookie: the CPU that the cookie stands for and, while it is held, its holder. A process
    may be killed at any instruction, so a cookie is always in one place, and the file says in
    which:

    - To take a cookie, `readv` moves its byte from the pipe into a cell, in one system call.
    - To give it back, three steps: write its byte into a second pipe, after the file says whose
      byte that is; clear the cell; `splice` the byte into the queue, in one system call. Without
      `splice` (macOS), a kill at that moment may lose the cookie until all runs of the process are
      over.

    All of this happens under a record lock. The kernel releases the lock when its holder dies, and
    the next holder completes the move. Whoever notices that a process has died gives its cookies
    back (`reclaim`). Cookies that `make` takes have no cell.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = self._hand = -1
        hand, cells = _beside(path)
        try:
            # For reading and writing: the open does not block, and the pipe keeps its bytes.
            self._fd = os.open(path, _PIPE)
            self._hand = os.open(hand, _PIPE)
            self._memory = _mapped(cells)
        except BaseException:
            for fd in (self._fd, self._hand):
                if fd >= 0:
                    os.close(fd)
            raise
        whole = memoryview(self._memory)
        self.size: int = struct.unpack_from("q", whole)[0]
        count = self.size
        words = whole[: 8 * (2 + 3 * count)].cast("q")
        self._moving: memoryview[int] = words[1:2]
        self._numbers, self._holders, self._threads = (words[2 + at * count : 2 + (at + 1) * count] for at in range(3))
        self._held = whole[8 * (2 + 3 * count) : 8 * (2 + 3 * count) + count]
        self._views = [self._moving, self._numbers, self._holders, self._threads, self._held, words, whole]
        self._looked = 0.0
        _open_queues.add(self)

    @classmethod
    def create(cls, path: str, numbers: Sequence[int], spill: str = "") -> CookieQueue:
        """Make a queue of cookies that stand for these CPUs, or for whatever has numbers.

        Where the file system of `path` is full, the file that processes map lies in `spill`. Raises
        FileExistsError if there is such a queue.
        """
        numbers = numbers[:MOST_COOKIES]
        hand, cells = _beside(path)
        for pipe in (hand, path):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(pipe, 0o600)
        count = len(numbers)
        # Last and atomically: of two processes that make the same queue, the second must find
        # all of it.
        place(cells, struct.pack(f"{2 + count}q", count, 0, *numbers) + bytes(17 * count), spill)
        queue = cls(path)
        if count > _RING:
            with contextlib.suppress(AttributeError, OSError):  # then not every byte is spliced
                fcntl.fcntl(queue._fd, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE << (count - 1).bit_length())
        queue.refill()  # the second process may have filled it already
        return queue

    # Any number of processes and threads at once --------------------------------------------------

    def take(self) -> int | None:
        """Take a cookie if there is one. Returns its CPU, or None. Never waits."""
        cell = self.take_cell()
        return self._numbers[cell] if cell >= 0 else None

    def wait(self) -> int:
        """Take a cookie; sleep until there is one. Returns its CPU."""
        return self._numbers[self.wait_cell(_never)]

    def take_cell(self) -> int:
        """Take a cookie if there is one. Returns its cell, or -1. Never waits."""
        cell = self._take()
        if cell < 0 and time.monotonic() - self._looked > PATIENCE and self.reclaim():
            cell = self._take()
        return cell

    def wait_cell(self, over: Callable[[], bool]) -> int:
        """Take a cookie; sleep until there is one. Returns its cell, or -1 once `over` says so."""
        while not over():
            cell = self.take_cell()
            # With a timeout: the death of a holder writes nothing into the pipe.
            if cell < 0 and _wait_for_bytes(self._fd, PATIENCE):
                cell = self._contend()
            if cell >= 0:
                return cell
        return -1

    def _contend(self) -> int:
        """Handle a pipe that holds a byte, though no cookie could be taken."""
        if self.held() == self.size:
            time.sleep(PATIENCE)  # the byte is none of our cookies: another program wrote it
        return -1

    def number(self, cell: int) -> int:
        """What the cookie in a cell stands for: its CPU."""
        return self._numbers[cell]

    def give_cell(self, cell: int, thread: int = 0) -> None:
        """Put back a cookie that this process holds; with `thread`, only one that it has taken."""
        if self._holders[cell] == identity(os.getpid()) and thread in (0, self._threads[cell]):
            self._locked(self._give, cell)

    def give(self, cookie: int) -> None:
        """Put back a cookie that this process holds. Does nothing if it holds no such cookie."""
        me, thread = identity(os.getpid()), threading.get_ident()
        found = -1
        for cell in self._cells_of(me):
            if self._numbers[cell] == cookie:
                found = cell
                if self._threads[cell] == thread:
                    break
        if found >= 0:
            self._locked(self._give, found)

    def held_here(self) -> set[int]:
        """The cells of the cookies that this thread holds."""
        thread = threading.get_ident()
        return {cell for cell in self._cells_of(identity(os.getpid())) if self._threads[cell] == thread}

    def give_back(self, but: Collection[int] = ()) -> None:
        """Put back all cookies that this thread holds, except those in the cells `but`.

        Includes a cookie that was being taken when the thread was interrupted.
        """
        self._locked(self._give_all, but)

    def reclaim(self) -> bool:
        """Put back the cookies of dead processes. Returns whether there were any."""
        self._looked = time.monotonic()
        return self._locked(self._reclaim)

    def count(self) -> int:
        """How many cookies are in the queue now."""
        return _bytes_in(self._fd)

    def fileno(self) -> int:
        """The descriptor that can be read while there are cookies in the queue."""
        return self._fd

    def held(self) -> int:
        """How many cookies our processes hold now."""
        return self.size - bytes(self._held).count(0)

    def refill(self) -> None:
        """Restore missing cookies and remove bytes that are no cookies.

        For the owner, while only the known holders of cookies use the queue.
        """
        if self.count() == self.size and not self._moving[0]:
            return
        self._locked(self._refill)

    def held_by_others(self) -> bool:
        """Whether another living process holds a cookie."""
        me = identity(os.getpid())
        return any(self._held[cell] and self._holders[cell] != me and lives(self._holders[cell]) for cell in range(self.size))

    def close(self) -> None:
        """Close the pipes and unmap the file."""
        with _guard:  # closing any descriptor of a file drops the record lock on it
            _open_queues.discard(self)
            if self._fd >= 0:
                for view in self._views:
                    view.release()
                self._memory.close()
                os.close(self._fd)
                os.close(self._hand)
                self._fd = self._hand = -1

    # Under the lock -------------------------------------------------------------------------------

    def _locked(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call `action` under the lock.

        No context manager: an interrupt between `__enter__` and `with` would leave the lock taken.
        """
        with _guard:
            try:
                self._lock()
                return action(*args, **kwargs)
            finally:
                self._unlock()

    def _lock(self) -> None:
        """Take the record lock, and complete a move that its last holder has left half done."""
        fcntl.lockf(self._hand, fcntl.LOCK_EX)
        if self._moving[0]:
            if _bytes_in(self._hand):
                self._held[self._moving[0] - 1] = 0
                self._put_in()
            self._moving[0] = 0

    def _unlock(self) -> None:
        fcntl.lockf(self._hand, fcntl.LOCK_UN)

    def _take(self) -> int:
        """Take a cookie into a cell. Returns the cell, or -1 if there is no cookie."""
        if self._is_empty():
            return -1
        return self._locked(self._fill_free)

    def _is_empty(self) -> bool:
        return not _wait_for_bytes(self._fd, 0)

    def _fill_free(self) -> int:
        cell = self._free_cell()
        if cell >= 0 and not self._fill(cell):
            self._let_go_of(cell)
            return -1
        return cell

    def _free_cell(self) -> int:
        return bytes(self._held).find(0)

    def _fill(self, cell: int) -> bool:
        """Move a byte from the pipe into a cell. Returns whether there was one."""
        self._holders[cell], self._threads[cell] = identity(os.getpid()), threading.get_ident()
        try:
            os.readv(self._fd, [self._held[cell : cell + 1]])
        except BlockingIOError:
            return False
        return True

    def _give(self, cell: int) -> None:
        if not self._held[cell]:
            return
        self._let_go_of(cell)
        self._moving[0] = cell + 1
        os.write(self._hand, _BYTE)
        self._held[cell] = 0
        self._put_in()
        self._moving[0] = 0

    def _give_all(self, but: Collection[int]) -> None:
        for cell in self.held_here() - set(but):
            self._give(cell)

    def _put_in(self) -> None:
        """Move the byte of the second pipe into the queue."""
        try:
            os.splice(self._hand, self._fd, 1, flags=os.SPLICE_F_NONBLOCK)
        except (AttributeError, OSError):  # no such call (macOS), or the ring is full
            posix.read(self._hand, 1)
            os.write(self._fd, _BYTE)

    def _let_go_of(self, cell: int) -> None:
        """Called before a cell becomes free."""

    def _reclaim(self) -> bool:
        me, found = identity(os.getpid()), False
        for cell in range(self.size):
            if self._held[cell] and self._holders[cell] != me and not lives(self._holders[cell]):
                self._give(cell)
                found = True
        return found

    def _refill(self) -> None:
        self._reclaim()
        missing = self.size - self.held() - self.count()
        if missing > 0:
            os.write(self._fd, _BYTE * missing)
        elif missing < 0:
            posix.read(self._fd, -missing)

    def _cells_of(self, holder: int) -> list[int]:
        held = bytes(self._held)
        return [cell for cell, of in enumerate(self._holders) if of == holder and held[cell]] if any(held) else []


class SharedQueue(CookieQueue):
    """One of several pools for the same CPUs, each filled by another process of the tree.

    A cookie is then also a lock (`flock`) on a file in `directory` that names its CPU, and its
    number among the cookies for that CPU; only one holder of all pools can have it. The kernel
    frees the lock when the holder dies, so a pool that is lost with its process takes no CPU from
    the others.
    """

    def __init__(self, path: str, directory: str) -> None:
        super().__init__(path)
        self._lock_path = os.path.join(directory, os.path.basename(path))
        self._locks: dict[int, int] = {}

    def _contend(self) -> int:
        """Other pools hold all CPUs: wait for the lock on the CPU of the first free cell."""
        before = self.held_here()
        try:
            cell = self._locked(self._fill_any)
            if cell >= 0:
                self._claim(cell, wait=True)
            return cell
        except BaseException:
            self.give_back(but=before)
            raise

    def _fill_any(self) -> int:
        cell = super()._free_cell()
        return cell if cell >= 0 and self._fill(cell) else -1

    def _free_cell(self) -> int:
        """A free cell whose CPU no other pool has given out; its lock is taken."""
        return next((cell for cell, held in enumerate(bytes(self._held)) if not held and self._claim(cell, wait=False)), -1)

    def _claim(self, cell: int, wait: bool) -> bool:
        number = self._numbers[cell]
        before = self._numbers[:cell].tolist().count(number)  # cookies that stand for the same
        fd = os.open(f"{self._lock_path}-{number}{f'.{before}' if before else ''}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NO_LINK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._locks[cell] = fd
        return True

    def _let_go_of(self, cell: int) -> None:
        fd = self._locks.pop(cell, -1)  # -1: the holder has died, and the kernel has freed its lock
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked child has it open too
            os.close(fd)


def _never() -> bool:
    return False


def reclaim_all() -> None:
    """Put back the cookies of dead processes in every open queue, after a process has died."""
    for queue in list(_open_queues):
        if queue.held():
            queue.reclaim()


def place(path: str, body: bytes, spill: str) -> None:
    """Create a file with all its bytes, atomically. Raises FileExistsError if there is one.

    Where there is no room, the file lies in `spill`, and `path` is a symbolic link to it.
    """
    for directory in (os.path.dirname(path), spill):
        # A short name: even a full tmpfs has room for a symbolic link of up to 127 bytes.
        draft = os.path.join(directory, f"c{os.urandom(4).hex()}")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | _NO_LINK, 0o600)
        linked = False
        try:
            # Reserve the room: writing to a mapped page without room kills the process (SIGBUS).
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, len(body))
            os.write(fd, body)
            if directory != spill:
                os.link(draft, path)
            else:
                os.symlink(draft, path)
                linked = True
            return
        except FileExistsError:
            raise
        except OSError as error:
            if directory == spill:
                text = f"no room in {os.path.dirname(path)}, not even for a link to {spill}; set ENTANGLE_RUN_DIR to another directory"
                raise StoreFullError(error.errno, text) from None
            if not spill:
                raise
        finally:
            os.close(fd)
            if not linked:
                os.unlink(draft)


def _beside(path: str) -> tuple[str, str]:
    """The paths of the second pipe and of the file of cells that belong to the pipe at `path`."""
    name, dash, size = path.rpartition("-")
    if not (dash and size.isdigit()):
        name, size = path, ""
    return f"{name}-0{size}", f"{name}-00{size}"


def cells_at(path: str) -> str:
    """The file of cells of the queue at `path`: once it is there, the queue is."""
    return _beside(path)[1]


def _mapped(path: str) -> mmap.mmap:
    """A file of cells, mapped; `path` may be a symbolic link of ours to it."""
    with contextlib.suppress(OSError):
        path = os.readlink(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | _NO_LINK)
    try:
        return mapped(fd)
    finally:
        os.close(fd)


def mapped(fd: int) -> mmap.mmap:
    """An open file, mapped; without a descriptor of its own where Python can do that."""
    size = os.fstat(fd).st_size
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, trackfd=False)
    return mmap.mmap(fd, size)


def _bytes_in(fd: int) -> int:
    """How many bytes a pipe holds."""
    import array
    import termios

    held = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, held)
    return held[0]


def _wait_for_bytes(fd: int, seconds: float) -> bool:
    """Wait until a pipe holds something. Returns whether it does."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    # eventlet takes `poll` away, and lets only one greenlet wait for a descriptor.
    until = time.monotonic() + seconds
    while not _bytes_in(fd) and time.monotonic() < until:
        time.sleep(0.001)
    return _bytes_in(fd) > 0


def identity(pid: int) -> int:
    """A number that identifies a process for good: its pid and its start time. 0 for a dead one."""
    global _own
    own_pid, own = _own
    if pid == own_pid:
        return own
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            state, *fields = file.read(1024).rpartition(b")")[2].split()
        found = 0 if state in (b"Z", b"X") else pid << 32 | int(fields[18]) & 0xFFFFFFFF
    except (OSError, ValueError, IndexError):
        found = _without_proc(pid)
    if pid == os.getpid():
        _own = pid, found
    return found


def _without_proc(pid: int) -> int:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    return 0 if os.path.exists("/proc/self/stat") else pid << 32


def lives(holder: int) -> bool:
    """Whether the process with this `identity` is still there."""
    return identity(holder >> 32) == holder


def _after_fork() -> None:
    global _guard, _own
    _guard, _own = threading.RLock(), (-1, 0)  # the thread that held the lock does not exist here


#: Held while a thread uses or closes a queue: record locks do not exclude threads of one process.
_guard = threading.RLock()
_own = (-1, 0)
_open_queues: weakref.WeakSet[CookieQueue] = weakref.WeakSet()

os.register_at_fork(after_in_child=_after_fork)


_JOBSERVER_STYLES = ("fifo", "pipe", "off")


def check_jobserver() -> None:
    """Raise OptionError for an ENTANGLE_JOBSERVER that is no style."""
    chosen = os.environ.get("ENTANGLE_JOBSERVER")
    if chosen and chosen not in _JOBSERVER_STYLES:
        raise OptionError(f"ENTANGLE_JOBSERVER={chosen!r}; choose one of {', '.join(_JOBSERVER_STYLES)}")


@lru_cache(maxsize=1)
def jobserver_style() -> str:
    """How make is offered the queue: `fifo` by a path (4.4 and later), `pipe` by descriptors.

    A make before 4.4 stops with an error when it is offered a path, so its version is asked for,
    once in a process. ENTANGLE_JOBSERVER overrides it: `fifo`, `pipe` or `off`.
    """
    chosen = os.environ.get("ENTANGLE_JOBSERVER", "")
    if chosen in _JOBSERVER_STYLES:
        return chosen
    # Without `subprocess`: its import takes longer than that of this whole module.
    read, write = os.pipe()
    try:
        silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 2)]
        make = posix.posix_spawnp("make", ["make", "--version"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), *silence])
    except OSError:
        return "fifo"  # no make here; ninja and cargo take a path
    finally:
        posix.close(write)
        said = b""
        while part := posix.read(read, 4096):
            said += part
        posix.close(read)
        first = said.partition(b"\n")[0]
    with contextlib.suppress(ChildProcessError):
        posix.waitpid(make, 0)
    try:
        version = first.split()[-1].split(b".")
        return "fifo" if (int(version[0]), int(version[1])) >= (4, 4) else "pipe"
    except (ValueError, IndexError):
        return "pipe"


_offered: dict[str, int] = {}


def jobserver_flags(path: str, serial: bool = False) -> str | None:
    """The MAKEFLAGS that offer the queue at `path` to programs that this process starts.

    None if that is switched off. Where make takes descriptors, opens one that programs inherit,
    once. `serial` says that there will never be a second cookie: make is then also told to run one
    job at a time, since `-j8` on its command line would turn it away from the jobserver.
    """
    style = jobserver_style()
    if style == "off":
        return None
    flags = [word for word in os.environ.get("MAKEFLAGS", "").split() if "jobserver" not in word and not word.startswith("-j")]
    flags = [word for word in flags if word != _SERIAL]
    if serial:
        flags.append(_SERIAL)
    if style == "fifo":
        auth = f"fifo:{path}"
    else:
        if path not in _offered:
            _offered[path] = os.open(path, os.O_RDWR)
            os.set_inheritable(_offered[path], True)
        auth = f"{_offered[path]},{_offered[path]}"
    return " ".join((*flags, "-j", f"--jobserver-auth={auth}"))


def forget_jobserver(path: str) -> None:
    """Close the descriptor that `jobserver_flags` opened for the queue at `path`."""
    fd = _offered.pop(path, -1)
    if fd >= 0:
        os.close(fd)


_SERIAL = "--eval=.NOTPARALLEL:"
