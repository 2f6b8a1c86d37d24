"""Cookies: how many a process tree has, and that none is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from entangle.cookies import (
    CookieQueue,
    SharedQueue,
    available_cpus,
    budget_of,
    cpu_quota,
    forget_jobserver,
    jobserver_flags,
    jobserver_style,
)

from .evidence import wait_until
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
    """A control group with a quota of half a CPU."""
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


# Queues -------------------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[CookieQueue]:
    """A queue of three cookies, with CPU numbers as on a large machine."""
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
    """make reads bytes, and returns a + for each, whichever byte it read."""
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
        watch = Watch(number, lambda: os.kill(os.getpid(), signal.SIGKILL), stores=True)
        pid = os.fork()
        if pid == 0:
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


def test_a_waiting_process_gets_the_cookie_of_one_that_was_killed(queue: CookieQueue) -> None:
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


def in_a_child(body: Callable[[], None]) -> None:
    """Run a function in a child that exits without any cleanup."""
    pid = os.fork()
    if pid == 0:
        body()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_bytes_that_make_has_lost_are_put_back_and_those_too_many_taken_out(queue: CookieQueue) -> None:
    """As after a make that was killed with three jobs running, or that returned more than it
    took."""
    pipe = os.open(queue.path, os.O_RDWR | os.O_NONBLOCK)
    try:
        for _ in range(2):
            mine = queue.wait()
            os.read(pipe, 2)
            assert queue.count() == 0
            queue.refill()
            assert (queue.count(), queue.held()) == (2, 1)
            os.write(pipe, b"++++")
            queue.refill()
            assert (queue.count(), queue.held()) == (2, 1)
            queue.give(mine)
            queue.refill()
            assert (queue.count(), queue.held()) == (3, 0)
    finally:
        os.close(pipe)


def test_whether_others_hold_a_cookie(queue: CookieQueue) -> None:
    """Neither this process nor dead ones count."""
    assert not queue.held_by_others()
    mine = queue.wait()
    assert not queue.held_by_others()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            queue.wait()
            os.write(write, b"x")
            time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    assert queue.held_by_others()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not queue.held_by_others()
    queue.give(mine)
    for fd in (read, write):
        os.close(fd)


def test_a_waiting_process_gets_the_cookie_of_a_holder_that_dies_meanwhile(queue: CookieQueue) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            queue.wait()
        os.write(write, b"x")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    os.read(read, 1)
    assert queue.wait() in (300, 301, 511)
    os.waitpid(pid, 0)
    for fd in (read, write):
        os.close(fd)


def test_a_byte_of_another_program_is_no_cookie_of_ours(queue: CookieQueue) -> None:
    taken = [queue.wait() for _ in range(3)]
    pipe = os.open(queue.path, os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, b"+")
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(queue.wait()))
    waiting.start()
    time.sleep(0.3)
    assert got == []
    queue.give(taken[1])
    waiting.join(20)
    assert got == [taken[1]]
    os.close(pipe)


@pytest.fixture
def two_pools(tmp_path: Path) -> Iterator[tuple[SharedQueue, SharedQueue]]:
    """Two pools of one process tree for the same two CPUs, each filled by another process."""
    locks = tmp_path / "locks"
    locks.mkdir()
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = str(tmp_path / name / "cookies-2")
        # The file keeps its cells. The bytes vanish when no process has the pipe open.
        CookieQueue.create(path, (300, 301)).close()
        queue = SharedQueue(path, str(locks))
        queue.refill()
        made.append(queue)
    yield made[0], made[1]
    for queue in made:
        for cpu in (300, 301):
            queue.give(cpu)
        queue.close()


def test_pools_for_the_same_cpus_give_each_of_them_out_once(two_pools: tuple[SharedQueue, SharedQueue], tmp_path: Path) -> None:
    one, other = two_pools
    assert [one.take(), other.take()] == [300, 301]
    assert [one.take(), other.take()] == [None, None]
    assert (one.count(), other.count()) == (1, 1)
    one.give(300)
    assert other.take() == 300
    assert one.take() is None
    for cpu in (300, 301):
        other.give(cpu)
    assert {one.wait(), one.wait()} == {300, 301}
    for cpu in (300, 301):
        one.give(cpu)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "locks").iterdir()] == [0o600, 0o600]


def test_a_cpu_that_another_pool_has_given_out_comes_when_it_is_given_back(
    two_pools: tuple[SharedQueue, SharedQueue],
) -> None:
    one, other = two_pools
    taken = [one.wait(), one.wait()]
    got: list[int] = []
    back = threading.Event()

    def wait() -> None:
        got.append(other.wait())
        back.wait(20)
        other.give_back()

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    assert got == []
    for cpu in taken:
        one.give(cpu)
    wait_until(lambda: got != [], 20, "the cookie")
    assert got[0] in (300, 301)
    assert {300, 301} - set(got) == {one.take()}
    assert one.take() is None
    back.set()
    waiting.join(20)
    assert one.wait() == got[0]


def test_a_process_that_dies_takes_no_cpu_from_other_pools(two_pools: tuple[SharedQueue, SharedQueue]) -> None:
    one, other = two_pools

    def take_all() -> None:
        one.wait(), one.wait()

    in_a_child(take_all)
    assert {other.wait(), other.wait()} == {300, 301}
    for cpu in (300, 301):
        other.give(cpu)
    assert {one.wait(), one.wait()} == {300, 301}


def test_make_is_told_of_the_queue_and_keeps_what_the_user_has_told_it(queue: CookieQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_JOBSERVER", "fifo")
    jobserver_style.cache_clear()
    try:
        monkeypatch.setenv("MAKEFLAGS", "-k -j8 --jobserver-auth=fifo:/elsewhere --eval=.NOTPARALLEL: --no-print-directory")
        kept = f"-k --no-print-directory -j --jobserver-auth=fifo:{queue.path}"
        assert jobserver_flags(queue.path) == kept
        assert jobserver_flags(queue.path, serial=True) == kept.replace(" -j ", " --eval=.NOTPARALLEL: -j ")
        jobserver_style.cache_clear()
        monkeypatch.setenv("ENTANGLE_JOBSERVER", "pipe")
        monkeypatch.setenv("MAKEFLAGS", "")
        said = jobserver_flags(queue.path)
        assert said is not None
        assert said == jobserver_flags(queue.path)  # one descriptor, however often it is asked for
        fd = int(said.rpartition(",")[2])
        assert said == f"-j --jobserver-auth={fd},{fd}"
        assert os.get_inheritable(fd)
        assert os.path.samefile(f"/proc/self/fd/{fd}", queue.path)
        forget_jobserver(queue.path)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        jobserver_style.cache_clear()
        monkeypatch.setenv("ENTANGLE_JOBSERVER", "off")
        assert jobserver_flags(queue.path) is None
    finally:
        forget_jobserver(queue.path)
        jobserver_style.cache_clear()


@pytest.mark.parametrize(
    ("said", "style"),
    [
        ("GNU Make 4.4", "fifo"),
        ("GNU Make 4.4.1", "fifo"),
        ("GNU Make 5.0", "fifo"),
        ("GNU Make 4.3", "pipe"),
        ("GNU Make 3.81", "pipe"),
        ("a make of another kind", "pipe"),
        ("", "pipe"),
    ],
)
def test_a_make_is_offered_what_its_version_takes(said: str, style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_JOBSERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    jobserver_style.cache_clear()
    try:
        assert jobserver_style() == "fifo"  # no make is installed, so any style will do
        make = tmp_path / "make"
        make.write_text(f"#!/bin/sh\necho '{said}'\necho and more\necho an error >&2\n")
        make.chmod(0o755)
        jobserver_style.cache_clear()
        assert jobserver_style() == style
    finally:
        jobserver_style.cache_clear()


def test_a_queue_is_three_files_and_what_cannot_be_opened_leaves_nothing_open(queue: CookieQueue, tmp_path: Path) -> None:
    assert sorted(os.listdir(tmp_path)) == ["cookies-003", "cookies-03", "cookies-3"]
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 3
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileExistsError):
        CookieQueue.create(queue.path, (1, 2, 3))
    for missing in ("cookies-003", "cookies-03", "cookies-3"):
        os.rename(tmp_path / missing, tmp_path / "away")
        with pytest.raises(FileNotFoundError):
            CookieQueue(queue.path)
        os.rename(tmp_path / "away", tmp_path / missing)
    forget_jobserver("a queue that nobody was offered")
    assert len(os.listdir("/proc/self/fd")) == before
    assert (queue.count(), queue.held()) == (3, 0)
