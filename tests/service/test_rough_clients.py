"""Clients as the network has them: slow, silent, gone, or not speaking HTTP. None of them may cost the others anything."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from inspect import signature
from pathlib import Path

import httpx2
import pytest
import trustme
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.client.client import MixerClient
from service.errors import UnreachableError
from service.server import GRACE_S, MAX_HANDSHAKE_S
from service.web.connections import Connection
from service.web.rates import SteadyStorage
from tests.support.serving import Served, get, listen, losses_of, wait_until, write_run

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


def resident_bytes(server: Served) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [kib] = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kib) << 10


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
        until_cut_off(client, (b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(100_000)), most=99_000_000)
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


def until_cut_off(client: socket.socket, pieces: Iterator[bytes], *, most: int) -> int:
    """Send until the server closes, and return how many bytes it let come."""
    sent = 0
    try:
        for piece in pieces:
            client.sendall(piece)
            sent += len(piece)
            if sent > most:
                pytest.fail(f"the server took {sent} bytes")
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


ENDLESS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "fields of a head": (b"GET /weights HTTP/1.1\r\n", lambda n: b"x-%d: %s\r\n" % (n, b"y" * 1000)),
    "one field": (b"GET /weights HTTP/1.1\r\nx: ", lambda _: b"y" * 1000),
    "blanks before a field": (b"GET /weights HTTP/1.1\r\nx:", lambda _: b" " * 1000),
    "an address": (b"GET /", lambda _: b"y" * 1000),
    "empty lines": (b"", lambda _: b"\r\n" * 500),
}
BUSY = {"a stream": b"GET /events", "a poll": b"GET /batches/69?wait_s=50"}


@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
@pytest.mark.parametrize(("begun", "more"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_comes_without_end_while_an_answer_is_under_way_is_cut_off(
    served: Served, busy: bytes, begun: bytes, more: Callable[[int], bytes]
) -> None:
    before = resident_bytes(served)
    with connected(served) as client:
        client.sendall(busy + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(0.1)
        client.sendall(begun)
        until_cut_off(client, map(more, range(20_000)), most=19_000_000)
    assert resident_bytes(served) < before + (8 << 20)


@pytest.mark.parametrize(
    "more",
    [lambda n: b"x-%d: %s\r\n" % (n, b"y" * 1000), lambda _: b"y" * 1000],
    ids=["fields of a trailer", "one field"],
)
def test_a_trailer_without_end_is_cut_off(served: Served, more: Callable[[int], bytes]) -> None:
    before = resident_bytes(served)
    with connected(served) as client:
        client.sendall(posted(b"transfer-encoding: chunked") + b"5\r\n12345\r\n0\r\nx-first: ")
        until_cut_off(client, map(more, range(20_000)), most=19_000_000)
    with connected(served) as client:
        client.sendall(posted(b"transfer-encoding: chunked") + b"5;name=")
        until_cut_off(client, (b"y" * 1000 for _ in range(20_000)), most=19_000_000)
    assert resident_bytes(served) < before + (8 << 20)


def test_a_body_in_many_small_chunks_is_taken_whole(served: Served) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (REPORT[n : n + 1] for n in range(len(REPORT))))
    blanks = b"1\r\n \r\n" * 60_000  # whose lines of length alone are five times the bound of a head
    with connected(served) as client:
        client.sendall(posted(b"transfer-encoding: chunked", b"connection: close") + blanks + chunks + b"0\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begun", [b"GET /wei", b"GET /weights HTTP/1.1\r\nx: y"])
def test_a_next_head_that_does_not_come_whole_ends_the_stream_before_it(served: Served, begun: bytes) -> None:
    with connected(served) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n" + begun)
        start = time.monotonic()
        assert rest(client).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - start > 0.9 * TIMEOUT_S


@pytest.mark.parametrize(
    "lines", [[], [b"host: localhost", b"host: 127.0.0.1"], [b"host: localhost", b"host: localhost"]]
)
def test_a_request_has_one_host(served: Served, lines: list[bytes]) -> None:
    with connected(served) as client:
        client.sendall(b"\r\n".join([b"GET /weights HTTP/1.1", *lines, b"", b""]))
        assert said(rest(client)) == (400, "request")


@pytest.mark.parametrize("line", [b"x: " + b"y" * 50_000, b"x:" + b" " * 50_000 + b"y", b"x" * 50_000 + b": y"])
def test_a_head_longer_than_the_document_says_is_refused(served: Served, line: bytes) -> None:
    with connected(served) as client:
        client.sendall(b"GET /weights HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + line + b"\r\n\r\n")
        assert said(rest(client)) == (413, "too-large")


def test_the_parts_of_uvicorn_that_connections_are_built_on_are_as_they_were() -> None:
    """A release that changes them is to be looked at before ``pyproject.toml`` allows it."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = next(line for line in project["optional-dependencies"]["service"] if line.startswith("uvicorn"))
    bound = re.search(r"<0\.(\d+)", needed)
    assert bound is not None
    major, minor = map(int, uvicorn.__version__.split(".")[:2])
    assert (major, minor) < (0, int(bound[1]))
    overridden = {name for name in vars(Connection) if name in vars(HttpToolsProtocol)}
    assert overridden >= {"data_received", "on_message_begin", "on_header", "on_headers_complete", "on_body"}
    assert overridden >= {"send_400_response", "timeout_keep_alive_handler", "_start_asgi_task", "connection_lost"}
    for name in overridden - {"__init__", "__doc__", "__module__"}:
        ours, theirs = (list(signature(getattr(c, name)).parameters) for c in (Connection, HttpToolsProtocol))
        assert ours == theirs, name
    state = uvicorn.Server(uvicorn.Config(lambda: None)).server_state
    with asyncio.Runner() as runner:
        protocol = HttpToolsProtocol(uvicorn.Config(lambda: None, ws="none"), state, {}, runner.get_loop())
    parts = vars(protocol)
    assert parts.keys() >= {"cycle", "pipeline", "scope", "transport", "loop"}
    assert {*signature(RequestResponseCycle).parameters} >= {"message_event"}
    assert STATUS_LINE[413].startswith(b"HTTP/1.1 413 ")


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


