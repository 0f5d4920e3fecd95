"""Colours of sources differ to every kind of eye, stand out from their paper, and are the same everywhere."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mixer.analysis.palette import DASHES, PALETTE, colour_of, dash_of
from mixer.types import Array
from service.dashboard import palette_module

PAPERS = {"light": "#ffffff", "dark": "#171b21"}
EYES = {  # Machado, Oliveira and Fernandes, 2009, severity 1.0, on linear RGB
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> Array:
    """Return linear RGB, [3]."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    """Return CIE L*a*b* of linear RGB under D65, [3]."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: Array, other: Array) -> float:
    """Return the CIEDE2000 difference of two L*a*b* colours (Sharma, Wu and Dalal, 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * stretch)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    mean_h = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    t = (
        1 - 0.17 * np.cos(np.radians(mean_h - 30)) + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6)) - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )  # fmt: skip
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    bend = np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2)))
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * np.sin(bend)
    parts = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return float(np.sqrt(sum(part**2 for part in parts) + rotation * parts[1] * parts[2]))


def test_the_difference_is_that_of_the_published_examples() -> None:
    published = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, expected in published:
        assert difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize(("theme", "least"), [("light", 11.0), ("dark", 9.5)])
def test_any_two_of_sixteen_sources_differ_to_every_kind_of_eye(theme: str, least: float, eye: str) -> None:
    seen = {colour: lab(EYES[eye] @ linear(colour)) for colour in PALETTE[theme]}
    assert len(seen) == 16
    found = {pair: difference(seen[pair[0]], seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(found.values()) >= least, min(found, key=lambda pair: found[pair])


@pytest.mark.parametrize("theme", PAPERS)
def test_every_colour_stands_out_from_its_paper(theme: str) -> None:
    weights = np.array([0.2126729, 0.7151522, 0.0721750])
    paper = weights @ linear(PAPERS[theme])
    for colour in PALETTE[theme]:
        ink = weights @ linear(colour)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 3, colour  # WCAG 2.2, 1.4.11


def test_sources_beyond_the_colours_differ_in_their_dashes() -> None:
    looks = [(colour_of(i), dash_of(i)) for i in range(16 * len(DASHES))]
    assert len(set(looks)) == len(looks)
    assert colour_of(10**6) in PALETTE["light"]


def test_the_page_has_these_colours_and_no_others() -> None:
    lines = dict(line[13:-1].split(" = ") for line in palette_module().splitlines())
    assert json.loads(lines["PALETTE"]) == {theme: list(colours) for theme, colours in PALETTE.items()}
    assert json.loads(lines["DASHES"]) == [list(dash) for dash in DASHES]
