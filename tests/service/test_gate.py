"""Who comes in, and what a request may look like: the middleware in front of an application that accepts every request."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.cli import app as library
from mixer.config.curriculum import Curriculum
from service import cli, errors
from service.app import _HTTP, METHODS, create_app
from service.errors import BindError, RequestError, RunStateError, StoreError
from service.runs.registry import check_name
from service.settings import Settings
from service.storage.store import Store
from service.web import auth
from service.web import middleware as guard
from service.web.auth import FileTokens, TokenBook, check_bind, token_book
from service.web.logs import JsonLines
from service.web.metrics import Metrics
from service.web.middleware import MAX_HEAD_BYTES, MAX_LOGGED, WRONG_PER_MINUTE, Gate
from tests.support.curricula import write_sources

Fields = list[tuple[bytes, bytes]]
LOCALHOST = (b"host", b"localhost:8642")
JSON = (b"content-type", b"application/json")


async def _fine(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def bearer(token: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + token.encode()


async def ask(
    gate: Gate, *fields: tuple[bytes, bytes], method: str = "GET", path: str = "/weights", client: str = "127.0.0.1"
) -> tuple[int, str, dict[bytes, bytes]]:
    """Return status, code of the error, and headers of an answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(fields),
        "client": (client, 1),
    }
    await gate(scope, None, send)  # type: ignore[arg-type]
    status = sent[0]["status"]
    return status, orjson.loads(sent[1]["body"])["error"]["code"] if status >= 400 else "", dict(sent[0]["headers"])


def said(gate: Gate, *fields: tuple[bytes, bytes], **request: Any) -> tuple[int, str]:
    """Return status and code of an answer."""
    return asyncio.run(ask(gate, *fields, **request))[:2]


def gate_of(book: TokenBook, **settings: Any) -> Gate:
    return Gate(_fine, settings=Settings(**settings), book=book, metrics=Metrics(list))


def fresh(book: TokenBook) -> TokenBook:
    """Let what was read before be too old."""
    book._read_at = -2 * auth.FRESH_S
    return book


# Tokens in a file


