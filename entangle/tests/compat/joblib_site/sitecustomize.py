"""Every Python that finds this file has entangle's joblib backend in place of loky.

Python imports it when it starts: in the test process, in each script that a test starts, and in the
workers. It imports nothing until joblib is imported.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from typing import Any


class _AfterParallel:
    """Finds the module `joblib.parallel`, and installs our backend after the module has run."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "joblib.parallel":
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            _substitute(module)

        spec.loader.exec_module = exec_module
        return spec


def _substitute(parallel: Any) -> None:
    import entangle.joblib

    entangle.joblib.register()
    ours: Any = entangle.joblib.EntangleBackend
    parallel.BACKENDS["loky"] = ours
    # Tests compare with the class that they import from here. `Parallel` has imported the original
    # class from there, and uses loky's internals for that class only.
    backends: Any = sys.modules["joblib._parallel_backends"]
    backends.LokyBackend = ours
    submit, batches, owner = ours.submit, [0], os.getpid()

    def counting(self: Any, func: Any, callback: Any = None, *, batches: list[int] = batches) -> Any:
        batches[0] += 1
        return submit(self, func, callback)

    def write() -> None:
        if batches[0] and os.getpid() == owner and (path := os.environ.get("ENTANGLE_COMPAT_COUNT")):
            with open(path, "a") as file:
                file.write(f"{batches[0]}\n")

    ours.submit = counting
    atexit.register(write)


sys.meta_path.insert(0, _AfterParallel())
