/* SPDX-License-Identifier: MIT */
/* The TCP header (RFC 9293, 3.1). */
#ifndef MN_WIRE_TCP_H
#define MN_WIRE_TCP_H

#include "../base.h"
#include "csum.h"
#include "err.h"
#include "ipv4.h"
#include "tcp_opts.h"

#define MN_TCP_HLEN     20u /* without options */
#define MN_TCP_HLEN_MAX 60u
#define MN_TCP_CSUM_OFF 16u

#define MN_TCP_FIN        0x001u
#define MN_TCP_SYN        0x002u
#define MN_TCP_RST        0x004u
#define MN_TCP_PSH        0x008u
#define MN_TCP_ACK        0x010u
#define MN_TCP_URG        0x020u
#define MN_TCP_ECE        0x040u
#define MN_TCP_CWR        0x080u
#define MN_TCP_AE         0x100u
#define MN_TCP_FLAGS_MASK 0x1ffu

struct mn_tcp {
    uint16_t sport;
    uint16_t dport;
    uint32_t seq;
    uint32_t ack;
    uint16_t flags; /* MN_TCP_*, AE included; the three reserved bits are ignored */
    uint16_t wnd;   /* not scaled */
    uint16_t urg;
    uint16_t csum;
    uint8_t doff; /* in 32-bit words */
    uint32_t hdr_len;
    uint32_t opts_len;
    const uint8_t *opts;
    const uint8_t *payload;
    uint32_t payload_len;
};

struct mn_tcp_repr {
    uint16_t sport;
    uint16_t dport;
    uint32_t seq;
    uint32_t ack;
    uint16_t flags;
    uint16_t wnd;
    uint16_t urg;
    const struct mn_tcp_opts *opts; /* NULL for none */
};

/* `len` is the IP payload's length. Refuses TRUNCATED (data offset behind the end, too) and
 * BAD_LENGTH (data offset below 5). The options are located, not read; the checksum is a separate
 * call. */
static inline int mn_tcp_parse(const uint8_t *p, uint32_t len, struct mn_tcp *out)
{
    uint32_t word, hdr_len;

    if (MN_UNLIKELY(len < MN_TCP_HLEN)) {
        return MN_WIRE_TRUNCATED;
    }
    word = mn_rd32be(p + 12);
    hdr_len = (word >> 28) * 4;
    if (MN_UNLIKELY(hdr_len < MN_TCP_HLEN)) {
        return MN_WIRE_BAD_LENGTH;
    }
    if (MN_UNLIKELY(hdr_len > len)) {
        return MN_WIRE_TRUNCATED;
    }
    out->sport = mn_rd16be(p);
    out->dport = mn_rd16be(p + 2);
    out->seq = mn_rd32be(p + 4);
    out->ack = mn_rd32be(p + 8);
    out->flags = (uint16_t)(word >> 16 & MN_TCP_FLAGS_MASK);
    out->wnd = (uint16_t)word;
    out->csum = mn_rd16be(p + MN_TCP_CSUM_OFF);
    out->urg = mn_rd16be(p + 18);
    out->doff = (uint8_t)(word >> 28);
    out->hdr_len = hdr_len;
    out->opts = p + MN_TCP_HLEN;
    out->opts_len = hdr_len - MN_TCP_HLEN;
    out->payload = p + hdr_len;
    out->payload_len = len - hdr_len;
    return 0;
}

/* `seg` is the whole segment, header and payload, of `len` bytes. */
static inline bool mn_tcp_csum_ok(uint32_t src, uint32_t dst, const uint8_t *seg, uint32_t len)
{
    return mn_csum_fold(mn_csum_partial(seg, len, mn_csum_pseudo(src, dst, MN_IPPROTO_TCP, len))) ==
           0;
}

/* Writes the header with its options and a zero checksum; returns its length, 20 to 60 bytes. The
 * payload goes behind it. */
static inline uint32_t mn_tcp_emit(uint8_t *p, const struct mn_tcp_repr *r)
{
    uint32_t hdr_len = MN_TCP_HLEN;

    if (r->opts != NULL) {
        hdr_len += mn_tcp_opts_emit(p + MN_TCP_HLEN, r->opts);
    }
    mn_wr32be(p, (uint32_t)r->sport << 16 | r->dport);
    mn_wr32be(p + 4, r->seq);
    mn_wr32be(p + 8, r->ack);
    mn_wr32be(p + 12, hdr_len << 26 | (r->flags & MN_TCP_FLAGS_MASK) << 16 | r->wnd);
    mn_wr32be(p + 16, r->urg);
    return hdr_len;
}

/* Fills in the checksum of an emitted header of hdr_len bytes, given the length of its payload and
 * the sum of it (from mn_csum_copy or mn_csum_partial, started at 0). */
static inline void mn_tcp_csum_fill(uint8_t *p, uint32_t hdr_len, uint32_t src, uint32_t dst,
                                    uint32_t payload_len, uint32_t payload_sum)
{
    uint64_t sum = mn_csum_pseudo(src, dst, MN_IPPROTO_TCP, hdr_len + payload_len);

    sum += payload_sum;
    /* In the words that mn_tcp_emit has just stored: wider loads would wait for the stores. */
    for (uint32_t at = 0; at < hdr_len; at += 4) {
        uint32_t w;

        memcpy(&w, p + at, sizeof(w));
        sum += w;
    }
    mn_wr16be(p + MN_TCP_CSUM_OFF, mn_csum_fold(mn_csum_reduce64(sum)));
}

/* Leaves the checksum to the NIC: the field gets the pseudo header's sum, not complemented. `len`
 * is that of the whole segment. */
static inline void mn_tcp_csum_seed(uint8_t *p, uint32_t src, uint32_t dst, uint32_t len)
{
    mn_wr16be(p + MN_TCP_CSUM_OFF,
              mn_csum_fold_seed(mn_csum_pseudo(src, dst, MN_IPPROTO_TCP, len)));
}

#endif
