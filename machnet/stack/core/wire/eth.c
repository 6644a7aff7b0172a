/* SPDX-License-Identifier: MIT */
#include "eth.h"

static_assert(2 * MN_ETH_ALEN + sizeof(uint16_t) == MN_ETH_HLEN, "an Ethernet II header");

bool mn_eth_is_broadcast(const uint8_t mac[MN_ETH_ALEN])
{
    return mn_rd32be(mac) == UINT32_MAX && mn_rd16be(mac + 4) == UINT16_MAX;
}
