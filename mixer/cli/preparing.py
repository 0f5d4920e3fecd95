"""Token rows made once: ``mixer prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer.cli.output import AsJson, print_json, print_table, results, talk

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mixer.config.curriculum import Curriculum
    from mixer.sources.prepared.manifest import Manifest
    from mixer.sources.prepared.writer import Done


def prepare(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="The curriculum: one YAML file.", exists=True, dir_okay=False),
    ] = None,
    *,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for the rows; default: the config's `prepared`.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Sources to read at once; default: cores / 4.")] = None,
    sources: Annotated[str | None, typer.Option(help="Names, with commas between; default: all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace rows that are not those of the config.")] = False,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only read prepared rows and compare all digests.", file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenise and pack every source once, so that runs read token rows from a memory map.

    Stopped or killed, it goes on where it was when it is run again. Sources that are ready are kept. Finished rows that
    are not those of the config any more are named, and replaced only with `--force`.
    """
    if verify is not None:
        if config is not None or out is not None:
            raise typer.BadParameter("--verify takes a folder of prepared rows and no CONFIG")
        _verify(verify, as_json=as_json)
        return
    if config is None:
        raise typer.BadParameter("give the CONFIG to prepare, or --verify DIR")
    from mixer.config.curriculum import Curriculum

    curriculum = Curriculum.from_yaml(config)
    if out is None:
        if curriculum.prepared is None:
            raise typer.BadParameter("give --out DIR, or set `prepared: DIR` in the config")
        out = str(curriculum.resolve(curriculum.prepared))
    _prepare(curriculum, out, jobs, sources, force=force, as_json=as_json)


def _prepare(
    curriculum: Curriculum, out: str, jobs: int | None, sources: str | None, *, force: bool, as_json: bool
) -> None:
    from mixer.sources.prepared.prepare import default_jobs, prepare  # loads the tokenizers' library

    names = None if sources is None else [name.strip() for name in sources.split(",")]
    bars = _Bars({source.name: source.tokens for source in curriculum.read_sources}, is_quiet=as_json)
    with bars.progress:
        outcome = prepare(curriculum, out, jobs=jobs or default_jobs(), sources=names, force=force, report=bars.show)
    rows = [] if outcome.manifest is None else _rows(outcome.manifest)
    if as_json:
        lists = {"made": outcome.made, "ready": outcome.ready, "missing": outcome.missing}
        fingerprint = outcome.manifest.fingerprint if outcome.manifest else None
        print_json({"folder": str(out), "fingerprint": fingerprint, **lists, "sources": rows})
        return
    if outcome.missing:
        line = f"not yet readable: {', '.join(outcome.missing)} still to be prepared"
        results().print(line, markup=False, highlight=False, soft_wrap=True)
        return
    print_table(f"{len(outcome.made)} sources prepared, {len(outcome.ready)} were ready", rows)
    results().print(f"prepared: {out}", markup=False, highlight=False, soft_wrap=True)


def _verify(folder: Path, *, as_json: bool) -> None:
    from mixer.sources.prepared.rows import Prepared

    prepared = Prepared.open(folder)
    prepared.verify()
    if as_json:
        rows = _rows(prepared.manifest)
        print_json({"folder": str(folder), "fingerprint": prepared.fingerprint, "sources": rows})
    else:
        results().print(f"{folder}: every file is as it was written", markup=False, highlight=False, soft_wrap=True)


def _rows(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "source": name,
            "documents": source.train.documents,
            "rows": source.train.rows,
            "tokens": source.train.tokens,
            "tail_tokens": source.train.tail_tokens,
            "held_out_documents": source.held_out.documents,
            "held_out_rows": source.held_out.rows,
        }
        for name, source in manifest.sources.items()
    ]


class _Bars:
    """One bar per source that is being read; full length only where the config knows how many tokens there are."""

    def __init__(self, tokens: dict[str, int | None], *, is_quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._tokens = tokens
        self._bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=talk(),
            disable=is_quiet,
        )

    def show(self, done: Done) -> None:
        """Move the bar of a source."""
        counts = f"{done.documents:,} documents, {done.tokens:,} tokens, {done.rows:,} rows"
        if done.name not in self._bars:
            self._bars[done.name] = self.progress.add_task(done.name, total=self._tokens.get(done.name), counts=counts)
        bar = self._bars[done.name]
        if done.is_finished:
            self.progress.update(bar, total=done.tokens)
        self.progress.update(bar, completed=done.tokens, counts=counts)
