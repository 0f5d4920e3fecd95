"""Questions to a journal: ``mixer explain``, ``mixer advise`` and ``mixer effects``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixer.cli.output import AsJson, print_json, print_table, results

WalkPath = Annotated[Path, typer.Argument(metavar="WALK", help="A journal.", exists=True, dir_okay=False)]
PolicyName = Literal[
    "ucb",
    "water_filling",
    "linear",
    "d_ucb",
    "sw_ucb",
    "andrea",
    "odm",
    "exp3",
    "softmax",
    "ado",
    "unimax",
    "proportional",
    "static",
    "random",
]
SHOWN = 40  # rows of a long table; --json has all


def explain(
    walk: WalkPath,
    *,
    step: Annotated[int, typer.Option(min=0, help="The step to explain.")],
    as_json: AsJson = False,
) -> None:
    """Say why the mixture was what it was at a step: its phase, its index, its bounds, what had arrived.

    Only the lines that it needs are read and checked; `mixer replay` checks them all.
    """
    from mixer.analysis.explain import PARTS
    from mixer.analysis.explain import explain as explain_step

    answer = explain_step(walk, step)
    if as_json:
        print_json(answer)
        return
    out = results()
    for sentence in answer["words"]:
        out.print(sentence, highlight=False, markup=False)
    losses = (answer["feedback"] or {}).get("mean_losses", {})
    columns = ("source", "weight", "change", "floor", "cap", "binds", "vertex")
    print_table(f"weights at step {step}", [{key: _shown(row[key]) for key in columns} for row in answer["sources"]])
    parts = [key for key in PARTS if key in answer["sources"][0]]
    rows = [
        {"source": row["source"], **{key: _shown(row[key]) for key in parts}, "loss": losses.get(row["source"])}
        for row in answer["sources"]
    ]
    print_table("what was known of each source (an empty index: not enough yet, comes first)", rows)


def _shown(value: object) -> object:
    """Return small numbers, such as an index of 1e-9, in a form that a column of three decimals would hide."""
    if isinstance(value, float) and value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if isinstance(value, float) and 0 < abs(value) < 0.001 else value


def advise(
    walk: WalkPath,
    *,
    policy: Annotated[PolicyName, typer.Option(help="Who is asked.")],
    steps: Annotated[str, typer.Option(help="FIRST..LAST: the phases that touch these steps; default: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what another policy would have chosen next at each state of a walk.

    Decisions only: what would have come of them cannot be read off a log.
    """
    import numpy as np

    from mixer.analysis.advise import CAVEAT
    from mixer.analysis.advise import advise as ask
    from mixer.journal.lookup import JournalIndex

    first, last = _span(steps)
    names = [source["name"] for source in JournalIndex(walk).header["curriculum"]["sources"]]
    rows, everything = [], []
    for advice in ask(walk, policy, first=first, last=last):
        moved = np.argsort(-np.abs(advice.advised - advice.played), kind="stable")[:3]
        changes = ", ".join(f"{names[i]} {advice.advised[i] - advice.played[i]:+.3f}" for i in moved)
        row = {"phase": advice.index, "start": advice.start, "kind": advice.kind, "distance": advice.distance}
        rows.append(
            {**row, "would_have_been": advice.advised_kind, "instead": changes if advice.distance else "the same"}
        )
        if as_json:
            weights = {"played": advice.played, "advised": advice.advised, "vertex": advice.vertex}
            everything.append({**row, "advised_kind": advice.advised_kind, **weights})
    mean = float(np.mean([row["distance"] for row in rows]))
    if as_json:
        print_json({"policy": policy, "caveat": CAVEAT, "sources": names, "mean_distance": mean, "phases": everything})
        return
    title = f"{policy} beside the walk: {len(rows)} phases, {mean:.3f} of the rows elsewhere on average"
    print_table(title + (f" (the last {SHOWN} are shown)" if len(rows) > SHOWN else ""), rows[-SHOWN:])
    results().print(CAVEAT, highlight=False)


def _span(text: str) -> tuple[int, int | None]:
    """Read ``a..b``, ``a..``, ``..b`` or a single step."""
    first, dots, last = text.partition("..")
    try:
        span = (int(first or 0), (int(last) if last else None) if dots or not text else int(first))
    except ValueError:
        span = (-1, None)
    if span[0] < 0 or (span[1] is not None and span[1] < span[0]):
        raise typer.BadParameter(
            f"{text!r} is no span of steps; write FIRST..LAST, such as 1000..2000", param_hint="--steps"
        )
    return span


def effects(
    walk: WalkPath,
    *,
    outcome: Annotated[str, typer.Option(help="fall, loss, fall:SOURCE or loss:SOURCE.")] = "fall",
    carry_over: Annotated[int, typer.Option(min=0, help="Phases for which a phase's kind may still matter.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Estimate what one phase of a mixture does, from the phases whose mixture was drawn at random.

    Refuses when there are too few of them, and says how many are needed.
    """
    from mixer.analysis.effects import effects as estimate

    answer = estimate(walk, outcome=outcome, carry_over=carry_over)
    if as_json:
        print_json(answer)
        return
    print_table(
        f"{answer['outcome']}: effect of 0.1 more of a source in {answer['num_phases']} random phases"
        + (f" ({answer['num_cut']} more were cut by a pivot and do not count)" if answer["num_cut"] else ""),
        [{key: _signed(value) for key, value in row.items()} for row in answer["sources"]],
    )
    out = results()
    how = "every permutation" if answer["is_exact"] else "random permutations"
    out.print(f"p-value that no weight matters at all: {answer['p_value']:.4f} ({how})", highlight=False)
    out.print(_contrast_sentence(answer["contrast"]), highlight=False)
    out.print(
        "Effects of one phase, averaged over the states of this run; not what another run would have reached.",
        highlight=False,
    )


def _signed(value: object) -> object:
    return (
        f"{value:+.5f}"
        if isinstance(value, float) and value < 0
        else f"{value:.5f}"
        if isinstance(value, float)
        else value
    )


def _contrast_sentence(contrast: dict[str, Any]) -> str:
    if "refused" in contrast:
        return f"random against bandit phases: {contrast['refused']}"
    return (
        f"random minus bandit phases (carry-over {contrast['carry_over']}): {contrast['difference']:+.5f}, standard "
        f"deviation under no effect {contrast['error']:.5f}, p-value {contrast['p_value']:.4f} "
        f"({contrast['random_windows']} and {contrast['bandit_windows']} runs)"
    )
