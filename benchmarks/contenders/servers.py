"""Servers of one body from memory: ``python -m benchmarks.contenders.servers KIND PORT FILE``.

``bare``: a Starlette route that answers the bytes of a file, under uvicorn as ``mixer serve`` sets it. ``flight``: an
Arrow Flight server of the record batch in that file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from service.wire.batches import MEDIA_TYPE


def bare(port: int, body: bytes) -> None:
    """Serve with nothing but Starlette."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from service.server import uvicorn_config
    from service.settings import Settings

    async def answer(_request: Request) -> Response:
        return Response(body, media_type=MEDIA_TYPE)

    app = Starlette(routes=[Route("/body/{number:int}", answer)])
    uvicorn.Server(uvicorn_config(app, Settings(port=port))).run()


def flight(port: int, body: bytes) -> None:
    """Serve by Arrow Flight."""
    import pyarrow as pa
    from pyarrow import flight as arrow_flight

    table = pa.ipc.open_stream(body).read_all()

    class Server(arrow_flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, _context: object, _ticket: object) -> object:
            return arrow_flight.RecordBatchStream(table)

    Server(f"grpc://127.0.0.1:{port}").serve()


if __name__ == "__main__":
    {"bare": bare, "flight": flight}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]).read_bytes())
