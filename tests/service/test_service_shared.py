"""Runs of one service over the same streams: texts are encoded once, and each run's batches are those it has alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.config.curriculum import Curriculum
from mixer.sources.shared import SharedGroups
from mixer.sources.tokenizer import TextTokenizer
from service.client.client import MixerClient
from service.runs.events import Events
from service.runs.registry import RunRegistry
from service.settings import Settings
from service.storage.store import Store
from tests.support.engines import body
from tests.support.serving import STEPS, Served, post, write_run

MARK = "only here"  # texts of other tests may be encoded in the background
COUNTS = """
import atexit, json, sys
from collections import Counter
from mixer.sources.tokenizer import TextTokenizer
counts, encode = Counter(), TextTokenizer.encode_joined
def counted(self, texts):
    counts.update(texts)
    return encode(self, texts)
TextTokenizer.encode_joined = counted
atexit.register(lambda: open(sys.argv[sys.argv.index("--folder") + 1] + "/counts", "w").write(json.dumps(counts)))
"""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text of a test here was encoded."""
    counts: Counter[str] = Counter()
    encode = TextTokenizer.encode_joined

    def counted(tokenizer: TextTokenizer, texts: Any) -> Any:
        counts.update(text for text in texts if text.startswith(MARK))
        return encode(tokenizer, texts)

    monkeypatch.setattr(TextTokenizer, "encode_joined", counted)
    return counts


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    config = write_run(tmp_path, policy={"name": "random"})
    for k in range(4):
        texts = [f"{MARK} {k} {n} " + "words of a kind " * (1 + n * k % 7) for n in range(400)]
        (tmp_path / f"s{k}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return config


def delivered(config: Path, folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Give what a run, another with another seed, and a fork deliver, taking turns at being ahead; then one is archived."""
    settings = Settings(folder=folder, feedback_wait_s=0, ahead_steps=4, place_steps=4)
    store = Store.open(settings.database_url)
    runs = RunRegistry(settings, store, Events())
    try:
        runs.open_all(Curriculum.from_yaml(config), "run")
        runs.create("other", {**runs.record("run").curriculum, "seed": 7})
        for start in range(0, 30, 10):
            for name in ("run", "other") if start % 20 else ("other", "run"):
                for step in range(start, start + 10):
                    yield name, step, bytes(body(runs.engine(name), step, 0, 1).data)
        begin = runs.engine("run").decisions.records[1]["start"]
        runs.fork("run", "fork", begin, {"policy": {"name": "static", "weights": {"s0": 0.5, "s2": 0.5}}})
        for step in range(begin, begin + 20):
            yield "fork", step, bytes(body(runs.engine("fork"), step, 0, 1).data)
        runs.set_status("other", "archived")
        for name in ("run", "fork"):
            for step in range(begin + 20, begin + 40):
                yield name, step, bytes(body(runs.engine(name), step, 0, 1).data)
        assert runs._sharing.streams.num_bytes > 0 or not runs._sharing.streams._sources
    finally:
        runs.close()
        store.close()
    assert runs._sharing.streams._groups == {}


def test_runs_and_forks_encode_each_text_once_and_deliver_what_each_delivers_alone(
    config: Path, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = list(delivered(config, tmp_path / "together"))
    assert len(counts) > 100
    assert set(counts.values()) == {1}
    counts.clear()
    monkeypatch.setattr(SharedGroups, "join", lambda groups: None)
    assert list(delivered(config, tmp_path / "apart")) == together
    assert max(counts.values()) >= 3


@pytest.mark.slow
def test_runs_made_over_http_encode_each_text_once(config: Path, tmp_path: Path) -> None:
    given: list[list[bytes]] = []
    for names in (["run", "other", "fork"], ["run"]):
        folder = tmp_path / "-".join(names)
        with Served(config, folder, prelude=COUNTS) as server, MixerClient(server.url) as run:
            if len(names) > 1:
                made = post(f"{server.url}/runs", json={"name": "other", "curriculum": run.config()["curriculum"]})
                assert made.status_code == 201, made.text
                run.fork("run", "fork")
            given += [[] for _ in names]
            for step in range(STEPS):
                for name, rows in zip(names, given[-len(names) :], strict=True):
                    with MixerClient(server.url, run=name) as client:
                        rows.append(client.batch(step).rows.tobytes())
            assert server.terminate() == 0
        counts = json.loads((folder / "counts").read_text())
        assert len(counts) > 100
        assert set(counts.values()) == {1}
    assert all(rows == given[-1] for rows in given)
