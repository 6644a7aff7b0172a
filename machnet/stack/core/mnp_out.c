/* SPDX-License-Identifier: MIT */
/* What a connection of the message protocol sends, and when. */
#include "engine_int.h"

#define ACK_LOST_NS (200 * MN_NS_PER_MS) /* far below the 2 s after which a C++ host repeats */

#define HDRS (MN_ETH_HLEN + MN_IPV4_HLEN + MN_UDP_HLEN + MN_MNP_HLEN)

struct way {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    uint8_t ttl, tos;
    uint32_t nbr;
};

static uint8_t *payload_of(struct mn_pkt *pkt)
{
    return pkt->data + HDRS;
}

/* Headers in front of `len` bytes of payload, whose sum is known, and out. */
static void finish(struct mn_engine *e, struct mn_pkt *pkt, const struct way *w,
                   const struct mn_mnp_repr *r, uint32_t len, uint32_t sum)
{
    uint8_t *ip = pkt->data + MN_ETH_HLEN;
    uint8_t *udp = ip + MN_IPV4_HLEN;
    uint8_t *mnp = udp + MN_UDP_HLEN;
    struct mn_udp_repr u = {.sport = w->lport, .dport = w->rport, .payload_len = MN_MNP_HLEN + len};
    struct mn_ipv4_repr i = {.src = w->laddr,
                             .dst = w->raddr,
                             .payload_len = MN_UDP_HLEN + MN_MNP_HLEN + len,
                             .id = (uint16_t)mn_random(e),
                             .proto = MN_IPPROTO_UDP,
                             .ttl = w->ttl,
                             .tos = w->tos,
                             .df = true};

    mn_ipv4_emit(ip, &i);
    mn_udp_emit(udp, &u);
    mn_mnp_emit(mnp, r);
    if (e->nic->caps.tx_csum_udp) {
        mn_wr16be(udp + MN_UDP_CSUM_OFF, mn_csum_fold_seed(mn_csum_pseudo(
                                             w->laddr, w->raddr, MN_IPPROTO_UDP, i.payload_len)));
        pkt->csum = MN_CSUM_PARTIAL;
        pkt->l4_off = MN_ETH_HLEN + MN_IPV4_HLEN;
        pkt->csum_off = MN_UDP_CSUM_OFF;
    } else {
        mn_udp_csum_fill(udp, w->laddr, w->raddr, mn_csum_partial(mnp, MN_MNP_HLEN, sum));
        pkt->csum = MN_CSUM_NONE;
    }
    pkt->gso_size = 0;
    pkt->len = HDRS + len;
    mn_ip_output(e, pkt, w->raddr, w->nbr);
}

static struct way way_of(const struct mn_tcb *t)
{
    return (struct way){
        .laddr = t->laddr,
        .raddr = t->raddr,
        .lport = t->lport,
        .rport = t->rport,
        .ttl = t->ttl,
        .tos = t->tos,
        .nbr = t->nbr,
    };
}

void mn_mnp_reply_rst(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp,
                      uint32_t seq, uint32_t ack, uint32_t reason)
{
    struct way w = {
        .laddr = ip->dst,
        .raddr = ip->src,
        .lport = udp->dport,
        .rport = udp->sport,
        .ttl = e->cfg.ttl,
        .nbr = MN_NIL,
    };
    struct mn_mnp_repr r = {
        .kind = MN_MNP_RST, .ext = e->cfg.mnp_extended, .seq = seq, .ack = ack, .word12 = reason};

    if (!mn_bucket_take(e, &e->rst_bucket, e->cfg.rst_per_s)) {
        e->stats.drop_rst_limited++;
        return;
    }
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS);
    if (pkt != NULL) {
        e->stats.mnp_resets_sent++;
        finish(e, pkt, &w, &r, 0, 0);
    }
}

