"""@scheduler(gpus=…): a process serves its devices alone, no more bodies than shares, none is lost.

The devices are made up: ENTANGLE_GPUS names them, and what a body sees of them is its environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import DeviceError, OptionError
from entangle.interpreter import interpreter
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two made-up devices, whatever this machine has."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENTANGLE_GPUS", "0,1")
    monkeypatch.setattr("entangle._run.gpus._asked", lambda: ([], "not asked in tests"))


def visible() -> str:
    """The device of this process: all three variables name it."""
    (name,) = {os.environ[name] for name in VARIABLES}
    return name


@process
def gather(*values: Any) -> list[Any]:
    return list(values)


@scheduler(gpus=1)
@process
def on_gpu(seconds: float = 0.0) -> tuple[str, int, float, float]:
    began = time.monotonic()
    time.sleep(seconds)
    return visible(), os.getpid(), began, time.monotonic()


@scheduler(gpus=1, share=3)
@process
def on_third(seconds: float) -> tuple[str, int, float, float]:
    began = time.monotonic()
    time.sleep(seconds)
    return visible(), os.getpid(), began, time.monotonic()


@scheduler(gpus=2)
@process
def on_both(seconds: float = 0.0) -> tuple[str, int, float, float]:
    began = time.monotonic()
    time.sleep(seconds)
    return visible(), os.getpid(), began, time.monotonic()


class Resident:
    """A value that no process can give to another, as an array on a device."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.device = visible()

    def __reduce__(self) -> Any:
        raise TypeError("it cannot leave its device")


@scheduler(gpus=1)
@process
def load() -> Resident:
    return Resident(0)


@scheduler(gpus=1)
@process
def step(value: Resident) -> Resident:
    value.steps += 1
    return value


@scheduler(gpus=1)
@process
def result(value: Resident) -> tuple[int, bool]:
    return value.steps, value.device == visible()


def most_at_once(spans: list[tuple[str, int, float, float]]) -> int:
    """How many of the bodies ran at a time at most."""
    return max(sum(began <= at < ended for _, _, began, ended in spans) for _, _, at, _ in spans)


def test_a_worker_serves_one_device_for_its_life(start: str) -> None:
    spans = gather(*[on_gpu(0.05) for _ in range(8)])()
    served: dict[int, set[str]] = {}
    for name, pid, *_ in spans:
        served.setdefault(pid, set()).add(name)
    assert all(len(names) == 1 for names in served.values())
    assert set.union(*served.values()) == {"0", "1"}
    assert len(served) == 2  # workers are used again


def test_no_more_than_one_at_a_time_on_a_device(start: str) -> None:
    spans = gather(*[on_gpu(0.03) for _ in range(8)])()
    assert most_at_once(spans) == 2
    for device in "01":
        assert most_at_once([span for span in spans if span[0] == device]) == 1


def test_share_lets_so_many_use_a_device(start: str) -> None:
    spans = gather(*[on_third(0.3) for _ in range(12)])()
    for device in "01":
        assert 2 <= most_at_once([span for span in spans if span[0] == device]) <= 3


def test_different_shares_do_not_take_more_than_a_device_has() -> None:
    spans = gather(*[on_third(0.05) for _ in range(6)], *[on_gpu(0.05) for _ in range(4)])()
    for name, pid, began, ended in spans[6:]:
        beside = [span for span in spans if span[0] == name and span[1] != pid and span[2] < ended and span[3] > began]
        assert beside == []


def test_a_body_that_needs_two_has_both_alone() -> None:
    spans = gather(*[on_gpu(0.02) for _ in range(6)], *[on_both(0.02) for _ in range(3)])()
    assert {name for name, *_ in spans[6:]} == {"0,1"}
    for _, pid, began, ended in spans[6:]:
        assert [span for span in spans if span[1] != pid and span[2] < ended and span[3] > began] == []


def test_a_chain_stays_in_its_worker_with_its_values(start: str) -> None:
    assert result(step(step(step(load()))))() == (3, True)


def test_chains_beside_each_other_stay_each_in_its_worker() -> None:
    assert gather(*[result(step(step(load()))) for _ in range(4)])() == [(2, True)] * 4


@scheduler(gpus=1)
@process
def nested(depth: int) -> list[str]:
    before = visible()
    inner = nested(depth - 1)() if depth else []
    assert visible() == before
    return [before, *inner]


