"""Two walks side by side: where they first part, and how far apart their mixtures are from then on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mixer.journal.header import read_header
from mixer.replay.replay import Replay
from mixer.replay.verify import different_fields
from mixer.sampling.phases import Phase
from mixer.types import Array

_FIELDS = ("index", "start", "length", "kind", "regime", "weights", "drawn", "owed")


def compare(one: str | Path, other: str | Path) -> dict[str, Any]:
    """Return plain data: what differs in configs and data read, the first phase that differs, distances over time.

    Sources are matched by name; one that a walk does not have has weight 0 there. ``spans`` are runs of steps with one
    pair of mixtures: ``l1`` is the summed absolute difference of the weights (half of it is the share of rows that come
    from elsewhere), ``l2`` the Euclidean distance. Only steps that both cover are compared.
    """
    walks = Replay(one), Replay(other)
    names = list(dict.fromkeys([*walks[0].names, *walks[1].names]))
    fields = different_fields(walks[0].curriculum.model_dump(mode="json"), walks[1].curriculum.model_dump(mode="json"))
    num_steps = min(walk.frontier for walk in walks)
    spans = _spans(walks, names, num_steps)
    lengths = np.array([span["steps"] for span in spans], dtype=np.float64)
    means = {
        f"mean_{norm}": float(np.average([span[norm] for span in spans], weights=lengths)) if spans else 0.0
        for norm in ("l1", "l2")
    }
    first = _first_difference(walks)
    return {
        "walks": [str(walk.path) for walk in walks],
        "steps": [walk.frontier for walk in walks],
        "sources": names,
        "config": [{"field": field, "a": a, "b": b} for field, a, b in fields],
        "data": _other_data(one, other),
        "first_difference": first,
        "is_same": first is None and walks[0].frontier == walks[1].frontier,
        **means,
        "max_l1": max((span["l1"] for span in spans), default=0.0),
        "spans": spans,
    }


def _other_data(one: str | Path, other: str | Path) -> list[dict[str, str]]:
    """Return the sources of which both headers say what was read, and not the same."""
    a, b = (read_header(path)["sources"] for path in (one, other))
    return [{"source": name, "a": a[name], "b": b[name]} for name in a if name in b and a[name] != b[name]]


def _first_difference(walks: tuple[Replay, Replay]) -> dict[str, Any] | None:
    """Return the first phase that is not the same to the last bit, and the first of its fields that differs."""
    for a, b in zip(walks[0].phases, walks[1].phases, strict=False):
        for field in _FIELDS:
            values = [_plain(phase, field) for phase in (a, b)]
            if repr(values[0]) != repr(values[1]):  # 0.0 is not -0.0
                return {"step": a.start, "phase": a.index, "field": field, "a": values[0], "b": values[1]}
    return None


def _plain(phase: Phase, field: str) -> Any:
    value = getattr(phase, field)
    return value.tolist() if isinstance(value, np.ndarray) else value


def _spans(walks: tuple[Replay, Replay], names: list[str], num_steps: int) -> list[dict[str, Any]]:
    places = [np.array([names.index(name) for name in walk.names]) for walk in walks]
    starts = sorted({phase.start for walk in walks for phase in walk.phases if phase.start < num_steps})
    spans = []
    for start, end in itertools.pairwise([*starts, num_steps]):
        gap = _placed(walks[0], start, places[0], len(names)) - _placed(walks[1], start, places[1], len(names))
        spans.append(
            {"start": start, "steps": end - start, "l1": float(np.abs(gap).sum()), "l2": float(np.linalg.norm(gap))}
        )
    return spans


def _placed(walk: Replay, step: int, places: Array, num_names: int) -> Array:
    weights = np.zeros(num_names)
    weights[places] = walk.phase_at(step).weights
    return weights
