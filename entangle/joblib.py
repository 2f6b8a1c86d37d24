"""joblib on entangle's workers: `Parallel`, and with it scikit-learn.

Needs joblib: `pip install 'py-entangle[joblib]'`.

More: docs/coming_from_joblib.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entangle._joblib.batch import UnpicklableTaskError as UnpicklableTaskError

    EntangleBackend: Any

__all__ = ["register"]


def register(make_default: bool = False) -> None:
    """Register the backend "entangle" with joblib, for the whole process.

    Then `joblib.parallel_config(backend="entangle")`, `joblib.Parallel(backend="entangle")` and
    whatever uses joblib inside, as scikit-learn does, run on warm workers. With `make_default`, so
    does every `Parallel` that names no backend. May be called again.

    Beside joblib's own options the backend takes loky's: `inner_max_num_threads`,
    `idle_worker_timeout` (seconds), `initializer` and `initargs`. Large arrays that several tasks
    take are stored once and mapped; a task may write to its own, and nobody else sees it. A
    `Parallel` inside a task shares the CPUs with all others: where none is free, it runs in the
    task's own process.

    Raises ImportError where joblib is not installed, or older than 1.5; OptionError for a
    `make_default` that is no bool.

        entangle.joblib.register()
        with joblib.parallel_config(backend="entangle", n_jobs=-1):
            GridSearchCV(SVC(), grid).fit(x, y)
    """
    from entangle._joblib import backend
    from entangle._tasks.option_values import check_whether

    check_whether("register", make_default=make_default)
    backend.register(make_default)


if not TYPE_CHECKING:  # checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "EntangleBackend":
            from entangle._joblib.backend import kind

            return kind()
        if name == "UnpicklableTaskError":
            from entangle._joblib.batch import UnpicklableTaskError

            return UnpicklableTaskError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
