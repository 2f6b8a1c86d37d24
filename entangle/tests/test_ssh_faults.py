"""Failures of other hosts: each gives the right value, or one clear error in time, and leaves
nothing running."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._remote.caller.open_channels import close_all
from entangle.errors import FarError, LinkLostError, ProcessTerminatedException, ProcessTimeoutException, StoreFullError, UnreachableError
from entangle.process import process
from entangle.ssh import ssh
from entangle.thread import thread

from .callers import ROOT
from .evidence import alive, pids_in, wait_until
from .far_bodies import second_time, slow, where
from .services import given
from .services.hosts import Host, Hosts, three_hosts


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """The three hosts."""
    return given.shared_hosts()


@pytest.fixture(params=["openssh", pytest.param("paramiko", marks=pytest.mark.drill)])
def carrier(request: pytest.FixtureRequest) -> str:
    """The transports that can carry the bytes."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _nothing_goes_on_there(hosts: Hosts) -> Iterator[None]:
    """After each test, nothing runs on any host, and no run directory is left there."""
    yield
    close_all()
    for host in hosts.hosts.values():
        wait_until(functools.partial(_rests, host), 15, f"what {host.name} runs")


def _rests(host: Host) -> bool:
    return not host.processes() and not (host.namespace and list(host.inside("/dev/shm").glob("entangle-*/p*/r*")))


