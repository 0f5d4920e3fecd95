"""What lines of a journal say, in words."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

WHAT = {
    "cliff": "a report fell off a cliff",
    "drift": "its loss falls faster than its own curve",
    "gap": "its training loss falls, its held-out loss does not",
}


def alarm_in_words(line: Mapping[str, Any]) -> str:
    """Return an ``alarm`` line as a sentence."""
    what = WHAT[line["detector"]]
    whose = f"{line['source']} may be learned by heart ({line['detector']}: {what}) at step {line['step']}"
    return f"{whose}: {facts_in_words(line)}"


def facts_in_words(line: Mapping[str, Any]) -> str:
    """Return what an ``alarm`` line saw and what was done about it, for where source, detector and step are shown."""
    seen = "" if line["epochs"] is None else f", after {line['epochs']:.3g} epochs"
    done = f"; pivoted out from step {line['decided_before']} on" if line["pivot"] else ""
    done = f"; not pivoted out: {line['why_not']}" if line["why_not"] else done
    held_out = line.get("held_out")
    beside = "" if held_out is None else f", held-out loss {held_out:.4g}"
    return f"loss {line['loss']:.4g} where {line['expected']:.4g} was expected{beside}, z {line['z']:.1f}{seen}{done}"


def told(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return in words what one line of the journal says; reports are too many to be told."""
    match record["type"]:
        case "phase":
            return _phase(record, names)
        case "pivot":
            tables = [f"{key} {record[key]}" for key in ("floors", "caps", "exclude") if record[key] is not None]
            tables += _rule(record)
            cuts = record["at_step"] < record["decided_before"]
            how = f" cuts the newest phase at step {record['at_step']}" if cuts else ""
            return f"pivot {record['name']}{how}: {'; '.join(tables) or 'the bounds stay'}"
        case "unique_tokens":
            return f"{record['source']} was read through: {record['tokens']:,} distinct tokens"
        case "skipped":
            return f"{record['source']}: a record was skipped: {record['record']}"
        case "fork":
            return f"fork at step {record['step']}: the lines before are its parent's, from here on this run decides"
        case "alarm":
            return f"{record['source']}: {record['detector']}, {facts_in_words(record)}"
        case kind:
            return str(kind)


def _rule(pivot: Mapping[str, Any]) -> list[str]:
    """Return what a pivot says of who decides."""
    policy, ramp_steps = pivot.get("policy"), pivot.get("ramp_steps")
    ramp = f" after a ramp of {ramp_steps} steps" if ramp_steps else ""
    weights = [f"weights {pivot['weights']}{ramp}"] if pivot.get("weights") else []
    return weights + ([f"policy {policy['name']} decides"] if policy else [])


def _phase(record: Mapping[str, Any], names: Sequence[str]) -> str:
    weights = record["weights"]
    largest = [i for i in heapq.nlargest(4, range(len(weights)), key=weights.__getitem__) if weights[i] > 0]
    shares = ", ".join(f"{names[i]} {weights[i]:.3f}" for i in largest)
    return f"phase {record['index']}, {record['length']} steps, {record['kind']}, {record['regime']}: {shares}"
