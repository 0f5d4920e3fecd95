"""Clients as the network has them: slow, silent, gone, or not speaking HTTP. None of them may cost the others anything."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
import trustme

from service.client import MixerClient
from service.errors import UnreachableError
from service.rates import SteadyStorage
from service.server import GRACE_S
from tests.serving import Served, get, listen, losses_of, write_run

TIMEOUT_S = 2.0  # longer than a machine that does much else keeps an honest client from its next byte
REPORT = json.dumps({"step": 0, "sources": {}}).encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rough")
    options = ("--feedback-wait-s", "0", "--client-timeout-s", str(TIMEOUT_S))
    with Served(write_run(folder), folder / "runs", *options) as server:
        yield server
        assert get(server.url + "/batches/0").status_code == 200
        assert "Traceback" not in server.log()


def connected(server: Served, *, receive_bytes: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(60)
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect(("127.0.0.1", server.port))
    return client


def rest(client: socket.socket) -> bytes:
    """Return what still comes until the server closes."""
    taken = b""
    try:
        while piece := client.recv(65536):
            taken += piece
    except ConnectionResetError:
        pass
    return taken


def said(answer: bytes) -> tuple[int, str]:
    """Return status and code of an error's answer, checking its shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert all(error.values())
    return int(head.split()[1]), error["code"]


def posted(*lines: bytes) -> bytes:
    return b"\r\n".join(
        [b"POST /feedback HTTP/1.1", b"host: localhost", b"content-type: application/json", *lines, b"", b""]
    )


def test_clients_that_send_no_whole_head_are_left(served: Served) -> None:
    begun = [b"", b"GET /weights HT", b"\r\n", b"GET /weights HTTP/1.1\r\nhost: localhost\r\n"]
    start = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(served)) for _ in begun]
        for client, head in zip(clients, begun, strict=True):
            client.sendall(head)
        for client in clients:
            assert rest(client) == b""
    assert time.monotonic() - start > 0.9 * TIMEOUT_S


def test_a_body_that_drips_is_refused_however_many_bytes_come(served: Served) -> None:
    with connected(served) as client:
        client.sendall(posted(b"connection: close", b"content-length: 100000"))
        start, answer = time.monotonic(), b""
        client.settimeout(0.1)
        while not answer and time.monotonic() - start < 60:
            client.sendall(b" ")
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
        client.settimeout(60)
        assert said(answer + rest(client)) == (408, "slow-client")


def test_a_head_without_end_is_cut_off(served: Served) -> None:
    with connected(served) as client:
        client.sendall(b"GET /weights HTTP/1.1\r\nhost: localhost\r\n")
        try:
            for number in range(100_000):
                client.sendall(b"x-%d: %s\r\n" % (number, b"y" * 1000))
            pytest.fail("the server took 100 MB of headers")
        except (ConnectionResetError, BrokenPipeError):
            pass
    with connected(served) as client:  # a little too much gets an answer
        client.sendall(b"GET /weights HTTP/1.1\r\nconnection: close\r\nx-long: " + b"y" * 30_000 + b"\r\n\r\n")
        assert said(rest(client)) == (413, "too-large")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,  # TLS to a port without
        b"hello\r\n\r\n",
        posted(b"content-length: minus one"),
        posted(b"content-length: -1"),
        posted(b"content-length: 5", b"content-length: 50") + b"12345",
        posted(b"content-length: 5", b"transfer-encoding: chunked") + b"0\r\n\r\n",
        posted(b"transfer-encoding: chunked") + b"zz\r\nabc\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape(served: Served, request_bytes: bytes) -> None:
    with connected(served) as client:
        client.sendall(request_bytes)
        assert said(rest(client)) == (400, "request")


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((b"content-encoding: gzip",), gzip.compress(b"0" * 10_000_000)),
        ((b"content-encoding: br",), REPORT),
        ((), REPORT[:-4]),
        ((), b'{"step": 1e400, "sources": {}}'),
        ((), b'{"step": 0, "sources": {"s0": {"rows": 1, "tokens": 1, "loss_sum": NaN}}}'),
        ((), b'{"step": 0, "sources": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"),
        ((), b'{"step": 0, "sources": {"\xff": 1}}'),
        ((), b""),
    ],
)
def test_bodies_that_mean_harm_are_refused(served: Served, lines: tuple[bytes, ...], body: bytes) -> None:
    with connected(served) as client:
        client.sendall(posted(b"connection: close", b"content-length: %d" % len(body), *lines) + body)
        assert said(rest(client)) == (422, "request")


