"""One contender in a process of its own, told on standard input what to measure; answers lines of JSON.

``python -m benchmarks.contenders.process FOLDER NAME`` reads ``first`` (make the loader and its first batch),
``run SECONDS``, ``batches N`` and ``memory``.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def memory_mb(field: str) -> float:
    """Return VmHWM (the peak) or RssAnon (without mapped files) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Answer until standard input ends."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    import torch

    from benchmarks.contenders.loaders import CONTENDERS

    torch.set_num_threads(2)
    folder, make = Path(sys.argv[1]), CONTENDERS[sys.argv[2]]
    batches: Any = None
    for line in sys.stdin:
        command, *rest = line.split()
        answer: dict[str, float] = {}
        begin = time.perf_counter()
        if command == "first":
            batches = make(folder)
            next(batches)
            answer["seconds"] = time.perf_counter() - begin
        elif command == "run":
            count, until = 0, begin + float(rest[0])
            while time.perf_counter() < until:
                next(batches)
                count += 1
            answer = {"batches": count, "seconds": time.perf_counter() - begin}
        elif command == "batches":
            for _ in range(int(rest[0])):
                next(batches)
            answer["seconds"] = time.perf_counter() - begin
        answer["peak_mb"], answer["anon_mb"] = memory_mb("VmHWM"), memory_mb("RssAnon")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
