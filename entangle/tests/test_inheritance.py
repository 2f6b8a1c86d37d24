"""The state that a worker inherits from its caller: one list, the same for every way to start
workers."""

import contextvars
import decimal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from entangle._worker import inheritance
from entangle.process import process
from entangle.thread import thread

from .callers import Caller, output_of

PROGRAM = """
import contextvars, decimal, faulthandler, gc, locale, logging, multiprocessing, os, signal, socket, sys, warnings
import resource
from entangle._worker import inheritance
from entangle.process import process

user = contextvars.ContextVar("user", default="nobody")

class Mine(UserWarning):
    pass

def raised(category):
    try:
        warnings.warn("look out", category)
    except Warning:
        return True
    return False

LOOKS = {
    "environment": lambda: os.environ.get("MINE"),
    "argv": lambda: sys.argv[1:],
    "path": lambda: "/mine" in sys.path,
    "directory": lambda: os.path.basename(os.getcwd()),
    "umask": lambda: os.umask(0o027),
    "warnings": lambda: [raised(UserWarning), raised(Mine), raised(DeprecationWarning)],
    "captured warnings": lambda: warnings.showwarning is logging._showwarning,
    "recursion": sys.getrecursionlimit,
    "digits": lambda: getattr(sys, "get_int_max_str_digits", int)(),
    "switch interval": sys.getswitchinterval,
    "bytecode": lambda: sys.dont_write_bytecode,
    "faulthandler": faulthandler.is_enabled,
    "collector": lambda: [gc.isenabled(), gc.get_threshold()],
    "decimal": lambda: [str(decimal.Decimal(1) / 7), decimal.getcontext().rounding],
    "locale": lambda: [locale.setlocale(locale.LC_CTYPE), locale.setlocale(locale.LC_NUMERIC)],
    "sockets": socket.getdefaulttimeout,
    "loggers": lambda: [logging.root.level, logging.getLogger("a.b").level, logging.getLogger("quiet").disabled,
                        logging.getLogger("apart").propagate, logging.root.manager.disable],
    "handlers": lambda: [[type(handler).__name__, handler.level, handler.formatter._fmt] for handler in logging.root.handlers],
    "context": user.get,
    "start method": lambda: multiprocessing.get_start_method(allow_none=True),
    "signals": lambda: [signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN, signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL],
    "mask": lambda: signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    "affinity": lambda: sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
    "niceness": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "limits": lambda: resource.getrlimit(resource.RLIMIT_CORE),
}

def change():
    os.environ["MINE"] = "set"
    sys.argv[1:] = ["--mine"]
    sys.path.append("/mine")
    os.makedirs("here", exist_ok=True)
    os.chdir("here")
    os.umask(0o027)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", UserWarning)
    warnings.simplefilter("default", Mine)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    logging.getLogger("py.warnings").propagate = False
    sys.setrecursionlimit(4321)
    getattr(sys, "set_int_max_str_digits", int)(5000)
    sys.setswitchinterval(0.0625)
    sys.dont_write_bytecode = True
    faulthandler.enable()
    gc.disable()
    gc.set_threshold(701, 11, 11)
    decimal.getcontext().prec = 5
    decimal.getcontext().rounding = decimal.ROUND_UP
    locale.setlocale(locale.LC_ALL, "C")
    socket.setdefaulttimeout(7.5)
    logging.basicConfig(level=logging.WARNING, format="mine %(message)s")
    logging.root.handlers[0].setLevel(logging.ERROR)
    logging.getLogger("a.b").setLevel(logging.DEBUG)
    logging.getLogger("quiet").disabled = True
    logging.getLogger("apart").propagate = False
    logging.disable(logging.INFO)
    user.set("caller")
    multiprocessing.set_start_method("spawn")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.nice(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

@process
def look():
    return {name: look() for name, look in LOOKS.items()}

if __name__ == "__main__":
    here = look.__wrapped__
    before = here()
    if "early" in os.environ:
        look()()  # the server and its waiting workers have the state of before
    change()
    wanted = here()
    found = look()()
    same = {name for name in LOOKS if before[name] == wanted[name]}
    assert same <= {"affinity", "locale", "limits", "digits", "bytecode"}, same  # as they were already, on some machines
    print({name: (found[name], wanted[name]) for name in LOOKS if found[name] != wanted[name]})
"""


