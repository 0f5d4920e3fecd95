"""What is looked at, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from andrea.model import Andrea
from andrea.train import TrainingConfig
from mixer.journal.tables import JournalTables
from mixer.sources.tokenizer import TextTokenizer

MAX_SENTENCE = 24  # tokens whose attention is still legible


@dataclass(frozen=True)
class Effort:
    """How much is measured; ``quick`` takes some ten seconds on two cores for a model of a million parameters."""

    rows: int = 8
    """Of text that losses are measured on."""
    row_tokens: int = 128
    """So many tokens of each row at most."""
    plane_points: int = 21
    seeds: int = 16
    scales: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    early_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 24, 32, 48)
    heart_steps: int = 40
    max_products: int = 40
    tolerance: float = 0.02
    """Of a sharpness, as a share of it."""

    @classmethod
    def quick(cls) -> Effort:
        """What the demo can wait for."""
        return cls(
            rows=4, row_tokens=64, plane_points=11, seeds=8, scales=(0.1, 0.2, 0.3, 0.5, 0.8),
            early_steps=(0, 2, 6, 12, 20), heart_steps=15, max_products=10, tolerance=0.05,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at.

    Attributes:
        model: the checkpoint's.
        step: steps that it has been trained for.
        tokenizer: of its text; without one, tokens are shown by number.
        rows: token ids of text, [R, T + 1]; the first are measured on, the short trainings train on the others.
        before: an earlier model of the same run, and its step.
        untrained: the model that the run began with.
        story: the run's journal.
        sentence: token ids to show the attention of; the beginning of the first row by default.
        words: to look up the neighbours of; frequent words by default.
        training: whose peak learning rate the short trainings have.
    """

    model: Andrea
    step: int
    tokenizer: TextTokenizer | None = None
    rows: Tensor | None = None
    before: tuple[Andrea, int] | None = None
    untrained: Andrea | None = None
    story: JournalTables | None = None
    sentence: Sequence[int] = ()
    words: Sequence[str] = ()
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def spelled(self, token: int) -> str:
        """A token as it is shown: its text, with spaces and line breaks made visible."""
        if self.tokenizer is None:
            return f"#{token}"
        text = self.tokenizer.decode([token])
        return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or f"#{token}"

    def token_of(self, word: str) -> int | None:
        """The token of a word, as it stands after a space or at a beginning; None if it takes several."""
        if self.tokenizer is None:
            return None
        for spelling in (f" {word}", word):
            ids = self.tokenizer.encode([spelling])[0]
            if len(ids) == 1 and int(ids[0]) < self.model.config.vocab_size:
                return int(ids[0])
        return None

    def shown_sentence(self) -> list[int]:
        """The sentence; without one the beginning of the row with most words there, or nothing."""
        if self.sentence or self.rows is None:
            return list(self.sentence)
        beginnings = self.rows[:, : min(MAX_SENTENCE, self.model.config.context)].tolist()
        return max(beginnings, key=self._num_words)

    def _num_words(self, ids: Sequence[int]) -> int:
        if self.tokenizer is None:
            return 0
        return sum(self.tokenizer.decode([token]).strip().isalpha() for token in ids)
