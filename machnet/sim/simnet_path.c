/* SPDX-License-Identifier: MIT */
/* The way of a frame: out of a NIC, through a rule and the shaper of a link, and in at the other
 * end. Each function that takes a packet owns it from then on. */
#include "simnet_int.h"

#include <stdlib.h>

#define HELD_MIN 16u

void sim_drop_list(struct mn_simnet *net, struct pktlist *list)
{
    struct mn_pkt *pkt;

    while ((pkt = pktlist_pop(list)) != NULL) {
        sim_free_pkt(net, pkt);
    }
}

static struct mn_pkt *clone_pkt(struct mn_simnet *net, struct mn_pkt *pkt)
{
    struct mn_pkt *copy = mn_pktpool_get(&net->pool);

    if (copy == NULL) {
        net->stats.dropped++; /* as in a switch or NIC without buffers */
        return NULL;
    }
    memcpy(copy->data, pkt->data, pkt->len);
    copy->len = pkt->len;
    simpkt_of(copy)->origin = simpkt_of(pkt)->origin;
    return copy;
}

/* ---- onto a link --------------------------------------------------------------------------- */

/* single: it may be overtaken by those behind it. */
static void queue_arrival(struct simdir *d, struct mn_pkt *pkt, uint64_t at_ns, bool single)
{
    struct mn_simnet *net = d->net;
    struct simpkt *p = simpkt_of(pkt);

    p->t_ns = at_ns;
    p->seq = net->q.seq++;
    if (!single && (d->way.n == 0 || at_ns >= d->way_last_ns)) {
        pktlist_push(&d->way, pkt);
        d->way_last_ns = at_ns;
        if (d->way.n == 1) {
            mn_simq_set(&net->q, &d->ev, at_ns, p->seq);
        }
    } else if (!mn_simq_push(&net->q, at_ns, p->seq, pkt, 2 * d->link + d->dir)) {
        net->stats.dropped++;
        sim_free_pkt(net, pkt);
        return;
    }
    net->in_flight++;
}

static uint64_t later(uint64_t t_ns, uint64_t by_ns)
{
    return by_ns < MN_NEVER - t_ns ? t_ns + by_ns : MN_NEVER - 1;
}

/* A frame that the shaper lets pass. The copy of one that is duplicated is taken before a bit of
 * the first is inverted. */
static void pass(struct simdir *d, struct mn_pkt *pkt, const struct mn_verdict *v,
                 uint64_t delay_ns)
{
    struct simpkt *p = simpkt_of(pkt);
    struct mn_pkt *copy = NULL;
    bool single = delay_ns != 0 || (v->faults & MN_FAULT_BIT(MN_FAULT_REORDER)) != 0;

    p->frame_no = (uint32_t)v->frame_no;
    if (MN_UNLIKELY(v->dup)) {
        copy = clone_pkt(d->net, pkt);
    }
    if (MN_UNLIKELY((v->faults & MN_FAULT_BIT(MN_FAULT_CORRUPT)) != 0)) {
        mn_shaper_corrupt(pkt->data, pkt->len, v->bit);
    }
    queue_arrival(d, pkt, later(v->at_ns, delay_ns), single);
    if (copy != NULL) {
        simpkt_of(copy)->frame_no = (uint32_t)v->frame_no;
        queue_arrival(d, copy, later(v->dup_at_ns, delay_ns), true);
    }
}

static void hold(struct simdir *d, struct mn_pkt *pkt, const struct mn_verdict *v,
                 uint64_t delay_ns)
{
    if (d->n_held == d->held_cap) {
        uint32_t cap = d->held_cap == 0 ? HELD_MIN : 2 * d->held_cap;
        struct held *held = realloc(d->held, cap * sizeof(*held));

        if (held == NULL) {
            mn_shaper_forget(&d->shaper, v);
            d->net->stats.dropped++;
            sim_free_pkt(d->net, pkt);
            return;
        }
        d->held = held;
        d->held_cap = cap;
    }
    d->held[d->n_held++] = (struct held){.pkt = pkt, .verdict = *v, .delay_ns = delay_ns};
    d->net->in_flight++;
}

void sim_release(struct simdir *d)
{
    for (uint32_t i = 0; i < d->n_held; i++) {
        struct held *h = &d->held[i];

        mn_shaper_release(&d->shaper, sim_now(d->net), &h->verdict);
        pass(d, h->pkt, &h->verdict, h->delay_ns);
        d->net->in_flight--;
    }
    d->n_held = 0;
}

void sim_dir_drain(struct simdir *d)
{
    sim_drop_list(d->net, &d->way);
    for (uint32_t i = 0; i < d->n_held; i++) {
        sim_free_pkt(d->net, d->held[i].pkt);
    }
    d->n_held = 0;
}

