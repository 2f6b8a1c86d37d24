"""Draws the picture that moves, `docs/images/running.svg`: a real run of README's first program.

    python docs/moving.py        runs the program, and draws what its record says

Each call is filled while its body runs, in the colour of its worker, at the times of the record,
slowed down. A reader who has asked for less motion, and a viewer without CSS, see the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from entangle import records
from entangle._records.drawing.boxes import Box, Drawing, drawing_of, lasted
from entangle._records.drawing.picture import HEIGHT, clean, path_of, places_of

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images" / "running.svg"

#: How many seconds the run takes in the picture, and how many its end stays.
MOVES, STAYS = 5.0, 3.0
TOP, LANE, MARGIN, LABEL = 34, 26, 20, 86

STYLE = """
svg{--ink:#1f2933;--soft:#5b6673;--edge:#a3adb8;--wait:#f2f4f6;--frame:#b8c1cb;--a:#0f8a7e;--b:#c4571a;--c:#5b5bd6;--d:#a3348f}
@media(prefers-color-scheme:dark){svg{--ink:#e6eaee;--soft:#9aa5b1;--edge:#5d6873;--wait:#20262c;--frame:#4a545e;--a:#35c4b4;--b:#f0894a;--c:#9a9aff;--d:#e07ccd}}
text{font-family:system-ui,sans-serif;fill:var(--ink);font-size:15px}
.soft{fill:var(--soft);font-size:13px}.value{font-size:13px}.edge{fill:none;stroke:var(--edge);stroke-width:1.6}
.box{fill:var(--wait);stroke:var(--frame);stroke-width:1.5}.lane{fill:var(--wait)}
.fill{transform-box:fill-box;transform-origin:left}
"""


def program() -> tuple[str, str]:
    """The name and the text of README's first program."""
    found = re.search(r'^```python title="([^"]+)"\n(.*?)^```$', (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, "README.md shows no program with a title"
    return found[1], found[2]


def recorded() -> records.Run:
    """Run the program; gives its record."""
    name, text = program()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).write_text(text, encoding="utf-8")
        directory = str(folder / "records")
        environment = {**os.environ, "ENTANGLE_RECORD_DIR": directory, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, name], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        os.environ["ENTANGLE_RECORD_DIR"] = directory
        run = records.run("last")
        assert run.nodes
        assert run.edges
        for node in run.nodes:
            run.inputs_of(node)
        return run


def spelt(run: records.Run, number: int) -> str:
    """The call with its constants, as it is written."""
    node = run.node(number)
    told = [one.value.text if one.value is not None else "…" for one in run.inputs_of(node)]
    return f"{node.name}({', '.join(told)})"


def draw(run: records.Run, name: str) -> str:
    """The picture."""
    plain = drawing_of(run)
    boxes = [Box(box.number, spelt(run, box.number), 1, box.below, box.state) for box in plain.boxes]
    drawing = Drawing(boxes, plain.links, grouped=False)
    at, width, height = places_of(drawing, TOP)
    workers = {
        pid: index for index, pid in enumerate(dict.fromkeys(node.pid for node in sorted(run.nodes, key=lambda node: node.started or 0)))
    }
    times = [(node.started, node.ended) for node in run.nodes]
    begun, over = min(start for start, _ in times if start), max(end for _, end in times if end)
    lasts = over - begun
    whole = MOVES + STAYS

    def share(moment: float | None) -> float:
        """When the picture shows a moment of the run, in per cent of its whole length."""
        return ((moment or over) - begun) / lasts * MOVES / whole * 100

    rules, parts = [], []
    for node in run.nodes:
        start = share(node.started)
        end = max(share(node.ended), start + 1.0)
        rules.append(f"@keyframes f{node.number}{{0%,{start:.2f}%{{transform:scaleX(0)}}{end:.2f}%,100%{{transform:scaleX(1)}}}}")
        rules.append(f"@keyframes v{node.number}{{0%,{end:.2f}%{{opacity:0}}{end + 0.5:.2f}%,100%{{opacity:1}}}}")
        rules.append(f".f{node.number}{{animation:f{node.number} {whole:g}s linear infinite}}")
        rules.append(f".v{node.number}{{animation:v{node.number} {whole:g}s linear infinite}}")
    for link in drawing.links:
        colour = f"var(--{'abcd'[workers[run.node(link.source).pid] % 4]})"
        path = path_of(link, at)
        parts.append(f'<path class="edge" d="{path}"/><path class="edge v{link.source}" style="stroke:{colour}" d="{path}"/>')
    for box in boxes:
        left, top, wide = at[box.number]
        node = run.node(box.number)
        colour = f"var(--{'abcd'[workers[node.pid] % 4]})"
        shape = f'x="{left:.1f}" y="{top:.1f}" width="{wide}" height="{HEIGHT}" rx="8"'
        parts.append(
            f'<rect class="box" {shape}/><rect class="fill f{box.number}" {shape} fill="{colour}" fill-opacity=".22"/>'
            f'<rect class="v{box.number}" {shape} fill="none" stroke="{colour}" stroke-width="1.8"/>'
            f'<text x="{left + 12:.1f}" y="{top + 19:.1f}">{clean(box.name)}</text>'
            f'<text class="value v{box.number}" x="{left + 12:.1f}" y="{top + 36:.1f}">{clean(box.below)}</text>'
        )
    below = height + 2
    scale = (width - 2 * MARGIN - LABEL) / lasts
    for pid, index in workers.items():
        y = below + index * (LANE + 6)
        colour = f"var(--{'abcd'[index % 4]})"
        parts.append(f'<text class="soft" x="{MARGIN}" y="{y + 17:.1f}">worker {index + 1}</text>')
        parts.append(f'<rect class="lane" x="{MARGIN + LABEL}" y="{y:.1f}" width="{width - 2 * MARGIN - LABEL}" height="{LANE}" rx="4"/>')
        for node in run.nodes:
            if node.pid == pid and node.started and node.ended:
                x = MARGIN + LABEL + (node.started - begun) * scale
                wide = max(3.0, (node.ended - node.started) * scale - 1)
                x = min(x, width - MARGIN - wide)
                where = f'x="{x:.1f}" y="{y + 4:.1f}" width="{wide:.1f}" height="{LANE - 8}"'
                parts.append(f'<rect class="fill f{node.number}" {where} rx="3" fill="{colour}"/>')
    full = below + len(workers) * (LANE + 6) + 14
    title = f"{name}: {run.node_count} calls, {len(workers)} worker processes, {lasted(lasts)}, shown {MOVES / lasts:.0f} times slower"
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{full:.0f}" viewBox="0 0 {width} {full:.0f}" '
                f'role="img" aria-label="{clean(title)}">',
                f"<style>{STYLE}{chr(10).join(rules)}\n@media(prefers-reduced-motion:reduce){{*{{animation:none!important}}}}</style>",
                f'<text class="soft" x="{MARGIN}" y="22">{clean(title)}</text>',
                *parts,
                "</svg>",
            ]
        )
        + "\n"
    )


def main() -> None:
    """Run the program, and draw the run."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(draw(recorded(), program()[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
