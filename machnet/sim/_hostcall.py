# SPDX-License-Identifier: MIT
"""Running a Python function in a forked child, for `KernelHost.call`.

The child is forked from the calling process and not from the host's holder, because the function
then needs no pickling: closures, lambdas, and test modules that can't be imported by name work.
The price of forking a process with threads is that a lock which another thread holds at that
moment stays held in the child. Python repairs its own (interpreter, import, logging, standard
streams) and the C library those of its allocator; native engine threads hold none. What is left
is locks of the application, which the documentation of `call` names. The child never returns into
the caller's code: it sends its outcome and leaves by `os._exit`, with the garbage collector off,
so that no finaliser of an inherited object runs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 1 << 16

# Held around every fork here, and by whoever waits for the end of a pipe whose other end a child
# forked at the wrong moment would keep open. Held for ever in the child, which has no use for it.
FORK_LOCK = threading.Lock()


class RemoteTraceback(Exception):  # noqa: N818 (a cause that carries text, not an error by itself)
    """The child's traceback, as the cause of the exception that came out of it."""

    def __str__(self) -> str:
        return f"\n\nIn the host's process:\n{self.args[0]}"


class CallTimeoutError(Exception):
    """The child took too long and has been killed."""


class LostResultError(Exception):
    """The child ended without a result that can be passed on; the text says why."""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _outcome(enter: Callable[[], None], call: Callable[[], Any]) -> bytes:
    """Run in the child: (exception or None, result, text of the failure), pickled."""
    try:
        enter()
        result = call()
    except BaseException as error:  # noqa: BLE001 (pytest's skip and fail are BaseExceptions)
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        if not isinstance(error, (SystemExit, KeyboardInterrupt)):
            with contextlib.suppress(Exception):
                # Some pickle and then can't be rebuilt: found out here, not by the caller.
                error.__traceback__ = None
                data = pickle.dumps((error, None, text))
                pickle.loads(data)  # noqa: S301 (our own bytes)
                return data
        return pickle.dumps((None, None, text))
    try:
        return pickle.dumps((None, result, None))
    except Exception as error:  # noqa: BLE001 (pickle raises whatever the object raises)
        return pickle.dumps((None, None, f"its result can't be pickled: {error!r}"))


def _child(pipe_fd: int, enter: Callable[[], None], call: Callable[[], Any]) -> None:
    gc.disable()
    signal.set_wakeup_fd(-1)  # an event loop of the parent would hear our signals
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    data = _outcome(enter, call)
    _flush()
    while data:
        data = data[os.write(pipe_fd, data) :]


def _fork() -> int:
    with FORK_LOCK, warnings.catch_warnings():
        # Python 3.12 warns of forking with threads; why it is sound here is said at the top.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _read_until_end(pipe_fd: int, child_fd: int, timeout: float | None) -> bytes:
    """What the child wrote until it ended; CallTimeoutError when it takes longer than `timeout`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    os.set_blocking(pipe_fd, False)
    poll = select.poll()
    poll.register(pipe_fd, select.POLLIN)
    poll.register(child_fd, select.POLLIN)
    data = bytearray()
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise CallTimeoutError
        ready = dict(poll.poll(None if left is None else left * 1000))
        if pipe_fd in ready:
            piece = os.read(pipe_fd, _READ_BYTES)
            data += piece
            if not piece:
                poll.unregister(pipe_fd)
        elif child_fd in ready:
            # A grandchild may keep the pipe open: the end of the child is the end of its outcome.
            return bytes(data)


def _reap(pid: int) -> int | None:
    """Exit code of the child, negative for a signal; None if somebody else has collected it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def call_in_child(enter: Callable[[], None], call: Callable[[], Any], timeout: float | None) -> Any:
    """Fork, `enter()`, and return what `call()` returns or raise what it raises.

    Args:
        enter: moves the child to where it belongs.
        call: the work.
        timeout: seconds until the child is killed; None waits for ever.

    Raises:
        CallTimeoutError: The child has been killed for taking longer than `timeout`.
        LostResultError: The child was killed or its outcome can't be passed on.
    """
    _flush()  # what is buffered here would be written by the child too
    read_fd, write_fd = os.pipe()
    pid = _fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_fd)
            _child(write_fd, enter, call)
            status = 0
        finally:
            os._exit(status)
    child_fd = -1
    try:
        os.close(write_fd)
        child_fd = os.pidfd_open(pid)
        data = _read_until_end(read_fd, child_fd, timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it is reaped below only, so the number is still its own
        raise
    finally:
        if child_fd >= 0:
            os.close(child_fd)
        os.close(read_fd)
        exit_code = _reap(pid)
    return _unpack(data, exit_code)


def _unpack(data: bytes, exit_code: int | None) -> Any:
    if exit_code is not None and exit_code < 0:
        name = signal.strsignal(-exit_code)
        raise LostResultError(f"it was killed by signal {-exit_code} ({name})")
    if exit_code or not data:
        raise LostResultError(f"it ended with exit status {exit_code} and no result")
    try:
        error, result, text = pickle.loads(data)  # noqa: S301 (from our own child)
    except Exception as problem:
        raise LostResultError(f"its result can't be unpickled: {problem!r}") from problem
    if error is not None:
        raise error from RemoteTraceback(text)
    if text is not None:
        raise LostResultError(text)
    return result
