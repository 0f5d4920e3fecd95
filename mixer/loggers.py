"""A run told to other tools while it goes on: TensorBoard, Weights & Biases, MLflow, or a logger of your own.

``LoggedWalk`` is a walk that tells its loggers of each phase and report. A logger is told after the walk has decided
and never asked: one that fails (a network, a full disk) is dropped with a warning, and training goes on.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import MissingDependencyError
from mixer.journal.file import Journal
from mixer.journal.words import alarm_in_words
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk

log = logging.getLogger(__name__)


class RunLogger(Protocol):
    """What ``LoggedWalk`` calls; write your own with these three, and ``on_alarm(alarm)`` if alarms are wanted.

    An alarm is the ``alarm`` line of the journal (``docs/journal.md``) as a dict.
    """

    def on_phase(self, phase: Phase) -> None:
        """Take in a phase, once, when it is decided."""

    def on_feedback(self, step: int, losses: SourceLosses) -> None:
        """Take in a report that the walk accepted."""

    def close(self) -> None:
        """Write what is left; called once."""


class Loggers:
    """Loggers that are told of a run, in this order; one that fails is dropped with a warning."""

    def __init__(self, loggers: Sequence[Any]) -> None:
        self._loggers = list(loggers)

    def tell(self, what: str, *arguments: Any) -> None:
        """Call a method of every logger; of those that have none by that name, none is called."""
        for logger in [logger for logger in self._loggers if hasattr(logger, what)]:
            try:
                getattr(logger, what)(*arguments)
            except Exception as error:
                self._loggers.remove(logger)
                log.warning("%s failed and is told no more: %s: %s", type(logger).__name__, type(error).__name__, error)

    def close(self) -> None:
        """Let every logger write what it still holds."""
        self.tell("close")
        self._loggers = []


class LoggedWalk(Walk):
    """A walk with loggers: ``MixtureDataset(curriculum, walk=LoggedWalk(curriculum, loggers=[...]))``.

    It decides exactly as a ``Walk`` does. Phases that come out of a restored state were told before and are not told
    again; those decided again after it are.

    Args:
        curriculum: the run.
        loggers: who is told, in this order.
        journal: as for ``Walk``.
    """

    def __init__(self, curriculum: Curriculum, *, loggers: Sequence[RunLogger], journal: Journal | None = None) -> None:
        super().__init__(curriculum, journal=journal, on_alarm=self._tell_alarm)
        self._loggers = Loggers(loggers)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, telling of those decided on the way."""
        told = self.frontier
        found = super().phase_at(step)
        while told < self.frontier:
            phase = super().phase_at(told)
            self._loggers.tell("on_phase", phase)
            told = phase.end
        return found

    def report(
        self, step: int, losses: SourceLosses, *, has_own_draws: bool = False, is_recorded: bool = False
    ) -> bool:
        """Take in a report and tell of it, unless it was known."""
        is_new = super().report(step, losses, has_own_draws=has_own_draws, is_recorded=is_recorded)
        if is_new:
            self._loggers.tell("on_feedback", step, losses)
        return is_new

    def _tell_alarm(self, alarm: dict[str, Any]) -> None:
        log.warning("alarm: %s", alarm_in_words(alarm))
        self._loggers.tell("on_alarm", alarm)

    def close_loggers(self) -> None:
        """Let every logger write what it still holds."""
        self._loggers.close()


class PhaseLogger:
    """Metrics of each phase, named ``weight/SOURCE`` and ``loss/SOURCE``, and of alarms; subclasses send them.

    ``alarm/SOURCE`` is the loss that raised an alarm, at its step.

    Losses are means per token since the phase before, so that a call per phase is enough: about one in 25 steps.
    """

    def __init__(self) -> None:
        self._sums: np.ndarray[Any, np.dtype[np.float64]] | None = None  # loss sums and tokens, [2, K]
        self._names: tuple[str, ...] = ()
        self._last_step = 0

    def on_phase(self, phase: Phase) -> None:
        """Send the losses since the phase before and the weights of this one."""
        self._names = phase.names
        metrics = {f"weight/{name}": weight for name, weight in phase.by_source().items()}
        metrics["phase/is_random"] = float(phase.kind == "random")
        metrics["phase/length"] = float(phase.length)
        self.send(self._losses() | metrics, phase.start)

    def on_feedback(self, step: int, losses: SourceLosses) -> None:
        """Add up a report."""
        sums = np.stack([losses.loss_sums, losses.tokens.astype(np.float64)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._last_step = max(self._last_step, step)

    def on_sample(self, step: int, text: str, scores: Mapping[str, float]) -> None:
        """Send the scores of a text that the model wrote, as ``sample/NAME``; where text can go, it goes too."""
        self.send({f"sample/{name}": value for name, value in scores.items()}, step)

    def on_alarm(self, alarm: Mapping[str, Any]) -> None:
        """Send the loss that raised an alarm."""
        self.send({f"alarm/{alarm['source']}": alarm["loss"]}, alarm["step"])

    def close(self) -> None:
        """Send the losses since the last phase."""
        metrics = self._losses()
        if metrics:
            self.send(metrics, self._last_step)

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Send numbers by name."""
        raise NotImplementedError

    def _losses(self) -> dict[str, float]:
        sums, self._sums = self._sums, None
        if sums is None:
            return {}
        return {
            f"loss/{name}": float(total / tokens)
            for name, total, tokens in zip(self._names, sums[0], sums[1], strict=True)
            if tokens > 0
        }


class TensorBoardLogger(PhaseLogger):
    """Event files for TensorBoard, written by tensorboardX: no TensorFlow, no PyTorch."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._writer = summary_writer(folder)

    def on_sample(self, step: int, text: str, scores: Mapping[str, float]) -> None:
        """Write a text that the model wrote, and its scores."""
        super().on_sample(step, text, scores)
        self._writer.add_text("sample/text", text, step)

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write the rest and close the file."""
        super().close()
        self._writer.close()


class WandbLogger(PhaseLogger):
    """Metrics ``mixer/...`` of a Weights & Biases run, over their own axis ``mixer/step``.

    W&B wants one growing step for everything in a run, which is the trainer's; an axis of our own leaves it alone.

    Args:
        run: what ``wandb.init`` returned; it stays yours to finish.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run
        run.define_metric("mixer/step", hidden=True)
        run.define_metric("mixer/*", step_metric="mixer/step")

    def on_sample(self, step: int, text: str, scores: Mapping[str, float]) -> None:
        """Log a text that the model wrote, as a page of its own, and its scores."""
        import wandb  # there, as it made the run

        super().on_sample(step, text, scores)
        page = wandb.Html(f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>')
        self._run.log({"mixer/step": step, "mixer/sample/text": page})

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Log to the run."""
        self._run.log({"mixer/step": step} | {f"mixer/{name}": value for name, value in metrics.items()})


class MlflowLogger(PhaseLogger):
    """Metrics ``mixer/...`` of an MLflow run.

    Args:
        run_id: of a run that exists; it stays yours to end.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__()
        try:
            import mlflow
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "logging to MLflow needs it: pip install 'curriculum-mixer[mlflow]'"
            ) from error
        self._log_metrics = mlflow.log_metrics
        self._run_id = run_id

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Log to the run in one call."""
        self._log_metrics({f"mixer/{name}": value for name, value in metrics.items()}, step=step, run_id=self._run_id)


def summary_writer(folder: str | Path) -> Any:
    """Return tensorboardX's writer of event files in ``folder``."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "event files for TensorBoard need tensorboardX: pip install 'curriculum-mixer[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))
