"""How DataLoader workers ask the process of the walk: one authority decides, whoever composes the batches.

The process that made the loader listens on a local socket from the moment workers are made (forked or spawned) and
answers in threads, so that a trainer that never reports still gets batches. A worker whose process of the walk is gone
gets an error, not silence.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from mixer.errors import MixerError, TopologyError
from mixer.sampling.phases import Phase

Address = tuple[str, bytes]  # path of the socket, and the key that both sides must know


class PhaseServer:
    """Answers the calls of other processes, from the next fork or pickling on.

    Args:
        methods: what may be called, by name; each caller is answered in a thread of its own.
    """

    def __init__(self, methods: Mapping[str, Callable[..., Any]]) -> None:
        self._methods = dict(methods)
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._address: Address | None = None
        self._is_closed = threading.Event()
        self._pid = os.getpid()
        _all.add(self)

    def open(self) -> Address:
        """Listen, if that is not so yet, and return where; calls are answered once ``start`` was called."""
        if self._address is None:
            key = secrets.token_bytes(32)
            self._listener = Listener(family="AF_UNIX", backlog=128, authkey=key)
            self._address = (str(self._listener.address), key)
            # or a data set that is dropped would leave a thread and a socket behind
            weakref.finalize(self, _stop, self._listener, self._is_closed, os.getpid()).atexit = False
        return self._address

    def start(self) -> None:
        """Begin to answer, if a socket is open and nobody answers yet."""
        if self._listener is not None and self._thread is None and os.getpid() == self._pid:
            self._thread = threading.Thread(
                target=_accept, args=(self._listener, self._is_closed, weakref.ref(self)), daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop listening; calls under way are answered."""
        if self._listener is not None:
            _stop(self._listener, self._is_closed, self._pid)
            self._listener = None

    def reply_to(self, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """Return whether a method gave something, and what it gave or raised."""
        try:
            return True, self._methods[name](*arguments)
        except Exception as error:  # it belongs to the caller
            return False, error


_all: weakref.WeakSet[PhaseServer] = weakref.WeakSet()


def _before_fork() -> None:
    for answering in list(_all):
        answering.open()


def _after_fork() -> None:
    for answering in list(_all):
        answering.start()


# a thread must not be started before the fork, where it could hold a lock that the child then waits for
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


def _accept(listener: Listener, is_closed: threading.Event, answering: weakref.ref[PhaseServer]) -> None:
    while not is_closed.is_set():
        try:
            connection = listener.accept()
        except (OSError, EOFError) as error:
            if isinstance(error, ConnectionError | EOFError):  # a caller that died while it was being greeted
                continue
            return  # closed
        except Exception:  # a stranger without the key
            continue
        threading.Thread(target=_answer, args=(connection, answering), daemon=True).start()


def _answer(connection: Connection, answering: weakref.ref[PhaseServer]) -> None:
    with contextlib.suppress(EOFError, OSError), connection:
        while True:
            name, arguments = connection.recv()
            found = answering()
            if found is None:
                return
            reply = found.reply_to(name, arguments)
            del found
            try:
                connection.send(reply)
            except (TypeError, AttributeError, ValueError):  # what does not pickle is told in words
                connection.send((False, MixerError(f"{type(reply[1]).__name__}: {reply[1]}")))


def _stop(listener: Listener, is_closed: threading.Event, pid: int) -> None:
    """Close a listener of this process and end the thread that accepts there, which closing alone would not wake."""
    if os.getpid() != pid or is_closed.is_set():
        return
    is_closed.set()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        caller.connect(str(listener.address))
    listener.close()


class PhaseClient:
    """Calls the process that answers at ``address``; made and used in one process."""

    def __init__(self, address: Address) -> None:
        path, key = address
        try:
            self._connection = Client(path, family="AF_UNIX", authkey=key)
        except (OSError, EOFError) as error:
            raise _gone(error) from error

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what the method gives; raise what it raises."""
        try:
            self._connection.send((name, arguments))
            is_good, value = self._connection.recv()
        except (OSError, EOFError) as error:
            raise _gone(error) from error
        if not is_good:
            raise value
        return value


class RemotePhases:
    """Phases as the process that decides has them; the newest few are kept."""

    def __init__(self, address: Address) -> None:
        self._asking = PhaseClient(address)
        self._kept: deque[Phase] = deque(maxlen=8)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of ``Coordinator.methods``."""
        return self._asking.call(method, *arguments)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``."""
        for phase in reversed(self._kept):
            if phase.start <= step < phase.end:
                return phase
        self._kept.append(self.call("phase", step))
        return self._kept[-1]

    def read_through(self, name: str, tokens: int) -> None:
        """Tell the length of an epoch of a source."""
        self.call("read_through", name, tokens)

    def skipped(self, name: str, record: str) -> None:
        """Tell of a record that a source left out."""
        self.call("skipped", name, record)


def _gone(error: BaseException) -> TopologyError:
    return TopologyError(
        f"the process that decides the mixture is gone ({type(error).__name__}); "
        "DataLoader workers end with the process that made them: start the run again from its last checkpoint"
    )
