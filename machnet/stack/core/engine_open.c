/* SPDX-License-Identifier: MIT */
/* Configuration, memory and the outside view of an engine: open, close, usage, sockets. */
#include "engine_int.h"

void mn_config_defaults(struct mn_config *c)
{
    *c = (struct mn_config){
        .prefix = 24,
        .flows_max = 65536,
        .listeners_max = 1024,
        .neighbors_max = 1024,
        .lanes_max = 64,
        .ooo_blocks_max = 8192,
        .ooo_ranges_max = 64,
        .sack_ranges_max = 64,
        .loop_slots = 1024,
        .poll_burst = 64,
        .poll_descs = 256,
        .mss_min_bytes = 88,
        .rcv_buf_bytes = 512u << 10,
        .initial_window = 10,
        .rto_initial_us = 1000000,
        .rto_min_us = 200000,
        .rto_max_us = 60000000,
        .delack_us = 40000,
        .msl_ms = 30000,
        .fin_wait2_ms = 60000,
        .r1_retries = 3,
        .user_timeout_ms = 300000,
        .syn_timeout_ms = 180000,
        .syn_backlog_max = 1024,
        .app_exit_linger_ms = 5000,
        .eof_linger_ms = 5000,
        .keepalive_idle_s = 7200,
        .keepalive_interval_s = 75,
        .keepalive_count = 9,
        .large_progress_ms = 10000,
        .arp_reachable_ms = 30000,
        .arp_retry_ms = 1000,
        .arp_retries = 3,
        .arp_queue_pkts = 16,
        .rst_per_s = 1000,
        .icmp_per_s = 1000,
        .challenge_per_s = 10,
        .mnp_flows_max = 4096,
        .mnp_rto_initial_us = 10000,
        .mnp_rto_min_us = 1000,
        .mnp_rto_max_us = 1000000,
        .mnp_delack_us = 50,
        .mnp_window_packets = 256,
        .mnp_user_timeout_ms = 10000,
        .mnp_msl_ms = 1000,
        .mnp_extended = true,
        .ttl = 64,
        .timestamps = true,
        .sack = true,
        .wscale = true,
        .nagle_framed = false,
        .nagle_stream = true,
    };
}

struct range_check {
    const char *name;
    uint32_t value, low, high;
};

