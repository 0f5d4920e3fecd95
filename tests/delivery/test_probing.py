"""Probes of a data set: the same held-out rows every time, answered in every way in which batches are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig
from andrea.train import train as train_model
from mixer.analysis.explain import explain
from mixer.analysis.export import export_tables
from mixer.analysis.plots.page import figures
from mixer.analysis.plots.picture import draw
from mixer.analysis.plots.view import make_view
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.errors import ConfigError, FeedbackError, InvalidLossError, ProbeNotOfferedError, TopologyError
from mixer.journal.file import read_journal
from mixer.journal.tables import read_tables
from mixer.replay import Replay
from mixer.replay.verify import audit
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import Prepared
from tests.support.curricula import write_sources
from tests.support.ranks import in_ranks

T = 8


def a_curriculum(folder: Path, **fields: Any) -> Curriculum:
    """Three sources and a target of short documents."""
    sources: list[dict[str, Any]] = [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(3)]
    sources.insert(1, {"name": "goal", "data_files": "s3.jsonl", "role": "target"})
    given: dict[str, Any] = {
        "total_steps": 60,
        "batch_rows": 8,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": sources,
        "holdout": 0.2,
        "probes": {"rows": 3},
        "phases": {"min_steps": 4, "max_steps": 6, "initial_random": 1},
        "policy": {"name": "water_filling", "losses": "heldout"},
        "prepared": "rows",
    }
    return Curriculum.from_data({**given, **fields}, base_dir=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources and their prepared rows."""
    folder = tmp_path_factory.mktemp("probing")
    write_sources(folder)
    prepare(a_curriculum(folder, prepared=None), folder / "rows")
    return folder


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    """Made-up losses of each token, [b, T]."""
    return 1 + batch["input_ids"].double() / 100 + batch["source_ids"].double()[:, None] / (1 + batch["step"])


def train(dataset: MixtureDataset, until: int, *, batches: Any = None, answers: bool = True) -> list[dict[str, Any]]:
    """Train up to a step; return the probes."""
    probes = []
    for batch in dataset if batches is None else batches:
        probe = dataset.probe_batch(batch if batch["step"] % 2 else None)
        assert dataset.probe_batch() is None  # once
        if probe is not None:
            probes.append(probe)
            if answers:
                assert dataset.report_probe(probe, losses_of(probe))
        dataset.report(batch, losses_of(batch))
        if batch["step"] + 1 == until:
            break
    return probes


def weights_of(dataset: MixtureDataset, until: int) -> list[list[float]]:
    return [dataset.walk.phase_at(step).weights.tolist() for step in range(until)]


def test_a_probe_has_the_same_held_out_rows_at_the_first_step_of_every_phase(folder: Path) -> None:
    run = a_curriculum(folder)
    dataset = MixtureDataset(run)
    probes = train(dataset, 60)
    assert [probe["step"] for probe in probes] == [s for s in range(60) if dataset.walk.phase_at(s).start == s]
    assert len(probes) > 8
    prepared = Prepared.open(folder / "rows")
    assert prepared.held_out("goal").num_documents == 60  # all of a target's
    first = probes[0]
    assert first["source_ids"].tolist() == [i for i in range(4) for _ in range(3)]
    for i, name in enumerate(("s0", "s1", "s2", "goal")):
        rows = {tuple(row) for shard in prepared.held_out(name).shards for row in shard.tolist()}
        mine = first["source_ids"] == i
        for inputs, labels in zip(first["input_ids"][mine].tolist(), first["labels"][mine].tolist(), strict=True):
            assert (*inputs, labels[-1]) in rows
            assert inputs[1:] == labels[:-1]
    for probe in probes:
        assert torch.equal(probe["input_ids"], first["input_ids"])
        assert probe["phase"] == dataset.walk.phase_at(probe["step"]).index
    other = train(MixtureDataset(a_curriculum(folder, seed=5)), 1)[0]
    assert not torch.equal(other["input_ids"], first["input_ids"])


