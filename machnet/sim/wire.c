/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include "pktpool.h"

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/ipv4.h"

#include <stdlib.h>

#define WIRE_MTU_DEFAULT          1500u
#define WIRE_QUEUE_FRAMES_DEFAULT 1024u
#define WIRE_POOL_SPARE_PKTS      256u
#define WIRE_GSO_MAX_FRAME        (MN_ETH_HLEN + MN_IPV4_LEN_MAX)

struct wire_entry {
    struct mn_pkt *pkt;
    uint64_t t_ns; /* when it was transmitted */
};

struct wire_ring {
    struct wire_entry *entries;
    uint32_t mask;
    uint32_t limit; /* frames it may hold, at most mask + 1 */
    uint32_t head;
    uint32_t tail;
};

/* What the two ends of a pair share; freed with the last of them. */
struct wire_hub {
    struct mn_pktpool pool;
    uint32_t refs;
};

struct mn_wire {
    struct mn_nic nic; /* the first member: the operations find the wire by it */
    struct wire_hub *hub;
    struct wire_ring *tx; /* the peer's rx, or drained; NULL when the peer is gone */
    struct mn_wire *peer; /* NULL for a single wire */
    uint64_t now_ns;
    uint32_t mtu_frame; /* largest frame without gso_size */
    bool backpressure;
    struct mn_wire *spread; /* the peer, when it has several queues */
    struct wire_ring rx;
    struct wire_ring *more_rx; /* of the queues behind the first */
    struct mn_rss *rss;        /* how frames are spread over them, and how they are said to be */
    struct wire_ring drained;
    struct mn_wire_stats stats;
};

static int ring_init(struct wire_ring *r, uint32_t limit)
{
    uint32_t slots = 1;

    while (slots < limit) {
        slots *= 2;
    }
    r->entries = calloc(slots, sizeof(*r->entries));
    if (r->entries == NULL) {
        return -ENOMEM;
    }
    r->mask = slots - 1;
    r->limit = limit;
    return 0;
}

static inline uint32_t ring_fill(const struct wire_ring *r)
{
    return r->tail - r->head;
}

static inline void ring_push(struct wire_ring *r, struct mn_pkt *pkt, uint64_t t_ns)
{
    r->entries[r->tail++ & r->mask] = (struct wire_entry){.pkt = pkt, .t_ns = t_ns};
}

static inline struct wire_entry ring_pop(struct wire_ring *r)
{
    struct wire_entry e = r->entries[r->head++ & r->mask];

    /* An empty ring starts over, so that a short queue stays in the same few cache lines. */
    if (r->head == r->tail) {
        r->head = r->tail = 0;
    }
    return e;
}

static void ring_fini(struct wire_ring *r, struct mn_pktpool *pool)
{
    while (ring_fill(r) != 0) {
        mn_pktpool_put_frame(pool, ring_pop(r).pkt);
    }
    free(r->entries);
    *r = (struct wire_ring){0};
}

static inline struct wire_ring *rx_ring(struct mn_wire *w, uint32_t queue)
{
    return MN_LIKELY(queue == 0) ? &w->rx : &w->more_rx[queue - 1];
}

/* The queue of w that a frame arrives in. */
static struct wire_ring *rx_ring_for(struct mn_wire *w, const uint8_t *frame, uint32_t len)
{
    return rx_ring(w, w->more_rx == NULL ? 0 : mn_rss_frame_queue(w->rss, frame, len));
}

static uint32_t wire_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_wire *w = (struct mn_wire *)nic;
    struct wire_ring *ring = rx_ring(w, queue);
    uint32_t i, got = mn_min_u32(n, ring_fill(ring));

    for (i = 0; i < got; i++) {
        pkts[i] = ring_pop(ring).pkt;
        w->stats.rx_bytes += mn_pkt_frame_len(pkts[i]);
    }
    w->stats.rx_frames += got;
    return got;
}

/* Asserts that the frame is in a form that the wire said it takes. */
static void tx_check_offload(const struct mn_wire *w, struct mn_pkt *pkt, uint32_t len)
{
    const struct mn_nic_caps *caps = &w->nic.caps;

    if (pkt->csum == MN_CSUM_PARTIAL) {
        MN_ASSERT(caps->tx_csum_tcp || caps->tx_csum_udp);
        MN_ASSERT((uint32_t)pkt->l4_off + pkt->csum_off + 2u <= pkt->len);
    } else {
        /* A forwarded frame may say that its checksum was verified: that is for us, not for the
         * other end. */
        pkt->csum = MN_CSUM_NONE;
    }
    if (pkt->gso_size != 0) {
        MN_ASSERT(caps->tx_gso && pkt->csum == MN_CSUM_PARTIAL && len <= caps->tx_max_frame);
    } else {
        MN_ASSERT(len <= w->mtu_frame);
    }
}

