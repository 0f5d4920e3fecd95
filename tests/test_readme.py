"""What the README shows runs as it stands there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.journal.file import read_journal
from tests.support.dashboards import Server

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but the text and the config that the README's reader has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    for name in ("web", "code"):
        lines = [json.dumps({"text": f"{name} document number {n}, with a few words in it"}) for n in range(200)]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    Path("curriculum.yaml").write_text(blocks("yaml")[0])
    return tmp_path


class Model:
    """The reader's own: notes the steps that it is trained on, and loses ever less."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def train_step(self, batch: dict[str, Any]) -> torch.Tensor:
        self.steps.append(batch["step"])
        return torch.full(batch["labels"].shape, 4.0 - 0.01 * batch["step"])


def test_the_example_trains_and_leaves_a_journal(empty: Path) -> None:
    model = Model()
    exec(blocks("python")[0], {"train_step": model.train_step})
    assert model.steps == list(range(60))
    phases = [record for record in read_journal("walk.jsonl") if record["type"] == "phase"]
    assert all(phase["weights"][0] >= 0.3 and phase["weights"][1] <= 0.6 for phase in phases)


def test_a_trainer_elsewhere_changes_one_line(empty: Path) -> None:
    loop, remote = blocks("python")
    model = Model()
    with Server(Curriculum.from_yaml("curriculum.yaml"), empty / "runs") as server:
        assert "host:8642" in remote
        remote = remote.replace("host:8642", f"127.0.0.1:{server.port}")
        program, num_changed = re.subn(r"^dataset = .*\n", lambda _: remote, loop, flags=re.MULTILINE)
        assert num_changed == 1
        exec(program, {"train_step": model.train_step, "rank": 0, "world_size": 1})
        assert server.get("/status").json()["reports"] == 60
    assert model.steps == list(range(60))


def test_every_class_that_it_calls_is_imported_there() -> None:
    trees = [ast.parse(block) for block in blocks("python")]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    called = set(re.findall(r"\b([A-Z][A-Za-z]+)\(", " ".join(re.findall(r"`[^`\n]+`", README))))
    assert "RemoteMixtureDataset" in imported
    assert called <= imported


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
