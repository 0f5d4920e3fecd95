"""Data sets as a trainer iterates them: ``python -m benchmarks.contenders.trainers KIND PLACE [PREFETCH]``.

``inside CONFIG`` reads prepared rows itself, with a journal; ``remote URL`` asks a service. Each line on standard
input, ``{"seconds": 0.5}``, is answered with how many batches and tokens came.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def made(kind: str, place: str, prefetch: int | None) -> Iterator[dict[str, Any]]:
    """Return the batches of a data set."""
    if kind == "remote":
        from service.client.dataset import RemoteMixtureDataset

        return iter(RemoteMixtureDataset(place, prefetch=prefetch))
    from mixer import Curriculum, MixtureDataset

    journal = Path(tempfile.mkdtemp()) / "journal.jsonl"
    return iter(MixtureDataset(Curriculum.from_yaml(place), journal=journal))


def main() -> None:
    """Answer until standard input ends."""
    import torch

    torch.set_num_threads(1)
    batches = made(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
    for line in sys.stdin:
        count, tokens, cpu_s, begin = 0, 0, time.process_time(), time.perf_counter()
        until = begin + json.loads(line)["seconds"]
        while time.perf_counter() < until:
            tokens += next(batches)["labels"].numel()
            count += 1
        took_s = time.perf_counter() - begin
        cpu_share = (time.process_time() - cpu_s) / took_s
        print(json.dumps({"batches": count, "tokens": tokens, "seconds": took_s, "cpu_share": cpu_share}), flush=True)


if __name__ == "__main__":
    main()
