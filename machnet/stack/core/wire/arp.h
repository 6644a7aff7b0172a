/* SPDX-License-Identifier: MIT */
/* ARP for IPv4 over Ethernet (RFC 826). */
#ifndef MN_WIRE_ARP_H
#define MN_WIRE_ARP_H

#include "../base.h"
#include "err.h"
#include "eth.h"

#define MN_ARP_LEN 28u

#define MN_ARP_REQUEST 1u
#define MN_ARP_REPLY   2u

/* Both the view and what mn_arp_emit writes; it has no payload. */
struct mn_arp {
    uint32_t sender_ip; /* 0 in a probe (RFC 5227) */
    uint32_t target_ip;
    uint16_t op;
    uint8_t sender_mac[MN_ETH_ALEN];
    uint8_t target_mac[MN_ETH_ALEN];
};

/* Refuses TRUNCATED; UNSUPPORTED (other hardware, protocol or operation); BAD_LENGTH (address
 * sizes); BAD_ADDR (a sender MAC that is zero or a group, a sender IP that is multicast, loopback
 * or 255.255.255.255). Padding is ignored. */
int mn_arp_parse(const uint8_t *p, uint32_t len, struct mn_arp *out);

/* Writes MN_ARP_LEN bytes. */
uint32_t mn_arp_emit(uint8_t *p, const struct mn_arp *arp);

#endif
