"""Values as the parts of a message, and back: a task, its arguments, its outcome.

Between equal minor versions of Python a task travels by cloudpickle. Otherwise it travels as
source, with its arguments in a plain pickle, which all versions read. Large buffers (arrays and the
like) are parts beside the pickle and are never copied into it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from entangle._remote.wire.frames import MOST_PARTS, Bytes, Segments
from entangle._remote.wire.source_format import Pickler, Unpickler
from entangle._shared import module_lookup
from entangle._shared.device_arrays import register
from entangle._shared.pickling import OF_MAIN, PicklerByName, pickler_by_value

#: A buffer of this size or more is a part of its own (bytes).
LARGE = 64 << 10

PICKLE, SOURCE = "pickle", "source"

#: Gives what has this number among the functions and classes that went as source.
Given = Callable[[int], Any] | None


class _Segments(list[Bytes]):
    """A file for a pickler. It keeps large pieces as they are, uncopied."""

    def write(self, data: Bytes) -> int:
        self.append(data)
        return len(data)


class _Buffers(list[Bytes]):
    """The large buffers of a pickle: each becomes a part."""

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer. True means that it stays in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < LARGE or len(self) > MOST_PARTS - 4:
            return True
        self.append(raw)
        return False


def dump(value: Any, ours: bool = False) -> list[Segments]:
    """A value as parts: the pickle, then its large buffers. Plain pickle, or else cloudpickle.

    `ours` says that the other side has another `__main__`.
    """
    buffers = _Buffers()
    written = _Segments()
    register()
    try:
        kind = PicklerByName if ours or module_lookup.travelled else pickle.Pickler
        kind(written, 5, buffer_callback=buffers.take).dump(value)
        if not (ours and any(OF_MAIN in segment for segment in written if len(segment) < LARGE * 2)):
            return [written, *([buffer] for buffer in buffers)]
    except Exception:
        pass
    written = _Segments()
    buffers.clear()
    pickler_by_value(written, buffers.take).dump(value)
    return [written, *([buffer] for buffer in buffers)]


def dump_plain(values: Iterable[Any], reduced: Callable[[Any], Any]) -> list[Segments]:
    """Values as parts that any version of Python reads, as one pickle after the other.

    `reduced` says how to write what both sides have.
    """
    buffers = _Buffers()
    written = _Segments()
    pickler = Pickler(written, reduced, buffers.take)
    for value in values:
        pickler.dump(value)
    return [written, *([buffer] for buffer in buffers)]


def load(parts: Sequence[Any], given: Given = None) -> Any:
    """The value in these parts. `given` finds what a plain pickle only names by its number."""
    if given is not None:
        return Unpickler(parts[0], given, parts[1:]).load()
    return pickle.loads(parts[0], buffers=parts[1:])
