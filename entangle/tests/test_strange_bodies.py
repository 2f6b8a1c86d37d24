"""Bodies that end in unusual ways, or leave something behind."""

import os
import resource
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import EntangleError, UnpicklableError
from entangle.process import ProcessTerminatedException, ProcessTimeoutException, process

from . import bodies
from .callers import gone, output_of
from .evidence import note, notes, pids_in, text_of, wait_until

one = process(bodies.one)
add = process(bodies.add)
same = process(bodies.same)
gather = process(bodies.gather)
total = process(bodies.total)


def test_exit_status_and_last_words(start: str) -> None:
    with pytest.raises(ProcessTerminatedException) as caught:
        add(1, process(bodies.die)(3))()
    told = text_of(caught.value)
    assert "3" in str(caught.value)
    assert "add(1, die(…)) → die" in told
    assert "these were my last words" in told


def test_a_segmentation_fault(start: str) -> None:
    @process
    def crash() -> None:
        import ctypes
        import faulthandler

        # A forked worker would inherit pytest's handler and print pages to the terminal.
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)

    with pytest.raises(ProcessTerminatedException, match="SIGSEGV") as caught:
        add(crash(), 1)()
    assert "add(crash(), 1) → crash" in text_of(caught.value)


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
    with pytest.raises(bodies.HoldsALock) as caught:
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
    """The error names the task and the part. It is raised although the next task would run in the
    same worker, without pickling."""
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
    """The worker's next file gets descriptor 1. What other bodies write to stdout must not end up
    in it."""

    @process
    def close(n: int) -> bytes:
        try:
            os.close(1)
        except OSError:
            pass  # an earlier body has closed it in this worker
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
    """A daemon does this when it starts. The worker loses its connection: the caller gets its
    value, or an error that the worker has ended."""

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
    """The child returns from the body as well. It must not continue as a second worker."""
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
    """At its end, a run kills the processes that its bodies started."""
    log = str(tmp_path / "log")

    @process
    def leave(path: str) -> int:
        child = subprocess.Popen(["sleep", "100"])
        note(path, child.pid)
        child.returncode = 0  # avoids a ResourceWarning
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
    """A worker that cannot even start gives one error, and is not started again and again."""
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


def test_a_function_of_the_script_that_remembers(tmp_path: Path, start: str) -> None:
    """`functools.lru_cache` returns an object that is pickled by name only, and no worker can
    import its module."""
    source = """
    import functools
    from entangle.interpreter import interpreter
    from entangle.process import process
    from entangle.thread import thread

    @process
    @functools.lru_cache(maxsize=7, typed=True)
    def cached(x):
        return x + 1

    @functools.cache
    def fib(n):
        "The n-th."
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    fib.limit = 80

    class Shop:
        @functools.lru_cache
        def price(self, name):
            return len(name)

    def local():
        @functools.lru_cache(3)
        def inner(x):
            return x * 10
        return inner

    @process
    def ask(shop):
        return fib(fib.limit), fib.__doc__, fib.cache_info().currsize, shop.price("tea"), shop.price.cache_info().hits

    print(cached(3)(), cached.function.cache_parameters())
    print(ask(Shop())())
    print(process(local())(4)(), process(functools.lru_cache(functools.partial(max, 3)))(2)())
    print(interpreter(functools.lru_cache(fib.__wrapped__))(50)())
    """
    expected = "4 {'maxsize': 7, 'typed': True}\n(23416728348467685, 'The n-th.', 81, 3, 0)\n40 3\n12586269025\n"
    assert output_of(tmp_path, source, ENTANGLE_START=start) == expected
