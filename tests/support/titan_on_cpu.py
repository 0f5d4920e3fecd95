"""torchtitan's ``torchtitan.train`` on a CPU, for which it was not made: ``python -m tests.support.titan_on_cpu ARGUMENTS``.

Replaced are its choice of a device, its monitor of device memory, a barrier on a device, and attention, of which it has
none for a CPU. Everything else is its own.
"""

from __future__ import annotations

import os
import signal

import torch
import torch._utils

torch._utils._get_available_device_type = lambda: "cpu"  # before torchtitan asks

import torchtitan.components.metrics as metrics  # noqa: E402
import torchtitan.distributed.utils as distributed  # noqa: E402
from torchtitan import train  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

import examples.torchtitan_config as registry  # noqa: E402
from mixer.adapters.titan_trainer import MixtureTrainer  # noqa: E402


class NoMemory:
    """A monitor of the memory of no device."""

    device_name = "cpu"
    device_capacity_gib = 0.0

    def get_peak_stats(self) -> metrics.DeviceMemStats:
        """Return nothing used."""
        return metrics.DeviceMemStats(0.0, 0.0, 0.0, 0.0, 0, 0)

    def reset_peak_stats(self) -> None:
        """Have nothing to reset."""


def small_on_cpu() -> MixtureTrainer.Config:
    """Return the example's config for a CPU."""
    config = registry.llama3_mixed_debugmodel()
    for layer in config.model_spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config.activation_checkpoint = None
    config.training.mixed_precision_param = "float32"
    return config


def train_and_be_killed(self: MixtureTrainer, data_iterator: object) -> None:
    """Train, and be killed after step KILL_AT, as by a scheduler."""
    Trainer.train_step(self, data_iterator)
    if self.step == int(os.environ.get("KILL_AT", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    metrics.build_device_memory_monitor = NoMemory
    distributed.set_pg_timeouts = lambda **_: None
    MixtureTrainer.train_step = train_and_be_killed
    vars(registry)["small_on_cpu"] = small_on_cpu
    train.main()