static void record_out(struct simdir *d, struct mn_pkt *pkt, const struct mn_verdict *v,
                       uint64_t delay_ns, int rule)
{
    struct mn_sim_record r = {
        .t_ns = sim_now(d->net),
        .at_ns = v->drop   ? 0
                 : v->held ? MN_NEVER
                           : later(v->at_ns, delay_ns),
        .frame_no = v->frame_no,
        .delay_ns = delay_ns,
        .node = d->from,
        .link = (int32_t)d->link,
        .dir = d->dir,
        .out = 1,
        .faults = v->faults,
        .bit = v->bit,
        .rule = (uint32_t)rule,
        .len = pkt->len,
    };

    if ((v->faults & MN_FAULT_BIT(MN_FAULT_REORDER)) != 0) {
        r.delay_ns += d->shaper.shape.reorder_ns;
    }
    sim_record_out(d->net, &r, pkt);
}

#define DRAWN                                                                                      \
    (MN_FAULT_BIT(MN_FAULT_LOSS) | MN_FAULT_BIT(MN_FAULT_BURST) | MN_FAULT_BIT(MN_FAULT_REORDER) | \
     MN_FAULT_BIT(MN_FAULT_DUPLICATE) | MN_FAULT_BIT(MN_FAULT_CORRUPT))

static void shape(struct simdir *d, struct mn_pkt *pkt, struct mn_verdict *v)
{
    struct mn_simnet *net = d->net;
    struct mn_shaper *s = &d->shaper;

    if (MN_UNLIKELY(net->n_parts != 0) && sim_parted(net, simpkt_of(pkt)->origin, d->to)) {
        uint32_t blocked = s->shape.blocked;

        s->shape.blocked = 1;
        mn_shaper_offer(s, sim_now(net), pkt->len, v);
        s->shape.blocked = blocked;
    } else {
        mn_shaper_offer(s, sim_now(net), pkt->len, v);
    }
}

/* Into the shaper. rule: what a rule has said, 0 without one. */
static void enter(struct simdir *d, struct mn_pkt *pkt, uint64_t delay_ns, int rule)
{
    struct mn_simnet *net = d->net;
    struct mn_verdict v;

    net->stats.frames++;
    d->bytes += pkt->len;
    shape(d, pkt, &v);
    if (MN_UNLIKELY(rule != MN_RULE_PASS || delay_ns != 0)) {
        v.faults |= MN_FAULT_BIT(MN_FAULT_RULE);
        d->shaper.count[MN_FAULT_RULE]++;
    }
    if (MN_UNLIKELY((v.faults & DRAWN) != 0)) {
        sim_fault_note(d, &v);
    }
    if (sim_recording(net)) {
        record_out(d, pkt, &v, delay_ns, rule);
    }
    if (v.drop) {
        net->stats.dropped++;
        sim_free_pkt(net, pkt);
    } else if (MN_UNLIKELY(v.held)) {
        hold(d, pkt, &v, delay_ns);
    } else {
        pass(d, pkt, &v, delay_ns);
    }
}

/* Lost before the shaper has seen it. */
static void lose(struct simdir *d, struct mn_pkt *pkt, enum mn_fault why, int rule)
{
    struct mn_verdict v = {
        .frame_no = d->shaper.frames, .drop = true, .faults = MN_FAULT_BIT(why), .len = pkt->len};

    d->shaper.count[why]++;
    d->net->stats.frames++;
    d->net->stats.dropped++;
    if (sim_recording(d->net)) {
        record_out(d, pkt, &v, 0, rule);
    }
    sim_free_pkt(d->net, pkt);
}

static void enter_ruled(struct simdir *d, struct mn_pkt *pkt)
{
    struct mn_rule_frame f = {.frame = pkt->data,
                              .len = pkt->len,
                              .room = pkt->room,
                              .link = d->link,
                              .dir = d->dir,
                              .now_ns = sim_now(d->net)};
    struct mn_pkt *copy = NULL;
    int rule = d->rule(d->rule_ctx, &f);

    switch (rule) {
    case MN_RULE_PASS:
        break;
    case MN_RULE_REPLACED:
        if (f.len > 0 && f.len <= pkt->room) {
            pkt->len = f.len;
            sim_check_foreign(d->net, pkt);
            break;
        }
        rule = MN_RULE_ABORT;
        /* fall through */
    case MN_RULE_DROP:
    case MN_RULE_ABORT:
    default:
        if (rule != MN_RULE_DROP) {
            sim_error(d->net, "a rule failed on %s", d->name);
            d->net->aborted = -ECANCELED;
        }
        lose(d, pkt, MN_FAULT_RULE, rule);
        return;
    case MN_RULE_DUPLICATE:
        copy = clone_pkt(d->net, pkt);
        break;
    }
    enter(d, pkt, f.delay_ns, rule);
    if (copy != NULL) {
        enter(d, copy, f.delay_ns, rule);
    }
}

