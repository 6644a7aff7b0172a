# SPDX-License-Identifier: MIT
"""DPDK ports as operators see them: what they are, what they have counted, and when one is unplugged."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machnet import Stack
    from machnet.dpdk import Port as DpdkPort
    from machnet.sidecar.log import Log

__all__ = ["PORT_LEVELS", "PORT_STATS", "PortWatch", "describe", "route_log", "state"]

_LOGGER = "machnet.dpdk"
#: How often ports are looked at, in seconds: as often as the driver's own watcher does.
_LOOK_S = 0.5
#: Drivers that get what the kernel sends on this machine, before a card has filled in checksums.
_FROM_THE_KERNEL = frozenset({"net_af_packet", "net_af_xdp"})

#: What a port counts.
PORT_STATS = {
    "rx_frames": "frames received from the port",
    "rx_bytes": "bytes received from the port",
    "rx_bad": "frames received that are cut short or marked wrong",
    "tx_frames": "frames given to the port",
    "tx_bytes": "bytes given to the port",
    "tx_full": "bursts cut short: the transmit ring was full",
    "tx_refused": "frames that the driver can't send",
    "tx_down": "frames lost while the device was unplugged",
    "no_mbuf": "times that there was no packet for sending",
    "unplugged": "times that the device went away",
    "replugged": "times that the device came back",
    "ipackets": "frames received, as the driver counts",
    "opackets": "frames sent, as the driver counts",
    "ibytes": "bytes received, as the driver counts",
    "obytes": "bytes sent, as the driver counts",
    "imissed": "frames dropped by the device: a receive queue was full",
    "ierrors": "frames received with errors",
    "oerrors": "frames that could not be sent",
    "rx_nombuf": "times that the driver had no packet to receive into",
}
#: What a port has now.
PORT_LEVELS = {
    "mbufs": "packets in the port's pools",
    "mbufs_free": "packets in the port's pools that are free",
    "link_up": "whether the link is up",
    "link_mbit": "speed of the link in Mbit/s, 0 when it is not known",
    "present": "whether the device is plugged in",
}


def describe(port: DpdkPort) -> dict[str, Any]:
    """What a port is: driver, device, link, queues, how engines that sleep are woken, what is missing."""
    info = port.info()
    return {
        "driver": info["driver"],
        "device": info["device"],
        "link": link_text(info),
        "queues": info["queues"],
        "rx_desc": info["rx_desc"],
        "tx_desc": info["tx_desc"],
        "wake": info["wake"],
        "rss": "known" if info["rss_known"] else "unknown" if info["rss"] else "none",
        "missing": list(port.missing),
    }


def link_text(info: dict[str, Any]) -> str:
    """The state of a port's link, for people."""
    if not info["present"]:
        return "unplugged"
    if not info["link_up"]:
        return "down"
    return f"up {info['link_mbit']} Mbit/s" if info["link_mbit"] else "up"


def state(name: str, port: DpdkPort) -> dict[str, Any]:
    """A port's row in the answer to ``stat``.

    Args:
        name: Of its NIC.
        port: The port.
    """
    stats, info = port.stats(), port.info()
    values = {**stats, **{key: int(info[key]) for key in ("link_up", "link_mbit", "present")}}
    return {
        "nic": name,
        **describe(port),
        "stats": {key: values[key] for key in PORT_STATS},
        "levels": {key: values[key] for key in PORT_LEVELS},
    }


class _ToLog(logging.Handler):
    """Hands what DPDK and machnet's part of it log to the sidecar's log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write = self._log.debug
        # DPDK's own lines are many, and what matters of them is in an error or a counter.
        if record.name == _LOGGER and record.levelno >= logging.INFO:
            serious = record.levelno >= logging.WARNING
            write = self._log.warning if serious else self._log.info
        write("dpdk", said=record.getMessage())


def route_log(log: Log) -> logging.Handler:
    """Send ``machnet.dpdk`` to a sidecar's log; what is returned is to be handed to `unroute_log`."""
    handler = _ToLog(log)
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    return handler


def unroute_log(handler: logging.Handler) -> None:
    """Undo `route_log`."""
    logger = logging.getLogger(_LOGGER)
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class PortWatch:
    """A thread that logs when a port is unplugged or back, when its link goes or comes, and checksums.

    Not the controller's loop: plugging a device in again may take a driver a while, and a question to it
    then waits as long.

    Args:
        ports: Each with the name of its NIC, and its engines. Without one there is no thread.
        log: Where it is said.
    """

    def __init__(self, ports: Sequence[tuple[str, DpdkPort, Sequence[Stack]]], log: Log) -> None:
        self._ports, self._log = ports, log
        self._seen = [(port.stats(), port.info()) for _, port, _ in ports]
        # By place: ports on which wrong checksums are still looked for.
        self._unsure = {
            at for at, (_, info) in enumerate(self._seen) if info["driver"] in _FROM_THE_KERNEL
        }
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="machnet-ports", daemon=True)
        if ports:
            self._thread.start()

    def _work(self) -> None:
        while not self._end.wait(_LOOK_S):
            for at, (name, port, _) in enumerate(self._ports):
                now = port.stats(), port.info()
                self._compare(name, *self._seen[at], *now)
                if at in self._unsure and now[0]["rx_frames"] > self._seen[at][0]["rx_frames"]:
                    self._look_at_checksums(at)
                self._seen[at] = now

    def _look_at_checksums(self, at: int) -> None:
        """The most usual reason why nobody gets an answer on a virtual pair, said once."""
        name, _, stacks = self._ports[at]
        wrong = sum(stack.stats()["drop_tcp_csum"] for stack in stacks)
        if wrong:
            self._unsure.remove(at)
            self._log.warning(
                "wrong_checksums",
                nic=name,
                segments=wrong,
                remedy="a kernel at the other end of a virtual pair leaves them to a card: "
                "ethtool -K INTERFACE tx off, there",
            )

    def _compare(
        self,
        name: str,
        was: dict[str, int],
        was_info: dict[str, Any],
        stats: dict[str, int],
        info: dict[str, Any],
    ) -> None:
        device = {"nic": name, "device": info["device"]}
        # By the counters: it may have come back, and gone again, since the last look.
        if stats["unplugged"] > was["unplugged"]:
            self._log.warning("nic_unplugged", **device, times=stats["unplugged"])
        if stats["replugged"] > was["replugged"]:
            lost = stats["tx_down"] - was["tx_down"]
            self._log.info("nic_back", **device, link=link_text(info), tx_down=lost)
        elif info["present"] and was_info["present"] and info["link_up"] != was_info["link_up"]:
            write = self._log.info if info["link_up"] else self._log.warning
            write("nic_link", **device, link=link_text(info))

    def close(self) -> None:
        """End the thread. Again: nothing."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()
