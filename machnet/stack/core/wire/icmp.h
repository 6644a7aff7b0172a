/* SPDX-License-Identifier: MIT */
/* ICMP for IPv4 (RFC 792): echo, and the errors that matter to a transport. */
#ifndef MN_WIRE_ICMP_H
#define MN_WIRE_ICMP_H

#include "../base.h"
#include "err.h"

#define MN_ICMP_HLEN 8u

#define MN_ICMP_ECHO_REPLY        0u
#define MN_ICMP_UNREACHABLE       3u
#define MN_ICMP_SOURCE_QUENCH     4u
#define MN_ICMP_ECHO_REQUEST      8u
#define MN_ICMP_TIME_EXCEEDED     11u
#define MN_ICMP_PARAMETER_PROBLEM 12u

/* Codes of MN_ICMP_UNREACHABLE. */
#define MN_ICMP_NET_UNREACHABLE   0u
#define MN_ICMP_HOST_UNREACHABLE  1u
#define MN_ICMP_PROTO_UNREACHABLE 2u
#define MN_ICMP_PORT_UNREACHABLE  3u
#define MN_ICMP_FRAG_NEEDED       4u

/* Bytes behind the quoted IP header that an error carries; enough for the ports and the TCP
 * sequence number. */
#define MN_ICMP_QUOTE_L4_LEN 8u
/* The longest message that mn_icmp_emit_unreachable writes. */
#define MN_ICMP_ERROR_LEN_MAX (MN_ICMP_HLEN + 60u + MN_ICMP_QUOTE_L4_LEN)

struct mn_icmp {
    uint8_t type;
    uint8_t code;
    uint16_t csum;
    uint32_t rest; /* second word: identifier << 16 | sequence of an echo; MTU in the low half */
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
};

struct mn_icmp_quote {
    uint32_t src; /* of the quoted packet: this host, if the error is meant for it */
    uint32_t dst;
    uint16_t total_len;
    uint8_t proto;
    uint8_t ttl;
    uint16_t sport; /* 0 unless proto is TCP or UDP */
    uint16_t dport;
    uint32_t seq; /* 0 unless proto is TCP */
    uint32_t hdr_len;
    const uint8_t *payload; /* what was quoted behind the IP header: at least 8 bytes */
    uint32_t payload_len;
};

/* The checksum covers the whole message and is verified. Refuses TRUNCATED and BAD_CSUM; any type
 * passes. */
int mn_icmp_parse(const uint8_t *p, uint32_t len, struct mn_icmp *out);

/* An error quotes a packet that this host sent; query types do not. */
static inline bool mn_icmp_is_error(uint8_t type)
{
    return (type >= 3 && type <= 5) || type == MN_ICMP_TIME_EXCEEDED ||
           type == MN_ICMP_PARAMETER_PROBLEM;
}

/* The payload of an ICMP error. The quote may be cut anywhere behind 8 bytes of transport header,
 * and its IP checksum is not verified, as routers have changed it. Refuses TRUNCATED, BAD_VERSION,
 * BAD_LENGTH and, as a later fragment has no ports, FRAGMENT. */
int mn_icmp_quote_parse(const uint8_t *p, uint32_t len, struct mn_icmp_quote *out);

/* Writes MN_ICMP_HLEN + payload_len bytes, which must not overlap the payload, and returns that
 * length. hdr_len and csum of the argument are not used. */
uint32_t mn_icmp_emit(uint8_t *p, const struct mn_icmp *icmp);

/* The answer to an echo request that mn_icmp_parse accepted: same identifier, sequence and data. */
uint32_t mn_icmp_emit_echo_reply(uint8_t *p, const struct mn_icmp *request);

/* Destination unreachable about the IPv4 packet at `ip` (accepted by mn_ipv4_parse), ip_len bytes
 * with its header: quotes the header and 8 bytes, or what there is. `mtu` (bytes) is sent with
 * MN_ICMP_FRAG_NEEDED only. Returns the length written, at most MN_ICMP_ERROR_LEN_MAX. */
uint32_t mn_icmp_emit_unreachable(uint8_t *p, uint8_t code, uint16_t mtu, const uint8_t *ip,
                                  uint32_t ip_len);

#endif