def test_answers_reach_the_policy_and_the_journal_and_are_replayed(folder: Path, tmp_path: Path) -> None:
    run = a_curriculum(folder)
    dataset = MixtureDataset(run, journal=tmp_path / "run.jsonl")
    probes = train(dataset, 60)
    silent = MixtureDataset(run)
    train(silent, 60, answers=False)
    assert weights_of(dataset, 60) != weights_of(silent, 60)
    lines = [record for record in read_journal(tmp_path / "run.jsonl") if record["type"] == "probe"]
    assert [line["step"] for line in lines] == [probe["step"] for probe in probes]
    for line, probe in zip(lines, probes, strict=True):
        expected = losses_of(probe).reshape(4, 3 * T).sum(dim=1)
        assert line["loss_sums"] == pytest.approx(expected.tolist(), abs=1e-3)
        assert (line["rows"], line["tokens"]) == ([3] * 4, [3 * T] * 4)
    assert audit(tmp_path / "run.jsonl").difference is None
    (_, _, table) = export_tables(tmp_path / "run.jsonl", tmp_path / "tables", "parquet")
    rows = pq.read_table(table).to_pylist()
    assert [(row["step"], row["source"]) for row in rows] == [
        (probe["step"], name) for probe in probes for name in ("s0", "s1", "s2", "goal")
    ]
    view = make_view(read_tables(tmp_path / "run.jsonl"))
    steps, curves = view.held_out()
    assert steps.tolist() == [probe["step"] for probe in probes]
    assert [name for name, _, _ in curves] == ["s0", "s1", "s2", "goal"]
    assert curves[3][2].tolist() == [row["mean_loss"] for row in rows[3::4]]
    drawn = {trace.name for figure in figures(view) for trace in figure.data}
    assert {f"{name}, held out" for name, _, _ in curves} <= drawn
    (axes,) = [axes for axes in draw(view, "run").axes if axes.get_title().startswith("loss of each source")]
    assert "dotted: held out" in axes.get_title()
    assert len([line for line in axes.lines if line.get_linestyle() == ":"]) == 4
    answer = explain(tmp_path / "run.jsonl", probes[1]["step"])
    assert answer["probes"]["mean_losses"]["goal"] == pytest.approx(rows[3]["mean_loss"])
    assert any("Held-out losses, the newest measured at step 0: s0 " in line for line in answer["words"])
    again = MixtureDataset(run, walk=Replay(tmp_path / "run.jsonl"))
    repeated = []
    for _ in again:
        due = again.probe_batch()
        if due is not None:
            repeated.append(due["step"])
            assert not again.report_probe(due, losses_of(due))
    assert repeated == [probe["step"] for probe in probes]


@pytest.mark.parametrize("policy", ["ucb", "andrea"])
def test_a_trainer_that_answers_or_not_decides_as_one_without_probes(folder: Path, policy: str) -> None:
    found = []
    sources = [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(3)]
    for fields, answers in [({}, True), ({}, False), ({"probes": None, "sources": sources}, False)]:
        dataset = MixtureDataset(a_curriculum(folder, policy=policy, guard="off", **fields))
        train(dataset, 60, answers=answers)
        found.append(weights_of(dataset, 60))
    assert found[0] == found[1] == found[2]


def test_the_reference_trainer_answers_every_probe(folder: Path, tmp_path: Path) -> None:
    run = a_curriculum(folder, total_steps=20)
    dataset = MixtureDataset(run, journal=tmp_path / "run.jsonl")
    model = Andrea(ModelConfig(vocab_size=300, width=16, num_heads=2, num_layers=1, context=T))
    trainer = Trainer(model, TrainingConfig(warmup_steps=2), 20)
    train_model(dataset, trainer, vocab_size=300)
    lines = [record for record in read_journal(tmp_path / "run.jsonl") if record["type"] == "probe"]
    assert [line["step"] for line in lines] == [s for s in range(20) if dataset.walk.phase_at(s).start == s]
    assert all(0 < loss < 10 * 3 * T for line in lines for loss in line["loss_sums"])


def test_losses_of_a_probe_come_in_every_shape_that_report_takes(folder: Path) -> None:
    run = a_curriculum(folder)
    states = []
    for shape in ("rows", "flat", "sums", "parts"):
        dataset = MixtureDataset(run)
        next(iter(dataset))
        probe = dataset.probe_batch()
        assert probe is not None
        losses = losses_of(probe)
        if shape == "rows":
            assert dataset.report_probe(probe, losses)
        elif shape == "flat":
            assert dataset.report_probe(probe, losses.reshape(1, -1), torch.ones(12, T, dtype=torch.bool))
        elif shape == "sums":
            assert dataset.report_probe(probe, losses.sum(dim=1), num_tokens=torch.full((12,), T))
        else:
            halves = [{**probe, "source_ids": probe["source_ids"][rows]} for rows in (slice(0, 5), slice(5, 12))]
            for half in halves:
                half["labels"] = probe["labels"][:5] if len(half["source_ids"]) == 5 else probe["labels"][5:]
            assert not dataset.report_probe(halves[0], losses[:5])
            assert dataset.report_probe(halves[1], losses[5:])
        assert not dataset.report_probe(probe, losses)  # known
        states.append(dataset.walk.state_dict()["probes"])
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("at", [1, 17, 18, 19, 20, 40])
def test_a_run_that_was_restored_goes_on_bit_for_bit(folder: Path, at: int) -> None:
    run = a_curriculum(folder)
    whole = MixtureDataset(run)
    train(whole, at)
    state = copy.deepcopy(whole.state_dict())
    rest = train(whole, 60)
    resumed = MixtureDataset(run)
    resumed.load_state_dict(state)
    assert [probe["step"] for probe in train(resumed, 60)] == [probe["step"] for probe in rest]
    assert resumed.walk.state_dict()["policy"] == whole.walk.state_dict()["policy"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_compose_batches_and_the_trainer_still_gets_its_probes(folder: Path, num_workers: int) -> None:
    run = a_curriculum(folder, feedback_lag=8)
    plain, dataset = MixtureDataset(run), MixtureDataset(run)
    expected = train(plain, 60)
    found = train(dataset, 60, batches=DataLoader(dataset, batch_size=None, num_workers=num_workers))
    assert [probe["step"] for probe in found] == [probe["step"] for probe in expected]
    assert weights_of(dataset, 60) == weights_of(plain, 60)


def test_two_ranks_share_a_probe_and_decide_as_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))  # the ranks meet beside it
    dataset = MixtureDataset(a_curriculum(folder))
    whole = train(dataset, 30)[0]["input_ids"].tolist()

    def job(rank: int, world_size: int) -> Any:
        mine = MixtureDataset(a_curriculum(folder), rank=rank, world_size=world_size)
        rows = train(mine, 30)[0]["input_ids"].tolist()
        return weights_of(mine, 30), rows, mine.walk.state_dict()["policy"]

    found = in_ranks(2, job)
    for rank, (weights, rows, policy) in enumerate(found):
        assert rows == whole[rank::2]
        assert weights == weights_of(dataset, 30)
        assert policy == dataset.walk.state_dict()["policy"]


