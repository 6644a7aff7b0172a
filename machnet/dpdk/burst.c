/* SPDX-License-Identifier: MIT */
/* The hot path: mbufs become packets where they lie, and back. No allocation, no log and no system
 * call but the driver's own. */
#include "dpdk_int.h"

#include "machnet/stack/core/wire/eth.h"

#include <rte_prefetch.h>

#define TCP_CSUM_OFF 16u
#define UDP_CSUM_OFF 6u

/* The end of a thread that was registered gives its place back. */
static pthread_key_t known_key;
static pthread_once_t known_once = PTHREAD_ONCE_INIT;

static void known_end(void *arg)
{
    (void)arg;
    rte_thread_unregister();
}

static void known_init(void)
{
    if (pthread_key_create(&known_key, known_end) != 0) {
        mn_panic(__FILE__, __LINE__, "no thread-specific key left");
    }
}

/* Only threads that EAL knows have caches in mempools. Where it has no more places (RTE_MAX_LCORE)
 * all goes on, a little slower. */
MN_NOINLINE void mn_dpdk_thread_known(void)
{
    static _Thread_local bool tried;

    if (!tried) {
        tried = true;
        pthread_once(&known_once, known_init);
        if (rte_thread_register() == 0) {
            (void)pthread_setspecific(known_key, &known_key);
        }
    }
}

/* False: the port is not to be touched. The watcher sets `away`, makes all threads of the process
 * pass a barrier, and waits for those inside. */
static inline bool enter(struct mn_dpdk *d, struct dpdk_queue *q)
{
    atomic_store_explicit(&q->inside, 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    if (MN_LIKELY(atomic_load_explicit(&d->away, memory_order_acquire) == 0)) {
        if (MN_UNLIKELY(rte_lcore_id() == LCORE_ID_ANY)) {
            mn_dpdk_thread_known();
        }
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

static inline void wrap_piece(struct rte_mbuf *m, uint8_t csum)
{
    struct mn_pkt *pkt = dpdk_pkt(m);

    pkt->data = rte_pktmbuf_mtod(m, uint8_t *);
    pkt->len = m->data_len;
    pkt->room = (uint32_t)m->buf_len - m->data_off;
    pkt->next = NULL;
    pkt->gso_size = 0;
    pkt->l4_off = 0;
    pkt->csum_off = 0;
    pkt->csum = csum;
    pkt->flags = 0;
    pkt->drv = 0;
    pkt->link = NULL;
}

static void wrap_more(struct rte_mbuf *m, uint8_t csum)
{
    struct mn_pkt *before = dpdk_pkt(m);

    for (m = m->next; m != NULL; m = m->next) {
        wrap_piece(m, csum);
        before->next = dpdk_pkt(m);
        before = before->next;
    }
}

/* What is too short for its header is given back; returns how many are left. */
static uint32_t wrap(struct mn_dpdk *d, struct dpdk_queue *q, struct rte_mbuf *const *ms,
                     uint32_t n, struct mn_pkt **pkts)
{
    uint32_t got = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct rte_mbuf *m = ms[i];

        if (i + 1 < n) {
            rte_prefetch0(dpdk_pkt(ms[i + 1]));
        }
        rte_prefetch0(rte_pktmbuf_mtod(m, void *));
        if (MN_UNLIKELY(m->data_len < MN_ETH_HLEN)) {
            q->counts.rx_bad++;
            rte_pktmbuf_free(m);
            continue;
        }
        q->counts.rx_bytes += m->pkt_len;
        wrap_piece(m, csum_mark(d, m));
        if (MN_UNLIKELY(m->next != NULL)) {
            wrap_more(m, dpdk_pkt(m)->csum);
        }
        pkts[got++] = dpdk_pkt(m);
    }
    q->counts.rx_frames += got;
    return got;
}

static MN_NOINLINE uint32_t take_stash(struct mn_dpdk *d, struct dpdk_queue *q,
                                       struct mn_pkt **pkts, uint32_t n)
{
    uint32_t take = mn_min_u32(n, q->n_stash - q->stash_at);
    struct rte_mbuf *const *from = &q->stash[q->stash_at];

    q->stash_at += take;
    if (q->stash_at == q->n_stash) {
        q->n_stash = q->stash_at = 0;
    }
    return wrap(d, q, from, take, pkts);
}

static uint32_t dpdk_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];
    struct rte_mbuf *ms[DPDK_BURST_MAX];
    uint32_t got;

    if (MN_UNLIKELY(q->n_stash != 0)) {
        return take_stash(d, q, pkts, n);
    }
    if (MN_UNLIKELY(!enter(d, q))) {
        return 0;
    }
    got = rte_eth_rx_burst(d->port, (uint16_t)queue, ms, (uint16_t)mn_min_u32(n, DPDK_BURST_MAX));
    leave(q);
    return got == 0 ? 0 : wrap(d, q, ms, got, pkts);
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

/* The mbufs say what the packet's pieces say: whoever had the packet may have moved its data. */
static struct rte_mbuf *unwrap(struct mn_pkt *pkt)
{
    struct rte_mbuf *head = dpdk_mbuf(pkt), *last = head;

    head->tx_offload = 0;
    head->ol_flags = 0;
    head->pkt_len = 0;
    head->nb_segs = 0;
    for (struct mn_pkt *p = pkt; p != NULL; p = p->next) {
        struct rte_mbuf *m = dpdk_mbuf(p);

        m->data_off = (uint16_t)(p->data - (uint8_t *)m->buf_addr);
        m->data_len = (uint16_t)p->len;
        head->pkt_len += p->len;
        head->nb_segs++;
        last->next = m;
        last = m;
    }
    last->next = NULL;
    if (pkt->csum == MN_CSUM_PARTIAL) {
        offload(head, pkt);
    }
    return head;
}

static void free_pieces(struct mn_pkt *pkt)
{
    while (pkt != NULL) {
        struct rte_mbuf *m = dpdk_mbuf(pkt);

        pkt = pkt->next;
        m->next = NULL;
        m->nb_segs = 1;
        rte_pktmbuf_free_seg(m);
    }
}

/* Drivers that finish checksums may want to look at the headers first. A frame that they can't send
 * is lost: it would hold up all that are behind it. Returns how many may go, from the first on. */
static MN_NOINLINE uint32_t prepare(struct mn_dpdk *d, uint32_t queue, struct rte_mbuf **ms,
                                    uint32_t n)
{
    uint32_t ok = rte_eth_tx_prepare(d->port, (uint16_t)queue, ms, (uint16_t)n);

    if (MN_UNLIKELY(ok == 0)) {
        d->q[queue].counts.tx_refused++;
        free_pieces(dpdk_pkt(ms[0]));
    }
    return ok;
}

/* How many of n were taken. *lost: the first one was, but is gone. */
static uint32_t tx_some(struct mn_dpdk *d, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct dpdk_queue *q = &d->q[queue];
    struct rte_mbuf *ms[DPDK_BURST_MAX];
    uint64_t bytes[DPDK_BURST_MAX];
    uint64_t flags = 0, sum = 0;
    uint32_t ready = n, sent;

    for (uint32_t i = 0; i < n; i++) {
        ms[i] = unwrap(pkts[i]);
        flags |= ms[i]->ol_flags;
        sum += ms[i]->pkt_len;
        bytes[i] = sum;
    }
    if (flags != 0) {
        ready = prepare(d, queue, ms, n);
        if (MN_UNLIKELY(ready == 0)) {
            return 1;
        }
    }
    sent = rte_eth_tx_burst(d->port, (uint16_t)queue, ms, (uint16_t)ready);
    q->counts.tx_frames += sent;
    if (sent != 0) {
        q->counts.tx_bytes += bytes[sent - 1];
    }
    q->counts.tx_full += sent < ready;
    return sent;
}

static MN_NOINLINE uint32_t tx_nowhere(struct dpdk_queue *q, struct mn_pkt **pkts, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free_pieces(pkts[i]);
    }
    q->counts.tx_down += n;
    return n;
}

