/* SPDX-License-Identifier: MIT */
/* IPv4 (RFC 791), without fragments. Addresses are uint32_t in host order: 10.0.0.1 is 0x0a000001.
 * */
#ifndef MN_WIRE_IPV4_H
#define MN_WIRE_IPV4_H

#include "../base.h"
#include "csum.h"
#include "err.h"

#define MN_IPV4_HLEN     20u /* without options */
#define MN_IPV4_HLEN_MAX 60u
#define MN_IPV4_LEN_MAX  65535u
#define MN_IPV4_CSUM_OFF 10u

#define MN_IPPROTO_ICMP 1u
#define MN_IPPROTO_TCP  6u
#define MN_IPPROTO_UDP  17u

#define MN_IPV4_DF          0x4000u
#define MN_IPV4_MF          0x2000u
#define MN_IPV4_OFFSET_MASK 0x1fffu

#define MN_IP_ECN_MASK 3u /* of tos */

struct mn_ipv4 {
    uint32_t src;
    uint32_t dst;
    uint16_t total_len;
    uint16_t id;
    uint16_t frag; /* flags and offset, as in the header */
    uint16_t csum;
    uint8_t ihl; /* in 32-bit words */
    uint8_t tos; /* DSCP << 2 | ECN */
    uint8_t ttl;
    uint8_t proto;
    uint32_t hdr_len;
    uint32_t opts_len;
    const uint8_t *opts;
    const uint8_t *payload;
    uint32_t payload_len; /* from total_len: link padding is not in it */
};

struct mn_ipv4_repr {
    uint32_t src;
    uint32_t dst;
    uint32_t payload_len; /* at most MN_IPV4_LEN_MAX - MN_IPV4_HLEN */
    uint16_t id;
    uint8_t proto;
    uint8_t ttl;
    uint8_t tos;
    bool df;
};

static inline bool mn_ip_is_multicast(uint32_t ip)
{
    return ip >> 28 == 0xe;
}

static inline bool mn_ip_is_loopback(uint32_t ip)
{
    return ip >> 24 == 127;
}

static inline bool mn_ip_is_unspecified(uint32_t ip)
{
    return ip == 0;
}

static inline bool mn_ip_is_limited_broadcast(uint32_t ip)
{
    return ip == UINT32_MAX;
}

/* No host may send from it over a link (RFC 1122, 3.2.1.3): network 0, loopback, multicast,
 * 255.255.255.255. A subnet's own broadcast address is for the caller, who knows the prefix. */
static inline bool mn_ip_is_martian_source(uint32_t ip)
{
    return ip >> 24 == 0 || mn_ip_is_loopback(ip) || mn_ip_is_multicast(ip) ||
           mn_ip_is_limited_broadcast(ip);
}

static inline bool mn_ipv4_csum_ok(const uint8_t *p, uint32_t hdr_len)
{
    uint32_t w[5];
    uint64_t sum;
    uint32_t at;

    memcpy(w, p, sizeof(w));
    sum = (uint64_t)w[0] + w[1] + w[2] + w[3] + w[4];
    for (at = MN_IPV4_HLEN; MN_UNLIKELY(at < hdr_len); at += 4) {
        memcpy(w, p + at, 4);
        sum += w[0];
    }
    return mn_csum_fold(mn_csum_reduce64(sum)) == 0;
}

/* Verifies lengths and the header checksum. Options are located, not read. Refuses TRUNCATED,
 * BAD_VERSION, BAD_LENGTH, BAD_CSUM, FRAGMENT (first ones too) and BAD_ADDR (a martian source). */
static inline int mn_ipv4_parse(const uint8_t *p, uint32_t len, struct mn_ipv4 *out)
{
    uint32_t hdr_len, total_len;

    if (MN_UNLIKELY(len < MN_IPV4_HLEN)) {
        return MN_WIRE_TRUNCATED;
    }
    if (MN_UNLIKELY(p[0] >> 4 != 4)) {
        return MN_WIRE_BAD_VERSION;
    }
    hdr_len = (p[0] & 15u) * 4u;
    total_len = mn_rd16be(p + 2);
    if (MN_UNLIKELY(hdr_len < MN_IPV4_HLEN || total_len < hdr_len)) {
        return MN_WIRE_BAD_LENGTH;
    }
    if (MN_UNLIKELY(total_len > len)) {
        return MN_WIRE_TRUNCATED;
    }
    if (MN_UNLIKELY(!mn_ipv4_csum_ok(p, hdr_len))) {
        return MN_WIRE_BAD_CSUM;
    }
    out->frag = mn_rd16be(p + 6);
    if (MN_UNLIKELY((out->frag & (MN_IPV4_MF | MN_IPV4_OFFSET_MASK)) != 0)) {
        return MN_WIRE_FRAGMENT;
    }
    out->src = mn_rd32be(p + 12);
    if (MN_UNLIKELY(mn_ip_is_martian_source(out->src))) {
        return MN_WIRE_BAD_ADDR;
    }
    out->dst = mn_rd32be(p + 16);
    out->total_len = (uint16_t)total_len;
    out->id = mn_rd16be(p + 4);
    out->csum = mn_rd16be(p + MN_IPV4_CSUM_OFF);
    out->ihl = p[0] & 15;
    out->tos = p[1];
    out->ttl = p[8];
    out->proto = p[9];
    out->hdr_len = hdr_len;
    out->opts = p + MN_IPV4_HLEN;
    out->opts_len = hdr_len - MN_IPV4_HLEN;
    out->payload = p + hdr_len;
    out->payload_len = total_len - hdr_len;
    return 0;
}

/* Writes MN_IPV4_HLEN bytes, the checksum included. */
static inline uint32_t mn_ipv4_emit(uint8_t *p, const struct mn_ipv4_repr *r)
{
    uint32_t total_len = MN_IPV4_HLEN + r->payload_len;
    uint32_t w0, w1, w2;

    MN_ASSERT(r->payload_len <= MN_IPV4_LEN_MAX - MN_IPV4_HLEN);
    w0 = 0x45000000u | (uint32_t)r->tos << 16 | total_len;
    w1 = (uint32_t)r->id << 16 | (r->df ? MN_IPV4_DF : 0);
    w2 = (uint32_t)r->ttl << 24 | (uint32_t)r->proto << 16;
    mn_wr32be(p, w0);
    mn_wr32be(p + 4, w1);
    mn_wr32be(p + 12, r->src);
    mn_wr32be(p + 16, r->dst);
    /* The sum of the host-order words, brought to memory order at the end, is the sum of the words
     * in memory. */
    w2 |= mn_csum_fold(mn_be32(mn_csum_reduce64((uint64_t)w0 + w1 + w2 + r->src + r->dst)));
    mn_wr32be(p + 8, w2);
    return MN_IPV4_HLEN;
}

#endif
