# SPDX-License-Identifier: MIT
"""What is known to be otherwise: case, arm, clause, reason.

The table is strict: a case that is listed here must fail on that arm, and by what it asserts. When it
passes, the run fails, and the line goes.
"""

from __future__ import annotations

import dataclasses

__all__ = ["DEVIATIONS", "Deviation", "find"]


@dataclasses.dataclass(frozen=True)
class Deviation:
    """One arm's departure from what a case asks.

    Attributes:
        case: "topic/name", as on the page; with "[...]" at the end for one variant only.
        arm: "linux" or "machnet".
        clause: What it departs from.
        reason: Why it is so, in a sentence.
    """

    case: str
    arm: str
    clause: str
    reason: str


DEVIATIONS = (
    Deviation(
        "data_out/maxseg_is_told",
        "machnet",
        "Linux TCP_MAXSEG",
        "machnet's TCP_MAXSEG bounds what is sent; the SYN says what the MTU allows.",
    ),
    Deviation(
        "data_out/host_unreachable_while_connecting",
        "linux",
        "RFC 9293 SHLD-25",
        'Linux ends an open in SYN-SENT at once with the error of any ICMP "unreachable".',
    ),
    Deviation(
        "data_in/dsack_of_a_partial_duplicate",
        "machnet",
        "RFC 2883 4.2.1",
        "machnet tells whole duplicates only; of partial ones the sender learns nothing that it needs.",
    ),
    Deviation(
        "flow_control/receive_buffer_is_the_first_window",
        "machnet",
        "POSIX SO_RCVBUF",
        "Options of a socket count from accept() or the end of connect() on; the SYN has the stack's window.",
    ),
    Deviation(
        "flow_control/smaller_window_for_the_same_data",
        "linux",
        "RFC 9293 3.10.7.4",
        "Linux believes a window that shrinks only in an ACK that acknowledges or carries something new.",
    ),
    Deviation(
        "close/reset_in_time_wait",
        "linux",
        "RFC 1337 3",
        "Linux lets a RST end TIME-WAIT unless tcp_rfc1337 is set.",
    ),
    Deviation(
        "timestamps/missing_timestamp",
        "linux",
        "RFC 7323 3.2",
        "Linux takes segments without the timestamp that was agreed on.",
    ),
    Deviation(
        "errno/send[fresh]",
        "linux",
        "POSIX send()",
        "Linux says EPIPE of a socket that was never connected.",
    ),
    Deviation(
        "errno/send[bound]",
        "linux",
        "POSIX send()",
        "Linux says EPIPE of a socket that was never connected.",
    ),
    Deviation(
        "errno/send[listening]",
        "linux",
        "POSIX send()",
        "Linux says EPIPE of a socket that was never connected.",
    ),
    Deviation(
        "errno/connect[listening]",
        "linux",
        "POSIX connect()",
        "The errno is EISCONN: Linux and machnet agree that it fails, and neither says EOPNOTSUPP.",
    ),
    Deviation(
        "errno/connect[listening]",
        "machnet",
        "POSIX connect()",
        "The errno is EINVAL: Linux and machnet agree that it fails, and neither says EOPNOTSUPP.",
    ),
    Deviation(
        "errno/shutdown[listening]",
        "linux",
        "POSIX shutdown()",
        "Linux ends what the socket was doing: it stops listening, or connecting.",
    ),
    Deviation(
        "errno/shutdown[connecting]",
        "linux",
        "POSIX shutdown()",
        "Linux ends what the socket was doing: it stops listening, or connecting.",
    ),
    Deviation(
        "errno/bind[both closed]",
        "linux",
        "POSIX bind()",
        "When its connection has ended, a socket of Linux can be bound again.",
    ),
    Deviation(
        "errno/bind[reset]",
        "linux",
        "POSIX bind()",
        "When its connection has ended, a socket of Linux can be bound again.",
    ),
    Deviation(
        "errno/bind[reset and told]",
        "linux",
        "POSIX bind()",
        "When its connection has ended, a socket of Linux can be bound again.",
    ),
    Deviation(
        "errno/bind[refused]",
        "machnet",
        "POSIX bind()",
        "A socket whose connect() has failed can be bound only after it was told so.",
    ),
    Deviation(
        "data_in/fragments",
        "machnet",
        "RFC 791 3.2",
        "machnet reassembles nothing: TCP sends no fragments, and reassembly is an attack surface.",
    ),
    Deviation(
        "data_in/urgent_data_stay_in_line",
        "linux",
        "RFC 9293 3.8.5",
        "Linux takes the last urgent octet out of the stream, as BSD did; SO_OOBINLINE leaves it there.",
    ),
)


def find(case: str, variant: str, arm: str) -> Deviation | None:
    """The deviation of a case on an arm, if there is one."""
    for deviation in DEVIATIONS:
        if deviation.arm == arm and deviation.case in {case, f"{case}[{variant}]"}:
            return deviation
    return None
