"""A worker that serves a device, or several: it begins with them, and keeps to them for life.

It takes its first cookie before it loads anything of the run, and shows itself the devices of that
cookie alone: a library looks at the environment once, some when they are imported. It holds a
cookie of them while it runs nodes, one after another. It gives the cookie back while it rests,
while its body waits for a nested run, and between two nodes if others wait for a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from entangle._shared.devices import Claim, Devices, Visible, shown
from entangle._shared.table import BUSY, FINISHED, READY_COUNT, SLOT, STATE, STOP, Table


class Serving:
    """The devices of one worker, and its right to use them now."""

    def __init__(self, devices: Devices, row: int, table: Table, lane: int) -> None:
        self._devices = devices
        self._row = row
        self._header = table.header
        self._lane = lane

    @property
    def names(self) -> list[str]:
        """The names of the devices."""
        return self._devices.bound(self._row)

    def begin(self) -> bool:
        """Take the cookie, if a node is ready that needs it. Sleeps while there is none.

        Returns whether it has one.
        """
        if self._devices.holds(self._row):
            return True
        return not self._needless() and self._devices.wait(self._row, self._needless)

    def goes_on(self) -> bool:
        """Whether it may go on with another node: nobody waits for a device."""
        return not self._devices.others_wait()

    def rest(self) -> None:
        """Give the cookie back: there is nothing to do."""
        self._devices.give(self._row)

    def leave(self) -> None:
        """Serve no more bodies of this run."""
        self._devices.leave(self._row)

    #: The body waits for a nested run, which may need the device.
    lend = rest

    def take_back(self) -> None:
        """Take the cookie again that was lent. Sleeps until it is to be had."""
        self._devices.wait(self._row, lambda: bool(self._header[STOP]))

    def _needless(self) -> bool:
        return bool(self._header[STOP] or self._header[FINISHED] or not self._header[READY_COUNT + self._lane])


def serve(
    devices: Callable[[], Devices],
    claim: Claim,
    visible: Visible,
    run: str,
    table: Table,
    slot: int,
    lane: int,
    bound: list[str] | None = None,
) -> Serving | None:
    """Begin to serve devices: take the first cookie, and show this process its devices alone.

    They are those to which it is `bound`, if it has served some in an earlier run; the list is
    brought up to date. None if there is nothing to do any more.
    """
    table.slots[slot * SLOT + STATE] = BUSY  # it uses no CPU while it waits
    known = devices()
    row = known.join(claim, visible.names, run, bound or ())
    serving = Serving(known, row, table, lane)
    if not serving.begin():
        known.leave(row)
        return None
    if bound is not None:
        bound[:] = serving.names
    os.environ.update(shown(serving.names, visible.style))
    return serving
