/* SPDX-License-Identifier: MIT */
/* The hot path: mbufs become packets where they lie, and back. No allocation, no log and no system
 * call but the driver's own. */
#include <rte_config.h>

/* Nobody hooks functions into our bursts: there is no other process on a port, and they can't be
 * asked for. Looking for them costs a tenth of a burst's own instructions. */
#undef RTE_ETHDEV_RXTX_CALLBACKS

#include "dpdk_int.h"

#include "machnet/stack/core/wire/eth.h"

#include <rte_prefetch.h>

#define TCP_CSUM_OFF 16u
#define UDP_CSUM_OFF 6u

/* What EAL calls the thread, read without the call that another library's thread-local variable
 * costs; LCORE_ID_ANY: it is not known to EAL. */
static _Thread_local unsigned my_lcore __attribute__((tls_model("initial-exec"))) = LCORE_ID_ANY;

static pthread_key_t known_key;
static pthread_once_t known_once = PTHREAD_ONCE_INIT;

/* The end of a thread that was registered gives its place back. */
static void known_end(void *arg)
{
    (void)arg;
    my_lcore = LCORE_ID_ANY;
    rte_thread_unregister();
}

static void known_init(void)
{
    if (pthread_key_create(&known_key, known_end) != 0) {
        mn_panic(__FILE__, __LINE__, "no thread-specific key left");
    }
}

/* Only threads that EAL knows have caches in mempools; one is made known when it takes or gives a
 * packet for the first time. Where EAL has no more places (RTE_MAX_LCORE) all goes on, a little
 * slower. */
static MN_NOINLINE void thread_known(void)
{
    static _Thread_local bool tried;

    if (!tried) {
        tried = true;
        pthread_once(&known_once, known_init);
        if (rte_lcore_id() == LCORE_ID_ANY && rte_thread_register() == 0) {
            (void)pthread_setspecific(known_key, &known_key);
        }
        my_lcore = rte_lcore_id();
    }
}

static inline void be_known(void)
{
    if (MN_UNLIKELY(my_lcore == LCORE_ID_ANY)) {
        thread_known();
    }
}

/* False: the port is not to be touched. The watcher sets `away`, makes all threads of the process
 * pass a barrier, and waits for those inside. */
