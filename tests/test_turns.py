"""Workers that stream what may be suspended: each step is given away once nobody can cut below it, exactly and for ever."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mixer.audit import audit
from mixer.batches import RowBatch
from mixer.channel import Answering, Asking
from mixer.config import Curriculum, Pivot
from mixer.dataset import MixtureDataset
from mixer.delivery import Desk, Rows
from mixer.errors import MixerError, SourceUnavailableError, TopologyError
from mixer.journal import read_journal
from mixer.phases import Phase
from mixer.replay import Replay
from mixer.streamed import StreamedReader
from mixer.suspension import Suspension
from mixer.turns import InTurn, Turns
from mixer.walk import Walk
from tests.curricula import write_sources
from tests.outages import PlannedOutage

T, B, STEPS = 16, 8, 150
DOWN = {"s2": (12, 2), "s3": (20, 1)}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("turns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        write_sources(folder, num_documents=120)
        yield folder


def a_curriculum(folder: Path, **changes: Any) -> Curriculum:
    """A run that goes on without a source; the lag covers 3 workers of 2 batches."""
    sources = [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl"), "on_failure": "suspend"} for k in range(4)]
    fields: dict[str, Any] = {
        "seed": 3,
        "total_steps": STEPS,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": sources,
        "floors": {"s0": 0.2, "s2": 0.1},
        "phases": {"initial_random": 2, "max_steps": 12},
        "feedback_lag": 8,
        "retries": {"attempts": 1},
    }
    return Curriculum(**(fields | changes))


Batch = dict[str, Any]


def reported(dataset: MixtureDataset, batch: Batch) -> Batch:
    """Report made-up losses that depend on the step and the sources alone; return the batch as plain data."""
    losses = 2.0 + batch["source_ids"] / (1.0 + batch["step"])
    dataset.report(batch, losses[:, None].expand(-1, T).to(torch.float32))
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def trained(dataset: MixtureDataset, *, stop: int = STEPS, **loading: Any) -> list[Batch]:
    """Train up to before step ``stop``: every batch is reported before the next is asked for."""
    batches: list[Batch] = []
    for batch in DataLoader(dataset, batch_size=None, **loading):
        batches.append(reported(dataset, batch))
        if batch["step"] == stop - 1:
            break
    return batches


def pivots_of(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_journal(path) if line["type"] == "pivot"]


def with_the_same_cuts(curriculum: Curriculum, pivots: list[dict[str, Any]]) -> list[Batch]:
    """Train in one process that can read everything, and give it these pivots at their steps."""
    dataset = MixtureDataset(curriculum, walk=Walk(curriculum), provenance=True)
    batches: list[Batch] = []
    iterator = iter(dataset)
    while len(batches) < STEPS:
        for line in pivots:
            if line["at_step"] == dataset.step:
                bounds = {key: line[key] for key in ("floors", "caps", "exclude")}
                dataset.walk.pivot(Pivot(name=f"given-{line['name']}", **bounds), line["at_step"], cut=True)
        batches.append(reported(dataset, next(iterator)))
    return batches


def without_rows(batches: list[Batch]) -> list[Batch]:
    return [{key: batch[key] for key in ("step", "phase", "source_ids", "row_numbers")} for batch in batches]


def assert_no_row_is_lost_or_repeated(curriculum: Curriculum, batches: list[Batch], num_workers: int) -> None:
    """Each worker's rows of a source are those that its stream gives, from the first on."""
    assert [batch["step"] for batch in batches] == list(range(STEPS))
    rows = Rows(curriculum, rank=0, world_size=1)
    for worker in range(num_workers):
        reader: Any = rows.open(lambda step: pytest.fail("not asked"), worker=worker, num_workers=num_workers)
        mine = batches[worker::num_workers]
        ids = np.concatenate([batch["source_ids"] for batch in mine])
        inputs = np.concatenate([batch["input_ids"] for batch in mine])
        for i, source in enumerate(reader._sources):
            given = inputs[ids == i]
            assert given.tolist() == source.take(len(given))[:, :-1].tolist()


