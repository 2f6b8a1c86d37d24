"""Starting worker processes: by fork, from the warm forkserver, or by spawning an interpreter.

Fork is the quickest and inherits everything, but it is not safe where other threads run, where an OpenMP runtime has been
loaded (a child that enters a parallel region would wait for threads that it does not have), or where a CUDA context
lives. `auto` looks each time a worker is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
import warnings
from array import array
from collections.abc import Iterable
from typing import Any

from entangle._run import janitor
from entangle._run.home import Home
from entangle._run.pickling import dumps_for_others, why_not
from entangle._run.readable import readable
from entangle._run.store import Store
from entangle._run.table import PID, SLOT, STARTING, STATE, Table, reserve
from entangle._run.worker import Site, Worker, flush, here, run_as
from entangle.cookies import jobserver_flags, jobserver_style
from entangle.errors import EntangleError, OptionError, StoreFullError
from entangle.flow import PROCESS, Body, Flow, Shape

WAYS = ("auto", "fork", "forkserver", "spawn")
#: The exit status of a worker whose own code failed, not a body: a bug of ours.
BROKEN = 70

_EXIT = struct.Struct("<i")
_BORN = struct.Struct("<q")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

try:
    _prctl: Any = ctypes.CDLL(None).prctl
except AttributeError:  # macOS: a worker there outlives a killed caller by the body that it runs
    _prctl = None


class WorkerProcess:
    """A worker process as its supervisor sees it: how to know that it has ended, how to end it, what it writes to stderr."""

    def __init__(self, slot: int, lane: int, pid: int, watch: int, err: int, out: int, ours: bool) -> None:
        self.slot = slot
        self.lane = lane
        self._pid = pid
        self.watch = watch
        self.err = err
        self.out = out
        self._ours = ours
        self.ended_by: int | None = None
        self.tail = bytearray()
        self.used = 0
        self.looked_at = time.monotonic_ns()

    @property
    def is_child(self) -> bool:
        """Whether it is ours to wait for; one from the forkserver is not."""
        return self._ours

    @property
    def pid(self) -> int:
        """The process id; 0 as long as the forkserver has not told it, -1 where it never will."""
        if self._pid == 0:
            self._hear_of_birth(0)
        return self._pid

    def _hear_of_birth(self, seconds: float) -> None:
        """Read the process id that the forkserver sends, if it comes within so many seconds."""
        if readable([self.watch], seconds):
            born = os.read(self.watch, _BORN.size)
            if len(born) == _BORN.size:
                self._pid = _BORN.unpack(born)[0]
            else:  # the server has died, and its workers with it
                self._pid = -1
                self.ended_by = -signal.SIGKILL

    def ended(self) -> bool:
        """Whether the process has ended; then `ended_by` is its exit code, or minus the signal. Never waits."""
        if self.ended_by is not None:
            return True
        if self._ours:
            try:
                found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # the caller ignores SIGCHLD, or reaps what is not his: how it ended is lost
                self.ended_by = 0 if not _alive(self._pid) else None
                return self.ended_by is not None
            if found is None:
                return False
            # Before the pid is free to be used again: what the worker has left running in its process group.
            _kill_group(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self.ended_by = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            return True
        if self.pid > 0 and self.ended_by is None and readable([self.watch], 0):
            status = os.read(self.watch, _EXIT.size)
            self.ended_by = _EXIT.unpack(status)[0] if len(status) == _EXIT.size else -signal.SIGKILL
        return self.ended_by is not None

    def kill(self, number: int) -> None:
        """Send a signal to the worker and to all that it has started in its process group."""
        if self.pid == 0:
            self._hear_of_birth(1.0)
            if self.pid == 0:  # it will come to a run that is over, and go
                self.ended_by = 0
        if self.ended_by is None and self.pid > 0:
            _kill_group(self.pid, number)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def cpu_time(self) -> int | None:
        """CPU time that the process has used, in nanoseconds; None where it is gone."""
        if self.pid <= 0:
            return None
        # The clock of another process: clock_getcpuclockid(3) makes its number like this.
        try:
            return time.clock_gettime_ns((~self.pid << 3) | 2)
        except (OSError, AttributeError):
            return None

    def runnable(self) -> bool:
        """Whether the process runs or would if it had a CPU, as the state letter of proc(5) tells; False where that is unknown."""
        if self.pid <= 0:
            return False
        try:
            with open(f"/proc/{self.pid}/stat", "rb", buffering=0) as file:
                return file.read(512).rpartition(b")")[2][1:2] == b"R"
        except OSError:
            return False

    def close_stream(self, fd: int) -> None:
        """Let go of stderr or stdout, whose end has come."""
        os.close(fd)
        if fd == self.err:
            self.err = -1
        else:
            self.out = -1

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.watch, self.err, self.out):
            if fd >= 0:
                os.close(fd)
        self.watch = self.err = self.out = -1


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# Choosing ------------------------------------------------------------------------------------------------------

_seen = (-1, False)


def fork_is_safe() -> bool:
    """Whether a fork of this process can run anything: no other thread, no OpenMP runtime, no CUDA context."""
    global _seen
    if threading.active_count() > 1 or not hasattr(os, "fork"):
        return False
    loaded, found = _seen
    if loaded != len(sys.modules) and not found:
        # Libraries come with modules, so there is nothing new to see while their number stays.
        try:
            with open("/proc/self/maps", "rb") as maps:
                text = maps.read()
        except OSError:
            text = b""
        found = any(name in text for name in (b"libgomp", b"libiomp5", b"libomp.", b"libomp-", b"/dev/nvidia"))
        _seen = (len(sys.modules), found)
    return not found


def chosen_way(wanted: str | None) -> str:
    """The way to start workers: what the caller wants, else ENTANGLE_START, else auto.

    The environment speaks of the process that the user has started. A worker is clean: its nested runs look for themselves.
    """
    inside = here.worker is not None and here.worker.in_process
    way = wanted or ("" if inside else os.environ.get("ENTANGLE_START")) or "auto"
    if way not in WAYS:
        raise OptionError(f"start={way!r}: there is no such way to start workers; choose one of {', '.join(WAYS)}")
    return way


def start_worker(way: str, site: Site, store: Store, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Start a worker process of a run in a slot of its table."""
    site.table.slots[slot * SLOT + STATE] = STARTING
    if way == "auto":
        way = "fork" if fork_is_safe() else "forkserver"
    flush()  # what the caller has printed comes before what its workers print, and a fork does not print it twice
    err_read, err_write = os.pipe()
    out_read, out_write = os.pipe() if capture else (-1, -1)
    try:
        if way == "fork":
            pid = _fork(site, store, slot, lane, serial, err_write, out_write)
            watch = _watch(pid)
        else:
            write_flow(site)
            fds = [err_write, out_write, *site.wake, *site.wake_threads, site.tell]
            if way == "forkserver":
                from entangle._run.forkserver import ask

                pid, watch = 0, ask(site.directory, site.flow_path, slot, lane, serial, fds)
            else:
                pid = _spawn(site.directory, site.flow_path, slot, lane, serial, fds)
                watch = _watch(pid)
    except BaseException:
        for fd in (err_read, out_read):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        for fd in (err_write, out_write):
            if fd >= 0:
                os.close(fd)
    os.set_blocking(err_read, False)
    if out_read >= 0:
        os.set_blocking(out_read, False)
    return WorkerProcess(slot, lane, pid, watch, err_read, out_read, ours=way != "forkserver")


