/* SPDX-License-Identifier: MIT */
/* Invariants over time: which connections there are, what each was at the last look, and how often
 * there is time for a look at everything. */
#include "check_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define FLOWS_MAX_DEFAULT 65536u
/* A walk over all tables is made once these many nanoseconds of it are earned, so many a pass. */
#define WALK_NS_PER_PASS 50u

struct mn_check *mn_check_new(uint32_t flows_max)
{
    struct mn_check *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        return NULL;
    }
    c->flows_max = flows_max == 0 ? FLOWS_MAX_DEFAULT : flows_max;
    c->free_head = c->last = c->touched_head = c->touched_tail = MN_NIL;
    memset(c->buckets, 0xff, sizeof(c->buckets));
    c->streams = mn_ck_streams_new(c->flows_max);
    if (c->streams == NULL) {
        free(c);
        return NULL;
    }
    return c;
}

void mn_check_free(struct mn_check *c)
{
    if (c == NULL) {
        return;
    }
    for (uint32_t i = 0; i < c->flows_high; i++) {
        free(c->flows[i].ring);
        free(c->flows[i].mnp);
    }
    mn_ck_streams_free(c->streams);
    free(c->flows);
    free(c->nodes);
    free(c->syns);
    free(c);
}

const char *mn_check_text(const struct mn_check *c)
{
    return c->text;
}

void mn_check_get_stats(const struct mn_check *c, struct mn_check_stats *out)
{
    *out = c->stats;
    mn_ck_streams_stats(c->streams, out);
}

/* ---- violations ----------------------------------------------------------------------------- */

static int violation(struct mn_check *c, uint32_t node, uint64_t now_ns, const char *what)
{
    if (c->text[0] == '\0') {
        char where[24] = "";

        if (node != MN_CK_NO_NODE) {
            (void)snprintf(where, sizeof(where), "node %u: ", node);
        }
        (void)snprintf(c->text, sizeof(c->text), "at %llu.%09llu s: %s%s",
                       (unsigned long long)(now_ns / MN_NS_PER_S),
                       (unsigned long long)(now_ns % MN_NS_PER_S), where, what);
    }
    c->told = true;
    return -EPROTO;
}

/* rule: what must be, "acknowledgements only go forward"; then how it is not. */
int mn_ck_flow_violation(struct mn_check *c, const struct mn_ck_flow *f, uint64_t now_ns,
                         const char *rule, const char *fmt, ...)
{
    char what[512], name[MN_CK_NAME_BYTES], how[256];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(how, sizeof(how), fmt, args);
    va_end(args);
    mn_ck_name(name, f->laddr, f->lport, f->raddr, f->rport);
    (void)snprintf(what, sizeof(what), "%s: %s: %s", name, rule, how);
    return violation(c, f->node, now_ns, what);
}

/* ---- flows ---------------------------------------------------------------------------------- */

static uint32_t bucket_of(uint32_t node, const struct mn_check_conn *k)
{
    uint64_t h = (uint64_t)k->laddr << 32 | k->raddr;

    h ^=
        ((uint64_t)k->lport << 48 | (uint64_t)k->rport << 32 | node) * UINT64_C(0x9e3779b97f4a7c15);
    h *= UINT64_C(0xff51afd7ed558ccd);
    return (uint32_t)(h >> 40) & (MN_CK_BUCKETS - 1);
}

static bool is_flow(const struct mn_ck_flow *f, uint32_t node, const struct mn_check_conn *k)
{
    return f->raddr == k->raddr && f->lport == k->lport && f->rport == k->rport &&
           f->node == node && f->laddr == k->laddr && f->udp == (k->udp != 0) && f->live;
}

void mn_ck_flow_drop(struct mn_check *c, struct mn_ck_flow *f)
{
    struct mn_check_conn k = {f->laddr, f->raddr, f->lport, f->rport, f->udp};
    uint32_t i = (uint32_t)(f - c->flows);
    uint32_t *at = &c->buckets[bucket_of(f->node, &k)];

    while (*at != i) {
        at = &c->flows[*at].next;
    }
    *at = f->next;
    mn_ck_ring_drop(c, f);
    mn_ck_mnp_drop(c, f);
    f->live = false;
    c->stats.flows_live--;
    f->next = c->free_head;
    c->free_head = i;
}

static struct mn_ck_flow *flow_alloc(struct mn_check *c)
{
    uint32_t i = c->free_head;

