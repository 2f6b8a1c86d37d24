"""@interpreter: bodies in another Python of this machine, of the same version and of another."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import OptionError, UnfitPythonError, UnreachableError
from entangle.interpreter import interpreter
from entangle.process import process

from .places import far_pythons


@pytest.fixture(params=["this version", "another version"])
def python(request: pytest.FixtureRequest) -> str:
    """The path of a Python in which nothing is installed."""
    return far_pythons(same=request.param == "this version")


def test_a_value_comes_back(python: str) -> None:
    @interpreter(python=python)
    def where(x: int) -> tuple[int, int, str]:
        return x + 1, os.getpid(), sys.executable

    value, pid, executable = where(1)()
    assert value == 2
    assert pid != os.getpid()
    assert os.path.samefile(executable, python)


def test_bare_it_is_this_python() -> None:
    @interpreter
    def where() -> tuple[str, int]:
        return sys.executable, os.getpid()

    executable, pid = where()()
    assert os.path.samefile(executable, sys.executable)
    assert pid != os.getpid()


def test_an_error_is_the_bodys_own(python: str) -> None:
    @interpreter(python=python)
    def fail() -> None:
        raise KeyError("nothing of that name")

    with pytest.raises(KeyError, match="nothing of that name") as caught:
        fail()()
    assert "in fail" in str(caught.value.__cause__)


def test_layers_below_are_that_places_business(python: str) -> None:
    @interpreter(python=python)
    @process
    def pids() -> tuple[int, int]:
        return os.getpid(), os.getppid()

    @interpreter(python=python)
    def agent() -> int:
        return os.getpid()

    pid, _ = pids()()
    assert pid not in (os.getpid(), agent()())


def test_no_such_python_is_told_when_it_is_decorated(tmp_path: Path) -> None:
    for wrong in ("/no/such/python", "no-such-python-anywhere", tmp_path, "", 3):
        with pytest.raises(OptionError, match="python="):
            interpreter(python=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="pyhton"):
        interpreter(pyhton="x")  # type: ignore[call-overload]


def test_what_is_no_python_or_too_old_is_named(tmp_path: Path) -> None:
    def task(program: str) -> Any:
        @interpreter(python=program)
        def one() -> int:
            return 1

        return one()

    with pytest.raises(UnreachableError, match="false"):
        task("/bin/false")()
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nprintf '\\nentangle-agent 1 3.8.18\\n'\nexit 86\n")
    old.chmod(0o755)
    with pytest.raises(UnfitPythonError, match=r"3\.8\.18.*3\.10"):
        task(str(old))()
