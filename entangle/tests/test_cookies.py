"""Cookies: how many a process tree has, and that none is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle.cookies import CookieQueue, available_cpus, budget_of, cpu_quota

from .groups import control_group
from .moments import Watch


def quota_of(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    return cpu_quota(str(tmp_path / "groups"), str(tmp_path / "membership"))


def test_no_limit_is_no_quota(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"}) is None
    assert cpu_quota(str(tmp_path), str(tmp_path / "no such file")) is None


def test_a_container_sees_its_quota_at_the_top(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": "150000 100000\n"}) == 1.5
    assert quota_of(tmp_path, "0::/../../docker/abc\n", {"cpu.max": "150000 100000\n"}) == 1.5


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}
    assert quota_of(tmp_path, "0::/a/b\n", files) == 3


def test_version_1(tmp_path: Path) -> None:
    files = {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n", "cpu/cpu.cfs_quota_us": "-1\n"}
    assert quota_of(tmp_path, "4:cpu,cpuacct:/a\n3:memory:/a\n", files) == 0.5


def test_a_broken_file_limits_nothing(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": ""}) is None


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A control group that gives half of a CPU's time."""
    places = {"/sys/fs/cgroup": {"cpu.max": "50000 100000"}, "/sys/fs/cgroup/cpu": {"cpu.cfs_quota_us": "50000"}}
    with control_group(places) as group:
        yield group


def test_a_tree_under_a_real_quota_keeps_to_it(half_a_cpu: Path) -> None:
    assert budget_of(available_cpus()) >= 1
    source = (
        "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from entangle.cookies import budget_of, cpu_quota; print(cpu_quota(), budget_of([0, 1, 2, 3]))"
    )
    done = subprocess.run([sys.executable, "-c", source, str(half_a_cpu)], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("0.5 1\n", "")


# Queues --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[CookieQueue]:
    """A queue of three cookies, for CPUs as a large machine has them."""
    with contextlib.closing(CookieQueue.create(str(tmp_path / "cookies-3"), (300, 301, 511))) as made:
        yield made


def test_cookies_stand_for_cpus_of_any_number(queue: CookieQueue) -> None:
    assert sorted(queue.wait() for _ in range(3)) == [300, 301, 511]
    assert queue.take() is None
    queue.give(301)
    assert queue.count() == 1
    assert queue.take() == 301


def test_a_cookie_that_this_process_has_not_is_not_given_twice(queue: CookieQueue) -> None:
    cookie = queue.wait()
    queue.give(cookie)
    queue.give(cookie)
    assert queue.count() == 3


def test_what_make_puts_back_is_a_cookie_again(queue: CookieQueue) -> None:
    """It reads bytes, and writes a + for each, whatever it has read."""
    pipe = os.open(queue.path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.read(pipe, 2)
        mine = queue.wait()
        assert queue.take() is None
        os.write(pipe, b"++")
    finally:
        os.close(pipe)
    assert {mine, queue.wait(), queue.wait()} == {300, 301, 511}


@pytest.mark.parametrize("count", [15, 17, 250, 300])
def test_all_come_back_however_many_there_are(tmp_path: Path, count: int) -> None:
    with contextlib.closing(CookieQueue.create(str(tmp_path / "queue"), range(count))) as queue:
        for _ in range(2):
            taken = [queue.take() for _ in range(count)]
            assert sorted(cookie for cookie in taken if cookie is not None) == list(range(count))
            assert queue.take() is None
            for cookie in range(count):
                queue.give(cookie)
            assert queue.count() == count


@pytest.mark.parametrize("step", ["wait", "give"])
def test_a_process_killed_at_any_instruction_takes_no_cookie_with_it(queue: CookieQueue, step: str) -> None:
    for number in range(1, 1000):
        pid = os.fork()
        if pid == 0:
            watch = Watch(number, lambda: os.kill(os.getpid(), signal.SIGKILL), stores=True)
            if step == "wait":
                watch.begin()
                queue.wait()
            else:
                cookie = queue.wait()
                watch.begin()
                queue.give(cookie)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        queue.reclaim()
        assert (queue.count(), queue.held()) == (3, 0), number
        if not ended:
            break
    assert number > 10


def test_who_waits_gets_the_cookie_of_one_that_was_killed(queue: CookieQueue) -> None:
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            queue.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert queue.count() == 0
    assert queue.wait() in (300, 301, 511)


def test_ctrl_c_at_any_instruction_takes_no_cookie(queue: CookieQueue) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for number in range(1, 1000):
        watch = Watch(number, interrupt, stores=True)
        before = queue.held_here()
        watch.begin()
        try:
            queue.give(queue.wait())
            break
        except KeyboardInterrupt:
            watch.end()
            queue.give_back(but=before)
            assert (queue.count(), queue.held()) == (3, 0), number
        finally:
            watch.end()
    assert number > 20


def test_where_there_is_no_room_cells_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(memory)):
            raise OSError(errno.ENOSPC, "no room")

    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with contextlib.closing(CookieQueue.create(str(memory / "queue"), (7, 8), str(disk))) as queue:
        assert len(list(disk.iterdir())) == 1
        cookie = queue.wait()
        with contextlib.closing(CookieQueue(queue.path)) as same:
            assert {cookie, same.wait()} == {7, 8}
