/* SPDX-License-Identifier: MIT */
/* Control of a lane: listen, connect, options; the life of its flows; what TCP tells a flow's user.
 */
#include "engine_int.h"

/* Places of ctl_complete that connects under way leave to everything else. */
#define CTL_KEPT 8
#define CTL_PER_PASS                                                                               \
    32 /* commands may cost more than a packet: one channel must not hold up the others */

uint32_t mn_lane_flow_id(const struct mn_lane *l, const struct mn_slot *s)
{
    return MN_FLOW_ID((uint32_t)(s - l->slots), s->gen);
}

struct mn_slot *mn_lane_slot(struct mn_lane *l, uint32_t flow)
{
    uint32_t i = MN_FLOW_SLOT(flow);

    if (i >= l->slot_high || l->slots[i].state == MN_SLOT_FREE ||
        l->slots[i].gen != MN_FLOW_GEN(flow)) {
        return NULL;
    }
    return &l->slots[i];
}

uint32_t mn_lane_slot_alloc(struct mn_lane *l, uint8_t proto)
{
    uint32_t i;

    if (l->slot_n_free > 0) {
        i = l->slot_free[--l->slot_n_free];
    } else if (l->slot_high < l->geo.flows_max) {
        i = l->slot_high++;
    } else {
        return MN_NIL;
    }
    struct mn_slot *s = &l->slots[i];
    uint16_t gen = s->gen;
    uint32_t open = s->flags & MN_SF_OPEN, open_next = s->open_next;
    memset(s, 0, sizeof(*s));
    s->gen = gen;
    s->state = MN_SLOT_LIVE;
    s->proto = proto;
    /* A flow that came and went within one pass may still be on the list of open buffers. */
    s->flags = open;
    s->open_next = open_next;
    s->tcb = s->next = s->wait_next = s->wait_prev = MN_NIL;
    s->tx_head = s->tx_tail = s->tx_cur = s->tx_rcur = MN_NIL;
    s->asm_first = s->asm_last = MN_NIL;
    l->slots_used++;
    return i;
}

void mn_lane_slot_free(struct mn_lane *l, struct mn_slot *s)
{
    MN_ASSERT(s->state != MN_SLOT_FREE && s->tcb == MN_NIL);
    s->state = MN_SLOT_FREE;
    s->gen++;
    l->slot_free[l->slot_n_free++] = (uint32_t)(s - l->slots);
    l->slots_used--;
}

/* Room for n events of the engine towards the application. */
static bool ctl_room(struct mn_lane *l, uint32_t n)
{
    int64_t room = mn_ring_free(&l->ctl_complete, n);

    if (room < 0) {
        mn_lane_kill(l, EPROTO);
        return false;
    }
    return room >= (int64_t)n;
}

static void ctl_push(struct mn_lane *l, const struct mn_ctl_evt *evt)
{
    struct mn_ctl_evt *slots = l->ctl_complete.slots;

    slots[l->ctl_complete.pos & l->ctl_complete.mask] = *evt;
    l->ctl_complete.pos++;
}

static void fill_tuple(struct mn_ctl_evt *evt, const struct mn_lane *l, const struct mn_slot *s,
                       const struct mn_tcb *t)
{
    evt->flow = mn_lane_flow_id(l, s);
    evt->proto = s->proto;
    evt->local_ip = t->laddr;
    evt->remote_ip = t->raddr;
    evt->local_port = t->lport;
    evt->remote_port = t->rport;
}

/* The answer to a connect: do_connect has kept a place for it, as the flow's data may come right
 * behind. */
static void connect_result(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s, int status)
{
    struct mn_ctl_evt evt = {.kind = MN_EVT_RESULT, .token = s->token, .status = status};

    MN_ASSERT(l->owed > 0);
    l->owed--;
    s->flags &= ~MN_SF_CONNECTING;
    if (l->dead != 0 || l->detached || !ctl_room(l, 1)) {
        return;
    }
    if (status == 0) {
        fill_tuple(&evt, l, s, mn_tcb_at(e, s->tcb));
    }
    ctl_push(l, &evt);
}

static void pending_done(struct mn_engine *e, struct mn_slot *s)
{
    if ((s->flags & MN_SF_PENDING) == 0) {
        return;
    }
    s->flags &= ~MN_SF_PENDING;
    struct mn_listener *li = &e->listeners[s->listener];
    if (li->live && li->id == s->listener_id) {
        li->pending--;
    }
}

