"""Config files: reading one as YAML, and finding those that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mixer.errors import ConfigError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the fields of a YAML file; raise ConfigError naming the file and the line."""
    path = Path(path)
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `mixer check` takes the path of a YAML curriculum") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}: a value cannot be read: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: a curriculum is a mapping of fields, not {type(data).__name__}")
    not_names = [key for key in data if not isinstance(key, str)]
    if not_names:
        raise ConfigError(f"{path}: {not_names[0]!r} is not the name of a field")
    return dict(data)


def shipped_config(name: str) -> Path:
    """Return the path of a config file that comes with the package, such as ``demo.yaml``."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # a wheel, a checkout
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    shipped = sorted(path.name for folder in folders for path in folder.glob("*.yaml"))
    raise ConfigError(f"no shipped config is named {name}; there are {', '.join(shipped)}")
