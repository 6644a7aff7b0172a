/* SPDX-License-Identifier: MIT */
/* The life of a connection of the message protocol: open, modes, timers. Closing and aborting are
 * in tcp_conn.c, for both transports. */
#include "engine_int.h"
#include "mnp.h"

enum { USE_TS = 13 };

#define SYN_ACK_RETRIES 8u
#define PROBES_MAX      2u   /* as many tail loss probes before a timeout */
#define PTO_SLACK_US    100u /* what an answer may take besides the way: a sleeper has to wake up */

uint32_t mn_mnp_now_us(const struct mn_engine *e)
{
    return (uint32_t)(e->now_ns / MN_NS_PER_US);
}

uint32_t mn_mnp_mss(const struct mn_engine *e)
{
    uint32_t mss = e->nic->caps.mtu - MN_IPV4_HLEN;

    mss = mss > MN_UDP_HLEN + MN_MNP_HLEN ? mss - MN_UDP_HLEN - MN_MNP_HLEN : 0;
    return mn_min_u32(mss, MN_MNP_MSS_MAX);
}

int mn_mnp_errno(uint32_t reason)
{
    static const int numbers[] = {
        [MN_MNP_R_NONE] = ECONNRESET,      [MN_MNP_R_CLOSED] = ECONNRESET,
        [MN_MNP_R_REFUSED] = ECONNREFUSED, [MN_MNP_R_TIMEOUT] = ETIMEDOUT,
        [MN_MNP_R_PROTOCOL] = EPROTO,      [MN_MNP_R_TOO_LARGE] = EMSGSIZE,
        [MN_MNP_R_RESOURCES] = ENOBUFS,    [MN_MNP_R_APP_GONE] = ECONNRESET,
    };

    return reason < MN_ARRAY_LEN(numbers) ? numbers[reason] : ECONNRESET;
}

#define TIME_WAIT_LOOK 32u

/* The second half of a block. The oldest memory of a connection gives way to a new one, if it is
 * found soon among those of TCP. */
static uint32_t mcb_get(struct mn_engine *e)
{
    uint32_t i = mn_pool_get(&e->mcb_pool), old = e->time_wait_age.head;

    for (uint32_t n = 0; i == MN_NIL && old != MN_NIL && n < TIME_WAIT_LOOK; n++) {
        struct mn_tcb *t = mn_tcb_at(e, old);

        old = t->age_next;
        if (t->mcb != MN_NIL) {
            mn_tcp_drop(e, t, 0);
            i = mn_pool_get(&e->mcb_pool);
        }
    }
    return i;
}

/* A block with its second half; NULL: no room for either. */
static struct mn_tcb *conn_alloc(struct mn_engine *e)
{
    uint32_t i = mcb_get(e);

    if (i == MN_NIL) {
        return NULL;
    }
    struct mn_tcb *t = mn_tcb_alloc(e);
    if (t == NULL) {
        mn_pool_put(&e->mcb_pool, i);
        return NULL;
    }
    /* The rings need no clearing: what is held was given back, what was sent is written first. */
    memset(&e->mcbs[i], 0, offsetof(struct mn_mcb, sent));
    t->mcb = i;
    t->rto_us = e->cfg.mnp_rto_initial_us;
    t->user_timeout_ms = e->cfg.mnp_user_timeout_ms;
    return t;
}

void mn_mnp_free(struct mn_engine *e, struct mn_tcb *t)
{
    mn_mnp_held_clear(e, t);
    mn_pool_put(&e->mcb_pool, t->mcb);
}

static void conn_init(struct mn_engine *e, struct mn_tcb *t)
{
    t->iss = mn_tcp_iss(e, t);
    t->snd_una = t->snd_nxt = t->recover = t->iss;
    t->snd_end = t->iss + 1;
    t->ts_offset =
        (uint32_t)mn_siphash_flow(e->key, t->laddr, t->lport, t->raddr, t->rport, USE_TS);
    mn_flow_insert(e, t);
}

int mn_mnp_connect(struct mn_engine *e, struct mn_tcb **out, uint32_t laddr, uint16_t lport,
                   uint32_t raddr, uint16_t rport, const struct mn_tcp_user *user,
                   uint32_t timeout_ms)
{
    uint32_t nbr = MN_NIL;

    if (mn_mnp_mss(e) < MN_MNP_MSS_MIN) {
        return -EMSGSIZE;
    }
    int err = mn_tcp_endpoints(e, MN_IPPROTO_UDP, &laddr, &lport, raddr, rport, &nbr);
    if (err != 0) {
        return err;
    }
    struct mn_tcb *t = conn_alloc(e);
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
    e->stats.mnp_active_opens++;
    mn_tcp_start_syn(e, t, timeout_ms);
    *out = t;
    return 0;
}

