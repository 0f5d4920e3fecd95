"""The command ``andrea samples``: what a model wrote while it was trained, with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from andrea.lines import read_lines
from mixer.cli.output import print_json, results
from mixer.errors import MissingDataError

SAMPLES = "samples.jsonl"


def show_samples(run: Path, *, last: int | None = None, as_json: bool = False) -> None:
    """Print the samples in a run's folder, oldest first.

    Raises:
        MissingDataError: the folder has none.
        CheckpointError: the file is damaged; a torn last line is left out with a warning.
    """
    path = run / SAMPLES
    found = read_lines(path)
    if not found:
        raise MissingDataError(
            f"{path}: no samples; `andrea train` draws one every sample_every steps where the run has a tokenizer"
        )
    shown = found if last is None else found[-last:]
    if as_json:
        print_json({"run": str(run), "num_samples": len(found), "samples": shown})
        return
    console = results()
    for sample in shown:
        console.print(f"[bold]{headline(sample)}[/bold]", highlight=False, soft_wrap=True)
        console.print(
            f"[dim]{escape(sample['prompt'])}[/dim]{escape(sample['text'])}\n", highlight=False, soft_wrap=True
        )


def headline(sample: dict[str, Any]) -> str:
    """Return step and scores of a sample in words."""
    if sample["score"] is None:
        scored = "not scored: too little of the run's text was read"
    else:
        parts = ", ".join(f"{name} {sample[name]:.1f}" for name in ("bigrams", "trigrams", "words", "characters"))
        scored = f"coherence {sample['score']:.1f} ({parts})"
    low = f", low {sample['low_in_row']} times in a row" if sample["low_in_row"] else ""
    return f"step {sample['step']:,}: {scored}, compresses {sample['compression']:.1f} times{low}"
