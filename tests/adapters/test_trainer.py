"""The Hugging Face ``Trainer``: the losses and gradients are those of ``transformers``' own loss, or it is refused."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples import tiny
from mixer import Curriculum, MixtureDataset
from mixer.errors import ConfigError, FeedbackError, StateMismatchError
from mixer.journal.file import read_journal
from mixer.sources.prepared.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore")
T, V, B = 16, tiny.VOCABULARY, 8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    tiny.curriculum(tmp_path / "run")
    return tmp_path / "run"


def library(name: str = "transformers") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def a_model(kind: str = "gpt2") -> Any:
    """A small model of random weights without dropout, always the same."""
    hf = library()
    torch.manual_seed(1)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        sizes = {"n_positions": T, "n_embd": 16, "n_layer": 2, "n_head": 2}
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=V, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes, **ids)
        )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "mixtral":
        more = {"num_local_experts": 4, "output_router_logits": True, "num_key_value_heads": 2}
        return hf.MixtralForCausalLM(hf.MixtralConfig(vocab_size=V, **sizes, **more, **ids))
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=V, **sizes, **ids))


def a_trainer(
    folder: Path, model: Any, dataset: Any, *, kind: Any = None, more: dict[str, Any] | None = None, **changes: Any
) -> Any:
    arguments = {
        "output_dir": str(folder / "out"),
        "max_steps": 6,
        "save_steps": 3,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
        **changes,
    }
    made = library().TrainingArguments(**arguments)
    kind = kind or library("mixer.adapters.trainer").MixtureTrainer
    return kind(model=model, args=made, train_dataset=dataset, **(more or {}))


def masking(base: Any) -> Any:
    class Masking(base):  # type: ignore[misc]
        """Masks a third of the labels of each batch, unevenly over its rows."""

        def prepare_batch(self, batch: Any) -> Any:
            labels = batch["labels"].clone()
            rows, places = labels.shape
            labels[torch.arange(rows * places).reshape(rows, places) % (3 + int(batch["step"]) % 4) == 0] = -100
            labels[0, : places // 2 + int(batch["step"]) % 3] = -100
            return {**batch, "labels": labels}

    return Masking


class KilledError(BaseException):
    """Nothing that was in memory is used after it."""


class Spy:
    """Notes the gradients of every optimizer step, and the batches that they are of; may end the training at one."""

    def __init__(self, trainer: Any, kill_at: int | None = None) -> None:
        self.gradients: list[list[Tensor]] = []
        self.losses: list[float] = []
        self.batches: list[dict[str, Any]] = []
        compute = trainer.compute_loss

        def noting(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            self.batches.append({**inputs, "labels": inputs["labels"].clone()})
            if len(self.batches) == kill_at:
                raise KilledError
            loss = compute(model, inputs, *rest, **options)
            self.losses.append(float(loss))
            return loss

        trainer.compute_loss = noting
        spy = self

        class Note(library().TrainerCallback):  # type: ignore[misc]
            def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
                spy.gradients.append([p.grad.clone() for p in model.parameters()])

        trainer.add_callback(Note())


def own_gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[float, list[Tensor]]:
    """Return loss and gradients of all batches as one, by transformers' own loss, given unshifted labels.

    Its shift is undone beforehand: the token after the last, of which there are no logits, stands at the end.
    """
    loss_function = library("transformers.loss.loss_utils").ForCausalLMLoss
    input_ids, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
    model.zero_grad()
    logits = model(input_ids=input_ids).logits
    longer = torch.cat([torch.full_like(labels[:, :1], -100), labels], dim=1)  # labels[t + 1] follows position t
    padded = torch.cat([logits, logits[:, -1:]], dim=1)
    loss = loss_function(padded, longer, V)
    loss.backward()
    return float(loss), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_losses_and_gradients_are_those_of_the_librarys_own_loss_over_all_that_is_accumulated(
    folder: Path, kind: str, accumulated: int, is_masked: bool
) -> None:
    base = library("mixer.adapters.trainer").MixtureTrainer
    dataset = MixtureDataset(tiny.curriculum(folder), journal=folder / "walk.jsonl")
    trainer = a_trainer(
        folder,
        a_model(kind),
        dataset,
        kind=masking(base) if is_masked else base,
        max_steps=2,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=0.0,
        learning_rate=0.0,
        logging_steps=1,
    )
    spy = Spy(trainer)
    trainer.train()
    assert len(spy.batches) == 2 * accumulated
    for i, gradients in enumerate(spy.gradients):
        mine = slice(i * accumulated, (i + 1) * accumulated)
        loss, expected = own_gradients(a_model(kind), spy.batches[mine])
        assert sum(spy.losses[mine]) == pytest.approx(loss, abs=1e-6 * loss)
        assert trainer.state.log_history[i]["loss"] == pytest.approx(loss, abs=1e-4)
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    written = [line for line in read_journal(folder / "walk.jsonl") if line["type"] == "feedback"]
    assert [line["step"] for line in written] == list(range(2 * accumulated))
    for line, batch in zip(written, spy.batches, strict=True):
        kept = batch["labels"] != -100
        loss, _ = own_gradients(a_model(kind), [batch])
        assert sum(line["tokens"]) == int(kept.sum())
        assert sum(line["loss_sums"]) / sum(line["tokens"]) == pytest.approx(loss, rel=1e-5)
        counts = kept.sum(1)
        for source, tokens in zip(line["sources"], line["tokens"], strict=True):
            assert tokens == int(counts[batch["source_ids"] == source].sum())


def test_accumulating_four_batches_trains_as_one_of_four_times_the_rows_does(folder: Path) -> None:
    """Also of a library's plain Trainer, over the same tokens as unshifted rows."""
    hf = library()
    dataset = MixtureDataset(tiny.curriculum(folder))
    trainer = a_trainer(folder, a_model("llama"), dataset, max_steps=3, gradient_accumulation_steps=4)
    spy = Spy(trainer)
    trainer.train()
    rows = [
        {"input_ids": torch.cat([ids, labels[-1:]]), "labels": torch.cat([ids, labels[-1:]])}
        for batch in spy.batches
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    plain = a_trainer(
        folder,
        a_model("llama"),
        rows,
        kind=hf.Trainer,
        max_steps=3,
        per_device_train_batch_size=4 * B,
        train_sampling_strategy="sequential",
    )
    plain.train()
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_terms_that_a_model_adds_to_its_loss_stay(folder: Path) -> None:
    trainer = a_trainer(folder, a_model("mixtral"), MixtureDataset(tiny.curriculum(folder)), max_steps=1)
    spy = Spy(trainer)
    trainer.train()
    model = a_model("mixtral")
    model.train()
    (batch,) = spy.batches
    with torch.no_grad():
        given = model(**{key: batch[key] for key in ("input_ids", "labels", "shift_labels")})
    assert float(given.aux_loss) > 0
    assert spy.losses == [pytest.approx(float(given.loss), rel=1e-6)]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_after_a_checkpoint_goes_on_to_the_same_weights(
    folder: Path, accumulated: int, num_workers: int
) -> None:
    def trained(out: str, kill_at: int | None = None) -> tuple[Any, list[Any]]:
        dataset = MixtureDataset(tiny.curriculum(folder).model_copy(update={"feedback_lag": 8}))
        changes: dict[str, Any] = {"output_dir": str(folder / out), "dataloader_num_workers": num_workers}
        trainer = a_trainer(folder, a_model(), dataset, gradient_accumulation_steps=accumulated, **changes)
        spy = Spy(trainer, kill_at=kill_at)
        trainer.train(resume_from_checkpoint=(folder / out / "checkpoint-3").exists())
        return trainer, spy.batches

    with pytest.raises(KilledError):
        trained("cut", kill_at=5 * accumulated)
    whole, batches = trained("whole")
    resumed, rest = trained("cut")
    assert (len(batches), len(rest)) == (6 * accumulated, 3 * accumulated)
    for one, other in zip(batches[3 * accumulated :], rest, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    one, other = (trainer.train_dataset.walk.state_dict(can_undo=False) for trainer in (whole, resumed))
    assert one == other
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Shifting(nn.Module):
    """A causal model of old, which shifts labels itself and swallows what it does not know."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = tiny.TinyModel()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        logits = self.model(input_ids)
        assert labels is not None
        return {
            "loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
            "logits": logits,
        }


class Averaging(Shifting):
    """One that takes our labels as they are, but averages over each batch that is accumulated."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **more: Any) -> dict[str, Tensor]:
        logits = self.model(input_ids)
        return {
            "loss": nn.functional.cross_entropy(logits.flatten(0, 1), more["shift_labels"].flatten()),
            "logits": logits,
        }


class Unaware(Averaging):
    """The same, but it says so: then the trainer divides by the number of batches."""

    accepts_loss_kwargs = False


def test_a_model_that_shifts_or_averages_by_itself_is_found(folder: Path) -> None:
    def train(model: nn.Module, accumulated: int) -> list[float]:
        dataset = MixtureDataset(tiny.curriculum(folder))
        trainer = a_trainer(folder, model, dataset, gradient_accumulation_steps=accumulated)
        spy = Spy(trainer)
        trainer.train()
        return spy.losses

    with pytest.raises(ConfigError, match="Shifting gives a loss of .* does not take shift_labels"):
        train(Shifting(), 1)
    with pytest.raises(ConfigError, match="Averaging gives a loss of .* or num_items_in_batch"):
        train(Averaging(), 4)
    assert len(train(Averaging(), 1)) == 6
    assert len(train(Unaware(), 4)) == 24


def test_a_model_without_a_loss_that_takes_our_labels_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="TinyModel.forward takes no shift_labels"):
        a_trainer(folder, tiny.TinyModel(), MixtureDataset(tiny.curriculum(folder)))


def test_logits_of_other_tokens_are_refused() -> None:
    token_losses = library("mixer.adapters.trainer").token_losses
    labels = torch.zeros(2, 5, dtype=torch.int64)
    for outputs in ({"logits": torch.zeros(2, 4, 7)}, {"logits": None}, (torch.tensor(0.0), torch.zeros(10, 7))):
        with pytest.raises(FeedbackError, match="the model gives logits of shape .* for labels of shape"):
            token_losses(outputs, labels)
    assert token_losses((None, torch.zeros(2, 5, 7)), labels).tolist() == [[pytest.approx(math.log(7))] * 5] * 2


REFUSALS: dict[str, dict[str, dict[str, Any]]] = {
    "label_smoothing_factor is 0.1": {"arguments": {"label_smoothing_factor": 0.1}},
    "auto_find_batch_size would change": {"arguments": {"auto_find_batch_size": True}},
    "per_device_train_batch_size is 4, but batches have 8 rows": {"arguments": {"per_device_train_batch_size": 4}},
    "max_steps is 25 of 1 .* set max_steps to 24 or less": {"arguments": {"max_steps": 25}},
    "max_steps is 7 of 4 .* to 6": {"arguments": {"max_steps": 7, "gradient_accumulation_steps": 4}},
    "use_liger_kernel leaves no logits": {"arguments": {"use_liger_kernel": True}},
    "data_collator is not called": {"options": {"data_collator": lambda rows: rows}},
    "compute_loss_func would be given": {"options": {"compute_loss_func": lambda *_, **__: None}},
    "the data set yields rows": {"of_dataset": {"batches": False}},
    "rank 0 of 2, but the trainer is process 0 of 1": {"of_dataset": {"rank": 0, "world_size": 2}},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_settings_under_which_training_would_be_silently_wrong_are_refused(folder: Path, words: str) -> None:
    case = REFUSALS[words]
    dataset = MixtureDataset(tiny.curriculum(folder), **case.get("of_dataset", {}))
    with pytest.raises(ConfigError, match=words):
        a_trainer(folder, a_model(), dataset, more=case.get("options"), **case.get("arguments", {}))


def test_models_that_see_what_they_are_to_predict_and_other_data_sets_are_refused(folder: Path) -> None:
    hf = library()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = hf.BertForMaskedLM(hf.BertConfig(vocab_size=V, **sizes))
    with pytest.raises(ConfigError, match="masked language modelling"):
        a_trainer(folder, bert, MixtureDataset(tiny.curriculum(folder)))
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(ConfigError, match="has an encoder"):
        a_trainer(folder, t5, MixtureDataset(tiny.curriculum(folder)))
    with pytest.raises(ConfigError, match="train_dataset is a list"):
        a_trainer(folder, a_model(), [{"input_ids": [1]}])


def test_a_second_training_or_other_accumulation_does_not_begin_elsewhere_in_silence(folder: Path) -> None:
    trainer = a_trainer(folder, a_model(), MixtureDataset(tiny.curriculum(folder)))
    trainer.train()
    with pytest.raises(StateMismatchError, match="begins at batch 0 .* stands at step 6"):
        trainer.train()
    fresh = a_trainer(folder, a_model(), MixtureDataset(tiny.curriculum(folder)), gradient_accumulation_steps=2)
    with pytest.raises(
        StateMismatchError, match="begins at batch 6 .3 optimizer steps of 2 batches.* stands at step 3"
    ):
        fresh.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-3"))
    (folder / "out" / "checkpoint-6" / "mixture-0.json").unlink()
    with pytest.raises(StateMismatchError, match="killed meanwhile; take the checkpoint before it"):
        fresh.train(resume_from_checkpoint=True)


def test_evaluation_is_the_trainers_own_and_reports_nothing(folder: Path) -> None:
    rows = [{"input_ids": torch.arange(T), "labels": torch.arange(T)} for _ in range(4)]
    dataset = MixtureDataset(tiny.curriculum(folder), journal=folder / "walk.jsonl")
    trainer = a_trainer(
        folder, a_model(), dataset, more={"eval_dataset": rows}, eval_strategy="steps", eval_steps=2, max_steps=4
    )
    trainer.train()
    evaluated = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluated) == 2
    plain = a_trainer(folder, trainer.model, None, kind=library().Trainer, more={"eval_dataset": rows})
    assert evaluated[-1] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)
    assert sum(line["type"] == "feedback" for line in read_journal(folder / "walk.jsonl")) == 4


