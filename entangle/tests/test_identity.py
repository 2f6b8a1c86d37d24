"""The identity of a call: the same for equal arguments and the same code, and different otherwise.
A value that has no identity is an error. `why` tells how two identities differ."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import math
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle._shared.identity import Identity, check_ignored, check_packages, code_facts, difference, identify, nearest_difference
from entangle.errors import CacheKeyError, OptionError
from entangle.task import task


def body(x: Any = None, y: Any = 1, *rest: Any, z: Any = 2, **others: Any) -> Any:
    """A function that takes any arguments."""
    return x, y, rest, z, others


def identity(*args: Any, **kwargs: Any) -> Identity:
    return identify("body", body, args, kwargs)


def key(*args: Any, **kwargs: Any) -> str:
    return identity(*args, **kwargs).key


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True, order=True)
class Frozen:
    x: Any


class Pair(collections.namedtuple("Pair", "a b")):
    pass


_HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=80),
    st.binary(max_size=80),
    st.datetimes(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.sampled_from(Colour),
)
_VALUES = st.recursive(
    _HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
        st.sets(_HASHABLE, max_size=4),
        st.frozensets(_HASHABLE, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(collections.deque, st.lists(inner, max_size=3)),
    ),
    max_leaves=12,
)


def _forms(value: Any) -> list[Any]:
    """The value with each of its leaves changed in turn."""
    found: list[Any]
    if isinstance(value, (list, tuple, collections.deque)):
        items = list(value)
        kind: Any = type(value)
        found = [kind([*items[:n], changed, *items[n + 1 :]]) for n, item in enumerate(items) for changed in _forms(item)]
        return [*found, kind([*items, None])]
    if isinstance(value, dict):
        found = [{**value, name: changed} for name, item in value.items() for changed in _forms(item)]
        return [*found, {**value, "another": 1}]
    if isinstance(value, Point):
        return [*(Point(changed, value.y) for changed in _forms(value.x)), *(Point(value.x, changed) for changed in _forms(value.y))]
    if isinstance(value, (set, frozenset)):
        return [value | {"another"}, *(value - {item} for item in value)]
    if isinstance(value, bool):
        return [not value, int(value)]
    if isinstance(value, (int, float, decimal.Decimal, fractions.Fraction)):
        return [str(value), *([value + 1] if value + 1 != value else [])]
    if isinstance(value, (str, bytes)):
        return [value * 2 if value else "one", [value]]
    return [[value], "another"]


@settings(deadline=None, max_examples=60)
@given(_VALUES)
def test_equal_arguments_have_one_key_and_any_changed_leaf_has_another(value: Any) -> None:
    before = key(value)
    assert key(pickle.loads(pickle.dumps(value))) == before
    assert key(copy.deepcopy(value)) == before
    changed = [key(form) for form in _forms(value)]
    assert before not in changed


def test_values_that_look_alike_have_keys_of_their_own() -> None:
    values: list[Any] = [
        *(0, 0.0, -0.0, False, "0", b"0", "", b"", None, 1, True, 1.0, 1 + 0j, "1", math.nan, math.inf, ..., NotImplemented),
        *((), [], {}, set(), frozenset(), bytearray(), range(0), [()], ([],), [[]], [None], {"": None}, {None: ""}),
        *(["ab"], ["a", "b"], ("a", "b"), [["a"], "b"], [["a", "b"]], {"a": "b"}, {"a", "b"}, frozenset("ab"), [[1], 2], [[1, 2]]),
        *(collections.OrderedDict(a=1), collections.Counter("a"), collections.defaultdict(int, a=1), {"a": 1}, Pair("a", 1)),
        *(Point(1), Point(1, 1), Frozen(1), Pair(1, 1), (1, 1), Colour.RED, Colour.BLUE, Colour, int, str, len, math.sin, math.cos),
        *(Path("a"), Path("a/b"), pathlib.PurePosixPath("a"), "a", uuid.UUID(int=1), decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.timedelta(1), slice(1), slice(1, None), range(1)),
        *(functools.partial(body), functools.partial(body, 1), body, Point.__init__, Point(1).__eq__, lambda: 1, lambda: 2),
        *(
            "x" * 1000,
            "x" * 1001,
            b"x" * 1000,
            b"x" * 1001,
            b"x" * 64,
            b"x" * 65,
            ["x"] * 1000,
            list(range(2000)),
            [*range(1999), 0],
            tuple(range(2000)),
        ),
    ]
    keys = [key(value) for value in values]
    assert len({*keys}) == len(values), [values[n] for n, one in enumerate(keys) if one in keys[:n]]


def test_which_objects_are_shared_makes_no_difference() -> None:
    one = [1, "a" * 100]
    assert key([one, one], one) == key([[1, "a" * 100], [1, "a" * 100]], [1, "a" * 100])
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep, deep]  # 2 ** 60 lists if each were visited
    assert key(deep) == key(deep)


def test_a_value_may_hold_itself() -> None:
    def circle(*more: Any) -> list[Any]:
        ring: list[Any] = [*more, "x" * 80]
        ring.append({"up": ring})
        return ring

    assert key(circle()) == key(circle()) != key(circle(1))
    point = Point(1)
    point.y = point
    other = Point(1)
    other.y = other
    assert key(point) == key(other) != key(Point(1, Point(1)))


def test_the_order_of_a_dict_counts_and_that_of_parameters_does_not() -> None:
    assert key({"a": 1, "b": 2}) != key({"b": 2, "a": 1})  # a body can tell them apart
    assert key(a=1, b=2) != key(b=2, a=1)
    assert key(x=1, y=2, a=1) == key(y=2, a=1, x=1)
    assert key(1, z=2) == key(1) == key(x=1, y=1)
    assert key(1, 1, 5) != key(1, 5)


def test_classes_of_one_name_are_told_apart() -> None:
    """A body may ask whether its argument is an instance of a class."""
    spaces: list[dict[str, Any]] = []
    for name in ("one", "two"):
        space: dict[str, Any] = {"__name__": name}
        exec("class Mark: pass\ndef f(x): return isinstance(x, Mark)", space)
        spaces.append(space)
    ours, theirs = spaces
    keys = [identify("f", ours["f"], (space["Mark"](),), {}).key for space in (ours, theirs)]
    assert ours["f"](ours["Mark"]()) != ours["f"](theirs["Mark"]())
    assert keys[0] != keys[1]


def test_arrays_count_by_their_items() -> None:
    numpy = pytest.importorskip("numpy")
    base = numpy.arange(24.0).reshape(4, 6)
    assert key(base) == key(base.copy()) == key(numpy.asfortranarray(base)) == key(base[:, ::-1][:, ::-1])
    assert key(base[::2]) == key(base[::2].copy()) != key(base[1::2])
    seen = [
        base,
        base.T,
        base.ravel(),
        base.astype("f4"),
        base.astype("i8"),
        base.tolist(),
        base[0],
        base[0, 0],
        float(base[0, 0]),
        base[:0],
    ]
    seen += [numpy.array(5.0), numpy.array(["a"], dtype=object), numpy.array([None], dtype=object), numpy.array(["a"]), numpy.dtype("f8")]
    seen += [numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), numpy.array(["2020"], dtype="M8[D]"), numpy.float32(1), 1.0]
    assert len({key(value) for value in seen}) == len(seen)
    before = key(base)
    base[3, 5] = numpy.nextafter(base[3, 5], 100)
    assert key(base) != before
    tall = numpy.zeros((3_000_000, 2), dtype="f8")[:, 0]  # strided, and larger than a block
    assert key(tall) == key(numpy.zeros(3_000_000))


def test_tables_count_by_their_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [1.0, None], "c": ["x", "y"], "d": pandas.Categorical(["p", "q"])})
    apart = pandas.DataFrame({"a": [1, 2]})
    for name in ("b", "c", "d"):
        apart[name] = frame[name]  # in other blocks of memory
    assert key(frame) == key(apart) == key(pickle.loads(pickle.dumps(frame)))
    changed = [frame.copy() for _ in range(4)]
    changed[0].loc[0, "a"] = 5
    changed[1].index = ["i", "j"]
    changed[2].columns = ["a", "b", "c", "e"]
    changed[3] = changed[3].astype({"a": "int32"})
    seen = [key(frame), *map(key, changed), key(frame["a"]), key(frame["b"]), key(frame[["a"]])]
    assert len({*seen}) == len(seen)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: open(os.devnull), r"argument x \(a _io.TextIOWrapper\)"),
        (lambda: (i for i in (1, 2)), r"argument x \(a generator\)"),
        (lambda: {"a": [1, threading.Lock()]}, r"argument x\['a'\]\[1\] \(a _thread.lock\)"),
        (lambda: Point([io.BytesIO, sys._getframe()]), r"argument x\.x\[1\] \(a frame\)"),
    ],
)
def test_what_has_no_content_is_named(make: Callable[[], Any], told: str) -> None:
    value = make()
    with pytest.raises(CacheKeyError, match=told):
        key(value)
    if hasattr(value, "close"):
        value.close()


def test_a_value_that_is_nested_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for number in range(100_000):
        deep = [deep, number]
    with pytest.raises(CacheKeyError, match=r"argument x.*RecursionError"):
        key(deep)
    while deep:
        deep = deep[0]


def test_what_changes_in_place_is_seen() -> None:
    space: dict[str, Any] = {"__name__": "changing"}
    exec("TABLE = {'a': [1]}\nclass K:\n  n = 1\nk = K()\ndef h(x, more=[]): return x\ndef f(x): return h(x), TABLE, k", space)
    seen = []
    for change in ("", "TABLE['a'][0] = 2", "TABLE['b'] = 1", "k.m = 1", "K.n = 2", "h.__defaults__[0].append(1)", "def len(x): return 1"):
        exec(change, space)
        seen.append(identify("f", space["f"], (1,), {}).key)
        assert identify("f", space["f"], (1,), {}).key == seen[-1]
    assert len({*seen[:-1]}) == len(seen) - 1
    assert seen[-1] == seen[-2]  # the last change was of a global that nothing reads


def test_what_a_partial_and_a_method_hold_counts() -> None:
    class Model:
        def __init__(self, n: int) -> None:
            self.n = n

        def run(self, x: int) -> int:
            return self.n + x

    stored = identify("run", Model(1).run, (1,), {})
    wanted = identify("run", Model(2).run, (1,), {})
    assert stored.key != wanted.key
    assert difference(wanted.parts, stored.parts) == ["the object that is called has changed"]
    assert identify("p", functools.partial(body, 1), (2,), {}).key != identify("p", functools.partial(body, 2), (2,), {}).key


def test_what_is_registered_and_read_later_is_seen() -> None:
    space: dict[str, Any] = {"__name__": "late", "functools": functools}
    exec("@functools.singledispatch\ndef h(x): 'one'\ndef f(x): return h(x)\ndef g(x): return h.__doc__", space)
    seen = [identify("f", space[name], (1,), {}).key for name in "fg"]
    space["h"](1)  # it caches this dispatch
    assert [identify("f", space[name], (1,), {}).key for name in "fg"] == seen
    space["h"].__doc__ = "two"
    assert identify("g", space["g"], (1,), {}).key != seen[1]
    space["h"].register(int, lambda x: x)
    assert identify("f", space["f"], (1,), {}).key != seen[0]


def test_names_in_texts_count() -> None:
    """`getattr(module, "name")` and `globals()["name"]` read the name in the string."""
    other = types.ModuleType("looked_up")
    other.one = lambda: 1  # type: ignore[attr-defined]
    space: dict[str, Any] = {"__name__": "looking", "other": other, "N": 1}
    exec("def f(): return getattr(other, 'one')(), globals()['N']", space)
    before = identify("f", space["f"], (), {}).key
    space["N"] = 2
    assert identify("f", space["f"], (), {}).key != before
    space["N"] = 1
    assert identify("f", space["f"], (), {}).key == before
    other.one = lambda: 2  # type: ignore[attr-defined]
    assert identify("f", space["f"], (), {}).key != before


def test_the_package_of_the_task_itself_counts_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "shipped.py").write_text("def helper(x): return x\ndef f(x): return helper(x)\n")
    monkeypatch.syspath_prepend(str(installed))
    import shipped  # type: ignore[import-not-found]

    before = identify("f", shipped.f, (1,), {})
    assert "the function shipped.helper" in before.parts
    shipped.helper = lambda x: x + 1
    assert identify("f", shipped.f, (1,), {}).key != before.key
    del sys.modules["shipped"]


def test_a_script_a_module_and_a_notebook_have_one_key(tmp_path: Path) -> None:
    text = "N = 1\nclass K:\n  def m(self): return N\ndef h(x): return K().m() + x\ndef f(x): return h(x)\n"
    end = "\nfrom entangle._shared.identity import identify\nprint(identify('f', f, (K(),), {}).key)\n"
    (tmp_path / "cells.py").write_text(text)
    (tmp_path / "script.py").write_text(text + end)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "script.py").write_text("# elsewhere\n\n" + text + end)
    cells = f"exec(compile({text!r}, '<cell 1>', 'exec'))\nexec(compile({end!r}, '<cell 2>', 'exec'))"
    ways = [["script.py"], ["deeper/script.py"], ["-c", "from cells import *\nfrom cells import f, K\n" + end], ["-c", cells]]
    printed = {
        subprocess.run([sys.executable, *way], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100).stdout for way in ways
    }
    assert len(printed) == 1
    assert printed.pop().strip()


def test_the_loaded_code_counts_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edited.py").write_text("def f(x): return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited  # type: ignore[import-not-found]

    before = identify("f", edited.f, (1,), {}).key
    (tmp_path / "edited.py").write_text("def f(x): return x + 1\n")
    assert identify("f", edited.f, (1,), {}).key == before
    del sys.modules["edited"]


def test_a_version_replaces_the_code() -> None:
    keys = {identify("f", function, (1,), {}, version="2").key for function in (body, lambda x: x, lambda x: x + 1)}
    assert len(keys) == 2  # without the code, parameter names and default arguments remain
    one = identify("f", lambda x: x, (Point(1),), {}, version=1)
    assert [*one.parts] == ["version", "argument x"]
    assert one.key != identify("f", lambda x: x, (Point(1),), {}, version=2).key
    by_function = {identify("f", body, (given,), {}, version=1).key for given in (lambda: 1, lambda: 2)}
    assert len(by_function) == 2  # arguments count nevertheless


def test_arguments_can_be_left_out() -> None:
    def ignoring(*args: Any, **kwargs: Any) -> str:
        return identify("body", body, args, kwargs, ignore=["y", "verbose"]).key

    assert ignoring(1, 2) == ignoring(1, 3) == ignoring(1, open, verbose=1) != ignoring(2, 2)
    assert ignoring(1, z=3) != ignoring(1)

    @functools.wraps(body)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return body(*args, **kwargs)

    assert identify("w", wrapper, (1, 2), {}, ignore=["y"]).key == identify("w", wrapper, (1, 3), {}, ignore=["y"]).key
    assert identify("w", wrapper, (1, 2), {}).parts.keys() >= {"argument x", "argument y"}


def test_an_unknown_name_to_leave_out_is_refused() -> None:
    def two(a: int, b: int = 1) -> int:
        return a + b

    check_ignored(two, ["a"])
    check_ignored(task(two), ("b",))
    check_ignored(body, ["anything"])
    with pytest.raises(OptionError, match=r"ignore=\['c'\]: two has no parameter 'c'; its parameters are a, b"):
        check_ignored(two, ["a", "c"])
    with pytest.raises(OptionError, match="list of names"):
        check_ignored(two, "a")


def test_packages_count_by_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle._shared.identity import packages

    before = identify("f", body, (), {}, packages=["pytest"])
    assert f"package pytest {pytest.__version__}" in before.parts
    packages.version_of.cache_clear()
    with monkeypatch.context() as changed:
        changed.setattr("importlib.metadata.version", lambda _: "99.1")
        after = identify("f", body, (), {}, packages=["pytest"])
    packages.version_of.cache_clear()
    assert after.key != before.key
    assert difference(after.parts, before.parts) == [f"package pytest 99.1, was {pytest.__version__}"]
    with pytest.raises(OptionError, match=r"packages=.*'no-such-package'"):
        check_packages(["no-such-package"])


def test_what_has_changed_is_said_in_words() -> None:
    space: dict[str, Any] = {"__name__": "study"}
    text = "N = 1\ndef scale(x): return x + N\nclass Grid:\n  n = 1\ndef f(x, y=1): return scale(x), Grid\n"
    exec(text, space)
    stored = identify("f", space["f"], (1,), {}).parts
    assert difference(stored, stored) == []
    wanted = {}
    for what, change in {
        "the function study.scale has changed": "def scale(x): return x - N",
        "the global study.N has changed": "N = 2",
        "the class study.Grid has changed": "class Grid:\n  n = 2",
    }.items():
        exec(text + change, space)
        wanted[what] = identify("f", space["f"], (1,), {}).parts
        assert difference(wanted[what], stored) == [what]
    exec(text + "def more(): return 1\ndef scale(x): return more()", space)
    assert difference(identify("f", space["f"], (2,), {}).parts, stored) == [
        "the function study.more is used now, and was not",
        "the function study.scale has changed",
        "the global study.N is used no more",
        "argument x is another",
    ]
    exec(text, space)
    found = nearest_difference(identify("f", space["f"], (1, 5), {}).parts, [*wanted.values(), stored])
    assert found is not None
    assert (found.number, found.words) == (3, ["argument y is another"])
    assert nearest_difference(stored, []) is None
    older = {name.replace("Python 3", "Python 2"): digest for name, digest in stored.items()}
    now = ".".join(map(str, sys.version_info[:2]))
    assert difference(stored, older) == [f"Python {now}, was {now.replace('3', '2', 1)}"]
    moved = {name.replace("study.scale", "tools.scale"): digest for name, digest in stored.items()}
    assert difference(stored, moved) == []


def test_facts_of_code_go_with_it() -> None:
    known = len(code_facts._known)
    for number in range(50):  # an address serves again once its code is gone
        code = compile(f"first_{number}", "made", "eval")
        assert code_facts.facts_of(code).reads == (f"first_{number}",)
        del code
    assert len(code_facts._known) <= known
