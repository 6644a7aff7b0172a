/* SPDX-License-Identifier: MIT */
/*
 * What must hold between two calls into the engine, whatever came in: the state of each connection
 * within itself, lists against counters, pools against what their users hold, timers against what
 * waits. Looks at the engine's own structures; changes nothing.
 */
#include "fz_host.h"

/* No connection any more, but bytes that its user has still to take. */
static bool is_zombie(const struct mn_tcb *t)
{
    return t->state == MN_TCP_CLOSED && t->user != NULL && (t->flags & MN_TF_ZOMBIE) != 0;
}

/* What was acknowledged and not yet taken is there, and all of it. */
static void check_held(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t end = t->rcv_nxt - ((t->flags & MN_TF_FIN_RCVD) != 0);

    if (t->user == NULL || (t->flags & MN_TF_ORPHAN) != 0 ||
        (t->state != MN_TCP_CLOSED && t->state < MN_TCP_ESTABLISHED)) {
        return;
    }
    FZ_CHECK(mn_seq_le(t->usr_nxt, end) && end - t->usr_nxt == mn_tcp_held(t));
    if (end == t->usr_nxt) {
        FZ_CHECK(!is_zombie(t));
        return;
    }
    FZ_CHECK(t->ooo_head != MN_NIL);
    const struct mn_range *r = &e->ranges[t->ooo_head];
    FZ_CHECK(mn_seq_le(r->left, t->usr_nxt) && r->right == end);
}

static void check_ranges(const struct mn_engine *e, const struct mn_tcb *t, uint32_t *blocks)
{
    uint32_t n = 0, bytes = 0, before = 0;

    check_held(e, t);

    for (uint32_t i = t->ooo_head; i != MN_NIL; i = e->ranges[i].next) {
        const struct mn_range *r = &e->ranges[i];
        uint32_t have = 0;

        FZ_CHECK(i < e->range_pool.high && n < e->cfg.ooo_ranges_max);
        FZ_CHECK(mn_seq_lt(r->left, r->right));
        FZ_CHECK(n == 0 || mn_seq_lt(before, r->left)); /* touching ones are joined */
        FZ_CHECK(mn_seq_gt(r->right, t->usr_nxt) && mn_seq_le(r->right, t->rcv_adv));
        FZ_CHECK(n == 0 || mn_seq_gt(r->left, t->rcv_nxt));
        for (uint32_t b = r->first_blk; b != MN_NIL; b = e->blocks[b].next) {
            FZ_CHECK(b < e->block_pool.high);
            FZ_CHECK(e->blocks[b].off + e->blocks[b].len <= MN_OOO_BLOCK_BYTES);
            FZ_CHECK(e->blocks[b].next != MN_NIL || b == r->last_blk);
            have += e->blocks[b].len;
            (*blocks)++;
        }
        FZ_CHECK(have == r->right - r->left);
        before = r->right;
        bytes += have;
        n++;
    }
    FZ_CHECK(n == t->ooo_count && bytes == t->ooo_bytes);
}

static void check_sack(const struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t n = 0, bytes = 0, before = t->snd_una;

    for (uint32_t i = t->sack_head; i != MN_NIL; i = e->ranges[i].next) {
        const struct mn_range *r = &e->ranges[i];

        FZ_CHECK(i < e->range_pool.high && n < e->cfg.sack_ranges_max);
        FZ_CHECK(mn_seq_lt(r->left, r->right) && mn_seq_le(r->right, t->snd_nxt));
        /* An acknowledgement may end inside the first. */
        FZ_CHECK(n == 0 ? mn_seq_le(before, r->left) : mn_seq_lt(before, r->left));
        before = r->right;
        bytes += r->right - r->left;
        n++;
    }
    FZ_CHECK(n == t->sack_count && bytes == t->sacked_bytes);
}

