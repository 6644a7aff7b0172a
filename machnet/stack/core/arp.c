/* SPDX-License-Identifier: MIT */
/*
 * Neighbours (RFC 826). An address is learnt from an answer to a question of ours, or as
 * unconfirmed from a question to us; a confirmed entry is never overwritten from outside: a
 * contradiction only makes it be asked again (RFC 5227 in spirit). Entries age: unconfirmed ones in
 * use are asked by unicast, then given up. The table is bounded and evicts what nothing has used
 * for longest among a few.
 */
#include "handoff.h"

#define EVICT_LOOK     32u
#define NBR_QUEUED_MAX 256u

static uint32_t nbr_bucket(const struct mn_engine *e, uint32_t ip)
{
    return (uint32_t)mn_siphash2(e->key, ip, 7) & e->nbr_mask;
}

uint32_t mn_nbr_find(struct mn_engine *e, uint32_t ip)
{
    uint32_t link = e->nbr_buckets[nbr_bucket(e, ip)];

    while (link != 0 && e->nbrs[link - 1].ip != ip) {
        link = e->nbrs[link - 1].hash_next;
    }
    return link == 0 ? MN_NIL : link - 1;
}

static void nbr_drop_queue(struct mn_engine *e, struct mn_nbr *n, bool tell)
{
    while (n->queue != NULL) {
        struct mn_pkt *pkt = n->queue;
        const uint8_t *ip = pkt->data + MN_ETH_HLEN;

        n->queue = pkt->link;
        n->queued--;
        e->nbr_queued--;
        e->stats.drop_arp_queue++;
        if (tell && (ip[9] == MN_IPPROTO_TCP || ip[9] == MN_IPPROTO_UDP)) {
            mn_tcp_unreachable(e, ip[9], mn_rd32be(ip + 12), mn_rd16be(ip + 20), mn_rd32be(ip + 16),
                               mn_rd16be(ip + 22));
        }
        e->nic->ops->pkt_free(e->nic, 0, pkt);
    }
}

static void nbr_free(struct mn_engine *e, uint32_t i)
{
    struct mn_nbr *n = &e->nbrs[i];
    uint32_t *at = &e->nbr_buckets[nbr_bucket(e, n->ip)];

    nbr_drop_queue(e, n, false);
    mn_timer_disarm(&e->wheel, &n->timer);
    while (*at != i + 1) {
        MN_ASSERT(*at != 0);
        at = &e->nbrs[*at - 1].hash_next;
    }
    *at = n->hash_next;
    n->state = MN_NBR_FREE;
    n->ip = 0;
    mn_pool_put(&e->nbr_pool, i);
}

static bool nbr_evict(struct mn_engine *e)
{
    uint32_t start = (uint32_t)mn_random(e) % e->cfg.neighbors_max;
    uint32_t best = MN_NIL;

    for (uint32_t k = 0; k < mn_min_u32(EVICT_LOOK, e->cfg.neighbors_max); k++) {
        uint32_t i = (start + k) % e->cfg.neighbors_max;
        const struct mn_nbr *n = &e->nbrs[i];

        if (n->state == MN_NBR_FREE || n->state == MN_NBR_STATIC || n->ip == e->cfg.gateway) {
            continue;
        }
        if (best == MN_NIL || n->used_ns < e->nbrs[best].used_ns) {
            best = i;
        }
    }
    if (best == MN_NIL) {
        return false;
    }
    nbr_free(e, best);
    return true;
}

uint32_t mn_nbr_get(struct mn_engine *e, uint32_t ip)
{
    uint32_t i = mn_nbr_find(e, ip);

    if (i != MN_NIL) {
        return i;
    }
    i = mn_pool_get(&e->nbr_pool);
    if (i == MN_NIL && nbr_evict(e)) {
        i = mn_pool_get(&e->nbr_pool);
    }
    if (i == MN_NIL) {
        e->stats.drop_arp_full++;
        return MN_NIL;
    }
    uint32_t b = nbr_bucket(e, ip);
    e->nbrs[i] = (struct mn_nbr){
        .ip = ip, .hash_next = e->nbr_buckets[b], .state = MN_NBR_FAILED, .used_ns = e->now_ns};
    e->nbrs[i].timer.kind = MN_TIMER_NBR;
    e->nbr_buckets[b] = i + 1;
    return i;
}

static void arp_send(struct mn_engine *e, uint16_t op, const uint8_t eth_dst[6],
                     const uint8_t target_mac[6], uint32_t target_ip)
{
    struct mn_pkt *pkt = mn_tx_alloc(e, MN_ETH_HLEN + MN_ARP_LEN);
    struct mn_arp arp = {.op = op, .sender_ip = e->cfg.ip, .target_ip = target_ip};

    if (pkt == NULL) {
        return;
    }
    memcpy(arp.sender_mac, e->nic->mac, 6);
    memcpy(arp.target_mac, target_mac, 6);
    mn_eth_emit(pkt->data, eth_dst, e->nic->mac, MN_ETHERTYPE_ARP);
    mn_arp_emit(pkt->data + MN_ETH_HLEN, &arp);
    pkt->len = MN_ETH_HLEN + MN_ARP_LEN;
    if (op == MN_ARP_REQUEST) {
        e->stats.arp_requests++;
    } else {
        e->stats.arp_replies++;
    }
    mn_tx_frame(e, pkt);
}

