"""Compiles ``mixer/system/_kernels.pyx`` when the package is installed; without a compiler NumPy does its work."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "mixer/system/_kernels.pyx"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled module beside its source, and into a wheel, which is then of one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before anything is collected."""
        if self.target_name != "wheel":
            return
        compiled = _compiled(Path(self.root))
        if compiled is None:
            self.app.display_warning(f"{SOURCE} could not be compiled: batches will be made by NumPy, more slowly")
            return
        build_data["artifacts"].append(str(compiled.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _compiled(root: Path) -> Path | None:
    """Return the compiled module; None if this machine has no working compiler, whose own words are on stderr."""
    import numpy as np  # imported late: hatchling loads this file for the sdist, too
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    flags = [] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]
    extension = Extension(
        "mixer.system._kernels",
        [SOURCE],
        include_dirs=[np.get_include()],
        define_macros=[
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ("MIXER_SOURCE", f'"{_digest(root / SOURCE)}"'),
        ],
        extra_compile_args=flags,
    )
    with contextlib.chdir(root):
        extensions = cythonize([extension], build_dir="build", quiet=True)
        for each in extensions:
            each.optional = True  # a compiler that fails is a warning
        command = Distribution({"name": "curriculum-mixer", "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_temp, command.build_lib = "build", "."
        command.ensure_finalized()
        compiled = root / command.get_ext_fullpath("mixer.system._kernels")
        if compiled.exists() and compiled.stat().st_mtime < (root / SOURCE).stat().st_mtime:
            compiled.unlink()  # of an older source: better none, should this one fail
        command.run()
        return compiled if compiled.exists() else None


def _digest(source: Path) -> str:
    """Return what ``mixer.system.kernels`` compares, so that a module compiled from another source is not used."""
    return hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest()