static void check_seq(const struct mn_tcb *t)
{
    bool fin = (t->flags & MN_TF_FIN_SENT) != 0;

    FZ_CHECK(mn_seq_le(t->snd_una, t->snd_nxt));
    FZ_CHECK(mn_seq_le(t->snd_nxt, t->snd_end + fin));
    FZ_CHECK(mn_seq_le(t->iss, t->snd_una));
    FZ_CHECK(t->snd_nxt - t->snd_una <= MN_CWND_MAX);
    FZ_CHECK(!fin || (t->flags & MN_TF_FIN_QUEUED) != 0);
    if (t->state >= MN_TCP_ESTABLISHED) {
        FZ_CHECK(mn_seq_le(t->rcv_nxt, t->rcv_adv) && t->mss > 0 && t->cc.cwnd > 0);
    }
    switch (t->state) {
    case MN_TCP_FIN_WAIT_2:
    case MN_TCP_TIME_WAIT:
        FZ_CHECK(fin && t->snd_una == t->snd_end + 1);
        break;
    case MN_TCP_ESTABLISHED:
    case MN_TCP_CLOSE_WAIT:
        FZ_CHECK((t->flags & MN_TF_FIN_QUEUED) == 0);
        break;
    default:
        break;
    }
    bool peer_done = t->state >= MN_TCP_CLOSE_WAIT;
    FZ_CHECK(peer_done == ((t->flags & MN_TF_FIN_RCVD) != 0) || t->state == MN_TCP_CLOSED);
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
static void check_waits(const struct mn_tcb *t)
{
    bool dirty = (t->flags & MN_TF_DIRTY) != 0;
    bool owned = t->user != NULL && (t->flags & MN_TF_ORPHAN) == 0;
    bool synced = t->state >= MN_TCP_ESTABLISHED && t->state != MN_TCP_TIME_WAIT;
    uint64_t due = first_due(t);

    if (due != MN_NEVER) {
        FZ_CHECK(mn_timer_armed(&t->timer));
        FZ_CHECK(t->timer.tick << MN_TIMER_TICK_SHIFT <= due + (2u << MN_TIMER_TICK_SHIFT));
    }
    switch (t->state) {
    case MN_TCP_ESTABLISHED:
    case MN_TCP_CLOSE_WAIT:
        FZ_CHECK(owned || dirty || due != MN_NEVER);
        break;
    case MN_TCP_FIN_WAIT_2:
        FZ_CHECK(owned || t->wait_at != 0);
        break;
    case MN_TCP_TIME_WAIT:
        FZ_CHECK(t->wait_at != 0);
        break;
    default:
        FZ_CHECK(dirty || due != MN_NEVER);
        break;
    }
    if (synced && t->snd_una != t->snd_nxt) {
        FZ_CHECK(dirty || t->rtx_at != 0);
    }
    if (synced && t->snd_nxt != t->snd_end + 1 && t->snd_end != t->snd_una) {
        FZ_CHECK(dirty || t->rtx_at != 0);
    }
    if (synced && (t->flags & MN_TF_FIN_QUEUED) != 0 && t->snd_una != t->snd_end + 1) {
        FZ_CHECK(dirty || t->rtx_at != 0);
    }
}

static void check_owner(const struct mn_engine *e, const struct mn_tcb *t)
{
    if (t->user == NULL) {
        return;
    }
    FZ_CHECK(t->lane < e->n_lanes && e->lanes[t->lane] != NULL);
    const struct mn_lane *l = e->lanes[t->lane];
    FZ_CHECK(t->slot < l->slot_high && l->slots[t->slot].state == MN_SLOT_LIVE);
    FZ_CHECK(l->slots[t->slot].tcb == mn_tcb_index(e, t));
}

struct totals {
    uint32_t tcbs, blocks, ooo, sack, half_open, time_wait, timers, dirty;
};

static void check_tcbs(struct mn_engine *e, struct totals *n)
{
    for (uint32_t i = 0; i < e->tcb_pool.high; i++) {
        const struct mn_tcb *t = mn_tcb_at(e, i);
        uint32_t last_hit = e->last_hit;

        if (t->state == MN_TCP_CLOSED && !is_zombie(t)) {
            FZ_CHECK(!mn_timer_armed(&t->timer) && (t->flags & MN_TF_DIRTY) == 0);
            continue;
        }
        n->tcbs++;
        n->ooo += t->ooo_count;
        n->sack += t->sack_count;
        n->half_open += t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0;
        n->time_wait += t->state == MN_TCP_TIME_WAIT;
        n->timers += mn_timer_armed(&t->timer);
        n->dirty += (t->flags & MN_TF_DIRTY) != 0;
        check_ranges(e, t, &n->blocks);
        check_sack(e, t);
        check_owner(e, t);
        if (is_zombie(t)) {
            continue;
        }
        check_seq(t);
        check_waits(t);
        FZ_CHECK(mn_flow_find(e, t->laddr, t->lport, t->raddr, t->rport) == t);
        e->last_hit = last_hit;
    }
}

struct lane_totals {
    uint32_t used, reserved, asm_bufs, tx_owned, connecting;
};

static void check_slot(const struct mn_engine *e, const struct mn_lane *l, const struct mn_slot *s,
                       struct lane_totals *n)
{
    uint32_t tx = 0;

    if (s->state == MN_SLOT_FREE) {
        return;
    }
    n->used++;
    n->reserved += s->reserved_bufs;
    n->connecting += (s->flags & MN_SF_CONNECTING) != 0;
    for (uint32_t b = s->asm_first; b != MN_NIL; b = l->rxbufs[b].next) {
        FZ_CHECK(b < l->rx_high && !l->rxbufs[b].shared && n->asm_bufs < l->geo.rx_bufs);
        FZ_CHECK(l->rxbufs[b].len <= l->geo.buf_bytes);
        n->asm_bufs++;
    }
    for (uint32_t b = s->tx_head; b != MN_NIL; b = l->txbufs[b].next) {
        FZ_CHECK(b < l->geo.tx_bufs && l->txbufs[b].owned && tx < l->geo.tx_bufs);
        FZ_CHECK(l->txbufs[b].next != MN_NIL || b == s->tx_tail);
        tx++;
    }
    FZ_CHECK(tx == s->tx_bufs);
    n->tx_owned += tx;
    if (s->tcb == MN_NIL) {
        FZ_CHECK(tx == 0 && s->asm_first == MN_NIL && s->reserved_bufs == 0);
        FZ_CHECK((s->flags & (MN_SF_BLOCKED | MN_SF_WAIT_LARGE | MN_SF_HAS_LARGE)) == 0);
    } else {
        FZ_CHECK(s->state == MN_SLOT_LIVE && s->tcb < e->tcb_pool.high);
        const struct mn_tcb *t = mn_tcb_at(e, s->tcb);
        FZ_CHECK(t->user != NULL && (t->state != MN_TCP_CLOSED || is_zombie(t)));
    }
}

/* What a flow is charged for is what its application has, and what is being filled. */
static void check_charges(const struct mn_lane *l, const struct mn_slot *s)
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
    FZ_CHECK(bufs == s->held_bufs && bytes == s->unread_bytes);
}

