"""What a file may write shorter, or in another unit, than the fields say: written out before anything is checked.

Tokens and fractions of the run become steps, a weight beside each source becomes ``weights``, and a name alone becomes
settings with that name. What is written out is what journals keep and fingerprints count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixer.config.phases import ANDREA_PHASES
from mixer.config.problems import shown
from mixer.config.proportions import normalized
from mixer.errors import ConfigError

Fields = dict[str, Any]
NAMED = (("policy", "name"), ("tokenizer", "file"), ("guard", "action"))  # `policy: ucb` is `policy: {name: ucb}`


def written_out(data: Mapping[str, Any]) -> Fields:
    """Return the fields of a curriculum without shorthands.

    Raises:
        ConfigError: a shorthand beside what it stands for, or a number that it cannot have.
    """
    data = dict(data)
    if data.get("phases") == "andrea":  # as published: whatever the defaults are
        num_sources = len(data["sources"]) if isinstance(data.get("sources"), Sequence) else 16
        data["phases"] = {**ANDREA_PHASES, "initial_random": min(num_sources, 16)}
    if data.get("guard") in ("off", False):  # YAML 1.1 reads `off` as false, 1.2 as a word
        data["guard"] = None
    for key, field in NAMED:
        if isinstance(data.get(key), str):
            data[key] = {field: data[key]}
    _in_steps(data)
    _weights_of_sources(data)
    if isinstance(data.get("pivots"), list | tuple) and isinstance(data.get("policy"), Mapping):
        data["pivots"] = [_with_own_policy(pivot, data["policy"]) for pivot in data["pivots"]]
    return data


def _with_own_policy(pivot: Any, own: Mapping[str, Any]) -> Any:
    is_own = isinstance(pivot, Mapping) and isinstance(pivot.get("policy"), str) and pivot["policy"] == own.get("name")
    return {**pivot, "policy": dict(own)} if is_own else pivot


def _in_steps(data: Fields) -> None:
    """Write what is given in tokens, or as a fraction of the run, as steps."""
    if "total_tokens" in data:
        _alone(data, "total_steps", "total_tokens", "")
        tokens = _number(data.pop("total_tokens"), "total_tokens", "a number of tokens above 0")
        data["total_steps"] = math.ceil(tokens / _batch_tokens(data, "total_tokens"))
    _moment(data, "curriculum_warmup_", data, "")
    if isinstance(data.get("pivots"), list | tuple):
        pivots = []
        for i, pivot in enumerate(data["pivots"]):
            if isinstance(pivot, Mapping):
                pivot = dict(pivot)
                _moment(pivot, "at_", data, f"pivot {pivot.get('name', i)}: ")
            pivots.append(pivot)
        data["pivots"] = pivots


def _moment(fields: Fields, prefix: str, run: Fields, place: str) -> None:
    """Write a moment in tokens or as a fraction of the run as the nearest step."""
    steps = f"{prefix}step" + ("s" if prefix != "at_" else "")
    for unit in ("tokens", "fraction"):
        key = f"{prefix}{unit}"
        if key not in fields:
            continue
        _alone(fields, steps, key, place)
        if unit == "tokens":
            tokens = _number(fields.pop(key), f"{place}{key}", "a number of tokens above 0")
            fields[steps] = max(1, round(tokens / _batch_tokens(run, f"{place}{key}")))
        else:
            share = _number(fields.pop(key), f"{place}{key}", "a share of the run between 0 and 1", below=1)
            total = run.get("total_steps")
            if not isinstance(total, int):
                raise ConfigError([f"{place}{key}: needs total_steps or total_tokens, of which it is a share"])
            fields[steps] = max(1, round(share * total))


def _batch_tokens(run: Fields, key: str) -> int:
    rows, length = run.get("batch_rows"), run.get("sequence_length")
    if not (isinstance(rows, int) and isinstance(length, int) and rows > 0 and length > 0):
        raise ConfigError([f"{key}: needs batch_rows and sequence_length, whole numbers above 0, to be steps"])
    return rows * length


def _alone(fields: Fields, written: str, key: str, place: str) -> None:
    if written in fields:
        raise ConfigError(
            [f"{place}{key} {shown(fields[key])} and {written} {shown(fields[written])} say the same twice; keep one"]
        )


def _number(value: Any, key: str, what: str, *, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        raise ConfigError([f"{key}: {shown(value)} is not {what}"])
    return value


def _weights_of_sources(data: Fields) -> None:
    """Write a ``weight`` beside each source as the run's ``weights``; they need not sum to 1."""
    sources = data.get("sources")
    if not isinstance(sources, list | tuple):
        return
    drawn = [source for source in sources if isinstance(source, Mapping) and source.get("role") != "target"]
    given = {str(source.get("name")): source["weight"] for source in drawn if "weight" in source}
    if not given:
        return
    if data.get("weights") is not None:
        raise ConfigError([f"source {next(iter(given))}: weight, and weights at the top level; keep one of the two"])
    missing = [str(source.get("name")) for source in drawn if "weight" not in source]
    if missing:
        raise ConfigError(
            [f"source {missing[0]}: needs a weight, as {next(iter(given))} has one; write 0 for what is not drawn"]
        )
    data["weights"] = normalized(given, "weight of source ")
    data["sources"] = [
        {key: value for key, value in source.items() if key != "weight"} if source in drawn else source
        for source in sources
    ]
