/* SPDX-License-Identifier: MIT */
#include "pcapnic.h"

#include "nickit.h"
#include "pktpool.h"

#include "machnet/stack/core/wire/arp.h"
#include "machnet/stack/core/wire/eth.h"

#include <stdlib.h>

/* Packets out at once: received ones that the stack has not given back, and those it makes. */
#define POOL_PKTS   1024u
#define MTU_MAX     65521u
#define ARP_WAITING 64u
#define ENTRIES_MIN 256u
#define BYTES_MIN   (256u << 10)

static const uint8_t nobody_mac[MN_ETH_ALEN] = {0x02, 0x4d, 0x4e, 0xff, 0xff, 0xfe};

struct listed {
    uint64_t t_ns;
    uint64_t at; /* in bytes */
    uint32_t len;
    uint32_t pad;
};

struct known {
    uint32_t ip;
    uint8_t mac[MN_ETH_ALEN];
    uint16_t pad;
};

struct mn_pcapnic {
    struct mn_nic nic; /* the first member: the operations find it so */
    struct mn_pktpool pool;
    struct listed *list;
    uint8_t *bytes;
    uint64_t n, cap, next, bytes_n, bytes_cap;
    struct known *known; /* by address, ascending */
    uint32_t known_n, known_cap;
    struct mn_pkt *arp[ARP_WAITING]; /* answers that are to be received */
    uint32_t arp_n;
    uint64_t now_ns;
    struct mn_pcapnic_config cfg;
    struct mn_pcapnic_stats stats;
};

/* ---- the list ------------------------------------------------------------------------------ */

/* Makes room for `more` elements; false: no memory. */
static bool grow(void **array, uint64_t size, uint64_t n, uint64_t more, uint64_t *cap,
                 uint64_t least)
{
    uint64_t want = *cap != 0 ? *cap : least;
    void *bigger;

    if (n + more <= *cap) {
        return true;
    }
    while (want < n + more) {
        want *= 2;
    }
    bigger = realloc(*array, want * size);
    if (bigger == NULL) {
        return false;
    }
    *array = bigger;
    *cap = want;
    return true;
}

/* When the next frame comes in. */
static uint64_t next_ns(const struct mn_pcapnic *p)
{
    return mn_max_u64(p->list[p->next].t_ns, 1);
}

static void tell_wake(struct mn_pcapnic *p)
{
    if (p->arp_n > 0) {
        p->nic.wake_ns = mn_max_u64(p->now_ns, 1);
    } else {
        p->nic.wake_ns = p->next < p->n ? next_ns(p) : 0;
    }
}

int mn_pcapnic_add(struct mn_nic *nic, uint64_t t_ns, const uint8_t *frame, uint32_t len)
{
    struct mn_pcapnic *p = (struct mn_pcapnic *)nic;
    void *list = p->list, *bytes = p->bytes;
    bool ok;

    if (len < MN_ETH_HLEN || len > MN_PCAPNIC_FRAME_MAX) {
        return -EMSGSIZE;
    }
    if (p->n > 0 && t_ns < p->list[p->n - 1].t_ns) {
        return -EINVAL;
    }
    ok = grow(&list, sizeof(*p->list), p->n, 1, &p->cap, ENTRIES_MIN) &&
         grow(&bytes, 1, p->bytes_n, len, &p->bytes_cap, BYTES_MIN);
    p->list = list;
    p->bytes = bytes;
    if (!ok) {
        return -ENOMEM;
    }
    memcpy(p->bytes + p->bytes_n, frame, len);
    p->list[p->n++] = (struct listed){.t_ns = t_ns, .at = p->bytes_n, .len = len};
    p->bytes_n += len;
    tell_wake(p);
    return 0;
}

/* ---- ARP ----------------------------------------------------------------------------------- */

