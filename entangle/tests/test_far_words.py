"""Text and messages from another place: control characters are escaped, an invalid message is an
error, and the questions that a place may ask are limited."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import pty
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangle._remote.agent import imports
from entangle._remote.caller import channel, modules, outbox
from entangle._remote.transport import Transport
from entangle._remote.wire import frames
from entangle._remote.wire.byte_stream import ByteStream
from entangle._remote.wire.controls import escaped
from entangle.errors import EntangleError, FarError, ProtocolError
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.task import task

from . import bodies
from .callers import Caller
from .evidence import text_of
from .places import far_pythons

#: The limit for an answer, on a busy machine (seconds).
SOON = 15.0


def program(folder: Path, text: str) -> str:
    """A Python program that is used in place of an interpreter."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- control characters ---------------------------------------------------------------------------

WORDS = (
    "plain \x1b[31mred\x1b[0m \x1b[1;38:5:9mbold\x1b[m title\x1b]0;t\x07 clear\x1b[2J move\x1b[5A clip\x1b]52;c;aGk=\x1b\\ "
    "c1\x9b2J \x9d0;t\x9c back\x08\x08 bell\x07 del\x7f keys\x1b[>4;1m nul\x00 tab\tend"
)
BAD = ("\x1b]", "\x1b[2", "\x1b[5", "\x1b[>", "\x1b\\", "\x9b", "\x9d", "\x9c", "\x08", "\x07", "\x7f", "\x00")


