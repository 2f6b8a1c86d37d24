"""The picture of the floors, `images/floors.svg`, drawn from what the modules import.

    python docs/floors.py        writes it; `make docs` does so, and the tests see that it is fresh

A box is a room. An arrow says that modules of one room import modules of the other. An arrow that
follows from others (through a room between) is left out, else most boxes would be joined; the
documentation lists all imports beside the files of a room. Tools that draw imports (pydeps,
import-linter) need the `dot` program and know no floors; here the floors are given, so the layout
is short.
"""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path

from entangle.tests.house import FLOORS, MODULES, arrows, place

TARGET = Path(__file__).resolve().parent.parent / "images" / "floors.svg"

WIDTH, STEP, BOX, MARGIN, GAP, LANE = 880, 74, 46, 28, 14, 26
COLOURS = ("#d5dbe6", "#d7e6ee", "#c8e8e2", "#dcebdc", "#f6d9b4", "#fbdcc4", "#fdebdd")

#: A place on a floor: a room, or the lane of an arrow that passes the floor.
Spot = tuple[str, str]


def needed() -> dict[str, set[str]]:
    """Each room, and the rooms that its modules import."""
    found: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    for module, below in arrows().items():
        here = _room(module)
        found[here] |= {_room(other) for other in below if other in MODULES} - {here}
    return found


def _room(module: str) -> str:
    where = place(module)
    assert where is not None, f"{module} has no floor"
    return where[1]


def reduced(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """The arrows that follow from no others (transitive reduction)."""

    def below(room: str) -> set[str]:
        return graph[room].union(*map(below, graph[room]))

    return {room: sorted(to for to in others if not any(to in below(other) for other in others)) for room, others in graph.items()}


def layers(graph: dict[str, list[str]]) -> tuple[list[list[Spot]], list[tuple[int, Spot, Spot]]]:
    """The places on each floor, in an order with few crossings; and the pieces of arrows between
    one floor and the next."""
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    spots: list[list[Spot]] = [[("room", room) for room in floor] for floor in FLOORS]
    pieces: list[tuple[int, Spot, Spot]] = []
    for room, others in graph.items():
        for to in others:
            above: Spot = ("room", room)
            for number in range(floor_of[room] - 1, floor_of[to] - 1, -1):
                spot: Spot = ("room" if number == floor_of[to] else "lane", to)
                if spot not in spots[number]:
                    spots[number].append(spot)
                if (number, above, spot) not in pieces:
                    pieces.append((number, above, spot))
                above = spot

    def crossings(number: int) -> int:
        """How many arrows cross between a floor and the one above it."""
        upper, lower = ({spot: at for at, spot in enumerate(spots[floor])} for floor in (number + 1, number))
        ends = [(upper[above], lower[below]) for floor, above, below in pieces if floor == number]
        return sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))

    for _ in range(4):
        for number, floor in enumerate(spots):
            fewest, best = None, floor
            for some in itertools.permutations(floor):
                spots[number] = list(some)
                count = sum(crossings(below) for below in (number - 1, number) if 0 <= below < len(spots) - 1)
                if fewest is None or count < fewest:
                    fewest, best = count, spots[number]
            spots[number] = best
    return spots, pieces


def draw() -> str:
    """The picture, as SVG."""
    spots, pieces = layers(reduced(needed()))
    height = STEP * len(FLOORS) + 2 * MARGIN - (STEP - BOX)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="title description">',
        '  <title id="title">The floors</title>',
        '  <desc id="description">Rooms of the code from the ground up, and which imports which. Every arrow points down. '
        "Drawn by docs/floors.py from the imports.</desc>",
        "  <style>",
        "    text { font-family: 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif; fill: #2b3650; text-anchor: middle; }",
        "    .head { font-size: 14px; font-weight: 600; }",
        "    .code { font-family: Menlo, Consolas, 'DejaVu Sans Mono', monospace; font-size: 12px; fill: #44516e; }",
        "    .arrow { stroke: #5a6b8c; stroke-width: 1.8; fill: none; }",
        "  </style>",
        '  <defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L10 5 L0 10 z" fill="#5a6b8c"/></marker></defs>',
        f'  <rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" fill="#fff" stroke="#d5dbe6" stroke-width="2"/>',
    ]
    where: dict[tuple[int, Spot], tuple[float, float, int]] = {}
    for number, floor in enumerate(spots):
        top = MARGIN + STEP * (len(FLOORS) - 1 - number)
        rooms = sum(kind == "room" for kind, _ in floor)
        wide = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1) - LANE * (len(floor) - rooms)) / rooms
        left: float = MARGIN
        for spot in floor:
            width = wide if spot[0] == "room" else LANE
            where[number, spot] = (left, left + width, top)
            left += width + GAP
    for number, above, below in pieces:
        start, end = where[number + 1, above], where[number, below]
        low, high = max(start[0], end[0]), min(start[1], end[1])
        x1, x2 = (start[0] + start[1]) / 2, (end[0] + end[1]) / 2
        if high - low > 16:  # one is above the other: join them straight, where they overlap
            x1 = x2 = (low + high) / 2
        y1, y2 = start[2] + BOX, end[2]
        bend = 0.6 * (y2 - y1)
        tip = ' marker-end="url(#tip)"' if below[0] == "room" else ""
        out.append(f'  <path class="arrow" d="M{x1:.0f} {y1} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2}"{tip}/>')
    for (number, (kind, room)), (left, right, top) in where.items():
        middle = (left + right) / 2
        if kind == "lane":
            out.append(f'  <path class="arrow" d="M{middle:.0f} {top} V{top + BOX}"/>')
            continue
        names = [member[:-1].replace(".", "/") + "/" if member.endswith(".") else f"{member}.py" for member in FLOORS[number][room]]
        names = [name for name in names if name not in (".py", "_remote.py")]
        text, most = "  ".join(names), int((right - left - 12) / 7.3)
        out.append(
            f'  <rect x="{left:.0f}" y="{top}" width="{right - left:.0f}" height="{BOX}" rx="6" '
            f'fill="{COLOURS[number * len(COLOURS) // len(FLOORS)]}"/>'
            f'<text class="head" x="{middle:.0f}" y="{top + 19}">{escape(room)}</text>'
            f'<text class="code" x="{middle:.0f}" y="{top + 37}">{escape(text if len(text) <= most else text[: most - 1] + "…")}</text>'
        )
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