def _cut(at: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def _made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _changed(field: str, value: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        lines = [{**json.loads(line), field: value} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return change


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut to nothing": _cut(0),
    "cut in the middle of a line": _cut(0.7),
    "blank": lambda path: path.write_bytes(b"\n \n"),
    "gone": lambda path: path.unlink(),
    "a folder": _made_a_folder,
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}\n"),
    "a list": lambda path: path.write_bytes(b"[]\n"),
    "null": lambda path: path.write_bytes(b"null\n"),
    "an empty object": lambda path: path.write_bytes(b"{}\n"),
    "writable for everybody": lambda path: path.chmod(0o666),
    "a scope that there is not": _changed("scope", "root"),
    "a digest that is none": _changed("digest", None),
    "a short digest": _changed("digest", ""),
    "a field more": _changed("is_admin", True),
    "a time that is none": _changed("revoked_at", "never"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_of_tokens_lets_in_those_known_from_before_and_nobody_else(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = tmp_path / "tokens.jsonl"
    settings = Settings(tokens_file=path)
    book = token_book(settings, None)
    token = book.create("train", "trainer")
    assert stat.S_IMODE(path.stat().st_mode) & 0o002 == 0
    gate = gate_of(book)
    assert said(gate, LOCALHOST, bearer(token)) == (200, "")
    damage(path)
    for _ in range(3):
        fresh(book)
        assert said(gate, LOCALHOST) == (401, "unauthorized")
        assert said(gate, LOCALHOST, bearer("mixer_00000000_wrong")) == (401, "unauthorized")
        assert said(gate, LOCALHOST, bearer(token)) == (200, "")
    never = token_book(settings, None)  # a server that starts just then
    for _ in range(2):
        assert said(gate_of(fresh(never)), LOCALHOST) == (503, "store")
        assert said(gate_of(fresh(never)), LOCALHOST, bearer(token)) == (503, "store")
    check_bind(settings, never)  # on loopback it starts, and waits for the file
    with pytest.raises(BindError, match="run `mixer token create --scope admin --tokens-file"):
        check_bind(Settings(tokens_file=path, host="0.0.0.0"), never)


@given(st.binary(max_size=300), st.floats(0, 1), st.floats(0, 1))
def test_whatever_bytes_a_file_of_tokens_has_nobody_gets_in_without_a_token(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, begin: float, end: float
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "tokens.jsonl"
    book = token_book(Settings(tokens_file=path), None)
    for scope in auth.SCOPES:
        book.create(scope, scope)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(begin * len(whole))] + junk + whole[int(end * len(whole)) :])
    for known in (token_book(Settings(tokens_file=path), None), book):
        status, _ = said(gate_of(fresh(known)), LOCALHOST)
        assert status in (401, 503)


def test_a_broken_file_names_the_line_and_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    storage = TokenBook(FileTokens(path))
    storage.create("read", "one")
    broken = path.read_bytes() + b'{"id": "ab'
    path.write_bytes(broken)
    with pytest.raises(StoreError, match="tokens.jsonl, line 2: not a token: .*restore the file"):
        storage.create("read", "two")
    assert path.read_bytes() == broken


def test_a_table_of_tokens_that_is_suddenly_empty_opens_no_server(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path)
    store = Store.open(settings.database_url)
    book = token_book(settings, store)
    gate = gate_of(book)
    assert said(gate, LOCALHOST) == (200, "")  # none was ever made, on loopback
    token = book.create("read", "r")
    assert said(gate, LOCALHOST) == (401, "unauthorized")
    with store.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM tokens")
    fresh(book)
    assert said(gate, LOCALHOST) == (401, "unauthorized")
    assert said(gate, LOCALHOST, bearer(token)) == (200, "")
    beyond = token_book(Settings(folder=tmp_path, host="0.0.0.0"), store)
    assert said(gate_of(beyond), LOCALHOST) == (503, "store")


def test_a_token_that_is_revoked_in_the_file_is_refused_and_a_mended_file_counts_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    book = token_book(Settings(tokens_file=path), None)
    gate, token = gate_of(book), book.create("read", "r")
    whole = path.read_bytes()
    assert said(gate, LOCALHOST, bearer(token)) == (200, "")
    path.write_bytes(b"")
    fresh(book)
    assert said(gate, LOCALHOST, bearer(token)) == (200, "")
    path.write_bytes(whole)
    assert book.revoke(token.split("_")[1])
    assert said(gate, LOCALHOST, bearer(token)) == (401, "unauthorized")


# Web pages


OPEN = TokenBook(auth.NoTokens())
FOREIGN = (403, "foreign-page")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", (200, "")),
        ("LOCALHOST:9000", (200, "")),  # of a tunnel
        ("localhost.:8642", (200, "")),
        ("127.0.0.1:8642", (200, "")),
        ("127.3.2.1", (200, "")),
        ("[::1]:8642", (200, "")),
        ("[::ffff:127.0.0.1]", (200, "")),
        ("evil.example", FOREIGN),
        ("evil.example:8642", FOREIGN),
        ("localhost.evil.example", FOREIGN),
        ("127.0.0.1.evil.example", FOREIGN),
        ("10.0.0.1", FOREIGN),
        ("0.0.0.0:8642", FOREIGN),
        ("2130706433", FOREIGN),
        ("[2001:db8::1]", FOREIGN),
        ("", (400, "request")),
        ("localhost@evil.example", (400, "request")),
        ("localhost, evil.example", (400, "request")),
        ("local host", (400, "request")),
        ("localhost:port", (400, "request")),
    ],
)
def test_without_tokens_only_names_of_this_machine_are_answered(host: str, expected: tuple[int, str]) -> None:
    gate = gate_of(OPEN)
    assert said(gate, (b"host", host.encode())) == expected
    assert said(gate, (b"host", host.encode()), JSON, method="POST") == expected
    if expected == FOREIGN:
        assert said(gate, (b"host", host.encode()), path="/") == expected


@pytest.mark.parametrize(
    ("fields", "method", "expected"),
    [
        ([JSON], "POST", (200, "")),
        ([(b"content-type", b"application/json; charset=utf-8")], "POST", (200, "")),
        ([(b"authorization", b"Bearer whatever")], "POST", (200, "")),
        ([], "GET", (200, "")),
        ([], "POST", FOREIGN),
        ([], "DELETE", FOREIGN),
        ([], "PUT", FOREIGN),
        *(
            ([(b"content-type", kind)], "POST", FOREIGN)
            for kind in (
                b"text/plain",
                b"text/plain; application/json",
                b"application/x-www-form-urlencoded",
                b"multipart/form-data; boundary=x",
                b"application/jsonx",
                b"",
            )
        ),
        ([JSON, (b"origin", b"http://localhost:8642")], "POST", (200, "")),
        ([JSON, (b"origin", b"http://localhost:3000")], "POST", FOREIGN),
        ([JSON, (b"origin", b"http://evil.example")], "POST", FOREIGN),
        ([JSON, (b"origin", b"null")], "POST", FOREIGN),
        ([(b"origin", b"http://evil.example")], "GET", FOREIGN),
        ([(b"sec-fetch-site", b"same-origin")], "GET", (200, "")),
        ([(b"sec-fetch-site", b"none")], "GET", (200, "")),
        ([(b"sec-fetch-site", b"same-site")], "GET", FOREIGN),
        ([(b"sec-fetch-site", b"cross-site")], "GET", FOREIGN),
    ],
)
def test_without_tokens_no_page_of_elsewhere_can_ask(fields: Fields, method: str, expected: tuple[int, str]) -> None:
    gate = gate_of(OPEN)
    assert said(gate, LOCALHOST, *fields, method=method) == expected


def test_the_page_itself_may_be_linked_to_from_anywhere() -> None:
    gate = gate_of(OPEN)
    assert said(gate, LOCALHOST, (b"sec-fetch-site", b"cross-site"), path="/") == (200, "")


def test_with_tokens_the_server_has_any_name_and_the_token_is_what_counts(tmp_path: Path) -> None:
    book = token_book(Settings(tokens_file=tmp_path / "t"), None)
    token = book.create("admin", "a")
    gate = gate_of(book)
    for fields in ([], [(b"origin", b"https://mixer.example.org")], [(b"sec-fetch-site", b"cross-site")]):
        assert said(gate, (b"host", b"mixer.example.org"), *fields, bearer(token), method="POST") == (200, "")
        assert said(gate, (b"host", b"mixer.example.org"), *fields, JSON, method="POST") == (401, "unauthorized")


# Heads


@pytest.mark.parametrize(
    "name", ["host", "authorization", "content-type", "content-length", "content-encoding", "origin", "sec-fetch-site"]
)
def test_what_may_come_once_may_not_come_twice(name: str) -> None:
    value = {"host": b"localhost", "content-length": b"0", "origin": b"http://localhost"}.get(name, b"")
    twice = [(name.encode(), value)] * 2
    status, code, headers = asyncio.run(ask(gate_of(OPEN), *([] if name == "host" else [LOCALHOST]), *twice))
    assert (status, code, headers[b"connection"]) == (400, "request", b"close")


def test_a_request_without_a_host_is_refused_but_in_http_1_0() -> None:
    assert said(gate_of(OPEN)) == (400, "request")


@given(st.integers(0, 3), st.integers(MAX_HEAD_BYTES - 300, MAX_HEAD_BYTES + 300))
def test_a_head_may_be_as_long_as_the_document_says_wherever_its_bytes_are(part: int, num_bytes: int) -> None:
    fixed = len(b"hostlocalhost:8642") + 4
    left = num_bytes - fixed
    path, fields = "/w", []
    if part == 0:
        path = "/" + "w" * (left - 1)
    elif part == 1:
        fields = [(b"x-a", b"y" * (left - len(path) - 3 - 4))]
    elif part == 2:
        fields = [(b"y" * (left - len(path) - 4), b"")]
    else:
        fields = [(b"a%03d" % n, b"y" * 92) for n in range((left - len(path)) // 100)]
        fields.append((b"x", b"y" * max(0, left - len(path) - 100 * len(fields) - 5)))
    size = len(path) + fixed + sum(len(n) + len(v) + 4 for n, v in fields)
    expected = (200, "") if size <= MAX_HEAD_BYTES else (413, "too-large")
    assert said(gate_of(OPEN), LOCALHOST, *fields, path=path) == expected


@pytest.mark.parametrize("field", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_a_get_has_no_body(field: tuple[bytes, bytes]) -> None:
    assert said(gate_of(OPEN), LOCALHOST, field) == (422, "request")


# Limits


def test_wrong_tokens_are_limited_by_address_and_keep_nobody_with_a_token_out(tmp_path: Path) -> None:
    book = token_book(Settings(tokens_file=tmp_path / "t"), None)
    token = book.create("read", "r")
    gate = gate_of(book)

    async def scene() -> None:
        for fields in ([bearer("mixer_00000000_wrong")], [], [bearer("nonsense")]):
            for _ in range(WRONG_PER_MINUTE // 3 + 1):
                await ask(gate, LOCALHOST, *fields)
        status, code, headers = await ask(gate, LOCALHOST, bearer("mixer_00000000_other"))
        assert (status, code) == (429, "rate-limit")
        assert 1 <= int(headers[b"retry-after"]) <= 60
        assert (await ask(gate, LOCALHOST, bearer(token)))[0] == 200
        assert (await ask(gate, LOCALHOST, client="10.0.0.2"))[0] == 401

    asyncio.run(scene())


def test_each_token_has_a_limit_of_its_own_though_all_have_the_same_name(tmp_path: Path) -> None:
    book = token_book(Settings(tokens_file=tmp_path / "t"), None)
    tokens = [book.create("read", "unnamed") for _ in range(3)]
    gate = gate_of(book, requests_per_minute=5)

    async def scene() -> None:
        for token in tokens:
            found = [(await ask(gate, LOCALHOST, bearer(token)))[0] for _ in range(7)]
            assert found == [200] * 5 + [429] * 2

    asyncio.run(scene())


def test_probes_are_not_counted(tmp_path: Path) -> None:
    book = token_book(Settings(tokens_file=tmp_path / "t"), None)
    token = book.create("read", "prometheus")
    gate = gate_of(book, requests_per_minute=3)

    async def scene() -> None:
        for path in ("/weights", "/healthz", "/readyz", "/metrics"):
            fields = [] if path in guard.OPEN_PATHS else [bearer(token)]
            found = [(await ask(gate, LOCALHOST, *fields, path=path))[0] for _ in range(10)]
            assert found.count(429) == (7 if path == "/weights" else 0)

    asyncio.run(scene())


def test_by_default_1024_ranks_may_train_at_a_step_a_second_with_one_token() -> None:
    assert Settings().requests_per_minute >= 1.5 * 1024 * 2 * 60


def test_a_refused_request_writes_little_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert said(gate_of(OPEN), LOCALHOST, path="/" + "x" * 15_000)[0] == 200  # a GET that is answered
        assert said(gate_of(OPEN), LOCALHOST, JSON, method="POST", path="/" + "é" * 7_000)[0] == 200
        assert said(gate_of(OPEN), (b"host", b"x" * 9_000), path="/" + "x" * 60_000)[0] == 413
        assert said(gate_of(OPEN), (b"host", b"x " * 4_000))[0] == 400
    lines = [JsonLines().format(record) for record in caplog.records]
    assert len(lines) == 3
    assert max(map(len, lines)) < 6 * MAX_LOGGED + 400


# A busy loop


def test_a_loop_that_is_late_is_no_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens were read in no time; the loop hears of it long after the wait is over."""
    monkeypatch.setattr(guard, "TOKENS_TIMEOUT_S", 0.05)

    async def scene() -> None:
        book = TokenBook(auth.NoTokens())
        gate = gate_of(book)
        for _ in range(3):
            asked = [asyncio.create_task(ask(gate, LOCALHOST)) for _ in range(20)]
            await asyncio.sleep(0)
            time.sleep(0.15)  # as thousands of requests at once keep it
            assert {(await task)[:2] for task in asked} == {(200, "")}
            fresh(book)

    asyncio.run(scene())


def test_a_loop_that_is_late_is_no_client_that_is_slow() -> None:
    settings = Settings(client_timeout_s=0.1)

    async def scene() -> None:
        arrived = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await arrived.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        body = asyncio.create_task(guard._LimitedReceive(receive, settings)())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        time.sleep(0.5)
        asyncio.get_running_loop().call_later(0.05, arrived.set)
        assert (await body)["body"] == b"{}"
        arrived.clear()
        with pytest.raises(errors.SlowClientError):
            await guard._LimitedReceive(receive, settings)()  # type: ignore[arg-type]

    asyncio.run(scene())


# A token that is revoked meanwhile


def test_a_request_that_waited_is_not_answered_to_a_token_that_was_revoked_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "FRESH_S", 0.0)
    book = token_book(Settings(tokens_file=tmp_path / "t"), None)
    token = book.create("read", "r")

    async def revokes_and_answers(scope: Any, receive: Any, send: Any) -> None:
        book.revoke(token.split("_")[1])
        await _fine(scope, receive, send)

    gate = Gate(revokes_and_answers, settings=Settings(), book=book, metrics=Metrics(list))
    assert said(gate, LOCALHOST, bearer(token)) == (401, "unauthorized")


# Routes


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = Settings(folder=tmp_path_factory.mktemp("runs"))
    made = create_app(settings, Store.open(settings.database_url))
    made.state.book.read()
    return made


async def _through(app: Any, method: str, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    address, _, query = path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": address,
        "raw_path": address.encode(),
        "query_string": query.encode(),
        "headers": [LOCALHOST, JSON],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_allow_names_every_method_of_an_address(app: Any) -> None:
    document = app.openapi()["paths"]
    for path, operations in document.items():
        expected = [method for method in METHODS if method.lower() in operations]
        for method in METHODS:
            if method not in expected:
                status, headers, body = asyncio.run(_through(app, method, path.replace("{step}", "0")))
                assert (status, headers[b"allow"].decode(), orjson.loads(body)["error"]["code"]) == (
                    405,
                    ", ".join(expected),
                    "method",
                )


def _hints() -> dict[str, str]:
    classes = [found for found in vars(errors).values() if isinstance(found, type)]
    own = {c.__name__: c.hint for c in classes if issubclass(c, errors.ServiceError)}
    return own | errors._HINTS | dict(_HTTP.values())


@pytest.mark.parametrize(("kind", "hint"), _hints().items(), ids=_hints().keys())
def test_every_hint_names_routes_and_options_that_there_are(app: Any, kind: str, hint: str) -> None:
    for path in re.findall(r"(?<![\w.])/[a-z][\w./-]*", hint):
        assert asyncio.run(_through(app, "GET", path))[0] != 404 or path in app.openapi()["paths"], f"{kind}: {path}"
    known = {c.callback.__name__ for c in library.registered_commands if c.callback is not None}
    assert set(re.findall(r"`mixer ([a-z]+)", hint)) <= known | {"serve", "token"}, kind
    options = {option.removeprefix("--").replace("-", "_") for option in re.findall(r"--[a-z-]+", hint)}
    assert options <= {*inspect.signature(cli.serve).parameters, *inspect.signature(cli.create).parameters}, kind


def test_the_links_of_the_document_lead_to_operations_and_their_parameters(app: Any, tmp_path: Path) -> None:
    operations = {o["operationId"]: o for path in app.openapi()["paths"].values() for o in path.values()}
    linked = 0
    for operation in operations.values():
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                target = operations[link["operationId"]]
                assert link["parameters"].keys() <= {p["name"] for p in target.get("parameters", ())}
                linked += 1
    assert linked >= 80


# Names of runs


@pytest.mark.parametrize(
    "name",
    [
        "service.db",
        "service.db-wal",
        "service.db-shm",
        "service.db-journal",
        "Service.DB",
        "tokens.jsonl",
        "con",
        "NUL",
        "aux.txt",
        "com1",
        "trailing.",
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "-a",
        "a b",
        "a\n",
        "é",
        "x" * 101,
    ],
)
def test_a_run_cannot_have_the_name_of_a_file_or_of_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokens.jsonl").write_text("")
    with pytest.raises(RequestError):
        check_name(name, Settings(folder=tmp_path), [])


def test_two_runs_do_not_differ_in_capital_letters_alone(tmp_path: Path) -> None:
    check_name("demo", Settings(folder=tmp_path), ["demo-2", "demo"])
    with pytest.raises(RunStateError, match="there is a run Demo already"):
        check_name("demo", Settings(folder=tmp_path), ["Demo"])


@pytest.mark.parametrize("name", ["service.db", "../elsewhere", "con"])
def test_a_server_is_not_started_for_a_run_that_can_have_no_folder(tmp_path: Path, name: str) -> None:
    write_sources(tmp_path)
    curriculum = Curriculum.from_data(
        {
            "total_steps": 20,
            "batch_rows": 4,
            "sequence_length": 8,
            "tokenizer": {"train_vocab_size": 300},
            "sources": [{"name": f"s{k}", "data_files": f"s{k}.jsonl"} for k in range(4)],
        },
        base_dir=tmp_path,
    )
    settings = Settings(folder=tmp_path / "runs")
    app = create_app(settings, Store.open(settings.database_url), curriculum=curriculum, name=name)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(RequestError):
        asyncio.run(start())
    assert not (tmp_path / "elsewhere").exists()
