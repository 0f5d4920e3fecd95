"""The checks that users run pass on honest loaders and fail on each way of breaking the promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mixer.sources.base import Progress
from mixer.testing import assert_resumes_from_every_step, assert_source_is_exact
from mixer.types import TokenArray


class Loader:
    """Gives squares; honest."""

    def __init__(self, num_steps: int = 10) -> None:
        self.state: dict[str, Any] = {"step": 0}
        self.num_steps = num_steps

    def batch(self, step: int) -> Any:
        ids = np.array([step, step * step], dtype=np.int64)
        return {"input_ids": torch.from_numpy(ids), "loss": torch.tensor([step / 3]).bfloat16(), "step": step}

    def __iter__(self) -> Iterator[Any]:
        while self.state["step"] < self.num_steps:
            self.state["step"] += 1
            yield self.batch(self.state["step"])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: Any) -> None:
        self.state = dict(state)


class ForgetsOneStep(Loader):
    def load_state_dict(self, state: Any) -> None:
        self.state = {"step": max(0, state["step"] - 1)}


class IgnoresItsState(Loader):
    def load_state_dict(self, state: Any) -> None:
        pass


class SharesItsState(Loader):
    def state_dict(self) -> dict[str, Any]:
        return self.state


class ChangesDtypeAfterResume(Loader):
    resumed = False

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.resumed = True

    def batch(self, step: int) -> Any:
        return np.array([step], dtype=np.float64 if self.resumed else np.float32)


class IsNeverTheSame(Loader):
    num_made = 0

    def __init__(self) -> None:
        super().__init__()
        IsNeverTheSame.num_made += 1
        self.number = IsNeverTheSame.num_made

    def batch(self, step: int) -> Any:
        return (step, self.number)


class NeedsTupleInState(Loader):
    def state_dict(self) -> dict[str, Any]:
        return {"step": self.state["step"], "by_worker": {0: 0}}

    def load_state_dict(self, state: Any) -> None:
        self.state = {"step": state["step"] + state["by_worker"].get(0, 1)}  # JSON has no integer keys


class MovesWhenAsked(Loader):
    def state_dict(self) -> dict[str, Any]:
        self.state["step"] += 1
        return {"step": self.state["step"] - 1}


def test_an_honest_loader_passes() -> None:
    assert_resumes_from_every_step(Loader, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ForgetsOneStep, "restored after 1 steps, the loader differs at step 1"),
        (IgnoresItsState, "restored after 1 steps, the loader differs at step 1"),
        (SharesItsState, "state saved after step 0 changed"),
        (ChangesDtypeAfterResume, r"differs at step 0: float64 \[1\], not float32 \[1\]"),
        (IsNeverTheSame, "a second loader, made alike, differs"),
        (NeedsTupleInState, "restored after 0 steps"),
        (MovesWhenAsked, "with its state saved at each step, the loader differs at step 0"),
        (lambda: Loader(num_steps=5), "ended after 5 of 10 steps"),
    ],
)
def test_a_broken_loader_fails(make: Callable[[], Loader], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_resumes_from_every_step(make, 10)


def test_not_a_number_equals_itself() -> None:
    class Nans(Loader):
        def batch(self, step: int) -> Any:
            return [np.array([np.nan]), torch.tensor(step)]

    assert_resumes_from_every_step(Nans, 5)


class Rows:
    """A source of consecutive numbers; honest."""

    name = "numbers"

    def __init__(self) -> None:
        self.row = 0

    @property
    def progress(self) -> Progress:
        return Progress(rows=self.row, tokens=self.row * 3)

    def take(self, num_rows: int) -> TokenArray:
        rows = np.arange(self.row * 3, (self.row + num_rows) * 3, dtype=np.uint32).reshape(num_rows, 3)
        self.row += num_rows
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.row = state["row"]


class DropsRowsBetweenTakes(Rows):
    def take(self, num_rows: int) -> TokenArray:
        rows = super().take(num_rows)
        self.row += num_rows > 2
        return rows


class GivesFewer(Rows):
    def take(self, num_rows: int) -> TokenArray:
        return super().take(min(num_rows, 4))


class GivesSigned(Rows):
    def take(self, num_rows: int) -> TokenArray:
        return super().take(num_rows).astype(np.int64)  # type: ignore[return-value]


class ForgetsProgress(Rows):
    num_taken = 0

    @property
    def progress(self) -> Progress:
        return Progress(rows=self.num_taken)

    def take(self, num_rows: int) -> TokenArray:
        self.num_taken += num_rows
        return super().take(num_rows)


class ResumesAtGroups(Rows):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.row = state["row"] // 4 * 4

    @property
    def progress(self) -> Progress:
        return Progress(rows=self.row if self.row == 9 else 0)


def test_an_honest_source_passes() -> None:
    assert_source_is_exact(Rows, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (DropsRowsBetweenTakes, r"progress counts 10 rows|differs at row"),
        (GivesFewer, r"take\(9\) gave uint32 \[4, 3\], not uint32 \[9, T \+ 1\]"),
        (GivesSigned, r"take\(9\) gave int64"),
        (ForgetsProgress, "restored after 1 rows, progress is"),
        (ResumesAtGroups, "restored after 1 rows, the source differs at row 1"),
    ],
)
def test_a_broken_source_fails(make: Callable[[], Rows], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_source_is_exact(make, 9)
