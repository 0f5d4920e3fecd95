"""Several ranks with DataLoader workers: all cut at the same step, and whoever waits in vain is told so."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mixer import agreement
from mixer.audit import audit
from mixer.batches import RowBatch
from mixer.config import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery import Rows
from mixer.streamed import StreamedReader
from tests.outages import PlannedOutage
from tests.ranks import in_ranks
from tests.test_turns import (
    STEPS,
    Batch,
    a_curriculum,
    folder,  # noqa: F401 (a fixture)
    pivots_of,
    reported,
    trained,
    with_the_same_cuts,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

DOWN = {1: {"s2": (12, 2)}, 0: {"s3": (10, 1)}}  # by rank


def assert_each_reader_gives_its_rows_in_order(
    curriculum: Curriculum, given: list[list[Batch]], num_workers: int
) -> None:
    for rank, batches in enumerate(given):
        assert [batch["step"] for batch in batches] == list(range(STEPS))
        rows = Rows(curriculum, rank=rank, world_size=len(given))
        for worker in range(num_workers):
            reader: Any = rows.open(lambda step: pytest.fail("not asked"), worker=worker, num_workers=num_workers)
            ids = np.concatenate([batch["source_ids"] for batch in batches[worker::num_workers]])
            inputs = np.concatenate([batch["input_ids"] for batch in batches[worker::num_workers]])
            for i, source in enumerate(reader._sources):
                mine = inputs[ids == i]
                assert mine.tolist() == source.take(len(mine))[:, :-1].tolist()


def numbers_of(batches: list[Batch]) -> list[tuple[int, int]]:
    """Return source and number of each row, whichever rank has it."""
    return sorted(row for batch in batches for row in zip(batch["source_ids"], batch["row_numbers"], strict=True))


def assert_all_cut_alike(curriculum: Curriculum, given: list[list[Batch]], journals: list[Path]) -> None:
    """The batches of all ranks together are those of one process that reads everything, with the same cuts."""
    pivots = [
        [(line["name"], line["at_step"], line["exclude"], line["floors"]) for line in pivots_of(path)]
        for path in journals
    ]
    assert all(of_rank == pivots[0] for of_rank in pivots)
    assert {name for _, _, exclude, _ in pivots[0] for name in exclude} == {"s2", "s3"}
    assert pivots[0][-1][2] == []
    expected = with_the_same_cuts(curriculum, pivots_of(journals[0]))
    for whole, *parts in zip(expected, *given, strict=True):
        for rank, batch in enumerate(parts):
            assert batch["source_ids"] == whole["source_ids"][rank :: len(parts)]
            assert (batch["step"], batch["phase"]) == (whole["step"], whole["phase"])
        assert numbers_of(parts) == numbers_of([whole])
    for path in journals:
        assert audit(path).difference is None


@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [(2, 2), *(pytest.param(*world, marks=pytest.mark.slow) for world in [(3, 1), (2, 0), (4, 2)])],
)
def test_ranks_with_workers_cut_where_one_process_would_and_lose_no_row(
    folder: Path,  # noqa: F811
    world_size: int,
    num_workers: int,
    tmp_path: Path,
) -> None:
    curriculum = a_curriculum(folder, batch_rows=4 * world_size)
    journals = [tmp_path / f"{rank}.jsonl" for rank in range(world_size)]

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(curriculum, journal=journals[rank], provenance=True)
        ahead = {"prefetch_factor": 1 + rank % 2} if num_workers else {}
        with pytest.MonkeyPatch.context() as patch:
            PlannedOutage(DOWN.get(rank, {}), patch)
            return trained(dataset, num_workers=num_workers, **ahead)

    given = in_ranks(world_size, job)
    assert all(isinstance(batches, list) for batches in given), given
    assert_all_cut_alike(curriculum, given, journals)
    assert_each_reader_gives_its_rows_in_order(curriculum, given, max(num_workers, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("is_stateful", [False, True])
def test_ranks_that_are_stopped_and_restored_go_on(
    folder: Path,  # noqa: F811
    is_stateful: bool,
    tmp_path: Path,
) -> None:
    """The source is back when they go on; first in the same process, then in new ones."""
    curriculum = a_curriculum(folder)
    journals = [tmp_path / f"{rank}.jsonl" for rank in range(2)]

    def loader_of(dataset: MixtureDataset) -> Any:
        if is_stateful:
            stateful = pytest.importorskip("torchdata.stateful_dataloader")
            return stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=2)
        return DataLoader(dataset, batch_size=None, num_workers=2)

    def job(rank: int, world_size: int, stops: tuple[int, ...], states: list[Any]) -> Any:
        dataset = MixtureDataset(curriculum, journal=journals[rank], provenance=True)
        loader, batches = loader_of(dataset), []
        if states:
            dataset.load_state_dict(states[rank][0])
            if is_stateful:
                loader.load_state_dict(states[rank][1])
        with pytest.MonkeyPatch.context() as patch:
            PlannedOutage({"s2": (8, 3)} if rank == 1 and not states else {}, patch)
            for stop in stops:
                for batch in loader:
                    batches.append(reported(dataset, batch))
                    if batch["step"] == stop - 1:
                        break
                if is_stateful:
                    break
        of_loader = copy.deepcopy(loader.state_dict()) if is_stateful else None
        state = [json.loads(json.dumps(dataset.state_dict())), of_loader]
        dataset.walk.close_journal()
        return batches, state

    first = in_ranks(2, lambda rank, world_size: job(rank, world_size, (40, 70), []))
    assert all(isinstance(each, tuple) for each in first), first
    second = in_ranks(2, lambda rank, world_size: job(rank, world_size, (STEPS,), [state for _, state in first]))
    assert all(isinstance(each, tuple) for each in second), second
    given = [one + other for (one, _), (other, _) in zip(first, second, strict=True)]
    assert_each_reader_gives_its_rows_in_order(curriculum, given, 2)
    names = [[line["name"] for line in pivots_of(path)] for path in journals]
    assert names[0] == names[1]
    assert names[0]
    assert audit(journals[0]).difference is None


@pytest.mark.slow
def test_ranks_that_leave_loops_around_a_cut_agree_all_the_same(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """What was prefetched when a loop is left may hold a cut that not every rank has heard of."""
    curriculum = a_curriculum(folder)
    journals = [tmp_path / f"{rank}.jsonl" for rank in range(2)]

    def job(rank: int, world_size: int) -> Any:
        dataset, batches = MixtureDataset(curriculum, journal=journals[rank], provenance=True), []
        loader = DataLoader(dataset, batch_size=None, num_workers=2)
        with pytest.MonkeyPatch.context() as patch:
            PlannedOutage(DOWN[rank], patch)
            for stop in (*range(24, 48, 2), STEPS):
                for batch in loader:
                    batches.append(reported(dataset, batch))
                    if batch["step"] == stop - 1:
                        break
        return batches

    given = in_ranks(2, job)
    assert all(isinstance(batches, list) for batches in given), given
    assert_all_cut_alike(curriculum, given, journals)
    assert_each_reader_gives_its_rows_in_order(curriculum, given, 2)


@pytest.mark.slow
def test_spawned_workers_of_ranks_give_what_forked_ones_give(folder: Path) -> None:  # noqa: F811
    curriculum = a_curriculum(folder, total_steps=20)

    def job(rank: int, world_size: int) -> Any:
        return [
            trained(MixtureDataset(curriculum), num_workers=1, multiprocessing_context=method)
            for method in ("fork", "spawn")
        ]

    for forked, spawned in in_ranks(2, job):
        assert len(forked) == 20
        assert forked == spawned


def test_a_source_that_cannot_be_suspended_ends_all_ranks_with_the_reason(folder: Path) -> None:  # noqa: F811
    curriculum = a_curriculum(folder, caps={"s0": 0.3, "s1": 0.3, "s3": 0.3})

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(curriculum)
        with pytest.MonkeyPatch.context() as patch:
            PlannedOutage({"s2": (12, 10**6)} if rank == 1 else {}, patch)
            return trained(dataset, num_workers=2)

    for rank, error in enumerate(in_ranks(2, job)):
        where = r" \(on rank 1\)" if rank == 0 else ""
        expected = f"SourceUnavailableError: .*s2: cannot be reached.*{where}; it cannot be suspended at step .*caps"
        assert re.search(expected, str(error), re.DOTALL), error


@pytest.mark.parametrize("dies", [1, 0])
def test_a_rank_that_is_killed_ends_the_others(folder: Path, dies: int) -> None:  # noqa: F811
    """Nothing is reported, so that no collective notices it."""
    curriculum = a_curriculum(folder)

    def job(rank: int, world_size: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agreement, "BEAT_S", 0.2)
            patch.setattr(agreement, "SILENT_S", 1.5 if dies else 30.0)  # rank 0 takes the store with it
            dataset = MixtureDataset(curriculum)
            for batch in DataLoader(dataset, batch_size=None, num_workers=2):
                dataset.delivered(batch)
                if rank == dies and batch["step"] == 20:
                    os.kill(os.getpid(), signal.SIGKILL)

    told = {1: "TopologyError: rank 1 is gone: nothing was heard of it", 0: "TopologyError: rank 0, which keeps what"}
    assert told[dies] in in_ranks(2, job, killed=[dies])[1 - dies]


def test_a_worker_that_is_killed_ends_the_other_ranks(folder: Path) -> None:  # noqa: F811
    curriculum, read = a_curriculum(folder), StreamedReader.read

    def dies(reader: StreamedReader, step: int) -> RowBatch:
        if step == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, step)

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(curriculum)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(StreamedReader, "read", dies)
            for batch in DataLoader(dataset, batch_size=None, num_workers=2):
                dataset.delivered(batch)

    zero, one = in_ranks(2, job)
    assert "rank 1 will not compose step 21: the worker that was to is gone" in zero
    assert one.startswith("RuntimeError: DataLoader worker")
