"""`@docker`: a call in a container. The daemon is a real one, and `make services` builds the
image."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from entangle._remote.caller.open_channels import close_all
from entangle.docker import docker
from entangle.errors import ImageError, LinkLostError, OptionError, UnfitPythonError, UnreachableError
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import ROOT
from .evidence import wait_until
from .far_bodies import add
from .services import given
from .shown_programs import run_shown
from .ways import installed, missing

installed("docker")


@pytest.fixture(scope="session")
def image() -> str:
    """The image for tests."""
    return given.image()


@pytest.fixture(autouse=True)
def _no_container_is_left(image: str) -> Any:
    """Check that the containers of a run are gone afterwards."""
    before = set(given.containers())
    yield
    close_all()
    wait_until(lambda: set(given.containers()) <= before, 20, "a container of ours is still there")


def test_a_function_runs_in_a_container_and_its_value_comes_back(image: str) -> None:
    there = docker(image=image)
    assert there(add)([1], [2])() == [1, 2]
    assert there(lambda: (os.path.exists("/.dockerenv"), os.path.exists(ROOT)))()() == (True, False)


def test_calls_at_once_share_one_container(image: str) -> None:
    @docker(image=image)
    def inside(n: int) -> tuple[int, str]:
        return n, os.uname().nodename

    @thread
    def gather(*found: tuple[int, str]) -> tuple[list[int], int]:
        return [n for n, _ in found], len({name for _, name in found})

    assert gather(*[inside(n) for n in range(20)])() == (list(range(20)), 1)


def test_the_container_goes_with_the_run(image: str) -> None:
    before = set(given.containers())
    assert docker(image=image)(add)(1, 2)() == 3
    wait_until(lambda: set(given.containers()) <= before, 5, "the container is still there after the run")


def test_it_is_warm_within_a_run(image: str) -> None:
    @docker(image=image)
    def inside() -> str:
        return os.uname().nodename

    @workflow
    def twice() -> list[str]:
        return [inside()(), inside()()]

    first, second = twice()()
    assert first == second


def test_a_worker_may_be_who_calls(image: str) -> None:
    there = process(docker(image=image)(add))
    assert thread(lambda *found: sorted(found))(*[there(n, 1) for n in range(4)])() == [1, 2, 3, 4]


def test_processes_and_cookies_of_the_container(image: str) -> None:
    @docker(image=image)
    @scheduler(cpus=1)
    @process
    def alone() -> tuple[int, int]:
        return os.getpid(), len(os.sched_getaffinity(0))

    pid, cpus = alone()()
    assert pid > 1
    assert cpus == 1


def test_it_runs_as_the_caller(image: str) -> None:
    assert docker(image=image)(lambda: (os.getuid(), os.getgid()))()() == (os.geteuid(), os.getegid())


def test_what_may_be_in_there_is_what_was_given(image: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("here")

    @docker(image=image, volumes={str(tmp_path): "/data:ro"}, env={"COLOUR": "red"}, consume_gpu=False, memory="256m", cpus=0.5)
    def look() -> tuple[str, Any, Any, bool, str]:
        try:
            open("/data/new", "w").close()
            written = True
        except OSError:
            written = False
        limits = [path for path in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max") if os.path.exists(path)]
        limit = open(limits[0]).read().strip() if limits else ""
        return open("/data/given").read(), os.environ.get("COLOUR"), os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH"), written, limit

    text, colour, growth, written, limit = look()()
    assert (text, colour, growth, written) == ("here", "red", "true", False)
    assert limit in ("", str(256 << 20))


def test_a_path_that_is_not_there_is_no_empty_directory_in_there(image: str, tmp_path: Path) -> None:
    wrong = tmp_path / "no-such-place"
    with pytest.raises(OptionError, match=r"volumes.*no-such-place"):
        docker(image=image, volumes={str(wrong): "/x"})(add)(1, 2)()
    assert not wrong.exists()


def test_volumes_that_docker_keeps_by_name(image: str, tmp_path: Path) -> None:
    name = f"entangle-tests-{os.getpid()}"

    @docker(image=image, volumes=[f"{name}:/kept", f"{tmp_path}:/data:rw"])
    def mounted() -> list[str]:
        open("/data/written", "w").close()
        return [line.split()[1] for line in open("/proc/mounts") if line.split()[1] in ("/kept", "/data")]

    try:
        assert sorted(mounted()()) == ["/data", "/kept"]
        assert (tmp_path / "written").exists()
    finally:
        close_all()
        subprocess.run(["docker", "volume", "rm", "--force", name], check=True, capture_output=True)


def test_without_a_network(image: str) -> None:
    @docker(image=image, network="none")
    def interfaces() -> list[str]:
        return os.listdir("/sys/class/net")

    assert [name for name in interfaces()() if name.startswith("eth")] == []


def test_privileges_are_none(image: str) -> None:
    @docker(image=image)
    def look() -> tuple[bool, bool]:
        status = open("/proc/self/status").read()
        return "NoNewPrivs:\t1" in status, os.path.exists("/dev/kmsg") and os.access("/dev/kmsg", os.W_OK)

    assert look()() == (True, False)


def test_large_values_travel_through_memory(image: str) -> None:
    data = os.urandom(1 << 20) * 100

    @docker(image=image)
    @process
    def turned(data: bytes) -> bytes:
        return data[::-1]

    assert turned(data)() == data[::-1]


# --- packages -------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, body: str) -> str:
    """A wheel with one module, for pip to install."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", body)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", f"{name}.py,,\n")
    return str(path)


