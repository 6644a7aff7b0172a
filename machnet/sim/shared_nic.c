/* SPDX-License-Identifier: MIT */
/* Frames on their way between a NIC, its views, and the rings between these. */
#include "shared_int.h"

#include "nickit.h"

#include "machnet/stack/host/os.h"

#define DISPATCH_BURST 64u
/* Frames of one other view that are transmitted in one burst. */
#define RELAY_BURST 64u
/* When a NIC took less than it was given; the engine's own rule. */
#define TX_RETRY_NS (20 * MN_NS_PER_US)

/* Only the view's own thread writes; others may read. */
static void count(struct mn_view *v, size_t offset, uint64_t by)
{
    _Atomic uint64_t *at = &v->stats[offset / sizeof(uint64_t)];

    atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

#define COUNT(v, field, by) count(v, offsetof(struct mn_shared_stats, field), by)

static struct mn_handring *ring(const struct shared_hub *h, uint32_t from, uint32_t to)
{
    return &h->rings[from * h->n + to];
}

/* The other half is in view_rx_arm: they see the flag, or we their sleep. */
static void wake_others(struct mn_view *v)
{
    atomic_thread_fence(memory_order_seq_cst);
    for (uint32_t to = 0; v->wake != 0; to++) {
        struct mn_view *other = &v->hub->views[to];

        if ((v->wake >> to & 1) == 0) {
            continue;
        }
        v->wake &= ~(1u << to);
        if (atomic_load_explicit(&other->sleeping, memory_order_relaxed) != 0 &&
            atomic_exchange_explicit(&other->sleeping, 0, memory_order_acq_rel) != 0) {
            COUNT(v, wakes, 1);
            mn_os_event_raise(other->event_fd);
        }
    }
}

/* ---- frames in rings ------------------------------------------------------------------------- */

static struct mn_handrec *push(struct mn_view *v, uint32_t to, const struct mn_pkt *pkt, bool spare)
{
    struct mn_handring *r = ring(v->hub, v->index, to);
    uint32_t len = mn_pkt_frame_len(pkt);
    struct mn_handrec *rec = mn_handring_reserve(r, len, spare);

    if (rec != NULL) {
        (void)mn_pkt_copy_out(pkt, mn_handrec_data(rec), len);
        rec->gso_size = pkt->gso_size;
        rec->l4_off = pkt->l4_off;
        rec->csum_off = pkt->csum_off;
        rec->csum = pkt->csum;
        rec->kind = MN_HANDREC_RX;
        rec->asked = 0;
        rec->flags = 0;
    }
    return rec;
}

static void publish(struct mn_view *v, uint32_t to)
{
    mn_handring_publish(ring(v->hub, v->index, to));
    v->wake |= 1u << to;
}

bool mn_shared_give(void *ctx, uint32_t to, const struct mn_handed *frame)
{
    struct mn_view *v = ctx;
    struct mn_handrec *rec;

    MN_ASSERT(to < v->hub->n && to != v->index);
    rec = push(v, to, frame->pkt, frame->spare);
    if (rec == NULL) {
        COUNT(v, handed_full, 1);
        return false;
    }
    rec->asked = frame->asked;
    rec->flags = (uint8_t)(MN_PKT_HANDED | (frame->looped ? MN_PKT_LOOPED : 0));
    publish(v, to);
    COUNT(v, handed_frames, 1);
    return true;
}

static struct mn_pkt *view_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_view *v = (struct mn_view *)nic;
    struct mn_nic *inner = v->hub->inner;

    (void)queue;
    if (v->pooled) {
        return size > v->pool.room ? NULL : mn_pktpool_get(&v->pool);
    }
    return inner->ops->pkt_alloc(inner, v->queue, size);
}

static void view_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_view *v = (struct mn_view *)nic;
    struct mn_nic *inner = v->hub->inner;

    (void)queue;
    if (v->pooled) {
        mn_pktpool_put_frame(&v->pool, pkt);
    } else {
        inner->ops->pkt_free(inner, v->queue, pkt);
    }
}

