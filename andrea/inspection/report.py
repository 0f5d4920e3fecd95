"""The report: one offline page of what was found of a checkpoint, and the same numbers as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from andrea.inspection import lesson
from andrea.inspection.chapters import attention_chapter, embedding_chapter, simplex_chapter, terrain_chapter
from andrea.inspection.chapters.words import text
from andrea.inspection.measure import Findings, look
from andrea.inspection.subject import Effort, Subject
from mixer.analysis.plots.document import document, place_of
from mixer.system.files import written_whole

_INTRODUCTION = text(
    "ANDREA is a small language model. There are several ways to see one as geometry: its tokens are points, its",
    "attention projects vectors onto one another, its training walks on a terrain of loss, and the mixture of its text",
    "walks on a simplex. Each chapter works a small example by hand, and then measures the same on this checkpoint.",
)
_STYLE = """
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-top: 1px solid var(--band); padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.4rem 0 0 } p { max-width: 48rem } blockquote { color: var(--soft); margin-left: 1rem }
"""


def write_report(
    output: str | Path,
    subject: Subject,
    effort: Effort | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Look at a checkpoint and write the page, atomically; return its path. See ``look`` for what is raised."""
    return write_findings(output, look(subject, effort, say=say))


def write_findings(output: str | Path, findings: Findings) -> Path:
    """Write the page of what was found, atomically, and return its path."""
    drawn: list[go.Figure] = []

    def draw(figure: go.Figure) -> str:
        drawn.append(figure)
        return place_of(len(drawn) - 1)

    config = findings.subject.model.config
    facts = {
        "step": f"{findings.subject.step:,}",
        "parameters": f"{config.num_parameters:,}",
        "vocabulary": f"{config.vocab_size:,}",
        "width": config.width,
        "layers": config.num_layers,
        "heads": f"{config.num_heads} of {config.width // config.num_heads} dimensions",
        "context": config.context,
    }
    title = f"Inside ANDREA at step {findings.subject.step:,}"
    body = "".join(
        [
            _INTRODUCTION,
            embedding_chapter(findings.subject, findings.embeddings, draw),
            attention_chapter(findings.subject, findings.attentions, draw),
            terrain_chapter(findings.subject, findings.terrain, draw),
            simplex_chapter(findings, draw),
        ]
    )
    page, output = document(title, facts, body, drawn, style=_STYLE), Path(output)
    with written_whole(output) as file:
        file.write(page)
    output.chmod(0o644)
    return output


def numbers(findings: Findings) -> dict[str, Any]:
    """What was found as plain data: numbers, texts, lists and tables by name, with the lesson's own examples."""
    return {
        "step": findings.subject.step,
        "lesson": {
            "pairs": plain(lesson.pairs()),
            "attention": plain(lesson.worked_attention()),
            "corners": lesson.corners().tolist(),
        },
        "embeddings": plain(findings.embeddings),
        "attention": None
        if findings.attentions is None
        else {
            **{name: plain(getattr(findings.attentions, name)) for name in ("sentence", "heads", "leak", "noise")},
            "weights": [plain(layer.weights) for layer in findings.attentions.layers],
        },
        "terrain": plain(findings.terrain),
        "regimes": plain(findings.regimes),
    }


def plain(value: Any) -> Any:
    """A result as plain data: dataclasses become tables by field, tensors lists, keys text."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
