"""What every picture of a walk shows, reduced to what an eye can take in: at most 1,200 points of 20 sources.

A run of 200,000 steps has 8,200 phases. They are put into spans of whole phases, weights averaged over steps, so that a
page stays at a few MB; below 1,200 phases every phase is a span of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.analysis.palette import OTHERS, colour_of
from mixer.journal.tables import JournalTables
from mixer.region.region import Region
from mixer.types import Array, IntArray

MAX_SOURCES = 20  # shown by name; the smaller ones are added up as "others"
MAX_SPANS = 1200
OTHERS_COLOUR = OTHERS["light"]
ALARM_COLOUR = "#d50000"
KIND_COLOURS = {"random": "#c0392b", "bandit": "#aab7c4", "fixed": "#d9d9d9"}


@dataclass(frozen=True, eq=False)
class Mark:
    """The beginning of a regime: its step, name, region, and whether a pivot drew it."""

    start: int
    name: str
    region: Region
    is_pivot: bool


@dataclass(frozen=True, eq=False)
class View:
    """A story reduced for pictures. S spans, K sources, of which some are shown by name.

    Attributes:
        story: what it was made from.
        names, colours: of the sources shown.
        shown: their positions, in declared order.
        edges: first step of each span and the last step's end, [S + 1].
        weights: mean over the steps of each span, [S, K].
        losses: mean over each span's phases, NaN where nothing was reported, [S, K].
        index, width: means over the decisions in each span, NaN where there was none, [S, K].
        random_share: share of each span's steps in random phases, [S].
        marks: where regimes begin.
        phases_per_span: the most phases that one span stands for.
    """

    story: JournalTables
    names: tuple[str, ...]
    colours: tuple[str, ...]
    shown: IntArray
    edges: IntArray
    weights: Array
    losses: Array
    index: Array
    width: Array
    random_share: Array
    marks: tuple[Mark, ...]
    phases_per_span: int

    def held_out(self) -> tuple[IntArray, list[tuple[str, str, Array]]]:
        """Return the n steps that were probed, and (name, colour, losses [n]) of each source shown and each target."""
        steps, losses = self.story.held_out_losses()
        chosen = np.unique(np.linspace(0, max(len(steps) - 1, 0), min(len(steps), MAX_SPANS)).astype(np.int64))
        number, targets = len(self.story.names), self.story.targets
        lines = [(self.names[j], self.colours[j], int(i)) for j, i in enumerate(self.shown)]
        lines += [(name, colour_of(number + i), number + i) for i, name in enumerate(targets)]
        return steps[chosen], [(name, colour, losses[chosen, i]) for name, colour, i in lines]

    @property
    def middles(self) -> Array:
        """The middle step of each span, [S]."""
        return np.asarray((self.edges[:-1] + self.edges[1:]) / 2)

    def bands(self) -> list[tuple[str, str, Array]]:
        """(name, colour, weights [S]) of each band of a stack; the sources not shown are one band."""
        bands = [
            (name, colour, self.weights[:, i])
            for name, colour, i in zip(self.names, self.colours, self.shown, strict=True)
        ]
        hidden = self.weights.shape[1] - self.shown.size
        if hidden:
            rest = np.maximum(0.0, 1.0 - self.weights[:, self.shown].sum(axis=1))
            bands.append((f"{hidden} others", OTHERS_COLOUR, rest))
        return bands


def make_view(story: JournalTables) -> View:
    """Return the view of a story that has phases."""
    lengths, num = story.lengths(), len(story.phases)
    spans = np.unique(np.linspace(0, num, min(num, MAX_SPANS) + 1).astype(np.int64))
    starts = np.array([phase["start"] for phase in story.phases] + [story.end], dtype=np.int64)
    steps = np.add.reduceat(lengths, spans[:-1])
    weights = story.weights()
    mean_weights = np.add.reduceat(weights * lengths[:, None], spans[:-1], axis=0) / steps[:, None]
    random = np.array([phase["kind"] == "random" for phase in story.phases]) * lengths
    shown = np.sort(np.argsort(-story.mean_weights(), kind="stable")[:MAX_SOURCES])
    return View(
        story=story,
        names=tuple(story.names[i] for i in shown),
        colours=tuple(colour_of(int(i)) for i in shown),
        shown=shown,
        edges=starts[spans],
        weights=mean_weights,
        losses=_means(story.phase_losses(), spans),
        index=_means(story.parts("index"), spans),
        width=_means(story.parts("width"), spans),
        random_share=np.add.reduceat(random, spans[:-1]) / steps,
        marks=_marks(story),
        phases_per_span=int(np.diff(spans).max()),
    )


def _means(values: Array, spans: IntArray) -> Array:
    """Return the mean of the known values of each span, [S, K]; NaN where there is none."""
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), spans[:-1], axis=0)
    num = np.add.reduceat(known, spans[:-1], axis=0, dtype=np.int64)
    return np.divide(sums, num, out=np.full_like(sums, np.nan), where=num > 0)


def _marks(story: JournalTables) -> tuple[Mark, ...]:
    pivots = {pivot["at_step"] for pivot in [*story.header["curriculum"]["pivots"], *story.pivots]}
    names: list[str] = story.names
    marks = []
    for phase in story.phases:
        record: dict[str, Any] | None = phase["region"]
        if record is not None:
            bounds = {key: dict(zip(names, record[key], strict=True)) for key in ("floors", "caps")}
            region = Region(names, floors=bounds["floors"], caps=bounds["caps"])
            marks.append(Mark(phase["start"], phase["regime"], region, phase["start"] in pivots))
    return tuple(marks)