/* A record as a packet of ours, in pieces where one is too small; NULL: no packets. */
static struct mn_pkt *unpack(struct mn_view *v, struct mn_handrec *rec)
{
    const uint8_t *from = mn_handrec_data(rec);
    uint32_t left = rec->len, piece_max = v->pooled ? v->pool.room : v->nic.caps.tx_max_frame;
    struct mn_pkt *first = NULL, **at = &first;

    do {
        uint32_t n = mn_min_u32(left, piece_max);
        struct mn_pkt *pkt = view_pkt_alloc(&v->nic, 0, n);

        if (pkt == NULL) {
            if (first != NULL) {
                view_pkt_free(&v->nic, 0, first);
            }
            return NULL;
        }
        memcpy(pkt->data, from, n);
        pkt->len = n;
        *at = pkt;
        at = &pkt->next;
        from += n;
        left -= n;
    } while (left > 0);
    first->gso_size = rec->gso_size;
    first->l4_off = rec->l4_off;
    first->csum_off = rec->csum_off;
    first->csum = rec->csum;
    first->asked = rec->asked;
    first->flags = rec->flags;
    return first;
}

/* View 0: transmits a record of another view; false: not now. */
static bool relay(struct mn_view *v, struct mn_handrec *rec)
{
    struct mn_nic *inner = v->hub->inner;
    struct mn_pkt *pkt = unpack(v, rec);

    if (pkt == NULL) {
        COUNT(v, taken_no_pkt, 1);
        return false;
    }
    if (inner->ops->tx_burst(inner, v->queue, &pkt, 1) == 0) {
        view_pkt_free(&v->nic, 0, pkt);
        return false;
    }
    COUNT(v, relayed, 1);
    v->nic.moved++;
    return true;
}

/* Takes up to max frames from one ring. */
static uint32_t take_from(struct mn_view *v, uint32_t from, struct mn_pkt **pkts, uint32_t max)
{
    struct mn_handring *r = ring(v->hub, from, v->index);
    uint32_t got = 0, relayed = 0;
    struct mn_handrec *rec;

    while (got < max && relayed < RELAY_BURST && (rec = mn_handring_peek(r)) != NULL) {
        if (rec->kind == MN_HANDREC_TX) {
            if (!relay(v, rec)) {
                v->tx_blocked = true;
                break;
            }
            relayed++;
        } else {
            struct mn_pkt *pkt = unpack(v, rec);

            if (pkt == NULL) {
                COUNT(v, taken_no_pkt, 1);
                break;
            }
            COUNT(v, taken_frames, 1);
            pkts[got++] = pkt;
        }
        mn_handring_pop(r);
    }
    return got;
}

static uint32_t take_handed(struct mn_view *v, struct mn_pkt **pkts, uint32_t max)
{
    uint32_t n = v->hub->n, got = 0;

    v->tx_blocked = false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t from = (v->turn + i) % n;

        if (from != v->index) {
            got += take_from(v, from, pkts + got, max - got);
        }
    }
    v->turn = (v->turn + 1) % n;
    return got;
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* View 0 of a NIC with one queue: keeps its own frames, copies the others to their views. */
static uint32_t dispatch(struct mn_view *v, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_nic *inner = v->hub->inner;
    struct mn_pkt *in[DISPATCH_BURST];
    uint32_t got = 0;
    uint32_t came = inner->ops->rx_burst(inner, 0, in, mn_min_u32(n, DISPATCH_BURST));

    for (uint32_t i = 0; i < came; i++) {
        uint32_t to = mn_rss_frame_queue(&v->hub->rss, in[i]->data, in[i]->len);

        if (to == 0) {
            pkts[got++] = in[i];
            continue;
        }
        if (push(v, to, in[i], false) != NULL) {
            publish(v, to);
            COUNT(v, dispatched, 1);
        } else {
            COUNT(v, dispatch_dropped, 1);
        }
        inner->ops->pkt_free(inner, 0, in[i]);
        v->nic.moved++;
    }
    return got;
}

