"""Who iterates a data set: what would change its batches without a word is refused as the first one is asked for.

A data set cannot see how it is loaded, except by who calls it. So this looks at the callers once an iteration.
"""

from __future__ import annotations

import sys
from typing import Any

from mixer.errors import ConfigError

TRAINER_HINT = "use mixer.adapters.trainer.MixtureTrainer (docs/delivery.md)"


def check_consumer(dataset: object, *, is_whole: bool) -> None:
    """Raise ConfigError if whoever asks for batches collates, divides or shifts them once more.

    Args:
        dataset: what is iterated.
        is_whole: it yields batches, not rows.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in type(caller).__mro__}
        problem = _problem(caller, kinds, dataset, is_whole=is_whole)
        if problem is not None:
            raise ConfigError(problem)
        frame = frame.f_back  # type: ignore[assignment]


def _problem(caller: Any, kinds: dict[str, type], dataset: object, *, is_whole: bool) -> str | None:
    if "torch.utils.data._utils.fetch._IterableDatasetFetcher" in kinds and _is_over(caller.dataset, dataset):
        return _problem_of_loader(caller, is_whole=is_whole)
    if (
        "accelerate.data_loader.IterableDatasetShard" in kinds
        and caller.dataset is dataset
        and caller.num_processes > 1
    ):
        return (
            f"accelerate would share out this rank's rows once more among {caller.num_processes} processes: do not "
            f"prepare the loader (mixer.adapters.loading.MixtureLoader); with the Hugging Face Trainer, {TRAINER_HINT}"
        )
    is_dispatched = "accelerate.data_loader.DataLoaderDispatcher" in kinds and _is_over(caller.dataset, dataset)
    if is_dispatched and caller.state.num_processes > 1:
        return (
            "accelerate would let rank 0 read for all ranks, which have rows of their own: do not prepare the loader "
            f"(mixer.adapters.loading.MixtureLoader); with the Hugging Face Trainer, {TRAINER_HINT}"
        )
    trainer: Any = kinds.get("transformers.trainer.Trainer")
    if trainer is not None and caller.train_dataset is dataset and type(caller).compute_loss is trainer.compute_loss:
        return (
            "a Hugging Face Trainer would let the model shift labels that are shifted already, and reports no losses: "
            f"{TRAINER_HINT}"
        )
    return None


def _problem_of_loader(fetcher: Any, *, is_whole: bool) -> str | None:
    if is_whole and fetcher.auto_collation:
        return (
            "a DataLoader with a batch_size would collate whole batches once more: pass batch_size=None, or make the "
            f"data set with batches=False; with the Hugging Face Trainer, {TRAINER_HINT}"
        )
    kept = getattr(fetcher.collate_fn, "signature_columns", None)
    if kept is not None and "source_ids" not in kept:
        return (
            "this collator drops source_ids, without which no losses can be reported: set remove_unused_columns=False, "
            f"or {TRAINER_HINT}"
        )
    return None


def _is_over(loaded: object, dataset: object) -> bool:
    """Whether what a loader has is the data set, or accelerate's wrapper around it."""
    is_shard = type(loaded).__name__ == "IterableDatasetShard"
    return loaded is dataset or (is_shard and getattr(loaded, "dataset", None) is dataset)
