"""The record: ``mixer replay``, ``mixer fork`` and ``mixer diff``."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mixer.cli.output import AsJson, print_json, print_table, results

Walk = Annotated[Path, typer.Argument(metavar="WALK", help="A journal.", exists=True, dir_okay=False)]
Other = Annotated[Path, typer.Argument(metavar="OTHER", help="Another journal.", exists=True, dir_okay=False)]
SHOWN = 40  # rows of a long table; --json has all


def replay(
    walk: Walk,
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="Decide under this curriculum instead of the journal's.", exists=True, dir_okay=False),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Answer over HTTP from the past, at any step, instead of comparing.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --serve: address to listen to; beyond this machine only with tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve.")] = 8642,
    tokens_file: Annotated[
        Path | None, typer.Option(help="With --serve: tokens of `mixer token create --tokens-file`.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every decision of a walk from the feedback in its journal, and compare bit for bit.

    Names the first difference and, where it can be told, its cause. Exit code 1 if there is one.
    """
    if serve:
        _server_of_the_past()(walk, host=host, port=port, tokens_file=tokens_file)
        return
    from mixer.config.curriculum import Curriculum
    from mixer.replay.verify import audit

    verdict = audit(walk, curriculum=None if config is None else Curriculum.from_yaml(config))
    if as_json:
        print_json({**asdict(verdict), "is_same": verdict.difference is None})
    else:
        out = results()
        out.print(
            f"{verdict.lines} lines, {verdict.decisions} decisions, {verdict.reports} reports, "
            f"{verdict.resumes} resumes: steps up to {verdict.last_step}",
            highlight=False,
        )
        if verdict.difference is None:
            out.print("every decision is the same to the last bit", highlight=False)
        else:
            out.print(f"first difference: {verdict.difference}", markup=False, highlight=False, soft_wrap=True)
        for cause in verdict.causes:
            out.print(f"possible cause: {cause}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if verdict.difference is None else 1)


def _server_of_the_past() -> Any:
    """Return what serves a journal; it comes with `mixer serve`, which stands above the library."""
    for entry in importlib.metadata.entry_points(group="mixer.commands", name="serve"):
        return importlib.import_module(entry.module).serve_recorded
    raise typer.BadParameter("--serve needs the service, which is not installed here")


def fork(
    walk: Walk,
    *,
    at_step: Annotated[int, typer.Option(help="The first step that the new curriculum decides.")],
    config: Annotated[Path, typer.Option(help="The new curriculum.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="The new journal; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Begin a run that shares a walk's history up to a step and goes on under another region or policy.

    The step must be where a phase of the walk begins. The new policy has learned from the shared reports.
    """
    from mixer.config.curriculum import Curriculum
    from mixer.replay.fork import fork as fork_walk

    parent = fork_walk(walk, at_step, Curriculum.from_yaml(config), out)
    if as_json:
        print_json({"journal": str(out), **{key: parent[key] for key in ("step", "digest", "line", "shared")}})
        return
    results().print(
        f"{out}: shares {parent['shared']} lines with {walk} and goes on from step {at_step}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def diff(walk: Walk, other: Other, *, as_json: AsJson = False) -> None:
    """Show where two walks first part, and how far apart their mixtures are over time.

    Exit code 1 if they differ. `l1` is the summed absolute difference of the weights, `l2` the Euclidean distance.
    """
    from mixer.replay.diff import compare

    found = compare(walk, other)
    if as_json:
        print_json(found)
    else:
        _print_comparison(found)
    raise typer.Exit(0 if found["is_same"] else 1)


def _print_comparison(found: dict[str, Any]) -> None:
    out = results()
    for row in found["config"]:
        out.print(f"config field {row['field']}: {row['a']!r}, {row['b']!r}", markup=False, highlight=False)
    for row in found["data"]:
        out.print(f"data of {row['source']}: {row['a']}, {row['b']}", markup=False, highlight=False)
    first = found["first_difference"]
    if first is not None:
        where = f"first difference: step {first['step']} (phase {first['phase']}), {first['field']}"
        out.print(f"{where}: {first['a']!r}, {first['b']!r}", markup=False, highlight=False, soft_wrap=True)
    elif found["is_same"]:
        out.print("the same phases to the last bit", highlight=False)
    else:
        steps = found["steps"]
        longer = found["walks"][int(steps[1] > steps[0])]
        same = f"the same phases up to step {min(steps) - 1}" if min(steps) else "no phase in common"
        out.print(
            f"{same}; {longer} has {abs(steps[0] - steps[1])} steps more", markup=False, highlight=False, soft_wrap=True
        )
    apart = [span for span in found["spans"] if span["l1"]]
    if apart:
        title = f"mean distance l1 {found['mean_l1']:.4f}, l2 {found['mean_l2']:.4f}; {len(apart)} spans differ"
        print_table(title + (f" (the first {SHOWN} are shown)" if len(apart) > SHOWN else ""), apart[:SHOWN])