def derived() -> list[str]:
    command = ["docker", "images", "--quiet", "--no-trunc", "entangle-derived"]
    return sorted(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


def configured(image: str) -> tuple[Any, ...]:
    """The user, entry point and command of an image."""
    told = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True, timeout=60).stdout
    config = json.loads(told)[0]["Config"]
    return config["User"], config["Entrypoint"], config["Cmd"]


def test_packages_become_an_image_that_is_built_once(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, f"colours{os.getpid()}", "RED = 'red'\n")
    module = Path(wheel).name.partition("-")[0]

    def colour(name: str) -> str:
        found: str = __import__(name).RED
        return found

    before = derived()
    there = docker(image=image, packages=[wheel], python="python3")(colour)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda call: call(), [there(module), there(module)])) == ["red", "red"]
    made = [one for one in derived() if one not in before]
    assert len(made) == 1
    try:
        assert docker(image=image, packages=[wheel])(colour)(module)() == "red"
        assert derived() == sorted([*before, *made])
        told = subprocess.run(["docker", "image", "inspect", made[0]], capture_output=True, text=True, check=True).stdout
        assert "PIP_" not in told  # the options of pip on this machine are not in it
        assert configured(made[0]) == configured(image)
        # The image names no user: bodies of a task that uses it run as the caller, too.
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert docker(image=made[0])(os.getuid)()() == 12345
    finally:
        close_all()
        subprocess.run(["docker", "image", "rm", "--force", *made], capture_output=True, check=True)


@pytest.mark.timeout(180)
def test_the_page_on_containers_shows_what_runs(image: str, tmp_path: Path) -> None:
    given.packages()
    before = set(derived())
    try:
        run_shown("how_to/containers.md", "contained.py", tmp_path, {"python:3.13-slim": image})
    finally:
        if new := set(derived()) - before:
            subprocess.run(["docker", "image", "rm", "--force", *new], capture_output=True, check=True)


def test_packages_change_neither_the_user_nor_the_command_of_an_image(image: str, tmp_path: Path) -> None:
    base = f"entangle-tests-user:{os.getpid()}"
    container = made(image)
    changes = ["--change=USER 2345:2345", '--change=ENTRYPOINT ["/usr/bin/env"]', '--change=CMD ["python3"]']
    subprocess.run(["docker", "commit", *changes, container, base], capture_output=True, check=True)
    subprocess.run(["docker", "rm", container], capture_output=True, check=True)
    before = derived()
    try:
        assert docker(image=base, packages=[make_wheel(tmp_path, f"users{os.getpid()}", "")])(os.getuid)()() == 2345
        (with_packages,) = set(derived()) - set(before)
        assert configured(with_packages) == configured(base) == ("2345:2345", ["/usr/bin/env"], ["python3"])
    finally:
        close_all()
        subprocess.run(["docker", "image", "rm", "--force", *(set(derived()) - set(before)), base], capture_output=True, check=True)


