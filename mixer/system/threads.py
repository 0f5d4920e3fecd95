"""A few threads that read ahead for every source of the process; nobody ever waits for a task that has not begun.

Whoever needs a result whose task is still queued runs it himself, so that sources that hang on a network can hold all
the threads and no other source is slower for it than without threads. The threads are daemons and are given a moment
at exit; a fork waits for running tasks, and the child has no thread and reads on by itself.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

NUM_THREADS = 4  # `tokenizers` and pyarrow release the interpreter's lock and have threads of their own
EXIT_WAIT_S = 15.0  # a thread that the interpreter ends inside a C++ library takes the whole process down
FORK_WAIT_S = 10.0
LOOK_S, NUM_QUIET_LOOKS = 0.005, 4

Result = TypeVar("Result")


class Task(Generic[Result]):
    """A call that a thread of the pool makes, or whoever asks for its result first."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._claim = threading.Lock()  # held for ever by the one who runs it
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, unless somebody does or did."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._call()
        except BaseException as error:  # Ctrl-C arrives in the main thread, which may be the one that runs it
            self._error = error
        finally:
            del self._call  # with what it holds: results may be kept for long
            self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether ``result`` would return, or raise, at once."""
        return self._done.is_set()

    @property
    def value(self) -> Result | None:
        """What the call returned, or None if it has not ended or has failed."""
        return self._result if self._done.is_set() and self._error is None else None

    def result(self) -> Result:
        """Return what the call returned or raise what it raised, running it here if nobody has begun."""
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # there, as the call has ended

    def cancel(self) -> None:
        """Let the task never begin, or wait until it has ended; its result does not matter any more."""
        if self._claim.acquire(blocking=False):
            self._done.set()
        self._done.wait()


class ReaderThreads:
    """Threads that are started with the first task."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._closing: list[weakref.finalize[Any, Any]] = []
        self._reset()
        atexit.register(self._stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._pause, after_in_parent=self._resume, after_in_child=self._reset)

    def submit(self, call: Callable[[], Result]) -> Task[Result]:
        """Queue a call; after the interpreter has begun to exit it stays queued, and runs when asked for."""
        task = Task(call)
        with self._changed:
            if not self._threads and not self._is_stopped:
                self._threads = [
                    threading.Thread(target=self._work, name=f"mixer-read-ahead-{i}", daemon=True)
                    for i in range(self._num_threads)
                ]
                for thread in self._threads:
                    thread.start()
            self._queue.append(task)
            self._changed.notify()
        return task

    def close_at_exit(self, finalizer: weakref.finalize[Any, Any]) -> None:
        """Let this finalizer of positional arguments run at exit, once no thread can be reading what it closes."""
        finalizer.atexit = False
        self._closing = [other for other in self._closing if other.alive] + [finalizer]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._is_stopped and (self._is_paused or not self._queue):
                    self._changed.wait()
                if self._is_stopped:
                    return
                task = self._queue.popleft()
                self._num_running += 1
            try:
                task.run()
            finally:
                del task  # or its rows would live until the next one comes
                with self._changed:
                    self._num_running -= 1
                    self._changed.notify_all()

    def _stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._queue.clear()
            self._changed.notify_all()
        until_s = time.monotonic() + EXIT_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        for finalizer in self._closing:
            if arranged := finalizer.detach():  # by now it may refuse to be called
                _, close, arguments, _ = arranged
                close(*arguments)
        if self._closing:
            _await_foreign_threads(until_s)

    def _pause(self) -> None:
        """Wait for running tasks, whose locks and open generators a child could never release."""
        with self._changed:
            self._is_paused = True
            self._changed.wait_for(lambda: not self._num_running, timeout=FORK_WAIT_S)

    def _resume(self) -> None:
        with self._changed:
            self._is_paused = False
            self._changed.notify_all()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Task[Any]] = deque()
        self._threads = []
        self._num_running = 0
        self._is_paused = self._is_stopped = False
        self._closing = []


def _await_foreign_threads(until_s: float) -> None:
    """Wait until no thread of a C++ library is inside Python code, as Arrow's are that read a remote file ahead.

    They outlive the closed reader by the read under way, and the interpreter, when it ends, would unwind them through
    C++ that does not allow it, which ends the process with SIGABRT. Several looks, as one read may follow another.
    """
    num_quiet = 0
    while num_quiet < NUM_QUIET_LOOKS and time.monotonic() < until_s:
        ours = {t.ident for t in threading.enumerate() if not isinstance(t, threading._DummyThread)}
        num_quiet = 0 if sys._current_frames().keys() - ours else num_quiet + 1
        time.sleep(LOOK_S)


POOL = ReaderThreads(NUM_THREADS)
