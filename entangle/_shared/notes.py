"""What a worker notes of the values that it makes, where somebody wants to remember the run.

The table says when a node ran and who ran it; of its value it knows at most where it lies, and a value that goes from hand
to hand lies nowhere. So workers note it: a small number or a short text as it is, of anything else its type, its size,
the SHA-256 of its pickle where it has been pickled anyway, and a short text. Nothing is pickled for a note, and no code of
the value's own class is run.

A note is a list element until the worker has nothing else to do; then all go to a file of the run's directory in one write.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import struct
import sys
import time
from typing import Any

from entangle._shared.masks import beginning, hides_one, masked, suspicious
from entangle._shared.summaries import LONG, home_of, short

#: The file in the run's directory.
NAME = "notes"
#: NOTING in the table's header. QUIET: the run is remembered and its values are not, since its rows are used again and again.
NOTHING, SHORT, WHOLE, QUIET = 0, 1, 2, 3

#: Bytes of a pickle up to which a value is hashed, unless whole values are wanted.
HASHED = 64 * 1024
#: Bytes of a pickle up to which a whole value is kept, where that is wanted.
KEPT = 1 << 20
#: What describing values may take of a worker's time: so many nanoseconds, and a part of what the bodies take.
ALLOWANCE, SHARE = 200_000, 20
#: Nanoseconds that a body takes before its memory is worth a look.
LASTING = 1_000_000
_MANY = 2000

#: Extras: nanoseconds that a node waited for a cookie, those in which its values were moved, the peak memory of its process.
COOKIE_WAIT, MOVED, MEMORY = range(3)

_HEAD = struct.Struct("<q")

#: A value in short: type, size in bytes (or None), SHA-256 of its pickle (hex, or None), text, pickle (or None).
Described = tuple[str, "int | None", "str | None", str, "bytes | None"]


def plain(value: Any) -> bool:
    """Whether a value is noted as it is."""
    kind = type(value)
    if kind is int:
        return bool(-(1 << 63) <= value < 1 << 63)
    return kind is float or kind is bool or value is None or (kind is str and len(value) < LONG)


def named(kind: type) -> str:
    """The name of a type."""
    module, name = home_of(kind)
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def describe(value: Any, pickled: bytes | memoryview | None = None, whole: bool = False) -> Described:
    """A value in short. `pickled` is its pickle, where somebody has made one; nothing is pickled for this."""
    kind = type(value)
    name = named(kind)
    size = digest = kept = None
    if kind is str:
        size = len(value)
        told, hidden = beginning(value, LONG)
        text = repr(told)
        if not hidden and pickled is not None:
            # A text that is too long to be read through for a note is not hashed if it may hold a secret.
            hidden = masked(value) != value if size <= (KEPT if whole else HASHED) else suspicious(value)
    else:
        text, hidden = short(value)
    if kind is bytes or kind is bytearray:
        size = len(value)
    elif name == "numpy.ndarray":
        size = value.nbytes
    if pickled is not None:
        view = memoryview(pickled)
        size = view.nbytes if size is None else size
        wanted = not hidden and view.nbytes <= (KEPT if whole else HASHED)
        if wanted and kind is not str and not (name == "numpy.ndarray" and value.dtype.kind in "biufc"):
            hidden = hides_one(view)  # the text shows little of it
        if not hidden and (view.nbytes <= HASHED or whole):
            import hashlib  # two milliseconds, which an import of entangle need not take

            digest = hashlib.sha256(view).hexdigest()
        if whole and not hidden and view.nbytes <= KEPT:
            kept = bytes(view)
    return name, size, digest, text, kept


class Notes:
    """The notes of one worker. `mode` is SHORT or WHOLE; frames go to the run's directory, or to `noted` in the invoking process."""

    def __init__(self, directory: str, mode: int, noted: list[bytes] | None) -> None:
        self.whole = mode == WHOLE
        self._path = os.path.join(directory, NAME)
        self._noted = noted
        self._values: list[Any] = []
        self._extras: list[int] = []
        self._allowance = ALLOWANCE

    def value(self, node: int, value: Any, lasted: int, pickled: bytes | memoryview | None = None, last: bool = False) -> None:
        """Note the value of a node whose body took `lasted` nanoseconds; `last` for that of the run itself.

        Of a value that takes long to describe, where that has taken too much of the time already, no more is noted than its type.
        """
        kind = type(value)
        values = self._values
        if (kind is int and -(1 << 63) <= value < 1 << 63) or kind is float or kind is bool or value is None:
            values.append(node)
            values.append(value)
        elif kind is str and len(value) < LONG:
            values.append(node)
            values.append(value)  # whoever writes it down looks for secrets first
        else:
            values.append(node)
            values.append(self._described(value, lasted, pickled, last))
        if lasted > LASTING:
            # Kilobytes on Linux, bytes on macOS.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
            self._extras += (node, MEMORY, peak)
        if len(values) > _MANY:
            self.flush()

    def _described(self, value: Any, lasted: int, pickled: bytes | memoryview | None, last: bool) -> tuple[Any, ...]:
        self._allowance += lasted // SHARE
        if self._allowance < 0 and not last and not self.whole:
            return (named(type(value)),)
        began = time.monotonic_ns()
        try:
            return describe(value, pickled, self.whole)
        except Exception:  # a note is worth no error
            return (named(type(value)),)
        finally:
            self._allowance -= time.monotonic_ns() - began

    def extra(self, node: int, what: int, much: int) -> None:
        """Note a number of a node."""
        self._extras += (node, what, much)

    def flush(self) -> None:
        """Put the notes where the recorder finds them. On a full disk they are lost."""
        if not self._values and not self._extras:
            return
        body = marshal.dumps((self._values, self._extras))
        self._values, self._extras = [], []
        if self._noted is not None:
            self._noted.append(body)
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # One write to a file opened for appending: those of several processes do not mix.
                os.write(fd, _HEAD.pack(len(body)) + body)
            finally:
                os.close(fd)


def gather(directory: str, noted: list[bytes]) -> tuple[list[int], list[Any], list[int]]:
    """All notes of a run: nodes, their values (as they are, or in short) and the extras in threes. Of two notes of one node, the later
    one holds."""
    frames = list(noted)
    if directory:
        with contextlib.suppress(OSError), open(os.path.join(directory, NAME), "rb", buffering=0) as file:
            whole = file.read()
            at = 0
            while at + _HEAD.size <= len(whole):
                (size,) = _HEAD.unpack_from(whole, at)
                at += _HEAD.size
                if at + size > len(whole):
                    break  # its writer found the disk full
                frames.append(whole[at : at + size])
                at += size
    nodes: list[int] = []
    values: list[Any] = []
    extras: list[int] = []
    for frame in frames:
        pairs, further = marshal.loads(frame)
        nodes += pairs[::2]
        values += pairs[1::2]
        extras += further
    return nodes, values, extras
