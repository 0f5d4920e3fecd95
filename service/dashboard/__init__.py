"""The page one looks at all day: plain HTML, CSS and modules, served beside the routes that it reads.

It needs nothing from elsewhere, so it works offline and under the server's content security policy, which allows
nothing else. Imports ``storage`` and ``mixer``. Start with ``columns``, which follows a journal line by line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

from mixer.analysis.palette import DASHES, OTHERS, PALETTE

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {"Cache-Control": "no-cache"}  # asked again each time, answered 304 while it is the same
ICON_HEADERS = {"Cache-Control": "max-age=86400"}  # the tab shows one when the server no longer answers


def add_dashboard(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files under ``/dashboard/``, without a token: they say nothing of any run."""
    app.include_router(dashboard_routes())


def dashboard_routes() -> APIRouter:
    """Return the router of the page; its files are read once, and no path from a request reaches the file system."""
    router = APIRouter(include_in_schema=False)
    files = {
        path.name: _file(path.read_bytes(), path.suffix) for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS
    }
    files["palette.js"] = _file(palette_module().encode(), ".js")

    @router.get("/")
    def get_page(request: Request) -> Response:
        return _answer(request, *files["index.html"])

    @router.get("/dashboard/{name}")
    def get_file(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"the page has no file {name[:100]!r}")
        return _answer(request, *files[name])

    return router


def palette_module() -> str:
    """Return ``mixer.analysis.palette`` as a module of the page."""
    values = {"PALETTE": PALETTE, "OTHERS": OTHERS, "DASHES": DASHES}
    return "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in values.items())


def _file(body: bytes, suffix: str) -> tuple[bytes, str, str]:
    """Return a file's bytes, its type and its ETag."""
    return body, KINDS[suffix], f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def _answer(request: Request, body: bytes, kind: str, tag: str) -> Response:
    headers = {**(ICON_HEADERS if kind == KINDS[".svg"] else HEADERS), "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)
