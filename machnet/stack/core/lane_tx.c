/* SPDX-License-Identifier: MIT */
/* From the submit ring to a flow's send queue, and from there to the wire: the buffers stay the
 * engine's until they are acknowledged. */
#include "engine_int.h"

static void tx_return(struct mn_lane *l, uint32_t b)
{
    l->txbufs[b].owned = 0;
    /* As many slots as buffers: room unless the application lies about its index. */
    if (mn_ring_free(&l->completed, 1) <= 0) {
        mn_lane_kill(l, EPROTO);
        return;
    }
    ((uint32_t *)l->completed.slots)[l->completed.pos & l->completed.mask] = b;
    l->completed.pos++;
}

static void tx_return_chain(struct mn_lane *l, uint32_t b)
{
    while (b != MN_NIL) {
        uint32_t next = l->txbufs[b].next;

        tx_return(l, b);
        b = next;
    }
}

void mn_lane_tx_free(struct mn_lane *l, struct mn_slot *s)
{
    tx_return_chain(l, s->tx_head);
    s->tx_head = s->tx_tail = s->tx_cur = s->tx_rcur = MN_NIL;
    s->tx_bufs = 0;
}

static uint32_t entry_bytes(const struct mn_txbuf *b)
{
    return b->len + (b->first ? MN_FRAME_PREFIX : 0);
}

/* Puts a chain at the end of a flow's send queue. */
static void tx_append(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s, uint32_t first,
                      uint32_t last, uint32_t n, uint32_t bytes)
{
    struct mn_tcb *t = mn_tcb_at(e, s->tcb);

    if (s->tx_head == MN_NIL) {
        s->tx_head = first;
        s->tx_head_seq = t->snd_end;
    } else {
        l->txbufs[s->tx_tail].next = first;
    }
    if (s->tx_cur == MN_NIL) {
        s->tx_cur = first;
        s->tx_cur_seq = t->snd_end;
    }
    s->tx_tail = last;
    s->tx_bufs += n;
    if (s->proto == MN_PROTO_UDP) {
        mn_mnp_queued(e, t, bytes);
    } else {
        mn_tcp_queued(e, t, bytes + (s->proto == MN_PROTO_TCP ? MN_FRAME_PREFIX : 0));
    }
}

/* The flow can be sent on: still, and already (its id can be guessed before the connect's RESULT).
 */
static bool slot_sends(const struct mn_slot *s)
{
    return s != NULL && s->tcb != MN_NIL &&
           (s->flags & (MN_SF_SHUT | MN_SF_CLOSED | MN_SF_CONNECTING)) == 0;
}

static bool submit_stream(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                          const struct mn_desc *d)
{
    struct mn_tcb *t;

    if (d->len == 0 || (d->flags & (MN_DESC_FIRST | MN_DESC_LAST)) != 0) {
        return false;
    }
    t = mn_tcb_at(e, s->tcb);
    tx_append(e, l, s, d->buf, d->buf, 1, d->len);
    if ((d->flags & MN_DESC_MORE) != 0) {
        t->flags |= MN_TF_MORE;
    } else {
        t->flags &= ~MN_TF_MORE;
    }
    if ((d->flags & MN_DESC_URG) != 0) {
        mn_tcp_urgent(e, t);
    }
    return true;
}

