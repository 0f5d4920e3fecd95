"""Why the mixture was what it was at a step: every number behind one decision, and the same in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixer.journal.header import deciding_curriculum
from mixer.journal.lookup import JournalIndex
from mixer.journal.records import region_in_force
from mixer.journal.words import alarm_in_words
from mixer.types import Array

TOLERANCE = 1e-9  # a weight this near to a bound stands at it
PARTS = ("slope", "mean", "width", "repetition", "gain", "tokens", "index", "alarm")
UNTOLD = ("type", "at", "number", "chain", "decided_before")  # of an alarm line


def explain(path: str | Path, step: int) -> dict[str, Any]:
    """Return what decided the weights of ``step``, as plain data; ``words`` holds the sentences.

    Raises:
        StepError: no phase covers the step.
        JournalError: a line that it needs is damaged.
    """
    journal = JournalIndex(path)
    phase = journal.phase_at(step)
    before, opening = journal.before(phase), journal.first_of_regime(phase)
    alarms, opening_alarms = journal.alarms(phase), journal.alarms(opening)
    curriculum = deciding_curriculum(journal.header, phase["start"])
    names = [source["name"] for source in curriculum["sources"]]
    rule = phase.get("rule") or {}
    policy = rule.get("policy") or curriculum["policy"]
    answer: dict[str, Any] = {
        "step": step,
        "policy": policy,
        "phase": {
            "index": phase["index"],
            "start": phase["start"],
            "end": phase["start"] + phase["length"],
            "kind": phase["kind"],
            "probability_random": phase["probability_random"],
            "boundary": phase["boundary"],
            "log_volume": phase["log_volume"],
            "eta": phase.get("eta"),
            "is_excursion": phase["kind"] == "random"
            and policy["name"] != "random"
            and curriculum["phases"].get("after_random") == "return",
        },
        "before": None if before is None else {"index": before["index"], "kind": before["kind"]},
        "regime": _regime(phase, opening, curriculum, opening_alarms),
        "sources": _sources(curriculum, phase, region_in_force(phase, opening["region"])),
        "feedback": _losses(phase["feedback"], names),
        "alarms": [{key: value for key, value in alarm.items() if key not in UNTOLD} for alarm in alarms],
    }
    if rule.get("weights"):
        answer["written"] = {
            "weights": dict(zip(names, rule["weights"], strict=True)),
            "ramp_end": rule.get("ramp_end"),
        }
    if phase.get("probes"):
        targets = [target["name"] for target in curriculum.get("targets", ())]
        answer["probes"] = _losses(phase["probes"], [*names, *targets])
    if phase.get("epochs"):
        answer["epochs"] = {key: phase["epochs"][key] for key in ("cap_factor", "epoch_factor")}
    answer["words"] = _words(answer)
    return answer


def _regime(
    phase: dict[str, Any], opening: dict[str, Any], curriculum: dict[str, Any], alarms: list[dict[str, Any]]
) -> dict[str, Any]:
    planned = {pivot["name"] for pivot in curriculum["pivots"]}
    name = phase["regime"]
    origin = "the curriculum" if name in ("warmup", "firehose") else "a pivot in the file" if name in planned else None
    if any(alarm["pivot"] == name for alarm in alarms):
        origin = "an alarm of the guard"
    return {
        "name": name,
        "start": opening["start"],
        "origin": origin or "a pivot asked for while the run went on",
        "moved": opening["distance"],
        "is_first_phase": phase["region"] is not None,
    }


def _sources(curriculum: dict[str, Any], phase: dict[str, Any], region: dict[str, Any]) -> list[dict[str, Any]]:
    vertex, parts, epochs = phase["vertex"], phase["parts"], phase.get("epochs")
    origin = phase["landed"] or phase["before"]
    rows = []
    for i, source in enumerate(curriculum["sources"]):
        row: dict[str, Any] = {
            "source": source["name"],
            "weight": phase["weights"][i],
            "before": phase["before"][i],
            "change": phase["weights"][i] - phase["before"][i],
            "stepped_from": origin[i],
            "floor": region["floors"][i],
            "cap": region["caps"][i],
            "lower": region["lower"][i],
            "upper": region["upper"][i],
            "binds": _bound(phase["weights"][i], region, i, epochs),
            "vertex": None if vertex is None else vertex[i],
            "vertex_binds": None if vertex is None else _bound(vertex[i], region, i, epochs),
        }
        if epochs:
            row["epoch_cap"], row["tokens_drawn"] = epochs["caps"][i], phase["drawn"][i] * curriculum["sequence_length"]
        rows.append(row | {part: parts[part][i] for part in PARTS if part in parts})
    return rows


def _bound(value: float, region: dict[str, Any], i: int, epochs: dict[str, Any] | None) -> str | None:
    """Say which bound a weight stands at: its own, or one that the other sources' bounds imply."""
    epoch_cap = epochs["caps"][i] if epochs else None
    lower, upper = region["lower"][i], region["upper"][i]
    if region["caps"][i] == 0.0:
        return "excluded"
    if epoch_cap is not None and epoch_cap < region["caps"][i] and value >= max(epoch_cap, lower) - TOLERANCE:
        return "cap by epochs" if epoch_cap >= lower - TOLERANCE else "floor, above its cap by epochs"
    if upper - lower <= TOLERANCE:
        return "pinned"
    if value <= lower + TOLERANCE:
        return "floor" if lower <= region["floors"][i] + TOLERANCE else "the others' caps"
    if value >= upper - TOLERANCE:
        return "cap" if upper >= region["caps"][i] - TOLERANCE else "the others' floors"
    return None


