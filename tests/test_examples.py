"""The examples run with the real trainers, and what the model sees is exact: resumed or not, on one rank or two."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import tiny
from mixer import Curriculum, MixtureDataset
from mixer.adapters.loading import PLACE, MixtureLoader
from mixer.adapters.titan import ExhaustedError, TitanLoader
from mixer.errors import ConfigError, FeedbackError, StateMismatchError
from mixer.sources import text_stream
from mixer.testing import assert_resumes_from_every_step

HALF, STEPS = tiny.STEPS // 2, tiny.STEPS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    tiny.curriculum(tmp_path / "run")
    return tmp_path / "run"


def example(name: str) -> Any:
    with warnings.catch_warnings():  # the trainers' own
        warnings.simplefilter("ignore")
        return importlib.import_module(f"examples.{name}")


def lines(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"log-{rank}.jsonl").read_text().splitlines()]


def restart(folder: Path, stopped_at: int) -> None:
    """Put the logs aside, and forget what was trained: as a new machine would begin."""
    keep = {"prepared", *(f"{source.name}.jsonl" for source in tiny.curriculum(folder).sources)}
    for path in folder.iterdir():
        if path.name not in keep:
            path.rename(folder.parent / f"{stopped_at}-{path.name}")


def assert_exact(folder: Path, train: Callable[[int], None], *, num_ranks: int = 1) -> None:
    """Train undisturbed, then stopped in the middle and resumed: every batch and every loss is the same."""
    train(STEPS)
    undisturbed = [lines(folder, rank) for rank in range(num_ranks)]
    restart(folder, STEPS)
    train(HALF)
    train(STEPS)
    for rank in range(num_ranks):
        assert [line["step"] for line in undisturbed[rank]] == list(range(STEPS))
        assert lines(folder, rank) == undisturbed[rank]
    assert_whole(undisturbed)


def assert_whole(ranks: list[list[dict[str, Any]]]) -> None:
    """Each step's slices make a global batch, and over the steps no row of a source is missing or given twice."""
    seen: dict[int, list[int]] = {}
    for step in zip(*ranks, strict=True):
        sources = np.concatenate([line["source_ids"] for line in step])
        numbers = np.concatenate([line["row_numbers"] for line in step])
        assert sources.size == 8
        for source in np.unique(sources).tolist():
            seen.setdefault(source, []).extend(sorted(numbers[sources == source].tolist()))
    for numbers_of_source in seen.values():
        assert numbers_of_source == list(range(len(numbers_of_source)))


# each example's main() is what a reader runs first; the other tests call its train()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ddp", "trainer_hf", "accelerate_loop", "lightning_module", "torchtitan_loader", "stateful_dataloader"],
)
@pytest.mark.filterwarnings("ignore")
def test_every_example_runs_as_it_stands(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path))
    example(name).main()
    steps = [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines() if line.startswith('{"step')]
    assert steps == list(range(STEPS))


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_and_restores_the_loader_by_itself(folder: Path) -> None:
    assert_exact(folder, lambda until: example("lightning_module").train(folder, until))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_resumes_without_skipping_batches(folder: Path) -> None:
    assert_exact(folder, lambda until: example("trainer_hf").train(folder, until))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_stateful_data_loader_resumes_with_its_workers(folder: Path) -> None:
    assert_exact(folder, lambda until: example("stateful_dataloader").train(folder, until))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ddp", ()),
        ("accelerate_loop", ()),
        ("trainer_hf", ()),
        ("lightning_module", (2,)),
        ("torchtitan_loader", (2, 1)),
    ],
)
def test_two_ranks_share_each_global_batch_and_resume_together(folder: Path, name: str, more: tuple[int, ...]) -> None:
    train = example(name).train
    assert_exact(folder, lambda until: tiny.on_ranks(2, train, folder, until, *more), num_ranks=2)


def over_streams(name: str, *arguments: Any) -> None:
    """Call ``train`` of an example over streams instead of prepared rows."""
    prepared = tiny.curriculum
    tiny.curriculum = lambda folder: prepared(folder).model_copy(update={"prepared": None})
    example(name).train(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("accelerate_loop", ()), ("lightning_module", (2,))])
