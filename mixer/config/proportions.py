"""Weights written as proportions, such as 3 and 1, made shares that sum to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixer.config.problems import shown
from mixer.errors import ConfigError

LARGEST = 1e12  # of a weight: its share of a sum is exact enough


def normalized(weights: Mapping[str, Any], place: str) -> dict[str, float]:
    """Return weights divided by their sum.

    Raises:
        ConfigError: one is not a finite number from 0 on, or all are 0.
    """
    wrong = [
        f"{place}{name}: {shown(value)} is not a number from 0 on"
        for name, value in weights.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST
    ]
    if wrong:
        raise ConfigError(wrong)
    total = math.fsum(weights.values())
    if total == 0:
        raise ConfigError([f"{place}{next(iter(weights))}: all weights are 0; one source at least must be drawn"])
    return {name: value / total for name, value in weights.items()}


def are_relative(weights: Mapping[str, Any]) -> bool:
    """Whether weights are proportions such as 3 and 1: two or more, each at least 1; the others 0.

    Fractions that miss a sum of 1 are a mistake, and stay one.
    """
    values = list(weights.values())
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return False
    return all(value == 0 or 1 <= value <= LARGEST for value in values) and sum(map(bool, values)) > 1


def as_shares(weights: Any) -> Any:
    """Return weights that are proportions as shares of 1, anything else as it is."""
    return normalized(weights, "weights: ") if isinstance(weights, Mapping) and are_relative(weights) else weights
