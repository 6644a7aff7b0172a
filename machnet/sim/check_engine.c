/* SPDX-License-Identifier: MIT */
/*
 * What must hold between two calls into the engine, whatever came in: the state of each connection
 * within itself, lists against counters, pools against what their users hold, timers against what
 * waits. Looks at the engine's own structures; changes nothing.
 */
#include "check_int.h"

#include <stdio.h>

/* Tables are held against each other pair by pair as long as that is cheap. */
#define PAIRS_MAX (1u << 18)

void mn_ck_name(char *out, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport)
{
    (void)snprintf(out, MN_CK_NAME_BYTES, "%u.%u.%u.%u:%u-%u.%u.%u.%u:%u", laddr >> 24,
                   laddr >> 16 & 255, laddr >> 8 & 255, laddr & 255, lport, raddr >> 24,
                   raddr >> 16 & 255, raddr >> 8 & 255, raddr & 255, rport);
}

static const char *state_name(uint32_t state)
{
    static const char *const names[] = {
        "CLOSED",     "LISTEN",     "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1",
        "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING",  "LAST-ACK",     "TIME-WAIT",
    };

    return state < MN_ARRAY_LEN(names) ? names[state] : "in no state";
}

bool mn_ck_fail(const struct mn_ck *k, const char *func, const char *cond)
{
    const struct mn_tcb *t = k->tcb;
    char name[MN_CK_NAME_BYTES];
    int n = 0;

    if (t != NULL) {
        mn_ck_name(name, t->laddr, t->lport, t->raddr, t->rport);
        n = snprintf(k->text, k->size, "%s %s (una %u nxt %u end %u, rcv_nxt %u adv %u): ", name,
                     state_name(t->state), t->snd_una - t->iss, t->snd_nxt - t->iss,
                     t->snd_end - t->iss, t->rcv_nxt - t->irs, t->rcv_adv - t->irs);
    }
    if (n >= 0 && (size_t)n < k->size) {
        (void)snprintf(k->text + n, k->size - (size_t)n, "%s: not: %s", strchr(func, '_') + 1,
                       cond);
    }
    return false;
}

/* No connection any more, but bytes that its user has still to take. */
static bool is_zombie(const struct mn_tcb *t)
{
    return t->state == MN_TCP_CLOSED && t->user != NULL && (t->flags & MN_TF_ZOMBIE) != 0;
}

/* What was acknowledged and not yet taken is there, and all of it. */
static bool check_bytes_held(struct mn_ck *k, const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t end = t->rcv_nxt - ((t->flags & MN_TF_FIN_RCVD) != 0);

    if (t->user == NULL || (t->flags & MN_TF_ORPHAN) != 0 ||
        (t->state != MN_TCP_CLOSED && t->state < MN_TCP_ESTABLISHED)) {
        return true;
    }
    MN_CK(k, mn_seq_le(t->usr_nxt, end) && end - t->usr_nxt == mn_tcp_held(t));
    if (end == t->usr_nxt) {
        MN_CK(k, !is_zombie(t));
        return true;
    }
    MN_CK(k, t->ooo_head != MN_NIL);
    const struct mn_range *r = &e->ranges[t->ooo_head];
    MN_CK(k, mn_seq_le(r->left, t->usr_nxt) && r->right == end);
    return true;
}

