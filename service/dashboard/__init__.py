"""The page one looks at all day: plain HTML, CSS and modules, served beside the routes that it reads.

It needs nothing from elsewhere, so it works offline and under the guard's content security policy, which allows
nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {"Cache-Control": "no-cache"}  # asked again each time, answered 304 while it is the same


def add_dashboard(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files under ``/dashboard/``, without a token: they say nothing of any run."""
    app.include_router(dashboard_routes())


def dashboard_routes() -> APIRouter:
    """Return the router of the page; its files are read once, and no path from a request reaches the file system."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: _file(path) for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}

    @router.get("/")
    def get_page(request: Request) -> Response:
        return _answer(request, *files["index.html"])

    @router.get("/dashboard/{name}")
    def get_file(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"the page has no file {name[:100]!r}")
        return _answer(request, *files[name])

    return router


def _file(path: Path) -> tuple[bytes, str, str]:
    """Return a file's bytes, its type and its ETag."""
    body = path.read_bytes()
    return body, KINDS[path.suffix], f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def _answer(request: Request, body: bytes, kind: str, tag: str) -> Response:
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={**HEADERS, "ETag": tag})
    return Response(body, media_type=kind, headers={**HEADERS, "ETag": tag})