/* What a host looks at. */
static void tell_host(struct mn_view *v)
{
    uint64_t at = v->tx_blocked ? v->now_ns + TX_RETRY_NS : 0;
    uint64_t inner_ns = v->pooled ? 0 : v->hub->inner->wake_ns;

    if (inner_ns != 0 && (at == 0 || inner_ns < at)) {
        at = inner_ns;
    }
    v->nic.wake_ns = at;
    v->nic.link_up = __atomic_load_n(&v->hub->inner->link_up, __ATOMIC_RELAXED);
    /* A device that went away would keep the descriptor readable: hosts nap instead. */
    if (v->epoll_fd >= 0) {
        v->nic.rx_fd = v->nic.link_up ? v->epoll_fd : -1;
    }
}

static uint32_t view_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_view *v = (struct mn_view *)nic;
    struct mn_nic *inner = v->hub->inner;
    uint32_t got;

    (void)queue;
    v->nic.moved = 0;
    /* Some of a burst is left to the NIC, however much the others hand over. */
    got = take_handed(v, pkts, n > 1 ? n - n / 4 : n);
    if (got < n && v->hub->soft && v->index == 0) {
        got += dispatch(v, pkts + got, n - got);
    } else if (got < n && !v->hub->soft) {
        got += inner->ops->rx_burst(inner, v->queue, pkts + got, n - got);
    }
    if (v->wake != 0) {
        wake_others(v);
    }
    tell_host(v);
    return got;
}

static bool rings_empty(const struct mn_view *v)
{
    for (uint32_t from = 0; from < v->hub->n; from++) {
        if (from != v->index && !mn_handring_empty(ring(v->hub, from, v->index))) {
            return false;
        }
    }
    return true;
}

static bool view_rx_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    struct mn_view *v = (struct mn_view *)nic;
    struct mn_nic *inner = v->hub->inner;
    bool idle = true;

    (void)queue;
    if (!v->pooled && inner->ops->rx_arm != NULL) {
        idle = inner->ops->rx_arm(inner, v->queue, on);
    }
    if (v->wake != 0) {
        wake_others(v);
    }
    if (on) {
        atomic_store_explicit(&v->sleeping, 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        /* What the NIC does not take now waits for its time (wake_ns). */
        return idle && (rings_empty(v) || v->tx_blocked);
    }
    if (atomic_exchange_explicit(&v->sleeping, 0, memory_order_acq_rel) == 0) {
        mn_os_event_clear(v->event_fd); /* it was raised, or is about to be: then once in vain */
    }
    return idle;
}

/* ---- transmitting ---------------------------------------------------------------------------- */

static uint32_t leave_for_view_0(struct mn_view *v, struct mn_pkt **pkts, uint32_t n)
{
    uint32_t i;

    for (i = 0; i < n; i++) {
        struct mn_handrec *rec = push(v, 0, pkts[i], false);

        if (rec == NULL) {
            COUNT(v, tx_full, 1);
            break;
        }
        rec->kind = MN_HANDREC_TX;
        mn_pktpool_put_frame(&v->pool, pkts[i]);
    }
    if (i > 0) {
        publish(v, 0);
        wake_others(v);
    }
    return i;
}

static uint32_t view_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_view *v = (struct mn_view *)nic;
    struct mn_nic *inner = v->hub->inner;
    uint32_t done;

    (void)queue;
    if (v->pooled) {
        return leave_for_view_0(v, pkts, n);
    }
    done = inner->ops->tx_burst(inner, v->queue, pkts, n);
    tell_host(v);
    return done;
}

const struct mn_nic_ops mn_shared_view_ops = {
    .rx_burst = view_rx_burst,
    .tx_burst = view_tx_burst,
    .pkt_alloc = view_pkt_alloc,
    .pkt_free = view_pkt_free,
    .rx_arm = view_rx_arm,
};