/* What packets of a synchronised flow have in common. */
static void fill(struct mn_engine *e, struct mn_tcb *t, struct mn_mnp_repr *r)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    r->ext = m->ext;
    r->ack = t->rcv_nxt;
    if (!m->ext) {
        return;
    }
    if ((m->feats & MN_MNP_F_TS) != 0) {
        r->tsval = mn_mnp_now_us(e) + t->ts_offset;
        r->tsecr = t->ts_recent;
    }
    if ((m->feats & MN_MNP_F_WND) != 0) {
        r->wnd = (uint16_t)mn_mnp_window(e, t);
    }
}

static uint32_t reason_of(const struct mn_engine *e, const struct mn_tcb *t, int err)
{
    switch (err) {
    case ETIMEDOUT:
        return MN_MNP_R_TIMEOUT;
    case EPROTO:
        return MN_MNP_R_PROTOCOL;
    case EMSGSIZE:
        return MN_MNP_R_TOO_LARGE;
    case ENOBUFS:
        return MN_MNP_R_RESOURCES;
    default:
        return t->lane != MN_NIL && e->lanes[t->lane] != NULL &&
                       (e->lanes[t->lane]->detached || e->lanes[t->lane]->dead != 0)
                   ? MN_MNP_R_APP_GONE
                   : MN_MNP_R_CLOSED;
    }
}

void mn_mnp_send_rst(struct mn_engine *e, struct mn_tcb *t, int err)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_repr r = {.kind = MN_MNP_RST, .seq = t->snd_nxt};
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS);
    struct way w = way_of(t);

    if (pkt == NULL) {
        return;
    }
    r.ack = t->rcv_nxt;
    r.ext = m->ext;
    r.word12 = (m->feats & MN_MNP_F_REASON) != 0 ? reason_of(e, t, err) : 0;
    if ((m->feats & MN_MNP_F_TS) != 0) {
        r.tsval = mn_mnp_now_us(e) + t->ts_offset;
        r.tsecr = t->ts_recent;
    }
    e->stats.mnp_resets_sent++;
    finish(e, pkt, &w, &r, 0, 0);
}

static void send_syn(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    bool reply = t->state == MN_TCP_SYN_RECEIVED;
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS);
    struct way w = way_of(t);

    if (pkt != NULL) {
        struct mn_mnp_repr r = {
            .kind = reply ? MN_MNP_SYNACK : MN_MNP_SYN,
            .ext = reply ? m->ext : e->cfg.mnp_extended,
            .seq = t->iss,
            .ack = reply ? t->rcv_nxt : 0,
            .version = MN_MNP_VERSION,
            .feats = reply ? m->feats : MN_MNP_F_ALL,
            .mss = (uint16_t)mn_mnp_mss(e),
            .wnd = (uint16_t)mn_mnp_window(e, t),
            .tsval = mn_mnp_now_us(e) + t->ts_offset,
            .tsecr = reply ? t->ts_recent : 0,
        };
        finish(e, pkt, &w, &r, 0, 0);
    }
    if (t->snd_nxt == t->iss) {
        t->snd_nxt = t->iss + 1;
        t->rtt_at = e->now_ns;
    }
    mn_tcp_rtx_arm(e, t);
}

void mn_mnp_ack_lost(struct mn_engine *e, struct mn_mcb *m)
{
    if (m->acks_equal > 1 && e->now_ns - m->ack_ns >= ACK_LOST_NS) {
        m->acks_equal = 1;
    }
}

/* Two equal ones end no C++ host; more do if it has nothing under way (docs/protocol.md). */
static bool may_ack(struct mn_engine *e, const struct mn_tcb *t, struct mn_mcb *m)
{
    if (m->ext) {
        return true;
    }
    if (m->last_ack != t->rcv_nxt) {
        m->acks_equal = 0;
    }
    if (m->acks_equal < 2 || m->n_held > 0) {
        return true;
    }
    e->stats.mnp_acks_withheld++;
    return false;
}

/* All that has arrived is acknowledged by what is sent now. */
static void acknowledged(struct mn_tcb *t, struct mn_mcb *m)
{
    m->ts_pending = false;
    m->unacked = 0;
    t->delack_at = 0;
}

