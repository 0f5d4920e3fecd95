"""Packed token batches in the mixture that the walk decides: a PyTorch ``IterableDataset`` with exact state.

A data set holds one side: ``Owner`` in the process that made it, ``Copy`` in DataLoader workers and other copies.
Batches are composed last: in the owner's process a phase decided after step s is in batch s + 1. Workers compose ahead
and ask the owner for each phase, so that a change arrives exactly at its announced step; with a ``feedback_lag`` of at
least the batches that the loader prefetches, the run does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mixer.config.curriculum import Curriculum
from mixer.delivery.composer import BatchFormat
from mixer.delivery.consumers import check_consumer
from mixer.delivery.copies import Copy
from mixer.delivery.decider import Decider
from mixer.delivery.mesh import MeshRanks, Role
from mixer.delivery.owner import Owner
from mixer.delivery.ranks import Ranks, default_ranks
from mixer.delivery.readers import ReaderFactory
from mixer.delivery.suspension import may_suspend, refused
from mixer.delivery.tensors import Batch
from mixer.errors import ConfigError, TopologyError
from mixer.journal.file import Journal
from mixer.losses import SourceLosses
from mixer.sources.base import Progress
from mixer.sources.masks import check_wide
from mixer.sources.packing import WIDE

if TYPE_CHECKING:
    import datasets
    from torch.distributed.device_mesh import DeviceMesh

    from mixer.sources.tokenizer import TextTokenizer


class MixtureDataset(IterableDataset[Batch]):
    """The run's batches, from the step where it stands to ``total_steps``.

    A batch is a dict: ``input_ids`` and ``labels`` int64 [b, T] (``labels[:, t]`` follows ``input_ids[:, t]``),
    ``source_ids`` int64 [b], and the ints ``step`` and ``phase``; b is ``batch_rows`` / ``world_size``. Iterating again
    goes on where it stopped; stopped at any step and restored, the rest of the batches are bit-identical.

    With DataLoader workers this process hears of a batch when it is reported: ``state_dict`` is then the state after
    the newest reported step; a trainer that reports nothing says which batches it trained on with ``delivered``, or
    begins again where the data set stood.

    A streamed source whose ``on_failure`` is ``suspend`` needs one reading process: one rank without workers.

    Args:
        curriculum: the run.
        rank, world_size: whose rows of the global batch to deliver; those of ``torch.distributed`` by default, or all.
        process_group: the ranks that share the global batch, if they are not all of ``torch.distributed``.
        mesh: all ranks of a trainer that is parallel in other ways, too, instead of the three above: rank and world
            size are those of its data-parallel axes, and every report reaches all of its ranks.
        mesh_axes: what axes with names of your own are: "data" if their ranks have other rows, "context" if other
            tokens of the same rows, "model" if the same tokens.
        walk: who decides; by default a ``Walk`` of its own. A ``Replay`` repeats a recorded run.
        journal: where its own walk is recorded: an open Journal, or a path that is created or gone on with.
        streams: Hugging Face ``IterableDataset`` objects by source name, instead of what the config names.
        tokenizer: instead of the one that the config names.
        batches: yield whole batches; False yields rows (``input_ids`` [T], ...) for trainers that collate.
        provenance: add ``row_numbers`` int64 [b]: the number of each row in its source, over all epochs.
        compact: leave ``input_ids`` and ``labels`` in the smallest type that holds the vocabulary (uint8, uint16 or
            uint32), a quarter of the bytes for most: move them to the device, and ``.long()`` there.

    Raises:
        ConfigError, SourceError, TokenizerError: what cannot be read, before the first batch.
        TopologyError: ranks that cannot share the batch, streams that so many readers cannot share, or a mesh whose
            axes are unclear.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        mesh: DeviceMesh | None = None,
        mesh_axes: Mapping[str, Role] | None = None,
        walk: Decider | None = None,
        journal: Journal | str | Path | None = None,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
        batches: bool = True,
        provenance: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__()
        if walk is not None and journal is not None:
            raise ConfigError("give either walk or journal: a walk that is passed in keeps its own journal")
        if walk is not None and walk.curriculum.fingerprint != curriculum.fingerprint:
            raise ConfigError("the walk was made for another curriculum; make both from the same one")
        self.curriculum = curriculum
        if mesh is None:
            ranks = Ranks(*default_ranks(rank, world_size), process_group)
        elif (rank, world_size, process_group) == (None, None, None):
            ranks = MeshRanks(mesh, mesh_axes)
        else:
            raise TopologyError(
                "a mesh says which ranks share the batch: give no rank, world_size or process_group with it"
            )
        self.rank, self.world_size = ranks.rank, ranks.world_size
        if self.world_size > 1 and may_suspend(curriculum, walk):
            raise refused(curriculum, f"{self.world_size} ranks read")
        self._rows = ReaderFactory(
            curriculum, rank=self.rank, world_size=self.world_size, streams=streams, tokenizer=tokenizer
        )
        if compact and self._rows.masked_sources:
            raise ConfigError(
                f"compact: source {self._rows.masked_sources[0]} has a loss mask, and -100 fits in no unsigned label; "
                "leave compact out"
            )
        self._batches = batches
        if compact and self._rows.is_masked:
            check_wide(self._rows.token_dtype)
        form = BatchFormat(self._rows, batches, provenance, self._rows.token_dtype if compact else WIDE)
        self._side: Owner | Copy = Owner(form, ranks, walk=walk, journal=journal)

    @property
    def walk(self) -> Any:
        """The walk that decides; in DataLoader workers there is none."""
        return self._main.walk

    @property
    def tokenizer(self) -> TextTokenizer:
        """What text becomes token ids with."""
        return self._rows.tokenizer

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._side.step

    def __iter__(self) -> Iterator[Batch]:
        check_consumer(self, is_whole=self._batches)
        return self._here().batches()

    def report(
        self,
        batch: Mapping[str, Any],
        token_losses: Tensor | None,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the walk what a batch taught; return whether it took in a step that it did not know.

        Parts of a batch (gradient accumulation, collated rows) may be reported one by one: the walk is told once all
        rows of this rank's step are there, or a later step begins. With several ranks every rank reports every step:
        the losses are summed over ranks, and the ranks prove to each other that they decided alike. With a mesh those
        that have no losses, such as all pipeline stages but the last, report None, and a rank of context parallelism
        reports its slice.

        Args:
            batch: as it was yielded, or a part of it with its ``step`` and ``source_ids``; tokens whose ``labels`` are
                -100 do not count.
            token_losses: loss of each token in nats, [b, T], [b * T] or [1, b * T], on any device; with ``num_tokens``
                the sum of each row, [b]. In context parallelism of a slice of each row; None where other ranks of the
                mesh have them.
            mask: tokens that count, bool, in one of the same shapes; all by default.
            num_tokens: tokens that count in each row, int [b].

        Raises:
            FeedbackError, InvalidLossError: losses that cannot be; nothing was learned from them.
            RankMismatchError: the ranks report different steps, decided differently, or read streams with different
                numbers of workers.
        """
        return self._main.report(batch, token_losses, mask, num_tokens)

    def report_sums(self, step: int, losses: SourceLosses) -> bool:
        """Tell the walk what a step taught, from sums by source that the trainer has itself.

        Args:
            step: which one.
            losses: of this rank's rows; summed over ranks, so that every rank calls, for every step.

        Returns, Raises:
            As ``report``.
        """
        return self._main.report_sums(step, losses)

    def probe_batch(self, batch: Mapping[str, Any] | None = None) -> Batch | None:
        """Return this rank's held-out rows of the probe that is due, or None if none is.

        Ask with each batch, before it is trained on. A probe is due at the first step of each phase, or each n-th
        (``probes`` of the curriculum), and is given once. Run the model forward on it, without gradients, and give the
        losses to ``report_probe``; a probe that is never answered changes nothing. It is a batch like any other, but
        that ``source_ids`` go on with the targets, and always has the same rows. All ranks ask alike.

        Args:
            batch: in hand; by default the newest that this process knows of.
        """
        return self._main.probe_batch(None if batch is None else _newest_step(batch))

    def report_probe(
        self,
        probe: Mapping[str, Any],
        token_losses: Tensor | None,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the walk the held-out losses of a probe; return whether it took in one that it did not know.

        Args:
            probe: what ``probe_batch`` gave, or a part of it.
            token_losses: as in ``report``; every rank calls.
            mask: tokens that count, likewise.
            num_tokens: tokens that count in each row, int [b].

        Raises:
            ProbeNotOfferedError: the step offers no probe, or did long ago.
            FeedbackError, InvalidLossError, RankMismatchError: as ``report``.
        """
        return self._main.report_probe(probe, token_losses, mask, num_tokens)

    def delivered(self, batch: Mapping[str, Any]) -> None:
        """Note that a batch was trained on, where no losses are reported but batches are composed ahead."""
        self._main.delivered(_newest_step(batch))

    def progress(self) -> dict[str, Progress]:
        """Return what each source has given so far: rows, tokens, documents, epochs.

        Of prepared sources in all ranks together; of streams in this process.
        """
        return self._side.progress()

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of the run follows exactly.

        In a DataLoader worker, which is where torchdata's StatefulDataLoader asks, that is this worker's place alone:
        save ``dataset.state_dict()`` of the training process beside the loader's state.
        """
        return self._here().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raise StateMismatchError for one of another run, naming both."""
        self._here().load_state_dict(state)

    @property
    def _main(self) -> Owner:
        if isinstance(self._side, Copy):
            raise TopologyError(
                "this copy of the data set only delivers; report losses, and ask for the walk, where it was made"
            )
        return self._side

    def _here(self) -> Owner | Copy:
        """Return the side of this process; one that was forked for a DataLoader turns to its parent."""
        if isinstance(self._side, Owner) and get_worker_info() is not None:
            self._side = self._side.left_to_parent()
        return self._side

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, in a spawned worker for example; it will ask this process."""
        return {**self.__dict__, "_side": self._side.copied()}


def _newest_step(batch: Mapping[str, Any]) -> int:
    """Return the step of a batch, or the newest of rows of several."""
    return int(torch.as_tensor(batch["step"]).max())