static void check_list(const struct mn_lane *l, const struct mn_list *q, uint32_t flag)
{
    uint32_t on_list = 0, flagged = 0;

    for (uint32_t i = q->head; i != MN_NIL; i = l->slots[i].wait_next) {
        FZ_CHECK(i < l->slot_high && on_list <= l->slot_high);
        FZ_CHECK((l->slots[i].flags & flag) != 0);
        on_list++;
    }
    for (uint32_t i = 0; i < l->slot_high; i++) {
        flagged += l->slots[i].state != MN_SLOT_FREE && (l->slots[i].flags & flag) != 0;
    }
    FZ_CHECK(on_list == flagged);
}

static void check_lane(const struct mn_engine *e, const struct mn_lane *l, struct totals *sum)
{
    struct lane_totals n = {0};
    uint32_t shared = 0, owned = 0;

    for (uint32_t i = 0; i < l->slot_high; i++) {
        check_slot(e, l, &l->slots[i], &n);
    }
    FZ_CHECK(n.used == l->slots_used && l->slot_n_free + n.used == l->slot_high);
    FZ_CHECK(n.reserved == l->rx_claimed && n.connecting == l->owed);
    for (uint32_t i = 0; i < l->rx_high; i++) {
        shared += l->rxbufs[i].shared != 0;
    }
    for (uint32_t i = 0; i < l->geo.tx_bufs; i++) {
        owned += l->txbufs[i].owned;
    }
    if (l->dead == 0) { /* what a dead channel held is never used again */
        FZ_CHECK(l->rx_n_free + shared + n.asm_bufs == l->rx_high);
        FZ_CHECK(owned == n.tx_owned + (l->sub_open ? l->sub_n : 0));
        for (uint32_t i = 0; i < l->slot_high; i++) {
            if (l->slots[i].state != MN_SLOT_FREE) {
                check_charges(l, &l->slots[i]);
            }
        }
    }
    check_list(l, &l->blocked, MN_SF_BLOCKED);
    check_list(l, &l->large, MN_SF_WAIT_LARGE);
    FZ_CHECK(l->large_slot == MN_NIL || (l->slots[l->large_slot].flags & MN_SF_HAS_LARGE) != 0);
    sum->timers += mn_timer_armed(&l->timer);
}