/* The message protocol: packets held ahead, and what is known of those in flight. */
static bool check_packets(struct mn_ck *k, const struct mn_engine *e, const struct mn_tcb *t,
                          uint32_t *blocks)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t held = 0, bytes = 0, sacked = 0, lost = 0, sent = 0;

    MN_CK(k, t->mcb < e->mcb_pool.high && t->ooo_head == MN_NIL && t->sack_head == MN_NIL);
    MN_CK(k, t->usr_nxt == t->rcv_nxt - ((t->flags & MN_TF_FIN_RCVD) != 0) &&
                 t->snd_nxt - t->snd_una <= MN_MNP_WND_MAX);
    for (uint32_t i = 0; i < MN_MNP_WND_MAX; i++) {
        const struct mn_mnp_held *h = &m->held[i];
        uint32_t have = 0;

        if (h->kind == MN_MH_NONE) {
            continue;
        }
        for (uint32_t b = h->blk; b != MN_NIL; b = e->blocks[b].next) {
            MN_CK(k, b < e->block_pool.high && e->blocks[b].len <= MN_OOO_BLOCK_BYTES);
            have += e->blocks[b].len;
            (*blocks)++;
        }
        MN_CK(k, have == h->len);
        held++;
        bytes += have;
    }
    MN_CK(k, held == m->n_held && bytes == t->ooo_bytes);
    if (t->state < MN_TCP_ESTABLISHED) {
        return true;
    }
    for (uint32_t seq = t->snd_una; seq != t->snd_nxt; seq++) {
        const struct mn_mnp_sent *s = &m->sent[seq % MN_MNP_WND_MAX];

        MN_CK(k, (s->state & (MN_MS_SACKED | MN_MS_LOST)) != (MN_MS_SACKED | MN_MS_LOST));
        MN_CK(k, (s->state & MN_MS_LOST) == 0 || mn_seq_ge(seq, m->lost_from));
        sacked += (s->state & MN_MS_SACKED) != 0;
        lost += (s->state & MN_MS_LOST) != 0;
        sent += s->len;
    }
    MN_CK(k, sacked == m->n_sacked && lost == m->n_lost && sent <= m->snd_bytes);
    return true;
}

static bool check_receive_queue(struct mn_ck *k, const struct mn_engine *e, const struct mn_tcb *t,
                                uint32_t *blocks)
{
    uint32_t n = 0, bytes = 0, before = 0;

    if (t->mcb != MN_NIL) {
        return check_packets(k, e, t, blocks);
    }
    MN_CK_SUB(check_bytes_held(k, e, t));

    for (uint32_t i = t->ooo_head; i != MN_NIL; i = e->ranges[i].next) {
        const struct mn_range *r = &e->ranges[i];
        uint32_t have = 0;

        MN_CK(k, i < e->range_pool.high && n < e->cfg.ooo_ranges_max);
        MN_CK(k, mn_seq_lt(r->left, r->right));
        MN_CK(k, n == 0 || mn_seq_lt(before, r->left)); /* touching ones are joined */
        MN_CK(k, mn_seq_gt(r->right, t->usr_nxt) && mn_seq_le(r->right, t->rcv_adv));
        MN_CK(k, n == 0 || mn_seq_gt(r->left, t->rcv_nxt));
        for (uint32_t b = r->first_blk; b != MN_NIL; b = e->blocks[b].next) {
            MN_CK(k, b < e->block_pool.high);
            MN_CK(k, e->blocks[b].off + e->blocks[b].len <= MN_OOO_BLOCK_BYTES);
            MN_CK(k, e->blocks[b].next != MN_NIL || b == r->last_blk);
            have += e->blocks[b].len;
            (*blocks)++;
        }
        MN_CK(k, have == r->right - r->left);
        before = r->right;
        bytes += have;
        n++;
    }
    MN_CK(k, n == t->ooo_count && bytes == t->ooo_bytes);
    return true;
}

static bool check_scoreboard(struct mn_ck *k, const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t n = 0, bytes = 0, before = t->snd_una;

    for (uint32_t i = t->sack_head; i != MN_NIL; i = e->ranges[i].next) {
        const struct mn_range *r = &e->ranges[i];

        MN_CK(k, i < e->range_pool.high && n < e->cfg.sack_ranges_max);
        MN_CK(k, mn_seq_lt(r->left, r->right) && mn_seq_le(r->right, t->snd_nxt));
        /* An acknowledgement may end inside the first. */
        MN_CK(k, n == 0 ? mn_seq_le(before, r->left) : mn_seq_lt(before, r->left));
        before = r->right;
        bytes += r->right - r->left;
        n++;
    }
    MN_CK(k, n == t->sack_count && bytes == t->sacked_bytes);
    return true;
}

