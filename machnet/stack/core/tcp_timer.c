/* SPDX-License-Identifier: MIT */
/*
 * Timers of a connection: retransmission and persist (one at a time), delayed ACK, waiting (SYN,
 * FIN-WAIT-2, TIME-WAIT, linger), keep-alive. Each has a due time; one wheel timer is armed no
 * later than the earliest and is moved lazily, so that an acknowledgement that pushes the
 * retransmission timer costs a store.
 */
#include "engine_int.h"

#define SYN_ACK_RETRIES 5u

void mn_tcp_timer_set(struct mn_engine *e, struct mn_tcb *t, uint64_t *field, uint64_t at_ns)
{
    *field = at_ns;
    if (!mn_timer_armed(&t->timer) || (t->timer.tick << MN_TIMER_TICK_SHIFT) > at_ns) {
        mn_timer_arm(&e->wheel, &t->timer, at_ns);
    }
}

bool mn_tcp_timer_due(const struct mn_engine *e, uint64_t *field)
{
    if (*field == 0 || *field > e->now_ns) {
        return false;
    }
    *field = 0;
    return true;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return b != 0 && b < a ? b : a;
}

static void timer_rearm(struct mn_engine *e, struct mn_tcb *t)
{
    uint64_t at = MN_NEVER;

    at = earlier(at, t->rtx_at);
    at = earlier(at, t->delack_at);
    at = earlier(at, t->wait_at);
    at = earlier(at, t->keep_at);
    if (t->mcb != MN_NIL) {
        at = earlier(at, mn_mcb_of(e, t)->reo_at);
    }
    if (at != MN_NEVER) {
        mn_timer_arm(&e->wheel, &t->timer, at);
    }
}

static uint64_t rto_ns(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint64_t us = (uint64_t)t->rto_us << mn_min_u32(t->backoff, 32);

    return mn_min_u64(us, t->mcb == MN_NIL ? e->cfg.rto_max_us : e->cfg.mnp_rto_max_us) *
           MN_NS_PER_US;
}

/* Since when the peer owes an answer: with a closed window any answer counts (MUST-37). */
static uint64_t r2_since(const struct mn_tcb *t)
{
    return t->snd_wnd == 0 ? mn_max_u64(t->rtx_since, t->last_rx_ns) : t->rtx_since;
}

void mn_tcp_rtx_arm(struct mn_engine *e, struct mn_tcb *t)
{
    uint64_t at = e->now_ns + rto_ns(e, t);

    if (t->rtx_since == 0) {
        t->rtx_since = e->now_ns;
    }
    if (t->state >= MN_TCP_ESTABLISHED && (t->flags & MN_TF_PERSIST) == 0 &&
        t->user_timeout_ms != 0) {
        /* The last interval ends with R2, not after it. */
        at = mn_min_u64(at,
                        mn_max_u64(r2_since(t) + t->user_timeout_ms * MN_NS_PER_MS, e->now_ns + 1));
    }
    mn_tcp_timer_set(e, t, &t->rtx_at, at);
}

void mn_tcp_rtx_stop(struct mn_tcb *t)
{
    t->rtx_at = 0;
    t->rtx_since = 0;
    t->retries = 0;
    t->flags &= ~(MN_TF_PERSIST | MN_TF_R1);
}

