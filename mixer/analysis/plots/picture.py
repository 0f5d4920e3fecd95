"""A journal as one still picture, PNG or SVG: the page's figures side by side, for papers and chats.

matplotlib draws it without a screen or a browser; plotly's own way to a still picture starts Chrome.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer.analysis.palette import dash_of
from mixer.analysis.plots.simplex import corners, outline
from mixer.analysis.plots.view import ALARM_COLOUR, KIND_COLOURS, View, make_view
from mixer.errors import EvidenceError, MissingDependencyError
from mixer.journal.tables import read_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
REGION_COLOURS = ("#1b6ca8", "#b8860b", "#2e7d32", "#8e24aa", "#c2185b", "#5d4037")


def write_picture(journal: str | Path, output: str | Path, *, title: str = "Curriculum walk") -> Path:
    """Write the picture of a journal, atomically, and return its path; the suffix says which kind.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        EvidenceError: the journal has no phase yet.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        raise ValueError(f"{output}: a picture ends in {' or '.join(SUFFIXES)}")
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "still pictures need matplotlib: pip install 'curriculum-mixer[pictures]'"
        ) from error
    story = read_tables(journal)
    if not story.phases:
        raise EvidenceError(f"{journal} has no phase yet, so there is nothing to draw")
    partial = output.with_name(f".{output.name}.partial{output.suffix}")
    with rc_context({"svg.hashsalt": "mixer", "font.size": 9}):  # the same journal gives the same file
        metadata = {"Date": None} if output.suffix == ".svg" else None
        draw(make_view(story), title).savefig(partial, dpi=130, metadata=metadata)
    partial.replace(output)
    return output


