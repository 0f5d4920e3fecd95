"""The terrain: exact on surfaces whose shape is known, and against an exact Hessian and scipy's eigsh on the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from andrea.inspection import curvature, early, terrain
from andrea.model import Andrea, ModelConfig
from andrea.train import TrainingConfig
from mixer.errors import ConfigError


def bowl(parameters: Mapping[str, Tensor]) -> Tensor:
    """2 |a|^2 + |b|^2 / 2."""
    return 2 * parameters["a"].square().sum() + parameters["b"].square().sum() / 2


# --- the loss as a function of the parameters


def test_the_loss_at_the_models_own_parameters_is_its_own(model: Andrea, batch: dict[str, Tensor]) -> None:
    loss = terrain.loss_of(model, batch)
    parameters = terrain.parameters_of(model)
    expected = model.token_losses(batch["input_ids"], batch["labels"]).mean().item()
    assert loss(parameters).item() == pytest.approx(expected, rel=1e-6)
    doubled = {name: 2 * value for name, value in parameters.items()}
    assert loss(doubled).item() != pytest.approx(expected, rel=1e-3)
    assert model.token_losses(batch["input_ids"], batch["labels"]).mean().item() == expected  # it stays as it is


def test_a_direction_has_rows_as_long_as_the_parameters_rows(model: Andrea) -> None:
    parameters = terrain.parameters_of(model)
    direction = terrain.random_direction(parameters, seed=5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(direction[name].norm(dim=-1), parameter.norm(dim=-1))
    again, other = terrain.random_direction(parameters, seed=5), terrain.random_direction(parameters, seed=6)
    assert all(torch.equal(again[name], direction[name]) for name in direction)
    assert not any(torch.equal(other[name], direction[name]) for name in direction)


def test_one_seed_shakes_two_models_in_the_same_direction(model: Andrea) -> None:
    parameters = terrain.parameters_of(model)
    longer = {name: 3 * value for name, value in parameters.items()}
    one, three = (terrain.random_direction(point, seed=0) for point in (parameters, longer))
    for name in one:
        torch.testing.assert_close(3 * one[name], three[name])


# --- lines, planes, basins


def test_a_line_through_a_bowl_is_a_parabola_without_a_barrier() -> None:
    start, end = {"a": torch.tensor([[1.0]]), "b": torch.zeros(1, 1)}, {"a": -torch.ones(1, 1), "b": torch.zeros(1, 1)}
    found = terrain.line(bowl, start, end, beyond=0.25, num_inside=21)
    assert found.places[0].item() == pytest.approx(-0.25)
    assert found.places[-1].item() == pytest.approx(1.25)
    assert found.losses.tolist() == pytest.approx((2 * (1 - 2 * found.places) ** 2).tolist(), abs=1e-6)
    assert found.barrier == 0


def test_a_hill_between_two_valleys_is_a_barrier_of_its_height() -> None:
    def valleys(parameters: Mapping[str, Tensor]) -> Tensor:
        return (parameters["x"] ** 2 - 1).square().sum()

    found = terrain.line(valleys, {"x": torch.tensor([-1.0])}, {"x": torch.tensor([1.0])})
    assert found.barrier == pytest.approx(1)


def test_a_line_ends_at_both_checkpoints(model: Andrea, batch: dict[str, Tensor]) -> None:
    other = Andrea(model.config, seed=9)
    loss = terrain.loss_of(model, batch)
    found = terrain.line(loss, terrain.parameters_of(model), terrain.parameters_of(other), beyond=0, num_inside=3)
    expected = [m.token_losses(batch["input_ids"], batch["labels"]).mean().item() for m in (model, other)]
    assert [found.losses[0].item(), found.losses[-1].item()] == pytest.approx(expected, rel=1e-5)


def test_models_of_different_shapes_share_no_line(model: Andrea, batch: dict[str, Tensor]) -> None:
    other = Andrea(ModelConfig(vocab_size=23, width=12, num_heads=2, num_layers=2, context=12))
    with pytest.raises(ConfigError, match=r"token_table.weight has shape \(23, 8\) in one and \(23, 12\) in the other"):
        terrain.line(terrain.loss_of(model, batch), terrain.parameters_of(model), terrain.parameters_of(other))


def test_the_middle_of_a_plane_is_the_model_and_its_slices_are_parabolas_on_a_bowl() -> None:
    centre = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[0.0, 2.0]])}
    found = terrain.plane(bowl, centre, radius=0.5, num_points=5)
    assert found.losses[2, 2].item() == pytest.approx(2 * 25 + 2)
    assert found.offsets.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    # along a direction of length 5 in a and 2 in b the second difference is exactly 2 (2 * 25 + 4 / 2) / 16
    for values in (*found.losses, *found.losses.T):
        assert values.diff().diff().tolist() == pytest.approx([2 * 52 / 16] * 3, rel=1e-3)
    with pytest.raises(ConfigError, match="num_points is 4; it must be odd"):
        terrain.plane(bowl, centre, num_points=4)


def test_the_width_of_a_bowl_is_where_the_loss_has_risen_enough() -> None:
    centre = {"a": torch.zeros(1, 2), "b": torch.ones(50, 40)}

    def only_a_curves(parameters: Mapping[str, Tensor]) -> Tensor:
        return (parameters["b"] - 1).square().mean()  # rises by scale^2: each row of b has the mean square of 1

    found = terrain.basin(only_a_curves, centre, scales=np.linspace(0, 1, 201).tolist(), seeds=[0, 1, 2])
    assert found.loss == 0
    assert found.rises[:, -1].tolist() == pytest.approx([1, 1, 1], rel=1e-5)
    assert found.widths(0.25).tolist() == pytest.approx([0.5] * 3, abs=1e-3)
    assert found.widths(5.0).tolist() == [1, 1, 1]  # never reached


def test_the_same_seeds_pair_two_basins_and_tell_the_wider() -> None:
    centre, scales = {"b": torch.ones(10, 40)}, np.linspace(0, 1, 101).tolist()

    def rising(slope: float) -> terrain.Loss:
        return lambda parameters: slope * (parameters["b"] - 1).square().mean()

    steep, flat = (terrain.basin(rising(slope), centre, scales=scales, seeds=range(5)) for slope in (4, 1))
    found = terrain.compare(steep, flat, rise=0.25)
    assert (found.before, found.after) == pytest.approx((0.25, 0.5), abs=1e-3)
    assert found.num_wider == found.num_seeds == 5
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.interval[0] > 0.2
    back = terrain.compare(flat, steep, rise=0.25)
    assert back.num_wider == 0
    assert back.difference == pytest.approx(-found.difference)


# --- curvature


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 30), seed=st.integers(0, 1000))
def test_lanczos_finds_numpys_largest_eigenvalue_even_where_another_is_larger_in_size(size: int, seed: int) -> None:
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = noise + noise.T - 4 * torch.eye(size, dtype=torch.float64)
    found = curvature.largest_eigenvalue(lambda v: matrix @ v.double(), size, tolerance=1e-8, max_products=size)
    expected = np.linalg.eigvalsh(matrix.numpy())[-1]
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.num_products <= size


def test_an_estimate_that_was_stopped_early_says_how_far_off_it_may_be() -> None:
    eigenvalues = torch.linspace(0, 1, 200, dtype=torch.float64)
    found = curvature.largest_eigenvalue(lambda v: eigenvalues * v.double(), 200, tolerance=1e-12, max_products=6)
    assert found.num_products == 6
    assert found.error > 0
    assert (eigenvalues - found.value).abs().min() <= found.error


def small_parameters(model: Andrea) -> dict[str, Tensor]:
    return {name: value.double() for name, value in terrain.parameters_of(model).items()}


def exact_hessian(model: Andrea, batch: dict[str, Tensor]) -> Tensor:
    """Formed by torch.autograd.functional over the parameters as one vector, float64 [P, P]."""
    loss, parameters = terrain.loss_of(model.double(), batch), small_parameters(model)
    sizes = [value.numel() for value in parameters.values()]

    def of_vector(vector: Tensor) -> Tensor:
        pieces = zip(parameters.items(), torch.split(vector, sizes), strict=True)
        return loss({name: piece.view(value.shape) for (name, value), piece in pieces}).double()

    flat = torch.cat([value.flatten() for value in parameters.values()])
    return torch.autograd.functional.hessian(of_vector, flat, vectorize=True)  # type: ignore[no-untyped-call]


def test_sharpness_is_the_largest_eigenvalue_of_the_exact_hessian(batch: dict[str, Tensor]) -> None:
    tiny = Andrea(ModelConfig(vocab_size=23, width=4, num_heads=2, num_layers=1, context=12), seed=1)
    hessian = exact_hessian(tiny, batch)
    loss, parameters = terrain.loss_of(tiny, batch), small_parameters(tiny)
    found = curvature.sharpness(loss, parameters, tolerance=1e-6)
    assert found.value == pytest.approx(np.linalg.eigvalsh(hessian.numpy())[-1], rel=1e-4)

    product = curvature.hessian_product(loss, parameters)
    vector = torch.randn(len(hessian), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(product(vector), hessian @ vector, rtol=1e-4, atol=1e-6)


def test_sharpness_is_what_scipys_eigsh_finds(model: Andrea, batch: dict[str, Tensor]) -> None:
    loss, parameters = terrain.loss_of(model, batch), terrain.parameters_of(model)
    product = curvature.hessian_product(loss, parameters)
    size = sum(value.numel() for value in parameters.values())
    operator = LinearOperator((size, size), matvec=lambda v: product(torch.tensor(v.ravel())).numpy(), dtype=np.float32)
    expected = eigsh(operator, k=1, which="LA", return_eigenvectors=False, v0=np.ones(size, np.float32))[0]
    found = curvature.sharpness(loss, parameters, tolerance=1e-3)
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert found.error <= 1e-3 * found.value
    assert found.num_products < 40


def test_sharpness_of_a_bowl_is_the_steepest_curvature() -> None:
    centre = {"a": torch.ones(2, 3), "b": torch.ones(1, 4)}
    assert curvature.sharpness(bowl, centre).value == pytest.approx(4, rel=0.02)


# --- short trainings


def test_warmup_changes_the_early_terrain_and_not_where_it_starts(batch: dict[str, Tensor]) -> None:
    config = ModelConfig(vocab_size=23, width=8, num_heads=2, num_layers=1, context=12)
    with_warmup, without = (
        early.early_sharpness(
            Andrea(config, seed=2), [batch], batch, TrainingConfig(peak_lr=1e-2, warmup_steps=steps), at=[0, 3, 6]
        )
        for steps in (10, 0)
    )
    assert [moment.step for moment in without] == [0, 3, 6]
    assert without[0].loss == with_warmup[0].loss
    assert without[0].sharpness == with_warmup[0].sharpness
    assert without[0].learning_rate == pytest.approx(1e-2)
    assert with_warmup[0].learning_rate == pytest.approx(1e-3)
    assert without[1].loss < with_warmup[1].loss < without[0].loss  # larger steps learn more at first
    untrained = Andrea(config, seed=2)
    loss = terrain.loss_of(untrained, batch)
    assert without[0].sharpness == curvature.sharpness(loss, terrain.parameters_of(untrained)).value
    with pytest.raises(ConfigError, match="at names no step"):
        early.early_sharpness(untrained, [batch], batch, TrainingConfig(), at=[])


def test_a_row_learned_by_heart_loses_its_loss_and_other_text_gains(model: Andrea, batch: dict[str, Tensor]) -> None:
    row = {name: values[:1] for name, values in batch.items()}
    other = {name: values[1:] for name, values in batch.items()}
    before = {name: value.clone() for name, value in terrain.parameters_of(model).items()}
    found = early.cliff(model, row, other, TrainingConfig(peak_lr=1e-2, warmup_steps=0), num_steps=60, seeds=range(2))
    assert found.row_losses.shape == found.other_losses.shape == (61,)
    assert found.row_losses[-1] < 0.3 < found.row_losses[0]
    assert found.other_losses[-1] > found.other_losses[0]
    assert found.row_line.losses[found.row_line.places.abs().argmin()].item() == pytest.approx(
        found.row_losses[0].item(), rel=1e-5
    )
    assert found.row_basin.loss == pytest.approx(found.row_losses[-1].item(), rel=1e-5)
    assert math.isfinite(found.row_sharpness[1])
    after = terrain.parameters_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)  # a copy was trained
