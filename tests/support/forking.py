"""Processes that start at once: forks of one that has imported what servers and trainers need.

That import takes two seconds of a processor, more than most tests of a server take. A fork is a process as any other: it
can be killed and stopped, and shares no state with the test.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "service.server",
        "mixer.delivery.streamed",
        "mixer.sources.tokenizer_training",
        "tests.support.fleet",
        "andrea.run",
    ]
)


class Forked:
    """A process with the methods of ``subprocess.Popen`` that tests use; it ends with the test's own at the latest.

    Args:
        function: what it runs, with ``arguments``; its exit code is that of SystemExit, else 0, or 1 for an exception.
        log: the file that its output is appended to.
        environment: variables beside those of this process.
    """

    def __init__(
        self, function: Callable[..., object], *arguments: Any, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        variables = {**os.environ, **(environment or {})}
        self._process = _CONTEXT.Process(target=_run, args=(function, arguments, log, variables), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _run(function: Callable[..., object], arguments: tuple[Any, ...], log: Path, variables: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)  # the default, as in a process that is no fork
    function(*arguments)
