"""One contender in a process of its own, told on standard input what to measure; answers lines of JSON.

``python -m benchmarks.contenders.process FOLDER NAME`` reads ``first`` (make the loader and its first batch),
``run SECONDS``, ``pace RATE N`` (N batches, so many a second at most) and ``memory``.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def memory_mb(field: str) -> float:
    """Return VmHWM (the peak), VmRSS or RssAnon (without mapped files) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Answer until standard input ends."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    import torch

    from benchmarks.contenders import formats, loaders

    torch.set_num_threads(2)
    folder, make = Path(sys.argv[1]), {**loaders.CONTENDERS, **formats.CONTENDERS}[sys.argv[2]]
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
            count, until, cpu_s = 0, begin + float(rest[0]), time.process_time()
            while time.perf_counter() < until:
                next(batches)
                count += 1
            cpu_s = time.process_time() - cpu_s
            answer = {"batches": count, "seconds": time.perf_counter() - begin, "cpu_seconds": cpu_s}
        elif command == "pace":
            cpu_s = time.process_time()
            for i in range(int(rest[1])):
                next(batches)
                time.sleep(max(0.0, begin + (i + 1) / float(rest[0]) - time.perf_counter()))
            answer = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu_s}
        fields = {"peak_mb": "VmHWM", "rss_mb": "VmRSS", "anon_mb": "RssAnon"}
        answer |= {name: memory_mb(field) for name, field in fields.items()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
