"""Steps that shrink towards the end of the run or regime (``policy: {eta_decay: ...}``)."""

from __future__ import annotations

import math

from mixer.walk.schedule import Schedule


def eta_in_force(plan: Schedule, start: int) -> tuple[float, float] | None:
    """Return the eta of a phase that begins at ``start`` and its share of its policy's; None without a decay.

    With t the share of the run, or of its regime, that is over: ``eta (1 - t)`` (linear) or ``eta (1 + cos pi t) / 2``
    (cosine; Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts). Regimes begin anew at t = 0.
    """
    policy = plan.rule_at(start).policy
    decay = getattr(policy, "eta_decay", "none")
    if decay == "none":
        return None
    begin, end = 0, plan.curriculum.total_steps
    if policy.eta_decay_over == "regime":  # type: ignore[union-attr]
        begin, end = plan.regime_at(start).start, plan.boundary_after(start) or end
    over = min(max((start - begin) / max(end - begin, 1), 0.0), 1.0)
    share = 1.0 - over if decay == "linear" else (1.0 + math.cos(math.pi * over)) / 2
    return policy.eta * share, share  # type: ignore[union-attr]
