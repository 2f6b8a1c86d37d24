"""What happens when something goes badly wrong: real processes that are really killed, full disks, closed descriptors.

The heaviest of these are repeated many times in `drill/`.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from entangle.errors import CycleError, EntangleError, UnpicklableError
from entangle.process import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException, process
from entangle.thread import thread

from . import bodies
from .callers import ORPHANS_GONE, ROOT, Caller, gone, output_of
from .evidence import alive, note, notes, pids_in, text_of, wait_until
from .killing import Killer, graph_with_a_victim, kill_and_compare, victims
from .ways import missing, second_thread

one = process(bodies.one)
num = process(bodies.num)
add = process(bodies.add)
inc = process(bodies.inc)
same = process(bodies.same)
gather = process(bodies.gather)
total = process(bodies.total)


@pytest.fixture
def killer() -> Iterator[Killer]:
    """A process that kills workers of this one: a thread would change how workers are started."""
    with Killer() as ready:
        yield ready


# --- the death of a worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(3))
def test_a_worker_killed_in_a_body_is_survived_with_retry(killer: Killer, tmp_path: Path, block: int) -> None:
    """A graph of 200 nodes; whoever runs the victim, which may be any node, is killed while it does: ten times each."""
    for number in range(10):
        kill_and_compare(killer, tmp_path / str(number), seed=100 * block + number)


@pytest.mark.parametrize("block", range(3))
def test_a_worker_killed_in_a_body_is_told_without_retry(killer: Killer, tmp_path: Path, block: int) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        call, _ = graph_with_a_victim(folder, seed=100 * block + number, retry=0)
        killer.kill_when_noted(folder / "victim")
        with pytest.raises(ProcessTerminatedException) as caught:
            call()
        assert killer.killed() == victims(folder)
        told = text_of(caught.value)
        assert "SIGKILL" in told
        assert "victim" in told
        assert len(victims(folder)) == 1


def test_a_worker_killed_at_any_moment(killer: Killer, tmp_path: Path) -> None:
    """Not only inside a body: between two bodies, while it takes a node, while it publishes a value."""
    for seed in range(15):
        call, expected = graph_with_a_victim(None, seed=seed, retry=3)
        killer.kill_any_child(seed)
        assert call() == expected, f"seed {seed}"
        killer.killed()


def test_a_worker_killed_at_any_moment_without_retry(killer: Killer) -> None:
    """The right answer, if nothing ran in it just then, or the right error; never anything else, and never a hang."""
    for seed in range(15):
        call, expected = graph_with_a_victim(None, seed=seed, retry=0)
        killer.kill_any_child(1000 + seed)
        told = "SIGKILL"
        try:
            assert call() == expected, f"seed {seed}"
        except ProcessTerminatedException as error:
            told = text_of(error)
        assert "SIGKILL" in told
        killer.killed()


def test_all_workers_killed_at_once(tmp_path: Path, start: str) -> None:
    """Four bodies meet, each in a process of its own, and all four are killed. On the second attempt they stay alive."""
    met = str(tmp_path / "met")

    @process(retry=3)
    def fall(met: str, mine: str) -> int:
        note(mine, os.getpid())
        if len(notes(mine)) == 1:
            bodies.meet(met, 4)
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    assert total(*(fall(met, str(tmp_path / f"{n}")) for n in range(4)))() == 4
    assert [len(notes(tmp_path / f"{n}")) for n in range(4)] == [2] * 4


def test_a_body_that_dies_on_every_attempt(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessRetryException) as caught:
        process(retry=2)(bodies.die_until)(log, 100)()
    assert len(notes(log)) == 3
    assert isinstance(caught.value.__cause__, ProcessTerminatedException)


def test_a_stopped_worker_is_killed_at_its_deadline(tmp_path: Path, start: str) -> None:
    """SIGSTOP is not a death, and nobody but the deadline ends it."""

    @process(timeout=1)
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(ProcessTimeoutException):
        stop()()


# --- bodies that end in strange ways ----------------------------------------------------------------------------------


def test_exit_status_and_last_words(start: str) -> None:
    with pytest.raises(ProcessTerminatedException) as caught:
        add(1, process(bodies.die)(3))()
    told = text_of(caught.value)
    assert "3" in str(caught.value)
    assert "add → die" in told
    assert "these were my last words" in told


def test_a_segmentation_fault(start: str) -> None:
    @process
    def crash() -> None:
        import ctypes
        import faulthandler

        faulthandler.disable()  # pytest's, which a forked worker inherits, would print pages to the terminal
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)

    with pytest.raises(ProcessTerminatedException, match="SIGSEGV") as caught:
        add(crash(), 1)()
    assert "add → crash" in text_of(caught.value)


@pytest.mark.parametrize("code", [None, 0, 1, "words"])
def test_sys_exit(code: Any) -> None:
    with pytest.raises(ProcessTerminatedException, match="SystemExit"):
        add(process(bodies.exit_with)(code), 1)()


def test_keyboard_interrupt_in_a_body(start: str) -> None:
    with pytest.raises(ProcessTerminatedException, match="KeyboardInterrupt"):
        add(process(bodies.interrupt)(), 1)()


def test_any_base_exception_in_a_body() -> None:
    @process
    def strange() -> None:
        raise GeneratorExit("so strange")

    with pytest.raises(ProcessTerminatedException, match="GeneratorExit"):
        strange()()


def test_recursion_without_end(start: str) -> None:
    with pytest.raises(RecursionError):
        add(process(bodies.recurse)(), 1)()


def test_an_error_class_that_cannot_be_pickled(start: str) -> None:
    with pytest.raises(UnpicklableError) as caught:
        add(process(bodies.raise_lock)(), 1)()
    told = text_of(caught.value)
    for word in ("raise_lock", "HoldsALock", "held", "in raise_lock"):
        assert word in told


def test_an_error_whose_pickling_fails_in_a_strange_way() -> None:
    class Odd(Exception):
        def __reduce__(self) -> Any:
            raise RuntimeError("I will not be pickled")

        def __str__(self) -> str:
            raise RuntimeError("nor printed")

    @process
    def odd() -> None:
        raise Odd

    with pytest.raises((Odd, UnpicklableError)):
        odd()()


def test_a_value_that_cannot_be_pickled(start: str) -> None:
    """The error names the task and the part; that the next task would have run in the same worker changes nothing."""
    with pytest.raises(UnpicklableError) as caught:
        process(bodies.a_lock)()()
    assert "a_lock" in str(caught.value)
    assert "lock" in str(caught.value).replace("a_lock", "")

    @process
    def generator() -> Any:
        return (i for i in range(3))

    with pytest.raises(UnpicklableError, match="generator"):
        generator()()


def test_a_value_that_cannot_be_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    @process
    def trap() -> Any:
        return Trap()

    with pytest.raises(EntangleError) as caught:
        gather(trap(), trap())()
    assert "trap" in str(caught.value) or "gather" in str(caught.value)
    assert "not a number" in text_of(caught.value)


def test_a_body_that_closes_stdout(start: str) -> None:
    """The next file that its worker opens gets the number 1. What others write to stdout must not end up in there."""

    @process
    def close(n: int) -> bytes:
        try:
            os.close(1)
        except OSError:
            pass  # another body was in this worker before
        return bytes([n]) * 100_000

    @process
    def write(n: int) -> list[int]:
        try:
            os.write(1, b"for the terminal")
        except OSError:
            pass
        return [n] * 5_000

    values, _ = gather(*(kind(n) for n in range(12) for kind in (close, write)))()
    assert values == tuple(value for n in range(12) for value in (bytes([n]) * 100_000, [n] * 5_000))


def test_a_body_that_closes_everything(start: str) -> None:
    """As a program that becomes a daemon does. The worker is cut off: its answer may still arrive, or its end is told."""

    @process
    def close() -> int:
        os.closerange(0, 1024)
        return 1

    told = "close"
    try:
        assert add(close(), 1)() == 2
    except EntangleError as error:
        told = text_of(error)
    assert "close" in told


def test_a_body_whose_child_outlives_the_deadline(tmp_path: Path, start: str) -> None:
    for own_session in (False, True):
        log = str(tmp_path / f"log-{own_session}")
        with pytest.raises(ProcessTimeoutException):
            process(timeout=1)(bodies.linger_with_child)(log, own_session)()
        pids = pids_in(log)
        assert len(set(pids)) == 2
        gone(pids)


def test_a_fork_whose_child_outlives_the_deadline(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process(timeout=1)
    def fork(path: str) -> None:
        import time

        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note(path, os.getpid())
        else:
            note(path, os.getpid())
        time.sleep(30)

    with pytest.raises(ProcessTimeoutException):
        fork(log)()
    pids = wait_until(lambda: pids_in(log) if len(notes(log)) == 2 else None)
    gone(pids)


def test_a_body_that_forks_and_forgets_to_exit(tmp_path: Path, start: str) -> None:
    """The child comes back from the body as well. It must not go on as a second worker."""
    log = str(tmp_path / "log")

    @process
    def fork(path: str) -> str:
        child = os.fork()
        if child == 0:
            return "child"
        os.waitpid(child, 0)
        note(path, "parent", os.getpid())
        return "parent"

    @process
    def fork_and_fail(path: str) -> str:
        child = os.fork()
        if child == 0:
            raise ValueError("the child's own")
        os.waitpid(child, 0)
        return "parent"

    noted = process(bodies.noted)
    call = gather(fork(log), fork_and_fail(log), *(noted(log, i) for i in range(20)))
    assert call()[0] == ("parent", "parent", *range(20))
    assert len(notes(log)) == 21


def test_a_body_that_leaves_a_thread(start: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def leave(path: str) -> int:
        threading.Thread(target=bodies.linger, args=(path, 30), name="left").start()
        wait_until(lambda: notes(path))
        return 1

    assert total(leave(log), one())() == 2
    gone(pids_in(log))


def test_a_body_that_leaves_a_program(start: str, tmp_path: Path) -> None:
    """A run takes what its bodies started with it."""
    log = str(tmp_path / "log")

    @process
    def leave(path: str) -> int:
        child = subprocess.Popen(["sleep", "100"])
        note(path, child.pid)
        child.returncode = 0  # so that Python does not warn of it
        return 1

    assert add(leave(log), 1)() == 2
    gone(pids_in(log))


def test_a_body_that_changes_every_signal(start: str) -> None:
    @process
    def change() -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        return 1

    assert total(*(change() for _ in range(4)))() == 4


def test_a_module_that_cannot_be_imported_in_a_worker(tmp_path: Path) -> None:
    """A worker that cannot even begin is an error, and not begun again and again."""
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "if os.environ.get('OWNER') != str(os.getpid()):\n"
        "    raise RuntimeError('this module is for one process only')\n"
        "def one():\n    return 1\n"
    )
    source = """
    import os, sys
    os.environ["OWNER"] = str(os.getpid())
    sys.path.insert(0, os.getcwd())
    import fragile
    from entangle.errors import EntangleError
    from entangle.process import process

    for start in ("fork", "forkserver", "spawn"):
        try:
            print(start, process(fragile.one)()(start=start))
        except (EntangleError, RuntimeError) as error:
            print(start, "for one process only" in str(error) + str(error.__cause__) + "".join(error.__notes__))
    """
    assert output_of(tmp_path, source) == "fork 1\nforkserver True\nspawn True\n"


# --- memory and disks -------------------------------------------------------------------------------------------------


def test_a_body_that_may_have_no_more_memory(start: str) -> None:
    @process(fresh=True)
    def eat() -> int:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
        eaten = []
        while True:
            eaten.append(bytearray(8 << 20))

    with pytest.raises(MemoryError) as caught:
        add(eat(), 1)()
    assert "add → eat" in text_of(caught.value)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group with 100 MB of memory and no swap, of version 2 or 1, whichever this machine lets us make."""
    name = f"entangle-test-{os.getpid()}"
    for top, limit, swap in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
        (Path("/sys/fs/cgroup/unified"), "memory.max", "memory.swap.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    ):
        group = top / name
        try:
            if not (top / "cgroup.procs").exists():
                continue
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(100 << 20))
            if (group / swap).exists():
                (group / swap).write_text(str(100 << 20) if "memsw" in swap else "0")
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            wait_until(functools.partial(_empty, group))
            group.rmdir()
        return
    pytest.skip("no control group for memory can be made here")


