"""Several ranks, one walk: losses are summed over ranks, and every report proves that all decided alike.

One all-reduce a step carries the sums and, beside them, each rank's step and a digest of its phase together with their
squares: all ranks agree exactly if the mean of the squares is the square of the mean, so that proof costs no message.
Row sums come on a grid (``feedback``), so the total does not depend on how the rows lie on the ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixer.delivery.feedback import OverSlices
from mixer.errors import FeedbackError, RankMismatchError, TopologyError
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase


def default_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size: those given, those of ``torch.distributed`` if it is up, or one rank alone."""
    if (rank is None) != (world_size is None):
        raise TopologyError(f"rank is {rank} and world_size is {world_size}; give both, or neither")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise TopologyError(f"rank {rank} of {world_size}: ranks count from 0 to world_size - 1")
        return rank, world_size
    if is_up():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclass(frozen=True)
class Claim:
    """What a rank is sure of when it reports: the step, the phase that it lies in, and how many read its rows."""

    step: int
    phase: int
    num_readers: int
    digest: int

    @classmethod
    def of(cls, step: int, phase: Phase, fingerprint: str, *, num_readers: int = 1) -> Claim:
        """Return the claim of a rank that reports ``step`` of ``phase`` in a run, and streams with so many readers."""
        # 1 stands for the length: a cut changes nothing of the steps before it
        text = f"{fingerprint}\x00{phase.index}\x00{phase.start}\x001\x00{phase.kind}".encode()
        digest = hashlib.blake2b(text + phase.weights.tobytes() + phase.drawn.tobytes(), digest_size=8).digest()
        return cls(step, phase.index, num_readers, int.from_bytes(digest, "little"))

    def numbers(self) -> list[int]:
        """Whole numbers below 2^12: sums of squares, and squares of sums, stay exact in float64 for 20,000 ranks."""
        parts = [value >> shift & 0xFFF for value in (self.step, self.digest) for shift in (0, 12, 24, 36)]
        return [*parts, self.num_readers & 0xFFF]


class Ranks:
    """The ranks that share each global batch, all of which have losses.

    Args:
        rank, world_size: this one of how many.
        group: their process group; the default one if None.
    """

    def __init__(self, rank: int, world_size: int, group: Any = None) -> None:
        self.rank, self.world_size = rank, world_size
        self._group = group

    def over_slices(self, full_width: int) -> OverSlices | None:
        """Return what adds up the slices of rows of so many tokens; None, as these ranks have whole rows."""
        return None

    def slice_width(self, full_width: int) -> int:
        """Return how many tokens of each row this rank has the losses of."""
        return full_width

    def total(self, losses: SourceLosses | None, claim: Callable[[], Claim], num_sources: int) -> SourceLosses:
        """Return the losses of all ranks, the same on each.

        Args:
            losses: of this rank, [K]; None if it has none.
            claim: gives what this rank is sure of.
            num_sources: K.

        Raises:
            TopologyError: ``torch.distributed`` is not up, or has other ranks than these.
            RankMismatchError: ranks report different steps, decided differently, or share streams unevenly; names the
                first that differs.
            FeedbackError: there are no losses.
        """
        if losses is None:
            raise FeedbackError(
                "this rank reports no losses (None), which only a rank of a mesh may, that gets them from others: "
                "make the data set with mesh="
            )
        _check_nobody_else_decides(self.world_size)
        return losses if self.world_size == 1 else self._summed(losses, claim())

    def gathered(self, value: Any) -> list[Any]:
        """Return what every rank gives, in their order, the same on each; of those that share rows, one's.

        Raises:
            TopologyError: ``torch.distributed`` has other ranks than these.
        """
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, (self.rank, value), group=self._group)
        by_rank = dict(found)
        if [*range(self.world_size)] != sorted(by_rank):
            raise TopologyError(
                f"the data sets of torch.distributed are of ranks {sorted(by_rank)}, but this one is of "
                f"{self.world_size} ranks; give every rank its own"
            )
        return [by_rank[rank] for rank in range(self.world_size)]

    def _summed(self, losses: SourceLosses, claim: Claim) -> SourceLosses:
        world_size, group = self.world_size, self._group
        if not is_up():
            raise TopologyError(
                f"one of {world_size} ranks reports, but torch.distributed is not up, so that their losses cannot be "
                "summed; call torch.distributed.init_process_group first, or sum them yourself and give the total to "
                "dataset.walk.report(step, losses) on every rank"
            )
        if dist.get_world_size(group) != world_size:
            raise TopologyError(
                f"the data set was made for {world_size} ranks, but the process group has {dist.get_world_size(group)}"
                "; pass process_group= with the ranks that share the global batch"
            )
        numbers = claim.numbers()
        columns = [losses.rows, losses.tokens, losses.loss_sums, losses.square_sums]
        flat = [torch.as_tensor(column, dtype=torch.float64) for column in columns]
        proof = torch.tensor([*numbers, *(number**2 for number in numbers)], dtype=torch.float64)
        total = torch.cat([*flat, proof]).to(device_of(group))
        dist.all_reduce(total, group=group)
        total = total.cpu()
        check_alike(total[-len(proof) :], world_size, lambda: _gather(claim, world_size, group))
        rows, tokens, loss_sums, square_sums = total[: -len(proof)].reshape(4, -1).numpy()
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums)


