"""The report of a real run, from the command and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from andrea.checkpoint import Checkpoint, load_model, save_checkpoint
from andrea.inspection import terrain
from andrea.inspection.command import inspect
from andrea.inspection.curvature import sharpness
from andrea.inspection.measure import look
from andrea.inspection.opening import beginning_of, open_subject, rows_of_text
from andrea.inspection.report import numbers, write_report
from andrea.inspection.subject import Effort, Subject
from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig, train
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.errors import CheckpointError, ConfigError, MissingDataError, TokenizerError
from mixer.journal.file import Journal

LITTLE = Effort(
    rows=2, row_tokens=12, plane_points=3, seeds=3, scales=(0.1, 0.5), early_steps=(0, 6), heart_steps=3,
    max_products=6, tolerance=0.1,
)  # fmt: skip
app = typer.Typer()
app.command()(inspect)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps with a pivot at step 12: journal, checkpoints at 0, 12 and 24."""
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    for name, words in (("birds", "the parakeet and the monkey sing"), ("waves", "Fourier transforms the <wave>")):
        lines = (json.dumps({"text": f"{words} {i % 7} times"}) for i in range(300))
        (folder / name).mkdir()
        (folder / name / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    curriculum = Curriculum.from_data(
        {
            "total_steps": 24, "batch_rows": 4, "sequence_length": 16, "vocab_size": 300, "seed": 5,
            "tokenizer": {"train_vocab_size": 300}, "phases": {"min_steps": 3, "max_steps": 6},
            "sources": [{"name": name, "path": str(folder / name)} for name in ("birds", "waves")],
            "pivots": [{"name": "polish", "at_step": 12, "floors": {"birds": 0.6}}],
        },
        base_dir=folder,
    )  # fmt: skip
    model = Andrea(ModelConfig(vocab_size=300, width=16, num_heads=2, num_layers=1, context=16), seed=5)
    trainer = Trainer(model, TrainingConfig(peak_lr=1e-2, warmup_steps=2), 24)
    with Journal.create(folder / "journal.jsonl") as journal:
        dataset = MixtureDataset(curriculum, journal=journal)

        def save() -> None:
            kept = Checkpoint(trainer.state_dict(), [dataset.state_dict()], dataset.tokenizer)
            save_checkpoint(folder / "checkpoints", kept)

        save()
        train(dataset, trainer, vocab_size=300, on_step=lambda step, _loss, _batch: step == 11 and save())  # type: ignore[func-returns-value]
        save()
    return folder


def test_the_command_writes_one_offline_page_with_the_lessons_numbers_and_the_runs(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = CliRunner().invoke(app, [str(run), "-o", str(page), "--quick", "--json", "--sentence", "the monkey sing"])
    assert done.exit_code == 0, done.output
    text, found = page.read_text(encoding="utf-8"), json.loads(done.stdout)
    assert "<script src" not in text
    assert "<link" not in text
    for number in ("0.9730", "1.8708", "0.7071", "0.3837", "0.2327", "0.75"):  # by hand: distances, weights, a corner
        assert f"<td>{number}</td>" in text, number
    for heading in ("A token is a point", "Attention is projection", "a terrain", "on a simplex"):
        assert heading in text
    assert f"<b>{found['terrain']['loss']:.3f}</b>" in text
    assert "At step 12, before the pivot at step 12," in text
    assert text.count('<div id="figure-') == len(
        json.loads(text.split('id="drawn">')[1].split("</script>")[0])["figures"]
    )
    assert [regime["name"] for regime in found["regimes"]] == ["firehose", "polish"]
    assert found["lesson"]["attention"]["scores"] == [1, 1, 0]
    assert set(found["terrain"]["sharpness"]) == {"0", "12", "24"}
    assert found["embeddings"]["travel_from"] == 0
    assert found["attention"]["leak"] == 0


def test_python_gives_the_numbers_that_the_functions_give(run: Path, tmp_path: Path) -> None:
    subject = open_subject(run)
    assert subject.step == 24
    assert subject.before is not None
    assert subject.before[1] == 12
    assert subject.training.peak_lr == 1e-2  # the run's own
    before = {name: value.clone() for name, value in terrain.parameters_of(subject.model).items()}
    found = look(subject, LITTLE)
    assert found.terrain is not None
    assert subject.rows is not None
    batch = {"input_ids": subject.rows[:2, :12], "labels": subject.rows[:2, 1:13]}
    loss, here = terrain.loss_of(subject.model, batch), terrain.parameters_of(subject.model)
    assert found.terrain.loss == pytest.approx(loss(here).item(), rel=1e-6)
    assert found.terrain.plane.losses[1, 1].item() == pytest.approx(found.terrain.loss, rel=1e-6)
    assert found.terrain.sharpness[24] == sharpness(loss, here, tolerance=0.1, max_products=6)
    assert found.terrain.early["with"][0].sharpness == found.terrain.early["without"][0].sharpness
    assert found.terrain.early["without"][0].learning_rate > found.terrain.early["with"][0].learning_rate
    assert all(torch.equal(before[name], value) for name, value in here.items())  # nothing trained the model itself
    assert json.loads(json.dumps(numbers(found)))["terrain"]["rows"] == 2
    assert write_report(tmp_path / "page.html", subject, LITTLE).stat().st_mode & 0o777 == 0o644


def test_rows_come_from_every_source_in_turn(run: Path) -> None:
    subject = open_subject(run)
    assert subject.rows is not None
    assert subject.tokenizer is not None
    texts = [subject.tokenizer.decode(row.tolist()) for row in subject.rows[:2]]
    assert ["monkey" in text for text in texts] == [True, False]
    assert ["Fourier" in text for text in texts] == [False, True]
    assert subject.rows.shape == (64, 17)


def test_the_untrained_model_is_known_by_its_seed_and_a_wrong_seed_is_not_taken(run: Path) -> None:
    model = load_model(run).model
    untrained = beginning_of(model, 5)
    assert untrained is not None
    first = load_model(run / "checkpoints" / "step_0000000").model
    assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), first.parameters(), strict=True))
    assert beginning_of(model, 6) is None


