/* SPDX-License-Identifier: MIT */
/* The application's side of a channel: opening, the rings, readiness and sleep. */
#include "chan_app_int.h"

struct app_layout {
    uint64_t flows_off, tokens_off, rx_off, tx_free_off, tx_flow_off;
    uint64_t bytes;
};

static uint64_t carve(uint64_t *off, uint64_t n, uint64_t item_bytes)
{
    uint64_t at = *off;

    *off += (n * item_bytes + 7) & ~UINT64_C(7);
    return at;
}

static void app_layout(const struct mn_chan_geometry *geo, struct app_layout *l)
{
    uint64_t off = 0;

    (void)carve(&off, 1, sizeof(struct mn_app));
    l->flows_off = carve(&off, geo->flows_max, sizeof(struct app_flow));
    l->tokens_off = carve(&off, geo->ctl_slots, sizeof(struct app_token));
    l->rx_off = carve(&off, geo->rx_bufs, sizeof(struct app_rx));
    l->tx_free_off = carve(&off, geo->tx_bufs, sizeof(uint32_t));
    l->tx_flow_off = carve(&off, geo->tx_bufs, sizeof(uint32_t));
    l->bytes = off;
}

uint64_t mn_app_bytes(const struct mn_chan_geometry *geo)
{
    struct mn_lane_layout lane;
    struct app_layout l;

    if (mn_chan_layout(geo, &lane) < 0) {
        return 0;
    }
    app_layout(geo, &l);
    return l.bytes;
}

static void open_rings(struct mn_app *a, uint8_t *lane, const struct mn_lane_layout *l,
                       uint32_t ctl_slots)
{
    struct mn_lane_shared *sh = (struct mn_lane_shared *)(void *)lane;

    a->sh = sh;
    mn_ring_prod_init(&a->submit, &sh->submit, lane + l->submit_off, l->msg_slots_tx);
    mn_ring_cons_init(&a->completed, &sh->completed, lane + l->completed_off, l->ret_slots_tx);
    mn_ring_cons_init(&a->deliver, &sh->deliver, lane + l->deliver_off, l->msg_slots_rx);
    mn_ring_prod_init(&a->released, &sh->released, lane + l->released_off, l->ret_slots_rx);
    mn_ring_prod_init(&a->ctl_submit, &sh->ctl_submit, lane + l->ctl_submit_off, ctl_slots);
    mn_ring_cons_init(&a->ctl_complete, &sh->ctl_complete, lane + l->ctl_complete_off, ctl_slots);
    a->tx_pool = lane + l->tx_pool_off;
    a->rx_pool = lane + l->rx_pool_off;
}

int mn_app_open(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region,
                uint64_t region_bytes, mn_app_kick_fn kick, void *kick_ctx)
{
    struct mn_chan_geometry geo;
    int rc = mn_chan_check(region, region_bytes, &geo);

    if (rc == 0 && geo.n_lanes != 1) {
        rc = -EINVAL;
    }
    return rc < 0 ? rc
                  : mn_app_open_lane(out, mem, mem_bytes, region, region_bytes, 0, kick, kick_ctx);
}

