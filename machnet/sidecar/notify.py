# SPDX-License-Identifier: MIT
"""Telling the service manager how it goes: sd_notify(3), for units of ``Type=notify``."""

from __future__ import annotations

import os
import socket
import time

__all__ = ["notify", "notify_ready", "notify_reloading", "notify_stopping"]


def notify(*lines: str) -> bool:
    """Send assignments such as ``READY=1``; whether there was somebody to send them to.

    A manager that can't be reached is none: the service goes on.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def notify_ready(status: str) -> None:
    """It serves now, also after a reload."""
    notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def notify_reloading() -> None:
    """It reads its configuration anew."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_stopping(status: str) -> None:
    """It ends."""
    notify("STOPPING=1", f"STATUS={status}")