static bool check_sequence(struct mn_ck *k, const struct mn_tcb *t)
{
    bool fin = (t->flags & MN_TF_FIN_SENT) != 0;

    MN_CK(k, mn_seq_le(t->snd_una, t->snd_nxt));
    MN_CK(k, mn_seq_le(t->snd_nxt, t->snd_end + fin));
    /* Behind the handshake it is any number, once 2 GiB have been sent. */
    MN_CK(k, t->state >= MN_TCP_ESTABLISHED || mn_seq_le(t->iss, t->snd_una));
    MN_CK(k, t->snd_nxt - t->snd_una <= MN_CWND_MAX);
    /* Beyond any window that the peer has offered there is only a probe's octet, and FIN. */
    MN_CK(k, t->state < MN_TCP_ESTABLISHED || t->snd_nxt - t->snd_una <= t->snd_wnd_max + 2);
    MN_CK(k, !fin || (t->flags & MN_TF_FIN_QUEUED) != 0);
    if (t->state >= MN_TCP_ESTABLISHED) {
        MN_CK(k, mn_seq_le(t->rcv_nxt, t->rcv_adv) && t->mss > 0 && t->cc.cwnd > 0);
    }
    switch (t->state) {
    case MN_TCP_FIN_WAIT_2:
    case MN_TCP_TIME_WAIT:
        MN_CK(k, fin && t->snd_una == t->snd_end + 1);
        break;
    case MN_TCP_ESTABLISHED:
    case MN_TCP_CLOSE_WAIT:
        MN_CK(k, (t->flags & MN_TF_FIN_QUEUED) == 0);
        break;
    default:
        break;
    }
    bool peer_done = t->state >= MN_TCP_CLOSE_WAIT;
    MN_CK(k, peer_done == ((t->flags & MN_TF_FIN_RCVD) != 0) || t->state == MN_TCP_CLOSED);
    return true;
}

static uint64_t first_due(const struct mn_tcb *t)
{
    const uint64_t at[] = {t->rtx_at, t->delack_at, t->wait_at, t->keep_at};
    uint64_t first = MN_NEVER;

    for (uint32_t i = 0; i < MN_ARRAY_LEN(at); i++) {
        if (at[i] != 0 && at[i] < first) {
            first = at[i];
        }
    }
    return first;
}

/* No state without a timer or an application that owns it, and nothing that waits for ever. */
static bool check_timers_or_owner(struct mn_ck *k, const struct mn_tcb *t)
{
    bool dirty = (t->flags & MN_TF_DIRTY) != 0;
    bool owned = t->user != NULL && (t->flags & MN_TF_ORPHAN) == 0;
    bool synced = t->state >= MN_TCP_ESTABLISHED && t->state != MN_TCP_TIME_WAIT;
    uint64_t due = first_due(t);

    if (due != MN_NEVER) {
        MN_CK(k, mn_timer_armed(&t->timer));
        MN_CK(k, t->timer.tick << MN_TIMER_TICK_SHIFT <= due + (2u << MN_TIMER_TICK_SHIFT));
    }
    switch (t->state) {
    case MN_TCP_ESTABLISHED:
    case MN_TCP_CLOSE_WAIT:
        MN_CK(k, owned || dirty || due != MN_NEVER);
        break;
    case MN_TCP_FIN_WAIT_2:
        MN_CK(k, owned || t->wait_at != 0);
        break;
    case MN_TCP_TIME_WAIT:
        MN_CK(k, t->wait_at != 0);
        break;
    default:
        MN_CK(k, dirty || due != MN_NEVER);
        break;
    }
    if (synced && t->snd_una != t->snd_nxt) {
        MN_CK(k, dirty || t->rtx_at != 0);
    }
    if (synced && t->snd_nxt != t->snd_end + 1 && t->snd_end != t->snd_una) {
        MN_CK(k, dirty || t->rtx_at != 0);
    }
    if (synced && (t->flags & MN_TF_FIN_QUEUED) != 0 && t->snd_una != t->snd_end + 1) {
        MN_CK(k, dirty || t->rtx_at != 0);
    }
    return true;
}

static bool check_owner(struct mn_ck *k, const struct mn_engine *e, const struct mn_tcb *t)
{
    if (t->user == NULL) {
        return true;
    }
    MN_CK(k, t->lane < e->n_lanes && e->lanes[t->lane] != NULL);
    const struct mn_lane *l = e->lanes[t->lane];
    MN_CK(k, t->slot < l->slot_high && l->slots[t->slot].state == MN_SLOT_LIVE);
    MN_CK(k, l->slots[t->slot].tcb == mn_tcb_index(e, t));
    return true;
}

struct totals {
    uint32_t tcbs, mcbs, blocks, ooo, sack, half_open, time_wait, timers, dirty;
};

