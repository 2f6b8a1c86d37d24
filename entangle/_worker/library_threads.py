"""Threads of numerical libraries: those of a worker keep to its share of the CPUs.

BLAS, OpenMP, numba, polars and their like start a thread for each CPU of the machine. Two workers
on two CPUs would compute with four threads, and sixty-four on sixty-four with four thousand.

A library that is not loaded yet reads environment variables when it is. One that a forked worker
has inherited is told by a call; it is found in the caller before the fork, since looking takes
milliseconds. Both leave alone what the user has set: a variable that is there, or a number of
threads that is not the library's own choice.

threadpoolctl knows such libraries. Where it is not installed, OpenBLAS is told all the same, which
numpy and scipy bring along: beside the others, `auto` does not fork.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from entangle._shared.interrupts import plain
from entangle._shared.loaded_libraries import loads, mapped_files
from entangle._shared.site import Shares
from entangle._shared.tracebacks import passes_on
from entangle._worker.openblas import OpenBLAS
from entangle.cookies import available_cpus

#: What libraries read when they are loaded; and the package, where only one reads it. OpenBLAS,
#: MKL, BLIS, numexpr, torch and pyarrow go by OMP_NUM_THREADS unless a variable of their own is
#: set.
VARIABLES = {
    "OMP_NUM_THREADS": "",
    "RAYON_NUM_THREADS": "",
    "NUMBA_NUM_THREADS": "numba",
    "POLARS_MAX_THREADS": "polars",
    "LOKY_MAX_CPU_COUNT": "joblib",  # what n_jobs=-1 means, in scikit-learn as well
    **({"VECLIB_MAXIMUM_THREADS": ""} if sys.platform == "darwin" else {}),
}
#: By which variables a loaded library goes, and the most threads that it chooses by itself.
_READ = {
    "openblas": (("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"), 64),
    "mkl": (("MKL_NUM_THREADS", "OMP_NUM_THREADS"), 1024),
    "blis": (("BLIS_NUM_THREADS", "OMP_NUM_THREADS"), 1024),
    "numexpr": (("NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS"), 16),
    "numba": (("NUMBA_NUM_THREADS",), 1024),
}
_READ_BY_OTHERS = (("OMP_NUM_THREADS",), 1024)
#: As plain numbers, which `plain` reads faster.
_BLOCK, _SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)
_SIGNALS = sorted(map(int, signal.valid_signals()))
#: Parts of the names of their files.
_FILES = (b"openblas", b"libmkl_rt", b"libblis", b"libflexiblas", b"libgomp", b"libomp", b"libiomp5")


class Library(Protocol):
    """A loaded library with threads, as threadpoolctl's controllers are."""

    filepath: str
    internal_api: str

    @property
    def num_threads(self) -> int | None:
        """How many threads it uses."""

    def set_num_threads(self, num_threads: int) -> object:
        """Use so many threads from now on."""


class Settings(NamedTuple):
    """What a worker sets so that libraries keep to so many `threads`: variables, and the numbers of
    threads of libraries that are loaded. `broken` are libraries that can have one thread only."""

    threads: int
    variables: list[tuple[str, str]]
    loaded: list[tuple[Library, int]]
    broken: list[str]


#: How many threads the libraries of this process may use; 0 where nobody has said.
share = 0
#: The variables that we have set in this process, with their values.
_ours: dict[str, str] = {}
#: The same as `os.environ` keeps it: comparing that takes a tenth of the time.
_raw: dict[Any, Any] = {}
#: The numbers of threads that we have set in loaded libraries.
_told: dict[str, int] = {}
#: Libraries that wait for ever if they are told to use more than one thread: see `settings`.
_broken: set[str] = set()
#: Libraries with threads that this process has loaded, and how many libraries it had ever loaded
#: when we looked.
_pools: list[Library] = []
_looked_at = -1


def _look() -> None:
    """Find the libraries with threads that this process has loaded. Nothing is done, in a
    microsecond, unless a library has been loaded since."""
    global _looked_at, _pools
    now = loads()
    if now == _looked_at:
        return
    text = mapped_files(now)
    _pools = _loaded(text) if any(name in text for name in _FILES) else []
    _looked_at = loads()  # looking may load some


def _loaded(maps: bytes) -> list[Library]:
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if b"openblas" in line}
    found: list[Library] = [blas for path in sorted(paths) if (blas := OpenBLAS(os.fsdecode(path), maps)).usable]
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two OpenMP runtimes in one program
        others = ThreadpoolController().lib_controllers
    return [*found, *(other for other in others if other.internal_api != "openblas")]


class _Numba:
    """numba's pool of threads. Their number is the most that can ever be used, once they are
    started."""

    filepath = internal_api = "numba"

    def __init__(self) -> None:
        self._config: Any = sys.modules["numba.core.config"]
        parallel: Any = sys.modules.get("numba.np.ufunc.parallel")
        self._started: Any = parallel if getattr(parallel, "_is_initialized", False) else None

    @property
    def num_threads(self) -> int | None:
        return int(self._started.get_num_threads() if self._started else self._config.NUMBA_NUM_THREADS)

    def set_num_threads(self, num_threads: int) -> None:
        if self._started:
            self._started.set_num_threads(min(num_threads, self._config.NUMBA_NUM_THREADS))
        else:
            self._config.NUMBA_NUM_THREADS = num_threads


