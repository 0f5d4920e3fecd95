"""The walk: which mixture the steps of a run draw, decided phase after phase.

``phase_at(step)`` decides one phase after the other until one covers ``step``. A phase that starts at step s is decided
from the reports of steps below ``s - lag`` that have arrived by then; nothing waits. Each decision is worked out
(``next_phase``), then journalled (``recorder``), then kept (``state``), so that a full disk leaves the walk as it was.
No clock and no random state is read: a curriculum, a seed and the reports give the same phases again.

A pivot may cut the newest phase short, or undo its decision; the reports that it used then count for the next one.
With a lag, a report belongs to the decision that was planned to use it when it came. A decision that comes sooner,
after a cut, leaves it for its own, unless a failure may suspend sources.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot, ScheduledPivot
from mixer.config.rules import resolved
from mixer.errors import ConfigError, StateMismatchError, StepError, UnknownSourceError
from mixer.journal.file import Journal
from mixer.journal.records import losses_to_record
from mixer.losses import SourceLosses, check_losses
from mixer.policies import Policy
from mixer.region.regimes import OUT_OF_REACH, Regime
from mixer.sampling.phases import Phase
from mixer.walk.deciders import Deciders
from mixer.walk.guard import GUARD_IS_OFF, warn
from mixer.walk.inbox import Inbox
from mixer.walk.limits import Limits
from mixer.walk.live_pivots import check_pivot_step, first_cut
from mixer.walk.next_phase import PhaseDecider
from mixer.walk.recorder import Recorder
from mixer.walk.schedule import PlannedStarts
from mixer.walk.silence import silence
from mixer.walk.state import STATE_VERSION, Decision, Learned, WalkState, check_state

Method = TypeVar("Method", bound=Callable[..., Any])
log = logging.getLogger(__name__)


def _one_at_a_time(method: Method) -> Method:
    """Let one thread in at a time: DataLoader workers and requests are answered in threads."""

    @functools.wraps(method)
    def locked(self: Walk, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            if self._begun is not None:  # the disk was full between its lines
                self._decide()
            return method(self, *args, **kwargs)

    return cast(Method, locked)


class Walk:
    """The sequence of phases of one run; one authority per run.

    Args:
        curriculum: the run.
        journal: where every decision, report and pivot is recorded; None keeps no record. The journal of a fork
            makes the walk begin where it left its parent.
        sources: for a new journal's header, what is known of the data: by source, a digest of files or a commit.
        policy: who chooses, instead of the policy that the curriculum names, or of all that it and its pivots name; no
            journal knows of it.
        on_alarm: told the ``alarm`` line of each alarm, once the decision that found it is in force; by default it is
            logged as a warning.
        on_silence: told in words, once, that the policy decides from losses and none was ever reported; by default that
            is logged as a warning.

    Raises:
        StateMismatchError: the journal belongs to another curriculum.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        journal: Journal | None = None,
        sources: Mapping[str, str] | None = None,
        policy: Policy | Deciders | None = None,
        on_alarm: Callable[[dict[str, Any]], None] | None = None,
        on_silence: Callable[[str], None] | None = None,
    ) -> None:
        self.curriculum = curriculum
        self.names = curriculum.names
        self._lock = threading.RLock()
        self._deciders = policy if isinstance(policy, Deciders) else Deciders(curriculum, own=policy)
        self._decider = PhaseDecider(curriculum, self._deciders, is_recorded=journal is not None)
        self._now = self._beginning()
        self._on_alarm = on_alarm or warn
        self._on_silence: Callable[[str], None] | None = on_silence or log.warning
        self._begun: Decision | None = None  # one that the journal has some lines of
        self._limits = Limits.of(curriculum)
        self._starts = PlannedStarts()
        self._recording = Recorder(journal, curriculum, sources or {})
        if self._recording.header is not None:
            self._follow_guard(self._recording.header["curriculum"].get("guard"), "journal")
        if self._recording.beginning is not None:
            self._go_on_from(self._recording.beginning)

    def _beginning(self) -> WalkState:
        """Return the state before the first phase."""
        run, deciders, guard = self.curriculum, self._deciders, self._decider.guard
        inbox = Inbox(
            len(self.names),
            batch_rows=run.batch_rows,
            is_by_step=deciders.is_by_step,
            # a source may be lost at any step: what a decision uses must not hang on which reports came before the cut
            in_sums=deciders.in_sums and not run.suspended_if_lost,
            is_guarded=guard is not None,
        )
        return WalkState(run, Learned(deciders.initial(), guard.initial(len(self.names)) if guard else {}), inbox)

    @property
    def forked_at(self) -> int | None:
        """The first step that this walk decided on its own, if it is a fork; else None."""
        return self._now.forked_at

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes planned now, live pivots included, in order of their first step."""
        return self._now.plan.regimes

    @property
    def frontier(self) -> int:
        """The first step that no phase covers yet."""
        return self._now.phases.frontier

    @property
    def forked_from(self) -> str | None:
        """Fingerprint of the curriculum that decided the steps before ``forked_at``; None unless the journal has it."""
        return self._recording.forked_from

    @property
    def can_pivot(self) -> bool:
        """Whether the region can be redrawn: yes, as this walk decides what comes."""
        return True

    @property
    def looks_at_losses(self) -> bool:
        """Whether decisions, now or in the regimes to come, rest on reported losses."""
        rules = self._now.plan.rules_from(self.frontier)
        return any(self._deciders.of(rule.policy).looks_at_losses for rule in rules if rule.policy is not None)

    @property
    def reported(self) -> dict[int, list[list[int]]]:
        """By rank, the steps that were reported: closed intervals in order, not to be changed."""
        return self._now.inbox.had

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return self._now.plan.regime_at(step)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, deciding it (and those before it) if need be.

        Raises:
            StepError: a negative step, or one whose phase is over for so long that only the journal has it.
        """
        newest = self._now.phases.newest
        if newest is not None and newest.start <= step < newest.end:  # nearly always
            return newest
        return self._older_or_next(step)

    @_one_at_a_time
    def _older_or_next(self, step: int) -> Phase:
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        while step >= self._now.phases.frontier:
            self._decide()
        return self._now.phases.at(step)

    @_one_at_a_time
    def first_cut(self, from_step: int) -> int:
        """Return the first step from ``from_step`` on that ``pivot`` may cut the newest phase at, else the frontier."""
        return first_cut(from_step, self._now)

    @_one_at_a_time
    def report(
        self, step: int, losses: SourceLosses, *, has_own_draws: bool = False, is_recorded: bool = False
    ) -> bool:
        """Take in what one rank saw in one step; return False, and change nothing, if it is known already.

        Args:
            step: which one.
            losses: of its rows, or of some of them: ranks may report parts, in all no more than the batch has.
            has_own_draws: the trainer draws by the weights itself, so that its batch need not be the one that this walk
                draws; it has ``batch_rows`` rows at most.
            is_recorded: it was accepted before, and a journal says it again: only what nobody could learn from is
                refused.

        Raises:
            InvalidLossError: a loss that is NaN, infinite, negative, or larger than any model's.
            FutureFeedbackError: a step that has not been handed out.
            RepeatedRowsError: rows that were reported before under another rank.
            FeedbackError: shapes or counts that cannot be, or rows that the batch does not have.
        """
        step = operator.index(step)  # plain data, also if numpy gave it
        check_losses(losses, self.names, step=step)
        newest = self._now.phases.check_reported(step)
        if self._now.inbox.has(step, losses.rank):
            return False
        if not is_recorded:
            self._limits.check(losses, self.names, step=step)
            drawn, told = None if has_own_draws else self._now.phases.drawn_at(step), self._now.inbox.told(step)
            if drawn is None or told is None or not (told + losses.rows <= drawn).all():  # seldom
                self._now.phases.check_drawn(step, losses)
                self._limits.check_left(losses, drawn, told, self.names, step=step)
        losses = losses.on_grid()
        self._recording.write({"type": "feedback", "step": step, **losses_to_record(losses)})
        last = max(step, self._now.inbox.last_step or 0)
        self._now.inbox.add(step, losses, cutoffs=self._cutoffs(last, newest))
        return True

    @_one_at_a_time
    def report_probe(self, step: int, losses: SourceLosses, *, is_recorded: bool = False) -> bool:
        """Take in the held-out losses of a probe; return False, and change nothing, if this rank's are known already.

        Args:
            step: that offers the probe.
            losses: of its rows, or of a rank's part of them, [K + M]: sources, then targets.
            is_recorded: as in ``report``.

        Raises:
            ProbeNotOfferedError: the step offers none, or one that is too old to be answered.
            InvalidLossError: a loss that is NaN, infinite, negative, or larger than any model's.
            FeedbackError: shapes or counts that cannot be, or more rows than the probe has.
        """
        step = operator.index(step)
        check_losses(losses, self.curriculum.probed_names, step=step)
        if self._now.probes.has(step, losses.rank):
            return False
        if not is_recorded:
            self._now.probes.check(step, losses)
        losses = losses.on_grid()
        self._recording.write({"type": "probe", "step": step, **losses_to_record(losses)})
        self._now.probes.add(step, losses)
        return True

    def has_probe(self, step: int, rank: int) -> bool:
        """Return whether a rank has answered the probe of a step; ProbeNotOfferedError if the step offers none."""
        return self._now.probes.has(step, rank)

    def probe_step(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offers a probe; None if none does."""
        return self._now.probes.newest(until)

    def has_report(self, step: int, rank: int) -> bool:
        """Return whether a rank has reported a step."""
        return self._now.inbox.has(step, rank)

    def _cutoffs(self, step: int, newest: Phase) -> list[int]:
        """Return the steps below which the decisions planned will use reports, up to the first that uses ``step``.

        Without a lag there are none: the next decision, planned or not, uses all that there is.
        """
        lag = self.curriculum.feedback_lag
        if lag == 0:
            return []
        return [start - lag for start in self._starts.beyond(step + lag, self._now.plan, newest)]

    @_one_at_a_time
    def pivot(self, pivot: Pivot, at_step: int | None = None, *, cut: bool = False) -> int:
        """Redraw the region from ``at_step`` (default: the end of the newest phase) and return that step.

        Args:
            pivot: the new bounds, and who decides under them.
            at_step: the first step under them.
            cut: allow a step that the newest phase covers. That phase then ends there, perhaps sooner than
                ``min_steps``; at its very first step its decision is undone. Batches composed from there on are void.

        Raises:
            PivotError: the step is decided already (with ``cut``: before the newest phase, or reported on), no whole
                phases reach it, the name is taken, a ramp is longer than its regime, or this run cannot take in the
                policy.
            InfeasibleRegionError, UnknownSourceError: the new bounds cannot be; nothing changes.
            WeightsError: weights written by hand that the bounds exclude.
            ConfigError: a policy that cannot decide in this run.
        """
        now = self._now
        step = self.frontier if at_step is None else operator.index(at_step)
        check_pivot_step(pivot.name, step, now, cut=cut)
        asked = resolved(pivot, self.curriculum.policy)
        new = ScheduledPivot(at_step=step, **asked.model_dump(exclude={"at_step"}))
        plan = self._deciders.with_pivot(now.plan, new, now=now)
        self._recording.write({"type": "pivot", "decided_before": self.frontier, **new.model_dump(mode="json")})
        if step < self.frontier:
            if pivot.name.startswith(OUT_OF_REACH):  # an audit knows what may be lost as the journal was begun
                now.inbox.keep_apart()
            now.cut(step)
        now.plan = plan
        return step

    @_one_at_a_time
    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Take in how many distinct tokens a source has, known once it was read through; a repetition discounts it."""
        self._check_name(name)
        if tokens <= 0:
            raise ConfigError(f"{name} has {tokens} distinct tokens; a source has at least one")
        i = self.names.index(name)
        if self._now.unique_tokens[i] == 0:  # what the curriculum says stands
            self._recording.write(
                {"type": "unique_tokens", "source": name, "tokens": tokens, "decided_before": self.frontier}
            )
            self._now.unique_tokens[i] = tokens

    @_one_at_a_time
    def note_skipped(self, name: str, record: str) -> None:
        """Write into the journal that a source left a record out, once for each record.

        Args:
            name: the source.
            record: where the record stands, and why it cannot be read.
        """
        self._check_name(name)
        if (name, record) not in self._now.skipped:
            self._recording.write(
                {"type": "skipped", "source": name, "record": record, "decided_before": self.frontier}
            )
            self._now.skipped[name, record] = None

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise UnknownSourceError(f"unknown source {name!r}; the sources are {', '.join(self.names)}")

    @_one_at_a_time
    def state_dict(self, from_step: int | None = None, *, can_undo: bool | None = None) -> dict[str, Any]:
        """Return all that shapes the rest of the walk, as plain data.

        Args:
            from_step: keep the phases that end after this step, not the newest alone.
            can_undo: keep what a pivot needs to undo the newest decision, which doubles the state; by default only if
                ``from_step`` is not given.
        """
        has_guard = self._decider.guard is not None
        record = self._now.to_record(has_guard=has_guard, from_step=from_step, can_undo=can_undo)
        return {**record, **self._recording.place()}

    @_one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a journal that is open goes on from the line it had then.

        Raises:
            StateMismatchError: a state of another version or curriculum, naming both.
        """
        check_state(state, version=STATE_VERSION, fingerprint=self.curriculum.fingerprint, what="walk state")
        self._recording.go_on_from(state)
        self._go_on_from(state)

    def has_recorded(self, state: Mapping[str, Any]) -> bool:
        """Whether ``state`` was taken at a line that this walk's journal has."""
        return self._recording.has(state)

    def is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state of the curriculum of ``forked_from``, which a fork may keep, is the parent's."""
        return self.forked_from != self.curriculum.fingerprint or not self.has_recorded(state)

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        self._follow_guard(state["guard"], "saved state")
        self._now.restore(state, has_guard=self._decider.guard is not None)
        self._begun = None

    def _follow_guard(self, guard: object, what: str) -> None:
        """Go on as the run began: without a guard if it had none."""
        if guard is None:
            self._decider.guard, self._now.inbox.is_guarded = None, False
            self._now.learned = replace(self._now.learned, guard={})
        elif self._decider.guard is None:
            raise StateMismatchError(GUARD_IS_OFF.format(what))

    def close_journal(self) -> None:
        """Let go of the journal, in a copy of the process that does not decide."""
        self._recording.close()

    def _decide(self) -> None:
        """Decide the next phase: work it out, journal it, keep it."""
        now = self._now
        decision = self._begun or self._decider.decide(now)
        seen, phase = decision.seen, decision.phase
        while seen.lines:
            self._recording.write(seen.lines[0])
            seen.lines.popleft()
            self._begun = decision
        self._begun = None
        now.keep(decision)
        for alarm in seen.alarms:
            self._on_alarm(alarm)
        if decision.limited:
            self._decider.epochs.warn(decision.limited, phase.start, now.unique_tokens)
        if self._on_silence and not now.inbox.had:
            decider = now.plan.rule_at(phase.start).policy
            told = silence(self.curriculum, phase.kind, phase.start, None if decider is None else decider.name)
            if told is not None:
                self._on_silence(told)
                self._on_silence = None
