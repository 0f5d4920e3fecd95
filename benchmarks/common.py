"""What every benchmark needs: interleaved timing, medians, ratios, and what they were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMPARED = (
    "numpy",
    "torch",
    "convolutionalfixedsum",
    "drs",
    "datasets",
    "torchdata",
    "grain",
)  # whose version may change a figure


def medians(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Run the contenders in turn, ``rounds`` times, and return each one's median in seconds; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def say(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, or with ``--json`` one JSON object per table."""
    if "--json" in sys.argv:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"title": title, **hardware(), "rows": records}))
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=120).print(table)


def hardware() -> dict[str, str]:
    """Return processor, cores, versions of the compared packages in use, commit, command and load."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in COMPARED if name in sys.modules}
    facts = {"processor": model, "cores": str(os.cpu_count()), "python": platform.python_version()}
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return {**facts, **versions, "commit": commit, "command": command, "load": f"{os.getloadavg()[0]:.1f}"}


def head() -> None:
    """Print what the numbers were measured on."""
    if "--json" not in sys.argv:
        print(", ".join(f"{key} {value}" for key, value in hardware().items()))
