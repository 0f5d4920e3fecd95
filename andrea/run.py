"""A training run from one file: what ``andrea train`` does.

Everything that the run writes lies in one folder: the journal (unless a service decides), the checkpoints, held-out
losses and event files. Run again, it goes on from the newest checkpoint, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from andrea.checkpoint import Checkpoint, check_vocabulary, load_checkpoint, newest_checkpoint, save_checkpoint
from andrea.gate import Sample, Sampling
from andrea.held_out import HeldOut, losses_of_probe, read_held_out
from andrea.lines import keep_up_to
from andrea.model import Andrea
from andrea.progress import HELD_OUT, TrainingLog, TrainingProgress, check_loggers
from andrea.samples import SAMPLES
from andrea.settings import AndreaSettings, TrainingFile, check_one_origin, read_training_file
from andrea.signals import Requests, requests_by_signal
from andrea.train import Trainer, TrainingReport, train
from andrea.world import World, joined_world
from mixer.cli.output import print_json, results, talk
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery.tensors import Batch
from mixer.errors import CheckpointError, ConfigError, MixerError, TokenizerError
from mixer.journal.file import Journal
from mixer.sources.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from service.client.dataset import RemoteMixtureDataset

log = logging.getLogger(__name__)

CHECKPOINTS, JOURNAL = "checkpoints", "journal.jsonl"
HALTED = 3  # exit code of a run that the coherence gate stopped


@dataclass(frozen=True)
class Origin:
    """Where the batches come from when they come from a service."""

    url: str
    run: str | None = None
    token: str | None = None


def run_training(config: Path, out: Path | None = None, *, origin: Origin | None = None, as_json: bool = False) -> int:
    """Train to the end of the run, or until a signal, and say what happened.

    Args:
        config: the curriculum with its section ``andrea:``, or the section alone with an ``origin``.
        out: folder of the run; default: ``runs/`` and the name of the file.
        origin: the service that decides and delivers.
        as_json: print what happened as JSON.

    Returns:
        The exit code: 0; 128 and the number of the signal that ended it early, as shells have it; or ``HALTED``.
    """
    file = read_training_file(config)
    check_one_origin(file, None if origin is None else origin.url)
    check_loggers(file.settings)
    folder = Path("runs") / config.stem if out is None else out
    with joined_world() as world, requests_by_signal() as requests:
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        with _opened_dataset(file, folder, origin, world) as dataset:
            run = TrainingRun(file, folder, dataset, world)
            report = run.train(requests)
        if world.is_first:
            _say(run, report, as_json=as_json)
    if run.trainer.num_steps == run.trainer.total_steps:
        return 0
    if run.is_halted:
        return HALTED
    return 0 if requests.stopped_by is None else 128 + requests.stopped_by


@contextmanager
def _opened_dataset(
    file: TrainingFile, folder: Path, origin: Origin | None, world: World
) -> Iterator[MixtureDataset | RemoteMixtureDataset]:
    """Give the batches of this rank; the first rank's walk is recorded."""
    if origin is not None:
        from service.client.dataset import RemoteMixtureDataset

        yield RemoteMixtureDataset(origin.url, world.rank, world.world_size, origin.token, run=origin.run)
        return
    assert file.curriculum is not None, "check_one_origin sees to it"
    with ExitStack() as stack:
        journal = None
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / JOURNAL
            journal = stack.enter_context(Journal.open(path) if path.exists() else Journal.create(path))
        yield MixtureDataset(file.curriculum, rank=world.rank, world_size=world.world_size, journal=journal)


