/* SPDX-License-Identifier: MIT */
/* The engine from inside: what its files share. */
#ifndef MN_ENGINE_INT_H
#define MN_ENGINE_INT_H

#include "engine.h"
#include "lane.h"
#include "mnp.h"
#include "rss.h"
#include "siphash.h"
#include "tcb.h"

#define MN_TX_BATCH 64u

/* A pool hands out indices: returned ones first, then untouched ones up to `cap`. */
struct mn_pool {
    uint32_t *free; /* stack of returned indices */
    uint32_t n_free, high, cap;
};

static inline uint32_t mn_pool_get(struct mn_pool *p)
{
    if (p->n_free > 0) {
        return p->free[--p->n_free];
    }
    return p->high < p->cap ? p->high++ : MN_NIL;
}

static inline void mn_pool_put(struct mn_pool *p, uint32_t i)
{
    MN_ASSERT(i < p->high && p->n_free < p->cap);
    p->free[p->n_free++] = i;
}

static inline uint32_t mn_pool_used(const struct mn_pool *p)
{
    return p->high - p->n_free;
}

enum mn_nbr_state {
    MN_NBR_FREE = 0,
    MN_NBR_INCOMPLETE,
    MN_NBR_REACHABLE,
    MN_NBR_STALE,
    MN_NBR_PROBE,
    MN_NBR_FAILED,
    MN_NBR_STATIC
};

struct mn_nbr {
    uint32_t ip;
    uint32_t hash_next;
    uint8_t mac[6];
    uint8_t state;
    uint8_t tries;
    uint64_t confirmed_ns, used_ns;
    struct mn_timer timer;
    struct mn_pkt *queue; /* frames that wait for the address, oldest first */
    uint32_t queued;
};

struct mn_listener {
    uint32_t ip; /* 0: any address of ours */
    uint16_t port;
    uint8_t proto;
    uint8_t live;
    uint32_t lane;
    uint32_t id; /* what the application knows it by: never 0 */
    uint32_t hash_next;
    uint32_t backlog;
    uint32_t half_open;
    uint32_t pending; /* accepted, not yet taken by the application */
};

/* So many events until refill_ns, then as many again. */
struct mn_bucket {
    uint64_t refill_ns;
    uint32_t tokens;
};

/* Connections by age, linked through age_next. */
struct mn_age_list {
    uint32_t head, tail;
};

enum { MN_TIMER_TCB = 0, MN_TIMER_NBR = 1, MN_TIMER_LANE = 2 };

struct mn_engine {
    struct mn_config cfg;
    struct mn_nic *nic;
    struct mn_host host;
    uint64_t now_ns;
    struct mn_wheel wheel;
    struct mn_stats stats;
    uint64_t key[2];     /* flow table, ISNs, ports: different tweaks */
    uint64_t rng;        /* state of the generator seeded from the secret */
    uint32_t isn_forced; /* tests: valid when isn_is_forced */
    bool isn_is_forced;
    bool isn_has_floor; /* a connection is being reopened out of TIME-WAIT: */
    uint32_t isn_floor; /* its numbers start above those of the old one */
    bool work_left;     /* the last pass stopped at a bound */
    bool tx_blocked;    /* the NIC took less than it was given */

    /* Frames on their way out, and frames to ourselves. */
    struct mn_pkt *tx[MN_TX_BATCH];
    uint32_t tx_n;
    struct mn_pkt **loop;
    uint32_t loop_head, loop_tail;

    struct mn_tcb *tcbs;
    struct mn_pool tcb_pool;
    struct mn_mcb *mcbs; /* of connections of mnp */
    struct mn_pool mcb_pool;
    /* Hash chains link by index + 1, so that zeroed memory is an empty table that nobody touched.
     */
    uint32_t *flow_buckets;
    uint32_t flow_mask;
    uint32_t last_hit; /* the connection found last: spares the hash for a busy one */
    uint32_t half_open;
    uint32_t time_wait;
    struct mn_age_list half_open_age, time_wait_age;
    uint32_t dirty_head, dirty_tail;

    struct mn_range *ranges;
    struct mn_pool range_pool;
    uint32_t ooo_ranges_used;
    struct mn_block *blocks; /* see blocks.c */
    struct mn_pool block_pool;
    uint32_t *lane_blocks; /* how many each lane has */
    uint32_t blocks_each, blocks_promised;

    uint32_t broadcast[2]; /* of our network: all zeros and all ones */

    struct mn_listener *listeners;
    struct mn_pool listener_pool;
    uint32_t *listen_buckets;
    uint32_t listen_mask;
    uint32_t next_listener_id;

    struct mn_nbr *nbrs;
    struct mn_pool nbr_pool;
    uint32_t *nbr_buckets;
    uint32_t nbr_mask;
    uint32_t nbr_queued; /* frames that wait for an address, all neighbours together */

    struct mn_lane **lanes; /* by number; NULL: free */
    uint32_t n_lanes, lane_turn;

    struct mn_bucket rst_bucket, icmp_bucket;
    uint32_t port_offset;

    struct mn_share share; /* n is 0 or 1: the engine is alone */
    bool rss_useful;       /* ports can be found that the NIC brings to each engine */
    bool rx_looped;
    struct mn_pkt *rx_pkt; /* the frame that is being received */
};

