/* SPDX-License-Identifier: MIT */
/* The life of a connection: allocation, open, close, abort, and what its user may ask for (RFC
 * 9293, 3.10.1 to 3.10.6). */
#include "engine_int.h"

enum { USE_ISN = 11, USE_TS = 12 };

struct mn_tcb *mn_tcb_alloc(struct mn_engine *e)
{
    uint32_t i = mn_pool_get(&e->tcb_pool);

    if (i == MN_NIL && e->time_wait_age.head != MN_NIL) {
        /* The oldest memory of a connection gives way to a new one. */
        mn_tcp_drop(e, mn_tcb_at(e, e->time_wait_age.head), 0);
        i = mn_pool_get(&e->tcb_pool);
    }
    if (i == MN_NIL) {
        return NULL;
    }
    struct mn_tcb *t = mn_tcb_at(e, i);
    memset(t, 0, sizeof(*t));
    t->out_next = t->out_prev = t->age_next = t->age_prev = MN_NIL;
    t->ooo_head = t->sack_head = MN_NIL;
    t->nbr = t->lane = t->slot = t->listener = t->mcb = MN_NIL;
    t->timer.kind = MN_TIMER_TCB;
    t->ttl = e->cfg.ttl;
    t->tos = (uint8_t)(e->cfg.dscp << 2);
    t->rto_us = e->cfg.rto_initial_us;
    t->rcv_buf = e->cfg.rcv_buf_bytes;
    t->user_timeout_ms = e->cfg.user_timeout_ms;
    t->linger_ms = MN_LINGER_DEFAULT;
    t->keep_idle_s = e->cfg.keepalive_idle_s;
    t->keep_interval_s = e->cfg.keepalive_interval_s;
    t->keep_count = (uint16_t)e->cfg.keepalive_count;
    t->last_rx_ns = e->now_ns;
    return t;
}

static void dirty_unlink(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_DIRTY) == 0) {
        return;
    }
    if (t->out_prev != MN_NIL) {
        mn_tcb_at(e, t->out_prev)->out_next = t->out_next;
    } else {
        e->dirty_head = t->out_next;
    }
    if (t->out_next != MN_NIL) {
        mn_tcb_at(e, t->out_next)->out_prev = t->out_prev;
    } else {
        e->dirty_tail = t->out_prev;
    }
    t->out_next = t->out_prev = MN_NIL;
    t->flags &= ~MN_TF_DIRTY;
}

void mn_tcp_mark_dirty(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t me = mn_tcb_index(e, t);

    if ((t->flags & MN_TF_DIRTY) != 0) {
        return;
    }
    t->flags |= MN_TF_DIRTY;
    t->out_prev = e->dirty_tail;
    t->out_next = MN_NIL;
    if (e->dirty_tail != MN_NIL) {
        mn_tcb_at(e, e->dirty_tail)->out_next = me;
    } else {
        e->dirty_head = me;
    }
    e->dirty_tail = me;
}

/* The next connection with something to send, off the list; NULL at its end. */
struct mn_tcb *mn_tcp_next_dirty(struct mn_engine *e)
{
    if (e->dirty_head == MN_NIL) {
        return NULL;
    }
    struct mn_tcb *t = mn_tcb_at(e, e->dirty_head);
    dirty_unlink(e, t);
    return t;
}

static void age_push(struct mn_engine *e, struct mn_age_list *q, struct mn_tcb *t)
{
    uint32_t me = mn_tcb_index(e, t);

    t->age_next = MN_NIL;
    t->age_prev = q->tail;
    if (q->tail != MN_NIL) {
        mn_tcb_at(e, q->tail)->age_next = me;
    } else {
        q->head = me;
    }
    q->tail = me;
}

static void age_remove(struct mn_engine *e, struct mn_age_list *q, struct mn_tcb *t)
{
    if (t->age_prev != MN_NIL) {
        mn_tcb_at(e, t->age_prev)->age_next = t->age_next;
    } else {
        q->head = t->age_next;
    }
    if (t->age_next != MN_NIL) {
        mn_tcb_at(e, t->age_next)->age_prev = t->age_prev;
    } else {
        q->tail = t->age_prev;
    }
    t->age_next = t->age_prev = MN_NIL;
}

