"""Callers in unusual states: closed descriptors, ignored signals, deleted working directories, and
their own forks."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from entangle.process import process

from . import bodies
from .callers import Caller, output_of, output_of_next

one = process(bodies.one)
add = process(bodies.add)
same = process(bodies.same)
total = process(bodies.total)


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
    """The kernel discards the exit statuses. The error can only say that the process has ended."""
    source = "    import signal\n    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n    REPORT = False\n"
    source += SIMPLE.replace('"3" in str(error)', "True")
    assert output_of(tmp_path, source) == "[8, True, 8, True, 8, True]\n"


def test_a_caller_that_reaps_all_children(tmp_path: Path) -> None:
    """Some programs wait for any child. Then the exit status of a worker may be gone before we ask
    for it."""
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
    # The report goes to descriptor 3: with stdout closed, it is the only way out.
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
    import os, resource
    import entangle
    from entangle._shared.orders import CALL, Orders, pair
    from entangle.process import process
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    @process
    def make(n):
        return bytes([n % 256]) * 100_000

    @process
    def total(*values):
        return sum(len(v) for v in values)

    print(total(*(make(i) for i in range(100)))())
    def leak(n):
        try:
            while True:
                os.dup(2)
        except OSError:
            return n

    # Warm workers keep copies of some descriptors, and bodies may leave all others open.
    with entangle.session():
        print(process(leak)(1)(), total(make(1), make(2))())
    with entangle.Executor(1) as executor:
        print(*executor.map(leak, (1, 2), chunksize=1))

    ours, theirs = pair()
    Orders(ours).send(CALL, b"", [0, 1])
    leak(0)
    orders = Orders(theirs)
    print(orders.receive().fds, orders.cut)
    """
    assert output_of(tmp_path, source) == "10000000\n1 200000\n1 2\n[] True\n"


@pytest.mark.parametrize("left", range(6, 21, 2))
def test_a_caller_with_next_to_no_descriptors_has_a_value_or_an_error_that_says_so(tmp_path: Path, start: str, left: int) -> None:
    source = f"""
    import os, resource
    from entangle.errors import LimitError
    from entangle.process import process

    @process
    def double(n):
        return 2 * n

    most = len(os.listdir("/proc/self/fd")) - 1 + {left}
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        print(double(double(1))())
    except LimitError as error:
        print(4 if f"all {{most}} descriptors that this process may have are open" in str(error) else error)
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start) == "4\n"


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


def test_a_caller_whose_files_are_for_itself_alone(tmp_path: Path, start: str) -> None:
    """The caller may change its umask at any time, even after the forkserver has started."""
    source = """
    import os, stat
    from entangle.process import process

    @process
    def write(name):
        open(name, "w").close()
        return oct(stat.S_IMODE(os.stat(name).st_mode))

    os.umask(0o022)
    print(write("a")())
    os.umask(0o077)
    print(write("b")())
    os.umask(0o002)
    print(write("c")())
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start) == "0o644\n0o600\n0o664\n"


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """One clear EntangleError, or a run in another directory: no traceback from inside the
    package."""
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


def test_the_run_directory_is_private_and_goes_with_its_run(tmp_path: Path, start: str) -> None:
    source = """
    import os, signal, stat, sys
    from pathlib import Path
    from entangle.dataflow import dataflow
    from entangle.process import process

    top = Path(os.environ["ENTANGLE_RUN_DIR"])

    @process
    def look():
        found = []
        for p in top.rglob("*"):
            try:
                mode = p.lstat().st_mode
            except FileNotFoundError:  # what waiting workers have rehearsed with
                continue
            found.append((str(p.relative_to(top)), stat.S_IMODE(mode), stat.S_ISDIR(mode)))
        return found

    @process
    def same(x):
        return x

    @dataflow
    @process(retry=1)
    def dies_once(x):
        if x == 2 and not Path(os.environ["DIED"]).exists():
            Path(os.environ["DIED"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return look.__wrapped__()

    found = same(look())()
    found += [line for (lines,) in dies_once().stream(range(4)) for line in lines]
    for name, mode, folder in found:
        assert mode & 0o077 == 0, (name, oct(mode))
    assert any(Path(name).name.startswith("r") and folder for name, _, folder in found), found
    names = {Path(name).name.partition("-")[0] for name, _, _ in found}
    assert {"table", "resume"} <= names, names
    assert ("flow" in names) == (os.environ["ENTANGLE_START"] != "fork"), names
    left = [p for p in top.rglob("r*") if p.is_dir()]
    assert left == [], left
    print("private")
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start, DIED=str(tmp_path / "died")) == "private\n"


def test_a_home_that_somebody_else_has_prepared_is_refused(tmp_path: Path) -> None:
    """Names in a shared directory can be guessed. A symlink or another user's directory under such
    a name must not be used."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / f"entangle-{os.getuid()}").symlink_to(elsewhere)
    caller = Caller(tmp_path, "from entangle.process import process\nprint(process(int)('3')())").start()
    status, out, err = caller.finish()
    assert list(elsewhere.iterdir()) == []
    assert (status, out) == (1, "")
    assert "is not a directory that only this user can use: it is a symbolic link" in err


def test_fork_in_the_caller_between_runs(tmp_path: Path) -> None:
    """A child that the caller itself forked has runs of its own, and does not remove its parent's
    home when it ends."""
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


