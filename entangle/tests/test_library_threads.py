"""The threads of numerical libraries keep to the CPUs that a worker has."""

import os
from pathlib import Path
from typing import Any

import pytest

from entangle._run import library_shares
from entangle._run.library_shares import alone, at_once
from entangle._worker import library_threads
from entangle.flow import Flow
from entangle.process import process
from entangle.task import compile_call
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import output_of
from .services import given
from .ways import installed

CPUS = len(os.sched_getaffinity(0))
several_cpus = pytest.mark.skipif(CPUS < 2, reason="libraries have one thread anyway on one CPU")
WAYS = ("fork", "forkserver", "spawn")

#: A program with tasks that return how many threads numpy's BLAS has.
PROGRAM = """
import os, time
import numpy
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

def threads():
    import threadpoolctl, numpy
    numpy.ones((200, 200)) @ numpy.ones((200, 200))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"][0]

def beside(meet):
    # Both are there at once, so there are two workers.
    open(meet + str(os.getpid()), "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(os.path.dirname(meet))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    return threads()

@process
def of_one(*given):
    return threads()

@process
def of_two(meet):
    return beside(meet)

@process
def all_of(*values):
    return [*values, threads()]
"""
USE = "numpy.ones((300, 300)) @ numpy.ones((300, 300))\n"


def output(tmp_path: Path, lines: str, **environment: str) -> str:
    """The output of a program: PROGRAM, then these lines. `meet` is the path of a directory in
    which its processes wait for each other."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, "")
    empty = [name for name, value in environment.items() if not value]
    drop = f"import os\nfor name in {empty!r}: os.environ.pop(name, None)\n"
    meet = tmp_path / "meet"
    meet.mkdir()
    guarded = "\n".join("    " + line for line in lines.strip().splitlines())
    source = drop + PROGRAM + f"\nmeet = {str(meet) + '/'!r}\nif __name__ == '__main__':\n{guarded}\n"
    return output_of(tmp_path, source, **environment)


@several_cpus
@pytest.mark.parametrize(("start", "used"), [("fork", ""), ("fork", USE), ("forkserver", USE), ("spawn", "")])
def test_a_worker_alone_has_all_cpus_and_two_share_them(tmp_path: Path, start: str, used: str) -> None:
    """Also if the caller's own threads of the library were started before; they do not change."""
    installed("threadpoolctl")
    lines = f"""
{used}
print(of_one()(start={start!r}), all_of(of_two(meet), of_two(meet))(start={start!r}), threads())
print({{name for name in os.environ if "THREADS" in name}})
"""
    half = CPUS // 2
    assert output(tmp_path, lines) == f"{CPUS} [{half}, {half}, {CPUS}] {CPUS}\nset()\n"


@several_cpus
@pytest.mark.parametrize(("start", "name"), [("fork", "OMP"), ("fork", "OPENBLAS"), ("forkserver", "OPENBLAS"), ("spawn", "OMP")])
def test_a_number_that_the_user_has_set_stays(tmp_path: Path, start: str, name: str) -> None:
    """A variable that the library reads, also with a larger number."""
    lines = f"print(all_of(of_two(meet), of_two(meet))(start={start!r}), os.environ.get('OMP_NUM_THREADS'))"
    told = CPUS if name == "OMP" else None
    assert output(tmp_path, lines, **{f"{name}_NUM_THREADS": str(CPUS)}) == f"[{CPUS}, {CPUS}, {CPUS}] {told}\n"


@pytest.mark.skipif(CPUS != 2, reason="the numbers are those of two CPUs")
def test_a_number_that_the_user_has_set_by_a_call_is_inherited_by_a_fork(tmp_path: Path) -> None:
    """The caller uses threadpoolctl. A worker that has all CPUs keeps to the number, too."""
    lines = """
import threadpoolctl
with threadpoolctl.threadpool_limits(1):
    print(of_one()(start="fork"), threads())
print(of_one()(start="fork"))
"""
    assert output(tmp_path, lines) == "1 1\n2\n"


