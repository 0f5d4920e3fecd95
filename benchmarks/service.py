"""Claims: batches over HTTP beside a bare route and Arrow Flight; a remote data set beside one in-process; waiting.

Servers and clients are processes of their own, all take turns on the same bytes. The clients of ``load.py`` throw away
what they get; the share of a core that they used is printed, because a client that needs all of one measures itself.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import head, say
from benchmarks.contenders.rows import BATCH, NAMES, ROW, WEIGHTS, make_prepared, make_rows
from mixer.system.files import cache_root

SIZES = {"32 KiB": BATCH, "256 KiB": 8 * BATCH, "1 MiB": 32 * BATCH}  # rows of 1,025 uint16 ids
HELD, FRESH = "ours, a step that is held", "ours, step after step"
INSIDE, PREFETCHES = "in-process, prepared", (None, 4, 32)
QUERY = "?rank=0&world_size=1&wait_s=30"  # as clients ask
CLIENTS = (1, 4, 16)
ROUNDS, SECONDS = 5, 0.3
NO_LIMIT = 10**9  # of requests per minute: the default would be what is measured


class Told:
    """A process that is told what to do in lines of JSON."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, **what: Any) -> None:
        """Tell, without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the answer to what was told."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **what: Any) -> dict[str, Any]:
        """Tell, and return the answer."""
        self.send(**what)
        return self.answer()

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def running(port: int, *command: str) -> Iterator[int]:
    """Run a server until the end of the ``with``; begins when it listens."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port that nothing listens to just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, rows: int) -> Path:
    """Write a curriculum of so many rows a batch over the prepared rows that all benchmarks share."""
    fields: dict[str, Any] = {
        "total_steps": 2_000_000,
        "batch_rows": rows,
        "sequence_length": ROW - 1,
        "prepared": str(make_prepared(cache_root() / "bench" / "rows", as_one=False)),
        "sources": [{"name": name} for name in NAMES],
        "policy": {"name": "static", "weights": dict(zip(NAMES, WEIGHTS.tolist(), strict=True))},
    }
    path = folder / f"rows-{rows}.yaml"
    path.write_text(json.dumps(fields))  # JSON is YAML
    return path


@contextmanager
def served(folder: Path, rows: int) -> Iterator[int]:
    """Run ``mixer serve`` and give its port."""
    port = free_port()
    options = ["--port", str(port), "--folder", str(folder / f"served-{port}"), "--memory-mib", "512"]
    options += ["--requests-per-minute", str(NO_LIMIT)]
    main = ["-c", "from mixer.cli import main; main()", "serve", str(write_config(folder, rows))]
    with running(port, *main, *options):
        yield port


