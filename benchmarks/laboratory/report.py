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
    """Return the mean over real sources that are drawn of the held-out loss at the end."""
    return mean_of(run, final(run))


def mean_of(run: Run, losses: Mapping[str, float]) -> float:
    """Return the mean over real sources that are drawn."""
    return float(np.mean([loss for name, loss in losses.items() if name != run.get("target")]))


def target_final(run: Run) -> float:
    """Return the held-out loss of the target at the end; that of all sources in a study without one."""
    return final(run)[run["target"]] if run.get("target") else mean_final(run)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and the half width of its 95 % interval (Student's t)."""
    differences = np.array(ours) - np.array(theirs)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    spread = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(stats.t.ppf(0.975, len(differences) - 1) * spread)


def steps_to_reach(run: Run, loss: float) -> float:
    """Return the step at which a run's mean held-out loss is at ``loss`` first, interpolated; inf if never."""
    points = [(step, mean_of(run, losses)) for step, losses in run["curve"]]
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low) if high > loss else float(before)
    return float("inf")


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a study's table, best arm first; seeds are paired with those of the references.

    In a study with a target, the differences are of its loss.
    """
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    uniform = by_arm.get("uniform", {})
    rows = []
    for arm, seeds in sorted(by_arm.items(), key=lambda item: np.mean([target_final(run) for run in item[1].values()])):
        row = [arm, str(len(seeds)), f"{np.mean([mean_final(run) for run in seeds.values()]):.4f}"]
        row += [_difference(seeds, {} if arm == reference else by_arm.get(reference, {})) for reference in REFERENCES]
        common = sorted(seeds.keys() & uniform.keys())
        worst = [max(final(seeds[s])[name] / final(uniform[s])[name] for name in final(seeds[s])) - 1 for s in common]
        reached = [steps_to_reach(seeds[s], mean_final(uniform[s])) / uniform[s]["curve"][-1][0] for s in common]
        row.append(f"{np.mean(worst):+.2%}" if common else "")
        row.append(f"{np.mean(reached):.2f}" if common else "")
        row += [f"{np.mean([run['drawn'].get(name, 0) for run in seeds.values()]):.3f}" for name in PLANTED]
        row.append(f"{np.mean([run['deciding_share'] for run in seeds.values()]):.2%}")
        row.append(f"{np.mean([run['cpu_s'] for run in seeds.values()]):.0f}")
        rows.append(row)
    less = [f"{'target' if runs[0].get('target') else 'mean'} less {reference}" for reference in REFERENCES]
    columns = ["arm", "seeds", "mean loss", *less, "worst source", "steps to uniform's end", *PLANTED]
    return [*columns, "waiting and reporting", "processor, s"], rows


def _difference(seeds: Mapping[int, Run], theirs: Mapping[int, Run]) -> str:
    """Return the mean of paired differences and its interval in words; nothing where no seed is shared."""
    common = sorted(seeds.keys() & theirs.keys())
    if not common:
        return ""
    mean, half = paired([target_final(seeds[s]) for s in common], [target_final(theirs[s]) for s in common])
    return f"{mean:+.4f} ± {half:.4f}"


def write_curves(runs: Sequence[Run], path: Path, title: str) -> None:
    """Write the mean held-out loss over steps of each arm as a page, and as a PNG beside it."""
    import matplotlib.pyplot as plt
    import plotly.graph_objects as go

    curves: dict[str, list[list[float]]] = {}
    steps: list[int] = []
    for run in runs:
        steps = [step for step, _ in run["curve"]]
        curves.setdefault(run["arm"], []).append([mean_of(run, losses) for _, losses in run["curve"]])
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
