"""Ranks of a device mesh: some share the batch, some share each row, and the others see the same tokens.

A report adds the losses up over the mesh, one axis after the other, so that every rank has the total of a step: also
pipeline stages that have no losses, and peers of tensor parallelism. The same message proves that all decided alike.
Each place along the model axes has sums of its own; the first that is complete counts, so that losses which several
ranks have are counted once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mixer.delivery.feedback import OverSlices
from mixer.delivery.ranks import Claim, Ranks, check_alike, device_of
from mixer.errors import FeedbackError, TopologyError
from mixer.losses import SourceLosses

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Role = Literal["data", "context", "model"]

KNOWN_AXES: dict[str, Role] = {
    **dict.fromkeys(["dp", "ddp", "data", "data_parallel", "batch", "replicate", "shard"], "data"),
    **dict.fromkeys(["dp_replicate", "dp_shard", "dp_shard_mod_ep", "dp_shard_in_ep", "fsdp"], "data"),
    **dict.fromkeys(["cp", "context", "context_parallel"], "context"),
    **dict.fromkeys(["tp", "tensor", "tensor_parallel", "pp", "pipeline", "pipeline_parallel", "model"], "model"),
}
SLICE_GRID = 2.0**-32  # nats: sums of slices are exact on it, whatever their order, and finer than those of rows


class MeshRanks(Ranks):
    """This rank's place in a device mesh, and the sums over the mesh.

    Args:
        mesh: all ranks of the trainer.
        roles: of axes with other names than ``KNOWN_AXES``, or with another meaning.

    Raises:
        TopologyError: an axis of unknown meaning, a mesh without all ranks, or one without this rank.
    """

    def __init__(self, mesh: DeviceMesh, roles: Mapping[str, Role] | None = None) -> None:
        self._roles = _roles_of(mesh, roles or {})
        if mesh.size() != dist.get_world_size():
            raise TopologyError(
                f"the mesh has {mesh.size()} ranks and torch.distributed has {dist.get_world_size()}: those outside "
                "would decide by other losses; give the whole mesh, not a slice of it such as mesh['dp']"
            )
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise TopologyError(f"rank {dist.get_rank()} is not in the mesh {mesh}")
        self._names = tuple(self._roles)
        self._shape = tuple(mesh.shape)
        self._coordinate = tuple(coordinate)
        self._groups = {
            name: mesh.get_group(axis)  # of an axis with one rank torch may have none
            for axis, (name, size) in enumerate(zip(self._names, self._shape, strict=True))
            if size > 1
        }
        rank, world_size = self._along("data")
        super().__init__(rank, world_size)

    def over_slices(self, full_width: int) -> OverSlices | None:
        """Return what adds up the slices of rows of so many tokens; None if ranks have whole rows."""
        return None if self._along("context")[1] == 1 else functools.partial(self._whole_rows, full_width)

    def slice_width(self, full_width: int) -> int:
        """Return how many tokens of each row this rank has the losses of: those of its slice."""
        return full_width // self._along("context")[1]

    def total(self, losses: SourceLosses | None, claim: Callable[[], Claim], num_sources: int) -> SourceLosses:
        """Return the losses of all ranks, the same on each; see ``Ranks.total``."""
        said = claim()
        numbers = said.numbers()
        place, num_places = self._along("model")
        is_first_slice = self._along("context")[0] == 0  # each has the sums of whole rows: one of them counts
        sums = torch.zeros((num_places, 4 * num_sources + 1), dtype=torch.float64)
        if losses is not None and is_first_slice:
            columns = [losses.rows, losses.tokens, losses.loss_sums, losses.square_sums]
            sums[place, :-1] = torch.cat([torch.as_tensor(column, dtype=torch.float64) for column in columns])
            sums[place, -1] = 1
        proof = torch.tensor([*numbers, *(number**2 for number in numbers)], dtype=torch.float64)
        total = self._sum(torch.cat([sums.ravel(), proof]), self._names)
        check_alike(total[sums.numel() :], math.prod(self._shape), lambda: self._gather(said))
        sums = total[: sums.numel()].reshape(sums.shape)
        rows, tokens, loss_sums, square_sums = sums[self._complete(sums[:, -1], said.step), :-1].reshape(4, -1).numpy()
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums)

    def _whole_rows(self, full_width: int, sums: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, bool]:
        """Return the losses of whole rows from those of this rank's slice of each.

        Args:
            full_width: T.
            sums: summed losses of each row here, float64 [b] on the CPU.
            tokens: that count in each row here, float64 [b] on the CPU.
            width: tokens of each row here; 0 if this rank has no losses.

        Returns:
            The same of whole rows, and whether there are losses.

        Raises:
            FeedbackError: slices that do not make whole rows; on all ranks that share these rows.
        """
        num_slices = self._along("context")[1]
        names = [name for name, role in self._roles.items() if role == "context"]
        num_rows = len(sums)
        head = self._sum(torch.tensor([width, num_rows, num_rows**2], dtype=torch.float64), names)
        if head[1] ** 2 != num_slices * head[2]:
            raise FeedbackError(
                f"this context-parallel rank reports {num_rows} rows, and another does not: all slices of a batch are "
                "reported in the same parts"
            )
        if head[0] not in (0, full_width):
            raise FeedbackError(
                f"{num_slices} context-parallel ranks report {head[0]:.0f} tokens of each row of {full_width}, this "
                f"one {width}: each reports the losses of its own slice, and all of them report"
            )
        grid = torch.round(sums / SLICE_GRID) * SLICE_GRID
        sums, tokens = self._sum(torch.stack([grid, tokens]), names)
        return sums, tokens, bool(head[0])

    def _along(self, role: Role) -> tuple[int, int]:
        """Return this rank's number among those along the axes of a role, and how many there are."""
        index, size = 0, 1
        for i, name in enumerate(self._names):
            if self._roles[name] == role:
                index, size = index * self._shape[i] + self._coordinate[i], size * self._shape[i]
        return index, size

    def _sum(self, values: Tensor, names: Any) -> Tensor:
        """Return sums along some axes, float64 on the CPU, exact as long as the values are on one grid."""
        for name in names:
            group = self._groups.get(name)
            if group is not None:
                there = values.to(device_of(group))
                dist.all_reduce(there, group=group)
                values = there.cpu()
        return values

    def _gather(self, claim: Claim) -> list[Claim]:
        """Return the claims of all ranks in the order of the mesh."""
        claims = [claim]
        for name in reversed(self._names):
            group = self._groups.get(name)
            if group is not None:
                parts: list[Any] = [None] * dist.get_world_size(group)
                dist.all_gather_object(parts, claims, group=group)
                claims = [each for part in parts for each in part]
        return claims

    def _complete(self, num_reports: Tensor, step: int) -> int:
        """Return the first place along the model axes at which every data-parallel rank has losses."""
        if not num_reports.any():
            raise FeedbackError(
                f"no rank of the mesh has losses of step {step}: report(batch, None) is for those without, such as "
                "all pipeline stages but the last"
            )
        complete = torch.nonzero(num_reports == self.world_size).flatten().tolist()
        if not complete:
            place = int(num_reports.argmax())
            model = [(name, self._shape[i]) for i, name in enumerate(self._names) if self._roles[name] == "model"]
            index = torch.unravel_index(torch.tensor(place), [size for _, size in model]) if model else []
            where = ", ".join(f"{name}={int(i)}" for (name, _), i in zip(model, index, strict=True))
            raise FeedbackError(
                f"{int(num_reports[place])} of {self.world_size} data-parallel ranks have losses of step {step}"
                f"{f' at {where}' if where else ''}: one place of the model must have those of every row"
            )
        return int(complete[0])


