"""The compiled loops of ``_kernels.pyx``, where this installation has them.

Set ``MIXER_KERNELS=off`` to do without: the same batches, made by NumPy, more slowly.
"""

from __future__ import annotations

import os
from types import ModuleType

compiled: ModuleType | None = None
if os.environ.get("MIXER_KERNELS", "on") != "off":
    try:
        from mixer import _kernels as compiled  # type: ignore[no-redef]
    except ImportError:  # built without a compiler
        compiled = None
