"""Before a run: ``mixer check`` and ``mixer simulate``."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer.cli.output import AsJson, ConfigPath, print_json, print_table, results, talk

if TYPE_CHECKING:
    from rich.table import Table

    from mixer.journal.tables import JournalTables
    from mixer.region.region import Region


def check(
    config: ConfigPath,
    *,
    reads_all: Annotated[
        bool, typer.Option("--all", help="Read every source to its end and list the records that cannot be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find everything that would stop a run before it starts.

    Opens every source, reads its first documents (with `--all` everything), loads the tokenizer, and works out the
    region of every regime. Prints all problems, not the first alone. Exit code 1 if there are any.
    """
    from mixer.analysis.check import check as check_curriculum  # reads sources: `mixer --help` should not wait for that
    from mixer.config.curriculum import Curriculum

    report = check_curriculum(Curriculum.from_yaml(config), reads_all=reads_all)
    if as_json:
        print_json(asdict(report))
    else:
        out = results()
        for regime in report.regimes:
            out.print(_regime_table(regime))
        for note in report.notes:
            out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        for record in report.bad_records:
            out.print(f"bad record: {record}", markup=False, highlight=False, soft_wrap=True)
        for problem in report.problems:
            out.print(f"problem: {problem}", markup=False, highlight=False, soft_wrap=True)
        num = len(report.problems)
        out.print("no problems found" if not num else f"{num} problem{'s' if num > 1 else ''} found")
    raise typer.Exit(1 if report.problems else 0)


def simulate(
    config: ConfigPath,
    *,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to walk; default: total_steps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for journal.jsonl and walk.html; must not hold one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Walk without data, against a synthetic learner: see how the bounds and the policy move the mixture.

    The learner's losses are power laws with noise. They show how the walk behaves, not how well a model would learn.
    """
    from rich.progress import track

    from mixer.analysis.plots import write_page
    from mixer.analysis.simulate import simulate as simulate_walk
    from mixer.config.curriculum import Curriculum  # what other commands need not wait for
    from mixer.journal.file import Journal
    from mixer.journal.tables import read_tables
    from mixer.region.regimes import regime_at

    curriculum = Curriculum.from_yaml(config)
    num_steps = steps or curriculum.total_steps
    folder = out or Path(tempfile.mkdtemp(prefix="mixer-simulate-"))
    folder.mkdir(parents=True, exist_ok=True)
    with Journal.create(folder / "journal.jsonl") as journal:
        walked = simulate_walk(curriculum, num_steps, journal=journal)
        for _ in track(walked, description="walking", total=num_steps, console=talk(), disable=as_json):
            pass
    page = write_page(folder / "journal.jsonl", folder / "walk.html", title=f"Simulated walk of {config.name}")
    story = read_tables(folder / "journal.jsonl")
    rows = _by_source(story, regime_at(curriculum.regimes, num_steps - 1).region)
    if as_json:
        print_json({"steps": num_steps, "phases": len(story.phases), "sources": rows, "page": str(page)})
        return
    print_table(f"{num_steps} steps, {len(story.phases)} phases", rows)
    results().print(f"journal {folder / 'journal.jsonl'}\npage    {page}", highlight=False, soft_wrap=True)


def _by_source(story: JournalTables, region: Region) -> list[dict[str, Any]]:
    """Return the bounds of each source at the end, and what it was given."""
    columns = zip(
        story.names,
        region.lower,
        region.upper,
        story.phases[-1]["weights"],
        story.mean_weights(),
        story.proportions(),
        strict=True,
    )
    fields = ("lower", "upper", "last_weight", "mean_weight", "proportion")
    return [{"source": name, **dict(zip(fields, map(float, numbers), strict=True))} for name, *numbers in columns]


def _regime_table(regime: dict[str, Any]) -> Table:
    from rich.table import Table

    vertices = "" if regime["num_vertices"] is None else f", {regime['num_vertices']} vertices"
    table = Table(
        title=f"{regime['name']}: steps {regime['start']} to {regime['end'] - 1}, "
        f"{regime['dimension']} dimensions{vertices}; {_decider(regime)}",
        title_justify="left",
    )
    table.add_column("source")
    table.add_column("smallest", justify="right")
    table.add_column("largest", justify="right")
    weights = regime["weights"]
    if weights:
        table.add_column("weight", justify="right")
    for name, (low, high) in regime["bounds"].items():
        table.add_row(name, f"{low:.4g}", f"{high:.4g}", *([f"{weights[name]:.4g}"] if weights else []))
    return table


def _decider(regime: dict[str, Any]) -> str:
    """Say who decides in a regime."""
    if regime["policy"] is not None:
        return f"policy {regime['policy']} decides"
    end = regime["ramp_end"]
    return "weights written by hand" + ("" if end is None else f", reached by a ramp at step {end}")
