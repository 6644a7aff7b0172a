/* SPDX-License-Identifier: MIT */
/* Acknowledgements in: what they free, what they tell about the path, and the recovery they start
 * or end (RFC 5681, 6582, 6675). */
#include "engine_int.h"

static void enter_fast(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t in_flight = t->snd_nxt - t->snd_una;

    in_flight -= mn_min_u32(t->limited_bytes, in_flight);
    t->cc.ops->on_loss(&t->cc, in_flight);
    t->recovery = MN_REC_FAST;
    t->recover = t->snd_nxt;
    t->rtx_nxt = t->snd_una;
    t->dup_credit = mn_min_u32(t->dupacks * t->mss, t->snd_nxt - t->snd_una);
    t->limited_bytes = 0;
    t->flags |= MN_TF_RTX_ONE;
    t->flags &= ~MN_TF_RESCUED;
    e->stats.tcp_fast_recoveries++;
    mn_tcp_mark_dirty(e, t);
    mn_tcp_rtx_arm(e, t);
}

static bool may_enter_fast(const struct mn_tcb *t)
{
    return (t->flags & MN_TF_SACK) != 0 ? mn_seq_ge(t->snd_una, t->recover)
                                        : mn_seq_gt(t->snd_una, t->recover);
}

static void duplicate_ack(struct mn_engine *e, struct mn_tcb *t)
{
    switch (t->recovery) {
    case MN_REC_OPEN:
        t->dupacks++;
        if ((t->dupacks >= MN_DUPTHRESH || mn_sack_head_lost(e, t)) && may_enter_fast(t)) {
            enter_fast(e, t);
        }
        break;
    case MN_REC_FAST:
        /* Without SACK each one tells of a segment that has left the network; never more than are
         * out (G2). */
        t->dup_credit = mn_min_u32(t->dup_credit + t->mss, t->recover - t->snd_una);
        break;
    default:
        break;
    }
    mn_tcp_mark_dirty(e, t);
}

/* A D-SACK (RFC 2883) below the cumulative acknowledgement: it answers a copy. */
static bool tells_duplicate(const struct mn_seg *s)
{
    return s->opts.n_sack > 0 && mn_seq_le(s->opts.sack[0].right, s->ack);
}

/* RFC 6298 with Karn's rule; timestamps tell the copies of a retransmission apart, in milliseconds.
 */
static void sample_rtt(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    if ((t->flags & MN_TF_RTT) != 0 && mn_seq_ge(s->ack, t->rtt_seq)) {
        t->flags &= ~MN_TF_RTT;
        mn_tcp_rtt_sample(e, t, e->now_ns - t->rtt_at);
        return;
    }
    if (tells_duplicate(s)) {
        /* The echo is that of the first copy, whose acknowledgement was lost: it tells no time. But
         * that copies arrive shows that the path is as it was. */
        t->backoff = 0;
        return;
    }
    if ((t->flags & MN_TF_KARN) != 0 && (t->flags & MN_TF_TS) != 0 && s->opts.has_ts &&
        s->opts.tsecr != 0) {
        uint32_t ms = mn_tcp_ts_now(e, t) - s->opts.tsecr;

        if (ms <= e->cfg.rto_max_us / 1000) { /* an echo of something never sent tells nothing */
            mn_tcp_rtt_sample(e, t, ms * MN_NS_PER_MS);
        }
    }
}

static void recovery_progress(struct mn_engine *e, struct mn_tcb *t, uint32_t acked,
                              uint32_t in_flight)
{
    switch (t->recovery) {
    case MN_REC_OPEN:
        t->dupacks = 0;
        t->limited_bytes = 0;
        t->cc.ops->on_ack(&t->cc, acked, in_flight, e->now_ns);
        return;
    case MN_REC_FAST:
        if (mn_seq_ge(t->snd_una, t->recover)) {
            t->recovery = MN_REC_OPEN;
            t->dupacks = 0;
            t->dup_credit = 0;
            t->cc.cwnd = t->cc.ssthresh;
            return;
        }
        /* Partial: the next hole follows at once (RFC 6582 3.2 step 3B); with SACK the scoreboard
         * knows better. */
        if ((t->flags & MN_TF_SACK) == 0) {
            uint32_t back = acked > t->mss ? acked - t->mss : 0;

            t->dup_credit -= mn_min_u32(back, t->dup_credit);
            t->dup_credit = mn_min_u32(t->dup_credit, t->snd_nxt - t->snd_una);
            t->flags |= MN_TF_RTX_ONE;
        }
        return;
    default:
        t->dupacks = 0;
        /* Slow start from one segment: what went out again is all that counts as in flight; one
         * segment at most for each acknowledgement (RFC 3465 2.3). */
        t->cc.ops->on_ack(&t->cc, mn_min_u32(acked, t->mss), t->cc.cwnd, e->now_ns);
        if (mn_seq_ge(t->snd_una, t->recover)) {
            t->recovery = MN_REC_OPEN;
        }
        return;
    }
}

/* True while the connection lives. */
bool mn_tcp_fin_acked(struct mn_engine *e, struct mn_tcb *t)
{
    switch (t->state) {
    case MN_TCP_FIN_WAIT_1:
        mn_tcp_set_state(e, t, MN_TCP_FIN_WAIT_2);
        t->wait_at = 0;
        if ((t->flags & MN_TF_ORPHAN) != 0) {
            mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + e->cfg.fin_wait2_ms * MN_NS_PER_MS);
        }
        return true;
    case MN_TCP_CLOSING:
        mn_tcp_enter_time_wait(e, t);
        return true;
    case MN_TCP_LAST_ACK:
        mn_tcp_drop(e, t, 0);
        return false;
    default:
        return true;
    }
}