static void half_open_count(struct mn_engine *e, struct mn_tcb *t, int32_t by)
{
    struct mn_listener *l;

    e->half_open += (uint32_t)by;
    if (t->listener == MN_NIL) {
        return;
    }
    l = &e->listeners[t->listener];
    if (l->live && l->id == t->listener_id) {
        l->half_open += (uint32_t)by;
    }
}

void mn_tcp_set_state(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_state state)
{
    if (t->state == state) {
        return;
    }
    if (t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0) {
        half_open_count(e, t, -1);
        age_remove(e, &e->half_open_age, t);
    }
    if (t->state == MN_TCP_TIME_WAIT) {
        e->time_wait--;
        age_remove(e, &e->time_wait_age, t);
    }
    t->state = (uint8_t)state;
    if (state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0) {
        half_open_count(e, t, 1);
        age_push(e, &e->half_open_age, t);
    }
    if (state == MN_TCP_TIME_WAIT) {
        e->time_wait++;
        age_push(e, &e->time_wait_age, t);
    }
}

void mn_tcb_free(struct mn_engine *e, struct mn_tcb *t)
{
    mn_tcp_set_state(e, t, MN_TCP_CLOSED);
    dirty_unlink(e, t);
    mn_timer_disarm(&e->wheel, &t->timer);
    mn_flow_remove(e, t);
    mn_ooo_clear(e, t);
    mn_sack_clear(e, t);
    if (t->mcb != MN_NIL) {
        mn_mnp_free(e, t);
    }
    t->user = NULL;
    mn_pool_put(&e->tcb_pool, mn_tcb_index(e, t));
}

static bool is_wanted(struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t held = mn_tcp_held(t);

    return held > 0 && t->user->wants(e, t, held);
}

/*
 * The connection has ended, but its user has still to take what was acknowledged (DESIGN.md, rule
 * 5): all that is left of it are these bytes and why it ended. mn_tcp_space goes on once there is
 * room.
 */
static void zombify(struct mn_engine *e, struct mn_tcb *t, int err)
{
    if ((t->flags & MN_TF_ZOMBIE) != 0) {
        return;
    }
    mn_tcp_set_state(e, t, MN_TCP_CLOSED);
    dirty_unlink(e, t);
    mn_timer_disarm(&e->wheel, &t->timer);
    t->rtx_at = t->delack_at = t->wait_at = t->keep_at = 0;
    mn_flow_remove(e, t);
    mn_sack_clear(e, t);
    t->flags |= MN_TF_ZOMBIE;
    t->doom_err = err;
}

void mn_tcp_drop(struct mn_engine *e, struct mn_tcb *t, int err)
{
    const struct mn_tcp_user *user = t->user;

    if ((t->flags & MN_TF_DOOMED) != 0) {
        err = t->doom_err; /* what the peer did afterwards is not why */
    }
    if (user != NULL && is_wanted(e, t) && (t->flags & (MN_TF_ORPHAN | MN_TF_DOOMED)) == 0) {
        zombify(e, t, err);
        return;
    }
    if (user != NULL) {
        user->event(e, t, MN_TCP_EV_CLOSED, err);
    }
    mn_tcb_free(e, t);
}

/* RFC 6528: a 4 us clock plus a keyed hash of the addresses; unpredictable from outside, rising for
 * one pair of them. */
uint32_t mn_tcp_iss(struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t iss;

    if (e->isn_is_forced) {
        return e->isn_forced;
    }
    iss = (uint32_t)(e->now_ns / 4000) +
          (uint32_t)mn_siphash_flow(e->key, t->laddr, t->lport, t->raddr, t->rport, USE_ISN);
    if (e->isn_has_floor && !mn_seq_gt(iss, e->isn_floor)) {
        /* The old connection was faster than the clock (RFC 9293 3.6.1, MAY-2). */
        iss = e->isn_floor + 1 + ((uint32_t)mn_random(e) & 0xffff);
    }
    e->isn_has_floor = false;
    return iss;
}

/* Milliseconds with an offset per connection, so that they tell neither uptime nor which hosts are
 * one (RFC 7323, 5.4). */
uint32_t mn_tcp_ts_now(const struct mn_engine *e, const struct mn_tcb *t)
{
    return (uint32_t)(e->now_ns / MN_NS_PER_MS) + t->ts_offset;
}

