/* SPDX-License-Identifier: MIT */
#include "ipv4.h"

static_assert(MN_IPV4_HLEN == 5 * sizeof(uint32_t), "mn_ipv4_csum_ok reads five words");
static_assert(MN_IPV4_HLEN_MAX == 15 * sizeof(uint32_t), "what a 4-bit IHL can say");
