"""Batches that leave a DataLoader worker arrive as they were there, whatever the worker did to them."""

from __future__ import annotations

import copy
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate, default_convert

from mixer.delivery.pickled import PickledBatch


def sent(batch: dict[str, Any]) -> dict[str, Any]:
    arrived: dict[str, Any] = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    return arrived


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def a_batch(rows: list[list[int]]) -> PickledBatch:
    ids = torch.tensor(rows, dtype=torch.int64)
    source_ids = torch.arange(len(rows))
    return PickledBatch(
        input_ids=ids[:, :-1].clone(), labels=ids[:, 1:].clone(), source_ids=source_ids, step=3, phase=1
    )


ids = st.sampled_from([0, 1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, -1, -100, -(2**63)])


@given(st.integers(1, 4).flatmap(lambda t: st.lists(st.lists(ids, min_size=t, max_size=t), max_size=3)))
def test_any_numbers_arrive_as_they_were_sent_in_a_plain_dict(rows: list[list[int]]) -> None:
    batch = a_batch(rows) if rows else PickledBatch(input_ids=torch.zeros((0, 4), dtype=torch.int64), step=0)
    arrived = sent(batch)
    assert type(arrived) is dict
    assert is_same(arrived, batch)


@given(st.sampled_from([torch.uint8, torch.uint16, torch.uint32]), st.integers(0, 3), st.integers(2, 4))
def test_compact_token_ids_arrive_in_their_type_and_a_row_once(dtype: torch.dtype, num_rows: int, length: int) -> None:
    most = torch.iinfo(dtype).max
    ids = (torch.arange(num_rows * length).reshape(num_rows, length) * most // 5).to(dtype)
    batch = PickledBatch(input_ids=ids[:, :-1].clone(), labels=ids[:, 1:].clone(), step=3)
    arrived = sent(batch)
    for key in ("input_ids", "labels"):
        assert arrived[key].dtype == dtype
        assert arrived[key].tolist() == batch[key].tolist()
        assert arrived[key].is_contiguous()


def test_what_a_worker_changed_arrives_changed() -> None:
    batch = a_batch([[1, 2, 3, 4], [5, 6, 7, 8]])
    batch["labels"][0, 1] = -100
    assert sent(batch)["labels"].tolist() == [[2, -100, 4], [6, 7, 8]]
    batch = a_batch([[1, 2, 3, 4]])
    batch["labels"].numpy()[0, 0] = 9  # which torch does not see
    assert sent(batch)["labels"].tolist() == [[9, 3, 4]]
    batch["mask"], batch["text"] = torch.ones(3, dtype=torch.bool), ["a"]
    assert is_same(sent(batch), batch)
    del batch["labels"]
    assert is_same(sent(batch), batch)


@pytest.mark.parametrize("collate", [copy.copy, default_convert, lambda batch: default_collate([batch, batch])])
def test_a_batch_that_a_loader_collates_stays_small(collate: Any) -> None:
    batch = a_batch([list(range(200)) for _ in range(16)])
    arrived = sent(collate(batch))
    assert is_same(arrived, dict(collate(batch)))
    num_ids = arrived["input_ids"].numel() / 199 * 200
    assert len(bytes(ForkingPickler.dumps(collate(batch)))) < num_ids + 1000  # a byte an id, inputs and labels together


def test_what_arrives_shares_no_memory() -> None:
    arrived = sent(a_batch([[1, 2, 3]]))
    arrived["labels"].fill_(-100)
    assert arrived["input_ids"].tolist() == [[1, 2]]
    assert arrived["labels"].is_contiguous()
    assert arrived["input_ids"].is_contiguous()