def test_packages_that_cannot_be_had(image: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_text("no wheel")
    before = derived()
    with pytest.raises(ImageError, match=r"broken-1\.0"):
        docker(image=image, packages=[str(broken)])(add)(1, 2)()
    assert derived() == before


# --- what is missing ------------------------------------------------------------------------------


def test_an_image_that_is_not_there(image: str) -> None:
    with pytest.raises(ImageError, match="no-such-image"):
        docker(image="127.0.0.1:9/no-such-image:1")(add)(1, 2)()


@pytest.mark.parametrize("name", ["Entangle-Tests:1", "NoSuch Image!", "docker://python:3.13-slim"])
def test_what_is_no_name_of_an_image_is_told(image: str, name: str) -> None:
    with pytest.raises(ImageError, match="invalid reference format") as caught:
        docker(image=name)(add)(1, 2)()
    assert repr(name) in str(caught.value)


def test_an_answer_of_the_daemon_is_not_taken_for_its_absence(image: str) -> None:
    from entangle._remote.transport.docker_daemon import connected

    with pytest.raises(UnreachableError, match=r"(?s)answers, but .*No such container") as caught, connected() as client:
        client.inspect_container("no-such-container")
    assert "is it running" not in str(caught.value)


def test_an_image_without_that_python(image: str) -> None:
    with pytest.raises(UnfitPythonError, match="/opt/no/python"):
        docker(image=image, python="/opt/no/python")(add)(1, 2)()


def test_without_a_daemon_the_error_says_what_to_do(image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(UnreachableError, match="no docker daemon answers"):
        docker(image=image)(add)(1, 2)()
    monkeypatch.undo()


def test_gpus_that_are_not_there(image: str) -> None:
    told = subprocess.run(["docker", "info"], capture_output=True, text=True, check=True, timeout=60).stdout
    if "nvidia" in told:
        pytest.skip("docker has a GPU runtime here")
    with pytest.raises(UnreachableError, match="NVIDIA container toolkit"):
        docker(image=image, gpus="all")(add)(1, 2)()


# --- faults ---------------------------------------------------------------------------------------


def ours(before: set[str]) -> list[str]:
    return [one for one in given.containers() if one not in before]


def test_a_container_that_is_killed_is_one_clear_error(image: str, tmp_path: Path) -> None:
    before = set(given.containers())

    @docker(image=image, volumes={str(tmp_path): "/notes"})
    def wait() -> None:
        import time

        open("/notes/began", "w").close()
        time.sleep(60)

    future = wait()(proc=True)
    wait_until((tmp_path / "began").exists, what="the body")
    subprocess.run(["docker", "kill", *ours(before)], check=True, capture_output=True)
    with pytest.raises(LinkLostError, match=image):
        future.result(30)


def test_retry_recovers_from_a_container_that_is_killed(image: str, tmp_path: Path) -> None:
    before = set(given.containers())

    @docker(image=image, volumes={str(tmp_path): "/notes"})
    @process(retry=1)
    def second() -> int:
        import time

        began = os.listdir("/notes")
        open(f"/notes/{len(began)}", "w").close()
        if not began:
            time.sleep(60)
        return len(began)

    future = second()(proc=True)
    wait_until((tmp_path / "0").exists, what="the body")
    subprocess.run(["docker", "kill", *ours(before)], check=True, capture_output=True)
    assert future.result(60) == 1


def test_memory_that_runs_out_is_a_death_with_a_name(image: str) -> None:
    @docker(image=image, memory="64m")
    @process
    def greedy() -> int:
        return len(bytearray(1 << 30).replace(b"\0", b"\1"))

    with pytest.raises((LinkLostError, Exception), match=r"SIGKILL|137|memory"):
        greedy()()


def test_a_caller_that_is_killed_takes_its_container_along(image: str, tmp_path: Path) -> None:
    before = set(given.containers())
    script = tmp_path / "caller.py"
    script.write_text(
        f"""
import time
from entangle.docker import docker

@docker(image={image!r}, volumes={{{str(tmp_path)!r}: "/notes"}})
def wait():
    open("/notes/began", "w").close()
    time.sleep(60)

wait()()
"""
    )
    runs = tmp_path / "runs"
    runs.mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs)}
    caller = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
    try:
        wait_until((tmp_path / "began").exists, what="the body")
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    wait_until(lambda: not ours(before), 10, "the container outlives its caller")
    shutil.rmtree(runs)