void mn_tcp_rtt_sample(struct mn_engine *e, struct mn_tcb *t, uint64_t rtt_ns)
{
    uint32_t us = (uint32_t)mn_min_u64(mn_max_u64(rtt_ns / MN_NS_PER_US, 1), 60000000);

    if (t->srtt_us == 0) {
        t->srtt_us = us << 3;
        t->rttvar_us = us << 1;
    } else {
        uint32_t srtt = t->srtt_us >> 3;
        uint32_t err = srtt > us ? srtt - us : us - srtt;

        /* RFC 6298 2.3, in this order: RTTVAR uses the old SRTT. Scaled by 4 and 8. */
        t->rttvar_us = t->rttvar_us - (t->rttvar_us >> 2) + err;
        t->srtt_us = t->srtt_us - (t->srtt_us >> 3) + us;
    }
    uint64_t rto = (uint64_t)(t->srtt_us >> 3) + mn_max_u32(1, t->rttvar_us);
    uint32_t low = t->mcb == MN_NIL ? e->cfg.rto_min_us : e->cfg.mnp_rto_min_us;
    uint32_t high = t->mcb == MN_NIL ? e->cfg.rto_max_us : e->cfg.mnp_rto_max_us;
    t->rto_us = (uint32_t)mn_min_u64(mn_max_u64(rto, low), high);
    t->backoff = 0;
}

static bool r2_over(const struct mn_engine *e, const struct mn_tcb *t, uint64_t since)
{
    return t->user_timeout_ms != 0 && e->now_ns >= since + t->user_timeout_ms * MN_NS_PER_MS;
}

/* Zero window, or too small a window for silly-window avoidance: probe; a peer that answers is
 * waited for without end (MUST-37). */
static bool persist_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if (r2_over(e, t, mn_max_u64(t->rtx_since, t->last_rx_ns))) {
        e->stats.tcp_timeouts++;
        mn_tcp_abort(e, t, ETIMEDOUT);
        return false;
    }
    t->flags |= MN_TF_PROBE_NOW;
    if (t->backoff < 32) {
        t->backoff++;
    }
    mn_tcp_mark_dirty(e, t);
    return true;
}

static bool syn_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_PASSIVE) != 0 && t->retries >= SYN_ACK_RETRIES) {
        mn_tcp_drop(e, t, ETIMEDOUT);
        return false;
    }
    t->retries = (uint8_t)mn_min_u32(t->retries + 1u, 255);
    if (t->backoff < 32) {
        t->backoff++;
    }
    t->retransmits++;
    e->stats.tcp_rto++;
    e->stats.tcp_retransmits++;
    t->flags |= MN_TF_SYN_TIMEOUT | MN_TF_RTX_ONE | MN_TF_KARN;
    t->flags &= ~MN_TF_RTT;
    mn_tcp_mark_dirty(e, t);
    return true;
}

static bool rtx_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->state == MN_TCP_SYN_SENT || t->state == MN_TCP_SYN_RECEIVED) {
        return syn_fire(e, t);
    }
    if ((t->flags & MN_TF_PERSIST) != 0) {
        return persist_fire(e, t);
    }
    if (t->snd_una == t->snd_nxt) {
        return true;
    }
    if (r2_over(e, t, r2_since(t))) {
        e->stats.tcp_timeouts++;
        mn_tcp_drop(e, t, ETIMEDOUT);
        return false;
    }
    if (t->snd_wnd == 0 && t->snd_nxt != t->snd_end + 1) {
        /* The peer has closed the window over what is in flight: no timeout for that (SHLD-17), a
         * probe. */
        t->flags |= MN_TF_PERSIST;
        return persist_fire(e, t);
    }
    e->stats.tcp_rto++;
    t->retries = (uint8_t)mn_min_u32(t->retries + 1u, 255);
    if (t->retries >= e->cfg.r1_retries && (t->flags & MN_TF_R1) == 0) {
        t->flags |= MN_TF_R1;
        mn_nbr_suspect(e, mn_ip_known_hop(e, t->raddr, t->nbr));
        if (t->user != NULL) {
            t->user->event(e, t, MN_TCP_EV_SOFT, ETIMEDOUT);
        }
    }
    uint32_t in_flight = t->snd_nxt - t->snd_una;
    in_flight -= mn_min_u32(t->limited_bytes, in_flight);
    t->cc.ops->on_rto(&t->cc, in_flight, t->retries == 1);
    if (t->backoff < 32) {
        t->backoff++;
    }
    mn_sack_clear(e, t);
    t->recovery = MN_REC_LOSS;
    t->recover = t->snd_nxt;
    t->rtx_nxt = t->snd_una;
    t->dupacks = 0;
    t->dup_credit = 0;
    t->limited_bytes = 0;
    t->flags |= MN_TF_RTX_ONE | MN_TF_KARN;
    t->flags &= ~(MN_TF_RTT | MN_TF_RESCUED);
    mn_tcp_mark_dirty(e, t);
    mn_tcp_rtx_arm(e, t);
    return true;
}