class _Numexpr:
    """numexpr's pool of threads."""

    filepath = internal_api = "numexpr"

    def __init__(self) -> None:
        self._module: Any = sys.modules["numexpr"]

    @property
    def num_threads(self) -> int | None:
        return int(self._module.get_num_threads())

    def set_num_threads(self, num_threads: int) -> None:
        self._module.set_num_threads(min(num_threads, self._module.MAX_THREADS))


def settings(threads: int, forked: bool = False) -> Settings:
    """What a worker must set to keep to so many threads; 0 changes nothing.

    With `forked`, the worker is about to be forked from this process. What is found out here need
    not be in the child, which is slow: it copies each page that it touches first.
    """
    variables: list[tuple[str, str]] = []
    loaded: list[tuple[Library, int]] = []
    broken: list[str] = []
    if not threads or (threads == share and not forked and _raw.items() <= getattr(os.environ, "_data", _raw).items()):
        return Settings(threads, variables, loaded, broken)
    if share or forked:
        _look()
    if _ours or threads < len(available_cpus()):
        variables = list(_variables(str(threads)))
    pools = _pools
    if "numba.core.config" in sys.modules:
        pools = [*pools, _Numba()]
    if hasattr(sys.modules.get("numexpr"), "get_num_threads"):
        pools = [*pools, _Numexpr()]
    for pool in pools:
        if not _may_be_told(pool):
            continue
        if forked and "gomp" in os.path.basename(pool.filepath):
            broken.append(pool.filepath)
        # GNU's OpenMP waits for ever in a child for the threads that only its parent has, but not
        # with one thread.
        wanted = 1 if pool.filepath in _broken or pool.filepath in broken else threads
        if pool.num_threads != wanted:
            loaded.append((pool, wanted))
    return Settings(threads, variables, loaded, broken)


def apply(settings: Settings) -> None:
    """Have the libraries of this process, a worker, keep to these settings."""
    global share
    threads, variables, loaded, broken = settings
    if not threads:
        return
    share = threads
    for name, value in variables:
        _set(name, value)
    if loaded or broken:
        _broken.update(broken)
        # Threads that a library starts now keep this mask. Otherwise one would take a signal that a
        # body blocks or waits for: by default it ends the worker.
        mask = plain.pthread_sigmask(_BLOCK, _SIGNALS)
        try:
            for library, number in loaded:
                library.set_num_threads(number)
                _told[library.filepath] = number
        finally:
            plain.pthread_sigmask(_SETMASK, mask)


def _set(name: str, value: str) -> None:
    environ: Any = os.environ
    environ[name] = _ours[name] = value
    _raw[environ.encodekey(name)] = environ.encodevalue(value)


def keep_to(threads: int) -> None:
    """Have the libraries of this process, a worker, use so many threads; 0 changes nothing."""
    apply(settings(threads))


def obey(variables: Mapping[str, str]) -> None:
    """Have the libraries that are loaded already use as many threads as they would if they were
    loaded now, with these variables."""
    _look()
    for pool in _pools:
        names, _ = _READ.get(pool.internal_api, _READ_BY_OTHERS)
        said = next((variables[name] for name in names if name in variables), "").partition(",")[0]
        if said.isdigit() and int(said) and pool.num_threads != int(said):
            pool.set_num_threads(int(said))


def keep_to_one() -> None:
    """Have libraries that this process loads from now on start no threads, by themselves or by how
    they count CPUs. What the user has set stays."""
    keep_to(1)
    for name, value in list(_variables("1")):
        _set(name, value)


def _variables(wanted: str) -> Iterator[tuple[str, str]]:
    """The variables to set: those that the user has not set."""
    for name, package in VARIABLES.items():
        now = os.environ.get(name)
        if now == wanted or (now is not None and now != _ours.get(name)) or (package and not _installed(package)):
            continue
        if package == "numba" and "numba.core.config" in sys.modules:
            continue  # it would read it again, and refuse another number once its threads run
        yield name, wanted


@functools.cache
def _installed(package: str) -> bool:
    """Whether a package can be imported here."""
    from importlib.machinery import PathFinder

    return package in sys.modules or PathFinder.find_spec(package) is not None


def _may_be_told(library: Library) -> bool:
    """Whether a loaded library has the number of threads that it or we have chosen, not the
    user."""
    variables, most = _READ.get(library.internal_api, _READ_BY_OTHERS)
    if any(name in os.environ and os.environ[name] != _ours.get(name) for name in variables):
        return False
    now = library.num_threads
    if now is None or now == _told.get(library.filepath, share):
        return now is not None
    return min(len(available_cpus()), most) <= now <= (os.cpu_count() or 1)


def users_environment() -> dict[str, str]:
    """The environment of this process without the variables that are ours."""
    global _environment
    raw: dict[Any, Any] = getattr(os.environ, "_data", {})
    if raw != _environment[0] or not raw:
        _environment = dict(raw), dict(os.environ)
    whole = _environment[1]
    return {name: value for name, value in whole.items() if _ours.get(name) != value} if _ours else dict(whole)


#: The environment as it was last, as Python keeps it and decoded: decoding takes a while.
_environment: tuple[dict[Any, Any], dict[str, str]] = ({}, {})


def alone(shares: Shares, function: Callable[..., Any], last: bool) -> Callable[..., Any]:
    """The function of a node that runs alone: libraries use all CPUs of the run meanwhile. Nothing
    comes after the `last` one."""

    @passes_on
    def body(*args: Any, **named: Any) -> Any:
        keep_to(shares.whole)
        try:
            return function(*args, **named)
        finally:
            if not last:
                keep_to(shares.each)

    return body
