"""The service over real HTTP: what it serves, what it refuses, and that a kill leaves no trace."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.dataset import MixtureDataset
from mixer.delivery.feedback import LossAccumulator
from mixer.errors import (
    FeedbackError,
    FutureFeedbackError,
    InvalidLossError,
    PivotError,
    StateMismatchError,
    TopologyError,
    WeightsError,
)
from mixer.journal.file import read_journal
from service.client import MixerClient, RemoteMixtureDataset
from service.errors import RunEndedError, UnreachableError
from tests.support.serving import (
    STEPS,
    B,
    Served,
    T,
    decisions,
    free_port,
    get,
    listen,
    losses_of,
    post,
    reports,
    write_run,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    with Served(write_run(folder), folder / "runs", "--feedback-wait-s", "0") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[MixerClient]:
    with MixerClient(served.url, patience_s=100) as client:
        yield client


def train(
    server: Served, *, world_size: int = 2, since: int = 0, until: int = STEPS, kill_at: tuple[int, ...] = ()
) -> list[bytes]:
    """Train on one thread after the other, killing the server before the steps named; return the rows of each rank."""
    taken = []
    with MixerClient(server.url, patience_s=150) as client:
        names = tuple(client.config()["names"])
        for step in range(since, until):
            if step in kill_at:
                server.kill()
                server.start(wait=False)
            for rank in range(world_size):
                rows = client.batch(step, rank, world_size)
                taken.append(rows.rows.tobytes() + rows.source_ids.tobytes())
                client.report(step, losses_of(rows, rank), names)
    return taken


def test_a_run_over_http_is_the_run_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_run(tmp_path)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "runs" / "cache"))
    with Served(config, tmp_path / "runs") as server, MixerClient(server.url) as client:
        over_http = train(server, world_size=1)
        dataset = MixtureDataset(Curriculum.from_yaml(config))
        for step, batch in enumerate(dataset):
            rows = np.concatenate([batch["input_ids"].numpy(), batch["labels"].numpy()[:, -1:]], axis=1)
            assert over_http[step] == rows.astype(np.uint16).tobytes() + batch["source_ids"].numpy().tobytes()
            dataset.walk.report(step, losses_of(client.batch(step), 0))
        remote = client.phases(limit=1000)
    assert len(over_http) == STEPS
    local = [dataset.walk.phase_at(record["start"]) for record in remote.phases]
    assert [phase.weights.tolist() for phase in local] == [record["weights"] for record in remote.phases]


def test_ranks_share_the_global_batch_row_by_row(client: MixerClient) -> None:
    whole = client.batch(0)
    for world_size in (2, 4, 8):
        for rank in range(world_size):
            part = client.batch(0, rank, world_size)
            assert (part.rows == whole.rows[rank::world_size]).all()
            assert (part.source_ids == whole.source_ids[rank::world_size]).all()
            assert (part.row_numbers == whole.row_numbers[rank::world_size]).all()


def test_a_batch_has_a_tag_and_says_that_it_has_not_changed(served: Served) -> None:
    first = get(served.url + "/batches/0", params={"rank": 1, "world_size": 2})
    again = get(served.url + "/runs/run/batches/0", params={"rank": 1, "world_size": 2})
    assert first.content == again.content
    assert first.headers["etag"] == again.headers["etag"]
    assert first.headers["x-mixer-step"] == "0"
    same = get(
        served.url + "/batches/0",
        params={"rank": 1, "world_size": 2},
        headers={"if-none-match": first.headers["etag"]},
    )
    assert (same.status_code, same.content) == (304, b"")


def test_a_killed_server_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    undisturbed = Served(config, tmp_path / "a", "--feedback-wait-s", "60")
    disturbed = Served(config, tmp_path / "b", "--feedback-wait-s", "60")
    with undisturbed, disturbed:
        expected = train(undisturbed)
        assert train(disturbed, kill_at=(1, 33, 34)) == expected
        with MixerClient(disturbed.url) as client:  # what was served before the kills, again
            for step in (0, 8, 9, 32, 50):
                rows = client.batch(step, 1, 2)
                assert rows.rows.tobytes() + rows.source_ids.tobytes() == expected[2 * step + 1]
    assert decisions(disturbed.journal) == decisions(undisturbed.journal)
    assert reports(disturbed.journal) == reports(undisturbed.journal)
    assert len(reports(disturbed.journal)) == 2 * STEPS
    assert "resume" not in {record["type"] for record in read_journal(disturbed.journal)}


def test_sigterm_ends_it_with_exit_code_0_and_a_restart_goes_on(tmp_path: Path) -> None:
    server = Served(write_run(tmp_path), tmp_path / "runs")
    with server:
        first = train(server, until=20)
        assert server.terminate() == 0
        server.start()
        assert train(server, until=20) == first  # reports come twice, and change nothing
    assert len(reports(server.journal)) == 40


def test_feedback_that_comes_twice_or_late_is_taken_once(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        with MixerClient(server.url) as client:
            names = tuple(client.config()["names"])
            batches = {step: client.batch(step) for step in range(30)}  # nobody reports, and the walk goes on
            for step in (20, 3, 29, 0):
                assert client.report(step, losses_of(batches[step], 0), names)
                assert not client.report(step, losses_of(batches[step], 0), names)
        assert [report[0] for report in reports(server.journal)] == [0, 3, 20, 29]


def test_a_silent_rank_is_waited_for_once_and_then_left_behind(tmp_path: Path) -> None:
    with (
        Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "1") as server,
        MixerClient(server.url) as client,
    ):
        begin = time.monotonic()
        names = tuple(client.config()["names"])
        client.batch(0, 1, 2)
        for step in range(40):
            rows = client.batch(step, 0, 2)
            client.report(step, losses_of(rows, 0), names)
        assert time.monotonic() - begin >= 1.0
        assert {rank.rank: rank.is_absent for rank in client.status().ranks} == {0: False, 1: True}


def test_a_pivot_is_in_force_at_the_next_boundary_and_reaches_the_batches_there(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs") as server, MixerClient(server.url) as client:
        names = tuple(client.config()["names"])
        for step in range(12):
            client.report(step, losses_of(client.batch(step), 0), names)
        taken = client.pivot(Pivot(name="without-s2", exclude=["s2"]))
        assert taken.at_step == client.status().frontier
        for step in range(12, 40):
            rows = client.batch(step)
            client.report(step, losses_of(rows, 0), names)
            if step >= taken.at_step:
                assert 2 not in rows.source_ids
        assert client.weights(taken.at_step).regime == "without-s2"
        assert client.pivot(Pivot(name="without-s1", exclude=["s1"]), "now").at_step == 40  # cuts the phase in force
        for step in range(40, STEPS):
            rows = client.batch(step)
            client.report(step, losses_of(rows, 0), names)
            assert 1 not in rows.source_ids
        with pytest.raises(PivotError, match="there is a regime named without-s2 already"):
            client.pivot(Pivot(name="without-s2"))
        audit = get(server.url + "/pivots").json()
        assert [(line["who"], line["origin"], line["detail"]["name"]) for line in audit] == [
            ("local", "127.0.0.1", "without-s2"),
            ("local", "127.0.0.1", "without-s1"),
        ]
        assert [line["detail"]["at_step"] for line in audit] == [taken.at_step, 40]


def test_a_pivot_over_http_takes_weights_and_policies_and_no_code(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs") as server, MixerClient(server.url) as client:
        names = tuple(client.config()["names"])
        fixed = Pivot(name="fixed", weights={"s0": 0.25, "s1": 0.5, "s2": 0.25}, ramp_steps=5)
        with pytest.raises(WeightsError, match="the weight of s3 is 0, below its floor"):
            client.pivot(Pivot(name="bad", weights=fixed.weights, floors={"s3": 0.1}))
        code = {"name": "code", "policy": {"name": "ucb", "reward": "os:system"}}
        refused = post(server.url + "/pivots", json=code)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert client.weights(0).regime != "fixed"
        taken = client.pivot(fixed)
        assert client.pivot(fixed) == taken, "asked for again, as its answer was lost"
        for step in range(40):
            client.report(step, losses_of(client.batch(step), 0), names)
        assert list(client.weights(39).weights.values()) == [0.25, 0.5, 0.25, 0.0]
        free = client.pivot(Pivot(name="free", policy="ucb"))
        assert client.pivot(Pivot(name="free", policy="ucb")) == free
        for step in range(40, STEPS):
            client.report(step, losses_of(client.batch(step), 0), names)
        assert client.weights(STEPS - 1).kind != "fixed"
        lines = [line for line in get(server.url + "/pivots").json() if line["detail"]["at_step"] is not None]
        assert [line["detail"]["name"] for line in lines][:2] == ["fixed", "fixed"]


def test_a_step_too_far_ahead_waits_until_others_have_come_near(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--ahead-steps", "4", "--feedback-wait-s", "0") as server:
        early = get(server.url + "/batches/60", params={"wait_s": 0.1})
        assert (early.status_code, early.json()["error"]["code"]) == (409, "not-ready")
        found = []
        with MixerClient(server.url) as client:
            waiting = threading.Thread(target=lambda: found.append(client.batch(60).step))
            waiting.start()
            for step in range(60):
                client.batch(step)
            waiting.join(100)
        assert found == [60]


def test_steps_outside_the_retention_window_are_gone(tmp_path: Path) -> None:
    options = ("--retain-steps", "10", "--memory-mib", "1", "--feedback-wait-s", "0")
    with Served(write_run(tmp_path), tmp_path / "runs", *options) as server:
        with MixerClient(server.url) as client:
            client.batch(0)
            for step in range(50):
                client.batch(step)
        server.kill()
        server.start()  # memory is empty now
        get(server.url + "/batches/49")
        gone = get(server.url + "/batches/5")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "step-gone")
        assert gone.json()["error"]["hint"]


def test_weights_answer_without_batches_for_trainers_with_their_own_loader(tmp_path: Path) -> None:
    with (
        Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server,
        MixerClient(server.url) as client,
    ):
        for step in range(STEPS):
            weights = client.weights(step)
            assert weights.start <= step < weights.start + weights.length
            assert sum(weights.weights.values()) == pytest.approx(1)
            assert weights.weights["s0"] >= 0.2 - 1e-9


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda c: c.batch(0, 3, 3), Exception, "rank 3 of 3"),
        (
            lambda c: c.batch(0, 0, 3),
            TopologyError,
            "batch_rows is 8, which 3 ranks cannot share evenly; use a number of ranks",
        ),
        (lambda c: c.batch(STEPS), RunEndedError, f"ends before step {STEPS}"),
        (
            lambda c: c.report(10**6, losses_of(c.batch(0), 0), tuple(c.config()["names"])),
            FutureFeedbackError,
            "ask for the phase",
        ),
        (lambda c: c.report(0, losses_of(c.batch(0), 0), ("x", "y", "z", "w")), FeedbackError, "unknown source 'x'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_librarys_own_error(
    client: MixerClient, ask: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(client)


def test_a_fork_shares_the_past_and_goes_on_otherwise(served: Served, client: MixerClient) -> None:
    for step in range(20):
        client.batch(step)
    begin = client.phases(8).phases[1]["start"]
    client.fork("run", "forked", at_step=begin, policy={"name": "static", "weights": {"s0": 0.5, "s2": 0.5}})
    with MixerClient(served.url, run="forked") as fork:
        assert fork.batch(begin - 1).rows.tobytes() == client.batch(begin - 1).rows.tobytes()
        assert set(fork.batch(begin).source_ids.tolist()) == {0, 2}
        assert fork.config()["parent"] == {"fingerprint": client.config()["fingerprint"], "step": begin}
    refused = post(served.url + "/runs/run/fork", json={"name": "again", "at_step": begin + 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "request")


def test_the_journal_can_be_read_as_it_lies_on_the_disk(served: Served) -> None:
    before = served.journal.read_bytes()
    given = get(served.url + "/walk").content
    assert given.startswith(before)
    assert served.journal.read_bytes().startswith(given)  # it decides ahead meanwhile, as it likes
    assert given.endswith(b"\n")


def test_events_come_as_phases_are_decided(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        seen: list[int] = []
        with (
            listen(server.url + "/events", headers={"last-event-id": "0"}) as stream,
            MixerClient(server.url) as client,
        ):
            for step in range(30):
                client.batch(step)
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:])["index"])
                if len(seen) == 3:
                    break
        assert seen == [0, 1, 2]


# The remote data set


def one_pass(dataset: Any, *, reported: bool = True) -> list[dict[str, Any]]:
    taken = []
    for batch in dataset:
        taken.append(batch)
        if reported:
            losses = 2.0 + batch["source_ids"][:, None].expand(-1, T) / (1.0 + batch["step"])
            dataset.report(batch, losses.to(torch.float32))
    return taken


def test_a_trainer_that_changes_one_line_sees_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_run(tmp_path)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "runs" / "cache"))
    with Served(config, tmp_path / "runs") as server:
        remote_set = RemoteMixtureDataset(server.url, 0, 1, provenance=True)
        remote = one_pass(remote_set)
        progress = remote_set.progress()
        local_set = MixtureDataset(Curriculum.from_yaml(config), provenance=True)
        local = one_pass(local_set)
        compact = list(itertools.islice(RemoteMixtureDataset(server.url, 0, 1, compact=True), 5))
    assert len(remote) == len(local) == STEPS
    for one, other in zip(remote, local, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert not isinstance(value, torch.Tensor) or value.dtype == other[key].dtype
    assert {n: p.rows for n, p in progress.items()} == {n: p.rows for n, p in local_set.progress().items()}
    for one, other in zip(compact, local, strict=False):
        assert one["labels"].dtype == torch.uint16
        assert torch.equal(one["labels"].long(), other["labels"])


def test_a_remote_trainer_reports_rows_or_sums_by_source_and_hears_of_a_loss_that_cannot_be(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        for rank in range(2):
            dataset = RemoteMixtureDataset(server.url, rank, 2)
            batches = iter(dataset)
            batch, following = next(batches), next(batches)
            with pytest.raises(FeedbackError, match=rf"shape \[4, {T // 2}\], but the batch has 4 rows of {T} tokens"):
                dataset.report(batch, torch.ones(4, T // 2))
            with pytest.raises(InvalidLossError, match=r"loss of .* is nan; .*\(row 0 of this rank's, from .*: nan\)"):
                dataset.report(batch, torch.full((4, T), torch.nan))
            assert dataset.report(batch, torch.full((4,), 24.0), num_tokens=torch.full((4,), T)) is True
            ((step, sums),) = LossAccumulator(4, T, dataset.curriculum.names).add(following, torch.ones(4, T))
            assert sums is not None
            assert dataset.report_sums(step, sums) is True
            assert dataset.report_sums(step, sums) is False
            assert dataset.step == 2
            batches.close()  # type: ignore[attr-defined]  # a generator
        written = [line for line in read_journal(server.journal) if line["type"] == "feedback"]
    assert [(line["step"], line["rank"]) for line in written] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [sum(line["tokens"]) for line in written] == [4 * T] * 4
    assert [sum(line["loss_sums"]) for line in written] == [96.0, 4.0 * T] * 2


def test_a_trainer_survives_a_restart_of_the_server_and_its_own(tmp_path: Path) -> None:
    server = Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0")
    with server:
        whole = [batch["input_ids"] for batch in one_pass(RemoteMixtureDataset(server.url, 0, 2), reported=False)]
        dataset = RemoteMixtureDataset(server.url, 0, 2, patience_s=150)
        seen = []
        for batch in dataset:
            seen.append(batch["input_ids"])
            if len(seen) == 20:
                server.kill()
                threading.Timer(1.0, lambda: server.start(wait=False)).start()
            if len(seen) == 40:
                break
        again = RemoteMixtureDataset(server.url, 0, 2)
        again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        seen += [batch["input_ids"] for batch in again]
        assert len(seen) == len(whole)
        assert all(torch.equal(one, other) for one, other in zip(seen, whole, strict=True))
        with pytest.raises(StateMismatchError, match="remote data set state belongs to curriculum nonsense"):
            again.load_state_dict({**again.state_dict(), "fingerprint": "nonsense"})


def test_a_rank_without_an_even_share_is_told_before_it_asks(served: Served) -> None:
    with pytest.raises(TopologyError, match=r"batch_rows is 8, which 3 ranks cannot share evenly; .*a multiple of 3"):
        RemoteMixtureDataset(served.url, 0, 3)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_workers_fetch_in_turn(served: Served, num_workers: int) -> None:
    dataset = RemoteMixtureDataset(served.url, 0, 2)
    alone = [batch["input_ids"] for batch in one_pass(dataset, reported=False)]
    again = RemoteMixtureDataset(served.url, 0, 2)
    loaded = [batch["input_ids"] for batch in DataLoader(again, batch_size=None, num_workers=num_workers)]
    assert len(alone) == len(loaded) == STEPS
    assert all(torch.equal(one, other) for one, other in zip(alone, loaded, strict=True))


def test_rows_mode_goes_on_in_the_middle_of_a_batch(served: Served) -> None:
    rows = [row["input_ids"] for row in RemoteMixtureDataset(served.url, 0, 2, batches=False)]
    assert len(rows) == STEPS * B // 2
    dataset = RemoteMixtureDataset(served.url, 0, 2, batches=False)
    for number, _ in enumerate(dataset, start=1):
        if number == 6:
            break
    other = RemoteMixtureDataset(served.url, 0, 2, batches=False)
    other.load_state_dict(dataset.state_dict())
    rest = [row["input_ids"] for row in other]
    assert all(torch.equal(one, two) for one, two in zip(rest, rows[6:], strict=True))


def test_a_trainer_gives_up_in_one_sentence() -> None:
    with pytest.raises(
        UnreachableError, match=r"gave up on http://127\.0\.0\.1:\d+ after \d+ attempts in \d+ s: .*start the server"
    ):
        RemoteMixtureDataset(f"http://127.0.0.1:{free_port()}", 0, 1, patience_s=0.6)
