"""Fuzzing of the masks: the time grows linearly with the length, and no planted secret is found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangle import records
from entangle._shared import masks
from entangle._shared.masks import masked
from entangle._shared.notes import describe
from entangle.process import process

from .test_masks import SECRET_NAMES, SECRET_TEXTS, as_texts_have_it

#: What the tokeniser looks for, and what may mislead it.
FRAGMENTS = (
    *("authorization", "password", "token", "cookie:", "auth=", "key", "password=", 'token="', "token=(", "secret=[", "password: str = "),
    *("eyJ-", "eyJ", "sk-", "ghp_", "AKIA", "hooks.slack.com/services/", "?sig=", "curl -u ", "mysql -p", "login ", "machine ", "bearer "),
    *("-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END ", "://", ":", "@", "<token>", "</", "<", ">", "&quot;", "%22", "basic "),
    *(" ", "\n", "\t", "\r\n", "=", '"', "'", "`", "\\", '\\"', "\\n", "(", ")", "[", "]", "{", "}", ",", ";", "&", "|", " or ", "+", "%"),
    *("password: |\n  ", "token:\n- ", "if password:\n", "('password', ", '"token":"', 'name="password" value=', "--password ", "é", "İ"),
    *("a", "A", "1", "_", "-", "--", "a-", "x", "/", "."),
)
#: Interpreter events (calls of Python and C functions) for each character. Code that scans again
#: from each position makes hundreds for each, in a string of 2,000 characters.
MOST_CALLS = 60


def calls_of(function: Callable[[], object]) -> int:
    """How many Python and C functions it calls. Unlike the time, this does not depend on the speed
    and the load of the machine."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


units = st.tuples(st.lists(st.sampled_from(FRAGMENTS), max_size=2), st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(units)
def test_work_grows_with_the_length_of_a_text(parts: tuple[list[str], list[str]]) -> None:
    """Ten times as many repetitions make ten times as many calls. The drill measures how long one
    call of a pattern takes."""
    before, unit = "".join(parts[0]), "".join(parts[1])
    few, many = (before + unit * (size // len(unit) + 1) for size in (3_000, 30_000))
    masked(few)  # compiles patterns and fills caches
    small, large = calls_of(lambda: masked(few)), calls_of(lambda: masked(many))
    # The lookahead window is longer than the short string. Until it is full, the work grows faster.
    assert large <= max(40 * small, MOST_CALLS * len(many) // 10)


# --- leaks ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Holder:
    name: str
    value: Any


class Pair(NamedTuple):
    user: str
    password: Any


class Slotted:
    __slots__ = ("api_key",)

    def __init__(self, api_key: Any) -> None:
        self.api_key = api_key


class Plain:
    def __init__(self, name: str, value: Any) -> None:
        setattr(self, name.replace("-", "_"), value)


letters = st.text("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", min_size=12, max_size=24).map(lambda text: f"Zq0{text}9")
names = st.sampled_from(SECRET_NAMES)


@st.composite
def prefixed(draw: st.DrawFn) -> str:
    """A name for a secret, as programs have it."""
    name = draw(names)
    before = draw(st.sampled_from(["", "my_", "DB_", "x-", "app.", "prod "]))
    after = draw(st.sampled_from(["", "_1", "2"]))
    return f"{before}{name}{after}"


@st.composite
def leaves(draw: st.DrawFn, secret: str) -> Any:
    """A value that holds the secret under a telling name, or in a string that gives it away."""
    name = draw(prefixed())
    text = draw(st.sampled_from(SECRET_TEXTS)).replace("§", secret)
    within: Any = draw(st.sampled_from([secret, secret.encode(), [secret], (secret, 1), {"a": secret}, {"a": [{"b": secret}]}]))
    return draw(
        st.sampled_from(
            [
                {name: within},
                {name.encode(): within},
                [(name, secret)],
                ["x", f"--{name.replace(' ', '-')}", secret],
                [f"{name.replace(' ', '_')}={secret}"],
                {"name": name, "value": secret},
                text,
                text.encode(),
                draw(st.sampled_from(as_texts_have_it(text))),
                Pair("me", within),
                Slotted(within),
                Plain("password", within),
                Holder("x", {name: within}),
                ("ghp_" + secret * 3),
                f"https://me:{secret}@example.org/x",
            ]
        )
    )


@st.composite
def values(draw: st.DrawFn) -> tuple[str, Any]:
    """A secret, and a value that holds it somewhere, at any depth."""
    secret = draw(letters)
    value = draw(leaves(secret))
    for _ in range(draw(st.integers(0, 4))):
        other = draw(st.sampled_from([1, "words", None, {"key": "k"}, [1, 2], "x" * 300]))
        value = draw(
            st.sampled_from(
                [
                    [value],
                    [other] * 7 + [value],
                    (other, value, other),
                    {"a": value, "b": other},
                    {"k": [value]},
                    Holder("h", value),
                    [[value]],
                ]
            )
        )
    return secret, value


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values())
def test_no_secret_is_in_what_is_noted_of_a_value(planted: tuple[str, Any]) -> None:
    secret, value = planted
    _, _, digest, text, whole = describe(value, pickle.dumps(value), whole=True)
    assert secret not in text
    assert digest is None
    assert whole is None
    assert secret not in describe(value)[3]


@settings(max_examples=300, deadline=None)
@given(letters, st.sampled_from(SECRET_TEXTS), st.integers(0, 3), st.data())
def test_no_secret_is_in_a_text_of_texts(secret: str, text: str, depth: int, data: st.DataObject) -> None:
    written = text.replace("§", secret)
    for _ in range(depth):
        written = data.draw(
            st.sampled_from(
                [json.dumps({"a": written, "n": 1}), repr([written]), repr({"b": written}), f"f({written!r})", json.dumps([[written]])]
            )
        )
    assert secret not in masked(written)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(prefixed(), st.text(min_size=1, max_size=5), min_size=1, max_size=3), letters)
def test_no_secret_is_in_tags_and_attributes(named: dict[str, str], secret: str) -> None:
    value = {"a": [{name: secret + text for name, text in named.items()}, [f"{name}={secret}" for name in named]]}
    assert secret not in repr(masks.cleaned(value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
def test_masking_never_fails_and_leaves_what_is_around(some: str, fragments: str) -> None:
    for text in (some, fragments, some + fragments):
        clean = masked(text)
        assert masks.MASK in clean or clean == text
    assert masked(f"{some}\n password=hunter2")[-3:] == masks.MASK


@process
def takes(value: Any, **named: Any) -> Any:
    return value


@process
def fails(value: Any) -> None:
    raise ValueError(f"cannot do with {value!r}")


def test_no_secret_reaches_the_records() -> None:
    """Real runs with the secret in arguments, values, errors, tags and notes: no file contains
    it."""
    from hypothesis import seed

    planted: list[str] = []
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as environment:
        environment.setenv("ENTANGLE_RECORD_DIR", place)
        environment.setenv("ENTANGLE_RECORD", "values")

        @seed(7)
        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(values(), prefixed())
        def run(one: tuple[str, Any], name: str) -> None:
            secret, value = one
            planted.append(secret)
            takes(value, **{name: secret})()
            if type(value) is str:
                with pytest.raises(ValueError, match="cannot do"):
                    fails(value)()

        run()
        list(records.runs())
        with contextlib.closing(sqlite3.connect(os.path.join(place, "records.sqlite"))) as database:
            written = "\n".join(database.iterdump())
        written += "".join(path.read_bytes().decode("latin-1") for path in Path(place).rglob("*") if path.is_file())
    assert planted
    assert [secret for secret in planted if secret in written] == []
