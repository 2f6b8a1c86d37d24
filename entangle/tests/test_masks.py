"""Secrets are not written to the records, wherever they occur."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import entangle
from entangle import records
from entangle._shared.masks import hides_one, is_secret, masked
from entangle._shared.notes import describe
from entangle._shared.pickling import by_value
from entangle._shared.summaries import short
from entangle.process import process
from entangle.task import task
from entangle.thread import thread

from .bodies import add

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
#: This string must be nowhere in the records.
HIDDEN = "h1dden-0f-all"


#: Separated by spaces, so that a line holds many.
SECRET_NAMES = """
    password db_password passwd PASSPHRASE api_key apiKey secret clientSecret auth-token access_key Authorization PGPASSWORD passwords
    password2 DBPassword authtoken api_keys DB_PWD db_pass DB_PASS DBPass dbpass SMTP_PASS userPass pass auth basic_auth http-auth oauth
    auth_header x_auth _auth _authToken cookie cookies Set-Cookie session_cookie cookie_header encryption_key signing_key ssh_key sshKey
    SSHKey SSH_PRIVATE_KEY private_key AccountKey storage_account_key SharedAccessKey SharedAccessSignature AWS_SECRET_ACCESS_KEY
    aws_access_key_id X-Amz-Signature X-Amz-Credential X-Amz-Security-Token connection_string ConnectionString connStr dsn DATABASE_DSN
    jwt jwtToken JWTToken otp totp otp_code creds user_credentials session_token id_token refreshToken access_tokens token1 passphrase
    pass_word passWord seed_phrase client_key master_key OPENAI_API_KEY openai_key github_pat card_pin pin_code csrf x-csrf-token psk pw
    my_pw PHPSESSID sessionid wpa_psk secret_value secret_id password_hash keystorePassword storepass APIKey APIKEY accountkey privkey
""".split()  # noqa: SIM905
OTHER_NAMES = """
    x key keys tokens max_tokens tokenizer tokenize token_count num_tokens token_ids token_type eos_token pad_token_id author authors
    co_author authority authorized authenticated authorization_url auth_method auth_url use_auth require_auth has_password is_secret
    password_policy password_min_length passenger passage passport passed passes passing pass_rate first_pass low_pass bypass compass
    keyboard keyword monkey turkey hockey primary_key foreign_key sort_key partition_key cache_key public_key ssh_public_key
    key_padding_mask private_key_path key_file secret_name cookie_size cookie_domain cookiecutter pinned pin spinner secretary session
    connection conn signature signal design seed salt nonce user username login host port code access accessor credit accredited
    conference recovery phrase hash digest
