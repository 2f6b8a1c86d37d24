"""The pytest plugin: what its fixtures do in a user's test suite, run by a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .callers import ROOT
from .ways import installed

pytest_plugins = ["pytester"]

#: The beginning of each of these suites.
_HEAD = """
import asyncio, os, signal, subprocess, sys, threading, time
import pytest
import entangle
from entangle.dataflow import dataflow, window

from entangle.process import process, ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException
from entangle.thread import thread
from entangle.workflow import workflow

def at_home():
    return os.getpid() == HOME and threading.current_thread() is threading.main_thread()

HOME = os.getpid()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory for a user's test suite. Its pytest loads our plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", ROOT, prepend=os.pathsep)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    pytester.makeini("[pytest]\nentangle_patience = 0.2\naddopts = -p entangle.pytest_plugin -p no:cacheprovider\n")
    return pytester


def _run(suite: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    suite.makepyfile(test_it=_HEAD + code)
    return suite.runpytest_subprocess("-q", *arguments, timeout=50)


_INLINE = """
pytestmark = pytest.mark.usefixtures("entangle_inline")

@process
def one():
    assert at_home()
    return 1

@process(fresh=True)
def add(a, b):
    assert at_home()
    return a + b

@thread
def double(x):
    assert at_home()
    return 2 * x

@workflow
def three(n):
    assert at_home()
    return add(n, one())

@process
async def later(x):
    await asyncio.sleep(0)
    assert at_home()
    return x

@process
def nested(x):
    return add(x, later(1))() + three(1)()

@process
def failing():
    raise LookupError("nothing there")

attempts = []

@process(retry=2, sleep=0.01)
def flaky(enough):
    attempts.append(at_home())
    if len(attempts) < enough:
        raise ValueError(len(attempts))
    return len(attempts)

def test_every_kind_of_task():
    assert add(one(), double(three(later(2))))() == 7
    assert nested(2)() == 5
    assert add.starmap([(1, 2), (3, 4)])() == [3, 7]
    assert sum(double.map(range(100))()) == 9900
    assert [f.result() for f in entangle.as_completed([one(), add(1, 1)])] == [1, 2]

def test_monkeypatch_and_output(monkeypatch, capsys):
    monkeypatch.setattr(os, "getlogin", lambda: "somebody")

    @process
    def who():
        print("asked")
        return os.getlogin()

    assert who()() == "somebody"
    assert capsys.readouterr().out == "asked\\n"

def test_the_error_is_the_one_that_was_raised():
    with pytest.raises(LookupError) as caught:
        add(1, failing())()
    assert caught.traceback[-1].name == "failing"
    assert caught.value.__cause__ is None
    if sys.version_info >= (3, 11):
        assert "call: failing()" in caught.value.__notes__

def test_failures_as_values():
    value, error, skipped = entangle.gather(one(), failing(), add(failing(), 1), return_exceptions=True)()
    assert (value, type(error), type(skipped)) == (1, LookupError, LookupError)

def test_retries():
    attempts.clear()
    assert flaky(3)() == 3
    attempts.clear()
    with pytest.raises(ProcessRetryException, match="failed 3 times") as caught:
        flaky(9)()
    assert type(caught.value.__cause__) is ValueError
    assert attempts == [True] * 3

def test_deadlines():
    @process(timeout=0.05)
    def slow():
        time.sleep(0.06)

    with pytest.raises(ProcessTimeoutException, match="'slow' ran longer than its timeout"):
        slow()()

    @process
    def waits():
        time.sleep(0.03)

    # Side by side they would take half of that.
    entangle.gather(waits(), waits(), waits(), waits()).run(timeout=0.1)
    with pytest.raises(entangle.errors.RunTimeoutException):
        waits().run(timeout=0.01)

def test_bodies_that_would_end_their_process():
    @process
    def leaving():
        sys.exit(3)

    with pytest.raises(ProcessTerminatedException, match=r"SystemExit\\(3\\)"):
        leaving()()

def test_what_pytest_raises_is_for_pytest():
    @process
    def skipping():
        pytest.skip("not here")

    with pytest.raises(pytest.skip.Exception, match="not here"):
        skipping()()

class Basket:
    def __init__(self):
        self.things = []

@process
def filled(basket, thing):
    basket.things.append(thing)
    return basket

@process
def empty():
    return Basket()

def test_nobody_sees_what_another_body_changes():
    mine, shared = Basket(), empty()
    both = entangle.gather(filled(shared, 1), filled(shared, 2), filled(mine, 3))()
    assert [basket.things for basket in both] == [[1], [2], [3]]
    assert mine.things == []

def test_what_cannot_be_pickled_goes_through():
    lock = threading.Lock()

    @process
    def same(thing):
        return thing

    assert same(same(lock))() is lock

def test_futures():
    told = []
    future = add(1, 2).future(callback=lambda future: told.append(future.result()))
    assert future.entangle() == 3
    assert told == [3]
    assert add(2, 2)(proc=True).done()

def test_streams():
    def source():
        assert at_home()
        yield from range(5)

    @process(retry=1)
    def square(x):
        assert at_home()
        if x == 3:
            raise ValueError(x)
        return x * x

    assert list(square.stream(source(), on_error="skip")) == [0, 1, 4, 16]
    with pytest.raises(ProcessRetryException):
        list(square.stream([3]))
    endless = square.stream(iter(int, 1))
    assert next(endless) == 0
    endless.close()

def test_dataflows():
    told = []

    @dataflow(callback=lambda function, value: told.append((function.__name__, value, at_home())))
    @process
    def tenfold(x):
        assert at_home()
        return 10 * x

    @dataflow
    def plus(x):
        assert at_home()
        return x + 1

    flow = plus(tenfold(plus()), tenfold(lambda x: plus() if x else None))
    assert flow(1) == (21, 3)
    assert told == [("tenfold", 20, True)] * 2
    assert list(flow.stream([0, -1])) == [(11, 2), (1,)]
    assert list(plus(window(plus_all(), count=2)).stream([1, 2, 3])) == [(5,), (4,)]

@dataflow
def plus_all(xs):
    return sum(xs)

def test_other_places_are_here():
    from entangle.ssh import ssh

    @ssh(user="nobody", host="nowhere.invalid")
    @process(retry=1)
    def far():
        return at_home()

    assert far()()

def test_terms_hold():
    from entangle.limit import limit
    from entangle.scheduler import scheduler

    @scheduler(cpus=1)
    @process
    def bound():
        return len(os.sched_getaffinity(0))

    @limit("place", at_once=1)
    @process
    def inside(depth):
        return depth and inside(depth - 1)()

    before = os.sched_getaffinity(0)
    assert bound()() == 1
    assert os.sched_getaffinity(0) == before
    assert inside(2)() == 0

    @process(shared_memory=True)
    def sized(smm=None, sm=None):
        return smm.SharedMemory(64).size >= 64

    assert sized()()

def test_a_run_within_a_loop():
    async def main():
        task = asyncio.current_task()
        assert await add(later(1), 1) == 2
        assert later(4)() == 4
        assert [x async for x in double.stream([1, 2])] == [2, 4]
        assert asyncio.current_task() is task
        await asyncio.sleep(0)

    asyncio.run(main())

@pytest.fixture(scope="module", autouse=True)
def no_process_is_started():
    import subprocess
    yield
    assert "entangle._run.forkserver" not in sys.modules

def test_a_coverage_tool_sees_the_lines():
    seen = set()

    @process
    def traced():
        x = 1
        return x

    sys.settrace(lambda frame, event, _: seen.add(frame.f_code.co_name))
    try:
        traced()()
    finally:
        sys.settrace(None)
    assert "traced" in seen
"""


def test_inline(suite: pytest.Pytester) -> None:
    """Everything runs in the test's thread, with the values and errors that processes give."""
    done = _run(suite, _INLINE)
    assert done.ret == 0, str(done.stdout)
    done.assert_outcomes(passed=_INLINE.count("\ndef test_"))


_DASK = """
import dask
from dask import delayed
from dask.callbacks import Callback
import entangle.dask

def test_graphs_of_dask(entangle_inline):
    ended = []
    with dask.config.set(scheduler=entangle.dask.get), Callback(posttask=lambda key, value, *_: ended.append(value)):
        graph = delayed(lambda *_: at_home())(delayed(at_home)())
        assert graph.compute(optimize_graph=False)
        with pytest.raises(ZeroDivisionError):
            delayed(lambda x: 1 / x)(0).compute(rerun_exceptions_locally=True)
    assert ended == [True, True]
"""


def test_inline_graphs_of_dask(suite: pytest.Pytester) -> None:
    installed("dask")
    _run(suite, _DASK).assert_outcomes(passed=1)


_LEAKS = """
kept = []

def test_process(entangle_clean):
    kept.append(subprocess.Popen(["sleep", "30"]))

def test_process_without_parent(entangle_clean, tmp_path):
    subprocess.run("sleep 31 & echo $! > pid", shell=True, cwd=tmp_path)
    orphans.append(int((tmp_path / "pid").read_text()))

orphans = []

def test_ended_process(entangle_clean):
    pid = os.fork()
    if not pid:
        os._exit(0)

def test_thread(entangle_clean):
    threading.Thread(target=stop.wait, name="the listener", daemon=True).start()

stop = threading.Event()

def test_descriptor(entangle_clean):
    kept.append(open(__file__))

def test_mapped_memory(entangle_clean):
    from multiprocessing import shared_memory
    kept.append(shared_memory.SharedMemory(create=True, size=64))

def test_closed_memory(entangle_clean):
    from multiprocessing import shared_memory
    kept.append(shared_memory.SharedMemory(create=True, size=64))
    kept[-1].close()

def test_semaphore(entangle_clean):
    import multiprocessing
    kept.append(multiprocessing.get_context("spawn").Lock())

def dies_with_memory():
    from multiprocessing import shared_memory
    shared_memory.SharedMemory(create=True, size=64).close()
    os.kill(os.getpid(), signal.SIGKILL)

def test_memory_of_children(entangle_clean):
    import multiprocessing
    for start in ("fork", "spawn"):
        child = multiprocessing.get_context(start).Process(target=dies_with_memory)
        child.start()
        child.join()
        child.close()

def test_beside_others(entangle_clean):
    open("begun", "w").close()
    while not os.path.exists("made"):
        time.sleep(0.01)

def test_run(entangle_clean, tmp_path):
    @process
    def rest():
        (tmp_path / "begun").touch()
        time.sleep(60)

    kept.append(rest()(proc=True))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)

def test_session(entangle_clean):
    kept.append(entangle.session())
    kept[-1].__enter__()
    assert process(os.getpid)()() != HOME

@pytest.fixture
def careless():
    yield
    kept.append(open(__file__))

def test_fixture(careless, entangle_clean):
    pass

def test_failed(entangle_clean):
    kept.append(open(__file__))
    assert False, "that is enough"

def test_allowed(entangle_clean):
    entangle_clean.allow("test_it.py")
    kept.append(open(__file__))

def test_clean(entangle_clean, tmp_path):
    with open(tmp_path / "file", "w"), subprocess.Popen(["true"]):
        pass
    threading.Thread(target=time.sleep, args=(0.1,)).start()
    assert process(os.getpid)()() != HOME
    assert process(os.getpid)()(start="forkserver") != HOME

def test_end():
    stop.set()
    kept[0].kill(), kept[0].wait()
    os.kill(orphans[0], signal.SIGKILL)
    for thing in kept[1:]:
        if hasattr(thing, "unlink"):
            thing.unlink()
        elif isinstance(thing, entangle._warm.session.Session):
            thing.__exit__(None, None, None)
        elif hasattr(thing, "cancel"):
            thing.cancel()
"""


#: A program that is unrelated to the suite. During one of the tests it makes everything that can be
#: made in /dev/shm.
_OTHERS = """
import multiprocessing, os, sys, time
from multiprocessing.shared_memory import SharedMemory

while not os.path.exists("begun"):
    time.sleep(0.01)
mapped, closed = SharedMemory(create=True, size=64), SharedMemory(create=True, size=64)
closed.close()
lock = multiprocessing.get_context("spawn").Lock()
child = os.fork()
if not child:
    SharedMemory(create=True, size=64).close()
    os._exit(0)
os.waitpid(child, 0)
open("made", "w").close()
sys.stdin.read()
"""


def test_clean(suite: pytest.Pytester) -> None:
    """Everything that a test leaves behind is named, and nothing else, even if another program
    makes shared memory at the same time."""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", _OTHERS], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL):
        done = _run(suite, _LEAKS)
    told = dict(re.findall(r"^(test_\w+) left behind:\n((?:  .*\n)+)", str(done.stdout), re.MULTILINE))
    expected = {
        "test_process": r"process \d+: sleep 30",
        "test_process_without_parent": r"process \d+: sleep 31 \(it lives on without its parent\)",
        "test_ended_process": r"process \d+: .*\(it has ended, and nobody has waited for it\)",
        "test_thread": r"thread 'the listener'",
        "test_descriptor": r"descriptor \d+: .*test_it\.py",
        "test_mapped_memory": r"(descriptor \d+: /dev/shm/psm_\w+\n  )+shared memory /dev/shm/psm_\w+",
        "test_closed_memory": r"shared memory /dev/shm/psm_\w+",
        "test_semaphore": r"shared memory /dev/shm/sem\.mp-\w+",
        "test_memory_of_children": r"(?:\s*shared memory /dev/shm/psm_\w+){2}",
        "test_run": r"(?s)process \d+: a worker of a run that goes on\n.*thread 'entangle-run'.*directory of a run /.*/r\w+",
        "test_session": r"process \d+: a warm worker of a session or an Executor that is still open(\n.*)*",
        "test_fixture": r"descriptor \d+: .*test_it\.py",
    }
    assert {name: text for name, text in told.items() if not re.fullmatch(expected.get(name, ""), text.strip())} == {}
    assert told.keys() == expected.keys()
    done.assert_outcomes(passed=_LEAKS.count("\ndef test_") - 1, failed=1, errors=len(expected))


_SIDE_BY_SIDE = """
from multiprocessing import shared_memory
HERE = os.path.dirname(__file__)

def meet(name):
    # Wait until both workers are here.
    open(os.path.join(HERE, name + os.environ["PYTEST_XDIST_WORKER"]), "w").close()
    until = time.monotonic() + 20
    while sum(other.startswith(name) for other in os.listdir(HERE)) < 2 and time.monotonic() < until:
        time.sleep(0.01)

def leaking():
    meet("begun-")
    memory = shared_memory.SharedMemory(create=True, size=64)
    memory.close()
    meet("made-")
    return memory

kept = []

# Each worker runs each of these. One leaves what it has made, the other one does not.
def test_memory(entangle_clean):
    kept.append(leaking())
    if os.environ["PYTEST_XDIST_WORKER"] == "gw1":
        kept.pop().unlink()
        assert process(os.getpid)()() != HOME
    meet("left-")

def test_inline(entangle_inline):
    for memory in kept:
        memory.unlink()
    assert process(at_home)()()
"""


def test_workers_of_xdist_are_not_blamed_for_each_other(suite: pytest.Pytester) -> None:
    """Two workers share /dev/shm. What one worker leaves there is not blamed on the other."""
    done = _run(suite, _SIDE_BY_SIDE, "-p", "xdist.plugin", "-n2", "--dist=each")
    done.assert_outcomes(passed=4, errors=1)
    assert re.search(r"test_memory left behind:\n  shared memory /dev/shm/psm_\w+\n", str(done.stdout))


_IN_LOOPS = """
@process
async def later(x):
    await asyncio.sleep(0)
    return x, at_home()

@pytest.fixture(scope="module")
def lasting():
    with subprocess.Popen(["sleep", "30"]) as child, open(__file__):
        threading.Thread(target=child.wait, daemon=True).start()
        yield
        child.kill()

MARK

async def test_in_a_loop(entangle_inline, entangle_clean, lasting):
    assert await later(1) == (1, True)

async def test_with_processes(entangle_clean):
    assert await process(os.getpid)() != HOME

LOOP_OF_MODULE
async def test_in_a_lasting_loop(entangle_clean):
    with entangle.session():
        assert await process(os.getpid)() != HOME

@pytest.fixture(scope="module")
def session():
    with entangle.session():
        yield

async def test_in_a_session_of_others(entangle_clean, session):
    for _ in range(3):
        assert await process(os.getpid)() != HOME

@pytest.fixture(scope="module")
def executor():
    from entangle.executor import Executor
    with Executor(2) as executor:
        yield executor

async def test_in_an_executor_of_others(entangle_clean, executor):
    assert await asyncio.get_running_loop().run_in_executor(executor, os.getpid) != HOME

async def test_leaking(entangle_clean):
    leaked.append(open(__file__))

leaked = []

@pytest.fixture(scope="class")
def listener():
    import socket
    with socket.socket() as listening:
        yield listening

class TestOfAClass:
    def test_of_a_class(self, entangle_clean, listener):
        assert listener.fileno() > 0

import unittest

@pytest.mark.usefixtures("entangle_clean")
class Case(unittest.TestCase):
    def test_case(self):
        leaked.append(open(__file__))
"""


@pytest.mark.parametrize("plugin", ["anyio.pytest_plugin", "pytest_asyncio.plugin"])
def test_with_event_loops_and_wide_fixtures(suite: pytest.Pytester, plugin: str) -> None:
    """An asynchronous test's loop, and resources of fixtures with a wider scope, do not count as
    left behind by the test."""
    if find_spec(plugin.partition(".")[0]) is None:
        pytest.skip(f"needs {plugin.partition('.')[0]}")
    marked = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n\npytestmark = pytest.mark.anyio" * (plugin[0] == "a")
    of_module = "" if marked else "@pytest.mark.asyncio(loop_scope='module')"
    done = _run(
        suite,
        _IN_LOOPS.replace("MARK", marked).replace("LOOP_OF_MODULE", of_module),
        "-p",
        plugin,
        *(["--asyncio-mode=auto"] if not marked else []),
    )
    done.assert_outcomes(passed=8, errors=2)
    told = re.findall(r"^(test_\w+) left behind:\n  descriptor \d+: .*test_it.py\n(?!  )", str(done.stdout), re.MULTILINE)
    assert told == ["test_leaking", "test_case"]


def test_in_doctests_and_with_a_debugger(suite: pytest.Pytester) -> None:
    """`getfixture` provides both fixtures in a doctest. Deadlines are suspended while a debugger
    waits."""
    suite.makepyfile(
        shop='''
        """
        >>> import os
        >>> from entangle.process import process
        >>> getfixture("entangle_inline")
        >>> clean = getfixture("entangle_clean")
        >>> process(os.getpid)()() == os.getpid()
        True
        """
        '''
    )
    suite.makepyfile(
        test_it="""
        import time
        from entangle.process import process

        @process(timeout=0.01)
        def looked_at():
            price = 3
            breakpoint()
            return price

        def test_looking(entangle_inline):
            assert looked_at()() == 4
        """
    )
    done = suite.runpytest_subprocess("-q", "--doctest-modules", "shop.py", timeout=50)
    done.assert_outcomes(passed=1)
    arguments = [sys.executable, "-m", "pytest", "-q", "-s", "test_it.py"]
    looking = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    told, _ = looking.communicate("import time; time.sleep(0.02)\np 'here', price\nprice = 4\nc\n", timeout=50)
    assert "('here', 3)" in told
    assert looking.returncode == 0, told


def test_a_suite_without_the_fixtures(suite: pytest.Pytester) -> None:
    """If no test uses the fixtures, the plugin imports nothing but the package itself. They are
    listed by `pytest --fixtures`."""
    code = """
    import sys
    def test_nothing():
        loaded = {name for name in sys.modules if name.startswith("entangle")}
        assert loaded <= {"entangle", "entangle._remote", "entangle._run", "entangle._tasks", "entangle.pytest_plugin"}
    """
    suite.makepyfile(test_it=code)
    suite.runpytest_subprocess("-q", timeout=50).assert_outcomes(passed=1)
    listed = str(suite.runpytest_subprocess("--fixtures", "-q", timeout=50).stdout)
    for fixture in ("entangle_inline", "entangle_clean"):
        assert re.search(rf"^{fixture} -- .*\n    \w.*", listed, re.MULTILINE), listed


def test_pytest_finds_the_plugin() -> None:
    text = (Path(ROOT) / "pyproject.toml").read_text(encoding="utf-8") if (Path(ROOT) / "pyproject.toml").exists() else ""
    if not text:
        pytest.skip("only a checkout says so")
    assert '[project.entry-points.pytest11]\nentangle = "entangle.pytest_plugin"\n' in text


_DEPOTS = """
import subprocess
import sys
from pathlib import Path
from entangle.thread import thread

@thread(cache=True)
def noted(log):
    with open(log, "a") as file:
        file.write("ran ")
    return 1

@pytest.mark.parametrize("number", [0, 1])
def test_a_depot_of_its_own(number, entangle_depot):
    assert [noted("log")(), noted("log")()] == [1, 1]
    assert Path("log").read_text() == "ran " * (number + 1)
    assert len(list(entangle_depot.glob("values/*/*"))) == 1
    command = [sys.executable, "-c", "import os; print(os.environ['ENTANGLE_DEPOT'])"]
    assert subprocess.check_output(command, text=True).strip() == str(entangle_depot)

def test_the_one_of_before_is_back():
    assert os.environ["ENTANGLE_DEPOT"] == "before"
"""


def test_a_depot_for_each_test(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_DEPOT", "before")
    _run(suite, _DEPOTS).assert_outcomes(passed=3)
