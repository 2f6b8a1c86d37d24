"""A pytest plugin for joblib's own `test_parallel`, with our backend in place of loky.

Tests with known differences are listed here, with the reason. They must fail: one that passes is an
error. `joblib_site/sitecustomize.py` installs the backend, also in the scripts that tests start.
"""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

import pytest

_NESTED = "a Parallel in a task has our backend again, on the same CPUs; below loky it has threads, then none"
_WORKS = "it expects a warning that only one job will run; here such calls run in parallel, or in the task without a word"
_MAPPED = "it expects numpy.memmap; arrays are mapped here too, and are plain arrays that a task may write to"

#: Patterns of test names, and why those tests differ.
DIFFERENT = {
    r"test_nested_parallel_warnings\[(loky-multiprocessing|multiprocessing-loky|threading-loky)-True\]": _WORKS,
    r"test_nested_backend_context_manager\[.*-(loky|back_compat_backend)\]": _NESTED,
    r"test_nested_parallelism_limit\[.*-loky\]": _NESTED,
    r"test_auto_memmap_on_arrays_from_generator\[loky\]": _MAPPED,
    r"test_memmapping_leaks\[loky\]": _MAPPED,
    r"test_multiple_generator_call_separated_gc\[.*-loky-True\]": "it expects an error: a generator that is left ends the workers of the "
    "next call. Here each call has workers of its own",
    r"test_parallel_with_interactively_defined_bound_method_loky": "it looks for the name of loky's processes in a log",
}

_count = os.path.join(tempfile.gettempdir(), f"entangle-joblib-{os.getpid()}")


def pytest_configure(config: pytest.Config) -> None:
    """Count the batches that our backend receives."""
    os.environ["ENTANGLE_COMPAT_COUNT"] = _count


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that differ."""
    for item in items:
        for pattern, why in DIFFERENT.items():
            if re.fullmatch(pattern, item.name):
                item.add_marker(pytest.mark.xfail(reason=why, strict=True))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many batches our backend received: none means that nothing was tested."""
    from entangle.joblib import EntangleBackend

    here = getattr(EntangleBackend.submit, "__kwdefaults__", None) or {"batches": [0]}
    scripts = 0
    if os.path.exists(_count):
        with open(_count) as file:
            scripts = sum(map(int, file))
        os.unlink(_count)
    terminalreporter.write_line(f"batches that came to entangle: {here['batches'][0]} here, {scripts} in scripts of tests")
