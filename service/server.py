"""Runs a server, as ``mixer serve`` and ``mixer replay --serve`` do: checks, logs, and uvicorn until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from mixer.config.curriculum import Curriculum
from service.app import create_app
from service.errors import BindError
from service.runs.registry import name_of
from service.settings import Settings
from service.storage.store import Store
from service.web.auth import check_bind, token_book
from service.web.connections import connection_class
from service.web.logs import set_up_logs
from service.web.memory import enable_collections, keep_freed_memory

KEEP_ALIVE_S = 75
MAX_HANDSHAKE_S = 5.0
GRACE_S = 20  # for requests in progress when SIGTERM comes

log = logging.getLogger(__name__)


def run_server(settings: Settings, config: Path, *, name: str | None = None) -> None:
    """Serve the run of ``config`` until SIGTERM or Ctrl-C; then finish the requests in progress and save a snapshot.

    Raises:
        ConfigError, StateMismatchError, StoreError, BindError: before anything listens.
    """
    curriculum = Curriculum.from_yaml(config)
    store = Store.open(settings.database_url)
    check_bind(settings, token_book(settings, store))
    _check_tls(settings)
    set_up_logs()
    keep_freed_memory()
    app = create_app(settings, store, curriculum=curriculum, name=name or name_of(config))
    is_started = _serve(app, settings, config)
    store.close()
    if not is_started:
        sys.exit(1)


def serve_journal(settings: Settings, journal: Path) -> None:
    """Serve a recorded run from its journal, which is only read, until SIGTERM or Ctrl-C.

    Raises:
        JournalError, StoreError, BindError: before anything listens.
    """
    from service.replay_app import RecordedRun, create_replay_app

    book = token_book(settings, None)
    check_bind(settings, book)
    app = create_replay_app(RecordedRun(journal, name_of(journal)), settings, book)
    set_up_logs()
    if not _serve(app, settings, journal):
        sys.exit(1)


def _serve(app: Any, settings: Settings, what: Path) -> bool:
    """Run uvicorn until a signal ends it; return whether it ever listened."""
    scheme = "https" if settings.tls_cert is not None else "http"
    log.info("serving", extra={"url": f"{scheme}://{settings.host}:{settings.port}", "run": str(what)})
    _raise_file_limit()
    server = _Server(uvicorn_config(app, settings))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after its shutdown: ignore that
        signal.signal(number, lambda _number, _frame: None)
    with asyncio.Runner(loop_factory=partial(_Loop.of, settings)) as runner:
        runner.run(server.serve())
    return server.started


def uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    """Return the configuration of uvicorn for an application."""
    return uvicorn.Config(
        app,
        http=connection_class(settings.client_timeout_s),
        ws="none",
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        access_log=False,  # the middleware logs the requests that matter
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        backlog=4096,
    )


class _Loop(uvloop.Loop):
    """uvloop's event loop, with a shorter timeout for TLS handshakes than its default of a minute."""

    handshake_s = MAX_HANDSHAKE_S

    @classmethod
    def of(cls, settings: Settings) -> _Loop:
        """Return a loop for a server with these settings."""
        loop = cls()
        loop.handshake_s = min(settings.client_timeout_s, MAX_HANDSHAKE_S)
        return loop

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """Listen."""
        if options.get("ssl") is not None:
            options |= {"ssl_handshake_timeout": self.handshake_s, "ssl_shutdown_timeout": self.handshake_s}
        return await super().create_server(*args, **options)


class _Server(uvicorn.Server):
    """A server that shuts down at once: waiting requests are answered, and event streams end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the runs and listen."""
        await super().startup(sockets)
        enable_collections()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests in progress."""
        self.config.app.state.drain()  # type: ignore[union-attr]  # it is the application itself
        await super().shutdown(sockets)


def _raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: many shells start processes with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_tls(settings: Settings) -> None:
    """Raise BindError unless the certificate and its key can be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise BindError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key: {error}; both are PEM files"
        ) from error