static bool wait_fire(struct mn_engine *e, struct mn_tcb *t)
{
    switch (t->state) {
    case MN_TCP_TIME_WAIT:
    case MN_TCP_FIN_WAIT_2:
        mn_tcp_drop(e, t, t->state == MN_TCP_TIME_WAIT ? 0 : ETIMEDOUT);
        return false;
    case MN_TCP_SYN_SENT:
        e->stats.tcp_timeouts++;
        mn_tcp_drop(e, t, ETIMEDOUT);
        return false;
    case MN_TCP_CLOSE_WAIT:
        t->user->event(e, t, MN_TCP_EV_TIMER, 0);
        return false; /* the user may have closed it; what else was due comes with its own timer */
    default:
        /* The linger time of an orphan is over. */
        mn_tcp_abort(e, t, ETIMEDOUT);
        return false;
    }
}

void mn_tcp_user_timer(struct mn_engine *e, struct mn_tcb *t, uint64_t at_ns)
{
    if (at_ns == 0) {
        t->wait_at = 0;
    } else {
        mn_tcp_timer_set(e, t, &t->wait_at, at_ns);
    }
}

/* The connection is alive: the next keep-alive is a whole idle time away (RFC 9293 3.8.4). */
void mn_tcp_keep_touch(struct mn_engine *e, struct mn_tcb *t)
{
    if (MN_LIKELY((t->flags & MN_TF_KEEPALIVE) == 0)) {
        return;
    }
    t->keep_sent = 0;
    mn_tcp_timer_set(e, t, &t->keep_at, e->now_ns + t->keep_idle_s * MN_NS_PER_S);
}

static bool keep_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->state < MN_TCP_ESTABLISHED || t->state > MN_TCP_CLOSE_WAIT) {
        return true;
    }
    bool all_sent = (t->flags & MN_TF_FIN_SENT) != 0 || t->snd_end == t->snd_nxt;
    if (t->snd_una != t->snd_nxt || !all_sent) {
        mn_tcp_keep_touch(e, t); /* not idle: retransmission watches over it */
        return true;
    }
    if (t->keep_sent >= t->keep_count) {
        e->stats.tcp_keepalive_drops++;
        mn_tcp_abort(e, t, ETIMEDOUT);
        return false;
    }
    t->keep_sent++;
    mn_tcp_send_probe(e, t);
    mn_tcp_timer_set(e, t, &t->keep_at, e->now_ns + t->keep_interval_s * MN_NS_PER_S);
    return true;
}

void mn_tcp_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->mcb != MN_NIL) {
        mn_mnp_fire(e, t);
        return;
    }
    if (mn_tcp_timer_due(e, &t->delack_at)) {
        e->stats.tcp_delayed_acks++;
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
    if (mn_tcp_timer_due(e, &t->rtx_at) && !rtx_fire(e, t)) {
        return;
    }
    mn_tcp_fire_slow(e, t);
}

void mn_tcp_fire_slow(struct mn_engine *e, struct mn_tcb *t)
{
    if (mn_tcp_timer_due(e, &t->keep_at) && !keep_fire(e, t)) {
        return;
    }
    if (mn_tcp_timer_due(e, &t->wait_at)) {
        if (t->state == MN_TCP_CLOSE_WAIT) {
            timer_rearm(e, t);
        }
        (void)wait_fire(e, t);
        return;
    }
    timer_rearm(e, t);
}
