"""Arrays on a device: how they travel to another process, and how many bytes that moves.

They go through the host: copied from the device here, to the device there. torch, cupy and jax
pickle theirs so. numba pickles none of its own, so it is done here.
"""

from __future__ import annotations

import copyreg
import sys
from typing import Any

from entangle.errors import DeviceError

#: The module of numba's arrays, also under its simulator, and their types there.
MODULE = "numba.cuda.cudadrv.devicearray"
_TYPES = ("DeviceNDArray", "MappedNDArray", "ManagedNDArray", "FakeCUDAArray")
#: How deep containers are searched for arrays.
_DEEP = 3

_registered = False


def register() -> None:
    """Have pickle take numba's arrays, once numba has them."""
    global _registered
    module = sys.modules.get(MODULE)
    if _registered or module is None:
        return
    for name in _TYPES:
        kind = getattr(module, name, None)
        if isinstance(kind, type) and "__reduce__" not in vars(kind) and "__reduce_ex__" not in vars(kind):
            copyreg.dispatch_table.setdefault(kind, _reduced)
    _registered = bool(vars(module).get("DeviceNDArray") or vars(module).get("FakeCUDAArray"))


def _reduced(array: Any) -> Any:
    host = array.copy_to_host()
    if not (host.flags.c_contiguous or host.flags.f_contiguous):
        host = host.copy()  # a device takes an array as one piece
    return _on_device, (host,)


def _on_device(host: Any) -> Any:
    """The array on the device of this process."""
    from numba import cuda

    try:
        return cuda.to_device(host)
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0]
        raise DeviceError(
            f"an array of {host.nbytes:,} bytes was on a GPU, and cannot be put on one in this process ({type(error).__name__}: {why}). "
            "Put @scheduler(gpus=1) on the function that takes it, or give it array.copy_to_host()"
        ) from error


def bytes_on_device(value: Any, deep: int = _DEEP) -> int:
    """The bytes of the arrays on devices that a value is, or that its containers hold."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(bytes_on_device(item, deep - 1) for item in value) if deep else 0
    kind = type(value)
    if kind.__module__ == "builtins" or not (hasattr(kind, "copy_to_host") or hasattr(kind, "__cuda_array_interface__")):
        return 0
    try:
        if not hasattr(kind, "copy_to_host") and not hasattr(value, "__cuda_array_interface__"):
            return 0  # a tensor on the CPU
        return int(value.nbytes)
    except Exception:  # a property of a library may raise anything
        return 0
