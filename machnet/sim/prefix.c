/* SPDX-License-Identifier: MIT */
#include "prefix.h"

#include "machnet/stack/core/base.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* A word's halves multiplied, and the word itself: where one half is 0 the other still counts. */
static void mix_portable(struct mn_prefix *p, const uint8_t *bytes, uint64_t blocks)
{
    for (; blocks > 0; blocks--) {
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t w;

            memcpy(&w, bytes + 8 * i, sizeof(w));
            p->sum[i] += w + (w & UINT32_MAX) * (w >> 32);
            p->order[i] += p->sum[i];
        }
        bytes += MN_PREFIX_BLOCK_BYTES;
    }
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

struct totals {
    __m256i sum, order;
};

/* The same four words at once. */
static inline AVX2 __attribute__((always_inline)) void mix_block(struct totals *t,
                                                                 const uint8_t *block)
{
    __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)block);
    __m256i product = _mm256_mul_epu32(w, _mm256_srli_epi64(w, 32));

    t->sum = _mm256_add_epi64(t->sum, _mm256_add_epi64(w, product));
    t->order = _mm256_add_epi64(t->order, t->sum);
}

static AVX2 void mix_avx2(struct mn_prefix *p, const uint8_t *bytes, uint64_t blocks)
{
    struct totals t = {_mm256_loadu_si256((const __m256i *)(const void *)p->sum),
                       _mm256_loadu_si256((const __m256i *)(const void *)p->order)};

    for (; blocks >= 4; blocks -= 4) {
        mix_block(&t, bytes);
        mix_block(&t, bytes + MN_PREFIX_BLOCK_BYTES);
        mix_block(&t, bytes + 2 * MN_PREFIX_BLOCK_BYTES);
        mix_block(&t, bytes + 3 * MN_PREFIX_BLOCK_BYTES);
        bytes += 4 * MN_PREFIX_BLOCK_BYTES;
    }
    for (; blocks > 0; blocks--) {
        mix_block(&t, bytes);
        bytes += MN_PREFIX_BLOCK_BYTES;
    }
    _mm256_storeu_si256((__m256i *)(void *)p->sum, t.sum);
    _mm256_storeu_si256((__m256i *)(void *)p->order, t.order);
}

#endif

static void mix(struct mn_prefix *p, const uint8_t *bytes, uint64_t blocks)
{
#if defined(__x86_64__)
    if (MN_LIKELY(__builtin_cpu_supports("avx2"))) {
        mix_avx2(p, bytes, blocks);
        return;
    }
#endif
    mix_portable(p, bytes, blocks);
}

void mn_prefix_add(struct mn_prefix *p, const uint8_t *bytes, uint64_t len)
{
    uint64_t have = p->bytes % MN_PREFIX_BLOCK_BYTES;

    p->bytes += len;
    if (have > 0) {
        uint64_t n = mn_min_u64(len, MN_PREFIX_BLOCK_BYTES - have);

        memcpy(p->part + have, bytes, n);
        bytes += n;
        len -= n;
        if (have + n < MN_PREFIX_BLOCK_BYTES) {
            return;
        }
        mix(p, p->part, 1);
    }
    mix(p, bytes, len / MN_PREFIX_BLOCK_BYTES);
    memcpy(p->part, bytes + (len & ~(uint64_t)(MN_PREFIX_BLOCK_BYTES - 1)),
           len % MN_PREFIX_BLOCK_BYTES);
}

uint64_t mn_prefix_digest(const struct mn_prefix *p)
{
    struct mn_prefix all = *p;
    uint64_t have = p->bytes % MN_PREFIX_BLOCK_BYTES, digest = p->bytes;

    memset(all.part + have, 0, MN_PREFIX_BLOCK_BYTES - have);
    mix(&all, all.part, 1);
    for (uint32_t i = 0; i < 4; i++) {
        digest = (digest ^ all.sum[i]) * UINT64_C(0x9e3779b97f4a7c15);
        digest = (digest ^ digest >> 32 ^ all.order[i]) * UINT64_C(0xff51afd7ed558ccd);
        digest ^= digest >> 29;
    }
    return digest;
}