static inline bool enter(struct mn_dpdk *d, struct dpdk_queue *q)
{
    atomic_store_explicit(&q->inside, 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    if (MN_LIKELY(atomic_load_explicit(&d->away, memory_order_acquire) == 0)) {
        return true;
    }
    atomic_store_explicit(&q->inside, 0, memory_order_release);
    return false;
}

static inline void leave(struct dpdk_queue *q)
{
    atomic_store_explicit(&q->inside, 0, memory_order_release);
}

bool mn_dpdk_enter(struct mn_dpdk *d, struct dpdk_queue *q)
{
    return enter(d, q);
}

void mn_dpdk_leave(struct dpdk_queue *q)
{
    leave(q);
}

/* ---- mbufs ----------------------------------------------------------------------------------- */

/* The thread's own share of a pool, NULL: it has none. */
static struct rte_mempool_cache *my_cache(struct rte_mempool *pool)
{
    be_known();
    return rte_mempool_default_cache(pool, my_lcore);
}

/* What a queue's thread would look up for every packet. */
static void remember(struct dpdk_queue *q, struct rte_mempool *given)
{
    if (q->lcore != my_lcore) {
        q->lcore = my_lcore;
        q->taken = my_cache(q->pool);
        q->given_pool = NULL;
    }
    if (given != NULL) {
        q->given = my_cache(given);
        q->given_pool = q->given != NULL ? given : NULL;
    }
    if (q->taken == NULL) {
        q->lcore = DPDK_LCORE_NONE;
    }
}

static MN_NOINLINE struct rte_mbuf *take_from_pool(struct dpdk_queue *q)
{
    void *m;

    be_known();
    remember(q, NULL);
    return rte_mempool_generic_get(q->pool, &m, 1, my_cache(q->pool)) == 0 ? m : NULL;
}

/* When the share is full half of it goes, so that the next ones find room, or something to take. */
static MN_NOINLINE void give_to_pool(struct dpdk_queue *q, struct rte_mempool *pool, void *m)
{
    struct rte_mempool_cache *cache;
    uint32_t half;

    be_known();
    remember(q, pool);
    cache = my_cache(pool);
    half = cache != NULL && cache->len >= cache->size ? (cache->len + 1) / 2 : 0;

    if (half != 0) {
        cache->len -= half;
        rte_mempool_generic_put(pool, &cache->objs[cache->len], half, NULL);
    }
    rte_mempool_generic_put(pool, &m, 1, cache);
}

static MN_NOINLINE void free_other(struct dpdk_queue *q, struct mn_pkt *pkt)
{
    do {
        struct rte_mbuf *m = dpdk_mbuf(pkt);

        pkt = pkt->next;
        /* What others have a share in is not touched. */
        if (rte_mbuf_refcnt_read(m) != 1 || !RTE_MBUF_DIRECT(m)) {
            rte_pktmbuf_free_seg(m);
            continue;
        }
        m->next = NULL;
        m->nb_segs = 1;
        give_to_pool(q, m->pool, m);
    } while (pkt != NULL);
}

/* Most frames are of one piece, and go where the last one went. */
static inline void free_frame(struct dpdk_queue *q, struct mn_pkt *pkt)
{
    struct rte_mbuf *m = dpdk_mbuf(pkt);
    struct rte_mempool_cache *cache = q->given;

    if (MN_UNLIKELY(q->lcore != my_lcore || m->pool != q->given_pool || pkt->next != NULL ||
                    rte_mbuf_refcnt_read(m) != 1 || !RTE_MBUF_DIRECT(m) ||
                    cache->len >= cache->size)) {
        free_other(q, pkt);
        return;
    }
    m->next = NULL;
    m->nb_segs = 1;
    cache->objs[cache->len++] = m;
}

/* ---- receiving ------------------------------------------------------------------------------- */

static inline uint8_t csum_mark(const struct mn_dpdk *d, const struct rte_mbuf *m)
{
    uint64_t l4 = m->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;

    /* NONE: the field is not filled in, but the data is known to be good (the sender is another
     * machine on the same host). */
    return d->rx_marks && (l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD || l4 == RTE_MBUF_F_RX_L4_CKSUM_NONE)
               ? MN_CSUM_VALID
               : MN_CSUM_NONE;
}

static inline void wrap_piece(struct rte_mbuf *m, uint32_t data_off, uint32_t len, uint8_t csum)
{
    *dpdk_pkt(m) = (struct mn_pkt){
        .data = (uint8_t *)m->buf_addr + data_off,
        .len = len,
        .room = m->buf_len - data_off,
        .csum = csum,
    };
}

static MN_NOINLINE void wrap_more(struct rte_mbuf *m, uint8_t csum)
{
    struct mn_pkt *before = dpdk_pkt(m);

    for (m = m->next; m != NULL; m = m->next) {
        wrap_piece(m, m->data_off, m->data_len, csum);
        before->next = dpdk_pkt(m);
        before = before->next;
    }
}

/* The driver's mbufs become packets in the array that they came in. */
typedef struct rte_mbuf *__attribute__((may_alias)) slot;

static MN_NOINLINE void drop_short(struct dpdk_queue *q, struct rte_mbuf *m)
{
    q->counts.rx_bad++;
    rte_pktmbuf_free(m);
}

/* False: it was too short for its header, and is given back. */
static inline bool wrap_frame(const struct mn_dpdk *d, struct dpdk_queue *q, struct rte_mbuf *m)
{
    if (MN_UNLIKELY(m->data_len < MN_ETH_HLEN)) {
        drop_short(q, m);
        return false;
    }
    wrap_piece(m, m->data_off, m->data_len, csum_mark(d, m));
    q->counts.rx_bytes += m->pkt_len;
    q->counts.rx_frames++;
    if (MN_UNLIKELY(m->next != NULL)) {
        wrap_more(m, dpdk_pkt(m)->csum);
    }
    return true;
}

/* Returns how many are left. */
static MN_NOINLINE uint32_t wrap_burst(const struct mn_dpdk *d, struct dpdk_queue *q,
                                       struct mn_pkt **pkts, uint32_t n)
{
    const slot *ms = (const slot *)(void *)pkts;
    uint32_t got = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct rte_mbuf *m = ms[i];

        if (i + 1 < n) {
            rte_prefetch0(dpdk_pkt(ms[i + 1]));
        }
        rte_prefetch0(rte_pktmbuf_mtod(m, void *));
        if (wrap_frame(d, q, m)) {
            pkts[got++] = dpdk_pkt(m);
        }
    }
    return got;
}

static inline uint32_t wrap(const struct mn_dpdk *d, struct dpdk_queue *q, struct mn_pkt **pkts,
                            uint32_t n)
{
    const slot *ms = (const slot *)(void *)pkts;

    q->counts.rx_bursts++;
    if (n != 1) {
        return wrap_burst(d, q, pkts, n);
    }
    if (!wrap_frame(d, q, ms[0])) {
        return 0;
    }
    pkts[0] = dpdk_pkt(ms[0]);
    return 1;
}

