"""How a run is going: a bar in a terminal, lines in a file, and numbers for TensorBoard and Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from andrea.gate import Sample
from andrea.lines import append_line
from andrea.samples import SAMPLES
from andrea.settings import AndreaSettings
from andrea.train import Trainer
from mixer.cli.output import talk
from mixer.config.curriculum import Curriculum
from mixer.delivery.tensors import Batch
from mixer.errors import MissingDependencyError
from mixer.loggers import Loggers, TensorBoardLogger, WandbLogger
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase

HELD_OUT = "held_out.jsonl"
SHOWN_WEIGHTS = 4  # of a phase, the largest
WIDE, BAR_WIDTH = 100, 20  # columns of a terminal from which on there is room for a bar; its own
SMOOTHING = 0.1  # of the seconds of a step: about the last ten count


def phase_in_words(phase: Phase) -> str:
    """Return regime and kind of a phase and its largest weights: ``firehose, bandit: web 0.50, code 0.30``."""
    largest = np.argsort(-phase.weights, kind="stable")[:SHOWN_WEIGHTS]
    weights = ", ".join(f"{phase.names[i]} {phase.weights[i]:.2f}" for i in largest if phase.weights[i] > 0)
    rest = ", ..." if int((phase.weights > 0).sum()) > SHOWN_WEIGHTS else ""
    return f"{phase.regime}, {phase.kind}: {weights}{rest}"


class TrainingProgress:
    """A bar with loss, tokens a second, time left, and the phase with its weights; a line now and then elsewhere."""

    def __init__(self, curriculum: Curriculum, trainer: Trainer, log_every: int) -> None:
        self._batch_tokens, self._log_every = curriculum.batch_tokens, log_every
        self._total, self._done = curriculum.total_steps, trainer.num_steps
        self._step_s = 0.0
        self._noted_s = time.perf_counter()
        self._console = talk()
        columns: list[ProgressColumn] = [
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[rate]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[phase]}", style="cyan"),
        ]
        if self._console.width >= WIDE:
            columns.insert(0, BarColumn(bar_width=BAR_WIDTH))
        is_live = self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, disable=not is_live)
        self._task = self._bar.add_task(
            "training", total=self._total, completed=self._done, loss=float("nan"), rate=0.0, phase=""
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the global batch a second, lately."""
        return self._batch_tokens / self._step_s if self._step_s else 0.0

    def note(self, loss: float, phase: Phase) -> None:
        """Show a step."""
        now_s = time.perf_counter()
        took_s, self._noted_s = now_s - self._noted_s, now_s
        self._step_s += (took_s - self._step_s) * (SMOOTHING if self._step_s else 1.0)
        self._done += 1
        if not self._bar.disable:
            shown = self._fitted(phase_in_words(phase), loss)
            self._bar.update(self._task, advance=1, loss=loss, rate=self.tokens_per_s, phase=shown, refresh=False)
        elif self._done % self._log_every == 0 or self._done == self._total:
            left_s = (self._total - self._done) * self._step_s
            self._console.print(
                f"step {self._done}/{self._total} loss {loss:.3f} {self.tokens_per_s:,.0f} tokens/s "
                f"left {_clock(left_s)} {phase_in_words(phase)}",
                highlight=False,
                soft_wrap=True,
            )

    def _fitted(self, phase: str, loss: float) -> str:
        """Return of a phase's words what the numbers leave room for: the table would cut those off as well."""
        numbers = f"{self._total}/{self._total} loss {loss:.3f} {self.tokens_per_s:,.0f} tokens/s 00:00:00 "
        bar_width = BAR_WIDTH + 1 if self._console.width >= WIDE else 0
        room = self._console.width - len(numbers) - bar_width - 1
        return phase if len(phase) <= room else phase[: max(0, room - 1)] + "…" if room > 0 else ""


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


class TrainingLog:
    """The run told to loggers, and its held-out losses and samples kept in files, a line for each time."""

    def __init__(self, loggers: Loggers, folder: Path, log_every: int) -> None:
        self._loggers, self._folder, self._log_every = loggers, folder, log_every
        self._phase = -1

    @classmethod
    @contextmanager
    def opened(cls, settings: AndreaSettings, folder: Path, curriculum: Curriculum) -> Iterator[Self]:
        """Open the loggers that the settings name, and close them at the end."""
        run = _wandb_run(settings, folder, curriculum) if "wandb" in settings.loggers else None
        loggers: list[Any] = [] if run is None else [WandbLogger(run)]
        if "tensorboard" in settings.loggers:
            loggers.append(TensorBoardLogger(folder / "tensorboard"))
        log = cls(Loggers(loggers), folder, settings.log_every)
        try:
            yield log
        finally:
            log._loggers.close()
            if run is not None:
                run.finish()

    def note(self, step: int, loss: float, batch: Batch, phase: Phase, trainer: Trainer, tokens_per_s: float) -> None:
        """Take in a step: this rank's losses by source, a phase when it begins, and numbers of the training."""
        if phase.index != self._phase:
            self._phase = phase.index
            self._loggers.tell("on_phase", phase)
        losses = _by_source(batch, trainer, len(phase.names))
        self._loggers.tell("on_feedback", step, losses)
        if (step + 1) % self._log_every == 0:
            metrics = {
                "train/loss": loss,
                "train/learning_rate": trainer.learning_rate,
                "train/gradient_norm": trainer.gradient_norm,
                "train/tokens_per_s": tokens_per_s,
            }
            self._loggers.tell("send", metrics, step)

    def note_held_out(self, num_steps: int, losses: dict[str, float]) -> None:
        """Take in held-out losses by source after so many steps."""
        self._loggers.tell("send", {f"held_out/{name}": loss for name, loss in losses.items()}, num_steps)
        append_line(self._folder / HELD_OUT, {"step": num_steps, "losses": losses})

    def note_sample(self, sample: Sample) -> None:
        """Keep a sample, and tell loggers of its text and its scores."""
        append_line(self._folder / SAMPLES, sample.record())
        self._loggers.tell("on_sample", sample.step, sample.prompt + sample.text, sample.measures())


def _by_source(batch: Batch, trainer: Trainer, num_sources: int) -> SourceLosses:
    """Return the losses of this rank's rows of the last step, by source."""
    ids = batch["source_ids"].numpy()
    losses = trainer.token_losses.double()
    sums, counts = losses.sum(dim=1).numpy(), np.full(len(ids), losses.shape[1])
    table = np.zeros((4, num_sources))
    for row, values in enumerate((np.ones(len(ids)), counts, sums, (sums / counts) ** 2)):
        np.add.at(table[row], ids, values)
    return SourceLosses(rows=table[0], tokens=table[1], loss_sums=table[2], square_sums=table[3])


def check_loggers(settings: AndreaSettings) -> None:
    """Raise MissingDependencyError, naming each, unless the libraries of the loggers are installed."""
    known = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb", "wandb")}  # module, extra
    missing = [known[name] for name in settings.loggers if find_spec(known[name][0]) is None]
    if missing:
        modules, extras = (",".join(names) for names in zip(*missing, strict=True))
        raise MissingDependencyError(
            f"andrea.loggers names what is not installed ({modules}): pip install 'curriculum-mixer[{extras}]'"
        )


def _wandb_run(settings: AndreaSettings, folder: Path, curriculum: Curriculum) -> Any:
    import wandb  # takes a second; check_loggers saw that it is there

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=settings.wandb_project,
        name=folder.name,
        dir=str(folder),
        config={"andrea": settings.model_dump(mode="json"), "fingerprint": curriculum.fingerprint},
    )
