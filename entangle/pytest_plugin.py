"""The plugin of pytest: fixtures for tests of code that uses entangle.

pytest finds it by its entry point. It does nothing in a test that asks for none of the fixtures.

More: docs/testing.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from entangle._testing.left_behind import LeftBehind


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of a configuration file: how long a test's remains may take to end."""
    parser.addini("entangle_patience", "seconds that entangle_clean gives to what is about to end", default="2")


@pytest.fixture
def entangle_inline() -> Iterator[None]:
    """Run every task in the thread of the test, one after the other: no process is started.

    Breakpoints, monkeypatch, coverage and capsys work in bodies as in any function, and an error
    comes with its own traceback. Values, types of errors, retries, `return_exceptions`, streams
    and nested runs are as in processes; a task with @ssh, @docker or another place runs here too.
    A body past its `timeout` fails when it has ended, since nothing can stop it; `wait` is not
    kept. What needs a process of its own fails with the test: os._exit, a crash, a GPU of its own.

        def test_total(entangle_inline, monkeypatch):
            monkeypatch.setattr(prices, "fetch", lambda name: 3)
            assert total(load("a"), load("b"))() == 6
    """
    from entangle._worker import inline

    before = inline.on, inline.timed
    inline.on, inline.timed = True, True
    try:
        yield
    finally:
        inline.on, inline.timed = before


@pytest.fixture
def entangle_depot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A depot of the test's own: it finds no value that was computed before it.

    Gives its directory, which ENTANGLE_DEPOT names during the test, for programs that the test
    starts as well. A task with `cache=Cache(where=…)` uses that place all the same.

        def test_fit(entangle_depot):
            assert fit(1)() == fit(1)()
    """
    directory = tmp_path / "entangle-depot"
    monkeypatch.setenv("ENTANGLE_DEPOT", str(directory))
    return directory


@pytest.fixture
def entangle_clean(request: pytest.FixtureRequest) -> Iterator[LeftBehind]:
    """Fail the test if it leaves a process, thread, descriptor or shared memory behind.

    Each is named: a process by its pid and command, a thread by its name, a descriptor by what it
    leads to, shared memory by its file if it is certainly of the test, since other programs make
    such files as well. What is about to end has 2 seconds for that, or as many
    as `entangle_patience` in pytest's configuration says. Left out is what was there before the
    test, and what lasts as long as the program: the warm server of entangle with its spare
    workers, its agents in other places, the directory of this process with its locks, and Python's
    resource tracker. A test that has failed anyway is not looked at.

    The fixture has one method: `allow(text)` leaves out everything whose description has that
    text. For all tests of a module: `pytestmark = pytest.mark.usefixtures("entangle_clean")`.

        def test_serve(entangle_clean):
            with serve() as server:
                assert server.ask("ready")
    """
    from entangle._testing import shared_segments
    from entangle._testing.left_behind import LeftBehind

    # What wider fixtures make is not the test's, though it may be the first one to use them.
    for name in request.fixturenames:
        definitions = request.session._fixturemanager.getfixturedefs(name, request.node)
        if definitions and definitions[-1].scope != "function":
            request.getfixturevalue(name)
    failed = request.session.testsfailed
    marks = [f"PYTEST_CURRENT_TEST={request.node.nodeid} ("]
    # Another worker of pytest-xdist may run the same test.
    marks += [f"{name}={value}\0" for name, value in os.environ.items() if name in ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")]
    with shared_segments.noting() as notes:
        before = LeftBehind(notes, marks)
        yield before
        left = before.found(float(request.config.getini("entangle_patience"))) if request.session.testsfailed == failed else []
    if left:
        lines = "\n".join(f"  {text}" for text in left)
        pytest.fail(f"{request.node.name} left behind:\n{lines}", pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put `entangle_clean` before the other fixtures of a test, so that it looks after them."""
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        if "entangle_clean" in names:
            names.remove("entangle_clean")
            names.insert(0, "entangle_clean")


def pytest_enter_pdb() -> None:
    """Let no deadline of an inline run pass while a person looks at it."""
    import sys

    inline: Any = sys.modules.get("entangle._worker.inline")
    if inline is not None:
        inline.timed = False
