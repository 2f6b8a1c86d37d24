"""Threads of numerical libraries: those of a worker keep to its share of the CPUs.

BLAS, OpenMP, numba, polars and their like start a thread for each CPU of the machine. Two workers
on two CPUs would compute with four threads, and sixty-four on sixty-four with four thousand.

A library that is not loaded yet reads environment variables when it is. One that a forked worker
has inherited is told by a call: `look` finds it in the caller before the fork, since looking takes
milliseconds. Both leave alone what the user has set: a variable that is there, or a number of
threads that is not the library's own choice.

threadpoolctl knows such libraries. Where it is not installed, OpenBLAS is told here, which numpy
and scipy bring along: beside the others, `auto` does not fork.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from entangle._shared.loaded_libraries import loads, mapped_files
from entangle._shared.site import Shares
from entangle._shared.tracebacks import passes_on
from entangle.cookies import available_cpus

#: What libraries read when they are loaded; and the package, where only one reads it. OpenBLAS,
#: MKL, BLIS, numexpr, torch and pyarrow go by OMP_NUM_THREADS unless a variable of their own is
#: set.
VARIABLES = {
    "OMP_NUM_THREADS": "",
    "RAYON_NUM_THREADS": "",
    "NUMBA_NUM_THREADS": "numba",
    "POLARS_MAX_THREADS": "polars",
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


#: How many threads the libraries of this process may use; 0 where nobody has said.
share = 0
#: The variables that we have set in this process, with their values.
_ours: dict[str, str] = {}
#: The numbers of threads that we have set in loaded libraries.
_told: dict[str, int] = {}
#: Libraries that have started no thread of their own in this process, and cannot: see `_tell`.
_crippled: set[str] = set()
#: Libraries with threads that this process has loaded, and how many libraries it had ever loaded
#: when we looked.
_pools: list[Library] = []
_looked_at = -1


def look() -> None:
    """Find the libraries with threads that this process has loaded: before a fork, or before they
    are told. Nothing is done, in a microsecond, unless a library has been loaded since."""
    global _looked_at, _pools
    now = loads()
    if now == _looked_at:
        return
    for package in filter(None, VARIABLES.values()):
        _installed(package)  # known in the children
    text = mapped_files(now)
    _pools = _loaded(text) if any(name in text for name in _FILES) else []
    _looked_at = loads()  # looking may load some


def _loaded(maps: bytes) -> list[Library]:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if b"openblas" in line}
        return [pool for pool in map(_OpenBLAS, map(os.fsdecode, sorted(paths))) if pool.usable]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two OpenMP runtimes in one program
        found: list[Library] = list(ThreadpoolController().lib_controllers)
    return found


class _OpenBLAS:
    """A loaded OpenBLAS. Builds differ in the affixes of their functions' names."""

    internal_api = "openblas"

    def __init__(self, filepath: str) -> None:
        self.filepath = filepath
        self._get: Any = None
        self._set: Any = None
        try:
            library = ctypes.CDLL(filepath, mode=os.RTLD_NOLOAD)
        except OSError:
            return
        for before in ("", "scipy_"):
            for after in ("", "64_", "_64"):
                name = f"{before}openblas_%s_num_threads{after}"
                if hasattr(library, name % "set") and hasattr(library, name % "get"):
                    self._get, self._set = getattr(library, name % "get"), getattr(library, name % "set")

    @property
    def usable(self) -> bool:
        """Whether it has the functions that we know."""
        return self._set is not None

    @property
    def num_threads(self) -> int | None:
        return int(self._get())

    def set_num_threads(self, num_threads: int) -> None:
        self._set(num_threads)


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


def keep_to(threads: int, forked: bool = False) -> None:
    """Have the libraries of this process use so many threads; 0 changes nothing.

    `forked` says that this process has just been forked, with the libraries of its parent.
    """
    global share
    if not threads:
        return
    before, share = share, threads
    if before == threads and not forked:
        return
    if before and not forked:
        look()
    cpus = len(available_cpus())
    if _ours or threads < cpus:
        _set_variables(threads)
    pools = _pools
    if "numba.core.config" in sys.modules:
        pools = [*pools, _Numba()]
    if hasattr(sys.modules.get("numexpr"), "get_num_threads"):
        pools = [*pools, _Numexpr()]
    for pool in pools:
        _tell(pool, threads, before, cpus, forked)


def _set_variables(threads: int) -> None:
    wanted = str(threads)
    for name, package in VARIABLES.items():
        now = os.environ.get(name)
        if now == wanted or (now is not None and now != _ours.get(name)) or (package and not _installed(package)):
            continue
        if package == "numba" and "numba.core.config" in sys.modules:
            continue  # it would read it again, and refuse another number once its threads run
        os.environ[name] = _ours[name] = wanted


@functools.cache
def _installed(package: str) -> bool:
    """Whether a package can be imported here."""
    from importlib.machinery import PathFinder

    return package in sys.modules or PathFinder.find_spec(package) is not None


def _tell(pool: Library, threads: int, before: int, cpus: int, forked: bool) -> None:
    """Tell a loaded library how many threads to use, unless the user has."""
    variables, most = _READ.get(pool.internal_api, _READ_BY_OTHERS)
    if any(name in os.environ and os.environ[name] != _ours.get(name) for name in variables):
        return
    now = pool.num_threads
    own_choice = now is not None and min(cpus, most) <= now <= (os.cpu_count() or 1)
    if now is None or not (own_choice or now == _told.get(pool.filepath, before)):
        return
    if forked and "gomp" in os.path.basename(pool.filepath):
        # With more than one, a child waits for ever for the threads that only its parent has.
        _crippled.add(pool.filepath)
    if pool.filepath in _crippled:
        threads = 1
    if now != threads:
        pool.set_num_threads(threads)
        _told[pool.filepath] = threads


def users_environment() -> dict[str, str]:
    """The environment of this process without the variables that are ours."""
    return {name: value for name, value in os.environ.items() if _ours.get(name) != value} if _ours else dict(os.environ)


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
