/* SPDX-License-Identifier: MIT */
/* A lane as a whole: attach and detach, its part of a pass, and its end when the application breaks
 * the rules. */
#include "engine_int.h"

struct priv_layout {
    uint64_t txbufs, rxbufs, rx_free, slots, slot_free, total;
};

static uint64_t carve(uint64_t *at, uint64_t bytes)
{
    uint64_t off = (*at + 63) & ~UINT64_C(63);

    *at = off + bytes;
    return off;
}

static void priv_layout(const struct mn_chan_geometry *geo, struct priv_layout *p)
{
    uint64_t at = sizeof(struct mn_lane);

    p->txbufs = carve(&at, (uint64_t)geo->tx_bufs * sizeof(struct mn_txbuf));
    p->rxbufs = carve(&at, (uint64_t)geo->rx_bufs * sizeof(struct mn_rxbuf));
    p->rx_free = carve(&at, (uint64_t)geo->rx_bufs * sizeof(uint32_t));
    p->slots = carve(&at, (uint64_t)geo->flows_max * sizeof(struct mn_slot));
    p->slot_free = carve(&at, (uint64_t)geo->flows_max * sizeof(uint32_t));
    p->total = (at + 63) & ~UINT64_C(63);
}

uint64_t mn_lane_priv_bytes(const struct mn_chan_geometry *geo)
{
    struct mn_lane_layout layout;
    struct priv_layout p;

    if (mn_chan_layout(geo, &layout) != 0) {
        return 0;
    }
    priv_layout(geo, &p);
    return p.total;
}

static void lane_rings(struct mn_lane *l, uint8_t *base, const struct mn_lane_layout *y)
{
    struct mn_lane_shared *sh = (struct mn_lane_shared *)base;

    l->sh = sh;
    mn_ring_cons_init(&l->submit, &sh->submit, base + y->submit_off, y->msg_slots_tx);
    mn_ring_prod_init(&l->completed, &sh->completed, base + y->completed_off, y->ret_slots_tx);
    mn_ring_prod_init(&l->deliver, &sh->deliver, base + y->deliver_off, y->msg_slots_rx);
    mn_ring_cons_init(&l->released, &sh->released, base + y->released_off, y->ret_slots_rx);
    mn_ring_cons_init(&l->ctl_submit, &sh->ctl_submit, base + y->ctl_submit_off, l->geo.ctl_slots);
    mn_ring_prod_init(&l->ctl_complete, &sh->ctl_complete, base + y->ctl_complete_off,
                      l->geo.ctl_slots);
    l->tx_pool = base + y->tx_pool_off;
    l->rx_pool = base + y->rx_pool_off;
}

int mn_engine_attach(struct mn_engine *e, void *region, uint64_t region_bytes, void *priv,
                     uint64_t priv_bytes)
{
    struct mn_chan_geometry geo;
    int err = mn_chan_check(region, region_bytes, &geo);

    if (err == 0 && geo.n_lanes != 1) {
        err = -EINVAL;
    }
    return err != 0 ? err : mn_engine_attach_lane(e, region, region_bytes, 0, priv, priv_bytes);
}

int mn_engine_attach_lane(struct mn_engine *e, void *region, uint64_t region_bytes, uint32_t index,
                          void *priv, uint64_t priv_bytes)
{
    struct mn_chan_geometry geo;
    struct mn_lane_layout layout;
    struct priv_layout p;
    uint32_t number = 0;
    int err = mn_chan_check(region, region_bytes, &geo);

    if (err != 0) {
        return err;
    }
    if (index >= geo.n_lanes || mn_chan_layout(&geo, &layout) != 0) {
        return -EINVAL;
    }
    priv_layout(&geo, &p);
    if (priv_bytes < p.total) {
        return -ENOMEM;
    }
    while (number < e->cfg.lanes_max && e->lanes[number] != NULL) {
        number++;
    }
    if (number == e->cfg.lanes_max) {
        return -EMFILE;
    }
    struct mn_lane *l = priv;
    uint8_t *base = priv;
    *l = (struct mn_lane){.e = e, .number = number, .geo = geo, .large_slot = MN_NIL};
    l->txbufs = (struct mn_txbuf *)(base + p.txbufs);
    l->rxbufs = (struct mn_rxbuf *)(base + p.rxbufs);
    l->rx_free = (uint32_t *)(base + p.rx_free);
    l->slots = (struct mn_slot *)(base + p.slots);
    l->slot_free = (uint32_t *)(base + p.slot_free);
    l->rx_reserve = geo.rx_bufs / 8;
    l->open.head = l->blocked.head = l->large.head = l->touched.head = MN_NIL;
    l->timer.kind = MN_TIMER_LANE;
    lane_rings(l, mn_chan_lane(region, &layout, index), &layout);
    e->lanes[number] = l;
    e->n_lanes = mn_max_u32(e->n_lanes, number + 1);
    return (int)number;
}

