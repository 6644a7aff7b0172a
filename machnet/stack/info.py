# SPDX-License-Identifier: MIT
"""What a stack says of its connections and of itself."""

from __future__ import annotations

from typing import Any

import msgspec

from machnet._native import ffi, lib
from machnet.stack.names import format_ip, protocol_name

__all__ = ["TCP_STATES", "SocketInfo", "stat_names"]

_NEVER: int = lib.MN_NEVER
_STAT_NAMES: list[str] = []

#: Names of the states of RFC 9293, 3.3.2, by their number in the core.
TCP_STATES = (
    "CLOSED",
    "LISTEN",
    "SYN-SENT",
    "SYN-RECEIVED",
    "ESTABLISHED",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
)


class SocketInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One connection or listener, as `Stack.sockets` lists it.

    Bytes and sequence numbers are those of the byte stream, sequence numbers and windows of "udp" count
    packets; times are microseconds.

    Attributes:
        local: Our address and port.
        remote: The peer's; ("0.0.0.0", 0) for a listener.
        state: One of `TCP_STATES`.
        protocol: "udp", "tcp" or "stream"; "tcp" for either of the latter once no channel has it any more.
        channel: Number of the channel that it belongs to; None once its application has closed it.
        flow: Its id there; None as well.
        mss: Payload bytes of a full segment.
        snd_una: First sequence number not acknowledged.
        snd_nxt: Next sequence number to be sent.
        rcv_nxt: Next sequence number expected.
        snd_wnd: Window that the peer offers, bytes.
        rcv_wnd: Window that we offer, bytes.
        cwnd: Congestion window, bytes.
        ssthresh: Slow-start threshold, bytes.
        send_queue: Bytes to be sent or acknowledged.
        recv_queue: Bytes to be read.
        srtt_us: Smoothed round-trip time.
        rttvar_us: Its variation.
        rto_us: Retransmission timeout.
        retransmits: Segments sent again.
        backoff: How often the timeout has been doubled.
        timer_ns: When the next timer is due, on the stack's clock; None: none is armed.
        timer: Number of its kind, as in the core.
    """

    local: tuple[str, int]
    remote: tuple[str, int]
    state: str
    protocol: str
    channel: int | None
    flow: int | None
    mss: int
    snd_una: int
    snd_nxt: int
    rcv_nxt: int
    snd_wnd: int
    rcv_wnd: int
    cwnd: int
    ssthresh: int
    send_queue: int
    recv_queue: int
    srtt_us: int
    rttvar_us: int
    rto_us: int
    retransmits: int
    backoff: int
    timer_ns: int | None
    timer: int

    @classmethod
    def from_native(cls, info: Any) -> SocketInfo:
        """A Python copy of a ``struct mn_sock_info``."""
        nobodys = info.flow == lib.MN_FLOW_NONE
        return cls(
            local=(format_ip(info.local_ip), info.local_port),
            remote=(format_ip(info.remote_ip), info.remote_port),
            state=TCP_STATES[info.state],
            protocol=protocol_name(info.proto),
            channel=None if nobodys else info.lane,
            flow=None if nobodys else info.flow,
            mss=info.mss,
            snd_una=info.snd_una,
            snd_nxt=info.snd_nxt,
            rcv_nxt=info.rcv_nxt,
            snd_wnd=info.snd_wnd,
            rcv_wnd=info.rcv_wnd,
            cwnd=info.cwnd,
            ssthresh=info.ssthresh,
            send_queue=info.sndq_bytes,
            recv_queue=info.rcvq_bytes,
            srtt_us=info.srtt_us,
            rttvar_us=info.rttvar_us,
            rto_us=info.rto_us,
            retransmits=info.retransmits,
            backoff=info.backoff,
            timer_ns=None if info.timer_ns == _NEVER else info.timer_ns,
            timer=info.timer_kind,
        )


def stat_names() -> list[str]:
    """The names of the engine's counters, in their order."""
    if not _STAT_NAMES:
        i = 0
        while (name := lib.mn_host_stat_name(i)) != ffi.NULL:
            _STAT_NAMES.append(ffi.string(name).decode())
            i += 1
    return _STAT_NAMES