# a plain Trainer, and loaders that collate or share out once more


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_removing", [True, False])
@pytest.mark.parametrize("batches", [True, False])
def test_a_plain_trainer_does_not_train_on_labels_that_are_shifted_twice(
    folder: Path, batches: bool, is_removing: bool, num_workers: int
) -> None:
    dataset = MixtureDataset(tiny.curriculum(folder), batches=batches)
    changes: dict[str, Any] = {"remove_unused_columns": is_removing, "dataloader_num_workers": num_workers}
    plain = a_trainer(folder, a_model(), dataset, kind=library().Trainer, **changes)
    with pytest.raises(Exception, match="mixer.adapters.trainer.MixtureTrainer"):
        plain.train()
    assert plain.state.global_step == 0


def test_a_trainer_of_ones_own_may_collate_rows_and_report_them(folder: Path) -> None:
    dataset = MixtureDataset(tiny.curriculum(folder), batches=False)

    class Own(library().Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            losses = tiny.token_losses(model(inputs["input_ids"]), inputs["labels"])
            dataset.report(inputs, losses)
            return losses.mean()

    own = a_trainer(folder, tiny.TinyModel(), dataset, kind=Own, remove_unused_columns=False)
    own.train()
    assert dataset.walk.reported == {0: [[0, 5]]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_would_collate_batches_once_more_is_refused(folder: Path, num_workers: int) -> None:
    dataset = MixtureDataset(tiny.curriculum(folder))
    with pytest.raises(ConfigError, match="pass batch_size=None, or make the data set with batches=False"):
        next(iter(torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=num_workers)))

    class Split(torch.utils.data.IterableDataset[Any]):
        """A wrapper that yields rows is free to."""

        def __init__(self) -> None:
            self.dataset = dataset

        def __iter__(self) -> Iterator[Any]:
            for batch in self.dataset:
                yield from batch["input_ids"]

    rows = next(iter(torch.utils.data.DataLoader(Split(), batch_size=4, num_workers=num_workers)))
    assert rows.shape == (4, T)


@pytest.mark.parametrize("batches", [True, False])
def test_accelerate_does_not_share_out_a_ranks_rows_once_more(folder: Path, batches: bool) -> None:
    loading = library("accelerate.data_loader")
    dataset = MixtureDataset(tiny.curriculum(folder), batches=batches)
    shard = loading.IterableDatasetShard(dataset, batch_size=1, num_processes=2, process_index=0)
    with pytest.raises(ConfigError, match="among 2 processes|pass batch_size=None"):
        next(iter(torch.utils.data.DataLoader(shard, batch_size=4)))
    with pytest.raises(ConfigError, match="among 2 processes"):
        next(iter(torch.utils.data.DataLoader(shard, batch_size=None)))


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bfloat16"])
def test_probes_are_answered_and_change_nothing_of_the_training(
    folder: Path, tmp_path: Path, precision: dict[str, Any]
) -> None:
    def run(name: str, *, probes: bool) -> tuple[list[Tensor], list[Tensor]]:
        plain = tiny.curriculum(folder).model_dump(exclude={"prepared", "probes", "policy", "targets"})
        plan = Curriculum(**plain | {"holdout": 0.2, "policy": "static", "prepared": str(tmp_path / "rows")})
        if not (tmp_path / "rows").exists():
            prepare(plan.model_copy(update={"prepared": None}), tmp_path / "rows")
        if probes:
            plan = Curriculum(**plan.model_dump() | {"probes": {"rows": 3}})
        model = a_model("llama")
        model.model.layers[0].self_attn.attention_dropout = 0.3  # which draws random numbers, but not for a probe
        dataset = MixtureDataset(plan, journal=tmp_path / f"{name}.jsonl")
        torch.manual_seed(3)
        trainer = a_trainer(tmp_path / name, model, dataset, max_steps=3, gradient_accumulation_steps=4, **precision)
        first: list[Tensor] = []
        report = dataset.report_probe

        def noting(probe: Any, losses: Tensor) -> bool:
            first.append(losses)
            return report(probe, losses)

        vars(dataset)["report_probe"] = noting
        trainer.train()
        return [parameter.clone() for parameter in model.parameters()], first

    probed, losses = run("probed", probes=True)
    unprobed, none = run("unprobed", probes=False)
    assert all(torch.equal(a, b) for a, b in zip(probed, unprobed, strict=True))
    lines = [record for record in read_journal(tmp_path / "probed.jsonl") if record["type"] == "probe"]
    assert len(lines) == len(losses) >= 3
    assert none == []
    before_training = a_model("llama").eval()
    plan = Curriculum(**next(iter(read_journal(tmp_path / "probed.jsonl")))["curriculum"])
    once_more = MixtureDataset(plan)
    probe = once_more.probe_batch(next(iter(once_more)))
    assert probe is not None
    logits = before_training(input_ids=probe["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), probe["labels"], reduction="none")
    assert torch.allclose(losses[0], expected, atol=0.1 if precision else 1e-4)


def test_the_trainers_own_logs_have_the_losses_and_shares_of_each_source(folder: Path, tmp_path: Path) -> None:
    dataset = MixtureDataset(tiny.curriculum(folder), journal=tmp_path / "run.jsonl")
    trainer = a_trainer(folder, a_model("llama"), dataset, max_steps=4, logging_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    reports = [record for record in read_journal(tmp_path / "run.jsonl") if record["type"] == "feedback"]
    for entry, steps in zip(logged, (range(4), range(4, 8)), strict=True):
        sums, tokens = [0.0] * 3, [0] * 3
        for report in (report for report in reports if report["step"] in steps):
            for i, source in enumerate(report["sources"]):
                sums[source] += report["loss_sums"][i]
                tokens[source] += report["tokens"][i]
        for i, name in enumerate(dataset.curriculum.names):
            assert entry[f"mixer/loss/{name}"] == pytest.approx(sums[i] / tokens[i], rel=1e-4)
            assert entry[f"mixer/share/{name}"] == pytest.approx(tokens[i] / sum(tokens))
