/* SPDX-License-Identifier: MIT */
/* Congestion control behind four calls; one file per algorithm. All quantities are bytes. */
#ifndef MN_CC_H
#define MN_CC_H

#include "base.h"

#define MN_CWND_MAX (1u << 30)

struct mn_cc;

struct mn_cc_ops {
    const char *name;
    /* New data acknowledged outside recovery; in_flight is what was outstanding before the
     * acknowledgement. */
    void (*on_ack)(struct mn_cc *cc, uint32_t acked, uint32_t in_flight, uint64_t now_ns);
    /* Loss found by duplicate acknowledgements: sets ssthresh and cwnd. */
    void (*on_loss)(struct mn_cc *cc, uint32_t in_flight);
    /* Retransmission timeout; first is false when the same data time out again. */
    void (*on_rto)(struct mn_cc *cc, uint32_t in_flight, bool first);
    /* Nothing was sent for longer than an RTO. */
    void (*on_idle)(struct mn_cc *cc);
};

struct mn_cc {
    const struct mn_cc_ops *ops;
    uint32_t cwnd;
    uint32_t ssthresh;
    uint32_t mss;
    uint32_t initial_window;
    uint32_t acked; /* counted towards the next increase in congestion avoidance */
    uint32_t priv[6];
};

extern const struct mn_cc_ops mn_cc_reno;
extern const struct mn_cc_ops mn_cc_rate;

/* mn_cc_rate: a round trip is over, in which so many bytes per least RTT have arrived. app_limited:
 * there could have been more. */
void mn_cc_rate_round(struct mn_cc *cc, uint32_t bytes, bool app_limited);
/* mn_cc_rate, before on_loss: does the RTT show a queue? */
void mn_cc_rate_queue(struct mn_cc *cc, bool queue);

/* initial_segments as in RFC 6928: at most 10, and no more than 14600 bytes or two segments. */
static inline void mn_cc_init(struct mn_cc *cc, const struct mn_cc_ops *ops, uint32_t mss,
                              uint32_t initial_segments)
{
    uint32_t iw = mn_min_u32(initial_segments * mss, mn_max_u32(2 * mss, initial_segments * 1460));

    *cc = (struct mn_cc){
        .ops = ops, .cwnd = iw, .ssthresh = MN_CWND_MAX, .mss = mss, .initial_window = iw};
}

#endif
