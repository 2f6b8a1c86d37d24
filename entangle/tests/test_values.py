"""Values between tasks, and from tasks to the caller: large ones are not copied, yet writable and
private."""

from __future__ import annotations

import gc
import os
import pickle
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest

from entangle.errors import ArgumentError, CycleError, ProcessRetryException
from entangle.process import process
from entangle.thread import thread

from . import bodies
from .evidence import text_of, wait_until
from .ways import needed

numpy = needed("numpy")

same = process(bodies.same)
pair = process(bodies.pair)
gather = process(bodies.gather)


@process
def ones(n: int) -> Any:
    return numpy.ones(n)


@process
def spoil(array: Any) -> float:
    """Write into an array. Return its new sum."""
    array[:] = array * 3
    return float(array.sum())


@process
def add_up(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def mapped() -> int:
    """How many files of ours this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("entangle" in line and ".so" not in line for line in maps)


@pytest.mark.parametrize("size", [10, 10_000, 300_000])
def test_a_result_is_the_callers_own(size: int, start: str) -> None:
    array = ones(size)()
    assert array.flags.writeable
    array *= 2
    assert array.sum() == 2 * size
    assert ones(size)().sum() == size


@pytest.mark.parametrize("size", [10, 10_000, 300_000])
def test_what_one_consumer_writes_another_does_not_see(size: int, start: str) -> None:
    made = ones(size)
    sums, _ = gather(spoil(made), spoil(made), spoil(made), add_up(made), spoil(made))()
    assert sums == (3.0 * size, 3.0 * size, 3.0 * size, float(size), 3.0 * size)


def test_what_a_consumer_in_the_same_worker_writes_another_does_not_see() -> None:
    """A single worker runs one consumer after the other."""
    made = ones(100_000)
    first = spoil(made)

    @process
    def after(_: Any, array: Any) -> float:
        return float(array.sum())

    assert after(first, made)() == 100_000


def test_a_threads_consumer_and_a_processes(start: str) -> None:
    made = ones(100_000)
    in_thread = thread(lambda array: float((array * 2).sum()))
    sums, _ = gather(in_thread(made), spoil(made), in_thread(made))()
    assert sums == (200_000, 300_000, 200_000)


def test_a_result_stays_valid_as_long_as_it_is_held() -> None:
    held = [ones(100_000)() for _ in range(5)]
    views = [array[::1000] for array in held]
    del held
    gc.collect()
    for _ in range(5):
        assert ones(200_000)().sum() == 200_000
    assert [float(view.sum()) for view in views] == [100.0] * 5


def test_memory_goes_when_the_last_view_goes() -> None:
    before = mapped()
    array = ones(500_000)()
    view = array[10:20]
    del array
    gc.collect()
    assert view.sum() == 10
    del view
    gc.collect()
    assert mapped() <= before


def test_a_large_result_is_not_copied_out_of_shared_memory() -> None:
    """It is a private map of the file that the worker wrote: only pages that are written to are
    copied."""
    array = ones(1_000_000)()
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= address < last:
                rights, name = line.split()[1], line.split()[-1]
                break
    assert rights.startswith("rw")
    assert rights.endswith("p")
    assert "entangle" in name or "deleted" in name


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: os.urandom(200_000),
    "bytearray": lambda: bytearray(os.urandom(200_000)),
    "str": lambda: "ö" * 200_000,
    "float64": lambda: numpy.arange(50_000, dtype="float64"),
    "int8": lambda: numpy.arange(100_000, dtype="int8"),
    "bool": lambda: numpy.arange(100_000) % 2 == 0,
    "complex": lambda: numpy.arange(20_000) * 1j,
    "datetime": lambda: numpy.arange(20_000).astype("datetime64[s]"),
    "text": lambda: numpy.array(["abc", "defgh"] * 20_000),
    "big-endian": lambda: numpy.arange(50_000, dtype=">i4"),
    "two dimensions": lambda: numpy.arange(90_000).reshape(300, 300),
    "fortran order": lambda: numpy.asfortranarray(numpy.arange(90_000).reshape(300, 300)),
    "not contiguous": lambda: numpy.arange(200_000).reshape(400, 500)[::3, ::-2],
    "read-only": lambda: _read_only(numpy.arange(50_000)),
    "broadcast": lambda: numpy.broadcast_to(numpy.arange(300), (300, 300)),
    "structured": lambda: numpy.array([(1, 2.5, b"x")] * 20_000, dtype=[("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "record": lambda: numpy.rec.array([(1, 2.5)] * 20_000, dtype=[("a", "i4"), ("b", "f8")]),
    "masked": lambda: numpy.ma.masked_greater(numpy.arange(50_000), 100),
    "objects": lambda: numpy.array([{"a": 1}, None, [2]] * 1000, dtype=object),
    "no elements": lambda: numpy.zeros((0, 5)),
    "no dimensions": lambda: numpy.array(3.5),
    "a number": lambda: numpy.float32(2.5),
    "one huge element": lambda: numpy.array([b"x" * 300_000]),
    "several in a dict": lambda: {"x": numpy.ones(50_000), "y": [numpy.zeros((300, 300)), b"z" * 100_000]},
    "the same twice": lambda: [shared := numpy.arange(50_000), shared],
}


def _read_only(array: Any) -> Any:
    array.setflags(write=False)
    return array


def equal(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, numpy.ma.MaskedArray):
        return bool((a.mask == b.mask).all() and (a.compressed() == b.compressed()).all())
    if isinstance(a, numpy.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_value(kind: str) -> None:
    """As an argument from the caller, between tasks in different processes, to several consumers,
    and as the result."""
    value = KINDS[kind]()
    first, second = pair(same(same(value)), same(value))()
    assert equal(first, value)
    assert equal(second, value)
    made = same(value)
    results, _ = gather(same(made), same(made), thread(bodies.same)(made))()
    assert all(equal(result, value) for result in results)
    assert type(first) is type(value)
    if isinstance(value, numpy.ndarray) and kind == "fortran order":
        assert first.flags.f_contiguous


def test_arrays_keep_what_they_share_with_each_other() -> None:
    first, second = same(KINDS["the same twice"]())()
    first[0] = 99
    assert second[0] == 99


def test_many_large_values_at_once() -> None:
    parts = [ones(20_000 + i) for i in range(40)]
    assert add_up(*parts)() == sum(20_000 + i for i in range(40))
    arrays, _ = gather(*parts)()
    assert [len(array) for array in arrays] == [20_000 + i for i in range(40)]
    assert all(array.flags.writeable for array in arrays)


def test_a_value_that_holds_a_call_is_left_alone() -> None:
    """Only arguments are searched for calls, results are not."""

    @process
    def boxed() -> list[Any]:
        return [same(3)]

    @process
    def unbox(values: list[Any]) -> Any:
        return values[0]()

    assert unbox(boxed())() == 3


def test_a_container_that_holds_itself_is_an_argument_like_any_other(start: str) -> None:
    around: list[Any] = [1, {"a": (2,)}]
    around.append(around)
    named: dict[str, Any] = {"list": around}
    named["self"] = named
    measure = process(lambda a, b: (a[2] is a, a[:2], b["self"] is b, b["list"][2] is b["list"]))
    assert measure(around, b=named)() == (True, [1, {"a": (2,)}], True, True)
    assert str(around) in str(same(around).graph())
    made = same(around)()
    assert made[2] is made


def test_a_container_that_holds_itself_and_a_call_is_an_error() -> None:
    around: list[Any] = [same(1)]
    around.append({"a": around})
    for run in (same(around), same(around).graph):
        with pytest.raises(CycleError, match="a list with a call in it is, through its items, one of its own items"):
            run()


def nested(depth: int, inmost: Any) -> Any:
    for _ in range(depth):
        inmost = [inmost]
    return inmost


def depth_of(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, value[0]
    return depth


@pytest.mark.parametrize("decorator", [process, thread])
def test_a_container_of_great_depth(decorator: Any, start: str) -> None:
    measure = decorator(depth_of)
    for depth in (150, 500):
        assert measure(nested(depth, 3))() == depth
        assert list(measure(nested(depth, 3)).graph()) == ["depth_of"]
    assert measure(nested(150, same(3)))() == 150
    with pytest.raises(ArgumentError, match="an argument has calls in containers that are nested more than 200 deep"):
        measure(nested(500, same(3)))()


def test_out_of_band_buffers_of_other_types() -> None:
    class Block:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _block, (pickle.PickleBuffer(self.data) if protocol >= 5 else self.data,)

    result = same(same(Block(b"x" * 200_000)))()
    assert bytes(result) == b"x" * 200_000


def _block(data: Any) -> bytes:
    return bytes(data)


def test_a_hundred_megabytes(start: str) -> None:
    if start == "spawn":
        pytest.skip("once without fork is enough")
    step = process(lambda array: array * 1.0)
    size = 12_500_000
    assert add_up(step(step(ones(size))))() == size
    array = ones(size)()
    array[-1] = 5
    assert array.sum() == size + 4
    del array
    wait_until(lambda: mapped() < 20)


Pair = namedtuple("Pair", "values other")


def _grow(values: Any) -> int:
    if isinstance(values, numpy.ndarray):
        values += 1
        return int(values[0])
    held = values.values if isinstance(values, Pair) else values["x"] if isinstance(values, dict) else values[0]
    held.append(1)
    return len(held)


@pytest.mark.parametrize(
    "written",
    [numpy.zeros(4, int), [[]], ([],), {"x": []}, OrderedDict(x=[]), defaultdict(list, x=[]), deque([[]], 3), Pair([], 0)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    ("carrier", "way"), [(process, "fork"), (process, "forkserver"), (thread, "fork")], ids=["fork", "forkserver", "thread"]
)
def test_what_is_written_in_a_call_is_every_functions_own(written: Any, carrier: Any, way: Any) -> None:
    grow = carrier(_grow)
    assert process(bodies.gather)(*(grow(written) for _ in range(4)))(start=way) == ((1, 1, 1, 1), {})
    assert grow(written)(start=way) == 1, "nor has the caller's been changed"


def test_every_attempt_gets_an_array_of_its_own() -> None:
    @process(retry=2)
    def flaky(values: Any) -> None:
        values += 1
        raise ValueError(f"with {values[0]}")

    with pytest.raises(ProcessRetryException) as caught:
        flaky(numpy.zeros(3, int))()
    assert "with 1" in text_of(caught.value)
    assert "with 2" not in text_of(caught.value)