""".split()  # noqa: SIM905


def test_names_of_secrets() -> None:
    assert [name for name in SECRET_NAMES if not is_secret(name)] == []


def test_names_that_only_look_like_it() -> None:
    assert [name for name in OTHER_NAMES if is_secret(name)] == []
    texts = [f'{name}=1, {{"{name}": "abc def"}}, {name}: abc' for name in OTHER_NAMES]
    assert [masked(text) for text in texts] == texts


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


#: Strings as they occur in programs. § stands for the secret.
SECRET_TEXTS = [
    'auth=("bob", "§")',
    "auth=('bob', '§'), timeout=3",
    '{"auth": ["bob", "§"]}',
    "Cookie: session=§; a=b",
    "Cookie: a=b; session=§",
    "Set-Cookie: sid=§; Path=/; HttpOnly",
    "curl -H 'Cookie: a=b; sid=§' https://x",
    "curl -u bob:§ https://x",
    "curl -ubob:§ https://x",
    "curl --user bob:§ https://x",
    "curl --user=bob:§ https://x",
    "['curl', '-u', 'bob:§', 'https://x']",
    "mysql -u root -p§",
    "mysqldump -u root -p§ db",
    "sshpass -p § ssh x",
    "docker login -u bob -p § reg",
    "PGPASSWORD=§ psql -h x",
    "--password §",
    "--password=§",
    "--password '§'",
    "-password §",
    "['x', '--password', '§']",
    '["x", "--api-key", "§"]',
    "<user>bob</user><password>§</password>",
    "<password encoding='x'>§</password>",
    "<db:password>§</db:password>",
    '<user password="§"/>',
    '<add key="DB_PASSWORD" value="§"/>',
    '<entry key="password">§</entry>',
    '<token value="§"/>',
    "&lt;password&gt;§&lt;/password&gt;",
    "<credentials><user>b</user><x>§</x></credentials>",
    "password: §",
    "password: correct horse §",
    "db:\n  password: §\n  user: x",
    "password: |\n  §\n  abc\nuser: x",
    "password: >-\n  abc\n  §\n",
    "auth:\n  user: bob\n  x: §\nother: 1",
    "secrets:\n- a\n- §\nuser: x",
    "- name: DB_PASSWORD\n  value: §",
    '{"name": "DB_PASSWORD", "value": "§"}',
    "[db]\npassword = §\nuser = x",
    "password=§",
    "password = a §",
    "machine h login bob password §",
    "machine h\n login bob\n password §\n",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=§&X-Amz-Signature=b",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=A&X-Amz-Signature=§",
    "https://a.blob.core.windows.net/c?sv=2020&sig=§%3D&se=1",
    "https://x/y?a=1&Signature=§",
    "https://x/y?token=§&a=1",
    "https://x/y?access_token=§",
    "https://storage.googleapis.com/b?X-Goog-Signature=§&x=1",
    "https://storage.googleapis.com/b?GoogleAccessId=§&x=1",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=§==;EndpointSuffix=core.windows.net",
    "Server=x;Uid=u;Pwd=§;",
    "Server=x;User ID=u;Password=§;",
    "Endpoint=sb://x/;SharedAccessKeyName=Root;SharedAccessKey=§=",
    "postgres://bob:§@h/db",
    "postgres://bob:a/§@h/db",
    "redis://:§@h:6379/0",
    "mongodb+srv://bob:§@h",
    "https://§aaaaaaaaaaaaaaa@github.com/x",
    '{"password": "§"}',
    "Authorization: Basic §",
    "Authorization: Bearer §",
    "authorization=Bearer §",
    '{"Authorization": "Bearer §"}',
    "('Authorization', 'Basic §')",
    "[('Cookie', 'a=§')]",
    '("password", "§")',
    "(b'password', b'§')",
    "{b'password': b'§'}",
    "{'password': ['§']}",
    '{"passwords": {"a": "§"}}',
    'Login(user="bob", password="§")',
    "Login(user='bob', db_pass='§')",
    "connect(password='a' + '§')",
    "connect(password='a' '§')",
    "connect(password=x or '§')",
    "connect(password=('a', '§'))",
    'password = os.environ.get("X") or "§"',
    'password: str = "§"',
    'password: str | None = "§"',
    'password: Optional[str] = "§"',
    'token: "str" = "§"',
    "password = '''§'''",
    'password = """\n§\n"""',
    "password = (\n  'a'\n  '§'\n)",
    "password = \\\n '§'",
    'if password == "§": pass',
    'assert password != "§"',
    'os.environ["DB_PASS"] = "§"',
    'os.environ.setdefault("DB_PASS", "§")',
    "export DB_PASS=§",
    'DB_PASS="§"',
    "ENV DB_PASS §",
    "DB_PASS=a,§",
    "apiKey: §",
    "api-key=§",
    "x-api-key: §",
    "-Dpassword=§",
    "-Djavax.net.ssl.keyStorePassword=§",
    "-e POSTGRES_PASSWORD=§",
    "user=bob&password=§&x=1",
    "password%3D§",
    "%22password%22%3A%22§%22",
    "{&quot;password&quot;: &quot;§&quot;}",
    'password=>"§"',
    '"password" => "§"',
    "password := '§'",
    'Content-Disposition: form-data; name="password"\r\n\r\n§\r\n',
    '<input name="password" value="§">',
    "ALTER USER x WITH PASSWORD '§'",
    "CREATE USER x IDENTIFIED BY '§'",
    "redis-cli -a § ping",
    "ldapsearch -w § -x",
    "openssl rsa -passin pass:§",
    "otp: §",
    "jwt=§",
    'dsn="bob/§"',
    'creds={"a": "§"}',
    'connection_string="x;y=§"',
    "ssh_key: §",
    "signing_key=§",
    "encryption_key=§",
    "session_token=§",
    "passphrase is here: passphrase=§",
    "KeyError: password=§",
    'password="a\\"§"',
    "password='it\\'s §'",
    'password="abc\n§"',
    'password="§',
    "password='§",
    'password=("§"',
    '{"a": "Cookie: x=§; y=§"}',
    'headers = {"Cookie": "sid=§"}',
    "cookie=a; b=§",
    'token = "a" if x else "§"',
    'token="%s§" % x',
    'auth = HTTPBasicAuth("bob", "§")',
    'auth=requests.auth.HTTPDigestAuth("bob", "§")',
    "https://hooks.slack.com/services/T0/B0/§",
    "password\t=\t§",
    '"password"\n:\n"§"',
    "{'db': {'password': '§'}}",
    "aws_secret_access_key = §",
    "aws_session_token=§",
    '"private_key": "§"',
    "secret:§",
    'secret:  "§"',
    '"Password" : "§"',
    "PASSWORD=§",
    "root:x password=§",
    "['A=B', 'DB_PASS=§']",
    '["A=B", "DB_PASS=§ x"]',
    "environ({'DB_PASS': '§'})",
    "DB_PASS: §\n",
    "# password: §",
    "// token=§",
    '"token": null, "token2": "§"',
    'password = "§" # comment',
    "password=§<br>",
    "(password=§)",
    "[password=§]",
    "password=§.",
    "`password=§`",
    "?password=§#x",
    "https://u:§@h:80/p?q",
    "smtp://u:§@h",
    "Token token=§",
    "X-Auth-Token: §",
    "X-Amz-Security-Token=§&a",
    'oauth_token="§", oauth_x="b"',
    'Authorization: Digest username="x", response="§"',
    "WWW-x\r\nAuthorization: Basic §\r\nHost: y",
]


def as_texts_have_it(text: str) -> list[str]:
    """A string alone, inside other text, and quoted: as JSON, as JSON within JSON, and by
    `repr`."""
    return [
        text,
        f"some words: here; {text}" if "\n" not in text else text,
        f"a line\n{text}\nanother",
        json.dumps({"body": text}),
        json.dumps(json.dumps({"body": [text]})),
        repr([text, 1]),
        repr(text.encode()),
        f"call(x, {text!r}, y=3)",
    ]


def test_texts_that_hold_secrets() -> None:
    found = [around for text in SECRET_TEXTS for around in as_texts_have_it(text.replace("§", HIDDEN)) if HIDDEN in masked(around)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "The author of this text, an authority on compasses: key = value; keyboard: qwerty, tokens: 512.",
        '{"name": "Bob", "value": "x", "key": "k", "keys": ["a", "b"], "token_count": 7, "authors": ["me"]}',
        "for token in tokens:\n    count += 1\nif token:\n    return keys[token]\n",
        "def sort(items, key=None, sort_key='name'):\n    return sorted(items, key=key)\n",
        "password = input('Password: ')\n".replace("password = ", ""),
        "mkdir -p a/b && docker run -p 8080:80 image && git clone https://github.com/a/b.git && ssh git@example.org",
        "basic knowledge of bearer bonds; https://example.org:8080/a@b?page=2&sort=key#design",
        "task-management-in-a-nutshell, disk-usage-of-the-machine, sk-learn-like-interface-of-ours",
        "<keyboard layout='us'><author>Bob</author></keyboard>",
        "C:\\Users\\bob\\n.txt \\d+ \\w+",
        "",
    ],
)
def test_texts_that_hold_none_stay_as_they_are(text: str) -> None:
    assert masked(text) == text


#: Expressions to evaluate in the program. As parameters, the strings would be in the test's name.
LONG_TEXTS = r"""
    "a" * 200_000, "--" + "a-" * 100_000, "password" + " " * 200_000, "password: " + "a[b]|" * 40_000, "://:" * 50_000,
    "authorization" + " " * 200_000, "eyJ-" * 50_000, "a=" * 100_000, "token=(" * 25_000, 'token="' * 25_000, "<token>" * 25_000,
    '\\"token=' * 20_000, "token\n'" * 25_000, "cookie:\\r" * 20_000, "-----BEGIN PRIVATE KEY" * 10_000, "password=" + "," * 200_000,