static uint32_t wire_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_wire *w = (struct mn_wire *)nic;
    struct wire_ring *ring;
    uint32_t i;

    (void)queue;
    for (i = 0; i < n; i++) {
        struct mn_pkt *pkt = pkts[i];
        uint32_t len = mn_pkt_frame_len(pkt);

        if (MN_UNLIKELY(((uint32_t)pkt->csum | pkt->gso_size) != 0 || len > w->mtu_frame)) {
            tx_check_offload(w, pkt, len);
        }
        ring = MN_LIKELY(w->spread == NULL) ? w->tx : rx_ring_for(w->spread, pkt->data, pkt->len);
        if (MN_LIKELY(ring != NULL && ring_fill(ring) < ring->limit)) {
            ring_push(ring, pkt, w->now_ns);
            w->stats.tx_bytes += len;
            continue;
        }
        if (w->backpressure && ring != NULL) {
            w->stats.tx_full++;
            break;
        }
        w->stats.tx_bytes += len;
        w->stats.tx_drops++;
        if (w->peer != NULL) {
            w->peer->stats.rx_drops++;
        }
        mn_pktpool_put_frame(&w->hub->pool, pkt);
    }
    w->stats.tx_frames += i;
    return i;
}

static void wire_free(struct mn_wire *w, struct wire_hub *hub)
{
    for (uint32_t i = 0; w->more_rx != NULL && i + 1 < w->nic.caps.queues; i++) {
        ring_fini(&w->more_rx[i], &hub->pool);
    }
    ring_fini(&w->rx, &hub->pool);
    ring_fini(&w->drained, &hub->pool);
    free(w->more_rx);
    free(w->rss);
    free(w);
}

static struct mn_pkt *wire_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_wire *w = (struct mn_wire *)nic;

    (void)queue;
    if (MN_UNLIKELY(size > w->hub->pool.room)) {
        return NULL;
    }
    return mn_pktpool_get(&w->hub->pool);
}

static void wire_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_wire *w = (struct mn_wire *)nic;

    (void)queue;
    mn_pktpool_put_frame(&w->hub->pool, pkt);
}

static const struct mn_nic_ops wire_ops = {
    .rx_burst = wire_rx_burst,
    .tx_burst = wire_tx_burst,
    .pkt_alloc = wire_pkt_alloc,
    .pkt_free = wire_pkt_free,
};

static bool rss_fits(const struct mn_rss *rss, uint32_t queues)
{
    for (uint32_t i = 0; rss != NULL && i < rss->table_size; i++) {
        if (rss->table[i] >= queues) {
            return false;
        }
    }
    return true;
}

/* Fills in the defaults and checks the rest. */
static int config_resolve(struct mn_wire_config *cfg, uint32_t ends)
{
    uint32_t mtu_frame;

    if (cfg->mtu == 0) {
        cfg->mtu = WIRE_MTU_DEFAULT;
    }
    if (cfg->queue_frames == 0) {
        cfg->queue_frames = WIRE_QUEUE_FRAMES_DEFAULT;
    }
    if (cfg->mtu < MN_WIRE_MTU_MIN || cfg->mtu > MN_WIRE_MTU_MAX ||
        cfg->queue_frames > MN_WIRE_QUEUE_FRAMES_MAX) {
        return -EINVAL;
    }
    mtu_frame = cfg->mtu + MN_ETH_HLEN;
    if (cfg->pool_pkts == 0) {
        uint32_t queues = mn_max_u32(cfg->queues[0], 1) + mn_max_u32(cfg->queues[1], 1);

        cfg->pool_pkts =
            mn_min_u32(queues * cfg->queue_frames + WIRE_POOL_SPARE_PKTS, MN_PKTPOOL_PKTS_MAX);
    }
    if (cfg->tx_max_frame == 0) {
        cfg->tx_max_frame = cfg->tx_gso ? WIRE_GSO_MAX_FRAME : mtu_frame;
    }
    if (cfg->tx_max_frame < mtu_frame || cfg->tx_max_frame > WIRE_GSO_MAX_FRAME ||
        (cfg->tx_max_frame > mtu_frame && !cfg->tx_gso) || (cfg->tx_gso && !cfg->tx_csum_tcp)) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < ends; i++) {
        cfg->queues[i] = mn_max_u32(cfg->queues[i], 1);
        if (cfg->queues[i] > MN_WIRE_QUEUES_MAX || !rss_fits(cfg->rss[i], cfg->queues[i])) {
            return -EINVAL;
        }
    }
    if (ends == 2 && (cfg->tx_csum_tcp || cfg->tx_csum_udp) && !cfg->rx_csum_trusted) {
        return -EINVAL;
    }
    return 0;
}