class TrainingRun:
    """Model, trainer and data of a run at the same step, and what is done between steps."""

    def __init__(
        self, file: TrainingFile, folder: Path, dataset: MixtureDataset | RemoteMixtureDataset, world: World
    ) -> None:
        self.folder, self.dataset, self.world = folder, dataset, world
        self.settings: AndreaSettings = file.settings
        self.curriculum: Curriculum = dataset.curriculum
        self.tokenizer = _tokenizer_of(dataset)
        known = self.curriculum.vocab_size
        if known is None:
            assert self.tokenizer is not None, "a run without a tokenizer says its vocabulary"
            known = self.tokenizer.vocab_size
        config = self.settings.model.config(known, self.curriculum.sequence_length)
        if self.tokenizer is not None:
            check_vocabulary(config, self.tokenizer.vocab_size)
        self.trainer = Trainer(
            Andrea(config, seed=self.curriculum.seed).to(world.device),
            file.optimizer(self.curriculum.total_steps),
            self.curriculum.total_steps,
            num_parts=self.settings.accumulate,
            is_compiled=self.settings.compile,
            is_shared=world.world_size > 1,
        )
        self._vocab_size = known if self.tokenizer is None else self.tokenizer.vocab_size
        self._kept_always = frozenset(pivot.at_step for pivot in self.curriculum.pivots)
        self._saved = -1
        self.is_halted = False
        """Whether the coherence gate stopped the run."""
        self._sampling = self._opened_sampling(file)
        self._goes_on(file.start_from)
        self._held_out = self._read_held_out(file)

    def _opened_sampling(self, file: TrainingFile) -> Sampling | None:
        """Return what draws the samples; None in a run without any, and on every rank but the first."""
        if not self.settings.sample_every:
            return None
        if self.tokenizer is None:
            if file.asks_for_samples:
                raise ConfigError(
                    f"{file.path}: andrea.sample_every: a run over token ids has no tokenizer to make text of a "
                    "sample; set it to 0"
                )
            return None
        grace_steps = self.settings.gate.grace_steps
        return Sampling(
            self.settings,
            self.curriculum,
            self.tokenizer,
            self.trainer.model,
            grace_steps=self.curriculum.total_steps // 2 if grace_steps is None else grace_steps,
        )

    def _goes_on(self, start_from: Path | None) -> None:
        """Go to the newest checkpoint of the run, or begin with another run's weights and moments."""
        if newest_checkpoint(self.folder / CHECKPOINTS) is not None:
            checkpoint = load_checkpoint(self.folder / CHECKPOINTS)
            self._check_tokenizer(checkpoint)
            self.trainer.load_state_dict(checkpoint.trainer_state)
            use_threads_of(checkpoint)
            states = checkpoint.dataset_states
            if not states:
                raise CheckpointError(
                    f"{self.folder / CHECKPOINTS}: the checkpoint was converted and does not say where the data "
                    "stands; name it as andrea.start_from of a new run"
                )
            # over prepared rows, and from a service, the state is the same on every rank, at any number of ranks
            self.dataset.load_state_dict(states[self.world.rank if len(states) == self.world.world_size else 0])
            if self._sampling is not None and checkpoint.gate_state is not None:
                self._sampling.load_state_dict(*checkpoint.gate_state)
            if self.world.is_first:
                for name in (HELD_OUT, SAMPLES):
                    keep_up_to(self.folder / name, self.trainer.num_steps)
            self._saved = self.trainer.num_steps
        elif start_from is not None:
            checkpoint = load_checkpoint(start_from)
            self._check_tokenizer(checkpoint)
            self.trainer.begin_with(checkpoint.trainer_state)

    def _check_tokenizer(self, checkpoint: Checkpoint) -> None:
        """Raise TokenizerError if the weights were trained on the ids of another tokenizer."""
        found, own = checkpoint.tokenizer, self.tokenizer
        if found is not None and own is not None and found.fingerprint != own.fingerprint:
            raise TokenizerError(
                f"the checkpoint of step {checkpoint.step} was trained with another tokenizer (fingerprint "
                f"{found.fingerprint[:8]}, {found.vocab_size} tokens) than this run's ({own.fingerprint[:8]}, "
                f"{own.vocab_size} tokens): its rows would mean other tokens; give its tokenizer.json as tokenizer.file"
            )

    def _read_held_out(self, file: TrainingFile) -> HeldOut | None:
        if file.curriculum is None or self.tokenizer is None or not self.settings.evaluate_every:
            return None
        return read_held_out(file.curriculum, self.tokenizer, num_rows=self.settings.evaluate_rows, world=self.world)

    def train(self, requests: Requests) -> TrainingReport:
        """Train until the run is over or a signal asks for an end; a checkpoint is there then."""
        if not self.trainer.num_steps and self._saved < 0:
            self.save()  # what the run began with
        with ExitStack() as stack:
            bar: TrainingProgress | None = None
            log: TrainingLog | None = None
            if self.world.is_first:
                bar = stack.enter_context(TrainingProgress(self.curriculum, self.trainer, self.settings.log_every))
                log = stack.enter_context(TrainingLog.opened(self.settings, self.folder, self.curriculum))
            must_stop = False

            def on_step(step: int, loss: float, batch: Batch) -> None:
                nonlocal must_stop
                phase = self.dataset.walk.phase_at(step)
                if bar is not None and log is not None:
                    bar.note(loss, phase)
                    log.note(step, loss, batch, phase, self.trainer, bar.tokens_per_s)
                self._sample(step + 1, batch, log)
                must_save, must_stop, self.is_halted = self.world.any_of(
                    [requests.take_save(), requests.should_stop(), self.is_halted]
                )
                must_stop = must_stop or self.is_halted
                self._between_steps(step + 1, log, must_save=must_save)

            def on_probe(probe: Batch, losses: torch.Tensor) -> None:
                if log is not None:
                    names = self.curriculum.probed_names
                    log.note_held_out(int(probe["step"]), losses_of_probe(probe, losses, names))

            report = train(
                self.dataset,
                self.trainer,
                vocab_size=self._vocab_size,
                on_step=on_step,
                on_probe=on_probe,
                should_stop=lambda: must_stop,
            )
            if self._saved != self.trainer.num_steps:
                self.save()
        return report

    def _sample(self, num_steps: int, batch: Batch, log: TrainingLog | None) -> None:
        """Draw a sample if one is due, and ask the gate; the first rank does so for all."""
        sampling = self._sampling
        if sampling is None or log is None:
            return
        sampling.note_batch(batch)
        if sampling.is_due(num_steps):
            sample = sampling.draw(num_steps)
            log.note_sample(sample)
            post_sample(self.dataset, sample)
            self.is_halted = sampling.gate.is_halted

    def _between_steps(self, num_steps: int, log: TrainingLog | None, *, must_save: bool) -> None:
        """Evaluate and save, where so many steps ask for it."""
        settings, is_over = self.settings, num_steps == self.trainer.total_steps
        if self._held_out is not None and (is_over or num_steps % settings.evaluate_every == 0):
            losses = self._held_out.losses(self.trainer)
            if log is not None:
                log.note_held_out(num_steps, losses)
        if must_save or num_steps % settings.checkpoint_every == 0 or num_steps in self._kept_always:
            self.save()

    def save(self) -> None:
        """Write a checkpoint; every rank takes part."""
        states = self.world.gathered(self.dataset.state_dict())
        if self.world.is_first:
            save_checkpoint(
                self.folder / CHECKPOINTS,
                Checkpoint(
                    self.trainer.state_dict(),
                    states,
                    self.tokenizer,
                    None if self._sampling is None else self._sampling.state_dict(),
                ),
                keep=self.settings.keep_checkpoints,
                always=self._kept_always,
            )
        self.world.wait()
        self._saved = self.trainer.num_steps