def test_what_is_no_answer_to_a_probe_is_refused(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    probe = dataset.probe_batch()
    assert probe is not None
    losses = losses_of(probe)
    for wrong, error, message in [
        ({**probe, "step": 1}, ProbeNotOfferedError, "step 1 offers no probe"),
        (
            {**probe, "source_ids": probe["source_ids"] + 1},
            FeedbackError,
            "source_ids are from 1 to 4, but these are losses of 4",
        ),
        ({**probe, "source_ids": probe["source_ids"] * 0}, FeedbackError, "3 rows of s0 here, but losses of 12"),
        ({"input_ids": probe["input_ids"]}, FeedbackError, "needs the batch as it was yielded"),
    ]:
        with pytest.raises(error, match=message):
            dataset.report_probe(wrong, losses)
    with pytest.raises(InvalidLossError, match="nan"):
        dataset.report_probe(probe, losses * float("nan"))
    with pytest.raises(FeedbackError, match="shape"):
        dataset.report_probe(probe, losses[:3])
    assert dataset.report_probe(probe, losses)
    silent = MixtureDataset(
        a_curriculum(folder, probes=None, sources=a_curriculum(folder).model_dump()["sources"], policy="ucb")
    )
    next(iter(silent))
    assert silent.probe_batch() is None
    with pytest.raises(ProbeNotOfferedError, match="the curriculum asks for none"):
        silent.report_probe(probe, losses)
    with pytest.raises(FeedbackError, match="source_ids are from 0 to 3, but these are losses of 3"):
        dataset.report(probe, losses)  # a probe is no batch
    dataset.report(batch, losses_of(batch))


def test_rows_that_cannot_be_probed_are_refused_before_the_first_batch(folder: Path) -> None:
    with pytest.raises(ConfigError, match="prepared sources alone; run `mixer prepare`"):
        MixtureDataset(a_curriculum(folder, prepared=None))
    with pytest.raises(TopologyError, match="4 held-out rows in all are fewer than the 8 ranks"):
        MixtureDataset(a_curriculum(folder, probes={"rows": 1}), rank=0, world_size=8)


def test_a_goal_that_can_never_be_measured_is_refused_and_sources_that_never_are_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_sources(tmp_path)
    (tmp_path / "s1.jsonl").write_text('{"text": "one document that is not held out"}\n' * 3, encoding="utf-8")
    prepare(a_curriculum(tmp_path, prepared=None), tmp_path / "rows")
    aimed = {"name": "linear", "losses": "heldout"}
    with pytest.raises(ConfigError, match=r"policy linear: not one row of s1 is held out.*raise holdout \(0.2\)"):
        MixtureDataset(a_curriculum(tmp_path, policy={**aimed, "targets": {"s1": 1.0, "s0": 0.0}}))
    assert not caplog.records
    MixtureDataset(a_curriculum(tmp_path, policy={**aimed, "targets": {"s1": 1.0, "goal": 1.0}}))
    assert [record.getMessage() for record in caplog.records] == [
        "probes: no document of s1 is held out with holdout 0.2, so its held-out loss is never measured"
    ]


def test_more_rows_than_are_held_out_means_all_of_them(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder, probes={"rows": 100}))
    next(iter(dataset))
    probe = dataset.probe_batch()
    assert probe is not None
    prepared = Prepared.open(folder / "rows")
    sizes = [min(100, prepared.held_out(name).num_rows) for name in ("s0", "s1", "s2", "goal")]
    assert torch.bincount(probe["source_ids"]).tolist() == sizes
    assert min(sizes) < 100
