"""The benchmark of a GPU: its arithmetic, what it says without one, and that it runs at a tiny size on a processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from andrea.model import ModelConfig
from benchmarks.gpu import Setting, flops_of_token, peak_of, table

ROOT = Path(__file__).parent.parent


def test_utilisation_is_worked_out_by_hand() -> None:
    config = ModelConfig(vocab_size=100, width=8, num_heads=2, num_layers=3, context=16)
    assert flops_of_token(config) == 6 * config.num_parameters + 12 * 3 * 8 * 16
    setting = Setting(config, 4, is_compiled=False, precision="float32", device="cpu")
    found = {
        "ready tensor": {"step_s": 0.5, "waiting": 0.0, "reporting": 0.0},
        "in-process": {"step_s": 1.0, "waiting": 0.25, "reporting": 0.125},
    }
    peak = flops_of_token(config) * 4 * 16  # a step a second
    [ready, ours] = table(found, setting, peak)
    assert ready == ["ready tensor", 128.0, "200.0%", 500.0, "0.00%", "0.00%", 1.0]
    assert ours == ["in-process", 64.0, "100.0%", 1000.0, "25.00%", "12.50%", 2.0]
    assert table(found, setting, None)[0][2] == "unknown"


def test_peaks_are_found_by_the_name_that_a_device_gives() -> None:
    assert peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("Some other device") is None


def run(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well() -> None:
    assert "no GPU here: nothing was measured" in run()


def test_it_runs_at_a_tiny_size_on_a_processor_in_process_and_over_http() -> None:
    said = run("--tiny", "--json")
    for arm in ("ready tensor", "in-process", "over HTTP"):
        assert arm in said
    assert '"FLOPs utilisation": "unknown"' in said
