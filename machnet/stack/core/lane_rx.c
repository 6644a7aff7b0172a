/* SPDX-License-Identifier: MIT */
/*
 * Receive buffers of a lane: who gets one, and the way to the application and back.
 *
 * Rules that keep a pool of buffers from locking up (DESIGN.md, rule 5). A message begins only when
 * the buffers for all of it can be promised; what is promised (rx_claimed) nobody else gets. The
 * last rx_reserve buffers are for flows that hold fewer than two. A message over MN_LARGE_MSG_BYTES
 * is the lane's only one of its kind; while it collects its buffers others may not go below what it
 * still needs. What waits, waits in order.
 */
#include "engine_int.h"

static uint32_t rx_available(const struct mn_lane *l)
{
    return l->rx_n_free + (l->geo.rx_bufs - l->rx_high);
}

static uint32_t rx_take(struct mn_lane *l)
{
    return l->rx_n_free > 0 ? l->rx_free[--l->rx_n_free] : l->rx_high++;
}

/* Buffers that a flow may still ask for, beyond what others were promised. */
static uint32_t rx_quota(const struct mn_lane *l, const struct mn_slot *s)
{
    uint32_t free = rx_available(l);
    uint32_t kept = l->rx_claimed + (s->held_bufs < 2 ? 0 : l->rx_reserve);

    return free > kept ? free - kept : 0;
}

/* A buffer for a message that needs just one, if nobody waits for buffers and there are plenty;
 * else MN_NIL. */
uint32_t mn_lane_rx_quick(struct mn_lane *l, struct mn_slot *s)
{
    if (l->blocked.head != MN_NIL || l->large.head != MN_NIL ||
        rx_available(l) <= l->rx_claimed + l->rx_reserve) {
        return MN_NIL;
    }
    uint32_t b = rx_take(l);
    MN_ASSERT(!l->rxbufs[b].shared);
    l->rxbufs[b].next = MN_NIL;
    s->held_bufs++;
    return b;
}

uint32_t mn_lane_rx_alloc(struct mn_lane *l, struct mn_slot *s)
{
    if (s->reserved_bufs > 0) {
        MN_ASSERT(l->rx_claimed > 0 && rx_available(l) > 0);
        s->reserved_bufs--;
        l->rx_claimed--;
    } else if (rx_quota(l, s) == 0) {
        return MN_NIL;
    }
    uint32_t b = rx_take(l);
    MN_ASSERT(!l->rxbufs[b].shared);
    l->rxbufs[b] = (struct mn_rxbuf){.next = MN_NIL};
    s->held_bufs++;
    return b;
}

void mn_lane_rx_unget(struct mn_lane *l, struct mn_slot *s, uint32_t b)
{
    MN_ASSERT(b < l->rx_high && !l->rxbufs[b].shared && l->rx_n_free < l->geo.rx_bufs);
    l->rx_free[l->rx_n_free++] = b;
    s->held_bufs--;
}

void mn_lane_rx_drop(struct mn_lane *l, struct mn_slot *s)
{
    while (s->asm_first != MN_NIL) {
        uint32_t next = l->rxbufs[s->asm_first].next;

        mn_lane_rx_unget(l, s, s->asm_first);
        s->asm_first = next;
    }
    s->asm_last = MN_NIL;
    l->rx_claimed -= s->reserved_bufs;
    s->reserved_bufs = 0;
}

/* A message under way that was promised too little: its length is not on the wire (mnp_lane.c). */
static bool grows(const struct mn_slot *s)
{
    return s->proto == MN_PROTO_UDP && (s->flags & MN_SF_IN_MSG) != 0 && s->msg_have > 0;
}

