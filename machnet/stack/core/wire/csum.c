/* SPDX-License-Identifier: MIT */
/* The long checksums, as sums over 64-bit lanes.
 *
 * Each lane keeps two totals: of the 64-bit words modulo 2^64, and of their upper halves, which
 * never overflows. The lower halves' total follows from them, so a word costs two additions and a
 * shift and no carry is ever lost. */
#include "csum.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* A vector of the compiler: SSE2 on x86-64, NEON on arm64, plain registers elsewhere. */
typedef uint64_t lanes __attribute__((vector_size(16)));

static inline uint64_t lane_total(uint64_t words, uint64_t upper)
{
    return mn_csum_add64(words - (upper << 32), upper);
}

static inline __attribute__((always_inline)) uint32_t sum_portable(uint8_t *dst, const uint8_t *p,
                                                                   uint32_t len, uint32_t sum)
{
    lanes words0 = {0, 0}, words1 = {0, 0}, upper0 = {0, 0}, upper1 = {0, 0};
    uint64_t total = sum;

    for (; len >= 2 * sizeof(lanes); len -= (uint32_t)(2 * sizeof(lanes))) {
        lanes v0, v1;

        memcpy(&v0, p, sizeof(v0));
        memcpy(&v1, p + sizeof(v0), sizeof(v1));
        p += 2 * sizeof(lanes);
        if (dst != NULL) {
            memcpy(dst, &v0, sizeof(v0));
            memcpy(dst + sizeof(v0), &v1, sizeof(v1));
            dst += 2 * sizeof(lanes);
        }
        words0 += v0;
        words1 += v1;
        upper0 += v0 >> 32;
        upper1 += v1 >> 32;
    }
    words0 += words1;
    upper0 += upper1;
    total = mn_csum_add64(total, lane_total(words0[0], upper0[0]));
    total = mn_csum_add64(total, lane_total(words0[1], upper0[1]));
    return mn_csum_reduce64(mn_csum_tail(dst, p, len, total));
}

static uint32_t partial_portable(const uint8_t *p, uint32_t len, uint32_t sum)
{
    return sum_portable(NULL, p, len, sum);
}

static uint32_t copy_portable(uint8_t *dst, const uint8_t *src, uint32_t len, uint32_t sum)
{
    return sum_portable(dst, src, len, sum);
}

uint32_t (*mn_csum_partial_long)(const uint8_t *, uint32_t, uint32_t) = partial_portable;
uint32_t (*mn_csum_copy_long)(uint8_t *, const uint8_t *, uint32_t, uint32_t) = copy_portable;

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

static inline AVX2 __attribute__((always_inline)) uint32_t sum_avx2(uint8_t *dst, const uint8_t *p,
                                                                    uint32_t len, uint32_t sum)
{
    __m256i words0 = _mm256_setzero_si256(), words1 = words0, upper0 = words0, upper1 = words0;
    uint64_t total = sum;
    uint64_t w[4], u[4];

    for (; len >= 64; len -= 64) {
        __m256i v0 = _mm256_loadu_si256((const __m256i *)(const void *)p);
        __m256i v1 = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));

        p += 64;
        if (dst != NULL) {
            _mm256_storeu_si256((__m256i *)(void *)dst, v0);
            _mm256_storeu_si256((__m256i *)(void *)(dst + 32), v1);
            dst += 64;
        }
        words0 = _mm256_add_epi64(words0, v0);
        words1 = _mm256_add_epi64(words1, v1);
        upper0 = _mm256_add_epi64(upper0, _mm256_srli_epi64(v0, 32));
        upper1 = _mm256_add_epi64(upper1, _mm256_srli_epi64(v1, 32));
    }
    _mm256_storeu_si256((__m256i *)(void *)w, _mm256_add_epi64(words0, words1));
    _mm256_storeu_si256((__m256i *)(void *)u, _mm256_add_epi64(upper0, upper1));
    for (unsigned i = 0; i < 4; i++) {
        total = mn_csum_add64(total, lane_total(w[i], u[i]));
    }
    return mn_csum_reduce64(mn_csum_tail(dst, p, len, total));
}

static AVX2 uint32_t partial_avx2(const uint8_t *p, uint32_t len, uint32_t sum)
{
    return sum_avx2(NULL, p, len, sum);
}

static AVX2 uint32_t copy_avx2(uint8_t *dst, const uint8_t *src, uint32_t len, uint32_t sum)
{
    return sum_avx2(dst, src, len, sum);
}

#endif

void mn_csum_select(uint32_t features)
{
    mn_csum_partial_long = partial_portable;
    mn_csum_copy_long = copy_portable;
#if defined(__x86_64__)
    if ((features & MN_CPU_AVX2) != 0) {
        mn_csum_partial_long = partial_avx2;
        mn_csum_copy_long = copy_avx2;
    }
#else
    (void)features;
#endif
}
