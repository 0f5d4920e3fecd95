"""Probes over HTTP: the rows and decisions of a data set of one process, whoever is killed in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.errors import FeedbackError, ProbeNotOfferedError
from mixer.replay.verify import audit
from mixer.sources.prepared.prepare import prepare
from service.client import MixerClient, RemoteMixtureDataset
from tests.support.serving import STEPS, Served, get, post, write_run

SOURCES: list[dict[str, Any]] = [
    *({"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(3)),
    {"name": "goal", "data_files": "s3.jsonl", "role": "target"},
]
PROBED: dict[str, Any] = {
    "sources": SOURCES,
    "caps": {},
    "holdout": 0.2,
    "probes": {"rows": 3},
    "policy": {"name": "water_filling", "losses": "heldout"},
    "prepared": "rows",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run with prepared rows."""
    folder = tmp_path_factory.mktemp("probes")
    path = write_run(folder, **PROBED)
    prepare(Curriculum.from_yaml(path), folder / "rows")
    return path


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    """Made-up losses of each token, [b, T]."""
    return 1 + batch["input_ids"].double() / 128 + batch["source_ids"].double()[:, None] / (1 + batch["step"])


def trained(dataset: Any, until: int = STEPS) -> Iterator[dict[str, Any]]:
    """Train, and yield each probe before it is answered."""
    for batch in dataset:
        probe = dataset.probe_batch()
        if probe is not None:
            yield probe
            assert dataset.report_probe(probe, losses_of(probe))
            assert not dataset.report_probe(probe, losses_of(probe))
        dataset.report(batch, losses_of(batch))
        if batch["step"] + 1 == until:
            return


def test_a_service_gives_the_probes_of_a_process_and_decides_alike_though_it_is_killed(
    config: Path, tmp_path: Path
) -> None:
    local = MixtureDataset(Curriculum.from_yaml(config))
    expected = list(trained(local))
    assert len(expected) > 8
    with Served(config, tmp_path / "served") as server:
        remote = RemoteMixtureDataset(server.url, 0, 1)
        found = []
        for probe in trained(remote):
            found.append(probe)
            if len(found) in (3, 6):  # between a probe and its answer
                server.kill()
                server.start()
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("input_ids", "labels", "source_ids"))
            assert (one["step"], one["phase"]) == (other["step"], other["phase"])
        phases = remote.walk._client.phases(0, 100).phases
        ours = [local.walk.phase_at(phase["start"]) for phase in phases if phase["start"] < STEPS]
        assert [phase["weights"] for phase in phases][: len(ours)] == [phase.weights.tolist() for phase in ours]
        assert server.terminate() == 0
    assert audit(server.journal).difference is None


def test_ranks_share_a_probe_and_what_is_no_answer_is_refused(config: Path, tmp_path: Path) -> None:
    with Served(config, tmp_path / "served") as server:
        client = MixerClient(server.url)
        whole, parts = client.probe(0), [client.probe(0, rank, 2) for rank in (0, 1)]
        for rank in (0, 1):
            assert parts[rank].rows.tolist() == whole.rows[rank::2].tolist()
        again = [get(f"{server.url}/probes/0?rank=1&world_size=2") for _ in range(2)]
        assert again[0].content == again[1].content
        with pytest.raises(ProbeNotOfferedError, match="step 1 offers no probe: it lies in phase 0"):
            client.probe(1)
        answer = get(f"{server.url}/probes/1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "probe-not-offered")
        report = {"rows": 2, "tokens": 32, "loss_sum": 64.0}
        for body, status, code in [
            ({"step": 0, "rank": 0, "world_size": 2, "sources": {"s0": {**report, "rows": 3}}}, 422, "feedback"),
            ({"step": 0, "rank": 0, "sources": {"nobody": report}}, 422, "feedback"),
            ({"step": 0, "rank": 0, "sources": {"s0": {**report, "loss_sum": 1e9}}}, 422, "invalid-loss"),
            ({"step": 1, "rank": 0, "sources": {"s0": report}}, 404, "probe-not-offered"),
            (
                {"step": 0, "rank": 0, "world_size": 2, "sources": {"goal": {**report, "rows": 1, "tokens": 16}}},
                200,
                None,
            ),
        ]:
            taken = post(f"{server.url}/feedback/probes", json=body)
            assert taken.status_code == status, taken.text
            if code is not None:
                assert taken.json()["error"]["code"] == code
        first = RemoteMixtureDataset(server.url, 1, 2)
        next(iter(first))
        probe = first.probe_batch()
        assert probe is not None
        with pytest.raises(FeedbackError, match="source_ids"):
            first.report_probe({**probe, "source_ids": probe["source_ids"] + 4}, losses_of(probe))


def test_a_run_that_cannot_be_probed_does_not_start(config: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, **{**PROBED, "prepared": None})
    server = Served(path, tmp_path / "served")
    server.start(wait=False)
    assert server.process is not None
    assert server.process.wait(timeout=100) != 0
    assert "run `mixer prepare`" in server.log()