class Scripted:
    """A reader that composes nothing, and cannot while a source that it is to draw from is down: at these steps."""

    def __init__(self, phase_at: Callable[[int], Phase], down: dict[str, range]) -> None:
        self._phase_at, self._down = phase_at, down
        self.step = 0

    def read(self, step: int) -> RowBatch:
        phase = self._phase_at(step)
        lost = lost_at(step, phase, self._down)
        if lost is not None:
            raise SourceUnavailableError(f"source {lost} is down", name=lost)
        weights: Any = phase.weights
        return RowBatch(step, phase.start, weights, *(np.zeros(0, dtype=np.int64),) * 2)

    def give_back(self, batch: RowBatch) -> None:
        assert batch.step == self.step

    def probe(self, name: str) -> bool:
        return self.step not in self._down.get(name, range(0))


def lost_at(step: int, phase: Phase, down: dict[str, range]) -> str | None:
    drawn = (name for name, weight in zip(phase.names, phase.weights, strict=True) if weight > 0)
    return next((name for name in drawn if step in down.get(name, range(0))), None)


class Direct:
    """What a worker asks, without a process and a socket between."""

    def __init__(self, methods: dict[str, Callable[..., Any]]) -> None:
        self._methods = methods

    def call(self, method: str, *arguments: Any) -> Any:
        return self._methods[method](*arguments)

    def phase_at(self, step: int) -> Phase:
        phase: Phase = self.call("phase", step)
        return phase

    def forget(self) -> None:
        """Nothing is kept."""


Given = list[tuple[int, int, list[float]]]  # step, its phase's start and weights


def in_threads(curriculum: Curriculum, down: dict[str, range], num_workers: int) -> tuple[Given, list[str], Walk]:
    """Compose in turn, each worker a thread; return what was given, which errors came, and the walk."""
    walk = Walk(curriculum)
    desk = Desk(walk, cast(Any, SimpleNamespace(epoch_tokens=dict, is_prepared=False)))
    turns = Turns(desk, Suspension(curriculum, walk))
    batches: Given = []
    errors: list[str] = []

    def work(worker: int) -> None:
        phases: Any = Direct(desk.methods() | turns.methods())
        phases.call("begin", "this one", num_workers, None)
        reader: Any = Scripted(phases.phase_at, down)
        in_turn = InTurn(phases, "this one", num_workers, worker, 0)
        try:
            for reader.step in range(worker, curriculum.total_steps, num_workers):
                batch = in_turn.read(reader, reader.step)
                batches.append((batch.step, batch.phase, batch.rows.tolist()))
        except MixerError as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    return sorted(batches), errors, walk


def one_by_one(curriculum: Curriculum, down: dict[str, range], num_workers: int) -> tuple[Given, list[str], Walk]:
    """Compose one step after the other; what was suspended is taken back if each worker's first step could read it."""
    walk = Walk(curriculum)
    suspension = Suspension(curriculum, walk)
    batches: Given = []
    for step in range(curriculum.total_steps):
        phase = walk.phase_at(step)
        while (lost := lost_at(step, phase, down)) is not None:
            try:
                suspension.suspend(SourceUnavailableError(f"source {lost} is down", name=lost), step)
            except SourceUnavailableError as error:
                return batches, [f"SourceUnavailableError: {error}"], walk
            phase = walk.phase_at(step)
        batches.append((step, phase.start, phase.weights.tolist()))
        if step == phase.start + num_workers - 1 and walk.regime_at(step).start < phase.start:
            first = range(phase.start, step + 1)
            suspension.take_back(step, lambda name, first=first: not {*first} & {*down.get(name, ())})  # type: ignore[misc]
    return batches, [], walk


spans = st.builds(lambda start, length: range(start, start + length), st.integers(1, 70), st.integers(1, 60))


