"""Samples of a model: what a trainer posts is kept, bounded, and given back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client.client import MixerClient
from service.runs.samples import KEPT
from service.wire.schemas import Sample
from tests.support.browser import Browser, in_browser
from tests.support.dashboards import NAMES, Server, curriculum
from tests.support.serving import post


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("samples")
    with Server(curriculum(folder, NAMES[:3]), folder / "runs") as server:
        yield server


def sample(step: int, text: str = "the cat sat", **fields: Any) -> dict[str, Any]:
    points = {"score": 61.5, "bigrams": 20.0, "trigrams": 15.5, "words": 18.0, "characters": 8.0}
    return {"step": step, "prompt": "> ", "text": text, **points, "compression": 2.1, "low_in_row": 0, **fields}


def steps(server: Server, limit: int = 100) -> list[int]:
    return [found["step"] for found in server.get(f"/samples?limit={limit}").json()["samples"]]


def test_the_newest_come_first_of_one_step_the_newest_counts_and_the_oldest_of_many_go(tmp_path: Path) -> None:
    plan = curriculum(tmp_path, NAMES[:3])
    with Server(plan, tmp_path / "runs") as server, MixerClient(server.url) as client:
        assert steps(server) == []
        for step in range(KEPT + 5):
            client.post_sample(Sample(**sample(step)))
        assert steps(server) == list(range(KEPT + 4, 4, -1))
        client.post_sample(Sample(**sample(50, "another")))
        client.post_sample(Sample(**sample(1)))  # older than all that are kept
        kept = steps(server)
        assert kept == list(range(KEPT + 4, 4, -1))
        assert {found.step: found.text for found in client.samples(100)}[50] == "another"
    with Server(plan, tmp_path / "runs") as server:
        assert steps(server) == kept
        assert steps(server, 3) == kept[:3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "x" * 32_769},
        {"score": 101},
        {"score": float("1e999")},
        {"step": -1},
        {"compression": -1},
        {"unknown": 1},
        {"text": None},
    ],
)
def test_what_cannot_be_a_sample_is_refused(server: Server, wrong: dict[str, Any]) -> None:
    body = str(sample(1) | wrong).replace("'", '"').replace("None", "null").replace("inf", "1e999")
    answer = post(server.url + "/samples", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "request"


def test_posting_needs_the_scope_train_and_reading_read(tmp_path: Path) -> None:
    with Server(curriculum(tmp_path, NAMES[:3]), tmp_path / "runs") as server:
        tokens = {scope: server.app.state.book.create(scope, scope) for scope in ("read", "train")}
        headers = {
            scope: {"authorization": f"Bearer {getattr(token, 'secret', token)}"} for scope, token in tokens.items()
        }
        assert post(server.url + "/samples", json=sample(1)).status_code == 401
        assert post(server.url + "/samples", json=sample(1), headers=headers["read"]).status_code == 403
        assert post(server.url + "/samples", json=sample(1), headers=headers["train"]).status_code == 200
        assert server.get("/samples", **headers["read"]).json()["samples"][0]["step"] == 1
        assert server.get("/samples").status_code == 401


class TestInABrowser:
    pytestmark = in_browser

    @pytest.fixture
    def browser(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
        with contextlib.closing(Browser(tmp_path_factory.mktemp("chromium") / "profile")) as browser:
            yield browser

    def test_samples_come_without_a_reload_are_text_and_are_chosen_by_keyboard(
        self, browser: Browser, server: Server
    ) -> None:
        browser.open(server.url)
        browser.wait(lambda: browser.text("#connection-text") == "Live")
        assert browser.text("#sample-note") == "No sample has come yet."
        with MixerClient(server.url) as client:
            client.post_sample(Sample(**sample(100, "the <b>first</b>")))
            browser.wait(lambda: "the <b>first</b>" in browser.text("#sample-text"))
            client.post_sample(Sample(**sample(200, "region region", score=12.0, low_in_row=2)))
        browser.wait(lambda: browser.text("#sample-text") == "> region region")
        assert browser.count("#sample-text b") == 0
        assert "after step 200, has a coherence of 12.0 of 100. Low in a row: 2." in browser.text("#sample-note")
        assert browser.count("#sample-table button:not([tabindex='-1'])") == 1
        browser.js("document.querySelector('#sample-200').focus()")
        browser.driver.switch_to.active_element.send_keys("\ue015")  # arrow down
        browser.driver.switch_to.active_element.send_keys("\ue007")  # enter
        browser.wait(lambda: browser.text("#sample-text") == "> the <b>first</b>")
        assert browser.at("#sample-100").get_attribute("aria-pressed") == "true"
        assert browser.js("document.activeElement.id") == "sample-100"
        assert browser.errors() == []
