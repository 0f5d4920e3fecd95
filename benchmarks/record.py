"""Claim: a journal of 200,000 steps over 16 sources opens in under 1 s and replays on one core in 200 MB.

The walk is simulated: one report per step, one warmup, one pivot, lag 4. Each figure is measured in a process of its
own; memory is the peak of the whole process. ``--steps N`` makes a shorter one. ``--ranks R`` measures instead what
must not depend on length, over a journal in which R ranks sent each report, with 4 sources: 50 make 10 million lines.
Its lines and its chain are sound; its reports after the first of each step are copies, so that nothing can replay it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import head, say
from mixer.analysis.simulate import simulate
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.journal.scan import FIRST, chained, ending, scan

MEASURES = {  # what -> code; `path` is the journal
    "open, to go on with it": "from mixer.journal.file import Journal; work = lambda: Journal.open(path).close()",
    "find line 100,000": "from mixer.journal.scan import find_line; work = lambda: find_line(path, 100_000)",
    "read every line": "from mixer.journal.file import read_journal; work = lambda: sum(1 for _ in read_journal(path))",
    "Replay(path): every phase again": "from mixer.replay.replay import Replay; work = lambda: Replay(path).frontier",
    "mixer replay: every decision again": "from mixer.replay.verify import audit; work = lambda: audit(path).lines",
}

LENGTH_MEASURES = {
    "open, to go on with it": MEASURES["open, to go on with it"],
    "find the line in the middle": "from mixer.journal.scan import find_line; work = lambda: find_line(path, NUM // 2)",
    "tail: the last 10 lines": "from mixer.journal.scan import find_line; "
    "work = lambda: [find_line(path, NUM - i).record() for i in range(10)]",
    "`explain` a step in the middle": "from mixer.analysis.explain import explain; "
    "work = lambda: explain(path, MIDDLE)",
    "read every line": MEASURES["read every line"],
    "name the line damaged at 9/10": """
def work():
    from mixer.errors import JournalError
    from mixer.journal.file import read_journal
    with open(path, "r+b") as file:
        place = file.seek(path.stat().st_size * 9 // 10)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    try:
        for _ in read_journal(path):
            pass
        raise SystemExit("the damage was not found")
    except JournalError:
        pass
    finally:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(byte)
""",
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


def recorded(path: Path, num_steps: int, num_sources: int = 16) -> int:
    """Write the journal of a simulated walk; return its number of lines."""
    names = [f"s{i}" for i in range(num_sources)]
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


def lengthened(path: Path, out: Path, num_ranks: int) -> int:
    """Write a journal in which other ranks send each report too; return its number of lines."""
    digest, number = FIRST, 0
    with out.open("wb", buffering=2**20) as file:
        for line in scan(path):
            text = line.body[: line.body.rindex(b',"number":')]
            for rank in range(num_ranks if line.kind == "feedback" else 1):
                number += 1
                body = text.replace(b'"rank":0', b'"rank":%d' % rank, 1) + b',"number":%d}' % number
                digest = chained(digest, body)
                file.write(body[:-1] + ending(digest))
    return number


def measured(path: Path, measures: dict[str, str], *, times: int = 3) -> list[tuple[str, float, float, float]]:
    """Return (what, seconds, MB before, MB at most) of each measure, the median of several processes."""
    rows = []
    for what, code in measures.items():
        program = MEASURED.format(code=code)
        runs = [
            json.loads(subprocess.check_output([sys.executable, "-c", program, str(path)], text=True))
            for _ in range(times)
        ]
        rows.append((what, *sorted(runs)[times // 2]))
    return rows


def argument(name: str, default: int) -> int:
    """Return the number after an option."""
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


def main() -> None:
    """Make the journal, then measure each use of it three times and print the median."""
    num_steps, num_ranks = argument("--steps", 200_000), argument("--ranks", 0)
    head()
    with tempfile.TemporaryDirectory() as folder:
        path, measures, num_sources = Path(folder) / "walk.jsonl", MEASURES, 4 if num_ranks else 16
        num_lines = recorded(path, num_steps, num_sources)
        if num_ranks:
            short, path = path, Path(folder) / "long.jsonl"
            num_lines = lengthened(short, path, num_ranks)
            numbers = f"NUM, MIDDLE = {num_lines}, {num_steps // 2}\n"
            measures = {what: numbers + code for what, code in LENGTH_MEASURES.items()}
        size = path.stat().st_size / 1e6
        say(
            f"{num_steps:,} steps, {num_sources} sources, {num_lines:,} lines, {size:,.0f} MB",
            ["what", "s", "MB before", "MB at most"],
            measured(path, measures, times=1 if num_ranks else 3),
        )


if __name__ == "__main__":
    main()