"""


def test_long_texts_are_no_trap() -> None:
    """A pattern that starts anew at each position takes an hour for all of these strings. Without
    such a pattern, each takes less than a second."""
    program = f"""
import signal
from entangle._shared.masks import masked
signal.alarm(100)
for text in ({LONG_TEXTS}):
    assert {HIDDEN!r} not in masked(text + "\\npassword={HIDDEN}"), text[:20]
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@dataclasses.dataclass
class Login:
    user: str
    password: str


class Settings(dict[str, str]):
    pass


class Account(NamedTuple):
    user: str
    password: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Pickled as a dataclass with slots is since Python 3.11: by its values alone."""

    user: str
    password: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self.user, self.password)


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
        Account("me", HIDDEN),
        {"accounts": [Account("me", HIDDEN)]},
        Frozen("me", HIDDEN),
        [("user", "me"), ("password", HIDDEN)],
        [{"name": "DB_PASSWORD", "value": HIDDEN}],
        ["curl", "-u", f"bob:{HIDDEN}", "https://example.org"],
        ["x", "--password", HIDDEN],
        [["mysql"] * 20 + ["--password", HIDDEN]],
        {"a": [f"DB_PASS={HIDDEN}"]},
        f"password={HIDDEN}".encode("utf-16"),
        {f"password={HIDDEN}": 1},
        "x" * 200_000 + f" password={HIDDEN}",
        f"password={HIDDEN}" + "x" * 200_000,
        ["y" * 89 + " ghp_" + HIDDEN.replace("-", "") * 40],
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
    """Also if other arguments are calls, and in what the records say of runs and tasks."""
    directory = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(directory))
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    login: Any = Login("me", HIDDEN)  # a tag should be a string; this one is recorded as a string
    with entangle.tags(password=HIDDEN, x=f"password={HIDDEN}", project="p", login=login):
        assert process(connect)("me", password=process(supplied)(1))() == "connected me"
    options = {"password": HIDDEN, "nested": {"token": [HIDDEN, process(port)()]}, "port": process(port)()}
    assert process(connect)("me", "", options)() == "connected me"
    assert process(attributed)(1)() == 1
    runs = records.runs()
    assert [run.tags.get("project") for run in runs] == [None, None, "p"]
    assert HIDDEN not in "".join(path.read_bytes().decode("latin-1") for path in directory.rglob("*") if path.is_file())


class Connector:
    """A task that is an object, not a function."""

    def __call__(self, user: str, password: str) -> str:
        return f"connected {user}"


def with_memory(smm: Any, sm: Any, user: str, password: str) -> str:
    return f"connected {user}"


def anything(value: Any, *values: Any, **named: Any) -> str:
    return "done"


def test_no_secret_reaches_the_disk_however_arguments_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By partial functions and callable objects; in pairs and named tuples that contain calls."""
    directory = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(directory))
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    any_of = process(anything)

    def secret() -> Any:
        return process(supplied)(1)

    calls = [
        process(functools.partial(connect, "me"))(HIDDEN),
        process(functools.partial(connect, "me"))(secret()),
        process(Connector())("me", HIDDEN),
        process(Connector())("me", secret()),
        process(shared_memory=True)(with_memory)("me", HIDDEN),
        process(shared_memory=True)(with_memory)("me", secret()),
        process(functools.wraps(connect)(lambda *args: connect(*args)))("me", HIDDEN),
        any_of(1, db_pass=HIDDEN),
        any_of(1, **{"x-api-key": secret()}),
        any_of({b"password": secret()}),
        any_of([("password", secret())]),
        any_of({"a": {"auth": ("me", secret())}}),
        any_of(Account("me", secret())),
        any_of([{"a": Account("me", secret())}], x=[[1, [Account("me", secret())]]]),
        any_of([[("user", "me"), ("password", secret())]]),
        any_of(Settings(password=secret())),
        any_of(("--password", HIDDEN)),
        any_of(["mysql", "-u", "me", f"-p{HIDDEN}"]),
        any_of(Account("me", HIDDEN), Frozen("me", HIDDEN), [Login("me", HIDDEN)]),
    ]
    for call in calls:
        call()
    with pytest.raises(RuntimeError):
        process(raises)(1)()
    assert len(records.runs()) == len(calls) + 1
    written = "".join(path.read_bytes().decode("latin-1") for path in directory.rglob("*") if path.is_file())
    assert HIDDEN not in written
    assert "connected me" in written


