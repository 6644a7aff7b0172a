/* SPDX-License-Identifier: MIT */
/* Slow start and congestion avoidance of RFC 5681, counting bytes as RFC 3465 does, so that
 * splitting acknowledgements gains nothing. */
#include "cc.h"

static void reno_on_ack(struct mn_cc *cc, uint32_t acked, uint32_t in_flight, uint64_t now_ns)
{
    (void)now_ns;
    if (cc->cwnd < cc->ssthresh) {
        /* A sender that uses less than half of its window learns nothing about the path: the window
         * stays. */
        if (in_flight < cc->cwnd / 2) {
            return;
        }
        cc->cwnd = mn_min_u32(cc->cwnd + mn_min_u32(acked, 2 * cc->mss), MN_CWND_MAX);
        return;
    }
    if (in_flight + cc->mss < cc->cwnd) {
        return;
    }
    cc->acked += mn_min_u32(acked, cc->cwnd);
    if (cc->acked >= cc->cwnd) {
        cc->acked -= cc->cwnd;
        cc->cwnd = mn_min_u32(cc->cwnd + cc->mss, MN_CWND_MAX);
    }
}

static uint32_t reno_ssthresh(const struct mn_cc *cc, uint32_t in_flight)
{
    return mn_max_u32(in_flight / 2, 2 * cc->mss);
}

static void reno_on_loss(struct mn_cc *cc, uint32_t in_flight)
{
    cc->ssthresh = reno_ssthresh(cc, in_flight);
    cc->cwnd = cc->ssthresh;
    cc->acked = 0;
}

static void reno_on_rto(struct mn_cc *cc, uint32_t in_flight, bool first)
{
    /* RFC 5681, 3.1: ssthresh is set once for a segment, however often it times out. */
    if (first) {
        cc->ssthresh = reno_ssthresh(cc, in_flight);
    }
    cc->cwnd = cc->mss;
    cc->acked = 0;
}

static void reno_on_idle(struct mn_cc *cc)
{
    cc->cwnd = mn_min_u32(cc->cwnd, cc->initial_window);
}

const struct mn_cc_ops mn_cc_reno = {
    .name = "reno",
    .on_ack = reno_on_ack,
    .on_loss = reno_on_loss,
    .on_rto = reno_on_rto,
    .on_idle = reno_on_idle,
};
