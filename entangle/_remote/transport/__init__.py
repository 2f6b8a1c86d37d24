"""What a transport is: frozen options in, a byte stream to a Python out. One file a transport.

A transport starts a program in some place, with the program's stdin and stdout in our hands.
It knows nothing of frames, calls or agents. The rest is shared:
`caller/channel.py` speaks over the stream, `caller/far.py` is the layer of every door. A door is::

    def interpreter(function=None, /, *, python=None):
        ...check the options, OptionError...
        return decorate("interpreter", function, Far(InterpreterTransport(python=python)))

The path of one call::

    Far.send ─▶ channel_to(transport)      one channel for each `key` and process, opened on demand
                 │ transport.open(arguments) ─▶ ByteStream    start `PYTHON *arguments` there
                 │ agent's first line, then frames            (channel.py)
                 │   nothing came?  transport.diagnose(status, words) ─▶ the error to raise
                 ▼
               value, or error
    after a loss  the channel is forgotten; the next call (a retry, if allowed) opens a new stream
    at the end    ByteStream.close(): when the process ends, or its run where `ends_with_run`

What each side may rely on:

- `open` is called by one thread at a time for each key, from any thread, also in a worker process.
  It may take long, but bounds itself (`timeout`, seconds). It raises `FarError`s:
  `UnreachableError` unless a narrower one fits.
- stdout carries frames and nothing else. What comes before the agent's first line (a banner, a
  shell's greeting) is skipped.
- stderr of the program is kept for `diagnose` until the agent has said hello. Afterwards each line
  is shown to the caller. The agent sends the output of bodies as frames, not here.
- A stream dies with its process. A forked child never uses one that it has inherited:
  `ByteStream.abandon` is called there.
- The agent ends itself, and all that it has started, when its stdin ends. `close` cleans up the
  near side only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

from entangle._remote.wire.byte_stream import ByteStream
from entangle.errors import FarError, UnfitPythonError, UnreachableError


class Transport:
    """A way to start a Python in some place. Subclasses are frozen dataclasses of options.

    Instances can be pickled and are cheap to make: nothing is looked up, connected or imported
    before `open`.
    """

    #: The name of the door, for errors: "ssh", "docker", …
    name: ClassVar[str] = "far"
    #: Whether its agents end with the outermost run of the process, not with the process.
    ends_with_run: ClassVar[bool] = False

    #: Whether each side answers part of a message with a few bytes, to have the rest. For carriers
    #: that cut messages into small TCP segments without TCP_NODELAY: the rest would wait 40 ms for
    #: a delayed acknowledgement of the first part.
    nudges: ClassVar[bool] = False

    #: Seconds without a call after which an agent outside a session ends; None: it stays. A session
    #: says it by its `idle`.
    idle: ClassVar[float | None] = None

    @property
    def key(self) -> Hashable:
        """Calls over transports with equal keys share one agent. By default, the options."""
        return (type(self).__name__, self)

    @property
    def alternatives(self) -> tuple[Transport, ...]:
        """Where the place is one of several: these, of which the first is used that can be reached.

        Such a transport is never opened itself.
        """
        return ()

    @property
    def place(self) -> str:
        """What people call the place: `darren@miko`, `python3.12`. Prefixes its printed lines."""
        raise NotImplementedError

    @property
    def ticket(self) -> str:
        """What the place calls the work that it does for us, such as a job; "" for nothing."""
        return ""

    @property
    def timeout(self) -> float:
        """Seconds from `open`'s return until the agent must have said hello."""
        return 30.0

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start this place's Python with these arguments (`-c` and a line of code), on a stream."""
        raise NotImplementedError

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a stream that ended, or stayed silent, before the agent said hello.

        `status` is the program's exit status (minus the signal), None while it runs or where nobody
        knows. `words` is what it wrote to stderr, and to stdout before anything of ours.
        """
        return did_not_start(self.place, status, words)

    def ended(self, status: int | None, words: str) -> FarError | None:
        """The error for a stream that ended after the agent had said hello, where the place can say
        why; None where it cannot. `words` is the tail of the program's stderr.
        """
        return None


def did_not_start(place: str, status: int | None, words: str) -> FarError:
    """The error where only the end of the program is known, and nothing of the place."""
    said = f": {words.strip()[-600:]}" if words.strip() else ""
    if status == 127 or status == 126:
        return UnfitPythonError(f"{place}: there is no such Python (exit status {status}){said}")
    how = "no answer" if status is None else f"ended with exit status {status}" if status >= 0 else f"killed by signal {-status}"
    return UnreachableError(f"{place}: its Python did not start ({how}){said}")
