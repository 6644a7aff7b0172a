/* SPDX-License-Identifier: MIT */
/* Where a TCP segment comes in: parse, find what it belongs to, and what LISTEN and CLOSED do with
 * it (RFC 9293 3.10.7.1, 3.10.7.2). */
#include "handoff.h"

#define PMTU_MIN_BYTES                                                                             \
    552u /* below it a "fragmentation needed" is a lie or an attack (RFC 5927 7.2; Linux's floor)  \
          */

void mn_tcp_apply_syn_options(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    const struct mn_tcp_opts *o = &s->opts;

    if (o->has_wscale && e->cfg.wscale) {
        t->flags |= MN_TF_WSCALE;
        t->snd_wscale = mn_tcp_wscale_clamp(o->wscale);
    } else {
        t->rcv_wscale = 0;
    }
    if (o->has_ts && e->cfg.timestamps) {
        t->flags |= MN_TF_TS;
        t->ts_recent = o->tsval;
        t->ts_recent_ns = e->now_ns;
    }
    if (o->sack_permitted && e->cfg.sack) {
        t->flags |= MN_TF_SACK;
    }
    mn_tcp_set_mss(e, t, o->has_mss ? o->mss : MN_MSS_DEFAULT);
}

/* RFC 4987 3.2: under a flood the oldest half-open connection makes room, once its peer has had
 * time to answer. */
#define HALF_OPEN_GRACE_NS (3 * MN_NS_PER_S)
/* Of mnp, which gives up soon after those 3 s anyway, and begins with 10 ms. */
#define HALF_OPEN_GRACE_MNP_NS (500 * MN_NS_PER_MS)

#define EVICT_LOOK 32u

bool mn_tcp_evict_half_open(struct mn_engine *e, uint32_t listener)
{
    uint32_t i = e->half_open_age.head;

    for (uint32_t n = 0; n < EVICT_LOOK && i != MN_NIL; n++) {
        struct mn_tcb *t = mn_tcb_at(e, i);
        uint64_t age_ns = e->now_ns - t->last_rx_ns;

        if (age_ns < HALF_OPEN_GRACE_MNP_NS) {
            return false;
        }
        if (t->listener == listener && (t->mcb != MN_NIL || age_ns >= HALF_OPEN_GRACE_NS)) {
            mn_tcp_drop(e, t, ETIMEDOUT);
            e->stats.tcp_half_open_evicted++;
            return true;
        }
        i = t->age_next;
    }
    return false;
}

void mn_tcp_listen_rx(struct mn_engine *e, uint32_t listener, struct mn_seg *s)
{
    const struct mn_listener *l = &e->listeners[listener];

    if ((s->flags & MN_TCP_RST) != 0) {
        e->stats.drop_tcp_state++;
        return;
    }
    if ((s->flags & MN_TCP_ACK) != 0) {
        e->stats.drop_tcp_state++;
        mn_tcp_reply_rst(e, s);
        return;
    }
    if ((s->flags & MN_TCP_SYN) == 0) {
        e->stats.drop_tcp_state++;
        return;
    }
    if ((l->half_open >= e->cfg.syn_backlog_max && !mn_tcp_evict_half_open(e, listener)) ||
        l->pending >= l->backlog) {
        e->stats.drop_syn_backlog++;
        return;
    }
    struct mn_tcb *t = mn_tcp_passive(e, s, listener);
    if (t == NULL) {
        e->stats.drop_syn_table++;
        return;
    }
    t->irs = s->seq;
    /* Data on a SYN are not kept: the peer sends them again. */
    t->rcv_nxt = t->usr_nxt = s->seq + 1;
    t->rcv_adv = t->rcv_nxt + mn_min_u32(t->rcv_buf, 65535);
    t->last_ack_sent = t->rcv_nxt;
    mn_tcp_apply_syn_options(e, t, s);
    t->snd_wnd = t->snd_wnd_max = s->wnd;
    t->snd_wl1 = s->seq;
    if (!mn_ip_is_local(e, t->raddr)) {
        t->nbr = mn_ip_route(e, t->raddr);
    }
    t->flags |= MN_TF_RTX_ONE;
    mn_tcp_mark_dirty(e, t);
}

/* RFC 6191, RFC 9293 3.10.7.4: a SYN that is certainly newer than the old connection replaces it.
 */