def _empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text().split()


def test_a_body_that_the_kernel_kills_for_its_memory(memory_group: Path) -> None:
    @process(fresh=True)
    def eat(group: str) -> None:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        eaten = []
        for _ in range(100):
            eaten.append(bytearray(os.urandom(1 << 20) * 8))

    with pytest.raises(ProcessTerminatedException, match="SIGKILL") as caught:
        add(eat(str(memory_group)), 1)()
    assert "add → eat" in text_of(caught.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory that is full after 256 kB."""
    with Mounted(tmp_path / "tiny", "256k") as place:
        yield place


class Mounted:
    """A small tmpfs, for the length of a `with`."""

    def __init__(self, place: Path, size: str) -> None:
        self.place, self.size = place, size

    def __enter__(self) -> Path:
        if os.getuid() != 0:
            pytest.skip("only root can mount a file system")
        self.place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size},mode=700", "tmpfs", str(self.place)], capture_output=True, text=True
        )
        if done.returncode:
            missing(f"mount says: {done.stderr.strip()}")
        return self.place

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


SPILLING = """
    import hashlib, sys
    from entangle.process import process

    @process
    def make(n, kind):
        return (kind * n)[:n] if isinstance(kind, bytes) else [kind] * n

    @process
    def both(a, b):
        return a + b

    @process
    def digest(*values):
        return [hashlib.sha256(repr(v).encode()).hexdigest() for v in values]

    def expect(*values):
        return [hashlib.sha256(repr(v).encode()).hexdigest() for v in values]

    # One large value, larger than the file system.
    assert digest(make(4_000_000, b"abc"))() == expect((b"abc" * 4_000_000)[:4_000_000])
    assert make(4_000_000, b"x")() == b"x" * 4_000_000
    # Several that together are too large, and are read by several.
    parts = [make(100_000, bytes([65 + i])) for i in range(12)]
    result = digest(*parts, both(parts[0], parts[1]))()
    assert result == expect(*(bytes([65 + i]) * 100_000 for i in range(12)), b"A" * 100_000 + b"B" * 100_000)
    # Many small ones.
    result = digest(*(make(3_000, i) for i in range(200)))()
    assert result == expect(*([i] * 3_000 for i in range(200)))
    # An argument that is too large, and a graph whose table is.
    assert digest(b"y" * 2_000_000)() == expect(b"y" * 2_000_000)
    leaves = [make(1, i) for i in range(4_000)]
    assert len(digest(*leaves)()) == 4_000
    print("all right")
"""


def test_values_larger_than_shared_memory_spill(tiny: Path, tmp_path: Path, start: str) -> None:
    assert output_of(tmp_path, SPILLING, ENTANGLE_RUN_DIR=str(tiny), ENTANGLE_START=start) == "all right\n"


def test_shared_memory_that_is_full_from_the_start(tiny: Path, tmp_path: Path) -> None:
    with open(tiny / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    caller = Caller(tmp_path, SPILLING, ENTANGLE_RUN_DIR=str(tiny)).start()
    try:
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "all right\n"), err


def test_neither_memory_nor_disk_has_room(tiny: Path, tmp_path: Path) -> None:
    """An error that says so, for the value that did not fit, and not a bus error."""
    with Mounted(tmp_path / "small", "512k") as small:
        out = output_of(
            tmp_path,
            """
            from entangle.errors import StoreFullError
            from entangle.process import process

            @process
            def make(n):
                return b"x" * n

            @process
            def length(value):
                return len(value)

            @process
            def both(a, b):
                return len(a) + len(b)

            try:
                both(make(3_000_000), make(3_000_000))()
            except StoreFullError as error:
                assert isinstance(error, OSError)
                print("full:", "make" in str(error) + "".join(getattr(error, "__notes__", ())))
            print(length(make(1000))())
            """,
            ENTANGLE_RUN_DIR=str(tiny),
            TMPDIR=str(small),
        )
    assert out == "full: True\n1000\n"


# --- the death of the caller ------------------------------------------------------------------------------------------

#: Sixteen bodies: some compute, some run programs, some wait for nested runs that do the same.
BUSY = """
    import os, signal, subprocess, sys, time
    from entangle.process import process
    from entangle.thread import thread
    from entangle.workflow import workflow

    log = sys.argv[1]

    def here(what):
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{what} {os.getpid()}\\n".encode())
        os.close(fd)

    @process
    def sleep(n):
        here("sleep")
        time.sleep(100)

    @process
    def compute(n):
        here("compute")
        while True:
            n += 1

    @process
    def program(n):
        here("program")
        subprocess.run(["sleep", "100"])

    @process
    def nested(n, depth=2):
        here("nested")
        return gather(nested(n, depth - 1), program(n))() if depth else sleep(n)()

    @thread
    def threaded(n):
        here("threaded")
        return program(n)()

    @process
    def gather(*values):
        return values

    WORK = [sleep(1), sleep(2), program(1), program(2), nested(1), compute(1), threaded(1)]
    EXPECTED = {"sleep": 3, "program": 5, "nested": 3, "compute": 1, "threaded": 1}
"""
RUN_FOR_EVER = BUSY + "\n    gather(*WORK)()\n"
EXPECTED = {"sleep": 3, "program": 5, "nested": 3, "compute": 1, "threaded": 1}


def busy(caller: Caller, log: Path) -> list[int]:
    """Wait until everything that RUN_FOR_EVER does is under way; the numbers of all its processes."""

    def under_way() -> bool:
        assert caller.process.poll() is None, caller.finish()
        counts: dict[str, int] = {}
        for line in notes(log):
            counts[line[0]] = counts.get(line[0], 0) + 1
        sleeping = 0
        for pid in caller.family():
            try:
                sleeping += Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00100\x00"
            except OSError:
                return False
        return counts == EXPECTED and sleeping == EXPECTED["program"]

    wait_until(under_way, 30, "all the bodies to be under way")
    return sorted({*caller.family(), *(int(line[1]) for line in notes(log)), caller.process.pid})


@pytest.mark.parametrize("how", ["clean", "next run"])
def test_kill_the_caller(tmp_path: Path, start: str, how: str) -> None:
    """No process is left a second later, and no file after the next run or a `clean`."""
    log = tmp_path / "log"
    caller = Caller(tmp_path, RUN_FOR_EVER, ENTANGLE_START=start).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGKILL)
        gone(pids)
    finally:
        caller.stop()
    if how == "clean":
        done = subprocess.run(
            [sys.executable, "-m", "entangle", "clean"], env=caller.environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
    else:
        after = tmp_path / "after"
        after.mkdir()
        output_of_next(after, caller)
    assert caller.files() == []


def test_kill_the_caller_of_bodies_whose_programs_have_left_the_group(tmp_path: Path, start: str) -> None:
    """A program in a session of its own, and one whose parent has gone, belong to the run as well."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        """
        import subprocess, sys
        from entangle.process import process

        @process
        def session(log):
            child = subprocess.Popen(["sleep", "100"], start_new_session=True)
            print("session", child.pid, file=open(log, "a"))
            child.wait()

        @process
        def daemon(log):
            subprocess.run(["bash", "-c", f"setsid bash -c 'echo daemon $$ >> {log}; exec sleep 100' & disown"])
            subprocess.run(["sleep", "100"])

        @process
        def gather(*values):
            return values

        gather(session(sys.argv[1]), daemon(sys.argv[1]))()
        """,
        ENTANGLE_START=start,
    )
    caller.environment["PYTHONWARNINGS"] = "default"
    caller.start(str(log))
    try:
        wait_until(lambda: len(notes(log)) == 2)
        os.kill(caller.process.pid, signal.SIGKILL)
        gone(pids_in(log))
    finally:
        for pid in filter(alive, pids_in(log)):
            os.kill(pid, signal.SIGKILL)
        caller.stop()


def output_of_next(folder: Path, caller: Caller) -> None:
    """One more run, by another process, with the directories of `caller`."""
    output_of(
        folder,
        "from entangle.process import process\nprint(process(int)('3')())",
        ENTANGLE_RUN_DIR=str(caller.runs),
        TMPDIR=str(caller.temporary),
    )


def test_clean_and_other_runs_leave_living_runs_alone(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    caller = Caller(
        tmp_path,
        """
        import os, sys, time
        from entangle.process import process

        @process
        def make(n):
            return [b"x" * 100_000 for _ in range(n)]

        @process
        def wait(values, gate):
            print("waiting", flush=True)
            while not os.path.exists(gate):
                time.sleep(0.01)
            return values

        @process
        def length(first, second):
            return len(first) + len(second)

        made = make(20)
        print(length(wait(made, sys.argv[1]), made)())
        """,
    ).start(str(gate))
    try:
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == "waiting\n"
        subprocess.run([sys.executable, "-m", "entangle", "clean"], env=caller.environment, check=True, timeout=30, capture_output=True)
        output_of_next_beside(tmp_path, caller)
        gate.touch()
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "40\n"), err
    assert caller.files() == []


def output_of_next_beside(folder: Path, caller: Caller) -> None:
    """One more run beside a living one; that the directories are empty afterwards is not to be expected."""
    (folder / "beside").mkdir()
    beside = Caller(
        folder / "beside",
        "from entangle.process import process\nprint(process(int)('3')())",
        ENTANGLE_RUN_DIR=str(caller.runs),
        TMPDIR=str(caller.temporary),
    ).start()
    assert beside.finish()[0] == 0


def test_clean_with_nothing_to_clean(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "entangle", "clean"],
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("to", ["the caller", "the group"])
def test_control_c(tmp_path: Path, start: str, to: str) -> None:
    """The caller gets a KeyboardInterrupt, as from any other code, and cleans up after itself on its way out."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY + "\n    try:\n        gather(*WORK)()\n    except KeyboardInterrupt:\n        print('interrupted')\n        raise\n",
        ENTANGLE_START=start,
    ).start(str(log))
    try:
        pids = busy(caller, log)
        (os.killpg if to == "the group" else os.kill)(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
        gone(pids)
    finally:
        caller.stop()
    assert status in (-signal.SIGINT, 130), err
    assert out == "interrupted\n"
    assert err.count("Traceback") == 1, err  # the caller's own, and none of any worker
    assert caller.files() == []


def test_go_on_after_control_c(tmp_path: Path) -> None:
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY
        + """
    try:
        gather(*WORK)()
    except KeyboardInterrupt:
        print(gather(gather(1), 2)())
""",
    ).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
        gone([pid for pid in pids if pid != caller.process.pid])
    finally:
        caller.stop()
    assert (status, out) == (0, "((1,), 2)\n"), err
    assert caller.files() == []


