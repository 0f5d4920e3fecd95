"""What a trainer says of a batch becomes sums by source: in every form that it may take, and in no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixer.delivery import feedback
from mixer.errors import FeedbackError, InvalidLossError
from mixer.losses import SQUARE_GRID, SUM_GRID, SourceLosses

LossAccumulator: Any = feedback.LossAccumulator  # on a mesh alone it may give None

NAMES = ("web", "code", "chat")


@st.composite
def reported(draw: st.DrawFn) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    """A batch with some labels of -100, the losses of its tokens, garbage where masked, and perhaps a mask."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, 50, (rows, width))
    if draw(st.booleans()):
        labels[rng.random((rows, width)) < 0.4] = -100
    mask = torch.from_numpy(rng.random((rows, width)) < 0.7) if draw(st.booleans()) else None
    losses = torch.from_numpy(rng.exponential(3.0, (rows, width))).to(
        draw(st.sampled_from([torch.float32, torch.float64]))
    )
    kept = torch.from_numpy(labels != -100)
    losses[~kept if mask is None else ~(kept & mask)] = draw(st.sampled_from([0.0, 7.0, torch.nan]))
    batch = {"step": 4, "source_ids": torch.from_numpy(rng.integers(0, 3, rows)), "labels": torch.from_numpy(labels)}
    return batch, losses, mask


def slowly(batch: dict[str, Any], losses: Tensor, mask: Tensor | None) -> SourceLosses:
    """The same, one token after the other."""
    found = np.zeros((4, 3))
    for source, labels, row, kept in zip(
        batch["source_ids"].tolist(),
        batch["labels"].tolist(),
        losses.double().tolist(),
        (torch.ones_like(losses, dtype=torch.bool) if mask is None else mask).tolist(),
        strict=True,
    ):
        counted = [loss for loss, label, keep in zip(row, labels, kept, strict=True) if keep and label != -100]
        if counted:
            total = round(sum(counted) / SUM_GRID) * SUM_GRID
            square = round((total / len(counted)) ** 2 / SQUARE_GRID) * SQUARE_GRID
            found[:, source] += [1, len(counted), total, square]
    return SourceLosses(rows=found[0], tokens=found[1], loss_sums=found[2], square_sums=found[3])


def assert_same(one: SourceLosses, other: SourceLosses) -> None:
    assert one.rows.tolist() == other.rows.tolist()
    assert one.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(one.loss_sums, other.loss_sums, atol=2 * SUM_GRID)
    np.testing.assert_allclose(one.square_sums, other.square_sums, rtol=1e-5, atol=1e-3)


def layouts(values: Tensor) -> list[Tensor]:
    return [values, values.reshape(-1), values.reshape(1, -1)]


@given(reported())
def test_token_losses_of_every_layout_give_what_a_slow_reading_gives(
    case: tuple[dict[str, Any], Tensor, Tensor | None],
) -> None:
    batch, losses, mask = case
    rows, width = losses.shape
    expected = slowly(*case)
    for given_losses in layouts(losses):
        for given_mask in [None] if mask is None else layouts(mask):
            for labels in layouts(batch["labels"]):
                ((step, found),) = LossAccumulator(rows, width, NAMES).add(
                    batch | {"labels": labels}, given_losses, given_mask
                )
                assert step == 4
                assert_same(found, expected)


@given(reported(), st.data())
def test_row_sums_with_counts_and_parts_of_a_batch_give_the_same(
    case: tuple[dict[str, Any], Tensor, Tensor | None], data: st.DataObject
) -> None:
    batch, losses, mask = case
    rows, width = losses.shape
    kept = batch["labels"] != -100
    kept = kept if mask is None else kept & mask
    sums, counts = torch.where(kept, losses, torch.zeros_like(losses)).double().sum(1), kept.sum(1)
    ((_, found),) = LossAccumulator(rows, width, NAMES).add(batch, sums, None, counts)
    assert_same(found, slowly(*case))
    reports, cut = LossAccumulator(rows, width, NAMES), data.draw(st.integers(0, rows))
    whole: list[Any] = []
    for part in (slice(0, cut), slice(cut, rows)):
        some = {"step": 4, **{key: batch[key][part] for key in ("source_ids", "labels")}}
        whole += (
            reports.add(some, losses[part], None if mask is None else mask[part])
            if batch["source_ids"][part].numel()
            else []
        )
    ((_, found),) = whole
    assert_same(found, slowly(*case))


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.lists(st.integers(0, 10), max_size=3).map(tuple),
    st.sampled_from(["token losses", "the mask", "labels"]),
)
def test_every_other_shape_is_refused_with_both_shapes(
    rows: int, width: int, shape: tuple[int, ...], what: str
) -> None:
    batch: dict[str, Any] = {"step": 0, "source_ids": torch.zeros(rows, dtype=torch.int64)}
    good = torch.ones(rows, width)
    other = torch.ones(shape)
    losses, mask = (other, None) if what == "token losses" else (good, other if what == "the mask" else None)
    if what == "labels":
        batch["labels"] = other.long()
    reports = LossAccumulator(rows, width, NAMES)
    if shape in [tuple(layout.shape) for layout in layouts(good)]:
        reports.add(batch, losses, mask)
        return
    with pytest.raises(FeedbackError) as error:
        reports.add(batch, losses, mask)
    assert f"{what} have shape {list(shape)}" in str(error.value) or f"{what} has shape {list(shape)}" in str(
        error.value
    )
    assert f"{rows} rows of {width} tokens" in str(error.value)
    assert reports.add(batch | {"labels": good.long()}, good)[0][1].tokens[0] == rows * width  # nothing was kept


