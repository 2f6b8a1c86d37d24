"""`@slurm`: calls in allocations of a real Slurm with two nodes."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import entangle
from entangle import records
from entangle._remote.caller import allocations as pools
from entangle._services.caller import open_watchers
from entangle.cli import main
from entangle.errors import (
    LinkLostError,
    MissingModuleError,
    OptionError,
    ProcessTerminatedException,
    UnfitPythonError,
    UnreachableError,
)
from entangle.place import place
from entangle.process import process
from entangle.slurm import slurm
from entangle.thread import thread
from entangle.workflow import workflow

from ..callers import ROOT
from ..evidence import note, notes, text_of, wait_until, when
from ..far_bodies import add, held
from ..places import clock_that_is_off, far_pythons
from ..services.slurm_cluster import SlurmCluster


@pytest.fixture(autouse=True)
def _no_job_is_left(slurm: SlurmCluster) -> Iterator[None]:
    """Allocations end with their runs."""
    yield
    pools.end_all()
    wait_until(lambda: not slurm.jobs(), 20, "a job of ours is still there")


def there(**options: Any) -> Any:
    """@slurm with this Python."""
    return slurm(**{"time": 300, "python": sys.executable, "memory": "400M", **options})


def job() -> tuple[str, str, int]:
    """The ids of the job and the node in which this runs, and its pid."""
    return os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"], os.getpid()


@thread
def gather(*values: Any) -> list[Any]:
    """The values as a list."""
    return list(values)


def test_a_function_runs_in_an_allocation_and_its_value_comes_back() -> None:
    assert there()(add)([1], [2])() == [1, 2]
    assert there()(lambda: os.environ["SLURM_JOB_NAME"])()() == "entangle-agent"


@pytest.mark.parametrize("value", [None, 0, "", [], b"x" * 3_000_000], ids=["None", "0", "empty-text", "empty-list", "large"])
def test_values_travel_as_they_are(value: Any) -> None:
    @there()
    def same(given: Any) -> Any:
        return given

    assert same(value)() == value


def test_calls_of_a_run_share_one_allocation_and_one_python() -> None:
    task = there(cpus=4)(job)
    found = gather(*[task() for _ in range(12)])()
    assert len({(number, pid) for number, _, pid in found}) == 1


def test_the_allocation_goes_with_the_run_and_stays_in_a_session(slurm: SlurmCluster) -> None:
    task = there()(job)
    first = task()()
    wait_until(lambda: not slurm.jobs(), 20, "the allocation outlives its run")
    with entangle.session():
        second, third = task()(), task()()
        assert second == third != first
        assert slurm.jobs() == [second[0]]
        assert slurm.run("squeue", "--noheader", "--format=%j").split() == ["entangle:job"]
    wait_until(lambda: not slurm.jobs(), 20, "the allocation outlives its session")


def test_processes_and_prints_below_it(capfd: pytest.CaptureFixture[str]) -> None:
    @there(cpus=2)
    @process(timeout=120)
    def loud(n: int) -> int:
        print(f"hello {n}")
        return os.getpid()

    assert len(set(gather(loud(1), loud(2))())) == 2
    shown = capfd.readouterr().out
    assert "[slurm:n" in shown
    assert "hello 1" in shown


def test_jobs_are_added_while_calls_wait_and_a_node_takes_no_more_calls_than_cpus(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there(jobs=2)
    def slow() -> str:
        note(log, "began", os.environ["SLURM_JOB_ID"])
        wait_until(lambda: len({line[1] for line in notes(log)}) == 2, 60, "the calls never had two allocations")
        return os.environ["SLURM_JOB_ID"]

    assert len(set(gather(slow(), slow(), slow())())) == 2


def test_many_calls_that_wait_for_a_cpu_cost_no_thread(tmp_path: Path) -> None:
    log, go = str(tmp_path / "log"), tmp_path / "go"
    task = there(cpus=2)(held)
    threads: list[int] = []

    def look() -> None:
        threads.append(threading.active_count())
        go.touch()

    with when(lambda: len(notes(log)) == 2, look):
        assert task.starmap([(log, str(go), number) for number in range(60)])() == list(range(60))
    assert threads[0] <= 8
    assert threading.active_count() == 1


def test_calls_go_to_all_nodes_of_an_allocation(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there(nodes=2)
    def where() -> tuple[str, str]:
        note(log, os.environ["SLURMD_NODENAME"])
        wait_until(lambda: len({line[0] for line in notes(log)}) == 2, 60, "no call ran on the second node")
        return os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"]

    found = gather(where(), where())()
    assert len({number for number, _ in found}) == 1
    assert {node for _, node in found} == {"n1", "n2"}


def test_gpus_of_the_allocation_are_seen() -> None:
    assert there(gres="gpu:1")(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))()() == "0"


def test_setup_lines_run_before_the_python() -> None:
    task = there(setup=["export GREETING='so long'", "cd /"])(lambda: (os.environ["GREETING"], os.getcwd()))
    assert task()() == ("so long", "/")
    with pytest.raises(UnreachableError, match=r"setup line 'module_that_is_none load python' failed"):
        there(setup=["module_that_is_none load python"])(add)(1, 2)()


def test_a_wrong_python_and_another_version() -> None:
    with pytest.raises(UnfitPythonError, match="python9"):
        there(python="/no/such/python9")(add)(1, 2)()
    assert there(python=far_pythons(same=False))(add)(1, 2)() == 3


def test_a_module_that_is_missing_there() -> None:
    @there(python=far_pythons(same=True), setup=["unset PYTHONPATH"])
    def needs() -> Any:
        import entangle_has_no_such_module  # type: ignore[import-not-found]

        return entangle_has_no_such_module

    with pytest.raises((MissingModuleError, ModuleNotFoundError), match="entangle_has_no_such_module"):
        needs()()


def test_what_slurm_refuses_is_said() -> None:
    with pytest.raises(UnreachableError, match="invalid partition"):
        there(partition="nowhere")(add)(1, 2)()


def test_a_cancelled_job_is_told_with_its_number_and_node(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there()
    def cancelled() -> None:
        note(log, os.environ["SLURM_JOB_ID"])
        time.sleep(60)

    def scancel() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        slurm.run("scancel", notes(log)[0][0])

    with _meanwhile(scancel), pytest.raises(LinkLostError) as caught:
        cancelled()()
    assert f"(job {notes(log)[0][0]})" in str(caught.value)
    assert "CANCELLED" in str(caught.value)
    assert "slurm:n" in str(caught.value)


def test_retry_sends_the_call_to_another_allocation(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there()
    @process(retry=1, timeout=120)
    def again() -> int:
        note(log, os.environ["SLURM_JOB_ID"])
        if len(notes(log)) == 1:
            time.sleep(60)
        return len(notes(log))

    def scancel() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        slurm.run("scancel", notes(log)[0][0])

    with _meanwhile(scancel):
        assert again()() == 2
    assert len({line[0] for line in notes(log)}) == 2


def test_out_of_memory_is_told() -> None:
    @there(memory="150M")
    def greedy() -> int:
        data = bytearray(400 << 20)
        time.sleep(20)
        return len(data)

    with pytest.raises(LinkLostError, match="OUT_OF_MEMORY"):
        greedy()()


def test_a_worker_that_needs_too_much_memory(slurm: SlurmCluster) -> None:
    """The agent survives, and says why its worker died. If Slurm itself enforces memory limits, it
    ends the step."""

    @there(memory="200M")
    @process
    def greedy() -> int:
        data = bytearray(400 << 20)
        time.sleep(20)
        return len(data)

    kinds = (ProcessTerminatedException, LinkLostError)
    with pytest.raises(kinds[not slurm.by_kernel]) as caught:
        greedy()()
    said = text_of(caught.value)
    assert "out of memory: the kernel has killed it" in said if slurm.by_kernel else "OUT_OF_MEMORY" in said


def test_an_agent_that_is_killed_is_told() -> None:
    with pytest.raises(LinkLostError, match=r"slurm:n\d \(job \d+\): the agent or the connection to it ended during the call"):
        there()(lambda: os.kill(os.getpid(), signal.SIGKILL))()()


def test_a_preempted_job_is_told(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there(partition="low", options={"exclusive": True})
    def low() -> None:
        note(log, os.environ["SLURMD_NODENAME"])
        time.sleep(60)

    def preempt() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        node = f"--nodelist={notes(log)[0][0]}"
        slurm.run("sbatch", "--partition=high", "--exclusive", node, "--output=/dev/null", "--wrap=true")

    with _meanwhile(preempt), pytest.raises(LinkLostError, match="PREEMPTED, another job took its place; retry=1"):
        low()()


@pytest.mark.parametrize("off", [3600, -3600])
def test_a_clock_there_that_is_wrong(tmp_path: Path, off: int) -> None:
    """The clock of the other Python is an hour off."""
    task = there(setup=[clock_that_is_off(tmp_path, off)])(process(timeout=60)(lambda: time.time()))
    assert abs(task()() - time.time() - off) < 600


def test_a_node_that_goes_down_is_told(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there()
    def there_for_long() -> None:
        note(log, os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"])
        time.sleep(60)

    def take_down() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        slurm.run("scontrol", "update", f"nodename={notes(log)[0][1]}", "state=down", "reason=test")

    try:
        with _meanwhile(take_down), pytest.raises(LinkLostError, match="NODE_FAIL"):
            there_for_long()()
    finally:
        wait_until(lambda: is_back(slurm, notes(log)[0][1]), 90, "the node does not come back")


def is_back(slurm: SlurmCluster, node: str) -> bool:
    """Whether both nodes accept jobs. Resumes this one. Slurm refuses to while its job is being
    ended, and after its slurmd has reported that it is well."""
    if slurm.state_of_nodes() == ["idle", "idle"]:
        return True
    slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    time.sleep(0.5)
    return False


def test_a_drained_node_takes_no_new_allocation(slurm: SlurmCluster) -> None:
    slurm.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    try:
        assert there()(job)()()[1] == "n2"
    finally:
        slurm.run("scontrol", "update", "nodename=n1", "state=resume")


def test_the_controller_is_restarted_in_the_middle(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there()
    def through() -> int:
        note(log, os.environ["SLURM_JOB_ID"])
        wait_until(lambda: len(notes(log)) == 2, 60, "nobody said that the controller is back")
        return 5

    def restart() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        slurm.stop_controller()
        slurm.start_controller()
        note(log, "back")

    @workflow
    def both() -> Any:
        return gather(through()(), there()(add)(1, 2))

    with _meanwhile(restart):
        assert both()() == [5, 3]


def test_a_call_that_would_not_fit_goes_to_the_next_allocation(slurm: SlurmCluster) -> None:
    @there(time=120)
    @process(timeout=100)
    def soon() -> tuple[str, str, int]:
        return job()

    with entangle.session():
        first = soon()()[0]
        (pool,) = pools._all.values()
        (allocation,) = pool._held
        allocation.until -= 60  # as if a minute had passed
        second = soon()()[0]
        assert first != second
        wait_until(lambda: slurm.jobs() == [second] or first in slurm.jobs(), 5, "it is gone")


def test_the_walltime_ends_a_call(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @there(time=60)
    def too_long() -> None:
        note(log, os.environ["SLURM_JOB_ID"])
        time.sleep(200)

    def shorten() -> None:
        wait_until(lambda: notes(log), 60, "the body never began")
        slurm.run("scontrol", "update", f"jobid={notes(log)[0][0]}", "EndTime=now+2")

    with _meanwhile(shorten), pytest.raises(LinkLostError) as caught:
        too_long()()
    assert "TIMEOUT" in str(caught.value)
    assert f"(job {notes(log)[0][0]})" in str(caught.value)


def test_a_call_that_waits_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The reason is on stderr, in the progress and in `top`. Records count that time as queued, not
    as running. A call may wait longer than an idle allocation is kept."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    seen: list[Any] = []

    def look() -> list[Any]:
        told = subprocess.run([sys.executable, "-m", "entangle", "top", "--json"], capture_output=True, text=True, check=True).stdout
        return [one for run in json.loads(told)["runs"] for one in run["away"] if "because" in one["why"]]

    with entangle.session(idle=2), _meanwhile(lambda: seen.extend(wait_until(look, 30))):
        assert there(options={"begin": "now+12"})(add)(1, 2).run(progress=True) == 3
    assert seen == [{"place": "slurm", "why": "pending because BeginTime", "nodes": 1}]
    said = capfd.readouterr().err
    assert "[slurm] job" in said
    assert "is pending because BeginTime" in said
    assert "add 0/1 · 1 pending because BeginTime · ? left" in said
    (node,) = records.run("last").nodes
    assert node.place is not None
    assert node.place.startswith("slurm:n")
    assert node.times.queued > 8
    assert node.times.running < node.times.queued


def test_a_job_that_is_cancelled_while_it_waits_is_told(slurm: SlurmCluster) -> None:
    def scancel() -> None:
        wait_until(slurm.jobs, 30, "no job was asked for")
        slurm.run("scancel", slurm.jobs()[0])

    with _meanwhile(scancel), pytest.raises(LinkLostError, match=r"job \d+ ended before it began: CANCELLED"):
        gather(*[there(options={"begin": "now+100"})(add)(1, 2) for _ in range(3)])()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("everything", [False, True], ids=["the-caller", "all-its-processes-here"])
def test_nothing_is_left_when_the_caller_is_killed(everything: bool, slurm: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = tmp_path / "caller.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, time
            from entangle.slurm import slurm

            @slurm(time=300, python=sys.executable)
            def there():
                with open({str(log)!r}, "w") as file:
                    file.write(f"{{os.getpid()}}\\n")
                time.sleep(200)

            if __name__ == "__main__":
                there()()
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": ROOT}) as caller:
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"), 60, "the body never began")
        assert len(slurm.jobs()) == 1
        doomed = psutil.Process(caller.pid).children(recursive=True) if everything else []
        for process_here in (psutil.Process(caller.pid), *doomed):
            process_here.send_signal(signal.SIGKILL)
    wait_until(lambda: not slurm.jobs(), 60, "the allocation outlives its caller")
    wait_until(lambda: not Path(f"/proc/{int(log.read_text())}").exists(), 10, "the body outlives its caller")


class _meanwhile:  # noqa: N801  # reads as a word
    """Does something in a thread during the block."""

    def __init__(self, act: Any) -> None:
        import threading

        self._error: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:
                self._error.append(error)

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error:
            raise self._error[0]


def test_a_place_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    options = f'python = "{sys.executable}"\nmemory = "400M"\n'
    (tmp_path / "entangle.toml").write_text(
        f'[places.cluster]\nkind = "slurm"\ntime = 300\n{options}[places.other]\nkind = "slurm"\n{options}'
    )
    with open(tmp_path / "entangle.toml", "a") as file:
        file.write(f'[places.jobs]\nkind = "slurm"\ntime = 60\ndetached = true\nmailbox = "./mailbox"\n{options}')
    found = place("cluster")(job)()()
    (node,) = records.run("last").nodes
    assert (node.place, node.ticket) == (f"slurm:{found[1]}", f"job {found[0]}")
    assert place("other")(process(timeout=100)(add))(1, 2)() == 3
    with pytest.raises(OptionError, match=r"\[places.other\]: @slurm needs to know how long"):
        place("other")(add)
    assert main(["places", "check", "cluster", "jobs"]) == 0
    assert capsys.readouterr().out.count("round trip") == 2
    open_watchers.close_all(str(tmp_path))
    assert (tmp_path / "mailbox").is_dir()