@pytest.mark.parametrize("handled", [False, True])
def test_terminate_the_caller(tmp_path: Path, start: str, handled: bool) -> None:
    log = tmp_path / "log"
    handler = "\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" if handled else ""
    caller = Caller(tmp_path, BUSY + handler + "\n    gather(*WORK)()\n", ENTANGLE_START=start).start(str(log))
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGTERM)
        status, _, err = caller.finish()
        gone(pids)
    finally:
        caller.stop()
    assert status == (7 if handled else -signal.SIGTERM), err
    if not handled:  # nobody was left to clean up: the next run does it
        (tmp_path / "after").mkdir()
        output_of_next(tmp_path / "after", caller)
    assert caller.files() == []


def test_an_error_of_the_caller_while_it_waits(tmp_path: Path, start: str) -> None:
    """Whatever a handler of the caller raises ends the run, and goes on to the caller."""
    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        BUSY
        + """
    class Enough(Exception):
        pass

    def enough(*_):
        raise Enough

    signal.signal(signal.SIGUSR1, enough)
    try:
        gather(*WORK)()
    except Enough:
        print("enough", flush=True)
        input()
""",
        ENTANGLE_START=start,
    ).start(str(log), stdin=subprocess.PIPE)
    try:
        pids = busy(caller, log)
        os.kill(caller.process.pid, signal.SIGUSR1)
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == "enough\n"
        # The caller lives on; its run does not. The warm server with its spares is not part of the run.
        server = {child for child in caller.family() if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()}
        gone([pid for pid in pids if pid != caller.process.pid and pid not in server])
        assert caller.process.stdin is not None
        caller.process.stdin.write("\n")
        status, _, err = caller.finish()
    finally:
        caller.stop()
    assert status == 0, err
    assert caller.files() == []


