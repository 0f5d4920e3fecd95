"""What ``mixer serve`` runs: checks, logs, and uvicorn until SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from mixer.config import Curriculum
from service.app import create_app
from service.auth import check_bind, token_book
from service.memory import keep_freed_memory
from service.runs import name_of
from service.settings import Settings
from service.store import Store

KEEP_ALIVE_S = 75
GRACE_S = 20  # for what is in flight when SIGTERM comes


def run_server(settings: Settings, config: Path, *, name: str | None = None) -> None:
    """Serve the run of ``config`` until SIGTERM or Ctrl-C; then finish what is in flight and leave a snapshot.

    Raises:
        ConfigError, StateMismatchError, StoreError, BindError: before anything listens.
    """
    curriculum = Curriculum.from_yaml(config)
    store = Store.open(settings.database_url)
    check_bind(settings, token_book(settings, store))
    set_up_logs()
    keep_freed_memory()
    app = create_app(settings, store, curriculum=curriculum, name=name or name_of(config))
    scheme = "https" if settings.tls_cert is not None else "http"
    structlog.get_logger("service").info("serving", url=f"{scheme}://{settings.host}:{settings.port}", run=str(config))
    server = uvicorn.Server(uvicorn_config(app, settings))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again once it has ended: that is done
        signal.signal(number, lambda _number, _frame: None)
    server.run()
    store.close()
    if not server.started:
        sys.exit(1)


def uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    """Return what uvicorn is told, of any application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        access_log=False,  # the guard writes one line a request that matters
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        backlog=4096,
    )


def set_up_logs() -> None:
    """Write JSON lines to stderr: ours and those of libraries."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