const char *mn_config_check(const struct mn_config *c)
{
    const struct range_check checks[] = {
        {"prefix", c->prefix, 0, 32},
        {"flows_max", c->flows_max, 1, 1u << 20},
        {"listeners_max", c->listeners_max, 1, 65535},
        {"neighbors_max", c->neighbors_max, 8, 65536},
        {"lanes_max", c->lanes_max, 1, 1024},
        {"ooo_blocks_max", c->ooo_blocks_max, 1, 1u << 24},
        {"ooo_ranges_max", c->ooo_ranges_max, 4, 1024},
        {"sack_ranges_max", c->sack_ranges_max, 4, 1024},
        {"loop_slots", c->loop_slots, 2, 1u << 20},
        {"poll_burst", c->poll_burst, 1, 256},
        {"poll_descs", c->poll_descs, 1, 1u << 20},
        {"mss_min_bytes", c->mss_min_bytes, 48, 536},
        {"rcv_buf_bytes", c->rcv_buf_bytes, 2048, 1u << 30},
        {"initial_window", c->initial_window, 1, 10},
        {"rto_initial_us", c->rto_initial_us, 1000, 60000000},
        {"rto_min_us", c->rto_min_us, 100, 60000000},
        {"rto_max_us", c->rto_max_us, 1000000, 600000000},
        {"delack_us", c->delack_us, 0, 499999},
        {"msl_ms", c->msl_ms, 1, 240000},
        {"fin_wait2_ms", c->fin_wait2_ms, 1, 3600000},
        {"r1_retries", c->r1_retries, 3, 255},
        {"user_timeout_ms", c->user_timeout_ms, 100, 4000000000u},
        {"syn_timeout_ms", c->syn_timeout_ms, 100, 4000000000u},
        {"syn_backlog_max", c->syn_backlog_max, 1, 1u << 20},
        {"keepalive_idle_s", c->keepalive_idle_s, 1, 1u << 20},
        {"keepalive_interval_s", c->keepalive_interval_s, 1, 1u << 20},
        {"keepalive_count", c->keepalive_count, 1, 255},
        {"large_progress_ms", c->large_progress_ms, 1, 4000000000u},
        {"arp_reachable_ms", c->arp_reachable_ms, 1, 4000000000u},
        {"arp_retry_ms", c->arp_retry_ms, 1, 60000},
        {"arp_retries", c->arp_retries, 1, 100},
        {"arp_queue_pkts", c->arp_queue_pkts, 1, 1024},
        {"rst_per_s", c->rst_per_s, 0, 1u << 30},
        {"icmp_per_s", c->icmp_per_s, 0, 1u << 30},
        {"challenge_per_s", c->challenge_per_s, 0, 65535},
        {"mnp_flows_max", c->mnp_flows_max, 1, 1u << 20},
        {"mnp_rto_initial_us", c->mnp_rto_initial_us, 100, 60000000},
        {"mnp_rto_min_us", c->mnp_rto_min_us, 100, 60000000},
        {"mnp_rto_max_us", c->mnp_rto_max_us, 1000, 600000000},
        {"mnp_delack_us", c->mnp_delack_us, 0, 500},
        {"mnp_window_packets", c->mnp_window_packets, 2, MN_MNP_WND_MAX},
        {"mnp_user_timeout_ms", c->mnp_user_timeout_ms, 100, 4000000000u},
        {"mnp_msl_ms", c->mnp_msl_ms, 1, 240000},
        {"ttl", c->ttl, 1, 255},
        {"dscp", c->dscp, 0, 63},
    };

    for (size_t i = 0; i < MN_ARRAY_LEN(checks); i++) {
        if (checks[i].value < checks[i].low || checks[i].value > checks[i].high) {
            return checks[i].name;
        }
    }
    if ((c->loop_slots & (c->loop_slots - 1)) != 0) {
        return "loop_slots";
    }
    if (c->rto_min_us > c->rto_max_us) {
        return "rto_min_us";
    }
    if (c->mnp_rto_min_us > c->mnp_rto_max_us) {
        return "mnp_rto_min_us";
    }
    if (c->ip == 0 || c->ip >> 24 == 127 || c->ip >> 28 >= 0xe) {
        return "ip";
    }
    return NULL;
}

static uint32_t pow2_at_least(uint32_t n)
{
    uint32_t p = 1;

    while (p < n) {
        p <<= 1;
    }
    return p;
}

/* Hands out the memory; with base NULL it only counts. */
struct arena {
    uint8_t *base;
    uint64_t used;
};

static void *take(struct arena *a, uint64_t n, uint64_t size)
{
    uint64_t off = (a->used + 63) & ~UINT64_C(63);

    a->used = off + n * size;
    return a->base == NULL ? NULL : a->base + off;
}

static void take_pool(struct arena *a, struct mn_pool *p, uint32_t cap)
{
    p->cap = cap;
    p->free = take(a, cap, sizeof(uint32_t));
}

static void lay_out(struct arena *a, const struct mn_config *c, struct mn_engine *e)
{
    uint32_t ranges = (uint32_t)mn_min_u64((uint64_t)c->ooo_blocks_max * 4 + 1024, 1u << 24);

    (void)take(a, 1, sizeof(struct mn_engine));
    e->tcbs = take(a, c->flows_max, sizeof(struct mn_tcb));
    take_pool(a, &e->tcb_pool, c->flows_max);
    e->mcbs = take(a, mn_min_u32(c->mnp_flows_max, c->flows_max), sizeof(struct mn_mcb));
    take_pool(a, &e->mcb_pool, mn_min_u32(c->mnp_flows_max, c->flows_max));
    e->flow_mask = pow2_at_least(c->flows_max) - 1;
    e->flow_buckets = take(a, e->flow_mask + 1, sizeof(uint32_t));
    e->ranges = take(a, ranges, sizeof(struct mn_range));
    take_pool(a, &e->range_pool, ranges);
    e->blocks = take(a, c->ooo_blocks_max, sizeof(struct mn_block));
    take_pool(a, &e->block_pool, c->ooo_blocks_max);
    e->lane_blocks = take(a, c->lanes_max + 1, sizeof(uint32_t));
    e->listeners = take(a, c->listeners_max, sizeof(struct mn_listener));
    take_pool(a, &e->listener_pool, c->listeners_max);
    e->listen_mask = pow2_at_least(c->listeners_max) - 1;
    e->listen_buckets = take(a, e->listen_mask + 1, sizeof(uint32_t));
    e->nbrs = take(a, c->neighbors_max, sizeof(struct mn_nbr));
    take_pool(a, &e->nbr_pool, c->neighbors_max);
    e->nbr_mask = pow2_at_least(c->neighbors_max) - 1;
    e->nbr_buckets = take(a, e->nbr_mask + 1, sizeof(uint32_t));
    e->lanes = take(a, c->lanes_max, sizeof(struct mn_lane *));
    e->loop = take(a, c->loop_slots, sizeof(struct mn_pkt *));
}

