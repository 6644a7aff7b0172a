/* SPDX-License-Identifier: MIT */
/* What every file of the core starts from: fixed widths, assertions, big-endian memory access and
 * sequence arithmetic. */
#ifndef MN_BASE_H
#define MN_BASE_H

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MN_LIKELY(x)   __builtin_expect(!!(x), 1)
#define MN_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define MN_NOINLINE    __attribute__((noinline)) /* keeps what is rare out of what is not */

#define MN_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MN_CACHE_LINE   64

#define MN_NS_PER_US UINT64_C(1000)
#define MN_NS_PER_MS UINT64_C(1000000)
#define MN_NS_PER_S  UINT64_C(1000000000)

/* The host defines it: the core has no way to print or to abort by itself. It must not return. */
void mn_panic(const char *file, int line, const char *what) __attribute__((noreturn, cold));

/* For invariants of the core itself, never for input; stays on in release builds. */
#define MN_ASSERT(cond) (MN_LIKELY(cond) ? (void)0 : mn_panic(__FILE__, __LINE__, #cond))

static inline uint32_t mn_min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t mn_max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static inline uint64_t mn_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t mn_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Between host order and big-endian; the same operation both ways. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define MN_LITTLE_ENDIAN 1
static inline uint16_t mn_be16(uint16_t v)
{
    return __builtin_bswap16(v);
}

static inline uint32_t mn_be32(uint32_t v)
{
    return __builtin_bswap32(v);
}
#else
#define MN_LITTLE_ENDIAN 0
static inline uint16_t mn_be16(uint16_t v)
{
    return v;
}

static inline uint32_t mn_be32(uint32_t v)
{
    return v;
}
#endif

/* Loads and stores at any alignment; memcpy of a constant size compiles to one instruction. */
static inline uint16_t mn_rd16be(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return mn_be16(v);
}

static inline uint32_t mn_rd32be(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return mn_be32(v);
}

static inline void mn_wr16be(uint8_t *p, uint16_t v)
{
    v = mn_be16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void mn_wr32be(uint8_t *p, uint32_t v)
{
    v = mn_be32(v);
    memcpy(p, &v, sizeof(v));
}

/* Sequence numbers live on a circle of 2^32 (RFC 9293, 3.4): compare by the sign of the distance.
 * Two numbers exactly 2^31 apart are each "less than" the other; callers keep windows far below. */
static inline bool mn_seq_lt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline bool mn_seq_le(uint32_t a, uint32_t b)
{
    return (int32_t)(b - a) >= 0;
}

static inline bool mn_seq_gt(uint32_t a, uint32_t b)
{
    return mn_seq_lt(b, a);
}

static inline bool mn_seq_ge(uint32_t a, uint32_t b)
{
    return mn_seq_le(b, a);
}

static inline uint32_t mn_seq_max(uint32_t a, uint32_t b)
{
    return mn_seq_lt(a, b) ? b : a;
}

static inline uint32_t mn_seq_min(uint32_t a, uint32_t b)
{
    return mn_seq_lt(b, a) ? b : a;
}

#endif