/* Where the address is, or would be. */
static uint32_t known_at(const struct mn_pcapnic *p, uint32_t ip)
{
    uint32_t low = 0, high = p->known_n;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (p->known[mid].ip < ip) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

int mn_pcapnic_neighbor(struct mn_nic *nic, uint32_t ip, const uint8_t mac[6])
{
    struct mn_pcapnic *p = (struct mn_pcapnic *)nic;
    uint32_t at = known_at(p, ip);

    if (at == p->known_n || p->known[at].ip != ip) {
        uint64_t cap = p->known_cap;
        void *known = p->known;

        if (!grow(&known, sizeof(*p->known), p->known_n, 1, &cap, ENTRIES_MIN)) {
            return -ENOMEM;
        }
        p->known = known;
        p->known_cap = (uint32_t)cap;
        memmove(&p->known[at + 1], &p->known[at], (p->known_n - at) * sizeof(*p->known));
        p->known_n++;
        p->known[at].ip = ip;
    }
    memcpy(p->known[at].mac, mac, MN_ETH_ALEN);
    return 0;
}

/* Whether the frame asks for somebody's address: then *arp is the question. A probe or announcement
 * of the sender's own address is none. */
static bool is_question(const struct mn_pkt *pkt, struct mn_arp *arp)
{
    struct mn_eth eth;

    return mn_eth_parse(pkt->data, pkt->len, &eth) == 0 && eth.type == MN_ETHERTYPE_ARP &&
           mn_arp_parse(eth.payload, eth.payload_len, arp) == 0 && arp->op == MN_ARP_REQUEST &&
           arp->sender_ip != 0 && arp->sender_ip != arp->target_ip;
}

static void answer(struct mn_pcapnic *p, const struct mn_arp *asked)
{
    uint32_t at = known_at(p, asked->target_ip);
    bool known = at < p->known_n && p->known[at].ip == asked->target_ip;
    const uint8_t *mac = known ? p->known[at].mac : nobody_mac;
    struct mn_arp arp = {
        .sender_ip = asked->target_ip, .target_ip = asked->sender_ip, .op = MN_ARP_REPLY};
    struct mn_pkt *pkt = p->arp_n < ARP_WAITING ? mn_pktpool_get(&p->pool) : NULL;

    if (pkt == NULL) {
        return; /* it will be asked again */
    }
    memcpy(arp.sender_mac, mac, MN_ETH_ALEN);
    memcpy(arp.target_mac, asked->sender_mac, MN_ETH_ALEN);
    pkt->len = mn_eth_emit(pkt->data, asked->sender_mac, mac, MN_ETHERTYPE_ARP);
    pkt->len += mn_arp_emit(pkt->data + pkt->len, &arp);
    p->arp[p->arp_n++] = pkt;
    p->stats.arp_answers++;
}

/* ---- the NIC ------------------------------------------------------------------------------- */

/* A copy of the next frame; NULL: no packet. */
static struct mn_pkt *take_next(struct mn_pcapnic *p)
{
    const struct listed *frame = &p->list[p->next];
    struct mn_pkt *pkt = mn_pktpool_get(&p->pool);

    if (pkt != NULL) {
        memcpy(pkt->data, p->bytes + frame->at, frame->len);
        pkt->len = frame->len;
        p->next++;
        p->stats.rx_frames++;
    }
    return pkt;
}

/* One frame at a time: what is stamped with one microsecond was still answered in between. */
static uint32_t pcapnic_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                 uint32_t n)
{
    struct mn_pcapnic *p = (struct mn_pcapnic *)nic;
    uint32_t got = mn_min_u32(p->arp_n, n);

    (void)queue;
    memcpy(pkts, p->arp, got * sizeof(struct mn_pkt *));
    p->arp_n -= got;
    memmove(p->arp, p->arp + got, p->arp_n * sizeof(struct mn_pkt *));
    if (got < n && p->next < p->n && next_ns(p) <= p->now_ns) {
        pkts[got] = take_next(p);
        got += pkts[got] != NULL;
    }
    tell_wake(p);
    return got;
}

static void write_out(struct mn_pcapnic *p, const struct mn_pkt *pkt, uint32_t len)
{
    struct mn_pcapng_pkt entry = {
        .iface = p->cfg.iface,
        .dir = MN_PCAPNG_DIR_OUT,
        .t_ns = p->cfg.epoch_ns + p->now_ns,
        .cap_len = len,
        .orig_len = len,
    };
    uint8_t *copy = mn_pcapng_packet(p->cfg.writer, &entry);

    if (copy != NULL) {
        (void)mn_pkt_copy_out(pkt, copy, len);
    }
}

