/* SPDX-License-Identifier: MIT */
/* The way out: packets, next hops, the queue to the NIC and the loop to ourselves. */
#include "engine_int.h"

struct mn_pkt *mn_tx_alloc(struct mn_engine *e, uint32_t bytes)
{
    struct mn_pkt *pkt = e->nic->ops->pkt_alloc(e->nic, 0, bytes);

    if (MN_UNLIKELY(pkt == NULL)) {
        e->stats.drop_tx_nobuf++;
        return NULL;
    }
    return pkt;
}

void mn_tx_flush(struct mn_engine *e)
{
    if (e->tx_n == 0) {
        e->tx_blocked = false;
        return;
    }
    uint32_t sent = e->nic->ops->tx_burst(e->nic, 0, e->tx, e->tx_n);

    MN_ASSERT(sent <= e->tx_n);
    e->tx_n -= sent;
    if (e->tx_n > 0) {
        memmove(e->tx, e->tx + sent, e->tx_n * sizeof(e->tx[0]));
    }
    e->tx_blocked = e->tx_n > 0;
}

bool mn_tx_room(struct mn_engine *e, uint32_t frames)
{
    if (MN_TX_BATCH - e->tx_n < frames) {
        mn_tx_flush(e);
    }
    return MN_TX_BATCH - e->tx_n >= frames;
}

void mn_tx_frame(struct mn_engine *e, struct mn_pkt *pkt)
{
    if (!mn_tx_room(e, 1)) {
        e->stats.drop_tx_queue++;
        e->nic->ops->pkt_free(e->nic, 0, pkt);
        return;
    }
    e->stats.tx_frames++;
    e->stats.tx_bytes += pkt->len;
    e->tx[e->tx_n++] = pkt;
}

bool mn_ip_is_local(const struct mn_engine *e, uint32_t ip)
{
    return ip == e->cfg.ip;
}

static uint32_t prefix_mask(const struct mn_engine *e)
{
    return e->cfg.prefix == 0 ? 0 : UINT32_MAX << (32 - e->cfg.prefix);
}

/* Limited and directed broadcast; a /31 or /32 has none of the latter (RFC 3021). */
bool mn_ip_is_broadcast(const struct mn_engine *e, uint32_t ip)
{
    return ip == e->broadcast[0] || ip == e->broadcast[1] || mn_ip_is_limited_broadcast(ip);
}

void mn_ip_open(struct mn_engine *e)
{
    uint32_t mask = prefix_mask(e);
    bool has = e->cfg.prefix > 0 && e->cfg.prefix < 31;

    e->broadcast[0] = has ? e->cfg.ip & mask : UINT32_MAX;
    e->broadcast[1] = has ? e->cfg.ip | ~mask : UINT32_MAX;
}

/* 0 when there is no way to dst. */
static uint32_t next_hop(const struct mn_engine *e, uint32_t dst)
{
    uint32_t mask = prefix_mask(e);

    return (dst & mask) == (e->cfg.ip & mask) ? dst : e->cfg.gateway;
}

uint32_t mn_ip_known_hop(const struct mn_engine *e, uint32_t dst, uint32_t nbr)
{
    return nbr != MN_NIL && e->nbrs[nbr].ip == next_hop(e, dst) ? nbr : MN_NIL;
}

uint32_t mn_ip_route(struct mn_engine *e, uint32_t dst)
{
    uint32_t hop = next_hop(e, dst);

    return hop == 0 ? MN_NIL : mn_nbr_get(e, hop);
}

static void loop_output(struct mn_engine *e, struct mn_pkt *pkt)
{
    if (e->loop_tail - e->loop_head == e->cfg.loop_slots) {
        e->stats.drop_loop_full++;
        e->nic->ops->pkt_free(e->nic, 0, pkt);
        return;
    }
    mn_eth_emit(pkt->data, e->nic->mac, e->nic->mac, MN_ETHERTYPE_IPV4);
    e->loop[e->loop_tail++ & (e->cfg.loop_slots - 1)] = pkt;
    e->stats.loop_frames++;
}

void mn_ip_output(struct mn_engine *e, struct mn_pkt *pkt, uint32_t dst, uint32_t nbr)
{
    if (mn_ip_is_local(e, dst)) {
        loop_output(e, pkt);
        return;
    }
    uint32_t hop = next_hop(e, dst);

    if (nbr == MN_NIL || e->nbrs[nbr].ip != hop) {
        nbr = hop == 0 ? MN_NIL : mn_nbr_get(e, hop);
    }
    if (nbr == MN_NIL) {
        e->stats.drop_arp_full++;
        e->nic->ops->pkt_free(e->nic, 0, pkt);
        return;
    }
    mn_nbr_output(e, nbr, pkt);
}
