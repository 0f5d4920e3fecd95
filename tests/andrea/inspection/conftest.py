"""What these tests share: one thread, a small model, a batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from andrea.model import Andrea, ModelConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are not worth sharing out."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def model() -> Andrea:
    """A model of 2 layers and 2 heads; with a head 4 times as large its guesses differ clearly from uniform."""
    made = Andrea(ModelConfig(vocab_size=23, width=8, num_heads=2, num_layers=2, context=12), seed=3)
    with torch.no_grad():
        made.head.weight.mul_(4)
    return made


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 23, (3, 11), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
