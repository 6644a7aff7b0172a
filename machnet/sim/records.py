# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""What happened in a simulated network, and what it waits for: packets, sockets, timers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from machnet._native import ffi, lib
from machnet.sim.units import format_ms

if TYPE_CHECKING:
    from machnet.sim.network import Network
    from machnet.sim.nodes import Host
    from machnet.stack.info import SocketInfo

__all__ = ["PacketRecord", "ends_text", "read_packets", "report", "socket_text", "timer_texts"]

#: Timers of a connection by their number in the core.
_TIMERS = {1: "retransmission", 2: "window probe", 3: "delayed ACK", 4: "waiting", 5: "keep-alive"}
_WAITING = {
    "TIME-WAIT": "the end of TIME-WAIT",
    "FIN-WAIT-2": "the end of FIN-WAIT-2",
    "SYN-SENT": "the end of the attempt",
    "SYN-RECEIVED": "the end of the attempt",
}


@dataclass(frozen=True)
class PacketRecord:
    """A frame as it left a node, or as it reached one.

    Attributes:
        t_ns: When.
        host: Name of the node.
        direction: "out": it left the node; "in": it reached it.
        frame: Its bytes, with the Ethernet header.
        link: Name of the link's direction; "" where there is none.
        fate: What became of it, such as "lost", "delayed 1.000 ms" or "corrupted bit 123"; "" when
            nothing did.
        dropped: Whether it was lost there.
        nth: Its number on the link's direction, as in `machnet.sim.faults.Drop`.
    """

    t_ns: int
    host: str
    direction: Literal["in", "out"]
    frame: bytes
    link: str
    fate: str
    dropped: bool
    nth: int

    def __repr__(self) -> str:
        return f"<PacketRecord {str(self).strip()}>"

    def __str__(self) -> str:
        """One line in the style of tcpdump."""
        from machnet.testing import Packet

        arrow = ">" if self.direction == "out" else "<"
        fate = f"  [{self.fate}]" if self.fate else ""
        return (
            f"{format_ms(self.t_ns):>14} {self.host} {arrow} {Packet(self.frame).summary()}{fate}"
        )


def _fate(record: Any) -> str:
    buf = ffi.new("char[]", 256)
    lib.mn_simnet_fate(record, buf, 256)
    return str(ffi.string(buf).decode())


def read_packets(net: Network, last: int | None) -> list[PacketRecord]:
    """The record of a network, oldest first."""
    native = net._native
    end, first = lib.mn_simnet_recorded(native), lib.mn_simnet_oldest(native)
    if last is not None:
        first = max(first, end - last)
    out, size = ffi.new("struct mn_sim_record *"), 65536 + 64
    buf = ffi.new("uint8_t[]", size)
    found = []
    for seq in range(first, end):
        if lib.mn_simnet_record(native, seq, out, buf, size) < 0:
            continue
        link = net.links[out.link].directions[out.dir].name if out.link >= 0 else ""
        found.append(
            PacketRecord(
                t_ns=int(out.t_ns),
                host=net._nodes[out.node].name,
                direction="out" if out.out else "in",
                frame=bytes(ffi.buffer(buf, min(out.kept, size))),
                link=link,
                fate=_fate(out),
                dropped=bool(lib.mn_simnet_lost(out)),
                nth=int(out.frame_no),
            )
        )
    return found


def ends_text(info: SocketInfo) -> str:
    """The addresses of a connection, or of a listener."""
    local = f"{info.local[0]}:{info.local[1]}"
    return local if info.state == "LISTEN" else f"{local}-{info.remote[0]}:{info.remote[1]}"


def socket_text(host: str, info: SocketInfo) -> str:
    """One line: "h1 10.0.0.1:80-10.0.0.2:49152 ESTABLISHED, 1448 bytes not acknowledged"."""
    parts = [info.state]
    if info.state == "LISTEN":
        return f"{host} {ends_text(info)} LISTEN"  # its send queue is the backlog's size
    if info.send_queue:
        parts.append(f"{info.send_queue} bytes not acknowledged")
    if info.recv_queue:
        parts.append(f"{info.recv_queue} bytes to be read")
    if info.state == "ESTABLISHED" and info.snd_wnd == 0:
        parts.append("the peer's window is closed")
    if info.backoff:
        parts.append(f"retransmitted {info.backoff} times in a row")
    return f"{host} {ends_text(info)} {', '.join(parts)}"


def timer_texts(host: Host) -> list[str]:
    """The armed timers of a host's connections, the first to fire first."""
    now, native = host.net.now_ns, host.net._native
    found = []
    for info in host.sockets():
        if info.timer_ns is None:
            continue
        kind = _TIMERS.get(info.timer, "timer")
        if kind == "waiting":
            kind = _WAITING.get(info.state, "the end of waiting")
        # The host's timers are in its own time.
        left = max(int(lib.mn_simnet_when(native, host.number, info.timer_ns)) - now, 0)
        found.append((left, f"{host.name} {ends_text(info)} {kind} in {format_ms(left)}"))
    return [text for _, text in sorted(found)]


def report(net: Network, *, limit: int = 40) -> str:
    """Why nothing goes on: time, hosts that are down, links that are blocked, sockets and timers."""
    lines = [f"virtual time {format_ms(net.now_ns)}, seed {net.seed}"]
    for host in net.hosts:
        if not host.up:
            lines.append(f"{host.name} is down (crashed)")
        elif host.is_paused:
            lines.append(f"{host.name} is paused")
    lines += [f"{fault} since {format_ms(fault.since_ns)}" for fault in net._control.active]
    sockets = [socket_text(host.name, info) for host, info in net.sockets()]
    lines += ["sockets:", *(f"  {text}" for text in sockets)] if sockets else ["no sockets"]
    tasks = net._waiting()
    lines += ["coroutines:", *(f"  {text}" for text in tasks)] if tasks else []
    timers = net.timers()
    lines += ["timers:", *(f"  {text}" for text in timers)] if timers else ["no timers"]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], f"... and {len(lines) - limit + 1} lines more"]
    return "\n".join(lines)
