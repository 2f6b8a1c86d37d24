"""The next run does not see what a body has changed in a warm worker."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle import records, session
from entangle._warm.session import Session
from entangle.process import process

from .changed_state import CHANGES, PARTING, changed, state


@pytest.fixture
def opened() -> Iterator[Session]:
    with session(workers=1) as found:
        yield found


def seen_after(kind: str, before: dict[str, str]) -> tuple[bool, dict[str, tuple[str, str]]]:
    """Whether the same worker continues after this change, and what the next run sees of it."""
    worker, there, unseen = changed(kind)()
    assert unseen or there != before
    again, found = state()()
    seen = {name: (found[name], before[name]) for name in before if found[name] != before[name]}
    if seen:  # replace the worker, so that only this kind fails
        os.kill(again, signal.SIGKILL)
    return again == worker, seen


def test_each_change_is_put_back(opened: Session) -> None:
    _, before = state()()
    found = {kind: seen_after(kind, before) for kind in CHANGES}
    assert {kind: seen for kind, seen in found.items() if seen != (True, {})} == {}


#: The reasons for which workers retire after a change that cannot be undone. Kinds that are not
#: listed: CHANGED.
REASONS = {
    "lowered limit": "a body has lowered limits that cannot be raised again",
    "niceness": "a body has lowered its priority, which cannot be raised again",
    "many descriptors closed": "a body has closed descriptors of the worker, or ended it by os._exit(0)",
    "many descriptors used again": "a body has closed descriptors of the worker, or ended it by os._exit(0)",
}
CHANGED = "a body has changed its user, groups, session or root directory"


def test_a_worker_that_cannot_put_a_change_back_is_replaced(opened: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    _, before = state()()
    found = {kind: seen_after(kind, before) for kind in PARTING}
    assert {kind: seen for kind, seen in found.items() if seen != (False, {})} == {}
    ends = [ended.reason for run in records.runs(None, name="changed")[::-1] for ended in run.retirements]
    assert [end.partition(" (")[0] for end in ends] == [REASONS.get(kind, CHANGED) for kind in PARTING]


@process
def drawn(seeds: bool) -> list[float]:
    import numpy

    if seeds:
        random.seed(7)
        numpy.random.seed(7)
    return [random.random(), float(numpy.random.random())]


def test_random_generators_are_seeded_anew(opened: Session) -> None:
    assert drawn(True)() == drawn(True)()
    found = [drawn(False)() for _ in range(3)]
    assert len({number for numbers in found for number in numbers}) == 6


def test_a_warning_is_shown_in_each_run(opened: Session, capfd: pytest.CaptureFixture[str]) -> None:
    """Python shows a warning once for each place in the code, and remembers that."""
    for _ in range(2):
        warned()()
        assert "look out" in capfd.readouterr().err


@process
def warned() -> None:
    import warnings

    warnings.simplefilter("default")
    warnings.warn("look out", stacklevel=1)


def test_what_is_left_in_a_buffer_belongs_to_its_run(opened: Session, capfd: pytest.CaptureFixture[str]) -> None:
    changed("half a line")()
    assert capfd.readouterr().out == "half a line"


def test_the_run_is_heard_though_a_body_has_closed_what_leads_to_its_owner(opened: Session) -> None:
    """Even if the body runs long after closing them."""
    for _ in range(3):
        assert lingers_without_descriptors()() == "there"


@process
def lingers_without_descriptors() -> str:
    os.closerange(64, 1024)
    time.sleep(0.05)
    return "there"