def test_a_tls_handshake_that_never_comes_is_waited_for_for_seconds(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    options = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    server = Served(write_run(tmp_path), tmp_path / "runs", *options)
    try:
        server.start(wait=False)
        wait_until(lambda: is_open(server.port))
        with connected(server) as client, connected(server) as second:
            begun = time.monotonic()
            second.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a hello
            for waiting in (client, second):
                assert rest(waiting) == b""
            assert time.monotonic() - begun < 6 * MAX_HANDSHAKE_S  # a minute by default
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


@pytest.mark.parametrize("num", [300, pytest.param(4096, marks=pytest.mark.slow)])
def test_many_connections_at_once_get_and_report_and_nobody_hears_of_the_database(tmp_path: Path, num: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < num + 500:
        pytest.skip(f"this system lets a process have {most} files alone")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        statuses = asyncio.run(_all_at_once(server.port, num))
        assert statuses == {200: 2 * num}, server.log()


async def _all_at_once(port: int, num: int) -> Counter[int]:
    """Return how often each status came: every connection asks for weights and then reports, all at the same time."""
    found: Counter[int] = Counter()
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num)]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = re.findall(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length))
        found[int(head.split()[1])] += 1

    head, body = b"\r\nhost: localhost\r\n", b'{"step": 0, "sources": {}}'
    weights = b"GET /weights?step=0 HTTP/1.1" + head + b"\r\n"
    report = b"POST /feedback HTTP/1.1" + head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    for request in (weights, report % (len(body), body)):
        await asyncio.gather(*(ask(*connection, request) for connection in opened))
    for _, writer in opened:
        writer.close()
    return found
