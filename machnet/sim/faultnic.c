/* SPDX-License-Identifier: MIT */
#include "faultnic.h"

#include "nickit.h"
#include "pktheap.h"
#include "pktpool.h"

#include "machnet/stack/core/wire/csum.h"
#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/udp.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define BURST 32u
/* Bursts of the inner NIC that one of ours takes in at most. */
#define RX_BURSTS 8u
/* A VLAN tag may make a frame longer than the MTU says. */
#define ROOM_EXTRA 4u
/* An inner NIC that takes no more is asked again after this. */
#define RETRY_NS (100 * MN_NS_PER_US)

struct direction {
    struct mn_shaper shaper;
    struct mn_pktheap due;  /* frames with a time */
    struct mn_pkt *clogged; /* frames without: a list by link, the oldest first */
    struct mn_pkt **clogged_tail;
    struct mn_faultnic_stats stats;
    struct mn_shape wanted; /* under the lock */
};

struct mn_faultnic {
    struct mn_nic nic; /* the first member: the operations find it so */
    struct mn_nic *inner;
    struct mn_pktpool pool;
    struct mn_verdict *verdicts; /* of clogged frames, by number of their packet in the pool */
    uint64_t now_ns;
    uint64_t retry_ns; /* the inner NIC took no more: when to go on, 0: it did */
    struct direction dir[2];
    pthread_mutex_t lock;
    _Atomic bool news; /* wanted shapes are not in force yet */
};

/* ---- packets ------------------------------------------------------------------------------- */

static bool is_own(const struct mn_faultnic *f, const struct mn_pkt *pkt)
{
    const uint8_t *at = (const uint8_t *)pkt;

    return at >= f->pool.mem && at < f->pool.mem + f->pool.mem_bytes;
}

static struct mn_verdict *verdict_of(const struct mn_faultnic *f, const struct mn_pkt *pkt)
{
    return &f->verdicts[(uint64_t)((const uint8_t *)pkt - f->pool.mem) / f->pool.slot_bytes];
}

static void give_back(struct mn_faultnic *f, struct mn_pkt *pkt)
{
    if (is_own(f, pkt)) {
        mn_pktpool_put_frame(&f->pool, pkt);
    } else {
        f->inner->ops->pkt_free(f->inner, 0, pkt);
    }
}

/* A sender next door left the checksum to a device that there is none of: the field holds the
 * pseudo header's sum. */
static void finish_csum(struct mn_pkt *copy, const struct mn_pkt *from)
{
    uint32_t at = (uint32_t)from->l4_off + from->csum_off;
    uint16_t csum;

    if (at + 2 > copy->len) {
        return;
    }
    csum = mn_csum_fold(mn_csum_partial(copy->data + from->l4_off, copy->len - from->l4_off, 0));
    if (csum == 0 && from->csum_off == MN_UDP_CSUM_OFF) {
        csum = UINT16_MAX; /* zero would say that there is none */
    }
    mn_wr16be(copy->data + at, csum);
}

/* The frame in one piece, finished; NULL: no packet. */
static struct mn_pkt *copy_of(struct mn_faultnic *f, const struct mn_pkt *pkt)
{
    struct mn_pkt *copy = mn_pktpool_get(&f->pool);

    if (copy != NULL) {
        copy->len = mn_pkt_copy_out(pkt, copy->data, copy->room);
        if (pkt->csum == MN_CSUM_PARTIAL) {
            finish_csum(copy, pkt);
        }
    }
    return copy;
}

/* ---- frames that wait ---------------------------------------------------------------------- */

static void wait_until(struct direction *d, struct mn_pkt *own, uint64_t t)
{
    d->stats.waiting++;
    mn_pktheap_push(&d->due, t, own);
}

static void wait_for_copy(struct mn_faultnic *f, struct direction *d, const struct mn_pkt *pkt,
                          uint64_t t)
{
    struct mn_pkt *copy = copy_of(f, pkt);

    if (copy == NULL) {
        d->stats.dropped_pool++;
    } else {
        wait_until(d, copy, t);
    }
}

static struct mn_pkt *take_due(struct direction *d)
{
    d->stats.waiting--;
    return mn_pktheap_pop(&d->due);
}

static bool something_due(const struct mn_faultnic *f, const struct direction *d)
{
    return mn_pktheap_next(&d->due) <= f->now_ns;
}

