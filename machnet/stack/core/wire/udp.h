/* SPDX-License-Identifier: MIT */
/* UDP over IPv4 (RFC 768). */
#ifndef MN_WIRE_UDP_H
#define MN_WIRE_UDP_H

#include "../base.h"
#include "csum.h"
#include "err.h"

#define MN_UDP_HLEN     8u
#define MN_UDP_CSUM_OFF 6u

struct mn_udp {
    uint16_t sport;
    uint16_t dport;
    uint16_t len; /* header and payload, as in the header */
    uint16_t csum;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
};

struct mn_udp_repr {
    uint16_t sport;
    uint16_t dport;
    uint32_t payload_len; /* at most 65535 - MN_UDP_HLEN */
};

/* Refuses TRUNCATED and BAD_LENGTH. Bytes behind the length field's end are ignored. The checksum
 * is a separate call. */
int mn_udp_parse(const uint8_t *p, uint32_t len, struct mn_udp *out);

/* Of a datagram that mn_udp_parse accepts; false for any other. True when it carries no checksum
 * (zero). */
bool mn_udp_csum_ok(uint32_t src, uint32_t dst, const uint8_t *p, uint32_t len);

/* Writes MN_UDP_HLEN bytes with a zero checksum, which is legal on the wire as it is. */
uint32_t mn_udp_emit(uint8_t *p, const struct mn_udp_repr *r);

/* Fills in the checksum of an emitted header, given the sum of its payload (from mn_csum_copy or
 * mn_csum_partial). A result of zero is sent as 0xffff. */
void mn_udp_csum_fill(uint8_t *p, uint32_t src, uint32_t dst, uint32_t payload_sum);

#endif