void mn_tcp_set_mss(struct mn_engine *e, struct mn_tcb *t, uint32_t peer_mss)
{
    uint32_t mss = t->maxseg != 0 ? mn_min_u32(peer_mss, t->maxseg) : peer_mss;

    mss = mn_max_u32(mss, e->cfg.mss_min_bytes);
    mss = mn_min_u32(mss, e->nic->caps.mtu - MN_IPV4_HLEN - MN_TCP_HLEN);
    t->mss_opt = mss;
    t->mss = mss - ((t->flags & MN_TF_TS) != 0 ? MN_TCP_OPTS_TS_LEN : 0);
    t->cc.mss = t->mss;
}

/* What both kinds of open set up, once addresses and ports are known. */
static void conn_init(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t scale = 0;

    t->iss = mn_tcp_iss(e, t);
    t->snd_una = t->snd_nxt = t->iss;
    t->snd_end = t->iss + 1;
    t->recover = t->rtx_nxt = t->iss;
    t->ts_offset =
        (uint32_t)mn_siphash_flow(e->key, t->laddr, t->lport, t->raddr, t->rport, USE_TS);
    while (scale < MN_TCP_WSCALE_MAX && (65535u << scale) < t->rcv_buf) {
        scale++;
    }
    t->rcv_wscale = (uint8_t)scale;
    mn_flow_insert(e, t);
}

struct mn_tcb *mn_tcp_passive(struct mn_engine *e, const struct mn_seg *s, uint32_t listener)
{
    struct mn_tcb *t = mn_tcb_alloc(e);

    if (t == NULL) {
        return NULL;
    }
    t->flags |= MN_TF_PASSIVE;
    t->laddr = s->dst;
    t->raddr = s->src;
    t->lport = s->dport;
    t->rport = s->sport;
    t->listener = listener;
    t->listener_id = e->listeners[listener].id;
    conn_init(e, t);
    mn_tcp_set_state(e, t, MN_TCP_SYN_RECEIVED);
    e->stats.tcp_passive_opens++;
    return t;
}

static int check_remote(const struct mn_engine *e, uint32_t raddr, uint16_t rport)
{
    if (mn_ip_is_multicast(raddr) || mn_ip_is_broadcast(e, raddr)) {
        return -ENETUNREACH; /* as Linux says it: there is no route for a connection to many */
    }
    return rport == 0 || mn_ip_is_martian_source(raddr) ? -EINVAL : 0;
}

int mn_tcp_endpoints(struct mn_engine *e, uint8_t l4, uint32_t *laddr, uint16_t *lport,
                     uint32_t raddr, uint16_t rport, uint32_t *nbr)
{
    int err = check_remote(e, raddr, rport);

    if (err != 0) {
        return err;
    }
    if (*laddr == 0) {
        *laddr = e->cfg.ip;
    }
    if (!mn_ip_is_local(e, *laddr)) {
        return -EADDRNOTAVAIL;
    }
    *nbr = MN_NIL;
    if (!mn_ip_is_local(e, raddr)) {
        *nbr = mn_ip_route(e, raddr);
        if (*nbr == MN_NIL) {
            return -ENETUNREACH;
        }
    }
    if (*lport == 0) {
        int32_t port = mn_port_choose(e, l4, *laddr, raddr, rport);

        if (port < 0) {
            return port;
        }
        *lport = (uint16_t)port;
    }
    if (mn_flow_find(e, l4, *laddr, *lport, raddr, rport) != NULL) {
        return -EADDRINUSE;
    }
    return *laddr == raddr && *lport == rport ? -EADDRNOTAVAIL : 0;
}

void mn_tcp_start_syn(struct mn_engine *e, struct mn_tcb *t, uint32_t timeout_ms)
{
    uint64_t wait_ms = timeout_ms != 0 ? timeout_ms : e->cfg.syn_timeout_ms;

    mn_tcp_set_state(e, t, MN_TCP_SYN_SENT);
    mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + wait_ms * MN_NS_PER_MS);
    t->flags |= MN_TF_RTX_ONE;
    mn_tcp_mark_dirty(e, t);
}

