"""torchtitan's own trainer and debug model over a curriculum: losses are reported, and a killed run goes on exactly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixer.adapters.titan import KeptLosses
from mixer.config.curriculum import Curriculum
from mixer.errors import FeedbackError
from mixer.journal.file import read_journal
from mixer.sources.tokenizer_training import load_tokenizer

ROOT = Path(__file__).parents[2]


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 10**6))
def test_losses_are_kept_as_torchs_own_cross_entropy_gives_them(rows: int, chunks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 8, 11, generator=generator, requires_grad=True)
    labels = torch.randint(0, 11, (rows, 8), generator=generator)
    sums: list[Any] = []

    def theirs(pred: Tensor, _labels: Tensor) -> str:
        sums.append(pred.sum())
        return "its own"

    loss = KeptLosses(theirs)
    for pred, label in zip(logits.chunk(chunks, dim=1), labels.chunk(chunks, dim=1), strict=True):
        assert loss(pred, label) == "its own"
    expected = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    taken = loss.taken()
    assert torch.allclose(taken, expected, atol=1e-6)
    assert not taken.requires_grad
    assert len(sums) == chunks
    with pytest.raises(FeedbackError, match="no losses are known"):
        loss.taken()


def test_validation_keeps_no_losses() -> None:
    loss = KeptLosses(lambda pred, labels: None)
    with torch.no_grad():
        loss(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(FeedbackError):
        loss.taken()


CURRICULUM = """
total_steps: 40
batch_rows: 4
sequence_length: 64
vocab_size: 2048
tokenizer: {train_vocab_size: 300}
sources:
  - {name: docstrings, local: docstrings}
  - {name: code, local: code}
phases: {min_steps: 3, max_steps: 4}
"""


def _trained(folder: Path, *, kill_at: int | None = None, code: int = 0) -> None:
    """Run torchtitan's trainer for 12 steps, or until it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.support.titan_on_cpu", "--module", "examples.torchtitan_config"]
    command += ["--config", "small_on_cpu", "--hf_assets_path", str(folder / "assets"), "--dump_folder", str(folder)]
    command += ["--dataloader.curriculum", str(folder / "curriculum.yaml"), "--training.seq_len", "64"]
    command += ["--dataloader.journal", str(folder / "walk.jsonl"), "--training.steps", "12", "--checkpoint.enable"]
    command += ["--checkpoint.interval", "4", "--training.local_batch_size", "4", "--debug.seed", "1"]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | place | {"KILL_AT": str(kill_at or -1)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == code, ran.stdout[-2000:] + ran.stderr[-2000:]


def _prepared(folder: Path) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "curriculum.yaml").write_text(CURRICULUM)
    tokenizer = load_tokenizer(Curriculum.from_yaml(folder / "curriculum.yaml"))
    (folder / "assets" / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    """Return what torchtitan's newest checkpoint holds, read by torch's own reader."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(folder / "checkpoint" / "step-12", folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=False)


@pytest.mark.slow
def test_a_killed_run_of_torchtitan_goes_on_to_the_same_weights_and_the_same_walk(tmp_path: Path) -> None:
    pytest.importorskip("torchtitan", reason="torchtitan is not installed")
    undisturbed, killed = _prepared(tmp_path / "a"), _prepared(tmp_path / "b")
    _trained(undisturbed)
    _trained(killed, kill_at=7, code=-signal.SIGKILL)
    _trained(killed)
    walks = [list(read_journal(folder / "walk.jsonl")) for folder in (undisturbed, killed)]
    phases = [{r["index"]: r["weights"] for r in walk if r["type"] == "phase"} for walk in walks]
    reports = [{r["step"]: r["loss_sums"] for r in walk if r["type"] == "feedback"} for walk in walks]
    assert sorted(reports[0]) == list(range(12))
    assert reports[0] == reports[1]
    assert phases[0] == phases[1]
    weights = [_weights(folder) for folder in (undisturbed, killed)]
    tensors = [{key: value for key, value in each.items() if torch.is_tensor(value)} for each in weights]
    assert len(tensors[0]) > 20
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
