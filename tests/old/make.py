"""Write what lies in this folder: ``python -m tests.old.make FOLDER`` at the commit that README.md names."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ruamel.yaml import YAML
from typer.testing import CliRunner

from mixer.cli import app
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.dataset import MixtureDataset
from mixer.journal.file import Journal
from mixer.walk.walk import Walk
from service.client.client import MixerClient
from tests.support.curricula import write_sources
from tests.support.serving import Served, losses_of

STEPS, STOP = 60, 30  # of the run, and the step at which its state is kept
FIELDS = {
    "seed": 3,
    "total_steps": STEPS,
    "batch_rows": 8,
    "sequence_length": 16,
    "tokenizer": {"train_vocab_size": 300},
    "sources": [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)],
    "floors": {"s0": 0.2},
    "caps": {"s3": 0.25},
    "phases": {"initial_random": 2, "min_steps": 5, "max_steps": 9},
}


def write(path: Path, **changes: object) -> Path:
    """Write a curriculum."""
    with path.open("w") as file:
        YAML().dump(FIELDS | changes, file)
    return path


def read_alone(folder: Path) -> None:
    """Write prepared rows, the journal of a run over them, a state of it, and the journal of a fork."""
    config = str(write(folder / "prepared.yaml", prepared="rows"))
    assert CliRunner().invoke(app, ["prepare", config]).exit_code == 0
    curriculum = Curriculum.from_yaml(config)
    with Journal.create(folder / "alone.jsonl") as journal:
        dataset = MixtureDataset(curriculum, walk=Walk(curriculum, journal=journal))
        digests = []
        for batch in dataset:
            digests.append(int(batch["input_ids"].sum()))
            k = batch["source_ids"].double()[:, None]
            dataset.report(batch, (2.0 + k / (1.0 + batch["step"])).expand(-1, 16))
            if batch["step"] == STOP - 1:
                dataset.walk.pivot(Pivot(name="later", caps={"s1": 0.4}))
                (folder / "state.json").write_text(json.dumps(dataset.state_dict()))
    (folder / "sums.json").write_text(json.dumps(digests))
    starts = [r["start"] for r in map(json.loads, (folder / "alone.jsonl").read_text().splitlines()) if "start" in r]
    fork = write(folder / "fork.yaml", prepared="rows", policy="random")
    arguments = ["fork", str(folder / "alone.jsonl"), "--at-step", str(starts[3]), "--config", str(fork)]
    found = CliRunner().invoke(app, [*arguments, "--out", str(folder / "fork.jsonl")])
    assert found.exit_code == 0, found.output


def serve(folder: Path) -> None:
    """Write the folder of a service whose run was stopped after ``STOP`` steps."""
    with Served(write(folder / "run.yaml"), folder / "served") as server, MixerClient(server.url) as client:
        names = tuple(f"s{k}" for k in range(4))
        for step in range(STOP):
            client.report(step, losses_of(client.batch(step), 0), names)
        assert server.terminate() == 0
    for name in ("cache", "log"):
        path = folder / "served" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Write everything into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    write_sources(folder, num_documents=12)
    read_alone(folder)
    serve(folder)


if __name__ == "__main__":
    main()
