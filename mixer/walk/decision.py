"""What one decision of a walk changes, and what is kept so that a pivot can undo it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mixer.region.epochs import EpochCaps
from mixer.sampling.phases import Phase
from mixer.types import Array, State
from mixer.walk.guard import GuardOutcome
from mixer.walk.reports import ReportSum
from mixer.walk.state import to_arrays, to_lists


@dataclass(frozen=True, eq=False)
class Decision:
    """All that a decision changes, worked out before any of it is kept.

    Attributes:
        phase: what is decided.
        policy_state: what the policy has learned.
        used: the reports it learned from.
        probes: the held-out losses it learned from.
        seen: what the guard found.
        limited: the caps by epochs, if there are any.
        home: where the walk goes on from after an excursion, [K]; None if it goes on from the phase's weights.
    """

    phase: Phase
    policy_state: State
    used: list[ReportSum]
    probes: list[ReportSum]
    seen: GuardOutcome
    limited: EpochCaps | None
    home: Array | None


@dataclass(frozen=True, eq=False)
class Before:
    """What the newest decision found: what was learned till then, the losses it used, where the walk stood."""

    policy_state: State
    guard_state: State
    used: list[ReportSum]
    probes: list[ReportSum]
    home: Array | None

    def to_record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "policy": to_lists(self.policy_state),
            "guard": to_lists(self.guard_state),
            "used": [reports.to_record() for reports in self.used],
            **({"probes": [probe.to_record() for probe in self.probes]} if self.probes else {}),
            **home_record(self.home),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], num_sources: int, num_probed: int) -> Self:
        """Return what ``to_record`` was given, of K sources and K + M that are probed."""
        used = [ReportSum.of(report, num_sources) for report in record["used"]]
        probes = [ReportSum.of(probe, num_probed) for probe in record.get("probes", ())]
        return cls(to_arrays(record["policy"]), to_arrays(record["guard"]), used, probes, home_of(record))


def home_record(home: Array | None) -> dict[str, Any]:
    """Return what a state says of where the walk goes on from after an excursion: nothing outside of one."""
    return {} if home is None else {"home": home.tolist()}


def home_of(record: Mapping[str, Any]) -> Array | None:
    """Return what ``home_record`` was given."""
    return np.array(record["home"], dtype=np.float64) if "home" in record else None
