/* SPDX-License-Identifier: MIT */
#include "arp.h"

#include "ipv4.h"

#define ARP_HTYPE_ETHERNET 1u

static_assert(MN_ARP_LEN == 8 + 2 * (MN_ETH_ALEN + sizeof(uint32_t)), "ARP for IPv4 over Ethernet");

static bool is_zero_mac(const uint8_t mac[MN_ETH_ALEN])
{
    return mn_rd32be(mac) == 0 && mn_rd16be(mac + 4) == 0;
}

int mn_arp_parse(const uint8_t *p, uint32_t len, struct mn_arp *out)
{
    if (len < MN_ARP_LEN) {
        return MN_WIRE_TRUNCATED;
    }
    if (mn_rd16be(p) != ARP_HTYPE_ETHERNET || mn_rd16be(p + 2) != MN_ETHERTYPE_IPV4) {
        return MN_WIRE_UNSUPPORTED;
    }
    if (p[4] != MN_ETH_ALEN || p[5] != sizeof(uint32_t)) {
        return MN_WIRE_BAD_LENGTH;
    }
    out->op = mn_rd16be(p + 6);
    if (out->op != MN_ARP_REQUEST && out->op != MN_ARP_REPLY) {
        return MN_WIRE_UNSUPPORTED;
    }
    memcpy(out->sender_mac, p + 8, MN_ETH_ALEN);
    out->sender_ip = mn_rd32be(p + 14);
    memcpy(out->target_mac, p + 18, MN_ETH_ALEN);
    out->target_ip = mn_rd32be(p + 24);
    if (mn_eth_is_group(out->sender_mac) || is_zero_mac(out->sender_mac)) {
        return MN_WIRE_BAD_ADDR;
    }
    if (!mn_ip_is_unspecified(out->sender_ip) && mn_ip_is_martian_source(out->sender_ip)) {
        return MN_WIRE_BAD_ADDR;
    }
    return 0;
}

uint32_t mn_arp_emit(uint8_t *p, const struct mn_arp *arp)
{
    mn_wr16be(p, ARP_HTYPE_ETHERNET);
    mn_wr16be(p + 2, MN_ETHERTYPE_IPV4);
    p[4] = MN_ETH_ALEN;
    p[5] = sizeof(uint32_t);
    mn_wr16be(p + 6, arp->op);
    memcpy(p + 8, arp->sender_mac, MN_ETH_ALEN);
    mn_wr32be(p + 14, arp->sender_ip);
    memcpy(p + 18, arp->target_mac, MN_ETH_ALEN);
    mn_wr32be(p + 24, arp->target_ip);
    return MN_ARP_LEN;
}
