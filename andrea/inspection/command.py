"""The command ``andrea inspect``; torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixer.cli.output import AsJson, print_json, results, talk


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint, or of a run: its newest.", exists=True)
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    before: Annotated[
        Path | None,
        typer.Option(
            help="An earlier checkpoint; default: the last before the last pivot, or the oldest.", exists=True
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="Journal of the run; default: the one in its folder.", exists=True, dir_okay=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to measure losses on; default: the run's own.", exists=True, dir_okay=False),
    ] = None,
    sentence: Annotated[str | None, typer.Option(help="A sentence to show the attention of.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="A word to show the neighbours of; may be repeated.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less: some ten seconds for a million parameters.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Look inside a checkpoint: embedding space, attention, terrain, simplex; one page that opens offline.

    The page works the lesson's examples by hand and measures the same on the checkpoint. With --json the numbers are
    printed as well.
    """
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"{out}: there is no folder {out.parent}", param_hint="--out")
    from andrea.inspection.measure import look  # torch takes seconds to import: `--help` should not wait for it
    from andrea.inspection.opening import open_subject
    from andrea.inspection.report import numbers, write_findings
    from andrea.inspection.subject import Effort

    console = talk()

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    subject = open_subject(
        checkpoint,
        before=before,
        journal=journal,
        text=text,
        sentence=sentence,
        words=word or (),
        device=device,
        say=say,
    )
    with console.status("") as status:
        findings = look(
            subject, Effort.quick() if quick else None, say=lambda what: status.update(f"measuring: {what}")
        )
    page = write_findings(out, findings)
    if as_json:
        print_json({"page": str(page), **numbers(findings)})
        return
    results().print(str(page), highlight=False, soft_wrap=True)
