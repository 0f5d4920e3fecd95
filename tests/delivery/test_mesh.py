"""A trainer that is parallel in several ways: who shares rows sees the same rows, and all decide alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery.mesh import KNOWN_AXES, _roles_of
from mixer.errors import TopologyError
from mixer.sources.prepared.prepare import prepare
from tests.support.curricula import write_sources
from tests.support.ranks import in_ranks

T, B, STEPS = 16, 8, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mesh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        write_sources(folder)
        prepare(a_curriculum(folder, prepared=None), folder / "rows")
        yield folder


def a_curriculum(folder: Path, **changes: Any) -> Curriculum:
    fields: dict[str, Any] = {
        "seed": 3,
        "total_steps": STEPS,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "prepared": str(folder / "rows"),
        "sources": [{"name": f"s{k}", "data_files": str(folder / f"s{k}.jsonl")} for k in range(4)],
        "phases": {"initial_random": 1, "max_steps": 9},
    }
    return Curriculum(**(fields | changes))


def losses_of(batch: dict[str, Any]) -> torch.Tensor:
    """Losses that differ from token to token, and move the walk."""
    return 2.0 + batch["source_ids"][:, None] / (1.0 + batch["step"]) + batch["labels"] / 512


Trained = tuple[list[tuple[list[list[int]], list[int]]], Any]


def trained(dataset: MixtureDataset, said: Callable[[dict[str, Any]], torch.Tensor | None]) -> Trained:
    """Train to the end; return the batches, and what the walk knows at last."""
    batches = []
    for batch in dataset:
        dataset.report(batch, said(batch))
        batches.append((batch["input_ids"].tolist(), batch["source_ids"].tolist()))
    return batches, dataset.walk.state_dict(from_step=STEPS)


def on_mesh(folder: Path, shape: tuple[int, ...], names: tuple[str, ...], **roles: Any) -> list[Any]:
    """Train on real ranks: the last stage alone has losses, and each context-parallel rank those of its slice."""

    def job(rank: int, world_size: int) -> Any:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        place = dict(zip(names, mesh.get_coordinate() or (), strict=True))
        size = dict(zip(names, shape, strict=True))
        dataset = MixtureDataset(a_curriculum(folder), mesh=mesh, **roles)

        def said(batch: dict[str, Any]) -> torch.Tensor | None:
            is_last = place.get("pp", 0) == size.get("pp", 1) - 1
            return losses_of(batch).chunk(size.get("cp", 1), dim=1)[place.get("cp", 0)] if is_last else None

        return (dataset.rank, dataset.world_size), trained(dataset, said)

    return in_ranks(int(torch.tensor(shape).prod()), job)


def assert_as_one_process(folder: Path, given: list[Any]) -> None:
    expected, walk = trained(MixtureDataset(a_curriculum(folder)), losses_of)
    assert len({str(batch) for batch in expected}) == STEPS
    for result in given:
        assert not isinstance(result, str), result
        (rank, world_size), (batches, its_walk) = result
        assert its_walk == walk
        assert batches == [(ids[rank::world_size], sources[rank::world_size]) for ids, sources in expected]


MESHES: list[tuple[tuple[int, ...], tuple[str, ...]]] = [
    ((2,), ("pp",)),
    ((2,), ("cp",)),
    ((2,), ("tp",)),
    ((1, 2, 1), ("pp", "dp", "tp")),
    ((2, 2, 2), ("pp", "dp", "cp")),
    ((2, 2, 2), ("pp", "dp_shard", "tp")),
    ((2, 2, 2), ("dp_replicate", "fsdp", "cp")),
    ((2, 1, 2, 2), ("dp", "pp", "cp", "tp")),
]


@pytest.mark.parametrize(
    ("shape", "names"),
    [pytest.param(*m, marks=[] if len(m[0]) == 1 else pytest.mark.slow) for m in MESHES],
)
def test_all_ranks_of_a_mesh_decide_as_one_process_and_see_their_rows(
    folder: Path, shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    assert_as_one_process(folder, on_mesh(folder, shape, names))


def test_axes_with_names_of_ones_own_are_what_the_user_says(folder: Path) -> None:
    given = on_mesh(folder, (1, 2), ("stages", "rows"), mesh_axes={"stages": "model", "rows": "data"})
    assert [place for place, _ in given] == [(0, 2), (1, 2)]
    assert_as_one_process(folder, given)


def test_a_report_that_others_would_not_hear_of_is_refused(folder: Path) -> None:
    """Only the last of two pipeline stages reports: the other would decide on from no losses."""

    def job(rank: int, world_size: int) -> Any:
        dataset = MixtureDataset(a_curriculum(folder), rank=0, world_size=1)
        batch = next(iter(dataset))
        if rank == 1:
            dataset.report(batch, losses_of(batch))

    quiet, refused = in_ranks(2, job)
    assert quiet is None
    assert refused.startswith("TopologyError: the data set was made for 1 of the 2 ranks of torch.distributed"), refused
    assert "make it with mesh=" in refused


def mesh_job(folder: Path, what: Callable[[MixtureDataset, dict[str, Any], int], Any], axis: str) -> list[Any]:
    def job(rank: int, world_size: int) -> Any:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(axis,))
        dataset = MixtureDataset(a_curriculum(folder), mesh=mesh)
        return what(dataset, next(iter(dataset)), rank)

    return in_ranks(2, job)


def test_reports_that_do_not_make_whole_rows_are_refused_on_all_ranks(folder: Path) -> None:
    def both_whole(dataset: MixtureDataset, batch: dict[str, Any], rank: int) -> Any:
        return dataset.report(batch, losses_of(batch))

    def one_slice(dataset: MixtureDataset, batch: dict[str, Any], rank: int) -> Any:
        return dataset.report(batch, losses_of(batch)[:, : T // 2] if rank else None)

    def other_rows(dataset: MixtureDataset, batch: dict[str, Any], rank: int) -> Any:
        part = {"step": batch["step"], "source_ids": batch["source_ids"][: B - rank]}
        return dataset.report(part, losses_of(batch)[: B - rank, : T // 2])

    def nobody(dataset: MixtureDataset, batch: dict[str, Any], rank: int) -> Any:
        return dataset.report(batch, None)

    def of_one_rank(dataset: MixtureDataset, batch: dict[str, Any], rank: int) -> Any:
        return dataset.report(batch, losses_of(batch) if rank else None)

    for axis, what, message in [
        ("cp", both_whole, f"2 context-parallel ranks report {2 * T} tokens of each row of {T}"),
        ("cp", one_slice, f"2 context-parallel ranks report {T // 2} tokens of each row of {T}"),
        ("cp", other_rows, "and another does not"),
        ("pp", nobody, "no rank of the mesh has losses of step 0"),
        ("dp", of_one_rank, "1 of 2 data-parallel ranks have losses of step 0"),
    ]:
        for result in mesh_job(folder, what, axis):
            assert isinstance(result, str), (axis, what)
            assert result.startswith("FeedbackError"), result
            assert message in result


def test_the_proof_spans_all_ranks_of_the_mesh(folder: Path) -> None:
    def job(rank: int, world_size: int) -> Any:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("pp",))
        return trained(MixtureDataset(a_curriculum(folder, seed=3 + rank), mesh=mesh), lambda b: losses_of(b) * rank)

    for result in in_ranks(2, job):
        assert str(result).startswith("RankMismatchError: rank 1 decided phase 0 of step 0 differently"), result


def test_a_slice_of_a_mesh_or_a_mesh_beside_a_rank_is_refused(folder: Path) -> None:
    def job(rank: int, world_size: int) -> list[str]:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        errors = []
        for given in ({"mesh": mesh["dp"]}, {"mesh": mesh, "rank": 0, "world_size": 1}):
            with pytest.raises(TopologyError) as error:
                MixtureDataset(a_curriculum(folder), **given)
            errors.append(str(error.value))
        return errors

    for part, beside in in_ranks(2, job):
        assert "the mesh has 1 ranks and torch.distributed has 2" in part
        assert "give no rank, world_size or process_group with it" in beside


def named(*names: str) -> Any:
    return SimpleNamespace(mesh_dim_names=names or None, shape=(1,) * len(names))


def test_axes_of_unknown_meaning_are_refused_with_what_to_say() -> None:
    assert list(_roles_of(named(*KNOWN_AXES), {}).values()) == list(KNOWN_AXES.values())
    for name in ("ep", "dp_cp", "dp_shard_cp", "sp", "x"):
        with pytest.raises(TopologyError, match=f"not clear what ranks along the mesh axis {name} share"):
            _roles_of(named("dp", name), {})
        assert _roles_of(named("dp", name), {name: "context"}) == {"dp": "data", name: "context"}
    with pytest.raises(TopologyError, match="does not name its axes"):
        _roles_of(named(), {})
    with pytest.raises(TopologyError, match="names x, which is no axis of the mesh: it has dp"):
        _roles_of(named("dp"), {"x": "data"})
    with pytest.raises(TopologyError, match="gives dp the role 'rows'"):
        _roles_of(named("dp"), {"dp": "rows"})  # type: ignore[dict-item]


def test_a_rank_alone_cannot_leave_its_losses_to_others(folder: Path) -> None:
    dataset = MixtureDataset(a_curriculum(folder))
    batch = next(iter(dataset))
    with pytest.raises(Exception, match=r"reports no losses \(None\).*mesh="):
        dataset.report(batch, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [("dp", "pp"), ("pp", "dp")])
def test_a_pipeline_schedule_trains_and_all_stages_decide_alike(folder: Path, names: tuple[str, str]) -> None:
    """Of torch's own: two stages on each of two data-parallel ranks."""

    def job(rank: int, world_size: int) -> Any:
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
        return _piped(folder, mesh, PipelineStage, ScheduleGPipe)

    given = in_ranks(4, job)
    assert not any(isinstance(each, str) for each in given), given
    walks = [walk for _, _, walk in given]
    assert all(walk == walks[0] for walk in walks)
    for (dp, batches, _), (other_dp, other_batches, _) in itertools.combinations(given, 2):
        assert (batches == other_batches) == (dp == other_dp)


def _piped(folder: Path, mesh: DeviceMesh, stage_of: Any, schedule_of: Any) -> Any:
    torch.manual_seed(0)
    stage, dataset = mesh.get_local_rank("pp"), MixtureDataset(a_curriculum(folder, total_steps=25), mesh=mesh)
    module: nn.Module = nn.Embedding(300, 8) if stage == 0 else nn.Linear(8, 300)
    found: list[torch.Tensor] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        found.append(each.detach())
        return each.mean()

    schedule = schedule_of(stage_of(module, stage, 2, torch.device("cpu"), group=mesh.get_group("pp")), 2, loss_fn=loss)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    batches = []
    for batch in dataset:
        found.clear()  # of the last step; the schedule's first one calls the loss once more, for its shape
        if stage == 0:
            schedule.step(batch["input_ids"])
        else:
            schedule.step(target=batch["labels"], losses=[])
        optimizer.step()
        optimizer.zero_grad()
        dataset.report(batch, torch.cat(found[-2:]) if found else None)
        batches.append(batch["input_ids"].tolist())
    return dataset.rank, batches, dataset.walk.state_dict(from_step=25)