def refuses(*values: Any, **named: Any) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("decorator", [process, thread])
def test_no_secret_is_in_the_text_of_an_error(decorator: Any) -> None:
    """The error's text names the call that failed and its arguments."""

    def secret() -> Any:
        return decorator(supplied)(1)

    task = decorator(refuses)
    for call in (
        task(1, db_pass=HIDDEN),
        task(auth=("me", HIDDEN)),
        task({"signing_key": HIDDEN}, [("password", HIDDEN)], ["--password", HIDDEN]),
        task(Account("me", secret()), {"password": secret()}),
        task([("password", secret())]),
        task(["curl", "-u", f"me:{HIDDEN}"], f"Cookie: a={HIDDEN}"),
    ):
        with pytest.raises(ValueError, match="no") as caught:
            call()
        told = "".join(traceback.format_exception(caught.value))
        assert "refuses(" in told
        assert HIDDEN not in told
        assert HIDDEN not in repr(call)


def raises(x: int) -> None:
    error = RuntimeError(f"Cookie: session={HIDDEN}; a=b")
    if sys.version_info >= (3, 11):
        error.add_note(f'sent {{"auth": ["me", "{HIDDEN}"]}}')
    raise error from ValueError(f"postgres://me:{HIDDEN}@db/x")


def test_no_secret_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    directory = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(directory))
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    hidden_here = {"nested": [{"secret": HIDDEN}]}

    def seen() -> str:
        return "".join(path.read_bytes().decode("latin-1") for path in directory.rglob("*") if path.is_file())

    assert process(connect)("me", HIDDEN, options=hidden_here)() == "connected me"
    assert process(connect)("me", password=HIDDEN)() == "connected me"
    assert process(add)(process(get_token)(1), process(leak)(f"token={HIDDEN}"))().startswith(HIDDEN)
    assert task(add)(process(get_token)(1), "x")() == f"{HIDDEN}x"
    with pytest.raises(ValueError, match="password"):
        process(add)(process(fails)("x"), 1)()
    # A secret that lost its name on the way is recorded like any other value.
    allowed = seen().count(HIDDEN)
    assert allowed <= 2
    assert "connected me" in seen()
    runs = records.runs()
    assert seen().count(HIDDEN) == allowed
    assert [taken.value.text for taken in runs[-1].root.inputs if taken.value] == ["'me'", "***", "{'nested': [{'secret': ***}]}"]
    assert runs[0].error is not None
    assert runs[0].error.message == "password=***"


