"""A walk's saved state as plain data: small, exact, of one version and one curriculum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixer.errors import StateMismatchError
from mixer.sampling.phases import Phase
from mixer.system.packed import pack, unpack
from mixer.types import Array, IntArray, State

STATE_VERSION = 6


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


def phase_to_state(phase: Phase, *, is_first: bool) -> dict[str, Any]:
    """Return a phase as states have it; what was drawn before it follows from the one before, but for the first."""
    fields = ("index", "start", "length", "kind", "regime", "weights", *(("drawn", "owed") if is_first else ()))
    return {name: getattr(phase, name) for name in fields}


def state_to_phase(state: Mapping[str, Any], names: tuple[str, ...], drawn: IntArray, owed: Array) -> Phase:
    """Return a saved phase; ``drawn`` and ``owed`` are what the phase before it left, if that is there."""
    fields = {"drawn": drawn, "owed": owed, **state}
    return Phase(**{**fields, "drawn": np.asarray(fields["drawn"], dtype=np.int64)}, names=names)


def closed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a walk's state as plain data: its arrays as one text, in which those that are alike take little room."""
    arrays: list[Array] = []

    def size_of(values: Array) -> int:
        arrays.append(values)
        return int(values.size)

    def names_by_size(policy: State) -> list[Any]:
        sizes = sorted({values.size for values in policy.values()})
        names = [sorted(name for name, values in policy.items() if values.size == size) for size in sizes]
        arrays.extend(policy[name] for alike in names for name in alike)
        return [[int(size), alike] for size, alike in zip(sizes, names, strict=True)]

    tree = _each_array(state, size_of, names_by_size)
    return {**tree, "arrays": pack(np.concatenate(arrays, dtype=np.float64))}


def opened(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``closed`` was given; raise StateMismatchError if the arrays are not those that the state names."""
    values, at = unpack(state["arrays"]), 0

    def taken(size: int) -> Array:
        nonlocal at
        at += size
        return values[at - size : at]

    def policy_of(names_by_size: list[Any]) -> State:
        return {name: taken(size) for size, names in names_by_size for name in names}

    tree = _each_array({name: part for name, part in state.items() if name != "arrays"}, taken, policy_of)
    if at != values.size:
        raise StateMismatchError(f"the saved state has {values.size} numbers where it names {at}: it was changed")
    return tree


def _each_array(
    state: Mapping[str, Any], of_array: Callable[[Any], Any], of_policy: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return a state with other things in place of its arrays, in an order that does not hang on that of its keys."""
    new = dict(state)
    for name in ("drawn", "guard", "owed", "unique_tokens", "weights"):
        if name in state:
            new[name] = of_array(state[name])
    if "policy" in state:
        new["policy"] = of_policy(state["policy"])
    if state.get("before") is not None:
        new["before"] = _each_array(state["before"], of_array, of_policy)
    if "phases" in state:
        new["phases"] = [_each_array(phase, of_array, of_policy) for phase in state["phases"]]
    return new
