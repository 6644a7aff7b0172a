# SPDX-License-Identifier: MIT
"""Values of the constants that system calls take, as Linux has them."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket

__all__ = ["CONSTANTS", "errno_name", "errno_number"]

_PREFIXES = ("AF_", "PF_", "SOCK_", "IPPROTO_", "SOL_", "SO_", "TCP_", "IP_", "MSG_", "SHUT_")

#: Not in Python's modules, or not in all versions of them (Linux's UAPI headers).
_MORE = {
    "SOL_TCP": 6, "SOL_UDP": 17, "SOL_IP": 0,
    "SO_ZEROCOPY": 60, "SO_TXTIME": 61, "SO_BUSY_POLL": 46, "SO_MAX_PACING_RATE": 47,
    "SO_TIMESTAMPING": 37, "SO_RCVLOWAT": 18, "SO_SNDLOWAT": 19,
    "TCP_MD5SIG": 14, "TCP_THIN_LINEAR_TIMEOUTS": 16, "TCP_THIN_DUPACK": 17, "TCP_REPAIR": 19,
    "TCP_REPAIR_QUEUE": 20, "TCP_QUEUE_SEQ": 21, "TCP_REPAIR_OPTIONS": 22, "TCP_TIMESTAMP": 24,
    "TCP_CC_INFO": 26, "TCP_SAVE_SYN": 27, "TCP_SAVED_SYN": 28, "TCP_REPAIR_WINDOW": 29,
    "TCP_FASTOPEN_CONNECT": 30, "TCP_ULP": 31, "TCP_MD5SIG_EXT": 32, "TCP_FASTOPEN_KEY": 33,
    "TCP_FASTOPEN_NO_COOKIE": 34, "TCP_ZEROCOPY_RECEIVE": 35, "TCP_INQ": 36, "TCP_CM_INQ": 36,
    "TCP_TX_DELAY": 37,
    "MSG_FASTOPEN": 0x20000000, "MSG_ZEROCOPY": 0x4000000, "MSG_NOSIGNAL": 0x4000,
    "MSG_MORE": 0x8000, "MSG_ERRQUEUE": 0x2000, "MSG_WAITALL": 0x100, "MSG_EOR": 0x80,
    "INADDR_ANY": 0, "INADDR_LOOPBACK": 0x7F000001,
    "SIOCINQ": 0x541B, "FIONREAD": 0x541B, "SIOCOUTQ": 0x5411, "TIOCOUTQ": 0x5411,
    "SIOCOUTQNSD": 0x894B, "SIOCATMARK": 0x8905, "FIONBIO": 0x5421,
    "NULL": 0,
}  # fmt: skip


def _collect() -> dict[str, int]:
    found: dict[str, int] = {}
    for module, prefixes in (
        (socket, _PREFIXES),
        (fcntl, ("F_", "FD_")),
        (os, ("O_",)),
        (select, ("POLL", "EPOLL")),
    ):
        for name in dir(module):
            value = getattr(module, name)
            if name.startswith(prefixes) and isinstance(value, int):
                found[name] = int(value)
    return found | _MORE


#: Every constant by its name.
CONSTANTS = _collect()


def errno_name(number: int) -> str:
    """As "EAGAIN"."""
    return errno.errorcode.get(number, str(number))


def errno_number(name: str) -> int | None:
    """As 11; None for a name that Linux doesn't have."""
    value = getattr(errno, name, None)
    return value if isinstance(value, int) else None