def test_a_forked_child_of_the_caller_that_is_killed_amid_a_run(tmp_path: Path) -> None:
    """A later run of the parent removes what the child's run left in shared memory."""
    source = """
    import glob, os, signal, time
    from entangle.process import process

    def left():
        return glob.glob(os.environ["ENTANGLE_RUN_DIR"] + "/entangle-*/p*/**/r*", recursive=True)

    @process
    def add(a, b):
        return a + b

    @process
    def wait():
        time.sleep(60)

    print(add(1, 1)(), flush=True)
    child = os.fork()
    if child == 0:
        wait()()
    while not left():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until = time.monotonic() + 30
    while left() and time.monotonic() < until:
        add(2, 2)()
        time.sleep(0.1)
    print(left())
    """
    assert output_of(tmp_path, source) == "2\n[]\n"


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
    # Before Python 3.13, such children end without exit functions. The next process cleans up what
    # they leave.
    (tmp_path / "after").mkdir()
    output_of_next(tmp_path / "after", caller)
    assert caller.files() == []


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_multiprocessing_child_that_was_not_forked_may_run_graphs(tmp_path: Path, way: str) -> None:
    """There, the script is the module `__mp_main__`, which other processes cannot import either."""
    source = """
    import functools
    import multiprocessing
    import sys
    from entangle.interpreter import interpreter
    from entangle.process import process

    class Point:
        def __init__(self, x):
            self.x = x

    @process
    def double(x):
        return half(x) * 4

    @functools.cache
    def half(x):
        return x / 2

    @process
    def move(point):
        return Point(point.x + 1)

    @interpreter
    def far(point):
        return Point(half(point.x))

    def child(line):
        found = [double(3)(proc=True).result()]
        for start in ("fork", "forkserver", "spawn"):
            moved = move(move(Point(1)))(start=start)
            found += [double(4)(start=start), type(moved) is Point and moved.x]
        found.append(far(Point(6))().x)
        line.send(found)

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,))
        process.start()
        theirs.close()  # so that a child that fails is seen to
        print(ours.recv())
        process.join()
    """
    # The socket of multiprocessing's server lies in it, and its path may have 107 characters at
    # most.
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as short:
        caller = Caller(tmp_path, source, TMPDIR=short).start(way)
        try:
            status, out, err = caller.finish()
        finally:
            caller.stop()
        assert (status, out) == (0, "[6.0, 8.0, 3, 8.0, 3, 8.0, 3, 3.0]\n"), err
        # Before Python 3.13, such children end without exit functions. The next process cleans up
        # what they leave.
        (tmp_path / "after").mkdir()
        output_of_next(tmp_path / "after", caller)
        assert caller.files() == []


UNPICKLABLE = """
    import contextvars
    import threading
    from entangle.errors import UnpicklableError
    from entangle.interpreter import interpreter
    from entangle.process import process
    from entangle.task import Layer, task
    from entangle.thread import thread

    LOCK = threading.Lock()
    WHO = contextvars.ContextVar("who")
    KNOWN = {"a": [1, LOCK]}

    def helper(n):
        return other(n) if n else LOCK.locked()

    def other(n):
        return helper(n - 1)

    class Shop:
        def open(self):
            return LOCK

    def local():
        mine = LOCK
        def inner(x=1):
            return mine
        return inner

    class Guarded(Layer):
        def __init__(self):
            self.guard = LOCK

    @process
    def uselock():
        return LOCK

    @process
    def usevar():
        return WHO.get()

    @process
    def useknown():
        return str.LOCK, KNOWN  # which is no global

    @process
    def useother():
        return [other(n) for n in range(3)]

    @process
    def useshop():
        return Shop().open()

    @process
    def usetask():
        return uselock()()

    @process
    def take(x):
        return x

    def show(call):
        try:
            print(call(start=START))
        except UnpicklableError as error:
            print(str(error).replace(" cannot travel to another process", ""))

    show(uselock())
    show(interpreter(uselock.function)())
    show(usevar())
    show(useknown())
    show(useother())
    show(useshop())
    show(usetask())
    show(process(local())())
    show(task(process(len), Guarded())("abc"))
    show(take([helper]))
"""


@pytest.mark.parametrize("way", ["forkserver", "spawn"])
def test_what_cannot_travel_with_a_function_is_named(tmp_path: Path, way: str) -> None:
    told = output_of(tmp_path, f"    START = {way!r}\n" + UNPICKLABLE).splitlines()
    lock = "(a _thread.lock) cannot be pickled (TypeError: cannot pickle '_thread.lock' object). Make it inside the function, "
    lock += "or let a @thread do it"
    assert told[0] == f"the function of task 'uselock': its global 'LOCK' {lock}"
    assert told[1] == told[0]
    assert told[2].startswith("the function of task 'usevar': its global 'WHO' (a _contextvars.ContextVar) cannot be pickled")
    assert told[3] == f"the function of task 'useknown': its global 'KNOWN'['a'][1] {lock}"
    assert told[4] == f"the function of task 'useother': its global 'other' → its global 'helper' → its global 'LOCK' {lock}"
    assert told[5] == f"the function of task 'useshop': its global 'Shop'.open → its global 'LOCK' {lock}"
    assert told[6] == f"the function of task 'usetask': its global 'uselock' → its global 'LOCK' {lock}"
    assert told[7] == f"the function of task 'inner': its variable 'mine' {lock}"
    assert told[8].startswith("the layer @guarded of task 'len': _thread.lock at .guard cannot be pickled")
    assert told[9].startswith("argument 1 of task 'take': _thread.lock at [0] → its global 'LOCK' cannot be pickled")
    assert len(told) == 10


def test_shutdown_of_the_interpreter_with_a_warm_server(tmp_path: Path) -> None:
    """The forkserver ends with the process, without a message."""
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