    if (i != MN_NIL) {
        c->free_head = c->flows[i].next;
        return &c->flows[i];
    }
    if (c->flows_high == c->flows_cap) {
        uint32_t cap = mn_min_u32(c->flows_cap == 0 ? 64 : 2 * c->flows_cap, c->flows_max);
        struct mn_ck_flow *flows =
            cap == c->flows_cap ? NULL : realloc(c->flows, cap * sizeof(struct mn_ck_flow));

        if (flows == NULL) {
            return NULL;
        }
        c->flows = flows;
        c->flows_cap = cap;
    }
    return &c->flows[c->flows_high++];
}

struct mn_ck_flow *mn_ck_flow_find(struct mn_check *c, uint32_t node, const struct mn_check_conn *k)
{
    if (c->last != MN_NIL && is_flow(&c->flows[c->last], node, k)) {
        return &c->flows[c->last];
    }
    for (uint32_t i = c->buckets[bucket_of(node, k)]; i != MN_NIL; i = c->flows[i].next) {
        if (is_flow(&c->flows[i], node, k)) {
            c->last = i;
            return &c->flows[i];
        }
    }
    return NULL;
}

struct mn_ck_flow *mn_ck_flow_get(struct mn_check *c, uint32_t node, const struct mn_check_conn *k,
                                  uint32_t seq)
{
    struct mn_ck_flow *f = mn_ck_flow_find(c, node, k);
    uint32_t bucket = bucket_of(node, k);

    if (f != NULL) {
        return f;
    }
    f = flow_alloc(c);
    if (f == NULL) {
        c->stats.unfollowed++;
        return NULL;
    }
    *f = (struct mn_ck_flow){.laddr = k->laddr,
                             .raddr = k->raddr,
                             .lport = k->lport,
                             .rport = k->rport,
                             .udp = k->udp != 0,
                             .node = node,
                             .next = c->buckets[bucket],
                             .live = true,
                             .iss = seq - 1,
                             .end = seq,
                             .data_end = seq,
                             .kept = seq};
    c->stats.flows_live++;
    c->last = c->buckets[bucket] = (uint32_t)(f - c->flows);
    return f;
}

/* ---- looks ---------------------------------------------------------------------------------- */

static int look_back(struct mn_check *c, const struct mn_ck_flow *f, const struct mn_tcb *t,
                     uint64_t now_ns)
{
    const struct {
        const char *rule;
        uint32_t was, is, zero;
    } forward[] = {
        {"SND.UNA only goes forward", f->una, t->snd_una, t->iss},
        {"SND.NXT only goes forward", f->nxt, t->snd_nxt, t->iss},
        {"RCV.NXT only goes forward", f->rcv_nxt, t->rcv_nxt, t->irs},
        {"the promised right edge never retreats", f->rcv_adv, t->rcv_adv, t->irs},
    };

    for (uint32_t i = 0; i < MN_ARRAY_LEN(forward); i++) {
        if (mn_seq_lt(forward[i].is, forward[i].was)) {
            return mn_ck_flow_violation(c, f, now_ns, forward[i].rule, "from %u to %u",
                                        forward[i].was - forward[i].zero,
                                        forward[i].is - forward[i].zero);
        }
    }
    return 0;
}

/* New data left since the last look: what is in flight now is within the congestion window, give or
 * take what a loss takes away in the same pass. */
static int look_flight(struct mn_check *c, const struct mn_ck_flow *f, struct mn_engine *e,
                       const struct mn_tcb *t, uint64_t now_ns)
{
    uint32_t pipe, cwnd = mn_max_u32(t->cc.cwnd, f->cwnd) + 3 * t->mss;
    uint32_t data_nxt = t->snd_nxt - ((t->flags & MN_TF_FIN_SENT) != 0); /* FIN may always go */

    if (t->snd_nxt == f->nxt || data_nxt == f->nxt || mn_ck_is_held(c, f->node) ||
        (t->flags & MN_TF_PERSIST) != 0 || f->udp) {
        return 0;
    }
    pipe = mn_tcp_pipe(e, t);
    if (pipe <= cwnd) {
        return 0;
    }
    return mn_ck_flow_violation(c, f, now_ns, "what is in flight is within the congestion window",
                                "%u bytes, cwnd %u and before %u, mss %u", pipe, t->cc.cwnd,
                                f->cwnd, t->mss);
}

