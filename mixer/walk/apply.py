"""What a line of a journal says was done, done again to a walk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixer.config.pivots import Pivot
from mixer.journal.records import record_to_losses
from mixer.walk.walk import Walk


def apply(walk: Walk, record: Mapping[str, Any]) -> bool:
    """Do to a walk what a line says was done, and return whether it is a line of something done to a walk.

    Headers and forks are not: a walk begins there.

    Args:
        walk: as it stood before the line.
        record: the line. Of a decision only the type matters: the walk works out the rest, the alarms first.

    Raises:
        MixerError: the walk refuses it.
        KeyError, TypeError, ValueError, IndexError, OverflowError: no line of that type.
    """
    match record["type"]:
        case "phase" | "alarm":
            walk.phase_at(walk.frontier)
        case "feedback":
            walk.report(record["step"], record_to_losses(dict(record), len(walk.names)), is_recorded=True)
        case "probe":
            losses = record_to_losses(dict(record), len(walk.curriculum.probed_names))
            walk.report_probe(record["step"], losses, is_recorded=True)
        case "pivot":
            pivot = Pivot(**{key: record[key] for key in Pivot.model_fields if key in record})
            walk.pivot(pivot, at_step=record["at_step"], cut=record["at_step"] < record["decided_before"])
        case "unique_tokens":
            walk.learn_unique_tokens(record["source"], record["tokens"])
        case "skipped":
            walk.note_skipped(record["source"], record["record"])
        case _:
            return False
    return True