def fetch(url: str) -> bytes:
    """Return a body."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def batches(folder: Path) -> None:
    """Batches by a bare route, by the service and by Arrow Flight."""
    make_rows(cache_root() / "bench" / "rows")
    table: list[list[object]] = []
    with Told("benchmarks.contenders.load") as load:
        for size, rows in SIZES.items():
            table += _batches(folder, load, size, rows)
    columns = ["body", "clients", "server", "requests/s", "range", "MB/s", "of bare", "of Flight", "client's core"]
    say(f"The same bytes, median of {ROUNDS} turns of {SECONDS} s", columns, table)


def _batches(folder: Path, load: Told, size: str, rows: int) -> list[list[object]]:
    with ExitStack() as stack:
        ours = stack.enter_context(served(folder, rows))
        body = fetch(f"http://127.0.0.1:{ours}/batches/0?wait_s=30")
        file = folder / f"body-{rows}"
        file.write_bytes(body)
        ports = {"ours": ours}
        for kind in ("bare", "flight"):
            port = free_port()
            command = ["-m", "benchmarks.contenders.servers", kind, str(port), str(file)]
            ports[kind] = stack.enter_context(running(port, *command))
        assert fetch(f"http://127.0.0.1:{ports['bare']}/body/0") == body
        step, table = 1, []
        for clients in CLIENTS:
            common = {"clients": clients, "seconds": SECONDS}
            asked: dict[str, dict[str, Any]] = {
                "bare Starlette": {"kind": "http", "port": ports["bare"], "path": "/body/%d"},
                HELD: {"kind": "http", "port": ports["ours"]},
                FRESH: {"kind": "http", "port": ports["ours"], "path": f"/batches/%d{QUERY}"},
                "Arrow Flight": {"kind": "flight", "port": ports["flight"]},
            }
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
            for turn in range(ROUNDS + 1):
                asked[HELD]["path"] = f"/batches/{step - 1}{QUERY}"
                for name, what in asked.items():
                    answer = load.ask(**what, **common, first=step)
                    if name == FRESH:
                        step = answer["next"]
                    if turn:
                        answers[name].append(answer)
            table += _rates(size, clients, answers, len(body))
    return table


def _rates(size: str, clients: int, answers: dict[str, list[dict[str, Any]]], num_bytes: int) -> list[list[object]]:
    rates = {name: [a["requests"] / a["seconds"] for a in found] for name, found in answers.items()}
    median = {name: statistics.median(found) for name, found in rates.items()}
    bare, flight = median["bare Starlette"], median["Arrow Flight"]
    return [
        [
            size,
            clients,
            name,
            rate,
            f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}",
            rate * num_bytes / 1e6,
            rate / bare,
            rate / flight,
            statistics.median(a["cpu_share"] for a in answers[name]),
        ]
        for name, rate in median.items()
    ]


def remote(folder: Path) -> None:
    """Batches of a remote data set on loopback beside those of the same rows in-process, both with a journal."""
    make_rows(cache_root() / "bench" / "rows")
    table: list[list[object]] = []
    for size, rows in SIZES.items():
        with ExitStack() as stack:
            config = str(write_config(folder, rows))
            asked = {INSIDE: ["inside", config]}
            for prefetch in PREFETCHES:
                url = f"http://127.0.0.1:{stack.enter_context(served(folder, rows))}"  # each a server of its own
                name = "remote, as it comes" if prefetch is None else f"remote, prefetch={prefetch}"
                asked[name] = ["remote", url, *([] if prefetch is None else [str(prefetch)])]
            told = {n: stack.enter_context(Told("benchmarks.contenders.trainers", *a)) for n, a in asked.items()}
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in told}
            for turn in range(ROUNDS + 1):
                for name, process in told.items():
                    answer = process.ask(seconds=SECONDS)
                    if turn:
                        answers[name].append(answer)
            rates = {n: [a["tokens"] / a["seconds"] / 1e6 for a in found] for n, found in answers.items()}
            base = statistics.median(rates[INSIDE])
            for name, found in rates.items():
                rate = statistics.median(found)
                cpu = statistics.median(a["cpu_share"] for a in answers[name])
                table.append([size, name, rate, f"{min(found):.0f} to {max(found):.0f}", rate / base, cpu])
    columns = ["body", "data set", "million tokens/s", "range", "of in-process", "its cores"]
    say(f"Tokens to a trainer that does nothing, median of {ROUNDS} turns of {SECONDS} s", columns, table)


def weights(folder: Path) -> None:
    """Times of GET /weights while nothing else is asked, and while clients stream batches as fast as they can."""
    make_rows(cache_root() / "bench" / "rows")
    table: list[list[object]] = []
    with Told("benchmarks.contenders.load") as load, Told("benchmarks.contenders.load") as small:
        for size, rows in SIZES.items():
            with served(folder, rows) as port:
                fetch(f"http://127.0.0.1:{port}/batches/0?wait_s=30")
                step = 1
                for clients in (4, 16):
                    found: dict[str, list[dict[str, Any]]] = {"idle": [], HELD: [], FRESH: []}
                    for turn in range(ROUNDS + 1):
                        for name in found:
                            stream = {"kind": "http", "port": port, "clients": clients, "seconds": 2 * SECONDS}
                            stream |= {"path": f"/batches/{'%d' if name == FRESH else step - 1}{QUERY}", "first": step}
                            if name != "idle":
                                load.send(**stream)
                            answer = small.ask(
                                kind="paced", port=port, path="/weights?step=0", every_s=0.004, seconds=1.6 * SECONDS
                            )
                            if name != "idle":
                                streamed = load.answer()
                                step = streamed["next"] if name == FRESH else step
                            if turn:
                                found[name].append(answer)
                    table += _times(size, clients, found)
    say("GET /weights every 4 ms", ["body", "clients", "beside", "p50 ms", "p99 ms", "p99 of idle p99"], table)


def _times(size: str, clients: int, found: dict[str, list[dict[str, Any]]]) -> list[list[object]]:
    p50 = {name: statistics.median(a["p50_s"] for a in answers) * 1e3 for name, answers in found.items()}
    p99 = {name: statistics.median(a["p99_s"] for a in answers) * 1e3 for name, answers in found.items()}
    return [[size, clients, name, p50[name], p99[name], p99[name] / p99["idle"]] for name in found]


def main() -> None:
    """Run everything, or the parts that are named: batches remote weights."""
    named = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    head()
    parts = {"batches": batches, "remote": remote, "weights": weights}
    for name, part in parts.items():
        if not named or name in named:
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
