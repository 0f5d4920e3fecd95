"""Whether every name of a source in the file is declared once, and can be used where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mixer.config.policy_problems import place_of_goal, places_of_rule, unknown_names
from mixer.config.probes import drawn_target_problems

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum


def name_problems(curriculum: Curriculum) -> Iterator[str]:
    """Yield a sentence for each source that is declared twice, and for each mention of a source that is wrong."""
    declared = Counter(curriculum.probed_names)
    for name in sorted(name for name, times in declared.items() if times > 1):
        yield f"source {name} is declared {declared[name]} times; give each source its own name"
    places: list[tuple[str, Iterable[str]]] = [
        ("floors", curriculum.floors),
        ("caps", curriculum.caps),
        ("exclude", curriculum.exclude),
        ("curriculum_warmup_sources", curriculum.curriculum_warmup_sources),
    ]
    for pivot in curriculum.pivots:
        tables = (("floors", pivot.floors), ("caps", pivot.caps), ("exclude", pivot.exclude))
        places += [(f"pivot {pivot.name}: {key}", table) for key, table in tables if table is not None]
        places += places_of_rule(pivot, f"pivot {pivot.name}: ")
    places += places_of_rule(curriculum, "")
    yield from drawn_target_problems(curriculum, places)
    goals = [place_of_goal(pivot, f"pivot {pivot.name}: ") for pivot in curriculum.pivots]
    yield from unknown_names(curriculum, [*places, *goals, place_of_goal(curriculum, "")])
    warmup = curriculum.curriculum_warmup_sources
    for name in sorted(name for name, times in Counter(warmup).items() if times > 1):
        yield f"curriculum_warmup_sources: {name} is listed twice"
    if curriculum.curriculum_warmup_steps and not warmup:
        yield "curriculum_warmup_steps is set, but curriculum_warmup_sources is empty; name the warmup's sources"