static MN_NOINLINE uint32_t take_stash(struct mn_dpdk *d, struct dpdk_queue *q,
                                       struct mn_pkt **pkts, uint32_t n)
{
    uint32_t take = mn_min_u32(n, q->n_stash - q->stash_at);

    memcpy((void *)pkts, &q->stash[q->stash_at], take * sizeof(q->stash[0]));
    q->stash_at += take;
    if (q->stash_at == q->n_stash) {
        q->n_stash = q->stash_at = 0;
    }
    return wrap(d, q, pkts, take);
}

static uint32_t dpdk_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];
    uint32_t got;

    if (MN_UNLIKELY(q->n_stash != 0)) {
        return take_stash(d, q, pkts, n);
    }
    if (MN_UNLIKELY(!enter(d, q))) {
        return 0;
    }
    got = rte_eth_rx_burst(d->port, (uint16_t)queue, (struct rte_mbuf **)(void *)pkts, (uint16_t)n);
    leave(q);
    return got == 0 ? 0 : wrap(d, q, pkts, got);
}

/* ---- transmitting ---------------------------------------------------------------------------- */

static inline void offload(struct rte_mbuf *m, const struct mn_pkt *pkt)
{
    m->l2_len = MN_ETH_HLEN;
    m->l3_len = (pkt->l4_off - MN_ETH_HLEN) & 0x1ff; /* a bit field; IPv4 headers fit */
    m->ol_flags |= RTE_MBUF_F_TX_IPV4;
    if (pkt->csum_off == TCP_CSUM_OFF) {
        m->l4_len = (uint8_t)((pkt->data[pkt->l4_off + 12] >> 4) * 4);
        m->ol_flags |= RTE_MBUF_F_TX_TCP_CKSUM;
    } else {
        MN_ASSERT(pkt->csum_off == UDP_CSUM_OFF);
        m->l4_len = 8;
        m->ol_flags |= RTE_MBUF_F_TX_UDP_CKSUM;
    }
}

/* Where the data is that an mbuf has: a driver that lends its own memory wants it back. */
#define KEEP_FLAGS (RTE_MBUF_F_EXTERNAL | RTE_MBUF_F_INDIRECT)

static inline void unwrap_piece(struct rte_mbuf *m, const struct mn_pkt *pkt)
{
    m->data_off = (uint16_t)(pkt->data - (uint8_t *)m->buf_addr);
    m->data_len = (uint16_t)pkt->len;
    m->next = NULL;
}

static MN_NOINLINE void unwrap_more(struct rte_mbuf *head, const struct mn_pkt *pkt)
{
    struct rte_mbuf *last = head;

    for (struct mn_pkt *p = pkt->next; p != NULL; p = p->next) {
        struct rte_mbuf *m = dpdk_mbuf(p);

        unwrap_piece(m, p);
        m->ol_flags &= KEEP_FLAGS;
        head->pkt_len += p->len;
        head->nb_segs++;
        last->next = m;
        last = m;
    }
}

/* The mbuf says what the packet's pieces say: whoever had the packet may have moved its data. */
static inline void unwrap(const struct mn_pkt *pkt, struct rte_mbuf *m)
{
    unwrap_piece(m, pkt);
    m->nb_segs = 1;
    m->pkt_len = pkt->len;
    m->tx_offload = 0;
    m->ol_flags &= KEEP_FLAGS;
    if (MN_UNLIKELY(pkt->next != NULL)) {
        unwrap_more(m, pkt);
    }
}

/* The device is to finish checksums; drivers may want to look at the headers first. A frame that
 * they can't send is lost: it would hold up all that are behind it. Returns how many may go, from
 * the first on. */
static MN_NOINLINE uint32_t prepare(struct mn_dpdk *d, uint32_t queue, struct rte_mbuf **ms,
                                    uint32_t n)
{
    uint32_t ok;

    for (uint32_t i = 0; i < n; i++) {
        const struct mn_pkt *pkt = dpdk_pkt(ms[i]);

        if (pkt->csum == MN_CSUM_PARTIAL) {
            offload(ms[i], pkt);
        }
    }
    ok = rte_eth_tx_prepare(d->port, (uint16_t)queue, ms, (uint16_t)n);
    if (MN_UNLIKELY(ok == 0)) {
        d->q[queue].counts.tx_refused++;
        free_frame(&d->q[queue], dpdk_pkt(ms[0]));
    }
    return ok;
}

static MN_NOINLINE uint64_t bytes_of(struct rte_mbuf *const *ms, uint32_t n)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < n; i++) {
        bytes += ms[i]->pkt_len;
    }
    return bytes;
}