static void check_listeners(const struct mn_engine *e)
{
    uint32_t live = 0;

    for (uint32_t i = 0; i < e->listener_pool.high; i++) {
        const struct mn_listener *li = &e->listeners[i];
        uint32_t pending = 0, half_open = 0;

        if (!li->live) {
            continue;
        }
        live++;
        FZ_CHECK(li->lane < e->n_lanes && e->lanes[li->lane] != NULL);
        const struct mn_lane *l = e->lanes[li->lane];
        for (uint32_t k = 0; k < l->slot_high; k++) {
            const struct mn_slot *s = &l->slots[k];

            pending += s->state != MN_SLOT_FREE && (s->flags & MN_SF_PENDING) != 0 &&
                       s->listener_id == li->id;
        }
        for (uint32_t k = 0; k < e->tcb_pool.high; k++) {
            const struct mn_tcb *t = mn_tcb_at(e, k);

            half_open += t->state == MN_TCP_SYN_RECEIVED && (t->flags & MN_TF_PASSIVE) != 0 &&
                         t->listener == i && t->listener_id == li->id;
        }
        FZ_CHECK(pending == li->pending && half_open == li->half_open);
    }
    FZ_CHECK(live == mn_pool_used(&e->listener_pool));
}

static uint32_t list_length(const struct mn_engine *e, const struct mn_age_list *q,
                            enum mn_tcp_state state)
{
    uint32_t n = 0, prev = MN_NIL;

    for (uint32_t i = q->head; i != MN_NIL; i = mn_tcb_at(e, i)->age_next) {
        FZ_CHECK(n < e->tcb_pool.high && mn_tcb_at(e, i)->state == state);
        FZ_CHECK(mn_tcb_at(e, i)->age_prev == prev);
        prev = i;
        n++;
    }
    FZ_CHECK(q->tail == prev);
    return n;
}

static void check_neighbors(const struct mn_engine *e, struct totals *sum)
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
        FZ_CHECK(queued == n->queued && queued <= e->cfg.arp_queue_pkts);
        FZ_CHECK(queued == 0 || n->state == MN_NBR_INCOMPLETE);
        FZ_CHECK(n->state != MN_NBR_INCOMPLETE || mn_timer_armed(&n->timer));
    }
    FZ_CHECK(used == mn_pool_used(&e->nbr_pool));
}

void fz_check_engine(const struct mn_engine *engine)
{
    struct mn_engine *e = (struct mn_engine *)(uintptr_t)engine; /* mn_flow_find notes its hits */
    struct totals n = {0};
    uint32_t dirty = 0;

    check_tcbs(e, &n);
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL) {
            check_lane(e, e->lanes[i], &n);
        }
    }
    check_listeners(e);
    check_neighbors(e, &n);
    for (uint32_t i = e->dirty_head; i != MN_NIL; i = mn_tcb_at(e, i)->out_next) {
        FZ_CHECK(dirty < e->tcb_pool.high);
        dirty++;
    }
    FZ_CHECK(dirty == n.dirty && (dirty == 0 || mn_engine_deadline(e) < MN_NEVER));
    FZ_CHECK(n.tcbs == mn_pool_used(&e->tcb_pool));
    FZ_CHECK(n.half_open == e->half_open && n.time_wait == e->time_wait);
    FZ_CHECK(list_length(e, &e->half_open_age, MN_TCP_SYN_RECEIVED) == n.half_open);
    FZ_CHECK(list_length(e, &e->time_wait_age, MN_TCP_TIME_WAIT) == n.time_wait);
    FZ_CHECK(n.blocks == mn_pool_used(&e->block_pool) && n.ooo == e->ooo_ranges_used);
    FZ_CHECK(n.ooo + n.sack == mn_pool_used(&e->range_pool));
    FZ_CHECK(n.timers == e->wheel.armed);
    FZ_CHECK(e->loop_tail - e->loop_head <= e->cfg.loop_slots);
}
