/* SPDX-License-Identifier: MIT */
/* What lwIP asks of a compiler and a platform, for the yardstick of `benchmarks pair`. */
#ifndef MN_LWIP_ARCH_CC_H
#define MN_LWIP_ARCH_CC_H

#include <stdint.h>
#include <stdlib.h>

#define BYTE_ORDER LITTLE_ENDIAN

/* One instruction instead of lwIP's portable shifts. */
#define lwip_htons(x)                         ((u16_t)__builtin_bswap16((u16_t)(x)))
#define lwip_htonl(x)                         ((u32_t)__builtin_bswap32((u32_t)(x)))
#define LWIP_DONT_PROVIDE_BYTEORDER_FUNCTIONS 1

/* lwIP draws its first local port from this; a fixed value keeps two runs comparable. */
#define LWIP_RAND() ((u32_t)4711)

#define LWIP_PLATFORM_DIAG(x)                                                                      \
    do {                                                                                           \
    } while (0)
#define LWIP_PLATFORM_ASSERT(x) abort()

uint16_t mn_lwip_sum(const void *data, int len_bytes);

#endif
