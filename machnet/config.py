# SPDX-License-Identifier: MIT
"""Settings of the engine and of channels: one named limit each, with its unit and its range.

The C core has the defaults; what is left out here is what the core says. `Settings` has the fields of
``struct mn_config`` under the same names.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ChannelSettings", "Settings"]

_U32 = 2**32 - 1


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and timers of one engine, as keyword arguments of `machnet.Stack`."""

    # fmt: off
    flows_max: Annotated[int, Meta(ge=1, le=1 << 20, description="connections at once")] | UnsetType = UNSET
    listeners_max: Annotated[int, Meta(ge=1, le=65535, description="listeners at once")] | UnsetType = UNSET
    neighbors_max: Annotated[int, Meta(ge=8, le=65536, description="entries of the ARP table")] | UnsetType = UNSET
    lanes_max: Annotated[int, Meta(ge=1, le=1024, description="channels at once")] | UnsetType = UNSET
    ooo_blocks_max: Annotated[int, Meta(ge=1, le=_U32, description="blocks of 2 KiB for out-of-order data, all connections together")] | UnsetType = UNSET
    ooo_ranges_max: Annotated[int, Meta(ge=4, le=1024, description="per connection: separate ranges of out-of-order data")] | UnsetType = UNSET
    sack_ranges_max: Annotated[int, Meta(ge=4, le=1024, description="per connection: ranges of the send scoreboard")] | UnsetType = UNSET
    loop_slots: Annotated[int, Meta(ge=1, le=_U32, description="frames from the engine to itself, a power of two")] | UnsetType = UNSET
    poll_burst: Annotated[int, Meta(ge=1, le=256, description="frames received per pass")] | UnsetType = UNSET
    poll_descs: Annotated[int, Meta(ge=1, le=_U32, description="descriptors taken per channel and pass")] | UnsetType = UNSET
    mss_min_bytes: Annotated[int, Meta(ge=1, le=65495, description="floor of the peer's MSS option, bytes")] | UnsetType = UNSET
    rcv_buf_bytes: Annotated[int, Meta(ge=1, le=1 << 30, description="limit of a connection's receive window, bytes")] | UnsetType = UNSET
    initial_window: Annotated[int, Meta(ge=1, le=1024, description="initial congestion window, segments (RFC 6928)")] | UnsetType = UNSET
    rto_initial_us: Annotated[int, Meta(ge=1, le=_U32, description="retransmission timeout before the first measurement (RFC 6298), us")] | UnsetType = UNSET
    rto_min_us: Annotated[int, Meta(ge=1, le=_U32, description="least retransmission timeout, us")] | UnsetType = UNSET
    rto_max_us: Annotated[int, Meta(ge=1, le=_U32, description="largest retransmission timeout, us")] | UnsetType = UNSET
    delack_us: Annotated[int, Meta(ge=0, le=500_000, description="longest delay of an acknowledgement (RFC 1122: at most 500 ms), us; 0: none")] | UnsetType = UNSET
    msl_ms: Annotated[int, Meta(ge=0, le=_U32, description="maximum segment lifetime, ms; TIME-WAIT lasts twice as long")] | UnsetType = UNSET
    fin_wait2_ms: Annotated[int, Meta(ge=0, le=_U32, description="how long a half-closed connection that no application owns waits for the peer, ms")] | UnsetType = UNSET
    r1_retries: Annotated[int, Meta(ge=0, le=255, description="retransmissions until the neighbour is doubted (R1 of RFC 9293, 3.8.3)")] | UnsetType = UNSET
    user_timeout_ms: Annotated[int, Meta(ge=1, le=_U32, description="how long data may stay unacknowledged (R2 of RFC 9293, 3.8.3), ms")] | UnsetType = UNSET
    syn_timeout_ms: Annotated[int, Meta(ge=1, le=_U32, description="the same for SYN, ms")] | UnsetType = UNSET
    syn_backlog_max: Annotated[int, Meta(ge=1, le=_U32, description="half-open connections per listener")] | UnsetType = UNSET
    app_exit_linger_ms: Annotated[int, Meta(ge=0, le=_U32, description="how long the flows of a closed channel may go on to send, ms")] | UnsetType = UNSET
    eof_linger_ms: Annotated[int, Meta(ge=0, le=_U32, description="how long a framed flow stays open for answers after the peer's FIN, ms")] | UnsetType = UNSET
    keepalive_idle_s: Annotated[int, Meta(ge=1, le=1 << 20, description="idle time before the first keep-alive, s (only on flows that ask for it)")] | UnsetType = UNSET
    keepalive_interval_s: Annotated[int, Meta(ge=1, le=1 << 20, description="time between keep-alives, s")] | UnsetType = UNSET
    keepalive_count: Annotated[int, Meta(ge=1, le=255, description="unanswered keep-alives until the flow is given up")] | UnsetType = UNSET
    large_progress_ms: Annotated[int, Meta(ge=1, le=_U32, description="a message over 64 KiB without progress for that long loses its flow, ms")] | UnsetType = UNSET
    arp_reachable_ms: Annotated[int, Meta(ge=1, le=_U32, description="how long a neighbour's answer is believed, ms")] | UnsetType = UNSET
    arp_retry_ms: Annotated[int, Meta(ge=1, le=_U32, description="time between ARP requests, ms")] | UnsetType = UNSET
    arp_retries: Annotated[int, Meta(ge=1, le=255, description="ARP requests until a neighbour counts as unreachable")] | UnsetType = UNSET
    arp_queue_pkts: Annotated[int, Meta(ge=1, le=_U32, description="packets that wait for one neighbour's address")] | UnsetType = UNSET
    rst_per_s: Annotated[int, Meta(ge=0, le=_U32, description="RST segments for closed ports per second")] | UnsetType = UNSET
    icmp_per_s: Annotated[int, Meta(ge=0, le=_U32, description="ICMP messages per second")] | UnsetType = UNSET
    challenge_per_s: Annotated[int, Meta(ge=0, le=_U32, description="challenge ACKs per second and connection (RFC 5961)")] | UnsetType = UNSET
    mnp_flows_max: Annotated[int, Meta(ge=1, le=1 << 20, description="connections over UDP at once (they count among flows_max too)")] | UnsetType = UNSET
    mnp_rto_initial_us: Annotated[int, Meta(ge=1, le=_U32, description="messages over UDP: retransmission timeout before the first measurement, us")] | UnsetType = UNSET
    mnp_rto_min_us: Annotated[int, Meta(ge=1, le=_U32, description="messages over UDP: least retransmission timeout, us")] | UnsetType = UNSET
    mnp_rto_max_us: Annotated[int, Meta(ge=1, le=_U32, description="messages over UDP: largest retransmission timeout, us")] | UnsetType = UNSET
    mnp_delack_us: Annotated[int, Meta(ge=0, le=500, description="messages over UDP, extended mode: longest delay of an acknowledgement that an answer is likely to carry, us; 0: none")] | UnsetType = UNSET
    mnp_window_packets: Annotated[int, Meta(ge=2, le=256, description="messages over UDP: packets in flight per flow, and largest window promised to a peer")] | UnsetType = UNSET
    mnp_user_timeout_ms: Annotated[int, Meta(ge=1, le=_U32, description="messages over UDP: how long a peer may be silent while it owes an answer, ms")] | UnsetType = UNSET
    mnp_msl_ms: Annotated[int, Meta(ge=1, le=_U32, description="messages over UDP: a flow is remembered twice as long after its end, ms")] | UnsetType = UNSET
    mnp_extended: Annotated[bool, Meta(description="messages over UDP: offer extended mode and accept it; False: speak as the C++ Machnet does")] | UnsetType = UNSET
    ttl: Annotated[int, Meta(ge=1, le=255, description="TTL of packets sent")] | UnsetType = UNSET
    dscp: Annotated[int, Meta(ge=0, le=63, description="DSCP of packets sent")] | UnsetType = UNSET
    timestamps: Annotated[bool, Meta(description="negotiate timestamps (RFC 7323)")] | UnsetType = UNSET
    sack: Annotated[bool, Meta(description="negotiate selective acknowledgements (RFC 2018)")] | UnsetType = UNSET
    wscale: Annotated[bool, Meta(description="negotiate window scaling (RFC 7323)")] | UnsetType = UNSET
    nagle_framed: Annotated[bool, Meta(description="Nagle's algorithm on framed flows")] | UnsetType = UNSET
    nagle_stream: Annotated[bool, Meta(description="Nagle's algorithm on streams")] | UnsetType = UNSET
    # fmt: on

    def given(self) -> dict[str, int | bool]:
        """The settings that were named, without those left to the core."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in values if value is not UNSET}


class ChannelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of one channel, as keyword arguments of `machnet.Stack.attach`.

    Memory is touched as it is used: what is never used costs address space only. A message needs
    ``size / buf_bytes`` buffers of both sides; the largest one (8 MiB) fits the default.
    """

    # fmt: off
    buf_bytes: Annotated[int, Meta(ge=512, le=65536, description="bytes of a buffer, a power of two")] = 2048
    tx_bufs: Annotated[int, Meta(ge=16, le=1 << 20, description="buffers for sending")] = 8192
    rx_bufs: Annotated[int, Meta(ge=16, le=1 << 20, description="buffers for receiving")] = 8192
    flows_max: Annotated[int, Meta(ge=1, le=65535, description="flows at once")] = 4096
    ctl_slots: Annotated[int, Meta(ge=16, le=4096, description="slots of the control rings, a power of two: bounds connects under way and accepted flows not yet seen")] = 2048
    # fmt: on


def convert(kind: type[Any], values: Mapping[str, Any], what: str) -> Any:
    """``values`` as a struct of ``kind``.

    Raises:
        TypeError: A name that does not exist (the text has the nearest one), or a value of the
            wrong type.
        ValueError: A value out of its range.
    """
    names = kind.__struct_fields__
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{what} has no setting {name!r}{hint}")
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        text = f"{what}: {error}"
        wrong_type = "Expected `int`, got" in text or "Expected `bool`, got" in text
        raise (TypeError if wrong_type else ValueError)(text) from None
