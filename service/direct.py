"""Requests for batches over sockets of our own: HTTP as our server writes it, and no more of it.

urllib3 takes 570 us of the processor for a request, ``http.client`` 310 and this 70 (ADR 11). It opens connections as
``http.client`` does, TLS included. Whatever else an answer may be (in pieces, compressed, of no length, as a proxy may
send it) is not read: the client asks for it again through urllib3.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import weakref
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

import numpy as np

from mixer.memory import POOLED_BYTES, Pool
from service.calls import Raw, TransientError

HEAD_BYTES = 4096  # received at first: the head, and so much of the body as comes with it
MAX_HEAD_BYTES = 64 * 1024
KEPT = 16  # connections that nobody uses just now
END = b"\r\n\r\n"
FAULTS = (OSError, http.client.HTTPException)


class NotPlainError(Exception):
    """An answer that is not as our server writes it."""


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
        host = self._at.netloc.rpartition("@")[2]
        sent = {"host": host, "accept-encoding": "identity", "user-agent": "curriculum-mixer", **headers}
        self._head = "".join([f"{name}: {value}\r\n" for name, value in sent.items()]) + "\r\n"
        self._pool = Pool()
        self._idle: deque[socket.socket] = deque()
        weakref.finalize(self, _close, self._idle)

    def get(self, target: str) -> Raw:
        """Return the answer to a request.

        Raises:
            TransientError: there is none.
            NotPlainError: it is to be asked for in another way.
        """
        request = f"GET {self._at.path.rstrip('/')}{target} HTTP/1.1\r\n{self._head}".encode("ascii")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            if connection is not None:
                try:
                    return self._asked(connection, request)
                except TimeoutError:
                    raise
                except FAULTS:  # the server may have closed it meanwhile: asked again at once, over another
                    pass
            return self._asked(self._opened(), request)
        except FAULTS as error:
            raise TransientError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Close the connections that nobody uses."""
        _close(self._idle)

    def _opened(self) -> socket.socket:
        host, port = self._at.hostname or "", self._at.port
        if self._at.scheme == "https":
            context = self._verify or ssl.create_default_context()
            secured = http.client.HTTPSConnection(host, port, timeout=self._connect_s, context=context)
            secured.connect()
            connection: socket.socket = secured.sock
        else:
            plain = http.client.HTTPConnection(host, port, timeout=self._connect_s)
            plain.connect()
            connection = plain.sock
        connection.settimeout(self._read_s)
        return connection

    def _asked(self, connection: socket.socket, request: bytes) -> Raw:
        """Send a request over a connection and return the answer; the connection is kept if it can be used again."""
        try:
            answer = self._exchanged(connection, request)
        except BaseException:
            connection.close()
            raise
        if answer.headers.get("connection", "").lower() == "close" or len(self._idle) >= KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _exchanged(self, connection: socket.socket, request: bytes) -> Raw:
        connection.sendall(request)
        begun = bytearray()
        while (end := begun.find(END)) < 0:
            came = connection.recv(HEAD_BYTES)
            if not came:
                raise http.client.RemoteDisconnected("the server closed the connection without an answer")
            begun += came
            if len(begun) > MAX_HEAD_BYTES:
                raise NotPlainError(f"{len(begun)} bytes without the end of a head")
        status, headers = _read_head(bytes(begun[:end]))
        length, at = int(headers["content-length"]), len(begun) - end - len(END)
        if at > length:
            raise NotPlainError(f"{at} bytes of a body of {length}")
        content = self._room(length)
        content[:at] = begun[end + len(END) :]
        while at < length:
            num = connection.recv_into(content[at:])
            if num == 0:
                raise http.client.IncompleteRead(b"", length - at)
            at += num
        return Raw(status, headers, content)

    def _room(self, num_bytes: int) -> memoryview:
        """Return room for a body; a large one lies in memory that other answers lay in before."""
        if num_bytes >= POOLED_BYTES:
            return self._pool.take(num_bytes)
        return memoryview(np.empty(num_bytes, dtype=np.uint8))  # type: ignore[arg-type]


def _close(connections: deque[socket.socket]) -> None:
    while connections:
        connections.pop().close()


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and headers, names in small letters; raise NotPlainError for an answer that is not plain."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = rest[:3]
    is_plain = (
        version == "HTTP/1.1"
        and status.isdecimal()
        and int(status) >= 200
        and headers.get("content-length", "").isdecimal()
        and "transfer-encoding" not in headers
        and headers.get("content-encoding", "identity") == "identity"
    )
    if not is_plain:
        raise NotPlainError(first)
    return int(status), headers
