"""`entangle image build` and `build_image`, with a real docker daemon, a real registry and Lambda's
own runtime client. Packages are wheels built here, so that no index is needed except for that
client."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from entangle import images
from entangle._images import base_python
from entangle._images.base_python import BasePython
from entangle._images.image_name import image_name
from entangle._images.needs import Needs, needs
from entangle._remote.caller.open_channels import close_all
from entangle.docker import docker
from entangle.errors import ImageError, OptionError, UnreachableError
from entangle.images import BuiltImage, build_image

from ..callers import ROOT
from ..services import given
from ..services.registry import PASSWORD, USER, registry
from ..ways import installed

installed("docker")

_numbers = itertools.count()


def wheel(
    folder: Path,
    name: str,
    number: str,
    modules: Mapping[str, str],
    requires: Sequence[str] = (),
    scripts: Mapping[str, str] | None = None,
    platform: str = "any",
) -> str:
    """Build a wheel for pip. Return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{number}-py3-none-{platform}.whl"
    about = f"{name}-{number}.dist-info"
    needed = "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as archive:
        for module, body in modules.items():
            archive.writestr(module, body)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{needed}")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-{platform}\n")
        if scripts:
            archive.writestr(f"{about}/entry_points.txt", "[console_scripts]\n" + "".join(f"{a} = {b}\n" for a, b in scripts.items()))
        archive.writestr(f"{about}/RECORD", "".join(f"{one},,\n" for one in archive.namelist()))
    return str(path)


