"""The modules that an agent gets unasked."""

from __future__ import annotations

import sys

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
