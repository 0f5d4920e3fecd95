"""Everything that can go wrong, one class per thing a caller might handle.

Each message says what was wrong, the offending value and what to do. Each class has a stable ``code``, explained in
``docs/errors.md``; scripts and the service's error bodies use the code, never the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MixerError(Exception):
    """Base of every error that this project raises on purpose."""

    code: ClassVar[str] = "mixer"


class ConfigError(MixerError):
    """The curriculum cannot be run as written; ``problems`` lists every reason found, not the first alone."""

    code = "config"

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownSourceError(ConfigError):
    """A name that is not among the declared sources."""

    code = "unknown-source"


class InfeasibleRegionError(ConfigError):
    """The bounds leave no mixture; the attributes are the certificate.

    ``total`` is the offending sum (of floors or of caps), or None if a single source contradicts itself; ``sources``
    are the names that make it up and ``excess`` is by how much the bounds must give way.
    """

    code = "infeasible-region"

    def __init__(self, message: str, *, sources: Sequence[str], excess: float, total: float | None = None) -> None:
        super().__init__(message)
        self.sources = tuple(sources)
        self.excess = excess
        self.total = total


class WeightsError(MixerError):
    """Weights that are not a point of the simplex, or lie outside the region."""

    code = "weights"


class FeedbackError(MixerError):
    """Losses that cannot be learned from: wrong shape, unknown source, or a source that was not drawn."""

    code = "feedback"


class RepeatedRowsError(FeedbackError):
    """Losses of rows that were reported before, by another rank or by ranks of another number."""

    code = "repeated-rows"


class InvalidLossError(FeedbackError):
    """A loss that is NaN, infinite, negative, or larger than any model's."""

    code = "invalid-loss"


class FutureFeedbackError(FeedbackError):
    """Losses of a step that has not been handed out yet."""

    code = "future-feedback"


class ProbeNotOfferedError(FeedbackError):
    """Held-out rows or losses of a step that offers no probe, or whose probe is too old to be answered."""

    code = "probe-not-offered"


class StepError(MixerError):
    """A step that does not exist, or is no longer held."""

    code = "step"


class PivotError(MixerError):
    """A pivot that cannot take force at the step asked for."""

    code = "pivot"


class StateMismatchError(MixerError):
    """A saved state, journal or run directory of another run, or of another version."""

    code = "state-mismatch"


class CheckpointError(MixerError):
    """A checkpoint that cannot be written, or one that is torn, damaged, or has weights that are not finite."""

    code = "checkpoint"


class PreparedMismatchError(StateMismatchError):
    """Prepared rows that are not those of the config; ``differences`` lists everything that differs."""

    code = "prepared-mismatch"

    def __init__(self, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        super().__init__("\n".join(differences))


class PreparationError(MixerError):
    """Rows that cannot be prepared: a full disk, or another preparation at work; what was done is kept."""

    code = "preparation"


class JournalError(MixerError):
    """The journal cannot be written or read."""

    code = "journal"


class EvidenceError(MixerError):
    """A journal holds too little to answer the question; the message says how much is needed."""

    code = "evidence"


class SourceError(MixerError):
    """A source cannot be read; the message names the source and the place."""

    code = "source"


class MissingDataError(SourceError):
    """A file, data set, split or column that is not there."""

    code = "missing-data"


class MalformedDataError(SourceError):
    """A record that cannot be parsed; the message names the file and line where they are known."""

    code = "malformed-data"


class EmptySourceError(SourceError):
    """A source that has no text at all."""

    code = "empty-source"


class SourceExhaustedError(SourceError):
    """A source ran dry and its ``on_exhausted`` is ``error``."""

    code = "source-exhausted"


class SourceUnavailableError(SourceError):
    """A source that cannot be reached after every retry; ``name`` is the source's. Everything read so far is kept."""

    code = "source-unavailable"

    def __init__(self, message: str, *, name: str = "") -> None:  # unpickled, it gets its name a moment later
        super().__init__(message)
        self.name = name


class TokenizerError(MixerError):
    """A tokenizer that is missing, broken, or does not fit the vocabulary."""

    code = "tokenizer"


class TopologyError(MixerError):
    """A number of ranks or workers that cannot be served exactly."""

    code = "topology"


class RankMismatchError(TopologyError):
    """Ranks of one run that report different steps or have decided differently."""

    code = "rank-mismatch"


class MissingDependencyError(MixerError):
    """An optional library that this feature needs is not installed."""

    code = "missing-dependency"