/* At most DPDK_BURST_MAX. How many were taken; the first may have been taken and be lost. */
static inline uint32_t tx_some(struct mn_dpdk *d, struct dpdk_queue *q, uint32_t queue,
                               struct mn_pkt **pkts, uint32_t n)
{
    struct rte_mbuf *ms[DPDK_BURST_MAX];
    uint64_t bytes = 0;
    uint32_t ready = n, sent, marks = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct rte_mbuf *m = dpdk_mbuf(pkts[i]);

        ms[i] = m;
        marks |= pkts[i]->csum;
        unwrap(pkts[i], m);
        bytes += m->pkt_len;
    }
    /* A frame that is forwarded may have another mark than that it is PARTIAL. */
    if (marks != MN_CSUM_NONE) {
        ready = prepare(d, queue, ms, n);
        if (MN_UNLIKELY(ready == 0)) {
            return 1;
        }
    }
    sent = rte_eth_tx_burst(d->port, (uint16_t)queue, ms, (uint16_t)ready);
    if (MN_UNLIKELY(sent < n)) {
        bytes -= bytes_of(ms + sent, n - sent); /* they are still ours */
        q->counts.tx_full += sent < ready;
    }
    q->counts.tx_frames += sent;
    q->counts.tx_bursts++;
    q->counts.tx_bytes += bytes;
    return sent;
}

static MN_NOINLINE uint32_t tx_nowhere(struct dpdk_queue *q, struct mn_pkt **pkts, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free_frame(q, pkts[i]);
    }
    q->counts.tx_down += n;
    return n;
}

static MN_NOINLINE uint32_t tx_many(struct mn_dpdk *d, struct dpdk_queue *q, uint32_t queue,
                                    struct mn_pkt **pkts, uint32_t n)
{
    uint32_t done = 0;

    while (done < n) {
        uint32_t sent = tx_some(d, q, queue, pkts + done, mn_min_u32(n - done, DPDK_BURST_MAX));

        done += sent;
        if (sent == 0) {
            break;
        }
    }
    return done;
}

/* One frame of one piece, of which nothing is left to do: what goes out where answers are waited
 * for. */
static inline uint32_t tx_one(struct mn_dpdk *d, struct dpdk_queue *q, uint32_t queue,
                              const struct mn_pkt *pkt, struct rte_mbuf *m)
{
    uint32_t len = pkt->len;
    uint32_t sent;

    unwrap(pkt, m);
    sent = rte_eth_tx_burst(d->port, (uint16_t)queue, &m, 1);
    q->counts.tx_full += 1 - sent;
    q->counts.tx_frames += sent;
    q->counts.tx_bytes += sent * len;
    q->counts.tx_bursts++;
    return sent;
}

static uint32_t dpdk_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];
    uint32_t done;

    if (MN_UNLIKELY(!enter(d, q))) {
        return tx_nowhere(q, pkts, n);
    }
    if (n == 1 && pkts[0]->csum == MN_CSUM_NONE && pkts[0]->next == NULL) {
        done = tx_one(d, q, queue, pkts[0], dpdk_mbuf(pkts[0]));
    } else {
        done = tx_many(d, q, queue, pkts, n);
    }
    leave(q);
    return done;
}

/* ---- packets --------------------------------------------------------------------------------- */

static inline struct mn_pkt *empty_pkt(struct rte_mbuf *m)
{
    wrap_piece(m, RTE_PKTMBUF_HEADROOM, 0, MN_CSUM_NONE);
    return dpdk_pkt(m);
}

static MN_NOINLINE struct mn_pkt *alloc_other(struct dpdk_queue *q)
{
    struct rte_mbuf *m = take_from_pool(q);

    if (m == NULL) {
        q->counts.no_mbuf++;
        return NULL;
    }
    return empty_pkt(m);
}

/* As mbufs lie in a pool: in one piece, of which nobody else has a share. The library's own
 * function fills in a dozen fields, all of which unwrap, or who has received a packet, does. */
static struct mn_pkt *dpdk_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];
    struct rte_mempool_cache *cache = q->taken;

    if (MN_UNLIKELY(size > d->data_room)) {
        return NULL;
    }
    if (MN_UNLIKELY(q->lcore != my_lcore || cache->len == 0)) {
        return alloc_other(q);
    }
    return empty_pkt(cache->objs[--cache->len]);
}

static void dpdk_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    free_frame(&((struct mn_dpdk *)nic)->q[queue], pkt);
}

const struct mn_nic_ops mn_dpdk_ops = {
    .rx_burst = dpdk_rx_burst,
    .tx_burst = dpdk_tx_burst,
    .pkt_alloc = dpdk_pkt_alloc,
    .pkt_free = dpdk_pkt_free,
    .queue_fd = mn_dpdk_queue_fd,
    .rx_arm = mn_dpdk_rx_arm,
};
