"""The next run of a session sees what the caller has changed, and nothing else."""

from __future__ import annotations

from pathlib import Path

from .callers import output_of

PROGRAM = """
import contextvars, decimal, faulthandler, gc, locale, logging, multiprocessing, os, resource, signal, socket, sys, tempfile
import threading, time, warnings
from entangle import session
from entangle.process import process

user = contextvars.ContextVar("user", default="nobody")

class Mine(UserWarning):
    pass

def umask():
    known = os.umask(0)
    os.umask(known)
    return known

LOOKS = {
    "environment": lambda: [os.environ.get(name) for name in ("MINE", "HOME", "TZ")],
    "time zone": lambda: time.tzname,
    "argv": lambda: list(sys.argv),
    "path": lambda: list(sys.path),
    "directory": os.getcwd,
    "umask": umask,
    "warnings": lambda: [(entry[0], entry[2].__name__) for entry in warnings.filters],
    "captured warnings": lambda: warnings.showwarning is logging._showwarning,
    "recursion": sys.getrecursionlimit,
    "digits": lambda: getattr(sys, "get_int_max_str_digits", int)(),
    "switch interval": sys.getswitchinterval,
    "bytecode": lambda: sys.dont_write_bytecode,
    "tracebacks": lambda: getattr(sys, "tracebacklimit", "none"),
    "faulthandler": faulthandler.is_enabled,
    "collector": lambda: [gc.isenabled(), gc.get_threshold()],
    "decimal": lambda: [decimal.getcontext().prec, decimal.getcontext().rounding, decimal.getcontext().traps[decimal.Inexact]],
    "locale": lambda: locale.setlocale(locale.LC_CTYPE),
    "sockets": socket.getdefaulttimeout,
    "loggers": lambda: [logging.root.level, logging.getLogger("a.b").level, logging.getLogger("quiet").disabled,
                        logging.getLogger("apart").propagate, logging.root.manager.disable],
    "handlers": lambda: [[type(handler).__name__, handler.level] for handler in logging.root.handlers],
    "handlers of others": lambda: [type(handler).__name__ for handler in logging.getLogger("a.b").handlers],
    "context": user.get,
    "start method": lambda: multiprocessing.get_start_method(allow_none=True),
    "signals": lambda: [str(signal.getsignal(number)) for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGALRM)],
    "mask": lambda: signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    "affinity": lambda: sorted(os.sched_getaffinity(0)),
    "limits": lambda: [resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)],
}

place = tempfile.mkdtemp()
CPUS = sorted(os.sched_getaffinity(0))
CORE, NOFILE = resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)
THRESHOLDS = gc.get_threshold()
FILTERS = list(warnings.filters)
HOME = os.environ["HOME"]
LOCALE = locale.setlocale(locale.LC_CTYPE)

def both(*done):
    for one in done:
        one()

def set_filters(filters):
    warnings.resetwarnings()
    list.extend(warnings.filters, filters)

def set_home(value):
    os.environ.pop("HOME", None)
    if value:
        os.environ["HOME"] = value

def set_zone(value):
    os.environ.pop("TZ", None)
    if value:
        os.environ["TZ"] = value
    time.tzset()

def set_prec(prec, rounding, inexact):
    decimal.getcontext().prec, decimal.getcontext().rounding = prec, rounding
    decimal.getcontext().traps[decimal.Inexact] = inexact

def change_loggers():
    logging.getLogger("a.b").setLevel(10)
    logging.getLogger("a.b").addHandler(logging.NullHandler())
    logging.getLogger("quiet").disabled = True
    logging.getLogger("apart").propagate = False
    logging.basicConfig(level=logging.WARNING + 1)
    logging.disable(3)

def change_loggers_back():
    logging.getLogger("a.b").setLevel(0)
    logging.getLogger("a.b").handlers.clear()
    logging.getLogger("quiet").disabled = False
    logging.getLogger("apart").propagate = True
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    logging.disable(0)

# Each: how it is changed, and how that is taken back.
CHANGES = {
    "a variable": (lambda: os.environ.update(MINE="set"), lambda: os.environ.pop("MINE")),
    "a variable that is gone": (lambda: set_home(None), lambda: set_home(HOME)),
    "time zone": (lambda: set_zone("XYZ-7"), lambda: set_zone(None)),
    "argv": (lambda: sys.argv.append("--mine"), sys.argv.pop),
    "path": (lambda: sys.path.insert(0, "/mine"), lambda: sys.path.remove("/mine")),
    "directory": (lambda: os.chdir(place), lambda: os.chdir("/")),
    "umask": (lambda: os.umask(0o027), lambda: os.umask(0o022)),
    "filters": (lambda: warnings.simplefilter("error", Mine), lambda: set_filters(FILTERS)),
    "no filters": (warnings.resetwarnings, lambda: set_filters(FILTERS)),
    "captured warnings": (lambda: logging.captureWarnings(True), lambda: logging.captureWarnings(False)),
    "recursion": (lambda: sys.setrecursionlimit(4321), lambda: sys.setrecursionlimit(1000)),
    "digits": (lambda: getattr(sys, "set_int_max_str_digits", int)(5000), lambda: getattr(sys, "set_int_max_str_digits", int)(4300)),
    "switch interval": (lambda: sys.setswitchinterval(0.0625), lambda: sys.setswitchinterval(0.005)),
    "bytecode": (lambda: setattr(sys, "dont_write_bytecode", not sys.dont_write_bytecode),
                 lambda: setattr(sys, "dont_write_bytecode", not sys.dont_write_bytecode)),
    "tracebacks": (lambda: setattr(sys, "tracebacklimit", 5), lambda: delattr(sys, "tracebacklimit")),
    "faulthandler": (faulthandler.enable, faulthandler.disable),
    "collector": (lambda: both(gc.disable, lambda: gc.set_threshold(701, 11, 12)),
        lambda: both(gc.enable, lambda: gc.set_threshold(*THRESHOLDS))),
    "decimal": (lambda: set_prec(5, decimal.ROUND_UP, True), lambda: set_prec(28, decimal.ROUND_HALF_EVEN, False)),
    "locale": (lambda: locale.setlocale(locale.LC_CTYPE, "C" if LOCALE != "C" else "C.UTF-8"),
        lambda: locale.setlocale(locale.LC_CTYPE, LOCALE)),
    "sockets": (lambda: socket.setdefaulttimeout(7.5), lambda: socket.setdefaulttimeout(None)),
    "loggers": (change_loggers, change_loggers_back),
    "context": (lambda: user.set("caller"), lambda: user.set("nobody")),
    "start method": (lambda: multiprocessing.set_start_method("spawn", force=True),
                     lambda: multiprocessing.set_start_method(None, force=True)),
    "a signal that is ignored": (lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)),
    "a signal that is not ignored": (lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
        lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)),
    "mask": (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
        lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])),
    "affinity": (lambda: os.sched_setaffinity(0, CPUS[:1]), lambda: os.sched_setaffinity(0, CPUS)),
    "a limit": (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, NOFILE[1])),
        lambda: resource.setrlimit(resource.RLIMIT_NOFILE, NOFILE)),
}

@process
def look():
    return os.getpid(), {name: look() for name, look in LOOKS.items()}

def differences(when):
    worker, found = look()()
    _, wanted = look.__wrapped__()
    workers.add(worker)
    for name in LOOKS:
        if found[name] != wanted[name]:
            print(when, name, found[name], "for", wanted[name])
    return wanted

workers = set()

if __name__ == "__main__":
    os.chdir("/")
    os.umask(0o022)
    with session(workers=1):
        first = differences("at first")
        for name, (change, back) in CHANGES.items():
            change()
            changed = differences(f"with {name} changed:")
            back()
            again = differences(f"with {name} changed back:")
            if changed == first and not (name == "affinity" and len(CPUS) == 1):
                print(name, "is no change")
            if again != first:
                print(name, "is not changed back", [(again[one], first[one]) for one in first if again[one] != first[one]])
        for change, _ in CHANGES.values():
            change()
        differences("with all changed:")
        for _, back in CHANGES.values():
            back()
        differences("with all changed back:")
    os.rmdir(place)
    print(len(workers), "worker")
"""


def test_each_change_reaches_the_next_run(tmp_path: Path) -> None:
    assert output_of(tmp_path, PROGRAM, PYTHONWARNINGS="ignore") == "1 worker\n"
