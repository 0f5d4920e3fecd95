"""The demo run: gather, tokenise, train, look. Everything a user's own loop would do, with a progress bar."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from mixer.analysis.plots import write_page
from mixer.cli.output import print_json, print_table, results
from mixer.config.curriculum import Curriculum
from mixer.config.files import shipped_config
from mixer.errors import MissingDependencyError
from mixer.journal.file import Journal
from mixer.journal.tables import JournalTables, read_tables
from mixer.sources.base import Progress as SourceProgress
from mixer.sources.local import gather
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import load_tokenizer
from mixer.walk.walk import Walk

if TYPE_CHECKING:
    from service.client.dataset import RemoteMixtureDataset

try:
    import torch

    from andrea.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
    from andrea.inspection.opening import open_subject
    from andrea.inspection.report import write_report
    from andrea.inspection.subject import Effort
    from andrea.model import Andrea, ModelConfig
    from andrea.run import use_threads_of
    from andrea.serving import serving
    from andrea.signals import requests_by_signal
    from andrea.train import Trainer, TrainingConfig, TrainingReport, train
    from mixer.dataset import MixtureDataset
    from mixer.delivery.tensors import Batch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError(
        "the demo trains a model, which needs PyTorch: pip install 'curriculum-mixer[torch]'"
    ) from error

PEAK_LR = 3e-3  # tiny learns fastest near this; ANDREA-120M's 3e-4 is for a model 100 times its size
CHECKPOINT_STEPS = 50
KEPT_CHECKPOINTS = 2  # and those of the pivots, to compare with
TRIED_STEPS = 5  # with each number of threads, after one that warms up: a second in all
CHECKPOINTS, JOURNAL, PAGE, REPORT = "checkpoints", "journal.jsonl", "walk.html", "report.html"
NAME = "demo"  # of the service's run

talk = Console(stderr=True)


def run_demo(
    out: Path, *, num_steps: int | None, config: Path | None, is_served: bool, has_report: bool, as_json: bool
) -> None:
    """Train to the end, or to Ctrl-C, and say what happened; exit code 1 if it was stopped."""
    curriculum = Curriculum.from_yaml(config or shipped_config("demo.yaml"))
    if num_steps is not None:
        curriculum = curriculum.model_copy(update={"total_steps": num_steps})
    out = _run_folder(out, curriculum)
    gather_sources(curriculum)
    with talk.status("loading the tokenizer (trained on this text the first time)"):
        tokenizer = load_tokenizer(curriculum)
    if is_served:
        path = config or shipped_config("demo.yaml") if num_steps is None else _written(curriculum, out / "demo.json")
        journal_path = out / NAME / JOURNAL
        from service.client.dataset import RemoteMixtureDataset

        with serving(path, out, name=NAME) as url:
            talk.print(f"the service and its page are at {url}", soft_wrap=True)
            remote = RemoteMixtureDataset(url, 0, 1)
            _run(curriculum, remote, out, tokenizer, journal_path, has_report=has_report, as_json=as_json)
            if sys.stdout.isatty():
                _stay(url)
        return
    journal_path = out / JOURNAL
    with Journal.open(journal_path) if journal_path.exists() else Journal.create(journal_path) as journal:
        dataset = MixtureDataset(curriculum, tokenizer=tokenizer, journal=journal)
        _run(curriculum, dataset, out, tokenizer, journal_path, has_report=has_report, as_json=as_json)


def _run(
    curriculum: Curriculum,
    dataset: MixtureDataset | RemoteMixtureDataset,
    out: Path,
    tokenizer: TextTokenizer,
    journal_path: Path,
    *,
    has_report: bool,
    as_json: bool,
) -> None:
    """Train a model on a data set from where the last checkpoint stands, and say what happened."""
    model = Andrea(ModelConfig.tiny(tokenizer.vocab_size, curriculum.sequence_length), seed=curriculum.seed)
    settings = TrainingConfig(peak_lr=PEAK_LR, weight_decay=0.1).scaled_to(curriculum.total_steps)
    trainer = Trainer(model, settings, curriculum.total_steps)
    if newest_checkpoint(out) is not None:
        checkpoint = load_checkpoint(out)
        trainer.load_state_dict(checkpoint.trainer_state)
        use_threads_of(checkpoint)
        dataset.load_state_dict(checkpoint.dataset_states[0])
        talk.print(f"going on from step {dataset.step}")
    else:
        torch.set_num_threads(quickest_num_threads(model.config, curriculum.batch_rows))
    losses, report = _train(dataset, trainer, tokenizer, out / CHECKPOINTS)
    is_over = dataset.step >= curriculum.total_steps
    pages = {"page": write_page(journal_path, out / PAGE, title="A small ANDREA learns under a curriculum walk")}
    if is_over and has_report:
        with talk.status("looking inside the model"):
            subject = open_subject(out, journal=journal_path, curriculum=curriculum)
            pages["report"] = write_report(out / REPORT, subject, Effort.quick())
    _say(curriculum, dataset, report, losses=losses, journal_path=journal_path, pages=pages, as_json=as_json)
    if not is_over:
        talk.print(f"stopped at step {dataset.step} of {curriculum.total_steps}; run it again to go on")
        sys.exit(1)


def quickest_num_threads(config: ModelConfig, num_rows: int) -> int:
    """Return how many threads train a model fastest just now: one, or as many as torch would use.

    On quiet cores two threads are faster than one. Beside other work each waits for the slower of the two after every
    matrix, and spins meanwhile: a step then takes longer, at several times the work.
    """
    most = torch.get_num_threads()
    trainer = Trainer(Andrea(config), TrainingConfig(), total_steps=1)
    ids = torch.zeros((num_rows, config.context), dtype=torch.int64)
    taken: dict[int, list[float]] = {1: [], most: []}
    if most > 1:
        for _ in range(1 + TRIED_STEPS):
            for num_threads, seconds in taken.items():
                torch.set_num_threads(num_threads)
                begun_s = time.perf_counter()
                trainer.step({"input_ids": ids, "labels": ids})
                seconds.append(time.perf_counter() - begun_s)
        torch.set_num_threads(most)
    return min(taken, key=lambda num_threads: statistics.median(taken[num_threads][1:] or [0.0]))


def _written(curriculum: Curriculum, path: Path) -> Path:
    """Write a curriculum for the service to read; JSON is YAML."""
    path.write_text(curriculum.model_dump_json(exclude_none=True), encoding="utf-8")
    return path


def _stay(url: str) -> None:
    talk.print(f"the run is over; {url} stays until Ctrl-C", soft_wrap=True)
    with requests_by_signal() as requests:
        while not requests.should_stop():
            time.sleep(0.2)


def gather_sources(curriculum: Curriculum) -> None:
    """Gather the local collections that the curriculum names, with a progress bar."""
    names = [source.local for source in curriculum.sources if source.local is not None]
    for name in track(names, description="gathering text", console=talk, transient=True):
        gather(name)


def _run_folder(out: Path, curriculum: Curriculum) -> Path:
    """Return the folder to use: a run that is unfinished goes on, a finished one is moved aside."""
    if newest_checkpoint(out) is not None and load_checkpoint(out).step >= curriculum.total_steps:
        number = next(n for n in range(1, sys.maxsize) if not out.with_name(f"{out.name}-{n}").exists())
        aside = out.with_name(f"{out.name}-{number}")
        out.rename(aside)
        talk.print(f"the finished run that was here is now in {aside}")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _train(
    dataset: MixtureDataset | RemoteMixtureDataset, trainer: Trainer, tokenizer: TextTokenizer, checkpoints: Path
) -> tuple[list[float], TrainingReport]:
    """Train with a progress bar, checkpointing on the way and at the end; Ctrl-C stops after the step under way."""
    losses: list[float] = []
    curriculum = dataset.curriculum
    pivots = frozenset(pivot.at_step for pivot in curriculum.pivots)

    def save() -> None:
        checkpoint = Checkpoint(trainer.state_dict(), [dataset.state_dict()], tokenizer)
        save_checkpoint(checkpoints, checkpoint, keep=KEPT_CHECKPOINTS, always=pivots)

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TextColumn("{task.fields[phase]}", style="cyan"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=talk) as bar, requests_by_signal() as requests:
        total, done = curriculum.total_steps, dataset.step
        task = bar.add_task("training", total=total, completed=done, loss=float("nan"), phase="")

        def on_step(step: int, loss: float, batch: Batch) -> None:
            losses.append(loss)
            phase = dataset.walk.phase_at(step)
            top = np.argsort(-phase.weights)[:2]
            leaders = ", ".join(f"{phase.names[i]} {phase.weights[i]:.2f}" for i in top)
            bar.update(task, advance=1, loss=loss, phase=f"{phase.regime}, {phase.kind} phase: {leaders}")
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 in pivots:
                save()

        report = train(
            dataset, trainer, vocab_size=tokenizer.vocab_size, on_step=on_step, should_stop=requests.should_stop
        )
    save()
    return losses, report


def _say(
    curriculum: Curriculum,
    dataset: MixtureDataset | RemoteMixtureDataset,
    report: TrainingReport,
    *,
    losses: list[float],
    journal_path: Path,
    pages: dict[str, Path],
    as_json: bool,
) -> None:
    story = read_tables(journal_path)
    rows = _table(curriculum, dataset, story)
    summary: dict[str, Any] = {
        "steps": dataset.step,
        "phases": len(story.phases),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": report.total_s,
        "waiting_share": report.waiting_share,
        "reporting_share": report.reporting_share,
        "journal": str(journal_path),
        **{name: str(path) for name, path in pages.items()},
    }
    if as_json:
        print_json({**summary, "sources": rows})
        return
    print_table(f"{dataset.step} steps in {len(story.phases)} phases", rows)
    console = results()
    if losses:
        console.print(
            f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token; {report.total_s:.0f} s, "
            f"{report.waiting_share:.1%} of it waiting for data and {report.reporting_share:.1%} reporting losses",
            highlight=False,
        )
    for name in ("journal", *pages):
        console.print(f"{name:<7} {summary[name]}", highlight=False, soft_wrap=True)


def _table(
    curriculum: Curriculum, dataset: MixtureDataset | RemoteMixtureDataset, story: JournalTables
) -> list[dict[str, Any]]:
    """Return a row per source: bounds and weight now, what was drawn, first and last loss."""
    step = max(dataset.step - 1, 0)
    walk = dataset.walk
    phase = walk.phase_at(step)
    region = walk.regime_at(step).region if isinstance(walk, Walk) else walk.region_at(step)
    progress = dataset.progress()
    num_rows = max(sum(progress[name].rows for name in curriculum.names), 1)
    losses = story.first_and_last_losses()
    return [
        {
            "source": name,
            "floor": float(region.floors[i]),
            "cap": float(region.caps[i]),
            "weight": float(phase.weights[i]),
            "proportion": progress[name].rows / num_rows,
            "tokens": progress[name].tokens,
            "epochs": _epochs(progress[name]),
            "first_loss": losses[i][0],
            "last_loss": losses[i][1],
        }
        for i, name in enumerate(curriculum.names)
    ]


def _epochs(progress: SourceProgress) -> float | None:
    return progress.tokens / progress.unique_tokens if progress.unique_tokens else None
