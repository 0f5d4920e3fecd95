"""What the next phase should draw: an index per source and a vertex (bandits), or fixed weights (baselines).

A policy holds settings only. What it has learned is a ``State``, named arrays that it takes and returns, so that a
decision can be tried, journalled and only then kept. Imports ``config`` and what is below it. Start with ``base``, then
``learnability``.
"""

from __future__ import annotations

from mixer.policies.ado import AdoPolicy
from mixer.policies.aioli import AioliPolicy
from mixer.policies.andrea import AndreaPolicy
from mixer.policies.base import Choice, Policy
from mixer.policies.doremi import DoremiPolicy
from mixer.policies.exp3 import Exp3Policy
from mixer.policies.factory import make_policy
from mixer.policies.fixed import FixedPolicy, epoch_capped
from mixer.policies.forgetting_ucb import DUcbPolicy, SwUcbPolicy
from mixer.policies.learnability import Learnability
from mixer.policies.linear import LinearPolicy
from mixer.policies.odm import OdmPolicy
from mixer.policies.skill_it import SkillItPolicy
from mixer.policies.softmax import SoftmaxPolicy
from mixer.policies.ucb import BoundedUcb
from mixer.policies.velocitune import VelocitunePolicy
from mixer.policies.water_filling import WaterFillingPolicy

__all__ = [
    "AdoPolicy",
    "AioliPolicy",
    "AndreaPolicy",
    "BoundedUcb",
    "Choice",
    "DUcbPolicy",
    "DoremiPolicy",
    "Exp3Policy",
    "FixedPolicy",
    "Learnability",
    "LinearPolicy",
    "OdmPolicy",
    "Policy",
    "SkillItPolicy",
    "SoftmaxPolicy",
    "SwUcbPolicy",
    "VelocitunePolicy",
    "WaterFillingPolicy",
    "epoch_capped",
    "make_policy",
]
