"""The report in a real Chromium, opened from the disk."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expc.cli import main

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def chromium(need: Callable[[str, bool, str], None]) -> Iterator[Any]:
    """A headless browser that keeps a log of its console and of what it asks for."""
    selenium = importlib.util.find_spec("selenium") is not None
    need("chromium", selenium, "selenium is not installed")
    need("chromium", bool(CHROMIUM and DRIVER), "chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(
        prefix="expc-chromium-", ignore_cleanup_errors=True
    ) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            browser.get("about:blank")
            yield browser
        finally:
            browser.quit()


class Shown:
    """A report as it is shown."""

    def __init__(self, browser: Any, file: Path) -> None:
        self._browser = browser
        self.address = file.as_uri()

    def open(self, width: int = 1280, scheme: str = "light") -> None:
        browser = self._browser
        sizes = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": wanted})
        browser.get(self.address)

    def ask(self, script: str, *given: object) -> Any:
        return self._browser.execute_script(script, *given)

    def console(self) -> list[str]:
        return [line["message"] for line in self._browser.get_log("browser")]

    def fetched(self) -> list[str]:
        """Addresses that it asked for since the last time; those of the file itself are `data:`."""
        told = [
            json.loads(line["message"])["message"] for line in self._browser.get_log("performance")
        ]
        sent = [each["params"] for each in told if each["method"] == "Network.requestWillBeSent"]
        of_pages = [each for each in sent if not each["documentURL"].startswith("chrome")]
        return [each["request"]["url"] for each in of_pages]

    def find(self, selector: str) -> Any:
        return self._browser.find_element("css selector", selector)

    def hover(self, element: Any, x: int) -> None:
        from selenium.webdriver import ActionChains

        self.ask("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self._browser).move_to_element_with_offset(element, x, 0).perform()

    @contextlib.contextmanager
    def unscripted(self) -> Iterator[None]:
        name = "Emulation.setScriptExecutionDisabled"
        self._browser.execute_cdp_cmd(name, {"value": True})
        try:
            yield
        finally:
            self._browser.execute_cdp_cmd(name, {"value": False})

    def picture(self) -> bytes:
        return bytes(self._browser.get_screenshot_as_png())


@pytest.fixture(scope="module")
def shown(
    fabricate: Callable[[Path], Any],
    tmp_path_factory: pytest.TempPathFactory,
    png: Callable[..., bytes],
    hostile: str,
    chromium: Any,
) -> Shown:
    """A report with something of everything: seeds, failures, pictures, a retry, names that are out for harm."""
    project = fabricate(tmp_path_factory.mktemp("shown") / "small")
    with contextlib.chdir(project.root):
        for rate, base in (("0.001", 0.80), ("0.003", 0.95), ("0.01", 0.60)):
            for seed in (0, 1, 2):
                changed = {"precision": "32"} if (rate, seed) == ("0.01", 1) else None
                project.done(project.task(rate, seed), base + 0.01 * seed, changed=changed)
        wide = {f"val/{'long_name_' * 6}{i}": i + 0.5 for i in range(12)}
        metrics = {**wide, f"val/{hostile}": 1.0}
        odd = [{"step": s, "split": "val", "mode": "eval", f"val/{hostile}": s} for s in (1, 2, 3)]
        project.done(
            project.task("0.001", 0, "again"),
            files={"grid.png": png(900, 300)},
            lines=odd,
            metrics=metrics,
            warnings=(hostile,),
        )
        log = f"{'wide ' * 80}\n{hostile}\n"
        project.fail(project.task("0.03", 0), hostile, log=log)
        assert main(["report", "small", "-o", "out/report.html"]) == 0
    return Shown(chromium, project.root / "out" / "report.html")


def test_it_opens_without_an_error_and_without_a_network(shown: Shown) -> None:
    shown.fetched(), shown.console()
    shown.open()
    assert shown.ask("return document.querySelector('h1').textContent") == "small"
    assert shown.console() == []
    fetched = shown.fetched()
    assert [address for address in fetched if not address.startswith("data:")] == [shown.address]


def test_nothing_that_was_named_or_printed_runs(shown: Shown) -> None:
    shown.open()
    assert shown.ask("return window.pwned === undefined && document.scripts.length") == 1
    assert (
        shown.ask("return document.querySelectorAll('img:not([src^=\"data:image\"])').length") == 0
    )
    shown.ask("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert shown.ask("return window.pwned === undefined")
    assert shown.console() == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_page_is_wider_than_its_window(shown: Shown, width: int) -> None:
    shown.open(width)
    shown.ask("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert shown.ask("return innerWidth") == width
    assert shown.ask("return document.documentElement.scrollWidth") <= width
    boxes = "return [...document.querySelectorAll('.scroll')].some((b) => b.scrollWidth > b.clientWidth)"
    assert shown.ask(boxes) or width > 700  # a wide table scrolls in its own box


def test_light_and_dark_have_their_own_colours(shown: Shown) -> None:
    script = """
      const of = (selector, key) => getComputedStyle(document.querySelector(selector))[key];
      return [of("body", "backgroundColor"), of("body", "color"), of(".line.h0", "stroke")];
    """
    shown.open(scheme="light")
    light, bright = shown.ask(script), shown.picture()
    shown.open(scheme="dark")
    dark, night = shown.ask(script), shown.picture()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert bright != night


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_it_stands_on(shown: Shown, scheme: str) -> None:
    """WCAG 2: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    script = """
      const style = getComputedStyle(document.documentElement);
      const parse = (name) => {
        const probe = document.createElement("i");
        probe.style.color = style.getPropertyValue(name);
        document.body.append(probe);
        const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        probe.remove();
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = parse("--bg");
      const ratio = (name) => {
        const [a, b] = [parse(name), ground].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
      };
      return Object.fromEntries(arguments[0].map((name) => [name, ratio(name)]));
    """
    shown.open(scheme=scheme)
    states = ["done", "failed", "blocked", "undefined", "interrupted", "running", "quiet"]
    text = ["ink", "muted", "accent", *states]
    drawn = [*(f"h{i}" for i in range(8)), "floor"]
    ratios = shown.ask(script, [f"--{name}" for name in (*text, *drawn)])
    assert {name: r for name, r in ratios.items() if r < (4.5 if name[2:] in text else 3.0)} == {}


