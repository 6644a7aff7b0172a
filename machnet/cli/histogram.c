/* SPDX-License-Identifier: MIT */
#include "machnet/cli/histogram.h"

#include <string.h>

void mn_hist_reset(struct mn_hist *hist)
{
    memset(hist, 0, sizeof(*hist));
    hist->min_ns = UINT64_MAX;
}

void mn_hist_merge(struct mn_hist *into, const struct mn_hist *from)
{
    if (from->count == 0)
        return;
    uint32_t last = mn_hist_bucket(from->max_ns);
    for (uint32_t i = mn_hist_bucket(from->min_ns); i <= last; i++)
        into->buckets[i] += from->buckets[i];
    into->count += from->count;
    into->sum_ns += from->sum_ns;
    into->over_top += from->over_top;
    if (from->min_ns < into->min_ns)
        into->min_ns = from->min_ns;
    if (from->max_ns > into->max_ns)
        into->max_ns = from->max_ns;
}

uint64_t mn_hist_bucket_end_ns(uint32_t bucket)
{
    if (bucket < 2 * MN_HIST_HALF)
        return bucket;
    uint32_t shift = bucket / MN_HIST_HALF - 1;
    uint64_t first = (uint64_t)(bucket - shift * MN_HIST_HALF) << shift;
    return first + (UINT64_C(1) << shift) - 1;
}

uint64_t mn_hist_quantile_ns(const struct mn_hist *hist, uint32_t quantile_ppm)
{
    if (hist->count == 0)
        return 0;
    if (quantile_ppm > MN_HIST_QUANTILE_ONE)
        quantile_ppm = MN_HIST_QUANTILE_ONE;
    /* ceil(count * quantile), split so that the product can't overflow. */
    uint64_t whole = hist->count / MN_HIST_QUANTILE_ONE;
    uint64_t rest = hist->count % MN_HIST_QUANTILE_ONE;
    uint64_t rank = whole * quantile_ppm +
                    (rest * quantile_ppm + MN_HIST_QUANTILE_ONE - 1) / MN_HIST_QUANTILE_ONE;
    if (rank == 0)
        return hist->min_ns;

    uint32_t last = mn_hist_bucket(hist->max_ns);
    uint64_t seen = 0;
    for (uint32_t i = mn_hist_bucket(hist->min_ns); i < last; i++) {
        seen += hist->buckets[i];
        if (seen >= rank)
            return mn_hist_bucket_end_ns(i);
    }
    return hist->max_ns;
}

double mn_hist_mean_ns(const struct mn_hist *hist)
{
    return hist->count == 0 ? 0.0 : (double)hist->sum_ns / (double)hist->count;
}
