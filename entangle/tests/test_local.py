"""`@local`: this machine, and with `cpus` a number of its CPUs."""

from __future__ import annotations

import os
from pathlib import Path

from entangle.local import local
from entangle.process import process
from entangle.thread import thread

from . import bodies
from .evidence import most_at_once, notes


def test_local_says_where_and_nothing_more() -> None:
    pid = process(local(bodies.pid))
    assert pid()() != os.getpid()
    assert thread(local(bodies.pid))()() == os.getpid()
    assert len(process(local(lambda: os.sched_getaffinity(0)))()()) == len(os.sched_getaffinity(0))


def test_local_with_cpus_is_a_scheduler(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    spanned = process(timeout=60)(local(cpus=1)(bodies.spanned))
    process(bodies.gather)(*(spanned(log) for _ in range(5)))()
    assert len(notes(log)) == 5
    assert most_at_once(log) == 1
