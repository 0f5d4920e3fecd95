"""A server with runs worth looking at, and trainers for them: of the tests of the page, and of its screenshots."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn

from mixer.config.curriculum import Curriculum
from service.app import create_app
from service.client import RemoteMixtureDataset
from service.settings import Settings
from service.storage.store import Store
from tests.support.serving import free_port, get

NAMES = ["web", "code", "books", *(f"source-{i:02}" for i in range(3, 16))]
SMALL: dict[str, Any] = {"floors": {"web": 0.3}, "pivots": [{"name": "polish", "at_step": 60, "caps": {"code": 0.2}}]}


def curriculum(folder: Path, names: list[str], **fields: Any) -> Curriculum:
    """A run over small files in ``folder``."""
    for k, name in enumerate(names):
        lines = [json.dumps({"text": f"{name} has the words {n} and {n * k} " * (1 + n % 5)}) for n in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    plan = {
        "total_steps": 5000,
        "batch_rows": 16,
        "sequence_length": 16,
        "tokenizer": {"train_vocab_size": 300},
        "sources": [{"name": name, "data_files": f"{name}.jsonl"} for name in names],
        **fields,
    }
    return Curriculum.from_data(plan, base_dir=folder)


class Server:
    """The service on loopback, in a thread of this process; ``with`` starts it, again if need be, on the same port."""

    def __init__(self, plan: Curriculum, folder: Path) -> None:
        self.plan, self.settings = plan, Settings(folder=folder, feedback_wait_s=0)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        self.store = Store.open(self.settings.database_url)
        self.app = create_app(self.settings, self.store, curriculum=self.plan, name="main")
        config = uvicorn.Config(self.app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.server.started:
            assert self.thread.is_alive() and time.monotonic() < deadline, "the server did not start"  # noqa: PT018
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.app.state.events.close()  # listeners would be waited for
        self.server.should_exit = True
        self.thread.join(100)
        self.store.close()

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return get(self.url + path, headers=headers)

    def watch(self, run: str) -> Any:
        return self.app.state.runs.engine(run).watch


def alarm(source: str, step: int) -> dict[str, Any]:
    """A line of the journal as the guard of losses writes it."""
    found = {"loss": 0.13, "expected": 2.9, "z": -9.5, "epochs": 41.0, "pivot": None, "why_not": None}
    return {"type": "alarm", "step": step, "decided_before": step, "source": source, "detector": "cliff", **found}


class Trainer:
    """Two ranks that train on a run, the second one a step behind."""

    def __init__(self, url: str, run: str) -> None:
        self.ranks = [RemoteMixtureDataset(url, rank, 2, run=run, prefetch=2) for rank in range(2)]
        self.batches = [iter(rank) for rank in self.ranks]
        self.step = 0
        self.held: dict[str, Any] | None = None  # what the second rank has still to report

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step += 1
            ahead, behind = (next(batches) for batches in self.batches)
            self.ranks[0].report(ahead, self.losses(ahead))
            if self.held is not None:
                self.ranks[1].report(self.held, self.losses(self.held))
            self.held = behind

    def losses(self, batch: dict[str, Any]) -> torch.Tensor:
        """Losses that fall while one trains, by source."""
        means = 2.0 + batch["source_ids"].float() + 3.0 / (1.0 + batch["step"] / 50.0)
        return means[:, None].expand(batch["labels"].shape)