def test_clients_that_vanish_in_the_middle_of_a_body_or_of_a_wait_leave_nothing_behind(served: Served) -> None:
    for number in range(30):
        client = connected(served)
        if number % 2:
            client.sendall(posted(b"content-length: 1000") + REPORT)
        else:
            client.sendall(b"GET /batches/69?wait_s=1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        if number % 3:  # without a farewell
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert get(served.url + "/weights").status_code == 200


@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut_off_and_one_that_reads_slowly_is_not(served: Served) -> None:
    size = len(get(served.url + "/openapi.json").content)
    number = 16_000_000 // size  # more than the kernel takes in
    with connected(served, receive_bytes=4096) as client:
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * number)
        time.sleep(3 * TIMEOUT_S)
        assert len(rest(client)) < number * size
    with connected(served, receive_bytes=65536) as client:
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * number)
        start, taken = time.monotonic(), 0
        while taken < number * size:
            piece = client.recv(262144)
            assert piece, f"cut off after {taken} bytes"
            taken += len(piece)
            time.sleep(0.02)
        assert time.monotonic() - start > TIMEOUT_S


def test_the_limiter_goes_by_a_clock_that_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    storage = SteadyStorage(clock=lambda: now[0])
    assert [storage.incr("a", 60) for _ in range(3)] == [1, 2, 3]
    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert (storage.get("a"), storage.get_expiry("a")) == (3, 1060.0)
    now[0] = 1060.0
    assert (storage.get("a"), storage.incr("a", 60)) == (0, 1)


# Servers of their own


@pytest.mark.slow
def test_two_thousand_idle_connections_keep_nobody_from_an_answer(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 5000:
        pytest.skip(f"this system lets a process have {most} files alone")
    server = Served(write_run(tmp_path), tmp_path / "runs")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # as shells start it
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    idle = []
    try:
        idle = [connected(server) for _ in range(2000)]
        assert get(server.url + "/weights", timeout=10).status_code == 200
    finally:
        for client in idle:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.kill()


def test_sigterm_finishes_what_is_in_flight_and_waits_for_nobody_who_waits(tmp_path: Path) -> None:
    """A half-sent report is taken, a poll is told to come back, a stream of events ends; then a snapshot, and exit 0."""
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "60") as server:
        with connected(server) as poller, connected(server) as reporter:
            poller.sendall(b"GET /batches/60?wait_s=50 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            reporter.sendall(posted(b"content-length: %d" % len(REPORT)) + REPORT[:10])
            with listen(server.url + "/events") as events:  # answered after both of them were accepted
                time.sleep(0.5)
                ends = threading.Timer(0.5, reporter.sendall, [REPORT[10:]])
                ends.start()
                start = time.monotonic()
                code = server.terminate()
                took = time.monotonic() - start
                list(events.iter_bytes())
            ends.join()
            assert code == 0
            assert took < GRACE_S, "it waited for those who wait"
            assert rest(reporter).startswith(b"HTTP/1.1 200")
            assert said(rest(poller))[1] == "not-ready"
        assert "Traceback" not in server.log()


def test_over_tls_a_trainer_trusts_the_authority_that_it_is_given_and_no_other(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for n, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(tmp_path / "cert.pem", append=n > 0)
    contexts = {}
    for name, known in (("right", authority), ("wrong", stranger)):
        contexts[name] = httpx2.create_ssl_context(trust_env=False)
        known.configure_trust(contexts[name])
    options = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    server = Served(write_run(tmp_path), tmp_path / "runs", *options)
    server.url = server.url.replace("http://", "https://")
    try:
        server.start(wait=False)
        with MixerClient(server.url, verify=contexts["right"], patience_s=150) as client:
            rows = client.batch(0)
            assert client.report(0, losses_of(rows, 0), tuple(client.config()["names"]))
        with (
            MixerClient(server.url, verify=contexts["wrong"], patience_s=0.2) as client,
            pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ):
            client.batch(0)
    finally:
        server.kill()


@pytest.mark.parametrize("broken", ["cert", pytest.param("key", marks=pytest.mark.slow)])
def test_a_certificate_that_cannot_be_used_is_said_in_one_sentence(tmp_path: Path, broken: str) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / f"{broken}.pem").write_text("nonsense")
    command = [sys.executable, "-c", "from mixer.cli import main; main()", "serve", str(write_run(tmp_path))]
    options = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    done = subprocess.run(
        [*command, *options, "--folder", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 1
    assert "are no certificate and its key" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
