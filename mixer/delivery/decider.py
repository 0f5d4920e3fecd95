"""What delivery needs of whoever decides the phases: a walk, or the replay of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.losses import SourceLosses
from mixer.region.regimes import Regime
from mixer.sampling.phases import Phase


class Decider(Protocol):
    """What delivery needs of a walk; ``Walk`` decides, ``Replay`` repeats what was decided.

    Attributes:
        curriculum: the run.
    """

    curriculum: Curriculum

    @property
    def forked_at(self) -> int | None:
        """The first step that a fork decided on its own; None if the run is no fork."""

    @property
    def can_pivot(self) -> bool:
        """Whether the region can be redrawn."""

    @property
    def forked_from(self) -> str | None:
        """Fingerprint of the curriculum that decided the steps before ``forked_at``."""

    @property
    def frontier(self) -> int:
        """The first step that no phase covers."""

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes planned, in order of their first step."""

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``."""

    def report(self, step: int, losses: SourceLosses) -> bool:
        """Take in the losses of a step; False if they are known."""

    def report_probe(self, step: int, losses: SourceLosses) -> bool:
        """Take in the held-out losses of the probe of a step; False if they are known."""

    def probe_step(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offers a probe."""

    def has_probe(self, step: int, rank: int) -> bool:
        """Return whether a rank has answered the probe of a step."""

    def pivot(self, pivot: Pivot, at_step: int | None = None, *, cut: bool = False) -> int:
        """Redraw the region, and return from which step on."""

    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Take in the length of one epoch of a source."""

    def is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state that fits the parent's curriculum was saved before the fork; only asked of a fork."""

    def close_journal(self) -> None:
        """Let go of the journal, in a copy of the process that does not decide."""

    def note_skipped(self, name: str, record: str) -> None:
        """Take in that a source left a record out: where it stands, and why."""

    def state_dict(self, from_step: int | None = None) -> dict[str, Any]:
        """Return all that shapes the rest of the walk, and the phases from ``from_step`` on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