int mn_app_open_lane(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region,
                     uint64_t region_bytes, uint32_t index, mn_app_kick_fn kick, void *kick_ctx)
{
    struct mn_chan_geometry geo;
    struct mn_lane_layout lane;
    struct app_layout l;
    uint8_t *base = mem;
    struct mn_app *a = mem;
    int rc = mn_chan_check(region, region_bytes, &geo);

    if (rc < 0) {
        return rc;
    }
    app_layout(&geo, &l);
    if (index >= geo.n_lanes || mn_chan_layout(&geo, &lane) < 0 || mem == NULL ||
        ((uintptr_t)mem & 7) != 0 || mem_bytes < l.bytes) {
        return -EINVAL;
    }
    memset(a, 0, sizeof(*a));
    open_rings(a, mn_chan_lane(region, &lane, index), &lane, geo.ctl_slots);
    a->flows = (struct app_flow *)(void *)(base + l.flows_off);
    a->tokens = (struct app_token *)(void *)(base + l.tokens_off);
    a->rx = (struct app_rx *)(void *)(base + l.rx_off);
    a->tx_free = (uint32_t *)(void *)(base + l.tx_free_off);
    a->tx_flow = (uint32_t *)(void *)(base + l.tx_flow_off);
    a->buf_bytes = geo.buf_bytes;
    a->buf_shift = (uint32_t)__builtin_ctz(geo.buf_bytes);
    a->flows_max = geo.flows_max;
    a->tx_bufs = geo.tx_bufs;
    a->tx_reserve = geo.tx_bufs / 8;
    a->tx_common = geo.tx_bufs - a->tx_reserve;
    a->rx_bufs = geo.rx_bufs;
    a->release_batch = mn_min_u32(APP_RELEASE_BATCH_MAX, geo.rx_bufs / 16);
    a->tokens_max = geo.ctl_slots;
    a->token_shift = (uint32_t)__builtin_ctz(geo.ctl_slots);
    a->tokens_free = APP_NONE;
    a->unreleased = APP_NONE;
    a->msgs = a->todo = a->accepts = (struct app_fifo){APP_NONE, APP_NONE};
    a->kick = kick;
    a->kick_ctx = kick_ctx;
    *out = a;
    return 0;
}

/* What was taken in before stays readable; the rings are not touched again. Returns -EPROTO. */
int app_kill(struct mn_app *a, int err)
{
    if (a->dead == 0) {
        a->dead = err;
    }
    return -EPROTO;
}

static bool released_push(struct mn_app *a, uint32_t buf)
{
    int64_t room = mn_ring_free(&a->released, 1);

    if (MN_UNLIKELY(room < 1)) {
        if (room < 0) {
            (void)app_kill(a, EPROTO);
        }
        return false;
    }
    a->rx[buf].flow = MN_FLOW_NONE;
    ((uint32_t *)a->released.slots)[a->released.pos++ & a->released.mask] = buf;
    return true;
}

void app_release_later(struct mn_app *a, uint32_t buf)
{
    if (a->unreleased == APP_NONE && released_push(a, buf)) {
        return;
    }
    a->rx[buf].flow = APP_RX_WAITING;
    a->rx[buf].next = a->unreleased;
    a->unreleased = buf;
    a->n_unreleased++;
}

static void unreleased_flush(struct mn_app *a)
{
    while (a->unreleased != APP_NONE) {
        uint32_t buf = a->unreleased;
        uint32_t next = a->rx[buf].next;

        if (!released_push(a, buf)) {
            return;
        }
        a->unreleased = next;
        a->n_unreleased--;
    }
}

MN_NOINLINE void mn_app_hand_over(const struct mn_app *a)
{
    mn_ring_hand_over(&a->submit, a->tx_pool, a->tx_bufs, a->buf_bytes);
}

static bool publish_rings(struct mn_app *a)
{
    bool any;

    if (MN_UNLIKELY(a->dead != 0)) {
        return false;
    }
    if (MN_UNLIKELY(a->unreleased != APP_NONE)) {
        unreleased_flush(a);
    }
    if (MN_UNLIKELY(a->far)) {
        mn_app_hand_over(a);
    }
    any = mn_ring_publish(&a->submit);
    any |= mn_ring_publish(&a->released);
    any |= mn_ring_publish(&a->ctl_submit);
    return any;
}

static void kick_sleeper(struct mn_app *a)
{
    if (atomic_load_explicit(&a->sh->engine_sleeps, memory_order_relaxed) != 0) {
        a->kick(a->kick_ctx);
    }
}

void app_kick(struct mn_app *a)
{
    atomic_thread_fence(memory_order_seq_cst);
    kick_sleeper(a);
}

void app_publish(struct mn_app *a)
{
    if (publish_rings(a) && a->kick != NULL) {
        app_kick(a);
    }
}

void mn_app_flush(struct mn_app *a)
{
    app_publish(a);
}

