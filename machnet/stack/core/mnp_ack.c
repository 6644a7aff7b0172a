/* SPDX-License-Identifier: MIT */
/* What an acknowledgement of the message protocol tells: what has arrived, what is lost (RFC 8985),
 * how long it took, and what the path carries. */
#include "engine_int.h"

#define QUEUE_US   10u                /* a pass of the peer's more or less */
#define MIN_RTT_NS (10 * MN_NS_PER_S) /* a path may have become longer */
/* After it a peer's timestamp says nothing: 2^31 us, half a turn of its clock, are 35 minutes. */
#define TSVAL_IDLE_NS (600 * MN_NS_PER_S)

struct ack {
    const struct mn_mnp *p;
    uint32_t newly;  /* packets that have arrived */
    uint32_t rtt_us; /* of the one sent last, of those sent once; UINT32_MAX: none */
    bool has_ts;
    uint32_t echo_us; /* when the packet left that brought the acknowledgement about */
};

static struct mn_mnp_sent *sent_at(struct mn_mcb *m, uint32_t seq)
{
    return &m->sent[seq % MN_MNP_WND_MAX];
}

uint32_t mn_mnp_pipe(const struct mn_engine *e, const struct mn_tcb *t)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t out = t->snd_nxt - t->snd_una - m->n_sacked - m->n_lost;

    /* Each duplicate acknowledgement stands for a packet that has left the network. */
    return out - mn_min_u32(t->dupacks, out);
}

void mn_mnp_mark_lost(struct mn_engine *e, struct mn_tcb *t, uint32_t seq)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_sent *s = sent_at(m, seq);

    if ((s->state & (MN_MS_SACKED | MN_MS_LOST)) != 0) {
        return;
    }
    s->state |= MN_MS_LOST;
    if (m->n_lost == 0 || mn_seq_lt(seq, m->lost_from)) {
        m->lost_from = seq;
    }
    m->n_lost++;
}

static void not_lost(struct mn_mcb *m, struct mn_mnp_sent *s)
{
    if ((s->state & MN_MS_LOST) != 0) {
        s->state &= (uint8_t)~MN_MS_LOST;
        m->n_lost--;
    }
}

/* A packet is known to have arrived, the first time. */
static void arrived(struct mn_engine *e, struct mn_tcb *t, struct ack *a, uint32_t seq)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    const struct mn_mnp_sent *s = sent_at(m, seq);
    uint32_t rtt = mn_mnp_now_us(e) - s->sent_us;

    a->newly++;
    if ((s->state & MN_MS_AGAIN) != 0) {
        /* For which of its copies? */
        if (a->has_ts ? mn_seq_lt(a->echo_us, s->sent_us) : rtt < m->min_rtt_us) {
            return;
        }
    } else {
        a->rtt_us = mn_min_u32(a->rtt_us, rtt);
        m->reordered |= mn_seq_lt(seq, m->high_sack);
    }
    m->high_sack = mn_seq_max(m->high_sack, seq);
    if (!m->rack_valid || mn_seq_gt(s->sent_us, m->rack_us) ||
        (s->sent_us == m->rack_us && mn_seq_gt(seq, m->rack_seq))) {
        m->rack_valid = true;
        m->rack_us = s->sent_us;
        m->rack_seq = seq;
        m->rack_rtt_us = rtt;
    }
}

static void loss_found(struct mn_engine *e, struct mn_tcb *t)
{
    mn_tcp_mark_dirty(e, t);
    if (t->recovery != MN_REC_OPEN) {
        return;
    }
    e->stats.mnp_fast_recoveries++;
    t->recovery = MN_REC_FAST;
    t->recover = t->snd_nxt;
    t->flags |= MN_TF_RTX_ONE;
    /* Does a queue stand on the path? */
    const struct mn_mcb *m = mn_mcb_of(e, t);
    mn_cc_rate_queue(&t->cc, (t->srtt_us >> 3) > m->min_rtt_us + m->min_rtt_us / 4 + QUEUE_US);
    t->cc.ops->on_loss(&t->cc, mn_mnp_pipe(e, t) * t->mss);
}

/* How much later than its successors a packet may be: a quarter of the least RTT, and not at all
 * once three of them have arrived on a path that keeps the order. */
static uint32_t reorder_us(const struct mn_tcb *t, const struct mn_mcb *m)
{
    if (!m->reordered && (m->n_sacked >= MN_DUPTHRESH || t->recovery != MN_REC_OPEN)) {
        return 0;
    }
    return mn_max_u32(m->min_rtt_us / 4, 1);
}

