"""Bad input gets a clear error: which class, the cause, the offending value, and what to do.

One row per input; ``test_walk.py``, ``test_journal.py`` and the sources' own tests check that nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import (
    ConfigError,
    FeedbackError,
    FutureFeedbackError,
    InfeasibleRegionError,
    InvalidLossError,
    JournalError,
    MixerError,
    PivotError,
    StateMismatchError,
    StepError,
    UnknownSourceError,
    WeightsError,
)
from mixer.journal.file import Journal, read_journal
from mixer.losses import SourceLosses
from mixer.region.region import Region
from mixer.walk.walk import Walk
from tests.support.curricula import curriculum, drive

HEAD = "version: 1\ntotal_steps: 1000\nbatch_rows: 8\nsequence_length: 16\n"
SOURCES = (
    "sources:\n- {name: web, local: topics}\n- {name: code, local: docstrings}\n- {name: chat, local: dialogues}\n"
)


class Row(NamedTuple):
    what: str
    make: Any  # text of a file, or a function of an empty folder
    error: type[MixerError]
    message: str  # cause, offending value and hint, as a regular expression


def file(what: str, text: str, message: str, error: type[MixerError] = ConfigError, *, head: str = HEAD) -> Row:
    """Return a row whose input is a file: the head, three sources unless it names its own, and ``text``."""
    return Row(what, head + ("" if text.startswith("sources:") else SOURCES) + text, error, message)


def call(what: str, make: Callable[[], object], error: type[MixerError], message: str) -> Row:
    """Return a row whose input comes from Python."""
    return Row(what, lambda _: make(), error, message)


FILES = [
    # What can be read at all.
    Row("no such file", lambda folder: _from_file(folder), ConfigError, "run.yaml: no such file; "),
    Row("a folder", lambda folder: Curriculum.from_yaml(folder), ConfigError, "cannot be read: .*[Dd]irectory"),
    file("a tab", "\tx: 1\n", r"run.yaml, line 9: not valid YAML: found character"),
    file("an open bracket", "floors: {web: 0.1\n", r"line 10: not valid YAML: expected ',' or '\}'"),
    file("a key twice", "floors: {web: 0.1}\nfloors: {}\n", 'line 10: not valid YAML: found duplicate key "floors"'),
    file("a nested key twice", "floors: {web: 0.1, web: 0.2}\n", 'duplicate key "web" with value "0.2"'),
    Row("a list", "- 1\n", ConfigError, "a curriculum is a mapping of fields, not list"),
    Row("an empty file", "", ConfigError, "a curriculum is a mapping of fields, not NoneType"),
    file("a key that is a number", "3: x\n", "run.yaml: 3 is not the name of a field"),
    file("a newer version", "", "version 2: .* reads config version 1; install the release", head="version: 2\n"),
    Row("not UTF-8", lambda folder: _latin1(folder), ConfigError, "cannot be read: 'utf-8' codec"),
    # Keys that no field has.
    file("unknown key", "flors: {web: 0.1}\n", "^flors: unknown key; did you mean 'floors'"),
    file("unknown key in a policy", "policy: {name: ucb, etta: 1}\n", "^policy.ucb.etta: unknown key; did you mean 'eta'"),
    file("another policy's key", "policy: {name: andrea, kappa: 1}\n", r"^policy\.andrea\.kappa: unknown key; known keys: name, "),
    file("unknown key in a source", "sources: [{name: a, locl: topics}]\n", "^sources.0.locl: .* did you mean 'local'"),
    file("unknown key in a pivot", "pivots: [{name: a, at_step: 70, cap: {}}]\n", "pivots.0.cap: .* did you mean 'caps'"),
    file("unknown key of phases", "phases: {min_step: 7}\n", "phases.min_step: unknown key; did you mean 'min_steps'"),
    file("unknown key of a tokenizer", "tokenizer: {files: a}\n", "tokenizer.files: unknown key; did you mean 'file'"),
    # Values.
    file("no sources", "sources: []\n", "sources: .* at least 1 item"),
    Row("nothing required is there", "seed: 1\n", ConfigError, "total_steps: required, but missing\nbatch_rows: required"),
    file("no steps", "", "total_steps: .* greater than 0, got 0", head=HEAD.replace("1000", "0")),
    file("rows that are no number", "", "batch_rows: .* valid integer, .* got 'x'", head=HEAD.replace("8", "x")),
    file("a negative seed", "seed: -1\n", "seed: .* greater than or equal to 0, got -1"),
    file("half a seed", "seed: 1.5\n", r"seed: .*fractional part, got 1\.5"),
    file("a floor above 1", "floors: {web: 1.5}\n", r"floors.web: .* less than or equal to 1, got 1\.5"),
    file("a negative cap", "caps: {web: -0.5}\n", r"caps.web: .* greater than or equal to 0, got -0\.5"),
    file("a floor that is not a number", "floors: {web: .nan}\n", "floors.web: .* finite number, got nan"),
    file("a floor in words", "floors: {web: half}\n", "floors.web: .* valid number, got 'half'"),
    file("a floor that is true", "floors: {web: true}\n", "floors.web: .* valid number, got True"),
    file("floors without names", "floors: [0.1]\n", r"floors: .* valid dictionary, got \[0\.1\]"),
    file("an infinite width", "policy: {name: ucb, width: .inf}\n", "policy.ucb.width: .* finite number, got inf"),
    file("a step of no size", "policy: {name: ucb, eta: 0}\n", "policy.ucb.eta: .* greater than 0, got 0"),
    file("a negative lag", "feedback_lag: -1\n", "feedback_lag: .* greater than or equal to 0, got -1"),
    file("unknown draws", "draws: uniform\n", "draws: .* 'systematic' or 'multinomial', got 'uniform'"),
    file("phases upside down", "phases: {min_steps: 50}\n", "phases: min_steps 50 is above max_steps 42"),
    file("a probability above 1", "phases: {random_probability: 2}\n", "random_probability: .* equal to 1, got 2"),
    file("both kinds of tokenizer", "tokenizer: {file: a, train_vocab_size: 300}\n", "exactly one .*, not file and train_vocab"),
    file("no kind of tokenizer", "tokenizer: {}\n", "tokenizer: give exactly one of file, hub, tiktoken and train"),
    # Names.
    file("a source twice", "sources: [{name: a}, {name: a}]\n", "source a is declared 2 times; give each source its own"),
    file("a name with a space", "sources: [{name: 'a b'}]\n", "sources.0.name: .* pattern .*, got 'a b'"),
    file("two origins", "sources: [{name: a, local: x, path: y}]\n", "source a: give either local or path/data_files"),
    file("two renderings", "sources: [{name: a, text: x, messages: y}]\n", "source a: give one of .* not text and messages"),
    file("an unknown end", "sources: [{name: a, on_exhausted: loop}]\n", "on_exhausted: .* 'repeat', 'stop' or 'error'"),
    file("a floor of nobody", "floors: {wep: 0.1}\n", "floors: unknown source 'wep'; did you mean 'web'"),
    file("an exclusion of nobody", "exclude: [nobody]\n", "exclude: unknown source 'nobody'"),
    file("a pivot of nobody", "pivots: [{name: a, at_step: 70, caps: {wep: 1}}]\n", "pivot a: caps: unknown source 'wep'"),
    file("a target of nobody", "policy: {name: ucb, targets: {wep: 1}}\n", "policy: targets: unknown source 'wep'"),
    file("an unknown policy", "policy: ucbb\n", "policy: unknown name 'ucbb'; did you mean 'ucb'.*; known: ucb, "),
    file("a policy without a name", "policy: {eta: 0.3}\n", "policy: name is missing; known: ucb, "),
    file("an unknown reward", "policy: {name: ucb, reward: los}\n", "unknown reward 'los'; did you mean 'loss'"),
    # Bounds.
    file("floors over 1", "floors: {web: 0.8, code: 0.8}\n", r"firehose .* 1\.6, .* web=0\.8, code=0\.8; lower them by 0\.6",
         InfeasibleRegionError),
    file("caps under 1", "caps: {web: 0.2, code: 0.2, chat: 0.2}\n", r"caps sum to 0\.6, .* raise them by 0\.4 in total",
         InfeasibleRegionError),
    file("a floor over its cap", "floors: {web: 0.5}\ncaps: {web: 0.2}\n", r"floor of web is 0\.5, above its cap 0\.2; .* 0\.3",
         InfeasibleRegionError),
    file("a floor on an excluded source", "floors: {web: 0.5}\nexclude: [web]\n", r"web is excluded but has a floor of 0\.5",
         InfeasibleRegionError),
    file("everything excluded", "exclude: [web, code, chat]\n", "caps sum to 0, .* every source is at 0",
         InfeasibleRegionError),
    file("caps under 1 in warmup alone",
         "caps: {web: 0.2}\ncurriculum_warmup_steps: 70\ncurriculum_warmup_sources: [web]\n",
         r"regime warmup \(from step 0\): caps sum to 0\.2, .* raise them by 0\.8", InfeasibleRegionError),
    file("floors over 1 in a pivot alone",
         "pivots: [{name: a, at_step: 70, floors: {web: 0.9, chat: 0.4}}]\n",
         r"regime a \(from step 70\): floors sum to 1\.3, .* lower them by 0\.3", InfeasibleRegionError),
    file("a pivot's floor on a source excluded before it",
         "exclude: [chat]\npivots: [{name: a, at_step: 70, floors: {chat: 0.4}}]\n",
         r"regime a .* chat is excluded but has a floor of 0\.4; remove", InfeasibleRegionError),
    # Schedule.
    file("a warmup without sources", "curriculum_warmup_steps: 70\n", "curriculum_warmup_sources is empty; name the warmup's"),
    file("a warmup source twice", "curriculum_warmup_steps: 70\ncurriculum_warmup_sources: [web, web]\n",
         "curriculum_warmup_sources: web is listed twice"),
    file("a warmup too short for a phase", "curriculum_warmup_steps: 5\ncurriculum_warmup_sources: [web]\n",
         "the warmup's end at step 5 is 5 steps after the start, .* move it to step 7$"),
    file("a pivot between phases", "pivots: [{name: a, at_step: 3}]\n", "pivot a at step 3 .* cannot fill that; move it to"),
    file("a pivot at the start", "pivots: [{name: a, at_step: 0}]\n", "pivots.0.at_step: .* greater than 0, got 0"),
    file("pivots out of order", "pivots: [{name: a, at_step: 140}, {name: b, at_step: 70}]\n",
         "pivots must be in order: b at step 70 is listed after a at step 140"),
    file("pivots of one name", "pivots: [{name: a, at_step: 70}, {name: a, at_step: 140}]\n", "two pivots are named a"),
    file("a pivot named like a regime", "pivots: [{name: warmup, at_step: 70}]\n", "named warmup, .* give it another name"),
    # Policies.
    file("static weights off the simplex", "policy: {name: static, weights: {web: 0.5, code: 0.6}}\n",
         r"weights sum to 1\.1, not 1; static weights are a point of the simplex"),
    file("a negative static weight", "policy: {name: static, weights: {web: 1.5, code: -0.5}}\n",
         r"must be finite and not negative, got \[1\.5, -0\.5\]"),
    file("targets of 0", "policy: {name: ucb, targets: {web: 0}}\n", "targets are all 0; at least one source must be wanted"),
    file("unimax without sizes", "policy: unimax\n", "policy unimax needs `tokens:` of every source; missing: web, code"),
]  # fmt: skip


def told(**tables: Any) -> Callable[[], object]:
    """Report step 0 of a walk of three sources, each with a row, two tokens and 1 nat unless ``tables`` says otherwise."""
    usual = {"rows": np.ones(3), "tokens": np.full(3, 2), "loss_sums": np.ones(3)}

    def report() -> object:
        walk = Walk(curriculum(3, exclude=tables.get("exclude", ())))
        walk.phase_at(0)
        changes = {name: value for name, value in tables.items() if name not in ("step", "exclude")}
        return walk.report(tables.get("step", 0), SourceLosses(**{**usual, **changes}))

    return report


def pivoted(at: int = 0, **fields: Any) -> Callable[[], object]:
    """Pivot a walk of three sources ``at`` steps after its newest phase."""

    def pivot() -> object:
        walk = Walk(curriculum(3))
        drive(walk, 20)
        return walk.pivot(Pivot(**{"name": "live", **fields}), at_step=walk.frontier + at)

    return pivot


def state(**changes: Any) -> Callable[[], object]:
    """Restore a walk from its own state with ``changes``."""
    return lambda: Walk(curriculum(3)).load_state_dict({**Walk(curriculum(3)).state_dict(), **changes})


THREE = Region(["web", "code", "chat"], caps={"chat": 0.25})

CALLS = [
    # Losses.
    call("a loss of NaN", told(loss_sums=[1, np.nan, 1]), InvalidLossError, "step 0: loss of source-1 is nan; .* Stop and"),
    call("an infinite loss", told(loss_sums=[np.inf, 1, 1]), InvalidLossError, "loss of source-0 is inf"),
    call("a negative loss", told(loss_sums=[1, 1, -3]), InvalidLossError, r"loss of source-2 is -3\.0; losses are finite"),
    call("a negative square", told(square_sums=np.array([1, -1, 1])), InvalidLossError, r"source-1 is -1\.0"),
    call("losses of two sources of three", told(loss_sums=[1, 1]), FeedbackError, r"shape \(2,\), but there are 3 sources"),
    call("losses without rows", told(rows=[1, 0, 1]), FeedbackError, "source-1 reports a loss of 1, but no rows"),
    call("fewer tokens than rows", told(rows=[1, 5, 1]), FeedbackError, "source-1 reports 5 rows and 2 tokens; "),
    call("negative rows", told(rows=[1, -5, 1]), FeedbackError, "source-1 reports -5 rows .* counts are not negative"),
    call("half a row", told(rows=[1, 0.5, 1]), FeedbackError, r"rows are \[1\.0, 0\.5, 1\.0\]; they are whole numbers"),
    call("rows of NaN", told(rows=[1, np.nan, 1]), FeedbackError, "rows are .*nan.*; they are whole numbers"),
    call("a negative rank", told(rank=-2), FeedbackError, "rank is -2; ranks count from 0"),
    call("losses of a future step", told(step=900), FutureFeedbackError, "step 900, but phases are decided up to step"),
    call("losses of a negative step", told(step=-1), StepError, "feedback for step -1; steps count from 0"),
    call("losses of an excluded source", told(exclude=["source-2"]), FeedbackError, "1 rows of source-2, whose weight is 0"),
    call("losses by an unknown name",
         lambda: SourceLosses.from_means(["web"], {"wep": 1.0}, rows={}, tokens_per_row=4),
         FeedbackError, "unknown source 'wep'; the sources are web"),
    # Live pivots.
    call("a pivot in the past", pivoted(-1, floors={}), PivotError, r"decided up to step \d+; ask for step \d+ or later"),
    call("a pivot between phases", pivoted(5, floors={}), PivotError, r"5 steps after the end .* move it to step \d+"),
    call("a pivot of a taken name", pivoted(name="firehose"), PivotError, "a regime named firehose already; give the pivot"),
    call("a pivot over 1", pivoted(floors={"source-0": 0.7, "source-1": 0.7}), InfeasibleRegionError, r"live .* by 0\.4"),
    call("a pivot of nobody", pivoted(floors={"sorce-0": 0.7}), UnknownSourceError, "'sorce-0'; did you mean 'source-0'"),
    call("a pivot without a name", lambda: Pivot(floors={}), ConfigError, "name: required, but missing"),
    # States, steps, weights.
    call("a state of another run", state(fingerprint="1234"), StateMismatchError, "belongs to curriculum 1234, but this one"),
    call("a state of another version", state(version=7), StateMismatchError, "has version 7, .* reads version 1; restore"),
    call("a negative step", lambda: Walk(curriculum(3)).phase_at(-3), StepError, "step is -3; steps count from 0"),
    call("weights over 1", lambda: THREE.check([0.5, 0.4, 0.2]), WeightsError, r"weights sum to 1\.1, not 1"),
    call("weights over a cap", lambda: THREE.check([0.5, 0.2, 0.3]), WeightsError, r"chat is 0\.3, above its cap 0\.25"),
    call("weights of NaN", lambda: THREE.check([np.nan, 0.5, 0.5]), WeightsError, "weight of web is nan; weights are finite"),
    call("a reward that is not there",
         lambda: Walk(curriculum(3, policy={"name": "ucb", "reward": "tests.support.curricula:none"})),
         ConfigError, "module 'tests.support.curricula' has no 'none'"),
    call("a size of no tokens", lambda: Walk(curriculum(3)).learn_unique_tokens("source-1", 0), ConfigError, "source-1 has 0"),
    # Journals.
    Row("a journal that exists", lambda folder: _created_twice(folder), JournalError, "File exists; a journal"),
    Row("no journal", lambda folder: Journal.open(folder / "run.jsonl"), JournalError, "run.jsonl: No such file"),
    Row("a journal that is none", lambda folder: _scribbled(folder, b'{"a": 1}\n'), JournalError, "line 1 is damaged .* sound"),
    Row("binary for a journal", lambda folder: _scribbled(folder, b"\x00\xff\n" * 99), JournalError, "line 1 is damaged"),
    Row("another run's journal", lambda folder: _foreign(folder), StateMismatchError, "use a new file, or the old curriculum"),
]  # fmt: skip


def _from_file(folder: Path) -> object:
    return Curriculum.from_yaml(folder / "run.yaml")


def _latin1(folder: Path) -> object:
    (folder / "run.yaml").write_bytes("naïve: 1".encode("latin-1"))
    return _from_file(folder)


def _created_twice(folder: Path) -> object:
    Journal.create(folder / "run.jsonl").close()
    return Journal.create(folder / "run.jsonl")


def _scribbled(folder: Path, content: bytes) -> object:
    (folder / "run.jsonl").write_bytes(content)
    return list(read_journal(folder / "run.jsonl"))


def _foreign(folder: Path) -> object:
    with Journal.create(folder / "run.jsonl") as journal:
        Walk(curriculum(3), journal=journal)
    with Journal.open(folder / "run.jsonl") as journal:
        return Walk(curriculum(4), journal=journal)


ROWS = [*FILES, *CALLS]


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_bad_input_is_refused_with_its_cause_its_value_and_a_hint(tmp_path: Path, row: Row) -> None:
    make = row.make
    if isinstance(make, str):
        (tmp_path / "run.yaml").write_text(make, encoding="utf-8")
        make = _from_file
    with pytest.raises(MixerError, match=row.message) as caught:
        make(tmp_path)
    assert type(caught.value) is row.error


def test_the_table_has_a_row_for_every_cause_once() -> None:
    assert len(ROWS) >= 40
    assert len({row.what for row in ROWS if isinstance(row.make, str)}) == sum(
        isinstance(row.make, str) for row in ROWS
    )