def test_a_checkpoint_that_rank_0_writes_has_the_place_of_every_rank_in_a_stream(
    folder: Path, name: str, more: tuple[int, ...]
) -> None:
    def train(until: int) -> None:
        tiny.on_ranks(2, over_streams, name, folder, until, *more)

    train(STEPS)
    undisturbed = [lines(folder, rank) for rank in range(2)]
    restart(folder, STEPS)
    train(HALF)
    train(STEPS)
    assert [lines(folder, rank) for rank in range(2)] == undisturbed
    assert [[line["step"] for line in rank] for rank in undisturbed] == [list(range(STEPS))] * 2
    assert undisturbed[0] != undisturbed[1]


@pytest.mark.slow
def test_tensor_parallel_peers_see_the_same_rows_and_another_data_parallel_size_goes_on(folder: Path) -> None:
    train = example("torchtitan_loader").train
    tiny.on_ranks(2, train, folder, HALF, 1, 2)
    peers = [lines(folder, rank) for rank in range(2)]
    for one, other in zip(*peers, strict=True):
        assert {**one, "rank": 1} == other
    tiny.on_ranks(2, train, folder, STEPS, 2, 1)
    later = [lines(folder, rank)[HALF:] for rank in range(2)]
    merged = [
        {key: one[key] + other[key] for key in ("source_ids", "row_numbers")} for one, other in zip(*later, strict=True)
    ]
    assert_whole([peers[0] + merged])


# the adapters by themselves


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    return (2.0 + batch["source_ids"] / (1.0 + batch["step"]))[:, None].expand(-1, 16).to(torch.float32)


class FetchingAhead:
    """A trainer that fetches one batch before it trains on the last, as Lightning and accelerate do."""

    def __init__(self, curriculum: Curriculum, num_workers: int = 0) -> None:
        self.dataset = MixtureDataset(curriculum)
        self.loader = MixtureLoader(self.dataset, num_workers=num_workers)
        self.state_dict, self.load_state_dict = self.loader.state_dict, self.loader.load_state_dict

    def __iter__(self) -> Any:
        batches = iter(self.loader)
        batch = next(batches)
        for ahead in batches:
            self.dataset.report(batch, losses_of(batch))
            yield batch
            batch = ahead
        self.dataset.report(batch, losses_of(batch))
        yield batch


def test_a_batch_that_was_fetched_ahead_is_given_again(folder: Path) -> None:
    assert_resumes_from_every_step(lambda: FetchingAhead(tiny.curriculum(folder)), num_steps=STEPS)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_over_streams_too_nothing_that_was_fetched_ahead_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 7)
    ahead = 5  # batches: two of each worker, and the one that the trainer fetches before it reports the last
    run = tiny.curriculum(folder).model_copy(update={"prepared": None, "feedback_lag": ahead})
    whole = [batch["input_ids"] for batch in FetchingAhead(run, num_workers)]
    assert len(whole) == STEPS
    if num_workers < 2:  # several workers divide the documents
        dataset = MixtureDataset(run)
        for expected, batch in zip(whole, dataset, strict=True):
            assert torch.equal(batch["input_ids"], expected)
            dataset.report(batch, losses_of(batch))
    for stop in (1, 13):
        first, second = FetchingAhead(run, num_workers), FetchingAhead(run, num_workers)
        batches = [batch["input_ids"] for _, batch in zip(range(stop), first, strict=False)]
        state = json.loads(json.dumps(first.state_dict()))
        assert state["step"] == stop
        second.load_state_dict(state)
        batches += [batch["input_ids"] for batch in second]
        assert all(torch.equal(*pair) for pair in zip(whole, batches, strict=True))


def test_a_loader_goes_on_in_its_own_process_after_it_was_left(folder: Path) -> None:
    ahead = 5  # batches: two of each worker, and the one that the trainer fetches before it reports the last
    run = tiny.curriculum(folder).model_copy(update={"prepared": None, "feedback_lag": ahead})
    whole = [batch["input_ids"] for batch in FetchingAhead(run)]
    trainer = FetchingAhead(run)
    batches = [batch["input_ids"] for _, batch in zip(range(5), trainer, strict=False)]
    batches += [batch["input_ids"] for batch in trainer]
    assert all(torch.equal(*pair) for pair in zip(whole, batches, strict=True))


