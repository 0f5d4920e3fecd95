"""What trainers on other machines use: ``MixerClient`` and ``RemoteMixtureDataset``.

Imports ``wire`` and ``errors``, no web framework and no database. Start with ``client``; ``dataset`` has
``MixtureDataset``'s interface.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client.client import MixerClient
    from service.client.dataset import RemoteMixtureDataset

__all__ = ["MixerClient", "RemoteMixtureDataset"]

_HOMES = {"MixerClient": "client", "RemoteMixtureDataset": "dataset"}  # the second needs torch


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'service.client' has no attribute {name!r}")
    return getattr(importlib.import_module(f"service.client.{_HOMES[name]}"), name)