static bool check_connections(struct mn_ck *k, struct mn_engine *e, struct totals *n)
{
    for (uint32_t i = 0; i < e->tcb_pool.high; i++) {
        const struct mn_tcb *t = mn_tcb_at(e, i);
        uint32_t last_hit = e->last_hit;

        if (t->state == MN_TCP_CLOSED && !is_zombie(t)) {
            MN_CK(k, !mn_timer_armed(&t->timer) && (t->flags & MN_TF_DIRTY) == 0);
            continue;
        }
        k->tcb = t;
        n->tcbs++;
        n->mcbs += t->mcb != MN_NIL;
        n->ooo += t->ooo_count;
        n->sack += t->sack_count;
        n->half_open += t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0;
        n->time_wait += t->state == MN_TCP_TIME_WAIT;
        n->timers += mn_timer_armed(&t->timer);
        n->dirty += (t->flags & MN_TF_DIRTY) != 0;
        MN_CK_SUB(check_receive_queue(k, e, t, &n->blocks));
        MN_CK_SUB(check_scoreboard(k, e, t));
        MN_CK_SUB(check_owner(k, e, t));
        if (is_zombie(t)) {
            continue;
        }
        MN_CK_SUB(check_sequence(k, t));
        MN_CK_SUB(check_timers_or_owner(k, t));
        MN_CK(k, mn_flow_find(e, mn_tcb_l4(t), t->laddr, t->lport, t->raddr, t->rport) == t);
        e->last_hit = last_hit; /* looking has changed nothing */
    }
    k->tcb = NULL;
    return true;
}

struct lane_totals {
    uint32_t used, reserved, asm_bufs, tx_owned, connecting;
};

static bool check_flow(struct mn_ck *k, const struct mn_engine *e, const struct mn_lane *l,
                       const struct mn_slot *s, struct lane_totals *n)
{
    uint32_t tx = 0;

    if (s->state == MN_SLOT_FREE) {
        return true;
    }
    n->used++;
    n->reserved += s->reserved_bufs;
    n->connecting += (s->flags & MN_SF_CONNECTING) != 0;
    for (uint32_t b = s->asm_first; b != MN_NIL; b = l->rxbufs[b].next) {
        MN_CK(k, b < l->rx_high && !l->rxbufs[b].shared && n->asm_bufs < l->geo.rx_bufs);
        MN_CK(k, l->rxbufs[b].len <= l->geo.buf_bytes);
        n->asm_bufs++;
    }
    for (uint32_t b = s->tx_head; b != MN_NIL; b = l->txbufs[b].next) {
        MN_CK(k, b < l->geo.tx_bufs && l->txbufs[b].owned && tx < l->geo.tx_bufs);
        MN_CK(k, l->txbufs[b].next != MN_NIL || b == s->tx_tail);
        tx++;
    }
    MN_CK(k, tx == s->tx_bufs);
    n->tx_owned += tx;
    if (s->tcb == MN_NIL) {
        MN_CK(k, tx == 0 && s->asm_first == MN_NIL && s->reserved_bufs == 0);
        MN_CK(k, (s->flags & (MN_SF_BLOCKED | MN_SF_WAIT_LARGE | MN_SF_HAS_LARGE)) == 0);
    } else {
        MN_CK(k, s->state == MN_SLOT_LIVE && s->tcb < e->tcb_pool.high);
        const struct mn_tcb *t = mn_tcb_at(e, s->tcb);
        MN_CK(k, t->user != NULL && (t->state != MN_TCP_CLOSED || is_zombie(t)));
    }
    return true;
}

/* What a flow is charged for is what its application has, and what is being filled. */
static bool check_charges(struct mn_ck *k, const struct mn_lane *l, const struct mn_slot *s)
{
    uint32_t bufs = 0, bytes = 0;

    for (uint32_t b = s->asm_first; b != MN_NIL; b = l->rxbufs[b].next) {
        bufs++;
    }
    for (uint32_t b = 0; b < l->rx_high; b++) {
        if (l->rxbufs[b].shared && l->rxbufs[b].flow == mn_lane_flow_id(l, s)) {
            bufs++;
            bytes += l->rxbufs[b].len;
        }
    }
    MN_CK(k, bufs == s->held_bufs && bytes == s->unread_bytes);
    return true;
}

