"""Delivery to many: the same global batches whoever composes them, and a run that goes on exactly wherever it stopped."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.dataset import MixtureDataset
from mixer.delivery.batch import PreparedReader
from mixer.delivery.feedback import LossAccumulator
from mixer.delivery.readers import ReaderFactory
from mixer.errors import (
    InvalidLossError,
    MixerError,
    RankMismatchError,
    SourceExhaustedError,
    StateMismatchError,
    TopologyError,
)
from mixer.journal.file import Journal, read_journal
from mixer.sources.base import EndOfSource
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import JointRows, Prepared, RowsAt
from mixer.testing import assert_resumes_from_every_step
from mixer.types import IntArray
from mixer.walk.walk import Walk
from tests.support.curricula import write_sources
from tests.support.ranks import in_ranks

T, B, STEPS = 16, 8, 70

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("delivery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        write_sources(folder)
        prepare(a_curriculum(folder, prepared=None), folder / "rows")
        yield folder


def a_curriculum(folder: Path, **changes: Any) -> Curriculum:
    """A run through a warmup, a pivot and several epochs of each source; the lag covers 4 workers of 2 batches."""
    fields: dict[str, Any] = {
        "seed": 3,
        "total_steps": STEPS,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "prepared": str(folder / "rows"),
        "sources": [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)],
        "floors": {"s0": 0.2},
        "caps": {"s3": 0.25},
        "curriculum_warmup_steps": 21,
        "curriculum_warmup_sources": ["s0", "s1"],
        "pivots": [{"name": "polish", "at_step": 49, "exclude": ["s2"]}],
        "phases": {"initial_random": 2},
        "feedback_lag": 8,
    }
    return Curriculum(**(fields | changes))


def read_as(kind: str) -> dict[str, Any]:
    """What the curriculum says so that rows are prepared or streamed."""
    return {} if kind == "prepared" else {"prepared": None}


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    """Made-up losses that depend on the rows alone: enough to move the walk."""
    per_row = 2.0 + batch["source_ids"] / (1.0 + batch["step"]) + batch["input_ids"][:, 0] / 1000
    return per_row[:, None].expand(-1, T).to(torch.float32)


Seen = tuple[int, list[list[int]], list[int]]


def seen(batch: dict[str, Any]) -> Seen:
    return int(batch["step"]), batch["input_ids"].tolist(), batch["source_ids"].tolist()


def trained(dataset: MixtureDataset, *, stop: int = STEPS, **loading: Any) -> list[Seen]:
    """Train up to before step ``stop``: every batch is reported before the next is asked for."""
    batches: list[Seen] = []
    if dataset.step < stop:
        for batch in DataLoader(dataset, batch_size=None, **loading):
            dataset.report(batch, losses_of(batch))
            batches.append(seen(batch))
            if batch["step"] == stop - 1:
                break
    return batches


class Training:
    """A data set in a DataLoader with workers, and its trainer, as something that resumes."""

    def __init__(self, curriculum: Curriculum, num_workers: int) -> None:
        self.dataset = MixtureDataset(curriculum)
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in DataLoader(self.dataset, batch_size=None, num_workers=self.num_workers):
            self.dataset.report(batch, losses_of(batch))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_deliver_the_batches_of_a_single_process(folder: Path, num_workers: int) -> None:
    curriculum = a_curriculum(folder)
    alone = trained(MixtureDataset(curriculum))
    assert [step for step, _, _ in alone] == list(range(STEPS))
    loading: dict[str, Any] = {"num_workers": num_workers, "prefetch_factor": 2, "persistent_workers": True}
    assert trained(MixtureDataset(curriculum), **loading) == alone


def test_the_journal_says_which_prepared_rows_are_read(folder: Path) -> None:
    MixtureDataset(a_curriculum(folder), journal=folder / "header.jsonl").walk.close_journal()
    rows = Prepared.open(folder / "rows").sources
    found = next(read_journal(folder / "header.jsonl"))["sources"]
    assert found == {f"s{k}": f"rows {rows[f's{k}'].fingerprint}" for k in range(4)}


def test_reading_prepared_rows_imports_neither_datasets_nor_tokenizers(folder: Path) -> None:
    config = folder / "prepared.yaml"
    config.write_text(json.dumps(a_curriculum(folder).model_dump(mode="json", exclude_unset=True)))
    code = f"""