struct mn_tcb *mn_mnp_passive(struct mn_engine *e, const struct mn_ipv4 *ip,
                              const struct mn_udp *udp, uint32_t listener)
{
    struct mn_tcb *t = conn_alloc(e);

    if (t == NULL) {
        return NULL;
    }
    t->flags |= MN_TF_PASSIVE;
    t->laddr = ip->dst;
    t->raddr = ip->src;
    t->lport = udp->dport;
    t->rport = udp->sport;
    t->listener = listener;
    t->listener_id = e->listeners[listener].id;
    conn_init(e, t);
    mn_tcp_set_state(e, t, MN_TCP_SYN_RECEIVED);
    e->stats.mnp_passive_opens++;
    return t;
}

void mn_mnp_apply_syn(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t mss = MN_MNP_MSS;

    m->ext = e->cfg.mnp_extended && p->word12 == MN_MNP_MARKER && p->version != 0;
    m->feats = m->ext ? p->feats & MN_MNP_F_ALL : 0;
    t->irs = p->seq;
    t->rcv_nxt = t->usr_nxt = p->seq + 1;
    t->rcv_adv = t->rcv_nxt;
    t->snd_wnd = MN_MNP_PLAIN_INFLIGHT;
    if (m->ext) {
        mss = mn_max_u32(p->mss, MN_MNP_MSS_MIN);
        t->snd_wnd =
            (m->feats & MN_MNP_F_WND) != 0 ? mn_min_u32(p->syn_wnd, MN_MNP_WND_MAX) : MN_MNP_NO_WND;
        t->ts_recent = p->tsval;
        m->ts_pending = true;
        m->wnd_ts = p->tsval;
        m->wnd_ns = e->now_ns;
    }
    t->snd_wnd_max = MN_MNP_WND_MAX;
    t->mss = t->mss_opt = mn_min_u32(mss, mn_mnp_mss(e));
}

void mn_mnp_established(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    t->snd_una = t->iss + 1;
    if ((t->flags & MN_TF_KARN) == 0) {
        mn_tcp_rtt_sample(e, t, e->now_ns - t->rtt_at);
        m->min_rtt_us = m->min_rtt_new_us = mn_max_u32(t->srtt_us >> 3, 1);
        m->min_rtt_at = e->now_ns;
    }
    t->flags &= ~MN_TF_KARN;
    mn_tcp_rtx_stop(t);
    t->wait_at = 0;
    t->backoff = 0;
    mn_tcp_set_state(e, t, MN_TCP_ESTABLISHED);
    e->stats.mnp_established++;
    e->stats.mnp_plain += !m->ext;
    mn_cc_init(&t->cc, &mn_cc_rate, t->mss, e->cfg.initial_window);
    t->recover = m->lost_from = m->high_sack = m->round_end = t->snd_una;
    m->round_us = mn_mnp_now_us(e);
    if ((t->flags & MN_TF_FIN_QUEUED) != 0) {
        mn_tcp_set_state(e, t, MN_TCP_FIN_WAIT_1);
    }
    mn_tcp_keep_touch(e, t);
    mn_tcp_mark_dirty(e, t);
}

/* Of a repetition that is lost as well nothing tells but the next probe, or the timeout, which is
 * many round trips away. So there are probes in recovery too, and behind the first timeout. */
static bool probes_help(const struct mn_tcb *t, const struct mn_mcb *m)
{
    if ((m->feats & MN_MNP_F_SACK) == 0) {
        return t->backoff == 0 && t->recovery == MN_REC_OPEN;
    }
    return t->backoff <= 1;
}

/* The next tail loss probe, if one is to come before the timeout. */
static void pto_arm(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t srtt = t->srtt_us >> 3;

    m->pto = false;
    m->rto_at = t->rtx_at;
    if (srtt != 0 && probes_help(t, m) && m->probes < PROBES_MAX &&
        t->state >= MN_TCP_ESTABLISHED && (t->flags & MN_TF_PERSIST) == 0) {
        uint64_t us = mn_max_u32(2 * srtt, srtt + t->rttvar_us) +
                      mn_max_u32(PTO_SLACK_US, 2 * e->cfg.mnp_delack_us);
        uint64_t at = e->now_ns + us * MN_NS_PER_US;

        if (at < t->rtx_at) {
            m->pto = true;
            mn_tcp_timer_set(e, t, &t->rtx_at, at);
        }
    }
}

/* The timer for what is in flight: first tail loss probes (RFC 8985, 7), if there is an RTT to go
 * by, then the timeout. */