int mn_tcp_connect(struct mn_engine *e, struct mn_tcb **out, uint32_t laddr, uint16_t lport,
                   uint32_t raddr, uint16_t rport, const struct mn_tcp_user *user,
                   uint32_t timeout_ms)
{
    uint32_t nbr = MN_NIL;
    int err = mn_tcp_endpoints(e, MN_IPPROTO_TCP, &laddr, &lport, raddr, rport, &nbr);

    if (err != 0) {
        return err;
    }
    struct mn_tcb *t = mn_tcb_alloc(e);
    if (t == NULL) {
        return -ENOBUFS;
    }
    t->laddr = laddr;
    t->lport = lport;
    t->raddr = raddr;
    t->rport = rport;
    t->nbr = nbr;
    t->user = user;
    conn_init(e, t);
    e->stats.tcp_active_opens++;
    mn_tcp_start_syn(e, t, timeout_ms);
    *out = t;
    return 0;
}

void mn_tcp_established(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t iw = e->cfg.initial_window;

    mn_tcp_set_state(e, t, MN_TCP_ESTABLISHED);
    e->stats.tcp_established++;
    t->wait_at = 0;
    t->retries = 0;
    if ((t->flags & MN_TF_SYN_TIMEOUT) != 0) {
        /* A lost SYN: RFC 6298 5.7 wants 3 s, RFC 5681 3.1 one segment. */
        t->rto_us = mn_max_u32(t->rto_us, 3000000);
        iw = 1;
    }
    t->backoff = 0;
    mn_cc_init(&t->cc, &mn_cc_reno, t->mss, iw);
    t->recover = t->iss;
    t->rtx_nxt = t->snd_una;
    t->flags &= ~MN_TF_KARN;
    if ((t->flags & MN_TF_FIN_QUEUED) != 0) {
        mn_tcp_set_state(e, t, MN_TCP_FIN_WAIT_1);
    }
    mn_tcp_keep_touch(e, t);
    mn_tcp_mark_dirty(e, t);
}

void mn_tcp_enter_time_wait(struct mn_engine *e, struct mn_tcb *t)
{
    const struct mn_tcp_user *user = t->user;

    mn_tcp_set_state(e, t, MN_TCP_TIME_WAIT);
    mn_tcp_rtx_stop(t);
    t->keep_at = 0;
    mn_sack_clear(e, t);
    uint64_t msl_ms = t->mcb == MN_NIL ? e->cfg.msl_ms : e->cfg.mnp_msl_ms;
    mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + 2 * msl_ms * MN_NS_PER_MS);
    if (t->mcb != MN_NIL) {
        mn_mnp_held_clear(e, t); /* the channel may go now */
    }
    if (user != NULL && mn_tcp_held(t) > 0 && (t->flags & MN_TF_ORPHAN) == 0) {
        return; /* mn_tcp_space lets go of the user once it has everything */
    }
    /* All of the user's is sent and acknowledged: it is free to forget the connection. */
    mn_ooo_clear(e, t);
    t->user = NULL;
    if (user != NULL) {
        user->event(e, t, MN_TCP_EV_CLOSED, 0);
    }
}

void mn_tcp_queued(struct mn_engine *e, struct mn_tcb *t, uint32_t bytes)
{
    MN_ASSERT((t->flags & MN_TF_FIN_QUEUED) == 0);
    t->snd_end += bytes;
    mn_tcp_mark_dirty(e, t);
}

void mn_tcp_urgent(struct mn_engine *e, struct mn_tcb *t)
{
    t->snd_up = t->snd_end;
    t->flags |= MN_TF_URG_SND;
    mn_tcp_mark_dirty(e, t);
}

void mn_tcp_shutdown(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_FIN_QUEUED) != 0) {
        return;
    }
    t->flags |= MN_TF_FIN_QUEUED;
    t->flags &= ~MN_TF_MORE;
    if (t->state == MN_TCP_ESTABLISHED) {
        mn_tcp_set_state(e, t, MN_TCP_FIN_WAIT_1);
    } else if (t->state == MN_TCP_CLOSE_WAIT) {
        t->wait_at = 0;
        mn_tcp_set_state(e, t, MN_TCP_LAST_ACK);
    }
    mn_tcp_mark_dirty(e, t);
}

static void send_reset(struct mn_engine *e, struct mn_tcb *t, int err)
{
    if (t->mcb != MN_NIL) {
        mn_mnp_send_rst(e, t, err);
    } else {
        mn_tcp_send_rst(e, t);
    }
}

