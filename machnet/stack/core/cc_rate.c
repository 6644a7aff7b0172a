/* SPDX-License-Identifier: MIT */
/*
 * Congestion control of the message protocol, in the manner of TCP Westwood: a loss takes the
 * window to what the path has been seen to carry in its least RTT, plus an eighth: a queue is
 * emptied. A loss without a queue takes an eighth at most.
 */
#include "cc.h"

#define ROUNDS    8u /* the best of so many round trips, and of as many before, is believed */
#define FLOOR_PKT 2u

/* Use of priv. */
enum { BEST = 0, BEST_BEFORE = 1, ROUND = 2, LAST = 3, SLOW_LOSS = 4, QUEUE = 5 };

static uint32_t carries(const struct mn_cc *cc)
{
    uint32_t best = mn_max_u32(cc->priv[BEST], cc->priv[BEST_BEFORE]);

    return mn_max_u32(best + best / 8, FLOOR_PKT * cc->mss);
}

static void settle(struct mn_cc *cc)
{
    uint32_t least = mn_max_u32(cc->cwnd - cc->cwnd / 8, FLOOR_PKT * cc->mss);

    if (cc->priv[QUEUE] != 0) {
        least = 0;
    }
    cc->cwnd = mn_min_u32(cc->cwnd, mn_max_u32(carries(cc), least));
    cc->ssthresh = cc->cwnd;
    cc->acked = 0;
    cc->priv[SLOW_LOSS] = 0;
}

void mn_cc_rate_round(struct mn_cc *cc, uint32_t bytes, bool app_limited)
{
    cc->priv[BEST] = mn_max_u32(cc->priv[BEST], bytes);
    if (app_limited) {
        return; /* it says what was sent, not what could have been */
    }
    if (++cc->priv[ROUND] >= ROUNDS) {
        cc->priv[BEST_BEFORE] = cc->priv[BEST];
        cc->priv[BEST] = bytes;
        cc->priv[ROUND] = 0;
    }
    /* Losses, and more packets bring no more through: the end of slow start. */
    if (cc->cwnd < cc->ssthresh && cc->priv[SLOW_LOSS] != 0 &&
        bytes < cc->priv[LAST] + cc->priv[LAST] / 4) {
        settle(cc);
    }
    cc->priv[LAST] = bytes;
}

static void rate_on_ack(struct mn_cc *cc, uint32_t acked, uint32_t in_flight, uint64_t now_ns)
{
    (void)now_ns;
    if (cc->cwnd < cc->ssthresh) {
        /* Who uses less than half of the window learns nothing about the path. */
        if (in_flight >= cc->cwnd / 2) {
            cc->cwnd = mn_min_u32(cc->cwnd + acked, MN_CWND_MAX);
        }
        return;
    }
    if (in_flight + 2 * cc->mss < cc->cwnd) {
        return;
    }
    cc->acked += mn_min_u32(acked, cc->cwnd);
    if (cc->acked >= cc->cwnd) {
        cc->acked -= cc->cwnd;
        cc->cwnd = mn_min_u32(cc->cwnd + cc->mss, MN_CWND_MAX);
    }
}

static void rate_on_loss(struct mn_cc *cc, uint32_t in_flight)
{
    if (cc->cwnd < cc->ssthresh && cc->priv[QUEUE] == 0 && in_flight <= 2 * carries(cc)) {
        cc->priv[SLOW_LOSS] = 1; /* the next round trip decides */
        return;
    }
    settle(cc);
}

static void rate_on_rto(struct mn_cc *cc, uint32_t in_flight, bool first)
{
    (void)in_flight;
    if (first) {
        cc->ssthresh = mn_max_u32(carries(cc), cc->cwnd / 2);
    }
    cc->cwnd = cc->mss;
    cc->acked = 0;
    cc->priv[SLOW_LOSS] = 0;
}

static void rate_on_idle(struct mn_cc *cc)
{
    cc->cwnd = mn_min_u32(cc->cwnd, cc->initial_window);
    cc->priv[BEST] = cc->priv[BEST_BEFORE] = cc->priv[ROUND] = cc->priv[LAST] = 0;
}

void mn_cc_rate_queue(struct mn_cc *cc, bool queue)
{
    cc->priv[QUEUE] = queue;
}

const struct mn_cc_ops mn_cc_rate = {
    .name = "rate",
    .on_ack = rate_on_ack,
    .on_loss = rate_on_loss,
    .on_rto = rate_on_rto,
    .on_idle = rate_on_idle,
};
