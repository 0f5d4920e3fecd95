"""A walk as columns that a page can draw: at most so many points whatever the length of the run.

A point stands for 1, 2, 4, ... whole phases that begin at a multiple of that number, so that the points already drawn
stay as they are while the run goes on. Weights are averaged over steps and proportions are counts, so what is stacked
still sums to 1; losses are per token; index and width are the last that a decision used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.types import Array, IntArray
from service.dashboard.columns import WalkColumns

DIGITS = 5  # that are worth sending: a tenth of a pixel where a plot shows a thousandth of its values


@dataclass(frozen=True)
class Span:
    """Which phases are asked for, and how many stand behind a point."""

    first: int
    last: int  # exclusive
    per_point: int

    @property
    def edges(self) -> IntArray:
        """The first phase of each point."""
        aligned = np.arange(self.first - self.first % self.per_point, self.last, self.per_point)
        return np.maximum(aligned, self.first)


def span_of(chronicle: WalkColumns, *, points: int, from_step: int, to_step: int | None, per_point: int | None) -> Span:
    """Return the phases that meet ``[from_step, to_step)``, and the smallest power of two that keeps to ``points``."""
    starts = np.array(chronicle.starts, dtype=np.int64)
    first = max(int(np.searchsorted(starts, from_step, side="right")) - 1, 0)
    last = starts.size if to_step is None else int(np.searchsorted(starts, to_step, side="left"))
    last = max(last, min(first + 1, starts.size))
    if per_point is None:
        per_point = 1
        while (last - first) / per_point > points:
            per_point *= 2
    return Span(first - first % per_point, last, per_point)


def shown_sources(chronicle: WalkColumns, top: int) -> list[int]:
    """Positions of the sources shown by name: the ``top`` that were drawn most, in declared order."""
    drawn = chronicle.drawn()
    if drawn.size <= top:
        return list(range(drawn.size))
    return sorted(np.argsort(-drawn, kind="stable")[: top - 1].tolist())


def series(
    chronicle: WalkColumns,
    *,
    points: int = 1000,
    from_step: int = 0,
    to_step: int | None = None,
    per_point: int | None = None,
    top: int = 24,
) -> dict[str, Any]:
    """Return the columns of the walk in ``[from_step, to_step)`` as plain data and arrays, as ``schemas`` describes.

    Args:
        chronicle: of the run.
        from_step: phases that meet ``[from_step, to_step)`` are told.
        to_step: by default the end.
        points: at most so many points; phases are brought together by powers of two to keep to it.
        per_point: keep to this many phases a point instead, to go on where an answer before ended.
        top: sources shown by name; the others are added up in a last row.
    """
    shown = shown_sources(chronicle, top)
    num_others = len(chronicle.names) - len(shown)
    span = span_of(chronicle, points=points, from_step=from_step, to_step=to_step, per_point=per_point)
    head: dict[str, Any] = {
        "names": [chronicle.names[i] for i in shown],
        "num_others": num_others,
        "per_point": span.per_point,
        "num_phases": len(chronicle.starts),
        "end": chronicle.end,
    }
    if not chronicle.starts:
        columns: dict[str, list[Any]] = {name: [[] for _ in shown] for name in COLUMNS}
        return {**head, "steps": [], "until": 0, "num_random": [], **columns, "loss": []}
    edges = span.edges
    starts, kinds = np.array(chronicle.starts), np.array(chronicle.kinds[span.first : span.last])
    last_phase = span.last - 1
    return {
        **head,
        "steps": starts[edges],
        "until": chronicle.starts[last_phase] + chronicle.lengths[last_phase],
        "num_random": np.add.reduceat((kinds == "random").astype(np.int64), edges - span.first),
        **_columns(chronicle, span, shown, is_folded=num_others > 0),
    }


COLUMNS = ("weights", "proportions", "losses", "index", "width")


def _columns(chronicle: WalkColumns, span: Span, shown: list[int], *, is_folded: bool) -> dict[str, Any]:
    """One row per source shown, then one for the others if there are any: [S, points] each; ``loss`` is of all."""
    offsets = span.edges - span.first
    lengths = np.array(chronicle.lengths[span.first : span.last], dtype=np.float64)[:, None]
    table = {name: rows.rows[span.first : span.last] for name, rows in chronicle.tables.items()}

    def summed(values: Array) -> Array:
        sums = np.add.reduceat(values, offsets, axis=0)
        kept = sums[:, shown]
        return np.column_stack([kept, np.delete(sums, shown, axis=1).sum(axis=1)]) if is_folded else kept

    loss_sums, tokens = map(summed, chronicle.reported.table(span.first, span.last))
    counts = summed(table["counts"])
    weighted = summed(table["weights"] * lengths)
    found = {
        "weights": weighted / np.add.reduceat(lengths, offsets, axis=0),
        "proportions": counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0),
        "losses": np.divide(loss_sums, tokens, out=np.full_like(weighted, np.nan), where=tokens > 0),
        "index": _last_known(table["index"][:, shown], offsets, is_folded=is_folded),
        "width": _last_known(table["width"][:, shown], offsets, is_folded=is_folded),
    }
    columns = {name: list(np.ascontiguousarray(_shortened(values).T)) for name, values in found.items()}
    sums, total = loss_sums.sum(axis=1), tokens.sum(axis=1)
    loss = np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)
    return {**columns, "loss": _shortened(loss)}


def _shortened(values: Array) -> Array:
    """The same numbers with ``DIGITS`` significant digits."""
    size = np.floor(np.log10(np.abs(values), out=np.zeros_like(values), where=values != 0))
    scale = 10.0 ** np.clip(DIGITS - 1 - np.nan_to_num(size), -300, 300)
    return np.asarray(np.round(values * scale) / scale)


def _last_known(values: Array, offsets: IntArray, *, is_folded: bool) -> Array:
    """The last number of each source in each point; NaN where no phase of it had one. [P, S] -> [points, S]."""
    rows = np.arange(len(values))[:, None]
    newest = np.maximum.reduceat(np.where(np.isnan(values), -1, rows), offsets, axis=0)
    last = np.where(newest >= 0, np.take_along_axis(values, np.maximum(newest, 0), axis=0), np.nan)
    return np.column_stack([last, np.full(len(last), np.nan)]) if is_folded else last