def said_by(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


#: A label of all images of these tests; images built on them inherit it.
LABEL = {"entangle.tests": f"images-{os.getpid()}"}


def labelled() -> list[str]:
    (label,) = (f"label={key}={value}" for key, value in LABEL.items())
    return said_by("docker", "images", "--quiet", "--no-trunc", "--filter", label).split()


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """The base image: a Python without pip. Images built on it are removed at the end."""
    name = f"entangle-tests-images:{os.getpid()}-base"
    below = given.image()
    (label,) = (f"{key}={value}" for key, value in LABEL.items())
    said_by("docker", "build", "--quiet", "--label", label, "--tag", name, "-", input=f"FROM {below}\n")
    yield name
    close_all()
    while found := set(labelled()):
        subprocess.run(["docker", "image", "rm", "--force", *found], capture_output=True, check=False)
        assert set(labelled()) < found


@pytest.fixture
def name(base: str) -> str:
    """A new name for an image."""
    return f"entangle-tests-images:{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory from which pip installs packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # A secret that pip must not leave in an image.
    monkeypatch.setenv("PIP_INDEX_URL", "https://someone:secret@127.0.0.1:9/simple")
    return folder


@pytest.fixture(scope="module")
def small(base: str, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """An image with a small package."""
    path = wheel(tmp_path_factory.mktemp("small"), "colours", "1.0", {"colours.py": "RED = 'red'\n"})
    return build_image(f"entangle-tests-images:{os.getpid()}-small", base=base, packages=[path])


WORK = """
    from entangle.docker import docker
    import helps

    @docker(image={image!r})
    def paint():
        import colours
        return colours.RED, helps.shade(), colours.__cached__
"""


def test_functions_run_in_an_image_with_what_they_import(base: str, name: str, wheels: Path, tmp_path: Path) -> None:
    """The versions are those installed here, also for the packages' own dependencies. Markers are
    evaluated for the image's Python, not for the one here."""
    there = said_by("docker", "run", "--rm", base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    needed = ["shades", f"thenwhen; python_version == '{there}'", f"nowhere; python_version != '{there}'"]
    site = tmp_path / "venv" / "site-packages"
    for path in (
        wheel(wheels, "colours", "1.0", {"colours.py": "import shades\nRED = 'red'\n"}, needed),
        wheel(wheels, "shades", "1.0", {"shades.py": "DARK = 'dark'\n"}),
    ):
        zipfile.ZipFile(path).extractall(site)
    for later in ("colours", "shades"):
        wheel(wheels, later, "2.0", {f"{later}.py": "raise ImportError('the latest, not the one installed here')"})
    wheel(wheels, "thenwhen", "1.0", {"thenwhen.py": ""})
    (tmp_path / "helps.py").write_text("import shades\ndef shade(): return shades.DARK\n")
    (tmp_path / "work.py").write_text(textwrap.dedent(WORK.format(image=name)))

    def entangle(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, str(site)])}
        command = [sys.executable, "-m", "entangle", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    done = entangle("image", "build", name, "--from", "work.py", "--base", base, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["packages"] == ["colours==1.0", "shades==1.0", "thenwhen==1.0"]
    assert (found["tag"], found["reused"], found["digest"]) == (name, False, "")
    ran = entangle("run", "work.py:paint", "--json")
    colour, shade, compiled = json.loads(ran.stdout)["value"]
    assert (colour, shade) == ("red", "dark")
    assert said_by("docker", "run", "--rm", name, "ls", compiled) == compiled
    again = entangle("image", "build", name, "--from", "work:paint", "--base", base)
    assert again.returncode == 0, again.stderr
    lines = dict(line.split(None, 1) for line in again.stdout.splitlines())
    assert lines["image"] == f"{name} (was there already)"
    assert lines["id"] == found["id"]
    assert lines["use"] == f'@docker(image="{name}")'


def test_an_image_says_what_it_holds_and_nothing_of_this_machine(small: BuiltImage, base: str) -> None:
    told = json.loads(said_by("docker", "image", "inspect", small.tag))[0]
    labels = told["Config"]["Labels"]
    assert (labels["entangle.image.base"], labels["entangle.image.for"]) == (base, "docker")
    assert labels["entangle.image.python"] == small.python
    assert json.loads(labels["entangle.image.packages"]) == list(small.packages) == ["colours==1.0"]
    assert (told["Id"], told["Size"]) == (small.id, small.size)
    everything = json.dumps(told) + said_by("docker", "history", "--no-trunc", small.tag)
    assert "secret" not in everything
    assert "PIP_" not in everything


def test_it_runs_as_the_caller_as_its_base_does(small: BuiltImage) -> None:
    @docker(image=small.tag)
    def look() -> tuple[str, int]:
        return __import__("colours").RED, os.getuid()

    assert look()() == ("red", os.geteuid())
    for user in ("0", "12345"):
        command = ["docker", "run", "--rm", "--user", user, small.tag, "python3", "-c", "import colours; print(colours.RED)"]
        assert said_by(*command) == "red"


def test_the_user_and_the_path_of_the_base_stay(base: str, name: str, wheels: Path) -> None:
    below = f"{name}-below"
    recipe = f'FROM {base}\nENV PATH=/opt/its/own:/usr/bin:/bin\nUSER 1234:1234\nENTRYPOINT ["false"]\n'
    said_by("docker", "build", "--quiet", "--tag", below, "-", input=recipe, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    path = wheel(wheels, "sayer", "1.0", {"sayer.py": "import os\ndef say(): print(os.getuid())\n"}, scripts={"say": "sayer:say"})
    build_image(name, base=below, packages=[path])
    assert said_by("docker", "run", "--rm", name, "say") == "1234"
    assert "/opt/its/own" in said_by("docker", "run", "--rm", name, "sh", "-c", "echo $PATH").split(":")


def test_a_package_counts_before_that_of_the_base_and_behind_the_standard_library(
    small: BuiltImage, name: str, wheels: Path, tmp_path: Path
) -> None:
    for one in ("2.0", "3.0"):
        wheel(wheels, "colours", one, {"colours.py": "RED = 'crimson'\n"})
    (tmp_path / "wanted.txt").write_text("colours==2.0  # not the latest\n")
    path = wheel(tmp_path, "colorsys", "9.0", {"colorsys.py": "raise ImportError('not that of Python')"})
    found = build_image(name, base=small.tag, packages=[path], requirements=tmp_path / "wanted.txt")
    assert found.packages == ("colorsys==9.0", "colours==2.0")
    looks = "import colorsys, colours; from importlib.metadata import version; print(colours.RED, version('colours'))"
    assert said_by("docker", "run", "--rm", name, "python3", "-c", looks) == "crimson 2.0"


def test_the_same_again_is_the_same_image(base: str, name: str, wheels: Path) -> None:
    wheel(wheels, "reds", "1.0", {"reds.py": ""})
    told: list[str] = []
    pinned = build_image(name, base=base, packages=["reds==1.0"], told=told.append)
    assert not pinned.reused
    assert "packages" in told
    told.clear()
    again = build_image(name, base=base, packages=["reds==1.0"], told=told.append)
    assert (again.id, again.reused) == (pinned.id, True)
    assert "packages" not in told
    anew = build_image(name, base=base, packages=["reds==1.0"], fresh=True)
    assert (anew.id != pinned.id, anew.reused) == (True, False)
    # Without a version, pip runs again, and docker finds the same build in its cache.
    told.clear()
    loose = build_image(name, base=base, packages=["reds"], told=told.append)
    assert "packages" in told
    assert build_image(name, base=base, packages=["reds"]).id == loose.id


def loaded(name: str, settings: Sequence[str]) -> None:
    """Load an image with a single file, /usr/local/bin/python3, for aarch64."""
    # An ELF header for aarch64. It would not run on an aarch64 machine either.
    content = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00\x01\x00\x00\x00" + bytes(40)
    layer, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        head = tarfile.TarInfo("usr/local/bin/python3")
        head.size, head.mode = len(content), 0o755
        archive.addfile(head, io.BytesIO(content))
    about = {
        "architecture": "arm64",
        "os": "linux",
        "config": {"Env": list(settings), "Labels": LABEL},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "history": [{}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(fileobj=packed, mode="w") as archive:
        parts = {"layer.tar": layer.getvalue(), "config.json": json.dumps(about).encode(), "manifest.json": json.dumps(manifest).encode()}
        for part, data in parts.items():
            head = tarfile.TarInfo(part)
            head.size = len(data)
            archive.addfile(head, io.BytesIO(data))
    subprocess.run(["docker", "load"], input=packed.getvalue(), check=True, capture_output=True)


@pytest.fixture
def foreign(name: str) -> str:
    """A small image like the official ones, for a processor that this machine does not have."""
    loaded(f"{name}-foreign", ["PATH=/usr/local/bin", "PYTHON_VERSION=3.12.7"])
    return f"{name}-foreign"


def test_for_a_processor_that_this_machine_cannot_run(name: str, foreign: str, wheels: Path) -> None:
    """The official images declare their Python in a variable, so building needs not run it."""
    for machine in ("x86_64", "aarch64"):
        wheel(wheels, "colours", "1.0", {"colours.py": f"RED = {machine!r}\n"}, platform=f"manylinux2014_{machine}")
    found = build_image(name, base=foreign, packages=["colours"])
    assert (found.arch, found.python, found.packages) == ("arm64", "3.12.7", ("colours==1.0",))
    shell = said_by("docker", "create", name)
    try:
        packed = subprocess.run(["docker", "cp", f"{shell}:/opt/entangle/packages-001/colours.py", "-"], capture_output=True, check=True)
        assert b"aarch64" in packed.stdout
    finally:
        said_by("docker", "rm", shell)
    loaded(f"{name}-unknown", ["PATH=/usr/local/bin"])
    with pytest.raises(ImageError, match=r"cannot run the image .*arm64"):
        build_image(name, base=f"{name}-unknown", packages=["colours"])


def test_the_image_for_another_processor_is_pulled_and_the_one_here_keeps_its_name(
    name: str, base: str, foreign: str, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry") as address:
        below = f"{address}/below:1"
        said_by("docker", "tag", foreign, below)
        said_by("docker", "push", below)
        said_by("docker", "tag", base, below)
        found = build_image(name, base=below, arch="arm64")
        assert (found.arch, found.python) == ("arm64", "3.12.7")
    ids = [said_by("docker", "image", "inspect", "--format", "{{.Id}}", one) for one in (base, below)]
    assert ids[0] == ids[1]
    with pytest.raises(ImageError, match=r"that is here is for amd64, not for arm64"):
        build_image(name, base=base, arch="arm64")
    assert build_image(name, base=base, arch="amd64").arch == "amd64"


# --- Lambda ---------------------------------------------------------------------------------------

#: A Lambda Runtime API for one invocation. Prints its port, then how the invocation ended.
RUNTIME_API = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Runtime(BaseHTTPRequestHandler):
    protocol_version, wbufsize, given = "HTTP/1.1", -1, False
    def log_message(self, *_): pass
    def do_GET(self):
        if Runtime.given:
            self.server.shutdown()
            return
        Runtime.given = True
        event = json.dumps({"a": 1}).encode()
        self.send_response(200)
        for name, value in {"Lambda-Runtime-Aws-Request-Id": "1", "Lambda-Runtime-Deadline-Ms": "99999999999999",
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:f",
                "Content-Type": "application/json", "Content-Length": str(len(event))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(event)
    def do_POST(self):
        print(self.path.rpartition("/")[2], self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

server = ThreadingHTTPServer(("127.0.0.1", 0), Runtime)
print(server.server_port, flush=True)
server.serve_forever()
"""


HANDLES = """
import entangle
from entangle._services.far import program

def handle(event, context):
    return [event, entangle.__version__]
"""


def test_lambda_runs_it_by_its_own_client(base: str, name: str, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("PIP_NO_INDEX", "PIP_INDEX_URL"):
        monkeypatch.delenv(setting)
    path = wheel(wheels, "handles", "1.0", {"handles.py": HANDLES})
    found = build_image(name, base=base, service="lambda", packages=[path], handler="handles.handle")
    assert {one.partition("==")[0] for one in found.packages} >= {"awslambdaric", "cloudpickle", "handles"}
    with subprocess.Popen([sys.executable, "-c", RUNTIME_API], stdout=subprocess.PIPE, text=True) as api:
        assert api.stdout is not None
        try:
            settings = (
                f"AWS_LAMBDA_RUNTIME_API=127.0.0.1:{int(api.stdout.readline())}",
                "AWS_LAMBDA_FUNCTION_NAME=f",
                "AWS_REGION=us-east-1",
            )
            words = [word for setting in (*settings, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128") for word in ("--env", setting)]
            # As in Lambda: a user without a name, who cannot write anywhere.
            command = ["docker", "run", "--detach", "--read-only", "--user", "993:990", "--network", "host", *words, name]
            container = said_by(*command)
            try:
                kind, _, answer = api.stdout.readline().partition(" ")
                assert kind == "response", answer + said_by("docker", "logs", container)
                assert json.loads(answer) == [{"a": 1}, __import__("entangle").__version__]
            finally:
                said_by("docker", "rm", "--force", container)
        finally:
            api.kill()
    told = json.loads(said_by("docker", "image", "inspect", name))[0]["Config"]
    assert (told["Entrypoint"], told["Cmd"]) == (["python3", "-m", "awslambdaric"], ["handles.handle"])


# --- registries -----------------------------------------------------------------------------------


def test_it_is_pushed_and_can_be_pulled_by_its_digest(base: str, small: BuiltImage, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as address:
        there = f"{address}/some/work:1"
        told: list[str] = []
        found = build_image(there, base=small.tag, push=True, told=told.append)
        assert found.digest.startswith("sha256:")
        assert any("Pushed" in line or "exists" in line for line in told)
        said_by("docker", "image", "rm", there)
        by_digest = f"{address}/some/work@{found.digest}"
        assert docker(image=by_digest)(lambda: __import__("colours").RED)()() == "red"


def test_a_registry_that_asks_who_one_is(foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings"
    settings.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(settings))
    with registry(tmp_path / "registry", asks=True) as address:
        there = f"{address}/work:1"
        with pytest.raises(ImageError, match=rf"(?s){there} cannot be pushed: .*docker login {address}"):
            build_image(there, base=foreign, push=True)
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (settings / "config.json").write_text(json.dumps({"auths": {address: {"auth": login}}}))
        assert build_image(there, base=foreign, push=True).digest


def test_a_registry_that_is_not_there(foreign: str) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9/work:1 cannot be pushed: .*refused"):
        build_image("127.0.0.1:9/work:1", base=foreign, push=True)


def test_a_name_without_a_registry_is_not_pushed() -> None:
    with pytest.raises(OptionError, match="names no registry"):
        build_image("work/paint:1", push=True)


# --- missing parts --------------------------------------------------------------------------------


def test_a_base_that_cannot_be_used(base: str, name: str) -> None:
    with pytest.raises(ImageError, match="no-such-image"):
        build_image(name, base="127.0.0.1:9/no-such-image:1")
    with pytest.raises(ImageError, match=r"no Python at '/opt/no/python'"):
        build_image(name, base=base, executable="/opt/no/python")
    with pytest.raises(ImageError, match=r"(?s)'cat' of the image .* does not run.*unrecognized|invalid option"):
        build_image(name, base=base, executable="cat")
    with pytest.raises(ImageError, match=r"has Python 3\.\S+, not 3\.99"):
        build_image(name, base=base, python="3.99")


def test_a_python_that_does_not_answer(base: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_python, "_TELLS", 1)
    below = f"{name}-below"
    recipe = f'FROM {base}\nRUN printf "#!/bin/sh\\nexec sleep 60\\n" >/bin/slow && chmod 755 /bin/slow\n'
    said_by("docker", "build", "--quiet", "--tag", below, "-", input=recipe, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    before = set(given.containers())
    with pytest.raises(ImageError, match=r"'slow' of the image .* does not answer within 1 s"):
        build_image(name, base=below, executable="slow")
    assert set(given.containers()) <= before


def test_a_package_that_cannot_be_had(base: str, name: str, wheels: Path) -> None:
    wheel(wheels, "greens", "1.0", {"greens.py": ""}, platform="win_amd64")
    for wanted in ("greens==1.0", "no-such-package"):
        with pytest.raises(ImageError, match=rf"(?s){wanted} cannot be had for Python 3.*No matching distribution.*pip wheel"):
            build_image(name, base=base, packages=[wanted])
    wheel(wheels, "shades", "1.0", {"shades.py": ""}, ["greens>5"])
    with pytest.raises(ImageError, match="greens>5"):
        build_image(name, base=base, packages=["shades"])


def test_without_a_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from entangle.cli import main

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(UnreachableError, match="no docker daemon answers"):
        build_image("work:1")
    assert main(["image", "build", "work:1"]) == 5
    assert "no docker daemon answers" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["Work:1"], 2, "capital letters"),
        (["work:1", "--for", "nothing"], 2, "docker, batch, fargate, lambda"),
        (["work:1", "--arch", "vax"], 2, "amd64 or arm64"),
        (["work:1", "--python", "2.7"], 2, "3.10"),
        (["work:1", "--push"], 2, "names no registry"),
        (["work:1", "--package", "-e."], 2, "no package"),
        (["work:1", "--package", "./none.whl"], 2, "no file './none.whl'"),
        (["work:1", "--requirements", "none.txt"], 2, "none.txt"),
        (["work:1", "--handler", "a.b"], 2, "--for lambda"),
        (["work:1", "--from", "none.py"], 3, "there is no file none.py"),
        (["work:1", "--from", "no_such_module"], 3, "no module 'no_such_module'"),
        (["work:1", "--from", "json:no_such_function"], 3, "no 'no_such_function' in json"),
        (["work:1", "--from", "json:__name__"], 2, "no task, call or function"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_before_anything_is_done(
    words: list[str], status: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from entangle.cli import main

    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert main(["image", "build", *words]) == status
    assert said in capfd.readouterr().err


# --- names and requirements -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "registry_of_it", "whole"),
    [
        ("work", "", "work:latest"),
        ("some/work:1", "", "some/work:1"),
        ("localhost/work:1", "localhost", "localhost/work:1"),
        ("127.0.0.1:5000/work", "127.0.0.1:5000", "127.0.0.1:5000/work:latest"),
        ("1.dkr.example.com/a-b/c__d:v1.2-3", "1.dkr.example.com", "1.dkr.example.com/a-b/c__d:v1.2-3"),
    ],
)
def test_names_of_images(text: str, registry_of_it: str, whole: str) -> None:
    found = image_name(text)
    assert (found.registry, str(found)) == (registry_of_it, whole)


@pytest.mark.parametrize(
    "text", ["", None, "a b", "work:", ":1", "work:a b", "-work", "work@sha256:1", "a//b", "docker://work", "a.b:c/d", "x" * 300]
)
def test_what_is_no_name(text: Any) -> None:
    with pytest.raises(OptionError):
        image_name(text)


def test_what_is_the_same_whenever_it_is_asked_for(tmp_path: Path) -> None:
    listed = tmp_path / "listed.txt"
    for line, fixed in (
        ("a==1\n# b\n\n", True),
        ("a==1 # b\nc[d] == 2\n", True),
        ("a>=1", False),
        ("-r other.txt", False),
        ("a==1.*", False),
    ):
        listed.write_text(line)
        assert (needs([], listed, ()).fixed, line) == (fixed, line)
        if not line.startswith(("#", "-")) and "\n" not in line:
            assert Needs((line,)).fixed is fixed


def test_a_module_that_is_not_installed_here_is_told() -> None:
    def optional() -> Any:
        try:
            import not_installed_here  # type: ignore[import-not-found]
        except ImportError:
            import json as not_installed_here
        return not_installed_here

    assert needs([], None, [optional]).left_out == ("not_installed_here",)
    assert needs(["not-installed-here"], None, [optional]).left_out == ()


def test_what_is_named_goes_before_what_is_installed_here(tmp_path: Path) -> None:
    def sums() -> Any:
        import pandas

        return pandas.Series([1]).sum()

    found = needs([], None, [sums])
    assert found.packages == (f"pandas=={version('pandas')}",)
    assert f"numpy=={version('numpy')}" in found.constraints
    assert not any(one.startswith("pandas==") for one in found.constraints)
    (tmp_path / "wanted.txt").write_text("numpy>1\n")
    found = needs(["Pandas==1.0"], tmp_path / "wanted.txt", [sums])
    assert found.packages == ("Pandas==1.0",)
    assert not any(one.startswith(("numpy", "pandas")) for one in found.constraints)


def test_a_file_that_changes_is_another_need(tmp_path: Path) -> None:
    path = wheel(tmp_path, "colours", "1.0", {"colours.py": ""})
    before = needs([path], None, ()).fingerprint()
    assert needs([path], None, ()).fingerprint() == before
    wheel(tmp_path, "colours", "1.0", {"colours.py": "RED = 1"})
    assert needs([path], None, ()).fingerprint() != before


def test_platforms_of_a_python() -> None:
    def tags(**more: Any) -> list[str]:
        return BasePython((3, 12, 1), "python3", "", **more).platforms

    assert tags(arch="arm64", glibc="2.18") == [
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
        "linux_aarch64",
    ]
    assert "manylinux1_x86_64" in tags(arch="amd64", glibc="2.36")
    assert tags(arch="amd64", musl=True)[0] == "musllinux_1_2_x86_64"


def test_the_official_image_of_this_python_is_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(images, "build", lambda wanted, *_: asked.append(wanted.base))
    build_image("work:1")
    build_image("work:1", python="3.12")
    assert asked == ["python:{}.{}-slim".format(*sys.version_info), "python:3.12-slim"]
