"""The joblib backend "entangle".

The path of one batch of tasks::

    Parallel ── submit ──▶ Backend ──▶ Lease: pickle the batch; large buffers are stored once
                                         │
                           Executor ─────┴──▶ a warm worker maps the buffers and runs the batch
                                         │
    Parallel's callback ◀── a thread ◀───┘    which sends the next one

All levels of nested calls share one budget of CPUs: a call inside a task has as many workers as
there are cookies, and none where there is no cookie. Then its tasks run in the task's own process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from entangle._joblib.batch import plain
from entangle._joblib.lease import Lease, WorkerSettings
from entangle._shared.home import home
from entangle._shared.summaries import value_in_short
from entangle._tasks.unknown_options import refuse_options
from entangle._worker import library_threads
from entangle.errors import OptionError

NAME = "entangle"

_OPTIONS = ("inner_max_num_threads", "idle_worker_timeout", "initializer", "initargs")
#: Options that `Parallel` passes to every backend. Those about mapping change nothing here: arrays
#: are mapped in any case.
_OF_PARALLEL = frozenset({"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context"})


def joblib_parallel() -> Any:
    """joblib's module `parallel`."""
    try:
        found: Any = importlib.import_module("joblib.parallel")
    except ImportError as error:
        if error.name not in ("joblib", "joblib.parallel"):
            raise
        raise ImportError("entangle.joblib needs joblib: pip install 'py-entangle[joblib]'", name="joblib") from None
    if not hasattr(found.ParallelBackendBase, "submit"):
        raise ImportError("entangle.joblib needs joblib 1.5 or newer: pip install 'py-entangle[joblib]'", name="joblib")
    return found


