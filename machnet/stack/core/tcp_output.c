/* SPDX-License-Identifier: MIT */
/* What a connection sends, and when: new data, retransmissions, probes, acknowledgements (RFC
 * 9293 3.8.6, RFC 5681, RFC 6675, RFC 7323). */
#include "engine_int.h"

#define HDR_MAX (MN_ETH_HLEN + MN_IPV4_HLEN + MN_TCP_HLEN_MAX)

struct header {
    uint32_t laddr, raddr;
    uint8_t ttl, tos;
    uint32_t nbr;
    struct mn_tcp_repr tcp;
};

/* Puts headers in front of `len` bytes of payload at `payload`, checksum included, and sends the
 * packet. */
static void finish(struct mn_engine *e, struct mn_pkt *pkt, const struct header *h,
                   uint32_t tcp_len, uint32_t len, uint32_t sum, uint32_t gso_size)
{
    uint8_t *ip = pkt->data + MN_ETH_HLEN;
    uint8_t *tcp = ip + MN_IPV4_HLEN;
    struct mn_ipv4_repr repr = {.src = h->laddr,
                                .dst = h->raddr,
                                .payload_len = tcp_len + len,
                                .id = (uint16_t)mn_random(e),
                                .proto = MN_IPPROTO_TCP,
                                .ttl = h->ttl,
                                .tos = h->tos,
                                .df = true};

    mn_ipv4_emit(ip, &repr);
    if (e->nic->caps.tx_csum_tcp) {
        mn_tcp_csum_seed(tcp, h->laddr, h->raddr, tcp_len + len);
        pkt->csum = MN_CSUM_PARTIAL;
        pkt->l4_off = MN_ETH_HLEN + MN_IPV4_HLEN;
        pkt->csum_off = MN_TCP_CSUM_OFF;
    } else {
        mn_tcp_csum_fill(tcp, tcp_len, h->laddr, h->raddr, len, sum);
        pkt->csum = MN_CSUM_NONE;
    }
    pkt->gso_size = (uint16_t)gso_size;
    pkt->len = MN_ETH_HLEN + MN_IPV4_HLEN + tcp_len + len;
    mn_ip_output(e, pkt, h->raddr, h->nbr);
}

static struct header header_of(const struct mn_tcb *t, uint32_t seq, uint16_t flags)
{
    return (struct header){
        .laddr = t->laddr,
        .raddr = t->raddr,
        .ttl = t->ttl,
        .tos = t->tos,
        .nbr = t->nbr,
        .tcp =
            {.sport = t->lport, .dport = t->rport, .seq = seq, .ack = t->rcv_nxt, .flags = flags},
    };
}

/* A segment that belongs to no connection. */
static void send_bare(struct mn_engine *e, const struct mn_seg *s, uint32_t seq, uint32_t ack,
                      uint16_t flags)
{
    struct mn_pkt *pkt = mn_tx_alloc(e, mn_min_u32(HDR_MAX, e->nic->caps.tx_max_frame));
    struct header h = {
        .laddr = s->dst,
        .raddr = s->src,
        .ttl = e->cfg.ttl,
        .nbr = MN_NIL,
        .tcp = {.sport = s->dport, .dport = s->sport, .seq = seq, .ack = ack, .flags = flags},
    };

    if (pkt == NULL) {
        return;
    }
    uint32_t tcp_len = mn_tcp_emit(pkt->data + MN_ETH_HLEN + MN_IPV4_HLEN, &h.tcp);
    finish(e, pkt, &h, tcp_len, 0, 0, 0);
}

/* RFC 9293 3.5.2, group 1; never an answer to a RST. */
void mn_tcp_reply_rst(struct mn_engine *e, const struct mn_seg *s)
{
    if ((s->flags & MN_TCP_RST) != 0) {
        return;
    }
    if (!mn_bucket_take(e, &e->rst_bucket, e->cfg.rst_per_s)) {
        e->stats.drop_rst_limited++;
        return;
    }
    e->stats.tcp_resets_sent++;
    if ((s->flags & MN_TCP_ACK) != 0) {
        send_bare(e, s, s->ack, 0, MN_TCP_RST);
    } else {
        send_bare(e, s, 0, mn_seg_end(s), MN_TCP_RST | MN_TCP_ACK);
    }
}

