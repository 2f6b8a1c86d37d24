"""Services: a call is sent as a message, and its outcome arrives later. The service here is a real
one: its jobs are processes of this machine. The whole test kit runs with the tests of the
engines."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle._services import envelope
from entangle._services.mailbox import KEPT, LAPSED, FarFolder, Folder
from entangle._testing import service_bodies as bodies
from entangle._worker import away_worker
from entangle.errors import OptionError, ProcessTimeoutException, ProtocolError, UnreachableError
from entangle.process import process
from entangle.service import RUNNING, State, service
from entangle.testing import check_service
from entangle.thread import thread

from .house import HOUSE
from .local_jobs import LocalJobs
from .shown_blocks import documentation


def test_calls_run_through_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves are not recorded as runs."""
    from entangle.records import runs

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    assert thread(len)("abc")() == 3
    check_service(LocalJobs(str(tmp_path)), mailbox=tmp_path, only=["errors", "delivered_twice"])
    assert [run.name for run in runs()] == ["len"]


def test_records_know_the_job_of_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle import records

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    jobs = LocalJobs(str(tmp_path))
    assert service(jobs, mailbox=tmp_path)(len)("abc")() == 3
    (node,) = records.run("last").nodes
    assert node.place == jobs.place
    assert node.ticket
    assert node.times.queued > 0


@pytest.mark.parametrize("below", [True, False], ids=["retry-below", "retry-above"])
def test_attempts_know_their_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: bool) -> None:
    """The service or the engine starts another job in place of one that dies."""
    from entangle import records

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    there, again = service(LocalJobs(str(tmp_path)), mailbox=tmp_path), thread(retry=1, sleep=0)
    assert (there(again(bodies.dying_once)) if below else again(there(bodies.dying_once)))(str(tmp_path / "tries"))() == "second"
    (node,) = records.run("last").nodes
    ((place, ticket),) = filter(None, node.tried_at)
    assert (place, node.attempts) == ("local", 2)
    assert ticket
    assert ticket != node.ticket
    assert "has given no outcome: killed by signal 9" in node.tries[0]
    assert node.times.tried > 0


