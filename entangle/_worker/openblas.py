"""The number of threads of a loaded OpenBLAS, set without starting threads.

After a fork, a child's OpenBLAS has none, and starts them when it first needs them. Its own
function for their number starts them at once, as many as the machine has CPUs. Each then spins for
tens of milliseconds, in a worker that may never multiply a matrix. So what the function would set
is set here: the variable `blas_cpu_number`, found by the symbols of the file. Where it has none, or
the variable does not say what the library says, the function is called.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import Any

_VARIABLE = b"blas_cpu_number"
#: Types of sections: a table of symbols. See elf(5).
_SYMBOLS = 2


class OpenBLAS:
    """A loaded OpenBLAS. Builds differ in the affixes of their functions' names."""

    internal_api = "openblas"

    def __init__(self, filepath: str, maps: bytes) -> None:
        self.filepath = filepath
        self._get: Any = None
        self._set: Any = None
        self._variable: ctypes.c_int | None = None
        try:
            library = ctypes.CDLL(filepath, mode=os.RTLD_NOLOAD)
        except OSError:
            return
        for before in ("", "scipy_"):
            for after in ("", "64_", "_64"):
                get, put = (f"{before}openblas_{what}_num_threads{after}" for what in ("get", "set"))
                if hasattr(library, get) and hasattr(library, put):
                    self._get, self._set = getattr(library, get), getattr(library, put)
                    self._variable = _variable(library, filepath, get, maps)
        #: The most threads that it can have without making room for more.
        self._most = self._get() if self.usable else 0
        if self._variable is not None and self._variable.value != self._most:
            self._variable = None

    @property
    def usable(self) -> bool:
        """Whether it has the functions that we know."""
        return self._set is not None

    @property
    def num_threads(self) -> int | None:
        """How many threads it uses."""
        return int(self._get())

    def set_num_threads(self, num_threads: int) -> None:
        """Use so many threads from now on."""
        if self._variable is None or num_threads > self._most:
            self._set(num_threads)
        else:
            self._variable.value = num_threads


def _variable(library: Any, path: str, function: str, maps: bytes) -> ctypes.c_int | None:
    """The variable with the number of threads, in this process's memory."""
    try:
        return ctypes.c_int.in_dll(library, _VARIABLE.decode())
    except ValueError:  # not among the symbols for others
        pass
    try:
        values = _values(path, (_VARIABLE, function.encode()))
    except (OSError, ValueError, IndexError, struct.error):
        return None
    if len(values) < 2:
        return None
    here = ctypes.cast(getattr(library, function), ctypes.c_void_p).value or 0
    address = here - values[function.encode()] + values[_VARIABLE]
    return ctypes.c_int.from_address(address) if _is_writable(address, maps) else None


def _values(path: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """The addresses that a 64-bit ELF file gives these symbols."""
    found: dict[bytes, int] = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:6] != b"\x7fELF\x02\x01":
            return {}
        (start,) = struct.unpack_from("<Q", content, 0x28)
        size, count = struct.unpack_from("<HH", content, 0x3A)
        # Of each section: type, offset, size, and the number of the section with its names.
        sections = [struct.unpack_from("<4xI16xQQI", content, start + size * number) for number in range(count)]
        for kind, offset, length, link in sections:
            if kind != _SYMBOLS:
                continue
            _, first, names_length, _ = sections[link]
            wanted = {content.find(b"\0" + name + b"\0", first, first + names_length) + 1 - first: name for name in names}
            for name, value in struct.iter_unpack("<I4xQ8x", content[offset : offset + length]):
                if name in wanted:
                    found[wanted[name]] = value
    return found


def _is_writable(address: int, maps: bytes) -> bool:
    for line in maps.splitlines():
        span, rights, *_ = line.split(maxsplit=2)
        first, _, last = span.partition(b"-")
        if int(first, 16) <= address < int(last, 16):
            return rights.startswith(b"rw")
    return False
