"""Does letting the mixer decide help? Many small runs on real text, under many policies, judged on held-out loss.

``python -m benchmarks.mixing`` takes minutes; ``--full`` takes many hours, can be stopped at any time, and goes on
where it was. Finished runs are kept under ``--out``; what is printed is all that is there.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.common import head, say
from benchmarks.laboratory.arms import ARMS, OF_PROBES, QUICK
from benchmarks.laboratory.corpora import NoCorpusError
from benchmarks.laboratory.experiment import MODELS, Study, prepare_study, run
from benchmarks.laboratory.report import table, write_curves

HORIZONS = (0.5, 4.0, 20.0)  # how often uniform weights read the smallest real source


def main() -> None:
    """Run what is not there yet, then say what all runs found."""
    options = _options()
    head()
    for corpus, epochs in itertools.product(options.corpus, options.epochs):
        study = Study(
            corpus, epochs, steps=options.steps, model=options.model, holdout=options.holdout, target=options.target
        )
        folder = options.out / study.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            prepare_study(study, folder)
        except NoCorpusError as error:
            print(f"{study.name}: skipped: {error}")
            continue
        runs = _runs(
            study, options.arms, range(options.first_seed, options.first_seed + options.seeds), folder, options.jobs
        )
        columns, rows = table(runs)
        say(f"{study.name}: the smallest real source is read {epochs:g} times under uniform weights", columns, rows)
        write_curves(runs, folder / "curves.html", study.name)


def _runs(study: Study, arms: list[str], seeds: range, folder: Path, jobs: int) -> list[dict[str, Any]]:
    found = []
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        tasks = [pool.submit(run, study, arm, seed, folder) for seed in seeds for arm in arms]
        for task in track(as_completed(tasks), description=study.name, total=len(tasks)):
            found.append(task.result())
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all arms, both corpora, three horizons, five seeds")
    parser.add_argument("--corpus", action="append", choices=("python", "debian"))
    parser.add_argument("--epochs", action="append", type=float)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of each source's text that probes measure")
    parser.add_argument("--target", help="a real source that no arm draws, and whose held-out loss is judged")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/mixing"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.corpus = options.corpus or (["python", "debian"] if options.full else ["python"])
    options.epochs = options.epochs or (list(HORIZONS) if options.full else [4.0])
    has_probes = options.holdout > 0 or options.target is not None
    if not has_probes and (blind := [arm for arm in options.arms or () if arm in OF_PROBES]):
        parser.error(f"{', '.join(blind)}: learn from probes; give --holdout or --target")
    known = [arm for arm in (ARMS if options.full else (*QUICK, *OF_PROBES)) if has_probes or arm not in OF_PROBES]
    options.arms = options.arms or known
    options.seeds = options.seeds or (5 if options.full else 2)
    options.steps = options.steps or (600 if options.full else 200)
    return options


if __name__ == "__main__":
    main()
