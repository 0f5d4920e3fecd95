"""One training run of the laboratory, and the data that a group of runs shares."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig, train
from benchmarks.laboratory.arms import ARMS, Setting
from benchmarks.laboratory.corpora import GULLY, PLANTED, corpus, is_held_out, read_texts
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import Prepared
from mixer.sources.tokenizer import TextTokenizer

MODELS: dict[str, Callable[[int, int], ModelConfig]] = {
    "tiny": ModelConfig.tiny,  # 0.9 M parameters
    "small": lambda vocab_size, context: ModelConfig(vocab_size, 256, 8, 4, context),  # 4.2 M
}
PEAK_LR = {"tiny": 3e-3, "small": 1.5e-3}
HELD_OUT_ROWS = 48  # of each source, some 6,000 tokens
MIN_REAL_SOURCES = 12
WORD_RUN = 10  # words; text that shares such a run with held-out text is not trained on
GULLY_CHARACTERS = 6_000  # three documents
TARGET_CHARACTERS = 50_000
PROBES = {"rows": 8, "every": 2}
CHARACTERS_A_TOKEN = 2.6  # of a vocabulary of 2,048 on this text; how often a source is read is measured, not assumed
ECHO_OF = {"python": "docstrings", "debian": "vim"}


@dataclass(frozen=True)
class Study:
    """What all runs that are compared have in common.

    ``epochs`` is how often uniform weights read the smallest real source. ``holdout`` is the share of each source's
    text that probes may measure; it is held out under every arm. ``target`` is a real source that no arm draws:
    probes measure it, and the held-out rows that judge it are of other documents.
    """

    corpus: str
    epochs: float
    steps: int = 600
    batch_rows: int = 16
    context: int = 128
    vocab_size: int = 2048
    model: str = "tiny"
    holdout: float = 0.0
    target: str | None = None

    @property
    def name(self) -> str:
        """What its folder is called."""
        name = f"{self.corpus}-{self.model}-{self.steps}-{self.epochs:g}"
        name += f"-holdout-{self.holdout:g}" if self.holdout else ""
        return name + (f"-for-{self.target}" if self.target else "")


def prepare_study(study: Study, folder: Path) -> Path:
    """Make the rows of a study once and return the config of its uniform run."""
    path = folder / "base.json"
    if path.exists():
        return path
    files = corpus(study.corpus, echo_of=ECHO_OF[study.corpus])
    seen: set[int] = set()  # runs of words that held-out rows contain
    for name, file in files.items():
        if name not in PLANTED:
            seen |= _held_out(file, folder / "held-out" / f"{name}.jsonl", 3.5 * HELD_OUT_ROWS * study.context)
    clean = {name: folder / "clean" / f"{name}.jsonl" for name in files}
    sizes = {name: _cleaned(file, clean[name], seen, keep=name in PLANTED) for name, file in files.items()}
    if study.target is not None and (study.target not in files or study.target in PLANTED):
        raise ValueError(f"target {study.target}: corpus {study.corpus} has no such real source")
    budget = study.steps * study.batch_rows * study.context
    smallest = CHARACTERS_A_TOKEN * budget / (len(files) * study.epochs)  # characters
    real = {name: size for name, size in sizes.items() if name not in PLANTED and size >= smallest}
    real.pop(study.target or "", None)
    if len(real) < MIN_REAL_SOURCES:
        raise ValueError(
            f"{study.name}: {len(real)} sources have the {smallest:,.0f} characters that the smallest needs; "
            f"take fewer steps, or more epochs"
        )
    share = smallest / min(real.values())  # of every real source, so that they keep their sizes to each other
    sources = []
    for name in files:
        if name in real or name in PLANTED:
            limits = {GULLY: GULLY_CHARACTERS} | {other: size * share for other, size in real.items()}
            _write(read_texts(clean[name]), folder / "text" / f"{name}.jsonl", limits.get(name, float("inf")))
            sources.append({"name": name, "data_files": f"text/{name}.jsonl"})
        elif name == study.target:
            _write(read_texts(clean[name]), folder / "text" / f"{name}.jsonl", TARGET_CHARACTERS)
            sources.append({"name": name, "data_files": f"text/{name}.jsonl", "role": "target"})
        else:
            (folder / "held-out" / f"{name}.jsonl").unlink()
    config = {
        "total_steps": study.steps,
        "batch_rows": study.batch_rows,
        "sequence_length": study.context,
        "tokenizer": {"train_vocab_size": study.vocab_size},
        "holdout": study.holdout,
        "probes": PROBES if study.holdout or study.target else None,
        "sources": sources,
    }
    partial = folder / "base.partial"
    partial.write_text(json.dumps(config), encoding="utf-8")
    prepare(Curriculum.from_yaml(partial), folder / "rows")
    tokens = {name: manifest.train.tokens for name, manifest in Prepared.open(folder / "rows").manifest.sources.items()}
    for source in sources:
        if "role" not in source:
            source["tokens"] = tokens[source["name"]]  # type: ignore[assignment]
    path.write_text(json.dumps(config | {"prepared": str(folder / "rows")}), encoding="utf-8")
    return path


def _word_runs(text: str) -> set[int]:
    words = text.split()
    return {hash(tuple(words[i : i + WORD_RUN])) for i in range(len(words) - WORD_RUN + 1)}


def _held_out(source: Path, target: Path, limit: float) -> set[int]:
    """Write the documents that are held out, up to ``limit`` characters, and return their runs of words."""
    kept = (text for text in read_texts(source) if is_held_out(text))
    texts = _write(kept, target, limit)
    return set().union(*map(_word_runs, texts))


def _cleaned(source: Path, target: Path, seen: set[int], *, keep: bool) -> int:
    """Write the documents that share no run of words with what is held out; return their characters.

    A planted source (``keep``) has no documents of its own to hold out. Copies of held-out text (a licence, a module
    that exists twice) would make knowing by heart look like learning: Brown et al., arXiv 2005.14165, appendix C.
    """
    texts = (text for text in read_texts(source) if keep or not is_held_out(text))
    return sum(map(len, _write((text for text in texts if seen.isdisjoint(_word_runs(text))), target, float("inf"))))


def _write(texts: Iterable[str], target: Path, limit: float) -> list[str]:
    """Write documents up to ``limit`` characters, the last cut off, and return them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    taken, kept = 0.0, []
    with target.open("w", encoding="utf-8") as file:
        for text in texts:
            if taken >= limit:
                break
            text = text[: max(200, int(limit - taken) + 1)] if limit < float("inf") else text
            taken += len(text)
            kept.append(text)
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return kept