static struct mn_lane *lane_at(struct mn_engine *e, uint32_t number)
{
    return number < e->cfg.lanes_max ? e->lanes[number] : NULL;
}

/* Ends every flow: with what is queued sent first (linger_ms > 0), or by RST. */
static void close_all(struct mn_engine *e, struct mn_lane *l, uint32_t linger_ms)
{
    mn_lane_unlisten_all(e, l);
    for (uint32_t i = 0; i < l->slot_high; i++) {
        struct mn_slot *s = &l->slots[i];

        if (s->state == MN_SLOT_FREE) {
            continue;
        }
        if (s->tcb == MN_NIL) {
            mn_lane_slot_free(l, s);
        } else if ((s->flags & MN_SF_CLOSED) == 0) {
            mn_lane_close_flow(e, l, s, linger_ms);
        } else if (linger_ms == 0) {
            mn_tcp_abort(e, mn_tcb_at(e, s->tcb), ECONNABORTED);
        } else {
            mn_tcp_linger(e, mn_tcb_at(e, s->tcb), linger_ms);
        }
    }
}

int mn_engine_detach(struct mn_engine *e, uint32_t lane, uint32_t linger_ms)
{
    struct mn_lane *l = lane_at(e, lane);

    if (l == NULL || l->detached) {
        return -ENOENT;
    }
    if (linger_ms == MN_LINGER_DEFAULT) {
        linger_ms = e->cfg.app_exit_linger_ms;
    }
    if (l->dead == 0) {
        mn_lane_released(e, l);
        /* Twice: the first round may have known of a part only. */
        (void)mn_lane_submit(e, l, l->submit.mask + 1);
        (void)mn_lane_submit(e, l, l->submit.mask + 1);
    }
    l->detached = true;
    mn_timer_disarm(&e->wheel, &l->timer);
    close_all(e, l, linger_ms);
    return 0;
}

void mn_engine_lane_set_far(struct mn_engine *e, uint32_t lane)
{
    struct mn_lane *l = lane_at(e, lane);

    if (l != NULL) {
        l->far = true;
    }
}

int mn_engine_lane_dead(const struct mn_engine *e, uint32_t lane)
{
    return lane < e->cfg.lanes_max && e->lanes[lane] != NULL ? (int)e->lanes[lane]->dead : -ENOENT;
}

static bool lane_idle(const struct mn_lane *l)
{
    return l->detached && l->slots_used == 0;
}

int mn_engine_lane_free(struct mn_engine *e, uint32_t lane)
{
    struct mn_lane *l = lane_at(e, lane);

    if (l == NULL) {
        return -ENOENT;
    }
    if (!lane_idle(l)) {
        return 0;
    }
    e->lanes[lane] = NULL;
    while (e->n_lanes > 0 && e->lanes[e->n_lanes - 1] == NULL) {
        e->n_lanes--;
    }
    return 1;
}

void mn_lane_kill(struct mn_lane *l, uint32_t err)
{
    if (l->dead == 0) {
        l->dead = err;
        l->e->work_left = true;
        l->e->stats.lane_errors++;
    }
}

/* A plain message that has grown keeps what it has while it stands in line. Several of them would
 * wait for each other without end: while nobody has the large place, only who is first may. */
static bool is_in_the_way(const struct mn_lane *l, const struct mn_slot *s)
{
    uint32_t first = l->large.head != MN_NIL ? l->large.head : l->blocked.head;

    return s->proto == MN_PROTO_UDP && s->asm_first != MN_NIL && l->large_slot == MN_NIL &&
           (uint32_t)(s - l->slots) != first;
}