def test_calls_whose_messages_are_written_hold_up_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ready calls are submitted together, however large their arguments are."""
    monkeypatch.setattr(away_worker, "HELD", 1)

    def meets(path: str, name: int, content: bytes) -> int:
        import os
        import time

        with open(os.path.join(path, str(name)), "wb") as file:
            file.write(content)
        ends = time.monotonic() + 60
        while (there := len(os.listdir(path))) < 3 and time.monotonic() < ends:
            time.sleep(0.02)
        return there

    (tmp_path / "met").mkdir()
    there = service(LocalJobs(str(tmp_path)), mailbox=tmp_path)(meets)
    assert entangle.gather(*(there(str(tmp_path / "met"), x, bytes(100_000)) for x in range(3)))() == [3, 3, 3]


def test_the_kit_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"no check 'kiled'; there are values, "):
        check_service(LocalJobs(str(tmp_path)), mailbox=tmp_path, only=["kiled"])
    with pytest.raises(AssertionError, match="check killed: the platform's reason is missing"):
        check_service(Silent(str(tmp_path)), mailbox=tmp_path, only=["killed"])
    monkeypatch.setattr("entangle._testing.service_checks.LONG", 3.0)
    with pytest.raises(AssertionError, match="check cancelled: waited in vain for cancel to end a job"):
        check_service(Stubborn(str(tmp_path)), mailbox=tmp_path, only=["cancelled"])
    LocalJobs(str(tmp_path)).cancel(asked)
    with pytest.raises(AssertionError, match="check killed: ProcessTerminatedException was expected, and RunTimeoutException came"):
        check_service(Endless(str(tmp_path)), mailbox=tmp_path, only=["killed"])


class Silent(LocalJobs):
    """Does not say why a job has ended."""

    def outcomes(self, tickets: Any) -> Any:
        import dataclasses

        return {ticket: dataclasses.replace(state, reason="") for ticket, state in super().outcomes(tickets).items()}


class Stubborn(LocalJobs):
    """Ignores `cancel`; its jobs end by themselves."""

    def cancel(self, tickets: Any) -> None:
        asked.update(tickets)


#: The jobs that it should have ended; the test ends them.
asked: set[str] = set()


class Endless(LocalJobs):
    """Reports ended jobs as running."""

    def outcomes(self, tickets: Any) -> Any:
        return {ticket: State(RUNNING) for ticket in super().outcomes(tickets)}


def test_outcomes_that_are_no_states_fail_at_once(tmp_path: Path) -> None:
    class Wordy(LocalJobs):
        def outcomes(self, tickets: Any) -> Any:
            return dict.fromkeys(tickets, "running")

    call = service(Wordy(str(tmp_path)), mailbox=tmp_path)(time.sleep)(600)
    with pytest.raises(UnreachableError, match="outcomes has failed: TypeError: it must give a State for each ticket, and gave 'running'"):
        call()


def test_a_call_past_its_deadline_says_which_job_it_was(tmp_path: Path) -> None:
    call = process(timeout=1)(service(LocalJobs(str(tmp_path)), mailbox=tmp_path)(time.sleep))(600)
    with pytest.raises(ProcessTimeoutException, match=r"its timeout of 1 s .*; at local it was \d+-\d+"):
        call()


def test_a_submission_that_fails_fails_its_calls(tmp_path: Path) -> None:
    class Refusing(LocalJobs):
        def submit(self, messages: Any) -> Any:
            raise RuntimeError("no such queue")

    with pytest.raises(UnreachableError, match="local: submit has failed: RuntimeError: no such queue"):
        service(Refusing(str(tmp_path)), mailbox=tmp_path)(len)("abc")()


def test_why_calls_wait_is_known(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle._services.caller.open_watchers import watcher_of

    monkeypatch.setattr("entangle._services.caller.watcher.WAITED", 0.1)
    jobs = LocalJobs(str(tmp_path), jobs=0)
    watcher = watcher_of(jobs, str(tmp_path))
    call = service(jobs, mailbox=tmp_path)(len)("abc")
    with entangle.progress():
        future = call.future()

    def start() -> None:
        with contextlib.suppress(Exception):
            future.entangle()

    starter = threading.Thread(target=start)
    starter.start()
    until = time.monotonic() + 60
    while [reason for _, reason in watcher.waiting()] != ["pending because 0 jobs run already"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    shown = ""
    told = ("len 0/1 · 1 pending because 0 jobs run already · ? left\n", "1 job is pending because 0 jobs run already\n")
    while not all(line in shown for line in told):
        assert time.monotonic() < until, shown
        shown += capfd.readouterr().err
        time.sleep(0.05)
    future.cancel()
    watcher.close()
    starter.join(60)
    assert not starter.is_alive()


def test_a_mailbox_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    from entangle._services.caller.open_watchers import close_all

    there = service(LocalJobs(str(tmp_path)), mailbox=tmp_path / "box")(abs)
    assert there(-1)() == 1
    shutil.rmtree(tmp_path / "box")
    assert there(-2)() == 2
    close_all(str(tmp_path / "box"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mailbox": 3}, "mailbox=3; it must be the path of a folder"),
        ({"mailbx": "x"}, "mailbox"),
    ],
)
def test_options_are_checked_at_decoration(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        service(LocalJobs(""), **options)
    with pytest.raises(OptionError, match="is no entangle"):
        service("slurm")  # type: ignore[arg-type]


# --- the mailbox ----------------------------------------------------------------------------------


def test_the_first_outcome_stays_and_a_message_is_claimed_once(tmp_path: Path) -> None:
    box = Folder(str(tmp_path))
    there = FarFolder(box.address)
    box.send("1-1", envelope.written({"n": 1}, [[b"a", b"b"], [b""]]))
    assert there.claim("1-1", "one")
    assert not there.claim("1-1", "two")
    assert there.message("1-1") == ({"n": 1}, [bytearray(b"ab"), bytearray()])
    assert there.put("1-1", envelope.written({"first": True}, []))
    assert not there.put("1-1", envelope.written({"first": False}, []))
    assert box.arrived() == {"1-1"}
    assert box.take("1-1") == ({"first": True}, [])
    box.discard("1-1")
    assert there.claim("1-1", "three")
    assert there.message("1-1") is None
    assert box.withdraw("2-1")
    assert not there.claim("2-1", "one")
    box.close()
    assert list(tmp_path.iterdir()) == []
    assert there.lease() is None
    assert not there.claim("3-1", "one")
    assert not there.put("1-1", [b""])


@pytest.mark.parametrize("data", [b"", b"entangle-1\n", b"entangle-1\n\0\0\0\1", b"entangle-1\n\xff\xff\xff\xff", b"x" * 100])
def test_a_damaged_envelope_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "it").write_bytes(data)
    with open(tmp_path / "it", "rb") as file, pytest.raises(ProtocolError):
        envelope.read(file)


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="file/box cannot be used: Not a directory; name a folder"):
        Folder(str(tmp_path / "file" / "box"))


def test_boxes_of_dead_callers_are_removed_later(tmp_path: Path) -> None:
    boxes = {}
    for leased in (True, False):
        for age in (0.0, 2 * LAPSED, 2 * KEPT):
            box = Folder(str(tmp_path), leased)
            dead = box.address.replace(f"/p{os.getpid()}-", "/p4194999-")
            os.rename(box.address, dead)
            changed = os.path.join(dead, "lease" if leased else "outcomes")
            os.utime(changed, (time.time() - age,) * 2)
            boxes[leased, age] = dead
    Folder(str(tmp_path)).close()
    left = {which for which, path in boxes.items() if os.path.exists(path)}
    assert left == {(True, 0.0), (False, 0.0), (False, 2 * LAPSED)}


def test_the_page_shows_the_service_that_is_tested() -> None:
    page = (documentation() / "services.md").read_text(encoding="utf-8")
    code = (HOUSE / "tests" / "local_jobs.py").read_text(encoding="utf-8")
    assert code[code.index("from __future__") :] in page
