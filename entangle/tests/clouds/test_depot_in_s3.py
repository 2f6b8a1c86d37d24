"""A depot in a bucket, with moto's S3: who computes, what is uploaded, and what can go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle._depot import opened, remote_depot
from entangle._depot.entry import About
from entangle._depot.pins import Owner
from entangle._depot.remote_depot import RemoteDepot
from entangle._depot.s3_objects import Changed, S3Objects
from entangle.cache import Cache
from entangle.errors import DepotError, OptionError
from entangle.process import process
from entangle.thread import thread

from .. import bodies
from ..evidence import notes
from ..services.emulators import Emulator
from ..waiting_programs import BEGINS_AND_WAITS, WaitingPrograms

Client = Callable[[str], Any]

KEY = "ab" * 32


@pytest.fixture
def url(aws_environment: Emulator, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of the test's own in a bucket."""
    monkeypatch.setenv("ENTANGLE_KEY", "secret")
    return f"s3://{bucket}/{tmp_path.name}"


@pytest.fixture
def place(url: str) -> RemoteDepot:
    found: RemoteDepot = opened.depot(url)
    return found


def about(made: float = 0.0, seconds: float = 0.0) -> About:
    return About("made", made or time.time(), seconds, {})


def body_of(place: RemoteDepot) -> bytes | None:
    found = place.find(KEY)
    return None if found is None else bytes(found.body)


