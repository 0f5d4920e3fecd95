"""The built wheel runs where there is no checkout: configs and types come with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mixer.system import kernels

ROOT = Path(__file__).parent.parent


def test_each_dependency_is_named_once_in_all_tables() -> None:
    """Two lines of one name may ask for two versions; an extra names what another has by that extra."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tables = [data["project"]["dependencies"], *data["project"]["optional-dependencies"].values()]
    for table in [*tables, data["build-system"]["requires"]]:
        names = [canonicalize_name(Requirement(line).name) for line in table]
        assert len(names) == len(set(names)), table
    ours = canonicalize_name(data["project"]["name"])
    counts = Counter(canonicalize_name(Requirement(line).name) for table in tables for line in table)
    assert [name for name, count in counts.items() if count > 1 and name != ours] == []
    extras = data["project"]["optional-dependencies"]
    named = {extra for table in tables for line in table for extra in Requirement(line).extras if ours in line}
    assert named <= set(extras)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_packages_configs_and_type_marks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mixer/py.typed", "mixer/configs/demo.yaml", "mixer/configs/andrea-120m-v2.yaml", "andrea/demo.py"} <= names
    assert not [name for name in names if name.startswith("tests")]
    is_compiled = any(name.startswith("mixer/system/_kernels.") and name.endswith((".so", ".pyd")) for name in names)
    assert is_compiled == (kernels.compiled is not None)
    assert is_compiled != wheel.name.endswith("-none-any.whl")


def test_without_a_compiler_the_wheel_is_made_all_the_same_for_any_platform(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("mixer", "service", "andrea", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("_kernels.*.so", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(checkout)]
    done = subprocess.run(command, env={**os.environ, "CC": "false"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be compiled" in done.stdout + done.stderr
    made = next(tmp_path.glob("*.whl"))
    assert made.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(made).namelist() if name.endswith((".so", ".pyd"))]


def test_the_installed_wheel_runs_the_demo_away_from_the_checkout(wheel: Path, gathered: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # after our own package
    environment = {**os.environ, "MIXER_CACHE": str(gathered), "OMP_NUM_THREADS": "1"}
    script = "import mixer.cli; mixer.cli.main()"
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", script, "demo", "--steps", "7", "--out", "run", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 7
    where = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", "import mixer; print(mixer.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path))