def test_a_checkpoint_alone_still_shows_its_tokens(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step_0000024", tmp_path / "alone" / "step_0000024")
    said: list[str] = []
    subject = open_subject(tmp_path / "alone", sentence="the monkey", say=said.append)
    assert any("no journal" in sentence for sentence in said)
    assert any("no text (--text), so the terrain is left out" in sentence for sentence in said)
    text = write_report(tmp_path / "page.html", subject, LITTLE).read_text(encoding="utf-8")
    assert "No text was given, so no loss could be measured." in text
    assert "No journal was given" in text
    assert "no earlier checkpoint" in text


def test_text_of_ones_own_is_measured_on_and_markup_in_it_is_shown_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("the <wave> sings & the monkey transforms " * 30, encoding="utf-8")
    subject = open_subject(run, text=tmp_path / "own.txt", sentence="the <wave> & more", words=["the"])
    text = write_report(tmp_path / "page.html", subject, LITTLE).read_text(encoding="utf-8")
    assert "<blockquote>the &lt;wave&gt; &amp; more</blockquote>" in text
    assert "<wave>" not in text.split("<script")[0]
    assert subject.tokenizer is not None
    (tmp_path / "short.txt").write_text("monkey", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"short.txt has \d tokens; the terrain needs 4 at least"):
        rows_of_text(tmp_path / "short.txt", subject.tokenizer, context=16)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MissingDataError, match="binary cannot be read as UTF-8 text"):
        rows_of_text(tmp_path / "binary", subject.tokenizer, context=16)


@pytest.mark.parametrize("words", [["hippopotamus"], ["the", "zyzzyva"]])
def test_a_word_of_several_tokens_is_refused_by_name(run: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{words[-1]!r} is not one token"):
        look(open_subject(run, words=words), LITTLE)


def test_bad_input_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint; give the folder"):
        open_subject(tmp_path)
    subject = open_subject(run)
    with pytest.raises(ConfigError, match="give one of 2 to 16, the model's context"):
        look(Subject(subject.model, 24, sentence=[1] * 17), LITTLE)
    other = Andrea(ModelConfig(vocab_size=300, width=8, num_heads=2, num_layers=1, context=16))
    with pytest.raises(ConfigError, match="the two checkpoints are of different models"):
        write_report(tmp_path / "page.html", Subject(subject.model, 24, before=(other, 3)), LITTLE)
    done = CliRunner().invoke(app, [str(run), "-o", str(tmp_path / "missing" / "page.html")])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    anonymous = tmp_path / "anonymous"
    state = Trainer(subject.model, TrainingConfig(), 10).state_dict()
    save_checkpoint(anonymous, Checkpoint(state, [], None))
    with pytest.raises(TokenizerError, match="the checkpoint has no tokenizer, so a sentence cannot be made token ids"):
        open_subject(anonymous, sentence="the monkey")
    assert look(open_subject(anonymous), LITTLE).subject.spelled(3) == "#3"
