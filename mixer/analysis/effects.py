"""What the random phases of a walk say about cause: one-phase effects, and random against bandit phases.

A random phase's weights are a uniform draw and its kind a coin, both independent of the model. So its outcome can be
compared with what was drawn as in a randomised experiment, and a permutation of the draws says how often chance alone
would look like this. Small samples say little: below 20 usable random phases nothing is estimated.

The effects are of *one phase*, averaged over the states that this run went through. What a whole run under another
mixture would have given is not in a log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.problems import suggestion
from mixer.errors import EvidenceError, UnknownSourceError
from mixer.journal.tables import JournalTables, read_tables
from mixer.sampling.randomness import generator
from mixer.types import Array, BoolArray, IntArray

MIN_PHASES = 20  # usable random phases: with fewer, one outlier decides and the normal error is off by a third
MIN_WINDOWS = 10  # runs of m + 1 random phases in a row, for the contrast with bandit phases
EXACT_PERMUTATIONS = 10_000  # all of them are tried if there are no more than this
NUM_DRAWS = 4_999  # else this many random ones; the smallest p-value is 1 / (draws + 1)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What each phase is judged by.

    Attributes:
        what: the outcome in words.
        values: float64 [P], NaN where it could not be measured.
        adjusted: the same without its trend over steps and its mean in each regime, [P].
    """

    what: str
    values: Array
    adjusted: Array


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of a source's weight on the outcome of the same phase.

    Attributes:
        slopes: outcome per unit of weight, [K]; NaN for a source whose weight no random phase varied.
        errors: their standard errors, robust to unequal variances (HC2), [K].
        p_values: of each source by itself, [K].
        family_p_values: of each source, allowing for the look at all of them (Westfall and Young's maxT), [K].
        p_value: that the weights have no effect at all.
        num_phases: random phases used.
        is_exact: whether every permutation was tried.
    """

    slopes: Array
    errors: Array
    p_values: Array
    family_p_values: Array
    p_value: float
    num_phases: int
    is_exact: bool


@dataclass(frozen=True)
class Contrast:
    """Random minus bandit phases, by the Horvitz-Thompson estimator of a switchback experiment.

    Attributes:
        difference: mean outcome under random phases less that under bandit phases, the last ``carry_over`` alike.
        error: standard deviation of the estimate over redrawn coins, had kinds no effect at all.
        p_value: two-sided, from the redrawn coins.
        random_windows, bandit_windows: phases whose last ``carry_over`` + 1 kinds agree.
        carry_over: m, the phases for which a kind may still matter.
    """

    difference: float
    error: float
    p_value: float
    random_windows: int
    bandit_windows: int
    carry_over: int


def effects(path: str | Path, *, outcome: str = "fall", carry_over: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return both estimates of a journal as plain data; ``contrast`` says why where it cannot be estimated.

    Args:
        path: the journal.
        outcome: ``fall`` or ``fall:SOURCE``, ``loss`` or ``loss:SOURCE``; see ``measured``.
        carry_over: m of the contrast.
        seed: of the random permutations.

    Raises:
        EvidenceError: too few random phases; says how many are needed and about how many steps that takes.
        UnknownSourceError: the outcome names no source.
    """
    story = read_tables(path)
    outcomes = measured(story, outcome)
    found = one_phase_effects(story, outcomes, seed=seed)
    answer: dict[str, Any] = {
        "outcome": outcomes.what,
        "num_phases": found.num_phases,
        "num_cut": int((story.was_cut() & story.is_random()).sum()),
        "p_value": found.p_value,
        "is_exact": found.is_exact,
        "sources": [
            {
                "source": name,
                "effect_per_0.1": None if np.isnan(found.slopes[i]) else 0.1 * found.slopes[i],
                "standard_error": None if np.isnan(found.slopes[i]) else 0.1 * found.errors[i],
                "p_value": None if np.isnan(found.slopes[i]) else found.p_values[i],
                "family_p_value": None if np.isnan(found.slopes[i]) else found.family_p_values[i],
            }
            for i, name in enumerate(story.names)
        ],
    }
    try:
        contrast = random_against_bandit(story, outcomes, carry_over=carry_over, seed=seed)
        answer["contrast"] = vars(contrast)
    except EvidenceError as error:
        answer["contrast"] = {"refused": str(error)}
    return answer


def measured(story: JournalTables, outcome: str) -> Outcomes:
    """Return the outcome of each phase.

    ``fall``: how much lower each source's mean loss is in the next phase than in the phase before, in nats, averaged
    over the sources drawn in both (``fall:SOURCE``: that source alone). The phase's own losses are left out: they are
    of the mixture itself. ``loss``: the mean loss of the next phase over the sources drawn in it; it says the same with
    the run's whole trend as noise.
    """
    kind, _, name = outcome.partition(":")
    if kind not in ("fall", "loss"):
        raise EvidenceError(f"outcome {outcome!r}: known are fall, loss, fall:SOURCE and loss:SOURCE")
    if name and name not in story.names:
        raise UnknownSourceError(f"outcome {outcome!r}: unknown source {name!r}{suggestion(name, story.names)}")
    losses = story.phase_losses()
    gap = np.full((1, len(story.names)), np.nan)
    before, after = np.concatenate([gap, losses[:-1]]), np.concatenate([losses[1:], gap])
    by_source = before - after if kind == "fall" else after
    if name:
        values = by_source[:, story.names.index(name)]
    else:
        known = ~np.isnan(by_source)
        sums = np.where(known, by_source, 0.0).sum(axis=1)
        values = np.divide(sums, known.sum(axis=1), out=np.full(len(sums), np.nan), where=known.any(axis=1))
    who = name or "each source drawn"
    what = f"fall of the loss of {who} over the phase" if kind == "fall" else f"loss of {who} in the next phase"
    return Outcomes(f"{what}, nats", values, _detrended(story, values))


def _detrended(story: JournalTables, values: Array) -> Array:
    """Return what a smooth trend and each regime's mean leave: neither looks at weights or kinds."""
    starts = np.array([phase["start"] for phase in story.phases], dtype=np.float64)
    regimes = story.regions()
    scaled = (starts + 100.0) / 100.0
    columns = [np.log(scaled), 1.0 / scaled, *(regimes == i for i in np.unique(regimes))]
    design, known = np.stack(columns, axis=1).astype(np.float64), ~np.isnan(values)
    if known.sum() <= design.shape[1]:
        return values
    coefficients = np.linalg.lstsq(design[known], values[known], rcond=None)[0]
    return np.asarray(values - design @ coefficients)


def one_phase_effects(story: JournalTables, outcomes: Outcomes, *, seed: int = 0) -> Effects:
    """Return the slope of the outcome on each source's weight over random phases.

    Phases that a live pivot cut short do not count: who cut them may have looked at what they did, and their mixture
    was in force for less than a phase. Each source by itself: the slope is the effect of a higher weight of it when
    the others give way as they do in a uniform draw. Weights are centred in each region that they were drawn from;
    permutations stay within one.

    Raises:
        EvidenceError: fewer than 20 usable random phases.
    """
    used = story.is_random() & ~story.was_cut() & ~np.isnan(outcomes.values)
    if used.sum() < MIN_PHASES:
        raise EvidenceError(_too_few(story, int(used.sum())))
    regimes = story.regions()[used]
    w, y = story.weights()[used], outcomes.adjusted[used]
    for regime in np.unique(regimes):
        members = regimes == regime
        w[members] -= w[members].mean(axis=0)
        y[members] -= y[members].mean()
    squares = (w**2).sum(axis=0)
    varies = squares > 1e-12
    x = w[:, varies]
    slopes, errors, found = _slopes(x, y)
    exceeded, largest, num, is_exact = _permuted(x, y, regimes, np.abs(found), seed=seed)
    one = 0 if is_exact else 1  # the identity is among all permutations; a random draw adds it
    columns = {"slopes": slopes, "errors": errors, "p_values": (exceeded + one) / (num + one)}
    columns["family_p_values"] = ((largest[:, None] >= np.abs(found) - 1e-12).sum(axis=0) + one) / (num + one)
    p_value = float(columns["family_p_values"].min()) if found.size else 1.0
    full = {key: _spread(values, varies) for key, values in columns.items()}
    return Effects(**full, p_value=p_value, num_phases=int(used.sum()), is_exact=is_exact)


def _spread(values: Array, where: BoolArray) -> Array:
    full = np.full(where.size, np.nan)
    full[where] = values
    return full


def _slopes(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return slopes, HC2 standard errors and t statistics of y on each column of centred x."""
    squares = (x**2).sum(axis=0)
    slopes = x.T @ y / squares
    residual = y[:, None] - x * slopes
    leverage = x**2 / squares + 1.0 / len(y)
    errors = np.sqrt((x**2 * residual**2 / np.maximum(1.0 - leverage, 1e-9)).sum(axis=0)) / squares
    return slopes, errors, _correlations(x, y)


def _correlations(x: Array, y: Array) -> Array:
    scale = np.sqrt((x**2).sum(axis=0) * (y @ y))
    return np.asarray(np.divide(x.T @ y, scale, out=np.zeros(x.shape[1]), where=scale > 0))


def _permuted(x: Array, y: Array, regimes: IntArray, found: Array, *, seed: int) -> tuple[IntArray, Array, int, bool]:
    """Return how often each permuted |correlation| reaches ``found``, the largest of each permutation, their number.

    All permutations within regimes are tried if they are few; else ``NUM_DRAWS`` random ones.
    """
    members = [np.flatnonzero(regimes == regime) for regime in np.unique(regimes)]
    num_all = math.prod(math.factorial(part.size) for part in members)
    is_exact = num_all <= EXACT_PERMUTATIONS
    orders: list[IntArray] = []
    if is_exact:
        orders = [np.arange(len(y))]
        for part in members:
            orders = [_placed(order, part, choice) for order in orders for choice in permutations(part.tolist())]
    rng = generator(seed, "effects.permutations")
    num = len(orders) if is_exact else NUM_DRAWS
    exceeded, largest = np.zeros(x.shape[1], dtype=np.int64), np.zeros(num)
    for i in range(num):
        if is_exact:
            order = orders[i]
        else:
            order = np.arange(len(y))
            for part in members:
                order[part] = rng.permutation(part)
        values = np.abs(_correlations(x, y[order]))
        exceeded += values >= found - 1e-12
        largest[i] = values.max(initial=0.0)
    return exceeded, largest, num, is_exact


def _placed(order: IntArray, places: IntArray, values: tuple[int, ...]) -> IntArray:
    new = order.copy()
    new[places] = values
    return new


def random_against_bandit(story: JournalTables, outcomes: Outcomes, *, carry_over: int = 1, seed: int = 0) -> Contrast:
    """Return the switchback contrast of Bojinov, Simchi-Levi and Zhao (arXiv 2009.00148).

    A phase counts if its kind and the ``carry_over`` kinds before it agree, weighted by one over the probability of
    that. The coins are redrawn with the probabilities in the journal for the p-value.

    Raises:
        EvidenceError: no coin was tossed, or too few runs of random phases.
    """
    if carry_over < 0:
        raise EvidenceError(f"carry-over is {carry_over} phases; it is 0 or more")
    kinds = np.array([phase["kind"] for phase in story.phases])
    chance = np.array([phase["probability_random"] for phase in story.phases])
    if "bandit" not in kinds or "random" not in kinds:
        only = kinds[0] if kinds.size else "no"
        raise EvidenceError(f"this walk has {only} phases alone: there is nothing to contrast random phases with")
    tossed = (chance > 0) & (chance < 1) & ~story.was_cut()
    width = carry_over + 1
    windows = np.array([tossed[max(p - carry_over, 0) : p + 1].all() and p >= carry_over for p in range(kinds.size)])
    windows &= ~np.isnan(outcomes.values)
    is_random = kinds == "random"
    y = np.where(windows, outcomes.adjusted, 0.0)
    y[windows] -= y[windows].mean() if windows.any() else 0.0
    all_random, all_bandit = _agreeing(is_random[None, :], width)[0], _agreeing(~is_random[None, :], width)[0]
    num_random, num_bandit = int((all_random & windows).sum()), int((all_bandit & windows).sum())
    if num_random < MIN_WINDOWS or num_bandit < MIN_WINDOWS:
        raise EvidenceError(
            f"{num_random} runs of {width} random phases and {num_bandit} of {width} bandit phases, at least "
            f"{MIN_WINDOWS} of each are needed; {_more_steps(story, MIN_WINDOWS - num_random, chance, width)}"
        )
    up, down = _log_product(chance, width), _log_product(1.0 - chance, width)
    weights = (windows / windows.sum()) * y

    def estimate(random: BoolArray) -> Array:
        gain = np.where(_agreeing(random, width), np.exp(-up), 0.0) - np.where(
            _agreeing(~random, width), np.exp(-down), 0.0
        )
        return np.asarray(gain @ weights)

    difference = float(estimate(is_random[None, :])[0])
    rng, drawn = generator(seed, "effects.coins"), []
    for _ in range(0, NUM_DRAWS, 250):
        coins = rng.random((250, kinds.size)) < chance
        drawn.append(estimate(coins))
    null = np.concatenate(drawn)[:NUM_DRAWS]
    reached = int((np.abs(null) >= abs(difference) - 1e-15).sum())
    return Contrast(difference, float(null.std()), (reached + 1) / (null.size + 1), num_random, num_bandit, carry_over)


def _agreeing(flags: BoolArray, width: int) -> BoolArray:
    """Return whether each phase and the ``width - 1`` before it are all set, [draws, P]; False at the beginning."""
    result = flags.copy()
    for shift in range(1, width):
        result[:, shift:] &= flags[:, :-shift]
        result[:, :shift] = False
    return result


def _log_product(chance: Array, width: int) -> Array:
    """Return the log of the product of the last ``width`` probabilities, [P]."""
    logs = np.log(np.clip(chance, 1e-300, 1.0))
    total = logs.copy()
    for shift in range(1, width):
        total[shift:] += logs[:-shift]
    return np.asarray(np.maximum(total, -600.0))


def _too_few(story: JournalTables, num: int) -> str:
    chance = np.array([phase["probability_random"] for phase in story.phases])
    kinds = {phase["kind"] for phase in story.phases}
    if story.phases and "random" not in kinds:
        return (
            f"this walk has no random phase, and at least {MIN_PHASES} are needed: only they are drawn independently "
            "of the model; a run with phases.random_probability above 0 has them under policy ucb or andrea, and under "
            "policy water_filling with random_phases: true"
        )
    return (
        f"{num} random phases have an outcome, at least {MIN_PHASES} are needed; "
        f"{_more_steps(story, MIN_PHASES - num, chance, 1)}"
    )


def _more_steps(story: JournalTables, missing: int, chance: Array, width: int) -> str:
    """Say about how many more steps give ``missing`` more runs of ``width`` random phases."""
    if not story.phases:
        return "the journal has no phase yet"
    curriculum = Curriculum(**story.header["curriculum"])
    share = curriculum.phases.random_probability if curriculum.policy.name != "random" else 1.0
    if share == 0 or missing <= 0:
        return "raise phases.random_probability in the next run, or let fewer phases matter with a smaller carry-over"
    steps = missing / share**width * float(story.lengths().mean())
    return f"at a probability of {share:g} that takes about {steps:,.0f} more steps, with reports"
