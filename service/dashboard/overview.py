"""Where a run stands now: its phase, its regimes, each source, each rank, its alarms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.journal.records import region_in_force
from service.dashboard.columns import WalkColumns

MAX_LISTED = 200  # regimes, alarms and ranks
PHASE = ("index", "start", "length", "kind", "regime", "at")


def overview(
    chronicle: WalkColumns,
    *,
    steps_per_s: float | None = None,
    silence: Mapping[str, float] | None = None,
    query: str = "",
    limit: int = 200,
) -> dict[str, Any]:
    """Return the state of the run as plain data.

    Args:
        chronicle: of the run.
        steps_per_s: how fast it goes, if that is known.
        silence: for how long nothing new was reported, of a run that goes on.
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
        "policy": _decider(newest, curriculum.policy.name),
        "fingerprint": chronicle.header["fingerprint"],
        "num_lines": chronicle.num_lines,
        "num_entries": len(chronicle.entries),
        "steps_per_s": steps_per_s,
        "quiet_s": None,
        "stall_s": None,
        **(silence or {}),
        "began_at": chronicle.header.get("at"),
        "num_sources": len(chronicle.names),
        "phase": {key: newest.get(key) for key in PHASE} if newest else None,
        "regimes": _regimes(chronicle),
        "sources": _sources(chronicle, query.casefold(), limit),
        "ranks": _ranks(chronicle),
        "alarms": [_alarm(chronicle, alarm) for alarm in chronicle.alarms[: -MAX_LISTED - 1 : -1]],
        "num_alarms": len(chronicle.alarms),
    }


def _decider(newest: Mapping[str, Any] | None, own: str) -> str:
    """Return who decided the newest phase: the name of a policy, or that weights were written by hand."""
    rule = (newest or {}).get("rule") or {}
    return "weights written by hand" if rule.get("weights") else str((rule.get("policy") or {}).get("name", own))


def _regimes(chronicle: WalkColumns) -> list[dict[str, Any]]:
    """The regimes with their bounds as written: what a pivot's form begins with."""
    return [
        {
            "name": regime.name,
            "start": regime.start,
            "at": chronicle.begun_at.get(regime.start),
            "floors": dict(regime.bounds.floors),
            "caps": dict(regime.bounds.caps),
            "exclude": list(regime.bounds.exclude),
        }
        for regime in chronicle.regimes[-MAX_LISTED:]
    ]


def _alarm(chronicle: WalkColumns, alarm: Mapping[str, Any]) -> dict[str, Any]:
    """One alarm, and whether it lasts: until a decision that looks at its source holds it in alarm no more."""
    is_held = alarm["source"] in chronicle.in_alarm or alarm["decided_before"] > chronicle.judged_at
    return {**{key: alarm[key] for key in ("step", "source", "kind", "message", "at")}, "is_lasting": is_held}


def _ranks(chronicle: WalkColumns) -> list[dict[str, int]]:
    """Each rank's newest report, and how many steps it is behind the rank that is furthest; those behind first."""
    furthest = max((rank.step for rank in chronicle.ranks.values()), default=0)
    found = [
        {"rank": number, "step": rank.step, "reports": rank.reports, "lag": furthest - rank.step}
        for number, rank in chronicle.ranks.items()
    ]
    return sorted(found, key=lambda rank: (-rank["lag"], rank["rank"]))[:MAX_LISTED]


def _sources(chronicle: WalkColumns, query: str, limit: int) -> list[dict[str, Any]]:
    region = chronicle.regime_at(max(chronicle.end - 1, 0)).region
    bounds = region_in_force(chronicle.newest, {"lower": region.lower, "upper": region.upper})
    drawn = chronicle.drawn()
    now = np.asarray(chronicle.newest.get("weights", np.zeros(len(chronicle.names))))
    columns = {
        "weight": now,
        "mean_weight": chronicle.weight_steps / max(chronicle.end, 1),
        "proportion": drawn / max(drawn.sum(), 1.0),
        "rows": drawn,
        "tokens": chronicle.tokens,
        **bounds,
        "loss": chronicle.losses_now(),
        "index": chronicle.now("index"),
        "width": chronicle.now("width"),
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


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
