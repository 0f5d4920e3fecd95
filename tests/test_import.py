"""`import mixer` is light, complete and typed."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys

import pytest

import mixer


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_deciding_imports_neither_torch_nor_datasets() -> None:
    modules = loaded_after("from mixer import Curriculum, Region, Walk, Journal, SourceLosses")
    assert {"mixer", "numpy", "pydantic"} <= modules
    assert not {"torch", "datasets", "tokenizers", "plotly", "typer"} & modules


def test_import_mixer_alone_imports_nothing_heavy() -> None:
    assert not {"torch", "datasets", "numpy"} & loaded_after("import mixer")


def test_the_command_line_imports_what_all_commands_share_alone() -> None:
    modules = loaded_after("import mixer.cli, service.cli, andrea.cli")
    assert "typer" in modules
    assert not {"numpy", "pydantic", "rich", "fastapi", "sqlalchemy", "torch"} & modules


def test_every_public_name_resolves() -> None:
    assert sorted(mixer.__all__) == mixer.__all__
    for name in mixer.__all__:
        assert getattr(mixer, name).__module__.startswith("mixer.")
    with pytest.raises(AttributeError, match="no attribute 'Misture'"):
        _ = mixer.Misture


def test_the_package_says_that_it_is_typed() -> None:
    assert (importlib.resources.files("mixer") / "py.typed").is_file()