static bool time_wait_reuse(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    if ((s->flags & (MN_TCP_SYN | MN_TCP_ACK | MN_TCP_RST | MN_TCP_FIN)) != MN_TCP_SYN) {
        return false;
    }
    bool newer = mn_seq_ge(s->seq, t->rcv_nxt);
    if ((t->flags & MN_TF_TS) != 0 && s->opts.has_ts) {
        newer = mn_seq_gt(s->opts.tsval, t->ts_recent) || (s->opts.tsval == t->ts_recent && newer);
    }
    if (!newer || mn_listener_find(e, MN_IPPROTO_TCP, s->dst, s->dport) == MN_NIL) {
        return false;
    }
    e->stats.tcp_time_wait_reused++;
    e->isn_has_floor = true;
    e->isn_floor = t->snd_nxt;
    mn_tcp_drop(e, t, 0);
    return true;
}

/* A segment without a connection here: whether another engine of this address is to look at it. */
static bool handed_over(struct mn_engine *e, const struct mn_seg *s, uint32_t listener)
{
    const struct mn_tuple flow = {s->dst, s->src, s->dport, s->sport, MN_IPPROTO_TCP};
    bool opens =
        listener != MN_NIL && (s->flags & (MN_TCP_SYN | MN_TCP_ACK | MN_TCP_RST)) == MN_TCP_SYN;

    return opens ? mn_handoff_opening(e, &flow) : mn_handoff(e, &flow);
}

static void dispatch(struct mn_engine *e, struct mn_seg *s)
{
    struct mn_tcb *t = mn_flow_find(e, MN_IPPROTO_TCP, s->dst, s->dport, s->src, s->sport);

    if (t != NULL && (t->state != MN_TCP_TIME_WAIT || !time_wait_reuse(e, t, s))) {
        if (MN_UNLIKELY(t->state == MN_TCP_SYN_SENT)) {
            mn_tcp_syn_sent(e, t, s);
        } else {
            mn_tcp_segment(e, t, s);
        }
        return;
    }
    uint32_t listener = mn_listener_find(e, MN_IPPROTO_TCP, s->dst, s->dport);
    if (MN_UNLIKELY(e->share.n > 1) && handed_over(e, s, listener)) {
        e->isn_has_floor = false;
        return;
    }
    if (listener != MN_NIL) {
        mn_tcp_listen_rx(e, listener, s);
        e->isn_has_floor = false;
        return;
    }
    e->stats.drop_tcp_port++;
    mn_tcp_reply_rst(e, s);
}

/* The checksum over all pieces; an odd piece shifts what follows it. */
static bool chain_csum_ok(const struct mn_ipv4 *ip, const struct mn_pkt *more, uint32_t first_len)
{
    uint32_t sum = mn_csum_partial(
        ip->payload, first_len, mn_csum_pseudo(ip->src, ip->dst, MN_IPPROTO_TCP, ip->payload_len));
    bool odd = (first_len & 1) != 0;

    uint32_t left = ip->payload_len - first_len;

    for (; more != NULL && left > 0; more = more->next) {
        uint32_t n = mn_min_u32(more->len, left);
        uint32_t part = mn_csum_partial(more->data, n, 0);

        sum = mn_csum_add(sum, odd ? mn_csum_shift(part) : part);
        odd ^= (n & 1) != 0;
        left -= n;
    }
    return mn_csum_fold(sum) == 0;
}

static bool csum_ok(const struct mn_engine *e, const struct mn_pkt *pkt, const struct mn_ipv4 *ip,
                    uint32_t first_len, bool looped)
{
    if (pkt->csum != MN_CSUM_NONE &&
        (looped ? e->nic->caps.tx_csum_tcp : e->nic->caps.rx_csum_trusted)) {
        return true;
    }
    return chain_csum_ok(ip, pkt->next, first_len);
}

void mn_tcp_rx(struct mn_engine *e, struct mn_pkt *pkt, const struct mn_ipv4 *ip, bool looped)
{
    struct mn_tcp tcp;
    struct mn_seg s;
    uint32_t ip_off = (uint32_t)(ip->payload - pkt->data);
    uint32_t first_len = mn_min_u32(ip->payload_len, pkt->len - ip_off);
    int err = mn_tcp_parse(ip->payload, first_len, &tcp);

    if (MN_UNLIKELY(err < 0)) {
        if (err == MN_WIRE_TRUNCATED && first_len < MN_TCP_HLEN) {
            e->stats.drop_tcp_short++;
        } else {
            e->stats.drop_tcp_offset++;
        }
        return;
    }
    if (MN_UNLIKELY(!csum_ok(e, pkt, ip, first_len, looped))) {
        e->stats.drop_tcp_csum++;
        return;
    }
    if (MN_UNLIKELY(ip->src == ip->dst && tcp.sport == tcp.dport)) {
        e->stats.drop_tcp_land++;
        return;
    }
    s = (struct mn_seg){
        .src = ip->src,
        .dst = ip->dst,
        .sport = tcp.sport,
        .dport = tcp.dport,
        .seq = tcp.seq,
        .ack = tcp.ack,
        .len = ip->payload_len - tcp.hdr_len,
        .wnd = tcp.wnd,
        .flags = tcp.flags,
        .urg = tcp.urg,
        .data = tcp.payload,
        .data_len = tcp.payload_len,
        .more = pkt->next,
    };
    s.opts_bad = mn_tcp_opts_parse(tcp.opts, tcp.opts_len, &s.opts) < 0;
    dispatch(e, &s);
}

