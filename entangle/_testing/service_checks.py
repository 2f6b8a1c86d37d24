"""The test kit for services: each check runs real calls through the service."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from entangle._services import OVER, Limits, Service, State, Submission
from entangle._services.caller import open_watchers
from entangle._shared.summaries import value_in_short
from entangle._shared.unrecorded import unrecorded
from entangle._tasks.option_values import check_path
from entangle._testing import service_bodies as bodies
from entangle.errors import (
    MissingModuleError,
    OptionError,
    ProcessTerminatedException,
    RemoteTraceback,
    StoreFullError,
    UnfitPythonError,
    UnpicklableError,
    add_note,
)
from entangle.process import process
from entangle.service import service as at
from entangle.task import Task

#: How soon after the platform knows of the end of a job the call must fail (seconds).
SOON = 10.0
#: A short lease, so that its check is short; and how long after it all must have ended (seconds).
LEASE, AFTER = 3.0, 12.0
#: How much longer than a cold call something may take before a check fails (seconds).
LONG = 60.0


#: Checks that change something that a process has only once. They run alone, after the others.
ALONE = ("prints", "full", "wrong_python")


class Through(Service):
    """Passes everything on to a service, counts what is asked of it, and may send messages twice.

    Checks run side by side; only the thread whose `turn` it is calls a method of the service.
    """

    def __init__(self, service: Service, turn: threading.Lock, twice: bool = False, python: Sequence[str] = (), version: int = 0) -> None:
        self.service, self._turn, self.twice, self._python, self._version = service, turn, twice, python, version
        self.submits: list[int] = []
        self.asked: list[int] = []
        self.extra: list[str] = []
        #: When the platform first said that a ticket is over (of the monotonic clock).
        self.knew: float | None = None
        for name in ("every", "grace", "leased"):
            setattr(self, name, getattr(service, name))

    @property
    def place(self) -> str:
        return self.service.place

    @property
    def python(self) -> Sequence[str]:
        return self._python or self.service.python

    def about(self) -> dict[str, Any]:
        """What the Python there says, with `version` added to its minor version: a wrong answer."""
        told = self.service.about() if not self._python else super().about()
        major, minor, *rest = told["python"]
        return {**told, "python": [major, minor + self._version, *rest]}

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        self.submits.append(len(messages))
        with self._turn:
            if self.twice:
                self.extra += self.service.submit([dataclasses.replace(message, id=f"{message.id}-again") for message in messages])
            return self.service.submit(messages)

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        self.asked.append(len(tickets))
        with self._turn:
            began = time.monotonic()
            states = self.service.outcomes(tickets)
        if self.knew is None and any(state.state == OVER for state in states.values()):
            self.knew = began
        return states

    def cancel(self, tickets: Collection[str]) -> None:
        with self._turn:
            self.service.cancel(tickets)

    def logs(self, ticket: str) -> str:
        with self._turn:
            return self.service.logs(ticket)

    def limits(self) -> Limits:
        return self.service.limits()

    def kept(self, ticket: str) -> str:
        return self.service.kept(ticket)

    def forget(self, tickets: Collection[str]) -> None:
        with self._turn:
            self.service.forget(tickets)


class Checks:
    """The checks. Each method whose name does not begin with `_` is one."""

    def __init__(self, service: Service, folder: str) -> None:
        self._service, self._folder = service, folder
        self._scratch = tempfile.mkdtemp(dir=folder)  # so that both sides see it
        self._turn = threading.Lock()
        self._seen = Through(service, self._turn)
        began = time.monotonic()
        self._at(bodies.same, service)(0)()
        #: How long a call takes that begins at once (seconds).
        self._cold = time.monotonic() - began

    def values(self) -> None:
        """Values come as they are: falsy ones, large ones, through layers below."""
        same = self._at(bodies.same)
        values: tuple[Any, ...] = (None, 0, "", [], False, {"a": (1, 2)}, os.urandom(3 << 20), ValueError("a value"))
        for value, got in zip(values, same.map(values)(), strict=True):
            _hold(type(got) is type(value) and repr(got) == repr(value), f"{value!r:.60} came back as {got!r:.60}")
        _hold(self._at(process(bodies.same))("in a process there")() == "in a process there", "a value through @process below")

    def many_at_once(self) -> None:
        """One request asks for the state of many calls."""
        through = self._through()
        count, began = 20, time.monotonic()
        _hold(self._at(bodies.same, through).map(range(count))() == list(range(count)), "values came in another order")
        rounds = (time.monotonic() - began) / through.every + 2
        _hold(len(through.asked) <= rounds, f"{len(through.asked)} requests in {rounds:.0f} rounds: ask for all tickets in one")

    def errors(self) -> None:
        """Errors of bodies come as they are. An error names what cannot travel, or be imported
        there."""
        error = self._raises(ValueError, self._at(bodies.failing)("who says so"), "who says so")
        _hold(isinstance(error.__cause__, RemoteTraceback), "the traceback of the body is missing")
        self._raises(UnpicklableError, self._at(bodies.unpicklable)(), "the value of task 'unpicklable'")
        self._raises(UnpicklableError, self._at(bodies.same)(threading.Lock()), "argument 1 of task 'same'")
        self._raises(MissingModuleError, self._at(bodies.importing)("nobody_has_this_module"), "nobody_has_this_module")

    def prints(self) -> None:
        """What bodies print is shown, each line with its place."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self._at(bodies.printed)("as it was printed")()
        for shown in (out, err):
            _hold(f"[{self._service.place} printed] as it was printed\n" in shown.getvalue(), f"shown: {shown.getvalue()!r}")

    def killed(self) -> None:
        """A killed job is an error soon, with its ticket, the reason and the end of its log."""
        through, began = self._through(), time.monotonic()
        error = self._raises(ProcessTerminatedException, self._at(bodies.dying, through)(0.2), "has given no outcome")
        took = time.monotonic() - (through.knew or began + self._cold)
        _hold("last words" in str(error), f"the end of its log is missing: {error}")
        _hold("no outcome: " in str(error), f"the platform's reason is missing: {error}")
        _hold(took < SOON + self._cold, f"it took {took:.0f} s from when the platform knew")

    def killed_and_tried_again(self) -> None:
        """A job that was killed is submitted again where the task says retry."""
        _hold(
            self._at(process(retry=1, sleep=0)(bodies.dying_once))(self._path("attempts"))() == "second",
            "not the value of the second attempt",
        )

    def delivered_twice(self) -> None:
        """A message that is delivered twice runs once."""
        path = self._path("delivered")
        through = self._through(twice=True)
        self._at(bodies.beginning, through)(path)()
        self._wait(lambda: all(state.state == OVER for state in through.outcomes(through.extra).values()), "the second delivery to end")
        _hold(os.path.getsize(path) == 1, f"the body ran {os.path.getsize(path)} times")

    def cancelled(self) -> None:
        """A job that nobody waits for any more is ended there; `cancel` alone ends a job, too."""
        path = self._path("cancelled")
        future = self._at(bodies.marking)(path, 600.0)(proc=True)
        self._wait(lambda: os.path.exists(path), "its body to begin")
        future.cancel()
        self._wait_still(path, SOON)
        sleeps = (*self._service.python, "-c", "import time; time.sleep(600)")
        with self._turn:
            (ticket,) = self._service.submit([Submission("cancelled", "sleeps", sleeps)])
        self._seen.cancel([ticket])
        self._wait(lambda: ticket not in (states := self._seen.outcomes([ticket])) or states[ticket].state == OVER, "cancel to end a job")

    def full(self) -> None:
        """A mailbox without room is one clear error at once."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        call = self._at(bodies.same)(os.urandom(8 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
        try:
            self._raises(StoreFullError, call, f"the mailbox {self._folder}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def wrong_python(self) -> None:
        """A Python of another version than `about` says is an error before the body begins."""
        through = self._through(python=["/nowhere/python3"])
        self._raises(UnfitPythonError, self._at(bodies.same, through)(1), "/nowhere/python3")
        _hold(not through.submits, "versions are compared before anything is submitted")
        if list(sys.version_info[:2]) == self._service.about()["python"][:2]:
            path = self._path("unfit")
            with _pretending(1):
                self._raises(UnfitPythonError, self._at(bodies.beginning, self._through(version=1))(path), "its Python is")
            _hold(not os.path.exists(path), "its body has begun")

    def too_long(self) -> None:
        """A task with a longer timeout than the service allows is refused."""
        if (life := self._service.limits().life) is not None:
            self._raises(OptionError, self._at(process(timeout=life + 1)(bodies.same))(1), "longer than")

    def caller_gone(self) -> None:
        """If the caller is killed, what runs ends by itself, and what waits never begins."""
        if not self._service.leased:
            return
        path = self._path("orphan")
        with self._caller(path, 600.0) as caller:
            self._wait(lambda: os.path.exists(path), "its body to begin", caller)
            caller.kill()
            caller.wait()
        self._wait_still(path, LEASE + AFTER)

    def clocks_differ(self) -> None:
        """A clock that is an hour off, on either side, ends nothing and lets nothing live on."""
        if not self._service.leased:
            return
        hour = 3600.0
        with contextlib.ExitStack() as stack:
            callers = {off: stack.enter_context(self._caller(self._path(f"clock{off:+.0f}"), 2 * LEASE, off)) for off in (hour, -hour)}
            for off, caller in callers.items():
                out, _ = caller.communicate(timeout=120)
                _hold(caller.returncode == 0 and out.endswith(b"'done'\n"), f"with a clock that is {off:+.0f} s off: {out.decode()}")

    # Tools of the checks --------------------------------------------------------------------

    def _at(self, function: Any, service: Service | None = None) -> Task[..., Any]:
        return at(service or self._seen, mailbox=self._folder)(function)

    def _through(self, **changes: Any) -> Through:
        """The service, wrapped for one check alone."""
        return Through(self._service, self._turn, **changes)

    def _path(self, name: str) -> str:
        return os.path.join(self._scratch, name)

    def _raises(self, kind: type[BaseException], call: Any, text: str) -> BaseException:
        try:
            got = call.run(timeout=LONG + 3 * self._cold)
        except kind as error:
            _hold(text in str(error), f"{text!r} is not in {type(error).__name__}: {error}")
            return error
        except Exception as error:
            raise AssertionError(f"{kind.__name__} was expected, and {type(error).__name__} came: {error}") from error
        raise AssertionError(f"{kind.__name__} was expected, and the value {got!r:.60} came")

    def _wait(self, condition: Callable[[], bool], what: str, child: subprocess.Popen[bytes] | None = None) -> None:
        until = time.monotonic() + LONG + self._cold
        while not condition():
            _hold(child is None or child.poll() is None, f"the caller has ended before {what}")
            _hold(time.monotonic() < until, f"waited in vain for {what}")
            time.sleep(0.05)

    def _wait_still(self, path: str, seconds: float) -> None:
        """Wait until nobody writes into a file any more."""
        until, size, since = time.monotonic() + seconds, -1, time.monotonic()
        while time.monotonic() - since < 1.0:
            _hold(time.monotonic() < until, f"it runs on {seconds:.0f} s later")
            time.sleep(0.1)
            now = os.path.getsize(path) if os.path.exists(path) else 0
            if now != size:
                size, since = now, time.monotonic()

    @contextlib.contextmanager
    def _caller(self, path: str, seconds: float, off: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
        """Another process that calls the service, with a short lease and a mailbox of its own."""
        os.mkdir(folder := f"{path}-mailbox")
        with open(f"{path}-service", "wb") as file:
            pickle.dump((self._service, folder), file)
        environment = {
            **os.environ,
            "ENTANGLE_LEASE": str(LEASE),
            "ENTANGLE_RECORD": "0",
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        command = [sys.executable, "-m", "entangle._testing.service_caller", file.name, path, str(seconds), str(off)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as caller:
            try:
                yield caller
            finally:
                caller.kill()


def _hold(condition: bool, otherwise: str) -> None:
    """Assert, under `python -O` as well."""
    if not condition:
        raise AssertionError(otherwise)


@contextlib.contextmanager
def _pretending(minor: int) -> Iterator[None]:
    """Write messages as if this were another minor version: as pickles for that one."""
    real = sys.version_info
    sys.version_info = (real[0], real[1] + minor, *real[2:])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.version_info = real


def checks() -> list[str]:
    """The names of all checks, in their order."""
    return [name for name in vars(Checks) if not name.startswith("_")]


@contextlib.contextmanager
def _removed(folder: str) -> Iterator[None]:
    """Remove the folder at the end, and end the threads that look after calls there."""
    try:
        yield
    finally:
        open_watchers.close_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def check_service(service: Service, *, mailbox: str | os.PathLike[str], only: Sequence[str] = ()) -> None:
    """Check a service of your own with real calls.

    `mailbox` is a folder that both sides see; what it is used for is removed. `only` names the
    checks to run; by default all do, most of them side by side, which takes about 20 seconds and
    the time in which the service starts some 60 jobs. Its runs are not remembered. Raises
    AssertionError with the name of the check and what is wrong; its notes have what other checks
    have found. Raises OptionError for bad options.

        def test_my_cluster(tmp_path):
            check_service(MyCluster(queue="short"), mailbox=tmp_path)
    """
    if isinstance(only, str):
        raise OptionError(f"check_service: only={only!r}; it must be a list of names of checks")
    unknown = sorted(set(only) - set(checks()))
    if unknown:
        raise OptionError(f"check_service: there is no check {unknown[0]!r}; there are {', '.join(checks())}")
    if not isinstance(service, Service):
        raise OptionError(f"check_service: {value_in_short(service)} is no entangle.service.Service")
    check_path("check_service", "mailbox", mailbox)
    folder = tempfile.mkdtemp(dir=os.fspath(mailbox))
    with unrecorded(), _removed(folder):
        kit, chosen = Checks(service, folder), list(only or checks())
        wrong: dict[str, AssertionError] = {}

        def check(name: str) -> None:
            try:
                getattr(kit, name)()
            except Exception as error:
                wrong[name] = AssertionError(f"{service.place}, check {name}: {error}")
                wrong[name].__cause__ = error

        threads = [threading.Thread(target=check, args=(name,), name=f"check-{name}") for name in chosen if name not in ALONE]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in chosen:
            if name in ALONE:
                check(name)
    for first, *others in [[wrong[name] for name in chosen if name in wrong]] if wrong else []:
        for other in others:
            add_note(first, str(other))
        raise first