/* At the end; who holds a part of a message already stands in front of those who do not. */
static void list_push(struct mn_lane *l, struct mn_list *q, struct mn_slot *s)
{
    uint32_t me = (uint32_t)(s - l->slots), prev = q->tail;

    if (!mn_timer_armed(&l->timer)) {
        mn_timer_arm(&l->e->wheel, &l->timer,
                     l->e->now_ns + l->e->cfg.large_progress_ms * MN_NS_PER_MS);
    }
    if (q->head == MN_NIL) {
        prev = MN_NIL;
    }
    while (grows(s) && prev != MN_NIL && !grows(&l->slots[prev])) {
        prev = l->slots[prev].wait_prev;
    }
    s->wait_prev = prev;
    s->wait_next = prev != MN_NIL ? l->slots[prev].wait_next : q->head;
    *(prev != MN_NIL ? &l->slots[prev].wait_next : &q->head) = me;
    *(s->wait_next != MN_NIL ? &l->slots[s->wait_next].wait_prev : &q->tail) = me;
}

static void list_remove(struct mn_lane *l, struct mn_list *q, struct mn_slot *s)
{
    if (s->wait_prev == MN_NIL) {
        q->head = s->wait_next;
    } else {
        l->slots[s->wait_prev].wait_next = s->wait_next;
    }
    if (s->wait_next == MN_NIL) {
        q->tail = s->wait_prev;
    } else {
        l->slots[s->wait_next].wait_prev = s->wait_prev;
    }
    s->wait_next = s->wait_prev = MN_NIL;
}

/* Whether messages that are put together in vain hold so much that `need` more never come free:
 * each waits for another one's end. */
static bool never_fits(const struct mn_lane *l, const struct mn_slot *s, uint32_t need)
{
    uint32_t kept = need + l->rx_reserve;

    kept += (s->msg_have + l->geo.buf_bytes - 1) / l->geo.buf_bytes;
    for (uint32_t i = l->large.head; i != MN_NIL; i = l->slots[i].wait_next) {
        if (&l->slots[i] != s && grows(&l->slots[i])) {
            kept += (l->slots[i].msg_have + l->geo.buf_bytes - 1) / l->geo.buf_bytes;
        }
    }
    return kept > l->geo.rx_bufs;
}

static bool fits(const struct mn_lane *l, const struct mn_slot *s, uint32_t need, bool large)
{
    const struct mn_list *line = large ? &l->large : &l->blocked;
    uint32_t me = (uint32_t)(s - l->slots);
    uint32_t free = rx_available(l) > l->rx_claimed ? rx_available(l) - l->rx_claimed : 0;
    bool first = line->head == MN_NIL || line->head == me;

    if (large) {
        return l->large_slot == me ? free >= need + l->rx_reserve
                                   : (first || (grows(s) && !grows(&l->slots[line->head]))) &&
                                         l->large_slot == MN_NIL && free >= need + l->rx_reserve;
    }
    uint32_t kept = s->held_bufs + need <= 2 ? 0 : l->rx_reserve;
    /* While a large message waits for buffers, small ones live on the reserve. */
    bool yield = l->large.head != MN_NIL &&
                 (l->large_slot == MN_NIL || l->large_slot == l->large.head) &&
                 s->held_bufs + need > 2;

    return (first || need <= 2) && !yield && free >= need + kept;
}

/* Promises the buffers of the message that begins, or of more of one that grows; false: not now,
 * the slot waits in line. */
bool mn_lane_reserve(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s)
{
    uint32_t need = s->msg_len == 0 ? 1 : (s->msg_len + l->geo.buf_bytes - 1) / l->geo.buf_bytes;
    bool large = s->msg_len > MN_LARGE_MSG_BYTES || grows(s);
    uint32_t wait_flag = large ? MN_SF_WAIT_LARGE : MN_SF_BLOCKED;
    struct mn_list *line = large ? &l->large : &l->blocked;

    if (MN_UNLIKELY(need > l->geo.rx_bufs - l->rx_reserve)) {
        mn_tcp_doom(e, mn_tcb_at(e, s->tcb), EMSGSIZE); /* this channel can never take it */
        return false;
    }
    if (!fits(l, s, need, large)) {
        if (grows(s) && never_fits(l, s, need)) {
            mn_tcp_doom(e, mn_tcb_at(e, s->tcb), ENOBUFS);
            return false;
        }
        if ((s->flags & wait_flag) == 0) {
            s->flags |= wait_flag;
            list_push(l, line, s);
        }
        return false;
    }
    if ((s->flags & wait_flag) != 0) {
        s->flags &= ~wait_flag;
        list_remove(l, line, s);
    }
    if (large) {
        s->flags |= MN_SF_HAS_LARGE;
        l->large_slot = (uint32_t)(s - l->slots);
    }
    s->progress_ns = e->now_ns;
    s->reserved_bufs = need;
    l->rx_claimed += need;
    return true;
}