def _losses(found: dict[str, Any] | None, names: list[str]) -> dict[str, Any] | None:
    """Return what a decision learned from of reports, or of probes, with the mean loss of each name."""
    if found is None:
        return None
    losses = {
        names[i]: total / tokens
        for i, total, tokens in zip(found["sources"], found["loss_sums"], found["tokens"], strict=True)
        if tokens
    }
    return {key: found[key] for key in ("reports", "first_step", "last_step", "delay")} | {"mean_losses": losses}


def _words(answer: dict[str, Any]) -> list[str]:
    phase, regime, rows = answer["phase"], answer["regime"], answer["sources"]
    words = [
        f"Step {answer['step']} lies in phase {phase['index']} (steps {phase['start']} to {phase['end'] - 1}), "
        f"a {phase['kind']} phase of regime {regime['name']}.",
        _why(answer),
        f"Regime {regime['name']} began at step {regime['start']}; its bounds come from {regime['origin']}"
        + (f", and the walk was moved {regime['moved']:.4f} into them." if (regime["moved"] or 0.0) > 1e-6 else "."),
    ]
    if phase["eta"] is not None:
        words.append(f"Steps shrink towards the end: eta {answer['policy']['eta']:g} is {phase['eta']:.4g} by now.")
    if phase["is_excursion"]:
        words.append("It is an excursion: the walk goes on from where it was before.")
    if phase["boundary"] is not None:
        words.append(f"A phase has to end at step {phase['boundary']}, where the next regime begins.")
    bound = [f"{row['source']} at {row['weight']:.4g} ({row['binds']})" for row in rows if row["binds"]]
    words.append(f"Bounds that hold the weights: {', '.join(bound)}." if bound else "No bound holds a weight.")
    if "epochs" in answer:
        words += _epochs(answer)
    moved = sorted(rows, key=lambda row: -abs(row["change"]))[:3]
    changes = ", ".join(f"{row['source']} {row['change']:+.4f}" for row in moved if abs(row["change"]) > TOLERANCE)
    start = "the uniform mixture, before the first phase" if answer["before"] is None else "where the walk stood"
    words.append(f"Largest changes from {start}: {changes}." if changes else "No weight changed.")
    words.append(_news(answer))
    if "probes" in answer:
        measured = answer["probes"]
        means = ", ".join(f"{name} {loss:.4g}" for name, loss in measured["mean_losses"].items())
        words.append(f"Held-out losses, the newest measured at step {measured['last_step']}: {means}.")
    held = [row["source"] for row in rows if row.get("alarm")]
    if held:
        words.append(f"In alarm, their index counting as 0: {', '.join(held)}.")
    words += [f"Alarm: {alarm_in_words({**alarm, 'decided_before': phase['start']})}." for alarm in answer["alarms"]]
    return words


