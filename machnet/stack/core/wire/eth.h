/* SPDX-License-Identifier: MIT */
/* Ethernet II. */
#ifndef MN_WIRE_ETH_H
#define MN_WIRE_ETH_H

#include "../base.h"
#include "err.h"

#define MN_ETH_HLEN 14u
#define MN_ETH_ALEN 6u

static_assert(2 * MN_ETH_ALEN + sizeof(uint16_t) == MN_ETH_HLEN, "an Ethernet II header");

#define MN_ETHERTYPE_MIN  0x0600u /* below it the field is an 802.3 length */
#define MN_ETHERTYPE_IPV4 0x0800u
#define MN_ETHERTYPE_ARP  0x0806u
#define MN_ETHERTYPE_VLAN 0x8100u
#define MN_ETHERTYPE_IPV6 0x86ddu
#define MN_ETHERTYPE_QINQ 0x88a8u

struct mn_eth {
    uint8_t dst[MN_ETH_ALEN];
    uint8_t src[MN_ETH_ALEN];
    uint16_t type;
    uint32_t hdr_len;
    const uint8_t *payload; /* with any padding: the next header knows its length */
    uint32_t payload_len;
};

/* Multicast or broadcast. */
static inline bool mn_eth_is_group(const uint8_t mac[MN_ETH_ALEN])
{
    return (mac[0] & 1) != 0;
}

/* TRUNCATED; UNSUPPORTED for a VLAN tag or an 802.3 length. Any other type passes, known or not. */
static inline int mn_eth_parse(const uint8_t *p, uint32_t len, struct mn_eth *out)
{
    if (MN_UNLIKELY(len < MN_ETH_HLEN)) {
        return MN_WIRE_TRUNCATED;
    }
    memcpy(out->dst, p, MN_ETH_ALEN);
    memcpy(out->src, p + 6, MN_ETH_ALEN);
    out->type = mn_rd16be(p + 12);
    if (MN_UNLIKELY(out->type < MN_ETHERTYPE_MIN || out->type == MN_ETHERTYPE_VLAN ||
                    out->type == MN_ETHERTYPE_QINQ)) {
        return MN_WIRE_UNSUPPORTED;
    }
    out->hdr_len = MN_ETH_HLEN;
    out->payload = p + MN_ETH_HLEN;
    out->payload_len = len - MN_ETH_HLEN;
    return 0;
}

/* Writes MN_ETH_HLEN bytes. */
static inline uint32_t mn_eth_emit(uint8_t *p, const uint8_t dst[MN_ETH_ALEN],
                                   const uint8_t src[MN_ETH_ALEN], uint16_t type)
{
    memcpy(p, dst, MN_ETH_ALEN);
    memcpy(p + 6, src, MN_ETH_ALEN);
    mn_wr16be(p + 12, type);
    return MN_ETH_HLEN;
}

#endif
