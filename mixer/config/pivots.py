"""Pivots: steps from which on other bounds hold, or another rule decides; planned by the file or asked for live."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError

from mixer.config.policy import MAX_STEPS
from mixer.config.problems import describe
from mixer.config.rules import RuleFields, Weight
from mixer.config.sources import Name
from mixer.errors import ConfigError
from mixer.region.regimes import FIREHOSE, WARMUP, Bounds

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum


class _PivotFields(RuleFields):
    name: Name
    floors: dict[str, Weight] | None = None
    caps: dict[str, Weight] | None = None
    exclude: tuple[str, ...] | None = None

    @classmethod
    def to(cls, bounds: Bounds, **fields: Any) -> Self:
        """Return the pivot after which these bounds are in force."""
        return cls(floors=dict(bounds.floors), caps=dict(bounds.caps), exclude=bounds.exclude, **fields)

    def apply(self, bounds: Bounds) -> Bounds:
        """Return the bounds in force after this pivot."""
        return bounds.replaced(floors=self.floors, caps=self.caps, exclude=self.exclude)

    def as_asked(self) -> dict[str, Any]:
        """Return the fields that were given, a policy without settings by its name, as a request has them."""
        policy = self.policy
        is_bare = policy is not None and policy.model_fields_set <= {"name"}
        return self.model_dump(exclude_none=True) | ({"policy": policy.name} if policy is not None and is_bare else {})

    @property
    def hands_over_alone(self) -> bool:
        """Whether it says who decides and leaves the bounds as they are."""
        return self.has_rule and self.floors is None and self.caps is None and self.exclude is None


class Pivot(_PivotFields):
    """A redrawing of the region: each table given replaces the one in force, each left out stays.

    So does who decides: ``weights``, along a ramp if ``ramp_steps`` is given, or a ``policy``.
    """

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            name = data.get("name")
            raise ConfigError([f"pivot {name}: {problem}" for problem in describe(error, type(self))]) from error


class ScheduledPivot(_PivotFields):
    """A pivot that the file plans for a step."""

    at_step: int = Field(gt=0, le=MAX_STEPS)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the pivot that a journal's line says."""
        return cls(**{key: record[key] for key in cls.model_fields if key in record})


def schedule_problems(curriculum: Curriculum) -> list[str]:
    """Return a sentence for each planned pivot that is out of order, has a name twice, or no whole phases reach."""
    problems = []
    starts = [(curriculum.curriculum_warmup_steps, "the warmup's end")] if curriculum.curriculum_warmup_steps else []
    starts += [(pivot.at_step, f"pivot {pivot.name}") for pivot in curriculum.pivots]
    for earlier, later in itertools.pairwise(curriculum.pivots):
        if later.at_step <= earlier.at_step:
            problems.append(
                f"pivots must be in order: {later.name} at step {later.at_step} is listed after "
                f"{earlier.name} at step {earlier.at_step}"
            )
    names = [pivot.name for pivot in curriculum.pivots]
    problems += [f"two pivots are named {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    problems += [
        f"a pivot is named {name}, as every run's own regime is; give it another name"
        for name in (WARMUP, FIREHOSE)
        if name in names
    ]
    if not problems:
        problems += curriculum.phase_law.boundary_problems(sorted(starts))
    return problems