@pytest.fixture
def fragile(hosts: Hosts, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts of the test's own, whose servers it may kill."""
    with three_hosts(tmp_path) as found:
        yield found
        close_all()


@contextlib.contextmanager
def turning_away() -> Iterator[tuple[int, list[float]]]:
    """A server that ends each connection before the login, as an sshd does that is wrongly set up:
    its port, and when it did so."""
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # it is shut down
                while True:
                    with server.accept()[0] as one:
                        times.append(time.monotonic())
                        one.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], times
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("carrier", ["openssh", "paramiko"])
def test_a_server_that_turns_every_login_away_is_given_up(carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After several attempts, as a busy server turns some away; the error has what ssh said."""
    monkeypatch.setattr("entangle._remote.transport.ssh_options.TURNED_AWAY", 1.5)
    with turning_away() as (port, times):
        with pytest.raises(UnreachableError, match=r"closed the connection before the login: too many.*\n.*\w"):
            ssh(host="127.0.0.1", port=port, transport=carrier)(where)()()
        assert len(times) > 2


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection counts as lost after one second of silence."""
    monkeypatch.setenv("ENTANGLE_SILENCE", "1")


def cuttable(hosts: Hosts) -> None:
    if not hosts.namespaces:
        from .ways import missing

        missing("cables can be cut only in network namespaces: run the tests as root, with iproute2")


def begun(path: Path, times: int = 1) -> int:
    """The pid of a running body."""
    wait_until(lambda: len(pids_in(path)) >= times, what="the body")
    return pids_in(path)[-1]


# --- the connection -------------------------------------------------------------------------------


def test_a_cable_that_is_cut_in_the_middle_of_a_call(hosts: Hosts, carrier: str, soon: None, tmp_path: Path) -> None:
    cuttable(hosts)
    future = ssh(**hosts.options("alpha", transport=carrier))(process(slow))(str(tmp_path / "pid"))(proc=True)
    pid = begun(tmp_path / "pid")
    hosts["alpha"].cut()
    try:
        with pytest.raises(LinkLostError, match=hosts["alpha"].address):
            future.result(30)
        wait_until(lambda: not alive(pid), 20, "the body, whose caller is out of reach")
    finally:
        hosts["alpha"].mend()


def test_retry_recovers_once_the_cable_is_mended(hosts: Hosts, carrier: str, soon: None, tmp_path: Path) -> None:
    cuttable(hosts)
    task = ssh(**hosts.options("bravo", transport=carrier))(process(retry=3, sleep=0.5)(second_time))
    future = task(str(tmp_path / "pid"))(proc=True)
    begun(tmp_path / "pid")
    hosts["bravo"].cut()
    time.sleep(1.5)  # longer than the allowed silence
    hosts["bravo"].mend()
    assert future.result(50) == 2


def test_a_cable_that_was_cut_between_two_calls(hosts: Hosts, soon: None) -> None:
    cuttable(hosts)
    there = ssh(**hosts.options("carol"))(where)
    assert there()() == hosts["carol"].address
    hosts["carol"].cut()
    try:
        with pytest.raises(FarError):
            there()()
    finally:
        hosts["carol"].mend()
    assert there()() == hosts["carol"].address


def test_a_server_that_crashes_with_all_its_logins(fragile: Hosts, carrier: str, tmp_path: Path) -> None:
    host = fragile["alpha"]
    future = ssh(**fragile.options("alpha", transport=carrier))(process(slow))(str(tmp_path / "pid"))(proc=True)
    pid = begun(tmp_path / "pid")
    host.kill_server(sessions=True)
    with pytest.raises(LinkLostError, match=host.address):
        future.result(20)
    wait_until(lambda: not alive(pid), 10, "the body, whose caller is gone")
    with pytest.raises(FarError, match="no ssh server"):
        ssh(**fragile.options("alpha", transport=carrier))(where)()()
    host.start()
    assert ssh(**fragile.options("alpha", transport=carrier))(where)()() == host.address


def test_a_server_that_ends_takes_no_call_along(fragile: Hosts, carrier: str, tmp_path: Path) -> None:
    host = fragile["bravo"]
    future = ssh(**fragile.options("bravo", transport=carrier))(slow)(str(tmp_path / "pid"), 1.0)(proc=True)
    begun(tmp_path / "pid")
    carriers = host.processes()
    host.kill_server()
    assert future.result(20) == 1
    close_all()
    wait_until(lambda: not [pid for pid in carriers if alive(pid)], 10, "the logins of the old server")


# --- processes on the other host ------------------------------------------------------------------


def test_a_far_worker_that_is_killed(hosts: Hosts, tmp_path: Path) -> None:
    future = ssh(**hosts.options("alpha"))(process(slow))(str(tmp_path / "pid"))(proc=True)
    os.kill(begun(tmp_path / "pid"), signal.SIGKILL)
    with pytest.raises(ProcessTerminatedException, match="SIGKILL"):
        future.result(20)


def test_a_far_agent_that_is_killed(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    future = ssh(**hosts.options("alpha", transport=carrier))(slow)(str(tmp_path / "pid"))(proc=True)
    os.kill(begun(tmp_path / "pid"), signal.SIGKILL)
    with pytest.raises(LinkLostError, match=hosts["alpha"].address):
        future.result(20)


def test_retry_recovers_from_a_far_process_that_is_killed(hosts: Hosts, tmp_path: Path) -> None:
    future = ssh(**hosts.options("alpha"))(process(retry=2)(second_time))(str(tmp_path / "pid"))(proc=True)
    os.kill(begun(tmp_path / "pid"), signal.SIGKILL)
    assert future.result(30) == 2


def test_a_body_without_retry_never_runs_twice(hosts: Hosts, tmp_path: Path) -> None:
    future = ssh(**hosts.options("alpha"))(process(second_time))(str(tmp_path / "pid"))(proc=True)
    os.kill(begun(tmp_path / "pid"), signal.SIGKILL)
    with pytest.raises(ProcessTerminatedException):
        future.result(20)
    assert len(pids_in(tmp_path / "pid")) == 1


def test_a_deadline_there_kills_there(hosts: Hosts, tmp_path: Path) -> None:
    with pytest.raises(ProcessTimeoutException):
        ssh(**hosts.options("alpha"))(process(timeout=0.5)(slow))(str(tmp_path / "pid"))()
    pid = begun(tmp_path / "pid")
    wait_until(lambda: not alive(pid), 5, "the body past its deadline")


def test_a_run_that_is_cancelled_stops_what_runs_there(hosts: Hosts, tmp_path: Path) -> None:
    future = ssh(**hosts.options("alpha"))(process(slow))(str(tmp_path / "pid"))(proc=True)
    pid = begun(tmp_path / "pid")
    future.cancel()
    wait_until(lambda: not alive(pid), 10, "the body of a cancelled run")


def test_a_caller_that_is_killed_leaves_nothing_there(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(
        "from entangle.process import process\nfrom entangle.ssh import ssh\nfrom far import slow\n"
        f"ssh(**{hosts.options('alpha', transport=carrier)!r})(process(slow))({str(tmp_path / 'pid')!r})()\n"
    )
    (tmp_path / "far.py").write_text(
        "import os, time\ndef slow(path):\n    with open(path, 'a') as file: print(os.getpid(), file=file)\n    time.sleep(60)\n"
    )
    runs = tmp_path / "runs"
    runs.mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs)}
    caller = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        pid = begun(tmp_path / "pid")
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not alive(pid), 10, "the body of a caller that is gone")


