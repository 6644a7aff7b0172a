/* SPDX-License-Identifier: MIT */
/* Connections and listeners by address: chained hash tables under a secret key, and the choice of
 * local ports. */
#include "handoff.h"

enum { USE_TABLE = 1, USE_LISTEN = 2, USE_PORT = 3, USE_TABLE_UDP = 4 };

#define PORT_FIRST 32768u
#define PORT_COUNT 28232u /* up to 60999, Linux's range */
#define PORT_TRIES                                                                                 \
    1024u /* then nearly all of them are taken, and the search must not hold up a pass */
/* Of several engines each has some of the ports only. */
#define PORT_TRIES_SHARED 8192u

/* Connections of both transports are in one table; the same addresses and ports may stand for one
 * of each. */
static uint32_t flow_bucket(const struct mn_engine *e, uint8_t l4, uint32_t laddr, uint16_t lport,
                            uint32_t raddr, uint16_t rport)
{
    uint8_t use = l4 == MN_IPPROTO_TCP ? USE_TABLE : USE_TABLE_UDP;

    return (uint32_t)mn_siphash_flow(e->key, laddr, lport, raddr, rport, use) & e->flow_mask;
}

static bool flow_is(const struct mn_tcb *t, uint8_t l4, uint32_t laddr, uint16_t lport,
                    uint32_t raddr, uint16_t rport)
{
    return t->raddr == raddr && t->rport == rport && t->lport == lport && t->laddr == laddr &&
           mn_tcb_l4(t) == l4;
}

struct mn_tcb *mn_flow_find(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint16_t lport,
                            uint32_t raddr, uint16_t rport)
{
    if (e->last_hit != MN_NIL) {
        struct mn_tcb *t = mn_tcb_at(e, e->last_hit);

        if (MN_LIKELY(flow_is(t, l4, laddr, lport, raddr, rport))) {
            return t;
        }
    }
    uint32_t link = e->flow_buckets[flow_bucket(e, l4, laddr, lport, raddr, rport)];

    while (link != 0) {
        struct mn_tcb *t = mn_tcb_at(e, link - 1);

        if (flow_is(t, l4, laddr, lport, raddr, rport)) {
            e->last_hit = link - 1;
            return t;
        }
        link = t->hash_next;
    }
    return NULL;
}

void mn_flow_insert(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t b = flow_bucket(e, mn_tcb_l4(t), t->laddr, t->lport, t->raddr, t->rport);

    t->hash_next = e->flow_buckets[b];
    e->flow_buckets[b] = mn_tcb_index(e, t) + 1;
    t->flags |= MN_TF_HASHED;
    mn_owner_set(e, &(struct mn_tuple){t->laddr, t->raddr, t->lport, t->rport, mn_tcb_l4(t)});
}

void mn_flow_remove(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t me = mn_tcb_index(e, t);
    uint32_t *at =
        &e->flow_buckets[flow_bucket(e, mn_tcb_l4(t), t->laddr, t->lport, t->raddr, t->rport)];

    if ((t->flags & MN_TF_HASHED) == 0) {
        return;
    }
    if (e->last_hit == me) {
        e->last_hit = MN_NIL;
    }
    while (*at != me + 1) {
        MN_ASSERT(*at != 0);
        at = &mn_tcb_at(e, *at - 1)->hash_next;
    }
    *at = t->hash_next;
    t->flags &= ~MN_TF_HASHED;
    mn_owner_clear(e, &(struct mn_tuple){t->laddr, t->raddr, t->lport, t->rport, mn_tcb_l4(t)});
}

static uint32_t listen_bucket(const struct mn_engine *e, uint16_t port)
{
    return (uint32_t)mn_siphash2(e->key, port, USE_LISTEN) & e->listen_mask;
}

static uint32_t listener_exact(const struct mn_engine *e, uint8_t l4, uint32_t ip, uint16_t port)
{
    uint32_t link = e->listen_buckets[listen_bucket(e, port)];

    while (link != 0) {
        const struct mn_listener *l = &e->listeners[link - 1];

        if (l->port == port && l->ip == ip && mn_proto_l4(l->proto) == l4) {
            return link - 1;
        }
        link = l->hash_next;
    }
    return MN_NIL;
}

/* A listener on the address itself goes before one on any address. */
uint32_t mn_listener_find(struct mn_engine *e, uint8_t l4, uint32_t ip, uint16_t port)
{
    uint32_t i = listener_exact(e, l4, ip, port);

    return i != MN_NIL ? i : listener_exact(e, l4, 0, port);
}

/* One application may not take what another listens to on all addresses, or the other way round. */
static bool taken_by_other(const struct mn_engine *e, uint8_t l4, uint32_t ip, uint16_t port,
                           uint32_t lane)
{
    uint32_t i = listener_exact(e, l4, ip == 0 ? e->cfg.ip : 0, port);

    return i != MN_NIL && e->listeners[i].lane != lane;
}

int64_t mn_listener_add(struct mn_engine *e, uint32_t ip, uint16_t port, uint8_t proto,
                        uint32_t lane, uint32_t backlog)
{
    uint8_t l4 = mn_proto_l4(proto);

    if (listener_exact(e, l4, ip, port) != MN_NIL || taken_by_other(e, l4, ip, port, lane)) {
        return -EADDRINUSE;
    }
    uint32_t i = mn_pool_get(&e->listener_pool);

    if (i == MN_NIL) {
        return -ENOBUFS;
    }
    uint32_t b = listen_bucket(e, port);
    e->next_listener_id = e->next_listener_id == 0x7fffffffu ? 1 : e->next_listener_id + 1;
    e->listeners[i] = (struct mn_listener){
        .ip = ip,
        .port = port,
        .proto = proto,
        .live = 1,
        .lane = lane,
        .id = e->next_listener_id,
        .hash_next = e->listen_buckets[b],
        .backlog = backlog,
    };
    e->listen_buckets[b] = i + 1;
    return e->listeners[i].id;
}

void mn_listener_remove(struct mn_engine *e, uint32_t index)
{
    struct mn_listener *l = &e->listeners[index];
    uint32_t *at = &e->listen_buckets[listen_bucket(e, l->port)];

    MN_ASSERT(l->live);
    while (*at != index + 1) {
        MN_ASSERT(*at != 0);
        at = &e->listeners[*at - 1].hash_next;
    }
    *at = l->hash_next;
    l->live = 0;
    mn_pool_put(&e->listener_pool, index);
}

/*
 * RFC 6056, algorithm 4 in spirit: a keyed offset per destination plus a counter, so that ports to
 * one destination do not repeat soon and tell nothing about those to another. The counter moves by
 * a small random step.
 */
int32_t mn_port_choose(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint32_t raddr,
                       uint16_t rport)
{
    uint32_t base = (uint32_t)mn_siphash_flow(e->key, laddr, 0, raddr, rport, USE_PORT);

    bool shared = e->share.n > 1;

    e->port_offset += 1 + ((uint32_t)mn_random(e) & 7);
    for (uint32_t n = 0; n < (shared ? PORT_TRIES_SHARED : PORT_TRIES); n++) {
        uint16_t port = (uint16_t)(PORT_FIRST + (base + e->port_offset + n) % PORT_COUNT);
        const struct mn_tuple flow = {laddr, raddr, port, rport, l4};

        if (shared && mn_flow_home(e, &flow) != e->share.index) {
            continue; /* the answers would come to another engine */
        }
        if (mn_flow_find(e, l4, laddr, port, raddr, rport) == NULL &&
            mn_listener_find(e, l4, laddr, port) == MN_NIL) {
            return port;
        }
    }
    return -EADDRNOTAVAIL;
}
