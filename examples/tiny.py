"""What every example trains: three small sources, prepared once, a model of a few thousand parameters, two ranks.

In a real run the curriculum is a YAML file, the model is yours and ``torchrun`` starts the ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mixer import Curriculum
from mixer.sources.prepared.prepare import prepare

VOCABULARY, STEPS = 300, 24


def curriculum(folder: Path) -> Curriculum:
    """Return a run of 24 steps of 8 rows over text written to ``folder`` and prepared there, once."""
    words = {"sums": "one and one is two", "colours": "red green blue", "winds": "north east south west"}
    run = Curriculum(
        seed=7,
        total_steps=STEPS,
        batch_rows=8,
        sequence_length=16,
        tokenizer={"train_vocab_size": VOCABULARY},
        sources=[{"name": name, "data_files": str(folder / f"{name}.jsonl")} for name in words],
        floors={"sums": 0.2},
        phases={"min_steps": 3, "max_steps": 5, "initial_random": 2},
        feedback_lag=4,  # what 2 workers fetch ahead, 2 batches each; then timing changes nothing
        prepared=str(folder / "prepared"),
    )
    if not (folder / "prepared").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in words.items():
            lines = [json.dumps({"text": f"{text} {n} " * (1 + n % 4)}) for n in range(200)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        prepare(run.model_copy(update={"prepared": None}), folder / "prepared")
    return run


class TinyModel(nn.Module):
    """Predicts each token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():  # the same parameters on every rank and in every run
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, [b, T, V]."""
        return self.head(self.embed(input_ids))  # type: ignore[no-any-return]


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of every token in nats, [b, T]: what the mixer learns from; its mean is what you train on."""
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def log(file: Path, batch: Mapping[str, Any], losses: Tensor, rank: int = 0) -> None:
    """Append one line about a batch that the model was trained on, with a digest of what it saw."""
    seen = torch.cat([batch["input_ids"], batch["labels"]]).cpu().numpy()
    line = {
        "step": int(batch["step"]),
        "rank": rank,
        "source_ids": batch["source_ids"].tolist(),
        "row_numbers": batch["row_numbers"].tolist(),
        "digest": hashlib.blake2b(seen.tobytes(), digest_size=16).hexdigest(),
        "loss": float(losses.detach().mean()),
    }
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def in_two_sittings(train: Callable[[Path, int], None]) -> None:
    """Train to the middle, then to the end from the checkpoint, ``train(folder, until)`` each; print what was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        curriculum(folder)
        for until in (STEPS // 2, STEPS):
            train(folder, until)
        print((folder / "log-0.jsonl").read_text())


def on_ranks(world_size: int, train: Callable[..., None], *arguments: Any) -> None:
    """Call ``train(*arguments)`` in ``world_size`` processes, with the environment that torchrun would give them."""
    # on a port that is free, and kept
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    torch.multiprocessing.spawn(_rank, (world_size, store.port, train, arguments), nprocs=world_size)  # type: ignore[no-untyped-call, attr-defined]


def _rank(rank: int, world_size: int, port: int, train: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    is_served = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}  # rank 0 opens no store
    os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1", **is_served)
    torch.set_num_threads(1)
    train(*arguments)
    if dist.is_initialized():  # some trainers leave that to the end of the process
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as forked workers end: now and then one of torch's threads aborts an interpreter that is taken down