def test_a_script_that_ends_before_its_background_run(tmp_path: Path, start: str) -> None:
    """A run that was started with `proc=True` may be waited for or stopped, but it leaves nothing."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    caller = Caller(
        tmp_path,
        """
        import os, sys, time
        from entangle.process import process

        @process
        def wait(log, gate):
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\\n")
            while not os.path.exists(gate):
                time.sleep(0.01)
            return 3

        future = wait(sys.argv[1], sys.argv[2])(proc=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        raise SystemExit(5)
        """,
        ENTANGLE_START=start,
    ).start(str(log), str(gate))
    try:
        wait_until(lambda: pids_in(log))
        gate.touch()
        status, _, err = caller.finish()
        gone(pids_in(log))
    finally:
        caller.stop()
    assert status == 5, err
    assert err == ""
    assert caller.files() == []


def test_signals_are_the_callers_again_after_a_run(start: str) -> None:
    numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
    before = [signal.getsignal(n) for n in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert add(one(), 1)() == 2
    with pytest.raises(ValueError):
        process(bodies.fail)()()
    assert [signal.getsignal(n) for n in numbers] == before
    after = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(after)
    assert after == wakeup


def test_a_callers_signal_handlers_run_while_it_waits(tmp_path: Path) -> None:
    """A handler of the user's that does not raise does not end the wait."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    log = str(tmp_path / "log")
    try:

        @process
        def tell(caller: int, path: str) -> int:
            for _ in range(5):
                os.kill(caller, signal.SIGUSR1)
                note(path, "told")
            return 3

        assert add(tell(os.getpid(), log), 1)() == 4
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard


def test_workers_ignore_the_callers_handlers() -> None:
    """A handler that the caller has installed for itself is not run in a worker."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:

        @process(timeout=1)
        def sleep() -> None:
            import time

            time.sleep(30)

        with pytest.raises(ProcessTimeoutException):
            sleep()()
    finally:
        signal.signal(signal.SIGTERM, before)


# --- callers in strange states ----------------------------------------------------------------------------------------


SIMPLE = """
    import os
    from entangle.process import process, ProcessTerminatedException

    @process
    def add(a, b):
        return a + b

    @process
    def die():
        os._exit(3)

    @process
    def run(n):
        return add(add(n, 1), 1)()

    results = []
    for start in ("fork", "forkserver", "spawn"):
        results.append(add(add(1, 2), run(3))(start=start))
        try:
            add(1, die())(start=start)
        except ProcessTerminatedException as error:
            results.append("3" in str(error))
    os.write(3 if REPORT else 1, (str(results) + "\\n").encode())
"""


def test_a_caller_that_ignores_the_end_of_its_children(tmp_path: Path) -> None:
    """The kernel forgets how they ended, so the status is not told; that they ended is."""
    source = "    import signal\n    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n    REPORT = False\n"
    source += SIMPLE.replace('"3" in str(error)', "True")
    assert output_of(tmp_path, source) == "[8, True, 8, True, 8, True]\n"


def test_a_caller_that_reaps_all_children(tmp_path: Path) -> None:
    """Some programs wait for any child whenever one ends: what they took is not there for us."""
    source = """
    import os, signal

    def reap(*_):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)
    REPORT = False
