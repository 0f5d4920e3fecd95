"""Weights written by hand: the mixture of each phase, along a ramp and after it."""

from __future__ import annotations

from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.config.rules import Rule
from mixer.region.region import Region
from mixer.sampling.phases import Phase
from mixer.types import Array


def written_weights(
    rule: Rule, region: Region, *, landed: Array, newest: Phase | None, start: int, length: int
) -> Array:
    """Return the weights of a phase in which weights are written by hand, float64 [K].

    A ramp of R steps from step s leads from the mixture before, or its nearest point in the new region, in a straight
    line to the weights. A phase has the point of its middle step m, at a share (m - s) / R of the way; the phase in
    which the ramp ends has the weights themselves. Each point is worked out from the one before it, so that the ramp
    arrives in time wherever the walk was moved to meanwhile. The region is convex, so that it holds every point.

    Args:
        rule: of the regime.
        region: what may be reached now.
        landed: where the walk stands, within the region, [K].
        newest: the phase before; None before the first.
        start: first step of the phase to decide.
        length: its steps.
    """
    target = rule.target(region)
    if start + length >= rule.ramp_end:
        return target
    at = float(rule.since) if newest is None or newest.start < rule.since else _middle(newest.start, newest.length)
    return region.step(landed, target, (_middle(start, length) - at) / (rule.ramp_end - at))


def _middle(start: int, length: int) -> float:
    return start + length / 2


def rule_record(curriculum: Curriculum, rule: Rule, region: Region, start: int) -> dict[str, Any] | None:
    """Return what the line of a phase from ``start`` on says of who decided; None for the run's own policy."""
    if rule.weights is None:
        is_own = rule.policy is None or rule.policy == curriculum.policy
        return None if is_own or rule.policy is None else {"policy": rule.policy.model_dump(mode="json")}
    weights = [rule.weights.get(name, 0.0) for name in region.names]
    return {"weights": weights, **({"ramp_end": rule.ramp_end} if start < rule.ramp_end else {})}