def on_a_terminal(folder: Path, text: str) -> str:
    """What a program writes to a terminal."""
    caller = Caller(folder, text)
    mine, theirs = pty.openpty()
    caller.start(stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    written = b""
    try:
        with contextlib.suppress(OSError):
            while data := os.read(mine, 65536):
                written += data
        caller.process.wait(SOON)
    finally:
        os.close(mine)
        caller.stop()
    return written.decode()


TERMINAL = """
import os, subprocess, sys, time
from entangle.interpreter import interpreter
from entangle.process import process
WORDS = {words!r}
def talk():
    print(WORDS)
    print(WORDS, file=sys.stderr)
    os.write(1, WORDS.encode() + b"\\n")
    subprocess.run([sys.executable, "-c", f"import sys; print({{WORDS!r}}, file=sys.stderr)"], env={{**os.environ, "PYTHONUTF8": "1"}})
    print("x" * 65530, end="")
    print("\\x1b]0;in two pieces\\x07", end="", flush=True)
    print("10 %\\rsame line")
def bad():
    raise ValueError(WORDS)
if __name__ == "__main__":
    interpreter(talk)()()
    process(lambda: interpreter(talk)()())()()
    interpreter(bad)()()
"""


def test_a_terminal_gets_colours_and_nothing_else(tmp_path: Path) -> None:
    said = on_a_terminal(tmp_path, TERMINAL.format(words=WORDS))
    assert [found for found in BAD if found in said] == []
    assert said.count("tab\tend") + said.count("tab     end") >= 9, said
    assert "\x1b[31mred\x1b[0m" in said
    assert "\x1b[1;38:5:9mbold\x1b[m" in said
    assert "\\x1b]0;t\\x07" in said
    assert "ValueError: plain" in said
    assert "\rsame line" not in said


def test_a_file_gets_what_was_printed(capfd: pytest.CaptureFixture[str]) -> None:
    interpreter(lambda: print(WORDS))()()
    assert WORDS in capfd.readouterr().out


def test_errors_are_escaped_wherever_they_speak() -> None:
    """Messages, notes, tracebacks and causes, however they are printed."""

    def message() -> None:
        raise ValueError(WORDS)

    def system() -> None:
        raise OSError(5, WORDS)

    def syntax() -> None:
        compile("x = \x1b]0;t\x07", "\x1b]0;t\x07", "exec")

    class Own(Exception):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

        def __str__(self) -> str:
            return f"own: {self.what}"

    def own() -> None:
        raise Own(WORDS)

    def noted() -> None:
        error = KeyError("k")
        error.__notes__ = [WORDS]  # type: ignore[attr-defined]
        raise error

    def attempts() -> None:
        raise RuntimeError(WORDS)

    def unknown() -> None:
        class Local(Exception):
            def __reduce__(self) -> Any:
                raise TypeError(WORDS)

        raise Local(WORDS)

    def dies() -> None:
        os.write(2, f"{WORDS}\n".encode())
        os._exit(3)

    for python in (sys.executable, far_pythons(same=False)):
        door = interpreter(python=python)
        for body in (message, system, syntax, own, noted, process(retry=1)(attempts), process(message), unknown, dies):
            with pytest.raises(Exception) as caught:
                door(body)()()
            said = text_of(caught.value)
            assert [found for found in BAD if found in said] == [], (getattr(body, "__name__", body), said)
            assert "clear" in said or body is syntax
    with pytest.raises(OSError, match="plain") as kept:
        interpreter(system)()()
    assert kept.value.errno == 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups of errors are of Python 3.11")
def test_groups_of_errors_are_escaped_and_stay_groups() -> None:
    def raises() -> None:
        group = vars(builtins)["ExceptionGroup"]
        outer = group(WORDS, [group(WORDS, [ValueError(WORDS), OSError(5, WORDS)]), KeyError(WORDS)])
        outer.kept = 5
        outer.__notes__ = [WORDS]
        raise outer from group(WORDS, [ValueError(WORDS)])

    with pytest.raises(Exception, match="plain") as caught:
        interpreter(raises)()()
    found: Any = caught.value
    said = text_of(found) + repr(found)
    assert [bad for bad in BAD if bad in said] == []
    assert said.count("clear") > 6
    inner, key = found.exceptions
    assert (type(found).__name__, type(inner).__name__, type(key), found.kept) == ("ExceptionGroup", "ExceptionGroup", KeyError, 5)
    assert [type(each) for each in inner.exceptions] == [ValueError, OSError]
    assert inner.exceptions[1].errno == 5
    assert found.split(OSError)[0].exceptions[0].exceptions == (inner.exceptions[1],)


def test_what_a_place_says_before_there_is_an_agent(tmp_path: Path) -> None:
    python = program(tmp_path, f"import sys; sys.stderr.write({WORDS!r}); sys.exit(3)")
    with pytest.raises(FarError, match="plain") as caught:
        interpreter(python=python)(bodies.one)()()
    assert [found for found in BAD if found in text_of(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31", "\\x1b[31"),
        ("\x1b[" + "1;" * 60 + "m", "\\x1b[" + "1;" * 60 + "m"),
        ("a\r\nb\rc", "a\r\nb\\x0dc"),
        ("\x1b\x1b[1m", "\\x1b\x1b[1m"),
        ("é€😀\u2028", "é€😀\u2028"),
    ],
)
def test_what_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


# --- invalid messages -----------------------------------------------------------------------------


class Given(ByteStream):
    """A stream whose far side is a function of the test."""

    def __init__(self, speaks: Callable[[socket.socket], None]) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.reads = self.writes = self._ours.fileno()
        self._thread = threading.Thread(target=self._run, args=(speaks,))
        self._thread.start()

    def _run(self, speaks: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            speaks(self._theirs)
        self._theirs.close()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    kill = hang_up

    def close(self) -> None:
        self.hang_up()
        self._thread.join()
        self._ours.close()


class Somewhere(Transport):
    """A place whose far side is a function of the test."""

    def __init__(self, speaks: Callable[[socket.socket], None], timeout: float = 10.0) -> None:
        self.speaks = speaks
        self._timeout = timeout
        self.reads = b""

    place = "somewhere"

    @property
    def timeout(self) -> float:
        return self._timeout

    @property
    def key(self) -> Any:
        return id(self)

    def open(self, arguments: Sequence[str]) -> ByteStream:
        return Given(self.speaks)


ABOUT = {
    "protocol": frames.VERSION,
    "python": list(sys.version_info[:3]),
    "implementation": sys.implementation.name,
    "magic": importlib.util.MAGIC_NUMBER.hex(),
    "executable": "python",
    "host": "somewhere",
    "press": ["zlib"],
}
GREETING = b"\nentangle-agent 1 3.12.0\n"


def message(kind: int, number: int, *parts: bytes) -> bytes:
    return b"".join(bytes(piece) for frame in frames.encode(kind, number, [[part] for part in parts]) for piece in frame)


HELLO = message(frames.HELLO, 0, json.dumps(ABOUT).encode())


def call_of(said: bytes, hello: bytes = HELLO, more: Callable[[socket.socket], None] = lambda line: None) -> Any:
    """Call a place that sends these bytes once it has received the call."""

    def speaks(line: socket.socket) -> None:
        line.sendall(GREETING + hello)
        found = frames.Decoder()
        line.recv(int(line.recv(8, socket.MSG_WAITALL)), socket.MSG_WAITALL)
        while size := line.recv_into(found.room()):
            if any(got.kind == frames.CALL for got in found.received(size)):
                break
        line.sendall(said)
        more(line)

    there = channel.Channel(Somewhere(speaks))
    try:
        return there.call(task(bodies.one), (), {})
    finally:
        there.close()


DEEP = b"[" * 200_000
#: The first call of a channel has the number 1.
MALFORMED = {
    "no parts in a value": message(frames.VALUE, 1),
    "half a pickle": message(frames.VALUE, 1, b"\x80\x05\x95\xff\x00\x00\x00\x00\x00\x00\x00"),
    "no pickle": message(frames.VALUE, 1, b"hello"),
    "an empty value": message(frames.VALUE, 1, b""),
    "no parts in an error": message(frames.ERROR, 1),
    "an error that is no JSON": message(frames.ERROR, 1, b"{"),
    "an error that is a list": message(frames.ERROR, 1, b"[]"),
    "an error of other types": message(frames.ERROR, 1, b'{"text": 5, "where": [], "short": null}'),
    "an error that is too deep": message(frames.ERROR, 1, DEEP),
    "a print of nothing": message(frames.PRINT, 1),
    "an empty print": message(frames.PRINT, 1, b""),
    "a print of no stream": message(frames.PRINT, 1, b"\x09hello"),
    "a question of nothing": message(frames.FIND, 1),
    "a question that is long": message(frames.FIND, 1, b"x" * 100_000),
    "one question for ever": message(frames.FIND, 1, b"entangle") * 30_000,
    "questions for ever": b"".join(message(frames.FIND, 1, b"nobody_has_%d" % number) for number in range(30_000)),
    "a second hello": HELLO,
    "a call": message(frames.CALL, 1, b"{}"),
    "a module": message(frames.MODULE, 0, b"x"),
    "data of nobody": struct.pack("!IBBHQ", 3, frames.DATA, 0, 0, 9) + b"abc",
    "a frame of four gigabytes": struct.pack("!IBBHQ", 2**32 - 1, frames.VALUE, 0, 0, 1),
    "a part of more than there is": struct.pack("!IBBHQIQ", 12, frames.VALUE, 0, 0, 1, 1, 2**64 - 1),
    "a kind that is none": struct.pack("!IBBHQ", 0, 99, 0, 0, 1),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_message_is_an_error_that_names_the_place(what: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ProtocolError, match="somewhere"):
        call_of(MALFORMED[what])
    ours = ("entangle", "encodings", "importlib", "zstandard", "compression")
    assert {name for name in set(sys.modules) - before if not name.startswith(ours)} == set()


@pytest.mark.parametrize(
    "hello",
    [
        message(frames.HELLO, 0),
        message(frames.HELLO, 0, b"null"),
        message(frames.HELLO, 0, DEEP),
        message(frames.HELLO, 0, json.dumps({**ABOUT, "python": "3"}).encode()),
        message(frames.HELLO, 0, json.dumps({**ABOUT, "magic": {}}).encode()),
        message(frames.HELLO, 0, json.dumps({**ABOUT, "press": 5}).encode()),
        message(frames.HELLO, 0, json.dumps({**ABOUT, "protocol": 99}).encode()),
        message(frames.FIND, 1, b"this"),
    ],
)
def test_a_hello_that_is_none(hello: bytes) -> None:
    with pytest.raises(ProtocolError, match="somewhere"):
        call_of(b"", hello)


def test_one_byte_at_a_time_is_no_way_to_begin() -> None:
    def speaks(line: socket.socket) -> None:
        while True:
            line.sendall(b"x")
            time.sleep(0.01)

    with pytest.raises(FarError):
        channel.Channel(Somewhere(speaks, timeout=0.5))


def test_who_asks_and_does_not_listen_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_OWED", 4 << 20)
    many = b"".join(message(frames.FIND, 1 << 62 | number, b"*source") for number in range(100))
    with pytest.raises(ProtocolError, match=r"somewhere.*does not read the answers"):
        call_of(many, more=lambda line: time.sleep(1.0))


kinds = st.sampled_from([kind for kind in range(1, 13) if kind != frames.DATA])
texts = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"this", b"antigravity", b"*source", b"=os", b"!pip x", b"..", b"/etc/passwd", b"{}", b"[]", b"\x80\x05N."]),
)
heads = st.builds(
    lambda *head: struct.pack("!IBBHQ", *head),
    st.integers(0, 2**32 - 1),
    st.integers(0, 14),
    st.integers(0, 8),
    st.just(0),
    st.integers(0, 3),
)
said = st.lists(
    st.one_of(
        st.builds(lambda kind, number, parts: message(kind, number, *parts), kinds, st.integers(0, 3), st.lists(texts, max_size=3)),
        st.binary(max_size=60),
        heads,
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(said)
def test_no_words_hurt_the_caller(words: bytes) -> None:
    """The call returns a value or fails with one error, in time, and nothing was imported."""
    before = {name for name in sys.modules if not name.startswith("entangle")}
    began = time.monotonic()
    with contextlib.suppress(EntangleError):
        call_of(words)
    assert time.monotonic() - began < SOON
    assert not {"this", "antigravity"} & (set(sys.modules) - before)


# --- questions ------------------------------------------------------------------------------------


def test_a_question_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not even import the packages that contain the module. It finds what an import would
    find."""
    mark = tmp_path / "mark"
    for folder in ("regular/deep", "spaces/regular2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "regular" / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "regular" / "deep" / "__init__.py").write_text("1 / 0\n")
    (tmp_path / "regular" / "deep" / "leaf.py").write_text("leaf = 1\n")
    (tmp_path / "spaces" / "other").mkdir()
    (tmp_path / "spaces" / "other" / "leaf.py").write_text("leaf = 2\n")
    (tmp_path / "spaces" / "regular2" / "__init__.py").write_text("1 / 0\n")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    magic = ABOUT["magic"]

    def answer(name: str) -> Any:
        return imports.decode_answer([modules.answer(name, str(magic))])

    assert answer("regular.deep.leaf")["regular.deep.leaf"][2] == "leaf = 1\n"
    assert answer("regular.deep")["regular.deep"][:2] == (True, str(tmp_path / "regular" / "deep" / "__init__.py"))
    assert answer("spaces")["spaces"] == (True, "", "")
    assert answer("spaces.other")["spaces.other"] == (True, "", "")
    assert answer("spaces.other.leaf")["spaces.other.leaf"][2] == "leaf = 2\n"
    assert answer("spaces.regular2")["spaces.regular2"][2] == "1 / 0\n"
    none = ["regular.nothing", "nothing.at.all", "", ".", "..", "regular..deep", "regular/deep/leaf", "a\0b", "__main__"]
    for name in (*none, "/etc/passwd", "../secret", "secret.txt"):
        assert answer(name) is None, name
    for question in ("=regular.deep.leaf", "!regular", "!../secret", "=/etc/passwd"):
        answer(question)
    assert not mark.exists()
    assert {name for name in set(sys.modules) - before if name.startswith(("regular", "spaces", "secret"))} == set()


def test_a_traceback_names_no_file_that_is_read_for_ever(tmp_path: Path) -> None:
    """The source lines of a far traceback are looked up here. A name from there must not cause a
    read of a device or a pipe."""
    os.mkfifo(tmp_path / "pipe.py")
    for path in ("/dev/zero", "/dev/stdin", str(tmp_path / "pipe.py"), "/proc/kmsg"):
        told = {"text": f'Traceback:\n  File "{path}", line 1, in body\nValueError', "where": "", "short": "x"}
        with pytest.raises(EntangleError, match="failed at somewhere"):
            call_of(message(frames.ERROR, 1, json.dumps(told).encode()))


def test_a_message_that_is_broken_off_makes_room() -> None:
    """CANCEL drops the received part of a message. The same message may then be sent again."""
    decoder = frames.Decoder(limit=3 << 20)
    sent = [b"".join(map(bytes, frame)) for frame in frames.encode(frames.CALL, 5, [[bytes(2 << 20)]])]
    for _ in range(3):
        assert list(decoder.feed(b"".join(sent[:2]))) == []
        assert [got.kind for got in decoder.feed(frames.control(frames.CANCEL, 5))] == [frames.CANCEL]
    assert [len(got.parts[0]) for got in decoder.feed(b"".join(sent))] == [2 << 20]