/* Where a segment without data stands: at snd_nxt, but inside the window of a peer that has taken
 * part of it back, which would not look at it otherwise. */
static uint32_t ack_seq(const struct mn_tcb *t)
{
    if (t->state < MN_TCP_ESTABLISHED) {
        return t->snd_nxt;
    }
    return mn_seq_min(t->snd_nxt, t->snd_una + t->snd_wnd);
}

void mn_tcp_send_rst(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_seg s = {.src = t->raddr, .dst = t->laddr, .sport = t->rport, .dport = t->lport};

    e->stats.tcp_resets_sent++;
    send_bare(e, &s, ack_seq(t), t->rcv_nxt, MN_TCP_RST | MN_TCP_ACK);
}

static void ack_is_sent(struct mn_tcb *t)
{
    t->flags &= ~MN_TF_ACK_NOW;
    t->delack_at = 0;
    t->unacked_bytes = 0;
    t->last_ack_sent = t->rcv_nxt;
}

/* Options of a segment of a synchronised connection. */
static void fill_options(struct mn_engine *e, struct mn_tcb *t, struct mn_tcp_opts *o)
{
    if ((t->flags & MN_TF_TS) != 0) {
        o->has_ts = true;
        o->tsval = mn_tcp_ts_now(e, t);
        o->tsecr = t->ts_recent;
    }
    if ((t->flags & MN_TF_SACK) != 0 &&
        (t->ooo_head != MN_NIL || t->dsack_left != t->dsack_right)) {
        o->n_sack = (uint8_t)mn_ooo_sack_blocks(e, t, o->sack, o->has_ts ? 3 : 4);
    }
}

void mn_tcp_send_syn(struct mn_engine *e, struct mn_tcb *t)
{
    bool reply = t->state == MN_TCP_SYN_RECEIVED;
    struct mn_pkt *pkt = mn_tx_alloc(e, mn_min_u32(HDR_MAX, e->nic->caps.tx_max_frame));
    struct mn_tcp_opts o = {.has_mss = true};

    if (pkt != NULL) {
        struct header h = header_of(t, t->iss, reply ? MN_TCP_SYN | MN_TCP_ACK : MN_TCP_SYN);

        o.mss = (uint16_t)mn_min_u32(e->nic->caps.mtu - MN_IPV4_HLEN - MN_TCP_HLEN, 65535);
        o.sack_permitted = reply ? (t->flags & MN_TF_SACK) != 0 : e->cfg.sack;
        o.has_wscale = reply ? (t->flags & MN_TF_WSCALE) != 0 : e->cfg.wscale;
        o.wscale = t->rcv_wscale;
        o.has_ts = reply ? (t->flags & MN_TF_TS) != 0 : e->cfg.timestamps;
        o.tsval = mn_tcp_ts_now(e, t);
        o.tsecr = reply ? t->ts_recent : 0;
        h.tcp.opts = &o;
        if (!reply) {
            h.tcp.ack = 0;
        }
        /* The window of a SYN is never scaled (RFC 7323 2.2). */
        h.tcp.wnd = (uint16_t)mn_min_u32(t->rcv_buf, 65535);
        t->rcv_adv = t->rcv_nxt + h.tcp.wnd;
        uint32_t tcp_len = mn_tcp_emit(pkt->data + MN_ETH_HLEN + MN_IPV4_HLEN, &h.tcp);
        finish(e, pkt, &h, tcp_len, 0, 0, 0);
        if (reply) {
            ack_is_sent(t);
        }
    }
    if (t->snd_nxt == t->iss) {
        t->snd_nxt = t->iss + 1;
        t->rtt_seq = t->snd_nxt;
        t->rtt_at = e->now_ns;
        t->flags |= MN_TF_RTT;
    }
    mn_tcp_rtx_arm(e, t);
}

