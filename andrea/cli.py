"""The command ``andrea``, and those of its commands that ``mixer`` has too; torch is imported when one of them runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from andrea.inspection.command import inspect
from mixer.cli import run_app
from mixer.cli.output import AsJson

app = typer.Typer(
    name="andrea",
    help="Train ANDREA under a moving mixture, and look at what it has learned.",
    epilog="Begin with `andrea demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command()(inspect)


@app.command()
def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="The curriculum with a section `andrea:`; with --url the section alone.",
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run: journal, checkpoints; default: runs/ and the name of the file."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A service that decides and delivers, http://host:8642.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the service's run; default: its default run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on a mixture that moves, from the newest checkpoint in the folder if there is one.

    SIGTERM and Ctrl-C save a checkpoint and stop (exit code 128 and the signal); SIGUSR1 saves one and goes on. A model
    whose samples stay incoherent is saved and stopped, too (exit code 3; `andrea samples` shows them).

    On several GPUs: `torchrun --nproc-per-node 8 -m andrea.train CONFIG`.
    """
    if run is not None and url is None:
        raise typer.BadParameter("a run of a service needs its address: give --url, too", param_hint="--run")
    from andrea.run import Origin, run_training  # torch takes seconds to import: `andrea --help` should not wait for it

    code = run_training(config, out, origin=None if url is None else Origin(url, run), as_json=as_json)
    if code:
        sys.exit(code)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or one checkpoint of it.")],
    *,
    prompt: Annotated[str, typer.Option(help="The beginning of a document; without one the model begins it.")] = "",
    tokens: Annotated[int, typer.Option(min=0, help="Tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws: the same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt with the model of a checkpoint."""
    from andrea.checkpoint import load_model
    from andrea.generate import generate_text

    text = generate_text(load_model(checkpoint), prompt, tokens, temperature=temperature, seed=seed)
    typer.echo(prompt + text)


@app.command()
def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", exists=True, file_okay=False)],
    *,
    last: Annotated[int | None, typer.Option(min=1, help="So many of the newest; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the texts that a model wrote while it was trained, and how coherent each was, 0 to 100."""
    from andrea.samples import show_samples

    show_samples(run, last=last, as_json=as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A checkpoint in any of the layouts.", exists=True)],
    target: Annotated[Path, typer.Argument(metavar="TO", help="A new file for andrea, else a folder.")],
    *,
    layout: Annotated[
        Literal["checkpoint", "andrea", "huggingface"],
        typer.Option("--to", help="andrea: [int32 step][int32 n_params][weights][m][v]; huggingface: transformers."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="File of the run, for the shape of a model in ANDREA's layout.", exists=True, dir_okay=False),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to go with it.", exists=True, dir_okay=False)
    ] = None,
    separator: Annotated[str, typer.Option(help="Its token between documents.")] = "<|endoftext|>",
) -> None:
    """Write a checkpoint in another layout: ours, ANDREA's public one, or one that `transformers` loads."""
    from andrea.convert import read_any, write_any
    from andrea.settings import model_of_file
    from mixer.sources.tokenizer import read_tokenizer

    found = read_any(
        source,
        shape=None if config is None else model_of_file(config),
        tokenizer=None if tokenizer is None else read_tokenizer(tokenizer, separator),
    )
    typer.echo(write_any(target, found, layout))


@app.command()
def demo(
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run: journal, checkpoints, page; default: runs/demo, or runs/served."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train; default: the file's total_steps.")] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A curriculum instead of the shipped demo.yaml.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Let a service decide and deliver, and train on what it gives.")
    ] = False,
    report: Annotated[bool, typer.Option(help="End with a report on the model, as `andrea inspect` makes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing table as JSON.")] = False,
) -> None:
    """Train a small ANDREA on text found on this machine while the walk moves the mixture.

    Gathers local text, trains a tokenizer, trains the model with a progress bar, and ends with a table, a journal and
    two pages to look at: the walk, and what the model has learned. Ctrl-C stops cleanly; running it again goes on
    where it stopped. A finished run is kept beside the new one. With ``--serve`` a service runs beside the trainer,
    which gets its batches over HTTP; the service's page stays until Ctrl-C.
    """
    if serve and config is not None and steps is not None:
        raise typer.BadParameter("the service reads the file: set its total_steps there", param_hint="--steps")
    from andrea.demo import run_demo  # torch takes seconds to import: `mixer --help` should not wait for it

    out = out or Path("runs/served" if serve else "runs/demo")
    run_demo(out, num_steps=steps, config=config, is_served=serve, has_report=report, as_json=as_json)


def main() -> None:
    """Run the command line ``andrea``."""
    run_app(app)


def train_command() -> None:
    """Run ``andrea train`` alone: what ``torchrun -m andrea.train`` starts."""
    alone = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="markdown")
    alone.command()(train)
    run_app(alone)