static bool new_ack(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    uint32_t in_flight = t->snd_nxt - t->snd_una;
    uint32_t acked = s->ack - t->snd_una;
    bool fin = (t->flags & MN_TF_FIN_SENT) != 0 && s->ack == t->snd_end + 1;

    sample_rtt(e, t, s);
    t->snd_una = s->ack;
    if ((t->flags & MN_TF_KARN) != 0 && mn_seq_ge(t->snd_una, t->karn_end)) {
        t->flags &= ~MN_TF_KARN;
    }
    if (acked > fin && t->user != NULL) {
        t->user->tx_acked(e, t, acked - fin);
    }
    if (t->sack_head != MN_NIL) {
        mn_sack_prune(e, t);
    }
    if (mn_seq_lt(t->rtx_nxt, t->snd_una)) {
        t->rtx_nxt = t->snd_una;
    }
    if ((t->flags & MN_TF_URG_SND) != 0 && mn_seq_ge(t->snd_una, t->snd_up)) {
        t->flags &= ~MN_TF_URG_SND;
    }
    uint32_t nbr = mn_ip_known_hop(e, t->raddr, t->nbr);
    if (nbr != MN_NIL) {
        mn_nbr_confirm(e, nbr);
    }
    recovery_progress(e, t, acked, in_flight);
    if (t->recovery == MN_REC_OPEN && mn_seq_lt(t->recover, t->snd_una - 1)) {
        t->recover = t->snd_una - 1; /* stays within reach of sequence arithmetic */
    }
    if ((t->flags & MN_TF_PERSIST) != 0) {
        t->backoff = 0; /* the peer takes what the persist timer sends */
    }
    mn_tcp_rtx_stop(t);
    if (t->snd_una != t->snd_nxt) {
        mn_tcp_rtx_arm(e, t);
    }
    if ((t->flags & MN_TF_LINGER_PUSH) != 0 && t->wait_at != 0) {
        mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + t->user_timeout_ms * MN_NS_PER_MS);
    }
    if (t->snd_end != t->snd_nxt || t->recovery != MN_REC_OPEN ||
        (t->flags & MN_TF_FIN_QUEUED) != 0) {
        mn_tcp_mark_dirty(e, t);
    }
    return !fin || mn_tcp_fin_acked(e, t);
}

/* The window opened over a probe or over data that waited: go on from snd_una. */
static void leave_persist(struct mn_engine *e, struct mn_tcb *t)
{
    t->backoff = 0;
    mn_tcp_rtx_stop(t);
    t->flags &= ~MN_TF_PROBE_NOW;
    if (t->snd_una != t->snd_nxt) {
        t->flags |= MN_TF_RTX_ONE;
        mn_tcp_rtx_arm(e, t);
    }
    mn_tcp_mark_dirty(e, t);
}

/* RFC 9293 3.10.7.4, step 5: only a segment at least as new as the last one that set the window may
 * set it. */
static void window_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s, uint32_t wnd)
{
    if (!mn_seq_lt(t->snd_wl1, s->seq) &&
        !(t->snd_wl1 == s->seq && mn_seq_le(t->snd_wl2, s->ack))) {
        return;
    }
    bool opened = wnd > t->snd_wnd;
    bool was_closed = t->snd_wnd == 0;
    t->snd_wnd = wnd;
    t->snd_wl1 = s->seq;
    t->snd_wl2 = s->ack;
    t->snd_wnd_max = mn_max_u32(t->snd_wnd_max, wnd);
    if (!opened) {
        return;
    }
    if ((t->flags & MN_TF_PERSIST) != 0) {
        leave_persist(e, t);
    } else if (was_closed && t->snd_una != t->snd_nxt) {
        t->rtx_since = e->now_ns;
        t->flags |= MN_TF_RTX_ONE; /* what went into the closed window was not taken */
        mn_tcp_mark_dirty(e, t);
    } else if (t->snd_end != t->snd_nxt) {
        mn_tcp_mark_dirty(e, t);
    }
}

bool mn_tcp_ack_in(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s)
{
    if (mn_seq_gt(s->ack, t->snd_nxt) || mn_seq_lt(s->ack, t->snd_una - t->snd_wnd_max)) {
        /* Of something never sent (RFC 9293), or too old to be this connection's (RFC 5961 section
         * 5). */
        e->stats.drop_tcp_ack++;
        mn_tcp_challenge(e, t);
        return false;
    }
    uint32_t wnd = s->wnd << ((t->flags & MN_TF_WSCALE) != 0 ? t->snd_wscale : 0);
    bool news = s->opts.n_sack > 0 && mn_sack_update(e, t, s);

    if (mn_seq_gt(s->ack, t->snd_una)) {
        uint32_t una = t->snd_una;

        if (!new_ack(e, t, s)) {
            return false;
        }
        if (news && t->recovery == MN_REC_OPEN && una != t->snd_una && mn_sack_head_lost(e, t) &&
            may_enter_fast(t)) {
            enter_fast(e, t);
        }
    } else if (s->ack == t->snd_una && t->snd_nxt != t->snd_una &&
               (t->flags & MN_TF_PERSIST) == 0) {
        bool plain = s->len == 0 && (s->flags & (MN_TCP_SYN | MN_TCP_FIN)) == 0 &&
                     wnd == t->snd_wnd && wnd != 0;

        if (news || (plain && (t->flags & MN_TF_SACK) == 0) || (plain && s->opts.n_sack == 0)) {
            duplicate_ack(e, t);
        }
    }
    if (mn_seq_ge(s->ack, t->snd_una)) {
        window_in(e, t, s, wnd);
    }
    return true;
}
