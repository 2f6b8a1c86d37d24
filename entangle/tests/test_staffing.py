"""How many workers a run starts and retires: each line of numbers is one case."""

from __future__ import annotations

import pytest

from entangle._run import staffing
from entangle._run.staffing import More, Start
from entangle.flow import FRESH, PROCESS


@pytest.mark.parametrize(
    ("ready", "cap", "right", "workers"),
    [
        (512, 512, 2, 2),  # as many as CPUs
        (1, 512, 2, 1),  # no more than there is to do
        (512, 3, 8, 3),  # no more than the cap of the run
        (512, 512, 0, 1),  # no right to a CPU: one starts all the same
    ],
)
def test_the_first_workers(ready: int, cap: int, right: int, workers: int) -> None:
    assert staffing.first(ready, cap, right) == workers


@pytest.mark.parametrize(
    ("ready", "idle", "count", "cap", "right", "start"),
    [
        (0, 0, 0, 8, 2, Start(0, 0)),  # nothing to do
        (1, 1, 1, 8, 2, Start(0, 0)),  # an idle worker takes it
        (2, 1, 1, 8, 2, Start(1, 1)),  # the idle worker may be unable to take either
        (2, -1, 2, 8, 2, Start(0, 2)),  # more workers were woken than were idle
        (1, 0, 0, 8, 0, Start(1, 0)),  # the first worker needs no right
        (5, 0, 0, 8, 2, Start(2, 3)),  # as many as the right at once, the others with cookies
        (5, 0, 1, 8, 2, Start(1, 4)),
        (5, 0, 2, 8, 2, Start(0, 5)),
        (5, 0, 2, 4, 2, Start(0, 2)),  # never more than the cap
        (5, 0, 4, 4, 8, Start(0, 0)),
        (5, 0, 6, 4, 8, Start(0, 0)),  # if the cap has shrunk, none is retired
        (3, 0, 1, 8, 8, Start(3, 0)),  # the right suffices for all
    ],
)
def test_workers_for_ready_nodes(ready: int, idle: int, count: int, cap: int, right: int, start: Start) -> None:
    assert staffing.for_ready(ready, idle, count, cap, right) == start


@pytest.mark.parametrize(
    ("ready", "running", "count", "right", "processes"),
    [
        (1, 0, 0, 2, 1),  # one for each node
        (9, 0, 0, 2, 3),  # one more than the right
        (9, 0, 0, 0, 2),  # no right counts as a right to one
        (9, 2, 3, 2, 0),  # enough have started or are starting
        (1, 2, 2, 4, 1),  # running processes take no second node
        (0, 1, 3, 4, 0),  # too many have started: they end by themselves
    ],
)
def test_processes_for_nodes_that_want_their_own(ready: int, running: int, count: int, right: int, processes: int) -> None:
    assert staffing.for_fresh(ready, running, count, right) == processes


@pytest.mark.parametrize(("right", "cpus"), [(0, 0.5), (1, 0.5), (2, 1.5), (8, 7.5)])
def test_what_workers_use_that_do_not_wait(right: int, cpus: float) -> None:
    assert staffing.enough(right) == cpus


@pytest.mark.parametrize(
    ("ready", "fresh", "count", "cap", "right", "waiting", "more"),
    [
        # They compute: one more if there is a cookie.
        (5, 0, 2, 8, 2, False, More(PROCESS, True, 0)),
        (5, 0, 3, 8, 2, False, More(PROCESS, False, 0)),  # already more than the right
        (5, 0, 2, 8, 2, True, More(PROCESS, True, 2)),  # they wait: as many again
        (5, 0, 4, 8, 2, True, More(PROCESS, False, 4)),
        (1, 0, 4, 8, 2, True, More(PROCESS, False, 1)),  # no more than there is to do
        (9, 0, 6, 8, 2, True, More(PROCESS, False, 2)),  # no more than the cap
        (9, 0, 8, 8, 8, True, More(PROCESS, False, 0)),
        (9, 0, 9, 8, 8, True, More(PROCESS, False, 0)),
        (0, 2, 1, 8, 2, True, More(FRESH, True, 1)),  # for nodes that need a process of their own
        (1, 2, 4, 8, 2, True, More(PROCESS, False, 3)),  # nodes without that need go first
        (0, 0, 2, 8, 2, True, More(FRESH, False, 0)),  # idle workers have taken all nodes
        (3, 0, 0, 8, 0, True, More(PROCESS, True, 0)),  # no worker is there to wait
    ],
)
def test_more_workers_at_a_look(ready: int, fresh: int, count: int, cap: int, right: int, waiting: bool, more: More) -> None:
    assert staffing.at_look(ready, fresh, count, cap, right, waiting) == more


@pytest.mark.parametrize(
    ("ready", "idle", "count", "threads"),
    [
        (0, 0, 4, 0),
        (3, 3, 4, 0),  # idle threads take them
        (9, 0, 0, 1),
        (9, 0, 1, 1),  # as many again
        (9, 0, 4, 4),
        (2, 0, 4, 2),  # no more than there is to do
        (2, -1, 4, 2),
    ],
)
def test_threads_for_ready_nodes(ready: int, idle: int, count: int, threads: int) -> None:
    assert staffing.threads_for(ready, idle, count) == threads


@pytest.mark.parametrize(
    ("resting", "idle", "count", "held_back", "retired"),
    [
        (3, 3, 5, False, 3),
        (3, 2, 5, False, 2),  # one was just woken
        (3, 3, 3, True, 2),  # one stays for nodes that are held back
        (3, 3, 3, False, 3),
        (3, -1, 3, False, 0),
        (0, 0, 0, True, 0),
    ],
)
def test_workers_that_rest_are_retired(resting: int, idle: int, count: int, held_back: bool, retired: int) -> None:
    assert staffing.to_retire(resting, idle, count, held_back) == retired


@pytest.mark.parametrize(
    ("count", "base", "crowded", "committed", "cookies"),
    [
        (3, 1, False, 0.0, 2),  # one for each worker beyond the caller's place
        (3, 0, False, 0.0, 3),
        (1, 1, False, 0.0, 0),
        (0, 1, False, 0.0, 0),
        (8, 1, True, 3.0, 2),  # a crowded run keeps cookies for what it computes
        (8, 1, True, 2.001, 2),  # a fraction of a CPU counts as one
        (8, 1, True, 0.0, 0),
        (2, 1, True, 9.0, 1),  # never more cookies than workers
    ],
)
def test_cookies_kept_while_nothing_is_ready(count: int, base: int, crowded: bool, committed: float, cookies: int) -> None:
    assert staffing.cookies_kept(count, base, crowded, committed) == cookies
