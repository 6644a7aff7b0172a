/* SPDX-License-Identifier: MIT */
/* A hash of all bytes of a stream so far that does not depend on how they came in pieces, at a
 * fraction of a nanosecond a word. What it holds apart are the mistakes of a program: it is no
 * defence against anybody who chooses the bytes. */
#ifndef MN_SIM_PREFIX_H
#define MN_SIM_PREFIX_H

#include <stdint.h>

#define MN_PREFIX_BLOCK_BYTES 32u

/* Zeroed: of no bytes. Four words at a time, each into two totals of its own: of what the words
 * become, and of the first total after each word, so that their order counts too. */
struct mn_prefix {
    uint64_t sum[4], order[4];
    uint8_t part[MN_PREFIX_BLOCK_BYTES]; /* bytes that do not fill a block yet */
    uint64_t bytes;
};

void mn_prefix_add(struct mn_prefix *p, const uint8_t *bytes, uint64_t len);
uint64_t mn_prefix_digest(const struct mn_prefix *p);

#endif
