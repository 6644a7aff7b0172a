/* SPDX-License-Identifier: MIT */
/* Segments in: the checks and their order of RFC 9293 3.10.7, with RFC 5961, RFC 7323 and RFC 1337.
 */
#include "handoff.h"

#define PAWS_IDLE_NS                                                                               \
    (UINT64_C(24) * 86400 * MN_NS_PER_S) /* after it TS.Recent says nothing (RFC 7323 5.5) */

/* Steps 1: is any part of it in the window? RFC 9293 table 6, with the promised right edge as the
 * window's end. */
static bool seq_acceptable(const struct mn_tcb *t, const struct mn_seg *s)
{
    uint32_t len = mn_seg_end(s) - s->seq;
    uint32_t wnd = mn_seq_gt(t->rcv_adv, t->rcv_nxt) ? t->rcv_adv - t->rcv_nxt : 0;

    if (wnd == 0) {
        return len == 0 && s->seq == t->rcv_nxt;
    }
    if (len == 0) {
        return s->seq - t->rcv_nxt < wnd;
    }
    return s->seq - t->rcv_nxt < wnd || s->seq + len - 1 - t->rcv_nxt < wnd;
}

/* Data or FIN at rcv_nxt while the window is closed: the ACK in it still counts (RFC 9293 3.10.7.4,
 * first step). */
static bool zero_window_exception(const struct mn_tcb *t, const struct mn_seg *s)
{
    return !mn_seq_gt(t->rcv_adv, t->rcv_nxt) && s->seq == t->rcv_nxt &&
           (s->flags & MN_TCP_SYN) == 0;
}

static void unacceptable(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    uint32_t end = mn_seg_end(s);

    e->stats.drop_tcp_seq++;
    if (t->state == MN_TCP_TIME_WAIT && (s->flags & MN_TCP_FIN) != 0 && end == t->rcv_nxt) {
        mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + 2 * e->cfg.msl_ms * MN_NS_PER_MS);
    }
    if (s->len > 0 || (s->flags & MN_TCP_FIN) != 0) {
        if ((t->flags & MN_TF_SACK) != 0 && s->len > 0 && mn_seq_le(end, t->rcv_nxt) &&
            t->dsack_left == t->dsack_right) {
            t->dsack_left = s->seq;
            t->dsack_right = s->seq + s->len;
        }
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
        if (t->state == MN_TCP_TIME_WAIT || mn_tx_room(e, 2)) {
            mn_tcp_send_ack(e, t);
        }
        return;
    }
    mn_tcp_challenge(e, t);
}

/* RFC 7323 section 5. False: the segment ends here. */
static bool timestamps_ok(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    if ((t->flags & MN_TF_TS) == 0 || (s->flags & MN_TCP_RST) != 0) {
        return true;
    }
    if (!s->opts.has_ts) {
        e->stats.drop_tcp_no_ts++;
        return false;
    }
    if (MN_UNLIKELY(mn_seq_lt(s->opts.tsval, t->ts_recent)) &&
        e->now_ns - t->ts_recent_ns < PAWS_IDLE_NS) {
        e->stats.drop_tcp_paws++;
        if (s->len > 0 || (s->flags & MN_TCP_FIN) != 0) {
            mn_tcp_send_ack(e, t);
        } else {
            mn_tcp_challenge(e, t);
        }
        return false;
    }
    return true;
}

/* Judged by its sequence number alone (RFC 5961 section 3): exact resets, in the window asks,
 * outside is dropped. */
static void reset_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    uint32_t wnd = mn_seq_gt(t->rcv_adv, t->rcv_nxt) ? t->rcv_adv - t->rcv_nxt : 0;

    if (s->seq != t->rcv_nxt && s->seq - t->rcv_nxt >= wnd) {
        e->stats.drop_tcp_seq++;
        return;
    }
    if (t->state == MN_TCP_TIME_WAIT) {
        e->stats.drop_tcp_state++; /* RFC 1337: no assassination */
        return;
    }
    if (s->seq != t->rcv_nxt) {
        mn_tcp_challenge(e, t); /* RFC 5961 section 3 */
        return;
    }
    e->stats.tcp_resets_received++;
    if (t->state == MN_TCP_SYN_RECEIVED) {
        /* Back to LISTEN, or refused (MUST-11). */
        mn_tcp_drop(e, t, ECONNREFUSED);
        return;
    }
    /* In CLOSING and LAST-ACK it is the end that was wanted, if all data have arrived. */
    mn_tcp_drop(e, t,
                t->state >= MN_TCP_CLOSING && mn_seq_ge(t->snd_una, t->snd_end) ? 0 : ECONNRESET);
}

