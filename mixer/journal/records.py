"""The lines that a walk writes into its journal: plain data of phases, regions, feedback, and who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase


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


def losses_to_record(losses: SourceLosses) -> dict[str, Any]:
    """Return plain data with the sources that have rows alone: the form in journals and states."""
    present = np.flatnonzero(losses.rows)
    return {
        "rank": losses.rank,
        "sources": present.tolist(),
        "rows": losses.rows[present].tolist(),
        "tokens": losses.tokens[present].tolist(),
        "loss_sums": losses.loss_sums[present].tolist(),
        "square_sums": losses.square_sums[present].tolist(),
    }


def record_to_losses(record: Mapping[str, Any], num_sources: int) -> SourceLosses:
    """Return what ``losses_to_record`` was given."""
    places = np.array(record["sources"], dtype=np.intp)
    counts, sums = np.zeros((2, num_sources), dtype=np.int64), np.zeros((2, num_sources))
    counts[:, places] = np.array([record["rows"], record["tokens"]], dtype=np.int64)
    sums[:, places] = np.array([record["loss_sums"], record["square_sums"]], dtype=np.float64)
    return SourceLosses(rows=counts[0], tokens=counts[1], loss_sums=sums[0], square_sums=sums[1], rank=record["rank"])


def region_in_force(phase: Mapping[str, Any], region: Mapping[str, Any]) -> dict[str, Any]:
    """Return the region of a phase's regime with the tight bounds that its caps by epochs leave, if it has any."""
    found = phase.get("epochs")
    return {**region, **({"lower": found["lower"], "upper": found["upper"]} if found else {})}
