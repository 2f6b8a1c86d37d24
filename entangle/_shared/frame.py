"""A frame: what a small run needs of the system, kept for the next one.

::

    directory    renamed for each run, so that its path names the run
    table        a file of fixed size, mapped; rows are armed anew for each run, notes lie behind
    values       the file of the segments of the store, mapped
    wake, tell   the pipes of the run

The caller has made it. A warm worker gets the descriptors when it first joins a run in it, and
keeps them. A run begins in a frame only when all workers of the one before have left.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
from contextlib import suppress
from typing import Any

from entangle._shared.polling import new_poll
from entangle._shared.store import Store
from entangle._shared.table import SEGMENTS, Table, reserve

#: Bytes of a frame's table. Runs that need more have a table of their own.
ROOM = 1 << 20
#: Bytes behind it, for what a worker notes of a call alone (`notes.py`).
_NOTES = 1 << 16
#: The name of a file that tells nested runs where records go (`_records/recorder.py`). It stays
#: from run to run.
LINK = "record"
#: A frame whose store has more segments than this is not kept.
_MOST_SEGMENTS = 64


class Frame:
    """One frame, in the caller or in a worker. `table_fd` and `values_fd` are its files."""

    def __init__(self, number: int, table_fd: int, values_fd: int, wake: tuple[int, int], listen: int, tell: int) -> None:
        self.number = number
        self.table_fd = table_fd
        self.values_fd = values_fd
        self.wake = wake
        self.listen = listen
        self.tell = tell
        self._pipes = new_poll()
        for fd in (wake[0], listen):
            if fd >= 0:
                self._pipes.register(fd, select.POLLIN)
        self.directory = self.spill = ""
        #: In the caller: the home that the directory lies in.
        self.home: Any = None
        #: In the caller: the size of the directory with nothing of a run in it, -1 while unknown;
        #: whether it grows with each file.
        self._size, self.grows = -1, False
        #: Its paths while no run is in it.
        self.idle_at = ("", "")
        self.memory = mmap.mmap(table_fd, ROOM + _NOTES)
        #: What a worker has noted of a call alone: the length, and as many bytes.
        self.notes = memoryview(self.memory)[ROOM:]
        #: In the caller: what the file says that tells nested runs where records go; "" if there is
        #: none.
        self.link = ""
        self.store: Store | None = None
        #: In the caller: the form of the last flow, the site of its run, and the rows as they were
        #: when it began, for the next flow of that form.
        self._row: tuple[Any, Any, bytes] | None = None
        self._polls: tuple[int, int, tuple[Any, Any]] = (-1, -1, (None, None))
        #: In a worker: the site of the last run, of a call alone, if it can serve again.
        self._site: Any = None
        #: Whether others than warm workers have joined a run in it: nobody can tell when they have
        #: left.
        self.spoiled = False
        #: In the caller: the workers that have joined the run, and may not have left it yet.
        self.workers: list[Any] = []

    @classmethod
    def create(cls, number: int, directory: str, spill: str) -> Frame:
        """Make a frame in a directory of its own, which is made here.

        Raises OSError if there is no room.
        """
        opened: list[int] = []
        os.mkdir(directory, 0o700)
        empty = os.stat(directory).st_size
        try:
            for name, size in (("table", ROOM + _NOTES), ("values", 0)):
                opened.append(os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                if size:
                    reserve(opened[-1], 0, size)
            grown = os.stat(directory).st_size >= empty + 2
            opened += (*os.pipe(), *os.pipe())
            table, values, wake_read, wake_write, listen, tell = opened
            for fd in (wake_write, listen, tell):
                os.set_blocking(fd, False)
            frame = cls(number, table, values, (wake_read, wake_write), listen, tell)
        except BaseException:
            for fd in opened:
                os.close(fd)
            for name in ("table", "values"):
                with suppress(OSError):
                    os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
            raise
        frame.directory, frame.spill = frame.idle_at = directory, spill
        frame.grows = grown
        return frame

    def store_for(self, table: Table, slot: int, serial: int) -> Store:
        """The store of the caller (slot 0) or of a worker, for the run that has this table."""
        if self.store is None:
            self.store = Store(self.directory, table, slot, serial, self.spill, self.values_fd)
        self.store.again(self.directory, table, slot, serial, self.spill)
        return self.store

    def empty_pipes(self) -> None:
        """Read what the run before has left in the pipes."""
        for fd, _ in self._pipes.poll(0):
            os.read(fd, 1 << 16)

    def kept_row(self, form: object) -> tuple[Any, bytes] | None:
        """The site and the rows of the last run, if its flow had this form."""
        if self._row is None or self._row[0] != form:
            return None
        return self._row[1:]

    def keep_row(self, form: object, site: Any, size: int) -> None:
        """Keep the site of a run that begins now, and its rows as they are."""
        self.forget_row()
        self._row = form, site, bytes(self.memory[:size])

    def forget_row(self, let_go: bool = True) -> None:
        """Keep no site any more; `let_go`: nobody uses its table any more."""
        if self._row is not None and let_go:
            self._row[1].table.release()
        self._row = None

    def forget_arguments(self) -> None:
        """In the caller, between two runs: hold nothing of what the bodies of the last one were
        given."""
        if self._row is not None:
            self._row[1].forget_arguments()

    def note_size(self) -> None:
        """In the caller: note the size of the directory, in which there is nothing of a run."""
        if self.grows:
            self._size = os.stat(self.directory).st_size

    def is_untouched(self) -> bool:
        """In the caller: whether nothing of a run can be in the directory, by its size. On tmpfs
        that grows with each entry."""
        return self._size >= 0 and os.stat(self.directory).st_size == self._size

    def keep_site(self, site: Any) -> None:
        """In a worker: keep the site of a run that it has left, for the next one in this frame."""
        self._site = site

    def kept_site(self, alone: bool) -> Any:
        """In a worker: the site of the last run, if the next one is that of a call `alone` as well.
        Whoever takes it keeps it anew."""
        if self._site is not None and not (alone and self._site.table.fits()):
            self.forget_site()
        site, self._site = self._site, None
        return site

    def forget_site(self) -> None:
        """In a worker: keep no site any more."""
        if self._site is not None:
            self._site.table.release()
            self._site = None

    def polls_with(self, watch: int, err: int) -> tuple[Any, Any]:
        """What polls the pipe that tells of the run and what a worker writes; and what polls the
        worker's news and end as well."""
        if self._polls[:2] != (watch, err):
            polls = new_poll(), new_poll()
            for fd in (self.listen, err):
                for poll in polls:
                    poll.register(fd, select.POLLIN)
            polls[1].register(watch, select.POLLIN)
            self._polls = watch, err, polls
        return self._polls[2]

    def move(self, directory: str, spill: str) -> None:
        """Rename the directory."""
        os.rename(self.directory, directory)
        self.directory, self.spill = directory, spill

    @property
    def outgrown(self) -> bool:
        """Whether the last run has left more memory in it than is worth keeping."""
        (segments,) = struct.unpack_from("<q", self.memory, 8 * SEGMENTS)
        return bool(segments > _MOST_SEGMENTS)

    def is_free(self) -> bool:
        """Whether all workers of the last run have left it or have ended, as far as is known."""
        self.workers = [worker for worker in self.workers if worker.is_in(self)]
        return not self.workers

    def descriptors(self) -> list[int]:
        """The descriptors of files and pipes."""
        return [fd for fd in (self.table_fd, self.values_fd, *self.wake, self.listen, self.tell) if fd >= 0]

    def close(self) -> None:
        """Close files and pipes."""
        self.forget_row()
        self.forget_site()
        if self.store is not None:
            self.store.close()
        else:
            os.close(self.values_fd)
        self.notes.release()
        self.memory.close()
        for fd in (self.table_fd, *self.wake, self.listen, self.tell):
            if fd >= 0:
                os.close(fd)
