"""A run as an SVG picture. The layout is made here: layers from left to right, each node as far
left as its sources allow.

Nodes of a layer are ordered by the mean place of their neighbours, in sweeps to and fro
(barycentres: Sugiyama, Tagawa, Toda, 1981).
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from entangle._records.drawing.boxes import Box, Drawing, Link, drawing_of, lasted
from entangle._records.drawing.diagrams import COLOURS
from entangle._records.rows import RunGraph

HEIGHT, _GAP, _BETWEEN, _MARGIN = 44, 14, 64, 20
_SWEEPS = 6

_DARK = {
    "done": ("#16301f", "#5fbf86", "#dff3e6"),
    "failed": ("#3d1512", "#ff8a80", "#ffe3e0"),
    "skipped": ("#2f1a3d", "#c58be8", "#f3e4fd"),
    "stopped": ("#3a2708", "#f0b35a", "#fff0d8"),
    "running": ("#14244a", "#8fb2ff", "#e3ecff"),
    "waiting": ("#26262b", "#9a9aa5", "#e8e8ee"),
    "unknown": ("#26262b", "#9a9aa5", "#e8e8ee"),
}


def _layers(drawing: Drawing) -> list[list[int]]:
    """The boxes in layers, in order. Groups may form cycles; the arrow that closes a cycle does not
    count."""
    sources: dict[int, list[int]] = {box.number: [] for box in drawing.boxes}
    takers: dict[int, list[int]] = {box.number: [] for box in drawing.boxes}
    for link in drawing.links:
        if link.source != link.target:
            sources[link.target].append(link.source)
            takers[link.source].append(link.target)
    missing = {number: len(taken) for number, taken in sources.items()}
    depth = dict.fromkeys(sources, 0)
    left = dict.fromkeys(sources)
    ready = [number for number, count in missing.items() if not count]
    while left:
        if not ready:
            ready = [min(left, key=lambda number: missing[number])]  # a cycle
        for number in ready:
            left.pop(number, None)
        following = []
        for number in ready:
            for taker in takers[number]:
                if taker in left:
                    depth[taker] = max(depth[taker], depth[number] + 1)
                    missing[taker] -= 1
                    if missing[taker] == 0:
                        following.append(taker)
        ready = following
    # A leaf stands beside the node that takes it, not at the far left.
    for number in sorted(depth, key=lambda at: -depth[at]):
        if not sources[number] and takers[number]:
            depth[number] = max(0, min(depth[taker] for taker in takers[number]) - 1)
    layers: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for number, at in depth.items():
        layers[at].append(number)
    return _ordered(layers, sources, takers)


def _ordered(layers: list[list[int]], sources: dict[int, list[int]], takers: dict[int, list[int]]) -> list[list[int]]:
    place = {number: float(at) for layer in layers for at, number in enumerate(layer)}

    def middle(number: int, neighbours: dict[int, list[int]]) -> float:
        near = neighbours[number]
        return sum(place[other] for other in near) / len(near) if near else place[number]

    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            known = {number: middle(number, sources if forth else takers) for number in layer}
            layer.sort(key=known.__getitem__)
            for at, number in enumerate(layer):
                place[number] = at
    return layers


def clean(text: str) -> str:
    """Text that may stand in XML: most control characters may not."""
    return escape("".join(char if char >= " " and not "\ud800" <= char <= "\udfff" else "\ufffd" for char in text))


def _width(box: Box) -> int:
    return int(max(len(box.name) * 8.2, len(box.below) * 6.4)) + 26


Places = dict[int, tuple[float, float, int]]


def places_of(drawing: Drawing, top: int) -> tuple[Places, int, float]:
    """Where each box stands: its left, its top and its width; and the size of all, with `top` above
    it."""
    boxes = {box.number: box for box in drawing.boxes}
    layers = _layers(drawing)
    tallest = max((len(layer) for layer in layers), default=0)
    height = _MARGIN * 2 + max(1, tallest) * (HEIGHT + _GAP) - _GAP + top
    at: Places = {}
    x = float(_MARGIN)
    for layer in layers:
        width = max(_width(boxes[number]) for number in layer)
        step = (height - top - 2 * _MARGIN + _GAP) / len(layer)
        for index, number in enumerate(layer):
            at[number] = (x, top + _MARGIN + step * (index + 0.5) - (HEIGHT + _GAP) / 2, width)
        x += width + _BETWEEN
    return at, int(x - _BETWEEN + _MARGIN), height


def path_of(link: Link, at: Places) -> str:
    """The path of an arrow, as SVG has it."""
    (x1, y1, wide), (x2, y2, _) = at[link.source], at[link.target]
    y1, y2 = y1 + HEIGHT / 2, y2 + HEIGHT / 2
    x1 += wide
    if link.source == link.target:
        return f"M{x1 - 30:.1f} {y1 - HEIGHT / 2:.1f}c10 -22 -34 -22 -24 0"
    bend = max(24.0, abs(x2 - x1) / 2)
    return f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"


def to_svg(run: RunGraph) -> str:
    """The picture."""
    drawing = drawing_of(run)
    at, width, height = places_of(drawing, 26)
    width_of_all = max(width, 320)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width_of_all}" height="{height:.0f}" '
        f'viewBox="0 0 {width_of_all} {height:.0f}" role="img" aria-label={quoteattr(clean(f"{run.name}: {run.state}"))}>',
        _style(dict.fromkeys(box.state for box in drawing.boxes)),
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<text class="title" x="{_MARGIN}" y="{_MARGIN + 6}">{clean(run.name)} · {run.state} · {run.node_count:,} calls'
        f"{' · ' + lasted(run.seconds) if run.seconds is not None else ''}</text>",
    ]
    for link in drawing.links:
        parts.append(f'<path class="link" d="{path_of(link, at)}" marker-end="url(#tip)"><title>{clean(link.label)}</title></path>')
    for box in drawing.boxes:
        left, top, wide = at[box.number]
        parts.append(
            f'<g class="box {box.state}"><title>{clean(box.about)}</title>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide}" height="{HEIGHT}" rx="9"/>'
            f'<text class="name" x="{left + 13:.1f}" y="{top + (19 if box.below else 27):.1f}">{clean(box.name)}</text>'
            + (f'<text class="below" x="{left + 13:.1f}" y="{top + 35:.1f}">{clean(box.below)}</text>' if box.below else "")
            + "</g>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(states: dict[str, None]) -> str:
    def rules(colours: dict[str, tuple[str, str, str]]) -> str:
        return "".join(
            f".{state} rect{{fill:{fill};stroke:{frame}}}.{state} text{{fill:{text}}}"
            for state, (fill, frame, text) in colours.items()
            if state in states
        )

    return (
        "<style>text{font-family:system-ui,sans-serif}.title{font-size:14px;font-weight:600;fill:#22222a}.name{font-size:14px}"
        ".below{font-size:11px;opacity:.8}.link{fill:none;stroke:#8a8a96;stroke-width:1.3}.tip{fill:#8a8a96}"
        f"{rules(COLOURS)}"
        f"@media(prefers-color-scheme:dark){{.title{{fill:#ececf2}}.link{{stroke:#7b7b88}}.tip{{fill:#7b7b88}}{rules(_DARK)}}}</style>"
    )