def draw(view: View, title: str) -> Figure:
    """Return the whole picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    top, strip = [*["weights"] * 8, *["region"] * 4], [*["kinds"] * 8, *["region"] * 4]
    bottom = [name for name in ("losses", "index", "width", "shares") for _ in range(3)]
    layout: list[Any] = [top, strip, bottom]
    axes: dict[str, Axes] = figure.subplot_mosaic(layout, height_ratios=[1, 0.05, 0.85])
    _weights(axes["weights"], view)
    _kinds(axes["kinds"], view)
    _region(axes["region"], view)
    alarms = view.story.alarms
    marks = ["x: alarms"] * bool(alarms) + ["dotted: held out"] * bool(view.story.held_out_losses()[0].size)
    crosses = f" ({', '.join(marks)})" if marks else ""
    _lines(axes["losses"], view, view.losses, f"loss of each source, nats per token{crosses}")
    steps, lines = view.held_out()
    for _, colour, held_out in lines:
        axes["losses"].plot(steps, held_out, color=colour, linewidth=1, linestyle=":", marker=".", markersize=3)
    at = [alarm["step"] for alarm in alarms], [alarm["loss"] for alarm in alarms]
    axes["losses"].scatter(*at, marker="x", s=50, color=ALARM_COLOUR, zorder=4)
    _positive_lines(axes["index"], view, view.index, "index of each source")
    _positive_lines(axes["width"], view, view.width, "width (optimism) in it")
    _shares(axes["shares"], view)
    handles, labels = axes["weights"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
    return figure


def _weights(ax: Axes, view: View) -> None:
    bands = view.bands()
    edges = np.repeat(view.edges, 2)[1:-1]  # both ends of each span: stackplot draws straight lines
    stacks = [np.repeat(band, 2) for _, _, band in bands]
    ax.stackplot(edges, stacks, labels=[name for name, _, _ in bands], colors=[colour for _, colour, _ in bands])
    ax.set(xlim=(view.edges[0], view.edges[-1]), ylim=(0, 1), ylabel="weight")
    ax.tick_params(labelbottom=False)
    _mark_regimes(ax, view)
    length, row, last = max(int(view.edges[-1]), 1), 0, -1.0
    for mark in view.marks:
        place = mark.start / length
        row = 1 - row if last >= 0 and place - last < 0.011 * (len(mark.name) + 3) else 0
        last = place
        ax.annotate(
            mark.name, (mark.start, 1), xytext=(1, 3 + 10 * row), textcoords="offset points", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip


def _mark_regimes(ax: Axes, view: View) -> None:
    for mark in view.marks:
        if mark.start:
            ax.axvline(mark.start, color="#333", linewidth=0.8, linestyle="--")


def _kinds(ax: Axes, view: View) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    low = KIND_COLOURS["fixed" if view.story.phases[0]["kind"] == "fixed" else "bandit"]
    colours = LinearSegmentedColormap.from_list("kinds", [low, KIND_COLOURS["random"]])
    ax.pcolormesh(view.edges, [0, 1], view.random_share[None, :], cmap=colours, vmin=0, vmax=1)
    ax.set(xlim=(view.edges[0], view.edges[-1]), yticks=[], xlabel="step (red: random phases)")


def _region(ax: Axes, view: View) -> None:
    names = view.story.names
    ax.axis("off")
    if len(names) < 3:
        return
    at = corners(len(names))
    edge = np.concatenate([at, at[:1]])
    ax.plot(edge[:, 0], edge[:, 1], color="#999", linewidth=0.8)
    for i, mark in enumerate(view.marks):
        hull, colour = outline(mark.region, at), REGION_COLOURS[i % len(REGION_COLOURS)]
        ax.fill(hull[:, 0], hull[:, 1], facecolor=colour, alpha=0.08)
        ax.plot(hull[:, 0], hull[:, 1], color=colour, linewidth=1.4, label=f"region of {mark.name}")
    points = view.weights @ at
    ax.plot(points[:, 0], points[:, 1], color="#555", alpha=0.25, linewidth=0.6)
    ax.scatter(points[:, 0], points[:, 1], c=view.edges[:-1], s=8, cmap="viridis", zorder=3)
    spans = [int(np.searchsorted(view.edges, mark.start, side="right")) - 1 for mark in view.marks if mark.is_pivot]
    for label, marker, places in (("start", "o", [0]), ("pivot", "x", spans), ("now", "*", [len(points) - 1])):
        if places:
            ink: dict[str, Any] = {"color": "#111"} if marker == "x" else {"facecolor": "none", "edgecolor": "#111"}
            ax.scatter(points[places, 0], points[places, 1], s=90, marker=marker, zorder=4, label=label, **ink)
    for name, (x, y) in zip(names, at, strict=True):
        side = "left" if x > 0.1 else "right" if x < -0.1 else "center"
        level = "bottom" if y > 0.3 else "top" if y < -0.3 else "center"
        ax.annotate(name, (1.05 * x, 1.05 * y), ha=side, va=level, fontsize=8)
    ax.set(xlim=(at[:, 0].min() - 0.3, at[:, 0].max() + 0.3), ylim=(at[:, 1].min() - 0.15, at[:, 1].max() + 0.15))
    ax.set_aspect("equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=8, frameon=False)
    ax.set_title("the walk in its region" + ("" if len(names) == 3 else " (a shadow)"), fontsize=10)


def _lines(ax: Axes, view: View, values: Any, title: str) -> None:
    for colour, i in zip(view.colours, view.shown, strict=True):
        known = ~np.isnan(values[:, i])
        dashes = dash_of(int(i))
        style: Any = (0, dashes) if dashes else "-"
        ax.plot(view.middles[known], values[known, i], color=colour, linewidth=1, linestyle=style)
    ax.set_title(title, fontsize=10)
    ax.set(xlim=(view.edges[0], view.edges[-1]), xlabel="step")
    _mark_regimes(ax, view)


def _positive_lines(ax: Axes, view: View, values: Any, title: str) -> None:
    """Draw lines on a logarithmic axis, or nothing if no value is above 0."""
    values = np.where(values > 0, values, np.nan)
    if np.isnan(values).all():
        ax.axis("off")
        return
    _lines(ax, view, values, title)
    ax.set_yscale("log")


def _shares(ax: Axes, view: View) -> None:
    places = np.arange(len(view.names))
    ax.barh(places - 0.2, view.story.mean_weights()[view.shown], height=0.38)
    ax.barh(places + 0.2, view.story.proportions()[view.shown], height=0.38)
    ax.set_yticks(places, view.names, fontsize=8)
    ax.invert_yaxis()
    ax.set_title("asked for (blue), drawn (orange)", fontsize=10)