def test_each_rank_finds_its_own_place_in_a_state_of_all(folder: Path) -> None:
    run = tiny.curriculum(folder).model_copy(update={"prepared": None})
    datasets = [MixtureDataset(run, rank=rank, world_size=2) for rank in range(2)]
    batches = [iter(dataset) for dataset in datasets]
    for _ in range(3):
        for each in batches:
            next(each)
    states = [MixtureLoader(dataset).state_dict() for dataset in datasets]
    places = [{key: state[key] for key in PLACE} for state in states]
    whole = json.loads(json.dumps({**states[0], "ranks": places}))
    for rank in range(2):
        resumed = MixtureLoader(MixtureDataset(run, rank=rank, world_size=2))
        resumed.load_state_dict(whole)
        assert torch.equal(next(iter(resumed))["input_ids"], next(batches[rank])["input_ids"])
    for rank, world_size in ((0, 1), (3, 4)):
        other = MixtureLoader(MixtureDataset(run, rank=rank, world_size=world_size))
        with pytest.raises(StateMismatchError, match="streams read by 2 ranks"):
            other.load_state_dict(whole)


def test_a_trainer_without_losses_says_what_it_trained_on(folder: Path) -> None:
    dataset = MixtureDataset(tiny.curriculum(folder))
    batches = iter(MixtureLoader(dataset))
    for _ in range(3):
        trained = next(batches)
    assert dataset.state_dict()["step"] == 0
    dataset.delivered(trained)
    assert dataset.state_dict()["step"] == 3
    resumed = MixtureDataset(tiny.curriculum(folder))
    resumed.load_state_dict(dataset.state_dict())
    assert torch.equal(next(iter(resumed))["input_ids"], next(batches)["input_ids"])


def test_the_titan_loader_ends_with_the_error_that_it_was_given(folder: Path) -> None:
    batches = iter(TitanLoader(MixtureDataset(tiny.curriculum(folder))))
    for _ in range(STEPS):
        inputs, labels = next(batches)
        assert torch.equal(inputs["input"][:, 1:], labels[:, :-1])
    with pytest.raises(ExhaustedError, match="all 24 steps were delivered"):
        next(batches)
    with pytest.raises(EOFError):
        list(TitanLoader(MixtureDataset(tiny.curriculum(folder)), exhausted=EOFError))


def test_the_titan_loader_reports_accumulated_batches_in_their_order(folder: Path) -> None:
    one, other = (MixtureDataset(tiny.curriculum(folder)) for _ in range(2))
    loader = TitanLoader(one)
    batches = iter(loader)
    for _ in range(3):
        taken = []
        for _ in range(4):  # all that is accumulated, as torchtitan does, before it trains on the first
            next(batches)
            taken.append(loader.batch)
        for batch in taken:
            assert loader.report(losses_of(batch).reshape(-1)) is True
    with pytest.raises(FeedbackError, match="reported already"):
        loader.report(losses_of(loader.batch))
    expected = iter(other)
    for _ in range(3):
        for batch in [next(expected) for _ in range(4)]:
            other.report(batch, losses_of(batch))
    assert one.walk.state_dict() == other.walk.state_dict()


def test_the_titan_loader_takes_an_empty_state_and_refuses_a_foreign_one(folder: Path) -> None:
    loader = TitanLoader(MixtureDataset(tiny.curriculum(folder)))
    loader.load_state_dict({})
    state = loader.state_dict()
    with pytest.raises(StateMismatchError, match="has version 9, but this one reads version 1"):
        loader.load_state_dict({**state, "version": 9})
    with pytest.raises(StateMismatchError, match="of 4 data-parallel ranks has no every_dp_rank"):
        loader.load_state_dict({"dp_rank_3": b"", "world_size": 4, "version": 1})


class Arguments:
    ignore_data_skip, gradient_accumulation_steps = True, 1


class Progress:
    global_step = 5


@pytest.mark.filterwarnings("ignore")
def test_the_callback_refuses_to_resume_where_batches_would_be_lost(folder: Path, tmp_path: Path) -> None:
    callback = importlib.import_module("mixer.adapters.trainer").MixtureCallback(
        MixtureDataset(tiny.curriculum(folder))
    )
    with pytest.raises(StateMismatchError, match="begins at batch 5 .*but the data set stands at step 0"):
        callback.on_train_begin(Arguments(), Progress(), None)
    skipping = Arguments()
    skipping.ignore_data_skip = False
    with pytest.raises(ConfigError, match="set ignore_data_skip=True"):
        callback.on_train_begin(skipping, Progress(), None)
    with pytest.raises(StateMismatchError, match="holds no mixture-0.json"):
        callback.load(tmp_path)