void mn_mnp_detect_lost(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t now = mn_mnp_now_us(e), before = m->n_lost, wait_us = 0;
    /* Not in the moment in which it was sent, or a flow to ourselves repeats it for ever in that.
     */
    uint32_t patience = mn_max_u32(m->rack_rtt_us + reorder_us(t, m), 1);

    m->reo_at = 0;
    if (!m->rack_valid) {
        return;
    }
    for (uint32_t seq = t->snd_una; seq != t->snd_nxt; seq++) {
        const struct mn_mnp_sent *s = sent_at(m, seq);

        if ((s->state & (MN_MS_SACKED | MN_MS_LOST)) != 0 || mn_seq_gt(s->sent_us, m->rack_us) ||
            (s->sent_us == m->rack_us && mn_seq_ge(seq, m->rack_seq))) {
            continue;
        }
        uint32_t age = now - s->sent_us;
        if (age >= patience) {
            mn_mnp_mark_lost(e, t, seq);
        } else {
            wait_us = mn_max_u32(wait_us, patience - age);
        }
    }
    if (wait_us != 0) {
        mn_tcp_timer_set(e, t, &m->reo_at, e->now_ns + wait_us * MN_NS_PER_US);
    }
    if (m->n_lost != before) {
        loss_found(e, t);
    }
}

static void cumulative(struct mn_engine *e, struct mn_tcb *t, struct ack *a)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    while (t->snd_una != a->p->ack) {
        struct mn_mnp_sent *s = sent_at(m, t->snd_una);

        if ((s->state & MN_MS_SACKED) != 0) {
            m->n_sacked--;
        } else {
            arrived(e, t, a, t->snd_una);
        }
        not_lost(m, s);
        m->snd_bytes -= s->len;
        t->snd_una++;
    }
    if (mn_seq_lt(m->lost_from, t->snd_una)) {
        m->lost_from = t->snd_una;
    }
}

static void selective(struct mn_engine *e, struct mn_tcb *t, struct ack *a)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t out = t->snd_nxt - t->snd_una;

    for (uint32_t w = 0; w < MN_MNP_SACK_LEN; w++) {
        for (uint64_t bits = a->p->sack[w]; bits != 0; bits &= bits - 1) {
            uint32_t i = 1 + 64 * w + (uint32_t)__builtin_ctzll(bits);

            if (i >= out) {
                return; /* of what was never sent */
            }
            struct mn_mnp_sent *s = sent_at(m, t->snd_una + i);
            if ((s->state & MN_MS_SACKED) != 0) {
                continue;
            }
            arrived(e, t, a, t->snd_una + i);
            not_lost(m, s);
            s->state |= MN_MS_SACKED;
            m->n_sacked++;
        }
    }
}

static void rtt_sample(struct mn_engine *e, struct mn_tcb *t, const struct ack *a)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t us = a->rtt_us;

    if (a->has_ts && a->newly > 0) {
        us = mn_mnp_now_us(e) - a->echo_us;
    }
    if (us > 60000000u) {
        return; /* none, or an echo of what was never sent */
    }
    us = mn_max_u32(us, 1);
    mn_tcp_rtt_sample(e, t, us * MN_NS_PER_US);
    if (m->min_rtt_us == 0 || us <= m->min_rtt_us) {
        m->min_rtt_us = us;
    }
    m->min_rtt_new_us = m->min_rtt_new_us == 0 ? us : mn_min_u32(m->min_rtt_new_us, us);
    if (e->now_ns - m->min_rtt_at > MIN_RTT_NS) {
        m->min_rtt_us = m->min_rtt_new_us;
        m->min_rtt_new_us = us;
        m->min_rtt_at = e->now_ns;
    }
}

/* A round trip is over once something that was sent after its beginning has arrived. */
static void delivery_rate(struct mn_engine *e, struct mn_tcb *t, uint32_t newly, uint32_t pipe)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t now = mn_mnp_now_us(e);
    uint32_t us = mn_max_u32(now - m->round_us, 1);

    m->round_pkts += newly;
    if (!mn_seq_gt(t->snd_una, m->round_end) &&
        (m->n_sacked == 0 || mn_seq_lt(m->high_sack, m->round_end))) {
        return;
    }
    bool limited = (pipe + 1) * t->mss <= t->cc.cwnd / 2;
    mn_cc_rate_round(
        &t->cc,
        (uint32_t)mn_min_u64((uint64_t)m->round_pkts * t->mss * mn_min_u32(m->min_rtt_us, us) / us,
                             MN_CWND_MAX),
        limited);
    m->round_pkts = 0;
    m->round_us = now;
    m->round_end = t->snd_nxt;
}

/* RFC 3522 in spirit: the first acknowledgement behind a timeout is for the packets as they were
 * sent before it. */
static void maybe_undo(struct mn_engine *e, struct mn_tcb *t, const struct ack *a)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (!m->undo || a->newly == 0) {
        return;
    }
    m->undo = false;
    if (!a->has_ts || t->recovery != MN_REC_LOSS || !mn_seq_lt(a->p->tsecr, m->undo_us)) {
        return;
    }
    for (uint32_t seq = t->snd_una; seq != t->snd_nxt; seq++) {
        not_lost(m, sent_at(m, seq));
    }
    t->cc.cwnd = m->undo_cwnd;
    t->cc.ssthresh = m->undo_ssthresh;
    t->recovery = MN_REC_OPEN;
    t->flags &= ~MN_TF_RTX_ONE;
}