void mn_mnp_rtx_arm(struct mn_engine *e, struct mn_tcb *t)
{
    mn_tcp_rtx_arm(e, t);
    pto_arm(e, t);
}

static bool syn_fire(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_PASSIVE) != 0 && t->retries >= SYN_ACK_RETRIES) {
        mn_tcp_drop(e, t, ETIMEDOUT);
        return false;
    }
    t->retries = (uint8_t)mn_min_u32(t->retries + 1u, 255);
    t->backoff = (uint8_t)mn_min_u32(t->backoff + 1u, 32);
    t->retransmits++;
    e->stats.mnp_retransmits++;
    e->stats.mnp_rto++;
    t->flags |= MN_TF_RTX_ONE | MN_TF_KARN;
    mn_tcp_mark_dirty(e, t);
    return true;
}

/* Since when the peer owes an answer: with a closed window any answer counts. */
static bool peer_is_dead(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint64_t since = t->rtx_since;

    if (t->snd_wnd == 0 || (t->flags & MN_TF_PERSIST) != 0) {
        since = mn_max_u64(since, t->last_rx_ns);
    }
    return t->user_timeout_ms != 0 && e->now_ns >= since + t->user_timeout_ms * MN_NS_PER_MS;
}

/* Everything in flight counts as lost, except what the peer has said it holds. */
static void timeout(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t pipe = mn_mnp_pipe(e, t);

    e->stats.mnp_rto++;
    if (t->retries == 0) {
        m->undo = true;
        m->undo_us = mn_mnp_now_us(e) + t->ts_offset;
        m->undo_cwnd = t->cc.cwnd;
        m->undo_ssthresh = t->cc.ssthresh;
    }
    t->retries = (uint8_t)mn_min_u32(t->retries + 1u, 255);
    if (t->retries >= e->cfg.r1_retries && (t->flags & MN_TF_R1) == 0) {
        t->flags |= MN_TF_R1;
        mn_nbr_suspect(e, mn_ip_known_hop(e, t->raddr, t->nbr));
        if (t->user != NULL) {
            t->user->event(e, t, MN_TCP_EV_SOFT, ETIMEDOUT);
        }
    }
    t->cc.ops->on_rto(&t->cc, pipe * t->mss, t->retries == 1);
    t->backoff = (uint8_t)mn_min_u32(t->backoff + 1u, 32);
    for (uint32_t seq = t->snd_una; seq != t->snd_nxt; seq++) {
        mn_mnp_mark_lost(e, t, seq);
    }
    t->recovery = MN_REC_LOSS;
    t->recover = t->snd_nxt;
    t->dupacks = 0;
    m->reo_at = 0;
    m->probes = 0;
    t->flags |= MN_TF_RTX_ONE;
}

static bool rtx_fire(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (t->state == MN_TCP_SYN_SENT || t->state == MN_TCP_SYN_RECEIVED) {
        return syn_fire(e, t);
    }
    if (t->snd_una == t->snd_nxt && (t->flags & MN_TF_PERSIST) == 0) {
        return true;
    }
    if (peer_is_dead(e, t)) {
        e->stats.mnp_timeouts++;
        mn_tcp_abort(e, t, ETIMEDOUT);
        return false;
    }
    if (t->snd_wnd == 0 || (t->flags & MN_TF_PERSIST) != 0) {
        /* The application there does not take its messages: ask again, as often as it takes. */
        t->flags |= MN_TF_PERSIST | MN_TF_PROBE_NOW;
        t->backoff = (uint8_t)mn_min_u32(t->backoff + 1u, 32);
    } else if (m->pto) {
        /* What it brings about does not put the timeout off. */
        m->probes++;
        t->flags |= MN_TF_PROBE_NOW;
        mn_tcp_timer_set(e, t, &t->rtx_at, m->rto_at);
        pto_arm(e, t);
        mn_tcp_mark_dirty(e, t);
        return true;
    } else {
        timeout(e, t);
    }
    mn_mnp_rtx_arm(e, t);
    mn_tcp_mark_dirty(e, t);
    return true;
}

void mn_mnp_fire(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    if (mn_tcp_timer_due(e, &t->delack_at)) {
        e->stats.mnp_acks_delayed++;
        m->answers = MN_MNP_ANSWERS / 2;
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
    if (mn_tcp_timer_due(e, &m->reo_at)) {
        mn_mnp_detect_lost(e, t);
        mn_tcp_mark_dirty(e, t);
    }
    if (mn_tcp_timer_due(e, &t->rtx_at) && !rtx_fire(e, t)) {
        return;
    }
    mn_tcp_fire_slow(e, t);
}
