"""Requests for batches through ``http.client``, whose bodies are received where they are used.

urllib3 takes 570 us of the processor for a request (``http.client`` 310; ``docs/log.md``), and it would copy what came.
"""

from __future__ import annotations

import http.client
import ssl
import weakref
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

import numpy as np

from mixer.system.memory import POOLED_BYTES, BufferPool
from service.client.calls import Raw, TransientError

KEPT = 16  # connections that nobody uses just now
FAULTS = (OSError, http.client.HTTPException)


class Direct:
    """Sends requests for batches, over connections that are used again; safe to share between threads.

    Args:
        url: of the server.
        headers: that go with every request.
        verify: an ``ssl.SSLContext`` for certificates of your own.
        connect_s, read_s: longest waits for a connection, and for the next bytes.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], verify: ssl.SSLContext | None, *, connect_s: float, read_s: float
    ) -> None:
        self._at, self._verify = urlsplit(url), verify
        self._connect_s, self._read_s = connect_s, read_s
        self._headers = {"user-agent": "curriculum-mixer", **headers}
        self._pool = BufferPool()
        self._idle: deque[http.client.HTTPConnection] = deque()
        weakref.finalize(self, _close, self._idle)

    def get(self, target: str) -> Raw:
        """Return the answer to a request.

        Raises:
            TransientError: there is none.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            if connection is not None:
                try:
                    return self._asked(connection, target)
                except TimeoutError:
                    raise
                except FAULTS:  # the server may have closed it meanwhile: asked again at once, over another
                    pass
            return self._asked(self._opened(), target)
        except FAULTS as error:
            raise TransientError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Close the connections that nobody uses."""
        _close(self._idle)

    def _opened(self) -> http.client.HTTPConnection:
        host, port = self._at.hostname or "", self._at.port
        if self._at.scheme == "https":
            context = self._verify or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=self._connect_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._connect_s)
        connection.connect()
        connection.sock.settimeout(self._read_s)
        return connection

    def _asked(self, connection: http.client.HTTPConnection, target: str) -> Raw:
        """Send a request over a connection and return the answer; the connection is kept if it can be used again."""
        try:
            connection.request("GET", self._at.path.rstrip("/") + target, headers=self._headers)
            with connection.getresponse() as answer:
                content = self._content_of(answer)
        except BaseException:
            connection.close()
            raise
        if connection.sock is None or len(self._idle) >= KEPT:  # closed as the server wished
            connection.close()
        else:
            self._idle.append(connection)
        return Raw(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def _content_of(self, answer: http.client.HTTPResponse) -> bytes | memoryview:
        """Return a body; a large one lies in memory that other answers lay in before."""
        length = answer.length
        if length is None:  # in pieces, as a proxy may send it
            return answer.read()
        content = self._room(length)
        at = 0
        while at < length:
            num = answer.readinto(content[at:])
            if num == 0:
                raise http.client.IncompleteRead(b"", length - at)
            at += num
        return content

    def _room(self, num_bytes: int) -> memoryview:
        if num_bytes >= POOLED_BYTES:
            return self._pool.take(num_bytes)
        return memoryview(np.empty(num_bytes, dtype=np.uint8))  # type: ignore[arg-type]


def _close(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
