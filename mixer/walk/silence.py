"""What is said of a run whose policy decides from losses and is given none."""

from __future__ import annotations

from mixer.config.curriculum import Curriculum


def silence(curriculum: Curriculum, kind: str, start: int, policy: str | None = None) -> str | None:
    """Return what is wrong with a phase that was decided before any losses were reported; None if nothing is.

    Args:
        curriculum: the run.
        kind: of the phase; ``bandit`` if the policy, which looks at losses, chose its weights.
        start: its first step.
        policy: who decided it; by default the run's own.
    """
    if kind != "bandit" or start <= curriculum.feedback_lag:
        return None
    return (
        f"policy {policy or curriculum.policy.name} decided the phase from step {start} without a single report of "
        "losses, so it has learned nothing: call dataset.report(batch, token_losses) after each step, set feedback_lag "
        "to the batches that are fetched ahead, or choose a policy that needs no losses (static, proportional, unimax, "
        "random)"
    )
