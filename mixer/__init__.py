"""Decide, while a language model trains, how much of each text source is drawn next, and deliver those batches.

``import mixer`` is cheap: names are resolved when they are first used, so that deciding needs neither torch nor
datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixer.config import Curriculum, Pivot, SourceConfig
    from mixer.dataset import MixtureDataset
    from mixer.journal import Journal, read_journal
    from mixer.phases import Phase
    from mixer.region import Region
    from mixer.rewards import SourceLosses
    from mixer.walk import Walk

__all__ = [
    "Curriculum",
    "Journal",
    "MixtureDataset",
    "Phase",
    "Pivot",
    "Region",
    "SourceConfig",
    "SourceLosses",
    "Walk",
    "read_journal",
]

_HOMES = {
    "Curriculum": "config",
    "Journal": "journal",
    "MixtureDataset": "dataset",
    "Phase": "phases",
    "Pivot": "config",
    "Region": "region",
    "SourceConfig": "config",
    "SourceLosses": "rewards",
    "Walk": "walk",
    "read_journal": "journal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
