"""The plots of the report, in the light theme's colours; the page sees to the dark ones."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from andrea.inspection.measure import Attentions, Embeddings, Terrain
from andrea.inspection.subject import Subject
from andrea.inspection.terrain import Basin
from mixer.analysis.plots.document import LAYOUT, REGION_COLOURS, faint, short

FIRST, SECOND, THIRD = REGION_COLOURS[0], REGION_COLOURS[4], REGION_COLOURS[2]
GREY = "#999"
MAX_HEADS = 16  # drawn; the table has all


def pairs_figure(found: Embeddings) -> go.Figure:
    """How the cosines of random pairs of tokens spread, and how those of random directions would."""
    width = found.dimension.width
    counts, edges = torch.histogram(found.pairs.float(), bins=41, range=(-0.8, 0.8))
    bin_width = float(edges[1] - edges[0])
    middles = (edges[:-1] + edges[1:]) / 2
    density = counts / max(len(found.pairs), 1) / bin_width
    normal = math.sqrt(width / (2 * math.pi)) * (-middles.square() * width / 2).exp()
    figure = go.Figure()
    figure.add_bar(x=_list(middles), y=_list(density), name="tokens of this model", marker={"color": FIRST})
    figure.add_scatter(
        x=_list(middles), y=_list(normal), name=f"random directions in {width} dimensions", mode="lines",
        line={"color": SECOND, "width": 2},
    )  # fmt: skip
    return _labelled(figure, "cosine of two tokens", "density", height=340)


def dimension_figure(found: Embeddings) -> go.Figure:
    """The share of the variance along the first axes, added up."""
    figure = go.Figure()
    for name, dimension, colour in (
        ("before training", found.untrained_dimension, GREY),
        ("now", found.dimension, FIRST),
    ):
        if dimension is not None:
            figure.add_scatter(
                x=list(range(1, dimension.width + 1)), y=_list(dimension.shares.cumsum(0)), name=name, mode="lines",
                line={"color": colour, "width": 2}, hovertemplate="%{x} axes hold %{y:.0%}",
            )  # fmt: skip
    return _labelled(figure, "principal axes, largest first", "share of the variance", height=340)


def heads_figure(subject: Subject, found: Attentions) -> go.Figure:
    """Weights of each head: rows are the tokens that look, columns those looked at; the future is left blank."""
    texts = [f"{i} {html.escape(subject.spelled(token))}" for i, token in enumerate(found.sentence)]
    places = [(number, head) for number, layer in enumerate(found.layers) for head in range(len(layer.query))]
    shown = [places[i] for i in torch.linspace(0, len(places) - 1, min(MAX_HEADS, len(places))).round().int().tolist()]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.03, vertical_spacing=min(0.35 / rows, 0.12),
        subplot_titles=[f"layer {number + 1}, head {head + 1}" for number, head in shown],
    )  # fmt: skip
    for place, (number, head) in enumerate(shown):
        layer = found.layers[number]
        weights, scores, lengths = layer.weights[head], layer.scores[head], layer.projections[head]
        future = torch.ones_like(weights, dtype=torch.bool).triu(1)
        hidden = weights.masked_fill(future, math.nan)
        details = [
            [[f"{float(scores[i, j]):.2f}", f"{float(lengths[i, j]):.2f}"] for j in range(len(texts))]
            for i in range(len(texts))
        ]
        figure.add_heatmap(
            x=texts, y=texts, z=[short(row.tolist()) for row in hidden], customdata=details, zmin=0, zmax=1,
            colorscale="Viridis", coloraxis="coloraxis", hoverongaps=False,
            row=place // columns + 1, col=place % columns + 1,
            hovertemplate="%{y} looks at %{x}<br>score %{customdata[0]}, projection %{customdata[1]}<br>weight %{z:.3f}"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        **{**LAYOUT, "height": 60 + 270 * rows, "xaxis": {}, "margin": {"l": 90, "r": 20, "t": 40, "b": 20}},
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": {"title": "weight", "thickness": 12}},
    )
    figure.update_xaxes(showticklabels=False, showgrid=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed")
    return figure.update_yaxes(showticklabels=True, tickfont={"size": 8}, dtick=1, col=1)


def scaling_figure(found: Attentions) -> go.Figure:
    """Evenness of random queries and keys against d_k, scaled and not, and this model's heads."""
    d_k = found.layers[0].query.shape[2]
    figure = go.Figure()
    for name, place, colour in (("divided by sqrt(d_k)", 0, FIRST), ("not divided", 1, SECOND)):
        figure.add_scatter(
            x=list(found.noise), y=short([pair[place] for pair in found.noise.values()]), name=f"noise, {name}",
            mode="lines+markers", line={"color": colour, "width": 2},
        )  # fmt: skip
        values = [head.unscaled if place else head.evenness for head in found.heads]
        figure.add_scatter(
            x=[d_k] * len(values), y=short(values), name=f"this model's heads, {name}", mode="markers",
            marker={"color": colour, "symbol": "diamond-open", "size": 10},
            text=[f"layer {head.layer + 1}, head {head.number + 1}" for head in found.heads],
            hovertemplate="%{text}: %{y:.2f}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1.02])
    _labelled(figure, "d_k", "evenness of the weights", height=380)
    return figure.update_xaxes(type="log", tickvals=list(found.noise))


def line_figure(found: Terrain, before: int, now: int) -> go.Figure:
    """The loss on the straight line between two checkpoints."""
    assert found.line is not None
    figure = go.Figure()
    figure.add_scatter(
        x=_list(found.line.places), y=_list(found.line.losses), name="loss", mode="lines+markers",
        line={"color": FIRST, "width": 2}, marker={"size": 4}, showlegend=False,
    )  # fmt: skip
    for place, step in ((0, before), (1, now)):
        _mark(figure, place, f"step {step:,}")
    return _labelled(figure, "place on the line", "nats per token", height=320)


def plane_figure(found: Terrain) -> go.Figure:
    """The loss on a random plane, as a map with contour lines; the model is the cross in the middle."""
    offsets = _list(found.plane.offsets)
    figure = go.Figure()
    figure.add_contour(
        x=offsets, y=offsets, z=[short(row.tolist()) for row in found.plane.losses], colorscale="Viridis",
        ncontours=16, contours={"showlabels": True, "labelfont": {"size": 10, "color": "white"}},
        colorbar={"title": "nats", "thickness": 12}, hovertemplate="%{z:.3f} nats<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[0], y=[0], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "cross", "size": 11, "color": "white", "line": {"color": "black", "width": 1}},
    )  # fmt: skip
    _labelled(figure, "one random direction", "another", height=460)
    return figure.update_xaxes(constrain="domain").update_yaxes(scaleanchor="x", constrain="domain")


def basin_figure(found: Terrain, before: int | None, now: int) -> go.Figure:
    """How the loss rises with the scale of the noise: the mean over the seeds, and from the least to the most."""
    figure = go.Figure()
    if found.earlier_basin is not None:
        _rises(figure, found.earlier_basin, f"step {before:,}", SECOND)
    _rises(figure, found.basin, f"step {now:,}", FIRST)
    return _labelled(
        figure, "scale of the noise, as a share of each row's length", "rise of the loss, nats", height=360
    )


def early_figure(found: Terrain) -> go.Figure:
    """Sharpness and loss over the first steps, with LR warmup and without."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=["sharpness", "loss, nats per token"], horizontal_spacing=0.1)
    for kind, colour in (("with", FIRST), ("without", SECOND)):
        moments = found.early[kind]  # type: ignore[index]  # the two keys
        for column, values in enumerate(([m.sharpness for m in moments], [m.loss for m in moments]), start=1):
            figure.add_scatter(
                x=[moment.step for moment in moments], y=short(values), name=f"{kind} LR warmup", legendgroup=kind,
                mode="lines+markers", line={"color": colour, "width": 2}, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_layout(**{**LAYOUT, "height": 360, "xaxis": {}})
    figure.update_xaxes(title="step")
    return figure.update_yaxes(type="log", row=1, col=1)


def cliff_figure(found: Terrain) -> go.Figure:
    """A row learned by heart: both losses by step, and on the line to the model that knows it."""
    cliff = found.cliff
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=["while it is learned", "on the straight line there"], horizontal_spacing=0.1
    )
    for name, by_step, by_place, colour in (
        ("the row", cliff.row_losses, cliff.row_line, SECOND),
        ("other text", cliff.other_losses, cliff.other_line, FIRST),
    ):
        for column, (x, y) in enumerate(
            ((torch.arange(len(by_step)), by_step), (by_place.places, by_place.losses)), start=1
        ):
            figure.add_scatter(
                x=_list(x), y=_list(y), name=name, legendgroup=name, mode="lines", showlegend=column == 1, row=1,
                col=column, line={"color": colour, "width": 2},
            )  # fmt: skip
    figure.update_layout(**{**LAYOUT, "height": 360, "xaxis": {}})
    figure.update_xaxes(title="step", row=1, col=1)
    figure.update_xaxes(title="place on the line", row=1, col=2)
    return figure.update_yaxes(title="nats per token", row=1, col=1)


def _rises(figure: go.Figure, basin: Basin, name: str, colour: str) -> None:
    scales = [0.0, *_list(basin.scales)]
    low, high, mean = (
        [0.0, *_list(rises)] for rises in (basin.rises.amin(0), basin.rises.amax(0), basin.rises.mean(0))
    )
    figure.add_scatter(
        x=scales + scales[::-1], y=high + low[::-1], fill="toself", fillcolor=faint(colour), line={"width": 0},
        mode="lines", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.add_scatter(x=scales, y=mean, name=name, mode="lines+markers", line={"color": colour, "width": 2})


def _mark(figure: go.Figure, place: float, text: str) -> None:
    figure.add_vline(x=place, line={"dash": "dash", "width": 1, "color": "#333"})
    figure.add_annotation(
        x=place, y=1, yref="paper", text=text, showarrow=False, xanchor="left", yanchor="bottom",
        font={"size": 12, "color": "#333"},
    )  # fmt: skip


def _labelled(figure: go.Figure, x: str, y: str, *, height: int) -> go.Figure:
    figure.update_layout(**{**LAYOUT, "height": height, "xaxis": {"title": x}})
    return figure.update_yaxes(title=y)


def _list(values: Tensor | Sequence[float]) -> list[Any]:
    return short(torch.as_tensor(values).double().tolist())
