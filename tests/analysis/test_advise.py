"""Advice is what a policy would really do: asked of the walk's own policy, it gives back the walk."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.analysis.advise import Advice, advise
from mixer.analysis.explain import explain
from mixer.analysis.export import export_tables
from mixer.analysis.watch import Follower
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError, StepError
from mixer.journal.file import Journal
from mixer.walk.walk import Walk
from tests.support.curricula import curricula, curriculum, drive, on_time, ragged


@given(curricula(), st.booleans())
@settings(max_examples=20)
def test_a_walks_own_policy_advises_exactly_what_it_did(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, is_late: bool
) -> None:
    path = tmp_path_factory.mktemp("walk") / "w"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 90, late=ragged if is_late else on_time)
        walk.pivot(Pivot(name="live", floors={}, caps={}, exclude=[]), at_step=None) if not run.pivots else None
        drive(walk, 130, since=90, late=ragged if is_late else on_time)
    found = list(advise(path, run.policy.name))
    assert found
    for advice in found:
        if advice.kind == advice.advised_kind:
            assert advice.advised.tobytes() == advice.played.tobytes()
            assert advice.distance == 0


def test_a_pivot_that_cuts_or_undoes_a_phase_is_followed(tmp_path: Path) -> None:
    run = curriculum(3)
    with Journal.create(tmp_path / "w") as journal:
        walk = Walk(run, journal=journal)
        phase = walk.phase_at(150)
        drive(walk, phase.start)
        undone = walk.phase_at(phase.start)
        walk.pivot(Pivot(name="undo", floors={"source-0": 0.5}), at_step=undone.start, cut=True)
        again = drive(walk, undone.start + 3, since=undone.start)[-1]
        walk.pivot(Pivot(name="cut", floors={"source-1": 0.5}), at_step=again.start + 3, cut=True)
        drive(walk, again.start + 100, since=again.start + 3)
    found = list(advise(tmp_path / "w", "ucb"))
    assert [advice.index for advice in found] == list(range(len(found)))
    bandits = [advice for advice in found if advice.kind == "bandit"]
    assert bandits
    assert all(advice.distance == 0 for advice in bandits)
    follower = Follower(tmp_path / "w")
    follower.poll()
    assert [name for _, name in follower.sight.regimes] == ["firehose", "undo", "cut"]
    files = export_tables(tmp_path / "w", tmp_path / "out", "csv")
    with files[0].open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "source-0"]
    ends = [int(row["start"]) + int(row["length"]) for row in rows]
    assert ends[:-1] == [int(row["start"]) for row in rows[1:]]
    assert explain(tmp_path / "w", again.start + 2)["phase"]["end"] == again.start + 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    run = curriculum(4, floors={"source-0": 0.3}, caps={"source-1": 0.2})
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(run, journal=journal), 400)
    return tmp_path / "w"


@pytest.mark.parametrize("policy", ["odm", "andrea", "ucb", "ado", "unimax", "proportional", "static", "random"])
def test_every_policy_advises_within_the_region(path: Path, policy: str) -> None:
    found: list[Advice] = list(advise(path, policy))
    region = curriculum(4, floors={"source-0": 0.3}, caps={"source-1": 0.2}).regimes[0].region
    assert all(region.contains(advice.advised, atol=1e-12) for advice in found)
    assert [advice.index for advice in found] == list(range(len(found)))
    if policy != "ucb":
        assert max(advice.distance for advice in found) > 0.01


def test_a_part_of_the_walk_is_advised_from_all_that_came_before(path: Path) -> None:
    everything = {advice.index: advice.advised for advice in advise(path, "odm")}
    part = list(advise(path, "odm", first=100, last=150))
    assert part
    assert all(100 - 42 < advice.start <= 150 for advice in part)
    assert all((advice.advised == everything[advice.index]).all() for advice in part)
    with pytest.raises(StepError, match="none from 5000 on"):
        list(advise(path, "odm", first=5000))


def test_a_policy_that_cannot_work_here_says_why(tmp_path: Path) -> None:
    run = curriculum(2, sources=[{"name": "a", "local": "topics"}, {"name": "b", "local": "topics"}])
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(run, journal=journal), 20)
    with pytest.raises(ConfigError, match="advice of unimax: .*needs `tokens:` of every source"):
        list(advise(tmp_path / "w", "unimax"))
    assert np.isfinite([a.distance for a in advise(tmp_path / "w", "ado")]).all()
