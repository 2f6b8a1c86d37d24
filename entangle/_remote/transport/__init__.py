"""What a transport is: frozen options in, a byte stream to a Python out. One file a transport.

A transport knows how to start a program in some place with its stdin and stdout in our hands, and nothing of frames, calls
or agents. The rest is shared: `channel.py` speaks over the stream, `far.py` is the layer of every door, and a door is::

    def interpreter(function=None, /, *, python=None):
        ...check the options, OptionError...
        return decorate("interpreter", function, Far(InterpreterTransport(python=python)))

The path of one call::

    Far.run ─▶ channel_to(transport)              one channel for each `key` and process, dialled when first wanted
                 │ transport.open(arguments) ─▶ ByteStream     start `PYTHON *arguments` there; raise what went wrong
                 │ agent's first line, then frames             (channel.py)
                 │   nothing came?  transport.diagnose(status, words) ─▶ the error to raise
                 ▼
               value, or error
    after a loss  the channel is forgotten; the next call (a retry, if one is allowed) opens a new stream
    at the end    ByteStream.close(), when the process ends, or with its run where `ends_with_run`

What each side may rely on:

- `open` is called by one thread at a time for each key, from any thread, also in a worker process. It may take its time, but
  bounds it itself (`timeout`, seconds), and raises `FarError`s (`UnreachableError` unless a narrower one fits).
- stdout carries frames and nothing else. What comes before the agent's first line (a banner, a shell's greeting) is skipped.
- stderr of the program is the transport's as long as the agent has not said hello: it is kept for `diagnose`. Afterwards
  each line is shown to the caller. The agent sends the prints of bodies as frames, not here.
- A stream dies with its process: a forked child never uses one that it has inherited (`ByteStream.abandon` is called there).
- The agent ends itself, with all it has started, when its stdin ends. `close` needs to see only to the near side.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

from entangle._remote.wire.byte_stream import ByteStream
from entangle.errors import FarError, UnfitPythonError, UnreachableError


class Transport:
    """A way to start a Python in some place. Subclasses are frozen dataclasses: options that can be pickled, and these methods.

    They must be picklable and cheap to make: nothing is looked up, connected or imported before `open`.
    """

    #: The name of the door, for errors: "ssh", "docker", …
    name: ClassVar[str] = "far"
    #: Whether its agents go when the outermost run of the process ends, and not with the process.
    ends_with_run: ClassVar[bool] = False

    @property
    def key(self) -> Hashable:
        """Calls over transports with equal keys share one agent. By default the options themselves."""
        return (type(self).__name__, self)

    @property
    def place(self) -> str:
        """What people call the place: `darren@miko`, `python3.12`. Stands before each line that is printed there."""
        raise NotImplementedError

    @property
    def timeout(self) -> float:
        """Seconds from `open`'s return until the agent must have said hello."""
        return 30.0

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start this place's Python with these arguments (`-c` and a line of code), its stdin and stdout on a `ByteStream`."""
        raise NotImplementedError

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a stream that ended, or stayed silent, before the agent said hello.

        `status` is the program's exit status (minus the signal), None where it still runs or cannot be known; `words` is
        what it wrote to stderr (and to stdout, before anything of ours).
        """
        return did_not_start(self.place, status, words)


def did_not_start(place: str, status: int | None, words: str) -> FarError:
    """What `diagnose` says where nothing is known of the place but how its program ended."""
    said = f": {words.strip()[-600:]}" if words.strip() else ""
    if status == 127 or status == 126:
        return UnfitPythonError(f"{place}: there is no such Python (exit status {status}){said}")
    how = "no answer" if status is None else f"ended with exit status {status}" if status >= 0 else f"killed by signal {-status}"
    return UnreachableError(f"{place}: its Python did not start ({how}){said}")
