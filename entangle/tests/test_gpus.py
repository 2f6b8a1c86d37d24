"""@scheduler(gpus=…): a process serves only its own devices, never more bodies than shares use a
device, and no device is lost.

The devices do not exist: ENTANGLE_GPUS names them, and a body sees them in its environment.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import entangle
from entangle._run import gpus
from entangle._run.forking import why_not_fork
from entangle._shared import device_arrays
from entangle._shared import home as homes
from entangle._shared.devices import Claim, Devices, shown
from entangle.dataflow import dataflow
from entangle.errors import DeviceError, OptionError, UnpicklableError
from entangle.interpreter import interpreter
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import ROOT
from .evidence import alive
from .moments import Watch
from .ways import installed

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two devices that do not exist, whatever this machine has."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENTANGLE_GPUS", "0,1")
    monkeypatch.setattr("entangle._run.gpus._asked", lambda: ([], "not asked in tests"))


def visible() -> str:
    """The device of this process, which all three variables name."""
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
    """A value that cannot be passed between processes, as an array on a device."""

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
    """The largest number of bodies that ran at once."""
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


@pytest.mark.parametrize("there", ["0", "0,1"])
def test_a_device_is_lent_while_its_body_waits_for_a_run(there: str, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", there)
    for found in gather(*[nested(2) for _ in range(3)])():
        assert len(found) == 3
        assert set(found) <= set(there.split(","))


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
    """A worker that serves a device but rests makes room for others."""
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


@dataflow(executor="process")
@scheduler(gpus=1)
@process(retry=2)
def killed_at_first(told: tuple[str, int]) -> int:
    folder, number = told
    mark = os.path.join(folder, str(number))
    if number % 5 == 2 and not os.path.exists(mark):
        open(mark, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_stream_goes_on_when_a_worker_of_a_device_dies(tmp_path: Path, start: str) -> None:
    flow: Any = killed_at_first()
    assert [value for (value,) in flow.stream((str(tmp_path), number) for number in range(12))] == list(range(12))
    assert len(list(tmp_path.iterdir())) == 2


@interpreter(python=sys.executable)
@scheduler(gpus=1)
@process
def elsewhere() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_another_place_gives_its_own_devices() -> None:
    assert elsewhere()() in "01"


def test_one_cpu_is_enough() -> None:
    """Workers that serve devices do not count against the workers that a graph needs besides."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for _ in range(5):
            assert len(gather(*[with_cpu() for _ in range(4)])()) == 4
            assert len(gather(*[nested(1) for _ in range(3)])()) == 3
    finally:
        os.sched_setaffinity(0, cpus)


# Cookies of devices, by themselves ----------------------------------------------------------------


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    monkeypatch.setattr("entangle._shared.devices._ROWS", 16)  # fewer rows, because each instruction is traced
    made = Devices(str(tmp_path / "devices"))
    yield made
    made.close()


