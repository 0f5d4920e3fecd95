"""A stand-in for the Hugging Face hub on this machine: real HTTP, one data set repository, a folder for each commit.

Faults can be switched on for the next requests that match, as real hubs and the networks before them have them.

It answers the few routes that `datasets` uses to stream a data set: what the repository is, which files it has, and
the files themselves, with ranges. Everything else is 404 in the hub's way, with the reason in a header.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BRANCH = "main"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *args: Any) -> None:
        """Say nothing; requests are kept in ``Hub.requests``."""

    def _answer(self, body: bytes = b"") -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("/switch/"):  # from the process that reads
            self.server.faults[:] = [Fault("503", "/datasets/", times=1_000_000)] if self.path.endswith("down") else []
            self.cut = False
            self._json({})
            return
        fault = self.server.next_fault(self.path)
        self.cut = fault is not None and fault.kind == "cut"
        if fault is not None and not self.cut:
            self._fail(fault)
            return
        path = unquote(urlsplit(self.path).path)
        repository, kind = self.server.repository, self.server.kind
        api, files = f"/api/{kind}/{repository}", f"{'' if kind == 'models' else '/datasets'}/{repository}/resolve/"
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            self._at(revision, lambda: self._file(name))
        elif path == api:
            self._at(BRANCH, self._repository)
        elif path.startswith(f"{api}/"):
            route, revision, *rest = path.removeprefix(f"{api}/").split("/", 2)
            routes: dict[str, Callable[[], None]] = {
                "revision": self._repository,
                "tree": lambda: self._tree("".join(rest)),
                "paths-info": lambda: self._paths(body),
            }
            self._at(revision, routes.get(route, lambda: self._error("EntryNotFound")))
        else:
            self._error("RepoNotFound")

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self.server.released.wait(fault.seconds)
        if fault.kind in ("stall", "reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
            self.connection.close()
            self.close_connection = True
            return
        headers = {"Retry-After": f"{fault.seconds:g}"} if fault.kind == "429" else {}
        self._send(int(fault.kind), b"", headers)

    def _at(self, revision: str, answer: Callable[[], None]) -> None:
        """Answer as of a commit, or of the newest one if asked for the branch."""
        self.commit = self.server.newest if revision == BRANCH else revision
        self.folder = self.server.folder / self.commit
        if self.folder.is_dir():
            answer()
        else:
            self._error("RevisionNotFound")

    def _repository(self) -> None:
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": name} for name in names]
        self._json(
            {"id": self.server.repository, "sha": self.commit, "siblings": siblings, "private": False, "tags": []}
        )

    def _tree(self, name: str) -> None:
        """Answer with the files and folders directly in a folder, or below it too if the query asks for that."""
        root = self.folder / name
        if not root.is_dir():
            self._error("EntryNotFound")
            return
        recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
        self._json([self._entry(path) for path in sorted(root.rglob("*") if recursive else root.iterdir())])

    def _paths(self, body: bytes) -> None:
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        self._json([self._entry(self.folder / name) for name in asked if (self.folder / name).exists()])

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": self.commit, "size": 0}
        data = path.read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _file(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            self._error("EntryNotFound")
            return
        data = path.read_bytes()
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        headers = {"X-Repo-Commit": self.commit, "ETag": etag, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], headers)

    def _json(self, value: Any) -> None:
        headers = {"Content-Type": "application/json", "X-Repo-Commit": getattr(self, "commit", "")}
        self._send(200, json.dumps(value).encode(), headers)

    def _error(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": f"{code} in the stand-in for the hub"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.cut else data)
            self.close_connection |= self.cut


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path has ``path`` in it, after ``after`` others have.

    ``kind`` is a status ("500", "503", "429"), "reset" (the connection breaks), "stall" (nothing comes for ``seconds``)
    or "cut" (half of the body comes). A 429 asks to wait for ``seconds``.
    """

    kind: str
    path: str
    times: int = 1
    after: int = 0
    seconds: float = 1.0


class Hub(ThreadingHTTPServer):
    """Serves the data set (or, with ``kind`` "models", the model) ``repository``: ``folder`` has a folder of files for each commit, named like it.

    ``newest`` is the commit that the branch stands at; ``requests`` are those received so far.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repository: str, newest: str, kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind = kind
        self.folder = folder
        self.repository = repository
        self.newest = newest
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.released = threading.Event()  # ends stalls
        self._lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""

    def next_fault(self, path: str) -> Fault | None:
        """Return what goes wrong with this request, and count it."""
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times:
                    if fault.after:
                        fault.after -= 1
                    else:
                        fault.times -= 1
                        return fault
            return None

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be for a process to see this hub and no other."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path, repository: str, newest: str, kind: str = "datasets") -> Iterator[Hub]:
    """Run a hub in a thread."""
    with Hub(folder, repository, newest, kind) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=[0.01])
        thread.start()
        try:
            yield hub
        finally:
            hub.released.set()
            hub.shutdown()
            thread.join()