/* The connection of a flow is gone. */
void mn_lane_slot_end(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s, int err)
{
    bool torn =
        s->proto != MN_PROTO_STREAM && (s->prefix_have > 0 || (s->flags & MN_SF_IN_MSG) != 0);

    s->tcb = MN_NIL;
    mn_lane_tx_free(l, s);
    if (s->proto == MN_PROTO_STREAM && (s->flags & MN_SF_CLOSED) == 0) {
        mn_stream_flush(l, s);
    }
    mn_lane_rx_drop(l, s);
    mn_lane_unreserve(e, l, s);
    pending_done(e, s);
    s->state = MN_SLOT_ENDED;
    if ((s->flags & MN_SF_CONNECTING) != 0) {
        connect_result(e, l, s, -err);
        mn_lane_slot_free(l, s);
        return;
    }
    if (l->detached || l->dead != 0) {
        mn_lane_slot_free(l, s);
        return;
    }
    if ((s->flags & MN_SF_CLOSED) == 0) {
        if (err == 0 && torn) {
            err = EPROTO; /* the peer closed in the middle of a message */
        }
        mn_lane_deliver_mark(l, s, MN_DESC_END, (uint32_t)err);
    }
    if ((s->flags & MN_SF_RELEASED) != 0) {
        mn_lane_slot_free(l, s);
    }
}

void mn_lane_close_flow(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                        uint32_t linger_ms)
{
    struct mn_tcb *t = mn_tcb_at(e, s->tcb);

    bool unread = t->ooo_bytes > 0 || s->asm_first != MN_NIL || s->prefix_have > 0 ||
                  (s->flags & MN_SF_IN_MSG) != 0;

    s->flags |= MN_SF_CLOSED;
    pending_done(e, s);
    mn_lane_rx_drop(l, s);
    mn_lane_unreserve(e, l, s);
    if (!l->detached && (s->flags & MN_SF_CONNECTING) == 0) {
        mn_lane_deliver_mark(l, s, MN_DESC_END, 0);
    }
    if (linger_ms == MN_LINGER_DEFAULT) {
        linger_ms = t->linger_ms;
    }
    mn_tcp_orphan(e, t, linger_ms, unread);
}

void mn_lane_eof_check(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s)
{
    struct mn_tcb *t = mn_tcb_at(e, s->tcb);
    bool partial = (s->flags & MN_SF_IN_MSG) != 0 || s->prefix_have > 0;

    (void)l;
    if (partial || (int32_t)(s->rx_msgs - s->tx_msgs) <= 0) {
        s->flags |= MN_SF_SHUT;
        mn_tcp_shutdown(e, t);
    } else {
        mn_tcp_user_timer(e, t, e->now_ns + e->cfg.eof_linger_ms * MN_NS_PER_MS);
    }
}

static void eof_in(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s)
{
    s->flags |= MN_SF_EOF;
    if (s->proto == MN_PROTO_STREAM) {
        mn_stream_flush(l, s);
    }
    if ((s->flags & MN_SF_CLOSED) == 0) {
        mn_lane_deliver_mark(l, s, MN_DESC_FIN, 0);
    }
    if (s->proto != MN_PROTO_STREAM && mn_tcb_at(e, s->tcb)->state == MN_TCP_CLOSE_WAIT) {
        mn_lane_eof_check(e, l, s);
    }
}

static void flow_event(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_event ev, int err)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = &l->slots[t->slot];
    struct mn_ctl_evt evt = {.kind = MN_EVT_SOFT, .status = -err};

    switch (ev) {
    case MN_TCP_EV_CONNECTED:
        connect_result(e, l, s, 0);
        return;
    case MN_TCP_EV_EOF:
        eof_in(e, l, s);
        return;
    case MN_TCP_EV_CLOSED:
        /* The reader of a stream has its end already; whoever writes learns of the reset. */
        if (err == ECONNRESET && s->proto == MN_PROTO_STREAM && (t->flags & MN_TF_FIN_RCVD) != 0) {
            err = EPIPE;
        }
        mn_lane_slot_end(e, l, s, err);
        return;
    case MN_TCP_EV_TIMER:
        s->flags |= MN_SF_SHUT;
        mn_tcp_shutdown(e, t);
        return;
    case MN_TCP_EV_URGENT:
        evt.kind = MN_EVT_URGENT;
        evt.status = 0;
        evt.value = t->rcv_up - t->irs - 1;
        break;
    default:
        break;
    }
    /* Advice: dropped when there is no room for it. */
    if ((s->flags & (MN_SF_CLOSED | MN_SF_CONNECTING)) == 0 && l->dead == 0 &&
        ctl_room(l, l->owed + 4)) {
        fill_tuple(&evt, l, s, t);
        ctl_push(l, &evt);
    }
}

/* The rest of a message that can never be complete is of no use. */
static bool framed_wants(struct mn_engine *e, const struct mn_tcb *t, uint32_t held)
{
    const struct mn_slot *s = &e->lanes[t->lane]->slots[t->slot];

    return (s->flags & MN_SF_IN_MSG) == 0 ? held + s->prefix_have >= MN_FRAME_PREFIX
                                          : held >= s->msg_len - s->msg_have;
}