/* One segment at seq with len bytes of payload, cut by the NIC when longer than a full one. False:
 * no packet now. */
static bool send_segment(struct mn_engine *e, struct mn_tcb *t, uint32_t seq, uint32_t len,
                         uint16_t flags)
{
    struct mn_pkt *pkt = mn_tx_alloc(e, mn_min_u32(HDR_MAX + len, e->nic->caps.tx_max_frame));
    struct mn_tcp_opts o = {0};
    uint32_t gso = 0;

    if (pkt == NULL) {
        return false;
    }
    struct header h = header_of(t, seq, flags);
    fill_options(e, t, &o);
    if (o.n_sack > 0 && len + o.n_sack * 8u + 4 > t->mss) {
        o.n_sack = 0; /* a full segment has no room for them; the next pure ACK has */
    }
    h.tcp.opts = &o;
    h.tcp.wnd = (uint16_t)mn_tcp_window(e, t);
    if ((t->flags & MN_TF_URG_SND) != 0 && mn_seq_lt(seq, t->snd_up)) {
        h.tcp.flags |= MN_TCP_URG;
        h.tcp.urg = (uint16_t)mn_min_u32(t->snd_up - seq, 65535);
    }
    uint8_t *tcp = pkt->data + MN_ETH_HLEN + MN_IPV4_HLEN;
    uint32_t tcp_len = mn_tcp_emit(tcp, &h.tcp);
    uint32_t sum = 0;
    if (len > 0) {
        sum =
            t->user->tx_copy(e, t, seq - t->snd_una, tcp + tcp_len, len, !e->nic->caps.tx_csum_tcp);
    }
    if (len > t->mss) {
        gso = t->mss;
    }
    finish(e, pkt, &h, tcp_len, len, sum, gso);
    ack_is_sent(t);
    return true;
}

void mn_tcp_send_ack(struct mn_engine *e, struct mn_tcb *t)
{
    if (!send_segment(e, t, ack_seq(t), 0, MN_TCP_ACK)) {
        mn_tcp_timer_set(e, t, &t->delack_at, e->now_ns + MN_NS_PER_MS); /* try again soon */
        t->flags &= ~MN_TF_ACK_NOW;
    }
}

/* RFC 5961: an ACK that asks a peer to prove itself, at most challenge_per_s on a connection. */
void mn_tcp_challenge(struct mn_engine *e, struct mn_tcb *t)
{
    if (e->now_ns >= t->challenge_ns) {
        t->challenge_ns = e->now_ns + MN_NS_PER_S;
        t->challenge_left = (uint16_t)e->cfg.challenge_per_s;
    }
    if (t->challenge_left == 0) {
        e->stats.drop_challenge_limited++;
        return;
    }
    t->challenge_left--;
    e->stats.tcp_challenge_acks++;
    mn_tcp_send_ack(e, t);
}

void mn_tcp_send_probe(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->mcb != MN_NIL) {
        mn_mnp_send_probe(e, t);
        return;
    }
    (void)send_segment(e, t, t->snd_una - 1, 0, MN_TCP_ACK);
}

static void count_rtx(struct mn_engine *e, struct mn_tcb *t, uint32_t len)
{
    uint32_t segs = len <= t->mss ? 1 : (len + t->mss - 1) / t->mss;

    t->retransmits += segs;
    e->stats.tcp_retransmits += segs;
    t->flags |= MN_TF_KARN;
    t->flags &= ~MN_TF_RTT;
    t->karn_end = t->snd_nxt;
    if (t->rtx_at == 0) {
        mn_tcp_rtx_arm(e, t);
    }
}

static uint32_t burst_limit(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t room = e->nic->caps.tx_max_frame - HDR_MAX;

    if (!e->nic->caps.tx_gso || mn_ip_is_local(e, t->raddr)) {
        return t->mss;
    }
    return mn_max_u32(room - room % t->mss, t->mss);
}

