/* SPDX-License-Identifier: MIT */
/* The engine as a whole: its memory, one pass, and the way in from the NIC to ARP and IPv4. */
#include "engine_int.h"

uint64_t mn_random(struct mn_engine *e)
{
    uint64_t z = e->rng += 0x9e3779b97f4a7c15ULL;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

bool mn_bucket_take(struct mn_engine *e, struct mn_bucket *b, uint32_t per_s)
{
    if (e->now_ns >= b->refill_ns) {
        b->refill_ns = e->now_ns + MN_NS_PER_S;
        /* Not quite the same number each second, so that counting answers tells little (E7). */
        b->tokens = per_s - per_s / 4 + (uint32_t)(mn_random(e) % (per_s / 2 + 1));
    }
    if (b->tokens == 0) {
        return false;
    }
    b->tokens--;
    return true;
}

static void ipv4_count_bad(struct mn_stats *s, int err)
{
    switch (err) {
    case MN_WIRE_TRUNCATED:
        s->drop_ip_short++;
        break;
    case MN_WIRE_BAD_VERSION:
        s->drop_ip_version++;
        break;
    case MN_WIRE_BAD_CSUM:
        s->drop_ip_csum++;
        break;
    case MN_WIRE_FRAGMENT:
        s->drop_ip_fragment++;
        break;
    case MN_WIRE_BAD_ADDR:
        s->drop_ip_src++;
        break;
    default:
        s->drop_ip_length++;
        break;
    }
}

static void ipv4_rx(struct mn_engine *e, struct mn_pkt *pkt, const uint8_t *p, uint32_t len,
                    bool looped)
{
    struct mn_ipv4 ip;
    int err = mn_ipv4_parse(p, len, &ip);

    if (MN_UNLIKELY(err < 0)) {
        ipv4_count_bad(&e->stats, err);
        return;
    }
    bool group = mn_ip_is_multicast(ip.dst) || mn_ip_is_broadcast(e, ip.dst);
    if (MN_UNLIKELY(mn_eth_is_group(pkt->data) && !group)) {
        e->stats.drop_eth_dst++; /* RFC 1122 3.3.6: a host's packet in a frame to all */
        return;
    }
    if (MN_UNLIKELY(!mn_ip_is_local(e, ip.dst) && !group)) {
        e->stats.drop_ip_dst++;
        return;
    }
    if (MN_UNLIKELY(mn_ip_is_broadcast(e, ip.src) || (!looped && mn_ip_is_local(e, ip.src)))) {
        e->stats.drop_ip_src++;
        return;
    }
    if (MN_LIKELY(ip.proto == MN_IPPROTO_TCP && !group)) {
        mn_tcp_rx(e, pkt, &ip, looped);
    } else if (pkt->next != NULL || (group && ip.proto != MN_IPPROTO_UDP)) {
        e->stats.drop_ip_dst++;
    } else if (ip.proto == MN_IPPROTO_ICMP) {
        mn_icmp_rx(e, &ip, p);
    } else if (ip.proto == MN_IPPROTO_UDP) {
        mn_udp_rx(e, &ip, p, group,
                  pkt->csum != MN_CSUM_NONE &&
                      (looped ? e->nic->caps.tx_csum_udp : e->nic->caps.rx_csum_trusted));
    } else {
        e->stats.drop_ip_proto++;
    }
}

/* Frames of several pieces must have all headers in the first: nothing else here looks further. */
#define CHAIN_HEADERS (MN_ETH_HLEN + MN_IPV4_HLEN_MAX + MN_TCP_HLEN_MAX)

static void eth_rx(struct mn_engine *e, struct mn_pkt *pkt, bool looped)
{
    struct mn_eth eth;
    uint32_t total = pkt->len;

    for (const struct mn_pkt *more = pkt->next; more != NULL; more = more->next) {
        total += more->len;
    }
    if (MN_LIKELY((pkt->flags & MN_PKT_HANDED) == 0)) {
        e->stats.rx_bytes += total;
    }
    if (MN_UNLIKELY(pkt->next != NULL && pkt->len < CHAIN_HEADERS)) {
        e->stats.drop_eth_short++;
        return;
    }
    int err = mn_eth_parse(pkt->data, pkt->len, &eth);
    if (MN_UNLIKELY(err < 0)) {
        if (err == MN_WIRE_TRUNCATED) {
            e->stats.drop_eth_short++;
        } else {
            e->stats.drop_eth_type++;
        }
        return;
    }
    if (MN_UNLIKELY(!looped && !mn_eth_is_group(eth.dst) && memcmp(eth.dst, e->nic->mac, 6) != 0)) {
        e->stats.drop_eth_dst++;
        return;
    }
    if (MN_LIKELY(eth.type == MN_ETHERTYPE_IPV4)) {
        ipv4_rx(e, pkt, eth.payload, total - MN_ETH_HLEN, looped);
    } else if (eth.type == MN_ETHERTYPE_ARP && pkt->next == NULL) {
        mn_arp_rx(e, eth.payload, eth.payload_len);
    } else {
        e->stats.drop_eth_type++;
    }
}

void mn_engine_input(struct mn_engine *e, struct mn_pkt *pkt, bool looped)
{
    if (MN_LIKELY((pkt->flags & MN_PKT_HANDED) == 0)) {
        e->stats.rx_frames++;
    } else {
        e->stats.handoff_received++;
        looped = (pkt->flags & MN_PKT_LOOPED) != 0;
    }
    e->rx_pkt = pkt;
    e->rx_looped = looped;
    eth_rx(e, pkt, looped);
    e->rx_pkt = NULL;
    e->nic->ops->pkt_free(e->nic, 0, pkt);
}

static uint32_t receive(struct mn_engine *e)
{
    struct mn_pkt *pkts[256];
    uint32_t n = e->nic->ops->rx_burst(e->nic, 0, pkts, e->cfg.poll_burst);
    uint32_t looped = e->loop_tail - e->loop_head;

    for (uint32_t i = 0; i < n; i++) {
        if (i + 1 < n) {
            __builtin_prefetch(pkts[i + 1]->data);
        }
        mn_engine_input(e, pkts[i], false);
    }
    for (uint32_t i = 0; i < looped; i++) {
        mn_engine_input(e, e->loop[e->loop_head++ & (e->cfg.loop_slots - 1)], true);
    }
    if (n == e->cfg.poll_burst) {
        e->work_left = true;
    }
    return n + looped;
}

static void fire(struct mn_engine *e, struct mn_timer *timer)
{
    switch (timer->kind) {
    case MN_TIMER_TCB:
        mn_tcp_fire(e, (struct mn_tcb *)((uint8_t *)timer - offsetof(struct mn_tcb, timer)));
        break;
    case MN_TIMER_NBR:
        mn_nbr_fire(e, (struct mn_nbr *)((uint8_t *)timer - offsetof(struct mn_nbr, timer)));
        break;
    default:
        mn_lane_fire(e, (struct mn_lane *)((uint8_t *)timer - offsetof(struct mn_lane, timer)));
        break;
    }
}

#define TIMERS_PER_PASS 1024u

static uint32_t run_timers(struct mn_engine *e)
{
    for (uint32_t n = 0; n < TIMERS_PER_PASS; n++) {
        struct mn_timer *timer = mn_wheel_expire(&e->wheel, e->now_ns);

        if (timer == NULL) {
            return n;
        }
        fire(e, timer);
    }
    e->work_left = true;
    return TIMERS_PER_PASS;
}

/* Sends what this pass brought about. A connection that finds the NIC full is put back and waits
 * for the next pass. */
static void run_output(struct mn_engine *e)
{
    uint32_t last = e->dirty_tail;

    while (e->dirty_head != MN_NIL) {
        bool end = e->dirty_head == last;
        struct mn_tcb *t = mn_tcp_next_dirty(e);

        mn_tcp_output(e, t);
        if (end || e->tx_blocked) {
            break;
        }
    }
    if (e->dirty_head != MN_NIL) {
        e->work_left = true;
    }
}

uint32_t mn_engine_poll(struct mn_engine *e, uint64_t now_ns)
{
    uint32_t done;

    e->now_ns = mn_max_u64(e->now_ns, now_ns);
    e->work_left = false;
    done = 0;
    /* What applications have written goes out before the NIC is asked for more: an empty answer of
     * a device may take as long as sending. */
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        struct mn_lane *l = e->lanes[(e->lane_turn + i) % e->n_lanes];

        if (l != NULL && mn_lane_has_work(l)) {
            mn_lane_poll(e, l);
            done++;
        }
    }
    e->lane_turn++;
    if (e->dirty_head != MN_NIL) {
        run_output(e);
        mn_tx_flush(e);
    }
    done += receive(e);
    done += run_timers(e);
    run_output(e);
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL) {
            mn_lane_publish(e, e->lanes[i]);
        }
    }
    mn_tx_flush(e);
    if (e->loop_head != e->loop_tail) {
        e->work_left = true;
    }
    return done;
}

#define TX_RETRY_NS (20 * MN_NS_PER_US)

uint64_t mn_engine_deadline(const struct mn_engine *e)
{
    uint64_t at = mn_wheel_deadline(&e->wheel);

    if (e->tx_blocked) {
        at = mn_min_u64(at, e->now_ns + TX_RETRY_NS);
    } else if (e->work_left) {
        return e->now_ns;
    }
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL && mn_lane_has_work(e->lanes[i])) {
            return e->now_ns;
        }
    }
    return mn_max_u64(at, e->now_ns);
}

bool mn_engine_prepare_sleep(struct mn_engine *e)
{
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL) {
            atomic_store_explicit(&e->lanes[i]->sh->engine_sleeps, 1, memory_order_relaxed);
        }
    }
    atomic_thread_fence(memory_order_seq_cst);
    return mn_engine_deadline(e) > e->now_ns;
}

void mn_engine_cancel_sleep(struct mn_engine *e)
{
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        if (e->lanes[i] != NULL) {
            atomic_store_explicit(&e->lanes[i]->sh->engine_sleeps, 0, memory_order_relaxed);
        }
    }
}

const struct mn_stats *mn_engine_stats(const struct mn_engine *e)
{
    return &e->stats;
}
