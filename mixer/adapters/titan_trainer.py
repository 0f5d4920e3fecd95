"""torchtitan's own trainer (0.3) over a ``MixtureDataset``: a data loader from its config, losses that are reported.

``examples/torchtitan_config.py`` is a config registry that uses it. Needs torchtitan; ``titan`` has what does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader, DataloaderExhaustedError
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.trainer import Trainer

from mixer.adapters.titan import KeptLosses, TitanLoader
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery.feedback import IGNORED_LABEL
from mixer.errors import ConfigError


class MixtureDataLoader(TitanLoader, BaseDataLoader):  # type: ignore[misc]  # torchtitan is not typed here
    """The batches of a run as torchtitan's trainer takes them: ``{"input", "positions"}`` and labels.

    Raises:
        ConfigError: rows of another length, or another number of them, than the trainer's config says.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):  # type: ignore[misc]
        """What torchtitan's config says of the data; paths are seen from the working folder."""

        curriculum: str = ""
        journal: str | None = None
        num_workers: int = 0

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        if not config.curriculum:
            raise ConfigError(["dataloader.curriculum is empty; give the path of a curriculum's YAML file"])
        curriculum = Curriculum.from_yaml(config.curriculum)
        rows = curriculum.rows_of_rank(dp_world_size)
        problems = []
        if curriculum.sequence_length != seq_len:
            problems.append(
                f"training.seq_len is {seq_len}, but sequence_length of {config.curriculum} is "
                f"{curriculum.sequence_length}; make them equal"
            )
        if rows != local_batch_size:
            problems.append(
                f"training.local_batch_size is {local_batch_size}, but batch_rows {curriculum.batch_rows} of "
                f"{config.curriculum} are {rows} on each of {dp_world_size} data-parallel ranks; make them equal (a "
                "batch that is accumulated is a step of the curriculum)"
            )
        if problems:
            raise ConfigError(problems)
        journal = None if dp_rank else config.journal  # one process writes it
        dataset = MixtureDataset(curriculum, rank=dp_rank, world_size=dp_world_size, journal=journal)
        TitanLoader.__init__(self, dataset, num_workers=config.num_workers, exhausted=DataloaderExhaustedError)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield inputs with positions int64 [b, T], and labels; a row is one causal stretch unless it has its own."""
        for inputs, labels in super().__iter__():
            shape = labels.shape
            positions = self.batch.get("position_ids")
            if positions is None:
                positions = torch.arange(shape[1]).expand(shape).contiguous()
            yield {**inputs, "positions": positions}, labels


class MixtureTrainer(Trainer):  # type: ignore[misc]
    """torchtitan's trainer, which reports the losses of each batch that it trains on.

    Ranks may differ in data parallelism (replicated or sharded), each with whole rows and whole logits. Its checkpoints
    hold the place in the data.

    Raises:
        ConfigError: another data loader, or settings under which a rank has no losses of whole rows.
    """

    loss_fn: Any

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):  # type: ignore[misc]
        """The same settings as torchtitan's."""

    def __init__(self, config: Config) -> None:
        problems = list(_problems(config))
        if problems:
            raise ConfigError(problems)
        super().__init__(config)
        if isinstance(self.loss_fn, ChunkedLossWrapper):
            self._losses = KeptLosses(self.loss_fn.loss_fn)
            self.loss_fn.loss_fn = self._losses
        else:
            self._losses = KeptLosses(self.loss_fn)
            self.loss_fn = self._losses

    def forward_backward_step(self, **arguments: Any) -> Tensor:
        """Train on a batch as torchtitan does, and report its losses."""
        loss: Tensor = super().forward_backward_step(**arguments)
        losses, labels = self._losses.taken(), arguments["labels"]
        self.dataloader.report(losses.masked_fill(labels == IGNORED_LABEL, 0.0))
        return loss


def _problems(config: Any) -> Iterator[str]:
    """Yield why losses could not be reported."""
    if not isinstance(config.dataloader, MixtureDataLoader.Config):
        yield f"dataloader is a {type(config.dataloader).__qualname__}; give MixtureDataLoader.Config(curriculum=...)"
    parallelism = config.parallelism
    for kind in ("pipeline", "tensor", "context"):
        degree = getattr(parallelism, f"{kind}_parallel_degree")
        if degree > 1:
            yield (
                f"{kind}_parallel_degree is {degree}: ranks would have parts of rows or logits, whose losses this "
                "adapter cannot put together; call TitanLoader.report in a trainer of your own (docs/delivery.md)"
            )
    if torch.cuda.is_available() and not config.training.disable_cuda_graphs:
        yield "CUDA graphs repeat the step without computing what is reported: set training.disable_cuda_graphs"
