"""Pieces that the chapters are made of."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

import plotly.graph_objects as go

Draw = Callable[[go.Figure], str]
"""Takes a figure for the page, and gives the element that it is drawn in."""


def text(*sentences: str) -> str:
    """A paragraph of HTML."""
    return f"<p>{' '.join(sentences)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, text: Sequence[int] = (0,)) -> str:
    """Rows under a head; columns in ``text`` are set to the left. Cells are plain text."""

    def cells(tag: str, row: Sequence[object]) -> str:
        return "".join(
            f'<{tag} class="text">{html.escape(str(cell))}</{tag}>'
            if i in text
            else f"<{tag}>{html.escape(str(cell))}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    label = html.escape(" and ".join(head[:2]))
    return (
        f'<div class="phases" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{cells("th", head)}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def vector(values: Sequence[float]) -> str:
    """Numbers as a row vector."""
    return f"({', '.join(f'{value:g}' for value in values)})"
