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
    DoremiConfig,
    Exp3Config,
    GuardConfig,
    LinearConfig,
    OdmConfig,
    ProportionalConfig,
    RandomConfig,
    SkillItConfig,
    SoftmaxConfig,
    StaticConfig,
    UcbConfig,
    UnimaxConfig,
    VelocituneConfig,
    WaterFillingConfig,
)

__all__ = [
    "AdoConfig",
    "AndreaConfig",
    "Curriculum",
    "DoremiConfig",
    "Exp3Config",
    "GuardConfig",
    "LinearConfig",
    "OdmConfig",
    "PhasesConfig",
    "Pivot",
    "ProportionalConfig",
    "RandomConfig",
    "RetriesConfig",
    "ScheduledPivot",
    "SkillItConfig",
    "SoftmaxConfig",
    "SourceConfig",
    "StaticConfig",
    "TokenizerConfig",
    "UcbConfig",
    "UnimaxConfig",
    "VelocituneConfig",
    "WaterFillingConfig",
    "check_folder",
    "shipped_config",
]