void mn_tcp_abort(struct mn_engine *e, struct mn_tcb *t, int err)
{
    switch (t->state) {
    case MN_TCP_SYN_RECEIVED:
    case MN_TCP_ESTABLISHED:
    case MN_TCP_FIN_WAIT_1:
    case MN_TCP_FIN_WAIT_2:
    case MN_TCP_CLOSE_WAIT:
        send_reset(e, t, err);
        break;
    case MN_TCP_CLOSING:
    case MN_TCP_LAST_ACK:
        if (t->snd_una != t->snd_end + 1) {
            send_reset(e, t, err); /* what was queued will not come */
        }
        break;
    default:
        break;
    }
    mn_tcp_drop(e, t, err);
}

void mn_tcp_doom(struct mn_engine *e, struct mn_tcb *t, int err)
{
    if ((t->flags & MN_TF_DOOMED) == 0) {
        t->flags |= MN_TF_DOOMED;
        t->doom_err = err;
    }
    mn_tcp_mark_dirty(e, t);
}

/* In TIME-WAIT nothing is owed to the user any more. */
static void let_go(struct mn_engine *e, struct mn_tcb *t)
{
    const struct mn_tcp_user *user = t->user;

    mn_ooo_clear(e, t);
    t->user = NULL;
    user->event(e, t, MN_TCP_EV_CLOSED, 0);
}

void mn_tcp_orphan(struct mn_engine *e, struct mn_tcb *t, uint32_t linger_ms, bool unread)
{
    t->flags |= MN_TF_ORPHAN;
    if (t->state == MN_TCP_TIME_WAIT) {
        let_go(e, t);
        return;
    }
    if (linger_ms == 0 || unread || t->state == MN_TCP_SYN_SENT) {
        mn_tcp_abort(e, t, ECONNABORTED);
        return;
    }
    mn_tcp_shutdown(e, t);
    if (t->state == MN_TCP_FIN_WAIT_2) {
        mn_tcp_timer_set(e, t, &t->wait_at, e->now_ns + e->cfg.fin_wait2_ms * MN_NS_PER_MS);
    } else {
        /* Without a limit of its own it has user_timeout_ms from its last progress: a peer that
         * answers probes but never opens its window must not keep it for ever. */
        if (linger_ms == MN_LINGER_DEFAULT) {
            t->flags |= MN_TF_LINGER_PUSH;
        }
        mn_tcp_linger(e, t, linger_ms != MN_LINGER_DEFAULT ? linger_ms : t->user_timeout_ms);
    }
}

void mn_tcp_linger(struct mn_engine *e, struct mn_tcb *t, uint32_t linger_ms)
{
    uint64_t at = e->now_ns + linger_ms * MN_NS_PER_MS;

    if (t->state != MN_TCP_TIME_WAIT && (t->wait_at == 0 || at < t->wait_at)) {
        mn_tcp_timer_set(e, t, &t->wait_at, at);
    }
}

/* RFC 9293 3.8.6.2.2: tell the peer once the window it knows has become small and a worthwhile part
 * can be offered. */
void mn_tcp_space(struct mn_engine *e, struct mn_tcb *t)
{
    if (t->mcb != MN_NIL) {
        mn_mnp_space(e, t);
        return;
    }
    uint32_t known = t->rcv_adv - t->rcv_nxt;
    uint32_t space, gain;

    if (t->ooo_head != MN_NIL) {
        mn_ooo_drain(e, t);
        known = t->rcv_adv - t->rcv_nxt;
    }
    if (MN_UNLIKELY((t->flags & MN_TF_ZOMBIE) != 0)) {
        if (!is_wanted(e, t)) {
            mn_tcp_drop(e, t, t->doom_err);
        }
        return;
    }
    if (t->state == MN_TCP_TIME_WAIT && mn_tcp_held(t) == 0) {
        let_go(e, t);
    }
    if (t->state < MN_TCP_ESTABLISHED || t->state > MN_TCP_FIN_WAIT_2) {
        return;
    }
    /* While the peer has plenty left, its next segment's acknowledgement will do. */
    if (known >= mn_max_u32(mn_min_u32(t->rcv_buf / 2, 32768), t->mss)) {
        return;
    }
    space = t->user->rx_space(e, t);
    if (space <= known) {
        return;
    }
    gain = space - known;
    if (gain >= t->rcv_buf / 4 || (known < t->mss && gain >= mn_min_u32(t->rcv_buf / 2, t->mss))) {
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
}
