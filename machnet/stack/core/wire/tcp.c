/* SPDX-License-Identifier: MIT */
#include "tcp.h"

static_assert(MN_TCP_HLEN == 5 * sizeof(uint32_t), "a TCP header without options");
static_assert(MN_TCP_HLEN_MAX == MN_TCP_HLEN + MN_TCP_OPTS_LEN_MAX, "what a 4-bit offset can say");