/* Takes transmit buffers back; how many. */
int app_completed(struct mn_app *a)
{
    int64_t n;

    if (a->dead != 0) {
        return 0;
    }
    n = mn_ring_avail(&a->completed);
    if (n < 0) {
        (void)app_kill(a, EPROTO);
        return 0;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t buf = mn_buf_next(&a->completed);
        struct app_flow *f;

        if (MN_UNLIKELY(buf >= a->tx_high || a->tx_flow[buf] == MN_FLOW_NONE)) {
            (void)app_kill(a, EPROTO);
            return 0;
        }
        f = app_find(a, a->tx_flow[buf]);
        if (MN_LIKELY(f != NULL)) {
            f->tx_in_flight--;
        }
        a->tx_flow[buf] = MN_FLOW_NONE;
        a->tx_free[a->tx_sp++] = buf;
    }
    if (MN_UNLIKELY(a->far) && n > 0) {
        mn_prefetch_write(app_tx_data(a, a->tx_free[a->tx_sp - 1])); /* the next to be filled */
    }
    mn_ring_consume(&a->completed);
    return (int)n;
}

/* A receive buffer becomes the application's; false when it can't be what the engine had. */
static bool rx_claim(struct mn_app *a, const struct mn_desc *d)
{
    if (MN_UNLIKELY(d->buf >= a->rx_bufs || d->len > a->buf_bytes)) {
        return false;
    }
    while (MN_UNLIKELY(a->rx_high <= d->buf)) {
        a->rx[a->rx_high++].flow = MN_FLOW_NONE;
    }
    if (MN_UNLIKELY(a->rx[d->buf].flow != MN_FLOW_NONE)) {
        return false;
    }
    a->rx[d->buf].flow = d->flow;
    a->rx_held++;
    return true;
}

static void flow_end(struct mn_app *a, struct app_flow *f, uint32_t err)
{
    bool clean = err == 0;

    f->flags |= APP_F_ENDED;
    f->error = clean ? ENOTCONN : err < 4096 ? (int32_t)err : EPROTO;
    if ((f->flags & APP_F_CLOSED) == 0) {
        if (app_is_stream(f)) {
            f->send_err = clean ? -EPIPE : -f->error;
        } else {
            f->send_err = -ENOTCONN;
            /* Pieces without an end are no message. */
            app_release_chain(a, f->rx_head);
            f->rx_head = APP_NONE;
            if (!clean) {
                app_event_put(a, f);
            }
        }
    }
    app_settle(a, f);
}

static void take_mark(struct mn_app *a, struct app_flow *f, const struct mn_desc *d)
{
    if ((d->flags & MN_DESC_FIN) != 0) {
        f->flags |= APP_F_EOF;
    }
    if ((d->flags & MN_DESC_END) != 0) {
        flow_end(a, f, d->len);
    }
    if (app_is_stream(f)) {
        app_stream_update(a, f);
    }
}

/* Sorts n descriptors into the queues. */
static int take_deliver(struct mn_app *a, uint32_t n)
{
    while (n-- > 0) {
        struct mn_desc d = mn_desc_next(&a->deliver);
        struct app_flow *f = app_find(a, d.flow);

        if (MN_UNLIKELY(f == NULL || (f->flags & APP_F_ENDED) != 0)) {
            return app_kill(a, EPROTO);
        }
        if (MN_UNLIKELY((d.flags & (MN_DESC_FIN | MN_DESC_END)) != 0)) {
            take_mark(a, f, &d);
            continue;
        }
        if (MN_UNLIKELY(!rx_claim(a, &d))) {
            return app_kill(a, EPROTO);
        }
        if (MN_UNLIKELY(a->far)) {
            __builtin_prefetch(app_rx_data(a, d.buf));
        }
        if (MN_UNLIKELY((f->flags & APP_F_CLOSED) != 0)) {
            app_release(a, d.buf);
        } else if (app_is_stream(f)) {
            app_stream_put(a, f, d.buf, d.len);
        } else if (MN_UNLIKELY(app_message_put(a, f, &d) < 0)) {
            return app_kill(a, EPROTO);
        }
    }
    return 0;
}

/* Something came from another core: what this one will touch next is fetched while the descriptors
 * are on their way, not one line after the other. */
static void fetch_ahead(const struct mn_app *a)
{
    const uint32_t *completed = a->completed.slots;
    const uint32_t *released = a->released.slots;

    __builtin_prefetch(&a->completed.idx->tail);
    __builtin_prefetch(&completed[a->completed.pos & a->completed.mask]);
    mn_prefetch_write(&released[a->released.pos & a->released.mask]);
    mn_prefetch_write(&((const struct mn_desc *)a->submit.slots)[a->submit.pos & a->submit.mask]);
}

