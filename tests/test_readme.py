"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mixer.config.curriculum import Curriculum, SourceConfig
from mixer.journal.file import read_journal

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_trains_and_leaves_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    for name in ("web", "code"):
        lines = [json.dumps({"text": f"{name} document number {n}, with a few words in it"}) for n in range(200)]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    Path("curriculum.yaml").write_text(blocks("yaml")[0])
    steps: list[int] = []

    def train_step(batch: dict[str, Any]) -> torch.Tensor:
        steps.append(batch["step"])
        return torch.full(batch["labels"].shape, 4.0 - 0.01 * batch["step"])

    exec(blocks("python")[0], {"train_step": train_step})
    assert steps == list(range(60))
    phases = [record for record in read_journal("walk.jsonl") if record["type"] == "phase"]
    assert all(phase["weights"][0] >= 0.3 and phase["weights"][1] <= 0.6 for phase in phases)


def test_a_source_is_three_lines_of_yaml() -> None:
    from ruamel.yaml import YAML

    [source] = YAML(typ="safe", pure=True).load(blocks("yaml")[1])
    assert SourceConfig(**source).path == "wikimedia/wikipedia"


def test_make_serve_is_the_served_demo() -> None:
    """That ``mixer demo --serve`` runs, and ends cleanly, is in test_cli."""
    assert "make serve\n" in blocks("sh")
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^serve:.*\n\t(.*)\n", makefile, flags=re.MULTILINE)
    assert recipe is not None
    assert recipe[1] == "$(BIN)/mixer demo --serve"


def test_every_file_it_links_to_is_there() -> None:
    root = Path(__file__).parent.parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_every_shipped_config_is_valid() -> None:
    paths = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        Curriculum.from_yaml(path)