def check_alike(proof: Tensor, num_ranks: int, claims: Callable[[], list[Claim]]) -> None:
    """Raise RankMismatchError unless all ranks claim the same.

    Args:
        proof: sums of the claims' numbers over ranks, and of their squares.
        num_ranks: how many.
        claims: gathers the claims of all.
    """
    sums, squares = proof.chunk(2)
    if not torch.equal(sums * sums, squares * num_ranks):
        _raise_difference(claims())


def _check_nobody_else_decides(world_size: int) -> None:
    """Raise TopologyError if a report would not reach all ranks: the others would decide from other losses."""
    if is_up() and dist.get_world_size() > world_size:
        raise TopologyError(
            f"the data set was made for {world_size} of the {dist.get_world_size()} ranks of torch.distributed: ranks "
            "that see the same rows (pipeline stages, tensor or context parallelism) "
            "would decide from other losses; make it with mesh= (the DeviceMesh of all ranks) instead of rank, "
            "world_size and process_group, or sum the losses yourself and give the total to "
            "dataset.walk.report(step, losses) on every rank"
        )


def is_up() -> bool:
    """Return whether ``torch.distributed`` can be used."""
    return dist.is_available() and dist.is_initialized()


def device_of(group: Any) -> torch.device:
    """Return where a process group wants its tensors."""
    is_on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_on_gpu else torch.device("cpu")


def _gather(claim: Claim, world_size: int, group: Any) -> list[Claim]:
    claims: list[Any] = [None] * world_size
    dist.all_gather_object(claims, claim, group=group)
    return claims


def _raise_difference(claims: list[Claim]) -> None:
    rank = next(r for r, other in enumerate(claims) if other != claims[0])
    first, other = claims[0], claims[rank]
    if first.step != other.step:
        what = f"rank {rank} reports step {other.step}, and rank 0 step {first.step}"
    elif first.num_readers != other.num_readers:
        raise RankMismatchError(
            f"rank {rank} reads its streams with {other.num_readers} DataLoader workers, and rank 0 with "
            f"{first.num_readers}, so that their shares overlap: give every rank the same num_workers"
        )
    else:
        what = (
            f"rank {rank} decided phase {other.phase} of step {first.step} differently from rank 0 "
            f"(digests {other.digest:016x} and {first.digest:016x})"
        )
    raise RankMismatchError(
        f"{what}; give every rank the same curriculum, rows and saved state, and report every step on every rank"
    )
