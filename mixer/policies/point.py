"""Policies that name a mixture themselves: the point they ask for, moved to the nearest one of the region."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from mixer.losses import SourceLosses
from mixer.policies.base import Choice, Policy, silenced, silenced_point
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

MAX_NATS = 100.0


class PointPolicy(Policy):
    """A published rule whose answer is a mixture; hard bounds are ours: it is projected on the region.

    Phases are never random: exploration, where there is any, is the rule's own.
    """

    teleports = "never"

    @abstractmethod
    def point(self, state: State) -> Array:
        """Return the mixture before any bounds, [K]."""

    def means(self, state: State) -> Array:
        """Return what the point was made of, for the journal, [K]."""
        return state["mean"]

    def after_pivot(self, state: State) -> State:
        """Return the memory as it is."""
        return state

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return the nearest point of the region to the one asked for; sources in alarm are asked for no more."""
        point = silenced_point(self.point(state), alarmed)
        parts = {"mean": self.means(state), "tokens": state["tokens"], "index": point}
        return Choice(region.project(point), parts=silenced(parts, alarmed))


def nats(losses: SourceLosses) -> Array:
    """Return the mean losses, none above 100 nats: no vocabulary has such a loss, and exponentials stay finite, [K]."""
    return np.minimum(losses.means(), MAX_NATS)


def normalised_exp(logs: Array) -> Array:
    """Return ``exp(logs)`` brought to sum 1, without overflow, [K]."""
    values = np.exp(logs - logs.max())
    return np.asarray(values / values.sum())


def exponentiated(mixture: Array, gains: Array, *, smoothing: float) -> Array:
    """Return ``(1 - smoothing) w exp(gains) / sum + smoothing / K``, a step of exponentiated gradient, [K]."""
    raised = normalised_exp(np.log(np.maximum(mixture, 1e-300)) + gains)
    return (1 - smoothing) * raised + smoothing / raised.size


def filled_in(values: Array, known: Array) -> Array:
    """Return values with those that are not known at the mean of the known ones, 0 if none is, [K]."""
    is_known = known > 0
    return np.where(is_known, values, values[is_known].mean() if is_known.any() else 0.0)
