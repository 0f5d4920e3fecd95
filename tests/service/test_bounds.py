"""Numbers beyond all use: each is refused with a sentence, or works within the time and memory of any other."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import orjson
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from mixer.cli.questions import PolicyName
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.config.policy import GuardConfig, PolicyConfig
from mixer.config.sources import SourceConfig
from mixer.delivery.batch import Planner
from mixer.errors import ConfigError
from mixer.losses import SourceLosses
from mixer.sources.prepared.prepare import prepare
from mixer.walk.walk import Walk
from service.wire import schemas
from tests.support.serving import Served, get, post, wait_until, write_run

BASE: dict[str, Any] = {
    "seed": 3,
    "total_steps": 1000,
    "batch_rows": 4,
    "sequence_length": 8,
    "sources": [
        {"name": "a", "data_files": "a.jsonl", "tokens": 500},
        {"name": "b", "data_files": "b.jsonl", "tokens": 9},
    ],
}
POLICIES = get_args(PolicyName)
HUGE: tuple[Any, ...] = (
    10**9,
    2**31,
    2**63,
    2**70,
    10**400,
    10**5000,
    1e9,
    1e308,
    math.inf,
    math.nan,
    -math.inf,
    -(10**400),
)
TINY: tuple[Any, ...] = (5e-324, 1e-300, 0, -1)
MOST_BYTES = 200 << 20  # of what deciding takes for two sources

Place = tuple[str | int, ...]


def numbers_in(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Place, float | None]]:
    """Yield where numbers lie within a type, and the largest one that it allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        yield from numbers_in(inner, (*metadata, *_flat(more)))
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from numbers_in(each, metadata)
    elif origin is dict:
        yield from ((("a", *place), most) for place, most in numbers_in(get_args(annotation)[1]))
    elif origin is tuple:
        yield from (((0, *place), most) for place, most in numbers_in(get_args(annotation)[0]))
    elif annotation in (int, float):
        bounds = [bound for each in metadata for bound in (getattr(each, "le", None), getattr(each, "lt", None))]
        yield (), min((bound for bound in bounds if bound is not None), default=None)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from numbers_of(annotation)


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from each.metadata if hasattr(each, "metadata") else [each]


def numbers_of(model: type[BaseModel]) -> Iterator[tuple[Place, float | None]]:
    """Yield the place of every number in a model, and the largest one that it allows."""
    for name, field in model.model_fields.items():
        for place, most in numbers_in(field.annotation, tuple(field.metadata)):
            yield (name, *place), most


def policy_of(place: Place) -> list[str]:
    """Return the policies that have a setting; one for settings of others."""
    if "policy" not in place:
        return ["ucb"]
    setting = place[place.index("policy") + 1]
    return [name for name in POLICIES if setting in {each for _, each, *_ in _policy_places(name)}]


def _policy_places(name: str) -> list[Place]:
    model = {m.model_fields["name"].default: m for m in get_args(get_args(PolicyConfig)[0])}[name]
    return [("policy", *place) for place, _ in numbers_of(model)]


CURRICULUM = sorted(
    {place for place, _ in numbers_of(Curriculum)} | {("guard", *place) for place, _ in numbers_of(GuardConfig)},
    key=str,
)


def with_number(place: Place, value: Any, policy: str = "ucb") -> dict[str, Any]:
    """Return the fields of a curriculum with a number at a place."""
    data = {**BASE, "sources": [dict(source) for source in BASE["sources"]], "policy": {"name": policy}}
    if place[0] == "curriculum_warmup_steps":
        data["curriculum_warmup_sources"] = ["a"]
    if place[0] == "pivots":
        of_policy = {"policy": {"name": policy}} if "policy" in place else {}
        of_ramp = {"weights": {"a": 1.0}} if "ramp_steps" in place else {}
        data["pivots"] = [{"name": "later", "at_step": 100, **of_policy, **of_ramp}]
    if place[0] == "ramp_steps":
        data["weights"] = {"a": 1.0}
    if place[0] == "tokenizer":
        data["tokenizer"] = {}
    if place == ("phases", "max_steps"):
        data["total_steps"] = 2**31 - 1
    if place == ("phases", "min_steps"):
        data["phases"] = {"max_steps": 2**20}
    if place[0] in ("probes", "targets") or str(place[-1]).startswith("gap_"):
        data |= {"holdout": 0.1, "probes": {}}
    if place[0] == "targets":
        data["targets"] = [{"name": "goal", "local": "topics", "role": "target"}]
    inner: Any = data
    for at, part in enumerate(place[:-1]):
        if isinstance(inner, list):
            inner = inner[int(part)]
        else:
            inner = inner.setdefault(part, [None] if isinstance(place[at + 1], int) else {})
    inner[place[-1]] = value
    return data


def decide(curriculum: Curriculum) -> None:
    """Decide some phases, draw their first rows, and report losses, as a run does."""
    header = curriculum.model_dump(mode="json")
    assert Curriculum(**orjson.loads(orjson.dumps(header))) == curriculum  # as the journal keeps it
    walk = Walk(curriculum)
    for _ in range(3):
        start = walk.frontier
        if start >= curriculum.total_steps:
            return
        phase = walk.phase_at(start)
        assert phase.weights.sum() == pytest.approx(1)
        counts = Planner(curriculum, walk.phase_at).drawn_before(start + 1) - phase.drawn
        losses = np.full(len(counts), 2.0)
        walk.report(
            start,
            SourceLosses(
                rows=counts, tokens=counts * 8, loss_sums=losses * counts * 8, square_sums=losses**2 * counts, rank=0
            ),
        )