""" + SIMPLE.replace('"3" in str(error)', "True")
    assert output_of(tmp_path, source) == "[8, True, 8, True, 8, True]\n"


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_caller_without_standard_streams(tmp_path: Path, closed: list[int]) -> None:
    source = f"    import os\n    REPORT = True\n    for fd in {closed}:\n        os.close(fd)\n" + SIMPLE
    read, write = os.pipe()
    # The report goes to descriptor 3, which is the caller's only way to be heard when stdout is closed.
    os.set_inheritable(write, True)
    caller = Caller(tmp_path, source)
    command = ["bash", "-c", f'exec 3>&{write}; exec "$0" "$@"', sys.executable, str(caller.script)]
    caller.started = subprocess.Popen(
        command,
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=caller.environment,
        cwd=tmp_path,
        start_new_session=True,
        text=True,
    )
    os.close(write)
    try:
        with os.fdopen(read) as answers:
            heard = answers.readline()
        status, _, _ = caller.finish()
    finally:
        caller.stop()
    assert heard == "[8, True, 8, True, 8, True]\n"
    assert status == 0
    assert caller.files() == []


def test_a_caller_with_few_descriptors(tmp_path: Path) -> None:
    source = """
    import resource
    from entangle.process import process
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    @process
    def make(n):
        return bytes([n % 256]) * 100_000

    @process
    def total(*values):
        return sum(len(v) for v in values)

    print(total(*(make(i) for i in range(100)))())
    """
    assert output_of(tmp_path, source) == "10000000\n"


def test_a_caller_whose_folder_is_gone(tmp_path: Path, start: str) -> None:
    source = """
    import os
    os.makedirs("gone"); os.chdir("gone"); os.rmdir("../gone")
    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    print(add(add(1, 2), 3)())
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start) == "6\n"


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """One clear error of our own tree, or a run that finds another place: not a traceback from the depths."""
    source = """
    from entangle.errors import EntangleError
    from entangle.process import process

    @process
    def one():
        return 1

    try:
        print(one()())
    except EntangleError as error:
        print("ENTANGLE_RUN_DIR" in str(error) or "/no/such" in str(error))
    """
    caller = Caller(tmp_path, source)
    caller.environment["ENTANGLE_RUN_DIR"] = "/no/such/folder"
    status, out, err = caller.start().finish()
    assert status == 0, err
    assert out in ("1\n", "True\n")