/* Puts a frame whose verdict has times where it waits. */
static void put(struct mn_faultnic *f, struct direction *d, struct mn_pkt *own,
                const struct mn_verdict *v)
{
    if ((v->faults & MN_FAULT_BIT(MN_FAULT_CORRUPT)) != 0) {
        mn_shaper_corrupt(own->data, own->len, v->bit);
    }
    wait_until(d, own, v->at_ns);
    if (v->dup) {
        wait_for_copy(f, d, own, v->dup_at_ns);
    }
}

static void hold_back(struct mn_faultnic *f, struct direction *d, struct mn_pkt *own,
                      const struct mn_verdict *v)
{
    *verdict_of(f, own) = *v;
    own->link = NULL;
    *d->clogged_tail = own;
    d->clogged_tail = &own->link;
    d->stats.waiting++;
}

/* The frames that a clog held go on. A partition that follows a clog lets them wait on. */
static void unclog(struct mn_faultnic *f, struct direction *d)
{
    struct mn_pkt *pkt = d->clogged;

    d->clogged = NULL;
    d->clogged_tail = &d->clogged;
    while (pkt != NULL) {
        struct mn_pkt *next = pkt->link;
        struct mn_verdict *v = verdict_of(f, pkt);

        mn_shaper_release(&d->shaper, f->now_ns, v);
        d->stats.waiting--;
        put(f, d, pkt, v);
        pkt = next;
    }
}

/* What becomes of a frame: true when it goes on at once as it is, and stays the caller's; else it
 * was dealt with. */
static bool offer(struct mn_faultnic *f, struct direction *d, struct mn_pkt *pkt)
{
    const uint32_t whole = MN_FAULT_BIT(MN_FAULT_DUPLICATE) | MN_FAULT_BIT(MN_FAULT_CORRUPT);
    uint32_t len = mn_pkt_frame_len(pkt);
    struct mn_pkt *copy;
    struct mn_verdict v;

    d->stats.frames++;
    d->stats.bytes += len;
    mn_shaper_offer(&d->shaper, f->now_ns, len, &v);
    if (v.drop) {
        give_back(f, pkt);
        return false;
    }
    if (!v.held && v.at_ns <= f->now_ns && (v.faults & whole) == 0 && !something_due(f, d) &&
        pkt->csum != MN_CSUM_PARTIAL && !is_own(f, pkt)) {
        d->stats.passed++;
        return true;
    }
    copy = copy_of(f, pkt);
    give_back(f, pkt);
    if (copy == NULL) {
        d->stats.dropped_pool++;
        if (v.held) {
            mn_shaper_forget(&d->shaper, &v);
        }
    } else if (v.held) {
        hold_back(f, d, copy, &v);
    } else {
        put(f, d, copy, &v);
    }
    return false;
}

/* ---- the NIC ------------------------------------------------------------------------------- */

/* When the host should poll though no frame has come in. */
static void tell_wake(struct mn_faultnic *f)
{
    uint64_t rx_ns = mn_pktheap_next(&f->dir[MN_FAULTNIC_RX].due);
    uint64_t tx_ns = mn_pktheap_next(&f->dir[MN_FAULTNIC_TX].due);
    uint64_t wake_ns = mn_min_u64(rx_ns, mn_max_u64(tx_ns, f->retry_ns));

    if (f->inner->wake_ns != 0) {
        wake_ns = mn_min_u64(wake_ns, f->inner->wake_ns);
    }
    f->nic.wake_ns = wake_ns == MN_NEVER ? 0 : mn_max_u64(wake_ns, 1);
    f->nic.link_up = f->inner->link_up;
    f->nic.moved = f->inner->moved;
}

/* Hands one frame of ours to the inner NIC; false: it takes none now. */
static bool transmit_copy(struct mn_faultnic *f, const struct mn_pkt *own)
{
    const struct mn_nic_ops *ops = f->inner->ops;
    struct mn_pkt *pkt = ops->pkt_alloc(f->inner, 0, own->len);

    if (pkt == NULL) {
        return false;
    }
    memcpy(pkt->data, own->data, own->len);
    pkt->len = own->len;
    if (ops->tx_burst(f->inner, 0, &pkt, 1) == 0) {
        ops->pkt_free(f->inner, 0, pkt);
        return false;
    }
    return true;
}

/* Sends what is due. */
static void transmit_due(struct mn_faultnic *f)
{
    struct direction *d = &f->dir[MN_FAULTNIC_TX];

    f->retry_ns = 0;
    while (something_due(f, d)) {
        if (!transmit_copy(f, mn_pktheap_top(&d->due))) {
            d->stats.refused++;
            f->retry_ns = f->now_ns + RETRY_NS;
            return;
        }
        d->stats.passed++;
        mn_pktpool_put(&f->pool, take_due(d));
    }
}