static bool stream_wants(struct mn_engine *e, const struct mn_tcb *t, uint32_t held)
{
    (void)e;
    (void)t;
    return held > 0;
}

const struct mn_tcp_user mn_user_framed = {
    .rx = mn_framing_rx,
    .rx_space = mn_lane_rx_space,
    .tx_copy = mn_lane_tx_copy,
    .tx_acked = mn_lane_tx_acked,
    .event = flow_event,
    .wants = framed_wants,
};

const struct mn_tcp_user mn_user_stream = {
    .rx = mn_stream_rx,
    .rx_space = mn_lane_rx_space,
    .tx_copy = mn_lane_tx_copy,
    .tx_acked = mn_lane_tx_acked,
    .event = flow_event,
    .wants = stream_wants,
};

/* Packets have their own ways in and out. */
const struct mn_tcp_user mn_user_mnp = {
    .rx_space = mn_lane_rx_space,
    .event = flow_event,
};

static const struct mn_tcp_user *user_of(uint32_t proto)
{
    return proto == MN_PROTO_STREAM ? &mn_user_stream
           : proto == MN_PROTO_TCP  ? &mn_user_framed
                                    : &mn_user_mnp;
}

static void bind_slot(struct mn_engine *e, struct mn_lane *l, uint32_t slot, struct mn_tcb *t)
{
    bool stream = l->slots[slot].proto == MN_PROTO_STREAM;

    t->user = user_of(l->slots[slot].proto);
    t->lane = l->number;
    t->slot = slot;
    if (stream ? !e->cfg.nagle_stream : !e->cfg.nagle_framed) {
        t->flags |= MN_TF_NODELAY;
    }
    l->slots[slot].tcb = mn_tcb_index(e, t);
}

bool mn_lane_accept(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_listener *li = &e->listeners[t->listener];
    struct mn_lane *l = e->lanes[li->lane];
    struct mn_ctl_evt evt = {.kind = MN_EVT_ACCEPT, .listener = li->id};

    if (l->dead != 0 || li->pending >= li->backlog || !ctl_room(l, l->owed + 4)) {
        return false;
    }
    uint32_t i = mn_lane_slot_alloc(l, li->proto);
    if (i == MN_NIL) {
        return false;
    }
    bind_slot(e, l, i, t);
    l->slots[i].listener = t->listener;
    l->slots[i].listener_id = li->id;
    l->slots[i].flags |= MN_SF_PENDING;
    li->pending++;
    fill_tuple(&evt, l, &l->slots[i], t);
    ctl_push(l, &evt);
    return true;
}

static int do_listen(struct mn_engine *e, struct mn_lane *l, const struct mn_ctl_cmd *c,
                     struct mn_ctl_evt *evt)
{
    uint32_t backlog = c->arg == 0 ? e->cfg.syn_backlog_max : c->arg;

    if (c->local_ip != 0 && !mn_ip_is_local(e, c->local_ip)) {
        return -EADDRNOTAVAIL;
    }
    if (c->local_port == 0) {
        return -EINVAL;
    }
    if (c->proto > MN_PROTO_STREAM) {
        return -EPROTONOSUPPORT;
    }
    if (c->proto == MN_PROTO_UDP && mn_mnp_mss(e) < MN_MNP_MSS_MIN) {
        return -EMSGSIZE; /* the MTU is too small for that transport */
    }
    int64_t id =
        mn_listener_add(e, c->local_ip, c->local_port, (uint8_t)c->proto, l->number, backlog);
    if (id < 0) {
        return (int)id;
    }
    evt->value = (uint64_t)id;
    evt->listener = (uint32_t)id;
    return 0;
}

/* Flows that the application has not taken yet are closed with their listener, as POSIX does. */
static int do_unlisten(struct mn_engine *e, struct mn_lane *l, uint32_t id)
{
    for (uint32_t i = 0; i < e->listener_pool.high; i++) {
        if (e->listeners[i].live && e->listeners[i].id == id && e->listeners[i].lane == l->number) {
            mn_listener_remove(e, i);
            for (uint32_t k = 0; k < l->slot_high; k++) {
                struct mn_slot *s = &l->slots[k];

                if (s->state == MN_SLOT_LIVE && s->tcb != MN_NIL &&
                    (s->flags & MN_SF_PENDING) != 0 && s->listener_id == id) {
                    mn_lane_close_flow(e, l, s, 0);
                }
            }
            return 0;
        }
    }
    return -ENOENT;
}

