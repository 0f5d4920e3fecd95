"""What a pivot would do, worked out before anybody asks for it: nothing is decided or written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixer.config.pivots import ScheduledPivot
from mixer.config.rules import excluded_weights, plan_rules
from mixer.errors import ConfigError, InfeasibleRegionError, MixerError, UnknownSourceError, WeightsError
from mixer.region.regimes import regime_at
from mixer.walk.schedule import in_order, planned_regimes
from service.dashboard.columns import WalkColumns
from service.dashboard.projection import corners, outline

PROVISIONAL = "preview"  # the name of a pivot that has none yet


def preview(
    chronicle: WalkColumns,
    *,
    floors: Mapping[str, float] | None,
    caps: Mapping[str, float] | None,
    exclude: Sequence[str] | None,
    at_step: int | None = None,
) -> dict[str, Any]:
    """Return whether a pivot is feasible, the region it draws and where the walk would land in it.

    Each table given replaces the one in force, each left out stays, as in ``Pivot``. ``at_step`` is the end of the
    newest phase by default; the walk is taken to stand where it stands now.

    Returns:
        ``is_feasible`` with ``problem``, ``code``, ``excess`` and ``sources`` if it is not, else ``lower``, ``upper``,
        ``landed`` and ``before`` by source, ``distance`` between the last two, ``dimension``, ``log_volume`` and
        those of the region in force, and ``outline``, ``before_point``, ``landed_point`` on paper.
    """
    step = max(chronicle.end if at_step is None else at_step, 1)
    try:
        pivot = ScheduledPivot(name=PROVISIONAL, floors=floors, caps=caps, exclude=exclude, at_step=step)
        others = [other for other in chronicle.pivots if other.at_step != step]
        regimes = planned_regimes(chronicle.curriculum, [*others, pivot])
    except (InfeasibleRegionError, UnknownSourceError, ConfigError) as error:
        return {"is_feasible": False, "at_step": step, **_problem(error)}
    rules = plan_rules(chronicle.curriculum, in_order(chronicle.curriculum, [*others, pivot]), regimes)
    for excluded in excluded_weights(regimes, rules):
        if excluded.startswith(f"regime {PROVISIONAL} "):
            return {"is_feasible": False, "at_step": step, **_problem(WeightsError(excluded))}
    region = regime_at(regimes, step).region
    in_force = chronicle.regime_at(step).region
    num_sources = len(chronicle.names)
    before = np.asarray(chronicle.newest["weights"]) if chronicle.newest else np.full(num_sources, 1.0 / num_sources)
    landed = region.project(before)
    places = corners(num_sources)
    return {
        "is_feasible": True,
        "at_step": step,
        "names": list(chronicle.names),
        "lower": region.lower.tolist(),
        "upper": region.upper.tolist(),
        "before": before.tolist(),
        "landed": landed.tolist(),
        "distance": float(np.linalg.norm(landed - before)),
        "dimension": region.dimension,
        "log_volume": region.log_volume(),
        "dimension_in_force": in_force.dimension,
        "log_volume_in_force": in_force.log_volume(),
        "outline": outline(region).round(6).tolist(),
        "before_point": (before @ places).round(6).tolist(),
        "landed_point": (landed @ places).round(6).tolist(),
    }


def _problem(error: MixerError) -> dict[str, Any]:
    text = str(error).removeprefix(f"regime {PROVISIONAL} ")
    _, is_prefixed, rest = text.partition("): ")
    text = rest if is_prefixed and text.startswith("(from step ") else text
    found: dict[str, Any] = {"problem": text, "code": error.code, "excess": None, "sources": []}
    if isinstance(error, InfeasibleRegionError):
        found |= {"excess": error.excess, "sources": list(error.sources)}
    return found