def _why(answer: dict[str, Any]) -> str:
    phase, policy, rows = answer["phase"], answer["policy"], answer["sources"]
    chance = phase["probability_random"]
    if phase["kind"] == "random":
        odds = "as every phase of this policy" if policy["name"] == "random" else f"a coin with probability {chance:g}"
        return (
            f"It was random ({odds}): the weights are a uniformly random point of the region, of density "
            f"{_density(phase['log_volume'])}; losses had no part in them."
        )
    if "written" in answer:
        return _written(answer)
    if phase["kind"] == "fixed":
        return (
            f"The policy {policy['name']} never looks at losses: the weights are the point of the region it asks for."
        )
    eta = policy["eta"] if phase["eta"] is None and "eta" in policy else phase["eta"]
    if policy["name"] == "water_filling":
        return (
            f"The policy water_filling went {eta:.4g} of the way to the best allocation of the tokens left "
            "(`index`), which follows from the fitted slopes and the tokens seen of each source."
        )
    if all(row["vertex"] is None for row in rows):
        return (
            f"The policy {policy['name']} set the weights itself (`index`); they are the nearest point of the region."
        )
    untried = [row["source"] for row in rows if row.get("index", 0.0) is None and row["upper"] > row["lower"]]
    full = [row for row in rows if row["vertex"] is not None and row["vertex"] > row["lower"] + TOLERANCE]
    full.sort(key=lambda row: -math.inf if row["index"] is None else -row["index"])
    gains = ", ".join(f"{row['source']} to {row['vertex']:.4g} ({row['vertex_binds'] or 'the rest'})" for row in full)
    first = f" Not enough is known of {', '.join(untried)} yet: those come first." if untried else ""
    return (
        f"A bandit went {eta:.4g} of the way to the region's best vertex, which fills sources in order of "
        f"their index above the floors: {gains or 'the region is a point'}.{first}"
    )


def _written(answer: dict[str, Any]) -> str:
    written, phase = answer["written"], answer["phase"]
    shares = ", ".join(f"{name} {weight:.4g}" for name, weight in written["weights"].items() if weight)
    end = written["ramp_end"]
    if end is not None and phase["end"] < end:
        return (
            f"It lies on a ramp, which arrives at step {end} at the weights that are written by hand: {shares}; its "
            "weights are the ramp's at the middle of the phase."
        )
    return f"The weights are written by hand, and no policy decides: {shares}."


def _epochs(answer: dict[str, Any]) -> Iterator[str]:
    limited = [row for row in answer["sources"] if row["epoch_cap"] is not None]
    limited.sort(key=lambda row: row["epoch_cap"])
    caps = ", ".join(
        f"{row['source']} at most {row['epoch_cap']:.4g} ({row['tokens_drawn']:,} tokens drawn)" for row in limited[:3]
    )
    more = f", and {len(limited) - 3} more" if len(limited) > 3 else ""
    yield f"max_epochs leaves, for the rest of the run: {caps}{more}."
    factors = answer["epochs"]
    if factors["epoch_factor"] > 1:
        yield (
            f"The tokens that max_epochs allows were too few for this phase: all limits were raised together, by a "
            f"factor of {factors['epoch_factor']:.4g}."
        )
    elif factors["cap_factor"] > 1:
        yield (
            f"Spread over the rest of the run these caps left no weights, so all were raised together, by a factor of "
            f"{factors['cap_factor']:.4g}; no source passes max_epochs by it."
        )


def _density(log_volume: float) -> str:
    return f"{math.exp(-log_volume):.4g}" if abs(log_volume) < 700 else f"exp({-log_volume:.1f})"


def _news(answer: dict[str, Any]) -> str:
    news = answer["feedback"]
    if news is None:
        return "No report had arrived between the decision before and this one."
    num = news["reports"]
    return (
        f"Learned from {num} report{'s' if num > 1 else ''} of steps {news['first_step']} to {news['last_step']}; "
        f"the newest was {news['delay']} step{'s' if news['delay'] != 1 else ''} old when the phase began."
    )


def as_array(rows: list[dict[str, Any]], key: str) -> Array:
    """Return one column of the sources' rows, NaN for None, [K]."""
    return np.array([row[key] for row in rows], dtype=np.float64)
