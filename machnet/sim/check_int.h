/* SPDX-License-Identifier: MIT */
/* The invariants from inside: one look at an engine, and what becomes of it. */
#ifndef MN_SIM_CHECK_INT_H
#define MN_SIM_CHECK_INT_H

#include "machnet/stack/core/engine_int.h"

#include "check.h"

/* One look. The first violation ends it and is described in `text`. */
struct mn_ck {
    const struct mn_engine *engine;
    const struct mn_tcb *tcb; /* the connection that is looked at, NULL: none */
    char *text;
    size_t size;
};

/* False, with the connection, the rule (a function's name without "check_") and what is not so. */
bool mn_ck_fail(const struct mn_ck *k, const char *func, const char *cond);

#define MN_CK(k, cond)                                                                             \
    do {                                                                                           \
        if (MN_UNLIKELY(!(cond))) {                                                                \
            return mn_ck_fail(k, __func__, #cond);                                                 \
        }                                                                                          \
    } while (0)
#define MN_CK_SUB(call)                                                                            \
    do {                                                                                           \
        if (MN_UNLIKELY(!(call))) {                                                                \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

/* What holds of one connection at any time between two calls into its engine, at a bounded cost. */
bool mn_ck_connection(struct mn_ck *k, const struct mn_tcb *t);
/* "10.0.0.1:80-10.0.0.2:49152", for at least MN_CK_NAME_BYTES. */
#define MN_CK_NAME_BYTES 48u
void mn_ck_name(char *out, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport);
/* Steps of a walk over all tables of the engine, about a nanosecond each. */
uint64_t mn_ck_walk_cost(const struct mn_engine *e);

#define MN_CK_BUCKETS 4096u /* a power of two */
#define MN_CK_NO_NODE UINT32_MAX
#define MN_CK_SYNS    256u /* of the message transport, not answered yet; a power of two */

/* One direction of a connection, as its sender's frames show it. */
struct mn_ck_flow {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    bool udp; /* of the message transport: numbers count packets */
    uint32_t node;
    uint32_t next; /* in its bucket, or of the free ones */
    uint32_t touched_next;
    bool live, touched;
    bool has_syn, has_ack, has_edge, has_look, has_fin;
    bool scaled; /* the scale is known: the engine has been looked at since the handshake */
    uint8_t wscale;
    uint32_t iss;
    uint32_t end;      /* behind the highest byte sent, FIN included */
    uint32_t data_end; /* the same without FIN */
    uint32_t ack, edge;
    /* The engine's, at the last look. */
    uint32_t una, nxt, rcv_nxt, rcv_adv, cwnd;
    /* Bytes [kept, data_end), each at its number modulo the size. */
    uint8_t *ring;
    uint32_t ring_bytes; /* a power of two, 0: none */
    uint32_t kept;
    struct mn_ck_mnp *mnp; /* of the message transport */
};

struct mn_ck_node {
    const struct mn_engine *engine;
    uint64_t walk_ns; /* earned */
    bool held;        /* frames of earlier passes wait in the engine: for an address, for the NIC */
};

struct mn_check {
    struct mn_ck_flow *flows;
    uint32_t flows_cap, flows_high, flows_max, free_head;
    uint32_t buckets[MN_CK_BUCKETS];
    uint32_t last; /* the flow found last */
    uint32_t touched_head, touched_tail;
    struct mn_ck_node *nodes;
    uint32_t n_nodes;
    struct mn_ck_streams *streams;
    struct mn_ck_syn *syns; /* MN_CK_SYNS of them, or NULL */
    struct mn_check_stats stats;
    char text[640];
    bool told; /* somebody was answered -EPROTO */
};

/* Describes a violation of `rule` ("acknowledgements only go forward"), and how; -EPROTO. */
int mn_ck_flow_violation(struct mn_check *c, const struct mn_ck_flow *f, uint64_t now_ns,
                         const char *rule, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* The flow of a frame, made if need be; NULL: there is no room for it. */
struct mn_ck_flow *mn_ck_flow_get(struct mn_check *c, uint32_t node, const struct mn_check_conn *k,
                                  uint32_t seq);
/* NULL: it is not followed. */
struct mn_ck_flow *mn_ck_flow_find(struct mn_check *c, uint32_t node,
                                   const struct mn_check_conn *k);
void mn_ck_flow_drop(struct mn_check *c, struct mn_ck_flow *f);
void mn_ck_ring_drop(struct mn_check *c, struct mn_ck_flow *f);
/* To be looked at behind the pass. */
void mn_ck_touch(struct mn_check *c, struct mn_ck_flow *f);

/* check_mnp.c: frames of the message transport. */
int mn_ck_mnp_sent(struct mn_check *c, uint32_t node, const struct mn_ipv4 *ip, uint64_t now_ns);
void mn_ck_mnp_arrived(struct mn_check *c, uint32_t node, const struct mn_ipv4 *ip);
void mn_ck_mnp_drop(struct mn_check *c, struct mn_ck_flow *f);

static inline bool mn_ck_is_held(const struct mn_check *c, uint32_t node)
{
    return node < c->n_nodes && c->nodes[node].held;
}

/* check_stream.c: what applications give and take. */
struct mn_ck_streams;
struct mn_ck_streams *mn_ck_streams_new(uint32_t streams_max);
void mn_ck_streams_free(struct mn_ck_streams *all);
void mn_ck_stream_given(struct mn_ck_streams *all, const struct mn_check_conn *conn, uint64_t id,
                        const void *bytes, uint64_t len, bool message);
/* What arrives may be another's: no more of this connection. */
void mn_ck_stream_leave(struct mn_ck_streams *all, const struct mn_check_conn *conn);
/* False: a violation, described in text. */
bool mn_ck_stream_taken(struct mn_ck_streams *all, const struct mn_check_conn *conn, uint64_t id,
                        const void *bytes, uint64_t len, bool message, char *text, size_t size);
/* Adds its own. */
void mn_ck_streams_stats(const struct mn_ck_streams *all, struct mn_check_stats *out);

#endif
