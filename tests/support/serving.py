"""A service as its users have it: a process of its own on loopback that can be killed and started again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import httpx2
import numpy as np
from ruamel.yaml import YAML

from mixer.delivery.batch import RowBatch
from mixer.losses import SourceLosses
from tests.support.curricula import WORDS, write_sources
from tests.support.forking import Forked

T, B, STEPS = 16, 8, 70
_PATIENCE: dict[str, Any] = {"timeout": 100, "trust_env": False}
# one client for all: making one takes 60 ms of the processor; no connections are kept, as servers come and go
_CLIENT = httpx2.Client(**_PATIENCE, limits=httpx2.Limits(max_keepalive_connections=0))
_ports = itertools.count(331 * os.getpid())  # those of processes that test at the same time are far apart


def write_run(folder: Path, **changes: Any) -> Path:
    """Write sources and a curriculum over them, and return the curriculum's path."""
    write_sources(folder)
    fields: dict[str, Any] = {
        "seed": 3,
        "total_steps": STEPS,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)],
        "floors": {"s0": 0.2},
        "caps": {"s3": 0.25},
        "phases": {"initial_random": 2, "min_steps": 5, "max_steps": 9},
    }
    path = folder / "run.yaml"
    with path.open("w") as file:
        YAML().dump(fields | changes, file)
    return path


def free_port() -> int:
    """Return a port that nothing listens to, below those that systems hand out to whoever asks for any.

    So neither a client nor another test gets it by chance while a server starts there, or starts again.
    """
    while True:
        port = 10_000 + next(_ports) % 20_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def ask(method: str, url: str, **options: Any) -> httpx2.Response:
    """Send a request, with patience for machines that do much else."""
    if "verify" in options:
        return httpx2.request(method, url, **{**_PATIENCE, **options})
    return _CLIENT.request(method, url, **options)


def get(url: str, **options: Any) -> httpx2.Response:
    """Send a GET request; see ``ask``."""
    return ask("GET", url, **options)


def post(url: str, **options: Any) -> httpx2.Response:
    """Send a POST request; see ``ask``."""
    return ask("POST", url, **options)


def listen(url: str, **options: Any) -> AbstractContextManager[httpx2.Response]:
    """Give an answer that comes bit by bit."""
    return _CLIENT.stream("GET", url, **options)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fail after 100 s."""
    deadline = time.monotonic() + 100
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Served:
    """``mixer serve`` in a process; killed at the end of the ``with``.

    Args:
        config: of the run.
        folder: of the server.
        options: of the command.
        port: a free one if None.
        prefix: a program that runs the command, and becomes it.
        prelude: Python that runs before it.
    """

    def __init__(
        self,
        config: Path,
        folder: Path,
        *options: str,
        port: int | None = None,
        prefix: tuple[str, ...] = (),
        prelude: str = "",
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.journal = folder / "run" / "journal.jsonl"
        self._log = folder / "log"
        arguments = ["serve", str(config), "--port", str(self.port), "--folder", str(folder), *options]
        self._arguments = arguments
        self._command: list[str] = []  # of a process that must not be a fork
        if prefix or prelude:
            program = f"{prelude}\nfrom mixer.cli import main; main()"
            self._command = [*prefix, sys.executable, "-c", program, *arguments]
        folder.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Start, and wait until batches can be had."""
        environment = {"MIXER_CACHE": str(self._log.parent / "cache")}
        if self._command:
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, env={**os.environ, **environment}
                )
        else:
            self.process = Forked(_mixer, self._arguments, log=self._log, environment=environment)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, path: str = "/readyz") -> None:
        """Wait until the server says that it is ready."""
        deadline = time.monotonic() + 150  # most of it for machines that do much else
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                if get(self.url + path, timeout=10).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log()}")

    def kill(self) -> None:
        """End it as a power cut would end a process: at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        """Ask it to end, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=100)

    def log(self) -> str:
        """Return what it wrote."""
        return self._log.read_text()[-5000:] if self._log.exists() else ""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill()


def _mixer(arguments: list[str]) -> None:
    """Run the command line."""
    from mixer.cli import main

    sys.argv = ["mixer", *arguments]
    main()


def losses_of(rows: RowBatch, rank: int) -> SourceLosses:
    """Made-up losses that depend on the batch alone: enough to move the walk."""
    counts = np.bincount(rows.source_ids, minlength=len(WORDS))
    means = 2.0 + np.arange(len(WORDS)) / (1.0 + rows.step)
    return SourceLosses(
        rows=counts, tokens=counts * T, loss_sums=means * counts * T, square_sums=means**2 * counts, rank=rank
    )


def decisions(journal: Path) -> list[dict[str, Any]]:
    """Return the phases of a journal without what depends on when reports came."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("chain", "number", "at")} for r in records if r["type"] == "phase"]


def reports(journal: Path) -> list[tuple[Any, ...]]:
    """Return every report of a journal, in order of step and rank."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return sorted((r["step"], r["rank"], *r["rows"], *r["loss_sums"]) for r in records if r["type"] == "feedback")
