"""Watches each source's losses for what is learned by heart: a cliff in one report, a drift over many, or a gap.

What is expected of a source is the line of its loss against the logarithm of its tokens, fitted to all earlier
observations (``policies/learnability.py`` has the same line); what a decision learns of a source is one observation.
Nothing but the reports that decisions use is looked at, so alarms come out the same in any order of arrival, and again
in a replay. ``docs/adr/0008-guard.md`` says why, ``benchmarks/README.md`` has the rates.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mixer.config.pivots import ScheduledPivot
from mixer.config.policy import GuardConfig
from mixer.errors import MixerError, PivotError
from mixer.journal.words import alarm_in_words
from mixer.losses import SourceLosses, add_losses
from mixer.policies.regression import SUMS, with_point
from mixer.region.regimes import IN_ALARM, OUT_OF_REACH, Regime, regime_at
from mixer.system.rounding import rounded
from mixer.types import Array, BoolArray, State
from mixer.walk.gap import COARSE as COARSE_GAP
from mixer.walk.gap import look_at_gap
from mixer.walk.reports import ReportSum, lower
from mixer.walk.schedule import Schedule

log = logging.getLogger(__name__)

KAPPA, TAU_0 = 1.5, 100.0  # forgetting in log time, as the learnability index has it by default
MIN_POINTS = 3  # observations before a line has a slope
LEAST_SPREAD = 1e-3  # of the expected loss: losses that agree better than that are not worth an alarm
MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
MEDIAN_GAIN = 2.0 / 0.4287  # over the window: the step of a running median that varies as one over the window does;
# 0.4287 is the density of ln|r| at its median for normal r
MAX_Z = 4.0  # a single observation adds at most this to a drift: falls count by lasting
GUARD_IS_OFF = "the {} is of a run with a guard, but this curriculum turns it off; leave `guard: off` out"
MIN_TIDE, TIDE_RATE = 4, 0.1  # fewer sources have no common movement; without a tide 57 of 64 alarmed as losses decayed
CLIFF, DRIFT, GAP = 1, 2, 4  # bits of ``alarms``
NAMES = (  # of the state's arrays [K]; "tide" [1] is one more
    "tokens", "weight", "mean_x", "mean_y", "sxx", "sxy", "spread", "fall", "observations", "low_at", "alarms",
)  # fmt: skip
COARSE = ("weight", "mean_x", "mean_y", "sxx", "sxy", "spread", "fall")  # those that are no counts


@dataclass(frozen=True)
class Alarm:
    """A source that has begun to be learned by heart, as far as its losses can say.

    Attributes:
        source: its position.
        detector: what found it.
        step: of the report that fell off the cliff; otherwise the newest step learned from.
        loss: that report's mean loss, or the newest observation's, nats per token.
        expected: what was expected of it.
        z: (loss - expected) / spread.
        epochs: how often the source's tokens were seen; None where it is not known how many it has.
        held_out: the loss of its held-out rows, for a gap.
    """

    source: int
    detector: Literal["cliff", "drift", "gap"]
    step: int
    loss: float
    expected: float
    z: float
    epochs: float | None
    held_out: float | None = None

    def record(self, name: str, *, decided_before: int) -> dict[str, Any]:
        """Return the line of a journal, but for what was done about it."""
        return {
            "type": "alarm",
            "step": self.step,
            "decided_before": decided_before,
            "source": name,
            "detector": self.detector,
            "loss": self.loss,
            "expected": self.expected,
            "z": self.z,
            "epochs": self.epochs,
            **({} if self.held_out is None else {"held_out": self.held_out}),
        }


class Guard:
    """The detectors of a run; what they know of each source is a ``State`` that they take and return.

    With l the loss of an observation of m rows and s the spread of a row (1.4826 times a running median of
    ``sqrt(m) |l - expected|``), ``z = (l - expected) sqrt(m) / s``:

        cliff: the lowest report of the observation has z < -cliff_z and l < cliff_ratio * expected; an alarm at the
               second within ``cliff_within`` observations, or at the first once the source has been read through
        drift: fall <- max(0, fall - (clip(z, -4, 4) - min(0, tide)) - drift_k); an alarm when it exceeds drift_h

    The tide is a running mean (rate 0.1) of the median z of the sources judged, if there are at least 4: what lowers
    every loss at once, such as a falling learning rate, is not learned by heart.

    The gap between held-out and training loss is another module's (``gap.py``); a source of a known number of tokens is
    judged for it only once it was read through.

    A cliff's alarm ends after ``cliff_within`` observations without another; a drift's when its sum, held at drift_h,
    is back at 0.

    Args:
        config: thresholds.
        first_tokens: tokens of a batch, n_0 of the line's axis ``ln(N + n_0)``.
    """

    def __init__(self, config: GuardConfig, first_tokens: int) -> None:
        self.config = config
        self._n_0 = float(first_tokens)
        self._least_gain = MEDIAN_GAIN / config.window

    def initial(self, num_sources: int) -> State:
        """Return no observations."""
        return initial_guard_state(num_sources)

    @staticmethod
    def in_alarm(state: State) -> BoolArray:
        """Return which sources are in alarm, [K]."""
        return np.asarray(state["alarms"] > 0)

    def look(
        self,
        state: State,
        used: Sequence[ReportSum],
        probe: SourceLosses | None = None,
        *,
        since: int,
        until: int,
        unique_tokens: Array,
    ) -> tuple[State, list[Alarm]]:
        """Return the state after one observation of each source with rows, and the alarms that begin.

        Args:
            state: before.
            used: what the decision learns from.
            probe: the newest held-out losses that it learns from, of the K sources; None if there are none.
            since: first step of the phase decided last.
            until: first step of the phase to decide now.
            unique_tokens: distinct tokens of each source, 0 where unknown, [K].
        """
        if not used and not np.count_nonzero(state["observations"]):
            return state, []  # there is nothing to forget
        kept = ((since + TAU_0) / (until + TAU_0)) ** KAPPA
        state = {**state, **{name: state[name] * kept for name in SUMS}}
        if not used:
            return state, []
        losses = add_losses([reports.losses for reports in used])
        m, seen = losses.rows.astype(np.float64), losses.rows > 0
        x = np.where(seen, np.log(state["tokens"] + losses.tokens / 2 + self._n_0), state["mean_x"])
        loss = np.where(seen, losses.means(), state["mean_y"])
        expected = _expected(state, x)
        new = with_point(state, x=x, y=loss, m=m)
        new["tokens"] = state["tokens"] + losses.tokens
        new["observations"] = state["observations"] + seen
        new["spread"] = self._spread(state, np.where(seen, np.sqrt(m), 0.0), loss, expected)
        judged = seen & (state["observations"] >= self.config.min_observations)
        epochs = np.divide(new["tokens"], unique_tokens, out=np.zeros_like(m), where=unique_tokens > 0)
        gap = None
        if probe is not None:
            repeats = judged & ((epochs > 1.0) | (unique_tokens <= 0))
            gap = look_at_gap(self.config, state, probe, loss=loss, spread=_own(state["spread"], m), judged=repeats)
            new |= gap.arrays
        if not judged.any():
            return new, []
        lows = functools.reduce(lower, [reports.lows() for reports in used])
        low = np.divide(lows[0], lows[1], out=expected.copy(), where=lows[1] > 0)
        low_z = _z(low, expected, state["spread"], lows[2])
        z = _z(loss, expected, state["spread"], m)
        is_low = judged & (low_z < -self.config.cliff_z) & (low < self.config.cliff_ratio * expected)
        has_fallen = self._cliffs(new, state, is_low, epochs)
        has_drifted = self._drifts(new, state, judged, z)
        has_opened = _has(state, GAP) if gap is None else gap.begins | (_has(state, GAP) & gap.lasts)
        new["alarms"] = CLIFF * has_fallen + DRIFT * has_drifted + GAP * has_opened
        newest = max(reports.last_step for reports in used)
        begun = []
        for i in np.flatnonzero(has_fallen & ~_has(state, CLIFF)).tolist():
            begun.append(_alarm(i, "cliff", int(lows[3][i]), low, expected, low_z, epochs, unique_tokens))
        for i in np.flatnonzero(has_drifted & ~_has(state, DRIFT)).tolist():
            begun.append(_alarm(i, "drift", newest, loss, expected, z, epochs, unique_tokens))
        for i in np.flatnonzero(has_opened & ~_has(state, GAP)).tolist():
            assert gap is not None, "none opens without a probe"
            alarm = _alarm(i, "gap", newest, loss, gap.expected, gap.z, epochs, unique_tokens)
            begun.append(replace(alarm, held_out=float(gap.held_out[i])))
        return new, begun

    def _spread(self, state: State, root: Array, loss: Array, expected: Array) -> Array:
        """Return the running median of the residuals of rows: up by a little at a larger one, else down.

        Args:
            state: before; the first MIN_POINTS observations have no line to lie beside.
            root: square root of the rows, 0 for a source without, [K].
            loss: what was observed, [K].
            expected: what was expected, [K].
        """
        size = root * np.maximum(np.abs(loss - expected), LEAST_SPREAD * expected)
        number = np.maximum(state["observations"] - MIN_POINTS + 1.0, 1.0)
        gain = np.maximum(MEDIAN_GAIN / 2.0 / number, self._least_gain)  # as precise as any when there are few
        moved = state["spread"] * np.exp(gain * np.where(size > state["spread"], 0.5, -0.5))
        is_first = (state["spread"] == 0.0) & (size > 0)
        known = (root > 0) & (state["observations"] >= MIN_POINTS)
        return np.where(known, np.where(is_first, size, moved), state["spread"])

    def _cliffs(self, new: State, state: State, is_low: BoolArray, epochs: Array) -> BoolArray:
        """Note which sources had a low report, in ``new``; return which are in alarm for it, [K]."""
        number, last = new["observations"], state["low_at"]
        is_near = (last > 0) & (number - last <= self.config.cliff_within)
        new["low_at"] = np.where(is_low, number, last)
        lasts = _has(state, CLIFF) & (number - new["low_at"] <= self.config.cliff_within)
        return np.asarray(lasts | (is_low & (is_near | (epochs > 1.0))))

    def _drifts(self, new: State, state: State, judged: BoolArray, z: Array) -> BoolArray:
        """Add to the falls, in ``new``; return which sources are in alarm for theirs, [K]."""
        z, common = np.clip(z, -MAX_Z, MAX_Z), 0.0
        if np.count_nonzero(judged) >= MIN_TIDE:
            new["tide"] = state["tide"] + TIDE_RATE * (_median(z[judged]) - state["tide"])
            common = min(0.0, float(new["tide"][0]))
        fall = np.maximum(0.0, state["fall"] - (z - common) - self.config.drift_k)
        fall = np.where(judged, fall, state["fall"])
        begins = judged & (fall > self.config.drift_h)
        new["fall"] = np.minimum(fall, self.config.drift_h)
        return np.asarray(begins | (_has(state, DRIFT) & (fall > 0.0)))


def _alarm(
    i: int,
    detector: Literal["cliff", "drift", "gap"],
    step: int,
    loss: Array,
    expected: Array,
    z: Array,
    epochs: Array,
    unique_tokens: Array,
) -> Alarm:
    known = float(epochs[i]) if unique_tokens[i] > 0 else None
    return Alarm(i, detector, step, float(loss[i]), float(expected[i]), float(z[i]), known)


def _median(values: Array) -> float:
    """Return what ``np.median`` does of numbers that are no NaN, in a twentieth of the time."""
    ordered, middle = np.sort(values), values.size // 2
    return float(ordered[middle] if values.size % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def _has(state: State, bit: int) -> BoolArray:
    return (state["alarms"].astype(np.int64) & bit) > 0


def _expected(state: State, x: Array) -> Array:
    """Return where the line of each source stands at ``x``; without a slope, at its mean; never below 0."""
    has_slope = (state["observations"] >= MIN_POINTS) & (state["sxx"] > 0)
    slope = np.divide(state["sxy"], state["sxx"], out=np.zeros_like(x), where=has_slope)
    return np.maximum(state["mean_y"] + slope * (x - state["mean_x"]), 0.0)


def _z(loss: Array, expected: Array, spread: Array, rows: Array) -> Array:
    """Return residuals in spreads of their own rows; 0 where there is no spread yet."""
    own = _own(spread, rows)
    return np.divide(loss - expected, own, out=np.zeros_like(loss), where=own > 0)


def _own(spread: Array, rows: Array) -> Array:
    """Return the spread of the mean loss of so many rows, nats."""
    return np.asarray(MAD * spread / np.sqrt(np.maximum(rows, 1.0)))


def initial_guard_state(num_sources: int) -> State:
    """Return what a guard knows that has seen nothing."""
    return {**{name: np.zeros(num_sources) for name in NAMES}, "tide": np.zeros(1)}


def without(source: str, regimes: Sequence[Regime], step: int) -> ScheduledPivot:
    """Return the pivot that takes a source out of the region from ``step`` on, its floor asleep.

    Raises:
        PivotError: it is out already, or its region is one that ends when another source can be read again.
    """
    regime = regime_at(regimes, step)
    name = f"{IN_ALARM}{step}-{source}"[:100]
    if regime.region.upper[regime.region.names.index(source)] == 0.0:
        raise PivotError(f"{source} has weight 0 already")
    if regime.name.startswith(OUT_OF_REACH):
        raise PivotError(f"regime {regime.name} ends as soon as its source can be read again, which would end this too")
    if name in {other.name for other in regimes}:
        raise PivotError(f"there is a regime named {name} already")
    return ScheduledPivot.to(regime.bounds.without([source]), name=name, at_step=step)


@dataclass(eq=False)
class GuardOutcome:
    """What the guard saw before a decision, and what was done about it.

    Attributes:
        state: of the guard.
        plan: with the sources in alarm pivoted out, if that is to be done.
        alarms: their journal lines.
        lines: of the journal, alarms and their pivots; who decides adds the phase.
    """

    state: State
    plan: Schedule
    alarms: list[dict[str, Any]] = field(default_factory=list)
    lines: deque[dict[str, Any]] = field(default_factory=deque)

    def look(
        self,
        guard: Guard,
        used: Sequence[ReportSum],
        probes: Sequence[ReportSum],
        *,
        since: int,
        until: int,
        known: Array,
        replan: Callable[[Schedule, ScheduledPivot], Schedule],
    ) -> None:
        """Let the guard look at the reports that the phase from ``until`` on is decided on.

        Args:
            guard: of the run.
            used: the reports.
            probes: the held-out losses that it is decided on.
            since: the first step of the phase before.
            until: the first step of the phase that is decided.
            known: distinct tokens of each source, 0 where unknown, [K].
            replan: returns a plan with one more pivot, or raises why it cannot be.
        """
        probe = probes[-1].losses.first(known.size) if probes else None
        state, alarms = guard.look(self.state, used, probe, since=since, until=until, unique_tokens=known)
        if state is not self.state:
            self.state = _coarse(state)
        names = self.plan.curriculum.names
        for alarm in alarms:
            line = {**alarm.record(names[alarm.source], decided_before=until), "pivot": None, "why_not": None}
            self.alarms.append(line)
            self.lines.append(line)
            if guard.config.action == "suspend":
                self._suspend(line, until, replan)

    def _suspend(self, line: dict[str, Any], step: int, replan: Callable[[Schedule, ScheduledPivot], Schedule]) -> None:
        """Pivot a source in alarm out from ``step`` on, or note in its line why that cannot be."""
        try:
            pivot = without(line["source"], self.plan.regimes, step)
            self.plan = replan(self.plan, pivot)
        except MixerError as error:
            line["why_not"] = str(error)
            return
        line["pivot"] = pivot.name
        self.lines.append({"type": "pivot", "decided_before": step, **pivot.model_dump(mode="json")})


def _coarse(state: State) -> State:
    """Return the state with all but counts rounded to 11 digits: more say nothing here."""
    names = COARSE if "gap_pairs" not in state else (*COARSE, *COARSE_GAP)
    coarse = rounded(np.stack([state[name] for name in names]), 37)
    return {**state, **dict(zip(names, coarse, strict=True))}


def warn(alarm: dict[str, Any]) -> None:
    """Log an ``alarm`` line as a warning."""
    log.warning("alarm: %s", alarm_in_words(alarm))
