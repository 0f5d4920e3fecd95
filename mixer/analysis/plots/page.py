"""A journal as one self-contained HTML page: weights, the walk in its region, losses, index, proportions, phases."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixer.analysis.palette import dash_of
from mixer.analysis.plots.document import LAYOUT, REGION_COLOURS, document, faint, place_of, short
from mixer.analysis.plots.simplex import corners, outline
from mixer.analysis.plots.view import ALARM_COLOUR, KIND_COLOURS, Mark, View, make_view
from mixer.journal.tables import JournalTables, read_tables
from mixer.journal.words import alarm_in_words
from mixer.system.files import written_whole
from mixer.types import Array

MAX_TABLE_PHASES = 500


def write_page(journal: str | Path, output: str | Path, *, title: str = "Curriculum walk") -> Path:
    """Write the page of a journal, atomically, and return its path."""
    story, output = read_tables(journal), Path(output)
    with written_whole(output) as file:
        file.write(_page(story, title))
    output.chmod(0o644)
    return output


def _page(story: JournalTables, title: str) -> str:
    parts, table, drawn = ["<p>No phase has been decided yet.</p>"], "", list[go.Figure]()
    facts = {
        "sources": len(story.names),
        "seed": story.header["curriculum"]["seed"],
        "policy": story.header["curriculum"]["policy"]["name"],
        "phases": f"{len(story.phases):,}",
        "steps decided": f"{story.end:,}",
        "curriculum": story.header["fingerprint"],
        **({"alarms": len(story.alarms)} if story.alarms else {}),
    }
    if story.phases:
        view = make_view(story)
        if view.phases_per_span > 1:
            facts["each point"] = f"mean of up to {view.phases_per_span} phases"
        drawn = figures(view)
        parts = [
            f"<section><h2>{figure.layout.title.text}</h2>{place_of(i)}</section>" for i, figure in enumerate(drawn)
        ]
        table = _phase_table(story)
    return document(title, facts, "".join(parts) + table, drawn)


def figures(view: View) -> list[go.Figure]:
    """Return the page's figures, in its order; those with nothing to show are left out."""
    found = [weights_figure(view)]
    if len(view.story.names) > 2:
        found.append(region_figure(view))
    if not np.isnan(view.losses).all():
        found.append(_loss_figure(view))
    if not np.isnan(view.index).all():
        found.append(_index_figure(view))
    return [*found, _proportions_figure(view)]