ONE, BOTH = Claim(1, 1, False), Claim(2, 1, False)
NAMES = ("GPU-a", "GPU-b")


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.drill)])
@pytest.mark.parametrize("free", [True, False])
def test_a_process_killed_at_any_moment_takes_no_device_with_it(
    devices: Devices, free: bool, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entangle._shared.devices._PATIENCE", 0.001)
    mine = devices.join(BOTH, NAMES, "")
    for number in range(1, 3000, every):
        assert free or devices.take(mine)
        pid = os.fork()
        if pid == 0:
            looks = iter((False, False, True))
            watch = Watch(number, lambda: os.kill(os.getpid(), signal.SIGKILL), stores=True)
            watch.begin()
            row = devices.join(ONE, NAMES, "")
            devices.wait(row, functools.partial(next, looks))
            devices.give(row)
            devices.leave(row)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        devices.give(mine)
        assert devices.room(ONE, NAMES) == 2, number
        assert not devices.others_wait(), number
        if not ended:
            break
    assert number > 20


def test_who_wants_several_is_not_passed_by_for_ever(devices: Devices) -> None:
    """Devices that become free are kept for it, and later claims wait."""
    one, other = devices.join(ONE, NAMES, ""), devices.join(ONE, NAMES, "")
    assert devices.take(one)
    waiting, has = threading.Event(), threading.Event()

    def want() -> None:
        row = devices.join(BOTH, NAMES, "")
        waiting.set()
        assert devices.wait(row, lambda: False)
        has.set()

    thread_of_both = threading.Thread(target=want)
    thread_of_both.start()
    waiting.wait()
    while not devices.others_wait():
        time.sleep(0.001)
    assert not devices.take(other)  # though one device is free
    devices.give(one)
    thread_of_both.join()
    assert has.is_set()
    assert not devices.take(other)


def test_workers_of_a_run_spread_over_the_devices(devices: Devices) -> None:
    rows = [devices.join(Claim(1, 4, False), NAMES, "1f") for _ in range(8)]
    assert all(devices.take(row) for row in rows)
    assert [devices.bound(row) for row in rows] == [["GPU-a"], ["GPU-b"]] * 4
    assert not devices.take(devices.join(Claim(1, 4, False), NAMES, "1f"))


def test_a_name_that_is_too_long(devices: Devices) -> None:
    with pytest.raises(DeviceError, match="too long for the name of a device"):
        devices.numbers(["G" * 200])


# In a session ------------------------------------------------------------------------------------


@scheduler(gpus=1)
@process
def draws(first: bool) -> float:
    if first:
        random.seed(1)
        os.environ["MINE"] = "set by a body"
    return random.random()


class NotThere:
    def __reduce__(self) -> Any:
        return _raises, ()


def _raises() -> None:
    raise ValueError("not in a worker")


def test_workers_of_a_session_keep_their_device() -> None:
    """Also if two were needed once: each worker continues with its own device."""
    with entangle.session() as warm:
        both = dict(row[1::-1] for row in gather(on_gpu(0.3), on_gpu(0.3))())
        assert set(both.values()) == {"0", "1"}
        later = [gather(on_gpu(0.1), on_gpu(0.1))() for _ in range(3)]
        assert {(pid, device) for rows in later for device, pid, *_ in rows} <= set(both.items())
        assert both.keys() <= set(warm.pids)
        # The worker undoes what a body changes, and keeps its device.
        assert draws(True)() != draws(False)()
        assert process(os.environ.get)("MINE")() is None
        assert on_gpu()()[1] in both
        other = on_third(0.0)()
        assert other[1] not in both
        assert not both.keys() & set(warm.pids)  # what they had left on the device would be in its way
    assert not alive(other[1])


def test_a_worker_of_a_session_gives_its_cookie_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each run, also one that it could not join. Its death concerns one run alone."""
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    with entangle.session():
        pid = on_gpu()()[1]
        with pytest.raises(UnpicklableError, match="not in a worker"):
            copies(NotThere())()  # type: ignore[type-var]
        assert on_gpu()(start="fork")[0] == "0"  # else it would wait for ever
        assert on_gpu()()[1] == pid
        killed: Any = scheduler(gpus=1)(process(os.kill))
        with pytest.raises(Exception, match="SIGKILL"):
            killed(pid, signal.SIGKILL)()
        assert on_gpu()()[1] != pid


def test_a_session_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_GPUS")
    with entangle.session():
        for name in ("0", "1", "0"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
            assert on_gpu()()[0] == name


def test_a_run_waits_for_one_that_has_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in a thread of the program needs a device while another run has the warm worker."""
    monkeypatch.setenv("ENTANGLE_GPUS", "0")

    @thread
    def around(_: Any) -> Any:
        return on_gpu()()

    with entangle.session():
        on_gpu()()
        assert around(on_gpu(0.1))()[0] == "0"


# What is imported, and what is opened ------------------------------------------------------------


def test_the_device_is_shown_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """A library may read the environment only once, when it is imported."""
    if start == "fork":
        pytest.skip("a forked worker has what its parent had imported; what opens a device looks later")
    (tmp_path / "looks_once.py").write_text("import os\nseen = os.environ.get('CUDA_VISIBLE_DEVICES')\ndef look(): return seen\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import looks_once  # type: ignore[import-not-found, unused-ignore]

    assert looks_once.seen is None
    look: Any = scheduler(gpus=1)(process(looks_once.look))
    assert look()() in ("0", "1")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device that this process has open, through a library that it loaded long before."""
    device = tmp_path / "nvidia0"
    device.touch()
    assert process(os.getppid)()(start="fork") == os.getpid()
    monkeypatch.setattr("entangle._run.forking.DEVICES", (str(tmp_path),))
    monkeypatch.setattr("entangle._run.forking._DRIVERS", (b"libc",))
    monkeypatch.setattr("entangle._run.forking._seen", ())
    with device.open():
        yield str(device)


def test_a_process_with_an_open_device_does_not_fork(opened: str) -> None:
    assert process(os.getppid)()() != os.getpid()
    assert opened in why_not_fork()


def test_start_by_fork_is_refused_where_a_device_is_open(opened: str) -> None:
    with pytest.raises(OptionError, match="start='fork': this process has opened a GPU"):
        on_gpu()(start="fork")


# Values ------------------------------------------------------------------------------------------


class Array:
    """Resembles an array on a device: it tells its size there in bytes, and counts its copies."""

    def __init__(self, nbytes: int, copies: int = 0) -> None:
        self.nbytes = nbytes
        self.copies = copies

    def copy_to_host(self) -> None:
        """Arrays on devices have this method."""

    def __reduce__(self) -> Any:
        return Array, (self.nbytes, self.copies + 1)


@scheduler(gpus=1)
@process
def array(nbytes: int) -> Array:
    return Array(nbytes)


@scheduler(gpus=1)
@process
def copies(*arrays: Array) -> list[int]:
    return [one.copies for one in arrays]


def test_values_for_one_consumer_stay_on_the_device(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    assert copies(array(1), array(2), array(3))() == [0, 0, 0]


PROGRAM = """
import json, logging, sys
import numpy as np
from numba import cuda
from entangle.process import process
from entangle.scheduler import scheduler

@cuda.jit
def kernel(a):
    at = cuda.grid(1)
    if at < a.size:
        a[at] *= 2

@scheduler(gpus=1)
@process
def load(size):
    return cuda.to_device(np.arange(size, dtype=np.float32))

@scheduler(gpus=1)
@process
def double(a):
    kernel.forall(a.size)(a)
    return a

@scheduler(gpus=1)
@process
def mean(a):
    return float(a.copy_to_host().mean())

@process
def on_cpu(a):
    return float(a["one"].copy_to_host().sum()), type(a["two"][0]).__name__

@process
def pair(a):
    return {"one": a, "two": [a]}

if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    logging.getLogger("entangle").setLevel(logging.INFO)
    start = sys.argv[1]
    print(mean(double(double(load(5))))(start=start), flush=True)
    print("now it leaves", flush=True)
    print(on_cpu(pair(double(load(5))))(start=start), flush=True)
    print(load(3)(start=start).copy_to_host().tolist())
    print(mean(cuda.to_device(np.ones((4, 4)))[::2])(start=start))
"""


def test_arrays_of_numba_go_from_device_to_device(tmp_path: Path, start: str) -> None:
    """numba's simulator stands for the device. Its arrays cannot be pickled either."""
    installed("numba")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": ROOT, "NUMBA_ENABLE_CUDASIM": "1", "ENTANGLE_GPUS": "0", "ENTANGLE_RECORD": "0"}
    done = subprocess.run([sys.executable, "program.py", start], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    chain, told, moved, on_cpu, root, given = [line for line in done.stdout.splitlines() if "the caller" not in line]
    assert (chain, told) == ("8.0", "now it leaves")
    assert moved == "the value of task 'double' was copied from its GPU: 20 bytes through the host, for 'pair'"
    assert on_cpu == "(20.0, 'FakeCUDAArray')"
    assert root == "[0.0, 1.0, 2.0]"
    assert given == "1.0"


def test_arrays_on_a_real_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("numba")
    monkeypatch.undo()
    if not gpus.find().gpus:
        pytest.skip("no GPU here")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path]), "ENTANGLE_RECORD": "0"}
    done = subprocess.run(
        [sys.executable, "program.py", "auto"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "copied" not in line] == [
        "8.0",
        "now it leaves",
        "(20.0, 'DeviceNDArray')",
        "[0.0, 1.0, 2.0]",
        "1.0",
    ]


def test_an_array_for_a_process_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        class cuda:  # noqa: N801
            @staticmethod
            def to_device(_: Any) -> None:
                raise RuntimeError("no driver")

    monkeypatch.setitem(sys.modules, "numba", Refuses)
    with pytest.raises(DeviceError, match=r"an array of 8,000 bytes .* no driver.*@scheduler\(gpus=1\) on the function that takes it"):
        device_arrays._on_device(SimpleNamespace(nbytes=8000))


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


#: Stands for the driver's library in the process that asks it: an A100, and an H100 split into
#: parts.
NVML = """
import ctypes

DEVICES = [None, (b"GPU-aa11", b"A100", 40 << 30, 0), (b"GPU-bb22", b"H100", 80 << 30, 2)]
DEVICES += [(b"MIG-0", b"H100 MIG 1g.10gb", 10 << 30, 0), (b"MIG-1", b"H100 MIG 1g.10gb", 10 << 30, 0)]

def put(reference, value):
    reference._obj.value = value
    return 0

class Library:
    def nvmlInit_v2(self): return {begin}
    def nvmlDeviceGetCount_v2(self, count): return put(count, 2)
    def nvmlDeviceGetHandleByIndex_v2(self, index, handle): return put(handle, index + 1)
    def nvmlDeviceGetMaxMigDeviceCount(self, gpu, count): return put(count, 7)
    def nvmlDeviceGetMigMode(self, gpu, mode, pending): return put(mode, 1) if DEVICES[gpu.value][3] else 3
    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, index, handle): return put(handle, index + 3) if index < 2 else 6
    def nvmlDeviceGetName(self, one, buffer, size): buffer.value = DEVICES[one.value][1]
    def nvmlDeviceGetUUID(self, one, buffer, size): buffer.value = DEVICES[one.value][0]
    def nvmlDeviceGetMemoryInfo(self, one, memory): memory._obj[0] = DEVICES[one.value][2]
    class nvmlErrorString:
        def __new__(cls, code): return b"Driver Not Loaded"

usual = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **kwargs: Library() if name == "libnvidia-ml.so.1" else usual(name, *args, **kwargs)
"""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.undo()
    for name in (*VARIABLES, "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("entangle._run.gpus._ASK", NVML.format(begin=getattr(request, "param", 0)) + gpus._ASK)
    monkeypatch.setattr("entangle._run.gpus._has_driver", lambda: True)
    monkeypatch.setattr("entangle._run.gpus._told", None)


def names() -> list[str]:
    return [gpu.name for gpu in gpus.find().gpus]


def test_nvml_tells_devices_and_parts_of_devices(nvml: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "7")  # for machines without NVML
    found = gpus.find()
    assert list(found.gpus) == [
        ("0", "A100", 40 << 30),
        ("MIG-0", "H100 MIG 1g.10gb", 10 << 30),
        ("MIG-1", "H100 MIG 1g.10gb", 10 << 30),
    ]


@pytest.mark.parametrize(
    ("variable", "there"),
    [
        ("0", ["0"]),
        ("1,0", ["1", "0"]),
        ("GPU-aa", ["GPU-aa"]),
        ("MIG-1,GPU-aa11", ["MIG-1", "GPU-aa11"]),
        ("MIG-GPU-bb22/1/0", ["MIG-GPU-bb22/1/0"]),
        ("0,9,1", ["0"]),
        ("GPU-zz", []),
        ("", []),
        ("-1", []),
    ],
)
def test_the_variable_restricts_what_nvml_tells(nvml: None, variable: str, there: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert names() == there
    if not there:
        with pytest.raises(DeviceError, match="leaves none of those that NVML finds \\(0, MIG-0, MIG-1\\)"):
            on_gpu()()


LIBRARY = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(0x7f1200000000UL + index); return 0; }
int nvmlDeviceGetName(void *one, char *name, unsigned size) { strcpy(name, "A100"); return 0; }
int nvmlDeviceGetUUID(void *one, char *name, unsigned size) { strcpy(name, (unsigned long)one & 1 ? "GPU-b" : "GPU-a"); return 0; }
int nvmlDeviceGetMemoryInfo(void *one, memory *found) { found->total = 40UL << 30; return 0; }
const char *nvmlErrorString(int code) { return "Not Supported"; }
"""


def test_a_library_in_c_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library from before MIG, which lacks the functions for that."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    monkeypatch.undo()
    (tmp_path / "nvml.c").write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True)
    for name in (*VARIABLES, "ENTANGLE_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr("entangle._run.gpus._has_driver", lambda: True)
    monkeypatch.setattr("entangle._run.gpus._told", None)
    assert list(gpus.find().gpus) == [("0", "A100", 40 << 30), ("1", "A100", 40 << 30)]


@scheduler(gpus=1)
@process
def order() -> tuple[str, str | None]:
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("CUDA_DEVICE_ORDER")


def test_numbers_of_nvml_are_those_of_cuda(nvml: None) -> None:
    """CUDA numbers the fastest device first, unless told otherwise; NVML numbers by PCI bus."""
    assert set(gather(*[order() for _ in range(3)])()) <= {("0", "PCI_BUS_ID"), ("MIG-0", "PCI_BUS_ID"), ("MIG-1", "PCI_BUS_ID")}


@pytest.mark.parametrize("nvml", ["9"], indirect=True)
def test_nvml_that_fails_is_told(nvml: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_GPUS", raising=False)
    with pytest.raises(DeviceError, match=r"NVML \(Driver Not Loaded\)"):
        on_gpu()()
    monkeypatch.setenv("ENTANGLE_GPUS", "4")
    assert names() == ["4"]


def test_rocm_counts_in_two_ways() -> None:
    """HIP numbers the devices that ROCR_VISIBLE_DEVICES leaves."""
    assert shown(["1", "3"], "rocr") == {"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert shown(["1"], "hip") == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpus": 0}, "gpus=0; it must be a whole number from 1"),
        ({"gpus": True}, "gpus=True"),
        ({"gpus": "1"}, "gpus='1'"),
        ({"gpus": 1, "share": 0}, "share=0"),
        ({"gpus": 1, "share": 1.5}, "share=1.5"),
        ({"share": 2}, "write gpus=1 with it"),
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


def test_a_task_states_its_gpus_once() -> None:
    claimed = scheduler(gpus=1, share=2)(process(visible))
    with pytest.raises(OptionError, match=r"visible says gpus=2, share=1 here and gpus=1, share=2 below; leave one out"):
        scheduler(gpus=2)(claimed)
    assert scheduler(gpus=1, share=2)(claimed)()() in ("0", "1")
    assert scheduler(cpus=1)(claimed)()() in ("0", "1")


def test_threads_that_ask_for_the_devices_at_once_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second handle would stay open, or would release the locks of the first when it is
    closed."""
    made: list[object] = []
    asks = threading.Barrier(4)

    class Slow(Devices):
        def __init__(self, path: str, spill: str) -> None:
            made.append(self)
            time.sleep(0.2)  # so that the others wait for the lock
            super().__init__(path, spill)

    monkeypatch.setattr(homes, "Devices", Slow)
    found: list[object] = []

    def ask() -> None:
        asks.wait(20)
        found.append(homes.devices_of(str(tmp_path)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    homes.close_devices(str(tmp_path))
    assert len(made) == 1
    assert found == made * 4
