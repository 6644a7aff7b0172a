# SPDX-License-Identifier: MIT
"""What the commands that ask a sidecar have in common: options, errors and the end by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import click

from machnet.sidecar.asking import Asking
from machnet.sidecar.config import socket_path

_F = TypeVar("_F", bound=Callable[..., Any])


def socket_option(function: _F) -> _F:
    """Add ``--socket``."""
    return click.option(
        "--socket",
        "path",
        metavar="PATH",
        help="The sidecar's socket; default: MACHNET_SOCKET, /var/run/machnet/machnet_ctrl.sock.",
    )(function)


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def asking(command: str, path: str | None) -> Iterator[Asking]:
    """A connection to the sidecar; what goes wrong ends the process with a line about it.

    Exit status: 1 when there is no sidecar, or it refuses; 130 by Ctrl-C, 143 by SIGTERM, and 141
    when nobody reads the output any more.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    where = socket_path(path)
    try:
        with Asking(where, f"machnet {command}") as connection:
            yield connection
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except _Terminated:
        sys.exit(143)
    except BrokenPipeError as error:
        if error.filename is not None:
            _fail(command, error)
        # The interpreter would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(command, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(command: str, error: OSError) -> None:
    place = f"{error.filename}: " if error.filename else ""
    print(f"machnet {command}: {place}{error.strerror or error}", file=sys.stderr)
    sys.exit(1)


def printable(text: str) -> str:
    """What an application calls itself, for a terminal: it may hold anything, also what terminals obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def bytes_text(count: float) -> str:
    """A number of bytes, short."""
    for unit in ("", "K", "M", "G"):
        if abs(count) < 1024:
            return f"{count:.0f}{unit}" if not unit or count >= 100 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


def pick(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Rows whose fields are as wanted; None: anything."""
    return [
        row
        for row in rows
        if all(value is None or row[name] == value for name, value in wanted.items())
    ]
