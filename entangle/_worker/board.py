"""What a worker of calls and its owner see of each other without a message: a page of memory.

A worker often gets several calls in one message, and sends several outcomes in one. The board keeps
that from being seen: the owner can take back calls that a slow one stands before, and read outcomes
that wait to be sent. It is read some milliseconds after it was written, so no order between
processors is needed.

A call has a number, counted up by each worker's owner::

    BEGUN       the worker     the call that runs, ran last, or was skipped last
    LOW, HIGH   the owner      calls from LOW to below HIGH are taken back: the worker skips them
    BATCH, TAIL the worker     which batch of outcomes this is, and how many bytes it has
"""

from __future__ import annotations

import mmap
import os
import struct

from entangle._shared.home import nameless

#: Bytes of outcomes in a batch at most.
ROOM = 60 * 1024
_WORDS = 4096
BEGUN, LOW, HIGH, BATCH, TAIL = range(5)

#: An outcome: the number of the call, seconds that it took, kind, bytes of what follows.
OUTCOME = struct.Struct("<QdII")
#: Kinds of outcomes: a pickled value, a value in files, a report of an error, the report of an
#: initializer's error; what the owner must know of files; and that a call was skipped, since it was
#: being taken back.
VALUE, LARGE, ERROR, REFUSED, NEWS, SKIPPED = range(6)


class Board:
    """A board; `words` are its words, `outcomes` the bytes of the batch."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _WORDS + ROOM)
        whole = memoryview(self._memory)
        self._views = [whole, whole[:_WORDS], whole[_WORDS:]]
        self.words = self._views[1].cast("Q")
        self.outcomes = self._views[2]

    def close(self) -> None:
        """Unmap it. The mapping has a descriptor of its own."""
        for view in (self.words, *reversed(self._views)):
            view.release()
        self._memory.close()


def make() -> int:
    """The descriptor of the file of a new board, to be given to the worker."""
    fd = os.memfd_create("entangle-board", os.MFD_CLOEXEC) if hasattr(os, "memfd_create") else nameless()
    if fd < 0:
        import tempfile

        file, path = tempfile.mkstemp()
        os.unlink(path)
        fd = file
    os.truncate(fd, _WORDS + ROOM)
    return fd
