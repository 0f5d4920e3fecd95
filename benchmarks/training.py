"""Claim: a step of the trainer, data and feedback included, takes at most 5 % longer than a bare loop on a tensor.

Both take the same optimizer steps of the same model. The bare loop has one batch in memory and reports to nobody; the
trainer gets its batches from prepared rows under a walk of four sources, reports every loss, and keeps the journal in a
real file. They take turns, some steps each, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW

from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig, TrainingReport, learning_rate, train
from benchmarks.common import head, say
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.journal.file import Journal
from mixer.sources.prepared.prepare import prepare
from mixer.types import Array

VOCAB, CONTEXT, ROWS, NUM_SOURCES = 2048, 128, 16, 4
TOTAL_STEPS = 100_000
CONFIG = TrainingConfig(warmup_steps=100)
SIZES = {
    "tiny": ModelConfig.tiny(VOCAB, CONTEXT),
    "5m": ModelConfig(vocab_size=VOCAB, width=256, num_heads=8, num_layers=5, context=CONTEXT),
}


def prepared_run(folder: Path, *, documents_of_source: int = 400) -> Curriculum:
    """Write sources of made-up words, prepare them, and return a run over them."""
    generator = np.random.default_rng(0)
    for k in range(NUM_SOURCES):
        words = generator.zipf(1.3, (documents_of_source, 200)).clip(max=5000)
        lines = "".join(json.dumps({"text": " ".join(f"w{word}" for word in row)}) + "\n" for row in words)
        (folder / f"s{k}.jsonl").write_text(lines, encoding="utf-8")
    fields = {
        "total_steps": TOTAL_STEPS,
        "batch_rows": ROWS,
        "sequence_length": CONTEXT,
        "vocab_size": VOCAB,
        "tokenizer": {"train_vocab_size": VOCAB},
        "sources": [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(NUM_SOURCES)],
        "prepared": "rows",
        "max_epochs": None,
    }
    curriculum = Curriculum.from_data(fields, base_dir=folder)
    prepare(curriculum, folder / "rows")
    return curriculum


def bare_loop(config: ModelConfig, num_steps: int) -> Callable[[], None]:
    """Return what takes so many steps on one ready batch."""
    model = Andrea(config)
    matrices = [p for name, p in model.named_parameters() if "table" not in name]
    tables = [p for name, p in model.named_parameters() if "table" in name]
    groups = [{"params": matrices, "weight_decay": CONFIG.weight_decay}, {"params": tables, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=CONFIG.peak_lr, betas=CONFIG.betas, eps=CONFIG.eps, fused=True)
    rows = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, (ROWS, CONTEXT + 1)))
    input_ids, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    step = 0

    def run() -> None:
        nonlocal step
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            loss = model.token_losses(input_ids, labels).mean()
            loss.backward()
            float(nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip_norm or float("inf")))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, TOTAL_STEPS, CONFIG)
            optimizer.step()
            step += 1
            loss.item()

    return run


def trainer_loop(
    config: ModelConfig, dataset: MixtureDataset, num_steps: int, reports: list[TrainingReport]
) -> Callable[[], None]:
    """Return what takes so many steps on the next batches of a run, and reports their losses."""
    trainer = Trainer(Andrea(config), CONFIG, TOTAL_STEPS)

    def run() -> None:
        until = trainer.num_steps + num_steps
        reports.append(train(dataset, trainer, vocab_size=VOCAB, should_stop=lambda: trainer.num_steps >= until))

    return run


def compare(
    config: ModelConfig, folder: Path, *, num_steps: int, rounds: int
) -> tuple[dict[str, Array], list[TrainingReport]]:
    """Return the seconds of a step in each round, elapsed and of the processor, [rounds, 2], of both loops.

    Beside them what the trainer says of each round itself.
    """
    curriculum = prepared_run(folder)
    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "trainer": []}
    reports: list[TrainingReport] = []
    with Journal.create(folder / "journal.jsonl") as journal:
        dataset = MixtureDataset(curriculum, journal=journal)
        loops = {"bare": bare_loop(config, num_steps), "trainer": trainer_loop(config, dataset, num_steps, reports)}
        for number in range(rounds + 1):  # the first warms up
            for name in list(loops) if number % 2 else reversed(list(loops)):
                begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
                loops[name]()
                taken[name].append((time.perf_counter() - begun_s, time.process_time() - begun_cpu_s))
    return {name: np.array(seconds[1:]) / num_steps for name, seconds in taken.items()}, reports[1:]


def main() -> None:
    """Print the ratio for each size that is named, by default both."""
    torch.set_num_threads(1)  # two threads on two busy cores would measure who waits for whom
    names = [name for name in sys.argv[1:] if not name.startswith("--")] or list(SIZES)
    head()
    rows, shares = [], []
    for name in names:
        config = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            taken, reports = compare(config, Path(folder), num_steps=10 if name == "tiny" else 4, rounds=16)
        total_s = sum(report.total_s for report in reports)
        shares.append(
            [
                name,
                sum(report.waiting_s for report in reports) / total_s,
                sum(report.reporting_s for report in reports) / total_s,
            ]
        )
        for k, clock in enumerate(("elapsed", "processor")):
            bare, trainer = taken["bare"][:, k], taken["trainer"][:, k]
            low, middle, high = np.quantile(trainer / bare, [0.25, 0.5, 0.75])
            rows.append(
                [
                    f"{name}, {config.num_parameters / 1e6:.1f} M",
                    clock,
                    float(np.median(bare)) * 1e3,
                    float(np.median(trainer)) * 1e3,
                    float(np.median(trainer) / np.median(bare)),
                    f"{middle:.3f} ({low:.3f} to {high:.3f})",
                ]
            )
    say(
        f"A step of {ROWS} rows of {CONTEXT} tokens, one thread",
        ["model", "time", "bare, ms", "trainer, ms", "ratio of medians", "of each round: median (quartiles)"],
        rows,
    )
    say("What the trainer does beside training, by its own clock", ["model", "waiting", "reporting"], shares)


if __name__ == "__main__":
    main()
