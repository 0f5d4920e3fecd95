"""Who may ask what, and that nothing which a client sends can make the server fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from schemathesis import openapi
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.support import serving
from tests.support.serving import B, Served, T, get, listen, write_run

MIXER = [sys.executable, "-c", "from mixer.cli import main; main()"]


def mixer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MIXER, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("guarded")
    runs = folder / "runs"
    tokens = {
        scope: mixer("token", "create", "--scope", scope, "--name", scope, "--folder", str(runs)).stdout.strip()
        for scope in ("read", "train", "admin")
    }
    with Served(write_run(folder), runs, "--feedback-wait-s", "0") as server:
        yield server, tokens


def ask(
    guarded: tuple[Served, dict[str, str]], method: str, path: str, scope: str | None, **body: Any
) -> tuple[int, str]:
    server, tokens = guarded
    headers = {"authorization": f"Bearer {tokens.get(scope, scope)}"} if scope else {}
    answer = serving.ask(method, server.url + path, headers=headers, **body)
    if answer.status_code < 400:
        return answer.status_code, ""
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert all(error.values())
    return answer.status_code, error["code"]


def test_without_tokens_nothing_beyond_this_machine_is_served(tmp_path: Path) -> None:
    refused = mixer("serve", str(write_run(tmp_path)), "--host", "0.0.0.0", "--folder", str(tmp_path / "runs"))
    assert refused.returncode == 1
    assert "run `mixer token create --scope admin` first" in refused.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("method", "path", "scope", "expected"),
    [
        ("GET", "/weights", None, (401, "unauthorized")),
        ("GET", "/weights", "mixer_00000000_wrong", (401, "unauthorized")),
        ("GET", "/weights", "nonsense", (401, "unauthorized")),
        ("GET", "/metrics", None, (401, "unauthorized")),
        ("GET", "/weights", "read", (200, "")),
        ("GET", "/batches/0", "read", (403, "forbidden")),
        ("GET", "/batches/0", "train", (200, "")),
        ("POST", "/pivots", "train", (403, "forbidden")),
        ("POST", "/runs/run/pause", "train", (403, "forbidden")),
        ("GET", "/pivots", "admin", (200, "")),
        ("GET", "/healthz", None, (200, "")),
        ("GET", "/nowhere", "read", (404, "unknown-route")),
        ("DELETE", "/weights", "admin", (405, "method")),
        ("GET", "/runs/nobody/weights", "read", (404, "unknown-run")),
        ("GET", "/runs/..%2f..%2fetc/weights", "read", (404, "unknown-route")),
    ],
)
def test_each_scope_reaches_as_far_as_it_says(
    guarded: tuple[Served, dict[str, str]], method: str, path: str, scope: str | None, expected: tuple[int, str]
) -> None:
    assert ask(guarded, method, path, scope) == expected


def test_a_token_is_kept_as_a_digest_alone_and_can_be_revoked(guarded: tuple[Served, dict[str, str]]) -> None:
    server, _ = guarded
    folder = server.journal.parent.parent
    token = mixer("token", "create", "--scope", "train", "--folder", str(folder)).stdout.strip()
    time.sleep(2.1)
    assert ask(guarded, "GET", "/batches/0", token) == (200, "")
    secret = token.split("_", 2)[2].encode()
    assert not any(secret in path.read_bytes() for path in folder.glob("service.db*"))
    assert mixer("token", "revoke", token.split("_")[1], "--folder", str(folder)).returncode == 0
    time.sleep(2.1)
    assert ask(guarded, "GET", "/batches/0", token) == (401, "unauthorized")


def test_a_stream_of_events_ends_when_its_token_is_revoked(guarded: tuple[Served, dict[str, str]]) -> None:
    server, _ = guarded
    folder = str(server.journal.parent.parent)
    token = mixer("token", "create", "--scope", "read", "--folder", folder).stdout.strip()
    time.sleep(2.1)
    with listen(server.url + "/events", headers={"authorization": f"Bearer {token}"}) as events:
        pieces = events.iter_bytes()
        assert next(pieces).startswith(b"retry:")
        assert mixer("token", "revoke", token.split("_")[1], "--folder", folder).returncode == 0
        begun = time.monotonic()
        list(pieces)
        assert time.monotonic() - begun < 10  # the next heartbeat would be 15 s later


@pytest.mark.parametrize("head", [[], [b"authorization: Bearer %(read)s"]])
def test_a_token_in_the_trailer_of_a_body_counts_for_nothing(
    guarded: tuple[Served, dict[str, str]], head: list[bytes]
) -> None:
    server, tokens = guarded
    sent = {name.encode(): token.encode() for name, token in tokens.items()}
    lines = [b"POST /pivots HTTP/1.1", b"host: localhost", b"connection: close", b"transfer-encoding: chunked"]
    lines += [*(line % sent for line in head), b"", b"2", b"{}", b"0", b"authorization: Bearer %(admin)s" % sent]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"\r\n".join([*lines, b"content-encoding: gzip", b"", b""]))
        assert client.recv(65536).startswith(b"HTTP/1.1 403" if head else b"HTTP/1.1 401")


@pytest.mark.parametrize("name", ["service.db", "SERVICE.DB-wal", "nul", "RUN"])
def test_a_run_that_cannot_have_its_folder_is_refused(guarded: tuple[Served, dict[str, str]], name: str) -> None:
    known = [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)]
    fields = {"total_steps": 50, "batch_rows": B, "sequence_length": T, "tokenizer": {"train_vocab_size": 300}}
    made = {"name": name, "curriculum": fields | {"sources": known}}
    expected = (409, "run-state") if name == "RUN" else (422, "request")
    assert ask(guarded, "POST", "/runs", "admin", json=made) == expected
    assert ask(guarded, "POST", "/runs/run/fork", "admin", json={"name": name}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"content": b"x" * (2 << 20)}, (413, "too-large")),
        ({"content": [b"x" * (1 << 20)] * 3}, (413, "too-large")),  # chunked: its length is not known beforehand
        ({"content": b"[" * 200_000}, (422, "request")),
        ({"content": b'{"step": NaN, "sources": {}}'}, (422, "request")),
        ({"content": b"\xff\xfe{"}, (422, "request")),
        ({"content": b"{"}, (422, "request")),
        ({"json": {"step": 0, "rank": 10**30, "sources": {}}}, (422, "request")),
        ({"json": {"step": 0, "sources": {"s0": {"rows": 1, "tokens": T, "loss_sum": -1}}}}, (422, "request")),
        ({"json": {"step": 0, "sources": {"elsewhere": {"rows": 1, "tokens": T, "loss_sum": 1}}}}, (422, "feedback")),
        (
            {"json": {"step": 2000, "sources": {"s0": {"rows": 1, "tokens": T, "loss_sum": 1}}}},
            (409, "future-feedback"),
        ),
        (
            {"json": {"step": 0, "rank": B, "sources": {"s0": {"rows": 1, "tokens": T, "loss_sum": 1}}}},
            (422, "request"),
        ),
    ],
)
def test_bad_bodies_are_refused_in_the_one_shape(
    guarded: tuple[Served, dict[str, str]], body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert ask(guarded, "POST", "/feedback", "train", **body) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": [{"name": "x", "data_files": "/etc/passwd"}]},
        {"sources": [{"name": "x", "path": "somebody/dataset"}]},
        {"tokenizer": {"file": "/etc/passwd"}},
        {"prepared": "/etc"},
        {"policy": {"name": "ucb", "reward": "os:system"}},
    ],
)
def test_a_request_cannot_name_files_data_sets_or_code(
    guarded: tuple[Served, dict[str, str]], changes: dict[str, Any]
) -> None:
    known = [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)]
    run = {
        "total_steps": 50,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": known,
    }
    made = {"name": "another", "curriculum": run | changes}
    assert ask(guarded, "POST", "/runs", "admin", json=made) == (403, "forbidden")


def test_runs_are_made_paused_resumed_and_archived(guarded: tuple[Served, dict[str, str]]) -> None:
    known = [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)]
    run = {
        "total_steps": 50,
        "batch_rows": B,
        "sequence_length": T,
        "tokenizer": {"train_vocab_size": 300},
        "sources": known,
    }
    assert ask(guarded, "POST", "/runs", "admin", json={"name": "second", "curriculum": run}) == (201, "")
    assert ask(guarded, "POST", "/runs", "admin", json={"name": "second", "curriculum": run}) == (409, "run-state")
    assert ask(guarded, "GET", "/runs/second/batches/0", "train") == (200, "")
    assert ask(guarded, "POST", "/runs/second/pause", "admin") == (200, "")
    assert ask(guarded, "GET", "/runs/second/batches/0?wait_s=0", "train") == (409, "run-state")
    assert ask(guarded, "GET", "/batches/0", "train") == (200, "")
    assert ask(guarded, "POST", "/runs/second/resume", "admin") == (200, "")
    assert ask(guarded, "GET", "/runs/second/batches/0", "train") == (200, "")
    assert ask(guarded, "POST", "/runs/second/archive", "admin") == (200, "")
    assert ask(guarded, "GET", "/runs/second/batches/0", "train") == (409, "run-state")


def test_made_up_requests_never_make_the_server_fail(tmp_path: Path) -> None:
    """Every route, from the OpenAPI document; MIXER_FUZZ_EXAMPLES says how many requests each."""
    load_all_checks()
    examples = int(os.environ.get("MIXER_FUZZ_EXAMPLES", "3"))
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        schema = openapi.from_url(server.url + "/openapi.json").exclude(path_regex="events")
        tried = 0
        for found in schema.get_all_operations():
            operation = found.ok()  # type: ignore[union-attr]  # the document is sound
            cases = operation.as_strategy()
            for seed in range(examples):
                case = _drawn(cases, seed)
                answer = case.call(timeout=100)
                case.validate_response(
                    answer, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
                )
                tried += 1
        assert tried >= 25 * examples


def test_following_the_links_of_the_document_never_makes_the_server_fail(tmp_path: Path) -> None:
    load_all_checks()
    followed: set[str] = set()
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        schema = openapi.from_url(server.url + "/openapi.json").exclude(path_regex="events|archive")

        class Workflow(schema.as_state_machine()):  # type: ignore[misc]  # made of the document
            def validate_response(self, response: Any, case: Any, **_: Any) -> None:
                followed.add(f"{case.method} {case.path}")
                case.validate_response(response, checks=[not_a_server_error, status_code_conformance])

            def get_call_kwargs(self, case: Any) -> dict[str, Any]:
                return {"timeout": 100}

        Workflow.run(
            settings=hypothesis.settings(
                max_examples=int(os.environ.get("MIXER_FUZZ_EXAMPLES", "3")) * 2,
                stateful_step_count=6,
                database=None,
                derandomize=True,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
        )
        assert get(server.url + "/healthz").status_code == 200
    assert len(followed) >= 5


def _drawn(strategy: Any, seed: int) -> Any:
    """Return one example, the same for the same seed."""
    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=3,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def draw(case: Any) -> None:
        drawn.append(case)

    draw()
    return drawn[-1]