def weights_figure(view: View) -> go.Figure:
    """Stacked weights, a step per span, above a strip of the phases' kinds; regimes as vertical lines."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.94, 0.06], vertical_spacing=0.03)
    for name, colour, band in view.bands():
        figure.add_scatter(
            x=view.edges, y=short([*band, band[-1]]), name=html.escape(name), stackgroup="weights", fillcolor=colour,
            line={"shape": "hv", "width": 0.5, "color": colour}, hovertemplate="%{y:.3f}", row=1, col=1,
        )  # fmt: skip
    is_fixed = view.story.phases[0]["kind"] == "fixed"
    low = KIND_COLOURS["fixed" if is_fixed else "bandit"]
    figure.add_heatmap(
        x=view.edges, z=[short(view.random_share)], zmin=0, zmax=1, showscale=False, row=2, col=1,
        colorscale=[[0, low], [1, KIND_COLOURS["random"]]], hovertemplate="random %{z:.0%}<extra></extra>",
    )  # fmt: skip
    _mark_regimes(figure, view, labelled=True)
    figure.update_layout(
        title="Weights of each phase (below: random phases in red)", hovermode="x unified", **{**LAYOUT, "xaxis": {}}
    )
    figure.update_yaxes(range=[0, 1], title="weight", row=1, col=1)
    figure.update_yaxes(showticklabels=False, showgrid=False, row=2, col=1)
    figure.update_xaxes(range=[int(view.edges[0]), int(view.edges[-1])])
    figure.update_xaxes(title="step", row=2, col=1)
    return figure


def _mark_regimes(figure: go.Figure, view: View, *, labelled: bool = False) -> None:
    """Draw a line where each regime begins; names stand above the plot, in two rows if they would touch."""
    length, row, last = max(int(view.edges[-1]), 1), 0, -1.0
    for mark in view.marks:
        if mark.start:
            figure.add_vline(x=mark.start, line={"dash": "dash", "width": 1, "color": "#333"})
        if labelled:
            place = mark.start / length
            row = 1 - row if last >= 0 and place - last < 0.012 * (len(mark.name) + 4) else 0
            last = place
            figure.add_annotation(
                x=mark.start, y=1, xref="x", yref="paper", text=f"&#8627; {html.escape(mark.name)}", showarrow=False,
                xanchor="left", yanchor="bottom", yshift=2 + 14 * row, font={"size": 12, "color": "#333"},
            )  # fmt: skip


def region_figure(view: View) -> go.Figure:
    """The walk on the simplex as a triangle or polygon, with the outline of each regime's region."""
    names = view.story.names
    at, figure = corners(len(names)), go.Figure()
    edge = np.concatenate([at, at[:1]])
    figure.add_scatter(
        x=edge[:, 0], y=edge[:, 1], mode="lines", line={"color": "#999", "width": 1}, hoverinfo="skip", showlegend=False
    )
    for i, mark in enumerate(view.marks):
        hull, colour = outline(mark.region, at), REGION_COLOURS[i % len(REGION_COLOURS)]
        figure.add_scatter(
            x=hull[:, 0], y=hull[:, 1], mode="lines", line={"color": colour, "width": 2}, fill="toself",
            fillcolor=faint(colour), name=f"region of {html.escape(mark.name)}", hoverinfo="name",
        )  # fmt: skip
    points = view.weights @ at
    figure.add_scatter(
        x=short(points[:, 0]), y=short(points[:, 1]), mode="lines+markers", name="the walk, dark to bright",
        line={"color": "rgba(60,60,60,.25)", "width": 1}, customdata=view.edges[:-1].tolist(),
        hovertemplate="step %{customdata}<extra></extra>",
        marker={"size": 5, "color": view.edges[:-1].tolist(), "colorscale": "Viridis"},
    )  # fmt: skip
    _add_special_points(figure, view, points)
    for name, (x, y) in zip(names, at, strict=True):
        figure.add_annotation(
            x=1.06 * x, y=1.06 * y, text=html.escape(name), showarrow=False, font={"size": 12},
            xanchor="left" if x > 0.1 else "right" if x < -0.1 else "center",
            yanchor="bottom" if y > 0.3 else "top" if y < -0.3 else "middle",
        )  # fmt: skip
    exact = "exact" if len(names) == 3 else "a shadow: different mixtures may fall on one point"
    figure.update_layout(title=f"The walk inside its region ({exact})", **{**LAYOUT, "height": 620, "xaxis": {}})
    figure.update_xaxes(visible=False, range=[float(at[:, 0].min()) - 0.4, float(at[:, 0].max()) + 0.4])
    figure.update_yaxes(
        visible=False, range=[float(at[:, 1].min()) - 0.15, float(at[:, 1].max()) + 0.15], scaleanchor="x"
    )
    return figure


def _add_special_points(figure: go.Figure, view: View, points: Array) -> None:
    """Mark where the walk starts, stands now, and was when a pivot took force."""
    pivots = [mark for mark in view.marks if mark.is_pivot]
    spans = [_span_of(view, mark) for mark in pivots]
    for label, symbol, places in (
        ("start", "circle-open", [0]),
        ("pivots", "x", spans),
        ("now", "star", [len(points) - 1]),
    ):
        if places:
            figure.add_scatter(
                x=points[places, 0], y=points[places, 1], mode="markers", name=label, hoverinfo="name",
                marker={"symbol": symbol, "size": 13, "color": "#111", "line": {"width": 2, "color": "#111"}},
            )  # fmt: skip


def _span_of(view: View, mark: Mark) -> int:
    return int(np.searchsorted(view.edges, mark.start, side="right")) - 1


def _loss_figure(view: View) -> go.Figure:
    """Mean loss of each source over each span, and dotted what probes measured of its held-out rows."""
    figure = go.Figure()
    _add_lines(figure, view, view.losses)
    steps, lines = view.held_out()
    for name, colour, losses in lines if steps.size else []:
        figure.add_scatter(
            x=steps, y=short(losses), name=f"{html.escape(name)}, held out", mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": "dot"}, marker={"size": 4}, connectgaps=True,
            hovertemplate="%{y:.3f}",
        )  # fmt: skip
    _mark_regimes(figure, view)
    alarms = view.story.alarms
    if alarms:
        figure.add_scatter(
            x=[alarm["step"] for alarm in alarms], y=short([alarm["loss"] for alarm in alarms]), mode="markers",
            name="alarms", text=[html.escape(alarm_in_words(alarm)) for alarm in alarms],
            hovertemplate="%{text}<extra></extra>",
            marker={"symbol": "x", "size": 11, "color": ALARM_COLOUR, "line": {"width": 1, "color": "#fff"}},
        )  # fmt: skip
    figure.update_layout(title="Loss of each source, mean over each phase", hovermode="x unified", **LAYOUT)
    figure.update_yaxes(title="nats per token")
    return figure


