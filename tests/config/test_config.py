"""One YAML file is the whole run: what is read, what it means, and what two files have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from mixer.config.curriculum import Curriculum
from mixer.config.files import shipped_config
from mixer.config.pivots import Pivot
from mixer.config.policy import AndreaConfig, WaterFillingConfig
from mixer.errors import ConfigError
from mixer.sampling.phases import PhaseLaw
from tests.support.curricula import curricula, curriculum

FILE = """
version: 1
seed: 7
total_steps: 1000
batch_rows: 16
sequence_length: 32
tokenizer: words.json
sources:
  - {name: web, path: org/web, config_name: en, split: "train[:10%]", text: content, tokens: 5000}
  - {name: chat, data_files: ["chat-*.jsonl", more.jsonl], messages: messages, where: {category: [a, b], kept: true}}
  - {name: words, local: definitions, on_exhausted: stop}
floors: {web: 0.2}
caps: {chat: 1}
exclude: []
curriculum_warmup_steps: 70
curriculum_warmup_sources: [web, words]
pivots:
  - {name: polish, at_step: 500, floors: {chat: 0.7}, exclude: [words]}
policy: andrea
feedback_lag: 4
draws: multinomial
"""


def from_text(tmp_path: Path, text: str) -> Curriculum:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return Curriculum.from_yaml(path)


def test_a_file_says_everything_and_the_rest_has_defaults(tmp_path: Path) -> None:
    run = from_text(tmp_path, FILE)
    assert run.names == ("web", "chat", "words")
    assert run.sources[0].config_name == "en"
    assert run.sources[1].data_files == ("chat-*.jsonl", "more.jsonl")
    assert run.sources[1].where == {"category": ("a", "b"), "kept": True}
    assert run.sources[0].on_exhausted == "repeat"
    assert run.tokenizer is not None
    assert (run.tokenizer.file, run.tokenizer.separator) == ("words.json", "<|endoftext|>")
    assert run.policy == AndreaConfig()
    assert run.batch_tokens == 512
    assert run.phase_law == PhaseLaw(7, 7, 42, random_probability=0.1, initial_random=3)
    assert run.warmup == (70, ("web", "words"))
    assert [(regime.name, regime.start) for regime in run.regimes] == [("warmup", 0), ("firehose", 70), ("polish", 500)]
    assert run.regimes[2].region.floors.tolist() == [0.0, 0.7, 0.0]  # each table given replaces the one in force
    assert run.regimes[2].region.caps.tolist() == [1.0, 1.0, 0.0]
    assert run.regimes[0].region.caps.tolist() == [1.0, 0.0, 1.0]
    assert run.resolve("more.jsonl") == tmp_path / "more.jsonl"
    least = {"total_steps": 10, "batch_rows": 8, "sequence_length": 4, "sources": [{"name": "a", "local": "topics"}]}
    assert Curriculum(**least).policy == WaterFillingConfig()


def test_a_setting_cannot_be_changed_after_the_start() -> None:
    run = curriculum()
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 3  # type: ignore[misc]


@given(curricula())
def test_a_curriculum_survives_being_written_down(run: Curriculum) -> None:
    again = Curriculum(**run.model_dump(mode="json"))
    assert again == run
    assert again.fingerprint == run.fingerprint


def test_the_fingerprint_follows_all_that_shapes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = from_text(tmp_path, FILE)
    changes: list[tuple[str, str]] = [
        ("seed: 7", "seed: 8"),
        ("batch_rows: 16", "batch_rows: 17"),
        ("web: 0.2", "web: 0.3"),
        ("0.7", "0.71"),
        ("policy: andrea", "policy: {name: andrea, eta: 0.2}"),
        ("feedback_lag: 4", "feedback_lag: 5"),
        ("tokens: 5000", "tokens: 5001"),
        ("at_step: 500", "at_step: 501"),
        ("words.json", "other.json"),
        ("multinomial", "systematic"),
    ]
    prints = {from_text(tmp_path, FILE.replace(old, new)).fingerprint for old, new in changes}
    assert len(prints | {run.fingerprint}) == len(changes) + 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert from_text(elsewhere, FILE).fingerprint == run.fingerprint
    assert from_text(tmp_path, FILE.replace("total_steps: 1000", "total_steps: 2000")).fingerprint == run.fingerprint
    assert from_text(tmp_path, "# a remark\n" + FILE).fingerprint == run.fingerprint


def test_unimax_plans_with_the_length_of_the_run_and_its_fingerprint_follows_it() -> None:
    prints = {curriculum(policy="unimax", total_steps=steps).fingerprint for steps in (100, 200)}
    assert len(prints) == 2


def test_a_pivot_keeps_the_tables_that_it_leaves_out() -> None:
    fields: dict[str, Any] = {"floors": {"source-0": 0.2}, "caps": {"source-1": 0.5}, "exclude": ["source-2"]}
    run = curriculum(
        4,
        **fields,
        pivots=[
            {"name": "one", "at_step": 70, "caps": {"source-3": 0.4}},
            {"name": "two", "at_step": 140, "floors": {}, "exclude": []},
        ],
    )
    first, second = run.regimes[1].region, run.regimes[2].region
    assert (first.floors.tolist(), first.caps.tolist()) == ([0.2, 0, 0, 0], [1, 1, 0, 0.4])
    assert (second.floors.tolist(), second.caps.tolist()) == ([0, 0, 0, 0], [1, 1, 1, 0.4])


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as fields:
        from_text(tmp_path, "total_steps: 0\nbatch_rows: many\nsorces: []\n")
    assert len(fields.value.problems) == 5  # two values, an unknown key, two that are missing
    with pytest.raises(ConfigError) as rules:
        curriculum(
            2,
            floors={"sorce-0": 0.5},
            exclude=["nothing"],
            curriculum_warmup_steps=70,
            pivots=[{"name": "a", "at_step": 75}],
            policy="proportional",
            sources=[{"name": "source-0", "local": "topics"}, {"name": "source-0", "local": "topics"}],
        )
    assert [problem.split(";")[0] for problem in rules.value.problems] == [
        "source source-0 is declared 2 times",
        "floors: unknown source 'sorce-0'",
        "exclude: unknown source 'nothing'",
        "curriculum_warmup_steps is set, but curriculum_warmup_sources is empty",
        "pivot a at step 75 is 5 steps after the warmup's end, and phases of 7 to 42 steps cannot fill that",
        "policy proportional needs `tokens:` of every source",
    ]


def test_a_misspelt_key_does_not_hide_other_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        curriculum(
            2,
            floors={"source-0": 0.8, "source-1": 0.8},
            seeds=4,
            policy={"name": "ucb", "etta": 0.1},
            pivots=[{"name": "a", "at_step": 3, "flors": {}}],
        )
    assert [problem.split(";")[0].split(",")[0] for problem in caught.value.problems] == [
        "pivots.0.flors: unknown key",
        "policy.ucb.etta: unknown key",
        "seeds: unknown key",
        "pivot a at step 3 is 3 steps after the start",
        "regime firehose (from step 0): floors sum to 1.6",
    ]


def test_a_live_pivot_is_checked_like_one_in_the_file() -> None:
    assert Pivot(name="a", floors={"web": 1}).floors == {"web": 1.0}
    with pytest.raises(ConfigError, match=r"^pivot a: floors.web: Input should be less than or equal to 1, got 1\.5$"):
        Pivot(name="a", floors={"web": 1.5})
    with pytest.raises(ConfigError, match="^pivot a: flors: unknown key; did you mean 'floors'"):
        Pivot(name="a", flors={"web": 0.5})


def test_a_shipped_file_is_found_by_name_and_others_are_listed() -> None:
    assert shipped_config("demo.yaml").is_file()
    with pytest.raises(ConfigError, match=r"no shipped config is named demmo\.yaml; there are .*demo\.yaml"):
        shipped_config("demmo.yaml")
