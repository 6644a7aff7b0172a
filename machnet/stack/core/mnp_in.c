/* SPDX-License-Identifier: MIT */
/* Packets of the message protocol in: what they belong to, and what each state does with them. */
#include "handoff.h"

static void listen_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp,
                      const struct mn_mnp *p)
{
    uint32_t listener = mn_listener_find(e, MN_IPPROTO_UDP, ip->dst, udp->dport);

    if (listener == MN_NIL) {
        e->stats.drop_mnp_port++;
        if (e->cfg.mnp_extended && p->word12 == MN_MNP_MARKER) {
            mn_mnp_reply_rst(e, ip, udp, 0, p->seq + 1, MN_MNP_R_REFUSED);
        }
        return; /* to a C++ host no port is ever closed */
    }
    const struct mn_listener *l = &e->listeners[listener];
    if ((l->half_open >= e->cfg.syn_backlog_max && !mn_tcp_evict_half_open(e, listener)) ||
        l->pending >= l->backlog) {
        e->stats.drop_syn_backlog++;
        return;
    }
    if (e->cfg.mnp_extended && p->word12 == MN_MNP_MARKER && p->version != 0 &&
        (p->mss < MN_MNP_MSS_MIN || p->mss > MN_MNP_MSS_MAX)) {
        e->stats.mnp_broken++;
        return;
    }
    struct mn_tcb *t = mn_mnp_passive(e, ip, udp, listener);
    if (t == NULL && mn_tcp_evict_half_open(e, listener)) {
        t = mn_mnp_passive(e, ip, udp, listener);
    }
    if (t == NULL) {
        e->stats.drop_syn_table++;
        return;
    }
    mn_mnp_apply_syn(e, t, p);
    if (!mn_ip_is_local(e, t->raddr)) {
        t->nbr = mn_ip_route(e, t->raddr);
    }
    t->flags |= MN_TF_RTX_ONE;
    mn_tcp_mark_dirty(e, t);
}

/* A packet of a connection that there is none of: its peer should know. */
static void stray(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp,
                  const struct mn_mnp *p)
{
    e->stats.drop_mnp_state++;
    if (p->kind == MN_MNP_RST || p->ack == MN_MNP_NO_ACK) {
        return;
    }
    mn_mnp_reply_rst(e, ip, udp, p->ack, p->seq + 1, MN_MNP_R_CLOSED);
}

static void ack_soon(struct mn_engine *e, struct mn_tcb *t)
{
    t->flags |= MN_TF_ACK_NOW;
    mn_tcp_mark_dirty(e, t);
}

/* As RFC 5961 has it for TCP: exactly the next number resets, one in the window asks. */
static void reset_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);

    if (p->seq != t->rcv_nxt || t->state == MN_TCP_TIME_WAIT) {
        e->stats.drop_mnp_seq++;
        if (m->ext && p->seq - t->rcv_nxt < MN_MNP_WND_MAX && t->state != MN_TCP_TIME_WAIT) {
            ack_soon(e, t);
        }
        return;
    }
    e->stats.mnp_resets_received++;
    if (t->state == MN_TCP_SYN_RECEIVED) {
        mn_tcp_drop(e, t, ECONNREFUSED);
        return;
    }
    bool wanted = t->state >= MN_TCP_CLOSING && mn_seq_ge(t->snd_una, t->snd_end);
    bool why = (m->feats & MN_MNP_F_REASON) != 0;
    mn_tcp_drop(e, t, wanted ? 0 : mn_mnp_errno(why ? p->word12 : 0));
}

static void syn_sent(struct mn_engine *e, struct mn_tcb *t, const struct mn_ipv4 *ip,
                     const struct mn_udp *udp, const struct mn_mnp *p)
{
    bool mine = p->ack == t->iss + 1 && t->snd_nxt == t->iss + 1;

    if (p->kind == MN_MNP_RST) {
        if (mine) {
            e->stats.mnp_resets_received++;
            mn_tcp_drop(e, t, ECONNREFUSED);
        } else {
            e->stats.drop_mnp_ack++;
        }
        return;
    }
    if (p->kind != MN_MNP_SYNACK || !mine) {
        if (p->kind == MN_MNP_SYN) {
            e->stats.drop_mnp_state++;
        } else {
            stray(e, ip, udp, p); /* of a connection that the peer still remembers */
        }
        return;
    }
    bool marked = e->cfg.mnp_extended && p->word12 == MN_MNP_MARKER && p->version != 0;
    if (marked &&
        (p->version > MN_MNP_VERSION || p->mss < MN_MNP_MSS_MIN || p->mss > MN_MNP_MSS_MAX)) {
        e->stats.mnp_broken++;
        return;
    }
    mn_mnp_apply_syn(e, t, p);
    t->last_rx_ns = e->now_ns;
    mn_mnp_established(e, t);
    ack_soon(e, t);
    if (t->user != NULL) {
        t->user->event(e, t, MN_TCP_EV_CONNECTED, 0);
    }
}

/* SYN-RECEIVED: does the packet show that the peer has our SYN-ACK? A plain host sends DATA only
 * then. False: the packet ends here. */
static bool syn_received(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);
    const struct mn_listener *l = &e->listeners[t->listener];
    bool plain_data = !m->ext && p->kind == MN_MNP_DATA;

    /* What comes in the pass of the SYN itself can't answer a SYN-ACK that was not sent yet. */
    if (t->snd_nxt == t->iss || (!plain_data && p->ack != t->iss + 1)) {
        e->stats.drop_mnp_ack++;
        return false;
    }
    if (!l->live || l->id != t->listener_id) {
        mn_tcp_abort(e, t, ECONNABORTED);
        return false;
    }
    if (!mn_lane_accept(e, t)) {
        e->stats.drop_syn_backlog++;
        return false;
    }
    mn_mnp_established(e, t);
    return true;
}

