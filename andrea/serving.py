"""A service beside the trainer, for as long as it trains: ``mixer serve`` as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mixer.errors import MissingDependencyError
from service.errors import ServiceError

PORT = 8642
READY_S = 120.0  # a tokenizer may have to be trained first


@contextmanager
def serving(config: Path, folder: Path, *, name: str) -> Iterator[str]:
    """Serve a curriculum until the end of the ``with``; gives the address, once batches can be had there.

    Args:
        config: the curriculum's file.
        folder: where journal, database and log of the service lie; it goes on with what is there.
        name: of the run.

    Raises:
        MissingDependencyError: the service is not installed.
        ServiceError: it ended, and its log says why.
    """
    if find_spec("uvicorn") is None or find_spec("fastapi") is None:
        raise MissingDependencyError("serving needs a web server: pip install 'curriculum-mixer[torch,service]'")
    folder.mkdir(parents=True, exist_ok=True)
    port, log_path = _free_port(), folder / "service.log"
    command = [sys.executable, "-c", "from mixer.cli import main; main()", "serve", str(config)]
    command += ["--port", str(port), "--folder", str(folder), "--name", name]
    with log_path.open("ab") as log:  # a session of its own: Ctrl-C is for the trainer, which then ends the service
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_ready(process, port, log_path)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:  # nobody listens yet, or the first batch is not there
            time.sleep(0.05)
    last = log_path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    raise ServiceError(f"the service did not start: {last or 'it wrote nothing'}; all it wrote is in {log_path}")


def _free_port() -> int:
    """Return the service's usual port, or another if something listens there."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError("this machine has no free port")
