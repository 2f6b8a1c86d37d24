"""The content of arrays and tables: their items, however they lie in memory."""

from __future__ import annotations

import hashlib
from typing import Any

#: How many bytes of an array that does not lie in order are copied at a time.
_BLOCK = 1 << 24


def content(value: Any, kind: type) -> tuple[Any, ...] | None:
    """What counts of an array or a table: values, and hashes of buffers as bytes; None for others.

    No array is copied that lies in order, as most do.
    """
    library = kind.__module__.partition(".")[0]
    if library == "numpy":
        if kind.__name__ == "ndarray":
            return _array(value)
        if kind.__name__.startswith("dtype") or kind.__module__ == "numpy.dtypes":
            return ("dtype", value.descr if value.names else value.str, value.itemsize) if value.metadata is None else None
    elif library == "pandas":
        if kind.__name__ == "DataFrame":
            columns = [_column(value.iloc[:, number]) for number in range(value.shape[1])]
            return "DataFrame", value.index, value.columns, columns, value.attrs
        if kind.__name__ == "Series":
            return "Series", value.index, value.name, _column(value), value.attrs
    return None


def _column(series: Any) -> Any:
    return series.to_numpy() if type(series.dtype).__module__.startswith("numpy") else series.array


def _array(value: Any) -> tuple[Any, ...]:
    dtype = value.dtype
    if dtype.hasobject:
        return "objects", dtype.descr if dtype.names else dtype.str, value.shape, value.ravel().tolist()
    digest = hashlib.sha256()
    if value.flags.c_contiguous:
        digest.update(value.reshape(-1).view("u1"))
    elif value.nbytes <= _BLOCK or value.ndim == 0:
        digest.update(value.tobytes())
    else:
        rows = max(1, _BLOCK * len(value) // value.nbytes)
        for start in range(0, len(value), rows):
            digest.update(value[start : start + rows].tobytes())
    return "numbers", dtype, value.shape, digest.digest()