def test_what_a_crash_has_left_is_swept(image: str, tmp_path: Path) -> None:
    from entangle._remote.transport.docker_daemon import labels
    from entangle._remote.transport.docker_leftovers import sweep_containers

    before = set(given.containers())
    mine = [word for name, value in labels().items() for word in ("--label", f"{name}={value}")]
    theirs = [word.replace(labels()["entangle.home"], str(tmp_path / "gone")) for word in mine]
    kept, left = (
        subprocess.run(["docker", "create", *words, image], capture_output=True, text=True, check=True).stdout.strip()
        for words in (mine, theirs)
    )
    try:
        assert sweep_containers() == [f"container {left[:12]}"]
        assert ours(before) == [kept]
    finally:
        subprocess.run(["docker", "rm", "--force", kept], check=True, capture_output=True)


def made(image: str, **changed: str) -> str:
    """Create a container with our labels, except for these changes, without starting it, and return
    its id. By default the home in its labels no longer exists."""
    from entangle._remote.transport.docker_daemon import labels

    words = [f"--label={name}={value}" for name, value in {**labels(), **changed}.items() if value]
    return subprocess.run(["docker", "create", *words, image], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def removed() -> Iterator[list[str]]:
    """Containers that are removed at the end, if they still exist."""
    containers: list[str] = []
    yield containers
    subprocess.run(["docker", "rm", "--force", *containers], check=True, capture_output=True)


def test_containers_of_others_stay_though_their_home_is_not_to_be_seen(image: str, removed: list[str], tmp_path: Path) -> None:
    from entangle._remote.transport.docker_daemon import labels
    from entangle._remote.transport.docker_leftovers import sweep_containers

    gone = str(tmp_path / "gone")
    theirs = {
        "of another user": {"entangle.user": str(os.getuid() + 1)},
        "of nobody knows whom": {"entangle.user": ""},
        "of another machine, another boot, or a caller in a container": {"entangle.machine": labels()["entangle.machine"] + "1"},
        "without a home": {"entangle.home": ""},
        "whose home cannot be looked for": {"entangle.home": str(tmp_path / ("x" * 300))},
    }
    removed += [made(image, **{"entangle.home": gone, **changed}) for changed in theirs.values()]
    mine = made(image, **{"entangle.home": gone})
    removed.append(mine)
    left: list[str] = []
    assert (sweep_containers(left), left) == ([f"container {mine[:12]}"], [])
    assert set(removed[:-1]) <= set(given.containers())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_of_the_same_daemon_sweeps_nothing_of_ours(image: str, removed: list[str]) -> None:
    """The other user may ask the daemon, as members of the group docker may, but cannot read our
    run directory."""
    mine = made(image)
    removed.append(mine)
    # Import everything first: another user may be unable to read this Python.
    program = """
        import os, docker, requests
        from entangle._remote.transport.docker_daemon import connected
        from entangle._remote.transport.docker_leftovers import sweep_containers

        with connected() as client:
            client.containers()
        os.setgroups([os.stat("/var/run/docker.sock").st_gid])
        os.setgid(12345)
        os.setuid(12345)
        left = []
        print(sweep_containers(left), left)
    """
    runs = tempfile.mkdtemp()
    os.chmod(runs, 0o777)
    try:
        environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": runs, "TMPDIR": runs, "HOME": runs}
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=50)
    finally:
        shutil.rmtree(runs)
    assert (done.stdout, done.returncode) == ("[] []\n", 0), done.stderr
    assert mine in given.containers()