static uint32_t pcapnic_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                 uint32_t n)
{
    struct mn_pcapnic *p = (struct mn_pcapnic *)nic;
    struct mn_arp arp;

    (void)queue;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = mn_pkt_frame_len(pkts[i]);

        MN_ASSERT(pkts[i]->gso_size == 0 && pkts[i]->csum == MN_CSUM_NONE);
        p->stats.tx_frames++;
        p->stats.tx_bytes += len;
        if (p->cfg.writer != NULL) {
            write_out(p, pkts[i], len);
        }
        if (is_question(pkts[i], &arp)) {
            answer(p, &arp);
        }
        mn_pktpool_put_frame(&p->pool, pkts[i]);
    }
    tell_wake(p);
    return n;
}

static struct mn_pkt *pcapnic_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_pcapnic *p = (struct mn_pcapnic *)nic;

    (void)queue;
    return size > nic->caps.tx_max_frame ? NULL : mn_pktpool_get(&p->pool);
}

static void pcapnic_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    (void)queue;
    mn_pktpool_put_frame(&((struct mn_pcapnic *)nic)->pool, pkt);
}

static const struct mn_nic_ops pcapnic_ops = {
    .rx_burst = pcapnic_rx_burst,
    .tx_burst = pcapnic_tx_burst,
    .pkt_alloc = pcapnic_pkt_alloc,
    .pkt_free = pcapnic_pkt_free,
};

void mn_pcapnic_set_mac(struct mn_nic *nic, const uint8_t mac[6])
{
    memcpy(nic->mac, mac, MN_ETH_ALEN);
}

void mn_pcapnic_set_epoch(struct mn_nic *nic, uint64_t epoch_ns)
{
    ((struct mn_pcapnic *)nic)->cfg.epoch_ns = epoch_ns;
}

void mn_pcapnic_set_now(struct mn_nic *nic, uint64_t now_ns)
{
    ((struct mn_pcapnic *)nic)->now_ns = now_ns;
}

void mn_pcapnic_get_stats(const struct mn_nic *nic, struct mn_pcapnic_stats *out)
{
    const struct mn_pcapnic *p = (const struct mn_pcapnic *)nic;

    *out = p->stats;
    out->rx_left = p->n - p->next;
}

int mn_pcapnic_open(const struct mn_pcapnic_config *cfg, struct mn_nic **out)
{
    struct mn_pcapnic *p;
    int rc;

    if (cfg->mtu < MN_PCAPNIC_MTU_MIN || cfg->mtu > MTU_MAX) {
        return -EINVAL;
    }
    p = calloc(1, sizeof(*p));
    if (p == NULL) {
        return -ENOMEM;
    }
    rc = mn_pktpool_init(&p->pool, POOL_PKTS, MN_PCAPNIC_FRAME_MAX);
    if (rc != 0) {
        free(p);
        return rc;
    }
    p->cfg = *cfg;
    p->nic.ops = &pcapnic_ops;
    p->nic.caps = (struct mn_nic_caps){
        .mtu = cfg->mtu,
        .rx_max_frame = MN_PCAPNIC_FRAME_MAX,
        .tx_max_frame = cfg->mtu + MN_ETH_HLEN,
        .queues = 1,
    };
    p->nic.link_up = 1;
    p->nic.rx_fd = -1;
    memcpy(p->nic.mac, cfg->mac, MN_ETH_ALEN);
    *out = &p->nic;
    return 0;
}

void mn_pcapnic_close(struct mn_nic *nic)
{
    if (nic != NULL) {
        struct mn_pcapnic *p = (struct mn_pcapnic *)nic;

        MN_ASSERT(nic->ops == &pcapnic_ops);
        mn_pktpool_fini(&p->pool);
        free(p->list);
        free(p->bytes);
        free(p->known);
        free(p);
    }
}