class Backend:
    """The methods that joblib wants of a backend. `kind` makes a class of it and joblib's own."""

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_timeout = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False

    if TYPE_CHECKING:
        MAX_NUM_THREADS_VARS: list[str]
        TBB_ENABLE_IPC_VAR: str
        nesting_level: int | None
        inner_max_num_threads: int | None

        def reset_batch_stats(self) -> None: ...

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any) -> None:
        _refuse_unknown(f"the joblib backend {NAME!r}", options)
        made: Any = super().__init__
        made(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.options = options
        self.parallel: Any = None
        self._settings: WorkerSettings | None = None
        self._workers: Lease | None = None
        #: The cookies of the budget that this call holds, as numbers of their cells.
        self._cookies: list[int] = []
        #: The threads that are in a callback of joblib.
        self._calling_back: list[threading.Thread] = []

    def __reduce__(self) -> Any:
        return _backend, (self.nesting_level, self.inner_max_num_threads, self.options)

    def get_nested_backend(self) -> tuple[Any, None]:
        """The backend of `Parallel` calls inside tasks: this one again, one level deeper."""
        return _backend((self.nesting_level or 0) + 1, self.inner_max_num_threads, self.options), None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at once for this `n_jobs`; -1 is all CPUs, -2 all but one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(joblib_parallel().cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **options: Any) -> int:
        """Get workers for a `Parallel`, and say how many."""
        parallel_module = joblib_parallel()
        stated = {name: value for name, value in options.items() if name not in _OF_PARALLEL}
        refuse_options(
            f"joblib.Parallel on the backend {NAME!r}", _OPTIONS, {name: stated[name] for name in stated if name not in _OPTIONS}
        )
        if self._workers is not None and self.parallel is not parallel:
            # Another call still uses this backend, such as one whose values a generator gives.
            raise parallel_module.FallbackToBackend(_backend(self.nesting_level, self.inner_max_num_threads, self.options))
        self._end()
        wanted = self.effective_n_jobs(n_jobs)
        if wanted > 1 and self._is_nested():
            # All levels share the CPUs: no more workers than there are cookies for. The worker in
            # which this is called waits meanwhile, so one needs no cookie.
            self._take_cookies(wanted - 1)
            wanted = 1 + len(self._cookies)
        if wanted == 1:
            raise parallel_module.FallbackToBackend(parallel_module.SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._settings = self._settings_for(wanted, {**self.options, **stated})
        self._workers = Lease(self._settings)
        return wanted

    def _is_nested(self) -> bool:
        """Whether this is called in a task, of joblib or of entangle, and not in a program."""
        return bool(self.nesting_level) or home().pid != os.getpid()

    def _settings_for(self, workers: int, options: dict[str, Any]) -> WorkerSettings:
        idle = options.get("idle_worker_timeout")
        if idle is not None and (isinstance(idle, bool) or not isinstance(idle, (int, float)) or idle <= 0):
            raise OptionError(f"idle_worker_timeout={value_in_short(idle)}; it must be a number of seconds above 0")
        initializer = options.get("initializer")
        if initializer is not None and not callable(initializer):
            raise OptionError(f"initializer={value_in_short(initializer)}; it must be a function")
        threads = options.get("inner_max_num_threads", self.inner_max_num_threads)
        return WorkerSettings(
            _begin_worker, workers, self._environment(workers, threads), idle, initializer, tuple(options.get("initargs", ()))
        )

    def _environment(self, workers: int, threads: int | None) -> tuple[tuple[str, str], ...]:
        """The variables that keep numerical libraries to their share of the CPUs in each worker.
        Those that the user has set stay, unless `inner_max_num_threads` is given."""
        each = max((share or joblib_parallel().cpu_count()) // workers, 1)
        found = {}
        for name in self.MAX_NUM_THREADS_VARS:
            here = None if share else os.environ.get(name)
            found[name] = str(threads) if threads is not None else here or str(each)
        found.setdefault(self.TBB_ENABLE_IPC_VAR, os.environ.get(self.TBB_ENABLE_IPC_VAR, "1"))
        return tuple(found.items())

    # One call ---------------------------------------------------------------------------------

    def start_call(self) -> None:
        """A call of `Parallel` begins. Its workers count in the budget, for runs that begin now."""
        self._forget_the_last_call()
        if self._settings is not None:
            self._take_cookies(self._settings.workers - 1 - len(self._cookies))

    def stop_call(self) -> None:
        """A call of `Parallel` is over. A nested one keeps its cookies as long as its workers."""
        if not self._is_nested():
            self._give_cookies()

    def _forget_the_last_call(self) -> None:
        """Remove what a failed call has left in the `Parallel`. Else this call would send the
        batches that were ready as its own first ones."""
        parallel, here = self.parallel, threading.current_thread()
        # A callback of that call may still count its batch, or send another one: wait for it. A
        # callback that begins from here on sees that its call is over.
        while any(thread is not here and thread.is_alive() for thread in self._calling_back.copy()):
            time.sleep(0.001)
        if parallel is None:
            return
        with parallel._lock:
            with contextlib.suppress(queue.Empty):
                while True:
                    parallel._ready_batches.get_nowait()
            parallel._jobs.clear()
            parallel._jobs_set.clear()
            parallel.n_dispatched_batches = parallel.n_dispatched_tasks = parallel.n_completed_tasks = 0

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Run a batch in a worker. `callback` is called in any case, in another thread or here."""

        def call_back(future: Future[Any]) -> None:
            here = threading.current_thread()
            self._calling_back.append(here)
            try:
                if callback is not None:
                    callback(future)
            finally:
                self._calling_back.remove(here)

        workers = self._workers
        if workers is not None:
            return workers.submit(func, call_back)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        future.set_exception(RuntimeError("this call of joblib.Parallel is over"))
        future.add_done_callback(call_back)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The values of a batch that is done; raises its error."""
        try:
            return out.result()
        except BaseException as error:
            raise plain(error) from error.__cause__

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop what is under way: cancel batches that wait, and kill workers that are busy."""
        workers, self._workers = self._workers, None
        if workers is None:
            return
        workers.end()
        if ensure_ready:
            assert self._settings is not None
            self._workers = Lease(self._settings)

    def terminate(self) -> None:
        """The `Parallel` is done with its workers; the next one gets them."""
        self._end()
        self.reset_batch_stats()

    def _end(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.end()
        self._give_cookies()
        self.parallel = None if workers is None else self.parallel

    # Cookies ----------------------------------------------------------------------------------

    def _take_cookies(self, most: int) -> None:
        """Take up to this many cookies of the budget, without waiting."""
        budget = home().budget
        while most > 0 and (cell := budget.take_cell()) >= 0:
            self._cookies.append(cell)
            most -= 1

    def _give_cookies(self) -> None:
        cells, self._cookies = self._cookies, []
        for cell in cells:
            home().budget.give_cell(cell)


def _refuse_unknown(where: str, options: dict[str, Any]) -> None:
    refuse_options(where, _OPTIONS, {name: value for name, value in options.items() if name not in _OPTIONS})


def _backend(nesting_level: int | None, inner_max_num_threads: int | None, options: dict[str, Any]) -> Any:
    return kind()(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options)


_kind: Any = None


def kind() -> Any:
    """The class of the backend. It is made at the first use: importing this must not import
    joblib."""
    global _kind
    if _kind is None:
        parallel = joblib_parallel()
        parts = (Backend, parallel.AutoBatchingMixin, parallel.ParallelBackendBase)
        _kind = type("EntangleBackend", parts, {"__module__": "entangle.joblib", "__doc__": "joblib's tasks on warm workers of entangle."})
    return _kind


def register(make_default: bool = False) -> None:
    """Make the backend known to joblib."""
    joblib_parallel().register_parallel_backend(NAME, kind(), make_default=make_default)


# In a worker -----------------------------------------------------------------------------------

#: How many threads numerical libraries may use in this process, a worker; 0 in any other.
share = 0


def _begin_worker(environment: Sequence[tuple[str, str]], authkey: bytes, initializer: bytes | None) -> None:
    """Prepare a worker for its first batch."""
    global share
    import multiprocessing

    os.environ.update(environment)
    library_threads.obey(os.environ)
    said = dict(environment)["OMP_NUM_THREADS"].partition(",")[0]  # one number for each level
    share = int(said) if said.isdigit() else 1
    multiprocessing.current_process().authkey = authkey
    register()
    if initializer is not None:
        function, args = pickle.loads(initializer)
        function(*args)
