"""From the folder of a checkpoint to a subject: the model, its tokenizer, an earlier checkpoint, the journal, text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from andrea.checkpoint import STATE, load_model, newest_checkpoint
from andrea.inspection.simplex import pivot_steps
from andrea.inspection.subject import Subject
from andrea.model import Andrea
from andrea.train import TrainingConfig
from mixer.config.curriculum import Curriculum
from mixer.errors import CheckpointError, ConfigError, MissingDataError, MixerError, TokenizerError
from mixer.journal.tables import JournalTables, read_tables
from mixer.sources.opening import open_sources
from mixer.sources.tokenizer import TextTokenizer

CHECKPOINTS, JOURNAL = "checkpoints", "journal.jsonl"
NUM_ROWS = 64  # some are measured on, the short trainings take the others in turn
SURELY_RELATED = 10  # standard deviations that the cosine of two unrelated tables does not reach


def open_subject(
    checkpoint: Path,
    *,
    before: Path | None = None,
    journal: Path | None = None,
    curriculum: Curriculum | None = None,
    text: Path | None = None,
    sentence: str | None = None,
    words: Sequence[str] = (),
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Subject:
    """Read what there is to look at.

    Args:
        checkpoint: its folder, or that of a run, whose newest is taken.
        before: an earlier checkpoint; by default the last one beside it from before the run's last pivot, or else the
            oldest.
        journal: of the run; by default the one in the run's folder.
        curriculum: of the run, whose sources are read; by default the one in the journal, paths from where one stands.
        text: a UTF-8 file that losses are measured on; by default the beginning of each of the run's sources.
        sentence: to show the attention of.
        words: to show the neighbours of.
        device: where the models are to be.
        say: told what could not be found, and so is left out.

    Raises:
        CheckpointError, StateMismatchError: as ``load_model``.
        TokenizerError: text or a sentence is given, and the checkpoint has no tokenizer.
        MissingDataError: the text cannot be read.
        JournalError: the journal cannot be read.
    """
    place = newest_checkpoint(checkpoint)
    if place is None:
        raise CheckpointError(f"{checkpoint}: there is no checkpoint; give the folder of a run or of one checkpoint")
    loaded = load_model(place, device=device)
    path = journal or _journal_beside(place)
    story = None if path is None else read_tables(path)
    if story is None:
        say("there is no journal in the run's folder (--journal), so the walk is left out")
    earlier = before or _earlier(place, loaded.step, story)
    found = None if earlier is None else load_model(earlier, device=device)
    if text is not None:
        rows: Tensor | None = rows_of_text(text, _needed(loaded.tokenizer, "text"), loaded.model.config.context)
    else:
        rows = _rows_of_run(curriculum, story, loaded.tokenizer, say)
    ids = () if sentence is None else _needed(loaded.tokenizer, "a sentence").encode([sentence])[0].tolist()
    return Subject(
        model=loaded.model,
        step=loaded.step,
        tokenizer=loaded.tokenizer,
        rows=rows,
        before=None if found is None else (found.model, found.step),
        untrained=None if story is None else beginning_of(loaded.model, int(story.header["curriculum"]["seed"])),
        story=story,
        sentence=ids,
        words=words,
        training=_training_of(place),
    )


def _training_of(place: Path) -> TrainingConfig:
    """The peak learning rate that the checkpoint was trained with, for the short trainings; the rest is by default."""
    trainer = json.loads((place / STATE).read_text(encoding="utf-8"))["trainer"]
    return TrainingConfig(peak_lr=trainer.get("config", {}).get("peak_lr", TrainingConfig.peak_lr))


def rows_of_text(path: Path, tokenizer: TextTokenizer, context: int) -> Tensor:
    """Return the beginning of a text as token ids, at most ``NUM_ROWS`` rows of ``context + 1``, int64 [R, T + 1]."""
    try:
        words = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingDataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    ids = torch.tensor(tokenizer.encode([words])[0].tolist(), dtype=torch.int64)
    length = min(context, max(len(ids) // 2 - 1, 1))  # two rows of a text that is shorter than two contexts
    num_rows = min(len(ids) // (length + 1), NUM_ROWS)
    if num_rows < 2:
        raise ConfigError(f"{path} has {len(ids)} tokens; the terrain needs 4 at least, and is better with thousands")
    return ids[: num_rows * (length + 1)].view(num_rows, length + 1)


def rows_of_sources(curriculum: Curriculum, tokenizer: TextTokenizer) -> Tensor:
    """Return the beginning of every source in turn, ``NUM_ROWS`` rows, int64 [R, T + 1]."""
    sources = open_sources(curriculum, tokenizer)
    each = -(-NUM_ROWS // len(sources))
    rows = torch.stack([torch.from_numpy(source.take(each).astype("int64")) for source in sources], dim=1)
    return rows.flatten(0, 1)[:NUM_ROWS]


def beginning_of(model: Andrea, seed: int) -> Andrea | None:
    """Return the untrained model that a seed gives, if the model began as that one; None if it did not.

    Training moves a token table, yet never so far that nothing is left of where it began. Two tables that have nothing
    to do with each other have a cosine of 0, give or take ``1 / sqrt(number of weights)``.
    """
    untrained = Andrea(model.config, seed=seed).to(model.head.weight.device).eval()
    one, other = (table.token_table.weight.detach().flatten() for table in (untrained, model))
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    return untrained if cosine > SURELY_RELATED * one.numel() ** -0.5 else None


def _needed(tokenizer: TextTokenizer | None, what: str) -> TextTokenizer:
    if tokenizer is None:
        raise TokenizerError(f"the checkpoint has no tokenizer, so {what} cannot be made token ids; leave it out")
    return tokenizer


def _journal_beside(place: Path) -> Path | None:
    run = place.parent.parent if place.parent.name == CHECKPOINTS else place.parent
    return next((path for path in (run / JOURNAL, *sorted(run.glob(f"*/{JOURNAL}"))) if path.is_file()), None)


def _earlier(place: Path, step: int, story: JournalTables | None) -> Path | None:
    """The last checkpoint from before the last pivot, else the oldest; None if there is no older one."""
    numbered = {int(path.name.removeprefix("step_")): path for path in place.parent.glob("step_[0-9]*")}
    older = sorted(number for number in numbered if number < step)
    pivots = [] if story is None else [start for start in pivot_steps(story) if start < step]
    from_before = [number for number in older if pivots and number <= pivots[-1]]
    return numbered[from_before[-1] if from_before else older[0]] if older else None


def _rows_of_run(
    curriculum: Curriculum | None,
    story: JournalTables | None,
    tokenizer: TextTokenizer | None,
    say: Callable[[str], None],
) -> Tensor | None:
    try:
        if curriculum is None and story is not None:
            curriculum = Curriculum.from_data(story.header["curriculum"], base_dir=Path.cwd())
        if curriculum is not None and tokenizer is not None:
            return rows_of_sources(curriculum, tokenizer)
    except MixerError as error:
        say(f"the run's sources cannot be read from here, so the terrain is left out (--text): {error}")
        return None
    say("there is no text (--text), so the terrain is left out")
    return None
