"""The page in a real browser: what a user sees and does, by mouse and by keyboard, in light and
dark, on a wide screen and on a phone."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .pages import Page, served


def _browser() -> str | None:
    """The path of a Chromium, as `.ci/browser where` finds it."""
    names = (os.environ.get("ENTANGLE_BROWSER", ""), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


BROWSER = _browser()
MISSING = [
    *([] if BROWSER else ["Chromium: .ci/browser installs it, ENTANGLE_BROWSER names one"]),
    *([] if importlib.util.find_spec("playwright") else ["playwright: pip install 'py-entangle[test]'"]),
]
pytestmark = pytest.mark.skipif(bool(MISSING) and not os.environ.get("CI"), reason=f"there is no {' and no '.join(MISSING)}")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert not MISSING, MISSING
    with served(tmp_path_factory.mktemp("page"), "small", "other", "failed", "nested", "far", "many") as found:
        yield found


@contextmanager
def looking(page: Page, path: str = "", **view: Any) -> Iterator[Any]:
    """A tab in a browser of its own. Any error or warning in the console fails the test."""
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as play:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=BROWSER, args=[*options, "--disable-gpu", "--disable-dev-shm-usage"])
        try:
            tab = browser.new_page(**{"viewport": {"width": 1200, "height": 800}, "reduced_motion": "reduce", **view})
            tab.set_default_timeout(15_000)
            tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.on(
                "request",
                lambda request: None if request.url.startswith((page.base, "data:")) else complaints.append(f"asks {request.url}"),
            )
            tab.goto(page.url + (f"#{path}" if path else ""))
            yield tab
        finally:
            browser.close()
    assert complaints == []


def drawn(tab: Any) -> None:
    """Wait until the graph is drawn."""
    tab.wait_for_selector(".stage[data-ready]")


def labels(tab: Any) -> list[str]:
    """The labels of the nodes of the graph."""
    found: list[str] = tab.evaluate("entangleGraph.nodes().map(node => node.data('text')).sort()")
    return [re.sub(r"[\d.]+ (µs|ms|s)\b", "TIME", text).replace("\n", " ") for text in found]


def at(tab: Any) -> str:
    """The node that has the keyboard focus."""
    return str(tab.get_attribute(".stage", "aria-label"))


def test_a_user_finds_a_run_and_looks_at_it(page: Page) -> None:
    with looking(page) as tab:
        assert page.token not in tab.url
        tab.wait_for_selector("tr.row")
        assert tab.locator("tr.row").count() == 6
        tab.fill('input[type="search"]', "small")
        tab.wait_for_selector("tr.row:only-child")
        tab.click("tr.row >> text=add")
        drawn(tab)
        calls = [("add", "6, 1", 7), ("add", "7, 3", 10), *(("num", str(n), n) for n in (1, 2, 5, 6)), ("subtract", "5, 2", 3)]
        assert labels(tab) == [f"{name}({given}) ✓ TIME = {value}" for name, given, value in calls]
        tab.click("role=tab[name='Nodes']")
        tab.click("tr.row >> text=subtract")
        panel = tab.locator("aside")
        panel.locator("text=def subtract(a, b):").wait_for()
        text = panel.inner_text()
        for word in ("subtract", "done", "part=wing", "@process", "running"):
            assert word in text
        panel.locator("dl a").first.click()
        tab.wait_for_selector("aside h2 >> text=num")
        panel.locator("a[title^='What made this value']").first.click()
        tab.wait_for_selector("h1 >> text=What made this value")
        assert tab.locator("tr.row").count() >= 2
        tab.go_back()
        drawn(tab)
        tab.click("role=tab[name='About']")
        tab.wait_for_selector("text=critical path")
        with tab.expect_download() as download:
            tab.click("text=SVG")
        assert download.value.suggested_filename.endswith(".svg")


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    with looking(page) as tab:
        tab.wait_for_selector("tr.row")
        tab.keyboard.press("?")
        tab.wait_for_selector("dialog[open]")
        tab.keyboard.press("Escape")
        tab.wait_for_selector("dialog[open]", state="detached")
        tab.keyboard.press("/")
        tab.keyboard.type("small")
        tab.wait_for_selector("tr.row:only-child")
        tab.keyboard.press("Escape")
        tab.keyboard.press("j")
        tab.keyboard.press("Enter")
        drawn(tab)
        tab.focus(".stage")
        tab.keyboard.press("ArrowDown")  # with nothing selected, this selects the top node
        assert at(tab).startswith("add(7, 3), ✓")
        assert at(tab).endswith(", done")
        tab.keyboard.press("ArrowDown")
        assert at(tab).startswith(("add(6, 1)", "subtract(5, 2)"))
        tab.keyboard.press("ArrowUp")
        assert at(tab).startswith("add(7, 3)")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("aside h2 >> text=add")
        tab.keyboard.press("m")
        tab.wait_for_selector("text=6 calls made it")
        assert tab.evaluate("entangleGraph.nodes('.marked').length") == 7
        tab.keyboard.press("Escape")
        tab.wait_for_selector("aside", state="detached")
        assert tab.evaluate("entangleGraph.nodes('.marked').length") == 0
        for key, what in (
            ("t", "canvas[data-ready]"),
            ("n", "tr.row"),
            ("p", ".progress [data-ready]"),
            ("a", ".about h2"),
            ("g", ".stage[data-ready]"),
        ):
            tab.keyboard.press(key)
            tab.wait_for_selector(what)
        tab.focus("[role=tab][aria-selected=true]")
        tab.keyboard.press("ArrowRight")
        tab.wait_for_selector("canvas[data-ready]")
        tab.keyboard.press("+")
        tab.keyboard.press("0")
        tab.keyboard.press("Escape")
        tab.wait_for_selector("h1 >> text=Runs")
        tab.wait_for_selector("tr.row")
        tab.keyboard.press("j")
        tab.keyboard.press("c")
        tab.keyboard.press("j")
        tab.keyboard.press("c")
        tab.click("text=Compare two")
        tab.wait_for_selector("h1 >> text=Two runs")


def test_what_failed_is_told_and_no_value_becomes_markup(page: Page) -> None:
    run = page.id_of("failed")
    error = page.get(f"/api/runs/{run}")["error"]["node"]
    with looking(page, f"/run/{run}/graph?node={error}") as tab:
        drawn(tab)
        tab.wait_for_selector("aside pre.error >> text=raise ValueError")
        assert "ValueError: <b>no</b> 2" in tab.inner_text("aside")
        assert tab.locator("aside b").count() == 0
        assert tab.evaluate("entangleGraph.nodes('[state = \"failed\"]').length") == 1


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert not MISSING, MISSING
    with served(tmp_path_factory.mktemp("further"), "retried", "partial", "stream", "wide") as found:
        yield found


def test_a_failed_run_says_its_error_and_leads_to_the_node_and_to_each_attempt(further: Page) -> None:
    with looking(further) as tab:
        said = "task 'flaky' failed 3 times; the last time with TimeoutError: <i>not yet</i> 9"
        assert tab.inner_text("tr.row .problem") == said
        tab.click("tr.row .problem")
        tab.wait_for_selector("aside h2 >> text=flaky")
        assert tab.inner_text(".run-head [role=alert] .said") == said
        tries = tab.locator("aside .tries li")
        assert [text.splitlines()[-1] for text in tries.all_inner_texts()] == ["TimeoutError: <i>not yet</i> 9"] * 3
        assert tab.locator("aside .attempts i.failed").count() == 3
        assert tab.locator("aside i >> text=not yet").count() == 0
        assert "pauses between attempts" in tab.inner_text("aside .legend")
        assert tab.inner_text("aside pre >> nth=0") == "try 1 of 9\ntry 2 of 9\ntry 3 of 9\n"
        tab.keyboard.press("Escape")
        tab.click(".run-head .problem a")
        tab.wait_for_selector("aside h2 >> text=flaky")
        tab.keyboard.press("t")
        tab.wait_for_selector("canvas[data-ready]")
        tab.wait_for_selector(".legend >> text=failed, tried again")


def test_nodes_are_filtered_by_state_in_the_graph_and_in_the_table(further: Page) -> None:
    with looking(further, f"/run/{further.id_of('partial')}") as tab:
        drawn(tab)
        assert "lost · add(…, 5) ⊘ skipped" in labels(tab)
        tab.focus(".tools button[data-state=skipped]")
        tab.keyboard.press("Enter")
        assert tab.evaluate("entangleGraph.nodes().not('.faded').map(node => node.data('state'))") == ["skipped"]
        assert tab.get_attribute(".tools button[data-state=skipped]", "aria-pressed") == "true"
        tab.keyboard.press("Enter")
        assert tab.evaluate("entangleGraph.nodes('.faded').length") == 0
        tab.keyboard.press("n")
        tab.wait_for_selector("tr.row")
        tab.click(".chips button[data-state=skipped]")
        tab.wait_for_selector("tr.row:only-child")
        tab.click("tr.row")
        tab.wait_for_selector("aside >> text=Skipped, since broken has failed.")
        tab.click("aside p a")
        tab.wait_for_selector("aside >> text=ValueError: <b>no</b> 4")
        assert tab.locator("aside b").count() == 0


def test_a_stream_is_drawn_by_stage_from_its_source_down(further: Page) -> None:
    with looking(further, f"/run/{further.id_of('stream')}") as tab:
        drawn(tab)
        found = [re.sub(r"[\d.,]+/s", "RATE", text) for text in labels(tab)]
        assert found == ["load ✓ 100 · RATE", "parse ✓ 90  ✗ 10 · RATE", "save ✓ 90  ⊘ 10 · RATE", "source 100 items"]
        down = tab.evaluate("entangleGraph.nodes().sort((a, b) => a.position('y') - b.position('y')).map(node => node.data('task'))")
        assert down == ["source", "load", "parse", "save"]
        assert "90 taken, 10 left out" in tab.inner_text(".told")
        tab.focus(".stage")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowDown")
        assert at(tab).startswith("load")
        tab.keyboard.press("p")
        tab.wait_for_selector(".progress [data-ready]")
        rows = tab.inner_text("table[aria-label=Stages]").splitlines()
        assert [row.split("\t")[:4] for row in rows[1:]] == [["load", "100", "", ""], ["parse", "90", "10", ""], ["save", "90", "", "10"]]
        tab.keyboard.press("t")
        tab.wait_for_selector("canvas[data-ready]")


def test_arguments_stand_in_their_order_and_no_node_covers_another(further: Page) -> None:
    with looking(further, f"/run/{further.id_of('wide')}") as tab:
        drawn(tab)
        boxes = tab.evaluate(
            "entangleGraph.nodes().map(node => { const box = node.boundingBox({includeLabels: false});"
            " return [node.data('task'), node.data('value'), box.x1, box.y1, box.x2, box.y2]; })"
        )
        assert len(boxes) == 101
        for place, (*_, left, top, right, bottom) in enumerate(boxes):
            for *_, x1, y1, x2, y2 in boxes[:place]:
                assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top
        for task in ("add", "num"):
            values = [int(box[1]) for box in sorted(boxes, key=lambda box: box[2]) if box[0] == task]
            assert values == sorted(values)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_signs_stand_out_from_their_ground(page: Page, scheme: str) -> None:
    with looking(page, color_scheme=scheme) as tab:
        names = ["ground", "raised", "text", "quiet", "accent", "problem", "on-bar", "focus"]
        states = ["done", "running", "waiting", "failed", "skipped", "cancelled"]
        found = tab.evaluate(
            "names => Object.fromEntries(names.map(name => [name,"
            " getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))",
            [*names, *states],
        )
        bars = tab.evaluate("import('./dom.js').then(dom => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(dom.colour))")

        def contrast(one: str, other: str) -> float:
            # The definition of WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
            high, low = sorted((_luminance(tab, one), _luminance(tab, other)), reverse=True)
            return (high + 0.05) / (low + 0.05)

        for ground in ("ground", "raised"):
            for name in ("text", "quiet", "accent", "problem"):
                assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
            for name in (*states, "focus"):
                assert contrast(found[name], found[ground]) >= 3, (name, ground)
        for bar in (*bars, found["failed"]):
            assert contrast(found["on-bar"], bar) >= 4.5, bar


def _luminance(tab: Any, colour: str) -> float:
    """The relative luminance of a colour, as the browser draws it."""
    drawn = tab.evaluate(
        "colour => { const pen = document.createElement('canvas').getContext('2d'); pen.fillStyle = colour;"
        " pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); }",
        colour,
    )
    red, green, blue = (part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in drawn)
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def test_two_runs_side_by_side(page: Page) -> None:
    with looking(page, f"/compare/{page.id_of('small')}/{page.id_of('other')}") as tab:
        tab.wait_for_selector("h2 >> text=Values")
        values = tab.inner_text("table[aria-label='Values that differ']")
        assert [line.split("\t")[1:] for line in values.splitlines()[1:]] == [["num", "2", "3"], ["subtract", "3", "2"], ["add", "10", "9"]]
        assert "tag kind" in tab.inner_text("table[aria-label='Differences']")


def test_a_graph_of_ten_thousand_nodes_is_drawn_by_task_and_never_freezes_the_page(page: Page) -> None:
    run = page.id_of("many")
    with looking(page, f"/run/{run}") as tab:
        drawn(tab)
        assert [label.partition(" ·")[0] for label in labels(tab)] == [
            "add \N{MULTIPLICATION SIGN}4,999 ✓ 4,999",
            "num \N{MULTIPLICATION SIGN}5,000 ✓ 5,000",
        ]
        # The longest time between two frames in milliseconds, in which the page did not react.
        tab.evaluate(
            "() => { window.deaf = 0; let last = performance.now();"
            " const look = () => { const now = performance.now(); window.deaf = Math.max(window.deaf, now - last); last = now;"
            " requestAnimationFrame(look); }; look(); }"
        )
        tab.focus(".stage")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("e")
        tab.wait_for_selector(".stage[data-nodes='502']")
        tab.keyboard.press("-")
        tab.keyboard.press("e")
        tab.wait_for_selector(".stage[data-nodes='2']")
        tab.keyboard.press("t")
        tab.wait_for_selector("canvas[data-ready]")
        assert int(tab.get_attribute("canvas", "data-bars")) < 9999
        # Not a benchmark: a page that laid out ten thousand nodes would block for minutes.
        assert tab.evaluate("window.deaf") < 10_000
        tab.keyboard.press("n")
        tab.wait_for_selector("tr.row")
        assert tab.locator("tr.row").count() == 100


def test_a_run_is_seen_growing_and_then_as_it_is_remembered(tmp_path: Path) -> None:
    assert not MISSING, MISSING
    with served(tmp_path) as page, looking(page) as tab:
        tab.wait_for_selector("text=Nothing is remembered yet")
        script = page.start("live")
        try:
            tab.click("a.card")
            drawn(tab)
            tab.wait_for_selector(".run-head .state.running")
            tab.wait_for_selector(".stage[data-nodes='6']")  # five of its own, and one inside one of them
            page.go()
            assert script.communicate(timeout=30) == ("9\n", "")
        finally:
            script.kill()
            script.communicate()
        tab.wait_for_selector(".run-head .state.done")
        tab.wait_for_selector(".stage[data-nodes='9']")
        assert tab.evaluate("entangleGraph.nodes().every(node => node.data('state') === 'done')")
        assert "add(3, 6) ✓ TIME = 9" in labels(tab)
        tab.keyboard.press("Escape")
        tab.wait_for_selector("tr.row >> text=add")
        assert tab.locator("a.card").count() == 0


def test_a_live_run_says_where_its_nodes_wait(tmp_path: Path) -> None:
    assert not MISSING, MISSING
    with served(tmp_path) as page:
        script = page.start("queued")
        try:
            with looking(page, viewport={"width": 400, "height": 800}) as tab:
                tab.click("a.card")
                tab.wait_for_selector(".run-head .away >> text=local 1 pending because 1 jobs run already", timeout=60_000)
                tab.wait_for_selector(".run-head .away >> text=local 1 running there")
                assert tab.evaluate("document.documentElement.scrollWidth") <= 400
                tab.keyboard.press("n")
                tab.click("tr.row >> text=pending because")
                tab.wait_for_selector("aside p.waits >> text=pending because 1 jobs run already")
                assert "queued in its place" in tab.inner_text("aside .legend")
                assert "local" in tab.inner_text("aside")
        finally:
            page.go()
            script.communicate(timeout=60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone_nothing_is_wider_than_the_screen(page: Page, scheme: str) -> None:
    with looking(page, viewport={"width": 400, "height": 800}, color_scheme=scheme, has_touch=True) as tab:

        def fits() -> None:
            assert tab.evaluate("document.documentElement.scrollWidth") <= 400

        tab.wait_for_selector("tr.row")
        fits()
        tab.goto(f"{page.base}#/run/{page.id_of('small')}")
        drawn(tab)
        fits()
        for key, what in (("t", "canvas[data-ready]"), ("n", "tr.row"), ("p", ".progress [data-ready]"), ("a", ".about h2")):
            tab.keyboard.press(key)
            tab.wait_for_selector(what)
            fits()
        tab.keyboard.press("n")
        tab.tap("tr.row >> nth=0")
        tab.wait_for_selector("aside pre")
        fits()
        assert tab.evaluate("document.querySelector('aside').getBoundingClientRect().bottom") <= 800
        shade = tab.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
        )
        assert (shade > 380) is (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_unfinished_durable_runs_stand_on_the_first_page(tmp_path: Path, scheme: str) -> None:
    assert not MISSING, MISSING
    with served(tmp_path, "small") as page:
        with looking(page, color_scheme=scheme) as tab:
            tab.wait_for_selector("tr.row")
            assert tab.locator("text=Unfinished durable runs").count() == 0
            script = page.start("durable")
            tab.wait_for_selector("section[aria-label='Unfinished durable runs'] td >> text=in use")
            script.kill()
            script.communicate()
            tab.wait_for_selector("section[aria-label='Unfinished durable runs'] td >> text=unfinished")
        for width in (1440, 400):
            with looking(page, viewport={"width": width, "height": 900}, color_scheme=scheme) as tab:
                row = tab.locator("section[aria-label='Unfinished durable runs'] tbody tr")
                row.wait_for()
                text = row.inner_text()
                for word in ("ann's night", "unfinished", "had begun: wait", """entangle resume 'ann'"'"'s night'"""):
                    assert word in text
                assert ("runs.py durable" in text) is (width > 700)
                assert tab.locator("h2").all_inner_texts()[:2] == ["Unfinished durable runs", "Remembered"]
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                command = row.locator("code").bounding_box()
                assert command["x"] >= 0
                assert command["x"] + command["width"] <= width
        page.go()
        subprocess.run(
            [sys.executable, "-m", "entangle", "resume", "ann's night", "--again", "all"], cwd=tmp_path, env=page.environment, check=True
        )
        page.run("durable")
        with looking(page, color_scheme=scheme) as tab:
            tab.wait_for_selector("tr.row")
            assert tab.locator("section[aria-label='Unfinished durable runs'] tr").count() == 0


def test_a_page_without_the_token_says_what_to_do(page: Page) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=BROWSER, args=options)
        try:
            tab = browser.new_page()
            answer = tab.goto(page.base)
            assert answer is not None
            assert answer.status == 401
            assert "This address has no token" in tab.inner_text("body")
        finally:
            browser.close()


def test_places_of_a_run(page: Page) -> None:
    with looking(page, f"/run/{page.id_of('far')}/timeline") as tab:
        tab.click("text=by place")
        tab.wait_for_selector("text=2 places")
        tab.click("role=tab[name='Nodes']")
        tab.click(f"tr.row:has-text('{sys.executable}')")
        tab.locator("aside", has_text=sys.executable).wait_for()
        assert re.search(rf"place\s+{re.escape(sys.executable)}", tab.inner_text("aside"))