import sys
from mixer import Curriculum, MixtureDataset
dataset = MixtureDataset(Curriculum.from_yaml({str(config)!r}))
dataset.report(batch := next(iter(dataset)), batch["labels"] * 0.5)
dataset.state_dict(), dataset.progress()
print(*{{"datasets", "tokenizers", "pandas", "httpx2"}} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_spawned_workers_deliver_the_batches_of_a_single_process(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    loading: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "spawn"}
    assert trained(MixtureDataset(curriculum), **loading) == trained(MixtureDataset(curriculum))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_ranks_slices_make_the_global_batch_at_any_world_size(folder: Path, world_size: int) -> None:
    curriculum = a_curriculum(folder, policy="random")
    ranks = [MixtureDataset(curriculum, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(MixtureDataset(curriculum), *ranks, strict=True):
        for key in ("input_ids", "labels", "source_ids"):
            together = torch.empty_like(whole[key])
            for rank, part in enumerate(parts):
                together[rank::world_size] = part[key]
            assert torch.equal(together, whole[key])


def test_every_row_of_an_epoch_comes_once_and_the_next_epoch_has_another_order(folder: Path) -> None:
    curriculum = a_curriculum(folder, policy="static", total_steps=300, pivots=[], curriculum_warmup_steps=0)
    numbers: list[int] = []
    rows: list[tuple[int, ...]] = []
    for batch in MixtureDataset(curriculum, provenance=True):
        mine = batch["source_ids"] == 0
        numbers += batch["row_numbers"][mine].tolist()
        rows += [tuple(row) for row in batch["input_ids"][mine].tolist()]
    in_order = [row for _, row in sorted(zip(numbers, rows, strict=True))]
    size = MixtureDataset(curriculum)._rows._prepared.sources["s0"].num_rows  # type: ignore[union-attr]
    first, second = in_order[:size], in_order[size : 2 * size]
    assert len(second) == size
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_prepared_rows_resume_from_every_step_with_any_number_of_workers(folder: Path, num_workers: int) -> None:
    """Through the warmup's end (21), epochs, and the pivot (49) if workers are few; workers are made at each resume."""
    curriculum = a_curriculum(folder)
    steps = 55 if num_workers == 0 else 26
    assert_resumes_from_every_step(lambda: Training(curriculum, num_workers), num_steps=steps)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (2, 1)])
def test_a_run_goes_on_with_another_number_of_workers(folder: Path, before: int, after: int) -> None:
    curriculum = a_curriculum(folder)
    whole = trained(MixtureDataset(curriculum))
    for stop in (1, 20, 49, 50):
        first = MixtureDataset(curriculum)
        beginning = trained(first, stop=stop, num_workers=before)
        second = MixtureDataset(curriculum)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert beginning + trained(second, num_workers=after) == whole


def test_a_loop_that_is_left_goes_on_where_it_was_left(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    dataset = MixtureDataset(curriculum)
    parts = [trained(dataset, stop=stop, num_workers=n) for stop, n in ((5, 2), (11, 0), (30, 1), (STEPS, 2))]
    assert [batch for part in parts for batch in part] == trained(MixtureDataset(curriculum))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_streams_read_by_workers_resume_exactly_with_as_many(folder: Path, num_workers: int) -> None:
    curriculum = a_curriculum(folder, prepared=None)
    whole = trained(MixtureDataset(curriculum), num_workers=num_workers)
    assert [step for step, _, _ in whole] == list(range(STEPS))
    for stop in (1, 22, 41):
        first = MixtureDataset(curriculum)
        beginning = trained(first, stop=stop, num_workers=num_workers)
        second = MixtureDataset(curriculum)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert beginning + trained(second, num_workers=num_workers) == whole


def test_streams_of_one_worker_go_on_in_this_process_and_back(folder: Path) -> None:
    curriculum = a_curriculum(folder, prepared=None)
    dataset = MixtureDataset(curriculum)
    parts = [trained(dataset, stop=stop, num_workers=n) for stop, n in ((9, 1), (30, 0), (STEPS, 1))]
    assert [batch for part in parts for batch in part] == trained(MixtureDataset(curriculum))


def test_streams_refuse_another_number_of_workers_or_ranks_and_say_what_to_do(folder: Path) -> None:
    curriculum = a_curriculum(folder, prepared=None)
    dataset = MixtureDataset(curriculum)
    trained(dataset, stop=5, num_workers=2)
    state = dataset.state_dict()
    other = MixtureDataset(curriculum)
    other.load_state_dict(state)
    with pytest.raises(
        TopologyError, match=r"read by 2 readers a rank, and now there are 1; use num_workers=2, or .*prepare"
    ):
        next(iter(other))
    with pytest.raises(StateMismatchError, match=r"read by 1 ranks, and now there are 2; use 1, or .*prepare"):
        MixtureDataset(curriculum, rank=0, world_size=2).load_state_dict(state)


def test_streams_that_stop_are_refused_to_several_readers(folder: Path) -> None:
    sources = [{"name": "s0", "data_files": str(folder / "s0.jsonl"), "on_exhausted": "stop"}]
    bare: dict[str, Any] = {"floors": {}, "caps": {}, "pivots": [], "curriculum_warmup_steps": 0}
    run = a_curriculum(folder, prepared=None, sources=sources, curriculum_warmup_sources=[], **bare)
    with pytest.raises(TopologyError, match=r"source s0 is to stop .* 2 readers .*would end at different steps"):
        MixtureDataset(run, rank=0, world_size=2)


def test_a_batch_that_ranks_cannot_share_is_refused(folder: Path) -> None:
    with pytest.raises(TopologyError, match=r"batch_rows is 8, which 3 ranks cannot share evenly; .* multiple of 3"):
        MixtureDataset(a_curriculum(folder), rank=0, world_size=3)
    with pytest.raises(TopologyError, match="rank 2 of 2: ranks count from 0"):
        MixtureDataset(a_curriculum(folder), rank=2, world_size=2)
    with pytest.raises(TopologyError, match="give both, or neither"):
        MixtureDataset(a_curriculum(folder), rank=1)


def test_a_source_that_stops_or_errs_ends_every_rank_at_the_same_step(folder: Path) -> None:
    def run(policy: str) -> Curriculum:
        sources = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)]
        sources[1]["on_exhausted"] = policy
        return a_curriculum(folder, sources=sources, total_steps=500, pivots=[], policy="static")

    lengths = [len(list(MixtureDataset(run("stop"), rank=rank, world_size=4))) for rank in range(4)]
    lengths.append(len(list(DataLoader(MixtureDataset(run("stop")), batch_size=None, num_workers=2))))
    assert len(set(lengths)) == 1
    assert 10 < lengths[0] < 500
    with pytest.raises(SourceExhaustedError, match=r"s1 ran dry before step \d+: it has \d+ rows, and \d+ are left"):
        list(MixtureDataset(run("error")))


