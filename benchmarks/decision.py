"""Claim: deciding costs under 1 % of a training step of the tiny model, and grows no faster than K log K.

A decision is everything the walk does for a phase: every step's report (checked, journalled, kept), then the index, the
vertex or the uniform draw, the step, the plan of the phase's rows, and the journal line in a real file.

A second claim: with every rank reporting for itself, a report costs with 4,096 ranks at most 1.1 times what it costs
with 64, in the walk and in the service's wait for reports.
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
from mixer.losses import SourceLosses
from mixer.sampling.draws import phase_counts
from mixer.walk.walk import Walk
from service.runs.report_wait import ReportWait


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


def microseconds_per_report(num_ranks: int, *, num_steps: int = 16, num_sources: int = 16) -> tuple[float, float]:
    """Return the least time of a report, each rank reporting the one row it has: of the walk, and of the wait.

    The least over steps is taken: it is what the machine can do, where others share it.
    """
    run = Curriculum(
        total_steps=100_000,
        batch_rows=num_ranks,
        sequence_length=128,
        sources=[{"name": f"s{i}"} for i in range(num_sources)],
        phases={"initial_random": 3},
        feedback_lag=8,
    )
    walk, wait = Walk(run), ReportWait(lag=8, wait_s=60)
    wait.asked(0, num_ranks)
    in_walk, in_wait = [], []
    for step in range(num_steps):
        phase = walk.phase_at(step)
        counts, _ = phase_counts(phase, seed=run.seed, method="systematic", batch_rows=num_ranks)
        rows = np.eye(num_sources, dtype=np.int64)[np.repeat(np.arange(num_sources), counts[step - phase.start])]
        losses = [SourceLosses(each, 128 * each, 384.0 * each, 9.0 * each, rank=i) for i, each in enumerate(rows)]
        start = time.process_time()
        for each in losses:
            walk.report(step, each)
        in_walk.append(time.process_time() - start)
        start = time.process_time()
        for each in losses:
            wait.reported(step, each.rank)
            wait.is_over(num_steps + 8)
        in_wait.append(time.process_time() - start)
    return min(in_walk) / num_ranks * 1e6, min(in_wait) / num_ranks * 1e6


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
    reports = {num_ranks: microseconds_per_report(num_ranks) for num_ranks in (64, 512, 4096)}
    say(
        "A report, each rank reporting for itself (K = 16)",
        ["ranks", "us in the walk", "us in the service's wait", "of 64 ranks' in the walk"],
        [[n, walk_us, wait_us, walk_us / reports[64][0]] for n, (walk_us, wait_us) in reports.items()],
    )
