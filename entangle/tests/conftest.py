"""What every test relies on: its own run directory, ways to run, and the check that nothing is left
behind."""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before entangle is imported. All processes of entangle, and the scripts that tests start,
# carry this path in their environment or their memory maps, so a stray process of ours can be told
# from a foreign one. The exit handler is registered first, so it runs last, after entangle has
# cleaned up.
_PARENT = os.environ.get("ENTANGLE_TESTS_DIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
RUNS = tempfile.mkdtemp(prefix="entangle-tests-", dir=_PARENT)
_OWNER = os.getpid()
#: What a test leaves behind must be gone after this many seconds.
PATIENCE = float(os.environ.get("ENTANGLE_TESTS_PATIENCE", "10"))


@atexit.register
def _remove_runs() -> None:
    if os.getpid() == _OWNER:
        shutil.rmtree(RUNS, ignore_errors=True)


os.environ["ENTANGLE_RUN_DIR"] = RUNS
# Record every run of the tests, but not among the records of the developer.
os.environ["ENTANGLE_RECORD_DIR"] = os.path.join(RUNS, "records")
# Find no value that an earlier run of the tests has kept.
os.environ["ENTANGLE_DEPOT"] = os.path.join(RUNS, "depot")
for _name in (
    "ENTANGLE_START",
    "ENTANGLE_MAX_WORKERS",
    "ENTANGLE_PROGRESS",
    "ENTANGLE_RECORD",
    "ENTANGLE_GRAPH",
    "ENTANGLE_JOBSERVER",
    "ENTANGLE_KEY",
    "ENTANGLE_DEPOT_SIZE",
    "ENTANGLE_DEPOT_AGE",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
):
    os.environ.pop(_name, None)

# A shell without job control starts background jobs with SIGINT ignored. Scripts that tests start
# would inherit that, and could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

import entangle  # noqa: E402
from entangle._testing import shared_segments  # noqa: E402
from entangle.process import process  # noqa: E402

from .bodies import one  # noqa: E402
from .evidence import alive  # noqa: E402
from .ways import WAYS, Way, second_thread  # noqa: E402

#: These need more than `make test` installs, and have their own targets: `make test-engines` and
#: `make test-clouds`.
collect_ignore = ["clouds", "engines"]


def pytest_configure(config: pytest.Config) -> None:
    """Settings that also hold where pyproject.toml is not read, as with `pytest --pyargs
    entangle.tests`."""
    config.addinivalue_line("markers", "drill: a fault made on purpose, over and over; `make drill` runs these alone")
    config.addinivalue_line("markers", "lint: what a type checker says; `make lint` runs these alone")
    config.addinivalue_line("markers", "pages: code blocks of the documentation; `make docs` runs these alone")
    config.addinivalue_line("markers", "near: about this machine alone, so not run in other places")
    config.addinivalue_line("markers", "everywhere: also run in places that are there to be different")
    config.addinivalue_line("filterwarnings", "error")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the marked tests that were not asked for, and give every test a time limit."""
    apart = [name for name in ("drill", "lint", "pages") if name not in (config.option.markexpr or "")]
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        if _is_slow(item):
            item.add_marker(pytest.mark.drill)
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600 if item.get_closest_marker("drill") else 60))
        (left if any(map(item.get_closest_marker, apart)) or not _belongs(item) else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
    items[:] = _in_turn(kept) if "PYTEST_XDIST_WORKER" in os.environ else kept


def _way_of(item: pytest.Item) -> Way | None:
    spec = getattr(item, "callspec", None)
    way = spec.params.get("way") if spec is not None else None
    return way if isinstance(way, Way) else None


def _is_slow(item: pytest.Item) -> bool:
    """Whether the test counts as a drill because of the way in which it runs."""
    way = _way_of(item)
    return way is not None and way.drilled and not way.whole and item.get_closest_marker("everywhere") is None


def _belongs(item: pytest.Item) -> bool:
    """Whether the test is meant for the place in which it runs."""
    way = _way_of(item)
    if way is None or way.here:
        return True
    return item.get_closest_marker("near") is None and (way.whole or way.drilled or item.get_closest_marker("everywhere") is not None)


# --- which process runs which tests ---------------------------------------------------------------

#: Files whose tests run in every way. Workers of pytest-xdist get the tests of one way, not of one
#: file.
_IN_EVERY_WAY = ("test_behaviour.py", "test_everyday.py")
#: Files that take long, the longest first.
_LONG = (
    *_IN_EVERY_WAY,
    "test_every_moment.py",
    "test_cli.py",
    "test_browser.py",
    "test_killed_workers.py",
    "test_far_faults.py",
    "test_library_threads.py",
    "test_limit.py",
    "test_examples.py",
    "test_preloading.py",
    "test_killed_callers.py",
    "test_progress.py",
    "test_interpreter.py",
    "test_ssh_faults.py",
    "test_joblib.py",
    "test_nested.py",
    "test_many_runs.py",
    "test_strange_callers.py",
    "test_away_streams.py",
    "test_admission.py",
    "test_services.py",
    "test_records.py",
    "test_ssh.py",
    "test_docker.py",
    "test_web.py",
    "test_channel.py",
    "test_printout.py",
    "test_jupyter.py",
    "test_importing.py",
    "test_children.py",
    "test_ends.py",
    "test_place.py",
    "test_coming_from.py",
    "test_dask.py",
    "test_executor_ends.py",
    "test_deadlines.py",
    "test_pickled_classes.py",
    "test_pytest_plugin.py",
    "test_gpus.py",
    "test_session_places.py",
    "test_executor.py",
    "test_floors.py",
    "test_gremlin.py",
    "test_module_lookup.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, split some files by way, and hand out all in the order of
    `_in_turn`."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False  # else the files with most tests come first
    scheduling: Any = importlib.import_module("xdist.scheduler").LoadFileScheduling

    class InParts(scheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if not file.endswith(_IN_EVERY_WAY):
                return file
            names = [way.name for way in WAYS if re.search(rf"[\[-]{way.name}[\]-]", test)]
            return f"{file} {max(names, key=len, default='')}"

    return InParts(config, log)


def _in_turn(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort the files that take long first, so that all workers stay busy until the end."""
    last = len(_LONG)
    tests = Counter(item.path for item in items)

    def turn(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.name
        return (_LONG.index(name) if name in _LONG else last, -tests[item.path], str(item.path))

    return sorted(items, key=turn)


# --- ways to run ----------------------------------------------------------------------------------


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """Each of the ways to run, one after the other."""
    chosen: Way = request.param
    monkeypatch.setenv("ENTANGLE_START", chosen.start)
    if chosen.second_thread:
        with second_thread():
            yield chosen
    elif chosen.session:
        with entangle.session():
            yield chosen
    else:
        yield chosen


@pytest.fixture(params=["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the ways to start a worker. Spawn only in drills: it is slow, and after the start its
    worker is like one of the forkserver."""
    monkeypatch.setenv("ENTANGLE_START", request.param)
    return str(request.param)


# --- nothing is left behind -----------------------------------------------------------------------


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone meanwhile, or of another user
        return b""


def _processes() -> set[int]:
    """The numbers of all processes. It reads nothing else of them: it runs before and after each of
    thousands of tests."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _parent(pid: int) -> int:
    """The parent of a process, or 0 if the process is gone."""
    stat = _read(f"/proc/{pid}/stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else 0


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:  # gone meanwhile
        return []
    return [int(child) for task in tasks for child in _read(f"/proc/{pid}/task/{task}/children").split()]


def _run_directories() -> set[str]:
    """The run directories of this process: in shared memory and, where values have spilled, on
    disk."""
    mine = f"entangle-{os.getuid()}/p{_OWNER}-*/[rx]*"  # `x`: of an executor
    return {str(path) for top in (RUNS, tempfile.gettempdir()) for path in Path(top).glob(mine)}


def _belongs_to_us(pid: int) -> bool:
    """Whether a process that is no longer our descendant uses something of ours: in its memory, its
    environment or its descriptors."""
    marked = os.fsencode(RUNS)
    if marked in _read(f"/proc/{pid}/maps") or marked in _read(f"/proc/{pid}/environ"):
        return True
    try:
        links = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for link in links:
        try:
            if RUNS in os.readlink(f"/proc/{pid}/fd/{link}"):
                return True
        except OSError:
            pass
    return False


def _line_of(pid: int) -> list[int]:
    """The process and its ancestors below the test process; empty if it is not our descendant."""
    line = [pid]
    while line[-1] > 1 and (parent := _parent(line[-1])) != _OWNER:
        line.append(parent)
    return line if line[-1] > 1 else []


def _of_the_server(line: list[int]) -> bool:
    """Whether a process comes from the warm server: ours, or that of a warm agent."""
    commands = [_read(f"/proc/{pid}/cmdline") for pid in line]
    servers = commands if any(b"entangle-agent" in command for command in commands) else commands[-1:]
    return any(b"entangle._run.forkserver" in command for command in servers)


def _spares() -> dict[int, bytes]:
    """The warm server and the workers that it has forked ahead, with the size of their memory maps.
    They exist before a run and join one later."""
    found = {}
    lines = [[child] for child in _children(_OWNER)]
    while lines:
        line = lines.pop()
        lines += [[child, *line] for child in _children(line[0])]
        if _of_the_server(line):
            found[line[0]] = _mapped(line[0])
    return found


def _mapped(pid: int) -> bytes:
    return _read(f"/proc/{pid}/statm").partition(b" ")[0]


def _why_stray(pid: int) -> str | None:
    """Why a process counts as left behind, or None if it does not."""
    command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").strip()
    line = _line_of(pid)
    if _of_the_server(line):
        in_a_run = re.search(rb"/p\d+-[0-9a-f]+(\.spill)?/r", _read(f"/proc/{pid}/maps"))
        return f"{pid} is still a worker of a run" if in_a_run else None
    if line:
        return f"{pid} is {'alive' if alive(pid) else 'a zombie'}, a child of the test process: {command!r}"
    if alive(pid) and _belongs_to_us(pid):
        return f"{pid} lives on without its parent: {command!r}"
    return None


#: The queue of a scheduler's cookies, or of a limit. A process opens it when it first uses that
#: scheduler or limit, and keeps it open.
_POOL = re.compile(re.escape(RUNS) + rf"/entangle-\d+/p{_OWNER}-[0-9a-f]+/(cookies|limit)-[-\w]+$")


def _to_the_server() -> set[int]:
    """The descriptors that lead to the warm server. Any test may start or stop the server."""
    server = getattr(sys.modules.get("entangle._run.forkserver"), "_server", None)
    return {server.socket.fileno(), server.preloading._hear.fileno()} if server is not None else set()


def _open_files() -> dict[int, str]:
    found: dict[int, str] = {}
    to_server = _to_the_server()
    for name in os.listdir("/proc/self/fd"):
        if int(name) in to_server:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself, closed by now
            continue
        if not (_POOL.match(target) and target not in found.values()):
            found[int(name)] = target
    return found


@dataclass
class _Before:
    processes: set[int]
    spares: dict[int, bytes]
    threads: set[threading.Thread]
    files: dict[int, str]
    runs: set[str]
    shared: set[str]

    @classmethod
    def look(cls) -> _Before:
        return cls(_processes(), _spares(), set(threading.enumerate()), _open_files(), _run_directories(), _shared_memory())

    def left(self) -> list[str]:
        """Describe what exists now and did not exist then."""
        processes = _processes()
        # A spare that waits for a run does not grow.
        changed = {pid for pid, mapped in self.spares.items() if _mapped(pid) != mapped}
        told = [why for pid in sorted(processes - self.processes | changed) if (why := _why_stray(pid))]
        told += [f"the thread {thread.name!r} goes on" for thread in set(threading.enumerate()) - self.threads]
        files = _open_files()
        if len(files) > len(self.files):
            told += [f"descriptor {fd} is still open: {target}" for fd, target in files.items() if self.files.get(fd) != target]
        told += [f"the run directory {folder} is still there" for folder in sorted(_run_directories() - self.runs)]
        if new := sorted(_shared_memory() - self.shared):
            others = {pid for pid in processes if pid != _OWNER and not _line_of(pid)}
            told += [f"/dev/shm/{name} is still there" for name in new if not shared_segments.used_by(others, name)]
        return told


def _shared_memory() -> set[str]:
    """Our user's segments with the names that Python and entangle give them. Segments of other
    programs do not count."""
    try:
        entries = os.scandir("/dev/shm")
    except OSError:
        return set()
    with entries:
        names = set()
        for entry in entries:
            try:
                if entry.name.startswith(("psm_", "wnsm_", "entangle_")) and entry.stat().st_uid == os.getuid():
                    names.add(entry.name)
            except FileNotFoundError:
                pass
        return names


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Create what a process creates once and keeps: its home in the run directory, the warm server,
    and what imports leave open."""
    for how in ("fork", "forkserver", "spawn"):
        assert process(one)()(start=how) == 1


#: Agents that stay warm for the tests that run in their place, as in a user's program.
_kept_warm: set[object] = set()


@pytest.fixture(scope="module", autouse=True)
def _no_agent_stays() -> Iterator[None]:
    """Close agents that were kept warm for the tests of one file before the next file begins."""
    yield
    channels = sys.modules.get("entangle._remote.caller.open_channels")
    if channels is not None:
        channels.close_all()
    _kept_warm.clear()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests failed: nothing is reported about what they leave behind."""
    report = yield
    if call.excinfo is not None:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest, _warm: None) -> Iterator[None]:
    """Fail a test that left a process, a thread, a descriptor, a run directory or shared memory
    behind.

    By design all are gone within a second; a busy machine gets more time."""
    way = getattr(request.node, "callspec", None) and request.node.callspec.params.get("way")
    if isinstance(way, Way) and way.warm is not None:
        _kept_warm.add(way.warm())
    before = _Before.look()
    yield
    channels = sys.modules.get("entangle._remote.caller.open_channels")
    if channels is not None:
        # Else they live as long as their process.
        channels.close_all(lambda channel: channel.transport.key not in _kept_warm)
    web_client = sys.modules.get("entangle._tasks.web_client")
    if web_client is not None:
        web_client.close_connections()  # to AWS
    if request.node.stash.get(_FAILED, False):
        return
    end = time.monotonic() + PATIENCE
    while (left := before.left()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left, "left behind: " + "; ".join(left)
