"""The `mixer` command: verbs and paths here, settings in the curriculum's file.

Results go to stdout (``--json`` for machines), talk to stderr. Exit codes: 0 done, 1 failed, 2 misused. Imports what is
below it when a command runs. Start with ``planning``. Commands that stand above the library, such as ``mixer demo``,
join through the entry-point group ``mixer.commands``.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from mixer.cli import planning, preparing, questions, record, showing
from mixer.cli.output import talk
from mixer.errors import MixerError

app = typer.Typer(
    name="mixer",
    help="Decide, while a language model trains, how much of each text source is drawn next; under hard bounds.",
    epilog="Begin with `mixer demo`, then `mixer check my.yaml` and `mixer simulate my.yaml --steps 2000`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for _command in (
    planning.check,
    preparing.prepare,
    planning.simulate,
    questions.explain,
    questions.advise,
    questions.effects,
    showing.plot,
    showing.watch,
    showing.export,
    record.replay,
    record.fork,
    record.diff,
):
    app.command()(_command)


def main() -> None:
    """Run the command line ``mixer`` with the commands that stand above the library."""
    for entry in sorted(importlib.metadata.entry_points(group="mixer.commands"), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):  # a group of commands
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
    run_app(app)


def run_app(commands: typer.Typer) -> None:
    """Run a command line; every error that we raise on purpose becomes one message and exit code 1."""
    try:
        commands()
    except MixerError as error:
        out = talk()
        out.print(f"[bold red]error[/] ({error.code}): ", end="")
        out.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def top(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Hold the options of `mixer` itself."""
    if version:
        typer.echo(importlib.metadata.version("curriculum-mixer"))
        raise typer.Exit
