"""Whether a fork of this process can run anything, and if not, why.

A child has the memory of its parent and none of its threads. It waits for ever for a lock that such
a thread held, or for work that a pool of threads should do. Python's own threads are known. Native
threads belong to libraries: numpy's OpenBLAS, pyarrow and duckdb start new ones in a child; others
do not, and are known by the names of their files or threads.

Such pools may start late: with the first use, with a plug-in, by ctypes. So what is cheap to ask (a
microsecond or two) is asked before each fork, and the rest when that has changed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from entangle._run import reaper
from entangle._shared import greenlets
from entangle._shared.loaded_libraries import loads, mapped_files

_OPENMP = "an OpenMP runtime"
#: Libraries that do not survive a fork, by a part of the path of their file, with their usual name.
UNSAFE = {
    "libgomp": _OPENMP,
    "libiomp5": _OPENMP,
    "libomp.": _OPENMP,
    "libomp-": _OPENMP,
    "/dev/nvidia": "a CUDA context",
    "/dev/kfd": "a ROCm context",
    "libtbb": "TBB",
    "polars": "polars",
    "/grpc/_cython": "grpc",
    "libjemalloc": "jemalloc",
    "/deltalake/": "deltalake",
    "/datafusion/": "datafusion",
    "/lance/": "lance",
    "/daft/": "daft",
    "libtensorflow": "tensorflow",
    "/jaxlib/": "jax",
}
#: Where the devices of GPUs lie, and the libraries that open them.
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")
_DRIVERS = (b"libcuda.so", b"libcudart", b"libhsa-runtime", b"libamdhip", b"libnvidia-ml")
#: Libraries whose threads are started anew in a child, or that do without.
_SURVIVE = (b"openblas", b"libarrow", b"duckdb", b"libblis")
_THREADS_THAT_SURVIVE = frozenset((b"jemalloc_bg_thd",))


def _native_threads() -> int:
    """How many threads this process has that Python did not start."""
    try:
        return os.stat("/proc/self/task").st_nlink - 2 - threading.active_count()
    except OSError:
        return 0


#: Whether a library that opens devices is loaded.
_drives = False
#: The cheap answers of the last look, and what the look found.
_seen: tuple[object, ...] = ()
_threads_seen = 0
_found = ""
#: So often is looked again whether threads of which nothing is known have gone.
_SLOW_TO_GO = 25


def fork_is_safe() -> bool:
    """Whether a fork of this process can run anything."""
    return not why_not_fork()


def why_not_fork() -> str:
    """Why a fork of this process could not run anything, in a few words; "" where it could."""
    global _seen, _found, _threads_seen
    if not hasattr(os, "fork"):
        return "this system has none"
    if greenlets.patched():
        return "threads are greenlets"
    if reaper.others():
        return "another thread runs"
    now = (len(sys.modules), loads(), os.environ.get("ENTANGLE_FORK_UNSAFE"))
    if _drives and now == _seen and (opened := opened_device()):
        return f"{opened} is open"
    threads = _native_threads()
    if now != _seen or threads > _threads_seen or (_found and threads != _threads_seen):
        _found, _seen, _threads_seen = _look(), now, threads
    return _found


def why_not_template() -> str:
    """Why this process, which has only imported modules, must not fork workers; "" where it may.

    A runtime of OpenMP that has not computed yet has no threads, and survives.
    """
    if greenlets.patched():
        return "threads are greenlets"
    if threading.active_count() > 1:
        return "a thread runs"
    text = mapped_files(loads())
    loaded = [name for part, name in UNSAFE.items() if part.encode() in text]
    unsafe = _named_by_user(text) or next((name for name in loaded if name != _OPENMP), "")
    if unsafe:
        return f"{unsafe} is loaded"
    if any(part in text for part in _DRIVERS) and (opened := opened_device()):
        return f"{opened} is open"
    if loaded and _native_threads() > 0:
        return "native threads run beside OpenMP"
    return _unknown_threads(text)


def opened_device() -> str:
    """A device of a GPU that this process has open; "" if there is none.

    A library opens it when it first uses the device, long after it has been loaded.
    """
    found = ""
    with contextlib.suppress(OSError):
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{fd}")
                if path.startswith(DEVICES):
                    found = path
    return found


def _look() -> str:
    global _drives
    text = mapped_files()
    if name := _named_by_user(text):
        return f"{name} is loaded (ENTANGLE_FORK_UNSAFE)"
    _drives = any(part in text for part in _DRIVERS)
    if _drives and (opened := opened_device()):
        return f"{opened} is open"
    for part, name in UNSAFE.items():
        if part.encode() in text:
            return f"{name} is loaded"
    return _unknown_threads(text)


def _named_by_user(maps: bytes) -> str:
    """A loaded module or library that the user has named as unsafe."""
    names = filter(None, (part.strip() for part in os.environ.get("ENTANGLE_FORK_UNSAFE", "").split(",")))
    return next((name for name in names if name in sys.modules or name.encode() in maps), "")


def _unknown_threads(maps: bytes) -> str:
    """Why the native threads of this process are not safe, "" if they are."""
    for _ in range(5):
        if _native_threads() <= 0:
            return ""
        time.sleep(0.001)  # a Python thread that has just ended is listed a moment longer
    names: list[bytes] = []
    for task in os.listdir("/proc/self/task"):
        # A thread may have ended meanwhile.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm", "rb") as file:
            names.append(file.read().strip())
    usual = _name_of_process()
    for name in names:
        if name != usual and name not in _THREADS_THAT_SURVIVE and not name.startswith(b"entangle-"):
            return f"a native thread runs, {name.decode(errors='replace')!r}"
    if any(library in maps for library in _SURVIVE):
        return ""
    for _ in range(_SLOW_TO_GO):  # that moment is longer on a busy machine
        time.sleep(0.002)
        if _native_threads() <= 0:
            return ""
    return "native threads run"


def _name_of_process() -> bytes:
    try:
        with open(f"/proc/self/task/{os.getpid()}/comm", "rb") as file:
            return file.read().strip()
    except OSError:
        return b""