/* An ACK that an answer could have carried, had it waited a little, was in vain. */
static void count_answer(const struct mn_engine *e, struct mn_mcb *m)
{
    if (!m->ack_alone) {
        return;
    }
    m->ack_alone = false;
    if (e->now_ns - m->ack_ns >= e->cfg.mnp_delack_us * MN_NS_PER_US) {
        m->answers = 0;
    } else if (m->answers < MN_MNP_ANSWERS) {
        m->answers++;
    }
}

static bool send_ack_now(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_repr r = {.kind = MN_MNP_ACK, .seq = t->snd_nxt};
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS);
    uint64_t map[MN_MNP_SACK_LEN];
    struct way w = way_of(t);

    if (pkt == NULL) {
        return false;
    }
    fill(e, t, &r);
    if ((m->feats & MN_MNP_F_SACK) != 0 && m->n_held > 0) {
        mn_mnp_sack_map(e, t, map);
        r.sack = map;
    }
    if (m->acks_equal < UINT8_MAX) {
        m->acks_equal++;
    }
    m->last_ack = t->rcv_nxt;
    m->ack_ns = e->now_ns;
    m->ack_alone = true;
    acknowledged(t, m);
    finish(e, pkt, &w, &r, 0, 0);
    return true;
}

void mn_mnp_send_ack(struct mn_engine *e, struct mn_tcb *t)
{
    t->flags &= ~MN_TF_ACK_NOW;
    if (may_ack(e, t, mn_mcb_of(e, t)) && !send_ack_now(e, t)) {
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
}

/* Old DATA of one byte: whoever is alive acknowledges it. */
void mn_mnp_send_probe(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mnp_repr r = {
        .kind = MN_MNP_DATA, .msg_flags = MN_MNP_FIRST | MN_MNP_LAST, .seq = t->snd_una - 1};
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS + 1);
    struct way w = way_of(t);

    if (pkt == NULL) {
        return;
    }
    fill(e, t, &r);
    r.word12 = (mn_mcb_of(e, t)->feats & MN_MNP_F_MSGLEN) != 0; /* its length, where that is told */
    if (!r.ext || (mn_mcb_of(e, t)->feats & MN_MNP_F_DATA_ACK) == 0) {
        r.ack = MN_MNP_NO_ACK;
    }
    *payload_of(pkt) = 0;
    finish(e, pkt, &w, &r, 1, 0);
}

/* A packet of the window, the first time or again. False: no packet buffer now. */
static bool transmit(struct mn_engine *e, struct mn_tcb *t, uint32_t seq, struct mn_pkt *pkt)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_sent *s = &m->sent[seq % MN_MNP_WND_MAX];
    bool fin = s->buf == MN_NIL, acks = (m->feats & MN_MNP_F_DATA_ACK) != 0 && !fin;
    struct mn_mnp_repr r = {
        .kind = fin ? MN_MNP_FIN : MN_MNP_DATA, .msg_flags = s->msg_flags, .seq = seq};
    uint64_t map[MN_MNP_SACK_LEN];
    struct way w = way_of(t);
    uint32_t sum = 0;

    if (pkt == NULL) {
        pkt = mn_tx_alloc(e, HDRS + s->len);
        if (pkt == NULL) {
            return false;
        }
    }
    fill(e, t, &r);
    if (fin) {
        if ((m->feats & MN_MNP_F_SACK) != 0 && m->n_held > 0) {
            mn_mnp_sack_map(e, t, map);
            r.sack = map;
        }
    } else {
        r.ack = acks ? r.ack : MN_MNP_NO_ACK;
        if ((m->feats & MN_MNP_F_MSGLEN) != 0 && (s->msg_flags & MN_MNP_FIRST) != 0) {
            r.word12 = mn_mnp_msg_len(e, t, s);
        }
        sum = mn_mnp_copy(e, t, s, payload_of(pkt), !e->nic->caps.tx_csum_udp);
    }
    if (acks) {
        count_answer(e, m);
    }
    if (fin || (acks && m->n_held == 0)) {
        t->flags &= ~MN_TF_ACK_NOW;
        acknowledged(t, m);
    }
    s->sent_us = mn_mnp_now_us(e);
    t->last_tx_ns = e->now_ns;
    finish(e, pkt, &w, &r, s->len, sum);
    return true;
}