@pytest.mark.parametrize("gpus", ["0", "0,1"])
def test_a_device_is_lent_while_its_body_waits_for_a_run(gpus: str, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", gpus)
    for found in gather(*[nested(2) for _ in range(3)])():
        assert len(found) == 3
        assert set(found) <= set(gpus.split(","))


@process
def in_between() -> list[str]:
    return gather(on_gpu(), on_both())()


@scheduler(gpus=1)
@process
def around() -> list[Any]:
    return in_between()()


def test_runs_far_inside_have_all_devices_of_the_outermost() -> None:
    one, both = around()()
    assert one[0] in "01"
    assert both[0] == "0,1"


@scheduler(gpus=1)
@process(retry=3)
def killed(count: str) -> int:
    with open(count, "a", encoding="ascii") as file:
        file.write("x")
    attempt = os.path.getsize(count)
    if attempt < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def test_a_killed_body_gives_its_device_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    calls = [killed(str(tmp_path / str(number))) for number in range(3)]
    assert gather(*calls, on_gpu(), on_gpu())()[:3] == [3, 3, 3]
    assert on_gpu()()[0] == "0"


@scheduler(gpus=1)
@process(timeout=0.3)
def too_long() -> None:
    time.sleep(60)


def test_a_body_past_its_timeout_gives_its_device_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    with pytest.raises(ProcessTimeoutException):
        too_long()()
    assert on_gpu()()[0] == "0"


@scheduler(gpus=1)
@process
def fails() -> None:
    raise ValueError("as asked")


def test_a_body_that_fails_gives_its_device_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    for _ in range(3):
        with pytest.raises(ValueError, match="as asked"):
            fails()()


def test_runs_in_several_threads_share_the_devices(start: str) -> None:
    spans: list[tuple[str, int, float, float]] = []

    def run() -> None:
        spans.extend(gather(*[on_gpu(0.02) for _ in range(4)])())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(spans) == 12
    for device in {name for name, *_ in spans}:
        assert most_at_once([span for span in spans if span[0] == device]) == 1


@scheduler(gpus=1)
@process(fresh=True)
def alone(*before: int) -> list[int]:
    return [*before, os.getpid()]


def test_a_fresh_body_has_a_process_of_its_own(start: str) -> None:
    first, second, third = gather(alone(1), alone(2), alone(3))()
    assert len({first[1], second[1], third[1]}) == 3


@scheduler(cpus=1, gpus=1)
@process
def with_cpu() -> tuple[str, int]:
    return visible(), len(os.sched_getaffinity(0))


def test_cookies_for_a_cpu_and_a_device_together() -> None:
    for name, cpus in gather(*[with_cpu() for _ in range(5)])():
        assert name in "01"
        assert cpus == 1


def test_workers_are_few_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that serves a device and rests makes place for others."""
    monkeypatch.setenv("ENTANGLE_MAX_WORKERS", "1")
    assert len(gather(on_gpu(), gather(on_both()), on_gpu())()) == 3


@dataflow(executor="process")
@scheduler(gpus=1)
def in_flow(n: int) -> tuple[int, str]:
    return n, visible()


@dataflow(executor="process")
@scheduler(gpus=1)
def further(taken: tuple[int, str]) -> tuple[int, str, str]:
    return (*taken, visible())


def test_nodes_of_a_dataflow_have_devices() -> None:
    flow: Any = in_flow(further(), further())
    for number in range(3):
        for found, *devices in flow(number):
            assert found == number
            assert set(devices) <= {"0", "1"}
    assert [values[0][0] for values in flow.stream(range(20))] == list(range(20))


@interpreter(python=sys.executable)
@scheduler(gpus=1)
@process
def elsewhere() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_another_place_gives_its_own_devices() -> None:
    assert elsewhere()() in "01"


# Which devices there are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ({"ENTANGLE_GPUS": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "5"}, "5"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5a2f"}, "GPU-5a2f"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-77aa,-1,4"}, "MIG-77aa"),
        ({"HIP_VISIBLE_DEVICES": "2"}, "2"),
        ({"ROCR_VISIBLE_DEVICES": "6"}, "6"),
    ],
)
def test_variables_name_devices(given: dict[str, str], there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert {name for name, *_ in gather(*[on_gpu() for _ in range(3)])()} == {there}


@pytest.mark.parametrize("none", ["", "-1"])
def test_a_variable_that_names_none_leaves_none(none: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    with pytest.raises(DeviceError, match=r"task 'on_gpu' wants a GPU, and none was found.*Unset CUDA_VISIBLE_DEVICES"):
        on_gpu()()


def test_no_devices_is_an_error_that_says_how_to_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_GPUS")
    with pytest.raises(DeviceError, match=r"NVML.*CUDA_VISIBLE_DEVICES.*ENTANGLE_GPUS=0,1"):
        gather(on_gpu(), 1)()


def test_fewer_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    with pytest.raises(DeviceError, match="'on_both' wants 2 GPUs at once, and there is 1: 0"):
        gather(on_gpu(), on_both())()


# What cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpus": 0}, "gpus=0; it must be a whole number from 1"),
        ({"gpus": True}, "gpus=True"),
        ({"gpus": "1"}, "gpus='1'"),
        ({"gpus": 1, "share": 0}, "share=0"),
        ({"gpus": 1, "share": 1.5}, "share=1.5"),
        ({"share": 2}, "say gpus=1 with it"),
        ({"gpus": 1, "impl": "package.Class"}, "hands out no GPUs"),
        ({"gpu": 1}, "did you mean 'gpus'"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        scheduler(**options)


def test_a_body_in_the_callers_process_has_no_device_of_its_own() -> None:
    with pytest.raises(OptionError, match="needs a process of its own"):
        thread(scheduler(gpus=1)(visible))
    with pytest.raises(OptionError, match="needs a process of its own"):
        scheduler(gpus=1)(workflow(visible))
    with pytest.raises(OptionError, match="put @process on top"):
        scheduler(gpus=1)(visible)()()
    with pytest.raises(OptionError, match=r"put @scheduler\(gpus=1\) below @interpreter"):
        scheduler(gpus=1)(interpreter(python=sys.executable)(process(visible)))