def test_the_run_directory_is_private_and_goes_with_its_run(tmp_path: Path) -> None:
    source = """
    import os, stat, sys
    from pathlib import Path
    from entangle.process import process

    top = Path(os.environ["ENTANGLE_RUN_DIR"])

    @process
    def look():
        return [(str(p.relative_to(top)), stat.S_IMODE(p.lstat().st_mode), p.is_dir()) for p in top.rglob("*")]

    @process
    def same(x):
        return x

    found = same(look())()
    for name, mode, folder in found:
        assert mode & 0o077 == 0, (name, oct(mode))
    assert any(Path(name).name.startswith("r") and folder for name, _, folder in found), found
    left = [p for p in top.rglob("r*") if p.is_dir()]
    assert left == [], left
    print("private")
    """
    assert output_of(tmp_path, source) == "private\n"


def test_a_home_that_somebody_else_has_prepared_is_refused(tmp_path: Path) -> None:
    """The names under a shared folder can be guessed: a symlink or a foreign folder there must not be followed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / f"entangle-{os.getuid()}").symlink_to(elsewhere)
    caller = Caller(tmp_path, "from entangle.process import process\nprint(process(int)('3')())").start()
    status, out, err = caller.finish()
    assert list(elsewhere.iterdir()) == []
    assert (status, out) == (0, "3\n") or "EntangleError" in err or "Error" in err.splitlines()[-1]


# --- large and many ---------------------------------------------------------------------------------------------------


def test_ten_thousand_levels(start: str) -> None:
    call = inc(0)
    for _ in range(9_999):
        call = inc(call)
    assert call() == 10_000
    repr(call)
    del call  # taking it apart is deep as well
    gc.collect()


def test_ten_thousand_levels_above_a_failure() -> None:
    call: Any = process(bodies.fail)()
    for _ in range(10_000):
        call = inc(call)
    with pytest.raises(ValueError, match="no such thing") as caught:
        call()
    assert "fail" in text_of(caught.value)


def test_hundreds_of_runs_leave_nothing() -> None:
    """Files, descriptors, threads and memory maps: after three hundred runs there are as many as after thirty."""

    def runs(number: int) -> None:
        for n in range(number):
            assert add(num(n), num(1))() == n + 1

    def held() -> tuple[int, int, int]:
        gc.collect()
        with open("/proc/self/maps") as maps:
            mine = sum("entangle" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), threading.active_count(), mine

    runs(30)
    before = held()
    runs(270)
    wait_until(lambda: held()[1] <= before[1], 1.0)
    assert held() <= before


def test_failing_runs_leave_nothing() -> None:
    failing = add(num(1), process(bodies.fail)())
    dying = add(num(1), process(bodies.die)(3))

    def runs(number: int) -> None:
        for _ in range(number):
            with pytest.raises(ValueError):
                failing()
            with pytest.raises(ProcessTerminatedException):
                dying()

    runs(5)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    runs(30)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("how", ["auto", "forkserver", "spawn"])
def test_runs_from_several_threads_at_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_START", how)
    results: dict[int, list[int]] = {}

    def run(me: int) -> None:
        rounds = 10 if how != "spawn" else 2
        results[me] = [add(num(me), add(num(n), thread(bodies.num)(n)))() for n in range(rounds)]

    threads = [threading.Thread(target=run, args=(me,)) for me in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {me: [me + 2 * n for n in range(len(results[me]))] for me in range(6)}


def test_a_run_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel ties a worker's life to the thread that forked it, so that one must stay."""
    gate, log = tmp_path / "gate", str(tmp_path / "log")
    futures: list[Any] = []

    @process
    def wait(path: str, gate: str) -> int:
        note(path, "in", os.getpid())
        wait_until(lambda: os.path.exists(gate))
        return 3

    starter = threading.Thread(target=lambda: futures.append(add(wait(log, str(gate)), 1)(proc=True)))
    starter.start()
    starter.join()
    wait_until(lambda: notes(log))
    gate.touch()
    assert futures[0].result(timeout=30) == 4