def test_a_secret_argument_that_an_error_quotes_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    monkeypatch.delenv("ENTANGLE_RECORD", raising=False)

    def quotes(user: str, password: str) -> None:
        raise PermissionError(f"{user} cannot connect with {password}")

    def dies(token: str) -> None:
        os.write(2, f"using {token}\n".encode())
        os._exit(3)

    for call in (process(quotes)("bob", "zz-first"), process(retry=1)(quotes)("bob", password="zz-second"), process(dies)("zz-third")):
        with pytest.raises(Exception):  # noqa: B017 - whatever it is
            call()
    assert len(list(records.runs())) == 3
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"zz-" not in written
    assert b"cannot connect with" in written


def test_a_letter_of_a_secret_that_looks_like_the_start_of_a_string_hides_nothing() -> None:
    """The C in the token is the opcode of short bytes, whose length would end where the token
    ends."""
    token = "ghp_" + 3 * "Zq022222CA222222222222229"
    assert hides_one(pickle.dumps([1] * 7 + [token], 5))


class Structure(ctypes.Structure):
    _fields_ = (("user", ctypes.c_char * 16), ("password", ctypes.c_char * 16))


class Connection:
    """Its pickle has the constructor's arguments by position, without their names."""

    def __init__(self, user: str, password: str) -> None:
        self.made_from = user, password

    def __reduce__(self) -> Any:
        return Connection, self.made_from