static bool check_waiting_flows(struct mn_ck *k, const struct mn_lane *l, const struct mn_list *q,
                                uint32_t flag)
{
    uint32_t on_list = 0, flagged = 0;

    for (uint32_t i = q->head; i != MN_NIL; i = l->slots[i].wait_next) {
        MN_CK(k, i < l->slot_high && on_list <= l->slot_high);
        MN_CK(k, (l->slots[i].flags & flag) != 0);
        on_list++;
    }
    for (uint32_t i = 0; i < l->slot_high; i++) {
        flagged += l->slots[i].state != MN_SLOT_FREE && (l->slots[i].flags & flag) != 0;
    }
    MN_CK(k, on_list == flagged);
    return true;
}

static bool check_channel(struct mn_ck *k, const struct mn_engine *e, const struct mn_lane *l,
                          struct totals *sum)
{
    struct lane_totals n = {0};
    uint32_t shared = 0, owned = 0;
    bool few = (uint64_t)l->slot_high * l->rx_high <= PAIRS_MAX;

    for (uint32_t i = 0; i < l->slot_high; i++) {
        MN_CK_SUB(check_flow(k, e, l, &l->slots[i], &n));
    }
    MN_CK(k, n.used == l->slots_used && l->slot_n_free + n.used == l->slot_high);
    MN_CK(k, n.reserved == l->rx_claimed && n.connecting == l->owed);
    for (uint32_t i = 0; i < l->rx_high; i++) {
        shared += l->rxbufs[i].shared != 0;
    }
    for (uint32_t i = 0; i < l->geo.tx_bufs; i++) {
        owned += l->txbufs[i].owned;
    }
    if (l->dead == 0) { /* what a dead channel held is never used again */
        MN_CK(k, l->rx_n_free + shared + n.asm_bufs == l->rx_high);
        MN_CK(k, owned == n.tx_owned + (l->sub_open ? l->sub_n : 0));
        for (uint32_t i = 0; i < l->slot_high && few; i++) {
            if (l->slots[i].state != MN_SLOT_FREE) {
                MN_CK_SUB(check_charges(k, l, &l->slots[i]));
            }
        }
    }
    MN_CK_SUB(check_waiting_flows(k, l, &l->blocked, MN_SF_BLOCKED));
    MN_CK_SUB(check_waiting_flows(k, l, &l->large, MN_SF_WAIT_LARGE));
    MN_CK(k, l->large_slot == MN_NIL || (l->slots[l->large_slot].flags & MN_SF_HAS_LARGE) != 0);
    sum->timers += mn_timer_armed(&l->timer);
    return true;
}

static bool check_listeners(struct mn_ck *k, const struct mn_engine *e)
{
    uint32_t live = 0;

    for (uint32_t i = 0; i < e->listener_pool.high; i++) {
        const struct mn_listener *li = &e->listeners[i];
        uint32_t pending = 0, half_open = 0;

        if (!li->live) {
            continue;
        }
        live++;
        MN_CK(k, li->lane < e->n_lanes && e->lanes[li->lane] != NULL);
        const struct mn_lane *l = e->lanes[li->lane];
        if ((uint64_t)e->listener_pool.high * (l->slot_high + e->tcb_pool.high) > PAIRS_MAX) {
            continue;
        }
        for (uint32_t j = 0; j < l->slot_high; j++) {
            const struct mn_slot *s = &l->slots[j];

            pending += s->state != MN_SLOT_FREE && (s->flags & MN_SF_PENDING) != 0 &&
                       s->listener_id == li->id;
        }
        for (uint32_t j = 0; j < e->tcb_pool.high; j++) {
            const struct mn_tcb *t = mn_tcb_at(e, j);

            half_open += t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0 &&
                         t->listener == i && t->listener_id == li->id;
        }
        MN_CK(k, pending == li->pending && half_open == li->half_open);
    }
    MN_CK(k, live == mn_pool_used(&e->listener_pool));
    return true;
}

static bool check_age_list(struct mn_ck *k, const struct mn_engine *e, const struct mn_age_list *q,
                           enum mn_tcp_state state, uint32_t wanted)
{
    uint32_t n = 0, prev = MN_NIL;

    for (uint32_t i = q->head; i != MN_NIL; i = mn_tcb_at(e, i)->age_next) {
        MN_CK(k, n < e->tcb_pool.high && mn_tcb_at(e, i)->state == state);
        MN_CK(k, mn_tcb_at(e, i)->age_prev == prev);
        prev = i;
        n++;
    }
    MN_CK(k, q->tail == prev && n == wanted);
    return true;
}

