"""The journal of one walk: what was found in it at the start, what the walk writes, and the line that it stands at.

A journal that was written before is only appended to. A walk that begins on it, or goes on from a state, stands at an
earlier line until it writes: then that line is said first, and what came after it is superseded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, JournalError, StateMismatchError
from mixer.journal.file import JOURNAL_VERSION, Journal
from mixer.journal.header import header_record
from mixer.journal.records import losses_to_record, phase_to_record
from mixer.journal.scan import Position
from mixer.losses import add_losses
from mixer.policies import Choice
from mixer.region.epochs import EpochCaps
from mixer.region.regimes import Regime
from mixer.region.region import Region
from mixer.sampling.phases import Phase
from mixer.types import Array, IntArray
from mixer.walk.epochs import epochs_record
from mixer.walk.reports import ReportSum
from mixer.walk.state import STATE_VERSION, check_state

MAX_SHOWN = 60  # characters of a value that a message repeats


class Recorder:
    """What a walk does with its journal; with None it does nothing.

    Args:
        journal: of the walk: an empty one is begun, with a header.
        curriculum: of the walk.
        sources: for the header of a new journal; by source, a digest of files or a commit.

    Attributes:
        is_on: whether there is a journal.
        header: the first line of a journal that was begun before; else None.
        beginning: the state that a fork begins with; None if the journal is not a fork's.
        forked_from: fingerprint of the curriculum that decided the steps before that; None likewise.

    Raises:
        StateMismatchError: the journal, or the state in it, belongs to another curriculum or release.
        JournalError: a fork that was not written to its end.
    """

    def __init__(self, journal: Journal | None, curriculum: Curriculum, sources: Mapping[str, str]) -> None:
        self.is_on = journal is not None
        self.header: Mapping[str, Any] | None = None
        self.beginning: Mapping[str, Any] | None = None
        self.forked_from: str | None = None
        self._journal = journal
        self._resume_at: Position | None = None  # where the next line belongs, if not at the end
        if journal is None:
            return
        if journal.position.line == 0:
            journal.append(header_record(curriculum, sources))
        else:
            self._stand_at_beginning(journal, curriculum)

    def _stand_at_beginning(self, journal: Journal, curriculum: Curriculum) -> None:
        self.header = first = journal.record_at(1) or {}
        fingerprint = curriculum.fingerprint
        found = first.get("fingerprint")
        if first.get("version") != JOURNAL_VERSION or found != fingerprint:
            raise StateMismatchError(
                f"{journal.path}: journal version {first.get('version')} of curriculum {found}, but this is version "
                f"{JOURNAL_VERSION} of curriculum {fingerprint}{_differences(first, curriculum)}; "
                "use a new file, or the old curriculum"
            )
        begin, parent = 1, first["parent"]
        if parent is not None:
            begin, self.forked_from = parent["shared"] + 2, parent["fingerprint"]
            record = journal.record_at(begin)
            if record is None or record["type"] != "fork":
                raise JournalError(
                    f"{journal.path}: the fork of step {parent['step']} has no line {begin} to begin from; "
                    "make it again with `mixer fork`"
                )
            self.beginning, what = record["state"], f"{journal.path}: the state at line {begin}"
            if self.beginning.get("version") != STATE_VERSION:
                raise StateMismatchError(
                    f"{what} has version {self.beginning.get('version')!r}, this curriculum-mixer reads version "
                    f"{STATE_VERSION}; go on with the release that wrote it, or with a fork of it from where it ends: "
                    "`mixer fork` with the same config"
                )
            check_state(record["state"], version=STATE_VERSION, fingerprint=fingerprint, what=what)
        self._resume_at = journal.position_of(begin)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line where the walk stands; JournalError if it cannot be written, and then nothing is."""
        if self._journal is None:
            return
        if self._resume_at is not None:
            self._journal.resume_from(self._resume_at)
            self._resume_at = None
        self._journal.append(record)

    def place(self) -> dict[str, Any]:
        """Return what a state says of the journal: where the walk stands, at a line that no power cut takes."""
        if self._journal is None:
            return {"journal": None}
        if self._resume_at is not None:
            return {"journal": list(self._resume_at)}
        self._journal.sync()
        return {"journal": list(self._journal.position)}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Stand at the line where ``state`` was taken; StateMismatchError if the journal does not have it."""
        if self._journal is None:
            return
        if not state["journal"]:
            raise StateMismatchError("the saved state was taken without a journal, so this journal cannot follow it")
        self._journal.resume_from(Position(*state["journal"]))
        self._resume_at = None

    def has(self, state: Mapping[str, Any]) -> bool:
        """Whether ``state`` was taken at a line of this journal."""
        if self._journal is None or not state["journal"]:
            return False
        position = Position(*state["journal"])
        return self._journal.position_of(position.line) == position

    def close(self) -> None:
        """Let go of the journal."""
        if self._journal is not None:
            self._journal.close()


def region_record(regime: Regime) -> dict[str, Any]:
    """Return what a regime's region is, declared and really reached."""
    region = regime.region
    return {
        "regime": regime.name,
        "floors": region.floors,
        "caps": region.caps,
        "lower": region.lower,
        "upper": region.upper,
    }