def test_a_trainer_that_never_reports_gets_all_its_batches(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    expected = [seen(batch) for batch in MixtureDataset(curriculum)]
    for num_workers in (1, 2):
        loader = DataLoader(MixtureDataset(curriculum), batch_size=None, num_workers=num_workers)
        assert [seen(batch) for batch in loader] == expected


def test_a_pivot_of_this_process_reaches_workers_at_exactly_its_step(folder: Path) -> None:
    curriculum = a_curriculum(folder, total_steps=200, pivots=[])
    dataset = MixtureDataset(curriculum)
    at_step = None
    drawn: dict[int, set[int]] = {}
    for batch in DataLoader(dataset, batch_size=None, num_workers=2):
        dataset.report(batch, losses_of(batch))
        drawn[batch["step"]] = set(batch["source_ids"].tolist())
        if batch["step"] == 60:
            at_step = dataset.walk.pivot(Pivot(name="no-s1", exclude=["s1"]))
    assert at_step is not None
    assert 60 < at_step <= 60 + 42 + 42
    assert any(1 in sources for step, sources in drawn.items() if 21 <= step < at_step)
    assert not any(1 in sources for step, sources in drawn.items() if step >= at_step)


def test_a_data_set_that_is_dropped_leaves_no_thread_and_no_socket(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder, total_steps=8, pivots=[]))
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert len(list(loader)) == 8
    socket_path = Path(dataset._main.server.open()[0])
    thread = dataset._main.server._thread
    assert thread is not None
    assert thread.is_alive()
    assert socket_path.exists()
    del dataset, loader
    gc.collect()
    thread.join(100)
    assert not thread.is_alive()
    assert not socket_path.exists()


