"""The commands ``mixer serve`` and ``mixer token``, which join ``mixer`` by the entry points ``mixer.commands``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixer.cli.output import AsJson, ConfigPath, print_json, print_table, results, talk

FolderOption = Annotated[Path, typer.Option(help="Journals and the SQLite database.", file_okay=False)]
DatabaseOption = Annotated[str | None, typer.Option(help="postgresql://…; default: SQLite in the folder.")]
TokensOption = Annotated[
    Path | None, typer.Option(help="Hashed tokens in a file, not in the database.", dir_okay=False)
]
FOLDER = Path("runs/service")

token = typer.Typer(help="Make, list and revoke the tokens of the service.", no_args_is_help=True)


def serve(
    config: ConfigPath,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen to; beyond this machine only with tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8642,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: that of the file.")] = None,
    folder: FolderOption = FOLDER,
    database: DatabaseOption = None,
    tokens_file: TokensOption = None,
    tls_cert: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    ahead_steps: Annotated[int, typer.Option(min=1, help="Batches built ahead of the newest one asked for.")] = 32,
    memory_mib: Annotated[int, typer.Option(min=1, help="Memory for batches, per run.")] = 256,
    retain_steps: Annotated[int, typer.Option(min=1, help="Steps that can be asked for again.")] = 2048,
    feedback_wait_s: Annotated[float, typer.Option(min=0, help="Longest wait for a rank that has not reported.")] = 5.0,
    fsync: Annotated[
        Literal["phase", "always", "never"],
        typer.Option(help="Flush the journal's file to disk with each decision, before each answer, or not at all."),
    ] = "phase",
    requests_per_minute: Annotated[
        int, typer.Option(min=1, help="Of one token, or of one address without tokens.")
    ] = 240_000,
    client_timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Longest wait for a client to send a whole request, or to read on.")
    ] = 30.0,
    allow_new_sources: Annotated[
        bool, typer.Option("--allow-new-sources", help="Admins may make runs over paths and hub ids of their request.")
    ] = False,
) -> None:
    """Serve weights and batches of a run to trainers on other machines.

    Starts with SQLite in the folder; killed at any moment and started again, it goes on as if nothing had happened.
    """
    from service.web.memory import disable_collections

    disable_collections()
    from service.server import run_server  # the web framework takes a while to import
    from service.settings import MIB, Settings

    settings = Settings(
        folder=folder,
        database=database,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tokens_file=tokens_file,
        ahead_steps=ahead_steps,
        memory_bytes=memory_mib * MIB,
        retain_steps=retain_steps,
        feedback_wait_s=feedback_wait_s,
        fsync=fsync,
        requests_per_minute=requests_per_minute,
        client_timeout_s=client_timeout_s,
        allow_new_sources=allow_new_sources,
    )
    run_server(settings, config, name=name)


def serve_recorded(walk: Path, *, host: str, port: int, tokens_file: Path | None) -> None:
    """Do ``mixer replay WALK --serve``; it is here because the library does not import the service."""
    from service.server import serve_journal
    from service.settings import Settings

    serve_journal(Settings(host=host, port=port, tokens_file=tokens_file), walk)


@token.command()
def create(
    *,
    scope: Annotated[str, typer.Option(help="read, train or admin; each includes the ones before it.")] = "train",
    name: Annotated[str, typer.Option(help="Whose it is, for the log and the audit.")] = "unnamed",
    folder: FolderOption = FOLDER,
    database: DatabaseOption = None,
    tokens_file: TokensOption = None,
) -> None:
    """Make a token and print it, once: only its digest is stored."""
    from service.web.auth import SCOPES

    if scope not in SCOPES:
        raise typer.BadParameter(f"{scope!r} is not a scope; there are {', '.join(SCOPES)}")
    typer.echo(_book(folder, database, tokens_file).create(scope, name))
    talk().print("keep it where only its user can read it; it is not shown again", highlight=False)


@token.command("list")
def list_tokens(
    *,
    folder: FolderOption = FOLDER,
    database: DatabaseOption = None,
    tokens_file: TokensOption = None,
    as_json: AsJson = False,
) -> None:
    """List the tokens, revoked ones too."""
    rows: list[dict[str, Any]] = [
        {
            "id": known.id,
            "name": known.name,
            "scope": known.scope,
            "created": _date(known.created_at),
            "revoked": _date(known.revoked_at),
        }
        for known in _book(folder, database, tokens_file).list()
    ]
    if as_json:
        print_json({"tokens": rows})
    elif rows:
        print_table(f"{len(rows)} tokens", rows)
    else:
        results().print("no tokens: the server answers this machine alone", highlight=False)


@token.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `mixer token list` shows it.")],
    *,
    folder: FolderOption = FOLDER,
    database: DatabaseOption = None,
    tokens_file: TokensOption = None,
) -> None:
    """Revoke a token; a running server refuses it within two seconds."""
    if not _book(folder, database, tokens_file).revoke(token_id):
        raise typer.BadParameter(f"there is no token of id {token_id!r}; `mixer token list` shows them")


def _book(folder: Path, database: str | None, tokens_file: Path | None) -> Any:
    from service.settings import Settings
    from service.storage.store import Store
    from service.web.auth import FileTokens, TokenBook, token_book

    if tokens_file is not None:
        return TokenBook(FileTokens(tokens_file))
    settings = Settings(folder=folder, database=database)
    return token_book(settings, Store.open(settings.database_url))


def _date(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