def _roles_of(mesh: DeviceMesh, given: Mapping[str, Role]) -> dict[str, Role]:
    """Return the role of each axis, in the order of the mesh."""
    names = mesh.mesh_dim_names
    if names is None:
        raise TopologyError(
            f"the mesh of shape {list(mesh.shape)} does not name its axes; make it with mesh_dim_names=, such as "
            "('pp', 'dp', 'cp', 'tp')"
        )
    foreign = sorted(set(given) - set(names))
    if foreign:
        raise TopologyError(f"mesh_axes names {foreign[0]}, which is no axis of the mesh: it has {', '.join(names)}")
    wrong = [name for name, role in given.items() if role not in ("data", "context", "model")]
    if wrong:
        raise TopologyError(f"mesh_axes gives {wrong[0]} the role {given[wrong[0]]!r}; it is data, context or model")
    roles = {name: given.get(name) or KNOWN_AXES.get(name) for name in names}
    unclear = [name for name, role in roles.items() if role is None]
    if unclear:
        raise TopologyError(
            f"it is not clear what ranks along the mesh axis {unclear[0]} share; say mesh_axes={{{unclear[0]!r}: ...}} "
            "with 'data' if they have other rows, 'context' if other tokens of the same rows, 'model' if the same"
        )
    return {name: role for name, role in roles.items() if role is not None}
