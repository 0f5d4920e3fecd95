"""Looking at a journal: ``mixer plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    from mixer.plots import write_page, write_picture  # the plotting libraries take a while to import
    from mixer.plots.picture import SUFFIXES

    if out.suffix not in (".html", *SUFFIXES):
        raise typer.BadParameter(f"{out}: the file ends in .html, {' or '.join(SUFFIXES)}", param_hint="--out")
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"{out}: there is no folder {out.parent}", param_hint="--out")
    write = write_page if out.suffix == ".html" else write_picture
    results().print(str(write(walk, out, title=title)), highlight=False, soft_wrap=True)