def _index_figure(view: View) -> go.Figure:
    """The index that ranked the sources, and the optimism in it, on logarithmic axes."""
    has_width = bool((view.width > 0).any())
    figure = make_subplots(rows=1 + has_width, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    panels = [("index", view.index), ("width", view.width)][: 1 + has_width]
    for row, (title, values) in enumerate(panels, start=1):
        _add_lines(figure, view, np.where(values > 0, values, np.nan), row=row, showlegend=row == 1, form=".3g")
        figure.update_yaxes(type="log", title=title, exponentformat="power", nticks=6, row=row, col=1)
    _mark_regimes(figure, view)
    text = "Index of each source at each decision" + (", and the width (optimism) in it" if has_width else "")
    figure.update_layout(title=text, hovermode="x unified", **{**LAYOUT, "height": 600, "xaxis": {}})
    figure.update_xaxes(title="step", row=1 + has_width, col=1)
    return figure


def _add_lines(
    figure: go.Figure, view: View, values: Array, *, row: int | None = None, showlegend: bool = True, form: str = ".3f"
) -> None:
    """Draw a line per source shown; spans without a value are bridged."""
    middles = view.middles
    for name, colour, i in zip(view.names, view.colours, view.shown, strict=True):
        known = ~np.isnan(values[:, i])
        if known.any():
            figure.add_scatter(
                x=middles[known], y=short(values[known, i]), name=html.escape(name), mode="lines",
                line={"color": colour, "width": 1.5, "dash": _dash(int(i))}, hovertemplate=f"%{{y:{form}}}",
                showlegend=showlegend, legendgroup=name, row=row, col=None if row is None else 1,
            )  # fmt: skip


def _proportions_figure(view: View) -> go.Figure:
    story, figure = view.story, go.Figure()
    names = [html.escape(name) for name in view.names]
    figure.add_bar(x=names, y=story.mean_weights()[view.shown], name="weights, averaged over steps")
    figure.add_bar(x=names, y=story.proportions()[view.shown], name="proportions drawn")
    figure.update_layout(title="What was asked for and what was drawn", barmode="group", **{**LAYOUT, "xaxis": {}})
    figure.update_yaxes(title="share of rows")
    return figure


def _dash(position: int) -> str:
    return ",".join(f"{size}px" for size in dash_of(position)) or "solid"


def _phase_table(story: JournalTables) -> str:
    phases = story.phases[-MAX_TABLE_PHASES:]
    has_times = any("at" in phase for phase in phases)
    rows = "".join(
        f"<tr><td>{phase['index']}</td>{_time(phase) if has_times else ''}"
        f"<td>{phase['start']}&ndash;{phase['start'] + phase['length'] - 1}</td>"
        f'<td class="text">{phase["kind"]}</td><td class="text">{html.escape(phase["regime"])}</td>'
        f'<td class="text">{_largest(story.names, phase)}</td></tr>'
        for phase in phases
    )
    which = f"The last {len(phases)} phases" if len(phases) < len(story.phases) else "Phases"
    when = '<th class="text">decided (UTC)</th>' if has_times else ""
    return (
        f'<h2>{which}</h2><div class="phases" tabindex="0" role="region" aria-label="Phases"><table><thead><tr>'
        f'<th>phase</th>{when}<th>steps</th><th class="text">kind</th><th class="text">regime</th>'
        f'<th class="text">largest weights</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _time(phase: Mapping[str, Any]) -> str:
    """The cell that says when a phase was decided; lines of before a service wrote them have no time."""
    at = phase.get("at")
    return (
        f'<td class="text">{"" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")}</td>'
    )


def _largest(names: Sequence[str], phase: Mapping[str, Any]) -> str:
    weights = np.array(phase["weights"])
    top = np.argsort(-weights, kind="stable")[:4]
    return ", ".join(f"{html.escape(names[i])} {weights[i]:.3f}" for i in top if weights[i] > 0)
