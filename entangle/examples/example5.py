"""Graphs that grow while they run: what a task finds out decides what runs next.

There are two ways. A body may *return* a call, and the value of that call becomes its own: `area`
measures the area under a curve, and where its estimate is too rough it returns the sum of two
halves. Or a body may *run* a call and go on with the value: `report` does that.

Prints the area that was found, the true one, and how many parts were needed where.
"""

from math import atan
from typing import Any, NamedTuple

from entangle.process import process

PEAK, WIDTH = 0.3, 0.02


class Piece(NamedTuple):
    """The area under a part of the curve, and the pieces (left, right) that add up to it."""

    area: float
    parts: tuple[tuple[float, float], ...]


def curve(x: float) -> float:
    """Flat nearly everywhere, with one sharp peak."""
    return 1 / ((x - PEAK) ** 2 + WIDTH**2)


def simpson(left: float, right: float) -> float:
    """Simpson's rule for one part of the curve."""
    return (right - left) / 6 * (curve(left) + 4 * curve((left + right) / 2) + curve(right))


@process
def join(a: Piece, b: Piece) -> Piece:
    return Piece(a.area + b.area, a.parts + b.parts)


@process
def area(left: float, right: float, tolerance: float) -> Any:
    """The area, if two halves agree with the whole; else a call that divides it further."""
    middle = (left + right) / 2
    whole = simpson(left, right)
    halves = simpson(left, middle) + simpson(middle, right)
    if abs(halves - whole) < tolerance:
        return Piece(halves, ((left, right),))
    return join(area(left, middle, tolerance / 2), area(middle, right, tolerance / 2))


@process
def report(left: float, right: float, tolerance: float) -> list[str]:
    """Run a call in the middle of a body, and describe its value."""
    found: Piece = area(left, right, tolerance)()
    truth = (atan((right - PEAK) / WIDTH) - atan((left - PEAK) / WIDTH)) / WIDTH
    lines = [f"The area is {found.area:.2f}; in truth it is {truth:.2f}."]
    lines += [f"It took {len(found.parts)} parts, of which each # is one:"]
    tenth = (right - left) / 10
    for number in range(10):
        start = left + number * tenth
        closely = sum(start <= part[0] < start + tenth for part in found.parts)
        lines.append(f"  from {start:.1f}  {'#' * closely}")
    return lines


def main() -> None:
    print("\n".join(report(0.0, 1.0, 0.1)()))


if __name__ == "__main__":
    main()
