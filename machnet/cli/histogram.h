/* SPDX-License-Identifier: MIT */
/*
 * A log-linear histogram of durations: 1 ns to 60 s in constant memory, with every value kept to
 * three significant digits (an error of at most 1/1024). The buckets are those of an HdrHistogram
 * with the same range and precision, so the counts of one can be added to the other.
 */
#ifndef MN_CLI_HISTOGRAM_H
#define MN_CLI_HISTOGRAM_H

#include <assert.h>
#include <stdint.h>

/* Values below 2 * MN_HIST_HALF have a bucket each; above, every power of two has MN_HIST_HALF. */
#define MN_HIST_HALF_BITS 10u
#define MN_HIST_HALF      (1u << MN_HIST_HALF_BITS)
#define MN_HIST_BUCKETS   (27u * MN_HIST_HALF)
/* Longer durations are counted in the bucket of this one; `max_ns` and `sum_ns` stay exact. */
#define MN_HIST_TOP_NS UINT64_C(60000000000)
/* Quantiles are given in millionths: 500000 is the median, 999000 the 99.9th percentile. */
#define MN_HIST_QUANTILE_ONE 1000000u

struct mn_hist {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t min_ns; /* UINT64_MAX while empty */
    uint64_t max_ns;
    uint64_t over_top; /* how many were longer than MN_HIST_TOP_NS */
    uint64_t buckets[MN_HIST_BUCKETS];
};

static inline uint32_t mn_hist_bucket(uint64_t value_ns)
{
    if (value_ns > MN_HIST_TOP_NS)
        value_ns = MN_HIST_TOP_NS;
    if (value_ns < 2 * MN_HIST_HALF)
        return (uint32_t)value_ns;
    uint32_t shift = 63u - MN_HIST_HALF_BITS - (uint32_t)__builtin_clzll(value_ns);
    return shift * MN_HIST_HALF + (uint32_t)(value_ns >> shift);
}

static inline void mn_hist_record(struct mn_hist *hist, uint64_t value_ns)
{
    hist->buckets[mn_hist_bucket(value_ns)]++;
    hist->count++;
    hist->sum_ns += value_ns;
    if (value_ns < hist->min_ns)
        hist->min_ns = value_ns;
    if (value_ns > hist->max_ns)
        hist->max_ns = value_ns;
    if (value_ns > MN_HIST_TOP_NS)
        hist->over_top++;
}

/* Empties a histogram; also the way to initialise one. */
void mn_hist_reset(struct mn_hist *hist);
/* Adds what `from` has counted to `into`. */
void mn_hist_merge(struct mn_hist *into, const struct mn_hist *from);
/* The smallest duration that at least this share of the values does not exceed, rounded up to the
 * end of its bucket but never above the maximum. 0 while empty. */
uint64_t mn_hist_quantile_ns(const struct mn_hist *hist, uint32_t quantile_ppm);
/* 0 while empty. */
double mn_hist_mean_ns(const struct mn_hist *hist);
/* The longest duration that is counted in a bucket. */
uint64_t mn_hist_bucket_end_ns(uint32_t bucket);

#endif