def _watch(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 where there is no such thing (macOS)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


# The child's side ----------------------------------------------------------------------------------------------


def _fork(site: Site, store: Store, slot: int, lane: int, serial: int, err: int, out: int) -> int:
    parent = os.getpid()
    own_handlers = handlers_to_reset()
    with janitor.off_duty(), warnings.catch_warnings() if threading.active_count() > 1 else contextlib.nullcontext():
        if threading.active_count() > 1:
            # The caller has asked for fork in so many words.
            warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        settle_in(parent, err, out, own_handlers)
        store.become(slot, serial)
        code = live(Worker(site, slot, lane, serial, store))
    except BaseException:
        report_bug()
    finally:
        os._exit(code)


def live(worker: Worker) -> int:
    """A worker process's life; gives its exit status."""
    slots = worker.site.table.slots
    slots[worker.base + PID] = os.getpid()
    here.worker = worker
    if worker.site.makeflags is not None:
        os.environ["MAKEFLAGS"] = worker.site.makeflags
    try:
        run_as(worker)
    finally:
        flush()
        janitor.dismiss()
    return 0


def report_bug() -> None:
    """Say on stderr what went wrong in a worker outside of any body."""
    import traceback

    with contextlib.suppress(Exception):
        os.write(2, ("entangle: a worker failed outside of any task\n" + traceback.format_exc()).encode())


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask to be told
            os._exit(1)


#: Signals whose handlers a worker does not keep.
_RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def handlers_to_reset() -> list[int]:
    """The signals among them that this process handles in a way of its own; asked before the fork, since in the child,
    whose pages are all copied when first touched, everything takes several times as long."""
    usual = (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in _RESET if signal.getsignal(number) not in usual]


def settle_in(parent: int, err: int, out: int, own_handlers: Iterable[int] = _RESET) -> None:
    """Make this process a worker: it dies with its parent, is deaf to the terminal, and its stderr goes to the supervisor."""
    die_with(parent)
    if _prctl is not None:
        # A daemon that a body starts then stays in our family, where a deadline finds it.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in own_handlers:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    os.dup2(err, 2)
    if out >= 0:
        os.dup2(out, 1)
    for fd in (err, out):
        if fd > 2:
            os.close(fd)
    _open_streams(replaced=out >= 0)
    loop = sys.modules.get("asyncio.events")
    if loop is not None:
        loop._set_running_loop(None)  # the caller's loop does not run here
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # else every worker would draw the same numbers
    janitor.watch_for_children()


def _open_streams(replaced: bool) -> None:
    """Text streams on descriptors 1 and 2: line by line, so that what is printed is out before a worker is killed."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            usable = stream.fileno() == fd and not (replaced and fd == 1)
            if usable and not stream.line_buffering:
                stream.reconfigure(line_buffering=True)
        except Exception:
            usable = False
        if not usable:
            fresh = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, fresh)


# Without fork: the run is found by its directory -----------------------------------------------------------------


def write_flow(site: Site) -> None:
    """Write down what a worker that was not forked needs, once in a run. Raises UnpicklableError naming what cannot travel."""
    if site.flow_path:
        return
    flow = site.flow
    try:
        pickled = dumps_for_others(flow)
    except Exception as error:
        raise _what_cannot_travel(flow, error) from None
    known = {
        "flow": pickled,
        "home": site.home,
        "spill": site.spill,
        "home_spill": os.path.dirname(site.spill),
        "directory": _working_directory(),
        "environment": dict(os.environ),
        "path": sys.path,
        "argv": sys.argv,
        "jobserver": jobserver_style(),
        "logging": [name for name in sys.modules if name.startswith("entangle.logging.")],
    }
    body = pickle.dumps(known, 5)
    for directory in (site.directory, site.spill):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, "flow")
        try:
            with open(path, "xb") as file:
                reserve(file.fileno(), 0, len(body))
                file.write(body)
        except OSError as error:
            os.unlink(path)
            if directory == site.spill:
                raise StoreFullError(
                    error.errno, f"no room for a flow of {len(body):,} bytes, neither in memory nor in {directory}"
                ) from None
        else:
            site.flow_path = path
            return


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it has been removed; a worker is then wherever its parent is
        return None


def _what_cannot_travel(flow: Flow, error: Exception) -> Exception:
    for node in range(flow.count):
        first = flow.starts[node]
        for position, taken in enumerate(flow.inputs[first : flow.starts[node + 1]]):
            if taken < 0:
                try:
                    dumps_for_others(flow.constants[~taken])
                except Exception:
                    return why_not(flow.constants[~taken], f"argument {position + 1} of task {flow.body(node).name!r}")
    for body in flow.bodies:
        try:
            dumps_for_others(body)
        except Exception:
            return why_not(body.function, f"the function of task {body.name!r}")
    return EntangleError(f"the flow cannot be sent to a worker: {type(error).__name__}: {error}")


def join_run(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> Worker:
    """Become a worker of the run in that directory, in a process that was not forked from its supervisor."""
    try:
        with open(flow_path, "rb") as file:
            known = pickle.load(file)
        table = Table.attach(os.path.join(directory, "table"))
    except FileNotFoundError:
        os._exit(0)  # the run was over before we came
    if sys.path != known["path"]:
        sys.path[:] = known["path"]
    sys.argv[:] = known["argv"]
    if dict(os.environ) != known["environment"]:
        os.environ.clear()
        os.environ.update(known["environment"])
    if known["directory"] is not None:
        with contextlib.suppress(OSError):
            os.chdir(known["directory"])
    for name in known["logging"]:
        importlib.import_module(name)  # it configures logging; a fork would have inherited that
    os.environ["ENTANGLE_JOBSERVER"] = known["jobserver"]
    Home.adopt(known["home"], known["home_spill"])
    flow: Flow = pickle.loads(known["flow"])
    wake, wake_threads, tell = (fds[0], fds[1]), (fds[2], fds[3]), fds[4]
    site = Site(flow, table, directory, known["home"], known["spill"], wake, wake_threads, tell)
    site.makeflags = jobserver_flags(os.path.join(site.home, "budget"))
    return Worker(site, slot, lane, serial)


def rehearse(home: str, server: int) -> None:
    """Go once through what a worker does first, in a process that is forked ahead and has nothing else to do.

    A process just forked copies every page that it touches for the first time: the same steps take it five times as long.
    """
    import cloudpickle

    null = os.open(os.devnull, os.O_RDWR)
    settle_in(server, null, -1)
    directory = os.path.join(home, f"w{os.urandom(8).hex()}")
    os.mkdir(directory, 0o700)
    try:
        one = array("i", (0,))
        flow = Flow([Body(_nothing, "rehearsal")], [Shape(0)], one, one, array("q", (0, 0)), array("q"), [], leaves=1)
        lanes = [PROCESS]
        table = Table.create(flow, 4, lanes, os.path.join(directory, "table"))
        wake, (listen, tell) = os.pipe(), os.pipe()
        site = Site(flow, table, directory, home, directory, wake, (-1, -1), tell)
        write_flow(site)
        others = [os.dup(fd) for fd in wake] + [-1, -1, os.dup(tell)]
        worker = join_run(directory, site.flow_path, 1, PROCESS, 1, others)
        run_as(worker)
        worker.site.leave()
        site.leave()
        os.close(listen)
        pickle.loads(cloudpickle.dumps(lambda: None))
    finally:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _nothing() -> None:
    """The body of a rehearsal."""


def _spawn(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> int:
    import subprocess

    from entangle._run.forkserver import environment_of_interpreter

    numbers = ",".join(str(fd) for fd in fds)
    where = f"{os.getpid()}, {directory!r}, {flow_path!r}, {slot}, {lane}, {serial}, [{numbers}]"
    code = f"from entangle._run.start import spawned; spawned({where})"
    with janitor.off_duty():
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[fd for fd in fds if fd >= 0],
            env=environment_of_interpreter(),
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
    pid = process.pid
    process.returncode = 0  # we reap it ourselves
    return pid


def spawned(parent: int, directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> None:
    """What a spawned interpreter runs."""
    code = BROKEN
    try:
        err, out, *others = fds
        settle_in(parent, err, out)
        code = live(join_run(directory, flow_path, slot, lane, serial, others))
    except BaseException:
        report_bug()
    finally:
        os._exit(code)
