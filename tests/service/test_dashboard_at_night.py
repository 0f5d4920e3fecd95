"""What the page says to somebody who looks at it at three in the morning, in a real browser (slow suite)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mixer.analysis.plots import write_page
from service.replay_app import RecordedRun, create_replay_app
from service.settings import Settings
from service.web.auth import token_book
from tests.support.browser import Browser, in_browser
from tests.support.dashboards import NAMES, SMALL, Server, Trainer, alarm, curriculum
from tests.support.serving import free_port, post

pytestmark = in_browser
STATE, CLICK = "#state-text", "document.querySelector(arguments[0]).click()"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("night")
    with Server(curriculum(folder, NAMES, total_steps=400), folder / "runs") as server:
        for name, fields in {"small": SMALL, "old": SMALL, "ending": {"total_steps": 40}}.items():
            plan = curriculum(folder, NAMES[:3], **fields).model_dump(mode="json", exclude_none=True)
            plan.pop("base_dir", None)
            assert post(server.url + "/runs", json={"name": name, "curriculum": plan}).status_code == 201
        for name, steps in {"main": 120, "small": 100, "old": 60}.items():
            Trainer(server.url, name).train(steps)
        newest = server.watch("small").chronicle().end
        server.watch("small").add({**alarm("code", 90), "at": time.time() - 600})
        server.watch("small").add({**alarm("books", 97), "decided_before": newest, "at": time.time() - 60})
        assert post(f"{server.url}/runs/old/archive", json={}).status_code == 200
        yield server


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.closing(Browser(tmp_path_factory.mktemp("chromium") / "profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.forget()
    return chromium


def icon(browser: Browser) -> str:
    return str(browser.js("document.querySelector('link[rel=icon]').href")).rpartition("/")[2]


def choose(browser: Browser, run: str) -> None:
    """Choose a run as a hand does; one that the list lacks is put into it."""
    browser.js(
        "((s, name) => { if (![...s.options].some(o => o.value === name)) s.add(new Option(name, name));"
        " s.value = name; s.dispatchEvent(new Event('change')) })(document.querySelector('#run'), arguments[0])",
        run,
    )


class TestTheVerdict:
    def test_a_run_is_training_then_paused_then_training(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: browser.text(STATE) == "training")
        assert browser.driver.title.startswith("Training · 100 · small")
        assert icon(browser) == "icon-good.svg"
        post(f"{server.url}/runs/small/pause", json={}).raise_for_status()
        browser.wait(lambda: browser.text(STATE) == "paused")
        assert browser.driver.title.startswith("Paused")
        assert icon(browser) == "icon-wait.svg"
        assert browser.text("#announcer") == "Run small: paused"
        post(f"{server.url}/runs/small/resume", json={}).raise_for_status()
        browser.wait(lambda: browser.text(STATE) == "training")

    def test_no_new_step_for_longer_than_usual_is_a_stall(self, browser: Browser, server: Server) -> None:
        pace = server.watch("small")._pace
        clock = pace._clock
        browser.open(f"{server.url}/?run=small")
        weight = "getComputedStyle(document.querySelector('#tile-pace')).fontWeight"
        alive = browser.js(weight)
        pace._clock = lambda: clock() + 240
        try:
            browser.wait(lambda: browser.text(STATE).startswith("stalled for"), 15)
            assert browser.text(STATE) in ("stalled for 4 min", "stalled for 5 min")
            assert browser.driver.title.startswith("Stalled for")
            assert browser.js(weight) < alive  # what is no longer so is grey
        finally:
            pace._clock = clock

    def test_a_finished_run_says_so_and_its_region_cannot_be_redrawn(self, browser: Browser, server: Server) -> None:
        trainer = Trainer(server.url, "ending")
        browser.open(f"{server.url}/?run=ending")
        assert browser.text(STATE) == "waiting for a trainer"
        trainer.train(40)
        browser.wait(lambda: browser.text(STATE) == "finished", 15)
        assert icon(browser) == "icon-done.svg"
        browser.type("input[aria-label='floor of books']", "0.6")
        time.sleep(0.5)  # longer than a preview waits
        assert not browser.at("#pivot-submit").is_enabled()
        assert browser.text("#pivot-verdict") == "The run is finished: no step is left to redraw."

    def test_a_lost_server_is_gone_since_a_time_and_comes_back(self, browser: Browser, tmp_path: Path) -> None:
        server = Server(curriculum(tmp_path, NAMES[:3], **SMALL), tmp_path / "runs")
        with server:
            Trainer(server.url, "main").train(20)
            browser.open(server.url)
            browser.wait(lambda: browser.text(STATE) == "training")
            browser.type("input[aria-label='floor of books']", "0.6")
            browser.wait(lambda: browser.at("#pivot-submit").is_enabled())
        browser.wait(lambda: browser.text(STATE).startswith("gone since "), 15)
        assert ":" in browser.text(STATE)
        assert browser.driver.title.startswith("Gone since")
        assert icon(browser) == "icon-bad.svg"
        assert not browser.at("#pivot-submit").is_enabled()
        assert "grayscale" in browser.js("getComputedStyle(document.querySelector('#weights canvas')).filter")
        with server:
            browser.wait(lambda: not browser.text(STATE).startswith("gone"), 40)
            browser.wait(lambda: browser.at("#pivot-submit").is_enabled())  # what was typed is there still


class TestRuns:
    def test_an_archived_run_is_shown_as_a_record(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        choose(browser, "old")
        browser.wait(lambda: browser.text("#tile-step") == "60 of 5,000")
        assert browser.text(STATE) == "a record: 60 of 5,000 steps"
        browser.wait(lambda: browser.count("#journal-table tbody tr") > 3)
        assert browser.text("#run-state") == "archived"
        assert [browser.at(f"#run-{what}").is_enabled() for what in ("pause", "fork", "archive")] == [
            False,
            True,
            False,
        ]
        assert "nothing of it can be redrawn" in browser.text("#pivot-verdict")
        assert browser.errors() == []

    def test_a_run_that_cannot_be_shown_shows_no_numbers_of_another(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: "code" in browser.text("#config-text") and browser.count("#alarm-table tbody tr") == 2)
        choose(browser, "nobody")
        browser.wait(lambda: "there is no run 'nobody'" in browser.text("#problem"))
        for tile in ("step", "phase", "regime", "pace", "ranks", "alarms"):
            assert browser.text(f"#tile-{tile}") == "–", tile
        for emptied in ("#source-table tbody", "#legend", "#rank-table", "#pivot-table", "#journal-table",
                        "#config-text", "#cursor-weights", "#loss-note"):  # fmt: skip
            assert browser.text(emptied) == "", emptied
        assert browser.text("#alarm-table tbody") == "Nothing yet."
        inked = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v))"
        for canvas in ("weights", "losses", "index", "proportions", "region", "pivot"):
            assert not browser.js(f"{inked}(document.querySelector(arguments[0]))", f"#{canvas} canvas"), canvas

    def test_a_recorded_walk_is_shown(self, browser: Browser, server: Server) -> None:
        past = RecordedRun(server.settings.folder / "old" / "journal.jsonl", "old-walk")
        settings, port = Settings(folder=server.settings.folder), free_port()
        config = uvicorn.Config(
            create_replay_app(past, settings, token_book(settings, server.store)), port=port, log_level="error"
        )
        serving = uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, daemon=True)
        thread.start()
        try:
            browser.wait(lambda: serving.started)
            browser.open(f"http://127.0.0.1:{port}/")
            browser.wait(lambda: browser.text("#tile-step") == "60 of 5,000")
            assert browser.text(STATE) == "a record: 60 of 5,000 steps"
            assert not browser.at("#problem").is_displayed()
            assert browser.count("#source-table tbody tr") == 3
            assert not browser.at("#run-fork").is_enabled()
            assert browser.errors() == []
        finally:
            serving.should_exit = True
            thread.join(30)

    def test_a_fork_is_drawn_over_its_parent(self, browser: Browser, server: Server) -> None:
        post(f"{server.url}/runs/small/fork", json={"name": "fork", "curriculum": {"policy": {"name": "static"}}})
        browser.open(f"{server.url}/?run=fork")
        browser.wait(lambda: "Dashed: the run it left, small." in browser.text("#loss-note"))


class TestAlarms:
    def test_an_alarm_leads_to_its_source_and_step_and_says_whether_it_lasts(
        self, browser: Browser, server: Server
    ) -> None:
        browser.open(f"{server.url}/?run=small")
        rows = browser.wait(lambda: browser.driver.find_elements("css selector", "#alarm-table tbody tr"))
        told = [row.text for row in rows]
        assert "books" in told[0]
        assert "lasts" in told[0]
        assert "code" in told[1]
        assert "over" in told[1]
        assert all(time.strftime("%H:") in row or ":" in row for row in told)
        assert browser.text("#tile-alarms") == "2, 1 lasting"
        for place in (
            "#legend button[title=books]",
            "#source-table button[title=books]",
            "#pivot-table th[title=books]",
        ):
            assert "▼" in browser.text(place), place
            assert "in alarm" in browser.text(place), place
        assert "▽" in browser.text("#legend button[title=code]")
        browser.js(CLICK, "#alarm-source-1")
        assert browser.text("#cursor-step") == "step 90"
        assert browser.at("#legend button[title=code]").get_attribute("aria-pressed") == "true"
        assert browser.js("document.activeElement.title") == "code"  # its row of the table

    def test_a_line_of_the_journal_has_a_time_and_moves_the_cursor(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: browser.count("#journal-table tbody tr") > 5)
        browser.at("#zoom-in").click()
        browser.wait(lambda: browser.at("#zoom-all").is_enabled())
        assert browser.count("#journal-table time") > 5
        browser.js("[...document.querySelectorAll('#journal-table tbody tr')].at(-1).querySelector('button').click()")
        browser.wait(lambda: browser.text("#cursor-step") == "step 0")  # which lay outside of what was shown

    def test_the_weights_of_a_phase_have_names(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.wait(lambda: browser.count("#journal-table [title^='All of']"))
        browser.js(CLICK, "#journal-table [title^='All of']")
        browser.wait(lambda: browser.at("#line-dialog").is_displayed())
        names = [cell.text for cell in browser.driver.find_elements("css selector", "#line-sources tbody th")]
        assert names == ["web", "code", "books"]
        assert "weights" in browser.text("#line-sources thead")
        assert "web" in browser.text("#cursor-weights")


class TestPlots:
    def test_several_sources_are_singled_out_and_let_go_together(self, browser: Browser, server: Server) -> None:
        browser.open(server.url)
        browser.wait(lambda: browser.count(".spark polyline") >= 16)
        assert browser.count("#source-table .spark") == 32
        for name in ("web", "source-07"):
            browser.js(CLICK, f"#legend button[title={name}]")
        pressed = "[...document.querySelectorAll(arguments[0])].map(e => e.title)"
        assert browser.js(pressed, "#legend [aria-pressed=true]") == ["web", "source-07"]
        assert sorted(browser.js(pressed, "#source-table tbody [aria-pressed=true]")) == ["source-07", "web"]
        browser.js(CLICK, "#legend-all")
        assert browser.js(pressed, "#legend [aria-pressed=true]") == []
        picture = "document.querySelector('#losses canvas').toDataURL()"
        before = browser.js(picture)
        browser.js(CLICK, "#smooth")
        assert browser.js(picture) != before

    def test_one_source_learned_by_heart_does_not_squash_the_others(self, browser: Browser, server: Server) -> None:
        browser.open(server.url)
        found = browser.js("""(async () => {
            const { rangeOf, smoothed, spread } = await import('/dashboard/scales.js');
            const row = (from, to) => Array.from({ length: 50 }, (_, k) => from + (to - from) * k / 49);
            const many = Array.from({ length: 15 }, (_, i) => row(3 + i / 50, 2.8 + i / 50));
            const one = rangeOf([...many, row(3, 0.01)], false);
            const alike = rangeOf([row(3, 2), row(5, 4), row(1, 0.5)], false);
            const places = spread([5, 5, 5, 9], 2, 0, 10);
            return [one, alike, smoothed([1, null, 3], 1), places];
        })()""")
        one, alike, smooth, places = found
        assert one["outside"] == [15]
        assert one["low"] > 2.5
        assert (alike["outside"], alike["low"] < 0.5, alike["high"] > 5) == ([], True, True)
        assert smooth == [1, None, 3]
        gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
        assert min(gaps) >= 2
        assert max(places) <= 10

    def test_ranks_whose_reports_are_missing_are_told(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        expected = "reports are missing of rank 1 from step 99 on (1 behind)"
        browser.wait(lambda: expected in browser.text("#ranks-note"))
        assert expected in browser.text("#loss-note")

    def test_reports_reach_the_newest_point_before_a_new_phase(self, browser: Browser, server: Server) -> None:
        browser.open(f"{server.url}/?run=small")
        browser.js(CLICK, "#losses [aria-expanded]")
        newest = browser.wait(lambda: browser.text("#losses tbody tr td"))
        watch = server.watch("small")
        sources = {"sources": [0], "loss_sums": [99.0 * 16], "tokens": [16]}
        watch.add({"type": "feedback", "rank": 0, "step": watch.chronicle().starts[-1], **sources})
        browser.wait(lambda: browser.text("#losses tbody tr td") != newest)


class TestWords:
    def test_a_token_that_may_only_look_is_told_so_in_words(self, browser: Browser, tmp_path: Path) -> None:
        with Server(curriculum(tmp_path, NAMES[:3]), tmp_path / "runs") as server:
            token = server.app.state.book.create("read", "read")
            browser.driver.get(server.url)
            browser.wait(lambda: browser.text("#problem strong") == "The server wants a token.")
            assert browser.text(STATE) == "no access"
            browser.at("#problem button").click()
            browser.at("#token-input").send_keys(token)
            browser.at("#token-dialog button[value=keep]").click()
            browser.wait(lambda: browser.count("#legend button"))
            browser.js(CLICK, "#run-pause")
            browser.wait(lambda: browser.at("#confirm-dialog").is_displayed())
            browser.at("#confirm-dialog button[value=yes]").click()
            browser.wait(lambda: "This token may look, not change." in browser.text("#run-verdict"))
            assert browser.text("#run-verdict .hint").startswith("Give a token with the scope admin")


class TestAPhone:
    def test_names_stay_within_their_pills_and_the_pivot_table_within_the_screen(
        self, browser: Browser, tmp_path: Path
    ) -> None:
        names = ["web", "a-source-of-" + "very-" * 12 + "long-name", "code"]
        with Server(curriculum(tmp_path, names), tmp_path / "runs") as server:
            Trainer(server.url, "main").train(10)
            for width in (390, 320):
                browser.size(width, 844)
                browser.open(server.url)
                browser.wait(lambda: browser.count("#pivot-table tbody tr") == 3)
                assert browser.js(
                    "[...document.querySelectorAll('#legend button')].every(b => {"
                    " const [p, n] = [b, b.querySelector('.name') ?? b].map(e => e.getBoundingClientRect());"
                    " return p.right <= innerWidth && n.left >= p.left && n.right <= p.right + 0.5 })"
                )
                table = "(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#pivot-table').parentElement)"
                assert browser.js(table)
                assert browser.js("document.documentElement.scrollWidth") == width

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_the_page_of_a_walk_fits_and_is_as_dark_as_the_system(
        self, browser: Browser, server: Server, tmp_path: Path, theme: str
    ) -> None:
        page = write_page(server.settings.folder / "main" / "journal.jsonl", tmp_path / "walk.html")
        browser.prefer(color_scheme=theme)
        browser.size(390, 844)
        browser.driver.get(page.as_uri())
        browser.wait(lambda: browser.count(".js-plotly-plot .main-svg"))
        assert browser.js("document.documentElement.scrollWidth") == 390
        colour: Any = browser.js("document.querySelector('#figure-0').layout.paper_bgcolor")
        assert colour == ("#0f1216" if theme == "dark" else "#fff")
        fill = browser.js("document.querySelector('#figure-0').data[0].fillcolor")
        assert fill == ("#5d80ff" if theme == "dark" else "#134fad")
        assert browser.js("document.querySelector('#figure-0')._fullLayout._size.w") > 250  # of 390: most is plot
        assert browser.errors() == []