B, T = 6, 8


def a_batch(**changes: Any) -> dict[str, Any]:
    return {"step": 3, "source_ids": torch.tensor([0, 1, 2, 0, 1, 2]), "labels": torch.ones(B, T).long(), **changes}


@pytest.mark.parametrize("shape", [(B, T - 1), (B, T // 2), (T, B), (B,), (B, T, 1), (B * (T - 1),), (B * T, 1), ()])
def test_shapes_that_trainers_get_wrong_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        FeedbackError, match=rf"token losses have shape \[{', '.join(map(str, shape))}\], but .* 6 rows of 8"
    ):
        LossAccumulator(B, T, NAMES).add(a_batch(), torch.ones(shape))


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        (
            torch.ones(B, T),
            torch.full((B,), T),
            r"sums of rows have shape \[6, 8\] and num_tokens \[6\], but .* 6 rows",
        ),
        (torch.ones(B), torch.full((B - 1,), T), r"num_tokens \[5\]"),
        (torch.ones(B), torch.tensor([T, T, T + 1, T, T, T]), "row 2 reports 9 tokens, but 8 of its 8 can count"),
        (torch.ones(B), torch.tensor([T, -1, T, T, T, T]), "row 1 reports -1 tokens"),
        (torch.ones(B), torch.tensor([T, 0.5, T, T, T, T]), "row 1 reports 0.5 tokens"),
        (torch.ones(B), torch.tensor([T, T, T, 0, T, T]), "row 3 reports a loss of 1, but no tokens"),
    ],
)
def test_row_sums_that_do_not_fit_the_batch_are_refused(sums: Tensor, counts: Tensor, words: str) -> None:
    with pytest.raises(FeedbackError, match=words):
        LossAccumulator(B, T, NAMES).add(a_batch(), sums, None, counts)


def test_row_sums_cannot_count_tokens_that_are_masked() -> None:
    labels = torch.ones(B, T).long()
    labels[4, :3] = -100
    with pytest.raises(FeedbackError, match="row 4 reports 8 tokens, but 5 of its 8 can count"):
        LossAccumulator(B, T, NAMES).add(a_batch(labels=labels), torch.ones(B), None, torch.full((B,), T))


def test_batches_that_were_collated_once_more_are_refused() -> None:
    batch = {"step": torch.tensor([0, 1]), "source_ids": torch.zeros(2, B).long()}
    with pytest.raises(FeedbackError, match=r"source_ids have shape \[2, 6\] and step \[2\].*batch_size=None"):
        LossAccumulator(B, T, NAMES).add(batch, torch.ones(2 * B, T))


def test_a_single_row_may_be_reported_as_it_was_yielded() -> None:
    row = {"step": 2, "source_ids": torch.tensor(1), "labels": torch.ones(T).long()}
    ((_, found),) = LossAccumulator(1, T, NAMES).add(row, torch.ones(T))
    assert found.tokens.tolist() == [0, T, 0]


def test_rows_of_several_steps_may_be_in_any_order_and_layout() -> None:
    batch = a_batch(step=torch.tensor([1, 0, 1, 0, 0, 1]))
    losses = torch.arange(B * T, dtype=torch.float64).reshape(B, T)
    for layout in layouts(losses):
        found = dict(LossAccumulator(3, T, NAMES).add(batch, layout))
        assert found[0].loss_sums.tolist() == [losses[3].sum(), losses[[1, 4]].sum(), 0]
        assert found[1].loss_sums.tolist() == [losses[0].sum(), 0, losses[[2, 5]].sum()]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_cannot_be_is_located(value: float) -> None:
    reports, losses = LossAccumulator(B, T, NAMES), torch.ones(B, T)
    losses[4, 2] = value
    reports.add({"step": 3, "source_ids": torch.tensor([0, 1])}, losses[:2])
    ((step, found),) = reports.add({"step": 3, "source_ids": torch.tensor([2, 0, 1, 2])}, losses[2:])
    assert not np.isfinite(found.loss_sums[1])
    assert np.isfinite(found.loss_sums[[0, 2]]).all()
    assert str(reports.located(step, InvalidLossError("no"))) == f"no (row 4 of this rank's, from code: {value})"
    assert str(reports.located(step, InvalidLossError("no"))) == "no"
