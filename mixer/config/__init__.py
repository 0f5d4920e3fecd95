"""One YAML file is the whole run: its sources, bounds, regimes, phases and policy, checked before anything starts.

Imports ``region`` and ``sampling``. Start with ``curriculum.Curriculum``; ``policy`` has the policies' settings,
``problems`` says what is wrong with a file.
"""

from mixer.config.curriculum import (
    Curriculum,
    PhasesConfig,
    Pivot,
    RetriesConfig,
    ScheduledPivot,
    SourceConfig,
    TokenizerConfig,
    check_folder,
    shipped_config,
)
from mixer.config.policy import (
    AdoConfig,
    AndreaConfig,
    GuardConfig,
    OdmConfig,
    ProportionalConfig,
    RandomConfig,
    StaticConfig,
    UcbConfig,
    UnimaxConfig,
    WaterFillingConfig,
)

__all__ = [
    "AdoConfig",
    "AndreaConfig",
    "Curriculum",
    "GuardConfig",
    "OdmConfig",
    "PhasesConfig",
    "Pivot",
    "ProportionalConfig",
    "RandomConfig",
    "RetriesConfig",
    "ScheduledPivot",
    "SourceConfig",
    "StaticConfig",
    "TokenizerConfig",
    "UcbConfig",
    "UnimaxConfig",
    "WaterFillingConfig",
    "check_folder",
    "shipped_config",
]
