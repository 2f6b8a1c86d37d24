"""The page in a real browser: what a user sees and does, by mouse and by keyboard, in the light and
in the dark, on a wide screen and on a telephone."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .pages import Page, served


def _browser() -> str | None:
    """Where a Chromium is, as `.ci/browser where` tells."""
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
    with served(tmp_path_factory.mktemp("page"), "small", "other", "failed", "nested", "many") as found:
        yield found


@contextmanager
def looking(page: Page, path: str = "", **view: Any) -> Iterator[Any]:
    """A tab of a browser of its own. Whatever the page complains of in the console fails the
    test."""
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
    """Wait until the graph is there."""
    tab.wait_for_selector(".stage[data-ready]")


def labels(tab: Any) -> list[str]:
    """What stands on the nodes of the graph."""
    found: list[str] = tab.evaluate("entangleGraph.nodes().map(node => node.data('text')).sort()")
    return [re.sub(r"[\d.]+ (µs|ms|s)\b", "TIME", text).replace("\n", " ") for text in found]


def at(tab: Any) -> str:
    """The node at which the keyboard is."""
    return str(tab.get_attribute(".stage", "aria-label"))


def test_a_user_finds_a_run_and_looks_at_it(page: Page) -> None:
    with looking(page) as tab:
        assert page.token not in tab.url
        tab.wait_for_selector("tr.row")
        assert tab.locator("tr.row").count() == 5
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
        tab.keyboard.press("ArrowDown")  # from nowhere: the top
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
        # How long the page has been deaf, in milliseconds: the longest time between two frames.
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
        # No measurement: a page that laid out ten thousand nodes would be deaf for minutes.
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
