"""The fourth chapter: the mixture walks on a simplex."""

from __future__ import annotations

from collections.abc import Sequence

from andrea.inspection import lesson
from andrea.inspection.chapters.words import Draw, table, text
from andrea.inspection.measure import Findings
from andrea.inspection.simplex import Regime
from mixer.analysis.plots.page import region_figure, weights_figure
from mixer.analysis.plots.view import make_view


def simplex_chapter(findings: Findings, draw: Draw) -> str:
    """The region by hand, and the walk of the run's journal."""
    region = lesson.region()
    parts = [
        "<h2>4. The mixture walks on a simplex</h2>",
        text(
            "The weights of K sources are at least 0 and add up to 1: a point of a simplex, K corners in K - 1",
            "dimensions. A corner draws from one source alone. Floors and caps cut the simplex by planes; what is",
            "left is the <b>region</b> that the walk may reach. A phase of 7 to 42 steps has one mixture, and the",
            "walk is the sequence of phases.",
        ),
        "<h3>By hand</h3>",
        text(
            "Three sources H, G and D, with a floor of 0.5 under H and a cap of 0.25 on D. The region is a figure in",
            f"{region.dimension} dimensions with {len(lesson.corners())} corners:",
        ),
        table(list(lesson.SOURCES), [[f"{value:g}" for value in corner] for corner in lesson.corners()], text=()),
    ]
    story = findings.subject.story
    if not findings.regimes or story is None:
        return "".join([*parts, text("No journal was given, so the walk of this run is not shown.")])
    view = make_view(story)
    parts += [
        "<h3>One run, several geometries</h3>",
        text(
            "A warmup pins the weights of some sources at 0, which takes away dimensions. A pivot draws the region",
            "anew. The <b>volume</b> is the region's share of the simplex of the sources that are free in it. The",
            "<b>path</b> adds up how far the mixture moved from phase to phase; 1 is from one corner to another.",
            "The <b>sources in use</b> are the exponential of the entropy of the weights: 1 at a corner, K in the",
            "middle.",
        ),
        table(
            ["regime", "steps", "phases", "dimensions", "volume", "path", "sources in use", "largest weight", "random"],
            [_regime(regime) for regime in findings.regimes],
        ),
        draw(weights_figure(view)),
    ]
    if len(story.names) > 2:
        parts.append(draw(region_figure(view)))
    return "".join(parts)


def _regime(regime: Regime) -> Sequence[str]:
    return (
        regime.name,
        f"{regime.start:,} to {regime.end - 1:,}",
        f"{regime.num_phases:,}",
        str(regime.dimension),
        f"{regime.volume_share:.2g}",
        f"{regime.path_length:.2f}",
        f"{regime.mean_effective_sources:.2f}",
        f"{regime.largest_weight:.3f}",
        f"{regime.random_share:.0%}",
    )