def check(place: Place, value: Any, policy: str) -> None:
    """Fail unless the number is refused with a sentence that names it, or works."""
    refused = ""
    tracemalloc.start()
    try:
        decide(Curriculum(**with_number(place, value, policy)))
    except ConfigError as error:
        refused = str(error)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < MOST_BYTES
    if refused:
        name = next(part for part in reversed(place) if part not in ("a", 0))
        assert str(name) in refused
        assert len(refused) < 2500


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", CURRICULUM, ids=lambda place: ".".join(map(str, place)))
def test_every_number_of_a_curriculum_is_refused_or_works(place: Place) -> None:
    for policy in policy_of(place):
        for value in (*HUGE, *TINY):
            check(place, value, policy)
        for most in {most for at, most in numbers_of(Curriculum) if at == place and most is not None}:
            check(place, type(most)(most), policy)


MODELS = (
    Curriculum,
    SourceConfig,
    Pivot,
    GuardConfig,
    *(
        m
        for m in vars(schemas).values()
        if isinstance(m, type)
        and issubclass(m, BaseModel)
        and m.__name__.endswith(("Request", "Feedback", "SourceReport"))
    ),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_number_that_is_asked_for_has_an_upper_bound(model: type[BaseModel]) -> None:
    unbounded = [".".join(map(str, place)) for place, most in numbers_of(model) if most is None]
    elsewhere = ("version", "where.a", "where.a.0", "loss_sum", "square_sum")  # one version, columns' values, the walk
    assert [name for name in unbounded if not name.endswith(elsewhere)] == []


def test_a_file_with_a_number_of_thousands_of_digits_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("total_steps: " + "9" * 5000)
    with pytest.raises(ConfigError, match=r"run\.yaml: a value cannot be read"):
        Curriculum.from_yaml(tmp_path / "run.yaml")


REQUESTED: dict[str, Any] = {
    "total_steps": 10**400,
    "batch_rows": 10**9,
    "sequence_length": 10**12,
    "feedback_lag": 10**9,
    "vocab_size": 2**63,
    "phases": {"max_steps": 10**9},
    "retries": {"attempts": 10**6},
    "policy": {"name": "ucb", "kappa": 1e308},
    "guard": {"window": 10**12},
    "curriculum_warmup_steps": 2**70,
}


def test_what_a_request_asks_for_beyond_all_bounds_hurts_no_other_run(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    data = YAML(typ="safe").load(config)
    with Served(config, tmp_path / "runs", "--feedback-wait-s", "0", "--memory-mib", "1") as server:
        for number, (name, value) in enumerate((*REQUESTED.items(), ("phases", {"initial_random": 2**70}))):
            body = json.dumps({"name": f"run-{number}", "curriculum": data | {name: value}})
            answer = post(server.url + "/runs", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "config"), name
            assert name in answer.json()["error"]["message"]
            assert get(f"{server.url}/batches/{number}").status_code == 200
        large = {"name": "large", "curriculum": data | {"batch_rows": 2**14, "sequence_length": 2**14}}
        answer = post(server.url + "/runs", json=large)
        assert answer.status_code == 422
        assert "1,024 MiB a batch, and a run of this server may hold 1: make" in answer.json()["error"]["message"]
        assert [run["name"] for run in get(server.url + "/runs").json()] == ["run"]
        assert server.terminate() == 0


def test_a_run_that_cannot_go_on_leaves_the_others_and_the_server_as_they_are(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    server = Served(config, tmp_path / "runs", "--feedback-wait-s", "0", "--allow-new-sources")
    data = YAML(typ="safe").load(config)
    with server:
        prepared = Curriculum.from_yaml(config).model_copy(update={"prepared": "rows"})
        prepare(prepared, tmp_path / "rows")
        lost = {**data, "sources": [*data["sources"][1:], {"name": "s0", "data_files": "gone.jsonl"}]}
        for name, curriculum in (("kept", {**data, "prepared": "rows"}), ("lost", lost)):
            assert post(server.url + "/runs", json={"name": name, "curriculum": curriculum}).status_code == 201
        server.wait_ready("/runs/kept/readyz")
        wait_until(lambda: get(server.url + "/runs/lost/readyz").json()["error"]["code"] == "stalled")
        answer = get(server.url + "/runs/lost/readyz")
        assert answer.status_code == 503
        assert "gone.jsonl" in answer.json()["error"]["message"]
        assert get(server.url + "/readyz").status_code == 200
        assert server.terminate() == 0
        shutil.rmtree(tmp_path / "rows")
        server.start()  # and a run that can no longer be opened
        answer = get(server.url + "/runs/kept/batches/0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "missing-data")
        assert "could not be opened when the server started" in answer.json()["error"]["message"]
        assert get(server.url + "/batches/0").status_code == 200
        assert post(server.url + "/runs/kept/pause", json={}).status_code == 409
        assert post(server.url + "/runs/kept/archive", json={}).status_code == 200
        assert server.terminate() == 0
