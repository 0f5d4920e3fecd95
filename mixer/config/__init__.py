"""One YAML file is the whole run: its sources, bounds, regimes, phases and policy, checked before anything starts.

Imports ``region`` and ``sampling``. Start with ``curriculum.Curriculum``, the whole file. Its parts are in
``sources``, ``phases``, ``pivots``, ``policy`` and ``probes``; ``problems`` says what is wrong with a file.
"""

from mixer.config.curriculum import Curriculum
from mixer.config.files import shipped_config
from mixer.config.phases import PhasesConfig
from mixer.config.pivots import Pivot, ScheduledPivot
from mixer.config.policy import (
    AdoConfig,
    AioliConfig,
    AndreaConfig,
    DoremiConfig,
    DUcbConfig,
    Exp3Config,
    GuardConfig,
    LinearConfig,
    OdmConfig,
    ProportionalConfig,
    RandomConfig,
    SkillItConfig,
    SoftmaxConfig,
    StaticConfig,
    SwUcbConfig,
    UcbConfig,
    UnimaxConfig,
    VelocituneConfig,
    WaterFillingConfig,
)
from mixer.config.sources import RetriesConfig, SourceConfig, TokenizerConfig, check_folder

__all__ = [
    "AdoConfig",
    "AioliConfig",
    "AndreaConfig",
    "Curriculum",
    "DUcbConfig",
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
    "SwUcbConfig",
    "TokenizerConfig",
    "UcbConfig",
    "UnimaxConfig",
    "VelocituneConfig",
    "WaterFillingConfig",
    "check_folder",
    "shipped_config",
]