static void nbr_ask(struct mn_engine *e, struct mn_nbr *n)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const uint8_t unknown[6] = {0};

    n->tries++;
    arp_send(e, MN_ARP_REQUEST, n->state == MN_NBR_PROBE ? n->mac : broadcast, unknown, n->ip);
    mn_timer_arm(&e->wheel, &n->timer, e->now_ns + e->cfg.arp_retry_ms * MN_NS_PER_MS);
}

static void nbr_transmit(struct mn_engine *e, struct mn_nbr *n, struct mn_pkt *pkt)
{
    mn_eth_emit(pkt->data, n->mac, e->nic->mac, MN_ETHERTYPE_IPV4);
    mn_tx_frame(e, pkt);
}

static void nbr_enqueue(struct mn_engine *e, struct mn_nbr *n, struct mn_pkt *pkt)
{
    /* Each holds a packet of the NIC: all together stay a small part of what a NIC has. */
    if (n->queued == 0 && e->nbr_queued >= NBR_QUEUED_MAX) {
        e->stats.drop_arp_queue++;
        e->nic->ops->pkt_free(e->nic, 0, pkt);
        return;
    }
    if (n->queued >= e->cfg.arp_queue_pkts || e->nbr_queued >= NBR_QUEUED_MAX) {
        struct mn_pkt *oldest = n->queue;

        n->queue = oldest->link;
        n->queued--;
        e->nbr_queued--;
        e->stats.drop_arp_queue++;
        e->nic->ops->pkt_free(e->nic, 0, oldest);
    }
    struct mn_pkt **at = &n->queue;

    while (*at != NULL) {
        at = &(*at)->link;
    }
    pkt->link = NULL;
    *at = pkt;
    n->queued++;
    e->nbr_queued++;
}

void mn_nbr_output(struct mn_engine *e, uint32_t nbr, struct mn_pkt *pkt)
{
    struct mn_nbr *n = &e->nbrs[nbr];

    n->used_ns = e->now_ns;
    switch (n->state) {
    case MN_NBR_REACHABLE:
        if (e->now_ns - n->confirmed_ns <= e->cfg.arp_reachable_ms * MN_NS_PER_MS) {
            nbr_transmit(e, n, pkt);
            return;
        }
        n->state = MN_NBR_STALE;
        /* fall through */
    case MN_NBR_STALE:
        /* Use it, and give the transport one retry period to confirm it before asking. */
        if (!mn_timer_armed(&n->timer)) {
            n->tries = 0;
            mn_timer_arm(&e->wheel, &n->timer, e->now_ns + e->cfg.arp_retry_ms * MN_NS_PER_MS);
        }
        nbr_transmit(e, n, pkt);
        return;
    case MN_NBR_PROBE:
    case MN_NBR_STATIC:
        nbr_transmit(e, n, pkt);
        return;
    default:
        nbr_enqueue(e, n, pkt);
        if (n->state != MN_NBR_INCOMPLETE) {
            n->state = MN_NBR_INCOMPLETE;
            n->tries = 0;
            nbr_ask(e, n);
        }
        return;
    }
}

void mn_nbr_fire(struct mn_engine *e, struct mn_nbr *n)
{
    switch (n->state) {
    case MN_NBR_STALE:
        n->state = MN_NBR_PROBE;
        nbr_ask(e, n);
        return;
    case MN_NBR_PROBE:
        if (n->tries < e->cfg.arp_retries) {
            nbr_ask(e, n);
            return;
        }
        n->state = MN_NBR_FAILED;
        return;
    case MN_NBR_INCOMPLETE:
        if (n->tries < e->cfg.arp_retries) {
            nbr_ask(e, n);
            return;
        }
        n->state = MN_NBR_FAILED;
        nbr_drop_queue(e, n, true);
        return;
    default:
        return;
    }
}

static void nbr_learn(struct mn_engine *e, struct mn_nbr *n, const uint8_t mac[6], bool confirmed)
{
    memcpy(n->mac, mac, 6);
    mn_timer_disarm(&e->wheel, &n->timer);
    n->state = confirmed ? MN_NBR_REACHABLE : MN_NBR_STALE;
    n->confirmed_ns = e->now_ns;
    n->tries = 0;
    while (n->queue != NULL) {
        struct mn_pkt *pkt = n->queue;

        n->queue = pkt->link;
        n->queued--;
        e->nbr_queued--;
        nbr_transmit(e, n, pkt);
    }
}

