"""Calls as jobs of a real Slurm, by sbatch."""

from __future__ import annotations

import json
import operator
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle import gather, records
from entangle._remote.transport.slurm import found
from entangle._services.caller import open_watchers, slurm_jobs
from entangle._services.caller.slurm_jobs import SlurmJobs
from entangle._testing import service_bodies as bodies
from entangle.errors import ProcessTerminatedException, ProcessTimeoutException, UnreachableError
from entangle.process import process
from entangle.service import service
from entangle.slurm import slurm as slurm_task
from entangle.testing import check_service

from ..callers import ROOT
from ..evidence import text_of, wait_until
from ..places import clock_that_is_off
from ..services.slurm_cluster import SlurmCluster
from ..shown_programs import run_shown


@pytest.fixture
def jobs(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmJobs]:
    stated = ("--partition=main", "--time=1", "--mem=200")
    yield SlurmJobs(stated, 60.0, str(tmp_path / "jobs"), sys.executable, (), "main")
    open_watchers.close_all(str(tmp_path))


@pytest.mark.timeout(240)
def test_the_kit(jobs: SlurmJobs, tmp_path: Path) -> None:
    """All checks. Those of leases know that these jobs outlive their caller."""
    check_service(jobs, mailbox=tmp_path)


def _eat(megabytes: int) -> int:
    """Allocate memory, and write to it."""
    kept = [bytearray(os.urandom(1 << 20)) for _ in range(megabytes)]
    time.sleep(60)
    return len(kept)


def _sleep(path: str, seconds: float) -> str:
    with open(path, "w") as file:
        file.write(os.environ["SLURM_ARRAY_JOB_ID"] + "_" + os.environ["SLURM_ARRAY_TASK_ID"] + " " + os.environ["SLURMD_NODENAME"])
    time.sleep(seconds)
    return "slept"


def _wait_for(path: Path) -> str:
    until = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    return path.read_text()


