"""Workers of the forkserver are forked with the modules that earlier workers had to import."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from entangle import session
from entangle._run import forkserver
from entangle.process import process

from .callers import Caller
from .evidence import alive, notes, wait_until
from .ways import installed

pytestmark = [
    pytest.mark.near,
    pytest.mark.skipif(sys.platform != "linux", reason="templates are made on Linux alone"),
]

#: The first lines of a test's module. They note each import, and the process that made it.
_COUNTED = """
import os
imported_in = os.getpid()
fd = os.open("NOTED", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(fd, f"{__name__} {os.getpid()}\\n".encode())
os.close(fd)
"""


class Written:
    """Modules in a directory of the test, which is on `sys.path`."""

    def __init__(self, folder: Path, path: Callable[[str], None]) -> None:
        self.folder = folder
        self.counted = _COUNTED.replace("NOTED", str(folder / "imports"))
        path(str(folder))

    def module(self, name: str, text: str = "") -> ModuleType:
        """Write a module whose imports are counted, and import it."""
        file = self.folder / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        self.write(file, self.counted + textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def write(self, file: Path, text: str, age: float = 60.0) -> None:
        """Write a file, and set its time to `age` seconds ago."""
        file.write_text(text)
        then = time.time() - age
        os.utime(file, (then, then))

    def imports(self, name: str) -> set[int]:
        """The processes that have imported a module, without this one."""
        return {int(pid) for module, pid in notes(self.folder / "imports") if module == name} - {os.getpid()}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    monkeypatch.setenv("ENTANGLE_START", "forkserver")
    forkserver.stop()  # another test's forkserver may have given up on templates
    before = set(sys.modules)
    yield Written(tmp_path, monkeypatch.syspath_prepend)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def body_of(module: ModuleType, name: str = "body") -> Callable[[], Any]:
    """A function of a module that runs in a new worker each time."""
    task = process(getattr(module, name))
    return lambda: task()()


BODY = """
def body():
    return os.getpid(), imported_in
"""


def until_preloaded(body: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Run a body until its worker no longer imports the module itself. Return the pids of the
    worker and of the process that imported it."""

    def preloaded() -> tuple[int, int] | None:
        worker, importer = body()
        if worker != importer:
            return worker, importer
        time.sleep(0.03)  # leaves the CPU to the template
        return None

    worker, importer = wait_until(preloaded)
    return worker, importer


def test_a_module_is_imported_once_for_all_later_workers(written: Written) -> None:
    body = body_of(written.module("mine_once", BODY))
    template = until_preloaded(body)[1]
    imports = written.imports("mine_once")
    assert {body()[1] for _ in range(5)} == {template}
    assert written.imports("mine_once") == imports


def test_new_workers_of_a_session_are_forked_with_it(written: Written) -> None:
    module = written.module("mine_warm", BODY)
    body = body_of(module)

    def in_session() -> tuple[int, int]:
        with session(workers=1):
            worker, importer = body()
            return worker, importer

    template = until_preloaded(in_session)[1]
    assert in_session()[1] == template


def test_a_changed_module_is_imported_anew(written: Written) -> None:
    module = written.module("mine_changed", BODY)
    body = body_of(module)
    until_preloaded(body)
    written.write(Path(str(module.__file__)), "def body():\n    return 'changed'\n", age=30)
    assert body() == "changed"


def test_a_warm_worker_forked_with_a_module_retires_when_it_changes(written: Written) -> None:
    module = written.module("mine_retires", BODY)
    body = body_of(module)
    until_preloaded(body)
    with session(workers=1):
        pid, importer = body()
        assert pid != importer
        written.write(Path(str(module.__file__)), "def body():\n    return 'changed'\n", age=30)
        assert body() == "changed"


def test_workers_outlive_the_template_that_a_newer_one_replaces(written: Written) -> None:
    wait = """
def wait(gate):
    import time
    open(gate + "-begun", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return imported_in
"""
    module = written.module("mine_older", BODY + wait)
    old = until_preloaded(body_of(module))[1]
    gate = written.folder / "gate"
    waiting = process(module.wait)(str(gate))(proc=True)
    wait_until(Path(f"{gate}-begun").exists)
    written.write(Path(str(module.__file__)), written.counted + BODY, age=30)
    assert until_preloaded(body_of(module))[1] != old
    assert alive(old)
    gate.touch()
    assert waiting.result() == old
    wait_until(lambda: not alive(old))


#: True in a template alone: its stdout is /dev/null.
IN_A_TEMPLATE = "if os.path.samefile('/proc/self/fd/1', os.devnull):\n    "


#: Afterwards the lowered limit cannot be raised again, not even by root.
_FOR_GOOD = """import ctypes, resource
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))"""


@pytest.mark.parametrize(
    "side_effect",
    [
        "raise ValueError",
        "raise SystemExit",
        "os._exit(3)",
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "import time, _thread; _thread.start_new_thread(time.sleep, (9,))",
        "kept = open(os.devnull)",
        "import subprocess; kept = subprocess.Popen(['sleep', '9'])",
        "os.setuid(os.getuid() or 1)",
        "os.chroot('/proc')",
        pytest.param(_FOR_GOOD, id="setrlimit"),
    ],
)
def test_what_cannot_be_in_a_template_is_tried_once(written: Written, side_effect: str) -> None:
    """Modules that are imported before and after it are in a template all the same."""
    name = f"mine_bad_{zlib.crc32(side_effect.encode())}"
    before = [written.module(f"{name}_before_{number}", BODY) for number in range(2)]
    after = [written.module(f"{name}_after_{number}", BODY) for number in range(18)]
    first, then = (", ".join(module.__name__ for module in modules) for modules in (before, after))
    body = BODY.replace("    return", f"    import {then}\n    return")
    bad = body_of(written.module(name, f"import {first}\n{body}{IN_A_TEMPLATE}{side_effect}\n"))
    workers = set()

    def tried() -> bool:
        pid, importer = bad()
        assert pid == importer
        workers.add(pid)
        return written.imports(name) > workers

    wait_until(tried)
    for module in (after[-1], written.module("mine_good", BODY)):
        until_preloaded(body_of(module))  # there are templates without it
    pid, importer = bad()
    assert pid == importer
    assert len(written.imports(name) - workers - {pid}) == 1


def test_what_an_import_changes_is_put_back(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        """
    import signal, sys, threading, time, warnings
    """
        + IN_A_TEMPLATE.replace("\n", "\n    ").strip()
        + """
        os.environ["MINE"] = "changed"
        os.chdir("/usr")
        os.umask(0o777)
        sys.path.insert(0, "/nowhere")
        sys.argv.append("changed")
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.05)  # at once, and again
        time.sleep(0.001)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        sys.setrecursionlimit(5000)
        sys.excepthook = print
        sys.stdout = None

    def body():
        return os.getpid(), imported_in

    def state():
        umask = os.umask(0)
        os.umask(umask)
        handlers = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        hook = sys.excepthook is sys.__excepthook__
        return (os.environ.get("MINE"), os.getcwd(), umask, "/nowhere" in sys.path, "changed" in sys.argv, handlers, mask,
                sys.getrecursionlimit(), hook, sys.stdout is None)
    """
    )
    module = written.module("mine_changes", text)
    clean = process(module.state)()(start="spawn")
    until_preloaded(body_of(module))
    assert process(module.state)()() == clean


def test_what_the_caller_has_not_loaded_is_not_preloaded(written: Written) -> None:
    (written.folder / "mine_lazy.py").write_text(written.counted)
    module = written.module("mine_importer", BODY + "def lazily():\n    import mine_lazy\n    return os.getpid(), mine_lazy.imported_in\n")
    lazily = body_of(module, "lazily")
    until_preloaded(body_of(module))
    for _ in range(5):
        pid, importer = lazily()
        assert pid == importer


def test_a_package_with_its_modules(written: Written) -> None:
    (written.folder / "mine_package").mkdir()
    written.write(written.folder / "mine_package" / "__init__.py", written.counted)
    written.write(written.folder / "mine_package" / "inner.py", written.counted + "from . import outer\n")
    package = written.module("mine_package.outer", "from . import inner\n" + BODY)
    template = until_preloaded(body_of(package))[1]
    for name in ("mine_package", "mine_package.inner", "mine_package.outer"):
        assert template in written.imports(name)


def test_a_relative_path(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    (written.folder / "lib").mkdir()
    monkeypatch.chdir(written.folder)
    monkeypatch.syspath_prepend("lib")
    written.write(written.folder / "lib" / "mine_relative.py", written.counted + BODY)
    body = body_of(importlib.import_module("mine_relative"))
    until_preloaded(body)
    written.write(written.folder / "lib" / "mine_relative.py", "def body():\n    return 'changed'\n", age=30)
    assert body() == "changed"


def test_another_environment_means_another_import(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "at_import = os.environ.get('MINE')\ndef body():\n    return os.getpid(), imported_in\ndef seen():\n    return at_import\n"
    monkeypatch.setenv("MINE", "first")
    module = written.module("mine_reads", text)
    until_preloaded(body_of(module))
    monkeypatch.setenv("MINE", "second")
    assert body_of(module, "seen")() == "second"
    until_preloaded(body_of(module))
    assert body_of(module, "seen")() == "second"
    monkeypatch.setenv("MINE", "first")
    assert body_of(module, "seen")() == "first"


def test_a_module_that_the_user_calls_unsafe(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_FORK_UNSAFE", "mine_unsafe")
    unsafe = body_of(written.module("mine_unsafe", BODY))
    unsafe()
    until_preloaded(body_of(written.module("mine_safe", BODY)))
    pid, importer = unsafe()
    assert pid == importer


def test_spawned_workers_import_for_themselves(written: Written) -> None:
    module = written.module("mine_spawned", BODY)
    until_preloaded(body_of(module))
    pid, importer = process(module.body)()(start="spawn")
    assert pid == importer


def test_workers_draw_different_numbers_and_have_their_threads(written: Written) -> None:
    installed("numpy")
    text = """
    import os, random, signal
    import numpy
    from entangle._worker import library_threads

    def drawn():
        library_threads._look()
        threads = [pool.num_threads for pool in library_threads._pools if "openblas" in pool.internal_api]
        return random.random(), numpy.random.random(), threads

    def pending():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        os.kill(os.getpid(), signal.SIGALRM)
        return signal.SIGALRM in signal.sigpending()
    """
    module = written.module("mine_random", BODY + textwrap.dedent(text))
    drawn = body_of(module, "drawn")
    first = drawn()
    until_preloaded(body_of(module))
    several = [drawn() for _ in range(3)]
    assert len({one[0] for one in several}) == len({one[1] for one in several}) == 3
    assert [one[2] for one in several] == [first[2]] * 3
    # If the library had a thread that did not block the signal, that thread would receive it.
    assert [body_of(module, "pending")() for _ in range(3)] == [True] * 3


def test_a_template_that_is_killed_is_replaced(written: Written) -> None:
    body = body_of(written.module("mine_killed", BODY))
    template = until_preloaded(body)[1]
    os.kill(template, signal.SIGKILL)
    assert len(body()) == 2
    assert until_preloaded(body)[1] != template


def test_a_server_that_is_killed_takes_its_templates_along(written: Written) -> None:
    body = body_of(written.module("mine_server", BODY))
    template = until_preloaded(body)[1]
    family = psutil.Process(template).children(recursive=True)
    server = psutil.Process(template).parent()
    assert server is not None
    server.kill()
    wait_until(lambda: not any(alive(pid) for pid in (template, *(child.pid for child in family))))
    assert until_preloaded(body)[1] != template


@pytest.mark.parametrize("in_session", [False, True])
def test_nothing_is_left_of_a_killed_caller(written: Written, in_session: bool) -> None:
    written.module("mine_caller", BODY + "def wait():\n    import time\n    time.sleep(60)\n")
    caller = Caller(
        written.folder,
        f"""
        import contextlib, sys, time
        sys.path.insert(0, {str(written.folder)!r})
        import entangle, mine_caller
        from entangle.process import process

        while True:
            with entangle.session(workers=1) if {in_session} else contextlib.nullcontext():
                pid, importer = process(mine_caller.body)()()
                if pid != importer:
                    run = process(mine_caller.wait)()(proc=True)
                    print(importer, flush=True)
                    run.result()
        """,
        ENTANGLE_START="forkserver",
    ).start()
    try:
        assert caller.process.stdout is not None
        template = int(caller.process.stdout.readline())
        wait_until(lambda: psutil.Process(template).children())
        family = caller.family()
        assert template in family
        caller.process.kill()
        wait_until(lambda: not any(alive(pid) for pid in family))
    finally:
        caller.stop()