/* One piece of a message; the whole is queued with its last one. */
static bool submit_message(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                           const struct mn_desc *d)
{
    bool first = (d->flags & MN_DESC_FIRST) != 0, last = (d->flags & MN_DESC_LAST) != 0;

    if (first == l->sub_open || (l->sub_open && d->flow != l->sub_flow) ||
        (!last && d->len != l->geo.buf_bytes) || (!first && d->len == 0)) {
        return false;
    }
    if (first) {
        l->sub_open = true;
        l->sub_flow = d->flow;
        l->sub_first = d->buf;
        l->sub_len = 0;
        l->sub_n = 0;
    } else {
        l->txbufs[l->sub_last].next = d->buf;
    }
    l->sub_last = d->buf;
    l->sub_len += d->len;
    l->sub_n++;
    if (l->sub_len > MN_MSG_MAX_BYTES) {
        return false;
    }
    if (!last) {
        return true;
    }
    l->sub_open = false;
    if (!slot_sends(s)) {
        e->stats.drop_stale_flow++;
        tx_return_chain(l, l->sub_first);
        return true;
    }
    if (s->proto == MN_PROTO_UDP && l->sub_len == 0) {
        return false; /* that transport has no empty messages */
    }
    l->txbufs[l->sub_first].first = 1;
    l->txbufs[l->sub_first].msg_len = l->sub_len;
    e->stats.msgs_submitted++;
    s->tx_msgs++;
    tx_append(e, l, s, l->sub_first, l->sub_last, l->sub_n, l->sub_len);
    if ((s->flags & MN_SF_EOF) != 0) {
        mn_lane_eof_check(e, l, s);
    }
    return true;
}

static bool submit_mark(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                        const struct mn_desc *d)
{
    if (l->sub_open || d->buf != MN_BUF_NONE) {
        return false;
    }
    if (s == NULL || s->tcb == MN_NIL || (s->flags & MN_SF_CLOSED) != 0) {
        e->stats.drop_stale_flow++;
        return true;
    }
    if ((d->flags & MN_DESC_CLOSE) != 0) {
        mn_lane_close_flow(e, l, s, d->len);
    } else if ((s->flags & MN_SF_SHUT) == 0) {
        s->flags |= MN_SF_SHUT;
        mn_tcp_shutdown(e, mn_tcb_at(e, s->tcb));
    }
    return true;
}

/* A descriptor, already copied out of shared memory. False: the application breaks the rules. */
static bool submit_one(struct mn_engine *e, struct mn_lane *l, const struct mn_desc *d)
{
    struct mn_slot *s = mn_lane_slot(l, d->flow);

    if ((d->flags & (MN_DESC_FIN | MN_DESC_CLOSE)) != 0) {
        return submit_mark(e, l, s, d);
    }
    if (d->buf >= l->geo.tx_bufs || d->len > l->geo.buf_bytes || l->txbufs[d->buf].owned) {
        return false;
    }
    l->txbufs[d->buf] = (struct mn_txbuf){.next = MN_NIL, .len = d->len, .owned = 1};
    if (l->sub_open || (d->flags & MN_DESC_FIRST) != 0) {
        if (s != NULL && s->proto == MN_PROTO_STREAM) {
            return false;
        }
        return submit_message(e, l, s, d);
    }
    if (!slot_sends(s)) {
        e->stats.drop_stale_flow++;
        tx_return(l, d->buf);
        return true;
    }
    return s->proto == MN_PROTO_STREAM && submit_stream(e, l, s, d);
}

uint32_t mn_lane_submit(struct mn_engine *e, struct mn_lane *l, uint32_t budget)
{
    uint32_t done = 0;
    int64_t n = mn_ring_avail(&l->submit);
    const struct mn_desc *slots = l->submit.slots;

    if (n < 0) {
        mn_lane_kill(l, EPROTO);
        return 0;
    }
    while (done < budget && done < (uint32_t)n && l->dead == 0) {
        struct mn_desc d;

        memcpy(&d, &slots[l->submit.pos & l->submit.mask], sizeof(d));
        __asm__ volatile("" ::: "memory"); /* the copy is what is judged and what is used */
        l->submit.pos++;
        done++;
        if (!submit_one(e, l, &d)) {
            mn_lane_kill(l, EPROTO);
        }
    }
    mn_ring_consume(&l->submit);
    return done;
}

