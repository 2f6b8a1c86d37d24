"""The shared libraries of this process: how many it has ever loaded, and the files it has mapped.

The number tells in a microsecond whether there may be a new one. Reading the names takes a fifth of
a millisecond.
"""

from __future__ import annotations

import ctypes
from typing import Any


class _Object(ctypes.Structure):
    """`struct dl_phdr_info`, see dl_iterate_phdr(3)."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("count", ctypes.c_uint16),
        ("adds", ctypes.c_ulonglong),
        ("subs", ctypes.c_ulonglong),
    ]


_adds = 0


def _note(found: Any, size: int, _: Any) -> int:
    global _adds
    if size >= ctypes.sizeof(_Object):
        _adds = found.contents.adds
    return 1  # the first object is enough


try:
    _each_object: Any = ctypes.CDLL(None).dl_iterate_phdr
except AttributeError:  # macOS
    _each_object = None
_hear: Any = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p)(_note)


def loads() -> int:
    """How many libraries this process has ever loaded."""
    if _each_object is not None:
        _each_object(_hear, None)
    return _adds


#: What was read last, and how many libraries had been loaded by then.
_read: tuple[int, bytes] = (-1, b"")


def mapped_files(loaded: int = -1) -> bytes:
    """The text of /proc/self/maps, which names all mapped files; empty where there is none.

    `loaded` is what `loads` says now: what was read when it said so last will do.
    """
    global _read
    if loaded >= 0 and loaded == _read[0]:
        return _read[1]
    try:
        with open("/proc/self/maps", "rb") as maps:
            _read = loads(), maps.read()
    except OSError:
        _read = loads(), b""
    return _read[1]