static bool send_again(struct mn_engine *e, struct mn_tcb *t, uint32_t seq)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_sent *s = &m->sent[seq % MN_MNP_WND_MAX];

    if (!m->ext && seq == t->iss + 1 && (t->flags & MN_TF_PASSIVE) == 0 && !m->heard_data &&
        m->ack_again < 2) {
        /* A C++ host takes no DATA before the ACK of the handshake, which may be what was lost. */
        m->ack_again++;
        (void)send_ack_now(e, t);
    }
    if (!transmit(e, t, seq, NULL)) {
        return false;
    }
    if ((s->state & MN_MS_LOST) != 0) {
        s->state &= (uint8_t)~MN_MS_LOST;
        m->n_lost--;
    }
    s->state |= MN_MS_AGAIN;
    t->retransmits++;
    e->stats.mnp_retransmits++;
    if (t->rtx_at == 0 || (m->pto && m->probes == 0)) {
        mn_mnp_rtx_arm(e, t);
    }
    return true;
}

static bool has_new(const struct mn_tcb *t)
{
    return mn_seq_lt(t->snd_nxt, t->snd_end);
}

static bool fin_waits(const struct mn_engine *e, const struct mn_tcb *t)
{
    return (t->flags & (MN_TF_FIN_QUEUED | MN_TF_FIN_SENT)) == MN_TF_FIN_QUEUED &&
           (mn_mcb_of(e, t)->feats & MN_MNP_F_FIN) != 0;
}

static bool ring_has_room(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t most = mn_mcb_of(e, t)->ext ? e->cfg.mnp_window_packets
                                         : mn_min_u32(e->cfg.mnp_window_packets, 32);

    return t->snd_nxt - t->snd_una < most;
}

static bool send_new(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_mnp_sent *s = &m->sent[t->snd_nxt % MN_MNP_WND_MAX];
    struct mn_pkt *pkt = mn_tx_alloc(e, HDRS + t->mss);

    if (pkt == NULL) {
        return false;
    }
    *s = (struct mn_mnp_sent){.buf = MN_NIL};
    if (has_new(t)) {
        mn_mnp_cut(e, t, s);
    } else {
        t->flags |= MN_TF_FIN_SENT;
    }
    if (t->snd_una == t->snd_nxt) {
        /* A round trip begins here: the time before says nothing about the path. */
        m->round_us = mn_mnp_now_us(e);
        m->round_end = t->snd_nxt;
        m->round_pkts = 0;
        m->rack_valid = false; /* half a turn of our clock later it would seem to be newer */
    }
    (void)transmit(e, t, t->snd_nxt, pkt);
    t->snd_nxt++;
    if (t->rtx_at == 0 || (m->pto && m->probes == 0)) {
        mn_mnp_rtx_arm(e, t);
    }
    return true;
}

static bool path_has_room(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t pipe = mn_mnp_pipe(e, t);

    return pipe == 0 || (pipe + 1) * t->mss <= t->cc.cwnd;
}

enum sent { SENT, NOTHING, STUCK };

static enum sent send_lost(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t seq = m->lost_from;

    while ((m->sent[seq % MN_MNP_WND_MAX].state & MN_MS_LOST) == 0) {
        seq++;
        MN_ASSERT(mn_seq_lt(seq, t->snd_nxt));
    }
    m->lost_from = seq;
    if (seq - t->snd_una >= mn_max_u32(t->snd_wnd, 1) ||
        ((t->flags & MN_TF_RTX_ONE) == 0 && !path_has_room(e, t))) {
        return NOTHING;
    }
    if (!send_again(e, t, seq)) {
        return STUCK;
    }
    t->flags &= ~MN_TF_RTX_ONE;
    return SENT;
}

