"""The page of a walk, in a real browser, offline."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mixer.analysis.plots import write_page
from mixer.analysis.simulate import simulate
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.journal.tables import read_tables

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    names = ["web", "code", "books"]
    curriculum = Curriculum(
        total_steps=200, batch_rows=8, sequence_length=32, sources=[{"name": name} for name in names],
        floors={"web": 0.4}, pivots=[{"name": "polish", "at_step": 105, "caps": {"code": 0.1}}],
    )  # fmt: skip
    with Journal.create(tmp_path / "walk.jsonl") as opened:
        for _ in simulate(curriculum, 200, journal=opened):
            pass
    return tmp_path / "walk.jsonl"


def test_a_story_tells_what_the_walk_did(journal: Path) -> None:
    story = read_tables(journal)
    weights = story.weights()
    assert (weights[:, 0] >= 0.4 - 1e-12).all()
    assert abs(story.proportions() - story.mean_weights()).max() < 0.01
    assert {phase["regime"] for phase in story.phases} == {"firehose", "polish"}
    first, last = story.first_and_last_losses()[0]
    assert first is not None
    assert last is not None
    assert last < first


def test_the_page_needs_nothing_from_the_network(journal: Path, tmp_path: Path) -> None:
    text = write_page(journal, tmp_path / "walk.html", title="A <walk>").read_text(encoding="utf-8")
    assert "A &lt;walk&gt;" in text
    assert "<script src" not in text
    assert '<link rel="stylesheet"' not in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
def test_a_browser_draws_every_plot(journal: Path, tmp_path: Path) -> None:
    page = write_page(journal, tmp_path / "walk.html")
    command = [str(CHROMIUM), *QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=9000"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert done.stdout.count('class="plot-container plotly"') == 5
    assert "What was asked for and what was drawn" in done.stdout
