"""Decide, while a language model trains, how much of each text source is drawn next, and deliver those batches.

``import mixer`` is cheap: names are resolved when they are first used, so that deciding needs neither torch nor
datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum
    from mixer.config.pivots import Pivot
    from mixer.config.sources import SourceConfig
    from mixer.dataset import MixtureDataset
    from mixer.journal.file import Journal, read_journal
    from mixer.losses import SourceLosses
    from mixer.region.region import Region
    from mixer.sampling.phases import Phase
    from mixer.walk.walk import Walk

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
    "Curriculum": "config.curriculum",
    "Journal": "journal.file",
    "MixtureDataset": "dataset",
    "Phase": "sampling.phases",
    "Pivot": "config.pivots",
    "Region": "region.region",
    "SourceConfig": "config.sources",
    "SourceLosses": "losses",
    "Walk": "walk.walk",
    "read_journal": "journal.file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
