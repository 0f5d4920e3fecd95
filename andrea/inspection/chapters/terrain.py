"""The third chapter: training walks on a terrain."""

from __future__ import annotations

from andrea.inspection import figures
from andrea.inspection.chapters.words import Draw, table, text
from andrea.inspection.measure import Terrain
from andrea.inspection.simplex import pivot_steps
from andrea.inspection.subject import Subject


def terrain_chapter(subject: Subject, found: Terrain | None, draw: Draw) -> str:
    """A line, a plane, the basin, its sharpness, the cliff; needs text."""
    parts = [
        "<h2>3. Training walks on a terrain</h2>",
        text(
            f"All {subject.model.config.num_parameters:,} parameters together are one point, and the loss gives a",
            "height to each point. Nobody can see that many dimensions. But the heights along a line, on a plane or",
            "around a point can be measured.",
        ),
    ]
    if found is None:
        return "".join([*parts, text("No text was given, so no loss could be measured.")])
    parts.append(
        text(
            f"Heights below are mean losses over {found.rows} rows of {found.row_tokens} tokens of the run's own",
            f"text, in nats a token; this checkpoint stands at <b>{found.loss:.3f}</b>.",
        )
    )
    parts += [
        *_line(subject, found, draw),
        "<h3>A plane through the checkpoint</h3>",
        text(
            "Two random directions span a plane. Each row of parameters is moved in proportion to its own length",
            "(Li et al., 2018), so that 1 on an axis shakes every row by as much as it is long. Two directions of",
            "millions show little: a flat map does not mean that all directions are flat.",
        ),
        draw(figures.plane_figure(found)),
        *_basins(subject, found, draw),
        *_sharpness(found, draw),
        *_cliff(found, draw),
    ]
    return "".join(parts)


def _line(subject: Subject, found: Terrain, draw: Draw) -> list[str]:
    if found.line is None or subject.before is None:
        return []
    barrier = found.line.barrier
    return [
        "<h3>The line between two checkpoints</h3>",
        text(
            f"One walks straight from step {subject.before[1]:,} to step {subject.step:,}, and a quarter beyond at",
            "either end. The barrier is how far the path rises above a straight slope between the two heights. Here",
            f"it is <b>{barrier:.3f}</b> nats:",
            "both lie in one basin." if barrier < 0.01 else "there is a hill between the two.",
        ),
        draw(figures.line_figure(found, subject.before[1], subject.step)),
    ]


def _basins(subject: Subject, found: Terrain, draw: Draw) -> list[str]:
    before = None if subject.before is None else subject.before[1]
    widest = float(found.basin.scales[-1])
    widths = found.basin.widths()
    limit = f" (at least: some seeds never rose so far by {widest:g})" if float(widths.max()) >= widest else ""
    parts = [
        "<h3>How wide the basin is</h3>",
        text(
            "All parameters are shaken at once by noise, row by row in proportion to their lengths, in",
            f"{len(found.basin.rises)} random directions. The <b>width</b> is the scale at which the loss has risen",
            f"by 0.1 nats. Here it is <b>{float(widths.mean()):.3f}</b>{limit}.",
        ),
    ]
    found_both = found.comparison
    if found_both is not None and before is not None:
        low, high = found_both.interval
        verdict = (
            "wider" if low > 0 else "narrower" if high < 0 else "neither wider nor narrower, as far as this can tell"
        )
        parts.append(
            text(
                f"At step {before:,}{_pivot_note(subject, before)} it was {found_both.before:.3f}. Both were shaken",
                "in the same directions, so they can be compared seed by seed: the width grew in",
                f"{found_both.num_wider} of {found_both.num_seeds}, and changed by {found_both.difference:+.3f} on",
                f"average (95 % interval over directions {low:+.3f} to {high:+.3f}): <b>{verdict}</b>. The interval",
                "says nothing of other runs. A model that has learned more also has more to lose, so widths tend to",
                "shrink as the loss falls.",
            )
        )
    return [*parts, draw(figures.basin_figure(found, before, subject.step))]


def _pivot_note(subject: Subject, step: int) -> str:
    if subject.story is None:
        return ""
    between = [start for start in pivot_steps(subject.story) if step <= start < subject.step]
    return f", before the pivot at step {between[0]:,}," if between else ""


def _sharpness(found: Terrain, draw: Draw) -> list[str]:
    highest = {kind: max(moments, key=lambda m: m.sharpness) for kind, moments in found.early.items()}
    last = {kind: moments[-1] for kind, moments in found.early.items()}
    peak = found.early["without"][0].learning_rate
    return [
        "<h3>How sharply it curves, and what warmup does</h3>",
        text(
            "The <b>sharpness</b> is the largest eigenvalue of the Hessian, the matrix of second derivatives: the",
            "curvature in the steepest direction. Plain gradient descent with a learning rate above 2 / sharpness",
            "would bounce out of that direction. AdamW scales each parameter's step, so its own limit is another one.",
        ),
        table(
            ["step", "sharpness", "2 / sharpness"],
            [
                (f"{step:,}", f"{value.value:.2f}", f"{2 / value.value:.4f}" if value.value > 0 else "")
                for step, value in found.sharpness.items()
            ],
        ),
        text(
            f"Two fresh models took {last['with'].step} steps from the same start on the same text, to a peak",
            f"learning rate of {peak:g}: one with LR warmup, one at the peak from the first step. The largest",
            f"sharpness measured was {highest['with'].sharpness:.1f} (step {highest['with'].step}) with warmup and",
            f"{highest['without'].sharpness:.1f} (step {highest['without'].step}) without. The losses at the end",
            f"were {last['with'].loss:.2f} and {last['without'].loss:.2f}. This is one run of a small model each: it",
            "shows what to look at, and proves nothing about warmup.",
        ),
        draw(figures.early_figure(found)),
    ]


def _cliff(found: Terrain, draw: Draw) -> list[str]:
    cliff = found.cliff
    row, other = cliff.row_losses, cliff.other_losses
    below = (row <= 0.13).nonzero().flatten()
    row_width, other_width = (float(basin.widths().mean()) for basin in (cliff.row_basin, cliff.other_basin))
    reached = f"It fell below 0.13 nats after {int(below[0])} steps." if len(below) else "It did not fall to 0.13 nats."
    return [
        "<h3>The cliff: a row learned by heart</h3>",
        text(
            "At step 112,080 ANDREA-120M reported a loss of 0.13 on a piece of text that it had memorised. The same",
            "can be done here: a copy of the checkpoint trains on one row alone. The loss of the row went from",
            f"{float(row[0]):.2f} to {float(row[-1]):.3f} in {len(row) - 1} steps. {reached} That of other text went",
            f"from {float(other[0]):.2f} to {float(other[-1]):.2f}.",
        ),
        draw(figures.cliff_figure(found)),
        table(
            ["measured at the model that knows the row", "for the row", "for other text"],
            [
                ("width of the basin (rise of 0.1 nats)", f"{row_width:.3f}", f"{other_width:.3f}"),
                ("sharpness there", f"{cliff.row_sharpness[1]:.2f}", f"{cliff.other_sharpness[1]:.2f}"),
                ("sharpness at the checkpoint", f"{cliff.row_sharpness[0]:.2f}", f"{cliff.other_sharpness[0]:.2f}"),
            ],
        ),
        text(
            "The lesson calls this a narrow gully. Compare the two columns: where a loss is close to 0, the softmax",
            "is sure of every token and a small move changes nothing, so the floor of the gully can be flat for the",
            "row itself while the ground has become steep for all other text.",
        ),
    ]
