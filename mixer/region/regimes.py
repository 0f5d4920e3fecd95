"""The planned spans of a run, each with its own region: warmup, firehose, then one per pivot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mixer.errors import InfeasibleRegionError
from mixer.region.region import Region

WARMUP, FIREHOSE = "warmup", "firehose"  # the names of the two regimes that no pivot names
OUT_OF_REACH = "without-"  # begins the names of regimes in which sources are suspended until they can be read again
BACK_IN_REACH = "with-all-"  # and of those in which all can be read again
IN_ALARM = "guard-"  # begins the names of regimes that suspend a source in alarm
AUTOMATIC = (OUT_OF_REACH, BACK_IN_REACH, IN_ALARM)  # regimes that nobody wrote; they move fixed weights, if need be


@dataclass(frozen=True)
class Bounds:
    """Floors, caps and exclusions as their author wrote them; ``region`` is what they mean."""

    names: tuple[str, ...]
    floors: Mapping[str, float]
    caps: Mapping[str, float]
    exclude: tuple[str, ...]

    def replaced(
        self,
        *,
        floors: Mapping[str, float] | None = None,
        caps: Mapping[str, float] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> Bounds:
        """Return a copy in which each table given replaces the one here, and each left out stays."""
        return Bounds(
            names=self.names,
            floors=self.floors if floors is None else dict(floors),
            caps=self.caps if caps is None else dict(caps),
            exclude=self.exclude if exclude is None else tuple(exclude),
        )

    def without(self, names: Sequence[str]) -> Bounds:
        """Return a copy in which these sources are excluded too, their floors asleep."""
        floors = {name: floor for name, floor in self.floors.items() if name not in names}
        return self.replaced(floors=floors, exclude=(*self.exclude, *names))

    def region(self, active: Sequence[str] = ()) -> Region:
        """Return the region, restricted to the ``active`` sources if any are named."""
        return Region(
            self.names, floors=self.floors, caps=self.caps, exclude=self.exclude, active=active if active else None
        )


@dataclass(frozen=True)
class Regime:
    """A planned span of the run: its name, its first step, the bounds as written and the region they mean."""

    name: str
    start: int
    bounds: Bounds
    region: Region


def regime_at(regimes: Sequence[Regime], step: int) -> Regime:
    """Return the regime that ``step`` lies in, of some in order of their first step."""
    return next(regime for regime in reversed(regimes) if regime.start <= step)


def plan_regimes(
    bounds: Bounds,
    *,
    warmup: tuple[int, Sequence[str]] = (0, ()),
    changes: Sequence[tuple[int, str, Callable[[Bounds], Bounds]]] = (),
) -> tuple[Regime, ...]:
    """Return the regimes in order of their first step.

    Args:
        bounds: what holds from step 0.
        warmup: (steps, sources): until that step only those sources may be drawn; floors of the others sleep.
        changes: (step, name, change of bounds) of each pivot, in order of step.

    Raises:
        InfeasibleRegionError: naming the regime whose bounds leave no mixture.
    """
    warmup_end, active = warmup
    starts = [(0, WARMUP if warmup_end else FIREHOSE, bounds)]
    for step, name, change in changes:
        bounds = change(bounds)
        starts.append((step, name, bounds))
    if warmup_end:
        before = [start for start in starts if start[0] < warmup_end]
        after = [start for start in starts if start[0] >= warmup_end]
        if not after or after[0][0] > warmup_end:  # no pivot falls on the warmup's last step
            name = before[-1][1] if len(before) > 1 else FIREHOSE
            after = [(warmup_end, name, before[-1][2]), *after]
        starts = before + after
    return tuple(_regime(name, start, bounds, active if start < warmup_end else ()) for start, name, bounds in starts)


def _regime(name: str, start: int, bounds: Bounds, active: Sequence[str]) -> Regime:
    try:
        return Regime(name=name, start=start, bounds=bounds, region=bounds.region(active))
    except InfeasibleRegionError as error:
        raise InfeasibleRegionError(
            f"regime {name} (from step {start}): {error}",
            sources=error.sources,
            excess=error.excess,
            total=error.total,
        ) from error
