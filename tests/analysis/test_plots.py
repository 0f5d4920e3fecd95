"""What the pictures are made of: shadows of regions, spans of phases, files that are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from typer.testing import CliRunner

from mixer.analysis.palette import colour_of, dash_of
from mixer.analysis.plots import view as view_module
from mixer.analysis.plots import write_page, write_picture
from mixer.analysis.plots.page import figures
from mixer.analysis.plots.simplex import convex_hull, corners, outline
from mixer.analysis.plots.view import make_view
from mixer.analysis.simulate import simulate
from mixer.cli import app
from mixer.config.curriculum import Curriculum
from mixer.errors import EvidenceError
from mixer.journal.file import Journal, read_journal
from mixer.journal.tables import read_tables
from mixer.region.region import Region
from mixer.types import Array
from mixer.walk.walk import Walk
from tests.support.strategies import Problem, problems


def inside(point: Array, hull: Array) -> bool:
    """Whether a point lies in a closed counter-clockwise hull."""
    if len(hull) < 4:  # a point or a segment: the triangle inequality is an equality on it
        a, b = hull[0], hull[min(1, len(hull) - 1)]
        return bool(np.linalg.norm(point - a) + np.linalg.norm(point - b) - np.linalg.norm(a - b) < 1e-6)
    sides, to = np.diff(hull, axis=0), point - hull[:-1]
    return bool((sides[:, 0] * to[:, 1] - sides[:, 1] * to[:, 0] > -1e-6).all())


@given(problems(min_sources=3, max_sources=12))
@settings(max_examples=60)
def test_every_mixture_of_a_region_lies_in_its_outline(problem: Problem) -> None:
    at = corners(len(problem.names))
    hull = outline(problem.region, at)
    points = problem.region.sample(np.random.default_rng(0), 30) @ at
    if len(problem.names) <= 6:
        assert all(inside(point, hull) for point in points)
    else:  # asked for in 360 directions: a corner may be cut by a little
        center = hull.mean(axis=0)
        assert all(inside(center + 0.99 * (point - center), hull) for point in points)


def test_a_ternary_plot_is_exact() -> None:
    hull = outline(Region(["H", "G", "D"], floors={"H": 0.5}, caps={"D": 0.25}), corners(3))
    expected = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25], [0.75, 0, 0.25]]) @ corners(3)
    found = {tuple(point) for point in hull[:-1].round(9)}
    assert found == {tuple(point) for point in expected.round(9)}
    np.testing.assert_array_equal(hull[0], hull[-1])


def test_points_on_a_line_and_single_points_are_no_trouble() -> None:
    assert len(convex_hull(np.zeros((5, 2)))) == 2
    line = convex_hull(np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))
    assert {tuple(point) for point in line} == {(0.0, 0.0), (1.0, 1.0)}


def walked(path: Path, num_sources: int = 4, steps: int = 900, **fields: object) -> Path:
    run = Curriculum(
        total_steps=steps, batch_rows=8, sequence_length=32,
        sources=[{"name": f"s{i}", "tokens": 10**6} for i in range(num_sources)], **fields,
    )  # fmt: skip
    with Journal.create(path) as journal:
        for _ in simulate(run, steps, journal=journal):
            pass
    return path


def test_spans_keep_the_mean_of_what_they_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = read_tables(walked(tmp_path / "w"))
    whole = make_view(story)
    assert whole.phases_per_span == 1
    np.testing.assert_allclose(whole.weights, story.weights())
    monkeypatch.setattr(view_module, "MAX_SPANS", 7)
    coarse = make_view(story)
    assert len(coarse.weights) == 7
    assert coarse.edges[-1] == story.end
    lengths = np.diff(coarse.edges)
    np.testing.assert_allclose((coarse.weights * lengths[:, None]).sum(axis=0) / story.end, story.mean_weights())
    random_steps = sum(p["length"] for p in story.phases if p["kind"] == "random")
    assert coarse.random_share @ lengths == pytest.approx(random_steps)


@pytest.mark.parametrize("num_sources", [1, 2, 3, 30])
@pytest.mark.parametrize("policy", ["ucb", "static"])
def test_every_kind_of_walk_has_pictures(tmp_path: Path, num_sources: int, policy: str) -> None:
    path = walked(tmp_path / "w", num_sources, 200, policy=policy)
    drawn = figures(make_view(read_tables(path)))
    has_index = policy == "ucb" and num_sources < 30  # 200 steps teach nothing of 30 sources
    assert len(drawn) == 3 + (num_sources > 2) + has_index
    names = [trace.name for trace in drawn[0].data if trace.name]
    assert len(names) == min(num_sources, 21)
    if num_sources == 30:
        assert names[-1] == "10 others"
    svg = write_picture(path, tmp_path / "walk.svg").read_text(encoding="utf-8")
    assert svg.rstrip().endswith("</svg>")


def test_the_page_holds_one_copy_of_the_library_and_pictures_repeat_exactly(tmp_path: Path) -> None:
    path = walked(tmp_path / "w", steps=300, pivots=[{"name": "polish", "at_step": 105, "floors": {"s1": 0.5}}])
    text = write_page(path, tmp_path / "walk.html").read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    assert "region of polish" in text
    assert len(text) < 6_000_000
    first = write_picture(path, tmp_path / "a.png").read_bytes()
    assert write_picture(path, tmp_path / "b.png").read_bytes() == first
    assert first.startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "w", "walk.html"]


def test_a_journal_without_a_phase_has_a_page_that_says_so_and_no_picture(tmp_path: Path) -> None:
    run = Curriculum(total_steps=10, batch_rows=8, sequence_length=32, sources=[{"name": "a"}, {"name": "b"}])
    with Journal.create(tmp_path / "w") as journal:
        Walk(run, journal=journal)
    assert "No phase has been decided yet" in write_page(tmp_path / "w", tmp_path / "w.html").read_text()
    with pytest.raises(EvidenceError, match="has no phase yet"):
        write_picture(tmp_path / "w", tmp_path / "w.svg")


def test_the_command_refuses_a_suffix_it_cannot_write(tmp_path: Path) -> None:
    path = walked(tmp_path / "w", steps=60)
    for out in ("walk.gif", "no-folder/walk.html"):
        assert CliRunner().invoke(app, ["plot", str(path), "-o", str(tmp_path / out)]).exit_code == 2
    done = CliRunner().invoke(app, ["plot", str(path), "-o", str(tmp_path / "walk.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "walk.html").exists()


def test_a_source_has_the_colour_of_its_declared_position_in_every_picture(tmp_path: Path) -> None:
    view = make_view(read_tables(walked(tmp_path / "w", 30, 200)))
    assert view.shown.tolist() != list(range(20))
    assert list(view.colours) == [colour_of(int(i)) for i in view.shown]
    lines = next(figure for figure in figures(view) if "Loss" in figure.layout.title.text)
    for trace, i in zip(lines.data, view.shown, strict=False):
        assert trace.name == f"s{i}"
        assert trace.line.color == colour_of(int(i))
        assert trace.line.dash == (",".join(f"{size}px" for size in dash_of(int(i))) or "solid")


def test_the_page_says_when_phases_were_decided_if_the_journal_does(tmp_path: Path) -> None:
    text = write_page(walked(tmp_path / "w", steps=60), tmp_path / "w.html").read_text(encoding="utf-8")
    assert "decided (UTC)" not in text
    records = [
        {key: value for key, value in record.items() if key != "number"} for record in read_journal(tmp_path / "w")
    ]
    with Journal.create(tmp_path / "timed") as journal:
        for record in records:
            journal.append({**record, "at": 1e9} if record["type"] == "phase" else record)
    text = write_page(tmp_path / "timed", tmp_path / "w.html").read_text(encoding="utf-8")
    assert '<td class="text">2001-09-09 01:46:40</td>' in text
