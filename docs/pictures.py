"""Makes the pictures of runs in `images/`: real runs, drawn by our own renderer, and the page in a
real browser.

    python docs/pictures.py        needs the extra `test` and a Chromium (.ci/browser)

Writes images/run.svg, page-graph.png, page-live.png, page-timeline.png, page-attempts.png,
page-stream.png and page-narrow.png.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "images"

#: A small study of a wing: how its glide ratio depends on the angle at which it meets the air.
STUDY = """
    import math
    import sys
    import time

    import entangle
    from entangle.process import process
    from entangle.scheduler import scheduler
    from entangle.workflow import workflow

    PACE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.05


    def work(seconds):
        end = time.perf_counter() + seconds * PACE
        while time.perf_counter() < end:
            math.sqrt(2.0)


    @process
    def mesh(cells):
        work(1.0)
        return list(range(cells))


    @scheduler(cpus=2)
    @process
    def solve(mesh, angle):
        work(2.0 + angle % 3)
        return {"angle": angle, "cells": len(mesh)}


    @process
    def lift(flow):
        work(0.7)
        return round(2 * math.pi * math.radians(flow["angle"]), 3)


    @process
    def drag(flow):
        work(0.5)
        return round(0.02 + 0.05 * math.radians(flow["angle"]) ** 2 * 40, 4)


    @process
    def ratio(lift, drag):
        work(0.2)
        return round(lift / drag, 2)


    @workflow
    def refined(angle):
        flow = solve(mesh(4000), angle)
        return ratio(lift(flow), drag(flow))


    @process
    def best(*ratios):
        return max(ratios)


    grid = mesh(1000)
    flows = [solve(grid, angle) for angle in (2, 4, 6)]
    study = best(*(ratio(lift(flow), drag(flow)) for flow in flows), refined(5))
    with entangle.tags(project="wing", revision=7):
        print(study())
"""


#: Three downloads: one comes at once, one at the third attempt, one never.
DOWNLOADS = """
    import os
    import time

    from entangle.process import process


    @process(retry=2, sleep=0.2)
    def download(name):
        time.sleep(0.15)
        with open(f"{name}.tries", "a") as tries:
            tries.write("x")
        if name == "mirror" and os.path.getsize("mirror.tries") < 3:
            raise TimeoutError(f"{name}: no answer within 0.15 s")
        if name == "archive":
            raise ConnectionError(f"{name}: connection reset by peer")
        return len(name)


    @process
    def total(*sizes):
        return sum(sizes)


    try:
        total(*(download(name) for name in ("main", "mirror", "archive")))()
    except Exception as error:
        print(error)
"""

#: Lines that are parsed and added up by the hundred; some cannot be parsed.
LINES = """
    import logging
    import time

    from entangle.dataflow import dataflow, process

    logging.disable()


    @dataflow
    @process
    def read(number):
        time.sleep(0.001)
        return f"{number},{number * 7 % 31}"


    @dataflow
    @process
    def parse(line):
        time.sleep(0.003)
        number, value = map(int, line.split(","))
        if value == 30:
            raise ValueError(f"line {number} is damaged")
        return value


    @dataflow
    @process
    def clean(value):
        return value / 31


    print(sum(value for (value,) in read(parse(clean())).stream(range(1500), on_error="skip")))
"""


def photograph(page_of: dict[str, str], environment: dict[str, str], folder: Path) -> None:
    """Take the pictures of the page."""
    from playwright.sync_api import sync_playwright

    browser_path = next(
        path for name in (os.environ.get("ENTANGLE_BROWSER", ""), "chromium", "google-chrome") if (path := shutil.which(name))
    )
    base = page_of["url"].partition("?")[0]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        context = browser.new_context(viewport={"width": 1080, "height": 640}, reduced_motion="reduce")
        tab: Any = context.new_page()
        tab.goto(page_of["url"])
        tab.wait_for_selector("tr.row")
        tab.click("tr.row >> nth=0")
        tab.wait_for_selector(".stage[data-ready]")
        run = tab.url.partition("#/run/")[2]
        ratio = tab.evaluate("entangleGraph.nodes('[task = \"ratio\"]')[0].id()")
        tab.goto(f"{base}#/run/{run}/graph?node={ratio}")
        tab.wait_for_selector("aside pre")
        tab.keyboard.press("m")
        tab.wait_for_selector("text=calls made it")
        tab.wait_for_timeout(300)
        tab.screenshot(path=IMAGES / "page-graph.png")
        tab.goto(f"{base}#/run/{run}/timeline")
        tab.wait_for_selector("canvas[data-ready]")
        tab.wait_for_timeout(300)
        tab.set_viewport_size({"width": 1080, "height": 400})
        tab.wait_for_timeout(300)
        tab.screenshot(path=IMAGES / "page-timeline.png")
        for program, view, ready, name, height in (
            ("downloads.py", "timeline", "canvas[data-ready]", "page-attempts.png", 330),
            ("lines.py", "graph", ".stage[data-ready]", "page-stream.png", 560),
        ):
            subprocess.run([sys.executable, program], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            tab.set_viewport_size({"width": 1080, "height": height})
            tab.goto(f"{base}#/")
            tab.wait_for_selector(f"tr.row >> text={program}")
            latest = tab.get_attribute("tr.row a", "href").partition("#/run/")[2]
            tab.goto(f"{base}#/run/{latest}/{view}")
            tab.wait_for_selector(ready)
            tab.wait_for_timeout(300)
            tab.screenshot(path=IMAGES / name)

        narrow: Any = browser.new_context(viewport={"width": 400, "height": 700}, color_scheme="dark", reduced_motion="reduce").new_page()
        narrow.goto(page_of["url"])
        narrow.wait_for_selector("tr.row")
        narrow.goto(f"{base}#/run/{run}/graph?node={ratio}")
        narrow.wait_for_selector("aside pre")
        narrow.wait_for_timeout(300)
        narrow.screenshot(path=IMAGES / "page-narrow.png")

        dark: Any = browser.new_context(viewport={"width": 1080, "height": 640}, color_scheme="dark", reduced_motion="reduce").new_page()
        dark.goto(page_of["url"])
        dark.wait_for_selector("tr.row")
        with subprocess.Popen([sys.executable, "wing.py", "1.0"], cwd=folder, env=environment, stdout=subprocess.DEVNULL) as study:
            dark.click("a.card")
            dark.wait_for_selector(".stage[data-ready]")
            # Wait until the run inside `refined` has begun, and some of the others are done.
            dark.wait_for_selector(".stage[data-nodes='20']", timeout=60_000)
            dark.wait_for_timeout(1500)
            dark.screenshot(path=IMAGES / "page-live.png")
            study.kill()
        browser.close()


def main() -> None:
    """Run the programs, and make the pictures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, program in (("wing.py", STUDY), ("downloads.py", DOWNLOADS), ("lines.py", LINES)):
            (folder / name).write_text(textwrap.dedent(program), encoding="utf-8")
        environment = {**os.environ, "ENTANGLE_RECORD_DIR": str(folder / "records"), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "wing.py"], cwd=folder, env=environment, check=True)
        entangle = [sys.executable, "-m", "entangle"]
        subprocess.run([*entangle, "show", "--format", "svg", "--output", str(IMAGES / "run.svg")], cwd=folder, env=environment, check=True)
        server = subprocess.Popen(
            [*entangle, "ui", "--no-browser", "--json"], stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        )
        try:
            assert server.stdout is not None
            photograph(json.loads(server.stdout.readline()), environment, folder)
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
