/* SPDX-License-Identifier: MIT */
/* Every counter of the engine, one per reason: X(name, what it counts). */
#ifndef MN_STATS_H
#define MN_STATS_H

#include <stdint.h>

#define MN_STATS(X)                                                                                \
    X(rx_frames, "frames received")                                                                \
    X(rx_bytes, "bytes received")                                                                  \
    X(tx_frames, "frames handed to the NIC")                                                       \
    X(tx_bytes, "bytes handed to the NIC")                                                         \
    X(loop_frames, "frames from the engine to itself")                                             \
    X(handoff_sent, "frames handed over to another engine of this address")                        \
    X(handoff_received, "frames that another engine of this address handed over")                  \
    X(drop_handoff_full, "frame lost: no room on the way to another engine")                       \
    X(drop_eth_short, "frame shorter than an Ethernet header")                                     \
    X(drop_eth_type, "EtherType that is neither IPv4 nor ARP (VLAN, 802.3 and others)")            \
    X(drop_eth_dst, "frame for another station")                                                   \
    X(drop_ip_short, "packet shorter than its IPv4 header")                                        \
    X(drop_ip_version, "IP version is not 4")                                                      \
    X(drop_ip_length, "IPv4 lengths do not agree")                                                 \
    X(drop_ip_csum, "IPv4 header checksum wrong")                                                  \
    X(drop_ip_fragment, "IPv4 fragment (not reassembled)")                                         \
    X(drop_ip_src, "IPv4 source that no host may have, or our own address from outside")           \
    X(drop_ip_dst, "IPv4 destination that is not ours")                                            \
    X(drop_ip_proto, "IPv4 protocol that is not served")                                           \
    X(drop_arp_bad, "ARP packet malformed or not Ethernet/IPv4")                                   \
    X(drop_arp_other, "ARP request for another host")                                              \
    X(drop_arp_unsolicited, "ARP mapping nobody asked for, not learnt")                            \
    X(drop_arp_queue, "packets dropped while their neighbour was being resolved")                  \
    X(drop_arp_full, "no room in the neighbour table")                                             \
    X(drop_icmp_bad, "ICMP message malformed or checksum wrong")                                   \
    X(drop_icmp_ignored, "ICMP message of a kind that is ignored (source quench and others)")      \
    X(drop_icmp_quote, "ICMP error whose quoted packet matches nothing in flight")                 \
    X(drop_icmp_limited, "ICMP answers withheld by the rate limit")                                \
    X(drop_udp_bad, "UDP datagram malformed or checksum wrong")                                    \
    X(drop_udp_port, "UDP datagram for a port nobody listens on")                                  \
    X(drop_tcp_short, "TCP segment shorter than its header")                                       \
    X(drop_tcp_offset, "TCP data offset below 5 or beyond the segment")                            \
    X(drop_tcp_csum, "TCP checksum wrong")                                                         \
    X(drop_tcp_port, "TCP segment for a port nobody listens on")                                   \
    X(drop_tcp_state, "TCP segment without the flags its state needs")                             \
    X(drop_tcp_land, "TCP segment from an address and port to itself")                             \
    X(drop_tcp_seq, "TCP segment outside the receive window")                                      \
    X(drop_tcp_ack, "TCP segment with an unacceptable acknowledgement")                            \
    X(drop_tcp_paws, "TCP segment with an old timestamp (PAWS)")                                   \
    X(drop_tcp_no_ts, "TCP segment without the timestamp that was negotiated")                     \
    X(drop_tcp_dup, "TCP payload bytes received before")                                           \
    X(drop_tcp_nobuf, "TCP payload bytes not acknowledged because nothing could hold them")        \
    X(drop_tcp_closed, "TCP payload that arrived after the application gave the flow up")          \
    X(drop_syn_backlog, "SYN dropped: the listener's backlog is full")                             \
    X(tcp_half_open_evicted, "half-open connections given up for newer ones")                      \
    X(drop_syn_table, "SYN dropped: no connection or flow slot free")                              \
    X(drop_rst_limited, "RST withheld by the rate limit")                                          \
    X(drop_challenge_limited, "challenge ACK withheld by the rate limit")                          \
    X(drop_tx_nobuf, "frame not sent: the NIC had no packet buffer")                               \
    X(drop_tx_queue, "frame not sent: the transmit queue was full")                                \
    X(drop_loop_full, "frame to ourselves dropped: loop queue full")                               \
    X(drop_stale_flow, "descriptors for a flow that has ended")                                    \
    X(arp_requests, "ARP requests sent")                                                           \
    X(arp_replies, "ARP replies sent")                                                             \
    X(icmp_echo_replies, "ICMP echo replies sent")                                                 \
    X(icmp_unreach_sent, "ICMP port unreachable sent")                                             \
    X(icmp_errors, "ICMP errors that were delivered to a connection")                              \
    X(tcp_active_opens, "connections begun by us")                                                 \
    X(tcp_passive_opens, "connections begun by a peer")                                            \
    X(tcp_established, "connections that reached ESTABLISHED")                                     \
    X(tcp_resets_sent, "RST segments sent")                                                        \
    X(tcp_resets_received, "connections ended by a peer's RST")                                    \
    X(tcp_challenge_acks, "challenge ACKs sent (RFC 5961)")                                        \
    X(tcp_retransmits, "segments retransmitted")                                                   \
    X(tcp_rto, "retransmission timeouts")                                                          \
    X(tcp_fast_recoveries, "entries into fast recovery")                                           \
    X(tcp_limited_transmits, "segments sent by limited transmit (RFC 3042)")                       \
    X(tcp_rescue_retransmits, "rescue retransmissions (RFC 6675)")                                 \
    X(tcp_probes, "zero-window probes sent")                                                       \
    X(tcp_delayed_acks, "delayed ACK timer expirations")                                           \
    X(tcp_dsack_sent, "duplicate-SACK blocks sent (RFC 2883)")                                     \
    X(tcp_dsack_received, "duplicate-SACK blocks received")                                        \
    X(tcp_sack_invalid, "SACK blocks that cannot be true, ignored")                                \
    X(tcp_timeouts, "connections given up after R2 or the user timeout")                           \
    X(tcp_keepalive_drops, "connections given up by keep-alive")                                   \
    X(tcp_time_wait_reused, "SYNs accepted in TIME-WAIT")                                          \
    X(tcp_ooo_evicted, "out-of-order bytes evicted for room")                                      \
    X(drop_mnp_port, "mnp SYN for a port nobody listens on")                                       \
    X(drop_mnp_state, "mnp packet that no connection, or its state, expects")                      \
    X(drop_mnp_seq, "mnp packet outside the receive window")                                       \
    X(drop_mnp_ack, "mnp packet with an impossible acknowledgement")                               \
    X(drop_mnp_dup, "mnp DATA and FIN received before")                                            \
    X(drop_mnp_nobuf, "mnp packets not acknowledged because nothing could hold them")              \
    X(drop_mnp_closed, "mnp DATA that arrived after the application gave the flow up")             \
    X(mnp_active_opens, "mnp connections begun by us")                                             \
    X(mnp_passive_opens, "mnp connections begun by a peer")                                        \
    X(mnp_established, "mnp connections that reached ESTABLISHED")                                 \
    X(mnp_plain, "of these, in plain mode")                                                        \
    X(mnp_resets_sent, "mnp RST packets sent")                                                     \
    X(mnp_resets_received, "mnp connections ended by a peer's RST")                                \
    X(mnp_retransmits, "mnp packets retransmitted")                                                \
    X(mnp_rto, "mnp retransmission timeouts")                                                      \
    X(mnp_fast_recoveries, "mnp losses found without a timeout")                                   \
    X(mnp_probes, "mnp tail loss probes sent (RFC 8985)")                                          \
    X(mnp_window_probes, "mnp packets sent into a closed window")                                  \
    X(mnp_acks_delayed, "mnp ACKs that were put off and that no answer carried")                   \
    X(mnp_acks_withheld, "mnp ACKs that might have ended a C++ host, not sent")                    \
    X(mnp_timeouts, "mnp connections given up because the peer was silent")                        \
    X(mnp_broken, "mnp packets that break the protocol")                                           \
    X(framing_errors, "framed flows closed for a length over the limit")                           \
    X(msgs_delivered, "messages delivered to applications")                                        \
    X(msgs_submitted, "messages taken from applications")                                          \
    X(lane_errors, "channels closed because their application wrote nonsense")                     \
    X(wakeups, "wake-ups sent to applications")

struct mn_stats {
#define MN_STATS_FIELD(name, what) uint64_t name;
    MN_STATS(MN_STATS_FIELD)
#undef MN_STATS_FIELD
};

#endif
