"""The compiled loops of ``_kernels.pyx``, where this installation has them.

Set ``MIXER_KERNELS=off`` to do without: the same batches, made by NumPy, more slowly.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType


def _find() -> ModuleType | None:
    if os.environ.get("MIXER_KERNELS", "on") == "off":
        return None
    try:
        found = importlib.import_module("mixer.system._kernels")
    except ImportError:  # built without a compiler
        return None
    source = Path(__file__).with_name("_kernels.pyx")
    digest = hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest() if source.exists() else None
    if digest not in (None, getattr(found, "SOURCE", "")):
        warnings.warn(
            f"{found.__file__} was compiled from another {source.name} and is not used, so that batches are made more "
            "slowly; install the package again (`pip install -e .`, or `make test` in a checkout)",
            stacklevel=2,
        )
        return None
    return found


compiled = _find()
