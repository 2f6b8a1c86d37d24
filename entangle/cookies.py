"""Cookies: the right to use one CPU, held in a FIFO that any process of the tree can take from.

A cookie is one byte in a named pipe: to take one is to read a byte, to give it back is to write it. No process
coordinates, and the kernel keeps the queue. It is the protocol of the GNU make jobserver
(https://www.gnu.org/software/make/manual/html_node/Job-Slots.html), so `make`, `ninja` and `cargo` that a task starts
can take from the same queue.

Two kinds of queue use it. The *budget* of a process tree holds one cookie less than there are CPUs, since whoever starts
a run waits for it and leaves it his own place. A *pool* belongs to `@scheduler(cpus=n)`: its bytes say which of the
CPUs the holder binds itself to.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
from functools import lru_cache

#: A byte names a cookie, and a pipe of one page holds as many without blocking the one who fills it.
MOST_COOKIES = 250

#: The sizes of the pools of every scheduler decorated so far, so that the process that starts the first run can make
#: them all: a pool must outlive the nested runs that share it.
registered_pools: set[int] = set()


def available_cpus() -> list[int]:
    """The numbers of the CPUs that this thread may use; on systems without affinity, as many numbers as there are CPUs."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:
        return list(range(os.cpu_count() or 1))


def cpu_quota(groups: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> float | None:
    """How many CPUs' worth of time this process's control groups allow it, as `docker run --cpus=1.5` sets; None for no limit.

    Looks at each group from this process's own up to the top, of version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`).
    The files are described in the kernel's Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
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
        # A container sees its own group as the top, whatever the path says.
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
    """How many CPUs a process tree may keep busy: those it may use, or fewer where a quota gives it less of their time."""
    quota = cpu_quota()
    return len(cpus) if quota is None else max(1, min(len(cpus), math.ceil(quota)))


def bind(cpu: int) -> set[int]:
    """Bind this thread to one CPU; gives the CPUs that it could use before."""
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
    except (AttributeError, OSError):  # no affinity here (macOS), or the CPU has been taken from us since
        return set()
    return before


def roam(cpus: set[int]) -> None:
    """Let this thread use these CPUs again."""
    if cpus:
        os.sched_setaffinity(0, cpus)


class CookieQueue:
    """A queue of cookies in a named pipe at `path`. Every process of a tree may open it; it lasts while one has it open."""

    def __init__(self, path: str) -> None:
        self.path = path
        # Read and write: an open that waits for nobody, and a queue that keeps what it holds while we have it open.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))

    @classmethod
    def create(cls, path: str, cookies: bytes) -> CookieQueue:
        """Make the pipe and put these cookies into it. Raises `FileExistsError` where there is one."""
        os.mkfifo(path, 0o600)
        queue = cls(path)
        if cookies:
            os.write(queue._fd, cookies[:MOST_COOKIES])
        return queue

    def take(self) -> int | None:
        """Take a cookie if there is one; None otherwise. Never waits."""
        return self._read()

    def _read(self) -> int | None:
        try:
            taken = os.read(self._fd, 1)
        except BlockingIOError:
            return None
        return taken[0] if taken else None

    def wait(self) -> int:
        """Take a cookie, and sleep until there is one."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            cookie = self._read()
            if cookie is not None:
                return cookie
            poll.poll()

    def give(self, cookie: int) -> None:
        """Put a cookie back."""
        os.write(self._fd, bytes((cookie,)))

    def count(self) -> int:
        """How many cookies are in the queue now."""
        import array
        import termios

        held = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, held)
        return held[0]

    def refill(self, cookies: bytes) -> None:
        """Make the queue hold exactly these; for its owner, when nobody else uses it."""
        while self._read() is not None:
            pass
        if cookies:
            os.write(self._fd, cookies[:MOST_COOKIES])

    def close(self) -> None:
        """Let go of the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SharedQueue(CookieQueue):
    """A pool beside others for the same CPUs: those of further processes of one tree, each of which fills a queue of its own.

    A cookie is then also the lock (`flock`) of a file in `directory` that names it, which only one of them all can hold. The
    kernel frees it with its holder, so a queue that is lost with its process takes nothing from the others.
    """

    def __init__(self, path: str, directory: str) -> None:
        super().__init__(path)
        self._lock_path = os.path.join(directory, os.path.basename(path))
        self._locks: dict[int, int] = {}

    def take(self) -> int | None:
        """Take a cookie that is free everywhere, if there is one; None otherwise. Never waits."""
        aside: list[int] = []
        try:
            while (cookie := self._read()) is not None:
                if self._lock(cookie, wait=False):
                    return cookie
                aside.append(cookie)
            return None
        finally:
            for cookie in aside:
                super().give(cookie)

    def wait(self) -> int:
        """Take a cookie, and sleep until there is one."""
        first = super().wait()
        try:
            if self._lock(first, wait=False):
                return first
            other = self.take()
            if other is None:
                # Others have them all: whoever has this one will give it to us.
                self._lock(first, wait=True)
                return first
        except BaseException:
            super().give(first)
            raise
        super().give(first)
        return other

    def give(self, cookie: int) -> None:
        """Put a cookie back; one of a process that has died has been freed by the kernel."""
        held = self._locks.pop(cookie, -1)
        if held >= 0:
            fcntl.flock(held, fcntl.LOCK_UN)  # a child forked meanwhile has it open as well
            os.close(held)
        super().give(cookie)

    def _lock(self, cookie: int, wait: bool) -> bool:
        fd = os.open(f"{self._lock_path}-{cookie}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._locks[cookie] = fd
        return True


@lru_cache(maxsize=1)
def jobserver_style() -> str:
    """`fifo` where make (4.4 and later, as ninja and cargo) takes the path of a named pipe, `pipe` where it takes descriptors.

    A make before 4.4 stops with an error when it is offered a path, so we ask it first, once in a process.
    ENTANGLE_JOBSERVER says otherwise: `fifo`, `pipe` or `off`.
    """
    chosen = os.environ.get("ENTANGLE_JOBSERVER", "")
    if chosen in ("fifo", "pipe", "off"):
        return chosen
    # Not by `subprocess`: it would cost every program that uses us more to load than this whole module.
    read, write = os.pipe()
    try:
        silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 2)]
        make = os.posix_spawnp("make", ["make", "--version"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), *silence])
    except OSError:
        return "fifo"  # there is no make
    finally:
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            first = answer.readline()
            answer.read()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(make, 0)
    try:
        version = first.split()[-1].split(b".")
        return "fifo" if (int(version[0]), int(version[1])) >= (4, 4) else "pipe"
    except (ValueError, IndexError):
        return "pipe"


_offered: dict[str, int] = {}


def jobserver_flags(path: str, serial: bool = False) -> str | None:
    """The MAKEFLAGS that offer the queue at `path` to the programs that a process starts; None where that is switched off.

    Where make takes descriptors, one that they inherit is opened for them, once. `serial` says that no second cookie will
    ever be had: then make is also told to run one job at a time, since a `-j8` on its command line turns it from a jobserver.
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
    """Close the descriptor that was opened for the queue at `path`."""
    fd = _offered.pop(path, -1)
    if fd >= 0:
        os.close(fd)


_SERIAL = "--eval=.NOTPARALLEL:"
