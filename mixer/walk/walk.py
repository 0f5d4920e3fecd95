"""The walk: (curriculum, seed, feedback) -> phases. Tiny, pure of clocks and files, exact on resume.

``phase_at(step)`` decides phases one after the other up to the one that covers ``step``. A phase that starts at step s
is decided from feedback of steps below ``s - lag`` that has arrived, and nothing waits. Each decision is worked out
first, journalled second and kept third, so a full disk leaves the walk where it was. A pivot may cut the newest phase
short, or undo its decision: what it had learned from is kept until the next one. Reports within a lag belong to the
decisions planned when they came: a decision that comes sooner, after a cut, leaves those of a later one, unless sources
may be suspended.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot, ScheduledPivot
from mixer.config.rules import Rule, policies_of, resolved
from mixer.errors import (
    ConfigError,
    PivotError,
    StateMismatchError,
    StepError,
    UnknownSourceError,
)
from mixer.journal.file import Journal
from mixer.journal.records import losses_to_record
from mixer.losses import SourceLosses, check_losses
from mixer.policies import Choice, Policy
from mixer.region.regimes import OUT_OF_REACH, Regime
from mixer.region.region import Region
from mixer.sampling.phases import Kind, Phase
from mixer.sampling.randomness import passing_generator
from mixer.types import Array, State
from mixer.walk.decided import DecidedPhases
from mixer.walk.deciders import Deciders, check_live_rule
from mixer.walk.decision import Before, Decision, home_of, home_record
from mixer.walk.epochs import EpochLimits
from mixer.walk.eta_decay import eta_in_force
from mixer.walk.guard import GUARD_IS_OFF, Guard, GuardOutcome, warn
from mixer.walk.inbox import Inbox
from mixer.walk.limits import Limits
from mixer.walk.probes import ProbeInbox
from mixer.walk.recorder import Recorder, decision_record
from mixer.walk.reports import ReportSum
from mixer.walk.schedule import PlannedStarts, Schedule
from mixer.walk.silence import silence
from mixer.walk.state import STATE_VERSION, check_state, to_arrays, to_lists
from mixer.walk.written import rule_record, written_weights

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

    Attributes:
        forked_at: the first step that this walk decided on its own, if it is a fork; else None.

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
        self.forked_at: int | None = None
        self._lock = threading.RLock()
        self._deciders = policy if isinstance(policy, Deciders) else Deciders(curriculum, own=policy)
        self._plan = Schedule.of(curriculum)
        self._phases = DecidedPhases(curriculum)
        self._policy_state = self._deciders.initial()
        self._guard = None if curriculum.guard is None else Guard(curriculum.guard, curriculum.batch_tokens)
        self._guard_state = self._guard.initial(len(self.names)) if self._guard else {}
        self._on_alarm = on_alarm or warn
        self._on_silence: Callable[[str], None] | None = on_silence or log.warning
        self._begun: Decision | None = None  # one that the journal has some lines of
        self._limits = Limits.of(curriculum)
        self._inbox = Inbox(
            len(self.names),
            batch_rows=curriculum.batch_rows,
            is_by_step=self._deciders.is_by_step,
            # a source may be lost at any step: what a decision uses must not hang on which reports came before the cut
            in_sums=self._deciders.in_sums and not curriculum.suspended_if_lost,
            is_guarded=self._guard is not None,
        )
        self._probes = ProbeInbox(curriculum)
        self._skipped: dict[tuple[str, str], None] = {}  # records that were left out, in order
        self._unique_tokens = np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)
        self._epochs = EpochLimits(curriculum)
        self._returns = curriculum.phases.after_random == "return"
        self._home: Array | None = None  # in an excursion, where the walk goes on from
        self._starts = PlannedStarts()
        self._before: Before | None = None  # of the newest phase, unless that was undone
        self._recording = Recorder(journal, curriculum, sources or {})
        if self._recording.header is not None:
            self._follow_guard(self._recording.header["curriculum"].get("guard"), "journal")
        if self._recording.beginning is not None:
            self._stand_at(self._recording.beginning)

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes planned now, live pivots included, in order of their first step."""
        return self._plan.regimes

    @property
    def frontier(self) -> int:
        """The first step that no phase covers yet."""
        return self._phases.frontier

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
        rules = self._plan.rules_from(self.frontier)
        return any(self._deciders.of(rule.policy).looks_at_losses for rule in rules if rule.policy is not None)

    @property
    def reported(self) -> dict[int, list[list[int]]]:
        """By rank, the steps that were reported: closed intervals in order, not to be changed."""
        return self._inbox.had

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return self._plan.regime_at(step)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, deciding it (and those before it) if need be.

        Raises:
            StepError: a negative step, or one whose phase is over for so long that only the journal has it.
        """
        newest = self._phases.newest
        if newest is not None and newest.start <= step < newest.end:  # nearly always
            return newest
        return self._older_or_next(step)

    @_one_at_a_time
    def _older_or_next(self, step: int) -> Phase:
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        while step >= self._phases.frontier:
            self._decide()
        return self._phases.at(step)

    @_one_at_a_time
    def first_cut(self, from_step: int) -> int:
        """Return the first step from ``from_step`` on that ``pivot`` may cut the newest phase at, else the frontier."""
        reported = self._inbox.last_step
        earliest = max(from_step, self._earliest_cut(), 1, 0 if reported is None else reported + 1)
        return next((s for s in range(earliest, self.frontier) if self._plan.fits_from(s)), self.frontier)

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
        newest = self._phases.check_reported(step)
        if self._inbox.has(step, losses.rank):
            return False
        if not is_recorded:
            self._limits.check(losses, self.names, step=step)
            drawn, told = None if has_own_draws else self._phases.drawn_at(step), self._inbox.told(step)
            if drawn is None or told is None or not (told + losses.rows <= drawn).all():  # seldom
                self._phases.check_drawn(step, losses)
                self._limits.check_left(losses, drawn, told, self.names, step=step)
        losses = losses.on_grid()
        self._recording.write({"type": "feedback", "step": step, **losses_to_record(losses)})
        last = max(step, self._inbox.last_step or 0)
        self._inbox.add(step, losses, cutoffs=self._cutoffs(last, newest))
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
        if self._probes.has(step, losses.rank):
            return False
        if not is_recorded:
            self._probes.check(step, losses)
        losses = losses.on_grid()
        self._recording.write({"type": "probe", "step": step, **losses_to_record(losses)})
        self._probes.add(step, losses)
        return True

    def has_probe(self, step: int, rank: int) -> bool:
        """Return whether a rank has answered the probe of a step; ProbeNotOfferedError if the step offers none."""
        return self._probes.has(step, rank)

    def probe_step(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offers a probe; None if none does."""
        return self._probes.newest(until)

    def has_report(self, step: int, rank: int) -> bool:
        """Return whether a rank has reported a step."""
        return self._inbox.has(step, rank)

    def _cutoffs(self, step: int, newest: Phase) -> list[int]:
        """Return the steps below which the decisions planned will use reports, up to the first that uses ``step``.

        Without a lag there are none: the next decision, planned or not, uses all that there is.
        """
        lag = self.curriculum.feedback_lag
        if lag == 0:
            return []
        return [start - lag for start in self._starts.beyond(step + lag, self._plan, newest)]

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
        step = self.frontier if at_step is None else operator.index(at_step)
        self._check_pivot_step(pivot.name, step, cut=cut)
        asked = resolved(pivot, self.curriculum.policy)
        new = ScheduledPivot(at_step=step, **asked.model_dump(exclude={"at_step"}))
        plan = self._replanned(self._plan, new)
        self._recording.write({"type": "pivot", "decided_before": self.frontier, **new.model_dump(mode="json")})
        if step < self.frontier:
            if pivot.name.startswith(OUT_OF_REACH):  # an audit knows what may be lost as the journal was begun
                self._inbox.keep_apart()
            self._cut(step)
        self._plan = plan
        return step

    def _replanned(self, plan: Schedule, new: ScheduledPivot) -> Schedule:
        """Return a plan with one more pivot, or raise as ``pivot`` does."""
        check_live_rule(self.curriculum, new, is_by_step=self._deciders.is_by_step)
        policies = policies_of(self.curriculum, [*plan.live_pivots, new])

        def check(regime: Regime, rule: Rule) -> None:  # a policy may have bounds of its own
            if rule.policy is not None:
                inside = regime.region.project(regime.region.lower)
                memory = self._deciders.memory(self._policy_state, policies, rule.policy)
                self._deciders.of(rule.policy).choose(memory, regime.region, inside, self._unique_tokens)

        return plan.with_pivot(new, frontier=self.frontier, check=check)

    def _check_pivot_step(self, name: str, step: int, *, cut: bool) -> None:
        if self._plan.has_name(name):
            raise PivotError(f"there is a regime named {name} already; give the pivot another name")
        earliest = self.frontier
        if cut and self._phases.newest:
            earliest, reported = self._earliest_cut(), self._inbox.last_step
            if reported is not None and earliest <= step <= reported:
                raise PivotError(
                    f"pivot {name} at step {step}: losses of step {reported} were reported, so it was trained on as it "
                    f"was; ask for step {reported + 1} or later"
                )
        if step < earliest:
            decided = f"phases {'before the newest ' if cut else ''}are decided up to step {earliest - 1}"
            newest = self._phases.newest
            hint = "" if cut or newest is None else f", or cut the newest phase from step {newest.start} on"
            raise PivotError(f"pivot {name} at step {step}: {decided}; ask for step {earliest} or later{hint}")
        if step == 0:
            raise PivotError(f"pivot {name} at step 0: write its bounds into the curriculum instead")

    def _earliest_cut(self) -> int:
        """The first step of the newest phase that a cut may take: a second pivot may not undo what lies before it."""
        newest = self._phases.newest
        start = newest.start + (self._before is None) if newest else 0
        return max(start, self.forked_at or 0)  # what is shared with the parent stays

    def _cut(self, step: int) -> None:
        """End the newest phase at ``step``; without a step left it was never decided."""
        newest = self._phases.newest
        assert newest is not None, "checked before"
        self._phases.cut(step)
        if step == newest.start:
            assert self._before is not None, "checked before"
            self._policy_state, self._guard_state = self._before.policy_state, self._before.guard_state
            self._inbox.put_back(self._before.used)
            self._probes.put_back(self._before.probes)
            self._home = self._before.home
            self._before = None

    @_one_at_a_time
    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Take in how many distinct tokens a source has, known once it was read through; a repetition discounts it."""
        if name not in self.names:
            raise UnknownSourceError(f"unknown source {name!r}; the sources are {', '.join(self.names)}")
        if tokens <= 0:
            raise ConfigError(f"{name} has {tokens} distinct tokens; a source has at least one")
        i = self.names.index(name)
        if self._unique_tokens[i] == 0:  # what the curriculum says stands
            self._recording.write(
                {"type": "unique_tokens", "source": name, "tokens": tokens, "decided_before": self.frontier}
            )
            self._unique_tokens[i] = tokens

    @_one_at_a_time
    def note_skipped(self, name: str, record: str) -> None:
        """Write into the journal that a source left a record out, once for each record.

        Args:
            name: the source.
            record: where the record stands, and why it cannot be read.
        """
        if name not in self.names:
            raise UnknownSourceError(f"unknown source {name!r}; the sources are {', '.join(self.names)}")
        if (name, record) not in self._skipped:
            self._recording.write(
                {"type": "skipped", "source": name, "record": record, "decided_before": self.frontier}
            )
            self._skipped[name, record] = None

    @_one_at_a_time
    def state_dict(self, from_step: int | None = None, *, can_undo: bool | None = None) -> dict[str, Any]:
        """Return all that shapes the rest of the walk, as plain data.

        Args:
            from_step: keep the phases that end after this step, not the newest alone.
            can_undo: keep what a pivot needs to undo the newest decision, which doubles the state; by default only if
                ``from_step`` is not given.
        """
        can_undo = from_step is None if can_undo is None else can_undo
        before = self._before if can_undo else None
        return {
            "version": STATE_VERSION,
            "fingerprint": self.curriculum.fingerprint,
            "phases": self._phases.state(num_newest=2 if can_undo else 1, from_step=from_step),
            "policy": to_lists(self._policy_state),
            "guard": to_lists(self._guard_state) if self._guard else None,
            "inbox": self._inbox.state_dict(),
            "before": before and before.to_record(),
            **({"probes": self._probes.state_dict()} if self.curriculum.probes else {}),
            **home_record(self._home),
            "unique_tokens": self._unique_tokens.tolist(),
            "skipped": [[*skipped] for skipped in self._skipped],
            "live_pivots": [pivot.model_dump(mode="json") for pivot in self._plan.live_pivots],
            "forked_at": self.forked_at,
            **self._recording.place(),
        }

    @_one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a journal that is open goes on from the line it had then.

        Raises:
            StateMismatchError: a state of another version or curriculum, naming both.
        """
        check_state(state, version=STATE_VERSION, fingerprint=self.curriculum.fingerprint, what="walk state")
        self._recording.go_on_from(state)
        self._stand_at(state)

    def has_recorded(self, state: Mapping[str, Any]) -> bool:
        """Whether ``state`` was taken at a line that this walk's journal has."""
        return self._recording.has(state)

    def is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state of the curriculum of ``forked_from``, which a fork may keep, is the parent's."""
        return self.forked_from != self.curriculum.fingerprint or not self.has_recorded(state)

    def _stand_at(self, state: Mapping[str, Any]) -> None:
        self.forked_at = state["forked_at"]
        self._plan = Schedule.of(self.curriculum, [ScheduledPivot(**record) for record in state["live_pivots"]])
        self._policy_state = to_arrays(state["policy"])
        self._follow_guard(state["guard"], "saved state")
        self._guard_state = to_arrays(state["guard"]) if self._guard else {}
        self._inbox.load_state_dict(state["inbox"])
        before = state["before"]
        self._before = before and Before.of(before, len(self.names), len(self.curriculum.probed_names))
        self._probes.load_state_dict(state.get("probes") if self.curriculum.probes else None)
        self._home = home_of(state)
        self._begun = None
        self._unique_tokens = np.array(state["unique_tokens"], dtype=np.float64)
        self._skipped = dict.fromkeys((name, record) for name, record in state["skipped"])
        self._phases = DecidedPhases.of(self.curriculum, state["phases"])

    def _follow_guard(self, guard: object, what: str) -> None:
        """Go on as the run began; without a guard if there was none, as before there were any."""
        if guard is None:
            self._guard, self._guard_state, self._inbox.is_guarded = None, {}, False
        elif self._guard is None:
            raise StateMismatchError(GUARD_IS_OFF.format(what))

    def close_journal(self) -> None:
        """Let go of the journal, in a copy of the process that does not decide."""
        self._recording.close()

    def _decide(self) -> None:
        """Decide the next phase: work it out, journal it, keep it."""
        decision = self._begun or self._next_decision()
        seen = decision.seen
        while seen.lines:
            self._recording.write(seen.lines[0])
            seen.lines.popleft()
            self._begun = decision
        self._begun = None
        self._inbox.drop(decision.used)
        self._probes.drop(decision.probes)
        self._before = Before(self._policy_state, self._guard_state, decision.used, decision.probes, self._home)
        self._home = decision.home
        self._policy_state, self._guard_state = decision.policy_state, seen.state
        self._plan = seen.plan
        self._phases.keep(decision.phase)
        self._probes.offer(decision.phase)
        for alarm in seen.alarms:
            self._on_alarm(alarm)
        if decision.limited:
            self._epochs.warn(decision.limited, decision.phase.start, self._unique_tokens)
        if self._on_silence and not self._inbox.had:
            decider = self._plan.rule_at(decision.phase.start).policy
            name = None if decider is None else decider.name
            told = silence(self.curriculum, decision.phase.kind, decision.phase.start, name)
            if told is not None:
                self._on_silence(told)
                self._on_silence = None

    def _next_decision(self) -> Decision:
        newest = self._phases.newest
        start, index, since = self.frontier, self._phases.next_index, newest.start if newest else 0
        used = self._inbox.ready(start - self.curriculum.feedback_lag)
        probes = self._probes.ready(start - self.curriculum.feedback_lag)
        seen = GuardOutcome(self._guard_state, self._plan)
        if self._guard is not None:
            known = self._unique_tokens
            seen.look(self._guard, used, probes, since=since, until=start, known=known, replan=self._replanned)
        regime = seen.plan.regime_at(start)
        is_new_regime = newest is None or start in (regime.start, self.forked_at)
        length = seen.plan.length_at(start, index)
        rule, region, known = seen.plan.rule_at(start), regime.region, self._unique_tokens
        before = self._phases.weights if self._home is None else self._home
        limited = self._epochs.at(region, self._phases, length=length, unique_tokens=known, policy=rule.policy)
        if limited is None:
            is_moved = is_new_regime and not (start == self.forked_at and _is_inside(before, region))
        else:
            region = limited.region
            is_moved = not region.contains(before)
        landed = region.project(before) if is_moved else before  # a fork begins where it was

        learned = self._learned(seen.plan, used, probes, since=since, until=start)
        if rule.policy is None:
            kind: Kind = "fixed"
            choice = Choice(written_weights(rule, region, landed=landed, newest=newest, start=start, length=length))
            chance = 0.0
        else:
            policy = self._deciders.of(rule.policy)
            chance = self._probability_random(policy, index)
            memory = self._deciders.memory(learned, seen.plan.policies, rule.policy)
            kind, choice = self._choose(policy, memory, index, region, landed, seen.state)
        eta = eta_in_force(seen.plan, start) if kind == "bandit" else None
        if eta is not None:
            choice = replace(choice, weights=region.step(landed, choice.weights, eta[1]))
        phase = self._phases.following(length=length, kind=kind, regime=regime.name, weights=choice.weights)
        if self._recording.is_on:
            line = decision_record(
                phase,
                regime,
                choice,
                region=region,
                before=before,
                landed=landed if is_new_regime or is_moved else None,
                is_new_regime=is_new_regime,
                limited=limited,
                eta=eta and eta[0],
                rule=rule_record(self.curriculum, rule, region, start),
                boundary=seen.plan.boundary_after(start),
                probability_random=chance,
                counts=self._phases.counts(phase)[0],
                used=used,
                probes=probes,
            )
            seen.lines.append(line)
        home = landed if self._returns and kind == "random" and policy.teleports == "by chance" else None
        return Decision(phase, learned, used, probes, seen, limited, home)

    def _learned(
        self, plan: Schedule, used: list[ReportSum], probes: list[ReportSum], *, since: int, until: int
    ) -> State:
        """Return what the policies of a plan know after these reports and held-out losses, and a pivot at ``until``."""
        steps, is_redrawn = [reports.losses for reports in used], plan.redraws_at(until)

        def learn(policy: Policy, memory: State) -> State:
            for probe in probes:
                memory = policy.absorb_probe(memory, probe.losses, step=probe.first_step)
            memory = policy.absorb(memory, steps, since=since, until=until)
            return policy.after_pivot(memory) if is_redrawn else memory

        return self._deciders.learned(self._policy_state, plan.policies, learn)

    def _choose(
        self, policy: Policy, memory: State, index: int, region: Region, landed: Array, guard_state: State
    ) -> tuple[Kind, Choice]:
        chance = self._probability_random(policy, index)
        if chance == 1.0 or (chance > 0.0 and self.curriculum.phase_law.is_random(index)):
            point = region.sample(passing_generator(self.curriculum.seed, "phase.point", index))
            return "random", Choice(point)
        alarmed = self._guard.in_alarm(guard_state) if self._guard else None
        return policy.kind, policy.choose(memory, region, landed, self._unique_tokens, alarmed)

    def _probability_random(self, policy: Policy, index: int) -> float:
        """Return the probability with which a phase is random under a policy."""
        sure = {"always": 1.0, "never": 0.0}
        teleports = policy.teleports
        return sure[teleports] if teleports in sure else self.curriculum.phase_law.probability_random(index)


def _is_inside(weights: Array, region: Region) -> bool:
    return bool(((weights >= region.lower) & (weights <= region.upper)).all())