/* Gives up promises and places in lines: the message is complete, or its flow has ended. */
void mn_lane_unreserve(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s)
{
    (void)e;
    l->rx_claimed -= s->reserved_bufs;
    s->reserved_bufs = 0;
    l->wake = l->large.head != MN_NIL || l->blocked.head != MN_NIL;
    if ((s->flags & MN_SF_HAS_LARGE) != 0) {
        s->flags &= ~MN_SF_HAS_LARGE;
        l->large_slot = MN_NIL;
    }
    if ((s->flags & MN_SF_WAIT_LARGE) != 0) {
        s->flags &= ~MN_SF_WAIT_LARGE;
        list_remove(l, &l->large, s);
    }
    if ((s->flags & MN_SF_BLOCKED) != 0) {
        s->flags &= ~MN_SF_BLOCKED;
        list_remove(l, &l->blocked, s);
    }
}

/* A stream found no buffer: it stands in line for the next one. */
void mn_lane_rx_block(struct mn_lane *l, struct mn_slot *s)
{
    if ((s->flags & MN_SF_BLOCKED) == 0) {
        s->flags |= MN_SF_BLOCKED;
        list_push(l, &l->blocked, s);
    }
}

/* There is a slot for every buffer and two marks per flow, so the ring has room unless the
 * application lies about its index. */
static struct mn_desc *deliver_slot(struct mn_lane *l, const struct mn_slot *s, uint16_t flags)
{
    struct mn_desc *d;

    if (mn_ring_free(&l->deliver, 1) <= 0) {
        mn_lane_kill(l, EPROTO);
        return NULL;
    }
    d = mn_desc_slot(&l->deliver);
    *d = (struct mn_desc){.buf = MN_BUF_NONE, .flow = mn_lane_flow_id(l, s), .flags = flags};
    l->deliver.pos++;
    return d;
}

void mn_lane_deliver_mark(struct mn_lane *l, struct mn_slot *s, uint16_t flags, uint32_t len)
{
    struct mn_desc *d = deliver_slot(l, s, flags);

    if (d != NULL) {
        d->len = len;
    }
}

void mn_lane_deliver(struct mn_lane *l, struct mn_slot *s, uint32_t buf, uint16_t flags)
{
    struct mn_desc *d = deliver_slot(l, s, flags);
    struct mn_rxbuf *b = &l->rxbufs[buf];

    if (d == NULL) {
        mn_lane_rx_unget(l, s, buf);
        return;
    }
    d->buf = buf;
    d->len = b->len;
    b->shared = 1;
    b->flow = d->flow;
    s->unread_bytes += b->len;
}

static void slot_touch(struct mn_lane *l, struct mn_slot *s)
{
    uint32_t me = (uint32_t)(s - l->slots);

    if ((s->flags & MN_SF_TOUCHED) != 0 || s->tcb == MN_NIL) {
        return;
    }
    s->flags |= MN_SF_TOUCHED;
    s->next = l->touched.head;
    l->touched.head = me;
}

static bool buffer_back(struct mn_lane *l, uint32_t b)
{
    if (b >= l->rx_high || !l->rxbufs[b].shared) {
        return false; /* never given out, or given back twice */
    }
    struct mn_rxbuf *buf = &l->rxbufs[b];
    struct mn_slot *s = &l->slots[MN_FLOW_SLOT(buf->flow)];

    buf->shared = 0;
    l->rx_free[l->rx_n_free++] = b;
    if (s->gen == MN_FLOW_GEN(buf->flow) && s->state != MN_SLOT_FREE) {
        s->unread_bytes -= buf->len;
        s->held_bufs--;
        slot_touch(l, s);
    }
    return true;
}

