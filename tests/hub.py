"""A stand-in for the Hugging Face hub on this machine: real HTTP, one data set repository, a folder for each commit.

It answers the few routes that `datasets` uses to stream a data set: what the repository is, which files it has, and
the files themselves, with ranges. Everything else is 404 in the hub's way, with the reason in a header.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/datasets/{self.server.repository}", f"/datasets/{self.server.repository}/resolve/"
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
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", "X-Repo-Commit": self.commit})

    def _error(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": f"{code} in the stand-in for the hub"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Hub(ThreadingHTTPServer):
    """Serves the data set ``repository``: ``folder`` has a folder of files for each commit, named like it.

    ``newest`` is the commit that the branch stands at; ``requests`` are those received so far.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repository: str, newest: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.repository = repository
        self.newest = newest
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be for a process to see this hub and no other."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path, repository: str, newest: str) -> Iterator[Hub]:
    """Run a hub in a thread."""
    with Hub(folder, repository, newest) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=[0.01])
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