void mn_lane_unlisten_all(struct mn_engine *e, struct mn_lane *l)
{
    for (uint32_t i = 0; i < e->listener_pool.high; i++) {
        if (e->listeners[i].live && e->listeners[i].lane == l->number) {
            mn_listener_remove(e, i);
        }
    }
}

/* 0: the RESULT comes when the handshake is through. */
static int do_connect(struct mn_engine *e, struct mn_lane *l, const struct mn_ctl_cmd *c)
{
    struct mn_tcb *t;

    if (c->proto > MN_PROTO_STREAM) {
        return -EPROTONOSUPPORT;
    }
    if (l->owed + CTL_KEPT > l->geo.ctl_slots) {
        return -EAGAIN; /* as many connects under way as results find room */
    }
    uint32_t i = mn_lane_slot_alloc(l, (uint8_t)c->proto);
    if (i == MN_NIL) {
        return -ENOBUFS;
    }
    struct mn_slot *s = &l->slots[i];
    s->token = c->token;
    s->flags |= MN_SF_CONNECTING;
    int err = (c->proto == MN_PROTO_UDP ? mn_mnp_connect : mn_tcp_connect)(
        e, &t, c->local_ip, c->local_port, c->remote_ip, c->remote_port, user_of(c->proto), c->arg);
    if (err != 0) {
        mn_lane_slot_free(l, s);
        return err;
    }
    bind_slot(e, l, i, t);
    l->owed++;
    return 0;
}

/* Rare, so it looks for the token; the SYN-SENT connection goes without a word (RFC 9293 3.10.4).
 */
static void do_cancel(struct mn_engine *e, struct mn_lane *l, uint32_t token)
{
    for (uint32_t i = 0; i < l->slot_high; i++) {
        struct mn_slot *s = &l->slots[i];

        if (s->state == MN_SLOT_LIVE && s->tcb != MN_NIL && s->token == token &&
            (s->flags & MN_SF_CONNECTING) != 0) {
            mn_tcp_abort(e, mn_tcb_at(e, s->tcb), ECANCELED);
            return;
        }
    }
}

static void do_release(struct mn_lane *l, struct mn_slot *s)
{
    if (s == NULL || (s->flags & MN_SF_CONNECTING) != 0 ||
        (s->state != MN_SLOT_ENDED && (s->flags & MN_SF_CLOSED) == 0)) {
        return;
    }
    s->flags |= MN_SF_RELEASED;
    if (s->tcb == MN_NIL) {
        mn_lane_slot_free(l, s);
    }
}

static bool ctl_one(struct mn_engine *e, struct mn_lane *l, const struct mn_ctl_cmd *c)
{
    struct mn_ctl_evt evt = {
        .kind = MN_EVT_RESULT, .token = c->token, .flow = c->flow, .proto = c->proto};
    struct mn_slot *s = mn_lane_slot(l, c->flow);

    switch (c->op) {
    case MN_CTL_LISTEN:
        evt.status = do_listen(e, l, c, &evt);
        break;
    case MN_CTL_UNLISTEN:
        evt.status = do_unlisten(e, l, c->flow);
        break;
    case MN_CTL_CONNECT:
        evt.status = do_connect(e, l, c);
        if (evt.status == 0) {
            return true;
        }
        break;
    case MN_CTL_ACCEPT:
        if (s != NULL) {
            pending_done(e, s);
        }
        return true;
    case MN_CTL_RELEASE:
        do_release(l, s);
        return true;
    case MN_CTL_CANCEL:
        do_cancel(e, l, c->flow);
        return true;
    case MN_CTL_SETOPT:
        evt.status = mn_lane_setopt(e, l, c->flow, c->opt, c->value);
        break;
    case MN_CTL_GETOPT:
        evt.status = mn_lane_getopt(e, l, c->flow, c->opt, &evt.value);
        break;
    default:
        return false;
    }
    ctl_push(l, &evt);
    return true;
}

void mn_lane_ctl(struct mn_engine *e, struct mn_lane *l)
{
    const struct mn_ctl_cmd *slots = l->ctl_submit.slots;
    int64_t n = mn_ring_avail(&l->ctl_submit);

    if (n < 0) {
        mn_lane_kill(l, EPROTO);
        return;
    }
    n = n < CTL_PER_PASS ? n : CTL_PER_PASS;
    for (; n > 0 && l->dead == 0 && ctl_room(l, l->owed + 1); n--) {
        struct mn_ctl_cmd c;

        memcpy(&c, &slots[l->ctl_submit.pos & l->ctl_submit.mask], sizeof(c));
        __asm__ volatile("" ::: "memory");
        l->ctl_submit.pos++;
        if (!ctl_one(e, l, &c)) {
            mn_lane_kill(l, EPROTO);
        }
    }
    mn_ring_consume(&l->ctl_submit);
}
