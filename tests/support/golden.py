"""Digests of decisions and batches of forty small runs, to compare one commit with another.

``python -m tests.support.golden FILE`` writes them as JSON; ``tests/test_golden.py`` compares with the file that is kept.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixer import Curriculum, MixtureDataset, Pivot

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "joint",
    "knoll",
    "larch",
    "maple",
    "north",
    "ocean",
    "prism",
    "quartz",
]
NAMES = ("notes", "code", "chats", "books", "noise")
POLICIES: dict[str, dict[str, Any]] = {
    "ucb": {"name": "ucb"},
    "ucb calm": {"name": "ucb", "eta": 0.1},
    "ucb progress": {"name": "ucb", "reward": "progress"},
    "ucb loss": {"name": "ucb", "reward": "loss"},
    "andrea": {"name": "andrea"},
    "odm": {"name": "odm"},
    "static": {"name": "static"},
    "proportional": {"name": "proportional"},
    "unimax": {"name": "unimax", "max_epochs": 3},
    "random": {"name": "random"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bounded, with a lag": {
        "floors": {"notes": 0.2, "code": 0.1},
        "caps": {"noise": 0.15},
        "feedback_lag": 6,
        "batch_rows": 7,
    },
    "warmup and pivots": {
        "curriculum_warmup_steps": 30,
        "curriculum_warmup_sources": ["notes", "chats", "noise"],
        "pivots": [{"name": "later", "at_step": 61, "floors": {"books": 0.3}, "exclude": ["noise"]}],
        "seed": 11,
    },
    "held out, multinomial": {"holdout": 0.1, "draws": "multinomial", "guard": None, "seed": 5},
}
STEPS = 120


def write_sources(folder: Path) -> list[dict[str, Any]]:
    """Write one JSON-lines file for each source and return what a config says of them."""
    sources = []
    for k, name in enumerate(NAMES):
        rng = np.random.default_rng([7, k])
        lines = [
            json.dumps({"text": " ".join(rng.choice(WORDS[k : k + 9], size=rng.integers(3, 40)))})
            for _ in range(60 + 40 * k)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources.append({"name": name, "data_files": f"{name}.jsonl", "tokens": 200 + 900 * k})
    return sources


def config(policy: str, setting: str, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the config of one run."""
    return {
        "total_steps": STEPS,
        "batch_rows": 6,
        "sequence_length": 16,
        "tokenizer": {"train_vocab_size": 300},
        "sources": sources,
        "phases": {"min_steps": 7, "max_steps": 9, "initial_random": 2},
        "policy": POLICIES[policy],
        **SETTINGS[setting],
    }


def losses(step: int, source_ids: torch.Tensor) -> torch.Tensor:
    """Return made-up losses of each token, float64 [b, T]: they fall at a pace of each source's own."""
    rng = np.random.default_rng([3, step])
    noise = torch.from_numpy(rng.normal(size=(len(source_ids), 16)))
    k = source_ids.double()[:, None]
    return 2 + k / 4 + 3 * torch.exp(-step * (k + 1) / 400) * (k < 4) + 0.1 * noise.abs()


def digest(curriculum: Curriculum) -> str:
    """Return a digest of a run's phases and batches."""
    found = hashlib.blake2b(digest_size=12)
    dataset = MixtureDataset(curriculum)
    for batch in dataset:
        for name in ("input_ids", "labels", "source_ids"):
            found.update(np.ascontiguousarray(batch[name].numpy()).tobytes())
        dataset.report(batch, losses(batch["step"], batch["source_ids"]))
        if batch["step"] == 90:
            dataset.walk.pivot(Pivot(name="live", caps={"code": 0.4}))
    step = 0
    while step < STEPS:
        phase = dataset.walk.phase_at(step)
        found.update(repr((phase.index, phase.start, phase.length, phase.kind, phase.regime)).encode())
        found.update(np.asarray(phase.weights, dtype="<f8").tobytes())
        step = phase.start + phase.length
    return found.hexdigest()


def digests() -> Iterator[tuple[str, str]]:
    """Yield the name and digest of each run: streamed, and under one setting prepared too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder)
        for setting in SETTINGS:
            for policy in POLICIES:
                path = folder / "run.yaml"
                path.write_text(json.dumps(config(policy, setting, sources)), encoding="utf-8")
                yield f"{policy}, {setting}", digest(Curriculum.from_yaml(path))
        path.write_text(json.dumps(config("ucb", "plain", sources)), encoding="utf-8")
        command = [
            sys.executable,
            "-c",
            "from mixer.cli import main; main()",
            "prepare",
            str(path),
            "--out",
            str(folder / "rows"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        for policy in ("ucb", "odm"):
            path.write_text(json.dumps({**config(policy, "plain", sources), "prepared": "rows"}), encoding="utf-8")
            yield f"{policy}, prepared", digest(Curriculum.from_yaml(path))


def main() -> None:
    """Write the digests of this commit to the file named on the command line."""
    Path(sys.argv[1]).write_text(json.dumps(dict(digests()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
