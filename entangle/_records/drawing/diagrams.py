"""A run as text that other programs draw: Mermaid and DOT."""

from __future__ import annotations

import json

from entangle._records.drawing.boxes import drawing_of
from entangle._records.rows import RunGraph

#: Fill, frame and text of a box, by state.
COLOURS = {
    "done": ("#e6f4ea", "#2e7d4f", "#12301f"),
    "failed": ("#fde7e7", "#b3261e", "#410e0b"),
    "skipped": ("#f3e8fb", "#7b3fa0", "#2d0f42"),
    "stopped": ("#fff1dc", "#a15c00", "#3d2300"),
    "running": ("#e3ecfd", "#2457c5", "#0b1d4a"),
    "waiting": ("#f1f1f4", "#75757f", "#2b2b30"),
    "unknown": ("#f1f1f4", "#75757f", "#2b2b30"),
}


def _mermaid(text: str) -> str:
    """Text inside quotes in Mermaid, which takes entities and no backslashes."""
    for char, entity in (("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("`", "#96;"), ("\n", " ")):
        text = text.replace(char, entity)
    return text


def to_mermaid(run: RunGraph) -> str:
    """A flowchart."""
    drawing = drawing_of(run)
    lines = ["flowchart LR"]
    for box in drawing.boxes:
        below = f"<br/><small>{_mermaid(box.below)}</small>" if box.below else ""
        lines.append(f'    n{box.number}["{_mermaid(box.name)}{below}"]:::{box.state}')
    for link in drawing.links:
        label = f'|"{_mermaid(link.label)}"|' if link.label else ""
        lines.append(f"    n{link.source} -->{label} n{link.target}")
    for state in dict.fromkeys(box.state for box in drawing.boxes):
        fill, frame, text = COLOURS[state]
        lines.append(f"    classDef {state} fill:{fill},stroke:{frame},color:{text}")
    return "\n".join(lines) + "\n"


def to_dot(run: RunGraph) -> str:
    """A digraph."""
    drawing = drawing_of(run)
    lines = [f"digraph {_dot(run.name)} {{", '    rankdir=LR; node [shape=box, style="rounded,filled", fontname="sans-serif"];']
    for box in drawing.boxes:
        fill, frame, text = COLOURS[box.state]
        label = _dot(f"{box.name}\n{box.below}" if box.below else box.name)
        tip = _dot(box.about)
        lines.append(f'    n{box.number} [label={label}, tooltip={tip}, fillcolor="{fill}", color="{frame}", fontcolor="{text}"];')
    for link in drawing.links:
        lines.append(f"    n{link.source} -> n{link.target} [label={_dot(link.label)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # DOT takes \n and \" as JSON does