/*
 * Somebody waits for buffers: those who were promised some, or hold some in line, and have had
 * nothing from their peer for large_progress_ms lose their flow. A walk over all flows, but at most
 * once in that time, and only while somebody waits.
 */
void mn_lane_fire(struct mn_engine *e, struct mn_lane *l)
{
    uint64_t patience = e->cfg.large_progress_ms * MN_NS_PER_MS;

    if (l->large.head == MN_NIL && l->blocked.head == MN_NIL) {
        return;
    }
    for (uint32_t i = 0; i < l->slot_high; i++) {
        struct mn_slot *s = &l->slots[i];

        bool waits = (s->flags & (MN_SF_WAIT_LARGE | MN_SF_BLOCKED)) != 0;

        if (s->state == MN_SLOT_LIVE && s->tcb != MN_NIL &&
            (s->flags & (MN_SF_IN_MSG | MN_SF_CLOSED)) == MN_SF_IN_MSG &&
            (!waits || is_in_the_way(l, s)) && e->now_ns - s->progress_ns >= patience) {
            mn_tcp_doom(e, mn_tcb_at(e, s->tcb), waits ? ENOBUFS : ETIMEDOUT);
        }
    }
    mn_timer_arm(&e->wheel, &l->timer, e->now_ns + patience);
}

void mn_lane_poll(struct mn_engine *e, struct mn_lane *l)
{
    if (l->dead != 0 || l->detached) {
        return;
    }
    mn_lane_released(e, l);
    mn_lane_ctl(e, l);
    if (mn_lane_submit(e, l, e->cfg.poll_descs) == e->cfg.poll_descs) {
        e->work_left = true;
    }
}

/* What is about to be published moves towards the other process. */
static MN_NOINLINE void lane_hand_over(const struct mn_lane *l)
{
    mn_ring_hand_over(&l->deliver, l->rx_pool, l->geo.rx_bufs, l->geo.buf_bytes);
    mn_buf_hand_over(&l->completed);
}

void mn_lane_publish(struct mn_engine *e, struct mn_lane *l)
{
    bool news;

    if (MN_UNLIKELY(l->dead != 0 && !l->dead_told)) {
        l->dead_told = true;
        close_all(e, l, 0);
        atomic_store_explicit(&l->sh->closed, l->dead, memory_order_release);
        if (e->host.wake != NULL) {
            e->host.wake(e->host.ctx, l->number);
        }
        return;
    }
    if (l->dead != 0 || l->detached) {
        return;
    }
    mn_stream_flush_all(l);
    if (MN_UNLIKELY(l->far)) {
        lane_hand_over(l);
    }
    news = mn_ring_publish(&l->ctl_complete);
    news |= mn_ring_publish(&l->deliver);
    news |= mn_ring_publish(&l->completed);
    if (!news) {
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&l->sh->app_sleeps, memory_order_relaxed) != 0 &&
        e->host.wake != NULL) {
        e->stats.wakeups++;
        e->host.wake(e->host.ctx, l->number);
    }
}

/* Room for one more event; what the application writes is only compared. */
static bool ctl_has_room(const struct mn_lane *l)
{
    uint32_t head = atomic_load_explicit(&l->sh->ctl_complete.head, memory_order_acquire);

    return l->ctl_complete.pos - head + l->owed <= l->ctl_complete.mask;
}

bool mn_lane_has_work(const struct mn_lane *l)
{
    if (l->dead != 0) {
        return !l->dead_told;
    }
    if (l->detached) {
        return false;
    }
    if (atomic_load_explicit(&l->sh->submit.tail, memory_order_acquire) != l->submit.pos ||
        atomic_load_explicit(&l->sh->released.tail, memory_order_acquire) != l->released.pos ||
        l->wake) {
        return true;
    }
    /* Commands that wait for the application to make room are no work. */
    return atomic_load_explicit(&l->sh->ctl_submit.tail, memory_order_acquire) !=
               l->ctl_submit.pos &&
           ctl_has_room(l);
}
