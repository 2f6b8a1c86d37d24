"""Secrets are not written down, wherever they stand."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import records
from entangle._run.masks import is_secret, masked
from entangle._run.notes import describe
from entangle._run.short import short
from entangle.process import process
from entangle.task import task

from .bodies import add

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
#: What must be found nowhere in the records.
HIDDEN = "h1dden-0f-all"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "passwd",
        "PASSPHRASE",
        "api_key",
        "apiKey",
        "secret",
        "clientSecret",
        "auth-token",
        "access_key",
        "Authorization",
        "PGPASSWORD",
        "passwords",
        "password2",
        "DBPassword",
        "authtoken",
        "api_keys",
        "DB_PWD",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["x", "key", "tokens", "max_tokens", "tokenizer", "passenger", "author", "compass", "keys", "secretary"])
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret(name)


def test_names_that_the_user_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_SECRETS", "pin, Salt")
    is_secret.cache_clear()
    assert is_secret("pin")
    assert is_secret("salt")
    monkeypatch.delenv("ENTANGLE_SECRETS")
    is_secret.cache_clear()
    assert not is_secret("pin")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"use {KEY} here", "use *** here"),
        ("postgres://me:hunter2@db/x", "postgres://***@db/x"),
        ("password=hunter2, user=me", "password=***, user=me"),
        ('{"api_key": "abc def", "n": 1}', '{"api_key": ***, "n": 1}'),
        ("Authorization: Bearer abcdefghijkl", "Authorization: ***"),
        ("Authorization: Basic dXNlcjpwYXNz\nHost: x", "Authorization: ***\nHost: x"),
        ("{'Authorization': 'Basic abc', 'n': 1}", "{'Authorization': ***, 'n': 1}"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("apiKey='abc' DB_PWD=abc PASSPHRASE=abc", "apiKey=*** DB_PWD=*** PASSPHRASE=***"),
        ("x: password: abc", "x: password: ***"),
        ('password: str | None = "abc", n: int = 3', "password: ***, n: int = 3"),
        ('os.environ["DB_PASSWORD"] = "abc"', 'os.environ["DB_PASSWORD"] = ***'),
        ("password = b'abc'", "password = ***"),
        ('secret = """a\nbc"""', "secret = ***"),
        ('password = (\n "abc")', "password = (\n ***)"),
        ('if password == "abc":', "if password == ***:"),
        ("access_key=a private_key=b session_id=c", "access_key=*** private_key=*** session_id=***"),
        ("https://u:p@ss@h/x", "https://***@h/x"),
        ("mysql --password hunter2 -x", "mysql --password *** -x"),
        ("max_tokens=100, tokenizer='bert'", "max_tokens=100, tokenizer='bert'"),
        ("ghp_" + "a" * 36, "***"),
        ("xoxb-" + "1" * 20, "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "***"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- b", "a *** b"),
        ("nothing to hide: https://example.org/x?y=1", "nothing to hide: https://example.org/x?y=1"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, left: str) -> None:
    assert masked(text) == left


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "--" + "a-" * 10_000, "password" + " " * 20_000, "password: " + "a[b]|" * 4000, "://:" * 5000]
)
def test_long_texts_are_no_trap(text: str) -> None:
    """A pattern that looks at a text again from each of its places takes minutes for one of these."""
    assert HIDDEN not in masked(f"{text} password={HIDDEN}")


@dataclasses.dataclass
class Login:
    user: str
    password: str


class Settings(dict[str, str]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Login("me", HIDDEN),
        Settings(password=HIDDEN),
        [1, 2, 3, 4, 5, 6, {"password": HIDDEN}],
        {"a": {"b": {"c": {"password": HIDDEN}}}},
        ["a"] * 6 + [f"password={HIDDEN}"],
        f"password={HIDDEN}".encode(),
        ["x" * 500 + f" password={HIDDEN}"],
        {b"password": HIDDEN},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_shown_of_a_value_may_be_secret(value: object) -> None:
    _, _, digest, text, whole = describe(value, pickle.dumps(value), whole=True)
    assert digest is None
    assert whole is None
    assert HIDDEN not in text


def test_a_value_without_secrets_is_hashed_and_kept() -> None:
    value = {"tokens": list(range(100)), "author": "me", "keys": ("a", "b")}
    pickled = pickle.dumps(value)
    assert describe(value, pickled, whole=True)[2] == hashlib.sha256(pickled).hexdigest()
    assert describe(value, pickled, whole=True)[4] == pickled


def test_values_are_told_in_short() -> None:
    assert short({"password": 1, "n": [1, 2]}) == ("{'password': ***, 'n': [1, 2]}", True)
    assert short(list(range(100))) == ("[0, 1, 2, 3, 4, 5, …]", False)
    assert short([[[[1]]]])[0] == "[[[<list of 1>]]]"
    assert short((1,)) == ("(1,)", False)
    assert short(10**5000)[0].startswith("<int of")
    assert describe({"password": 1}, b"pickle")[2] is None, "nor is it hashed"
    loop: list[Any] = []
    loop.append(loop)
    assert short(loop)[0] == "[[[<list of 1>]]]"


def connect(user: str, password: str, options: Any = None) -> str:
    return f"connected {user}"


def get_token(x: int) -> str:
    return HIDDEN


def leak(x: Any) -> str:
    return f"postgres://me:{HIDDEN}@db/x"


def fails(x: str) -> None:
    raise ValueError(f"password={HIDDEN}")


def supplied(x: int) -> str:
    return HIDDEN


def port() -> int:
    return 5432


@task(attributes={"db": {"password": HIDDEN}, "list": [f"password={HIDDEN}"]})
def attributed(x: int) -> int:
    return x


def test_no_secret_reaches_the_disk_beside_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Among arguments that calls stand in, too, and in what is said of runs and tasks."""
    shelf = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(shelf))
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    with entangle.tags(password=HIDDEN, x=f"password={HIDDEN}", project="p"):
        assert process(connect)("me", password=process(supplied)(1))() == "connected me"
    options = {"password": HIDDEN, "nested": {"token": [HIDDEN, process(port)()]}, "port": process(port)()}
    assert process(connect)("me", "", options)() == "connected me"
    assert process(attributed)(1)() == 1
    runs = records.runs()
    assert [run.tags.get("project") for run in runs] == [None, None, "p"]
    assert HIDDEN not in "".join(path.read_bytes().decode("latin-1") for path in shelf.rglob("*") if path.is_file())


def test_no_secret_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    shelf = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(shelf))
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    hidden_here = {"nested": [{"secret": HIDDEN}]}

    def seen() -> str:
        return "".join(path.read_bytes().decode("latin-1") for path in shelf.rglob("*") if path.is_file())

    assert process(connect)("me", HIDDEN, options=hidden_here)() == "connected me"
    assert process(connect)("me", password=HIDDEN)() == "connected me"
    assert process(add)(process(get_token)(1), process(leak)(f"token={HIDDEN}"))().startswith(HIDDEN)
    assert task(add)(process(get_token)(1), "x")() == f"{HIDDEN}x"
    with pytest.raises(ValueError, match="password"):
        process(add)(process(fails)("x"), 1)()
    # A value that has lost what told of the secret in it is one like any other.
    allowed = seen().count(HIDDEN)
    assert allowed <= 2
    assert "connected me" in seen()
    runs = records.runs()
    assert seen().count(HIDDEN) == allowed
    assert [taken.value.text for taken in runs[-1].root.inputs if taken.value] == ["'me'", "***", "{'nested': [{'secret': ***}]}"]
    assert runs[0].error is not None
    assert runs[0].error.message == "password=***"