static inline void offer(struct simdir *d, struct mn_pkt *pkt)
{
    if (MN_UNLIKELY(d->rule != NULL)) {
        enter_ruled(d, pkt);
    } else {
        enter(d, pkt, 0, MN_RULE_PASS);
    }
}

/* ---- out of a node ------------------------------------------------------------------------- */

/* To all ports but one; a switch uses those of its tree only. */
static void flood(struct simnode *node, struct mn_pkt *pkt, uint32_t but)
{
    struct simdir *last = NULL;

    for (uint32_t i = 0; i < node->n_ports; i++) {
        struct simport port = node->ports[i]; /* by value: a rule may add links */

        if (i == but || (node->kind == NODE_SWITCH && !port.link->forwards)) {
            continue;
        }
        if (last != NULL) {
            struct mn_pkt *copy = clone_pkt(node->net, pkt);

            if (copy != NULL) {
                offer(last, copy);
            }
        }
        last = port.out;
    }
    if (last != NULL) {
        offer(last, pkt);
    } else {
        sim_free_pkt(node->net, pkt);
    }
}

/* Nobody is there to take it: recorded without a link. */
static void lose_at(struct simnode *node, struct mn_pkt *pkt)
{
    struct mn_sim_record r = {.t_ns = sim_now(node->net),
                              .node = node->number,
                              .link = -1,
                              .out = 1,
                              .faults = MN_FAULT_BIT(MN_FAULT_DOWN),
                              .len = pkt->len};

    node->net->stats.dropped++;
    if (sim_recording(node->net)) {
        sim_record_out(node->net, &r, pkt);
    }
    sim_free_pkt(node->net, pkt);
}

/* from: the port it came in at, UINT32_MAX: it is the node's own. */
static void forward(struct simnode *node, struct mn_pkt *pkt, uint32_t from)
{
    uint32_t port = UINT32_MAX;

    if (pkt->len >= MN_ETH_HLEN && !mn_eth_is_group(pkt->data)) {
        port = mactab_find(&node->macs, pkt->data);
    }
    if (port == UINT32_MAX) {
        flood(node, pkt, from);
    } else if (port == from) {
        sim_free_pkt(node->net, pkt);
    } else {
        offer(node->ports[port].out, pkt);
    }
}

static inline void send_own(struct simnode *node, struct mn_pkt *pkt)
{
    simpkt_of(pkt)->origin = node->number;
    if (MN_UNLIKELY(node->down || node->n_ports == 0)) {
        lose_at(node, pkt);
    } else if (MN_LIKELY(node->n_ports == 1)) {
        offer(node->ports[0].out, pkt);
    } else {
        forward(node, pkt, UINT32_MAX);
    }
}

static uint32_t nic_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct simnode *node = (struct simnode *)(void *)nic;
    uint32_t got = mn_min_u32(n, node->rx.n);

    (void)queue;
    for (uint32_t i = 0; i < got; i++) {
        pkts[i] = pktlist_pop(&node->rx);
        if (node->net->check != NULL) {
            mn_check_arrived(node->net->check, node->number, pkts[i]->data, pkts[i]->len);
        }
    }
    return got;
}

static uint32_t nic_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct simnode *node = (struct simnode *)(void *)nic;

    (void)queue;
    for (uint32_t i = 0; i < n; i++) {
        struct mn_pkt *pkt = pkts[i];

        MN_ASSERT(pkt->next == NULL && pkt->gso_size == 0 && pkt->csum != MN_CSUM_PARTIAL &&
                  pkt->len >= MN_ETH_HLEN && pkt->len <= nic->caps.tx_max_frame);
        pkt->csum = MN_CSUM_NONE;
        if (node->net->check != NULL) {
            sim_check_frame(node, pkt);
        }
        send_own(node, pkt);
    }
    return n;
}

static struct mn_pkt *nic_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct simnode *node = (struct simnode *)(void *)nic;

    (void)queue;
    return MN_LIKELY(size <= node->net->pool.room) ? mn_pktpool_get(&node->net->pool) : NULL;
}

static void nic_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct simnode *node = (struct simnode *)(void *)nic;

    (void)queue;
    sim_free_pkt(node->net, pkt);
}

const struct mn_nic_ops mn_simnet_nic_ops = {
    .rx_burst = nic_rx_burst,
    .tx_burst = nic_tx_burst,
    .pkt_alloc = nic_pkt_alloc,
    .pkt_free = nic_pkt_free,
};

/* ---- into a node --------------------------------------------------------------------------- */

