"""The demo computes with as many threads as are quickest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from andrea.demo import quickest_num_threads
from andrea.model import ModelConfig

SMALL = ModelConfig(vocab_size=50, width=16, num_heads=2, num_layers=1, context=8)


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize(("seconds", "quickest"), [({1: 1.0, 2: 1.5}, 1), ({1: 1.0, 2: 0.6}, 2)])
def test_two_threads_are_used_where_they_are_faster_and_one_where_they_are_not(
    seconds: dict[int, float], quickest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def read_clock() -> float:
        nonlocal now
        now += seconds[torch.get_num_threads()]  # of the step between this and the call before
        return now

    torch.set_num_threads(2)
    monkeypatch.setattr("andrea.demo.time.perf_counter", read_clock)
    assert quickest_num_threads(SMALL, num_rows=2) == quickest
    assert torch.get_num_threads() == 2


def test_where_torch_would_use_one_thread_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("andrea.demo.Trainer.step", lambda *_: pytest.fail("a step was tried"))
    assert quickest_num_threads(SMALL, num_rows=2) == 1
