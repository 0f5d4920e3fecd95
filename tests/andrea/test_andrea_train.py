"""The reference trainer: its schedule, its steps, exact resume, and checkpoints that survive what happens to files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from andrea.checkpoint import Checkpoint, check_vocabulary, load_checkpoint, save_checkpoint
from andrea.model import Andrea, ModelConfig
from andrea.train import (
    Trainer,
    TrainingConfig,
    TrainingReport,
    learning_rate,
    train,
)
from mixer.errors import ConfigError, InvalidLossError, StateMismatchError, TokenizerError

SMALL = ModelConfig(vocab_size=30, width=16, num_heads=2, num_layers=2, context=8)
TOTAL_STEPS = 8
CONFIG = TrainingConfig(peak_lr=1e-2, warmup_steps=3)

Batch = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are not worth sharing out: on busy cores two threads wait 20 times longer than one works."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class CountingDataset:
    """Stands in for a MixtureDataset: the batch of a step follows from the step; reports are kept."""

    def __init__(self, total_steps: int = TOTAL_STEPS) -> None:
        self.total_steps = total_steps
        self.next_step = 0
        self.reported: dict[int, torch.Tensor] = {}

    def __iter__(self) -> Iterator[Batch]:
        while self.next_step < self.total_steps:
            step = self.next_step
            self.next_step += 1
            rows = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(step))
            yield {
                "input_ids": rows[:, :-1],
                "labels": rows[:, 1:],
                "source_ids": torch.arange(4),
                "step": step,
                "phase": step // 7,
            }

    def report(self, batch: Batch, token_losses: torch.Tensor) -> None:
        self.reported[batch["step"]] = token_losses

    def state_dict(self) -> dict[str, Any]:
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_step = state["next_step"]


def make_trainer(config: TrainingConfig = CONFIG, total_steps: int = TOTAL_STEPS, seed: int = 0) -> Trainer:
    return Trainer(Andrea(SMALL, seed=seed), config, total_steps)


def run(dataset: CountingDataset, trainer: Trainer, until: int = TOTAL_STEPS) -> TrainingReport:
    return train(dataset, trainer, vocab_size=30, should_stop=lambda: trainer.num_steps >= until)


def parameters_of(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def first_batch() -> Batch:
    return next(iter(CountingDataset()))


# --- the learning rate

runs = st.integers(1, 300_000).flatmap(
    lambda total: st.tuples(
        st.integers(0, total + 10),
        st.just(total),
        st.builds(
            TrainingConfig,
            peak_lr=st.floats(1e-6, 1.0),
            warmup_steps=st.integers(0, 5000),
            min_lr_ratio=st.floats(0, 1),
        ),
    )
)


@given(runs)
def test_the_rate_is_never_above_its_peak_nor_below_its_floor_once_warm(run: tuple[int, int, TrainingConfig]) -> None:
    step, total_steps, config = run
    rate = learning_rate(step, total_steps, config)
    assert 0 <= rate <= config.peak_lr * (1 + 1e-12)
    if step + 1 >= config.warmup_steps:
        assert rate >= config.min_lr_ratio * config.peak_lr * (1 - 1e-12)


@given(runs)
def test_warmup_multiplies_the_cosine_by_exactly_its_share_of_the_warmup(run: tuple[int, int, TrainingConfig]) -> None:
    step, total_steps, config = run
    unwarmed = learning_rate(step, total_steps, replace(config, warmup_steps=0))
    factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    assert learning_rate(step, total_steps, config) == pytest.approx(factor * unwarmed, rel=1e-12)


@given(runs)
def test_without_warmup_the_rate_falls_from_the_peak_to_the_floor(run: tuple[int, int, TrainingConfig]) -> None:
    step, total_steps, config = run[0], run[1], replace(run[2], warmup_steps=0)
    floor = config.min_lr_ratio * config.peak_lr
    assert learning_rate(0, total_steps, config) == pytest.approx(config.peak_lr, rel=1e-12)
    assert learning_rate(total_steps, total_steps, config) == pytest.approx(floor, rel=1e-12)
    assert learning_rate(total_steps + step, total_steps, config) == pytest.approx(floor, rel=1e-12)
    assert learning_rate(step + 1, total_steps, config) <= learning_rate(step, total_steps, config)


def test_the_rate_has_the_published_values() -> None:
    config = TrainingConfig(min_lr_ratio=0)
    assert learning_rate(0, 200_000, config) == pytest.approx(3e-4 * 0.0005)
    assert learning_rate(1000, 200_000, config) == pytest.approx(3e-4 * 1001 / 2000, rel=1e-4)
    assert learning_rate(100_000, 200_000, config) == pytest.approx(1.5e-4)
    assert learning_rate(200_000, 200_000, config) == pytest.approx(0, abs=1e-18)


@pytest.mark.parametrize(("total_steps", "warmup_steps"), [(200_000, 2000), (20_000, 2000), (300, 30), (5, 0)])
def test_warmup_is_shortened_to_a_tenth_of_a_short_run(total_steps: int, warmup_steps: int) -> None:
    config = TrainingConfig(peak_lr=0.5).scaled_to(total_steps)
    assert config == TrainingConfig(peak_lr=0.5, warmup_steps=warmup_steps)


def test_every_setting_out_of_range_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(
            peak_lr=math.nan,
            warmup_steps=-1,
            min_lr_ratio=1.5,
            betas=(0.9, 1.0),
            eps=0.0,
            weight_decay=-0.1,
            clip_norm=0.0,
            precision="float8",  # type: ignore[arg-type]
        )
    names = [problem.split(" is ")[0] for problem in caught.value.problems]
    assert names == [
        "peak_lr", "warmup_steps", "min_lr_ratio", "betas", "eps", "weight_decay", "clip_norm", "precision"
    ]  # fmt: skip
    assert caught.value.problems[2] == "min_lr_ratio is 1.5; it must be between 0 and 1"


def test_a_run_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"total_steps is 0; it must be at least 1"):
        make_trainer(total_steps=0)


# --- a step


def test_a_step_is_clipped_adamw_at_the_scheduled_rate_with_decay_on_matrices_only() -> None:
    """Against AdamW written out from its paper (Loshchilov and Hutter, ICLR 2019), in float64."""
    config = replace(CONFIG, clip_norm=0.05, weight_decay=0.5, betas=(0.8, 0.99))
    trainer, reference = make_trainer(config), Andrea(SMALL).double()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in reference.named_parameters()}
    for step, batch in enumerate(CountingDataset()):
        trainer.step(batch)
        reference.zero_grad()
        logits = reference(batch["input_ids"]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, batch["labels"].flatten()).backward()  # type: ignore[no-untyped-call]
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None))
        assert trainer.gradient_norm == pytest.approx(norm, rel=1e-3)
        assert norm > 0.05  # clipping is at work
        rate = learning_rate(step, TOTAL_STEPS, config)
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                first, second = moments[name]
                assert parameter.grad is not None
                gradient = parameter.grad * (0.05 / norm)
                first.mul_(0.8).add_(0.2 * gradient)
                second.mul_(0.99).add_(0.01 * gradient.square())
                if "table" not in name:
                    parameter.mul_(1 - rate * 0.5)
                root = (second / (1 - 0.99 ** (step + 1))).sqrt() + config.eps
                parameter.sub_(rate * first / (1 - 0.8 ** (step + 1)) / root)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(
            parameter.double(), dict(reference.named_parameters())[name], atol=2e-4, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("clip_norm", [0.01, 1e6, math.inf])
def test_gradients_longer_than_the_clip_norm_are_cut_to_it_and_shorter_ones_left(clip_norm: float) -> None:
    trainer = make_trainer(replace(CONFIG, clip_norm=clip_norm))
    trainer.step(first_batch())
    left = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.model.parameters() if p.grad is not None))
    assert 0.1 < trainer.gradient_norm < 1e6
    assert left == pytest.approx(min(clip_norm, trainer.gradient_norm), rel=1e-4)


def test_a_step_returns_the_losses_from_before_it_detached() -> None:
    trainer, batch = make_trainer(), first_batch()
    with torch.no_grad():
        expected = trainer.model.token_losses(batch["input_ids"], batch["labels"])
    losses = trainer.step(batch)
    assert losses.shape == (4, 8)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected)


def test_bfloat16_changes_the_losses_a_little_and_keeps_parameters_and_losses_float32() -> None:
    exact, rounded = make_trainer(), make_trainer(replace(CONFIG, precision="bfloat16"))
    batch = first_batch()
    losses, expected = rounded.step(batch), exact.step(batch)
    assert losses.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in rounded.model.parameters())
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses, expected, atol=0.05, rtol=0)


def test_a_loss_that_is_not_finite_is_refused_and_moves_nothing() -> None:
    trainer = make_trainer()
    trainer.step(first_batch())
    with torch.no_grad():
        trainer.model.head.weight[0, 0] = math.nan
    before = parameters_of(trainer)
    with pytest.raises(InvalidLossError, match=r"step 1 has a mean loss of nan.*not taken.*lower peak_lr \(0\.01\)"):
        trainer.step(first_batch())
    assert trainer.num_steps == 1
    for old, new in zip(before, parameters_of(trainer), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


# --- the loop


def test_every_batch_is_trained_on_reported_and_announced_in_order() -> None:
    dataset, trainer = CountingDataset(), make_trainer()
    seen: list[tuple[int, float, int]] = []
    report = train(
        dataset, trainer, vocab_size=30, on_step=lambda step, loss, batch: seen.append((step, loss, batch["phase"]))
    )
    assert [(step, phase) for step, _, phase in seen] == [(step, step // 7) for step in range(TOTAL_STEPS)]
    assert [loss for _, loss, _ in seen] == [float(dataset.reported[step].mean()) for step in range(TOTAL_STEPS)]
    assert (report.num_steps, report.last_loss) == (TOTAL_STEPS, seen[-1][1])
    assert trainer.num_steps == TOTAL_STEPS


def test_training_lowers_the_loss() -> None:
    class OneBatch(CountingDataset):
        def __iter__(self) -> Iterator[Batch]:
            return ({**first_batch(), "step": step} for step in range(40))

    losses: list[float] = []
    trainer = make_trainer(CONFIG, total_steps=40)
    train(OneBatch(), trainer, vocab_size=30, on_step=lambda _step, loss, _batch: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(30), abs=0.1)
    assert losses[-1] < 1.0


def test_stopping_leaves_no_batch_taken_but_not_trained_on() -> None:
    dataset, trainer = CountingDataset(), make_trainer()
    report = run(dataset, trainer, until=3)
    assert report.num_steps == trainer.num_steps == dataset.next_step == 3
    assert sorted(dataset.reported) == [0, 1, 2]


def test_a_run_stopped_before_it_began_has_no_loss_and_took_nothing() -> None:
    dataset = CountingDataset()
    report = run(dataset, make_trainer(), until=0)
    assert (report.num_steps, report.last_loss, dataset.next_step) == (0, None, 0)
    assert TrainingReport(num_steps=0, total_s=0.0, waiting_s=0.0, last_loss=None).waiting_share == 0.0


def test_waiting_counts_the_dataset_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    class SlowDataset(CountingDataset):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                pass_time(1.0)
                yield batch

        def report(self, batch: Batch, token_losses: torch.Tensor) -> None:
            pass_time(3.0)

    monkeypatch.setattr("andrea.train.time.perf_counter", lambda: now)
    report = train(SlowDataset(total_steps=5), make_trainer(), vocab_size=30)
    assert (report.waiting_s, report.total_s) == (5.0, 20.0)
    assert report.waiting_share == 0.25


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_any_batch_is_taken() -> None:
    dataset = CountingDataset()
    with pytest.raises(TokenizerError, match=r"tokenizer has 31 tokens, but the model's vocabulary is 30; build the"):
        train(dataset, make_trainer(), vocab_size=31)
    assert dataset.next_step == 0
    check_vocabulary(SMALL, 30)
    check_vocabulary(SMALL, 7)


def test_a_dataset_that_stands_at_another_step_than_the_trainer_is_refused() -> None:
    dataset, trainer = CountingDataset(), make_trainer()
    run(dataset, trainer, until=2)
    with pytest.raises(StateMismatchError, match=r"dataset hands out step 2, but the trainer has taken 0 steps"):
        run(dataset, make_trainer())


# --- resuming


@pytest.mark.parametrize("stop", range(TOTAL_STEPS + 1))
def test_a_run_resumed_at_any_step_ends_bit_identical_to_the_undisturbed_one(stop: int, tmp_path: Path) -> None:
    undisturbed, dataset = make_trainer(), CountingDataset()
    run(dataset, undisturbed)

    stopped, half = make_trainer(), CountingDataset()
    run(half, stopped, until=stop)
    save_checkpoint(tmp_path, Checkpoint(stopped.state_dict(), [half.state_dict()]))

    torch.manual_seed(99)  # nothing hangs on torch's global generator
    resumed, rest = make_trainer(seed=5), CountingDataset()
    checkpoint = load_checkpoint(tmp_path)
    resumed.load_state_dict(checkpoint.trainer_state)
    rest.load_state_dict(checkpoint.dataset_states[0])
    assert resumed.num_steps == stop
    run(rest, resumed)

    assert equal(parameters_of(resumed), parameters_of(undisturbed))
    losses = {**half.reported, **rest.reported}
    assert all(torch.equal(losses[step], dataset.reported[step]) for step in range(TOTAL_STEPS))
    moments, expected = (trainer.state_dict()["optimizer"] for trainer in (resumed, undisturbed))
    assert moments.keys() == expected.keys()
    assert all(torch.equal(moments[name], expected[name]) for name in expected)


def test_a_state_is_a_copy_that_later_steps_of_either_trainer_leave_alone() -> None:
    trainer, dataset = make_trainer(), CountingDataset()
    run(dataset, trainer, until=3)
    state, position = trainer.state_dict(), dataset.state_dict()
    run(dataset, trainer)
    for _ in range(2):  # the second restore finds what the first found
        again, rest = make_trainer(), CountingDataset()
        again.load_state_dict(state)
        rest.load_state_dict(position)
        run(rest, again)
        assert equal(parameters_of(again), parameters_of(trainer))


def test_a_state_of_another_run_is_refused_naming_both_sides() -> None:
    state = make_trainer().state_dict()
    before = parameters_of(other := make_trainer(replace(CONFIG, peak_lr=0.5), total_steps=9, seed=3))
    with pytest.raises(
        StateMismatchError, match=r"peak_lr is 0\.01 in the state and 0\.5 here; total_steps is 8 .* 9 here"
    ):
        other.load_state_dict(state)
    assert equal(parameters_of(other), before)
    wider = Trainer(Andrea(replace(SMALL, width=32)), CONFIG, TOTAL_STEPS)
    with pytest.raises(StateMismatchError, match=r"width is 16 in the state and 32 here"):
        wider.load_state_dict(state)


@pytest.mark.parametrize("version", [None, 0, 1])
def test_a_trainer_state_of_another_version_is_refused(version: int | None) -> None:
    state = make_trainer().state_dict() | {"version": version}
    with pytest.raises(
        StateMismatchError, match=rf"trainer state has version {version}, but this release reads version 2"
    ):
        make_trainer().load_state_dict(state)