/* Takes in deliveries and control events. The limit of the deliveries is read before the control
 * ring: whatever lies below it, its flow has been introduced there. */
int app_intake(struct mn_app *a)
{
    uint32_t closed;
    int64_t n;
    int ctl;

    if (a->dead != 0) {
        return 0;
    }
    closed = atomic_load_explicit(&a->sh->closed, memory_order_acquire);
    n = mn_ring_avail(&a->deliver);
    ctl = n < 0 ? -EPROTO : app_ctl_intake(a);
    if (ctl < 0) {
        (void)app_kill(a, EPROTO);
        return 0;
    }
    if (n > 0) {
        if (MN_UNLIKELY(a->far)) {
            fetch_ahead(a);
        }
        if (take_deliver(a, (uint32_t)n) < 0) {
            return 0;
        }
        mn_ring_consume(&a->deliver);
    }
    if (a->todo.head != APP_NONE) {
        app_todo_flush(a);
    }
    app_publish(a);
    if (closed != 0) {
        (void)app_kill(a, closed < 4096 ? (int)closed : EPROTO);
    }
    return (int)n + ctl;
}

int mn_app_poll(struct mn_app *a)
{
    int n = app_intake(a);

    return n + app_completed(a);
}

uint32_t mn_app_ready(struct mn_app *a)
{
    uint32_t ready = 0;

    (void)mn_app_poll(a);
    ready |= a->msgs.head != APP_NONE ? MN_READY_MSG : 0;
    ready |= a->streams_ready != 0 ? MN_READY_STREAM : 0;
    ready |= a->n_accepts != 0 ? MN_READY_ACCEPT : 0;
    ready |= a->n_results != 0 ? MN_READY_RESULT : 0;
    ready |= app_tx_free(a) > a->tx_reserve ? MN_READY_SPACE : 0;
    ready |= a->dead != 0 ? MN_READY_DEAD : 0;
    return ready;
}

/* The consumer's half of the sleep protocol: flag, fence, look again. The same fence serves what
 * was published just before. */
bool mn_app_prepare_sleep(struct mn_app *a)
{
    bool published;

    if (a->todo.head != APP_NONE) {
        app_todo_flush(a);
    }
    published = publish_rings(a);
    atomic_store_explicit(&a->sh->app_sleeps, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (published && a->kick != NULL) {
        kick_sleeper(a);
    }
    /* What could not be told yet must be tried again soon: the engine sends no word of room. */
    if (a->dead != 0 || a->todo.head != APP_NONE || a->unreleased != APP_NONE ||
        app_ring_news(&a->deliver) || app_ring_news(&a->completed) ||
        app_ring_news(&a->ctl_complete) ||
        atomic_load_explicit(&a->sh->closed, memory_order_relaxed) != 0) {
        mn_app_cancel_sleep(a);
        return false;
    }
    return true;
}

void mn_app_cancel_sleep(struct mn_app *a)
{
    atomic_store_explicit(&a->sh->app_sleeps, 0, memory_order_relaxed);
}

void mn_app_set_far(struct mn_app *a)
{
    a->far = true;
}

uint32_t mn_app_ip(const struct mn_app *a)
{
    return a->sh->ip;
}

void mn_app_hangup(struct mn_app *a)
{
    (void)mn_app_poll(a);
    (void)app_kill(a, EPIPE);
}

int mn_app_dead(const struct mn_app *a)
{
    return a->dead;
}

void mn_app_stats(const struct mn_app *a, struct mn_app_stats *out)
{
    *out = (struct mn_app_stats){
        .tx_free = app_tx_free(a),
        .tx_in_flight = a->tx_high - a->tx_sp,
        .tx_touched = a->tx_high,
        .rx_held = a->rx_held,
        .rx_unreleased = a->n_unreleased + (a->released.pos - a->released.published),
        .msgs = a->n_msgs,
        .accepts = a->n_accepts,
        .results = a->n_results,
        .tokens = a->n_tokens,
    };
}
