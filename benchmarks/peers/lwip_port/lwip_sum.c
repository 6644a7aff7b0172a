/* SPDX-License-Identifier: MIT */
/* The Internet checksum for lwIP's LWIP_CHKSUM hook, 32 bytes at a time (AVX2).
 * lwIP wants the folded sum as it lies in memory: not inverted, not byte-swapped. */
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

uint16_t mn_lwip_sum(const void *data, int len_bytes);

static inline uint16_t fold(uint64_t sum)
{
    sum = (sum >> 32) + (sum & 0xffffffffu);
    sum = (sum >> 32) + (sum & 0xffffffffu);
    sum = (sum >> 16) + (sum & 0xffffu);
    sum = (sum >> 16) + (sum & 0xffffu);
    return (uint16_t)sum;
}

static inline uint64_t add_carry(uint64_t sum, uint64_t word)
{
    sum += word;
    return sum + (sum < word);
}

/* Words of 8, 4, 2 and 1 bytes: what is left of the vectors, or all of it without AVX2. */
static inline uint64_t sum_tail(const uint8_t *at, uint32_t len_bytes, uint64_t sum)
{
    uint64_t word;
    uint32_t half;
    uint16_t pair;

    for (; len_bytes >= 8; len_bytes -= 8, at += 8) {
        memcpy(&word, at, 8);
        sum = add_carry(sum, word);
    }
    if (len_bytes & 4) {
        memcpy(&half, at, 4);
        sum = add_carry(sum, half);
        at += 4;
    }
    if (len_bytes & 2) {
        memcpy(&pair, at, 2);
        sum = add_carry(sum, pair);
        at += 2;
    }
    if (len_bytes & 1)
        sum = add_carry(sum, *at);
    return sum;
}

#ifdef __AVX2__
/* 32-bit lanes hold sums of 16-bit words: room for 32,768 vectors before one could overflow. */
static inline __m256i add_words(__m256i lanes, __m256i words)
{
    const __m256i low = _mm256_set1_epi32(0xffff);

    lanes = _mm256_add_epi32(lanes, _mm256_and_si256(words, low));
    return _mm256_add_epi32(lanes, _mm256_srli_epi32(words, 16));
}

static inline uint64_t lanes_total(__m256i lanes)
{
    const __m256i zero = _mm256_setzero_si256();
    const __m256i wide =
        _mm256_add_epi64(_mm256_unpacklo_epi32(lanes, zero), _mm256_unpackhi_epi32(lanes, zero));
    const __m128i two =
        _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));

    return (uint64_t)_mm_cvtsi128_si64(two) + (uint64_t)_mm_extract_epi64(two, 1);
}

/* Whole vectors from *at on; leaves less than one in *left. */
static inline uint64_t sum_vectors(const uint8_t **at, uint32_t *left)
{
    const __m256i *vector = (const __m256i *)(const void *)*at;
    __m256i even = _mm256_setzero_si256();
    __m256i odd = _mm256_setzero_si256();
    uint32_t count = *left / 32;

    *at += (size_t)count * 32;
    *left %= 32;
    for (; count >= 2; count -= 2, vector += 2) {
        even = add_words(even, _mm256_loadu_si256(vector));
        odd = add_words(odd, _mm256_loadu_si256(vector + 1));
    }
    if (count)
        even = add_words(even, _mm256_loadu_si256(vector));
    return lanes_total(_mm256_add_epi32(even, odd));
}
#endif

uint16_t mn_lwip_sum(const void *data, int len_bytes)
{
    const uint8_t *at = data;
    uint32_t left = (uint32_t)len_bytes;
    uint64_t sum = 0;

#ifdef __AVX2__
    if (left >= 32)
        sum = sum_vectors(&at, &left);
#endif
    return fold(sum_tail(at, left, sum));
}