static inline struct mn_tcb *mn_tcb_at(const struct mn_engine *e, uint32_t i)
{
    return &e->tcbs[i];
}

/* Both transports use the connection block; one of mnp has a struct mn_mcb besides. */
static inline uint8_t mn_tcb_l4(const struct mn_tcb *t)
{
    return t->mcb == MN_NIL ? MN_IPPROTO_TCP : MN_IPPROTO_UDP;
}

static inline struct mn_mcb *mn_mcb_of(const struct mn_engine *e, const struct mn_tcb *t)
{
    return &e->mcbs[t->mcb];
}

static inline uint8_t mn_proto_l4(uint32_t proto)
{
    return proto == MN_PROTO_UDP ? MN_IPPROTO_UDP : MN_IPPROTO_TCP;
}

static inline uint32_t mn_tcb_index(const struct mn_engine *e, const struct mn_tcb *t)
{
    return (uint32_t)(t - e->tcbs);
}

/* engine.c */
uint64_t mn_random(struct mn_engine *e);
bool mn_bucket_take(struct mn_engine *e, struct mn_bucket *b, uint32_t per_s);
void mn_engine_input(struct mn_engine *e, struct mn_pkt *pkt, bool looped); /* frees pkt */

/* blocks.c: `lane` is whose share it counts against, MN_NIL: nobody's yet. MN_NIL: none for it. */
void mn_blocks_open(struct mn_engine *e);
uint32_t mn_block_get(struct mn_engine *e, uint32_t lane);
void mn_block_put(struct mn_engine *e, uint32_t b);
void mn_blocks_put(struct mn_engine *e, uint32_t b); /* and all behind it */

/* ip.c: the way out. A packet is handed in with its Ethernet header still to be filled; the data
 * start at it. */
struct mn_pkt *mn_tx_alloc(struct mn_engine *e, uint32_t bytes);
bool mn_tx_room(struct mn_engine *e, uint32_t frames);
void mn_tx_frame(struct mn_engine *e, struct mn_pkt *pkt); /* a finished frame to the NIC */
void mn_tx_flush(struct mn_engine *e);
/* Next hop for dst: its neighbour entry (made if need be), MN_NIL without a route or room. */
uint32_t mn_ip_route(struct mn_engine *e, uint32_t dst);
/* nbr, if it still is the next hop to dst and not recycled for another address; else MN_NIL. */
uint32_t mn_ip_known_hop(const struct mn_engine *e, uint32_t dst, uint32_t nbr);
bool mn_ip_is_local(const struct mn_engine *e, uint32_t ip);
void mn_ip_open(struct mn_engine *e);
bool mn_ip_is_broadcast(const struct mn_engine *e, uint32_t ip);
/* Sends an IPv4 packet (Ethernet header room in front) to its next hop; nbr may be MN_NIL: then it
 * is looked up. */
void mn_ip_output(struct mn_engine *e, struct mn_pkt *pkt, uint32_t dst, uint32_t nbr);

/* arp.c */
void mn_arp_rx(struct mn_engine *e, const uint8_t *p, uint32_t len);
uint32_t mn_nbr_find(struct mn_engine *e, uint32_t ip);
uint32_t mn_nbr_get(struct mn_engine *e,
                    uint32_t ip); /* finds or makes; MN_NIL when the table is full */
void mn_nbr_output(struct mn_engine *e, uint32_t nbr, struct mn_pkt *pkt);
void mn_nbr_fire(struct mn_engine *e, struct mn_nbr *n);
void mn_nbr_suspect(struct mn_engine *e, uint32_t nbr); /* a transport doubts it (R1) */
void mn_nbr_confirm(struct mn_engine *e, uint32_t nbr); /* a transport sees it answer */
void mn_nbr_close(struct mn_engine *e);

/* icmp.c */
void mn_icmp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const uint8_t *ip_packet);
void mn_icmp_port_unreachable(struct mn_engine *e, const struct mn_ipv4 *ip,
                              const uint8_t *ip_packet);
/* csum_known: the NIC vouches for the checksum. */
void mn_udp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const uint8_t *ip_packet,
               bool dst_is_group, bool csum_known);

/* flow.c: connections and listeners by address. */
/* l4: MN_IPPROTO_TCP or MN_IPPROTO_UDP (mnp). */
struct mn_tcb *mn_flow_find(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint16_t lport,
                            uint32_t raddr, uint16_t rport);
void mn_flow_insert(struct mn_engine *e, struct mn_tcb *t);
void mn_flow_remove(struct mn_engine *e, struct mn_tcb *t);
uint32_t mn_listener_find(struct mn_engine *e, uint8_t l4, uint32_t ip, uint16_t port);
/* id > 0, or -EADDRINUSE, -ENOBUFS. */
int64_t mn_listener_add(struct mn_engine *e, uint32_t ip, uint16_t port, uint8_t proto,
                        uint32_t lane, uint32_t backlog);
void mn_listener_remove(struct mn_engine *e, uint32_t index);
int32_t mn_port_choose(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint32_t raddr,
                       uint16_t rport);

#endif
