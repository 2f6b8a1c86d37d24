"""Sends batches of joblib's tasks to a worker, and runs them there.

A large buffer is stored once for all batches that are under way (`_shared/shared_buffers.py`). An
array of a `numpy.memmap` travels as the name of its file, so that tasks write to that file.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from entangle._shared import module_lookup, pickling
from entangle._shared.shared_buffers import Reference, SharedBuffers, read
from entangle._shared.store import aside
from entangle._warm.functions import name_of
from entangle._worker.called import call_in_short
from entangle.errors import UnpicklableError, add_note


class UnpicklableTaskError(UnpicklableError, pickle.PicklingError):
    """A task of `Parallel` cannot be sent to a worker; the message names the part. The author's
    fault."""

    __module__ = "entangle.joblib"  # where users find it, so that tracebacks say so


def pickled(batch: Any, buffers: SharedBuffers, held: list[Reference]) -> bytes:
    """Pickle a batch; adds its large buffers to `held`."""
    found: list[memoryview] = []
    try:
        body = dumps(batch, aside(found), found.clear)
    except Exception as error:
        raise _unpicklable(batch, error) from error
    for raw in found:
        held.append(buffers.hold(raw))
    return body


def dumps(value: Any, callback: Callable[[pickle.PickleBuffer], bool] | None, again: Callable[[], object] | None = None) -> bytes:
    """Pickle for a worker. It has another `__main__`, so what ours defines travels by value."""
    module_lookup.look_afresh()
    file = io.BytesIO()
    try:
        pickler: Any = pickling.PicklerByName(file, 5, buffer_callback=callback)
        _with_mapped_files(pickler)
        pickler.dump(value)
        body = file.getvalue()
        if pickling.OF_MAIN not in body:
            return body
    except Exception:  # a `__reduce__` may raise anything
        pass
    if again is not None:
        again()
    file = io.BytesIO()
    pickler = pickling.pickler_by_value(file, callback)
    _with_mapped_files(pickler)
    pickler.dump(value)
    return file.getvalue()


def _with_mapped_files(pickler: Any) -> None:
    """Make a pickler send arrays that are mapped from files as the names of these files."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return
    usual = type(pickler).reducer_override

    def reducer_override(value: Any) -> Any:
        if isinstance(value, numpy.ndarray):
            return _reduced_array(value)
        return usual(pickler, value)

    pickler.reducer_override = reducer_override


def _reduced_array(array: Any) -> Any:
    """An array of a `numpy.memmap`: the file is mapped again, so that writes reach it."""
    numpy: Any = sys.modules["numpy"]
    root = array
    while root.base is not None and isinstance(root.base, numpy.ndarray):
        root = root.base
    if not isinstance(root, numpy.memmap):
        return NotImplemented
    path = root.filename
    # What was written to a copy-on-write mapping is not in its file.
    if root.mode == "c" or path is None or array.dtype.hasobject or not os.path.exists(path):
        return array.view(numpy.ndarray).__reduce_ex__(5)
    start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    mode = "r+" if root.mode in ("w+", "r+") else "r"
    where = (os.fspath(path), mode, int(root.offset), int(root.nbytes))
    return _mapped_again, (*where, start, array.shape, array.dtype, array.strides, isinstance(array, numpy.memmap))


def _mapped_again(
    path: str, mode: Any, offset: int, size: int, start: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...], whole: bool
) -> Any:
    """The array again, in a worker. Its writes reach the file where the sender's do."""
    import numpy

    memory = numpy.memmap(path, numpy.uint8, mode, offset, (size,))
    kind: Any = numpy.memmap if whole else numpy.ndarray
    array = numpy.ndarray.__new__(kind, shape, dtype, memory, start, strides)
    if whole:
        for name in ("_mmap", "filename", "offset", "mode"):
            setattr(array, name, getattr(memory, name))
    return array


def _unpicklable(batch: Any, error: Exception) -> UnpicklableTaskError:
    """The error for a batch that cannot be pickled: it names the task and the part."""

    def pickled(value: Any) -> bytes:
        return dumps(value, None)

    for function, args, kwargs in getattr(batch, "items", ()):
        task = name_of(function)
        given = [(f"argument {index}", value) for index, value in enumerate(args, 1)]
        given += [(f"argument {name!r}", value) for name, value in kwargs.items()]
        for what, value in [*given, ("the function", function)]:
            try:
                pickled(value)
            except Exception:
                whole = pickling.why_not(
                    value, f"{what} of {task}()" if value is not function else f"the function {task}", pickled, 'use prefer="threads"'
                )
                return UnpicklableTaskError(f"could not pickle the task to send to a worker: {whole}")
    return UnpicklableTaskError(f"could not pickle the task to send to a worker: {type(error).__name__}: {error}")


def name_of_batch(batch: Any) -> str:
    """What a batch is called in errors: the function of its first task, and how many there are."""
    items = getattr(batch, "items", None) or [(batch, (), {})]
    name = name_of(items[0][0])
    return name if len(items) == 1 else f"{name} (a batch of {len(items)})"


def plain(error: BaseException) -> BaseException:
    """The error of a task, without its notes about the batch."""
    notes: list[str] = getattr(error, "__notes__", [])
    for index in [index for index, note in enumerate(notes) if note.startswith(_CALL)][-1:]:
        del notes[index]
    return error


# In a worker -----------------------------------------------------------------------------------

_CALL = "call: "


class _Followed:
    """The tasks of a batch. Remembers which one runs."""

    def __init__(self, items: Sequence[tuple[Any, Any, Any]]) -> None:
        self.items = items
        self.current: tuple[Any, Any, Any] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        for task in self.items:
            self.current = task
            yield task


def run(body: bytes, held: Sequence[Reference]) -> Any:
    """Run a batch, in a worker. A note of an error says which task has raised it."""
    batch = pickle.loads(body, buffers=[read(reference) for reference in held])
    batch.items = tasks = _Followed(batch.items)
    try:
        return batch()
    except Exception as error:
        if tasks.current is not None:
            function, args, named = tasks.current
            add_note(error, _CALL + call_in_short(name_of(function), args, named, function))
        raise