static bool rest_is_fin(const struct mn_tcb *t, uint32_t end)
{
    return (t->flags & MN_TF_FIN_SENT) != 0 && end == t->snd_end;
}

/* Sends [left, right) again, at most one full segment; right may cover the FIN. */
static bool send_again(struct mn_engine *e, struct mn_tcb *t, uint32_t left, uint32_t right)
{
    uint32_t len = mn_min_u32(right - left, t->mss);
    uint32_t data_end = mn_seq_min(left + len, t->snd_end);
    uint16_t flags = MN_TCP_ACK;

    len = mn_seq_lt(left, data_end) ? data_end - left : 0;
    if (left + len == t->snd_end && len > 0) {
        flags |= MN_TCP_PSH;
    }
    if (rest_is_fin(t, left + len)) {
        flags |= MN_TCP_FIN;
    }
    if (!send_segment(e, t, left, len, flags)) {
        return false;
    }
    uint32_t end = left + len + ((flags & MN_TCP_FIN) != 0);
    if (mn_seq_gt(end, t->rtx_nxt)) {
        t->rtx_nxt = end;
    }
    if (mn_seq_gt(end, t->snd_nxt)) {
        t->snd_nxt = end;
    }
    count_rtx(e, t, len);
    return true;
}

/* The segment at snd_una, whatever the congestion window says: fast retransmit, timeout, or the
 * window has opened over a probe. */
static bool send_first_again(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t right = t->snd_nxt;

    if (t->snd_nxt - t->snd_una <= 1 && (t->flags & MN_TF_FIN_SENT) == 0) {
        right = t->snd_una + mn_min_u32(t->snd_end - t->snd_una, mn_max_u32(t->snd_wnd, 1));
    }
    if (t->snd_wnd > 0) {
        right = mn_seq_min(right, mn_seq_max(t->snd_una + t->snd_wnd, t->snd_una + 1));
    }
    if (t->sack_head != MN_NIL) {
        right = mn_seq_min(right, e->ranges[t->sack_head].left);
    }
    if (t->snd_una == right) {
        t->flags &= ~MN_TF_RTX_ONE;
        return true;
    }
    if (!send_again(e, t, t->snd_una, right)) {
        return false;
    }
    t->flags &= ~MN_TF_RTX_ONE;
    return true;
}

/* The persist timer fired: one octet into a closed window, or what a small window takes. */
static bool send_window_probe(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t avail = t->snd_end - t->snd_una;
    uint32_t len = mn_min_u32(mn_min_u32(avail, mn_max_u32(t->snd_wnd, 1)), t->mss);
    uint16_t flags = MN_TCP_ACK;

    if (len == 0) {
        t->flags &= ~MN_TF_PROBE_NOW;
        return true;
    }
    if (t->snd_una + len == t->snd_end) {
        flags |= MN_TCP_PSH;
    }
    if (!send_segment(e, t, t->snd_una, len, flags)) {
        return false;
    }
    t->flags &= ~(MN_TF_PROBE_NOW | MN_TF_MORE);
    e->stats.tcp_probes++;
    if (mn_seq_gt(t->snd_una + len, t->snd_nxt)) {
        t->snd_nxt = t->snd_una + len;
    }
    t->flags &= ~MN_TF_RTT;
    mn_tcp_rtx_arm(e, t);
    return true;
}

/* How much new data may go now; *fin says whether the FIN goes with them. SIZE_MAX-like MN_NIL:
 * nothing. */
