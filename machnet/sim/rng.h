/* SPDX-License-Identifier: MIT */
/* Streams of pseudo-random numbers for simulated faults (SplitMix64: Steele, Lea, Flood 2014).
 *
 * Every purpose has a stream of its own, made from the network's seed and a name, so that a draw
 * more in one place shifts nothing anywhere else. Not for secrets. */
#ifndef MN_SIM_RNG_H
#define MN_SIM_RNG_H

#include "machnet/stack/core/base.h"

#define MN_RNG_STEP UINT64_C(0x9e3779b97f4a7c15)

struct mn_rng {
    uint64_t state;
};

static inline uint64_t mn_rng_next(struct mn_rng *r)
{
    uint64_t z = (r->state += MN_RNG_STEP);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* As if a number were drawn. */
static inline void mn_rng_skip(struct mn_rng *r)
{
    r->state += MN_RNG_STEP;
}

/* The stream of a name under a seed. */
static inline void mn_rng_init(struct mn_rng *r, uint64_t seed, const char *name)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (; *name != '\0'; name++) {
        h = (h ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    }
    r->state = seed;
    r->state = mn_rng_next(r) ^ h;
    (void)mn_rng_next(r);
}

/* Uniform below n, which is not 0. */
static inline uint64_t mn_rng_below(struct mn_rng *r, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)mn_rng_next(r) * n) >> 64);
}

/* True with a probability of ppb / 1e9. Draws once, also at 0 and at 1e9. */
static inline bool mn_rng_chance(struct mn_rng *r, uint32_t ppb)
{
    if (ppb == 0) {
        mn_rng_skip(r);
        return false;
    }
    return mn_rng_below(r, 1000000000u) < ppb;
}

#endif
