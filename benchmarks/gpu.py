"""ANDREA-120M on a GPU: tokens a second, model FLOPs utilisation, and what data and reports cost beside training.

bfloat16, compiled, batches of 8 rows of 1,024 tokens as ``configs/andrea-120m-v2.yaml`` has them. Three arms take
turns: a batch that is ready on the device, batches of a walk in this process, and batches of a service on this machine.
``--tiny`` runs on any processor and only shows that the benchmark works. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig, train
from benchmarks.common import head, say
from benchmarks.service import free_port, running
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset

NUM_SOURCES, TOTAL_STEPS = 16, 100_000
PEAK_TFLOPS = {  # dense bfloat16, by the makers' data sheets; the first name that a device's has in it counts
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
}


@dataclass(frozen=True)
class Setting:
    """What is trained: the model, the rows of a batch, and how it is run."""

    model: ModelConfig
    rows: int
    is_compiled: bool
    precision: Literal["float32", "bfloat16"]
    device: str


def flops_of_token(config: ModelConfig) -> float:
    """Return the floating-point operations that training needs for a token, forward and backward.

    ``6 N + 12 L d T``: N parameters, L layers of width d, rows of T tokens (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B). The table counts once, as the output layer; looking ids up in it costs nothing.
    """
    return 6.0 * config.num_parameters + 12.0 * config.num_layers * config.width * config.context


def peak_of(device: str) -> float | None:
    """Return a device's peak in FLOP/s by its name; None if it is not known."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def token_run(folder: Path, setting: Setting) -> Path:
    """Write a bare file of ids for each source, and the config of a run over them; return its path."""
    generator = np.random.default_rng(0)
    vocab, length = setting.model.vocab_size, setting.model.context
    sources = []
    for k in range(NUM_SOURCES):
        ids = generator.zipf(1.2, 400 * (length + 1)).clip(max=vocab - 1).astype("<u2")
        ids.tofile(folder / f"s{k}.bin")
        sources.append(f"  - {{name: s{k}, tokens: {{path: s{k}.bin, format: bare, dtype: uint16, separator: none}}}}")
    text = (
        f"total_steps: {TOTAL_STEPS}\nbatch_rows: {setting.rows}\nsequence_length: {length}\nvocab_size: {vocab}\n"
        f"tokenizer: {{vocab_size: {vocab}, separator_id: 0}}\nmax_epochs: null\nsources:\n" + "\n".join(sources) + "\n"
    )
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder / "run.yaml"


class Ready:
    """One batch that is on the device already, and reports to nobody."""

    def __init__(self, setting: Setting) -> None:
        shape = (setting.rows, setting.model.context)
        rows = torch.randint(0, setting.model.vocab_size, (shape[0], shape[1] + 1), device=setting.device)
        self._step = 0
        self._batch = {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield it under every step that comes."""
        while True:
            self._step += 1
            yield {**self._batch, "step": self._step - 1}

    def report(self, batch: Any, token_losses: Any, /) -> None:
        """Take the losses, and do nothing."""


def measured(dataset: Any, setting: Setting, *, warmup: int, steps: int) -> dict[str, float]:
    """Train a new model, and return the seconds of a step after ``warmup`` steps and the shares of data and reports."""
    model = Andrea(setting.model).to(setting.device)
    config = replace(TrainingConfig(warmup_steps=100), precision=setting.precision)
    trainer = Trainer(model, config, TOTAL_STEPS, is_compiled=setting.is_compiled)

    def until(num_steps: int) -> Any:
        report = train(
            dataset, trainer, vocab_size=setting.model.vocab_size, should_stop=lambda: trainer.num_steps >= num_steps
        )
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return report

    until(warmup)
    begun_s = time.perf_counter()
    report = until(warmup + steps)
    step_s = (time.perf_counter() - begun_s) / steps
    return {"step_s": step_s, "waiting": report.waiting_share, "reporting": report.reporting_share}


def compare(setting: Setting, *, warmup: int, steps: int) -> dict[str, dict[str, float]]:
    """Return what each arm took."""
    from service.client import RemoteMixtureDataset

    found = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        path = token_run(Path(name), setting)
        found["ready tensor"] = measured(Ready(setting), setting, warmup=warmup, steps=steps)
        local = MixtureDataset(Curriculum.from_yaml(path), journal=Path(name) / "walk.jsonl")
        found["in-process"] = measured(local, setting, warmup=warmup, steps=steps)
        port = free_port()
        command = ("-c", "from mixer.cli import main; main()", "serve", str(path))
        stack.enter_context(running(port, *command, "--port", str(port), "--folder", str(Path(name) / "served")))
        remote = RemoteMixtureDataset(f"http://127.0.0.1:{port}", 0, 1)
        found["over HTTP"] = measured(remote, setting, warmup=warmup, steps=steps)
    return found


def table(found: dict[str, dict[str, float]], setting: Setting, peak: float | None) -> list[list[object]]:
    """Return a line for each arm: tokens/s, utilisation, milliseconds a step, shares, ratio to the ready tensor."""
    tokens = setting.rows * setting.model.context
    ready_s = found["ready tensor"]["step_s"]
    return [
        [
            arm,
            tokens / numbers["step_s"],
            "unknown" if peak is None else f"{flops_of_token(setting.model) * tokens / numbers['step_s'] / peak:.1%}",
            1e3 * numbers["step_s"],
            f"{numbers['waiting']:.2%}",
            f"{numbers['reporting']:.2%}",
            numbers["step_s"] / ready_s,
        ]
        for arm, numbers in found.items()
    ]


def main() -> None:
    """Print the table, or that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the processor: a test of this benchmark")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        setting = Setting(ModelConfig.tiny(512, 32), 4, is_compiled=False, precision="float32", device="cpu")
    elif torch.cuda.is_available():
        setting = Setting(ModelConfig.andrea_120m(), 8, is_compiled=True, precision="bfloat16", device="cuda")
    else:
        print("no GPU here: nothing was measured (--tiny shows that the benchmark works)")
        return
    name = torch.cuda.get_device_name() if setting.device == "cuda" else "a processor"
    peak = peak_of(name) if setting.device == "cuda" else None
    head()
    found = compare(setting, warmup=2, steps=5) if options.tiny else compare(setting, warmup=30, steps=options.steps)
    say(
        f"ANDREA, {setting.model.num_parameters / 1e6:.1f} M parameters, {setting.rows} rows of "
        f"{setting.model.context} tokens, {setting.precision}, on {name}"
        + ("" if peak is None else f" ({peak / 1e12:,.0f} TFLOP/s)"),
        ["batches", "tokens/s", "FLOPs utilisation", "ms a step", "waiting", "reporting", "of the ready tensor's step"],
        table(found, setting, peak),
    )


if __name__ == "__main__":
    main()
