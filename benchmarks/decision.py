"""Claim: deciding costs under 1 % of a training step of the tiny model, and grows no faster than K log K.

A decision is everything the walk does for a phase: every step's report (checked, journalled, kept), then the index, the
vertex or the uniform draw, the step, the plan of the phase's rows, and the journal line in a real file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig
from benchmarks.common import head, medians, say
from mixer.analysis.simulate import SyntheticLearner
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.sampling.draws import phase_counts
from mixer.walk.walk import Walk


def seconds_per_phase(num_sources: int, num_phases: int) -> tuple[float, float]:
    """Return the median seconds of the walk's work per phase and per step."""
    names = [f"s{i}" for i in range(num_sources)]
    curriculum = Curriculum(
        total_steps=100_000,
        batch_rows=16,
        sequence_length=128,
        sources=[{"name": name} for name in names],
        floors={"s0": 0.1},
        phases={"initial_random": 3},
    )
    learner = SyntheticLearner(num_sources, seed=0, sequence_length=128)
    per_phase, per_step = [], []
    with tempfile.TemporaryDirectory() as folder, Journal.create(Path(folder) / "walk.jsonl") as journal:
        walk = Walk(curriculum, journal=journal)
        for _ in range(num_phases):
            start = time.perf_counter()
            phase = walk.phase_at(walk.frontier)
            spent = time.perf_counter() - start
            counts, _ = phase_counts(phase, seed=0, method="systematic", batch_rows=16)
            for step in range(phase.start, phase.end):
                losses = learner.learn(step, counts[step - phase.start])
                start = time.perf_counter()
                walk.report(step, losses)
                spent += time.perf_counter() - start
            per_phase.append(spent)
            per_step.append(spent / phase.length)
    return statistics.median(per_phase), statistics.median(per_step)


def training_step() -> float:
    """Return the median seconds of one training step of the demo's model on the demo's batch."""
    model = Andrea(ModelConfig.tiny(2048, 128), seed=0)
    trainer = Trainer(model, TrainingConfig(warmup_steps=1), 1000)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 2048, (16, 129)))
    batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "step": 0}
    return medians({"step": lambda: trainer.step(batch)}, rounds=15)["step"]


if __name__ == "__main__":
    head()
    step_s, (_, decided_s) = training_step(), seconds_per_phase(9, 40)
    say(
        "Deciding beside training (K = 9, as in the demo)",
        ["what", "median ms per step", "share"],
        [["training step of tiny", step_s * 1e3, 1.0], ["the walk", decided_s * 1e3, decided_s / step_s]],
    )
    rows = []
    for num_sources, num_phases in ((16, 40), (256, 20), (1000, 10), (4096, 8), (10_000, 8)):
        phase_s, per_step_s = seconds_per_phase(num_sources, num_phases)
        scale = num_sources * np.log2(num_sources)
        rows.append([num_sources, phase_s * 1e3, per_step_s * 1e3, phase_s / scale * 1e9])
    say("A whole decision", ["K", "ms per phase", "ms per step", "ns per phase / K log2 K"], rows)