static uint32_t new_data(const struct mn_engine *e, const struct mn_tcb *t, uint32_t pipe,
                         bool *fin)
{
    uint32_t edge = t->snd_una + t->snd_wnd;
    uint32_t avail, room, len;

    *fin = false;
    if ((t->flags & MN_TF_FIN_SENT) != 0) {
        return MN_NIL;
    }
    avail = t->snd_end - t->snd_nxt;
    room = mn_seq_gt(edge, t->snd_nxt) ? edge - t->snd_nxt : 0;
    room = mn_min_u32(room, t->cc.cwnd > pipe ? t->cc.cwnd - pipe : 0);
    len = mn_min_u32(avail, room);
    if (len > t->mss) {
        uint32_t most = burst_limit(e, t);

        if (len > most) {
            len = most;
        }
        if (len < avail) {
            len -= len % t->mss;
        }
    }
    if (len == avail && (t->flags & MN_TF_FIN_QUEUED) != 0) {
        *fin = true;
        return len;
    }
    if (len == 0) {
        return MN_NIL;
    }
    /* Sender's silly-window avoidance (RFC 9293 3.8.6.2.1) and Nagle's rule (3.7.4). */
    if (len >= t->mss || len >= t->snd_wnd_max / 2) {
        return len;
    }
    if (len == avail && (t->flags & MN_TF_MORE) == 0 &&
        ((t->flags & MN_TF_NODELAY) != 0 || t->snd_nxt == t->snd_una)) {
        return len;
    }
    return MN_NIL;
}

static bool send_new(struct mn_engine *e, struct mn_tcb *t, uint32_t len, bool fin)
{
    uint32_t seq = t->snd_nxt;
    uint32_t in_flight = t->snd_nxt - t->snd_una;
    uint16_t flags = MN_TCP_ACK;

    if (seq + len == t->snd_end && len > 0) {
        flags |= MN_TCP_PSH;
    }
    if (fin) {
        flags |= MN_TCP_FIN;
    }
    if (!send_segment(e, t, seq, len, flags)) {
        return false;
    }
    t->snd_nxt = seq + len + fin;
    if (fin) {
        t->flags |= MN_TF_FIN_SENT;
    }
    t->last_tx_ns = e->now_ns;
    if (t->recovery == MN_REC_OPEN && t->dupacks > 0 && in_flight + len > t->cc.cwnd) {
        t->limited_bytes += len;
        e->stats.tcp_limited_transmits++;
    }
    if ((t->flags & (MN_TF_RTT | MN_TF_KARN)) == 0) {
        t->flags |= MN_TF_RTT;
        t->rtt_seq = t->snd_nxt;
        t->rtt_at = e->now_ns;
    }
    if (t->rtx_at == 0 || (t->flags & MN_TF_PERSIST) != 0) {
        t->flags &= ~MN_TF_PERSIST;
        t->rtx_since = 0;
        mn_tcp_rtx_arm(e, t);
    }
    return true;
}

/* Retransmission in recovery, RFC 6675 NextSeg rules 1, 3 and 4; rule 2, new data, is in between.
 */
static bool send_hole(struct mn_engine *e, struct mn_tcb *t, bool need_lost, uint32_t *pipe,
                      bool *sent)
{
    uint32_t left, right;

    *sent = false;
    if (*pipe >= t->cc.cwnd || (t->cc.cwnd - *pipe < t->mss && *pipe > 0)) {
        return true;
    }
    if (!mn_sack_next_hole(e, t, need_lost, &left, &right)) {
        return true;
    }
    right = mn_seq_min(right, t->snd_una + mn_max_u32(t->snd_wnd, 1));
    if (!mn_seq_lt(left, right)) {
        return true;
    }
    uint32_t len = mn_min_u32(right - left, t->mss);
    if (!send_again(e, t, left, left + len)) {
        return false;
    }
    *pipe += len;
    *sent = true;
    return true;
}

/* One segment at the highest data that SACK has not told (RFC 6675, NextSeg rule 4), once in a
 * recovery. */
static bool send_rescue(struct mn_engine *e, struct mn_tcb *t, bool *sent)
{
    uint32_t left, right;

    *sent = false;
    if ((t->flags & (MN_TF_RESCUED | MN_TF_SACK)) != MN_TF_SACK || t->recovery != MN_REC_FAST ||
        !mn_sack_last_hole(e, t, &left, &right) || !mn_seq_lt(t->rtx_nxt, right)) {
        return true;
    }
    left = mn_seq_max(right - mn_min_u32(t->mss, right - left), t->rtx_nxt);
    uint32_t keep = t->rtx_nxt;
    if (!send_again(e, t, left, right)) {
        return false;
    }
    t->rtx_nxt = keep; /* the rescue does not count as HighRxt */
    t->flags |= MN_TF_RESCUED;
    e->stats.tcp_rescue_retransmits++;
    *sent = true;
    return true;
}

