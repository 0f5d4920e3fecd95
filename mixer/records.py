"""The lines that a walk writes into its journal: plain data of phases, regions, feedback, and who wrote it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.arrived import Arrived
from mixer.config import Curriculum
from mixer.draws import phase_counts
from mixer.inbox import losses_to_record
from mixer.journal import JOURNAL_VERSION
from mixer.phases import Phase
from mixer.policies import Choice
from mixer.regimes import Regime
from mixer.rewards import add_losses
from mixer.types import Array, IntArray

PACKAGES = ("curriculum-mixer", "numpy", "pydantic", "datasets", "tokenizers")  # those that decide and read


def header_record(
    curriculum: Curriculum, sources: Mapping[str, str], parent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a journal's first line: the run, its data as far as known, its parent, and who writes."""
    return {
        "type": "header",
        "version": JOURNAL_VERSION,
        "fingerprint": curriculum.fingerprint,
        "curriculum": curriculum.model_dump(mode="json"),
        "sources": dict(sources),
        "parent": parent,
        **conditions(),
    }


def conditions() -> dict[str, Any]:
    """Return what decisions may depend on besides the journal: versions of packages and Python, the machine."""
    return {
        "libraries": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def phase_to_record(phase: Phase) -> dict[str, Any]:
    """Return what makes a phase, the names of the sources left out."""
    return {
        "index": phase.index,
        "start": phase.start,
        "length": phase.length,
        "kind": phase.kind,
        "regime": phase.regime,
        "weights": phase.weights.tolist(),
        "drawn": phase.drawn.tolist(),
        "owed": phase.owed.tolist(),
    }


def record_to_phase(record: Mapping[str, Any], names: tuple[str, ...]) -> Phase:
    """Return the phase of a record, which may hold more than ``phase_to_record`` gives."""
    return Phase(
        index=record["index"],
        start=record["start"],
        length=record["length"],
        kind=record["kind"],
        regime=record["regime"],
        names=names,
        weights=np.array(record["weights"], dtype=np.float64),
        drawn=np.array(record["drawn"], dtype=np.int64),
        owed=np.array(record["owed"], dtype=np.float64),
    )


def cut_phases(phases: list[dict[str, Any]], pivot: Mapping[str, Any], curriculum: Mapping[str, Any]) -> None:
    """Bring the newest of some phase lines to what a pivot line left of it: fewer steps and rows, or nothing.

    Args:
        phases: phase lines in order, changed in place.
        pivot: the line; one that cuts nothing changes nothing.
        curriculum: as the header has it.
    """
    step = pivot["at_step"]
    if step >= pivot["decided_before"]:
        return
    newest = phases.pop()
    if newest["start"] < step:
        shorter = {**newest, "length": step - newest["start"]}
        counts, _ = phase_counts(
            record_to_phase(shorter, ()),
            seed=curriculum["seed"],
            method=curriculum["draws"],
            batch_rows=curriculum["batch_rows"],
        )
        phases.append({**shorter, "counts": counts.sum(axis=0).tolist()})


def region_record(regime: Regime) -> dict[str, Any]:
    """Return what a regime's region is, declared and really reached."""
    region = regime.region
    return {
        "regime": regime.name,
        "floors": region.floors,
        "caps": region.caps,
        "lower": region.lower,
        "upper": region.upper,
    }


def feedback_summary(used: list[Arrived], start: int) -> dict[str, Any] | None:
    """Return what a decision learned from, summed over steps and ranks; ``delay`` is how old its newest step was."""
    if not used:
        return None
    summary = losses_to_record(add_losses([arrived.losses for arrived in used]))
    del summary["rank"]
    last_step = max(arrived.last_step for arrived in used)
    return {
        "reports": sum(arrived.reports for arrived in used),
        "first_step": min(arrived.first_step for arrived in used),
        "last_step": last_step,
        "delay": start - last_step,
        **summary,
    }


def decision_record(
    phase: Phase,
    regime: Regime,
    choice: Choice,
    *,
    before: Array,
    landed: Array | None,
    boundary: int | None,
    probability_random: float,
    counts: IntArray,
    used: list[Arrived],
) -> dict[str, Any]:
    """Return the line of a decision.

    Args:
        phase: what was decided.
        regime: where.
        choice: what the policy said, or the random point.
        before: the weights till then, [K].
        landed: the nearest point of a new region, [K]; None if the region is the one of the phase before.
        boundary: the first step of the next regime.
        probability_random: with which the phase was to be random.
        counts: rows by step and source, [length, K].
        used: the reports that it was decided on.
    """
    return {
        "type": "phase",
        **phase_to_record(phase),
        "boundary": boundary,
        "probability_random": probability_random,
        "before": before,
        "landed": landed,
        "distance": None if landed is None else float(np.linalg.norm(landed - before)),
        "vertex": choice.vertex,
        "parts": choice.parts,  # an index of +inf, too few observations, is written as null: JSON has no infinity
        "region": None if landed is None else region_record(regime),
        "log_volume": regime.region.log_volume(),
        "counts": counts.sum(axis=0),
        "feedback": feedback_summary(used, phase.start),
    }