static void urgent_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    uint32_t up = s->seq + s->urg;

    if ((t->flags & MN_TF_URG_RCV) != 0 && mn_seq_le(t->rcv_up, t->rcv_nxt)) {
        t->flags &= ~MN_TF_URG_RCV; /* the old mark was passed */
    }
    if ((t->flags & MN_TF_URG_RCV) != 0 && !mn_seq_gt(up, t->rcv_up)) {
        return;
    }
    if (mn_seq_le(up, t->rcv_nxt)) {
        return; /* points at what was read */
    }
    t->rcv_up = up;
    t->flags |= MN_TF_URG_RCV;
    if (t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_URGENT, 0);
    }
}

/* The ACK of our SYN in SYN-RECEIVED: establishes, or false when the segment ends here. */
static bool syn_received_ack(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    if (!mn_seq_gt(s->ack, t->snd_una) || mn_seq_gt(s->ack, t->snd_nxt)) {
        const struct mn_tuple flow = {t->laddr, t->raddr, t->lport, t->rport, MN_IPPROTO_TCP};

        /* Its SYN came twice, to two engines, and the peer has gone on with the other one. */
        if ((t->flags & MN_TF_PASSIVE) != 0 && mn_handoff(e, &flow)) {
            return false;
        }
        e->stats.drop_tcp_ack++;
        mn_tcp_reply_rst(e, s);
        return false;
    }
    if ((t->flags & MN_TF_PASSIVE) != 0 && t->user == NULL) {
        const struct mn_listener *l = &e->listeners[t->listener];

        if (!l->live || l->id != t->listener_id) {
            mn_tcp_abort(e, t, ECONNABORTED);
            return false;
        }
        if (!mn_lane_accept(e, t)) {
            e->stats.drop_syn_backlog++;
            return false; /* the peer, or our SYN-ACK's timer, tries again */
        }
    }
    bool scaled = (t->flags & MN_TF_WSCALE) != 0 && (s->flags & MN_TCP_SYN) == 0;
    t->snd_wnd = s->wnd << (scaled ? t->snd_wscale : 0);
    t->snd_wnd_max = t->snd_wnd;
    t->snd_wl1 = s->seq;
    t->snd_wl2 = s->ack;
    if ((t->flags & (MN_TF_RTT | MN_TF_KARN)) == MN_TF_RTT) {
        mn_tcp_rtt_sample(e, t, e->now_ns - t->rtt_at);
    }
    t->flags &= ~MN_TF_RTT;
    t->snd_una = t->iss + 1;
    mn_tcp_rtx_stop(t);
    mn_tcp_established(e, t);
    if ((t->flags & MN_TF_PASSIVE) == 0 && t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_CONNECTED, 0);
    }
    return true;
}

/* The SYN that we have, in SYN-RECEIVED. Alone it asks for our answer once more; from the other
 * side of a simultaneous open it is an answer itself (RFC 9293 3.5, figure 8), although its number
 * lies before the window. */