uint64_t mn_engine_bytes(const struct mn_config *cfg)
{
    struct mn_engine e;
    struct arena a = {0};

    if (mn_config_check(cfg) != NULL) {
        return 0;
    }
    lay_out(&a, cfg, &e);
    return (a.used + 63) & ~UINT64_C(63);
}

/* Headers, options and the smallest segment that a peer may ask for. */
#define MN_MTU_MIN(cfg) (MN_IPV4_HLEN + MN_TCP_HLEN_MAX + (cfg)->mss_min_bytes)

int mn_engine_open(struct mn_engine **out, void *mem, uint64_t mem_bytes,
                   const struct mn_config *cfg, struct mn_nic *nic, const struct mn_host *host,
                   uint64_t now_ns)
{
    struct arena a = {.base = mem};
    struct mn_engine *e = mem;

    if (mn_config_check(cfg) != NULL || nic->caps.mtu < MN_MTU_MIN(cfg) ||
        nic->caps.tx_max_frame < nic->caps.mtu + MN_ETH_HLEN) {
        return -EINVAL;
    }
    if (mem_bytes < mn_engine_bytes(cfg)) {
        return -ENOMEM;
    }
    memset(e, 0, sizeof(*e));
    e->cfg = *cfg;
    e->nic = nic;
    e->host = *host;
    e->now_ns = now_ns;
    lay_out(&a, cfg, e);
    mn_blocks_open(e);
    memcpy(e->key, cfg->secret, sizeof(e->key));
    e->rng = mn_siphash2(e->key, 0x6d61636e6574ULL, now_ns);
    e->port_offset = (uint32_t)mn_random(e);
    e->half_open_age = e->time_wait_age = (struct mn_age_list){MN_NIL, MN_NIL};
    e->last_hit = e->dirty_head = e->dirty_tail = MN_NIL;
    mn_ip_open(e);
    mn_wheel_init(&e->wheel, now_ns);
    *out = e;
    return 0;
}

void mn_engine_close(struct mn_engine *e)
{
    for (uint32_t i = 0; i < e->tx_n; i++) {
        e->nic->ops->pkt_free(e->nic, 0, e->tx[i]);
    }
    while (e->loop_head != e->loop_tail) {
        e->nic->ops->pkt_free(e->nic, 0, e->loop[e->loop_head++ & (e->cfg.loop_slots - 1)]);
    }
    e->tx_n = 0;
    mn_nbr_close(e);
}

void mn_engine_usage(const struct mn_engine *e, struct mn_usage *out)
{
    *out = (struct mn_usage){
        .tcbs = mn_pool_used(&e->tcb_pool),
        .half_open = e->half_open,
        .time_wait = e->time_wait,
        .listeners = mn_pool_used(&e->listener_pool),
        .neighbors = mn_pool_used(&e->nbr_pool),
        .ooo_blocks = mn_pool_used(&e->block_pool),
        .ooo_ranges = e->ooo_ranges_used,
        .sack_ranges = mn_pool_used(&e->range_pool) - e->ooo_ranges_used,
        .loop_frames = e->loop_tail - e->loop_head,
        .timers = e->wheel.armed,
        .mnp_flows = mn_pool_used(&e->mcb_pool),
    };
    for (uint32_t i = 0; i < e->n_lanes; i++) {
        out->lanes += e->lanes[i] != NULL;
    }
}

/* A pool's entries below its high-water mark are the only ones that were ever used. */
uint32_t mn_engine_pending(const struct mn_engine *e)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < e->tcb_pool.high; i++) {
        const struct mn_tcb *t = mn_tcb_at(e, i);

        n += t->state != MN_TCP_CLOSED && (t->rtx_at != 0 || t->delack_at != 0);
    }
    for (uint32_t i = 0; i < e->nbr_pool.high; i++) {
        const struct mn_nbr *nbr = &e->nbrs[i];

        n += (nbr->state == MN_NBR_INCOMPLETE || nbr->state == MN_NBR_PROBE) &&
             mn_timer_armed(&nbr->timer);
    }
    return n;
}

