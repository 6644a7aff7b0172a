# SPDX-License-Identifier: MIT
"""NIC strings: how a NIC is named on a command line, in a call of ``Stack`` or in a configuration.

``SCHEME:REST[?key=value&...]``. Everything before the question mark belongs to the driver,
everything after it to the fault layer. What has no scheme is DPDK's: ``eth1`` means ``dpdk:eth1``, and
so do a PCI address, a MAC address and a virtual device, ``net_af_packet0,iface=veth0``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import NoReturn

#: What each driver expects behind the colon.
SCHEMES = {
    "dpdk": "dpdk:NAME, an interface, a PCI or MAC address, or a virtual device of DPDK",
    "link": "link:PATH, a UNIX socket whose other end is another process's NIC",
    "pcap": "pcap:IN[,OUT], a capture to be replayed, and a file for the answers",
    "tap": "tap:NAME, the TAP interface to attach to or to make",
    "wire": "wire:NAME, a NIC in memory",
}

#: Longest interface name of Linux, in bytes.
IFNAME_BYTES_MAX = 15

#: Names of NICs that have colons in them: PCI and MAC addresses.
_ADDRESS = re.compile(
    r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]|[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}"
)
_FAULT_NAME = re.compile(r"[a-z0-9_.]+")
#: Of the fault layer, as seen from the stack: what it sends, and what it receives.
DIRECTIONS = ("tx", "rx")
#: What the fault layer can be told; with "tx." or "rx." in front for one direction only (but seed).
#: `machnet.sim.faulty` knows what they mean.
FAULT_KEYS = (
    "latency",
    "jitter",
    "distribution",
    "bandwidth",
    "queue",
    "loss",
    "ge_bad",
    "ge_good",
    "ge_loss_bad",
    "ge_loss_good",
    "reorder",
    "reorder_delay",
    "duplicate",
    "duplicate_delay",
    "corrupt",
    "mtu",
    "keep_order",
    "seed",
)


@dataclasses.dataclass(frozen=True)
class NicSpec:
    """A NIC string in its parts.

    Attributes:
        scheme: The driver, a key of `SCHEMES`.
        rest: What the driver is to open, not empty.
        faults: Settings of the fault layer, by name, as text.
    """

    scheme: str
    rest: str
    faults: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        faults = "&".join(f"{key}={value}" for key, value in self.faults.items())
        return f"{self.scheme}:{self.rest}{'?' if faults else ''}{faults}"


def parse_nic(text: str) -> NicSpec:
    """Take a NIC string apart.

    Raises:
        ValueError: It is no NIC string, or asks for what this version does not have; the text names
            the value and what is accepted.
    """
    if any(char.isspace() or not char.isprintable() for char in text):
        _refuse(text, "it has blanks or control characters in it")
    driver, question, query = text.partition("?")
    faults = _parse_faults(text, query) if question else {}
    scheme, _, rest = driver.partition(":")
    name = driver.partition(",")[0]  # device arguments of DPDK may have colons, too
    if ":" not in name or _ADDRESS.fullmatch(name):
        scheme, rest = "dpdk", driver
    if scheme not in SCHEMES:
        _refuse(text, f"there is no driver {scheme!r}: it is {_alternatives(list(SCHEMES))}")
    if not rest:
        _refuse(text, f"it names no NIC: {SCHEMES[scheme]}")
    if scheme == "tap":
        _check_ifname(text, rest)
    return NicSpec(scheme, rest, faults)


def _refuse(text: str, why: str) -> NoReturn:
    raise ValueError(f"NIC {text!r}: {why}")


def _alternatives(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _parse_faults(text: str, query: str) -> dict[str, str]:
    faults: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not value or not _FAULT_NAME.fullmatch(key):
            _refuse(text, f"{part!r} after the '?' is not of the form key=value")
        _check_key(text, key)
        if key in faults:
            _refuse(text, f"{key!r} is given twice")
        faults[key] = value
    return faults


def _check_key(text: str, key: str) -> None:
    direction, dot, name = key.rpartition(".")
    if name in FAULT_KEYS and (not dot or (direction in DIRECTIONS and name != "seed")):
        return
    allowed = [*FAULT_KEYS, *(f"{way}.{word}" for way in DIRECTIONS for word in FAULT_KEYS[:-1])]
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(FAULT_KEYS)}"
    _refuse(text, f"the fault layer has no {key!r}: {hint}")


def _check_ifname(text: str, name: str) -> None:
    if len(name.encode()) > IFNAME_BYTES_MAX:
        _refuse(text, f"an interface name has at most {IFNAME_BYTES_MAX} bytes")
    if name in {".", ".."} or not name.isascii() or set(name) & set("/:%"):
        _refuse(text, "an interface name is ASCII without '/', ':' and '%', and not '.' or '..'")
