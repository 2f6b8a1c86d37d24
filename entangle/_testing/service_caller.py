"""A caller for `check_service`, in a process of its own: python -m entangle._testing.service_caller
PICKLE PATH SECONDS OFF.

It runs a body that writes into PATH for so many seconds. OFF seconds are added to the times of its
lease, as if its clock were wrong.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time

from entangle._services.mailbox import LEASE
from entangle._testing import service_bodies as bodies
from entangle.service import service as at


def shift_for_ever(folder: str, off: float) -> None:
    """Set the times of the lease, as a host with a wrong clock would."""
    while True:
        for box in os.listdir(folder):
            path = os.path.join(folder, box, LEASE)
            if os.path.exists(path) and abs(os.stat(path).st_mtime - time.time()) < abs(off) / 2:
                os.utime(path, (time.time() + off,) * 2)
        time.sleep(0.01)


def main() -> None:
    """Call, and print the value."""
    with open(sys.argv[1], "rb") as file:
        service, folder = pickle.load(file)
    path, seconds, off = sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    if off:
        threading.Thread(target=shift_for_ever, args=(folder, off), daemon=True).start()
    print(repr(at(service, mailbox=folder)(bodies.marking)(path, seconds, "done")()))


if __name__ == "__main__":
    main()
