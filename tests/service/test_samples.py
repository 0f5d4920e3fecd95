"""Samples of a model: what a trainer posts is kept, bounded, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client.client import MixerClient
from service.runs.samples import KEPT
from service.wire.schemas import Sample
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
