"""The far program, one for all services: it claims a message, runs it once, and puts its outcome.

The main thread watches the lease of the caller, and a thread runs the call, as in an agent. If the
caller is gone, if nobody waits for the call any more, or on SIGTERM, the program ends, with all
that the call has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from entangle import _run
from entangle._remote.agent import family, imports
from entangle._remote.wire.frames import Segments
from entangle._remote.wire.parts import PICKLE
from entangle._services import envelope
from entangle._services.mailbox import FarFolder, FarMailbox
from entangle.errors import StoreFullError

#: How often it looks after its caller, in parts of the time that the lease lasts.
LOOKS = 10
#: When it looks for the first time (seconds), then more and more rarely.
FIRST = 0.5


def run(address: str, name: str, lasts: float, codes: Callable[[str], Any], given: dict[str, Any] | None) -> NoReturn:
    """Run the message of this name in the mailbox at this address, then end the process.

    The lease of the caller lasts so many seconds; 0 if there is none. `codes` gives what lies among
    the code of the mailbox. `given` is the list of addresses, where the mailbox has one.
    """
    if given is not None:
        from entangle._services.far.addresses import FarAddresses

        try:
            FarProgram(FarAddresses(address, given), name, lasts, codes).run()
        except OSError as error:
            if (status := getattr(error, "exit_status", 0)) == 0:
                raise
            os.write(2, f"entangle: {error}\n".encode())
            os._exit(status)  # what a service is told by, where there is no log
    FarProgram(FarFolder(address), name, lasts, codes).run()


class FarProgram:
    """One message, from the claim to the outcome."""

    def __init__(self, mailbox: FarMailbox, name: str, lasts: float, codes: Callable[[str], Any]) -> None:
        self._mailbox, self._name, self._lasts, self._codes = mailbox, name, lasts, codes
        self._over = threading.Event()
        #: Whether it is ended before its call: then there is no outcome.
        self._ending = False
        self._cancel: Callable[[], None] | None = None
        self._status = 1
        self._pid = os.getpid()
        self._began = time.monotonic()

    def run(self) -> NoReturn:
        """Claim, run, put, end."""
        family.lead_family()
        threading.Thread(target=_import_engine, name="entangle-import", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._end("it was told to end"))
        # The caller keeps the records of what runs here (entangle._records.travels).
        _run.observers.clear()
        mailbox, name, lasts = self._mailbox, self._name, self._lasts
        # The body of a caller that is gone must not begin, so this comes before the claim.
        if lasts and not mailbox.lease_is_fresh(lasts) and not self._changes(mailbox.lease(), lasts):
            self._end("the caller is gone: its lease has not changed")
        if not mailbox.claim(name, f"host {os.uname().nodename}, pid {os.getpid()}"):
            self._end(f"message {name} was claimed before, or its caller has ended; it is not run here", 0)
        # Only now: a message whose end is known is removed before its claim.
        letter = mailbox.message(name)
        if letter is None:
            mailbox.unclaim(name)
            self._end(f"there is no message {name} any more: its end is known", 0)
        out, err = mailbox.prints(name)
        os.dup2(out, 1)
        os.dup2(err, 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for fd in (out, err, null):
            os.close(fd)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
        threading.Thread(target=self._work, args=letter, name="entangle-call", daemon=True).start()
        del letter
        self._look_after()
        self._end("", self._status)

    def _changes(self, lease: object, seconds: float) -> bool:
        """Whether the lease changes in this time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(seconds / LOOKS)
            now = self._mailbox.lease()
            if now is None:
                return False
            if now != lease:
                return True
        return False

    def _look_after(self) -> None:
        """Wait for the end of the call. End it if nobody waits for it any more."""
        mailbox, name, lasts = self._mailbox, self._name, self._lasts
        lease, changed = object(), time.monotonic()  # the first look has something new: bodies are short
        pause, longest = FIRST, min(mailbox.seldom, lasts / LOOKS) if lasts else mailbox.seldom
        while not self._over.wait(min(pause, longest)):
            pause *= 2
            now = mailbox.lease() if lasts else lease
            if lasts and now is None:  # what is put now would never be removed
                mailbox.unclaim(name)
                self._end("the caller has ended")
            mailbox.live(name)
            if mailbox.is_cancelled(name):
                self._end("the call was cancelled")
            if not lasts:
                continue
            if now != lease:
                lease, changed = now, time.monotonic()
            elif time.monotonic() - changed > lasts:
                self._end(f"the caller is gone: its lease has not changed for {lasts:.0f} s")

    # The call -------------------------------------------------------------------------------

    def _work(self, head: dict[str, Any], parts: list[bytearray]) -> None:
        try:
            given, answer, records = self._perform(head, parts)
        except BaseException as error:  # a bug of ours, or no memory: the call needs an outcome
            given, answer, records = False, [[_plain(error)]], []
        parts.clear()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        if self._ending:  # the error would be that of a cancelled call, and the caller must know why
            return
        try:
            self._put(head, given, answer, records)
            self._status = 0
        except BaseException as error:
            traceback.print_exc()
            self._status = getattr(error, "exit_status", 1)  # as of a role that may no more
        self._over.set()

    def _perform(self, head: dict[str, Any], parts: list[bytearray]) -> tuple[bool, list[Segments], list[bytes]]:
        there, here = tuple(head["python"][:2]), sys.version_info[:2]
        if head["mode"] == PICKLE and there != here:
            text = (
                f"its Python is {'.'.join(map(str, here))} ({sys.executable}), and not {'.'.join(map(str, there))} as was found before: "
                f"another one is started there; name it with python=…"
            )
            return False, [[json.dumps({"text": text, "where": _where(), "short": text, "unfit": True}).encode()]], []
        self._bring_modules(head)
        from entangle._remote.agent.performing import perform

        def began(cancel: Callable[[], None]) -> None:
            self._cancel = cancel

        return perform(parts, began)

    def _bring_modules(self, head: dict[str, Any]) -> None:
        """Have modules of the caller's project found here, and in the workers of the call."""
        from entangle._remote.agent.module_server import ModuleServer
        from entangle._run import python_command
        from entangle._worker import janitor

        modules = self._codes(head["modules"])
        for finder in imports.finders:
            finder.known.update({name: known for name, known in modules.items() if (name.partition(".")[0] in imports.OURS) == finder.ours})
            finder.ask = lambda name: self._answer(name, head["instead"])
        janitor.watch_for_children()
        python_command.prelude = ModuleServer(lambda name: self._answer(name, head["instead"])).prelude()

    def _answer(self, name: str, instead: dict[str, str]) -> Any:
        """What the caller would answer if it could be asked: all that it knows has come already."""
        if os.getpid() != self._pid or name.startswith(imports.MODULES_ALONE):
            return None
        if name == imports.SOURCES:
            return self._codes("source")
        if name.startswith(imports.SOURCE_OF):
            name = name[len(imports.SOURCE_OF) :]
            found = self._codes("source").get(name)
            return {name: found} if found is not None else None
        top = name.partition(".")[0]
        return (
            f"module {top!r} is not installed there, and with a message come modules of the project alone; "
            f"install it for that Python: python -m pip install {instead.get(top, top)!r}"
        )

    def _put(self, head: dict[str, Any], given: bool, answer: list[Segments], records: list[bytes]) -> None:
        """Put the outcome; where it finds no room, an error that says so."""
        about = {
            "given": given,
            "answer": len(answer),
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "seconds": time.monotonic() - self._began,
        }
        full: StoreFullError | None = None
        for kept in (records, []) if records else ([],):  # rather no records than no value
            try:
                self._mailbox.put(self._name, envelope.written(about, [*answer, *([record] for record in kept)]))
                return
            except StoreFullError as error:
                full = error
        assert full is not None
        size = sum(memoryview(piece).nbytes for part in answer for piece in part)
        what = "value" if given else "error"
        short = f"the {what} of task {head['name']!r}, of {size:,} bytes, does not fit: {full.strerror}"
        about.update(given=False, answer=1, full=True)
        self._mailbox.make_room(self._name)
        told = json.dumps({"text": short, "where": _where(), "short": short}).encode()
        self._mailbox.put(self._name, envelope.written(about, [[told]]))

    # The end --------------------------------------------------------------------------------

    def _end(self, why: str, status: int = 1) -> NoReturn:
        """End this process, and every process that it and its call have started."""
        if os.getpid() != self._pid:
            os._exit(1)
        try:
            if why:
                os.write(2, f"entangle: {why}\n".encode())
            if self._cancel is not None and not self._over.is_set():
                self._ending = True
                threading.Thread(target=self._cancel, daemon=True).start()
            family.leave_nothing()
        finally:
            os._exit(status)


def _import_engine() -> None:
    """Import what runs calls, while the mailbox is asked. Whoever needs it says what is wrong."""
    with contextlib.suppress(Exception):
        import entangle._remote.agent.performing  # noqa: F401


def _where() -> str:
    return f"host {os.uname().nodename}, pid {os.getpid()}"


def _plain(error: BaseException) -> bytes:
    """An error as text."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return json.dumps({"text": text, "where": _where(), "short": f"{type(error).__name__}: {error}"}).encode()
