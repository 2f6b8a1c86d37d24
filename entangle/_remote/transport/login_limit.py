"""The limit on logins to one host that are under way at once, in all processes of the tree.

An sshd drops connections at random once ten logins are unfinished (MaxStartups). So at most AT_ONCE
of ours are under way for each host; others wait for their turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Hashable, Iterator

from entangle._remote.transport import ssh_options
from entangle._remote.transport.ssh_diagnosis import was_turned_away
from entangle._shared.home import home

AT_ONCE = 6


class FurtherLogins:
    """Further attempts to log in where the server turns ours away: for TURNED_AWAY seconds from the
    first time. One that is wrongly set up does so for ever."""

    def __init__(self) -> None:
        self._end: float | None = None

    def allowed(self, words: str) -> bool:
        """Whether a login that has failed with these words is to be tried again; pauses before."""
        if not was_turned_away(words):
            return False
        now = time.monotonic()
        if self._end is None:
            self._end = now + ssh_options.TURNED_AWAY
        if now >= self._end:
            return False
        time.sleep(random.uniform(0.1, 0.6))
        return True


@contextlib.contextmanager
def turn(host: Hashable, seconds: float) -> Iterator[None]:
    """Wait for a turn to log in to a host; go on without one when `seconds` have passed."""
    name = hashlib.sha256(repr(host).encode()).hexdigest()[:12]
    end = time.monotonic() + seconds
    fd = _take(os.path.join(home().path, f"login-{name}"))
    while fd < 0 and time.monotonic() < end:
        # Poll: flock can wait for one file, and any of several will do.
        time.sleep(random.uniform(0.005, 0.03))
        fd = _take(os.path.join(home().path, f"login-{name}"))
    try:
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _take(path: str) -> int:
    """The descriptor that holds a turn, -1 if all are taken. The kernel frees it if we die."""
    for number in random.sample(range(AT_ONCE), AT_ONCE):
        fd = os.open(f"{path}-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd
    return -1
