/* SPDX-License-Identifier: MIT */
/* A fuzzer's input, read byte by byte. Past its end everything is zero, so that an input may be cut
 * anywhere. */
#ifndef FZ_IN_H
#define FZ_IN_H

#include "machnet/stack/core/base.h"

/* For the harness's own loops over bytes: how often they go round is no news to the fuzzer. */
#define FZ_NO_COVERAGE __attribute__((no_sanitize("coverage")))

struct fz_in {
    const uint8_t *p, *end;
};

static inline bool fz_more(const struct fz_in *in)
{
    return in->p < in->end;
}

static inline uint8_t fz_u8(struct fz_in *in)
{
    return in->p < in->end ? *in->p++ : 0;
}

static inline uint16_t fz_u16(struct fz_in *in)
{
    uint8_t hi = fz_u8(in);

    return (uint16_t)(hi << 8 | fz_u8(in));
}

static inline uint32_t fz_u32(struct fz_in *in)
{
    uint16_t hi = fz_u16(in);

    return (uint32_t)hi << 16 | fz_u16(in);
}

/* Up to n bytes to out; the rest is zero. */
static inline void fz_bytes(struct fz_in *in, uint8_t *out, uint32_t n)
{
    uint32_t left = (uint32_t)mn_min_u64((uint64_t)(in->end - in->p), n);

    memset(out, 0, n);
    if (left > 0) {
        memcpy(out, in->p, left);
        in->p += left;
    }
}

/* One byte spread over the range that matters: exact below 128, then in growing steps up to about
 * 130000. */
static inline uint32_t fz_len(struct fz_in *in)
{
    uint32_t b = fz_u8(in);

    return b < 128 ? b : (b & 15) * ((16u << ((b >> 4) & 7)) * 4u) + b;
}

/* A distance in sequence space: mostly small, either way; sometimes anything. */
static inline uint32_t fz_delta(struct fz_in *in)
{
    uint8_t b = fz_u8(in);

    if (b == 0x80) {
        return fz_u32(in);
    }
    if (b == 0x81) {
        return 0x80000000u + (uint32_t)(int8_t)fz_u8(in);
    }
    if (b >= 0x82 && b < 0xc0) {
        return (b & 0x3fu) << 8;
    }
    return (uint32_t)(int32_t)(int8_t)b;
}

#endif
