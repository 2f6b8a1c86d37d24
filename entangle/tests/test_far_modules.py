"""The modules that come to an agent: those that it gets unasked, and those that it asks for."""

from __future__ import annotations

import importlib
import sys
import threading

import pytest

from entangle._remote.agent.imports import Finder
from entangle._remote.caller.modules import _ENGINE, FIRST

from .house import MODULES, imports


def test_the_first_modules_need_only_each_other() -> None:
    """An agent cannot ask for modules before it runs, and nothing of ours is installed there."""
    for name in FIRST:
        for needed, line, at_once in imports(name.removeprefix("entangle").removeprefix(".")):
            if not at_once:
                continue
            known = needed in FIRST or needed.partition(".")[0] in {*sys.stdlib_module_names, "__future__"}
            assert known, f"{name}:{line} imports {needed}"


def test_the_engine_is_named_as_it_is() -> None:
    """A name that is gone would only be missed where nothing has loaded the module here."""
    ours = [name for name in (*FIRST, *_ENGINE) if name.startswith("entangle.")]
    assert [name for name in ours if name.removeprefix("entangle.") not in MODULES] == []


def test_other_threads_import_while_one_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads the answer must not need a lock that the one that asks is holding."""
    imported = []

    def ask(name: str) -> object:
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        other = threading.Thread(target=lambda: imported.append(importlib.import_module("colorsys")), daemon=True)
        other.start()
        other.join(10)
        return {name: (False, "nowhere.py", "answer = 42")}

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder(ask, False)])
    try:
        assert importlib.import_module("comes_over_the_stream").answer == 42
    finally:
        sys.modules.pop("comes_over_the_stream", None)
    assert len(imported) == 1
