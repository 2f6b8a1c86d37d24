"""The open channels of this process, one for each place.

A channel is opened when it is first needed, and closed when the process ends. One that was opened
in a session ends with the session, or when it has had no call for the session's `idle`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from entangle import _run
from entangle._remote.caller.channel import LAST_WORDS, Channel
from entangle._remote.transport import Transport
from entangle._run.start import session
from entangle._shared.home import home
from entangle.errors import FarError, UnreachableError

_channels: dict[Hashable, Future[Channel]] = {}
_guard = threading.Lock()
_registered = False
#: Of several places of one name, which was reached last; held while none is known.
_last_reached: dict[str, int] = {}
_searching = threading.Lock()


def channel_to(transport: Transport) -> Channel:
    """The channel of this process to a place. Opens one if there is none, or if it was lost.

    Threads that come while another one opens it get the same: the channel, or the error.
    """
    global _registered
    if transport.alternatives:
        return _first_reached(transport)
    owner = session()
    key = transport.key, owner  # a session has agents of its own
    while True:
        mine: Future[Channel] | None = None
        channel: Channel | None = None
        try:
            with _guard:
                found = _channels.get(key)
                if found is None:
                    mine = Future()
                    found = _channels[key] = mine
                if not _registered:
                    _registered = True
                    atexit.register(close_all)
                    _run.at_termination.append(let_go)
            if mine is not None:
                channel = Channel(transport, owner.settings if owner is not None else _run.warm_settings)
                mine.set_result(channel)
                if owner is not None:
                    owner.at_end(functools.partial(_session_ends, channel))
                return channel
        except BaseException as error:
            if mine is not None and not mine.done():
                with _guard:
                    if _channels.get(key) is mine:
                        del _channels[key]
                mine.set_exception(error)
                if channel is not None:
                    channel.close()
            raise
        error_there = found.exception()  # waits
        if isinstance(error_there, FarError):
            raise type(error_there)(*error_there.args) from error_there
        if error_there is not None:
            continue  # the thread that opened it was interrupted: try ourselves
        channel = found.result()
        if channel.alive():
            return channel
        with _guard:
            closes = _channels.get(key) is found
            if closes:
                del _channels[key]
        if closes:
            channel.close()


def known_channel(transport: Transport) -> Channel | None:
    """The channel of this process to a place, if it is open and nobody need wait for it."""
    if transport.alternatives:
        last = _last_reached.get(_note_of(transport))
        return known_channel(transport.alternatives[last]) if last is not None else None
    with _guard:
        found = _channels.get((transport.key, session()))
    if found is None or not found.done() or found.exception() is not None:
        return None
    channel = found.result()
    return channel if channel.usable() else None


def _note_of(transport: Transport) -> str:
    return "place-" + hashlib.sha256(repr(transport.key).encode()).hexdigest()[:8]


def _first_reached(transport: Transport) -> Channel:
    """The channel to the first of several places that can be reached; the one that was reached last
    goes first.

    No call has begun then, so none can run twice. An unknown host key and a login that is refused
    are not passed over: somebody has to mend them.
    """
    note = _note_of(transport)
    last = _reached(note)
    if last is not None:
        return _in_turn(transport, note, last)
    with _searching:  # the others wait: not each of them is to wait for what does not answer
        return _in_turn(transport, note, _reached(note))


def _in_turn(transport: Transport, note: str, last: int | None) -> Channel:
    reasons = []
    for number, one in sorted(enumerate(transport.alternatives), key=lambda numbered: numbered[0] != last):
        try:
            channel = channel_to(one)
        except UnreachableError as error:
            if type(error) is not UnreachableError:
                raise
            reasons.append(str(error) if str(error).startswith(one.place) else f"{one.place}: {error}")
            continue
        if number != last:
            _remember(note, number)
        return channel
    told = "".join(f"\n  {reason}" for reason in reasons)
    raise UnreachableError(f"place {transport.place!r}: none of its {len(reasons)} hosts can be reached{told}")


def _reached(note: str) -> int | None:
    """Which of several places was reached last by a process of the tree, as far as is known."""
    if note not in _last_reached:
        try:
            with open(os.path.join(home().path, note), "rb", buffering=0) as file:
                _last_reached[note] = int(file.read())
        except (OSError, ValueError):
            return None
    return _last_reached[note]


def _remember(note: str, number: int) -> None:
    """Remember it for this process, and for those of the tree that have not looked yet."""
    _last_reached[note] = number
    path = os.path.join(home().path, note)
    draft = f"{path}-{os.getpid()}-{threading.get_ident()}"
    with contextlib.suppress(OSError):
        with open(draft, "xb", buffering=0) as file:
            file.write(b"%d" % number)
        os.replace(draft, path)


def _session_ends(channel: Channel) -> None:
    """Close a channel that was opened in a session which ends, unless a run of another thread is
    using it: then it ends as one that was opened in none."""
    if not channel.busy():
        close_all(lambda other: other is channel)


def close_all(chosen: Callable[[Channel], bool] = lambda channel: True) -> None:
    """Close those channels of this process that are `chosen`. Tells all first, then waits.

    An interrupt ends the wait.
    """
    with _guard:
        ending = {key: future for key, future in _channels.items() if future.done() and not future.exception()}
        ending = {key: future for key, future in ending.items() if chosen(future.result())}
        for key in ending:
            del _channels[key]
    channels = [future.result() for future in ending.values()]
    until = time.monotonic() + LAST_WORDS
    try:
        for channel in channels:
            channel.hang_up(until)
        for channel in channels:
            channel.close()
    except BaseException:
        for channel in channels:
            channel.kill()
        raise


def let_go() -> None:
    """End the agents before a signal ends this process: they end with their streams."""
    channels = [future.result() for future in _channels.values() if future.done() and not future.exception()]
    until = time.monotonic() + 1.0
    for channel in channels:
        channel.hang_up(0.0)
    while any(channel.runs() for channel in channels) and time.monotonic() < until:
        time.sleep(0.005)
    for channel in channels:
        channel.kill()


def _after_fork() -> None:
    """A forked child must not use its parent's channels. It opens its own."""
    global _guard, _registered, _searching
    for future in _channels.values():
        if future.done() and not future.exception():
            future.result().abandon()
    _channels.clear()
    with contextlib.suppress(ValueError):
        _run.at_termination.remove(let_go)
    _guard, _registered, _searching = threading.Lock(), False, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
