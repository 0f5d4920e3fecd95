"""Claim: a journal of 200,000 steps over 16 sources opens in under 1 s and replays on one core in 200 MB.

The walk is simulated: one report per step, one warmup, one pivot, lag 4. Each figure is measured in a process of its
own; memory is the peak of the whole process. ``--steps N`` makes a shorter one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from benchmarks.common import head, say
from mixer.config import Curriculum
from mixer.journal import Journal
from mixer.simulation import simulate

MEASURES = {  # what -> code; `path` is the journal
    "open, to go on with it": "from mixer.journal import Journal; work = lambda: Journal.open(path).close()",
    "find line 100,000": "from mixer.scan import find_line; work = lambda: find_line(path, 100_000)",
    "read every line": "from mixer.journal import read_journal; work = lambda: [0 for _ in read_journal(path)]",
    "Replay(path): every phase again": "from mixer.replay import Replay; work = lambda: Replay(path).frontier",
    "mixer replay: every decision again": "from mixer.audit import audit; work = lambda: audit(path).lines",
}

MEASURED = """
    import json, sys, time
    from pathlib import Path
    path = Path(sys.argv[1])
    {code}
    def peak_kb():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    before = peak_kb()
    start = time.perf_counter()
    work()
    spent = time.perf_counter() - start
    print(json.dumps([spent, before / 1024, peak_kb() / 1024]))
"""


def recorded(path: Path, num_steps: int) -> int:
    """Write the journal of a simulated walk; return its number of lines."""
    names = [f"s{i}" for i in range(16)]
    curriculum = Curriculum(
        total_steps=num_steps,
        batch_rows=64,
        sequence_length=1024,
        sources=[{"name": name} for name in names],
        floors={"s0": 0.1, "s1": 0.05},
        caps={"s2": 0.2},
        curriculum_warmup_steps=num_steps // 10,
        curriculum_warmup_sources=names[:7],
        pivots=[{"name": "polish", "at_step": num_steps * 6 // 10, "exclude": ["s3"]}],
        feedback_lag=4,
    )
    with Journal.create(path, fsync="never") as journal:
        for _ in simulate(curriculum, num_steps, journal=journal):
            pass
        return journal.position.line


def main() -> None:
    """Make the journal, then measure each use of it three times and print the median."""
    num_steps = int(sys.argv[sys.argv.index("--steps") + 1]) if "--steps" in sys.argv else 200_000
    head()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.jsonl"
        num_lines = recorded(path, num_steps)
        size = path.stat().st_size / 1e6
        rows = []
        for what, code in MEASURES.items():
            program = textwrap.dedent(MEASURED.format(code=code))
            runs = [
                json.loads(subprocess.check_output([sys.executable, "-c", program, str(path)], text=True))
                for _ in range(3)
            ]
            seconds, before, peak = sorted(runs)[1]
            rows.append((what, seconds, before, peak))
        say(
            f"{num_steps:,} steps, 16 sources, {num_lines:,} lines, {size:.0f} MB",
            ["what", "s", "MB before", "MB at most"],
            rows,
        )


if __name__ == "__main__":
    main()
