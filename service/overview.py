"""Where a run stands now: its phase, its regimes, each source, each rank, its alarms."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer.types import Array
from service.chronicle import Chronicle

MAX_LISTED = 200  # regimes, alarms and ranks


def overview(chronicle: Chronicle, *, query: str = "", limit: int = 200) -> dict[str, Any]:
    """Return the state of the run as plain data.

    Args:
        query: list only the sources whose name contains this.
        limit: list at most so many sources, those of the largest weight.
    """
    curriculum, newest = chronicle.curriculum, chronicle.newest
    return {
        "end": chronicle.end,
        "total_steps": curriculum.total_steps,
        "batch_tokens": curriculum.batch_tokens,
        "batch_rows": curriculum.batch_rows,
        "seed": curriculum.seed,
        "policy": curriculum.policy.name,
        "fingerprint": chronicle.header["fingerprint"],
        "num_lines": chronicle.num_lines,
        "num_sources": len(chronicle.names),
        "phase": {key: newest[key] for key in ("index", "start", "length", "kind", "regime")} if newest else None,
        "regimes": _regimes(chronicle),
        "sources": _sources(chronicle, query.casefold(), limit),
        "ranks": _ranks(chronicle),
        "alarms": chronicle.alarms[: -MAX_LISTED - 1 : -1],
        "num_alarms": len(chronicle.alarms),
    }


def _regimes(chronicle: Chronicle) -> list[dict[str, Any]]:
    """The regimes with their bounds as written: what a pivot's form begins with."""
    return [
        {
            "name": regime.name,
            "start": regime.start,
            "floors": dict(regime.bounds.floors),
            "caps": dict(regime.bounds.caps),
            "exclude": list(regime.bounds.exclude),
        }
        for regime in chronicle.regimes[-MAX_LISTED:]
    ]


def _ranks(chronicle: Chronicle) -> list[dict[str, int]]:
    """Each rank's newest report, and how many steps it is behind the rank that is furthest; those behind first."""
    furthest = max((rank.step for rank in chronicle.ranks.values()), default=0)
    found = [
        {"rank": number, "step": rank.step, "reports": rank.reports, "lag": furthest - rank.step}
        for number, rank in chronicle.ranks.items()
    ]
    return sorted(found, key=lambda rank: (-rank["lag"], rank["rank"]))[:MAX_LISTED]


def _sources(chronicle: Chronicle, query: str, limit: int) -> list[dict[str, Any]]:
    region = chronicle.regime_at(max(chronicle.end - 1, 0)).region
    drawn, weights = chronicle.drawn(), chronicle.tables["weights"].rows
    lengths = np.array(chronicle.lengths, dtype=np.float64)[:, None]
    now = weights[-1] if len(weights) else np.zeros(len(chronicle.names))
    mean = (weights * lengths).sum(axis=0) / lengths.sum() if len(weights) else now
    losses = np.divide(
        chronicle.tables["loss_sums"].rows,
        chronicle.tables["tokens"].rows,
        out=np.full_like(weights, np.nan),
        where=chronicle.tables["tokens"].rows > 0,
    )
    columns = {
        "weight": now,
        "mean_weight": mean,
        "proportion": drawn / max(drawn.sum(), 1.0),
        "rows": drawn,
        "tokens": chronicle.tables["tokens"].rows.sum(axis=0),
        "lower": region.lower,
        "upper": region.upper,
        "loss": _last_known(losses),
        "index": _last_known(chronicle.tables["index"].rows),
        "width": _last_known(chronicle.tables["width"].rows),
    }
    known = {name: [_plain(value) for value in values] for name, values in columns.items()}
    order = [i for i in np.argsort(-now, kind="stable") if query in chronicle.names[i].casefold()][:limit]
    return [
        {
            "name": chronicle.names[i],
            **{name: values[i] for name, values in known.items()},
            "unique_tokens": chronicle.unique_tokens.get(chronicle.names[i]) or chronicle.curriculum.sources[i].tokens,
        }
        for i in order
    ]


def _last_known(rows: Array) -> Array:
    """The last number in each column that is one, [N, K] -> [K]; NaN if there is none."""
    if not len(rows):
        return np.full(rows.shape[1], np.nan)
    newest = np.where(np.isnan(rows), -1, np.arange(len(rows))[:, None]).max(axis=0)
    return np.where(newest >= 0, rows[np.maximum(newest, 0), np.arange(rows.shape[1])], np.nan)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
