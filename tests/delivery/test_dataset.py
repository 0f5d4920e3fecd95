"""Delivery: batches of the right shape in the right mixture, exact on resume, honest about what it cannot do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery.batch import RowBatch
from mixer.delivery.tensors import tensors_of
from mixer.errors import (
    ConfigError,
    EmptySourceError,
    FeedbackError,
    InvalidLossError,
    SourceExhaustedError,
    SourceUnavailableError,
    StateMismatchError,
)
from mixer.journal.file import read_journal
from mixer.losses import SourceLosses
from mixer.replay.diff import compare
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.sampling.draws import phase_counts, plan_rows
from mixer.sources.prepared.prepare import prepare
from mixer.testing import assert_resumes_from_every_step
from mixer.walk.walk import Walk
from tests.support.curricula import WORDS, write_sources
from tests.support.outages import Outage

T, B = 16, 8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    write_sources(tmp_path)
    return tmp_path


def a_curriculum(folder: Path, **changes: Any) -> Curriculum:
    fields: dict[str, Any] = {
        "seed": 3,
        "total_steps": 70,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)],
        "floors": {"s0": 0.2},
        "caps": {"s3": 0.25},
        "curriculum_warmup_steps": 21,
        "curriculum_warmup_sources": ["s0", "s1"],
        "pivots": [{"name": "polish", "at_step": 49, "exclude": ["s2"]}],
        "phases": {"initial_random": 2},
    }
    return Curriculum(**(fields | changes))


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    """Made-up losses that depend on the batch alone: enough to move the walk."""
    per_row = 2.0 + batch["source_ids"] / (1.0 + batch["step"])
    return per_row[:, None].expand(-1, T).to(torch.float32)


class Reporting:
    """A data set with its trainer: every batch is reported before the next is asked for."""

    def __init__(self, dataset: MixtureDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset:
            self.dataset.report(batch, losses_of(batch))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state)


def test_a_batch_is_tensors_with_labels_one_ahead(folder: Path) -> None:
    batch = next(iter(MixtureDataset(a_curriculum(folder))))
    assert batch["input_ids"].shape == batch["labels"].shape == (B, T)
    assert batch["input_ids"].dtype == batch["labels"].dtype == batch["source_ids"].dtype == torch.int64
    assert (batch["labels"][:, :-1] == batch["input_ids"][:, 1:]).all()
    assert (batch["step"], batch["phase"]) == (0, 0)


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_compact_batches_have_the_same_ids_in_the_smallest_type_that_holds_the_vocabulary(
    folder: Path, num_workers: int, is_prepared: bool
) -> None:
    curriculum = a_curriculum(folder, feedback_lag=10)
    if is_prepared:
        prepare(curriculum, folder / "out")
        curriculum = a_curriculum(folder, feedback_lag=10, prepared=str(folder / "out"))
    loaders = [
        DataLoader(MixtureDataset(curriculum, compact=compact), batch_size=None, num_workers=num_workers)
        for compact in (False, True)
    ]
    for wide, compact in itertools.islice(zip(*loaders, strict=True), 30):
        assert list(compact) == list(wide)
        for key in ("input_ids", "labels"):
            assert compact[key].dtype == torch.uint16
            assert compact[key].is_contiguous()
            assert torch.equal(compact[key].long(), wide[key])
        assert torch.equal(compact["source_ids"], wide["source_ids"])
        assert (compact["step"], compact["phase"]) == (wide["step"], wide["phase"])


def test_rows_of_compact_batches_collate_to_them_again(folder: Path) -> None:
    rows = MixtureDataset(a_curriculum(folder), batches=False, compact=True)
    batches = MixtureDataset(a_curriculum(folder), compact=True)
    for collated, batch in zip(DataLoader(rows, batch_size=B), batches, strict=True):
        assert collated["labels"].dtype == torch.uint16
        assert torch.equal(collated["labels"].long(), batch["labels"].long())


def test_the_run_has_total_steps_and_the_draws_of_its_phases(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    dataset = MixtureDataset(curriculum)
    steps = []
    for batch in Reporting(dataset):
        phase = dataset.walk.phase_at(batch["step"])
        counts, _ = phase_counts(phase, seed=curriculum.seed, method="systematic", batch_rows=B)
        planned, _ = plan_rows(counts, phase.drawn, seed=curriculum.seed, start=phase.start)
        expected = planned[batch["step"] - phase.start]
        assert (batch["source_ids"].numpy() == expected).all()
        steps.append(batch["step"])
    assert steps == list(range(70))


def test_every_row_is_text_of_the_source_it_says(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    for batch in Reporting(dataset):
        for row, source in zip(batch["input_ids"], batch["source_ids"].tolist(), strict=True):
            text = dataset.tokenizer.decode(row.numpy())
            others = {word for k, words in enumerate(WORDS) if k != source for word in words.split()}
            assert not others & set(text.split()[1:-1])


def test_the_rows_of_a_source_come_in_order_without_gaps(folder: Path) -> None:
    seen: dict[int, list[int]] = {}
    for batch in Reporting(MixtureDataset(a_curriculum(folder), provenance=True)):
        for source, number in zip(batch["source_ids"].tolist(), batch["row_numbers"].tolist(), strict=True):
            seen.setdefault(source, []).append(number)
    for numbers in seen.values():
        assert sorted(numbers) == list(range(len(numbers)))


def test_warmup_and_pivot_reach_the_batches_at_exactly_their_steps(folder: Path) -> None:
    for batch in Reporting(MixtureDataset(a_curriculum(folder))):
        drawn = set(batch["source_ids"].tolist())
        if batch["step"] < 21:
            assert drawn <= {0, 1}
        if batch["step"] >= 49:
            assert 2 not in drawn


def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    tokenizer = MixtureDataset(curriculum).tokenizer
    assert_resumes_from_every_step(lambda: Reporting(MixtureDataset(curriculum, tokenizer=tokenizer)), num_steps=60)


def test_rows_mode_gives_the_rows_of_the_batches_and_resumes_in_mid_batch(folder: Path) -> None:
    curriculum = a_curriculum(folder, total_steps=5)
    whole = torch.cat([batch["input_ids"] for batch in MixtureDataset(curriculum)])
    rows = MixtureDataset(curriculum, batches=False)
    taken = [row["input_ids"] for _, row in zip(range(13), rows, strict=False)]
    state = json.loads(json.dumps(rows.state_dict()))
    restored = MixtureDataset(curriculum, batches=False)
    restored.load_state_dict(state)
    again = [row["input_ids"] for row in restored]
    assert (torch.stack(taken + again) == whole).all()


def test_a_data_loader_without_workers_delivers_the_same_batches(folder: Path) -> None:
    curriculum = a_curriculum(folder, total_steps=9)
    plain = [batch["input_ids"] for batch in MixtureDataset(curriculum)]
    loader = DataLoader(MixtureDataset(curriculum), batch_size=None, num_workers=0)
    assert all((a == b["input_ids"]).all() for a, b in zip(plain, loader, strict=True))


def test_reports_reach_the_walk_by_source(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    assert dataset.report(batch, losses_of(batch)) is True
    assert dataset.report(batch, losses_of(batch)) is False
    (pending,) = dataset.walk._now.inbox.ready(1)
    counts = np.bincount(batch["source_ids"].numpy(), minlength=4)
    assert pending.losses.rows.tolist() == counts.tolist()
    assert pending.losses.loss_sums[0] == pytest.approx(2.0 * T * counts[0])


def test_losses_of_the_wrong_shape_are_refused(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    with pytest.raises(FeedbackError, match=r"shape \[8\], but the batch has 8 rows of 16 tokens"):
        dataset.report(batch, torch.zeros(B))
    with pytest.raises(FeedbackError, match="as it was yielded"):
        dataset.report({"input_ids": batch["input_ids"]}, torch.zeros(B, T))


def test_masked_tokens_do_not_count(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    losses = losses_of(batch).clone()
    mask = torch.ones_like(losses, dtype=torch.bool)
    mask[:, 10:] = False
    losses[:, 10:] = torch.nan
    dataset.report(batch, losses, mask)
    assert dataset.walk._now.inbox.ready(1)[0].losses.tokens[0] % 10 == 0


def test_labels_of_minus_100_do_not_count_as_losses_of_0(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    batch["labels"][:, 10:] = -100
    logits = torch.randn(B, T, 300)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    dataset.report(batch, losses)
    (arrived,) = dataset.walk._now.inbox.ready(1)
    assert arrived.losses.tokens.sum() == B * 10
    assert arrived.losses.loss_sums.sum() == pytest.approx(float(losses.sum()), abs=1e-3)


def test_a_loss_that_cannot_be_names_its_source_and_row_and_teaches_nothing(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    losses = losses_of(batch).clone()
    losses[5, 3] = torch.nan
    source = dataset.curriculum.names[batch["source_ids"][5]]
    with pytest.raises(
        InvalidLossError, match=rf"step 0: loss of {source} is nan; .*\(row 5 of this rank's, from {source}: nan"
    ):
        dataset.report(batch, losses)
    assert dataset.report(batch, losses_of(batch)) is True


def test_sums_by_source_teach_what_the_losses_of_the_batch_do(folder: Path) -> None:
    by_token, by_sums = MixtureDataset(a_curriculum(folder)), MixtureDataset(a_curriculum(folder))
    for batch, _ in zip(by_token, by_sums, strict=True):
        by_token.report(batch, losses_of(batch))
        rows = np.bincount(batch["source_ids"].numpy(), minlength=4)
        means = 2.0 + np.arange(4) / (1.0 + batch["step"])
        sums = SourceLosses(rows=rows, tokens=rows * T, loss_sums=rows * T * means, square_sums=rows * means**2)
        assert by_sums.report_sums(batch["step"], sums) is True
        assert by_sums.report_sums(batch["step"], sums) is False
        one, other = (dataset.walk.phase_at(batch["step"]).weights for dataset in (by_token, by_sums))
        np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(FeedbackError, match=r"step 3: rows have shape \(3,\), but there are 4 sources"):
        by_sums.report_sums(3, SourceLosses(rows=rows[:3], tokens=rows[:3], loss_sums=np.zeros(3)))


def test_a_source_that_stops_ends_the_run_and_one_that_errs_says_so(folder: Path) -> None:
    def with_short(policy: str) -> Curriculum:
        sources = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)]
        sources[1]["on_exhausted"] = policy
        return a_curriculum(folder, sources=sources, total_steps=5000)

    assert len(list(MixtureDataset(with_short("stop")))) < 5000
    with pytest.raises(SourceExhaustedError, match="s1 ran dry"):
        list(MixtureDataset(with_short("error")))


def test_a_source_read_through_tells_the_walk_its_size(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder, total_steps=400))
    for batch in Reporting(dataset):
        del batch
    progress = dataset.progress()
    assert progress["s0"].unique_tokens is not None
    known = dict(zip(dataset.curriculum.names, dataset.walk.state_dict()["unique_tokens"], strict=True))
    assert known["s0"] == progress["s0"].unique_tokens


def test_hugging_face_objects_can_be_passed_as_sources(folder: Path) -> None:
    texts = {"text": ["passed from python, word for word"] * 50}
    stream = datasets.Dataset.from_dict(texts).to_iterable_dataset()
    curriculum = a_curriculum(
        folder,
        sources=[{"name": "mine"}, {"name": "s1", "data_files": str(folder / "s1.jsonl")}],
        floors={"mine": 0.5}, caps={}, pivots=[], curriculum_warmup_steps=0, curriculum_warmup_sources=[],
    )  # fmt: skip
    dataset = MixtureDataset(curriculum, streams={"mine": stream})
    batch = next(iter(dataset))
    mine = batch["input_ids"][batch["source_ids"] == 0][0]
    assert "python" in dataset.tokenizer.decode(mine.numpy()) or "word" in dataset.tokenizer.decode(mine.numpy())


def test_an_empty_source_is_refused_by_name(folder: Path) -> None:
    (folder / "s1.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(EmptySourceError, match="s1"):
        list(MixtureDataset(a_curriculum(folder)))


def test_the_state_of_another_run_is_refused(folder: Path) -> None:
    state = MixtureDataset(a_curriculum(folder)).state_dict()
    with pytest.raises(StateMismatchError, match="belongs to curriculum"):
        MixtureDataset(a_curriculum(folder, seed=4)).load_state_dict(state)


def test_walk_and_journal_together_are_refused(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    with pytest.raises(ConfigError, match="either walk or journal"):
        MixtureDataset(curriculum, walk=Walk(curriculum), journal=folder / "journal.jsonl")


@pytest.mark.parametrize(
    "fields", [{"floors": {"s2": 0.5}, "pivots": [], "caps": {}, "policy": "andrea"}, {}], ids=["other", "same config"]
)
def test_a_fork_trains_on_from_its_parents_checkpoint_with_the_rows_not_drawn_yet(
    folder: Path, fields: dict[str, Any]
) -> None:
    run, out = a_curriculum(folder), folder / "fork.jsonl"
    dataset = MixtureDataset(run, journal=folder / "walk.jsonl")
    states, drawn = [dataset.state_dict()], [dict.fromkeys(run.names, 0)]
    for batch in dataset:
        dataset.report(batch, losses_of(batch))
        states.append(dataset.state_dict())
        drawn.append({name: progress.rows for name, progress in dataset.progress().items()})
    new = a_curriculum(folder, **fields)
    step = Replay(folder / "walk.jsonl").phase_at(30).end
    fork(folder / "walk.jsonl", step, new, out)
    forked = MixtureDataset(new, journal=out, provenance=True)
    with pytest.raises(StateMismatchError, match=f"forked from at step {step}; load its state of step {step}, or fork"):
        forked.load_state_dict(states[step - 1])
    forked.load_state_dict(states[step])
    seen = drawn[step]
    for batch in forked:
        for k, name in enumerate(run.names):
            numbers = batch["row_numbers"][batch["source_ids"] == k].tolist()
            assert sorted(numbers) == list(range(seen[name], seen[name] + len(numbers)))
            seen[name] += len(numbers)
        assert batch["step"] >= step
        forked.report(batch, losses_of(batch))
    assert forked.step == run.total_steps
    forked.load_state_dict(forked.state_dict())  # its own states are as any
    if not fields:
        assert compare(folder / "walk.jsonl", out)["is_same"]
    again = MixtureDataset(new, walk=Replay(out))  # the shared history, then the fork
    assert [batch["step"] for batch in again] == list(range(run.total_steps))
    assert audit(out).difference is None


def test_the_journal_says_which_files_were_read_and_a_comparison_names_those_that_were_others(folder: Path) -> None:
    run = a_curriculum(folder, curriculum_warmup_steps=0, curriculum_warmup_sources=[])
    headers = []
    for i, lines in enumerate(["", '{"text": "one more"}\n']):
        with (folder / "s1.jsonl").open("a") as file:
            file.write(lines)
        MixtureDataset(run, journal=folder / f"{i}.jsonl").walk.close_journal()
        headers.append(next(read_journal(folder / f"{i}.jsonl")))
    first, second = (header["sources"] for header in headers)
    assert set(first) == set(run.names)
    assert all(text.startswith("files ") and len(text) == 22 for text in first.values())
    assert {name for name in run.names if first[name] != second[name]} == {"s1"}
    found = compare(folder / "0.jsonl", folder / "1.jsonl")
    assert found["data"] == [{"source": "s1", "a": first["s1"], "b": second["s1"]}]


def test_a_source_out_of_reach_is_suspended_and_taken_back_without_losing_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)]
    sources[2]["on_failure"] = "suspend"
    curriculum = a_curriculum(
        folder,
        sources=sources,
        total_steps=300,
        pivots=[],
        floors={"s0": 0.2, "s2": 0.1},
        policy="static",
        retries={"attempts": 1},
    )
    dataset = MixtureDataset(curriculum, provenance=True, journal=folder / "suspended.jsonl")
    network = Outage(dataset._main.reader, 2, monkeypatch)
    seen: dict[int, list[int]] = {}
    drawn: list[set[int]] = []
    for batch in Reporting(dataset):
        assert len(batch["source_ids"]) == B
        for source, number in zip(batch["source_ids"].tolist(), batch["row_numbers"].tolist(), strict=True):
            seen.setdefault(source, []).append(number)
        drawn.append(set(batch["source_ids"].tolist()))
        network.is_down = 99 < batch["step"] < 180
    for numbers in seen.values():
        assert sorted(numbers) == list(range(len(numbers)))  # also of those that were read for the batch that failed
    pivots = [line for line in read_journal(folder / "suspended.jsonl") if line["type"] == "pivot"]
    out, back = (pivot["at_step"] for pivot in pivots)
    assert 99 < out < 140
    assert 180 < back < 240
    assert any(2 in sources for sources in drawn[out - 5 : out])
    assert not any(2 in sources for sources in drawn[out:back])
    assert any(2 in sources for sources in drawn[back : back + 5])
    assert [pivot["name"].split("-")[0] for pivot in pivots] == ["without", "with"]
    assert pivots[0]["floors"] == {"s0": 0.2}
    assert pivots[1]["floors"] == {"s0": 0.2, "s2": 0.1}


def test_a_source_that_is_not_to_be_suspended_stops_the_run_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum = a_curriculum(folder, pivots=[], policy="static", retries={"attempts": 1})
    dataset = MixtureDataset(curriculum)
    Outage(dataset._main.reader, 2, monkeypatch).is_down = True
    batches = []
    with pytest.raises(SourceUnavailableError, match="source s2: cannot be reached: gone; gave up"):
        batches += [batch["input_ids"] for batch in iter(dataset)]
    assert dataset.step >= 21
    before = dataset.step
    state = json.loads(json.dumps(dataset.state_dict()))
    restored = MixtureDataset(curriculum)
    restored.load_state_dict(state)
    whole = [batch["input_ids"] for batch in MixtureDataset(curriculum)]
    assert torch.equal(torch.cat(whole[before:]), torch.cat([batch["input_ids"] for batch in restored]))


def test_the_tensors_of_large_batches_are_nobody_elses_while_they_are_held_and_their_memory_is_used_again() -> None:
    rng, held, expected = np.random.default_rng(0), [], []
    for step in range(12):
        rows = rng.integers(0, 60_000, (64, 1025), dtype=np.uint16)
        batch = tensors_of(RowBatch(step, 0, rows, np.zeros(64, int), np.arange(64)).split(), provenance=False)
        batch["labels"][:, step] = -100
        held.append(batch)
        expected.append((rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)))
        expected[-1][1][:, step] = -100
    for batch, (input_ids, labels) in zip(held, expected, strict=True):
        np.testing.assert_array_equal(batch["input_ids"].numpy(), input_ids)
        np.testing.assert_array_equal(batch["labels"].numpy(), labels)
    assert len({tensor.data_ptr() for batch in held for tensor in (batch["input_ids"], batch["labels"])}) == 24
    known = {tensor.data_ptr() for batch in held for tensor in (batch["input_ids"], batch["labels"])}
    view = held[0]["labels"][3, 5:].numpy()  # keeps the whole tensor
    pointer = held[0]["labels"].data_ptr()
    held.clear()
    del batch
    again = [
        tensors_of(RowBatch(0, 0, rows, np.zeros(64, int), np.arange(64)).split(), provenance=False) for _ in range(2)
    ]
    pointers = [tensor.data_ptr() for batch in again for tensor in (batch["input_ids"], batch["labels"])]
    assert set(pointers) <= known - {pointer}
    np.testing.assert_array_equal(view, expected[0][1][3, 5:])