@dataclasses.dataclass(frozen=True, slots=True)
class Membership:
    """Its pickle has the values in order, without their names."""

    user: str
    password: str


def logs_in(user: str, password: str) -> None:
    return None


def enclosed(password: str) -> Any:
    return lambda: len(password)


def by_default() -> Any:
    return lambda n, password=HIDDEN: n


def with_a_constant() -> Any:
    def inner() -> Any:
        password = "h1dden-0f-all"
        return lambda: password

    return inner


UNNAMED: dict[str, Callable[[], Any]] = {
    "a structure of C": lambda: Structure(b"ann", HIDDEN.encode()),
    "what an instance was made from": lambda: [Connection("ann", HIDDEN)],
    "an argument of a partial": lambda: functools.partial(logs_in, "ann", HIDDEN),
    "a variable of a function": lambda: enclosed(HIDDEN),
    "a default": by_default,
    "a constant": with_a_constant,
    "code in a pickle in the pickle": lambda: by_value([enclosed(HIDDEN)]),
    "a class in much else": lambda: [bytes(2 << 20), Membership("ann", HIDDEN)],
    "a key in much else": lambda: [bytes(2 << 20), {b"password": HIDDEN}],
    "an attribute in many numbers": lambda: [list(range(400_000)), types.SimpleNamespace(api_key=HIDDEN)],
}


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_secret_whose_name_is_not_beside_it_in_the_pickle(kind: str) -> None:
    assert hides_one(by_value(UNNAMED[kind]()))


@pytest.mark.parametrize(
    "value",
    [
        lambda n: [n, "all is well"],
        functools.partial(sum, [1, 2]),
        [bytes(2 << 20), {"a": "b"}],
        types.SimpleNamespace(name="ann"),
    ],
)
def test_code_and_long_pickles_without_a_secret(value: Any) -> None:
    assert not hides_one(by_value(value))


@pytest.mark.parametrize(("kind", "secret"), [("texts", True), ("words", False), ("numbers", False)])
def test_large_buffers_of_arrays(kind: str, secret: bool) -> None:
    numpy = pytest.importorskip("numpy")
    if kind == "numbers":
        array = numpy.random.default_rng(1).random(90_000)
    else:
        array = numpy.array(["a", f"password={HIDDEN}" if secret else "b" * 30] * 2000)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(array, 5, buffer_callback=buffers.append)
    assert buffers
    assert hides_one(pickled, [buffer.raw() for buffer in buffers]) is secret
