"""Plots and text as one self-contained HTML page, for any screen, light or dark.

The plotting library is inlined once (about 4.5 MB), so that the page opens offline and next year. Figures are drawn in
the light theme's colours; the page puts the dark ones in their place where the reader's system asks for them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import plotly.offline

from mixer.analysis.palette import OTHERS, PALETTE
from mixer.analysis.plots.view import ALARM_COLOUR, KIND_COLOURS
from mixer.types import Array

REGION_COLOURS = ("#1b6ca8", "#b8860b", "#2e7d32", "#8e24aa", "#c2185b", "#5d4037")
REGIONS_IN_DARK = ("#6db3f2", "#e3b341", "#6fcf7f", "#d78be6", "#f272a0", "#c9a99b")
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 460,
    "margin": {"l": 70, "r": 20, "t": 60, "b": 45},
    "xaxis": {"title": "step"},
    "colorway": ["#1f77b4", "#ff7f0e"],
    "legend": {"font": {"size": 12}, "tracegroupgap": 0},
}


def document(title: str, facts: Mapping[str, object], body: str, drawn: Sequence[go.Figure], *, style: str = "") -> str:
    """Return a page.

    Args:
        title: its heading, as plain text.
        facts: shown below it, in order, as plain text.
        body: HTML, with ``place_of(i)`` where the i-th figure goes.
        drawn: the figures; their titles are left to the body.
        style: CSS to add to the page's own.
    """
    listing = "".join(
        f"<div><dt>{html.escape(key)}</dt> <dd>{html.escape(str(value))}</dd></div>" for key, value in facts.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{_STYLE}{style}</style></head><body><main><h1>{html.escape(title)}</h1><dl>{listing}</dl>"
        f"{body}</main>{_scripts(drawn) if drawn else ''}</body></html>"
    )


def place_of(figure: int) -> str:
    """Return the element that a figure is drawn in."""
    return f'<div id="figure-{figure}"></div>'


def short(values: Sequence[float] | Array) -> list[float | None]:
    """Five digits are more than a screen shows, and keep the page small."""
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in np.asarray(values, dtype=np.float64)]


def faint(colour: str) -> str:
    """Return a colour, #rrggbb, as one that an area can be filled with."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.08)"


def _scripts(drawn: Sequence[go.Figure]) -> str:
    """Return the library once, the figures as data, and what draws them for this screen and its theme."""
    plain = [json.loads(figure.to_json()) for figure in drawn]
    for figure in plain:
        del figure["layout"]["template"]
        figure["layout"].pop("title", None)
    templates = {
        theme: plotly.io.templates[name].to_plotly_json()
        for theme, name in (("light", "plotly_white"), ("dark", "plotly_dark"))
    }
    pairs = [*zip(PALETTE["light"], PALETTE["dark"], strict=True), (OTHERS["light"], OTHERS["dark"]), *_DARK.items()]
    pairs += [(faint(one), faint(other)) for one, other in zip(REGION_COLOURS, REGIONS_IN_DARK, strict=True)]
    pairs += zip(REGION_COLOURS, REGIONS_IN_DARK, strict=True)
    data = json.dumps({"figures": plain, "templates": templates, "colours": pairs}).replace("</", "<\\/")
    return (
        f"<script>{plotly.offline.get_plotlyjs()}</script>"
        f'<script type="application/json" id="drawn">{data}</script><script>{_SCRIPT}</script>'
    )


_DARK = {  # ink and kinds of phases on a dark paper
    "#111": "#e7eaef", "#333": "#cfd5de", "#999": "#6b7686", "rgba(60,60,60,.25)": "rgba(210,215,222,.3)",
    KIND_COLOURS["random"]: "#f0603f", KIND_COLOURS["bandit"]: "#34435a", KIND_COLOURS["fixed"]: "#2e353f",
    ALARM_COLOUR: "#ff8a80",
}  # fmt: skip
_SCRIPT = """
const drawn = JSON.parse(document.getElementById("drawn").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 700px)");
const recoloured = (text) =>
  drawn.colours.reduce((all, [one, other]) => all.replaceAll(`"${one}"`, `"${other}"`), text);
function draw() {
  drawn.figures.forEach((figure, i) => {
    const text = JSON.stringify(figure), { data, layout } = JSON.parse(dark.matches ? recoloured(text) : text);
    const [theme, paper] = dark.matches ? ["dark", "#0f1216"] : ["light", "#fff"];
    Object.assign(layout, { template: drawn.templates[theme], paper_bgcolor: paper, plot_bgcolor: paper });
    if (narrow.matches) {
      const names = data.filter((trace) => trace.showlegend !== false && trace.name).length;
      layout.legend = { ...layout.legend, orientation: "h", x: 0, y: -0.12, yanchor: "top" };
      layout.margin = { l: 48, r: 8, t: 44, b: 40 };
      layout.height = Math.min(layout.height, 420) + 11 * names;
      layout.hovermode = "closest";
    }
    const options = { displaylogo: false, responsive: true, displayModeBar: narrow.matches ? false : "hover" };
    Plotly.react(`figure-${i}`, data, layout, options);
  });
}
for (const query of [dark, narrow]) query.addEventListener("change", draw);
draw();
"""
_STYLE = """
:root { --ink: #222; --paper: #fff; --soft: #5a6270; --band: #f4f4f4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaef; --paper: #0f1216; --soft: #9ba5b4; --band: #1b2027 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.2rem 0 0 }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem } dl div { display: flex; gap: .4rem; min-width: 0 }
dt { color: var(--soft) } dd { margin: 0; font-weight: 600; min-width: 0; overflow-wrap: anywhere }
.phases { overflow: auto; max-height: 40rem }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap }
.text { text-align: left }
tr:nth-child(even) { background: var(--band) }
"""
