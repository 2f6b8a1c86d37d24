"""CPython's own tests of executors, run with our Executor, from the running Python.

    python -m entangle.tests.compat.cpython_executor

Prints what passed, was skipped and failed. Exits with status 1 if anything failed. Some
distributions leave Python's tests out: that is reported, and is a failure in CI.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from types import ModuleType
from typing import Any

from entangle.executor import Executor

#: Tests that start a child, which imports the class of that name from `concurrent.futures`. Our
#: versions of them are in `test_executor_ends.py`.
_OF_THE_STDLIB_CLASS = {
    "test_interpreter_shutdown": "its child imports the executor from concurrent.futures",
    "test_submit_after_interpreter_shutdown": "its child imports the executor from concurrent.futures",
    "test_hang_gh83386": "its child imports the executor from concurrent.futures",
}


def _module(name: str) -> ModuleType:
    """A module of the suite, which is a single file up to Python 3.11."""
    if sys.version_info >= (3, 12):
        return importlib.import_module(f"test.test_concurrent_futures.{name}")
    return importlib.import_module("test.test_concurrent_futures")


def _suites() -> list[tuple[str, tuple[Any, ...]]]:
    util, executor, shutdown, init = _module("util"), _module("executor"), _module("test_shutdown"), _module("test_init")
    wait, completed = _module("test_wait"), _module("test_as_completed")
    around = (util.ExecutorMixin, util.BaseTestCase)
    return [
        ("ExecutorTest", (executor.ExecutorTest, *around)),
        ("WaitTests", (wait.WaitTests, *around)),
        ("AsCompletedTests", (completed.AsCompletedTests, *around)),
        ("ExecutorShutdownTest", (shutdown.ExecutorShutdownTest, *around)),
        ("InitializerMixin", (init.InitializerMixin, util.BaseTestCase)),
        ("FailingInitializerMixin", (init.FailingInitializerMixin, util.BaseTestCase)),
    ]


class _Told(unittest.TextTestResult):  # type: ignore[type-arg,unused-ignore]
    """Counts passed tests, too."""

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().addSuccess(test)
        self.passed += 1


def main() -> int:
    """Run the suites. Return the exit status."""
    try:
        suites = _suites()
    except ImportError as error:
        print(f"Python {sys.version.split()[0]} comes without its tests of executors: {error}")
        return int(bool(os.environ.get("CI")))
    whole = unittest.TestSuite()
    for name, bases in suites:
        kind = type(f"Entangle{name}", bases, {"executor_type": Executor, "__module__": __name__})
        for test, why in _OF_THE_STDLIB_CLASS.items():
            if hasattr(kind, test):
                setattr(kind, test, unittest.skip(why)(getattr(kind, test)))
        whole.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(kind))
    kind_of_result: Any = _Told
    result: Any = unittest.TextTestRunner(verbosity=2, resultclass=kind_of_result, warnings="default").run(whole)
    failed = len(result.failures) + len(result.errors)
    print(f"Python {sys.version.split()[0]}, concurrent.futures: {result.passed} passed, {len(result.skipped)} skipped, {failed} failed")
    for skipped, why in result.skipped:
        print(f"  skipped {skipped.id().rpartition('.')[2]}: {why}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
