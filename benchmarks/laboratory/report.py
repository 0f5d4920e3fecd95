"""What the runs of a study say together: a table with paired intervals, and curves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.laboratory.corpora import PLANTED

Run = Mapping[str, Any]
REFERENCES = ("uniform", "unimax-4")


def final(run: Run) -> dict[str, float]:
    """Return the held-out loss of each source at the end."""
    losses: dict[str, float] = run["curve"][-1][1]
    return losses


def mean_final(run: Run) -> float:
    """Return the mean over real sources of the held-out loss at the end."""
    return float(np.mean(list(final(run).values())))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and the half width of its 95 % interval (Student's t)."""
    differences = np.array(ours) - np.array(theirs)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    spread = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(stats.t.ppf(0.975, len(differences) - 1) * spread)


def steps_to_reach(run: Run, loss: float) -> float:
    """Return the step at which a run's mean held-out loss is at ``loss`` first, interpolated; inf if never."""
    points = [(step, float(np.mean(list(losses.values())))) for step, losses in run["curve"]]
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low) if high > loss else float(before)
    return float("inf")


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a study's table, best arm first; seeds are paired with those of the references."""
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for arm, seeds in sorted(by_arm.items(), key=lambda item: np.mean([mean_final(run) for run in item[1].values()])):
        row = [arm, str(len(seeds)), f"{np.mean([mean_final(run) for run in seeds.values()]):.4f}"]
        for reference in REFERENCES:
            common = sorted(seeds.keys() & by_arm.get(reference, {}).keys())
            if not common or arm == reference:
                row.append("")
                continue
            theirs = by_arm[reference]
            mean, half = paired([mean_final(seeds[s]) for s in common], [mean_final(theirs[s]) for s in common])
            row.append(f"{mean:+.4f} ± {half:.4f}")
        uniform = by_arm.get("uniform", {})
        common = sorted(seeds.keys() & uniform.keys())
        worst = [max(final(seeds[s])[name] / final(uniform[s])[name] for name in final(seeds[s])) - 1 for s in common]
        reached = [steps_to_reach(seeds[s], mean_final(uniform[s])) / uniform[s]["curve"][-1][0] for s in common]
        row.append(f"{np.mean(worst):+.2%}" if common else "")
        row.append(f"{np.mean(reached):.2f}" if common else "")
        row += [f"{np.mean([run['drawn'].get(name, 0) for run in seeds.values()]):.3f}" for name in PLANTED]
        row.append(f"{np.mean([run['deciding_share'] for run in seeds.values()]):.2%}")
        rows.append(row)
    columns = [
        "arm",
        "seeds",
        "mean loss",
        *(f"less {r}" for r in REFERENCES),
        "worst source",
        "steps to uniform's end",
    ]
    return [*columns, *PLANTED, "waiting and reporting"], rows


def write_curves(runs: Sequence[Run], path: Path, title: str) -> None:
    """Write the mean held-out loss over steps of each arm as a page, and as a PNG beside it."""
    import matplotlib.pyplot as plt
    import plotly.graph_objects as go

    curves: dict[str, list[list[float]]] = {}
    steps: list[int] = []
    for run in runs:
        steps = [step for step, _ in run["curve"]]
        curves.setdefault(run["arm"], []).append([float(np.mean(list(losses.values()))) for _, losses in run["curve"]])
    page = go.Figure(layout={"title": title, "xaxis_title": "step", "yaxis_title": "held-out loss, nats a token"})
    picture, axes = plt.subplots(figsize=(9, 5))
    for arm, values in curves.items():
        mean = np.mean(values, axis=0)
        page.add_scatter(x=steps, y=mean, name=arm, mode="lines+markers")
        axes.plot(steps, mean, label=arm)
    axes.set(title=title, xlabel="step", ylabel="held-out loss, nats a token")
    axes.legend(fontsize=7)
    page.write_html(path, include_plotlyjs=True)
    picture.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(picture)