void mn_nbr_suspect(struct mn_engine *e, uint32_t nbr)
{
    struct mn_nbr *n;

    if (nbr == MN_NIL) {
        return;
    }
    n = &e->nbrs[nbr];
    if (n->state == MN_NBR_REACHABLE || n->state == MN_NBR_STALE) {
        n->state = MN_NBR_PROBE;
        n->tries = 0;
        nbr_ask(e, n);
    }
}

void mn_nbr_confirm(struct mn_engine *e, uint32_t nbr)
{
    struct mn_nbr *n = &e->nbrs[nbr];

    if (MN_LIKELY(n->state == MN_NBR_REACHABLE)) {
        n->confirmed_ns = e->now_ns;
    } else if (n->state == MN_NBR_STALE || n->state == MN_NBR_PROBE) {
        n->state = MN_NBR_REACHABLE;
        n->confirmed_ns = e->now_ns;
        mn_timer_disarm(&e->wheel, &n->timer);
    }
}

/* A station may not claim these for itself. */
static bool arp_sender_ok(const struct mn_engine *e, const struct mn_arp *arp)
{
    return !mn_eth_is_group(arp->sender_mac) && !mn_ip_is_martian_source(arp->sender_ip) &&
           !mn_ip_is_broadcast(e, arp->sender_ip) && arp->sender_ip != e->cfg.ip;
}

static void arp_contradicts(struct mn_engine *e, struct mn_nbr *n, const struct mn_arp *arp)
{
    if (!mn_handoff_is_copy(e)) {
        e->stats.drop_arp_unsolicited++; /* once, where it came in */
    }
    if (memcmp(n->mac, arp->sender_mac, 6) != 0) {
        mn_nbr_suspect(e, (uint32_t)(n - e->nbrs));
    }
}

static void arp_request_rx(struct mn_engine *e, const struct mn_arp *arp)
{
    if (arp->target_ip != e->cfg.ip) {
        e->stats.drop_arp_other++;
        return;
    }
    mn_handoff_all(e);
    if (!mn_handoff_is_copy(e)) {
        arp_send(e, MN_ARP_REPLY, arp->sender_mac, arp->sender_mac, arp->sender_ip);
    }
    if (!arp_sender_ok(e, arp)) {
        return;
    }
    uint32_t i = mn_nbr_get(e, arp->sender_ip);

    if (i == MN_NIL) {
        return;
    }
    struct mn_nbr *n = &e->nbrs[i];
    if (n->state == MN_NBR_INCOMPLETE || n->state == MN_NBR_FAILED) {
        nbr_learn(e, n, arp->sender_mac, false);
    } else if (n->state != MN_NBR_STATIC && memcmp(n->mac, arp->sender_mac, 6) != 0) {
        arp_contradicts(e, n, arp);
    }
}

void mn_arp_rx(struct mn_engine *e, const uint8_t *p, uint32_t len)
{
    struct mn_arp arp;

    if (mn_arp_parse(p, len, &arp) < 0) {
        e->stats.drop_arp_bad++;
        return;
    }
    /* A group address as the sender's would make us answer to all (F6). */
    if (mn_eth_is_group(arp.sender_mac)) {
        e->stats.drop_arp_bad++;
        return;
    }
    if (arp.op == MN_ARP_REQUEST) {
        arp_request_rx(e, &arp);
        return;
    }
    uint32_t i = mn_nbr_find(e, arp.sender_ip);

    /* Another engine may have asked. */
    mn_handoff_all(e);
    if (i == MN_NIL && mn_handoff_is_copy(e)) {
        return;
    }
    if (i == MN_NIL || !arp_sender_ok(e, &arp)) {
        e->stats.drop_arp_unsolicited++;
        return;
    }
    struct mn_nbr *n = &e->nbrs[i];
    if (n->state == MN_NBR_INCOMPLETE) {
        nbr_learn(e, n, arp.sender_mac, true);
    } else if (n->state == MN_NBR_PROBE && memcmp(n->mac, arp.sender_mac, 6) == 0) {
        nbr_learn(e, n, arp.sender_mac, true);
    } else if (n->state == MN_NBR_STATIC) {
        e->stats.drop_arp_unsolicited++;
    } else {
        arp_contradicts(e, n, &arp);
    }
}

void mn_nbr_close(struct mn_engine *e)
{
    for (uint32_t i = 0; i < e->nbr_pool.high; i++) {
        if (e->nbrs[i].state != MN_NBR_FREE) {
            nbr_drop_queue(e, &e->nbrs[i], false);
        }
    }
}

int mn_engine_neighbor(struct mn_engine *e, uint32_t ip, const uint8_t mac[6])
{
    if (ip == 0 || mn_ip_is_local(e, ip) || mn_eth_is_group(mac)) {
        return -EINVAL;
    }
    uint32_t i = mn_nbr_get(e, ip);

    if (i == MN_NIL) {
        return -ENOBUFS;
    }
    nbr_learn(e, &e->nbrs[i], mac, true);
    e->nbrs[i].state = MN_NBR_STATIC;
    return 0;
}