/* Copies what [at, at + len) of one entry (prefix included) holds. */
static void entry_copy(const struct mn_lane *l, uint32_t b, uint32_t at, uint8_t *dst, uint32_t len)
{
    const struct mn_txbuf *buf = &l->txbufs[b];

    if (buf->first) {
        if (at < MN_FRAME_PREFIX) {
            uint8_t prefix[MN_FRAME_PREFIX];
            uint32_t n = mn_min_u32(MN_FRAME_PREFIX - at, len);

            mn_wr32be(prefix, buf->msg_len);
            if (MN_LIKELY(n == MN_FRAME_PREFIX)) {
                memcpy(dst, prefix, MN_FRAME_PREFIX);
            } else {
                memcpy(dst, prefix + at, n);
            }
            dst += n;
            len -= n;
            at += n;
        }
        at -= MN_FRAME_PREFIX;
    }
    memcpy(dst, l->tx_pool + (uint64_t)b * l->geo.buf_bytes + at, len);
}

uint32_t mn_lane_tx_copy(struct mn_engine *e, struct mn_tcb *t, uint32_t off, uint8_t *dst,
                         uint32_t len, bool want_sum)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = &l->slots[t->slot];
    uint32_t seq = t->snd_una + off, left = len;
    uint32_t *cur = &s->tx_cur, *cur_seq = &s->tx_cur_seq;
    bool again = s->tx_cur == MN_NIL || mn_seq_lt(seq, s->tx_cur_seq);
    uint8_t *out = dst;

    if (again) {
        if (s->tx_rcur == MN_NIL || mn_seq_lt(seq, s->tx_rcur_seq)) {
            s->tx_rcur = s->tx_head;
            s->tx_rcur_seq = s->tx_head_seq;
        }
        cur = &s->tx_rcur;
        cur_seq = &s->tx_rcur_seq;
    }
    while (left > 0) {
        MN_ASSERT(*cur != MN_NIL);
        const struct mn_txbuf *b = &l->txbufs[*cur];
        uint32_t size = entry_bytes(b);
        uint32_t at = seq - *cur_seq;

        if (at >= size) {
            *cur_seq += size;
            *cur = b->next;
            continue;
        }
        uint32_t n = mn_min_u32(size - at, left);
        if (want_sum && n == len && !b->first) {
            return mn_csum_copy(out, l->tx_pool + (uint64_t)*cur * l->geo.buf_bytes + at, len, 0);
        }
        entry_copy(l, *cur, at, out, n);
        out += n;
        seq += n;
        left -= n;
    }
    return want_sum ? mn_csum_partial(dst, len, 0) : 0;
}

void mn_lane_tx_upto(struct mn_lane *l, struct mn_slot *s, uint32_t keep)
{
    while (s->tx_head != keep) {
        uint32_t b = s->tx_head;

        MN_ASSERT(b != MN_NIL);
        s->tx_head = l->txbufs[b].next;
        s->tx_bufs--;
        tx_return(l, b);
    }
    if (s->tx_head == MN_NIL) {
        s->tx_tail = MN_NIL;
    }
}

void mn_lane_tx_acked(struct mn_engine *e, struct mn_tcb *t, uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = &l->slots[t->slot];

    (void)len; /* snd_una has moved already: what ends at or before it is done with */
    while (s->tx_head != MN_NIL) {
        uint32_t b = s->tx_head;
        uint32_t end = s->tx_head_seq + entry_bytes(&l->txbufs[b]);

        if (mn_seq_gt(end, t->snd_una)) {
            return;
        }
        s->tx_head = l->txbufs[b].next;
        s->tx_head_seq = end;
        s->tx_bufs--;
        if (s->tx_cur == b) {
            s->tx_cur = s->tx_head;
            s->tx_cur_seq = end;
        }
        if (s->tx_rcur == b) {
            s->tx_rcur = s->tx_head;
            s->tx_rcur_seq = end;
        }
        tx_return(l, b);
    }
    s->tx_tail = MN_NIL;
}
