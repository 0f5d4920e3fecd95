"""The dashboard of the real server, trained on by the real client; in a real browser, offline (slow suite)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixer.sources.prepared.prepare import prepare
from service.client.client import MixerClient
from service.dashboard import FOLDER
from service.wire.dashboard import Entries, Overview, Series, WalkOnPaper
from tests.support.browser import Browser, in_browser
from tests.support.dashboards import NAMES, SMALL, Server, Trainer, alarm, curriculum
from tests.support.serving import post
from tests.support.simulated import SimulatedRun

# the axe in the package predates groups of terms in a list and autocomplete="off" on search fields
TOO_OLD = ("dlitem", "autocomplete-valid")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dashboard")
    with Server(curriculum(folder, NAMES), folder / "runs") as server:
        small = curriculum(folder, NAMES[:3], **SMALL).model_dump(mode="json", exclude_none=True, exclude={"base_dir"})
        made = post(server.url + "/runs", json={"name": "small", "curriculum": small})
        assert made.status_code == 201, made.text
        with MixerClient(server.url) as client:
            for step in range(0, 1500, 7):
                client.weights(step)  # decides; nobody trains on the run of many sources
        yield server


@pytest.fixture(scope="module")
def trainer(server: Server) -> Trainer:
    trainer = Trainer(server.url, "small")
    trainer.train(100)
    server.watch("small").add(alarm("code", 90))
    return trainer


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.closing(Browser(tmp_path_factory.mktemp("chromium") / "profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.forget()
    return chromium


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


def test_routes_of_the_page_answer_as_their_schemas_say(server: Server, trainer: Trainer) -> None:
    assert Series.model_validate_json(server.get("/runs/small/series").content).end >= trainer.step
    overview = Overview.model_validate_json(server.get("/runs/small/overview").content)
    assert [(rank.rank, rank.lag) for rank in overview.ranks] == [(1, 1), (0, 0)]
    assert [(alarm.source, alarm.kind) for alarm in overview.alarms] == [("code", "cliff")]
    assert WalkOnPaper.model_validate_json(server.get("/region").content).names == NAMES
    entries = Entries.model_validate_json(server.get("/runs/small/journal?query=polish").content)
    assert 0 < entries.num_found == len(entries.entries)
    [found] = overview.alarms
    assert found.message == "loss 0.13 where 2.9 was expected, z -9.5, after 41 epochs"
    [entry] = Entries.model_validate_json(server.get("/runs/small/journal?query=cliff").content).entries
    assert entry.text == f"code: cliff, {found.message}"


def test_large_answers_are_compressed_for_those_who_take_it(server: Server) -> None:
    plain, packed = (server.get("/series", **{"accept-encoding": how}) for how in ("identity", "gzip"))
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2


def test_the_page_needs_no_token_and_what_it_reads_does(tmp_path: Path) -> None:
    with Server(curriculum(tmp_path, NAMES[:3]), tmp_path / "runs") as server:
        server.app.state.book.create("read", "somebody")
        page = server.get("/")
        assert page.status_code == 200
        assert "'unsafe" not in page.headers["content-security-policy"]
        assert server.get("/", **{"if-none-match": page.headers["etag"]}).status_code == 304
        for file in FOLDER.glob("*.js"):
            assert server.get(f"/dashboard/{file.name}").status_code == 200
        for path in ("__init__.py", "..%2f__init__.py", "%2e%2e/app.py", "nothing.js"):
            assert server.get(f"/dashboard/{path}").status_code == 404
        for path in ("overview", "series", "region", "journal", "config", "events"):
            assert server.get(f"/{path}").status_code == 401


class TestInABrowser:
    pytestmark = in_browser

    def test_every_part_is_there_and_nothing_comes_from_elsewhere(
        self, browser: Browser, server: Server, trainer: Trainer
    ) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: browser.text("#connection-text") == "Live")
        assert browser.text("#tile-step") == f"{trainer.step} of 5,000"
        assert browser.text("#tile-regime") == "polish"
        assert browser.text("#tile-alarms") == "1"
        assert "up to 1 step behind" in browser.text("#tile-ranks-more")
        assert browser.text("#tile-pace") != "–"
        browser.wait(lambda: "code" in browser.text("#config-text"))
        assert browser.count("#source-table tbody tr") == 3
        assert browser.count("#rank-table tbody tr") == 2
        assert "0.13 where 2.9" in browser.text("#alarm-table")
        inked = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v))"
        for canvas in ("weights", "losses", "index", "proportions", "region", "pivot"):
            assert browser.js(f"{inked}(document.querySelector(arguments[0]))", f"#{canvas} canvas"), canvas
        assert "Largest at the end" in browser.at("#weights canvas").get_attribute("aria-label")
        assert {address.split("/")[2] for address in browser.addresses() if address.startswith("http")} == {
            server.url[7:]
        }
        assert browser.errors() == []

    def test_a_step_of_the_trainer_and_an_alarm_show_without_a_reload(
        self, browser: Browser, server: Server, trainer: Trainer
    ) -> None:
        browser.open(f"{server.url}/?run=small")
        before = browser.text("#tile-phase")
        trainer.train(50)
        step = f"{trainer.step} of 5,000"
        browser.wait(lambda: browser.text("#tile-step") == step)
        assert browser.text("#tile-phase") != before
        assert "tokens/s" in browser.text("#tile-pace")
        assert browser.js("Number(document.querySelector('#cursor').max)") >= trainer.step - 1
        server.watch("small").add(alarm("books", trainer.step))
        browser.wait(
            lambda: (
                browser.text("#announcer")
                == "Alarm: books, cliff: loss 0.13 where 2.9 was expected, z -9.5, after 41 epochs"
            )
        )
        assert browser.text("#tile-alarms") == "2, 1 lasting"

    def test_a_pivot_goes_from_a_bound_to_the_walk(self, browser: Browser, server: Server, trainer: Trainer) -> None:
        browser.open(f"{server.url}/?run=small")
        floor = "input[aria-label='floor of books']"
        browser.wait(lambda: browser.count(floor))
        browser.type(floor, "0.9")
        browser.wait(lambda: "Not feasible: floors sum to 1.2" in browser.text("#pivot-verdict"))
        assert not browser.at("#pivot-submit").is_enabled()
        browser.type(floor, "0.6")
        browser.wait(lambda: browser.text("#pivot-verdict").startswith("Feasible. The walk moves by"))
        assert "the walk moves by" in browser.at("#pivot-canvas").get_attribute("aria-label")
        browser.type("#pivot-name", "endgame")
        browser.at("#pivot-when option[value=now]").click()
        browser.js("document.querySelector('#pivot-submit').click()")
        browser.wait(lambda: browser.at("#confirm-dialog").is_displayed())
        browser.at("#confirm-dialog button[value=yes]").click()
        browser.wait(lambda: "endgame is in the journal" in browser.text("#pivot-verdict"))
        browser.wait(lambda: "pivot endgame" in browser.text("#journal-table"))
        trainer.train(60)
        browser.wait(lambda: browser.text("#tile-regime") == "endgame")
        with MixerClient(server.url, run="small") as client:
            assert client.weights(trainer.step - 1).weights["books"] >= 0.6

    def test_an_admin_pauses_resumes_forks_and_archives_a_run(
        self, browser: Browser, server: Server, trainer: Trainer
    ) -> None:
        def says(text: str) -> None:
            browser.wait(lambda: text in browser.text("#run-verdict"))

        def answer(dialog: str, value: str) -> None:
            browser.wait(lambda: browser.at(dialog).is_displayed())
            browser.at(f"{dialog} button[value={value}]").click()

        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: browser.text("#run-name") == "small")
        press = "document.querySelector(arguments[0]).click()"
        browser.js(press, "#run-pause")
        answer("#confirm-dialog", "no")
        assert browser.text("#run-state") == "going on"
        browser.js(press, "#run-pause")
        browser.wait(lambda: browser.text("#confirm-title") == "Pause small?")
        assert browser.js("document.activeElement.value") == "no"  # Enter alone does nothing
        answer("#confirm-dialog", "yes")
        says("Run small is paused.")
        browser.wait(lambda: browser.text("#run-pause") == "Resume" and browser.text("#run-state") == "paused")
        browser.js(press, "#run-pause")
        says("Run small goes on.")
        browser.wait(lambda: browser.text("#run-pause") == "Pause")

        browser.js(press, "#run-fork")
        answer("#fork-dialog", "yes")
        browser.wait(lambda: "Give the new run a name" in browser.text("#fork-problem"))
        browser.type("#fork-name", "small")
        answer("#fork-dialog", "yes")
        says("there is a run small already")
        assert "GET /runs tells the state of every run" in browser.text("#run-verdict")  # the hint
        browser.js(press, "#run-fork")
        browser.wait(lambda: browser.at("#fork-dialog").is_displayed())
        browser.type("#fork-name", "other-way")
        answer("#fork-dialog", "yes")
        says("Run other-way shares the history of small")
        browser.wait(lambda: browser.text("#run-name") == "other-way")
        assert "run=other-way" in browser.driver.current_url
        browser.wait(lambda: browser.count("#legend button"))

        browser.js(press, "#run-archive")
        answer("#confirm-dialog", "yes")
        says("Run other-way is archived.")
        browser.wait(lambda: browser.text("#run-name") == "main")
        assert not browser.at("#run-archive").is_enabled()
        runs = {run["name"]: run["status"] for run in server.get("/runs").json()}
        assert (runs["small"], runs["other-way"]) == ("active", "archived")

    def test_archived_runs_are_listed_when_somebody_asks_for_them(self, browser: Browser, server: Server) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        def listed(under: str = "#run >") -> list[str]:
            return list(
                browser.js("Array.from(document.querySelectorAll(arguments[0]), e => e.text)", f"{under} option")
            )

        archived = {run["name"] for run in server.get("/runs").json() if run["status"] == "archived"}
        for name in ("one", "another"):
            assert post(f"{server.url}/runs/main/fork", json={"name": name}).status_code == 201
        browser.open(server.url)
        browser.wait(lambda: "one" in listed())
        assert browser.at("#run-archived").is_displayed() == bool(archived)
        for name in ("one", "another"):
            assert post(f"{server.url}/runs/{name}/archive", json={}).status_code == 200
        archived |= {"one", "another"}
        browser.open(server.url)
        browser.wait(lambda: browser.at("#run-archived").is_displayed())
        assert listed("#run") == ["main", "small"]
        assert browser.at("#run-archived").accessible_name == f"Archived ({len(archived)})"
        assert browser.at("#run-archived").aria_role == "button"
        browser.js("document.querySelector('#run').focus()")
        ActionChains(browser.driver).send_keys(Keys.TAB, Keys.SPACE).perform()
        assert {*listed("#run optgroup[label=Archived]")} == archived
        assert listed() == ["main", "small"]
        assert browser.at("#run-archived").get_attribute("aria-pressed") == "true"
        ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
        assert listed("#run") == ["main", "small"]
        browser.driver.get(f"{server.url}/?run=one")  # which is shown is in the list in any case
        browser.wait(lambda: listed("#run optgroup") == ["one"])
        assert browser.js("document.querySelector('#run').value") == "one"
        browser.wait(lambda: browser.text("#state-text").startswith("a record"))

    def test_a_token_is_asked_for_and_forgotten_with_the_tab(self, browser: Browser, tmp_path: Path) -> None:
        with Server(curriculum(tmp_path, NAMES[:3]), tmp_path / "runs") as server:
            tokens = {scope: server.app.state.book.create(scope, scope) for scope in ("read", "admin")}
            browser.driver.get(server.url)
            browser.wait(lambda: browser.at("#problem").is_displayed())
            browser.at("#problem button").click()
            browser.at("#token-input").send_keys(tokens["read"])
            browser.at("#token-dialog button[value=keep]").click()
            browser.wait(lambda: browser.count("#legend button"))
            browser.type("input[aria-label='cap of code']", "0.1")
            browser.type("#pivot-name", "less-code")
            browser.wait(lambda: browser.at("#pivot-submit").is_enabled())
            browser.js("document.querySelector('#pivot-submit').click()")
            browser.wait(lambda: browser.at("#confirm-dialog").is_displayed())
            browser.at("#confirm-dialog button[value=yes]").click()
            browser.wait(lambda: browser.at("#token-dialog").is_displayed())  # reading is not enough
            browser.at("#token-input").send_keys(tokens["admin"])
            browser.at("#token-dialog button[value=keep]").click()
            browser.wait(lambda: "less-code is in the journal" in browser.text("#pivot-verdict"))
        assert browser.js("sessionStorage.length") == 1
        assert tokens["admin"] not in browser.js("JSON.stringify(localStorage) + document.cookie + location.href")

    def test_the_keyboard_reaches_everything(self, browser: Browser, server: Server, trainer: Trainer) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        browser.open(f"{server.url}/?run=main")
        browser.wait(lambda: "phase" in browser.text("#journal-table"))

        def press(key: str) -> None:
            ActionChains(browser.driver).send_keys(key).perform()

        named = (
            "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40))(document.activeElement)"
        )
        visited: list[str] = []
        in_groups: set[str] = set()
        while len(visited) < 150 and "config-text" not in visited[-1:]:
            press(Keys.TAB)
            visited.append(browser.js(named))
            while (name := browser.js(named)) not in in_groups:
                in_groups.add(name)  # the arrow keys go round a group, and do nothing outside of one
                if browser.js("document.activeElement.matches('[role=toolbar] *, nav *, table button')"):
                    press(Keys.ARROW_RIGHT)
            if browser.js("document.activeElement.closest('#pivot-form') !== null") and "pivot" not in in_groups:
                in_groups.add("pivot")
                assert len(visited) < 20, visited
        assert visited[0] == "Skip to the run"
        wanted = ["run", "token-button", "theme", "cursor", "zoom-in", "smooth", "source-query", "Region", "Config",
                  "floor of web", "Exclude web", "pivot-name", "run-pause", "run-fork", "journal-query",
                  "config-text"]  # fmt: skip
        assert [name for name in wanted if name not in visited and name not in in_groups] == []
        browser.js("document.querySelector('#cursor').focus()")
        ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
        assert browser.at("#cursor").get_attribute("aria-valuetext").startswith("step ")
        browser.js("document.querySelector('#losses [aria-expanded]').focus()")
        ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
        assert browser.count("#losses tbody tr") > 3

    def test_dark_and_light_and_remembered(self, browser: Browser, server: Server) -> None:
        browser.prefer(color_scheme="dark")
        browser.open(server.url)
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = browser.js(paper)
        browser.at("#theme").click()
        assert browser.js(paper) != dark
        browser.open(server.url)
        assert browser.js(paper) != dark
        assert browser.js("document.documentElement.dataset.theme") == "light"

    def test_nothing_moves_for_those_who_prefer_that(self, browser: Browser, server: Server) -> None:
        scrolling = "getComputedStyle(document.documentElement).scrollBehavior"
        browser.open(server.url)
        assert browser.js(scrolling) == "smooth"
        browser.prefer(reduced_motion="reduce")
        assert browser.js(scrolling) == "auto"
        assert browser.js("document.getAnimations().length") == 0

    def test_every_colour_of_a_source_stands_out_from_the_paper(self, browser: Browser, server: Server) -> None:
        browser.open(server.url)
        contrasts = """(async () => {
            const looks = await import('/dashboard/looks.js');
            const context = document.createElement('canvas').getContext('2d');
            const light = (colour) => {
                context.fillStyle = colour;
                context.fillRect(0, 0, 1, 1);
                const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
                    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
            };
            const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const papers = light(looks.inks().card);
            return Array.from({ length: 41 }, (_, i) => ratio(light(looks.colourOf(i - 1)), papers));
        })()"""
        for _ in range(2):
            assert min(browser.js(contrasts)) >= 3  # WCAG 2.2, 1.4.11
            browser.at("#theme").click()

    def test_a_phone_never_scrolls_sideways(self, browser: Browser, server: Server, trainer: Trainer) -> None:
        for width in (390, 320):
            browser.size(width, 740)
            for run in ("small", "main"):
                browser.open(f"{server.url}/?run={run}")
                for button in browser.driver.find_elements("css selector", ".head [aria-expanded]"):
                    browser.js("arguments[0].click()", button)
                assert browser.js("document.documentElement.scrollWidth") == width

    def test_runs_are_chosen_by_name(self, browser: Browser, server: Server, trainer: Trainer) -> None:
        browser.open(server.url)
        assert browser.text("#source-count") == "16 sources"
        browser.wait(lambda: "small" in browser.text("#run"))
        browser.js("(s => { s.value = 'small'; s.dispatchEvent(new Event('change')) })(document.querySelector('#run'))")
        browser.wait(lambda: browser.text("#source-count") == "3 sources")
        assert browser.text("#tile-step") == f"{trainer.step} of 5,000"

    def test_a_restart_of_the_server_is_seen_and_survived(self, browser: Browser, tmp_path: Path) -> None:
        server = Server(curriculum(tmp_path, NAMES[:3], **SMALL), tmp_path / "runs")
        with server:
            trainer = Trainer(server.url, "main")
            trainer.train(20)
            browser.open(server.url)
            browser.wait(lambda: browser.text("#connection-text") == "Live")
        browser.wait(lambda: browser.at("#connection").get_attribute("data-state") == "lost")
        with server:
            trainer.train(20)
            browser.wait(lambda: browser.text("#connection-text") == "Live", 30)
            browser.wait(lambda: browser.text("#tile-step") == "40 of 5,000")
            assert not browser.at("#problem").is_displayed()

    def test_200_000_steps_load_and_move_quickly(self, browser: Browser, tmp_path: Path) -> None:
        plan = curriculum(tmp_path, NAMES, total_steps=200_000, floors={"web": 0.3}, prepared="rows")
        prepare(plan, tmp_path / "rows")
        journal = tmp_path / "runs" / "main" / "journal.jsonl"
        journal.parent.mkdir(parents=True)
        with contextlib.closing(SimulatedRun(plan, journal)) as run:
            run.hasten(199_000)
        begin = time.monotonic()
        with Server(plan, tmp_path / "runs") as server:
            restart_s, begin = time.monotonic() - begin, time.monotonic()
            answer = server.get("/series?points=800")
            answer_s, begin = time.monotonic() - begin, time.monotonic()
            browser.open(server.url)
            page_s = time.monotonic() - begin
            assert browser.count("#journal-table tbody tr") <= 50
            redraw_ms = browser.js(
                "(() => { const c = document.querySelector('#cursor'), t = performance.now();"
                " for (let i = 0; i < 20; i++) { c.value = 9000 * i; c.dispatchEvent(new Event('input')) }"
                " return (performance.now() - t) / 20 })()"
            )
            browser.at("#zoom-in").click()
            browser.wait(lambda: browser.at("#zoom-all").is_enabled())
        kilobytes = [int(answer.headers["content-length"]) / 1000, len(answer.content) / 1000]
        print(
            f"restart {restart_s:.1f} s; columns {answer_s * 1000:.0f} ms, {kilobytes[0]:.0f} kB of {kilobytes[1]:.0f}; "
            f"first picture {page_s:.2f} s, cursor {redraw_ms:.1f} ms"
        )
        assert kilobytes[0] < 250
        assert page_s < 5  # 2 slow cores, shared
        assert redraw_ms < 100

    def test_axe_finds_nothing(self, browser: Browser, server: Server, trainer: Trainer) -> None:
        axe = pytest.importorskip("axe_selenium_python", reason="needs axe-selenium-python (in the extra dev)")
        for theme in ("light", "dark"):
            browser.open(f"{server.url}/?run=small")
            if browser.js("document.documentElement.dataset.theme") != theme:
                browser.at("#theme").click()
            checker = axe.Axe(browser.driver)
            checker.inject()
            found = checker.run()["violations"]
            assert [
                (v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found if v["id"] not in TOO_OLD
            ] == []