@pytest.mark.parametrize("way", ["fork", "forkserver", "spawn"])
def test_each_item_of_the_list(tmp_path: Path, way: str) -> None:
    """Each is changed in the caller, also after a server has been started."""
    assert output_of(tmp_path, PROGRAM, ENTANGLE_START=way, early="yes", PYTHONWARNINGS="ignore") == "{}\n"


def test_an_interpreter_without_assertions(tmp_path: Path, start: str) -> None:
    """`python -O` applies to bodies too, and so does the encoding of text."""
    source = """
    import sys
    from entangle.process import process

    @process
    def flags():
        return __debug__, sys.flags.optimize, sys.flags.utf8_mode, sys.flags.dev_mode

    if __name__ == "__main__":
        print(flags()() == flags.__wrapped__(), flags()())
    """
    caller = Caller(tmp_path, source, ENTANGLE_START=start)
    ran = subprocess.run(
        [sys.executable, "-O", "-X", "utf8", str(caller.script)], env=caller.environment, capture_output=True, text=True, timeout=50
    )
    assert ran.stdout == "True (False, 1, 1, False)\n", ran.stderr


def test_a_logged_line_of_a_worker(tmp_path: Path, start: str) -> None:
    """It has the format, level and file that the caller has configured."""
    source = """
    import logging
    from entangle.process import process
    logging.basicConfig(filename="log", level=logging.INFO, format="<%(message)s>")

    @process
    def says(what):
        logging.debug("not this")
        logging.info(what)

    if __name__ == "__main__":
        says("a line")()
        logging.info("the end")
    """
    output_of(tmp_path, source, ENTANGLE_START=start)
    assert (tmp_path / "log").read_text() == "<a line>\n<the end>\n"


user = contextvars.ContextVar("user", default="nobody")


@thread
def seen_in_a_thread(value: str | None = None) -> tuple[str, int]:
    """Return what the body sees, then set values of its own."""
    seen = user.get(), decimal.getcontext().prec
    if value is not None:
        user.set(value)
        decimal.getcontext().prec = 99
    return seen


@thread
def both(*seen: object) -> set[object]:
    return set(seen)


@process
def seen_in_a_process() -> str:
    return user.get()


def test_a_thread_has_the_context_of_the_caller() -> None:
    """As in `asyncio.to_thread`: each call sees the caller's variables, and its own changes are not
    seen elsewhere."""

    def inside() -> None:
        user.set("caller")
        decimal.setcontext(decimal.Context(prec=7))
        assert both(*(seen_in_a_thread("own") for _ in range(5)))() == {("caller", 7)}
        assert both(*(seen_in_a_thread("own") for _ in range(5)))(proc=True).result() == {("caller", 7)}
        assert (user.get(), decimal.getcontext().prec) == ("caller", 7)

    contextvars.copy_context().run(inside)


def test_a_process_has_the_context_of_the_caller(start: str) -> None:
    """Also if the run begins in a thread of its own."""

    def inside() -> None:
        user.set("caller")
        assert seen_in_a_process()() == "caller"
        assert seen_in_a_process()(proc=True).result() == "caller"

    contextvars.copy_context().run(inside)
    assert seen_in_a_process()() == "nobody"
    assert sys.getrecursionlimit() > 0


@pytest.mark.parametrize("name", ["logging", "decimal", "socket", "multiprocessing.context"])
def test_a_module_that_another_thread_is_importing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is in `sys.modules` before its first line has run."""
    half = ModuleType(name)
    if name == "logging":
        half.root = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, half)
    assert inheritance.take().keys() >= {"loggers", "decimal", "socket timeout", "start method"}
