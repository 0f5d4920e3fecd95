"""`mixer demo`: the whole system on real text from this machine, in about two minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run: journal, checkpoint, page; default: runs/demo, or runs/served."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train; default: the file's total_steps.")] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A curriculum instead of the shipped demo.yaml.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Let a service decide and deliver, and train on what it gives.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing table as JSON.")] = False,
) -> None:
    """Train a small ANDREA on text found on this machine while the walk moves the mixture.

    Gathers local text, trains a tokenizer, trains the model with a progress bar, and ends with a table, a journal and
    a page to look at. Ctrl-C stops cleanly; running it again goes on where it stopped. A finished run is kept beside
    the new one. With ``--serve`` a service runs beside the trainer, which gets its batches over HTTP; the service's
    page stays until Ctrl-C.
    """
    if serve and config is not None and steps is not None:
        raise typer.BadParameter("the service reads the file: set its total_steps there", param_hint="--steps")
    from andrea.demo import run_demo  # torch takes seconds to import: `mixer --help` should not wait for it

    out = out or Path("runs/served" if serve else "runs/demo")
    run_demo(out, num_steps=steps, config=config, is_served=serve, as_json=as_json)