@pytest.mark.timeout(200)
def test_each_end_says_why(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Out of memory, over the walltime, cancelled, or its node failed: with job, script and log."""
    paths = [tmp_path / name for name in ("late", "cancelled", "lost")]

    def harm() -> None:
        # The shortest walltime is a minute.
        slurm.run("scontrol", "update", f"jobid={_wait_for(paths[0]).split()[0]}", "EndTime=now+2")
        slurm.run("scancel", _wait_for(paths[1]).split()[0])
        node = _wait_for(paths[2]).split()[1]
        slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        time.sleep(1)
        # It may be back already.
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    here: dict[str, Any] = {"time": 60, "python": sys.executable, "partition": "main", "detached": True, "mailbox": tmp_path}
    harming = threading.Thread(target=harm)
    harming.start()
    there = slurm_task(memory="200M", **here)
    alone = slurm_task(memory="200M", options={"exclusive": True}, **here)(_sleep)(str(paths[2]), 300.0)
    calls = [there(_eat)(600), *(there(_sleep)(str(path), 300.0) for path in paths[:2]), alone]
    memory, late, cancelled, failed = gather(*calls, return_exceptions=True)()
    harming.join()
    for error, kind, why in (
        (memory, ProcessTerminatedException, "OUT_OF_MEMORY: it needed more memory than it had; ask for more: memory="),
        (late, ProcessTimeoutException, "TIMEOUT (TimeLimit): its walltime was over; ask for a longer one: time="),
        (cancelled, ProcessTerminatedException, "CANCELLED"),
        (failed, ProcessTerminatedException, "NODE_FAIL (NodeDown): its node failed; retry=1 submits it again"),
    ):
        assert isinstance(error, kind), error
        assert why in str(error)
        notes = "\n".join(getattr(error, "__notes__", []))
        assert "job " in notes
        script, log = notes.partition("script: ")[2].partition("; log: ")[::2]
        assert os.path.exists(script)
        assert log.partition("\n")[0].endswith(".log")
    open_watchers.close_all(str(tmp_path))


@pytest.mark.timeout(200)
def test_a_job_that_is_preempted_is_told_apart_and_tried_again(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Each job has a node of its own, until a job of a partition with higher priority takes it."""
    paths = [tmp_path / name for name in ("once", "again")]
    low: dict[str, Any] = {"time": 300, "python": sys.executable, "partition": "low", "detached": True, "mailbox": tmp_path}

    def preempt() -> None:
        for path in paths:
            node = _wait_for(path).split()[1]
            slurm.run("sbatch", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=true")

    preempting = threading.Thread(target=preempt)
    preempting.start()
    there = slurm_task(options={"exclusive": True}, **low)
    calls = [there(_once_for_long)(str(paths[0])), there(process(retry=1)(_once_for_long))(str(paths[1]))]
    error, value = gather(*calls, return_exceptions=True)()
    preempting.join()
    assert isinstance(error, ProcessTerminatedException)
    assert "PREEMPTED: another job took its place; retry=1 submits it again" in str(error)
    assert value == "again"
    open_watchers.close_all(str(tmp_path))


def _once_for_long(path: str) -> str:
    """Run for long in the first attempt."""
    if not os.path.exists(path):
        _sleep(path, 300.0)
    return "again"


@pytest.mark.timeout(200)
def test_drained_nodes(slurm: SlurmCluster, jobs: SlurmJobs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A job that runs on a drained node continues. A job that waits for one says so, and runs when
    the node is back."""
    first, gate = tmp_path / "first", tmp_path / "gate"
    said: list[str] = []

    def drain() -> None:
        _wait_for(first)
        slurm.run("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
        gate.touch()  # now the second call is submitted
        try:
            wait_until(lambda: _says_why(said, capfd), 120, "nobody said why the second is pending")
        finally:
            slurm.run("scontrol", "update", "nodename=n[1-2]", "state=resume")

    there = service(jobs, mailbox=tmp_path)
    draining = threading.Thread(target=drain)
    draining.start()
    running = there(_until)(str(first), str(tmp_path / "drained"))(proc=True)
    wait_until(gate.exists, 120, "the nodes were never drained")
    assert there(bodies.same)(2)() == 2
    (tmp_path / "drained").touch()
    assert running.result(timeout=120) == "done"
    draining.join()


def _says_why(said: list[str], capfd: pytest.CaptureFixture[str]) -> bool:
    said.append(capfd.readouterr().err)
    return "1 job is pending because" in "".join(said)


def _until(began: str, path: str) -> str:
    """Run until the file exists."""
    with open(began, "w") as file:
        file.write("begun")
    wait_until(lambda: os.path.exists(path), 180, "nobody made the file")
    return "done"


def test_a_worker_of_a_job_that_needs_too_much_memory(slurm: SlurmCluster, jobs: SlurmJobs, tmp_path: Path) -> None:
    """The job survives, and says why its worker died. If Slurm itself enforces memory limits, it
    ends the job."""
    with pytest.raises(ProcessTerminatedException) as caught:
        service(jobs, mailbox=tmp_path)(process(_eat))(600)()
    said = text_of(caught.value)
    assert "out of memory: the kernel has killed it" in said if slurm.by_kernel else "OUT_OF_MEMORY" in said


def _clock() -> float:
    return time.time()


@pytest.mark.parametrize("off", [3600, -3600])
def test_a_clock_there_that_is_wrong(tmp_path: Path, off: int) -> None:
    """The clock of the other Python is an hour off."""
    setup = [clock_that_is_off(tmp_path, off)]
    there = slurm_task(time=60, memory="200M", python=sys.executable, detached=True, mailbox=tmp_path, setup=setup)
    assert abs(there(process(timeout=60)(_clock))()() - time.time() - off) < 600
    open_watchers.close_all(str(tmp_path))


def test_many_calls_are_arrays_and_values_leave_no_logs(jobs: SlurmJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_jobs, "_sizes", [7])
    arrays: list[int] = []
    submit = SlurmJobs._submit

    def counted(self: SlurmJobs, batch: Any) -> str:
        arrays.append(len(batch))
        return submit(self, batch)

    monkeypatch.setattr(SlurmJobs, "_submit", counted)
    assert service(jobs, mailbox=tmp_path)(bodies.same).map(range(20))() == list(range(20))
    assert os.listdir(tmp_path / "jobs") == []
    assert max(arrays) == 7


def test_a_limit_on_jobs_is_waited_for(jobs: SlurmJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This sbatch refuses arrays of more than three, with the message of an association's limit."""
    real = found("sbatch")
    (tmp_path / "bin").mkdir()
    gate = tmp_path / "bin" / "sbatch"
    refusal = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    gate.write_text(
        f"#!/bin/sh\ncase \"$*\" in *--array=0-[0-2]' '*|*--array=0-[0-2]\\ *) exec {real} \"$@\";; esac\necho '{refusal}' >&2\nexit 1\n"
    )
    gate.chmod(gate.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(gate.parent), prepend=os.pathsep)
    assert service(jobs, mailbox=tmp_path)(bodies.same).map(range(8))() == list(range(8))


def test_the_controller_may_restart(slurm: SlurmCluster, jobs: SlurmJobs, tmp_path: Path) -> None:
    path = tmp_path / "begun"

    def restart() -> None:
        _wait_for(path)
        slurm.stop_controller()
        time.sleep(3)
        slurm.start_controller()

    restarting = threading.Thread(target=restart)
    restarting.start()
    assert service(jobs, mailbox=tmp_path)(_sleep)(str(path), 6.0)() == "slept"
    restarting.join()


def _add_in_a_process(one: int, other: int) -> int:
    """A run inside the job."""
    return int(process(operator.add)(one, other)())


def test_a_job_that_waits_says_why_and_records_come_home(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top` shows the reason as soon as Slurm knows it. Records count that time as queued, and the
    run inside the job is below its node."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    seen: list[Any] = []

    def look() -> list[Any]:
        told = subprocess.run([sys.executable, "-m", "entangle", "top", "--json"], capture_output=True, text=True, check=True).stdout
        return [one for run in json.loads(told)["runs"] for one in run["away"] if "because" in one["why"]]

    looking = threading.Thread(target=lambda: seen.extend(wait_until(look, 30)))
    looking.start()
    later = {"begin": "now+12"}
    there = slurm_task(time=60, python=sys.executable, partition="main", detached=True, mailbox=tmp_path, options=later)
    assert there(_add_in_a_process)(1, 2)() == 3
    looking.join()
    assert seen == [{"place": "slurm:main", "why": "pending because BeginTime", "nodes": 1}]
    run = records.run("last")
    (node,) = run.nodes
    assert node.place == "slurm:main"
    assert re.fullmatch(r"\d+_0", str(node.ticket))
    assert node.times.queued > 8
    assert node.times.running < node.times.queued
    (inner,) = run.children
    assert [child.name for child in inner.children] == ["add"]
    open_watchers.close_all(str(tmp_path))


def test_what_sbatch_refuses_is_told_with_the_command(jobs: SlurmJobs, tmp_path: Path) -> None:
    wrong: Any = SlurmJobs(("--partition=nowhere",), 60.0, jobs.folder, sys.executable)
    with pytest.raises(UnreachableError, match=r"(?s)sbatch has failed: .*invalid partition.*--partition=nowhere"):
        service(wrong, mailbox=tmp_path)(bodies.same)(1)()


def test_jobs_outlive_a_caller_that_is_killed(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A job that has begun runs to its end, and its value stays in the mailbox."""
    program = f"""
import sys
from entangle.slurm import slurm
from entangle._testing.service_bodies import marking
slurm(time=60, python=sys.executable, detached=True, mailbox={str(tmp_path)!r})(marking)({str(tmp_path / "mark")!r}, 8.0)()
"""
    with subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "ENTANGLE_RECORD": "0", "PYTHONPATH": str(ROOT)}) as caller:
        _wait_for(tmp_path / "mark")
        caller.kill()
    wait_until(lambda: len(list(tmp_path.glob("p*/outcomes/*"))) == 1, 30, "no outcome came")
    assert (tmp_path / "mark").stat().st_size >= 50
    wait_until(lambda: not slurm.jobs(), 20, "its job is still there")


def test_states_are_told_apart() -> None:
    state = slurm_jobs._state
    assert state("PENDING", "Resources").reason == "pending because Resources"
    assert state("PREEMPTED", "None").reason.startswith("PREEMPTED: another job took its place")
    assert state("FAILED", "NonZeroExitCode").reason == "FAILED (NonZeroExitCode)"
    assert state("COMPLETING", "None").state == "running"
    assert [row[1] for row in slurm_jobs._rows("7_1|CANCELLED by 0|None\n\n7_2|RUNNING|None")] == ["CANCELLED", "RUNNING"]


@pytest.mark.timeout(120)
def test_the_page_on_engines_shows_what_runs(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_MAILBOX", str(tmp_path / "mailbox"))
    options = 'partition="main"'
    run_shown("engines.md", "on_slurm.py", tmp_path, {options: f'{options}, memory="200M", python={sys.executable!r}'})
    assert os.listdir(tmp_path / "mailbox" / "slurm") == []  # all have returned values
    wait_until(lambda: not slurm.jobs(), 20, "the program has left a job behind")


@pytest.mark.timeout(120)
def test_the_page_on_slurm_shows_what_runs(slurm: SlurmCluster, tmp_path: Path) -> None:
    options = 'cpus=4, memory="8G"'
    run_shown("how_to/slurm.md", "on_cluster.py", tmp_path, {options: f'cpus=1, memory="200M", python={sys.executable!r}'})
    wait_until(lambda: not slurm.jobs(), 20, "the program has left its allocation behind")