/* The first timer that is due, and which: 1 retransmission, 2 persist, 3 delayed ACK, 4 waiting, 5
 * keep-alive, 0 none. */
static void next_timer(const struct mn_tcb *t, struct mn_sock_info *out)
{
    const uint64_t at[] = {t->rtx_at, t->delack_at, t->wait_at, t->keep_at};
    const uint8_t kind[] = {(t->flags & MN_TF_PERSIST) != 0 ? 2 : 1, 3, 4, 5};

    out->timer_ns = MN_NEVER;
    for (uint32_t i = 0; i < MN_ARRAY_LEN(at); i++) {
        if (at[i] != 0 && at[i] < out->timer_ns) {
            out->timer_ns = at[i];
            out->timer_kind = kind[i];
        }
    }
}

static void sock_info(const struct mn_engine *e, const struct mn_tcb *t, struct mn_sock_info *out)
{
    *out = (struct mn_sock_info){
        .local_ip = t->laddr,
        .remote_ip = t->raddr,
        .local_port = t->lport,
        .remote_port = t->rport,
        .state = t->state,
        .proto = t->mcb != MN_NIL ? MN_PROTO_UDP : MN_PROTO_TCP,
        .mss = (uint16_t)t->mss,
        .lane = MN_NIL,
        .flow = MN_FLOW_NONE,
        .snd_una = t->snd_una,
        .snd_nxt = t->snd_nxt,
        .rcv_nxt = t->rcv_nxt,
        .snd_wnd = t->snd_wnd,
        .rcv_wnd = mn_seq_gt(t->rcv_adv, t->rcv_nxt) ? t->rcv_adv - t->rcv_nxt : 0,
        .cwnd = t->cc.cwnd,
        .ssthresh = t->cc.ssthresh,
        /* Once the FIN is acknowledged snd_una is one ahead. */
        .sndq_bytes = mn_seq_gt(t->snd_end, t->snd_una) ? t->snd_end - t->snd_una : 0,
        .rcvq_bytes = t->ooo_bytes,
        .srtt_us = t->srtt_us >> 3,
        .rttvar_us = t->rttvar_us >> 2,
        .rto_us = t->rto_us,
        .retransmits = t->retransmits,
        .backoff = t->backoff,
    };
    if (t->mcb != MN_NIL) {
        out->sndq_bytes = mn_mcb_of(e, t)->snd_bytes;
    }
    next_timer(t, out);
    if (t->user != NULL && t->lane != MN_NIL) {
        const struct mn_lane *l = e->lanes[t->lane];

        /* Of those alone: the number of a lane that is gone may be another application's by now. */
        out->lane = t->lane;
        out->flow = mn_lane_flow_id(l, &l->slots[t->slot]);
        out->proto = l->slots[t->slot].proto;
        out->rcvq_bytes += l->slots[t->slot].unread_bytes;
    }
}

static void listener_info(const struct mn_listener *l, struct mn_sock_info *out)
{
    *out = (struct mn_sock_info){
        .local_ip = l->ip,
        .local_port = l->port,
        .state = MN_TCP_LISTEN,
        .proto = l->proto,
        .lane = l->lane,
        .flow = l->id,
        .rcvq_bytes = l->pending,
        .sndq_bytes = l->backlog,
        .timer_ns = MN_NEVER,
    };
}

uint32_t mn_engine_sockets(const struct mn_engine *e, uint32_t *cursor, struct mn_sock_info *out,
                           uint32_t n)
{
    uint32_t done = 0;

    for (; done < n && *cursor < e->tcb_pool.high; (*cursor)++) {
        if (mn_tcb_at(e, *cursor)->state != MN_TCP_CLOSED) {
            sock_info(e, mn_tcb_at(e, *cursor), &out[done++]);
        }
    }
    for (; done < n && *cursor < e->tcb_pool.high + e->listener_pool.high; (*cursor)++) {
        const struct mn_listener *l = &e->listeners[*cursor - e->tcb_pool.high];

        if (l->live) {
            listener_info(l, &out[done++]);
        }
    }
    return done;
}