def run(study: Study, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model under one arm and return what came of it; kept in a file, so that it is never done twice."""
    path = folder / "runs" / f"{arm.replace(' ', '_')}-{seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    base = json.loads(prepare_study(study, folder).read_text(encoding="utf-8"))
    tokens = {source["name"]: source["tokens"] for source in base["sources"] if "role" not in source}
    setting = Setting(tokens, study.steps, study.batch_rows * study.context)
    curriculum = Curriculum(**{**base, "seed": seed, **ARMS[arm](setting)})
    tokenizer = Prepared.open(base["prepared"]).tokenizer()
    result = _trained(study, curriculum, tokenizer, _held_out_rows(study, folder, tokenizer), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    found = {"arm": arm, "seed": seed, "target": study.target, "tokens": tokens, **result}
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)
    return found


def _trained(
    study: Study, curriculum: Curriculum, tokenizer: TextTokenizer, rows: dict[str, torch.Tensor], seed: int
) -> dict[str, Any]:
    torch.set_num_threads(1)  # two runs at once are faster than one on two threads
    model = Andrea(MODELS[study.model](tokenizer.vocab_size, study.context), seed=seed)
    settings = TrainingConfig(peak_lr=PEAK_LR[study.model], precision="bfloat16").scaled_to(study.steps)
    trainer = Trainer(model, settings, study.steps)
    dataset = MixtureDataset(curriculum)
    curve: list[tuple[int, dict[str, float]]] = []
    every = max(study.steps // 6, 1)

    def on_step(step: int, _loss: float, _batch: Any) -> None:
        if (step + 1) % every == 0 or step + 1 == study.steps:
            curve.append((step + 1, held_out_losses(model, rows)))

    begun_s = time.process_time()
    with sdpa_kernel(SDPBackend.MATH):  # on a processor, short rows: a third faster than the flash kernel
        report = train(dataset, trainer, vocab_size=tokenizer.vocab_size, on_step=on_step)
    drawn = {name: progress.rows for name, progress in dataset.progress().items()}
    total = sum(drawn.values())
    return {
        "curve": curve,
        "drawn": {name: rows / total for name, rows in drawn.items()},
        "deciding_share": report.reporting_share + report.waiting_share,
        "cpu_s": time.process_time() - begun_s,
    }


def held_out_losses(model: Andrea, rows: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean loss of each source's held-out rows, nats a token."""
    with torch.inference_mode():
        return {name: float(model.token_losses(ids[:, :-1], ids[:, 1:]).mean()) for name, ids in rows.items()}


def _held_out_rows(study: Study, folder: Path, tokenizer: TextTokenizer) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((folder / "held-out").glob("*.jsonl")):
        ids = tokenizer.encode_joined(list(read_texts(path)))
        length = study.context + 1
        num_rows = min(HELD_OUT_ROWS, len(ids) // length)
        if num_rows:
            rows = ids[: num_rows * length].reshape(num_rows, length).astype(np.int64)
            found[path.stem] = torch.from_numpy(rows)
    return found