/* Sends frames that go on as they are; those that the inner NIC does not take wait. */
static void transmit_now(struct mn_faultnic *f, struct mn_pkt **pkts, uint32_t n)
{
    struct direction *d = &f->dir[MN_FAULTNIC_TX];
    uint32_t done = n > 0 ? f->inner->ops->tx_burst(f->inner, 0, pkts, n) : 0;

    for (; done < n; done++) {
        d->stats.passed--;
        wait_for_copy(f, d, pkts[done], f->now_ns);
        give_back(f, pkts[done]);
    }
}

static uint32_t faultnic_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                  uint32_t n)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;
    struct mn_pkt *direct[BURST];
    uint32_t ready = 0;

    (void)queue;
    transmit_due(f);
    for (uint32_t i = 0; i < n; i++) {
        MN_ASSERT(pkts[i]->gso_size == 0 && pkts[i]->csum == MN_CSUM_NONE);
        if (offer(f, &f->dir[MN_FAULTNIC_TX], pkts[i])) {
            direct[ready++] = pkts[i];
        }
        if (ready == BURST) {
            transmit_now(f, direct, ready);
            ready = 0;
        }
    }
    transmit_now(f, direct, ready);
    transmit_due(f);
    tell_wake(f);
    return n;
}

/* One burst of the inner NIC; those of its frames that are to be handed over at once go into pkts.
 * Returns how many came in, and how many of them are in pkts. */
static uint32_t receive(struct mn_faultnic *f, struct mn_pkt **pkts, uint32_t n, uint32_t *direct)
{
    struct direction *d = &f->dir[MN_FAULTNIC_RX];
    struct mn_pkt *in[BURST];
    uint32_t got = f->inner->ops->rx_burst(f->inner, 0, in, mn_min_u32(n, BURST));

    *direct = 0;
    for (uint32_t i = 0; i < got; i++) {
        if (in[i]->gso_size != 0 || mn_pkt_frame_len(in[i]) > f->pool.room) {
            d->stats.dropped_size++;
            give_back(f, in[i]);
        } else if (offer(f, d, in[i])) {
            in[i]->csum = MN_CSUM_NONE; /* "verified" is not for us to say, nor to be sent on */
            pkts[(*direct)++] = in[i];
        }
    }
    return got;
}

static uint32_t deliver_due(struct mn_faultnic *f, struct mn_pkt **pkts, uint32_t n)
{
    struct direction *d = &f->dir[MN_FAULTNIC_RX];
    uint32_t got = 0;

    while (got < n && something_due(f, d)) {
        d->stats.passed++;
        pkts[got++] = take_due(d);
    }
    return got;
}

static uint32_t faultnic_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                  uint32_t n)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;
    uint32_t got, direct = 0;

    (void)queue;
    transmit_due(f);
    got = deliver_due(f, pkts, n);
    /* A burst whose frames all have to wait must not look like an idle NIC. */
    for (uint32_t i = 0; i < RX_BURSTS && got < n; i++) {
        if (receive(f, pkts + got, n - got, &direct) == 0 || direct > 0) {
            break;
        }
    }
    got += direct;
    got += deliver_due(f, pkts + got, n - got);
    tell_wake(f);
    return got;
}

static struct mn_pkt *faultnic_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;

    return size > nic->caps.tx_max_frame ? NULL : f->inner->ops->pkt_alloc(f->inner, queue, size);
}

static void faultnic_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    (void)queue;
    give_back((struct mn_faultnic *)nic, pkt);
}

static bool faultnic_rx_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    struct mn_nic *inner = ((struct mn_faultnic *)nic)->inner;

    return inner->ops->rx_arm == NULL || inner->ops->rx_arm(inner, queue, on);
}

static const struct mn_nic_ops faultnic_ops = {
    .rx_burst = faultnic_rx_burst,
    .tx_burst = faultnic_tx_burst,
    .pkt_alloc = faultnic_pkt_alloc,
    .pkt_free = faultnic_pkt_free,
    .rx_arm = faultnic_rx_arm,
};

/* ---- time and shapes ----------------------------------------------------------------------- */