static bool check_neighbors(struct mn_ck *k, const struct mn_engine *e, struct totals *sum)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < e->nbr_pool.high; i++) {
        const struct mn_nbr *n = &e->nbrs[i];
        uint32_t queued = 0;

        used += n->state != MN_NBR_FREE;
        sum->timers += mn_timer_armed(&n->timer);
        for (const struct mn_pkt *p = n->queue; p != NULL; p = p->link) {
            queued++;
        }
        MN_CK(k, queued == n->queued && queued <= e->cfg.arp_queue_pkts);
        MN_CK(k, queued == 0 || n->state == MN_NBR_INCOMPLETE);
        MN_CK(k, n->state != MN_NBR_INCOMPLETE || mn_timer_armed(&n->timer));
    }
    MN_CK(k, used == mn_pool_used(&e->nbr_pool));
    return true;
}

/* No work is lost, and nothing is in a pool that nobody holds. */
static bool check_pools(struct mn_ck *k, const struct mn_engine *e, const struct totals *n)
{
    uint32_t dirty = 0;

    for (uint32_t i = e->dirty_head; i != MN_NIL; i = mn_tcb_at(e, i)->out_next) {
        MN_CK(k, dirty < e->tcb_pool.high);
        dirty++;
    }
    MN_CK(k, dirty == n->dirty && (dirty == 0 || mn_engine_deadline(e) < MN_NEVER));
    MN_CK(k, n->tcbs == mn_pool_used(&e->tcb_pool) && n->mcbs == mn_pool_used(&e->mcb_pool));
    MN_CK(k, n->half_open == e->half_open && n->time_wait == e->time_wait);
    MN_CK(k, n->blocks == mn_pool_used(&e->block_pool) && n->ooo == e->ooo_ranges_used);
    MN_CK(k, n->ooo + n->sack == mn_pool_used(&e->range_pool));
    MN_CK(k, n->timers == e->wheel.armed);
    MN_CK(k, e->loop_tail - e->loop_head <= e->cfg.loop_slots);
    return true;
}

static bool check_all(struct mn_ck *k, struct mn_engine *e)
{
    struct totals n = {0};

    MN_CK_SUB(check_connections(k, e, &n));
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL) {
            MN_CK_SUB(check_channel(k, e, e->lanes[i], &n));
        }
    }
    MN_CK_SUB(check_listeners(k, e));
    MN_CK_SUB(check_neighbors(k, e, &n));
    MN_CK_SUB(check_pools(k, e, &n));
    MN_CK_SUB(check_age_list(k, e, &e->half_open_age, MN_TCP_SYN_RECEIVED, n.half_open));
    MN_CK_SUB(check_age_list(k, e, &e->time_wait_age, MN_TCP_TIME_WAIT, n.time_wait));
    return true;
}

int mn_check_engine(struct mn_engine *e, char *text, size_t size)
{
    struct mn_ck k = {.engine = e, .text = text, .size = size};

    return check_all(&k, e) ? 0 : -EPROTO;
}

bool mn_ck_connection(struct mn_ck *k, const struct mn_tcb *t)
{
    k->tcb = t;
    if (t->state != MN_TCP_CLOSED) {
        MN_CK_SUB(check_sequence(k, t));
        MN_CK_SUB(check_timers_or_owner(k, t));
    }
    MN_CK_SUB(check_owner(k, k->engine, t));
    k->tcb = NULL;
    return true;
}

uint64_t mn_ck_walk_cost(const struct mn_engine *e)
{
    uint64_t cost = 200 + 2ull * e->listener_pool.high * e->tcb_pool.high +
                    100ull * e->tcb_pool.high + 500ull * mn_pool_used(&e->mcb_pool) +
                    10ull * mn_pool_used(&e->block_pool) + 10ull * mn_pool_used(&e->range_pool) +
                    10ull * e->nbr_pool.high;

    for (uint32_t i = 0; i < e->n_lanes; i++) {
        const struct mn_lane *l = e->lanes[i];

        if (l != NULL) {
            uint64_t pairs = (uint64_t)l->slot_high * l->rx_high;

            cost += 50ull * l->slot_high + 2ull * (l->rx_high + l->geo.tx_bufs);
            cost += pairs <= PAIRS_MAX ? 2 * pairs : 0;
        }
    }
    return cost;
}
