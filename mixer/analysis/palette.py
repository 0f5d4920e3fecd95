"""The colours of sources, by declared position: the same source has the same one on the page and in every plot.

Found by simulated annealing over CIEDE2000, for eyes of four kinds at once (Machado et al., 2009, at full severity):
any two are at least 11 apart on white and 9.5 on the dark paper, to any of those eyes; each has a contrast of 3:1 to
its paper. The first are the farthest apart. Sources beyond them have the colours again, with dashes.
"""

from __future__ import annotations

PALETTE = {
    "light": (
        "#134fad", "#6c6507", "#3fa183", "#69123b", "#f95276", "#7382df", "#6f8f0b", "#b87ea5",
        "#2a4609", "#3f2466", "#c72055", "#006b49", "#6f3afb", "#924170", "#0000b2", "#87659c",
    ),
    "dark": (
        "#5d80ff", "#c7ac04", "#67ffea", "#b65174", "#fb0018", "#9ca1ff", "#c9ee87", "#e99dca",
        "#408747", "#a587c3", "#fc6076", "#00b78d", "#6d49ff", "#ba7b99", "#9fccff", "#975d9f",
    ),
}  # fmt: skip
OTHERS = {"light": "#8b93a0", "dark": "#77808d"}  # the smaller sources, added up
DASHES = ((), (6, 3), (2, 3), (8, 3, 2, 3))  # pixels on and off, of the first 16 sources, the next 16, ...


def colour_of(position: int, theme: str = "light") -> str:
    """Return the colour of the source at a declared position, as #rrggbb."""
    return PALETTE[theme][position % len(PALETTE[theme])]


def dash_of(position: int) -> tuple[int, ...]:
    """Return the dashes of its lines."""
    return DASHES[position // len(PALETTE["light"]) % len(DASHES)]
