"""The graph of a call that has not run, or of a dataflow, as a notebook shows it.

One SVG in the page itself. It has the text colour of the page, and no styles of its own, which
would be those of the whole page: so it is right in the light and in the dark.
"""

from __future__ import annotations

from collections import Counter
from xml.sax.saxutils import quoteattr

from entangle._records.drawing.boxes import Box, Drawing, Link
from entangle._records.drawing.picture import HEIGHT, clean, path_of, places_of
from entangle._shared.masks import masked
from entangle._shared.summaries import call_in_short, constants_in_short, cut
from entangle.flow import Flow

#: Up to this many calls, each has a box of its own.
MOST = 40
#: Characters of a name, and of what is written below it.
_NAME, _BELOW = 40, 36
_STATE = "waiting"


def html_of(flow: Flow) -> str:
    """The graph of a call: a box for each call or, of many, for each task."""
    drawing = _one_by_one(flow) if flow.count <= MOST else _by_task(flow)
    return _html(drawing, f"{flow.name(flow.sinks[0])}: {_so_many(flow.count, 'call')}, not run")


def html_of_nodes(names: list[str], links: list[tuple[int, int]]) -> str:
    """The graph of a dataflow: nodes by name, and which gives its value to which."""
    numbers: dict[str, int] = {}
    count = len(names)
    group_of = list(range(count)) if count <= MOST else [numbers.setdefault(name, len(numbers)) for name in names]
    arrows = Counter((group_of[source], group_of[target]) for source, target in links)
    boxes = [
        Box(number, cut(name, _NAME), 1, "" if count <= MOST else _so_many(of_name, "node"), _STATE, name)
        for (number, name), of_name in Counter(zip(group_of, names, strict=True)).items()
    ]
    drawing = Drawing(boxes, [Link(*ends, number, _so_many(number, "value")) for ends, number in arrows.items()], count > MOST)
    return _html(drawing, f"{names[0]}: a dataflow of {_so_many(count, 'node')}")


def _so_many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _html(drawing: Drawing, said: str) -> str:
    at, width, height = places_of(drawing, 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label={quoteattr(_plain(said))} fill="currentColor" font-family="system-ui,sans-serif" style="max-width:none">'
    ]
    for link in drawing.links:
        x, y, _ = at[link.target]
        y += HEIGHT / 2
        parts.append(
            f'<g opacity=".55"><title>{clean(link.label)}</title>'
            f'<path d="{path_of(link, at)}" fill="none" stroke="currentColor" stroke-width="1.3"/>'
            f'<path d="M{x - 7:.1f} {y - 4:.1f}l7 4l-7 4z"/></g>'
        )
    for box in drawing.boxes:
        x, y, wide = at[box.number]
        parts.append(
            f"<g><title>{clean(box.about)}</title>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="{HEIGHT}" rx="9" '
            'fill-opacity=".06" stroke="currentColor" stroke-opacity=".45"/>'
            f'<text x="{x + 13:.1f}" y="{y + (19 if box.below else 27):.1f}" font-size="14">{clean(box.name)}</text>'
            + (f'<text x="{x + 13:.1f}" y="{y + 35:.1f}" font-size="11" opacity=".75">{clean(box.below)}</text>' if box.below else "")
            + "</g>"
        )
    return f'<div class="entangle-call" style="overflow-x:auto;color:inherit">{"".join(parts)}</svg></div>'


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _one_by_one(flow: Flow) -> Drawing:
    boxes, links = [], []
    for node in range(flow.count):
        name, task = flow.name(node), flow.body(node).name
        below = constants_in_short(flow, node)
        if name != task and not flow.body(node).ours:
            below = f"{task}({below})"
        boxes.append(Box(node, cut(masked(name), _NAME), 1, cut(below, _BELOW), _STATE, call_in_short(flow, node)))
        links += [Link(source, node, 1, f"{flow.name(source)} → {name}") for source in flow.sources(node)]
    return Drawing(boxes, links, grouped=False)


def _by_task(flow: Flow) -> Drawing:
    numbers: dict[str, int] = {}
    of_body = [numbers.setdefault(body.name, len(numbers)) for body in flow.bodies]
    group_of = [of_body[body] for body in flow.body_of]
    names = list(numbers)
    boxes = [
        Box(number, cut(names[number], _NAME), count, _so_many(count, "call"), _STATE, f"{names[number]}: {count:,}")
        for number, count in Counter(group_of).items()
    ]
    taken = ((source, node) for node in range(flow.leaves, flow.count) for source in flow.sources(node))
    arrows = Counter((group_of[source], group_of[node]) for source, node in taken)
    links = [Link(source, target, count, _so_many(count, "value")) for (source, target), count in arrows.items()]
    return Drawing(boxes, links, grouped=True)
