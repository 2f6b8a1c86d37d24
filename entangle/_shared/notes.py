"""What a worker notes of the values that it makes, if the run is recorded.

The table says when a node ran and in which worker, but of its value at most the place; a value that
is handed on in memory has none. So workers note it: a small number or a short text as it is; of
anything else the type, the size, a short text, and the SHA-256 of its pickle if there is one.
Nothing is pickled for a note, and no code of the value's class runs.

Notes are collected in a list. When the worker is idle, one write puts them into a file of the run's
directory.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import struct
import sys
import time
from typing import Any, NamedTuple

from entangle._shared.masks import beginning, hides_one, masked, suspicious
from entangle._shared.printout import Printout
from entangle._shared.summaries import LONG, home_of, short

#: The name of the file in the run's directory.
NAME = "notes"
#: NOTING in the table's header. QUIET: the run is recorded without values, since its rows are used
#: again and again.
NOTHING, SHORT, WHOLE, QUIET = 0, 1, 2, 3

#: Values whose pickles are larger than this many bytes are not hashed, unless kept whole.
HASHED = 64 * 1024
#: Values whose pickles are larger than this many bytes are not kept whole.
KEPT = 1 << 20
#: How much time describing values may take: this many nanoseconds, and 1/SHARE of what bodies take.
ALLOWANCE, SHARE = 200_000, 20
#: The memory of bodies that take less than this (nanoseconds) is not measured.
LASTING = 1_000_000
_MANY = 2000
#: How many failures of a worker are noted with their tracebacks; the most characters of a text.
FAILURES, LONGEST_TEXT = 100, 20_000

#: Extras: time that a node waited for cookies, in parts; time in which its values were moved
#: (nanoseconds); peak memory of its process (bytes).
COOKIE_WAIT, MOVED, MEMORY = range(3)
#: Of a value that was looked up in a depot: when it was made (nanoseconds since 1970; 0: it was not
#: there), and the first SHOWN hexadecimal digits of its key. Records have them apart.
MADE, KEY = 3, 4
SHOWN = 12

_HEAD = struct.Struct("<q")

#: A value in short: type, size in bytes (or None), SHA-256 of its pickle (hex, or None), text,
#: pickle (or None).
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
    """A value in short. `pickled` is its pickle, if there is one: this function makes none."""
    kind = type(value)
    name = named(kind)
    size = digest = kept = None
    if kind is str:
        size = len(value)
        told, hidden = beginning(value, LONG)
        text = repr(told)
        if not hidden and pickled is not None:
            # A text too long to search is not hashed if it may hold a secret.
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
            hidden = hides_one(view)  # the short text shows little of the value
        if not hidden and (view.nbytes <= HASHED or whole):
            import hashlib  # not at the top: it adds two milliseconds to an import of entangle

            digest = hashlib.sha256(view).hexdigest()
        if whole and not hidden and view.nbytes <= KEPT:
            kept = bytes(view)
    return name, size, digest, text, kept


class Notes:
    """The notes of one worker. `mode` is SHORT or WHOLE.

    They go to the run's directory, into `noted` in the invoking process, or into `memory` that it
    shares, where that has room: only one worker of a run may write there.
    """

    def __init__(self, directory: str, mode: int, noted: list[bytes] | None, memory: memoryview | None = None) -> None:
        self.whole = mode == WHOLE
        self._path = os.path.join(directory, NAME)
        self._noted = noted
        self._memory = memory
        self._values: list[Any] = []
        self._extras: list[int] = []
        self._places: list[Any] = []
        self._allowance = ALLOWANCE
        self._failures = 0
        #: What a worker process prints, if it is kept.
        self.prints: Printout | None = None

    def value(self, node: int, value: Any, lasted: int, pickled: bytes | memoryview | None = None, last: bool = False) -> None:
        """Note a node's value; its body took `lasted` nanoseconds. `last`: it is the run's value.

        If describing values has taken too much time already, only the type is noted.
        """
        kind = type(value)
        values = self._values
        if (kind is int and -(1 << 63) <= value < 1 << 63) or kind is float or kind is bool or value is None:
            values.append(node)
            values.append(value)
        elif kind is str and len(value) < LONG:
            values.append(node)
            values.append(value)  # the recorder masks it
        else:
            values.append(node)
            values.append(self._described(value, lasted, pickled, last))
        if lasted > LASTING:
            self.lasting(node)
        if len(values) > _MANY:
            self.flush()

    def lasting(self, node: int) -> None:
        """Note the memory of this process after a body that took long."""
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
        self._extras += (node, MEMORY, peak)

    def _described(self, value: Any, lasted: int, pickled: bytes | memoryview | None, last: bool) -> tuple[Any, ...]:
        self._allowance += lasted // SHARE
        if self._allowance < 0 and not last and not self.whole:
            return (named(type(value)),)
        began = time.monotonic_ns()
        try:
            return describe(value, pickled, self.whole)
        except Exception:  # a note must not fail the node
            return (named(type(value)),)
        finally:
            self._allowance -= time.monotonic_ns() - began

    def failure(self, node: int, report: dict[str, Any]) -> None:
        """Note why a node has failed, as `describe` in `_worker/failures.py` tells it. The text of
        its traceback is kept of the first FAILURES only."""
        self._values.append(node)
        self._failures += 1
        text = report["text"][-LONGEST_TEXT:] if self._failures <= FAILURES else ""
        # A list: values in short are tuples.
        self._values.append([report["type"], report["message"][:LONGEST_TEXT], text, report["call"], report["where"]])

    def extra(self, node: int, what: int, much: int) -> None:
        """Note a number about a node."""
        self._extras += (node, what, much)

    def looked_up(self, node: int, key: str, made: float | None) -> None:
        """Note that the value of a node was looked up in a depot under this key, and when it was
        made (seconds since 1970); None if it was not there. The last note counts."""
        self._extras += (node, MADE, int(made * 1e9) if made is not None else 0, node, KEY, int(key[:SHOWN], 16))

    def elsewhere(self, node: int, place: str, ticket: str = "", queued: int = 0) -> None:
        """Note where else the body of a node runs, what that place calls it, and for how many
        nanoseconds it was queued there: before the start in its record, or after that where
        negative. The last note counts."""
        self._places += (node, place, ticket, queued)

    def flush(self) -> None:
        """Write the notes to where the recorder finds them. On a full disk they are lost."""
        if self.prints is not None:
            self.prints.settle()
        if not self._values and not self._extras and not self._places:
            return
        body = frame_of(self._values, self._extras, self._places)
        self._values, self._extras, self._places = [], [], []
        if self._noted is not None:
            self._noted.append(body)
            return
        if self._memory is not None and _lay_down(self._memory, body):
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # One write to a file opened for appending: notes of several processes do not mix.
                os.write(fd, _HEAD.pack(len(body)) + body)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Write down what is left."""
        self.flush()
        if self.prints is not None:
            self.prints.close()