/* Lets those who wait for buffers try again, in order, as long as it helps. */
static void wake_waiting(struct mn_engine *e, struct mn_lane *l, struct mn_list *line,
                         uint32_t flag)
{
    for (uint32_t n = 0; line->head != MN_NIL; n++) {
        if (n == 64) {
            l->wake = true; /* the rest in the next pass */
            return;
        }
        struct mn_slot *s = &l->slots[line->head];

        MN_ASSERT(s->tcb != MN_NIL);
        if (s->proto == MN_PROTO_STREAM) {
            if (rx_quota(l, s) == 0) {
                return;
            }
            s->flags &= ~flag;
            list_remove(l, line, s);
        } else if (!mn_lane_reserve(e, l, s)) {
            return;
        }
        mn_tcp_space(e, mn_tcb_at(e, s->tcb));
    }
}

void mn_lane_released(struct mn_engine *e, struct mn_lane *l)
{
    int64_t n = mn_ring_avail(&l->released);
    const uint32_t *slots = l->released.slots;

    if (n < 0) {
        mn_lane_kill(l, EPROTO);
        return;
    }
    for (; n > 0; n--) {
        /* Read once: what is judged is what is used. */
        uint32_t b = *(const volatile uint32_t *)&slots[l->released.pos & l->released.mask];

        if (!buffer_back(l, b)) {
            mn_lane_kill(l, EPROTO);
            return;
        }
        l->released.pos++;
    }
    mn_ring_consume(&l->released);
    l->wake = false;
    while (l->touched.head != MN_NIL) {
        struct mn_slot *s = &l->slots[l->touched.head];

        l->touched.head = s->next;
        s->flags &= ~MN_SF_TOUCHED;
        if (s->tcb != MN_NIL) {
            mn_tcp_space(e, mn_tcb_at(e, s->tcb));
        }
    }
    wake_waiting(e, l, &l->large, MN_SF_WAIT_LARGE);
    wake_waiting(e, l, &l->blocked, MN_SF_BLOCKED);
}

/*
 * What the peer may still send. What the application has not given back counts against the flow's
 * limit; a message under way may always be finished, so that one larger than the limit gets
 * through, and the promised edge ends with it.
 */
uint32_t mn_lane_rx_space(struct mn_engine *e, struct mn_tcb *t)
{
    const struct mn_lane *l = e->lanes[t->lane];
    const struct mn_slot *s = &l->slots[t->slot];
    uint32_t filling = s->asm_first == MN_NIL        ? 0
                       : s->proto == MN_PROTO_STREAM ? l->rxbufs[s->asm_first].len
                                                     : s->msg_have;
    uint32_t used = s->unread_bytes + filling + t->ooo_bytes;
    uint32_t space = t->rcv_buf > used ? t->rcv_buf - used : 0;
    uint32_t room;

    if ((s->flags & MN_SF_IN_MSG) != 0 && (s->flags & (MN_SF_WAIT_LARGE | MN_SF_BLOCKED)) == 0) {
        /* Beyond its end by what silly-window avoidance and scaling may take off again. */
        uint32_t rest = s->msg_len - s->msg_have + t->mss + (1u << t->rcv_wscale);

        return mn_max_u32(space, mn_min_u32(rest, t->rcv_buf));
    }
    if ((s->flags & (MN_SF_WAIT_LARGE | MN_SF_BLOCKED)) != 0) {
        /* Standing in line: no more than can wait. */
        return mn_tcp_held(t) > 0 ? 0 : mn_min_u32(space, 2 * t->mss);
    }
    /* Half of what the pool can give, so that several flows find something left; never below two
     * segments. */
    room = rx_quota(l, s) / 2 * l->geo.buf_bytes;
    return mn_min_u32(space, mn_max_u32(room, 2 * t->mss));
}
