"""What commands share: options that several take, tables and JSON on stdout, talk on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from rich.console import Console

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The curriculum: one YAML file.", exists=True, dir_okay=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of tables.")]


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of one shape as a table on stdout."""
    from rich.table import Table  # a server draws none

    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "source" else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    results().print(table)


def talk() -> Console:
    """Return stderr as a console."""
    from rich.console import Console

    return Console(stderr=True)


def results() -> Console:
    """Return stdout as a console; a pipe or file gets 120 columns, so that no name is cut short."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def print_json(data: object) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