static void window_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if ((m->feats & MN_MNP_F_WND) == 0 || p->ack != t->snd_una ||
        ((m->feats & MN_MNP_F_TS) != 0 && mn_seq_lt(p->tsval, m->wnd_ts) &&
         e->now_ns - m->wnd_ns < TSVAL_IDLE_NS)) {
        return; /* an older packet's */
    }
    uint32_t was = t->snd_wnd;
    m->wnd_ts = p->tsval;
    m->wnd_ns = e->now_ns;
    t->snd_wnd = mn_min_u32(p->wnd, MN_MNP_WND_MAX);
    if (t->snd_wnd > was) {
        mn_tcp_mark_dirty(e, t);
    }
    if (t->snd_wnd > 0 && (t->flags & MN_TF_PERSIST) != 0) {
        t->flags &= ~(MN_TF_PERSIST | MN_TF_PROBE_NOW);
        t->backoff = 0;
        mn_tcp_rtx_stop(t);
        if (t->snd_una != t->snd_nxt) {
            mn_mnp_rtx_arm(e, t);
        }
    }
}

/* Without SACK: RFC 6582. */
static void duplicate(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p, bool moved)
{
    if (moved) {
        t->dupacks = 0;
        if (t->recovery == MN_REC_FAST && mn_seq_lt(t->snd_una, t->recover) &&
            t->snd_una != t->snd_nxt) {
            mn_mnp_mark_lost(e, t, t->snd_una);
            t->flags |= MN_TF_RTX_ONE;
        }
        return;
    }
    if (p->kind != MN_MNP_ACK || t->snd_una == t->snd_nxt) {
        return;
    }
    t->dupacks++;
    if (t->dupacks == MN_DUPTHRESH && t->recovery == MN_REC_OPEN) {
        mn_mnp_mark_lost(e, t, t->snd_una);
        loss_found(e, t);
    }
    mn_tcp_mark_dirty(e, t);
}

/* snd_una has moved: the peer lives, what it has is no more ours. */
static bool progress(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    bool fin = (t->flags & MN_TF_FIN_SENT) != 0 && t->snd_una == t->snd_end + 1;

    mn_tcp_rtx_stop(t);
    t->backoff = 0;
    m->probes = 0;
    if (t->user != NULL) {
        mn_mnp_acked(e, t);
    }
    if (t->nbr != MN_NIL && mn_ip_known_hop(e, t->raddr, t->nbr) != MN_NIL) {
        mn_nbr_confirm(e, t->nbr);
    }
    if ((t->flags & MN_TF_LINGER_PUSH) != 0 && t->wait_at != 0) {
        t->wait_at = 0;
        mn_tcp_linger(e, t, t->user_timeout_ms);
    }
    if (t->recovery != MN_REC_OPEN && mn_seq_ge(t->snd_una, t->recover)) {
        t->recovery = MN_REC_OPEN;
        t->flags &= ~MN_TF_RTX_ONE;
    }
    if (t->snd_una != t->snd_nxt) {
        mn_mnp_rtx_arm(e, t);
    }
    mn_tcp_mark_dirty(e, t);
    return !fin || mn_tcp_fin_acked(e, t);
}

bool mn_mnp_ack_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct ack a = {.p = p, .rtt_us = UINT32_MAX};
    uint32_t before = t->snd_una, pipe = mn_mnp_pipe(e, t);
    bool sack = (m->feats & MN_MNP_F_SACK) != 0;

    if (p->kind == MN_MNP_DATA && (m->feats & MN_MNP_F_DATA_ACK) == 0) {
        return true;
    }
    if (mn_seq_gt(p->ack, t->snd_nxt)) {
        e->stats.drop_mnp_ack++;
        return false;
    }
    if (mn_seq_lt(p->ack, t->snd_una)) {
        return true; /* overtaken by a newer one */
    }
    a.has_ts = (m->feats & MN_MNP_F_TS) != 0;
    a.echo_us = p->tsecr - t->ts_offset;
    cumulative(e, t, &a);
    if (sack && p->kind != MN_MNP_DATA) {
        selective(e, t, &a);
    }
    rtt_sample(e, t, &a);
    maybe_undo(e, t, &a);
    if (a.newly > 0) {
        t->cc.ops->on_ack(&t->cc, a.newly * t->mss, pipe * t->mss, e->now_ns);
        delivery_rate(e, t, a.newly, pipe);
    }
    window_in(e, t, p);
    if (!sack) {
        duplicate(e, t, p, t->snd_una != before);
    } else if (m->n_sacked > 0 || (t->recovery != MN_REC_OPEN && a.newly > 0)) {
        mn_mnp_detect_lost(e, t);
        mn_tcp_mark_dirty(e, t);
    }
    return t->snd_una == before || progress(e, t);
}