@several_cpus
@pytest.mark.parametrize("start", WAYS)
def test_runs_inside_bodies_divide_what_their_worker_has(tmp_path: Path, start: str) -> None:
    """In a body that has all CPUs, two nested bodies share them. In one of two bodies, they share
    its part."""
    lines = f"""
@process
def outer(meet):
    return all_of(of_two(meet), of_two(meet))(start={start!r})

@process
def half(meet):
    beside(meet)
    return all_of(of_one(), of_one())(start={start!r}), of_one()()

print(outer(meet)(start={start!r}))
for name in os.listdir(meet): os.unlink(meet + name)
print(all_of(half(meet), half(meet))(start={start!r}))
"""
    half = CPUS // 2
    quarter = max(1, half // 2)
    each = ([quarter, quarter, half], half)
    assert output(tmp_path, lines) == f"[{half}, {half}, {CPUS}]\n[{each}, {each}, {CPUS}]\n"


@several_cpus
def test_a_task_with_a_cookie_computes_on_its_one_cpu(tmp_path: Path) -> None:
    """Its libraries have one thread, and all CPUs again in the next body."""
    lines = """
from entangle.scheduler import scheduler

@scheduler(cpus=1)
@process
def bound(*given):
    return threads(), len(os.sched_getaffinity(0))

@process
def after(value):
    return value, threads(), len(os.sched_getaffinity(0))

for start in ("fork", "spawn"):
    print(after(bound())(start=start))
"""
    assert output(tmp_path, lines) == f"((1, 1), {CPUS}, {CPUS})\n" * 2


@several_cpus
def test_threads_of_the_caller_keep_its_own(tmp_path: Path) -> None:
    """Bodies in threads share the process with the caller, so nothing is set there."""
    lines = """
@thread
def in_thread(meet):
    return threads()

@workflow
def here(meet):
    return threads()

print(in_thread(meet)(), here(meet)(), all_of(of_two(meet), of_two(meet))(), threads())
"""
    half = CPUS // 2
    assert output(tmp_path, lines) == f"{CPUS} {CPUS} [{half}, {half}, {CPUS}] {CPUS}\n"


@several_cpus
def test_runs_beside_each_other_share_the_cpus(tmp_path: Path) -> None:
    """Each run has a part of them, from the second run on."""
    lines = """
first, second = of_two(meet)(proc=True), of_two(meet)(proc=True)
print(min(first.result(), second.result()), of_one()())
"""
    assert output(tmp_path, lines) == f"{CPUS // 2} {CPUS}\n"


@several_cpus
def test_a_run_with_one_worker_has_all_cpus_in_it(tmp_path: Path) -> None:
    """Its bodies run one after the other."""
    lines = "print(all_of(of_one(), of_one()).run(workers=1))"
    assert output(tmp_path, lines) == f"[{CPUS}, {CPUS}, {CPUS}]\n"


@several_cpus
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_all_jobs_of_scikit_learn_are_those_of_the_share(tmp_path: Path, start: str) -> None:
    """`n_jobs=-1` asks joblib for the number of CPUs."""
    installed("sklearn")
    lines = f"""
@process
def jobs(*given):
    import joblib
    return joblib.effective_n_jobs(-1)

@process
def both(*values):
    return values

print(jobs()(start={start!r}), both(jobs(), jobs())(start={start!r}))
"""
    assert output(tmp_path, lines) == f"{CPUS} {(CPUS // 2, CPUS // 2)}\n"


@several_cpus
def test_a_forked_worker_uses_gnus_openmp_with_one_thread(tmp_path: Path) -> None:
    """With more threads it would hang: it would wait for threads that only its parent has. So
    `auto` does not fork then, but `start="fork"` must work."""
    installed("sklearn")
    lines = """
from sklearn.datasets import make_regression
from sklearn.ensemble import HistGradientBoostingRegressor
X, y = make_regression(100, 3, random_state=0)

def score():
    return round(HistGradientBoostingRegressor(max_iter=3).fit(X, y).score(X, y), 6)

@process(timeout=60)
def fitted():
    return score()

print(len({score(), fitted()(start="fork")}))
"""
    assert output(tmp_path, lines) == "1\n"


@several_cpus
def test_without_threadpoolctl_openblas_keeps_to_its_share_all_the_same(tmp_path: Path) -> None:
    """OpenBLAS comes with numpy, and `auto` forks although it has threads."""
    lines = """
import sys
sys.modules["threadpoolctl"] = None
from entangle._worker import library_threads
numpy.ones((300, 300)) @ numpy.ones((300, 300))

def count():
    library_threads._look()
    (pool,) = library_threads._pools
    return type(pool).__name__, pool.num_threads

@process
def told(meet):
    open(meet + str(os.getpid()), "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(os.path.dirname(meet))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    return count()

@process
def both(*values):
    return values

print(both(told(meet), told(meet))(start="fork"), count())
"""
    half = ("OpenBLAS", CPUS // 2)
    assert output(tmp_path, lines) == f"{(half, half)} {('OpenBLAS', CPUS)}\n"


@several_cpus
@pytest.mark.parametrize("known", [True, False])
def test_a_worker_that_computes_nothing_starts_no_threads(tmp_path: Path, known: bool) -> None:
    """OpenBLAS's own function for the number starts all threads at once, and they spin for a while.
    So the number is written into its variable, and the function is called only if the variable is
    not found."""
    lines = f"""
from entangle._worker import openblas
if not {known}:
    openblas._VARIABLE = b"no_such_variable"

@process
def count(meet, product=False):
    open(meet + str(os.getpid()), "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(os.path.dirname(meet))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    before = len(os.listdir("/proc/self/task"))
    return before, threads(), len(os.listdir("/proc/self/task"))

@process
def both(*values):
    return values

numpy.ones((300, 300)) @ numpy.ones((300, 300))
print(both(count(meet), count(meet))(start="fork"), threads())
"""
    half = CPUS // 2
    if CPUS == 2:
        each = (1, 1, 1) if known else (2, 1, 2)
        assert output(tmp_path, lines) == f"{(each, each)} {CPUS}\n"
    else:
        assert f", {half}, " in output(tmp_path, lines)


@several_cpus
@pytest.mark.parametrize(("start", "loaded"), [("fork", True), ("fork", False), ("forkserver", True), ("spawn", False)])
def test_numba_and_numexpr_and_polars(tmp_path: Path, start: str, loaded: bool) -> None:
    """They are loaded in the caller before, or in the body. A loop can still be compiled."""
    for name in ("numba", "numexpr", "polars"):
        installed(name)
    lines = f"""
if {loaded}:
    import numba, numexpr

@process
def counted(meet):
    open(meet + str(os.getpid()), "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(os.path.dirname(meet))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    import numba, numexpr, polars
    compiled = numba.njit(lambda x: x + 1)
    return compiled(1), numba.config.NUMBA_NUM_THREADS, numexpr.get_num_threads(), polars.thread_pool_size()

@process
def both(*values):
    return values

print(both(counted(meet), counted(meet))(start={start!r}))
"""
    half = CPUS // 2
    assert output(tmp_path, lines) == f"{((2, half, min(half, 16), half),) * 2}\n"


@several_cpus
def test_values_pushed_through_a_dataflow(tmp_path: Path) -> None:
    """One value in one process has all CPUs. Each of many values has its share."""
    lines = """
from entangle.dataflow import dataflow

@dataflow
@process
def pushed(x):
    return threads()

print(pushed()(1), {value for (value,) in pushed().stream(range(20))}, set(process(pushed.function).stream(range(20))))
"""
    assert output(tmp_path, lines) == f"({CPUS},) {{1}} {{1}}\n"


@several_cpus
def test_a_number_that_a_body_sets_is_the_users(tmp_path: Path) -> None:
    """Runs inside the body use the number, too."""
    lines = f"""
@process
def outer(meet):
    os.environ["OMP_NUM_THREADS"] = "{CPUS + 1}"
    return [os.environ.get("OMP_NUM_THREADS"), *all_of(named(), named())(start="spawn")]

@process
def named():
    return os.environ.get("OMP_NUM_THREADS")

print(outer(meet)())
"""
    answer = output(tmp_path, lines)
    assert answer.startswith(f"['{CPUS + 1}', '{CPUS + 1}', '{CPUS + 1}', ")


def test_a_container_with_a_quota_of_cpus(tmp_path: Path) -> None:
    """The budget in the container is one CPU, however many the machine has."""
    from entangle.docker import docker

    image = given.image()

    @docker(image=image, cpus=1)
    @process
    def told() -> tuple[int, str | None]:
        return len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")

    cpus, number = told()()
    assert number == (None if cpus == 1 else "1")


def test_one_cpu(tmp_path: Path) -> None:
    """Nothing is set if there is nothing to share."""
    lines = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
@process
def variables(*given):
    return sorted(name for name in os.environ if "THREADS" in name)
print(variables()(), variables(variables(), variables())())
"""
    assert output(tmp_path, lines) == "[] []\n"


@several_cpus
def test_programs_that_bodies_start_have_the_share(tmp_path: Path) -> None:
    """They get it from the environment. A program that itself uses entangle takes it for the user's
    setting."""
    lines = """
import subprocess, sys
@process
def told(meet):
    beside(meet)
    program = "import os; print(os.environ['OMP_NUM_THREADS'])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()
@process
def both(*values):
    return values
print(both(told(meet), told(meet))())
"""
    half = str(CPUS // 2)
    assert output(tmp_path, lines) == f"{(half, half)}\n"


# How many bodies of a flow run at once -----------------------------------------------------------


@process
def one(*_: Any) -> int:
    return 1


@thread
def waits(*_: Any) -> int:
    return 1


@workflow
def written(*_: Any) -> int:
    return 1


def flow_of(call: Any) -> tuple[Flow, list[int]]:
    from entangle._shared.site import lanes_of

    flow = compile_call(call)
    return flow, lanes_of(flow)


def fanned(count: int) -> Any:
    first = one()
    return one(*[one(first) for _ in range(count)])


@pytest.mark.parametrize(
    ("call", "most", "expected"),
    [
        (lambda: one(), 64, 1),
        (lambda: one(one(one())), 64, 1),
        (lambda: one(one(), one()), 64, 2),
        (lambda: one(*[one() for _ in range(100)]), 64, 64),
        (lambda: fanned(5), 64, 5),
        (lambda: fanned(100), 64, 64),
        (lambda: one(one(one()), one(one(), one())), 64, 3),
        (lambda: one(*[waits() for _ in range(100)]), 64, 1),
        (lambda: one(one(waits()), one(waits())), 64, 2),
        (lambda: written(one(), one()), 64, 2),
    ],
)
def test_how_many_bodies_run_at_once(call: Any, most: int, expected: int) -> None:
    assert at_once(*flow_of(call()), most) == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: one(*[one() for _ in range(9)]), ["sink"]),
        (lambda: one(one(*[one() for _ in range(9)])), ["sink", "last"]),
        (lambda: fanned(9), ["sink", "first"]),
        (lambda: written(one(), one()), []),
        (lambda: one(one(one()), one()), ["sink"]),
    ],
)
def test_nodes_that_run_alone(call: Any, expected: list[str]) -> None:
    flow, lanes = flow_of(call())
    names = {flow.sinks[0]: "sink"}
    if flow.pending.count(0) == 1:
        names[flow.pending.index(0)] = "first"
    assert [names.get(node, "last") for node in alone(flow, lanes)] == expected


def shares(run: str, call: Any, workers: int = 512) -> tuple[int, int]:
    """The shares of a run that begins on 64 CPUs."""
    found = library_shares.begin(run, *flow_of(call), 64, workers, None)
    return found.each, found.whole


def test_shares_on_many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_shares, "_under_way", set())
    several = [
        (one(), 512, 64),
        (one(one(), one()), 512, 32),
        (one(*[one() for _ in range(5)]), 512, 12),
        (one(*[one() for _ in range(5)]), 2, 32),
        (fanned(100), 512, 1),
        (fanned(100), 4, 16),
    ]
    for call, workers, each in several:
        assert shares("run", call, workers) == (each, 64)
        library_shares.end("run")
    # Concurrent runs, and one that begins when the first has ended.
    assert [shares("a", one()), shares("b", one()), shares("c", one(one(), one()))] == [(64, 64), (32, 32), (10, 21)]
    library_shares.end("a")
    assert shares("d", one()) == (21, 21)
    # In a body whose worker has four CPUs.
    monkeypatch.setattr(library_shares, "_under_way", set())
    monkeypatch.setattr(library_threads, "share", 4)
    assert shares("e", one(one(), one())) == (2, 4)