def test_a_thread_that_fails_in_one_run_does_not_end_another(tmp_path: Path) -> None:
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")

    @process
    def wait(path: str, gate: str) -> int:
        note(path, "in")
        wait_until(lambda: os.path.exists(gate))
        return 3

    with second_thread():
        good = add(wait(log, gate), 1)(proc=True)
        wait_until(lambda: notes(log))
        with pytest.raises(ProcessTerminatedException):
            add(process(bodies.die)(3), 1)()
        with pytest.raises(ProcessTimeoutException):
            process(timeout=0.5)(bodies.linger)(log)()
        Path(gate).touch()
        assert good.result(timeout=30) == 4


def test_short_runs_do_not_disturb_a_long_one(tmp_path: Path, start: str) -> None:
    """Many short runs come and go, and some fail, beside one that lasts."""
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")
    long = add(_wait_for_gate(log, gate), 1)(proc=True)
    wait_until(lambda: notes(log))
    fail = process(bodies.fail)

    def run() -> None:
        for n in range(10 if start != "spawn" else 2):
            assert total(*(num(n) for _ in range(4)))() == 4 * n
            with pytest.raises(ValueError, match="no such thing"):
                gather(fail(), *(one() for _ in range(6)))()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    Path(gate).touch()
    assert long.result(timeout=30) == 4
    assert len(notes(log)) == 1


@process
def _wait_for_gate(log: str, gate: str) -> int:
    note(log, "in", os.getpid())
    wait_until(lambda: os.path.exists(gate), 50)
    return 3


