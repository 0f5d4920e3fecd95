"""Small valid curricula, and a trainer that drives a walk with made-up losses.

Curricula are feasible by construction: floors sum to 1 at most, the first source has no cap and takes part in every
warmup, and regimes change on steps that are sums of phase lengths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.probes import OF_PROBES
from mixer.losses import SourceLosses
from mixer.sampling.draws import phase_counts
from mixer.sampling.phases import Phase
from mixer.sampling.randomness import uniforms
from mixer.types import Array, IntArray
from mixer.walk.walk import Walk
from tests.support.strategies import source_names

WORDS = ["alpha beta gamma delta", "one two three four five", "red green blue", "north east south west"]
MAX_LATE = 30  # steps: how late reports of ``drive`` may come
PEOPLE_REWARD = "tests.support.curricula:mean_losses"
POLICIES: tuple[Mapping[str, Any], ...] = (
    {"name": "ucb"},
    {"name": "ucb", "reward": "progress", "eta": 1.0},
    {"name": "ucb", "reward": "loss", "gamma": 0.9},
    {"name": "ucb", "reward": PEOPLE_REWARD},
    {"name": "water_filling"},
    {"name": "d_ucb"},
    {"name": "sw_ucb", "window": 5},
    {"name": "andrea"},
    {"name": "odm"},
    {"name": "exp3"},
    {"name": "linear"},
    {"name": "softmax", "temperature": 0.5},
    {"name": "ado", "first_fit_step": 20, "refit_steps": 15},
    {"name": "static"},
    {"name": "proportional"},
    {"name": "unimax"},
    {"name": "random"},
)
_PROBED = {*OF_PROBES, "aioli"}  # losses, rewards and policies that need probes


def write_sources(folder: Path, *, num_documents: int = 60) -> None:
    """Write four sources of short documents: s0.jsonl to s3.jsonl."""
    for k, words in enumerate(WORDS):
        lines = [json.dumps({"text": f"{words} {n} " * (1 + n % 5)}) for n in range(num_documents)]
        (folder / f"s{k}.jsonl").write_text("\n".join(lines) + "\n")


Losses = Callable[[Curriculum, int, IntArray], SourceLosses]


def mean_losses(losses: SourceLosses) -> Array:
    """A reward as a user may write one."""
    return np.nan_to_num(losses.means())


def curriculum(num_sources: int = 3, **fields: Any) -> Curriculum:
    """Return a small curriculum under ``ucb``, which teleports by chance; each keyword replaces a field."""
    sources = [{"name": name, "local": "topics", "tokens": 1_000_000} for name in source_names(num_sources)]
    policy = fields.setdefault("policy", {"name": "ucb"})
    if isinstance(policy, Mapping) and {policy.get("losses"), policy.get("reward"), policy["name"]} & _PROBED:
        fields = {"holdout": 0.1, "probes": {}, **fields}
    return Curriculum(**{"total_steps": 10_000, "batch_rows": 8, "sequence_length": 4, "sources": sources, **fields})


@st.composite
def bounds(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, Any]:
    """Draw floors, caps and exclusions that leave a mixture, also one of the warmup's sources alone."""
    shares = draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)))
    total = draw(st.sampled_from([1.0, 0.9, 0.5, 0.1]))  # of the floors; 1.0 leaves a single point
    floors = {name: total * share / sum(shares) for name, share in zip(names, shares, strict=True) if share}
    caps: dict[str, float] = {}
    exclude: list[str] = []
    for name in names[1:]:
        kind = draw(st.sampled_from(["open", "open", "cap", "tight", "out"]))
        floor = floors.get(name, 0.0)
        if kind == "cap":
            caps[name] = floor + (1 - floor) * draw(st.floats(0, 1))
        elif kind == "tight":
            caps[name] = floor
        elif kind == "out" and not floor:
            exclude.append(name)
    return {"floors": floors, "caps": caps, "exclude": exclude}