def test_parts_of_a_batch_are_one_report_when_all_rows_are_there(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    whole, parted = MixtureDataset(curriculum), MixtureDataset(curriculum)
    for batch, same in itertools.islice(zip(whole, parted, strict=True), 30):
        losses = losses_of(batch)
        assert whole.report(batch, losses)
        for start in (0, 3, 6):  # gradient accumulation over 3 + 3 + 2 rows
            part = {"step": same["step"], "source_ids": same["source_ids"][start : start + 3]}
            assert parted.report(part, losses[start : start + 3]) == (start == 6)
    assert parted.state_dict() == whole.state_dict()


def test_rows_that_are_collated_across_steps_are_reported_to_their_own_steps(folder: Path) -> None:
    curriculum = a_curriculum(folder, total_steps=30)
    whole = MixtureDataset(curriculum)
    trained(whole)
    rows = MixtureDataset(curriculum, batches=False)
    for batch in DataLoader(rows, batch_size=6):  # 8 rows a step: batches straddle steps
        per_row = 2.0 + batch["source_ids"] / (1.0 + batch["step"]) + batch["input_ids"][:, 0] / 1000
        rows.report(batch, per_row[:, None].expand(-1, T).to(torch.float32))
    assert rows.walk.state_dict() == whole.walk.state_dict()


def test_the_state_is_small_and_names_the_run_and_its_rows(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    dataset = MixtureDataset(curriculum)
    for batch in DataLoader(dataset, batch_size=None, num_workers=2):
        dataset.report(batch, losses_of(batch))
        assert len(json.dumps(dataset.state_dict())) < 6000
    state = dataset.state_dict()
    with pytest.raises(StateMismatchError, match="with rows"):
        MixtureDataset(a_curriculum(folder, prepared=None)).load_state_dict(state)


def test_a_stateful_loader_that_lost_the_walk_is_refused(folder: Path) -> None:
    """torchdata saves what the workers say; the walk lives in the training process."""
    curriculum = a_curriculum(folder)
    dataset = MixtureDataset(curriculum)
    for batch in itertools.islice(dataset, 60):
        dataset.report(batch, losses_of(batch))
    state = _copy_of(dataset).state_dict()
    assert state["step"] == 60
    fresh = _copy_of(MixtureDataset(curriculum))
    with pytest.raises(StateMismatchError, match=r"restored to step 60, but the walk was not"):
        fresh.load_state_dict(state)
    kept = MixtureDataset(curriculum)
    kept.load_state_dict(dataset.state_dict())
    restored = _copy_of(kept)
    restored.load_state_dict(state)
    assert seen(next(iter(restored))) == seen(next(iter(dataset)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("kind", ["prepared", "streamed"])
def test_a_stateful_loader_goes_on_from_its_own_state_again_and_again(folder: Path, kind: str) -> None:
    """Stopped within a phase and at the end of one; the data set knows each time how far it is."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    curriculum = a_curriculum(folder, **read_as(kind))
    whole = trained(MixtureDataset(curriculum), num_workers=2)
    end = MixtureDataset(curriculum).walk.phase_at(0).end
    batches: list[Seen] = []
    state: tuple[dict[str, Any], dict[str, Any]] | None = None
    for stop in (3, end, end + 5, STEPS):
        dataset = MixtureDataset(curriculum)
        loader = stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=2)
        if state is not None:
            dataset.load_state_dict(state[0])
            loader.load_state_dict(state[1])
        for batch in loader:
            dataset.report(batch, losses_of(batch))
            batches.append(seen(batch))
            if batch["step"] == stop - 1:
                break
        state = json.loads(json.dumps(dataset.state_dict())), copy.deepcopy(loader.state_dict())
        assert dataset.step == state[0]["step"] == stop
    assert batches == whole


_kept: list[MixtureDataset] = []


def _copy_of(dataset: MixtureDataset) -> MixtureDataset:
    """Return what a spawned worker gets; the original must live on to answer."""
    _kept.append(dataset)
    copy: MixtureDataset = pickle.loads(pickle.dumps(dataset))
    return copy


def test_a_copy_whose_original_is_gone_says_so(folder: Path) -> None:
    copy = _copy_of(MixtureDataset(a_curriculum(folder)))
    next(iter(copy))
    original = _kept.pop()
    original._main.server.close()
    with pytest.raises(TopologyError, match="the process that decides the mixture is gone"):
        _copy_again(copy)


def _copy_again(copy: MixtureDataset) -> None:
    next(iter(pickle.loads(pickle.dumps(copy))))


def test_ranks_sum_their_losses_and_decide_as_one_process_would(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    alone = MixtureDataset(curriculum)
    expected = trained(alone)

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(curriculum)
        assert (dataset.rank, dataset.world_size) == (rank, world_size)
        return trained(dataset, num_workers=rank), dataset.walk.state_dict(
            from_step=STEPS
        )  # also with workers on one rank alone

    (zero, walk_0), (one, walk_1) = in_ranks(2, job)
    assert walk_0 == walk_1 == alone.walk.state_dict(from_step=STEPS)
    for (step, ids, sources), (_, ids_0, sources_0), (_, ids_1, sources_1) in zip(expected, zero, one, strict=True):
        assert [ids[0::2], ids[1::2]] == [ids_0, ids_1], step
        assert [sources[0::2], sources[1::2]] == [sources_0, sources_1], step


def test_sums_by_source_are_summed_over_ranks_and_a_loss_that_cannot_be_is_refused_on_all(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    alone = MixtureDataset(curriculum)
    trained(alone)

    def job(rank: int, world_size: int) -> Any:
        dataset, refused = MixtureDataset(curriculum), ""
        for batch in dataset:
            losses = losses_of(batch)
            if batch["step"] == 9:
                try:
                    dataset.report(batch, torch.full_like(losses, torch.nan) if rank == 1 else losses)
                except InvalidLossError as error:
                    refused = str(error)
            ((step, sums),) = LossAccumulator(B // 2, T, curriculum.names).add(batch, losses)
            assert sums is not None
            assert dataset.report_sums(step, sums)
        return refused, dataset.walk.state_dict(from_step=STEPS)

    (zero, walk_0), (one, walk_1) = in_ranks(2, job)
    assert walk_0 == walk_1 == alone.walk.state_dict(from_step=STEPS)
    assert one.startswith(zero)
    assert "loss of s" in zero
    assert "(row 0 of this rank's, from s" in one


def test_a_run_of_two_ranks_goes_on_with_one(folder: Path) -> None:
    curriculum = a_curriculum(folder)
    expected = trained(MixtureDataset(curriculum))

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(curriculum)
        trained(dataset, stop=31)
        return dataset.state_dict()

    for state in in_ranks(2, job):
        dataset = MixtureDataset(curriculum)
        dataset.load_state_dict(state)
        assert trained(dataset) == expected[31:]


def test_ranks_that_decided_differently_or_report_other_steps_are_found_and_named(folder: Path) -> None:
    def other_seed(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(a_curriculum(folder, seed=3 + (rank == 2)))
        return len(trained(dataset))

    def other_step(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(a_curriculum(folder))
        batches = iter(dataset)
        batch = next(batches)
        if rank == 1:
            batch = next(batches)
        dataset.report(batch, losses_of(batch))

    for result in in_ranks(3, other_seed) if B % 3 == 0 else in_ranks(4, other_seed):
        assert result.startswith("RankMismatchError: rank 2 decided phase 0 of step 0 differently from rank 0"), result
    for result in in_ranks(2, other_step):
        assert result.startswith("RankMismatchError: rank 1 reports step 1, and rank 0 step 0; give every"), result

    def other_workers(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(a_curriculum(folder, **read_as("streamed")))
        return len(trained(dataset, num_workers=rank + 1, stop=3))

    for result in in_ranks(2, other_workers):
        assert "rank 1 reads its streams with 2 DataLoader workers, and rank 0 with 1, so that" in result, result
    assert issubclass(RankMismatchError, MixerError)


def test_a_rank_without_torch_distributed_is_told_how_to_report(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder), rank=0, world_size=2)
    batch = next(iter(dataset))
    with pytest.raises(
        TopologyError, match=r"one of 2 ranks reports, but torch.distributed is not up.*init_process_group"
    ):
        dataset.report(batch, losses_of(batch))


@pytest.mark.parametrize("kind", ["prepared", pytest.param("streamed", marks=pytest.mark.slow)])
def test_workers_end_when_their_training_process_is_killed(folder: Path, kind: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    pids: Any = context.Queue()

    def train() -> None:
        curriculum = a_curriculum(folder, total_steps=10**6, pivots=[], **read_as(kind))
        dataset = MixtureDataset(curriculum, journal=tmp_path / "killed.jsonl")
        loader = iter(DataLoader(dataset, batch_size=None, num_workers=2))
        for _ in range(4):  # both have begun: torch does not notice a parent that dies before
            next(loader)
        pids.put([worker.pid for worker in loader._workers])  # type: ignore[attr-defined]
        while True:
            next(loader)

    trainer = context.Process(target=train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.start()
    workers = pids.get(timeout=100)
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    Journal.open(tmp_path / "killed.jsonl").close()  # no worker holds its lock
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and any(
        Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid) for pid in workers
    ):
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid) for pid in workers)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_with_a_lag_that_covers_the_loader_no_decision_misses_a_report(folder: Path) -> None:
    path = folder / f"lag-{time.monotonic_ns()}.jsonl"
    with Journal.create(path) as journal:
        curriculum = a_curriculum(folder)
        dataset = MixtureDataset(curriculum, walk=Walk(curriculum, journal=journal))
        trained(dataset, num_workers=3)
    decisions = [line for line in read_journal(path) if line["type"] == "phase" and line["start"] > 8]
    assert len(decisions) >= 2
    for decision in decisions:
        assert decision["feedback"]["last_step"] == decision["start"] - 8 - 1


def test_rows_that_come_slowly_are_touched_by_threads_and_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum = a_curriculum(folder)
    expected = trained(MixtureDataset(curriculum))
    touched: list[int] = []
    touch, split = JointRows.touch, RowsAt.split

    def noting(self: JointRows, addresses: IntArray) -> None:
        assert threading.current_thread().name.startswith("mixer-rows")
        time.sleep(0.001)
        touch(self, addresses)
        touched.extend(addresses.tolist())

    def checking(self: RowsAt, first: int, num_rows: int, *dtype: Any) -> Any:
        assert not touched or set(self.addresses[first : first + num_rows].tolist()) <= set(touched)
        return split(self, first, num_rows, *dtype)

    monkeypatch.setattr(JointRows, "touch", noting)
    monkeypatch.setattr(RowsAt, "split", checking)
    monkeypatch.setattr("mixer.delivery.batch.SLOW_BYTES_PER_S", 1e15)  # no memory is as fast
    monkeypatch.setattr("mixer.delivery.batch.FAULT_S", 0.0)
    monkeypatch.setattr("mixer.system.pages.KEPT_BYTES", 0)  # pages are given back meanwhile
    monkeypatch.setattr("mixer.delivery.batch._num_faults", itertools.count().__next__)
    monkeypatch.setattr("mixer.delivery.batch.TOUCHED_ROWS", 5)  # some rows of one batch and some of the next
    dataset = MixtureDataset(curriculum)
    first = dataset.walk.phase_at(0)  # shows that rows come slowly
    assert trained(dataset) == expected
    assert len(touched) >= (STEPS - first.end) * B


def test_rows_that_only_the_interpreter_was_waited_for_are_not_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JointRows, "touch", lambda *_: pytest.fail("rows in memory were touched"))
    monkeypatch.setattr("mixer.delivery.batch.SLOW_BYTES_PER_S", 1e15)
    monkeypatch.setattr("mixer.delivery.batch.FAULT_S", 0.0)
    monkeypatch.setattr("mixer.delivery.batch._num_faults", lambda: 7)
    assert len(trained(MixtureDataset(a_curriculum(folder)))) == STEPS


@pytest.mark.parametrize("together", [1, 3, 50])
@pytest.mark.parametrize(
    "bytes_per_s", [1.0, 1e15]
)  # no memory is as fast as the second, so that threads touch the rows
def test_batches_read_together_are_those_read_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, together: int, bytes_per_s: float
) -> None:
    monkeypatch.setattr("mixer.delivery.batch.SLOW_BYTES_PER_S", bytes_per_s)
    monkeypatch.setattr("mixer.delivery.batch.FAULT_S", 0.0)
    monkeypatch.setattr("mixer.delivery.batch._num_faults", itertools.count().__next__)
    ending = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl"), "on_exhausted": "stop"} for k in range(4)]
    curriculum = a_curriculum(folder, sources=ending)
    phase_at, rows = Walk(curriculum).phase_at, ReaderFactory(curriculum, rank=1, world_size=2)
    alone, reader = rows.open(phase_at), rows.open(phase_at)
    assert isinstance(reader, PreparedReader)
    step = 0
    while True:
        try:
            found = reader.read_together(step, together, np.empty)
        except EndOfSource:
            break
        assert found.steps[0] == step
        assert len(found.steps) <= together
        for i, each in enumerate(found.steps):
            expected = alone.read(each)
            assert expected.phase == found.phase
            for one, other in zip(found[2:5], expected[2:5], strict=True):
                assert (one[i] == other).all()
        step = found.steps.stop
    with pytest.raises(EndOfSource):
        alone.read(step)
    assert step > phase_at(0).end


def test_progress_counts_the_rows_delivered(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    counts = np.zeros(4, dtype=np.int64)
    for batch in itertools.islice(dataset, 40):
        counts += np.bincount(batch["source_ids"].numpy(), minlength=4)
        progress = dataset.progress()
        assert [progress[f"s{k}"].rows for k in range(4)] == counts.tolist()
        assert progress["s0"].epoch == counts[0] * (T + 1) // (progress["s0"].unique_tokens or 1)


def test_a_source_that_stops_gives_its_last_row_also_where_that_ends_a_batch(folder: Path) -> None:
    sources = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)]
    sources[0]["on_exhausted"] = "stop"
    alone: dict[str, Any] = {"floors": {}, "caps": {}, "pivots": [], "exclude": ["s1", "s2", "s3"], "batch_rows": 1}
    alone |= {"curriculum_warmup_steps": 0, "curriculum_warmup_sources": [], "policy": "static"}
    lengths = []
    for kind in ("prepared", "streamed"):
        run = a_curriculum(folder, sources=sources, total_steps=5000, **alone, **read_as(kind))
        lengths.append(len(list(MixtureDataset(run))))
    assert lengths[0] == lengths[1]
    assert 10 < lengths[0] < 5000


def test_a_copy_composes_and_leaves_the_rest_to_the_data_set_that_it_is_of(folder: Path) -> None:
    original = MixtureDataset(a_curriculum(folder))
    batch = next(iter(original))
    only_there: list[Callable[[MixtureDataset], object]] = [
        lambda dataset: dataset.walk,
        lambda dataset: dataset.report(batch, losses_of(batch)),
        lambda dataset: dataset.delivered(batch),
        lambda dataset: dataset.probe_batch(batch),
    ]
    for made in (_copy_of(original), copy.copy(original), copy.copy(_copy_of(original))):
        assert made.step == original.step == 1
        with pytest.raises(TopologyError, match="has read nothing yet"):
            made.progress()
        assert next(iter(made))["step"] == 1
        assert made.progress().keys() == original.progress().keys()
        for call in only_there:
            with pytest.raises(TopologyError, match="only delivers"):
                call(made)
    assert original.report(batch, losses_of(batch))
