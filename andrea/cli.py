"""`mixer demo`: the whole system on real text from this machine, in about two minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run: journal, checkpoint, page.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train; default: the file's total_steps.")] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A curriculum instead of the shipped demo.yaml.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing table as JSON.")] = False,
) -> None:
    """Train a small ANDREA on text found on this machine while the walk moves the mixture.

    Gathers local text, trains a tokenizer, trains the model with a progress bar, and ends with a table, a journal and
    a page to look at. Ctrl-C stops cleanly; running it again goes on where it stopped. A finished run is kept beside
    the new one.
    """
    from andrea.demo import run_demo  # torch takes seconds to import: `mixer --help` should not wait for it

    run_demo(out, num_steps=steps, config=config, as_json=as_json)