@settings(deadline=None, max_examples=30)
@given(num_workers=st.integers(1, 4), down=st.dictionaries(st.sampled_from(["s1", "s2", "s3"]), spans, max_size=3))
def test_any_number_of_workers_cuts_where_one_reader_would(num_workers: int, down: dict[str, range]) -> None:
    curriculum = a_curriculum(Path(), total_steps=90)
    batches, errors, walk = in_threads(curriculum, down, num_workers)
    expected, problem, walk_alone = one_by_one(curriculum, down, num_workers)
    assert batches == expected
    assert walk.state_dict() == walk_alone.state_dict()
    assert [error for error in errors if not error.startswith("TopologyError: the worker that was to")] == problem


@pytest.mark.parametrize(
    "num_workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_workers_give_the_batches_of_one_process_with_the_same_cuts_and_lose_no_row(
    folder: Path, num_workers: int, tmp_path: Path
) -> None:
    curriculum, path = a_curriculum(folder), tmp_path / "walk.jsonl"
    dataset = MixtureDataset(curriculum, journal=path, provenance=True)  # which reads a sample for its tokenizer
    with pytest.MonkeyPatch.context() as patch:
        PlannedOutage(DOWN, patch)
        batches = trained(dataset, num_workers=num_workers)
    pivots = pivots_of(path)
    assert any({"s2", "s3"} & set(pivot["exclude"]) for pivot in pivots)
    assert pivots[-1]["exclude"] == []
    expected = with_the_same_cuts(curriculum, pivots)
    assert without_rows(batches) == without_rows(expected)
    assert num_workers > 1 or batches == expected
    assert_no_row_is_lost_or_repeated(curriculum, batches, num_workers)
    assert audit(path).difference is None
    assert trained(MixtureDataset(curriculum, walk=Replay(path), provenance=True), num_workers=num_workers) == batches


@pytest.mark.parametrize("stop", [17, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (12, 19, 45))])
def test_a_run_that_is_stopped_before_or_within_a_suspension_goes_on(folder: Path, stop: int, tmp_path: Path) -> None:
    """The first cut is at step 18. Who goes on before it needs the source again, which is back and goes once more."""
    curriculum, path = a_curriculum(folder), tmp_path / "walk.jsonl"
    first = MixtureDataset(curriculum, journal=path, provenance=True)
    with pytest.MonkeyPatch.context() as patch:
        PlannedOutage(DOWN, patch)
        batches = trained(first, stop=stop, num_workers=2)
    state = json.loads(json.dumps(first.state_dict()))
    first.walk.close_journal()
    second = MixtureDataset(curriculum, journal=path, provenance=True)
    second.load_state_dict(state)
    with pytest.MonkeyPatch.context() as patch:
        PlannedOutage({"s2": (24, 1)}, patch)
        batches += trained(second, num_workers=2)
    assert any("s2" in pivot["exclude"] for pivot in pivots_of(path))
    assert_no_row_is_lost_or_repeated(curriculum, batches, 2)
    assert audit(path).difference is None
    assert trained(MixtureDataset(curriculum, walk=Replay(path), provenance=True), num_workers=2) == batches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_stateful_loader_goes_on_from_its_own_state_within_a_suspension(folder: Path, tmp_path: Path) -> None:
    """It keeps which phase its workers composed, which was cut since."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    curriculum, path = a_curriculum(folder), tmp_path / "walk.jsonl"
    batches: list[Batch] = []
    state: list[Any] = []
    for stop in (17, 40, STEPS):
        dataset = MixtureDataset(curriculum, journal=path, provenance=True)
        loader = stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=2)
        if state:
            dataset.load_state_dict(state[0])
            loader.load_state_dict(state[1])
        with pytest.MonkeyPatch.context() as patch:
            PlannedOutage({"s3": (20, 3)} if stop < STEPS else {}, patch)
            for batch in loader:
                batches.append(reported(dataset, batch))
                if batch["step"] == stop - 1:
                    break
        state = copy.deepcopy([dataset.state_dict(), loader.state_dict()])
        dataset.walk.close_journal()
    assert any("s3" in pivot["exclude"] for pivot in pivots_of(path))
    assert_no_row_is_lost_or_repeated(curriculum, batches, 2)
    assert trained(MixtureDataset(curriculum, walk=Replay(path), provenance=True), num_workers=2) == batches


@pytest.mark.slow
@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_loop_that_is_left_goes_on_where_it_was_left(folder: Path, is_persistent: bool) -> None:
    curriculum = a_curriculum(folder)
    whole = trained(MixtureDataset(curriculum), num_workers=2)
    dataset = MixtureDataset(curriculum)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=is_persistent)
    batches: list[Batch] = []
    for stop in (3, 40, STEPS):
        for batch in loader:
            batches.append(reported(dataset, batch))
            if batch["step"] == stop - 1:
                break
    assert batches == whole


@pytest.mark.slow
def test_spawned_workers_give_what_forked_ones_give(folder: Path) -> None:
    curriculum = a_curriculum(folder, total_steps=40)
    forked, spawned = (
        trained(MixtureDataset(curriculum), num_workers=2, multiprocessing_context=method)
        for method in ("fork", "spawn")
    )
    assert forked == spawned


@pytest.mark.parametrize(("num_workers", "num_steps"), [(3, 2), (2, 5)])
def test_workers_without_a_step_keep_nobody_waiting(folder: Path, num_workers: int, num_steps: int) -> None:
    dataset = MixtureDataset(a_curriculum(folder, total_steps=num_steps))
    assert len(trained(dataset, num_workers=num_workers)) == num_steps


def test_rows_that_are_collated_from_parts_of_several_steps_keep_nobody_waiting(folder: Path) -> None:
    """A worker's batch of 12 rows needs two of its steps, and the steps of the other worker between them."""
    dataset = MixtureDataset(a_curriculum(folder, total_steps=40), batches=False)
    steps = [step for rows in DataLoader(dataset, batch_size=12, num_workers=2) for step in rows["step"].tolist()]
    assert sorted(steps) == sorted(list(range(40)) * B)