/* The queues behind the first, and how frames are spread over them. */
static int queues_new(struct mn_wire *w, const struct mn_wire_config *cfg, uint8_t end)
{
    uint32_t queues = cfg->queues[end];

    if (queues == 1) {
        return 0;
    }
    w->more_rx = calloc(queues - 1, sizeof(*w->more_rx));
    w->rss = calloc(2, sizeof(*w->rss));
    if (w->more_rx == NULL || w->rss == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < queues - 1; i++) {
        if (ring_init(&w->more_rx[i], cfg->queue_frames) != 0) {
            return -ENOMEM;
        }
    }
    if (cfg->rss[end] != NULL) {
        w->rss[0] = *cfg->rss[end];
    } else {
        (void)mn_rss_init_default(&w->rss[0], queues);
    }
    w->rss[1] = w->rss[0];
    w->nic.caps.queues = (uint16_t)queues;
    w->nic.caps.rss = cfg->rss_hidden ? NULL : &w->rss[1];
    return 0;
}

static struct mn_wire *wire_new(const struct mn_wire_config *cfg, struct wire_hub *hub, uint8_t end)
{
    static const uint8_t zero[MN_ETH_ALEN];
    const uint8_t by_default[MN_ETH_ALEN] = {0x02, 'M', 'N', 0, 0, (uint8_t)(end + 1)};
    bool given = memcmp(cfg->mac[end], zero, MN_ETH_ALEN) != 0;
    struct mn_wire *w = calloc(1, sizeof(*w));

    if (w == NULL || ring_init(&w->rx, cfg->queue_frames) != 0) {
        free(w);
        return NULL;
    }
    w->nic = (struct mn_nic){
        .ops = &wire_ops,
        .caps =
            {
                .mtu = cfg->mtu,
                .rx_max_frame = cfg->tx_max_frame,
                .tx_max_frame = cfg->tx_max_frame,
                .queues = 1,
                .tx_csum_tcp = cfg->tx_csum_tcp,
                .tx_csum_udp = cfg->tx_csum_udp,
                .tx_gso = cfg->tx_gso,
                .rx_csum_trusted = cfg->rx_csum_trusted,
            },
        .link_up = 1,
        .rx_fd = -1,
    };
    memcpy(w->nic.mac, given ? cfg->mac[end] : by_default, MN_ETH_ALEN);
    w->mtu_frame = cfg->mtu + MN_ETH_HLEN;
    w->backpressure = cfg->tx_backpressure;
    w->hub = hub;
    hub->refs++;
    if (queues_new(w, cfg, end) != 0) {
        w->hub = NULL;
        hub->refs--;
        wire_free(w, hub);
        return NULL;
    }
    return w;
}

static int hub_new(const struct mn_wire_config *cfg, struct wire_hub **out)
{
    struct wire_hub *hub = calloc(1, sizeof(*hub));
    int rc;

    if (hub == NULL) {
        return -ENOMEM;
    }
    rc = mn_pktpool_init(&hub->pool, cfg->pool_pkts, cfg->tx_max_frame);
    if (rc != 0) {
        free(hub);
        return rc;
    }
    *out = hub;
    return 0;
}

static void hub_free(struct wire_hub *hub)
{
    mn_pktpool_fini(&hub->pool);
    free(hub);
}

int mn_wire_pair(const struct mn_wire_config *cfg, struct mn_wire **a, struct mn_wire **b)
{
    struct mn_wire_config c = *cfg;
    struct wire_hub *hub;
    struct mn_wire *ends[2];
    int rc = config_resolve(&c, 2);

    if (rc == 0) {
        rc = hub_new(&c, &hub);
    }
    if (rc != 0) {
        return rc;
    }
    ends[0] = wire_new(&c, hub, 0);
    if (ends[0] == NULL) {
        hub_free(hub);
        return -ENOMEM;
    }
    ends[1] = wire_new(&c, hub, 1);
    if (ends[1] == NULL) {
        mn_wire_close(ends[0]);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < 2; i++) {
        ends[i]->peer = ends[1 - i];
        ends[i]->tx = &ends[1 - i]->rx;
        ends[i]->spread = c.queues[1 - i] > 1 ? ends[1 - i] : NULL;
    }
    *a = ends[0];
    *b = ends[1];
    return 0;
}