static void syn_again(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    if ((s->flags & MN_TCP_ACK) == 0) {
        e->stats.drop_tcp_seq++;
        t->flags |= MN_TF_RTX_ONE;
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if ((t->flags & MN_TF_PASSIVE) != 0 || s->ack != t->snd_nxt || s->len > 0 ||
        (s->flags & MN_TCP_FIN) != 0) {
        e->stats.drop_tcp_seq++;
        mn_tcp_challenge(e, t);
        return;
    }
    if (syn_received_ack(e, t, s)) {
        t->last_rx_ns = e->now_ns;
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
}

void mn_tcp_segment(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s)
{
    bool probe = false;

    if (!timestamps_ok(e, t, s)) {
        return;
    }
    if (MN_UNLIKELY((s->flags & MN_TCP_RST) != 0)) {
        reset_in(e, t, s);
        return;
    }
    if (MN_UNLIKELY(t->state == MN_TCP_SYN_RECEIVED && s->seq == t->irs) &&
        (s->flags & MN_TCP_SYN) != 0) {
        syn_again(e, t, s);
        return;
    }
    if (MN_UNLIKELY(!seq_acceptable(t, s))) {
        if (!zero_window_exception(t, s)) {
            unacceptable(e, t, s);
            return;
        }
        probe = s->len > 0; /* a bare FIN needs no room */
    }
    if (MN_UNLIKELY((s->flags & MN_TCP_SYN) != 0)) {
        if (t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0) {
            mn_tcp_drop(e, t, ECONNABORTED); /* RFC 9293 step 4: back to LISTEN */
        } else {
            mn_tcp_challenge(e, t); /* RFC 5961 section 4 */
        }
        return;
    }
    if (MN_UNLIKELY((s->flags & MN_TCP_ACK) == 0)) {
        e->stats.drop_tcp_state++;
        return;
    }
    if (MN_UNLIKELY(t->state == MN_TCP_SYN_RECEIVED) && !syn_received_ack(e, t, s)) {
        return;
    }
    uint32_t last_ack_sent = t->last_ack_sent;
    if (!mn_tcp_ack_in(e, t, s)) {
        return;
    }
    /* Only now is it certain that the peer itself speaks (RFC 5961 section 5). */
    t->last_rx_ns = e->now_ns;
    mn_tcp_keep_touch(e, t);
    if ((t->flags & MN_TF_TS) != 0 && s->opts.has_ts && mn_seq_le(s->seq, last_ack_sent)) {
        t->ts_recent = s->opts.tsval;
        t->ts_recent_ns = e->now_ns;
    }
    if (MN_UNLIKELY((s->flags & MN_TCP_URG) != 0) && t->state <= MN_TCP_FIN_WAIT_2) {
        urgent_in(e, t, s);
    }
    if (MN_UNLIKELY(probe)) {
        e->stats.drop_tcp_seq++; /* a window probe: answered, not taken */
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if (s->len > 0 || (s->flags & MN_TCP_FIN) != 0) {
        mn_tcp_data_in(e, t, s);
    }
}

/* RFC 9293 3.10.7.3. */
void mn_tcp_syn_sent(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s)
{
    bool ack = (s->flags & MN_TCP_ACK) != 0;

    if (ack && (!mn_seq_gt(s->ack, t->iss) || mn_seq_gt(s->ack, t->snd_nxt))) {
        e->stats.drop_tcp_ack++;
        mn_tcp_reply_rst(e, s);
        return;
    }
    if ((s->flags & MN_TCP_RST) != 0) {
        if (!ack) {
            e->stats.drop_tcp_state++;
            return;
        }
        e->stats.tcp_resets_received++;
        mn_tcp_drop(e, t, ECONNREFUSED);
        return;
    }
    if ((s->flags & MN_TCP_SYN) == 0) {
        e->stats.drop_tcp_state++;
        return;
    }
    t->irs = s->seq;
    t->rcv_nxt = t->usr_nxt = s->seq + 1;
    t->rcv_adv = t->rcv_nxt + mn_min_u32(t->rcv_buf, 65535);
    t->last_ack_sent = t->rcv_nxt;
    t->last_rx_ns = e->now_ns;
    mn_tcp_apply_syn_options(e, t, s);
    t->snd_wnd = t->snd_wnd_max = s->wnd; /* never scaled in a SYN */
    t->snd_wl1 = s->seq;
    t->snd_wl2 = ack ? s->ack : t->iss;
    if (!ack) {
        /* Simultaneous open (MUST-10). */
        mn_tcp_set_state(e, t, MN_TCP_SYN_RECEIVED);
        t->backoff = 0;
        t->flags |= MN_TF_RTX_ONE;
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if ((t->flags & (MN_TF_RTT | MN_TF_KARN)) == MN_TF_RTT) {
        mn_tcp_rtt_sample(e, t, e->now_ns - t->rtt_at);
    }
    t->flags &= ~MN_TF_RTT;
    t->snd_una = s->ack;
    mn_tcp_rtx_stop(t);
    mn_tcp_established(e, t);
    t->flags |= MN_TF_ACK_NOW;
    if (t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_CONNECTED, 0);
    }
}