def _lay_down(memory: memoryview, body: bytes) -> bool:
    """Add notes to those in shared memory. False if there is no room, nor will be."""
    (used,) = _HEAD.unpack_from(memory)
    first = _HEAD.size + used
    after = first + _HEAD.size + len(body)
    if used < 0 or after > len(memory):
        _HEAD.pack_into(memory, 0, min(used, ~used))  # the file has more
        return False
    _HEAD.pack_into(memory, first, len(body))
    memory[first + _HEAD.size : after] = body
    _HEAD.pack_into(memory, 0, after - _HEAD.size)  # last: a worker may be killed before
    return True


def memory_of(site: Any) -> memoryview | None:
    """Where the notes of a run lie in shared memory: those of a node alone, whose worker is the
    only one that writes there. None for any other run."""
    if site.frame is None or site.flow.count != 1 or site.flow.bodies[0].retry:
        return None
    memory: memoryview = site.frame.notes
    return memory


def begin_in(memory: memoryview) -> None:
    """Forget the notes in shared memory: another run begins."""
    _HEAD.pack_into(memory, 0, 0)


def frame_of(values: list[Any], extras: list[int], places: list[Any]) -> bytes:
    """Notes as they are written: nodes and values in turn; and the others as in `AllNotes`."""
    return marshal.dumps((values, extras, places))


class AllNotes(NamedTuple):
    """All notes of a run: nodes, and their values (plain or in short; a list for a failure); the
    extras in threes; what `elsewhere` was told, in fours."""

    nodes: list[int]
    values: list[Any]
    extras: list[int]
    places: list[Any]


def gather(directory: str, noted: list[bytes], memory: memoryview | None = None) -> AllNotes:
    """All notes of a run.

    Of two notes of one node, the later one counts.
    """
    frames = list(noted)
    used = _HEAD.unpack_from(memory)[0] if memory is not None else -1
    if memory is not None:
        frames += _frames_in(bytes(memory[_HEAD.size : _HEAD.size + max(used, ~used)]))
    if directory and used < 0:
        with contextlib.suppress(OSError), open(os.path.join(directory, NAME), "rb", buffering=0) as file:
            frames += _frames_in(file.read())
    nodes: list[int] = []
    values: list[Any] = []
    extras: list[int] = []
    places: list[Any] = []
    for frame in frames:
        pairs, further, where = marshal.loads(frame)
        nodes += pairs[::2]
        values += pairs[1::2]
        extras += further
        places += where
    return AllNotes(nodes, values, extras, places)


def _frames_in(whole: bytes) -> list[bytes]:
    frames, at = [], 0
    while at + _HEAD.size <= len(whole):
        (size,) = _HEAD.unpack_from(whole, at)
        at += _HEAD.size
        if at + size > len(whole):
            break  # cut short by a full disk
        frames.append(whole[at : at + size])
        at += size
    return frames