def test_a_daemon_that_cannot_be_asked_is_said_and_removes_nothing(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle._remote.transport.docker_leftovers import sweep_containers

    left: list[str] = []
    told: dict[str, list[str]] = {}
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    assert sweep_containers(left, told.setdefault("nothing", [])) == []
    for what, answer in {"an error": (500, b'{"message": "no space left"}'), "no list": (200, b"[")}.items():
        with answering(tmp_path / what.split()[-1], *answer) as host:
            monkeypatch.setenv("DOCKER_HOST", host)
            assert sweep_containers(left, told.setdefault(what, [])) == []
    assert all(len(lines) == 1 and "containers, if there are any: " in lines[0] for lines in told.values()), told
    assert "no space left" in told["an error"][0]
    assert left == []


@contextlib.contextmanager
def answering(path: Path, status: int, answer: bytes) -> Iterator[str]:
    """A daemon that returns its version, and to all else this answer. Yields its address."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plain = self.path.endswith("/version")
            self.send_response(200 if plain else status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"ApiVersion": "1.41"}' if plain else answer)

        def address_string(self) -> str:
            return "a socket"

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            serving.join()


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs an image"),
        ({"image": "--privileged"}, "image"),
        ({"image": 3}, "image"),
        ({"image": "a", "packages": "numpy"}, "packages"),
        ({"image": "a", "packages": ["--index-url=x"]}, "packages"),
        ({"image": "a", "volumes": ["relative"]}, "volumes"),
        ({"image": "a", "memory": "lots"}, "memory"),
        ({"image": "a", "cpus": 0}, "cpus"),
        ({"image": "a", "gpus": -1}, "gpus"),
        ({"image": "a", "network": 1}, "network"),
        ({"image": "a", "env": ["A=1"]}, "env"),
        ({"image": "a", "env": {"A": None}}, "env.*the value of 'A' must be a string"),
        ({"image": "a", "env": {"": 1}}, "env"),
        ({"image": "a", "env": {"A=B": 1}}, "env.*'A=B' cannot be the name"),
        ({"image": "a", "env": {1: "1"}}, "env"),
        ({"image": "a", "memory": "0"}, "memory"),
        ({"image": "a", "memory": "00m"}, "memory"),
        ({"image": "a", "consume_gpu": "no"}, "consume_gpu"),
        ({"image": "a", "package": ["b"]}, "packages"),
    ],
)
def test_bad_options_are_refused_when_decorated(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        docker(**options)(add)


def test_options_travel() -> None:
    first = task(add)
    there = docker(image="a", packages=["b"], env={"A": "1"}, volumes={"/x": "/y"}, gpus=["0"])(first)
    again = pickle.loads(pickle.dumps(there.layers[0].transport))  # type: ignore[attr-defined]
    assert again.key == there.layers[0].transport.key  # type: ignore[attr-defined]
    assert hash(again) == hash(there.layers[0].transport)  # type: ignore[attr-defined]


# --- a daemon that ends ---------------------------------------------------------------------------


class Daemon:
    """A docker daemon for one test, which may be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/socket"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        # In its own network namespace: without a bridge it would remove that of the machine's
        # daemon.
        command = ["unshare", "--net", "dockerd", "--host", self.host, "--bridge=none", "--iptables=false", "--ip-forward=false"]
        command += [f"--{option}={self.folder / name}" for option, name in places.items()]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self.docker("version").returncode == 0, 30, "the daemon does not answer")

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a docker command with this daemon."""
        return subprocess.run(["docker", "--host", self.host, *arguments], capture_output=True, timeout=100)

    def running(self) -> list[bytes]:
        """The running containers."""
        return self.docker("ps", "--quiet").stdout.split()

    def end(self) -> None:
        """End it with SIGTERM, as a service manager would."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None


@pytest.fixture
def daemon(image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon that has the image, and that calls use."""
    if os.geteuid() or shutil.which("dockerd") is None or shutil.which("unshare") is None:
        missing("a docker daemon of its own needs root and dockerd (make services)")
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="ent") as folder:
        own = Daemon(Path(folder))
        own.start()
        try:
            with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
                subprocess.run(["docker", "--host", own.host, "load"], stdin=saved.stdout, check=True, capture_output=True, timeout=200)
            monkeypatch.setenv("DOCKER_HOST", own.host)
            yield own
            close_all()
        finally:
            own.end()


@pytest.mark.drill
def test_a_daemon_that_ends_in_the_middle_is_one_clear_error(daemon: Daemon, image: str) -> None:
    @docker(image=image, network="none")
    @process
    def long() -> int:
        time.sleep(100)
        return 1

    future = long()(proc=True)
    wait_until(daemon.running, 60, "the container does not start")
    time.sleep(1)
    daemon.end()
    with pytest.raises((LinkLostError, UnreachableError)):
        future.result(60)
    daemon.start()
    wait_until(lambda: not daemon.running(), 30, "a container is left")


@pytest.mark.drill
def test_retry_recovers_from_a_daemon_that_is_restarted(daemon: Daemon, image: str) -> None:
    @docker(image=image, network="none")
    @process(retry=8, sleep=1)
    def rather_long(n: int) -> int:
        time.sleep(8)
        return n + 1

    future = rather_long(41)(proc=True)
    wait_until(daemon.running, 60, "the container does not start")
    time.sleep(1)
    daemon.end()
    daemon.start()
    assert future.result(100) == 42