static uint32_t dpdk_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];
    uint32_t done = 0;

    if (MN_UNLIKELY(!enter(d, q))) {
        return tx_nowhere(q, pkts, n);
    }
    while (done < n) {
        uint32_t some = mn_min_u32(n - done, DPDK_BURST_MAX);
        uint32_t sent = tx_some(d, queue, pkts + done, some);

        done += sent;
        if (sent == 0) {
            break;
        }
    }
    leave(q);
    return done;
}

/* ---- packets --------------------------------------------------------------------------------- */

static struct mn_pkt *dpdk_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct rte_mbuf *m;

    if (MN_UNLIKELY(size > d->data_room)) {
        return NULL;
    }
    if (MN_UNLIKELY(rte_lcore_id() == LCORE_ID_ANY)) {
        mn_dpdk_thread_known();
    }
    m = rte_pktmbuf_alloc(d->q[queue].pool);
    if (MN_UNLIKELY(m == NULL)) {
        d->q[queue].counts.no_mbuf++;
        return NULL;
    }
    wrap_piece(m, MN_CSUM_NONE);
    return dpdk_pkt(m);
}

static void dpdk_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    (void)nic;
    (void)queue;
    free_pieces(pkt);
}

const struct mn_nic_ops mn_dpdk_ops = {
    .rx_burst = dpdk_rx_burst,
    .tx_burst = dpdk_tx_burst,
    .pkt_alloc = dpdk_pkt_alloc,
    .pkt_free = dpdk_pkt_free,
    .queue_fd = mn_dpdk_queue_fd,
    .rx_arm = mn_dpdk_rx_arm,
};
