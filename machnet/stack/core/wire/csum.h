/* SPDX-License-Identifier: MIT */
/* The Internet checksum (RFC 1071).
 *
 * A running sum is a uint32_t that holds the ones' complement sum of the data's 16-bit words as
 * they lie in memory; it starts at 0 and is meaningful only to the functions here. Sums of pieces
 * add up with mn_csum_add when each piece but the last has an even length, that is, when each
 * starts at an even offset of the whole. A piece that starts at an odd offset goes through
 * mn_csum_shift first. mn_csum_fold ends it: the complemented checksum in host order, for
 * mn_wr16be. */
#ifndef MN_WIRE_CSUM_H
#define MN_WIRE_CSUM_H

#include "../base.h"

#define MN_CPU_AVX2 1u

/* Below this many bytes the work is done inline: an indirect call would cost more than it saves. */
#define MN_CSUM_INLINE_BYTES 64u

/* The host calls it once, before any engine runs, with the features that the CPU has; a flag that
 * this build has no code for is ignored. Without the call the portable code runs. */
void mn_csum_select(uint32_t features);

/* The selected code for long input; use mn_csum_partial and mn_csum_copy. */
extern uint32_t (*mn_csum_partial_long)(const uint8_t *p, uint32_t len, uint32_t sum);
extern uint32_t (*mn_csum_copy_long)(uint8_t *dst, const uint8_t *src, uint32_t len, uint32_t sum);

static inline uint64_t mn_csum_add64(uint64_t a, uint64_t b)
{
    uint64_t s = a + b;

    return s + (s < b);
}

static inline uint32_t mn_csum_add(uint32_t a, uint32_t b)
{
    uint32_t s = a + b;

    return s + (s < b);
}

/* 64 to 32 bits, congruent modulo 2^16 - 1, and zero only for zero. */
static inline uint32_t mn_csum_reduce64(uint64_t s)
{
    s = (s & UINT32_MAX) + (s >> 32);
    s = (s & UINT32_MAX) + (s >> 32);
    return (uint32_t)s;
}

/* Copies while it adds, or only adds when dst is NULL: the compiler removes the test, as dst is a
 * constant where it is NULL. */
static inline uint64_t mn_csum_tail(uint8_t *dst, const uint8_t *p, uint32_t len, uint64_t sum)
{
    while (len >= 8) {
        uint64_t v;

        memcpy(&v, p, sizeof(v));
        if (dst != NULL) {
            memcpy(dst, &v, sizeof(v));
            dst += 8;
        }
        sum = mn_csum_add64(sum, v);
        p += 8;
        len -= 8;
    }
    if (len & 4) {
        uint32_t v;

        memcpy(&v, p, sizeof(v));
        if (dst != NULL) {
            memcpy(dst, &v, sizeof(v));
            dst += 4;
        }
        sum = mn_csum_add64(sum, v);
        p += 4;
    }
    if (len & 2) {
        uint16_t v;

        memcpy(&v, p, sizeof(v));
        if (dst != NULL) {
            memcpy(dst, &v, sizeof(v));
            dst += 2;
        }
        sum = mn_csum_add64(sum, v);
        p += 2;
    }
    if (len & 1) {
        uint8_t v = *p;

        if (dst != NULL) {
            *dst = v;
        }
        sum = mn_csum_add64(sum, MN_LITTLE_ENDIAN ? v : (uint64_t)v << 8);
    }
    return sum;
}

static inline uint32_t mn_csum_partial(const uint8_t *p, uint32_t len, uint32_t sum)
{
    if (len < MN_CSUM_INLINE_BYTES) {
        return mn_csum_reduce64(mn_csum_tail(NULL, p, len, sum));
    }
    return mn_csum_partial_long(p, len, sum);
}

/* Copies src to dst (they must not overlap) and adds what it copied, reading src once: the sum is
 * that of dst even while someone else writes to src. */
static inline uint32_t mn_csum_copy(uint8_t *dst, const uint8_t *src, uint32_t len, uint32_t sum)
{
    if (len < MN_CSUM_INLINE_BYTES) {
        return mn_csum_reduce64(mn_csum_tail(dst, src, len, sum));
    }
    return mn_csum_copy_long(dst, src, len, sum);
}

/* The sum of a piece as it counts at an odd offset (its bytes swap places in each word); twice is
 * once around. */
static inline uint32_t mn_csum_shift(uint32_t sum)
{
    return sum << 8 | sum >> 24;
}

/* 32 to 16 bits in host order, not complemented: what a checksum field holds before an offload
 * completes it. */
static inline uint16_t mn_csum_fold_seed(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return mn_be16((uint16_t)sum);
}

/* The checksum in host order. Over data that includes a right checksum it is 0. */
static inline uint16_t mn_csum_fold(uint32_t sum)
{
    return (uint16_t)~mn_csum_fold_seed(sum);
}

/* The pseudo header of UDP and TCP over IPv4; len is that of the header with its payload, in bytes.
 * */
static inline uint32_t mn_csum_pseudo(uint32_t src, uint32_t dst, uint8_t proto, uint32_t len)
{
    uint64_t s = (uint64_t)mn_be32(src) + mn_be32(dst);

    /* In memory both are 32-bit words here (zero, protocol / length): each is congruent to its
     * 16-bit word. */
    s += (uint64_t)mn_be32(proto) + mn_be32(len);
    return mn_csum_reduce64(s);
}

/* RFC 1624: the checksum (host order) after a 16-bit word at an even offset changed from `was` to
 * `now`. */
static inline uint16_t mn_csum_update16(uint16_t csum, uint16_t was, uint16_t now)
{
    uint32_t s = (uint32_t)(uint16_t)~csum + (uint16_t)~was + now;

    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    return (uint16_t)~s;
}

#endif
