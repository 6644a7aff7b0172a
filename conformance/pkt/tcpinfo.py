# SPDX-License-Identifier: MIT
"""What code blocks may ask of a connection: the fields of ``struct tcp_info`` by their names."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from machnet.stack.info import SocketInfo

__all__ = ["STATES", "from_kernel", "from_machnet"]

#: Values of ``tcpi_state``.
STATES = {
    "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4,
    "TCP_FIN_WAIT2": 5, "TCP_TIME_WAIT": 6, "TCP_CLOSE": 7, "TCP_CLOSE_WAIT": 8,
    "TCP_LAST_ACK": 9, "TCP_LISTEN": 10, "TCP_CLOSING": 11,
    "TCP_CA_Open": 0, "TCP_CA_Disorder": 1, "TCP_CA_CWR": 2, "TCP_CA_Recovery": 3,
    "TCP_CA_Loss": 4, "TCPI_OPT_TIMESTAMPS": 1, "TCPI_OPT_SACK": 2, "TCPI_OPT_WSCALE": 4,
    "TCPI_OPT_ECN": 8,
}  # fmt: skip

_BYTES = ("state", "ca_state", "retransmits", "probes", "backoff", "options")
_WORDS = (
    "rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets",
    "last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh",
    "rtt", "rttvar", "snd_ssthresh", "snd_cwnd", "advmss", "reordering", "rcv_rtt", "rcv_space",
    "total_retrans",
)  # fmt: skip
#: Behind the words, in their order; later kernels have more than earlier ones.
_TAIL = (
    ("Q", "pacing_rate"), ("Q", "max_pacing_rate"), ("Q", "bytes_acked"), ("Q", "bytes_received"),
    ("I", "segs_out"), ("I", "segs_in"), ("I", "notsent_bytes"), ("I", "min_rtt"),
    ("I", "data_segs_in"), ("I", "data_segs_out"), ("Q", "delivery_rate"), ("Q", "busy_time"),
    ("Q", "rwnd_limited"), ("Q", "sndbuf_limited"), ("I", "delivered"), ("I", "delivered_ce"),
    ("Q", "bytes_sent"), ("Q", "bytes_retrans"), ("I", "dsack_dups"), ("I", "reord_seen"),
    ("I", "rcv_ooopack"), ("I", "snd_wnd"),
)  # fmt: skip
KERNEL_BYTES = 256

_MACHNET_STATES = {
    "ESTABLISHED": 1, "SYN-SENT": 2, "SYN-RECEIVED": 3, "FIN-WAIT-1": 4, "FIN-WAIT-2": 5,
    "TIME-WAIT": 6, "CLOSED": 7, "CLOSE-WAIT": 8, "LAST-ACK": 9, "LISTEN": 10, "CLOSING": 11,
}  # fmt: skip


def from_kernel(raw: bytes) -> dict[str, int]:
    """The fields of the kernel's struct, as far as it fills them."""
    fields = dict(zip(_BYTES, raw[:6], strict=True))
    fields["snd_wscale"], fields["rcv_wscale"] = raw[6] & 15, raw[6] >> 4
    at = 8
    for name in _WORDS:
        (fields[name],) = struct.unpack_from("=I", raw, at)
        at += 4
    for form, name in _TAIL:
        size = struct.calcsize(form)
        if at + size > len(raw):
            break
        (fields[name],) = struct.unpack_from(f"={form}", raw, at)
        at += size
    return {f"tcpi_{name}": value for name, value in fields.items()}


def from_machnet(info: SocketInfo) -> dict[str, int]:
    """The same of machnet's sockets, as far as they say it; windows in segments, as Linux counts."""
    mss = max(info.mss, 1)
    flight = (info.snd_nxt - info.snd_una) % 2**32
    return {
        "tcpi_state": _MACHNET_STATES[info.state],
        "tcpi_backoff": info.backoff,
        "tcpi_retransmits": info.backoff,
        "tcpi_total_retrans": info.retransmits,
        "tcpi_rto": info.rto_us,
        "tcpi_rtt": info.srtt_us,
        "tcpi_rttvar": info.rttvar_us,
        "tcpi_snd_mss": info.mss,
        "tcpi_snd_cwnd": info.cwnd // mss,
        "tcpi_snd_ssthresh": info.ssthresh // mss,
        "tcpi_unacked": -(-flight // mss),
        "tcpi_notsent_bytes": max(info.send_queue - flight, 0),
        "tcpi_snd_wnd": info.snd_wnd,
    }