def test_a_head_sorts_its_column(shown: Shown) -> None:
    shown.open()
    order = """
      const table = document.querySelector("table.sortable");
      return [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
    """
    planned = shown.ask(order)
    assert planned == ["lr=0.001", "lr=0.003", "lr=0.01", "lr=0.03"]
    head = shown.find("table.sortable th.figure button")
    head.click()
    assert shown.ask(order) == ["lr=0.003", "lr=0.001", "lr=0.01", "lr=0.03"]  # no figure: last
    assert shown.ask("return document.querySelector('th[aria-sort]').ariaSort") == "descending"
    head.click()
    assert shown.ask(order) == ["lr=0.01", "lr=0.001", "lr=0.003", "lr=0.03"]


def test_curves_are_drawn_and_say_their_values(shown: Shown) -> None:
    shown.open()
    script = """
      const chart = document.querySelector("svg.chart");
      return [chart.ariaLabel.split(" ")[0], chart.querySelectorAll("path.line").length,
              chart.querySelectorAll("path.band").length, chart.querySelectorAll("path.floor").length,
              ...[...chart.querySelectorAll("path.line")].map((p) => p.getTotalLength() > 100)];
    """
    assert shown.ask(script) == ["val/accuracy", 3, 3, 1, True, True, True]
    chart = shown.find("svg.chart")
    shown.hover(chart, int(chart.size["width"] / 2) - 12)  # the last point
    told = shown.find(".tip").text.split("\n")
    assert told == ["update 100", "lr=0.003", "0.96", "lr=0.001", "0.81", "lr=0.01", "0.61"]


def test_a_condition_can_be_taken_out_of_the_curves(shown: Shown) -> None:
    shown.open()
    shown.find(".lines li:nth-child(2)").click()
    hidden = (
        "return [...document.querySelectorAll('path.line.off')].every((p) => p.dataset.i === '1')"
    )
    assert shown.ask(hidden)
    assert shown.ask("return document.querySelectorAll('path.line.off').length > 0")
    shown.find(".lines li:nth-child(2)").click()
    assert shown.ask("return document.querySelectorAll('.off').length") == 0


def test_it_is_all_there_without_a_script(shown: Shown) -> None:
    with shown.unscripted():
        shown.open()
        assert shown.find("table.sortable th.figure").text == "val/accuracy↑"
        assert shown.find("table.sortable td.figure").text.startswith("0.810 ±0.010")
        assert shown.find("svg.chart").size["height"] > 150


def test_headings_descend_and_every_head_has_a_scope(shown: Shown) -> None:
    shown.open()
    levels = shown.ask(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert shown.ask("return document.querySelectorAll('th:not([scope])').length") == 0
    assert shown.ask("return document.querySelectorAll('table:not(:has(caption))').length") == 0


def test_paper_shows_what_is_folded(shown: Shown) -> None:
    shown.open()
    folded = "return document.querySelectorAll('details:not([open])').length"
    assert shown.ask(folded) > 0
    shown.ask("dispatchEvent(new Event('beforeprint'))")
    assert shown.ask(folded) == 0
    shown.ask("dispatchEvent(new Event('afterprint'))")
    assert shown.ask(folded) > 0