@st.composite
def curricula(draw: st.DrawFn, *, policies: tuple[Mapping[str, Any], ...] = POLICIES) -> Curriculum:
    """Draw curricula with 1 to 12 sources, every policy and reward, warmups, pivots and lags."""
    names = source_names(draw(st.integers(1, 12)))
    min_steps = draw(st.integers(1, 7))
    max_steps = min_steps + draw(st.integers(0, 12))
    lengths = st.lists(st.integers(min_steps, max_steps), min_size=1, max_size=4).map(sum)  # phases fill such a span
    step = 0
    fields: dict[str, Any] = draw(bounds(names))
    if draw(st.booleans()):
        step = draw(lengths)
        fields["curriculum_warmup_steps"] = step
        others = st.lists(st.sampled_from(names[1:]), unique=True) if len(names) > 1 else st.just([])
        fields["curriculum_warmup_sources"] = [names[0], *draw(others)]
    pivots = []
    for i in range(draw(st.integers(0, 2))):
        step += draw(lengths)
        tables = draw(bounds(names))
        given = draw(st.sets(st.sampled_from(["all", "floors only"]), max_size=1))
        if given == {"floors only"}:  # the caps and exclusions in force stay: floors must fit under them
            tables = {"floors": {names[0]: draw(st.floats(0, 1))}}
        pivots.append({"name": f"pivot-{i}", "at_step": step, **tables})
    return curriculum(
        len(names),
        **fields,
        pivots=pivots,
        seed=draw(st.integers(0, 2**63 - 1)),
        batch_rows=draw(st.integers(1, 16)),
        phases={
            "min_steps": min_steps,
            "max_steps": max_steps,
            "random_probability": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
            "initial_random": draw(st.sampled_from([None, 0, 1, 3])),
        },
        policy=draw(st.sampled_from(policies)),
        feedback_lag=draw(st.integers(0, 20)),
        draws=draw(st.sampled_from(["systematic", "multinomial"])),
    )


def batch_counts(curriculum: Curriculum, phase: Phase, step: int) -> IntArray:
    """Return the rows of each source in the batch of ``step``, [K]."""
    counts, _ = phase_counts(phase, seed=curriculum.seed, method=curriculum.draws, batch_rows=curriculum.batch_rows)
    return np.asarray(counts[step - phase.start])


def noisy_losses(curriculum: Curriculum, step: int, rows: IntArray) -> SourceLosses:
    """Losses of 1 to 5 nats that depend on (seed, step) alone; sources without rows have none."""
    means = 1.0 + 4.0 * uniforms(rows.size, curriculum.seed, "test.losses", step)
    tokens = rows * curriculum.sequence_length
    return SourceLosses(rows=rows, tokens=tokens, loss_sums=means * tokens, square_sums=means**2 * rows)


def on_time(step: int) -> int:
    """Every report comes in its own step."""
    return 0


def ragged(step: int) -> int:
    """Reports come up to MAX_LATE steps late, and overtake one another."""
    return (step * 7919) % (MAX_LATE + 1)


def drive(
    walk: Walk,
    num_steps: int,
    *,
    since: int = 0,
    losses: Losses = noisy_losses,
    late: Callable[[int], int] = on_time,
) -> list[Phase]:
    """Train from step ``since`` up to ``num_steps`` and return the phase of each step.

    Args:
        walk: as it stands before step ``since``.
        num_steps: the step to stop before.
        since: the first step to train.
        losses: what the model says of a batch.
        late: by how many steps the report of a step comes late, at most MAX_LATE.
    """
    phases = []
    for step in range(since, num_steps):
        phases.append(walk.phase_at(step))
        for reported in range(max(0, step - MAX_LATE), step + 1):
            if reported + late(reported) == step:
                rows = batch_counts(walk.curriculum, walk.phase_at(reported), reported)
                walk.report(reported, losses(walk.curriculum, reported, rows))
    return phases


def same_phases(one: list[Phase], other: list[Phase]) -> bool:
    """Return whether two lists of phases are equal to the last bit."""
    return [_bits(phase) for phase in one] == [_bits(phase) for phase in other]


def _bits(phase: Phase) -> tuple[Any, ...]:
    arrays = (phase.weights.tobytes(), phase.drawn.tobytes(), phase.owed.tobytes())
    return (phase.index, phase.start, phase.length, phase.kind, phase.regime, phase.names, *arrays)
