"""The documentation site builds without a warning, needs nothing from elsewhere, and its tutorial runs as it stands."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_field_of_a_curriculum_and_every_command_has_its_line(site: Path) -> None:
    from mixer.cli import app
    from mixer.config.curriculum import Curriculum

    settings = (site / "settings.html").read_text(encoding="utf-8")
    assert [name for name in Curriculum.model_fields if f"<code>{name}</code>" not in settings] == []
    assert "policy: water_filling" in settings
    assert "<code>on_bad_record</code>" in settings
    options = (site / "options.html").read_text(encoding="utf-8")
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(commands) >= 12
    assert [name for name in commands if f"mixer {name}" not in options] == []


def test_docstrings_stand_in_the_reference(site: Path) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert 'id="mixer.dataset.MixtureDataset.report"' in reference
    assert 'id="service.client.RemoteMixtureDataset"' in reference


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="https?:[^"]+"', text)
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="https?:[^"]+"', text)
        assert loaded == [], page.name


def test_the_tutorial_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    steps = re.findall(r"```(python|yaml|sh)\n(.*?)```", TUTORIAL, flags=re.DOTALL)
    assert [kind for kind, _ in steps] == ["sh", "python", "yaml", "sh", "sh", "python", "sh", "sh", "sh"]
    for kind, text in steps[1:]:
        if kind == "yaml":
            Path("curriculum.yaml").write_text(text)
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(text, {})
        for line in text.splitlines() if kind == "sh" else ():
            command = [sys.executable, "-c", "from mixer.cli import main; main()", *line.split()[1:]]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stdout + ran.stderr
    for left in ("simulated/walk.html", "walk.jsonl", "walk.html", "tables", "checkpoint.pt"):
        assert Path(left).exists(), left
