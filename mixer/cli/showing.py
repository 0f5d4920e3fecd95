"""Looking at a journal, and handing it on: ``mixer plot``, ``mixer watch`` and ``mixer export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixer.cli.output import results
from mixer.cli.questions import WalkPath

OutPath = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]


def plot(
    walk: WalkPath,
    *,
    out: OutPath = Path("walk.html"),
    title: Annotated[str, typer.Option(help="Heading of the picture.")] = "Curriculum walk",
) -> None:
    """Draw a walk: weights, the walk inside its region, losses, index, proportions.

    walk.html is a page to look into, complete in one file; walk.png and walk.svg are still pictures.
    """
    from mixer.analysis.plots import write_page, write_picture  # the plotting libraries take a while to import
    from mixer.analysis.plots.picture import SUFFIXES

    if out.suffix not in (".html", *SUFFIXES):
        raise typer.BadParameter(f"{out}: the file ends in .html, {' or '.join(SUFFIXES)}", param_hint="--out")
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"{out}: there is no folder {out.parent}", param_hint="--out")
    write = write_page if out.suffix == ".html" else write_picture
    results().print(str(write(walk, out, title=title)), highlight=False, soft_wrap=True)


def watch(
    walk: Annotated[Path, typer.Argument(metavar="WALK", help="A journal; it need not exist yet.", dir_okay=False)],
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and stop.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
) -> None:
    """Watch a run in progress: its phase, its weights between their bounds, losses, speed. Ctrl-C stops.

    The view follows the file as it grows, also when the run is restarted from a snapshot.
    """
    from rich.live import Live

    from mixer.analysis.watch import Follower, frame

    follower = Follower(walk)
    if once:
        follower.poll()
        results().print(frame(follower))
        return
    try:
        with Live(console=results(), screen=False, auto_refresh=False) as live:
            while True:
                follower.poll()
                live.update(frame(follower), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return


def export(
    walk: WalkPath,
    *,
    to: Annotated[Literal["parquet", "csv", "tensorboard"], typer.Option(help="What to write.")],
    out: OutPath,
) -> None:
    """Write a walk's phases and feedback as tables, or as event files for TensorBoard.

    The folder gets phases and feedback, one row per source each, as Parquet or CSV.
    """
    from mixer.analysis.export import export_tables, export_tensorboard

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise typer.BadParameter(f"{out} is there already; name a new or an empty folder", param_hint="--out")
    files = [export_tensorboard(walk, out)] if to == "tensorboard" else export_tables(walk, out, to)
    for file in files:
        results().print(str(file), highlight=False, soft_wrap=True)
