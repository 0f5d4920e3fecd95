"""The coherence gate: every so many steps the model writes a text, and a run that collapsed is halted.

A loss that is fine says little about a model that repeats one word (ANDREA-120M's first run trained on for 85,000 steps
like that). Samples have random numbers of their own, seeded by the run's seed and the step, so that training is the
same with and without them, bit for bit, and a run that goes on from a checkpoint draws the same ones again.

What samples are scored by is text of the run itself: the first rows that this process read of each source. The more of
them have come the more is known, so that scores of the first samples of a run are not quite comparable with later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from andrea.coherence import POINTS, Coherence, compression_ratio
from andrea.generate import generate
from andrea.model import Andrea
from andrea.settings import AndreaSettings, GateSettings
from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, StateMismatchError
from mixer.sampling.randomness import generator
from mixer.sources.tokenizer import TextTokenizer

WINDOWS = 32  # texts as long as a sample that are kept of each source: half to know words by, half to be typical
_GATE_FIELDS = ("low_in_row", "is_armed")


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote after so many steps, and what the gate makes of it."""

    step: int
    """Optimizer steps that the model had taken."""
    prompt: str
    text: str
    """What follows the prompt, separators included."""
    score: float | None
    """0 to 100; None before enough of the run's text was read."""
    bigrams: float | None
    trigrams: float | None
    words: float | None
    characters: float | None
    compression: float
    """How many times smaller zlib makes the text."""
    low_in_row: int
    """Samples in a row that counted as incoherent, this one included."""

    def record(self) -> dict[str, Any]:
        """Return it as plain data, numbers rounded to what they mean."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def measures(self) -> dict[str, float]:
        """Return its numbers by name, for loggers."""
        names = ("score", "bigrams", "trigrams", "words", "characters", "compression")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Gate:
    """Counts samples in a row whose score is below the threshold.

    A low score counts once some sample has reached the threshold, for only what was coherent can collapse, and at the
    latest from ``grace_steps`` on.
    """

    def __init__(self, settings: GateSettings, grace_steps: int) -> None:
        self.settings, self._grace_steps = settings, grace_steps
        self.low_in_row = 0
        """Samples that counted as low since the last one that did not."""
        self.is_armed = False
        """Whether some sample has reached the threshold."""

    @property
    def is_halted(self) -> bool:
        """Whether so many in a row were low that training is to stop."""
        return self.settings.halt and self.low_in_row >= self.settings.patience

    def note(self, num_steps: int, score: float | None) -> None:
        """Take in the score of the sample after so many steps; None counts as nothing."""
        if score is None:
            return
        if score >= self.settings.threshold:
            self.is_armed, self.low_in_row = True, 0
        elif self.is_armed or num_steps >= self._grace_steps:
            self.low_in_row += 1


class RunText:
    """The first rows that a run reads of each source, up to ``WINDOWS`` texts as long as a sample.

    Args:
        num_sources: of the run.
        sequence_length: tokens of a row.
        sample_tokens: tokens of a sample.
    """

    def __init__(self, num_sources: int, sequence_length: int, sample_tokens: int) -> None:
        self._row_tokens = min(sequence_length, sample_tokens)
        self._rows_of_window = max(1, sample_tokens // self._row_tokens)
        self._rows: list[list[Tensor]] = [[] for _ in range(num_sources)]  # by source
        self._built: tuple[int, Coherence] | None = None  # of how many rows

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return sum(map(len, self._rows))

    def note(self, batch: Mapping[str, Any]) -> None:
        """Keep the rows of a batch whose sources have too few still."""
        most = WINDOWS * self._rows_of_window
        for i, source in enumerate(batch["source_ids"].tolist()):
            if len(self._rows[source]) < most:
                self._rows[source].append(batch["input_ids"][i, : self._row_tokens].to("cpu", torch.int32, copy=True))

    def coherence(self, tokenizer: TextTokenizer) -> Coherence:
        """Return what text is scored by: every second window of each source is known, the others are typical."""
        if self._built is None or self._built[0] != self.num_rows:
            reference: list[str] = []
            typical: list[list[str]] = []
            for rows in self._rows:
                size = self._rows_of_window
                for number, first in enumerate(range(0, len(rows) - size + 1, size)):
                    window = [piece for row in rows[first : first + size] for piece in pieces_of(row, tokenizer)]
                    if number % 2:
                        typical.append(window)
                    else:
                        reference += window
            self._built = self.num_rows, Coherence(reference, typical)
        return self._built[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept, for a checkpoint: ``rows`` int32 [N, T] and ``source_ids`` int64 [N]."""
        rows = [row for rows in self._rows for row in rows]
        ids = [source for source, rows in enumerate(self._rows) for _ in rows]
        empty = torch.empty((0, self._row_tokens), dtype=torch.int32)
        return {"rows": torch.stack(rows) if rows else empty, "source_ids": torch.tensor(ids, dtype=torch.int64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; raise StateMismatchError if it is of rows or sources of another run."""
        rows, ids = tensors["rows"], tensors["source_ids"]
        if rows.shape[1] != self._row_tokens or bool((ids >= len(self._rows)).any()):
            raise StateMismatchError(
                f"the checkpoint keeps {rows.shape[1]} tokens of each row to score samples by, of up to "
                f"{int(ids.max()) + 1 if len(ids) else 0} sources; this run has {self._row_tokens} and "
                f"{len(self._rows)}: leave andrea.sample_tokens as it was"
            )
        self._rows = [[] for _ in self._rows]
        for row, source in zip(rows, ids.tolist(), strict=True):
            self._rows[source].append(row)


class Sampling:
    """Draws the samples of a run, scores them, and counts the low ones.

    Args:
        settings: how often, how long, from what prompt.
        curriculum: the run.
        tokenizer: of its text.
        model: that is to continue the prompt; for its context.
        grace_steps: steps before which low samples do not count unless one was not low.

    Raises:
        ConfigError: the prompt, with the separator before it, is longer than the model's context.
    """

    def __init__(
        self,
        settings: AndreaSettings,
        curriculum: Curriculum,
        tokenizer: TextTokenizer,
        model: Andrea,
        *,
        grace_steps: int,
    ) -> None:
        self._settings, self._seed, self._tokenizer, self._model = settings, curriculum.seed, tokenizer, model
        self.gate = Gate(settings.gate, grace_steps)
        self._text = RunText(len(curriculum.names), curriculum.sequence_length, settings.sample_tokens)
        self._prompt_ids = [tokenizer.separator_id, *tokenizer.encode([settings.sample_prompt])[0].tolist()]
        if len(self._prompt_ids) > model.config.context:
            raise ConfigError(
                f"andrea.sample_prompt has {len(self._prompt_ids)} tokens with the separator before it, but the "
                f"model's context is {model.config.context}; shorten it"
            )

    def note_batch(self, batch: Mapping[str, Any]) -> None:
        """Keep what samples are scored by of a batch that was trained on."""
        self._text.note(batch)

    def is_due(self, num_steps: int) -> bool:
        """Return whether a sample is to be drawn after so many steps."""
        return num_steps % self._settings.sample_every == 0

    def draw(self, num_steps: int) -> Sample:
        """Draw the sample after so many steps, and tell the gate of it."""
        settings = self._settings
        seed = int(generator(self._seed, "sample", num_steps).integers(2**63))
        ids = generate(self._model, self._prompt_ids, settings.sample_tokens, settings.sample_temperature, seed)
        pieces = pieces_of(ids, self._tokenizer)
        score = self._text.coherence(self._tokenizer).score(pieces)
        self.gate.note(num_steps, None if score is None else score.total)
        axes = dict.fromkeys(POINTS) if score is None else asdict(score)
        return Sample(
            step=num_steps,
            prompt=settings.sample_prompt,
            text=self._tokenizer.decode(ids),
            score=None if score is None else score.total,
            **axes,
            compression=compression_ratio("\n".join(pieces)),
            low_in_row=self.gate.low_in_row,
        )

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a checkpoint keeps: the gate's counts as plain data, and the text as tensors."""
        return {name: getattr(self.gate, name) for name in _GATE_FIELDS}, self._text.tensors()

    def load_state_dict(self, gate: Mapping[str, Any], text: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave; raise StateMismatchError if it is of another run."""
        self._text.load(text)
        for name in _GATE_FIELDS:
            setattr(self.gate, name, gate[name])


def pieces_of(ids: Any, tokenizer: TextTokenizer) -> list[str]:
    """Return the texts between the separators of token ids."""
    pieces: list[list[int]] = [[]]
    for token in (int(token) for token in ids):
        if token == tokenizer.separator_id:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [tokenizer.decode(piece) for piece in pieces if piece]