int mn_wire_single(const struct mn_wire_config *cfg, struct mn_wire **out)
{
    struct mn_wire_config c = *cfg;
    struct wire_hub *hub;
    struct mn_wire *w;
    int rc = config_resolve(&c, 1);

    if (rc == 0) {
        rc = hub_new(&c, &hub);
    }
    if (rc != 0) {
        return rc;
    }
    w = wire_new(&c, hub, 0);
    if (w == NULL) {
        hub_free(hub);
        return -ENOMEM;
    }
    if (ring_init(&w->drained, c.queue_frames) != 0) {
        mn_wire_close(w);
        return -ENOMEM;
    }
    w->tx = &w->drained;
    *out = w;
    return 0;
}

void mn_wire_close(struct mn_wire *w)
{
    struct wire_hub *hub;

    if (w == NULL) {
        return;
    }
    hub = w->hub;
    if (w->peer != NULL) {
        w->peer->tx = NULL;
        w->peer->peer = NULL;
        w->peer->spread = NULL;
        w->peer->nic.link_up = 0;
    }
    wire_free(w, hub);
    if (--hub->refs == 0) {
        hub_free(hub);
    }
}

struct mn_nic *mn_wire_nic(struct mn_wire *w)
{
    return &w->nic;
}

int mn_wire_spread(struct mn_wire *w, const struct mn_rss *rss)
{
    if (w->more_rx == NULL || !rss_fits(rss, w->nic.caps.queues)) {
        return -EINVAL;
    }
    w->rss[0] = *rss;
    return 0;
}

void mn_wire_set_now(struct mn_wire *w, uint64_t now_ns)
{
    w->now_ns = now_ns;
}

void mn_wire_get_stats(const struct mn_wire *w, struct mn_wire_stats *out)
{
    *out = w->stats;
    out->pool_live = w->hub->pool.live;
    out->pool_high = w->hub->pool.high;
}

uint32_t mn_wire_tx_pending(const struct mn_wire *w)
{
    if (w->spread != NULL) {
        return mn_wire_rx_pending(w->spread);
    }
    return w->tx != NULL ? ring_fill(w->tx) : 0;
}

uint32_t mn_wire_rx_pending(const struct mn_wire *w)
{
    uint32_t pending = ring_fill(&w->rx);

    for (uint32_t i = 0; i + 1 < w->nic.caps.queues; i++) {
        pending += ring_fill(&w->more_rx[i]);
    }
    return pending;
}

int mn_wire_inject_meta(struct mn_wire *w, const uint8_t *frame, uint32_t len,
                        const struct mn_pkt_meta *meta)
{
    struct wire_ring *ring;
    struct mn_pkt *pkt;

    if (len == 0 || len > w->nic.caps.rx_max_frame) {
        return -EMSGSIZE;
    }
    if (meta != NULL && mn_pkt_meta_check(meta, len) != 0) {
        return -EINVAL;
    }
    ring = rx_ring_for(w, frame, len);
    pkt = ring_fill(ring) < ring->limit ? mn_pktpool_get(&w->hub->pool) : NULL;
    if (pkt == NULL) {
        w->stats.rx_drops++;
        return -ENOBUFS;
    }
    memcpy(pkt->data, frame, len);
    pkt->len = len;
    if (meta != NULL) {
        mn_pkt_meta_set(pkt, meta);
    }
    ring_push(ring, pkt, w->now_ns);
    return 0;
}

int mn_wire_inject(struct mn_wire *w, const uint8_t *frame, uint32_t len)
{
    return mn_wire_inject_meta(w, frame, len, NULL);
}

int64_t mn_wire_drain_meta(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns,
                           struct mn_pkt_meta *meta)
{
    struct wire_entry e;
    uint32_t len;

    if (ring_fill(&w->drained) == 0) {
        return 0;
    }
    if (mn_pkt_frame_len(w->drained.entries[w->drained.head & w->drained.mask].pkt) > size) {
        return -EMSGSIZE;
    }
    e = ring_pop(&w->drained);
    len = mn_pkt_copy_out(e.pkt, buf, size);
    if (t_ns != NULL) {
        *t_ns = e.t_ns;
    }
    if (meta != NULL) {
        mn_pkt_meta_get(e.pkt, meta);
    }
    mn_pktpool_put_frame(&w->hub->pool, e.pkt);
    return len;
}

int64_t mn_wire_drain(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns)
{
    return mn_wire_drain_meta(w, buf, size, t_ns, NULL);
}
