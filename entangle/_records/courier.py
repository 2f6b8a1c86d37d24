"""The courier: a thread that sends runs to a Gremlin server when they have ended.

It lives while there is something to send. A server that is down is tried again when another run
ends, at the earliest after some seconds. The runs that it missed are sent then, or by `entangle
graph send`. A process that exits waits a while for its courier.
"""

from __future__ import annotations

import os
import socket
import threading
import time

from entangle._records.gremlin import send
from entangle._tasks.gremlin_address import name_of, server_of
from entangle.errors import EntangleError

#: Seconds that an exiting process waits for what is being sent.
FAREWELL = 10.0
#: Seconds in which a server must accept a connection, and for which it is left alone if it does
#: not.
REACHABLE, LEFT_ALONE = 3.0, 10.0

_guard = threading.Lock()
_couriers: dict[tuple[str, str], _Courier] = {}
_waits_at_exit = False


class _Courier(threading.Thread):
    def __init__(self, directory: str, address: str) -> None:
        super().__init__(name="entangle-courier", daemon=True)
        self.directory, self.address = directory, address
        self.again = False

    def run(self) -> None:
        """Send until there is nothing left to send, or the server fails."""
        while True:
            self.again = False
            try:
                _reach(self.address)
                send(self.directory, self.address)
            except Exception as error:
                _tell(self.address, error)
                _failed[self.address] = time.monotonic()
                self.again = False
            with _guard:
                if not self.again:
                    _couriers.pop((self.directory, self.address), None)
                    return


#: When each server failed last (monotonic seconds), and the servers whose failure has been logged.
_failed: dict[str, float] = {}
_told: set[str] = set()


def _reach(address: str) -> None:
    """Check that the server accepts a connection: the driver would retry for minutes. Raises
    OSError."""
    server = server_of(address)
    socket.create_connection((server.host, server.port), timeout=REACHABLE).close()


def _tell(address: str, error: Exception) -> None:
    if address in _told:
        return
    _told.add(address)
    import logging

    reason = str(error) if isinstance(error, EntangleError) else f"the Gremlin server at {name_of(address)} cannot be reached: {error}"
    logging.getLogger("entangle").warning("%s; what it misses is sent later, or by `entangle graph send`", reason)


def deliver(directory: str, address: str) -> None:
    """Have a thread send all runs that are meant for that server and are not there yet. Returns at
    once."""
    key = (directory, address)
    with _guard:
        courier = _couriers.get(key)
        if courier is not None:
            courier.again = True
            return
        if time.monotonic() - _failed.get(address, -LEFT_ALONE) < LEFT_ALONE:
            return
        courier = _couriers[key] = _Courier(directory, address)
        _wait_at_exit()
        courier.start()


def wait(seconds: float) -> bool:
    """Wait until all is sent; False where that takes longer."""
    until = time.monotonic() + seconds
    for courier in list(_couriers.values()):
        courier.join(max(0.0, until - time.monotonic()))
    return not _couriers


def _wait_at_exit() -> None:
    """Have the exiting process wait for couriers, before the executors close that the driver uses.
    Those close before `atexit` begins, in the reverse order of their registration."""
    global _waits_at_exit
    if _waits_at_exit:
        return
    _waits_at_exit = True
    import concurrent.futures.thread  # noqa: F401 - it registers itself, before us

    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(wait, FAREWELL)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _couriers.clear()


os.register_at_fork(after_in_child=_after_fork)