/* RFC 5927: only about something in flight. */
static struct mn_tcb *icmp_target(struct mn_engine *e, const struct mn_icmp_quote *q)
{
    struct mn_tcb *t = mn_flow_find(e, MN_IPPROTO_TCP, q->src, q->sport, q->dst, q->dport);

    if (t == NULL || t->state == MN_TCP_TIME_WAIT || mn_seq_lt(q->seq, t->snd_una) ||
        !mn_seq_lt(q->seq, t->snd_nxt)) {
        return NULL;
    }
    return t;
}

/* Smaller packets from now on, and what did not get through again at once (RFC 1191). */
static void frag_needed(struct mn_engine *e, struct mn_tcb *t, const struct mn_icmp *icmp)
{
    uint32_t mtu = icmp->rest & 0xffff;

    if (mtu < PMTU_MIN_BYTES || mtu - MN_IPV4_HLEN - MN_TCP_HLEN >= t->mss_opt) {
        e->stats.drop_icmp_ignored++;
        return;
    }
    e->stats.icmp_errors++;
    mn_tcp_set_mss(e, t, mtu - MN_IPV4_HLEN - MN_TCP_HLEN);
    if (t->state >= MN_TCP_ESTABLISHED) {
        t->recover = t->snd_nxt;
        t->rtx_nxt = t->snd_una;
        t->recovery = MN_REC_LOSS;
        t->flags |= MN_TF_RTX_ONE;
        mn_tcp_mark_dirty(e, t);
    }
}

void mn_tcp_soft_error(struct mn_engine *e, struct mn_tcb *t, int err)
{
    e->stats.icmp_errors++;
    if (t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_SOFT, err);
    }
}

void mn_tcp_icmp_verdict(struct mn_engine *e, struct mn_tcb *t, const struct mn_icmp *icmp)
{
    if (icmp->type != MN_ICMP_UNREACHABLE) {
        mn_tcp_soft_error(e, t, icmp->type == MN_ICMP_TIME_EXCEEDED ? EHOSTUNREACH : EPROTO);
        return;
    }
    switch (icmp->code) {
    case MN_ICMP_PROTO_UNREACHABLE:
    case MN_ICMP_PORT_UNREACHABLE:
        /* Hard, but only a connection that is not yet there believes it (RFC 5927 5.2). */
        if (t->state == MN_TCP_SYN_SENT) {
            e->stats.icmp_errors++;
            mn_tcp_drop(e, t, ECONNREFUSED);
        } else {
            mn_tcp_soft_error(e, t, ECONNREFUSED);
        }
        return;
    case MN_ICMP_NET_UNREACHABLE:
        mn_tcp_soft_error(e, t, ENETUNREACH);
        return;
    default:
        mn_tcp_soft_error(e, t, EHOSTUNREACH);
        return;
    }
}

void mn_tcp_icmp_error(struct mn_engine *e, const struct mn_icmp *icmp,
                       const struct mn_icmp_quote *q)
{
    struct mn_tcb *t = icmp_target(e, q);

    if (t == NULL) {
        e->stats.drop_icmp_quote++;
    } else if (icmp->type == MN_ICMP_UNREACHABLE && icmp->code == MN_ICMP_FRAG_NEEDED) {
        frag_needed(e, t, icmp);
    } else {
        mn_tcp_icmp_verdict(e, t, icmp);
    }
}

void mn_tcp_unreachable(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint16_t lport,
                        uint32_t raddr, uint16_t rport)
{
    struct mn_tcb *t = mn_flow_find(e, l4, laddr, lport, raddr, rport);

    if (t == NULL) {
        return;
    }
    if (t->state == MN_TCP_SYN_SENT) {
        mn_tcp_drop(e, t, EHOSTUNREACH);
    } else if (t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_SOFT, EHOSTUNREACH);
    }
}
