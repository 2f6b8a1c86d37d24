"""Columns that are woven together: in each row, a call waits for two neighbours of the row above.

Five stations stand in a ring. `begin` starts five readings; each `blend` waits for the readings of
two neighbours, each `report` for the blends of two neighbours, and `end` for all reports. A call
begins as soon as its own two arguments are there, whatever the rest of their row does. To show
that, one reading waits until two reports, two rows below it, have been made of the others. Prints
the reports in the order in which they were made.
"""

import threading

from entangle.process import process
from entangle.thread import thread

STATIONS = 5
SLOW = 2

# Tasks in threads share the variables of the program.
reported = threading.Semaphore(0)
order: list[int] = []


@thread
def begin() -> float:
    return 10.0


@thread
def read(base: float, station: int) -> float:
    """A reading. The slow one waits until two reports have been made without it."""
    if station == SLOW:
        for _ in range(2):
            if not reported.acquire(timeout=60):
                raise TimeoutError("reports of other readings have waited for this one")
    return base + station


@thread
def blend(left: float, right: float) -> float:
    return (left + right) / 2


@thread
def report(station: int, left: float, right: float) -> str:
    order.append(station)
    reported.release()
    return f"station {station} says {(left + right) / 2:.2f}"


@process
def end(*reports: str) -> list[str]:
    return list(reports)


def main() -> None:
    base, ring = begin(), range(STATIONS)
    readings = [read(base, station) for station in ring]
    blends = [blend(readings[station], readings[(station + 1) % STATIONS]) for station in ring]
    reports = end(*[report(station, blends[station - 1], blends[station]) for station in ring])()
    early = set(order[:2])
    for station in order:
        print(reports[station], "before the slow reading was there" if station in early else "")


if __name__ == "__main__":
    main()
