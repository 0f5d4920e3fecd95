"""The published runs are what they are said to be, and can be started as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from andrea.settings import TrainingFile, read_training_file
from andrea.train import learning_rate
from mixer.config.files import shipped_config
from mixer.config.policy import AndreaConfig

RUNS = ["andrea-12m", "andrea-120m-v1", "andrea-120m-v2", "andrea-120m-v3"]


def read(name: str) -> TrainingFile:
    return read_training_file(shipped_config(f"{name}.yaml"))


@pytest.mark.parametrize("name", RUNS)
def test_the_model_has_the_published_number_of_parameters(name: str) -> None:
    file = read(name)
    assert file.curriculum is not None
    assert file.curriculum.vocab_size is not None
    config = file.settings.model.config(file.curriculum.vocab_size, file.curriculum.sequence_length)
    assert config.num_parameters == (12_780_288 if name == "andrea-12m" else 98_698_752)


@pytest.mark.parametrize("name", ["andrea-12m", "andrea-120m-v1"])
def test_the_runs_under_the_published_reward_have_neither_warmup_nor_clipping_nor_decay(name: str) -> None:
    file = read(name)
    assert file.curriculum is not None
    optimizer = file.optimizer(file.curriculum.total_steps)
    assert (optimizer.warmup_steps, optimizer.clip_norm, optimizer.weight_decay) == (0, None, 0.0)
    assert learning_rate(0, file.curriculum.total_steps, optimizer) == 3e-4
    assert isinstance(file.curriculum.policy, AndreaConfig)
    assert file.curriculum.curriculum_warmup_steps == 0


def test_v2_has_both_warmups() -> None:
    file = read("andrea-120m-v2")
    assert file.curriculum is not None
    optimizer = file.optimizer(file.curriculum.total_steps)
    assert learning_rate(0, 200_000, optimizer) == pytest.approx(3e-4 / 2000)
    assert (optimizer.clip_norm, optimizer.weight_decay) == (1.0, 0.1)
    assert file.curriculum.curriculum_warmup_steps == 20_000


def test_v3_begins_where_v2_leaves_its_checkpoint_of_the_polish_at_the_same_rate() -> None:
    v2, v3 = read("andrea-120m-v2"), read("andrea-120m-v3")
    assert v2.curriculum is not None
    assert v3.curriculum is not None
    polish = v2.curriculum.pivots[0].at_step
    assert v3.start_from is not None
    assert v3.start_from.resolve() == v3.path.resolve().parents[1] / Path(
        f"runs/andrea-120m-v2/checkpoints/step_{polish:07d}"
    )
    assert polish + v3.curriculum.total_steps == v2.curriculum.total_steps
    for step in (0, 1, 50_000):
        own = learning_rate(step, v3.curriculum.total_steps, v3.optimizer(v3.curriculum.total_steps))
        assert own == learning_rate(polish + step, 200_000, v2.optimizer(200_000))


def test_the_gate_is_as_published_and_v1_had_none() -> None:
    for name in ("andrea-120m-v2", "andrea-120m-v3"):
        settings = read(name).settings
        assert (settings.sample_every, settings.sample_tokens) == (100, 420)
        assert (settings.gate.threshold, settings.gate.patience, settings.gate.halt) == (30, 5, True)
    assert read("andrea-120m-v1").settings.sample_every == 200
    assert not read("andrea-120m-v1").settings.gate.halt