def _server() -> int:
    """The warm server of this process."""
    for child in psutil.Process().children():
        if "entangle._run.forkserver" in " ".join(child.cmdline()):
            return child.pid
    raise AssertionError("there is no server")


def test_a_run_that_is_over_before_its_last_worker_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is stopped while the supervisor asks for another worker; when it goes on, nobody may be listening.

    That is no reason for the server to end, which would take the workers of other runs with it.
    """
    monkeypatch.setenv("ENTANGLE_START", "forkserver")
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")
    long = add(_wait_for_gate(log, gate), 1)(proc=True)
    wait_until(lambda: notes(log))
    server = _server()

    @process
    def stop(server: int) -> int:
        import time

        os.kill(server, signal.SIGSTOP)
        time.sleep(0.3)  # asleep, so that another worker is wanted for the others
        return 1

    awake = subprocess.Popen(["sh", "-c", f"while sleep 0.5; do kill -CONT {server}; done"])
    try:
        for _ in range(3):
            assert total(stop(server), one(), one(), one())() == 4
    finally:
        awake.kill()
        awake.wait()
        os.kill(server, signal.SIGCONT)
    assert add(one(), 1)() == 2
    Path(gate).touch()
    assert long.result(timeout=30) == 4
    assert _server() == server
    assert alive(server)


def test_a_cycle_of_calls() -> None:
    parts: list[Any] = [1]
    call = same(parts)
    parts.append(call)
    with pytest.raises(CycleError, match="same"):
        call()
    with pytest.raises(CycleError):
        add(one(), call)()


def test_fork_in_the_caller_between_runs(tmp_path: Path) -> None:
    """A child of the caller that was made by other means has runs of its own, and does not take its parent's home along."""
    source = """
    import os
    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    print(add(add(1, 1), 1)(), flush=True)
    child = os.fork()
    if child == 0:
        print(add(add(2, 2), 2)(), flush=True)
        import sys
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(add(add(3, 3), 3)())
    print(add(add(4, 4), 4)(start="forkserver"))
    """
    assert output_of(tmp_path, source) == "3\n6\n9\n12\n"


def test_multiprocessing_children_of_the_caller_may_run_graphs(tmp_path: Path) -> None:
    source = """
    import multiprocessing
    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    def work(n):
        return add(add(n, 1), 1)()

    if __name__ == "__main__":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)))
            pool.close()
            pool.join()
    """
    caller = Caller(tmp_path, source).start()
    status, out, err = caller.finish()
    assert (status, out) == (0, "[2, 3, 4, 5]\n"), err
    # Such children end without their exit functions (before Python 3.13), so what they had is left for the next to clean.
    (tmp_path / "after").mkdir()
    output_of_next(tmp_path / "after", caller)
    assert caller.files() == []


def test_shutdown_of_the_interpreter_with_a_warm_server(tmp_path: Path) -> None:
    """The server of the process goes with it, quietly."""
    source = """
    from entangle.process import process

    @process
    def one():
        return 1

    assert one()(start="forkserver") == 1
    """
    caller = Caller(tmp_path, source).start()
    status, out, err = caller.finish()
    assert (status, out, err) == (0, "", "")
    assert caller.files() == []


def test_make_runs_one_job_at_a_time(tmp_path: Path) -> None:
    """A `make -j8` of a task that has one cookie keeps to it."""
    if shutil.which("make") is None:
        missing("make is not installed")
    from entangle.scheduler import scheduler

    log = tmp_path / "log"
    targets = " ".join("abcdefgh")
    (tmp_path / "Makefile").write_text(
        f"all: {targets}\n{targets}:\n\t@echo start $@ >> {log}\n\t@sleep 0.02\n\t@echo end $@ >> {log}\n.PHONY: all {targets}\n"
    )

    @scheduler(cpus=1)
    @process
    def build(folder: str, *arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for arguments in (["-j8"], ["-j", "8"], []):
        log.unlink(missing_ok=True)
        add(build(str(tmp_path), *arguments), "")()
        running = most = 0
        lines = notes(log)
        assert len(lines) == 16
        for what, _ in lines:
            running += 1 if what == "start" else -1
            most = max(most, running)
        assert most == 1, f"make {' '.join(arguments)} ran {most} jobs at once"


def test_somebody_elses_jobserver_is_left_alone(tmp_path: Path) -> None:
    """When the caller itself is a job of make, what it was given is neither lost nor doubled."""
    if shutil.which("make") is None:
        missing("make is not installed")
    (tmp_path / "job.py").write_text(
        "from entangle.process import process\n"
        "def one():\n    return 1\n"
        "if __name__ == '__main__':\n    one = process(one)\n    print(sum(one()() for _ in range(3)))\n"
    )
    (tmp_path / "Makefile").write_text(f"all: a b c\na b c:\n\t+@{sys.executable} job.py\n.PHONY: all a b c\n")
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path)}
    done = subprocess.run(["make", "-j2"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3", "3"]
    assert done.stderr == ""


def test_how_long_a_test_waits_is_the_designs_second() -> None:
    assert ORPHANS_GONE == 1.0
    assert alive(os.getpid())