def test_a_value_is_found_again(url: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = process(cache=Cache(where=url))(bodies.noted)
    sent: list[Any] = [1, None, "x" * 100_000, os.urandom(3_000_000)]
    assert [[noted(log, value)() for value in sent] for _ in range(2)] == [sent] * 2
    assert len(notes(log)) == len(sent)
    place = opened.depot(url)
    assert sorted(file.size > 1_000_000 for file in place.entries()) == [False] * 3 + [True]
    assert {place.about(file.key).task for file in place.entries()} == {"noted"}
    assert [place.remove(file.key) for file in list(place.entries())] == [True] * 4
    assert not place.remove(KEY)
    assert noted(log, 1)() == 1


def test_more_values_than_one_page_of_a_listing(place: RemoteDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Objects, "page", 3)
    for number in range(7):
        place.put(f"{number:064x}", about(), b"value", [])
    assert len(list(place.entries())) == 7


# --- the first writer wins ------------------------------------------------------------------------


def test_of_two_values_that_were_made_at_once_the_first_stays(place: RemoteDepot) -> None:
    now = time.time()
    place.put(KEY, about(now, seconds=10), b"first", [])
    place.put(KEY, about(now + 1, seconds=10), b"second", [])
    assert body_of(place) == b"first"


def test_an_older_value_is_replaced(place: RemoteDepot) -> None:
    now = time.time()
    place.put(KEY, about(now - 100), b"first", [])
    place.put(KEY, about(now, seconds=10), b"second", [])
    assert body_of(place) == b"second"


def test_what_is_damaged_or_not_signed_is_replaced(place: RemoteDepot, url: str, aws: Client) -> None:
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    aws("s3").put_object(Bucket=bucket, Key=f"{folder}/values/{KEY[:2]}/{KEY}", Body=b"anybody's")
    place.put(KEY, about(), b"value", [])
    assert body_of(place) == b"value"


def test_conditions_of_puts(url: str) -> None:
    files, path = S3Objects(url), f"{url.removeprefix('s3://')}/object"
    tag = files.pipe_file(path, b"1", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file(path, b"2", mode="create")
    assert files.cat_with_tag(path) == (b"1", tag)
    newer = files.pipe_file(path, b"2", instead_of=tag)
    with pytest.raises(Changed):
        files.pipe_file(path, b"3", instead_of=tag)
    files.rm_file(path)
    with pytest.raises(Changed):
        files.pipe_file(path, b"3", instead_of=newer)
    with pytest.raises(FileNotFoundError):
        files.cat_file(path)


# --- one computes ---------------------------------------------------------------------------------

_PROGRAM = f"""
import os, sys, time
from entangle._depot import remote_depot
from entangle.process import process
from entangle.cache import Cache
remote_depot._LASTS, remote_depot._RENEWED = 3.0, 0.5

@process(cache=Cache(where=sys.argv[1]))
def slow(n):
{BEGINS_AND_WAITS}
    return [n, "value"]

if __name__ == "__main__":
    print(slow(3)())
"""


@pytest.fixture
def programs(tmp_path: Path) -> WaitingPrograms:
    """Processes that need the same value."""
    return WaitingPrograms(tmp_path, _PROGRAM)


def test_two_programs_at_once_compute_once(programs: WaitingPrograms, url: str) -> None:
    first, second = programs.start(url), programs.start(url)
    programs.wait_for(1)
    programs.go()
    assert [first.communicate(timeout=60), second.communicate(timeout=60)] == [("[3, 'value']\n", "")] * 2
    assert len(programs.ran) == 1
    place = opened.depot(url)
    assert place._files.find(place._path("locks")) == {}


def test_the_lease_of_who_was_killed_ends(programs: WaitingPrograms, url: str) -> None:
    first = programs.start(url)
    programs.wait_for(1)
    second = programs.start(url)
    first.kill()
    first.communicate()
    programs.wait_for(2)
    programs.go()
    assert second.communicate(timeout=60) == ("[3, 'value']\n", "")
    assert len(programs.ran) == 2


def test_a_lease_is_had_by_one_of_many(place: RemoteDepot, url: str) -> None:
    """Even if all of them find an expired lease."""
    files = S3Objects(url)
    for number in range(5):
        key = f"{number:064x}"
        files.pipe_file(place._path("locks", key, "1"), json.dumps({"until": time.time() - 1}).encode())
        ready = threading.Barrier(6)

        def take(key: str = key, ready: threading.Barrier = ready) -> Any:
            ready.wait()
            return place.try_alone(key)

        with ThreadPoolExecutor(6) as threads:
            leases = [lease for lease in threads.map(lambda _: take(), range(6)) if lease is not None]
        assert len(leases) == 1
        leases[0].give()
        assert files.find(place._path("locks")) == {}


def test_a_lease_is_renewed_as_long_as_it_is_ours(place: RemoteDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_depot, "_RENEWED", 0.05)
    lease = place.try_alone(KEY)
    assert lease is not None
    path = place._path("locks", KEY, "1")
    began = json.loads(place._files.cat_file(path))["until"]
    while json.loads(place._files.cat_file(path))["until"] == began:
        time.sleep(0.01)
    others = json.dumps({"until": time.time() + 60, "holder": "another"}).encode()
    place._files.pipe_file(path, others)
    lease._renewer.join(20)
    lease.give()
    assert place._files.cat_file(path) == others


def test_a_lease_whose_answer_was_lost_is_ours(place: RemoteDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    real = S3Objects.pipe_file

    def twice(self: S3Objects, path: str, value: bytes, mode: str = "overwrite", instead_of: str = "") -> str:
        real(self, path, value, mode, instead_of)
        return real(self, path, value, mode, instead_of)

    monkeypatch.setattr(S3Objects, "pipe_file", twice)
    lease = place.try_alone(KEY)
    assert lease is not None
    lease.give()


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.fixture
def slow_way(aws_environment: Emulator) -> Iterator[tuple[str, threading.Event]]:
    """An address that forwards to moto, but holds back the end of each uploaded value; and an event
    that is set when an upload has come."""
    come = threading.Event()
    port = aws_environment.port

    def lead(near: socket.socket, far: socket.socket) -> None:
        held = 0
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                held += len(data) if held or (data.startswith(b"PUT ") and b"/values/" in data.split(b"\r\n")[0]) else 0
                if held > 500_000:
                    come.set()
                    continue
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def answer(far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    listening = socket.create_server(("127.0.0.1", 0))
    opened_: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", port))
                opened_.extend((near, far))
                for target, ends in ((lead, (near, far)), (answer, (far, near))):
                    threads.append(threading.Thread(target=target, args=ends))
                    threads[-1].start()

    server = threading.Thread(target=serve)
    server.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", come
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    server.join()
    for end in opened_:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for one in threads:
        one.join()
    for end in opened_:
        end.close()


def test_killed_in_the_middle_of_a_put(url: str, slow_way: tuple[str, threading.Event], tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, sys, time
        from entangle._depot.entry import About
        from entangle._depot.opened import depot
        depot(sys.argv[1]).put("ab" * 32, About("made", time.time(), 0.0, {}), os.urandom(5_000_000), [])
    """)
    address, come = slow_way
    putting = subprocess.Popen([sys.executable, "-c", program, url], env={**os.environ, "AWS_ENDPOINT_URL": address})
    with putting:
        assert come.wait(60)
        putting.kill()
    place = opened.depot(url)
    assert (place.find(KEY), list(place.entries())) == (None, [])
    place.put(KEY, about(), b"value", [])
    assert body_of(place) == b"value"


@pytest.mark.parametrize("where", [0.0, 0.3, 1.0])
def test_flipped_bytes_are_computed_again(
    where: float, url: str, place: RemoteDepot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = str(tmp_path / "log")
    noted = thread(cache=Cache(where=url))(bodies.noted)
    noted(log, "a value")()
    (path,) = place._files.find(place._path("values"))
    flipped = bytearray(place._files.cat_file(path))
    flipped[int(where * (len(flipped) - 1))] ^= 1
    place._files.pipe_file(path, bytes(flipped))
    assert [noted(log, "a value")() for _ in range(2)] == ["a value"] * 2
    assert len(notes(log)) == 2
    assert ["is damaged" in record.message for record in caplog.records] == [True]
    assert len(place._files.find(place._path("quarantine"))) == 1


def test_a_value_with_another_signature_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = thread(cache=Cache(where=url))(bodies.noted)
    noted(str(tmp_path / "log"), 1)()
    monkeypatch.setenv("ENTANGLE_KEY", "another")
    with pytest.raises(DepotError, match="signed with another key"):
        noted(str(tmp_path / "log"), 1)()


def _warnings(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The warnings about a depot that cannot be used. The value is computed all the same."""
    noted = thread(cache=Cache(where=url))(bodies.noted)
    assert [noted(str(tmp_path / "log"), value)() for value in (1, 1, 2)] == [1, 1, 2]
    assert len(caplog.records) == 2  # one for reading, one for writing
    return caplog.text


def test_a_bucket_that_is_not_there(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "there is no bucket 'nobodys-bucket-here': make it, or" in _warnings("s3://nobodys-bucket-here/depot", tmp_path, caplog)


def test_no_credentials(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no credentials of AWS were found: set AWS_PROFILE" in _warnings(f"{url}/nobodys", tmp_path, caplog)


def test_a_user_without_rights(
    aws_environment: Emulator, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(aws_environment.client("iam")) as iam:
        iam.create_user(UserName=tmp_path.name)
        keys = iam.create_access_key(UserName=tmp_path.name)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    with aws_environment.permissions():
        assert "a depot needs s3:ListBucket" in _warnings(f"{url}/rights", tmp_path, caplog)


def test_a_url_without_a_bucket(aws_environment: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_KEY", "secret")
    with pytest.raises(OptionError, match="must name a bucket"):
        Cache(where="s3://")
    with pytest.raises(DepotError, match="names no bucket"):
        opened.depot("s3:///depot")


def test_a_bucket_needs_a_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_KEY")
    with pytest.raises(DepotError, match="ENTANGLE_KEY"):
        opened.depot(url)


# --- bounds, pins, commands -----------------------------------------------------------------------


def test_bounds_and_pins(place: RemoteDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:064x}" for number in range(6)]
    for key in keys:
        place.put(key, about(), os.urandom(100_000), [])
    (tmp_path / "ledger").touch()
    owner = Owner("nightly", str(tmp_path / "ledger"))
    place.pin(owner, keys[:2])
    monkeypatch.setenv("ENTANGLE_DEPOT_SIZE", "250k")
    place.trim()
    left = {file.key for file in place.entries()}
    assert set(keys[:2]) <= left
    assert len(left) == 2
    (tmp_path / "ledger").unlink()
    monkeypatch.setenv("ENTANGLE_DEPOT_SIZE", "1k")
    assert len(place.trim()) == 2
    assert place._files.find(place._path("pins")) == {}


def _command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entangle", "cache", *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)


def test_the_commands(place: RemoteDepot, url: str) -> None:
    place.put(KEY, about(), b"value", [])
    listed = json.loads(_command("ls", "--json", ENTANGLE_DEPOT=url).stdout)
    assert [one["key"] for one in listed] == [KEY]
    assert _command("verify", ENTANGLE_DEPOT=url).returncode == 0
    assert _command("rm", KEY[:10], "--where", url).returncode == 0
    assert list(place.entries()) == []
    absent = _command("ls", "--where", "s3://nobodys-bucket-here/depot")
    assert absent.returncode == 1
    assert absent.stderr.count("\n") == 1
    assert "there is no bucket 'nobodys-bucket-here'" in absent.stderr
