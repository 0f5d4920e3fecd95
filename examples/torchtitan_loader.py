"""A torchtitan-shaped loader on a mesh of data and tensor parallelism, saved by ``torch.distributed.checkpoint``.

Ranks that share a data-parallel rank see the same rows; each reports them, and they count once. torchtitan's own
trainer takes ``torchtitan_config.py``; this is for a trainer of one's own that uses its checkpointer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh

from examples import tiny
from mixer import MixtureDataset
from mixer.adapters.titan import ExhaustedError, TitanLoader


def train(folder: Path, until: int, dp_size: int, tp_size: int) -> None:
    """Train this rank up to step ``until``, from the checkpoint in ``folder`` if there is one."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dp_size, tp_size), mesh_dim_names=("dp", "tp"))
    dataset = MixtureDataset(
        tiny.curriculum(folder),
        mesh=mesh,
        provenance=True,
    )
    loader = TitanLoader(dataset)
    assert isinstance(loader, Stateful)  # what torchtitan's checkpointer asks of it
    model = tiny.TinyModel()
    states = {"dataloader": loader}
    if (folder / "checkpoint").exists():
        dcp.load(states, checkpoint_id=folder / "checkpoint")  # type: ignore[attr-defined]

    log = folder / f"log-{dist.get_rank()}.jsonl"
    try:
        for inputs, labels in loader:
            losses = tiny.token_losses(model(inputs["input"]), labels)
            loader.report(losses)
            tiny.log(log, loader.batch, losses, dist.get_rank())
            if dataset.step == until:
                break
    except ExhaustedError as error:
        print(error)

    dcp.save(states, checkpoint_id=folder / "checkpoint")  # type: ignore[attr-defined]
    dist.destroy_process_group()


def main() -> None:
    """Train on two tensor-parallel ranks, then go on with two data-parallel ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.curriculum(folder)
        tiny.on_ranks(2, train, folder, tiny.STEPS // 2, 1, 2)
        tiny.on_ranks(2, train, folder, tiny.STEPS, 2, 1)
        print((folder / "log-0.jsonl").read_text())


if __name__ == "__main__":
    main()