/* A SYN for a connection that there is. */
static void syn_again(struct mn_engine *e, struct mn_tcb *t, const struct mn_ipv4 *ip,
                      const struct mn_udp *udp, const struct mn_mnp *p)
{
    bool reuse = t->state == MN_TCP_TIME_WAIT && mn_seq_ge(p->seq, t->rcv_nxt);

    if (t->state == MN_TCP_SYN_RECEIVED && p->seq == t->irs) {
        t->flags |= MN_TF_RTX_ONE;
        mn_tcp_mark_dirty(e, t);
        return;
    }
    if (reuse || t->state == MN_TCP_SYN_RECEIVED) {
        /* The peer has begun anew. */
        mn_tcp_drop(e, t, reuse ? 0 : ECONNABORTED);
        listen_rx(e, ip, udp, p);
        return;
    }
    e->stats.drop_mnp_state++;
    if (mn_mcb_of(e, t)->ext) {
        ack_soon(e, t); /* whoever has begun anew resets what this tells of */
    }
}

static void segment(struct mn_engine *e, struct mn_tcb *t, const struct mn_ipv4 *ip,
                    const struct mn_udp *udp, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (t->state == MN_TCP_SYN_SENT) {
        syn_sent(e, t, ip, udp, p);
        return;
    }
    switch (p->kind) {
    case MN_MNP_RST:
        reset_in(e, t, p);
        return;
    case MN_MNP_SYN:
        syn_again(e, t, ip, udp, p);
        return;
    case MN_MNP_SYNACK:
        if (p->seq == t->irs && (t->flags & MN_TF_PASSIVE) == 0) {
            ack_soon(e, t); /* our ACK was lost */
        } else {
            e->stats.drop_mnp_state++;
        }
        return;
    case MN_MNP_FIN:
        if ((m->feats & MN_MNP_F_FIN) == 0) {
            e->stats.drop_mnp_state++;
            return;
        }
        break;
    default:
        break;
    }
    if (t->state == MN_TCP_SYN_RECEIVED && !syn_received(e, t, p)) {
        return;
    }
    t->last_rx_ns = e->now_ns;
    mn_tcp_keep_touch(e, t);
    if ((m->ext || p->kind == MN_MNP_ACK) && !mn_mnp_ack_in(e, t, p)) {
        return;
    }
    if (p->kind != MN_MNP_ACK) {
        mn_mnp_data_in(e, t, p);
    }
}

/* Another engine of this address may know the flow. */
static bool is_elsewhere(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp,
                         const struct mn_mnp *p)
{
    const struct mn_tuple flow = {ip->dst, ip->src, udp->dport, udp->sport, MN_IPPROTO_UDP};
    bool opens =
        p->kind == MN_MNP_SYN && mn_listener_find(e, MN_IPPROTO_UDP, ip->dst, udp->dport) != MN_NIL;

    return opens ? mn_handoff_opening(e, &flow) : mn_handoff(e, &flow);
}

bool mn_mnp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp)
{
    struct mn_mnp p;

    if (mn_mnp_parse(udp->payload, udp->payload_len, &p) < 0) {
        return false;
    }
    if (ip->src == ip->dst && udp->sport == udp->dport) {
        e->stats.drop_mnp_state++;
        return true;
    }
    struct mn_tcb *t = mn_flow_find(e, MN_IPPROTO_UDP, ip->dst, udp->dport, ip->src, udp->sport);
    if (t != NULL) {
        segment(e, t, ip, udp, &p);
        return true;
    }
    if (is_elsewhere(e, ip, udp, &p)) {
        return true;
    }
    if (p.kind == MN_MNP_SYN) {
        listen_rx(e, ip, udp, &p);
    } else {
        stray(e, ip, udp, &p);
    }
    return true;
}

void mn_mnp_space(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (m->n_held > 0) {
        mn_mnp_drain(e, t);
    }
    if (t->state < MN_TCP_ESTABLISHED || t->state > MN_TCP_FIN_WAIT_2 || t->user == NULL ||
        (m->feats & MN_MNP_F_WND) == 0 || (t->flags & MN_TF_ACK_NOW) != 0) {
        return;
    }
    uint32_t known = mn_seq_gt(m->wnd_edge, t->rcv_nxt) ? m->wnd_edge - t->rcv_nxt : 0;
    uint32_t most = e->cfg.mnp_window_packets;

    if (known >= most / 2) {
        return;
    }
    uint32_t edge = m->wnd_edge, wnd = mn_mnp_window(e, t);
    m->wnd_edge = edge; /* nothing was told yet */
    if (wnd > known && (known == 0 || wnd - known >= most / 4)) {
        ack_soon(e, t);
    }
}

void mn_mnp_icmp_error(struct mn_engine *e, const struct mn_icmp *icmp,
                       const struct mn_icmp_quote *q)
{
    struct mn_tcb *t = mn_flow_find(e, MN_IPPROTO_UDP, q->src, q->sport, q->dst, q->dport);

    if (t == NULL || t->state == MN_TCP_TIME_WAIT) {
        e->stats.drop_icmp_quote++;
    } else if (icmp->type == MN_ICMP_UNREACHABLE && icmp->code == MN_ICMP_FRAG_NEEDED) {
        mn_tcp_soft_error(e, t, EMSGSIZE);
    } else {
        mn_tcp_icmp_verdict(e, t, icmp);
    }
}
