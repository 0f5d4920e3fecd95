"""A journal as one self-contained HTML page: weights over steps, losses, proportions against weights, the phases.

The plotting library is inlined (about 4.5 MB), so that the page opens offline and next year.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go
import plotly.io

from mixer.story import Story, read_story

MAX_SOURCES = 20  # shown by name; the smaller ones are added up as "others"
MAX_TABLE_PHASES = 500

KIND_COLOURS = {"random": "#d62728", "bandit": "#1f77b4", "fixed": "#7f7f7f"}


def write_page(journal: str | Path, output: str | Path, *, title: str = "Curriculum walk") -> Path:
    """Write the page of a journal, atomically, and return its path."""
    story, output = read_story(journal), Path(output)
    text = _page(story, title)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(output)
    return output


def _page(story: Story, title: str) -> str:
    if not story.phases:
        figures, table = ["<p>No phase has been decided yet.</p>"], ""
    else:
        shown = _shown(story)
        plots = [_weights_figure(story, shown), _loss_figure(story, shown), _proportions_figure(story)]
        figures = [
            plotly.io.to_html(plot, full_html=False, include_plotlyjs=i == 0, config={"displaylogo": False})
            for i, plot in enumerate(plots)
        ]
        table = _phase_table(story)
    facts = {
        "sources": len(story.names),
        "seed": story.header["curriculum"]["seed"],
        "policy": story.header["curriculum"]["policy"]["name"],
        "phases": len(story.phases),
        "steps decided": story.phases[-1]["start"] + story.phases[-1]["length"] if story.phases else 0,
        "curriculum": story.header["fingerprint"],
    }
    listing = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1><dl>{listing}</dl>"
        f"{''.join(figures)}{table}</main></body></html>"
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 1rem }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem } dt { color: #666 } dd { margin: 0 0 0 -1rem; font-weight: 600 }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .15rem .6rem; text-align: right }
th:nth-child(3), td:nth-child(3), th:nth-child(4), td:nth-child(4), th:last-child, td:last-child { text-align: left }
tr:nth-child(even) { background: #f4f4f4 }
"""


def _shown(story: Story) -> list[int]:
    """Indices of the sources shown by name: those drawn most, in declared order."""
    top = np.argsort(-story.mean_weights(), kind="stable")[:MAX_SOURCES]
    return sorted(top.tolist())


def _colours(num: int) -> list[str]:
    palette: Sequence[str] = plotly.colors.qualitative.Dark24
    return [palette[i % len(palette)] for i in range(num)]


def _weights_figure(story: Story, shown: Sequence[int]) -> go.Figure:
    """Stacked weights, a step per phase; kinds as marks along the top; regimes as vertical lines."""
    weights, figure = story.weights(), go.Figure()
    starts = [phase["start"] for phase in story.phases]
    edges = [*starts, story.phases[-1]["start"] + story.phases[-1]["length"]]
    bands = {story.names[i]: weights[:, i] for i in shown}
    if len(shown) < len(story.names):
        bands[f"{len(story.names) - len(shown)} others"] = np.maximum(0.0, 1.0 - weights[:, list(shown)].sum(axis=1))
    for (name, band), colour in zip(bands.items(), _colours(len(bands)), strict=True):
        figure.add_scatter(
            x=edges, y=[*band, band[-1]], name=name, stackgroup="weights", fillcolor=colour,
            line={"shape": "hv", "width": 0.5, "color": colour}, hovertemplate="%{y:.3f}",
        )  # fmt: skip
    for kind, colour in KIND_COLOURS.items():
        marks = [phase["start"] for phase in story.phases if phase["kind"] == kind]
        if marks:
            figure.add_scatter(
                x=marks, y=[1.02] * len(marks), name=f"{kind} phase", mode="markers", hoverinfo="x+name",
                marker={"color": colour, "size": 6, "symbol": "triangle-down"},
            )  # fmt: skip
    _mark_regimes(figure, story)
    figure.update_layout(title="Weights of each phase", hovermode="x unified", **_LAYOUT)
    figure.update_yaxes(range=[0, 1.05], title="weight")
    return figure


def _mark_regimes(figure: go.Figure, story: Story) -> None:
    before = None
    for phase in story.phases:
        if phase["regime"] != before:
            figure.add_vline(
                x=phase["start"], line={"dash": "dash", "width": 1}, annotation_text=html.escape(phase["regime"])
            )
            before = phase["regime"]


def _loss_figure(story: Story, shown: Sequence[int]) -> go.Figure:
    """Mean loss of each source over each phase."""
    figure = go.Figure()
    starts = np.array([phase["start"] for phase in story.phases])
    losses = story.phase_losses()
    for i, colour in zip(shown, _colours(len(shown)), strict=True):
        known = ~np.isnan(losses[:, i])
        figure.add_scatter(
            x=starts[known], y=losses[known, i], name=story.names[i], line_color=colour, mode="lines",
            hovertemplate="%{y:.3f}",
        )  # fmt: skip
    _mark_regimes(figure, story)
    figure.update_layout(title="Loss of each source, mean over each phase", hovermode="x unified", **_LAYOUT)
    figure.update_yaxes(title="nats per token")
    return figure


def _proportions_figure(story: Story) -> go.Figure:
    figure = go.Figure()
    order = _shown(story)
    names = [story.names[i] for i in order]
    figure.add_bar(x=names, y=story.mean_weights()[order], name="weights, averaged over steps")
    figure.add_bar(x=names, y=story.proportions()[order], name="proportions drawn")
    figure.update_layout(title="What was asked for and what was drawn", barmode="group", **{**_LAYOUT, "xaxis": {}})
    figure.update_yaxes(title="share of rows")
    return figure


_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 430,
    "margin": {"l": 60, "r": 20, "t": 50, "b": 45},
    "xaxis": {"title": "step"},
}


def _phase_table(story: Story) -> str:
    phases = story.phases[-MAX_TABLE_PHASES:]
    rows = "".join(
        f"<tr><td>{phase['index']}</td><td>{phase['start']}&ndash;{phase['start'] + phase['length'] - 1}</td>"
        f"<td>{phase['kind']}</td><td>{html.escape(phase['regime'])}</td><td>{_largest(story.names, phase)}</td></tr>"
        for phase in phases
    )
    return (
        f"<h2>Phases</h2><table><thead><tr><th>phase</th><th>steps</th><th>kind</th><th>regime</th>"
        f"<th>largest weights</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _largest(names: Sequence[str], phase: Mapping[str, Any]) -> str:
    weights = np.array(phase["weights"])
    top = np.argsort(-weights, kind="stable")[:4]
    return ", ".join(f"{html.escape(names[i])} {weights[i]:.3f}" for i in top if weights[i] > 0)
