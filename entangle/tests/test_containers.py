"""`@apptainer` and `@singularity`: with a stub of the command that runs this machine's Python, and
with the real command where it is installed."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from entangle import containers
from entangle._remote.transport.apptainer import ApptainerTransport
from entangle.containers import apptainer, singularity
from entangle.docker import docker
from entangle.errors import ImageError, LinkLostError, OptionError, UnfitPythonError, UnreachableError
from entangle.process import process
from entangle.thread import thread

from .far_bodies import add
from .services.hosts import this_python

#: Drops the options of the command, logs its arguments, and runs the rest on this machine.
STUB = """#!/bin/sh
printf '%s\\n' "$0 $*" >> "{folder}/asked"
[ "$1" = exec ] || exit 255
shift
while [ "$#" -gt 0 ]; do
    case $1 in
        --bind|--env|--memory|--cpus|--pwd) [ "$1" = --env ] && export "$2"; shift 2 ;;
        --*) shift ;;
        *) break ;;
    esac
done
grep -q broken "$1" && {{ echo "FATAL: could not open image $1" >&2; exit 255; }}
shift
exec "$@"
"""


@pytest.fixture(params=["apptainer", "singularity"])
def command(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stub of the command with that name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub = folder / str(request.param)
    stub.write_text(STUB.format(folder=tmp_path))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A file that stands for an image."""
    path = tmp_path / "analysis.sif"
    path.write_text("an image")
    return str(path)


def asked(folder: Path) -> list[str]:
    """The arguments of the last call of the command."""
    return (folder / "asked").read_text().splitlines()[-1].split()


def door(command: str) -> Any:
    return {"apptainer": apptainer, "singularity": singularity}[command]


def test_a_function_runs_in_there_and_its_value_comes_back(command: str, image: str, tmp_path: Path) -> None:
    there = door(command)(image=image, python=this_python(), env={"COLOUR": "red"}, volumes={str(tmp_path): "/data"}, memory="1g", cpus=2)
    assert there(lambda: (os.environ["COLOUR"], os.getpid()))()()[0] == "red"
    words = asked(tmp_path)
    assert Path(words[0]).name == command
    assert words[1] == "exec"
    for wanted in ("--containall", "--no-home", "--cleanenv"):
        assert wanted in words
    assert words[words.index("--bind") + 1] == f"{tmp_path}:/data"
    assert words[words.index("--memory") + 1] == "1g"
    assert words[words.index("--cpus") + 1] == "2"
    assert "--nv" not in words
    assert words.index(image) < words.index(this_python())


def test_either_name_finds_the_other(image: str, command: str) -> None:
    other = singularity if command == "apptainer" else apptainer
    assert other(image=image, python=this_python())(add)(1, 2)() == 3


def test_calls_of_a_run_share_a_container(command: str, image: str, tmp_path: Path) -> None:
    there = door(command)(image=image, python=this_python())(add)
    assert thread(lambda *found: list(found))(*[there(n, 1) for n in range(10)])() == list(range(1, 11))
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_processes_in_there(command: str, image: str) -> None:
    @door(command)(image=image, python=this_python())
    @process
    def inside() -> int:
        return os.getpid()

    assert inside()() != os.getpid()


def test_gpus_are_asked_for(image: str) -> None:
    assert "--nv" in ApptainerTransport(image, gpus=True).command("apptainer", [])


def test_packages_are_installed_once(command: str, image: str, tmp_path: Path) -> None:
    """The stub runs pip, but mounts nothing, so the test checks the arguments."""
    there = door(command)(image=image, python="true", packages=["colours"])(add)
    # `true` is no Python, but it succeeds in place of pip.
    with pytest.raises(Exception, match="Python"):
        there(1, 2)()
    words = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert len(words) == 2
    assert words[0][-1] == "colours"
    assert "pip" in words[0]
    kept = words[0][words[0].index("--bind") + 1]
    assert kept.startswith(str(tmp_path / "cache"))
    assert words[1][words[1].index("--bind") + 1] == f"{kept}:ro"
    with pytest.raises(Exception, match="Python"):
        there(1, 2)()
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


def test_an_image_that_is_not_there(command: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.sif"):
        door(command)(image=str(tmp_path / "nothing.sif"))(add)(1, 2)()


def test_an_image_that_cannot_be_opened(command: str, tmp_path: Path) -> None:
    (tmp_path / "broken.sif").write_text("broken")
    with pytest.raises(ImageError, match="could not open image"):
        door(command)(image=str(tmp_path / "broken.sif"))(add)(1, 2)()


def test_an_image_without_that_python(command: str, image: str) -> None:
    with pytest.raises(UnfitPythonError, match="/opt/no/python"):
        door(command)(image=image, python="/opt/no/python")(add)(1, 2)()


def test_a_container_that_is_killed(command: str, image: str) -> None:
    @door(command)(image=image, python=this_python())
    def die() -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(LinkLostError, match=r"analysis\.sif"):
        die()()


def test_without_the_command(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnreachableError, match=r"apptainer\.org"):
        apptainer(image=image)(add)(1, 2)()


def test_docker_is_here_too() -> None:
    assert containers.docker is docker


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs an image"),
        ({"image": "a", "network": "none"}, "network"),
        ({"image": "a", "bind": "x"}, "bind"),
        ({"image": ""}, "image"),
        ({"image": "a", "env": {"A": None}}, "env"),
        ({"image": "a", "memory": "0g"}, "memory"),
        ({"image": "a", "gpus": "no"}, "gpus"),
    ],
)
def test_bad_options_are_refused_when_decorated(options: dict[str, Any], told: str) -> None:
    for decorator in (apptainer, singularity):
        with pytest.raises(OptionError, match=told):
            decorator(**options)(add)


def test_the_real_command() -> None:
    if shutil.which("apptainer") is None or "ENTANGLE_SIF" not in os.environ:
        pytest.skip("install apptainer, and name an image with a Python in ENTANGLE_SIF")
    assert apptainer(image=os.environ["ENTANGLE_SIF"])(add)([1], [2])() == [1, 2]
    assert apptainer(image=os.environ["ENTANGLE_SIF"])(lambda: sys.version_info >= (3, 10))()()
