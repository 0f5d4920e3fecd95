"""Clients in a process of their own that cost less than any server they ask: bare sockets, answers thrown away.

Told one JSON object per line on standard input, answers one per line: ``{"kind": "http", "port": 1, "clients": 4,
"paths": ["/batches/%d"], "seconds": 0.5}``. ``%d`` becomes the number of the request, from ``first`` on. With
``every_s`` one client asks at that pace and the times of single answers are told too; ``flight`` asks an Arrow Flight
server, in threads.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

SCRATCH = memoryview(bytearray(4 << 20))


@dataclass
class Connection:
    """One client: it asks for the next thing when all of an answer is there."""

    socket: socket.socket
    left: int = 0  # bytes of the answer that are to come; 0 before its header is read
    asked_s: float = 0.0

    def ask(self, path: str) -> None:
        """Send a request."""
        self.asked_s = time.perf_counter()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())

    def took(self) -> bool:
        """Take what is there; return whether that was the end of an answer."""
        count = self.socket.recv_into(SCRATCH)
        if not count:
            raise ConnectionError("the server closed the connection")
        if not self.left:
            head = bytes(SCRATCH[: min(count, 4096)])
            end = head.index(b"\r\n\r\n") + 4
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answered {head[:200]!r}")
            length = head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            self.left = end + int(length)
        self.left -= count
        return self.left == 0


def connect(port: int) -> socket.socket:
    """Return a connection to this machine."""
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def http(port: int, clients: int, path: str, seconds: float, first: int) -> dict[str, Any]:
    """Ask with so many clients, each as soon as it has its answer."""
    numbers = iter(range(first, 1 << 40))
    poll, connections = select.epoll(), {}
    for _ in range(clients):
        connection = Connection(connect(port))
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
        connection.ask(_numbered(path, numbers))
    count, begin = 0, time.perf_counter()
    until = begin + seconds
    while time.perf_counter() < until:
        for number, _ in poll.poll(5):
            connection = connections[number]
            if connection.took():
                count += 1
                connection.ask(_numbered(path, numbers))
    took_s = time.perf_counter() - begin
    for connection in connections.values():
        connection.socket.close()
    return {"requests": count, "seconds": took_s, "next": next(numbers)}


def paced(port: int, path: str, every_s: float, seconds: float) -> dict[str, Any]:
    """Ask at a pace, and tell how long single answers took."""
    connection, times = Connection(connect(port)), []
    begin = time.perf_counter()
    for number in range(int(seconds / every_s)):
        time.sleep(max(0.0, begin + number * every_s - time.perf_counter()))
        connection.ask(path)
        while not connection.took():
            pass
        times.append(time.perf_counter() - connection.asked_s)
    connection.socket.close()
    cuts = statistics.quantiles(times, n=100)
    return {"requests": len(times), "seconds": time.perf_counter() - begin, "p50_s": cuts[49], "p99_s": cuts[98]}


def flight(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Ask an Arrow Flight server, each client in a thread; its library is compiled and lets go of the interpreter."""
    from pyarrow import flight as arrow_flight

    counts = [0] * clients
    opened = [arrow_flight.connect(f"grpc://127.0.0.1:{port}") for _ in range(clients)]
    for client in opened:  # connected, before the time begins
        client.do_get(arrow_flight.Ticket(b"")).read_all()
    begin = time.perf_counter()

    def ask(i: int) -> None:
        while time.perf_counter() < begin + seconds:
            opened[i].do_get(arrow_flight.Ticket(b"")).read_all()
            counts[i] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - begin
    for client in opened:
        client.close()
    return {"requests": sum(counts), "seconds": took_s}


def _numbered(path: str, numbers: Any) -> str:
    number = next(numbers)
    return path.replace("%d", str(number))


def main() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        told = json.loads(line)
        cpu_s = time.process_time()
        if told["kind"] == "flight":
            answer = flight(told["port"], told["clients"], told["seconds"])
        elif "every_s" in told:
            answer = paced(told["port"], told["path"], told["every_s"], told["seconds"])
        else:
            answer = http(told["port"], told["clients"], told["path"], told["seconds"], told.get("first", 0))
        answer["cpu_share"] = (time.process_time() - cpu_s) / answer["seconds"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
