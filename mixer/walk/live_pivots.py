"""From which step on a pivot of a running walk may hold: of the newest phase, only what nobody was trained on."""

from __future__ import annotations

from mixer.errors import PivotError
from mixer.walk.state import WalkState


def first_cut(from_step: int, now: WalkState) -> int:
    """Return the first step from ``from_step`` on that a pivot may cut the newest phase at, else the frontier."""
    reported, frontier = now.inbox.last_step, now.phases.frontier
    earliest = max(from_step, _earliest_cut(now), 1, 0 if reported is None else reported + 1)
    return next((step for step in range(earliest, frontier) if now.plan.fits_from(step)), frontier)


def check_pivot_step(name: str, step: int, now: WalkState, *, cut: bool) -> None:
    """Raise PivotError unless a pivot of this name may begin at ``step``.

    Args:
        name: of the pivot.
        step: its first step.
        now: of the walk.
        cut: whether it may cut the newest phase.
    """
    if now.plan.has_name(name):
        raise PivotError(f"there is a regime named {name} already; give the pivot another name")
    newest, earliest = now.phases.newest, now.phases.frontier
    if cut and newest is not None:
        earliest, reported = _earliest_cut(now), now.inbox.last_step
        if reported is not None and earliest <= step <= reported:
            raise PivotError(
                f"pivot {name} at step {step}: losses of step {reported} were reported, so it was trained on as it "
                f"was; ask for step {reported + 1} or later"
            )
    if step < earliest:
        decided = f"phases {'before the newest ' if cut else ''}are decided up to step {earliest - 1}"
        hint = "" if cut or newest is None else f", or cut the newest phase from step {newest.start} on"
        raise PivotError(f"pivot {name} at step {step}: {decided}; ask for step {earliest} or later{hint}")
    if step == 0:
        raise PivotError(f"pivot {name} at step 0: write its bounds into the curriculum instead")


def _earliest_cut(now: WalkState) -> int:
    """Return the first step of the newest phase that a cut may take: a second pivot does not undo what is before it."""
    newest = now.phases.newest
    start = newest.start + (now.before is None) if newest else 0
    return max(start, now.forked_at or 0)  # what is shared with the parent stays