# --- full disks -----------------------------------------------------------------------------------


def full_disk(hosts: Hosts, folder: Path) -> dict[str, Any]:
    """The options for a host with little room on its disk and in its shared memory."""
    cuttable(hosts)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nTMPDIR=/mnt exec {hosts.options("carol")["python"]} "$@"\n')
    python.chmod(0o755)
    return hosts.options("carol", python=str(python))


def test_a_far_disk_that_is_full(hosts: Hosts, tmp_path: Path) -> None:
    @ssh(**full_disk(hosts, tmp_path))
    @process
    def large() -> bytes:
        return bytes(200 << 20)

    with pytest.raises(StoreFullError):
        large()()


# --- many calls, large values ---------------------------------------------------------------------


def test_a_hundred_calls_at_once_to_one_host(hosts: Hosts, carrier: str) -> None:
    def pause(n: int) -> int:
        time.sleep(0.2)
        return n

    there = ssh(**hosts.options("alpha", transport=carrier))(pause)
    gather = thread(lambda *found: list(found))
    assert gather(*[there(n) for n in range(100)])() == list(range(100))


@pytest.mark.drill
@pytest.mark.parametrize("workers", [40])
def test_as_many_logins_at_once_as_a_server_turns_away(hosts: Hosts, workers: int) -> None:
    def pause(n: int) -> int:
        time.sleep(3)
        return n

    there = process(ssh(**hosts.options("alpha"))(pause))
    gather = thread(lambda *found: list(found))
    assert gather(*[there(n) for n in range(workers)])() == list(range(workers))


@pytest.mark.drill
def test_a_result_of_a_gigabyte(hosts: Hosts, carrier: str) -> None:
    size = 1 << 30

    def large() -> bytearray:
        data = bytearray(size)
        data[0], data[-1] = 1, 2
        return data

    found = ssh(**hosts.options("alpha", transport=carrier))(large)()()
    assert (len(found), found[0], found[-1]) == (size, 1, 2)


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_cables_cut_at_any_moment(hosts: Hosts, soon: None) -> None:
    """Whenever the cable is cut, a call has either its value or one error. Some of the cuts must
    hit a call."""
    cuttable(hosts)
    host: Host = hosts["alpha"]
    hits = 0
    for number in range(10):
        future = ssh(**hosts.options("alpha"))(lambda n: bytes(n))(20 << 20)(proc=True)
        time.sleep(number * 0.12)
        host.cut()
        try:
            assert len(future.result(60)) == 20 << 20
        except FarError:
            hits += 1
        finally:
            host.mend()
        close_all()  # so that the next call connects anew
        wait_until(functools.partial(_rests, host), 15, f"what {host.name} runs")
    assert hits >= 2, f"only {hits} of 10 cuts hit a call"
