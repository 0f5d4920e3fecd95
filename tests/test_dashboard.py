"""The dashboard in a real browser, offline, against a stand-in of the service over simulated walks."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.config import Curriculum
from service.dashboard import FOLDER
from tests.standin import ADMIN, SimulatedRun, make_app, served

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (in the extra dev)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --window-size=1300,1000"
)

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromium-driver (Debian's packages)"
    ),
]
# the axe in the package predates groups of terms in a list and autocomplete="off" on search fields
TOO_OLD = ("dlitem", "autocomplete-valid")
MANY = [f"source-{i:02}" for i in range(16)]


def curriculum(names: list[str], **fields: Any) -> Curriculum:
    return Curriculum(
        **{
            "total_steps": 5000,
            "batch_rows": 32,
            "sequence_length": 64,
            "sources": [{"name": n} for n in names],
            **fields,
        }
    )


class Browser:
    """A browser on one page, with what it logged and asked for."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        for option in [*OPTIONS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(option)
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.requests: list[str] = []

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(f"return {code}", *args)

    def at(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def text(self, css: str) -> str:
        return str(self.js("document.querySelector(arguments[0]).textContent", css))

    def wait(self, what: Callable[[], Any], timeout_s: float = 10) -> Any:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.02)
        raise AssertionError(f"did not come about in {timeout_s} s; logged: {self.errors()}")

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait(
            lambda: self.text("#tile-step") != "–" and self.js("document.querySelector('#legend button') !== null")
        )

    def type(self, css: str, text: str) -> None:
        field = self.at(css)
        field.clear()
        field.send_keys(text)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def addresses(self) -> set[str]:
        """What was asked of the network since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.driver.quit()


@pytest.fixture
def runs() -> dict[str, SimulatedRun]:
    bounds: dict[str, Any] = {
        "floors": {"web": 0.3},
        "pivots": [{"name": "polish", "at_step": 420, "caps": {"code": 0.2}}],
    }
    small = SimulatedRun(curriculum(["web", "code", "books"], **bounds), num_ranks=2)
    small.advance(600, (0, 3))
    small.alarm("code", "a loss of 0.13 where 2.9 was expected")
    many = SimulatedRun(curriculum(MANY))
    many.advance(400)
    return {"small": small, "many": many}


@pytest.fixture
def url(runs: dict[str, SimulatedRun]) -> Iterator[str]:
    with served(make_app(runs, "small")) as url:
        yield url


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text(encoding="utf-8")
            assert "//cdn" not in text
            assert "https://" not in text, path.name
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick=" not in page
    assert "<script>" not in page


class TestInABrowser:
    pytestmark = in_browser

    def test_every_part_is_there_and_nothing_comes_from_elsewhere(self, browser: Browser, url: str) -> None:
        browser.open(url)
        browser.wait(lambda: browser.text("#connection-text") == "Live")
        assert browser.text("#tile-step") == "600 of 5,000"
        assert browser.text("#tile-regime") == "polish"
        assert browser.text("#tile-alarms") == "1"
        assert "up to 3 steps behind" in browser.text("#tile-ranks-more")
        browser.wait(lambda: "code" in browser.text("#config-text"))
        assert len(browser.driver.find_elements("css selector", "#source-table tbody tr")) == 3
        assert "a loss of 0.13" in browser.text("#alarm-table")
        for canvas in ("#weights canvas", "#losses canvas", "#index canvas", "#proportions canvas", "#region canvas"):
            inked = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v))"
            assert browser.js(f"{inked}(document.querySelector(arguments[0]))", canvas), canvas
        assert "Largest at the end" in browser.at("#weights canvas").get_attribute("aria-label")
        assert {address.split("/")[2] for address in browser.addresses() if address.startswith("http")} == {url[7:]}
        assert browser.errors() == []

    def test_a_step_of_the_trainer_shows_without_a_reload(
        self, browser: Browser, url: str, runs: dict[str, SimulatedRun]
    ) -> None:
        browser.open(url)
        before = browser.text("#tile-phase")
        runs["small"].advance(60)
        browser.wait(lambda: browser.text("#tile-step") == "660 of 5,000", 4)
        assert browser.text("#tile-phase") != before
        assert browser.js("Number(document.querySelector('#cursor').max)") >= 659

    def test_a_pivot_goes_from_a_bound_to_the_walk(
        self, browser: Browser, url: str, runs: dict[str, SimulatedRun]
    ) -> None:
        browser.open(url)
        floor = "input[aria-label='floor of books']"
        browser.wait(lambda: browser.js(f'document.querySelector("{floor}") !== null'))
        browser.type(floor, "0.9")
        browser.wait(lambda: "Not feasible: floors sum to 1.2" in browser.text("#pivot-verdict"))
        assert not browser.at("#pivot-submit").is_enabled()
        browser.type(floor, "0.6")
        browser.wait(lambda: browser.text("#pivot-verdict").startswith("Feasible. The walk moves by"))
        assert "In the pivot previewed the walk moves" in browser.at("#region-canvas").get_attribute("aria-label")
        browser.type("#pivot-name", "endgame")
        browser.js("document.querySelector('#pivot-submit').click()")
        browser.wait(lambda: browser.at("#confirm-dialog").is_displayed())
        browser.at("#confirm-dialog button[value=yes]").click()
        browser.wait(lambda: browser.at("#token-dialog").is_displayed())  # refused without an admin's token
        browser.at("#token-input").send_keys(ADMIN)
        browser.at("#token-dialog button[value=keep]").click()
        browser.wait(lambda: "endgame is in the journal" in browser.text("#pivot-verdict"))
        assert runs["small"].pivots == ["endgame"]
        assert browser.js("sessionStorage.length") == 1
        assert not browser.js(f"JSON.stringify(localStorage).includes('{ADMIN}') || document.cookie.length")
        browser.wait(lambda: "pivot endgame" in browser.text("#journal-table"))
        runs["small"].advance(60)
        browser.wait(lambda: browser.text("#tile-regime") == "endgame")
        assert runs["small"].walk.phase_at(659).weights[2] >= 0.6

    def test_the_keyboard_reaches_everything(self, browser: Browser, url: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        browser.open(url)
        browser.wait(lambda: "code" in browser.text("#journal-table"))
        visited: list[str] = []
        for _ in range(120):
            ActionChains(browser.driver).send_keys(Keys.TAB).perform()
            name = browser.js(
                "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40))(document.activeElement)"
            )
            visited.append(name)
            if name == "config-text":
                break
        assert visited[0] == "Skip to the run"
        wanted = ["run", "token-button", "theme", "cursor", "zoom-in", "Weights as a table", "source-query",
                  "floor of web", "Exclude web", "pivot-name", "journal-query", "config-text"]  # fmt: skip
        assert [name for name in wanted if name not in visited] == []
        browser.js("document.querySelector('#cursor').focus()")
        ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
        assert browser.at("#cursor").get_attribute("aria-valuetext").startswith("step ")
        browser.js("document.querySelector('#losses [aria-expanded]').focus()")
        ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
        assert len(browser.driver.find_elements("css selector", "#losses tbody tr")) > 10

    def test_dark_and_light_and_remembered(self, browser: Browser, url: str) -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.open(url)
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = browser.js(paper)
        browser.at("#theme").click()
        assert browser.js(paper) != dark
        browser.open(url)
        assert browser.js(paper) != dark
        assert browser.js("document.documentElement.dataset.theme") == "light"

    def test_a_phone_never_scrolls_sideways(self, browser: Browser, url: str) -> None:
        browser.size(360, 740)
        for run in ("small", "many"):
            browser.open(f"{url}/?run={run}")
            for button in browser.driver.find_elements("css selector", ".head [aria-expanded]"):
                browser.js("arguments[0].click()", button)
            assert browser.js("document.documentElement.scrollWidth") == 360

    def test_runs_are_chosen_by_name(self, browser: Browser, url: str) -> None:
        browser.open(url)
        browser.wait(lambda: "many" in browser.text("#run"))
        browser.js("(s => { s.value = 'many'; s.dispatchEvent(new Event('change')) })(document.querySelector('#run'))")
        browser.wait(lambda: browser.text("#source-count") == "16 sources")
        assert browser.text("#tile-step") == "400 of 5,000"

    def test_a_restart_of_the_server_is_seen_and_survived(
        self, browser: Browser, runs: dict[str, SimulatedRun]
    ) -> None:
        with served(make_app(runs, "small")) as url:
            browser.open(url)
            browser.wait(lambda: browser.text("#connection-text") == "Live")
        browser.wait(lambda: browser.at("#connection").get_attribute("data-state") == "lost")
        with served(make_app(runs, "small"), port=int(url.rsplit(":", 1)[1])):
            runs["small"].advance(60)
            browser.wait(lambda: browser.text("#connection-text") == "Live", 20)
            browser.wait(lambda: browser.text("#tile-step") == "660 of 5,000")
            assert not browser.at("#problem").is_displayed()

    def test_200_000_steps_load_and_move_quickly(self, browser: Browser) -> None:
        run = SimulatedRun(curriculum(MANY, total_steps=200_000, floors={MANY[0]: 0.3}))
        run.hasten(199_000)
        with served(make_app({"long": run}, "long")) as url:
            begin = time.monotonic()
            browser.open(url)
            took_s = time.monotonic() - begin
            assert browser.js("document.querySelectorAll('#journal-table tbody tr').length") <= 50
            redraw_ms = browser.js(
                "(() => { const c = document.querySelector('#cursor'), t = performance.now();"
                " for (let i = 0; i < 20; i++) { c.value = 9000 * i; c.dispatchEvent(new Event('input')) }"
                " return (performance.now() - t) / 20 })()"
            )
            browser.at("#zoom-in").click()
            browser.wait(lambda: browser.at("#zoom-all").is_enabled())
        print(f"first picture {took_s:.2f} s, cursor {redraw_ms:.1f} ms")
        assert took_s < 5  # 2 slow cores, shared
        assert redraw_ms < 100

    def test_axe_finds_nothing(self, browser: Browser, url: str) -> None:
        axe = pytest.importorskip("axe_selenium_python", reason="needs axe-selenium-python (in the extra dev)")
        for theme in ("light", "dark"):
            browser.open(url)
            if browser.js("document.documentElement.dataset.theme") != theme:
                browser.at("#theme").click()
            checker = axe.Axe(browser.driver)
            checker.inject()
            found = checker.run()["violations"]
            assert [
                (v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found if v["id"] not in TOO_OLD
            ] == []