void mn_faultnic_set_now(struct mn_nic *nic, uint64_t now_ns)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;

    f->now_ns = now_ns;
    if (MN_LIKELY(!atomic_load_explicit(&f->news, memory_order_acquire))) {
        return;
    }
    pthread_mutex_lock(&f->lock);
    atomic_store_explicit(&f->news, false, memory_order_relaxed);
    for (uint32_t i = 0; i < 2; i++) {
        mn_shaper_set(&f->dir[i].shaper, &f->dir[i].wanted);
    }
    pthread_mutex_unlock(&f->lock);
    for (uint32_t i = 0; i < 2; i++) {
        if (f->dir[i].shaper.shape.blocked == 0) {
            unclog(f, &f->dir[i]);
        }
    }
}

int mn_faultnic_set(struct mn_nic *nic, uint32_t dir, const struct mn_shape *shape)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;

    if (dir > 1 || mn_shape_check(shape) != NULL) {
        return -EINVAL;
    }
    pthread_mutex_lock(&f->lock);
    f->dir[dir].wanted = *shape;
    atomic_store_explicit(&f->news, true, memory_order_release);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

void mn_faultnic_get(struct mn_nic *nic, uint32_t dir, struct mn_shape *out)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;

    pthread_mutex_lock(&f->lock);
    *out = f->dir[dir & 1].wanted;
    pthread_mutex_unlock(&f->lock);
}

void mn_faultnic_get_stats(const struct mn_nic *nic, uint32_t dir, struct mn_faultnic_stats *out)
{
    const struct direction *d = &((const struct mn_faultnic *)nic)->dir[dir & 1];

    *out = d->stats;
    memcpy(out->faults, d->shaper.count, sizeof(out->faults));
}

void mn_faultnic_sync(struct mn_nic *nic)
{
    struct mn_faultnic *f = (struct mn_faultnic *)nic;

    memcpy(nic->mac, f->inner->mac, sizeof(nic->mac));
    tell_wake(f);
}

/* ---- opening ------------------------------------------------------------------------------- */

static int direction_init(struct direction *d, uint64_t seed, const char *name,
                          const struct mn_shape *shape, uint32_t pkts)
{
    int rc = mn_shaper_init(&d->shaper, seed, name, shape);

    d->wanted = *shape;
    d->clogged_tail = &d->clogged;
    return rc != 0 ? rc : mn_pktheap_init(&d->due, pkts);
}

static void faultnic_free(struct mn_faultnic *f)
{
    for (uint32_t i = 0; i < 2; i++) {
        mn_shaper_fini(&f->dir[i].shaper);
        mn_pktheap_fini(&f->dir[i].due);
    }
    mn_pktpool_fini(&f->pool);
    free(f->verdicts);
    (void)pthread_mutex_destroy(&f->lock);
    free(f);
}

static int faultnic_init(struct mn_faultnic *f, const struct mn_faultnic_config *cfg)
{
    uint32_t pkts = cfg->pool_pkts != 0 ? cfg->pool_pkts : MN_FAULTNIC_POOL_PKTS;
    int rc = mn_pktpool_init(&f->pool, pkts, f->inner->caps.mtu + MN_ETH_HLEN + ROOM_EXTRA);

    if (rc == 0) {
        rc = direction_init(&f->dir[MN_FAULTNIC_TX], cfg->seed, "tx", &cfg->tx, pkts);
    }
    if (rc == 0) {
        rc = direction_init(&f->dir[MN_FAULTNIC_RX], cfg->seed, "rx", &cfg->rx, pkts);
    }
    if (rc != 0) {
        return rc;
    }
    f->verdicts = calloc(pkts, sizeof(*f->verdicts));
    return f->verdicts != NULL ? 0 : -ENOMEM;
}

int mn_faultnic_open(struct mn_nic *inner, const struct mn_faultnic_config *cfg,
                     struct mn_nic **out)
{
    struct mn_faultnic *f = calloc(1, sizeof(*f));
    int rc;

    if (f == NULL) {
        return -ENOMEM;
    }
    f->inner = inner;
    (void)pthread_mutex_init(&f->lock, NULL);
    rc = faultnic_init(f, cfg);
    if (rc != 0) {
        faultnic_free(f);
        return rc;
    }
    f->nic = *inner;
    f->nic.ops = &faultnic_ops;
    f->nic.caps = (struct mn_nic_caps){
        .mtu = inner->caps.mtu,
        .rx_max_frame = f->pool.room,
        .tx_max_frame = inner->caps.mtu + MN_ETH_HLEN,
        .queues = 1,
    };
    tell_wake(f);
    *out = &f->nic;
    return 0;
}

void mn_faultnic_close(struct mn_nic *nic)
{
    if (nic != NULL) {
        MN_ASSERT(nic->ops == &faultnic_ops);
        faultnic_free((struct mn_faultnic *)nic);
    }
}