static int look(struct mn_check *c, struct mn_ck_flow *f, struct mn_engine *e, uint64_t now_ns)
{
    uint32_t last_hit = e->last_hit;
    const struct mn_tcb *t = mn_flow_find(e, f->udp ? MN_IPPROTO_UDP : MN_IPPROTO_TCP, f->laddr,
                                          f->lport, f->raddr, f->rport);
    char what[512];
    struct mn_ck k = {.engine = e, .text = what, .size = sizeof(what)};
    int rc = 0;

    e->last_hit = last_hit;
    c->stats.looks++;
    if (t == NULL || (f->has_syn && t->iss != f->iss)) {
        mn_ck_flow_drop(c, f);
        return 0;
    }
    f->iss = t->iss;
    if (mn_seq_gt(f->end, t->snd_nxt)) {
        return mn_ck_flow_violation(c, f, now_ns, "nothing has left that SND.NXT does not cover",
                                    "it is %u, but a segment has left up to %u",
                                    t->snd_nxt - f->iss, f->end - f->iss);
    }
    if (f->scaled) { /* not the first look since the handshake */
        rc = look_back(c, f, t, now_ns);
        rc = rc < 0 ? rc : look_flight(c, f, e, t, now_ns);
    }
    if (rc == 0 && !mn_ck_connection(&k, t)) {
        rc = violation(c, f->node, now_ns, what);
    }
    if (t->state >= MN_TCP_ESTABLISHED) {
        f->scaled = true;
        f->wscale = (t->flags & MN_TF_WSCALE) != 0 ? t->rcv_wscale : 0;
    }
    f->una = t->snd_una;
    f->nxt = t->snd_nxt;
    f->rcv_nxt = t->rcv_nxt;
    f->rcv_adv = t->rcv_adv;
    f->cwnd = t->cc.cwnd;
    f->has_look = true;
    return rc;
}

static struct mn_ck_node *node_of(struct mn_check *c, uint32_t node, const struct mn_engine *e)
{
    if (node >= c->n_nodes) {
        uint32_t n = mn_max_u32(node + 1, 2 * c->n_nodes);
        struct mn_ck_node *nodes = realloc(c->nodes, n * sizeof(struct mn_ck_node));

        if (nodes == NULL) {
            return NULL;
        }
        memset(nodes + c->n_nodes, 0, (n - c->n_nodes) * sizeof(struct mn_ck_node));
        c->nodes = nodes;
        c->n_nodes = n;
    }
    if (c->nodes[node].engine != e) {
        if (c->nodes[node].engine != NULL) {
            mn_check_forget(c, node);
        }
        c->nodes[node].engine = e;
    }
    return &c->nodes[node];
}

int mn_check_now(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns)
{
    char what[512];

    if (c->text[0] != '\0') {
        return 0;
    }
    c->stats.walks++;
    if (mn_check_engine(e, what, sizeof(what)) < 0) {
        return violation(c, node, now_ns, what);
    }
    return 0;
}

int mn_check_pass(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns)
{
    struct mn_ck_node *n;
    int rc = 0;

    if (c->text[0] != '\0') {
        bool told = c->told;

        c->told = true;
        return told ? 0 : -EPROTO;
    }
    n = node_of(c, node, e);
    while (c->touched_head != MN_NIL && rc == 0) {
        struct mn_ck_flow *f = &c->flows[c->touched_head];

        c->touched_head = f->touched_next;
        f->touched = false;
        if (f->live && f->node == node) {
            rc = look(c, f, e, now_ns);
        }
    }
    if (rc < 0 || n == NULL) {
        return rc;
    }
    n->held = e->nbr_queued > 0 || e->tx_n > 0;
    n->walk_ns += WALK_NS_PER_PASS;
    if (n->walk_ns < mn_ck_walk_cost(e)) {
        return 0;
    }
    n->walk_ns = 0;
    return mn_check_now(c, node, e, now_ns);
}

void mn_check_forget(struct mn_check *c, uint32_t node)
{
    /* What has left outside of a pass may still be listed, and a flow used anew must not be. */
    c->touched_head = c->touched_tail = MN_NIL;
    for (uint32_t i = 0; i < c->flows_high; i++) {
        c->flows[i].touched = false;
        if (c->flows[i].live && c->flows[i].node == node) {
            mn_ck_flow_drop(c, &c->flows[i]);
        }
    }
    if (node < c->n_nodes) {
        c->nodes[node] = (struct mn_ck_node){0};
    }
}

int mn_check_given(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message)
{
    if (c->text[0] != '\0') {
        return 0;
    }
    mn_ck_stream_given(c->streams, conn, id, bytes, len, message);
    return 0;
}

int mn_check_taken(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message, uint64_t now_ns)
{
    char what[512];

    if (c->text[0] != '\0') {
        return 0;
    }
    if (mn_ck_stream_taken(c->streams, conn, id, bytes, len, message, what, sizeof(what))) {
        return 0;
    }
    (void)violation(c, MN_CK_NO_NODE, now_ns, what);
    c->told = false; /* by the next pass, to whoever steps the network */
    return 0;
}
