"""A walk's saved state: plain JSON data with names, of one version and one curriculum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.errors import StateMismatchError
from mixer.types import State

STATE_VERSION = 1


def check_state(state: Mapping[str, Any], *, version: int, fingerprint: str, what: str) -> None:
    """Raise StateMismatchError, naming both sides, unless ``state`` is of this version and curriculum."""
    if state.get("version") != version:
        raise StateMismatchError(
            f"{what} has version {state.get('version')!r}, this curriculum-mixer reads version {version}; "
            "restore it with the release that saved it"
        )
    if state.get("fingerprint") != fingerprint:
        raise StateMismatchError(
            f"{what} belongs to curriculum {state.get('fingerprint')}, but this one is {fingerprint}; "
            "restore it with the config file that it was saved under (total_steps alone may differ)"
        )


def to_lists(arrays: State) -> dict[str, Any]:
    """Return named arrays as plain data."""
    return {name: values.tolist() for name, values in arrays.items()}


def to_arrays(lists: Mapping[str, Any]) -> State:
    """Return what ``to_lists`` was given."""
    return {name: np.array(values, dtype=np.float64) for name, values in lists.items()}