def post_sample(dataset: MixtureDataset | RemoteMixtureDataset, sample: Sample) -> None:
    """Show a sample on the page of the service, if batches come from one; training goes on if that fails."""
    if isinstance(dataset, MixtureDataset):
        return
    try:
        dataset.post_sample(sample.record())
    except MixerError as error:
        log.warning("the sample of step %d is not on the service's page: %s", sample.step, error)


def use_threads_of(checkpoint: Checkpoint) -> None:
    """Compute with as many threads as the run did so far: another number would round sums otherwise."""
    torch.set_num_threads(checkpoint.trainer_state.get("num_threads", torch.get_num_threads()))


def _tokenizer_of(dataset: MixtureDataset | RemoteMixtureDataset) -> TextTokenizer | None:
    """Return what text became token ids with; None for a run over token ids that says its vocabulary."""
    try:
        return dataset.tokenizer
    except TokenizerError:
        if dataset.curriculum.vocab_size is None:
            raise
        return None


def _say(run: TrainingRun, report: TrainingReport, *, as_json: bool) -> None:
    trainer = run.trainer
    tokens = report.num_steps * run.curriculum.batch_tokens
    summary: dict[str, Any] = {
        "steps": trainer.num_steps,
        "total_steps": trainer.total_steps,
        "steps_now": report.num_steps,
        "last_loss": report.last_loss,
        "seconds": report.total_s,
        "tokens_per_s": tokens / report.total_s if report.total_s else 0.0,
        "waiting_share": report.waiting_share,
        "reporting_share": report.reporting_share,
        "parameters": trainer.model.config.num_parameters,
        "halted": run.is_halted,
        "checkpoint": str(newest_checkpoint(run.folder / CHECKPOINTS)),
    }
    if as_json:
        print_json(summary)
    elif report.last_loss is not None:
        results().print(
            f"step {trainer.num_steps} of {trainer.total_steps}: loss {report.last_loss:.3f} nats per token, "
            f"{summary['tokens_per_s']:,.0f} tokens/s; {report.waiting_share:.1%} of the time waiting for data, "
            f"{report.reporting_share:.1%} reporting losses\ncheckpoint {summary['checkpoint']}",
            highlight=False,
            soft_wrap=True,
        )
    if run.is_halted:
        gate, total = run.settings.gate, trainer.total_steps
        talk().print(
            f"halted by the coherence gate at step {trainer.num_steps} of {total}: {gate.patience} samples in a row "
            f"scored less than {gate.threshold:g} of 100; read them with `andrea samples {run.folder}`, and go back to "
            "a checkpoint from before them, pivot, or set andrea.gate.halt to false and run it again to go on",
            soft_wrap=True,
        )
    elif trainer.num_steps < trainer.total_steps:
        talk().print(f"stopped at step {trainer.num_steps} of {trainer.total_steps}; run it again to go on")
    elif not report.num_steps:
        talk().print(f"the run in {run.folder} was over already: {trainer.num_steps} steps", soft_wrap=True)