static enum sent output_one(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (m->n_lost > 0) {
        return send_lost(e, t);
    }
    t->flags &= ~MN_TF_RTX_ONE;
    if (!ring_has_room(e, t) || !path_has_room(e, t)) {
        return NOTHING;
    }
    if (has_new(t) ? t->snd_nxt - t->snd_una < t->snd_wnd : fin_waits(e, t)) {
        return send_new(e, t) ? SENT : STUCK;
    }
    return NOTHING;
}

/* A probe of a closed window, or of what became of the last packet. */
static bool send_asked(struct mn_engine *e, struct mn_tcb *t)
{
    bool closed = (t->flags & MN_TF_PERSIST) != 0;
    uint32_t seq = t->snd_nxt;
    bool sent;

    if (closed) {
        sent = t->snd_una != t->snd_nxt        ? send_again(e, t, t->snd_una)
               : has_new(t) || fin_waits(e, t) ? send_new(e, t)
                                               : true;
        e->stats.mnp_window_probes += sent;
    } else if (has_new(t) && ring_has_room(e, t) && t->snd_nxt - t->snd_una < t->snd_wnd) {
        sent = send_new(e, t);
        e->stats.mnp_probes += sent;
    } else {
        /* The highest one that is not known to have arrived. */
        while (seq != t->snd_una &&
               (mn_mcb_of(e, t)->sent[(seq - 1) % MN_MNP_WND_MAX].state & MN_MS_SACKED) != 0) {
            seq--;
        }
        sent = seq == t->snd_una || send_again(e, t, seq - 1);
        e->stats.mnp_probes += sent;
    }
    if (sent) {
        t->flags &= ~MN_TF_PROBE_NOW;
    }
    return sent;
}

static bool output_data(struct mn_engine *e, struct mn_tcb *t)
{
    enum sent sent;

    if ((t->flags & MN_TF_PROBE_NOW) != 0 && !send_asked(e, t)) {
        return false;
    }
    if (t->snd_una == t->snd_nxt && has_new(t) &&
        e->now_ns - t->last_tx_ns > e->cfg.mnp_rto_max_us * MN_NS_PER_US) {
        t->cc.ops->on_idle(&t->cc);
    }
    do {
        if (!mn_tx_room(e, 1)) {
            return false;
        }
        sent = output_one(e, t);
    } while (sent == SENT);
    if (sent == STUCK) {
        return false;
    }
    if (t->snd_una == t->snd_nxt && has_new(t) && t->rtx_at == 0) {
        t->flags |= MN_TF_PERSIST; /* nothing will come by itself */
        mn_mnp_rtx_arm(e, t);
    }
    return true;
}

/* Without FIN a flow ends once everything has arrived. True: it is gone. */
static bool end_without_fin(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_FIN_QUEUED) == 0 || (mn_mcb_of(e, t)->feats & MN_MNP_F_FIN) != 0 ||
        t->snd_una != t->snd_end) {
        return false;
    }
    mn_mnp_send_rst(e, t, ECONNABORTED);
    mn_tcp_drop(e, t, 0);
    return true;
}

void mn_mnp_output(struct mn_engine *e, struct mn_tcb *t)
{
    if (MN_UNLIKELY((t->flags & MN_TF_DOOMED) != 0)) {
        mn_tcp_abort(e, t, t->doom_err);
        return;
    }
    if (!mn_tx_room(e, 2)) {
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if (t->state == MN_TCP_SYN_SENT || t->state == MN_TCP_SYN_RECEIVED) {
        if ((t->flags & MN_TF_RTX_ONE) != 0) {
            t->flags &= ~MN_TF_RTX_ONE;
            send_syn(e, t);
        }
        return;
    }
    if (t->state >= MN_TCP_ESTABLISHED && t->state != MN_TCP_TIME_WAIT &&
        t->state != MN_TCP_FIN_WAIT_2) {
        if (!output_data(e, t)) {
            mn_tcp_mark_dirty(e, t);
            return;
        }
        if (end_without_fin(e, t)) {
            return;
        }
    }
    if ((t->flags & MN_TF_ACK_NOW) != 0) {
        mn_mnp_send_ack(e, t);
    }
}