def feedback_summary(used: list[ReportSum], start: int) -> dict[str, Any] | None:
    """Return what a decision learned from, summed over steps and ranks; ``delay`` is how old its newest step was."""
    if not used:
        return None
    summary = losses_to_record(add_losses([reports.losses for reports in used]))
    del summary["rank"]
    last_step = max(reports.last_step for reports in used)
    return {
        "reports": sum(reports.reports for reports in used),
        "first_step": min(reports.first_step for reports in used),
        "last_step": last_step,
        "delay": start - last_step,
        **summary,
    }


def decision_record(
    phase: Phase,
    regime: Regime,
    choice: Choice,
    *,
    region: Region,
    before: Array,
    landed: Array | None,
    is_new_regime: bool,
    limited: EpochCaps | None,
    eta: float | None,
    rule: dict[str, Any] | None,
    boundary: int | None,
    probability_random: float,
    counts: IntArray,
    used: list[ReportSum],
    probes: list[ReportSum],
) -> dict[str, Any]:
    """Return the line of a decision.

    Args:
        phase: what was decided.
        regime: where.
        choice: what the policy said, or the random point.
        region: of the regime, under the caps by epochs if there are any.
        before: the weights till then, [K].
        landed: the nearest point of a new region, [K]; None if the walk went on from ``before``.
        is_new_regime: whether the line says what the regime's region is.
        limited: the caps by epochs.
        eta: in force, where it decays.
        rule: who decided, unless the run's own policy.
        boundary: the first step of the next regime.
        probability_random: with which the phase was to be random.
        counts: rows by step and source, [length, K].
        used: the reports that it was decided on.
        probes: the held-out losses that it was decided on.
    """
    return {
        "type": "phase",
        **phase_to_record(phase),
        "boundary": boundary,
        "probability_random": probability_random,
        "before": before,
        "landed": landed,
        "distance": None if landed is None else float(np.linalg.norm(landed - before)),
        "vertex": choice.vertex,
        "parts": choice.parts,  # an index of +inf, too few observations, is written as null: JSON has no infinity
        "region": region_record(regime) if is_new_regime else None,
        **({} if limited is None else {"epochs": epochs_record(limited)}),
        **({} if eta is None else {"eta": eta}),
        **({} if rule is None else {"rule": rule}),
        "log_volume": region.log_volume(),
        "counts": counts.sum(axis=0),
        "feedback": feedback_summary(used, phase.start),
        **({"probes": feedback_summary(probes, phase.start)} if probes else {}),
    }


def _differences(header: Mapping[str, Any], curriculum: Curriculum) -> str:
    """Return in words which fields differ, with both values where they are short."""
    try:
        found = Curriculum(**header["curriculum"]).model_dump(mode="json")  # with the fields that are newer than it
    except (ConfigError, KeyError, TypeError):
        return ""
    ours = curriculum.model_dump(mode="json")
    told = []
    for key in (key for key in found if key in ours and found[key] != ours[key]):
        theirs, own = (_named(value) for value in (found[key], ours[key]))
        told.append(f"{key} (there {theirs}, here {own})" if max(len(theirs), len(own)) <= MAX_SHOWN else key)
    return f"; they differ in {', '.join(told)}" if told else ""


def _named(value: Any) -> str:
    return str(value["name"]) if isinstance(value, Mapping) and "name" in value else json.dumps(value)
