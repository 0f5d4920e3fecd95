"""The Hugging Face ``Trainer`` over a ``MixtureDataset``: right labels, right normalisation, reports, exact resume.

By itself the ``Trainer`` would let the model shift labels that are shifted already, drop ``source_ids``, report no
losses, share the rows out a second time, and resume by drawing and dropping every batch of the run so far.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from mixer.adapters.loading import MixtureLoader
from mixer.delivery.tensors import Batch
from mixer.errors import ConfigError, FeedbackError, StateMismatchError
from mixer.sources.masks import IGNORED_LABEL
from mixer.system.files import written_whole

OWN_KEYS = ("source_ids", "step", "phase", "row_numbers")  # of a batch, which no model takes
DEFAULT_ROWS = 8  # of ``TrainingArguments.per_device_train_batch_size``


class MixtureCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Saves the state of a data set as ``mixture-RANK.json`` in every checkpoint of a Hugging Face ``Trainer``.

    ``MixtureTrainer`` brings its own. In another trainer call ``load(checkpoint)`` and give ``trainer.train`` the same
    checkpoint, with ``ignore_data_skip=True``.

    Args:
        dataset: what the trainer trains on.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def load(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint's state.

        Raises:
            StateMismatchError: no state there, one of another run, or of streams read by another number of ranks.
        """
        file = Path(checkpoint) / f"mixture-{self.dataset.rank}.json"
        if not file.exists() and self.dataset.curriculum.is_on_disk:  # there every rank's is the same
            file = file.with_name("mixture-0.json")
        if not file.exists():
            raise StateMismatchError(
                f"{checkpoint} holds no {file.name}: it was saved without MixtureCallback, by fewer ranks, or by a "
                "trainer that was killed meanwhile; take the checkpoint before it, and the number of ranks that it had"
            )
        self.dataset.load_state_dict(json.loads(file.read_bytes()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse to resume where the batches would not be those after the checkpoint's.

        Raises:
            ConfigError: the trainer would skip batches by itself.
            StateMismatchError: the data set stands elsewhere.
        """
        if state.global_step and not args.ignore_data_skip:
            raise ConfigError(
                "the trainer would draw and drop the batches of the run so far; set ignore_data_skip=True, "
                "MixtureCallback.load has brought the data set to its place"
            )
        step = state.global_step * args.gradient_accumulation_steps
        if self.dataset.step != step:
            raise StateMismatchError(
                f"the trainer begins at batch {step} ({state.global_step} optimizer steps of "
                f"{args.gradient_accumulation_steps} batches), but the data set stands at step {self.dataset.step}; "
                "load the checkpoint that trainer.train resumes from, and accumulate as many batches as it did"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the state into the checkpoint that was just saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with written_whole(folder / f"mixture-{self.dataset.rank}.json") as file:
            json.dump(self.dataset.state_dict(), file)


class MixtureTrainerMixin:
    """Lets a Hugging Face ``Trainer`` train on a ``MixtureDataset``: ``class Mine(MixtureTrainerMixin, Trainer)``.

    The model is given this rank's batches, their labels as ``shift_labels``, and the ``num_items_in_batch`` of all
    accumulated batches and ranks; it trains on its own loss, auxiliary terms included. From its logits the loss of each
    token is computed once more, without gradients and a row at a time, and reported. At batch 1, 2, 4, 8, ... the two
    are compared, so that a model that shifts or averages by itself is found. Where the curriculum has ``probes``, they
    are measured before the batch they come with, without dropout and gradients.

    ``train(resume_from_checkpoint=...)`` loads the data set's state too. ``per_device_train_batch_size`` and
    ``ignore_data_skip`` are set to what the data set does. Evaluation is the ``Trainer``'s own.

    Raises:
        ConfigError: settings under which training would be silently wrong; ``problems`` lists all of them.
    """

    # of the Trainer that this is mixed into
    args: Any
    model: Any
    train_dataset: Any
    accelerator: Any
    model_accepts_loss_kwargs: bool

    def __init__(
        self, model: Any = None, args: Any = None, data_collator: Any = None, *more: Any, **options: Any
    ) -> None:
        super().__init__(model, args, data_collator, *more, **options)  # type: ignore[call-arg]  # a Trainer comes after it
        problems = _problems(self, collates=data_collator is not None)
        if problems:
            raise ConfigError(problems)
        rows = self.train_dataset.curriculum.rows_of_rank(self.train_dataset.world_size)
        self.args.per_device_train_batch_size = self._train_batch_size = rows
        self.args.ignore_data_skip = True
        self.mixture_callback = MixtureCallback(self.train_dataset)
        self.add_callback(self.mixture_callback)  # type: ignore[attr-defined]
        self._num_losses = 0
        self._sums = _SumsBySource(self.train_dataset.curriculum.names)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return a batch as the model is to see it: override it to mask labels with -100, or to add inputs."""
        return batch

    def get_train_dataloader(self) -> Any:
        """Return this rank's batches; not prepared by accelerate, which would share them out a second time."""
        workers = self.args.dataloader_num_workers
        options = {"pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available()}
        if workers:
            options["prefetch_factor"] = self.args.dataloader_prefetch_factor
            options["persistent_workers"] = self.args.dataloader_persistent_workers
        loader = MixtureLoader(self.train_dataset, num_workers=workers, **options)
        return _Prepared(loader, self)

    def train(self, resume_from_checkpoint: Any = None, *more: Any, **options: Any) -> Any:
        """Train, from a checkpoint's state of the data set too if one is given; see ``Trainer.train``.

        Raises:
            StateMismatchError: a checkpoint without a state, of another run, or that is not where the data set stands.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if isinstance(resume_from_checkpoint, str | Path):
            self.mixture_callback.load(resume_from_checkpoint)
        self._num_losses = 0
        return super().train(resume_from_checkpoint, *more, **options)  # type: ignore[misc]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: Any = False,  # noqa: FBT002  # as the Trainer has it
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the model's own loss, and report the loss of every token."""
        compute = super().compute_loss  # type: ignore[misc]
        if "source_ids" not in inputs:  # to evaluate on
            return compute(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        batch = {name: inputs.pop(name) for name in OWN_KEYS if name in inputs}
        batch["labels"] = labels = inputs["shift_labels"]
        self._answer_probe(model, batch)
        loss, outputs = compute(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        losses = token_losses(outputs, labels)
        self.train_dataset.report(batch, losses)
        self._sums.add(losses, labels, batch["source_ids"])
        self._num_losses += 1
        if self._num_losses & (self._num_losses - 1) == 0:  # reading the loss waits for the device
            self.check_loss(float(loss.detach()), self._expected_loss(outputs, losses, labels, num_items_in_batch))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *more: Any, **options: Any) -> None:
        """Log as the ``Trainer`` does, training losses together with each source's since the last time.

        ``mixer/loss/SOURCE`` is the mean loss of its tokens on all ranks, nats, and ``mixer/share/SOURCE`` its share of
        the tokens that were trained on: wherever ``report_to`` sends logs, these go too.
        """
        if "loss" in logs:
            logs = {**logs, **self._sums.taken(self.accelerator)}
        super().log(logs, *more, **options)  # type: ignore[misc]

    @torch.no_grad()
    def _answer_probe(self, model: Any, batch: Batch) -> None:
        """Measure the held-out losses that are due with a batch, as many rows at a time as a batch has."""
        probe = self.train_dataset.probe_batch(batch)
        if probe is None:
            return
        device, num_rows = batch["labels"].device, len(batch["labels"])
        was_training = model.training
        model.eval()
        losses = []
        try:
            for rows in range(0, len(probe["labels"]), num_rows):
                ids, labels = (
                    probe[name][rows : rows + num_rows].long().to(device) for name in ("input_ids", "labels")
                )
                losses.append(token_losses(model(input_ids=ids), labels))
        finally:
            model.train(was_training)
            torch.clear_autocast_cache()  # of weights that were cast here, which gradients could not go through
        self.train_dataset.report_probe(probe, torch.cat(losses))

    def check_loss(self, loss: float, expected: float) -> None:
        """Refuse a model whose loss is not that of our labels; override it for one that adds terms of its own.

        Args:
            loss: what the gradient is of.
            expected: what it should be, from the model's logits and ``aux_loss``.

        Raises:
            ConfigError: it is something else.
        """
        is_rough = self.args.bf16 or self.args.fp16 or next(self.model.parameters()).dtype != torch.float32
        if not abs(loss - expected) <= (1e-2 if is_rough else 1e-4) * max(abs(expected), 1e-6):
            raise ConfigError(
                f"{type(self.model).__name__} gives a loss of {loss:.6g}, but our labels, divided by all items of the "
                f"batch, give {expected:.6g}: it does not take shift_labels (ours are shifted already) or "
                "num_items_in_batch, or it adds terms of its own (then override check_loss)"
            )

    def _expected_loss(self, outputs: Any, losses: Tensor, labels: Tensor, num_items: Any) -> float:
        """Return the loss that the trainer should take the gradient of."""
        is_divided = self.model_accepts_loss_kwargs and num_items is not None
        counted = float(num_items) if is_divided else max(float((labels != IGNORED_LABEL).sum()), 1.0)
        expected = float(losses.double().sum()) / counted
        if isinstance(outputs, Mapping) and outputs.get("aux_loss") is not None:  # of a mixture of experts
            expected += float(self.model.config.router_aux_loss_coef) * float(outputs["aux_loss"])
        is_averaged = is_divided and self.args.average_tokens_across_devices
        return expected * self.accelerator.num_processes if is_averaged else expected


class MixtureTrainer(MixtureTrainerMixin, Trainer):  # type: ignore[misc]
    """The Hugging Face ``Trainer`` with ``train_dataset=MixtureDataset(...)``; see ``MixtureTrainerMixin``."""


@torch.no_grad()
def token_losses(outputs: Any, labels: Tensor) -> Tensor:
    """Return the loss of each token in nats, float32 [b, T], from a model's output; that of masked labels is 0.

    Args:
        outputs: with ``logits`` [b, T, V], or a tuple of the loss and them.
        labels: already shifted, int [b, T], -100 where masked.

    Raises:
        FeedbackError: no logits of each token.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[1]
    if logits is None or logits.shape[:2] != labels.shape:
        raise FeedbackError(
            f"the model gives logits of shape {None if logits is None else list(logits.shape)} for labels of shape "
            f"{list(labels.shape)}; losses are reported from [b, T, V], one for each token of the batch"
        )
    # a row at a time: the float32 copy of all logits would be as large as what the backward pass keeps
    return torch.stack(
        [cross_entropy(row.float(), label, reduction="none") for row, label in zip(logits, labels, strict=True)]
    )


class _SumsBySource:
    """Losses and tokens of each source, added up on the device until they are logged: no step waits for them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._sums: Tensor | None = None

    def add(self, losses: Tensor, labels: Tensor, source_ids: Tensor) -> None:
        """Add the losses of a batch, [b, T], whose rows are of ``source_ids``, [b]."""
        counted = labels != IGNORED_LABEL
        of_rows = torch.stack([(losses * counted).sum(dim=1), counted.sum(dim=1).float()])
        if self._sums is None:
            self._sums = torch.zeros(2, len(self._names), device=losses.device)
        self._sums.index_add_(1, source_ids.to(losses.device).long(), of_rows)

    def taken(self, accelerator: Any) -> dict[str, float]:
        """Return the mean loss and the share of the tokens of each source on all ranks, and begin anew."""
        if self._sums is None:
            return {}
        losses, tokens = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        total = max(sum(tokens), 1.0)
        known = [(name, loss, num) for name, loss, num in zip(self._names, losses, tokens, strict=True) if num]
        means = {f"mixer/loss/{name}": loss / num for name, loss, num in known}
        return means | {f"mixer/share/{name}": num / total for name, _, num in known}


class _Prepared:
    """The batches of a loader as the trainer is to see them."""

    def __init__(self, loader: MixtureLoader, trainer: MixtureTrainerMixin) -> None:
        self._loader, self._trainer = loader, trainer

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            wide = {name: batch[name].long() for name in ("input_ids", "labels")}
            prepared = self._trainer.prepare_batch({**batch, **wide})
            yield {**prepared, "shift_labels": prepared["labels"]}  # by which the trainer counts, too


def _problems(trainer: Any, *, collates: bool) -> list[str]:
    """Return why training would be silently wrong."""
    args, dataset = trainer.args, trainer.train_dataset
    if not hasattr(dataset, "report_sums"):
        return [f"train_dataset is a {type(dataset).__name__}; give MixtureTrainer a MixtureDataset"]
    problems = [problem for is_wrong, problem in _settings(trainer, collates=collates) if is_wrong]
    forward = inspect.signature(trainer.model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in forward.values())
    if not takes_any and not {"labels", "shift_labels"} <= set(forward):
        problems.append(
            f"{type(trainer.model).__name__}.forward takes no shift_labels, so that it would shift labels once more "
            "that are shifted already; train it in a loop of your own (examples/ddp.py)"
        )
    rows = dataset.curriculum.rows_of_rank(dataset.world_size)
    if args.per_device_train_batch_size not in (DEFAULT_ROWS, rows):
        problems.append(
            f"per_device_train_batch_size is {args.per_device_train_batch_size}, but batches have {rows} rows on "
            f"each of {dataset.world_size} ranks (batch_rows of the curriculum): leave it out"
        )
    left, accumulated = dataset.curriculum.total_steps, args.gradient_accumulation_steps
    if not 0 < args.max_steps * accumulated <= left:
        problems.append(
            f"max_steps is {args.max_steps} of {accumulated} batches each, but the curriculum has total_steps {left}: "
            f"set max_steps to {left // accumulated} or less"
        )
    return problems


def _settings(trainer: Any, *, collates: bool) -> Iterator[tuple[bool, str]]:
    """Yield settings of a trainer that do not go with our batches: whether it is so, and what to do."""
    args, dataset = trainer.args, trainer.train_dataset
    yield not getattr(dataset, "_batches", True), "the data set yields rows; make it without batches=False"
    yield (
        (dataset.rank, dataset.world_size) != (args.process_index, args.world_size),
        f"the data set has the rows of rank {dataset.rank} of {dataset.world_size}, but the trainer is process "
        f"{args.process_index} of {args.world_size}: make TrainingArguments first, which sets torch.distributed up",
    )
    yield (
        args.n_gpu > 1,
        f"the trainer would divide each batch among {args.n_gpu} GPUs of one process: start a process for each "
        "(torchrun), or set CUDA_VISIBLE_DEVICES",
    )
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    sizes = {name: getattr(parallelism, f"{name}_size", 1) for name in ("tp", "cp", "sp")}
    yield (
        any(size > 1 for size in sizes.values()),
        f"processes share batches (parallelism_config with {sizes}), which this adapter cannot do yet",
    )
    yield args.auto_find_batch_size, "auto_find_batch_size would change the rows of a batch, which the curriculum says"
    yield (
        args.label_smoothing_factor != 0,
        f"label_smoothing_factor is {args.label_smoothing_factor}: the trainer's smoothed loss shifts labels itself",
    )
    yield (
        trainer.compute_loss_func is not None,
        "compute_loss_func would be given labels that are shifted already; override compute_loss after the mixin's",
    )
    yield getattr(args, "use_liger_kernel", False), "use_liger_kernel leaves no logits to report losses from"
    yield (
        collates and trainer.eval_dataset is None,
        "data_collator is not called for batches, which are whole; override prepare_batch to mask labels",
    )
    yield (
        bool(getattr(getattr(trainer.model, "config", None), "is_encoder_decoder", False)),
        "the model has an encoder, which sees the tokens that are to be predicted; our rows are for causal models",
    )
    yield (
        getattr(trainer.model, "loss_type", None) == "ForMaskedLM",
        "the model (masked language modelling) sees the tokens that it is to predict; our rows are for causal models",
    )
