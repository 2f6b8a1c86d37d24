"""Behaviour of other packages that we rely on beyond their documentation: it holds in their oldest
and newest supported releases."""

from __future__ import annotations

import io
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from .callers import ROOT
from .ways import missing


def test_cloudpickle_says_of_a_class_what_it_consists_of() -> None:
    """entangle decides which classes are the same; cloudpickle creates and fills them."""

    class Local:
        pass

    class Asking(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            reduced = super().reducer_override(value)
            if value is Local:
                asked.append(reduced)
            return reduced

    asked: list[Any] = []
    Asking(io.BytesIO(), 5).dump([Local, int])
    (reduced,) = asked
    make, args, (attributes, others), _, _, fill = reduced
    assert attributes["__module__"] == __name__
    assert others == {}
    made = make(*args)
    fill(made, (attributes, others))
    assert made.__name__ == "Local"
    assert cloudpickle.Pickler.dispatch_table


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_code_keeps_its_file_and_lines(start: str, tmp_path: Path) -> None:
    """Some releases of cloudpickle drop the file name."""
    script = tmp_path / "script.py"
    script.write_text(
        "import inspect\nfrom entangle.process import process\n\n\n"
        "def inner(x):\n    return 1 / x\n\n\n"
        "class Kind:\n    def method(self, x):\n        return [inner(y) for y in x]\n\n\n"
        "@process\ndef outer(x):\n    assert inspect.getsource(inner).endswith('1 / x\\n')\n    return Kind().method([x])\n\n\n"
        f"try:\n    outer(0)(start={start!r})\nexcept ZeroDivisionError as error:\n    print(error.__cause__)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    for line in (f'File "{script}", line 6, in inner', "return 1 / x", f'File "{script}", line 11, in ', "return Kind().method([x])"):
        assert line in ran.stdout, ran.stderr


def test_code_with_a_constant_that_no_compiler_makes() -> None:
    from entangle._shared.pickling import by_value

    def constant() -> Any:
        return 1.5

    code = constant.__code__
    constant.__code__ = code.replace(co_consts=tuple(Fraction(3, 2) if value == 1.5 else value for value in code.co_consts))
    made = pickle.loads(by_value(constant))
    assert type(made()) is Fraction
    assert (made(), made.__code__.co_filename) == (Fraction(3, 2), __file__)


def test_every_dependency_has_a_lowest_version() -> None:
    """`make test-lowest` installs these versions."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".ci" / "lowest").exists():
        pytest.skip("not in a checkout")
    ran = subprocess.run([sys.executable, root / ".ci" / "lowest"], capture_output=True, text=True)
    assert ran.stderr == ""
    named = [line.partition("==")[0] for line in ran.stdout.splitlines()]
    assert {"cloudpickle", "psutil", "httpx", "rich", "docker"} <= set(named)
    assert len(named) == len(set(named))


def test_an_editable_install_is_found_beside_the_clone(tmp_path: Path) -> None:
    """The directory of the clone has the package's name: Python could take it for the package."""
    clone = tmp_path / "entangle"
    clone.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(Path(ROOT, name), clone)
    (clone / "entangle").mkdir()
    for module in ("__init__.py", "errors.py"):
        shutil.copy(Path(ROOT, "entangle", module), clone / "entangle")
    # Without `--ignore-installed`, pip removes the package from the environment of the tests.
    options = ["--quiet", "--no-deps", "--ignore-installed", "--prefix", str(tmp_path / "prefix")]
    pip = [sys.executable, "-m", "pip", "install", *options, "--editable", str(clone)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"what pip needs to install this package: {done.stderr.strip()[-300:]}")
    (packages,) = (tmp_path / "prefix").glob("lib/python3*/site-packages")
    program = f"import site; site.addsitedir({str(packages)!r}); import importlib.util; print(importlib.util.find_spec('entangle').origin)"
    found = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == str(clone / "entangle" / "__init__.py"), found.stderr