/* Why a node takes no frame of this length now; MN_FAULT_NONE: it does. */
static enum mn_fault refusal(const struct simnode *node, uint32_t len)
{
    uint32_t room = node->kind == NODE_RAW ? RAW_QUEUE_FRAMES : RX_RING_FRAMES;

    if (node->down || (node->kind == NODE_HOST && node->stack == NULL)) {
        return MN_FAULT_DOWN;
    }
    if (len > node->nic.caps.rx_max_frame) {
        return MN_FAULT_MTU;
    }
    /* A host that runs empties its ring at the very moment. */
    if ((node->paused || node->kind == NODE_RAW) && node->rx.n >= room) {
        return MN_FAULT_QUEUE;
    }
    return MN_FAULT_NONE;
}

/* The lower half was carried along; the rest is that of the last frame that went in, or one less.
 */
static uint64_t whole_number(const struct simdir *d, uint32_t low)
{
    uint64_t no = (d->shaper.frames & ~(uint64_t)UINT32_MAX) | low;

    return no >= d->shaper.frames && no > UINT32_MAX ? no - UINT32_MAX - 1 : no;
}

static void record_in(struct simdir *d, struct mn_pkt *pkt, enum mn_fault refused)
{
    const struct simpkt *p = simpkt_of(pkt);
    struct mn_sim_record r = {
        .t_ns = sim_now(d->net),
        .frame_no = whole_number(d, p->frame_no),
        .node = d->to,
        .link = (int32_t)d->link,
        .dir = d->dir,
        .faults = refused != MN_FAULT_NONE ? MN_FAULT_BIT(refused) : 0,
        .len = pkt->len,
    };

    sim_record_in(d->net, &r, pkt);
}

void sim_arrive(struct simdir *d, struct mn_pkt *pkt)
{
    struct mn_simnet *net = d->net;
    struct simnode *node = net->nodes[d->to];
    enum mn_fault refused = refusal(node, pkt->len);

    net->in_flight--;
    if (sim_recording(net)) {
        record_in(d, pkt, refused);
    }
    if (MN_UNLIKELY(refused != MN_FAULT_NONE)) {
        d->shaper.count[refused]++;
        net->stats.dropped++;
        sim_free_pkt(net, pkt);
        return;
    }
    d->delivered++;
    net->stats.delivered++;
    if (node->n_ports > 1 && net->links[d->link]->forwards && pkt->len >= MN_ETH_HLEN) {
        mactab_learn(&node->macs, pkt->data + 6, d->to_port);
    }
    if (MN_LIKELY(node->kind == NODE_HOST)) {
        pktlist_push(&node->rx, pkt);
        sim_touch(node);
    } else if (node->kind == NODE_RAW) {
        pktlist_push(&node->rx, pkt);
    } else if (net->links[d->link]->forwards && pkt->len >= MN_ETH_HLEN) {
        forward(node, pkt, d->to_port);
    } else {
        sim_free_pkt(net, pkt);
    }
}

/* ---- scripted hosts ------------------------------------------------------------------------ */

int mn_simnet_send(struct mn_simnet *net, uint32_t node, const uint8_t *frame, uint32_t len)
{
    struct simnode *n = sim_node(net, node);
    struct mn_pkt *pkt;

    if (n == NULL || n->kind != NODE_RAW || len == 0) {
        return -EINVAL;
    }
    if (len > n->nic.caps.tx_max_frame) {
        return -EMSGSIZE;
    }
    if (n->down || n->n_ports == 0) {
        return -ENETDOWN;
    }
    pkt = mn_pktpool_get(&net->pool);
    if (pkt == NULL) {
        return -ENOBUFS;
    }
    memcpy(pkt->data, frame, len);
    pkt->len = len;
    sim_check_foreign(net, pkt);
    send_own(n, pkt);
    if (MN_UNLIKELY(net->aborted != 0) && !net->stepping) {
        net->aborted = 0;
        return -ECANCELED;
    }
    return 0;
}

int64_t mn_simnet_take(struct mn_simnet *net, uint32_t node, uint8_t *buf, uint32_t size,
                       uint64_t *t_ns)
{
    struct simnode *n = sim_node(net, node);
    struct mn_pkt *pkt;
    uint32_t len;

    if (n == NULL || n->kind != NODE_RAW) {
        return -EINVAL;
    }
    pkt = n->rx.head;
    if (pkt == NULL) {
        return 0;
    }
    len = pkt->len;
    if (len > size) {
        return -EMSGSIZE;
    }
    memcpy(buf, pkt->data, len);
    if (t_ns != NULL) {
        *t_ns = simpkt_of(pkt)->t_ns;
    }
    sim_free_pkt(net, pktlist_pop(&n->rx));
    return len;
}