def test_an_error_of_one_worker_ends_the_run_with_its_own_words(folder: Path) -> None:
    """Without s2 the caps leave no mixture, so that it cannot be suspended."""
    dataset = MixtureDataset(a_curriculum(folder, caps={"s0": 0.3, "s1": 0.3, "s3": 0.3}))
    with pytest.MonkeyPatch.context() as patch:
        PlannedOutage({"s2": (12, 10**6)}, patch)
        with pytest.raises(
            SourceUnavailableError, match="s2: cannot be reached.*it cannot be suspended at step .*caps"
        ):
            trained(dataset, num_workers=3)
    assert dataset.step > 5


def test_a_worker_that_is_killed_while_others_wait_for_it_ends_the_run(folder: Path) -> None:
    dataset, read = MixtureDataset(a_curriculum(folder)), StreamedReader.read

    def dies(reader: StreamedReader, step: int) -> RowBatch:
        if step == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamedReader, "read", dies)
        with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly|is killed by signal"):
            trained(dataset, num_workers=3)
    assert dataset.step <= 21


def test_who_waits_for_a_worker_that_is_gone_is_told_which_step_is_missing() -> None:
    curriculum = a_curriculum(Path())
    walk = Walk(curriculum)
    desk = Desk(walk, cast(Any, SimpleNamespace(epoch_tokens=dict, is_prepared=False)))
    turns = Turns(desk, Suspension(curriculum, walk))
    answering = Answering(desk.methods() | turns.methods(), on_leave=turns.leave)
    address = answering.open()
    answering.start()
    gone, waiting = Asking(address), Asking(address)
    for worker, asking in enumerate((gone, waiting)):
        asking.call("begin", "this one", 2, None)
        asking.call("join", "this one", 2, worker, 0)
    threading.Timer(0.2, gone._connection.close).start()  # before it is asked for, or meanwhile
    assert "worker that was to compose step 0 is gone" in error_of(waiting, "compose", 1, 0, None, None)
    desk.read_here()
    assert "this worker's loop was left" in error_of(waiting, "phase", 10**6)
    answering.close()


def error_of(asking: Asking, method: str, *arguments: Any) -> str:
    errors: list[str] = []

    def ask() -> None:
        try:
            asking.call(method, *arguments)
        except TopologyError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(100)
    return "".join(errors)