/* One more segment; false when there is nothing to send or nothing to send it with. */
static bool output_one(struct mn_engine *e, struct mn_tcb *t, uint32_t *pipe, bool *stuck)
{
    bool sent = false, fin;
    uint32_t len;

    *stuck = true;
    if (t->recovery != MN_REC_OPEN) {
        if (!send_hole(e, t, t->recovery == MN_REC_FAST, pipe, &sent)) {
            return false;
        }
        if (sent) {
            return true;
        }
    }
    len = new_data(e, t, *pipe, &fin);
    if (len != MN_NIL) {
        if (!send_new(e, t, len, fin)) {
            return false;
        }
        *pipe += len;
        return true;
    }
    if (t->recovery == MN_REC_FAST && (t->flags & MN_TF_SACK) != 0) {
        if (!send_hole(e, t, false, pipe, &sent)) {
            return false;
        }
        if (!sent && *pipe + t->mss <= t->cc.cwnd && !send_rescue(e, t, &sent)) {
            return false;
        }
        if (sent) {
            return true;
        }
    }
    *stuck = false;
    return false;
}

/* Data wait, nothing is in flight, and the window (or the user's MORE) forbids: the persist timer
 * watches. */
static void persist_check(struct mn_engine *e, struct mn_tcb *t)
{
    bool waiting = t->snd_end != t->snd_nxt && (t->flags & MN_TF_FIN_SENT) == 0;

    if (waiting && t->snd_una == t->snd_nxt && t->rtx_at == 0) {
        t->flags |= MN_TF_PERSIST;
        mn_tcp_rtx_arm(e, t);
    }
}

static bool output_data(struct mn_engine *e, struct mn_tcb *t)
{
    bool stuck;

    if ((t->flags & MN_TF_PROBE_NOW) != 0) {
        return send_window_probe(e, t);
    }
    if ((t->flags & MN_TF_RTX_ONE) != 0 && !send_first_again(e, t)) {
        return false;
    }
    if (t->snd_una == t->snd_nxt && t->snd_end != t->snd_nxt &&
        e->now_ns - t->last_tx_ns > t->rto_us * MN_NS_PER_US) {
        t->cc.ops->on_idle(&t->cc);
    }
    uint32_t pipe = mn_tcp_pipe(e, t);
    do {
        if (!mn_tx_room(e, 1)) {
            return false;
        }
    } while (output_one(e, t, &pipe, &stuck));
    if (stuck) {
        return false;
    }
    persist_check(e, t);
    return true;
}

void mn_tcp_output(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->mcb != MN_NIL) {
        mn_mnp_output(e, t);
        return;
    }
    if (MN_UNLIKELY((t->flags & MN_TF_DOOMED) != 0)) {
        mn_tcp_abort(e, t, t->doom_err);
        return;
    }
    if (MN_UNLIKELY((t->flags & MN_TF_ZOMBIE) != 0)) {
        return;
    }
    if (!mn_tx_room(e, 2)) {
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if (t->state == MN_TCP_SYN_SENT || t->state == MN_TCP_SYN_RECEIVED) {
        if ((t->flags & MN_TF_RTX_ONE) != 0) {
            t->flags &= ~MN_TF_RTX_ONE;
            mn_tcp_send_syn(e, t);
        } else if ((t->flags & MN_TF_ACK_NOW) != 0) {
            mn_tcp_send_ack(e, t);
        }
        return;
    }
    if (t->state >= MN_TCP_ESTABLISHED && t->state != MN_TCP_TIME_WAIT &&
        t->state != MN_TCP_FIN_WAIT_2 && !output_data(e, t)) {
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if ((t->flags & MN_TF_ACK_NOW) != 0) {
        mn_tcp_send_ack(e, t);
    }
}
