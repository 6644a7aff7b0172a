/* SPDX-License-Identifier: MIT */
/* Messages in a byte stream: four bytes of length, big-endian, then as many bytes. Receive side;
 * the send side writes the prefix as it copies. */
#include "engine_int.h"

/* The message is complete: its buffers go to the application together. */
static void message_done(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s)
{
    uint16_t flags = MN_DESC_FIRST;
    uint32_t b = s->asm_first;

    while (b != MN_NIL) {
        uint32_t next = l->rxbufs[b].next;

        if (next == MN_NIL) {
            flags |= MN_DESC_LAST;
        }
        mn_lane_deliver(l, s, b, flags);
        flags = 0;
        b = next;
    }
    s->asm_first = s->asm_last = MN_NIL;
    s->flags &= ~MN_SF_IN_MSG;
    s->rx_msgs++;
    e->stats.msgs_delivered++;
    if (MN_UNLIKELY((s->flags & MN_SF_HAS_LARGE) != 0)) {
        mn_lane_unreserve(e, l, s);
    }
}

/* Bytes of the prefix; true once it is whole and the message is begun. */
static bool prefix_in(struct mn_engine *e, struct mn_tcb *t, struct mn_slot *s, const uint8_t *p,
                      uint32_t len, uint32_t *used)
{
    uint32_t n = mn_min_u32(MN_FRAME_PREFIX - s->prefix_have, len);

    memcpy(s->prefix + s->prefix_have, p, n);
    s->prefix_have += n;
    *used = n;
    if (s->prefix_have < MN_FRAME_PREFIX) {
        return false;
    }
    s->prefix_have = 0;
    s->msg_len = mn_rd32be(s->prefix);
    s->msg_have = 0;
    if (s->msg_len > MN_MSG_MAX_BYTES) {
        e->stats.framing_errors++;
        mn_tcp_doom(e, t, EMSGSIZE);
        return false;
    }
    s->flags |= MN_SF_IN_MSG;
    return true;
}

/* An empty message has to wait for its buffer. With its whole prefix taken nothing would call for
 * it again, and the peer's FIN could overtake it: so the last byte stays with TCP meanwhile. */
static uint32_t keep_byte(struct mn_slot *s)
{
    if (s->msg_len > 0 || (s->flags & MN_SF_BLOCKED) == 0) {
        return 0;
    }
    s->flags |= MN_SF_KEPT;
    return 1;
}

/* Copies body bytes into the message's buffers, which were promised. */
uint32_t mn_framing_body(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                         const uint8_t *p, uint32_t len)
{
    uint32_t done = 0;

    len = mn_min_u32(len, s->msg_len - s->msg_have);
    while (done < len || s->asm_first == MN_NIL) {
        struct mn_rxbuf *last = s->asm_last == MN_NIL ? NULL : &l->rxbufs[s->asm_last];

        if (last == NULL || last->len == l->geo.buf_bytes) {
            uint32_t b = mn_lane_rx_alloc(l, s);

            MN_ASSERT(b != MN_NIL);
            if (last == NULL) {
                s->asm_first = b;
            } else {
                last->next = b;
            }
            s->asm_last = b;
            last = &l->rxbufs[b];
        }
        uint32_t n = mn_min_u32(len - done, l->geo.buf_bytes - last->len);
        memcpy(l->rx_pool + (uint64_t)s->asm_last * l->geo.buf_bytes + last->len, p + done, n);
        last->len += n;
        done += n;
    }
    s->msg_have += done;
    s->progress_ns = e->now_ns;
    if (s->msg_have == s->msg_len) {
        message_done(e, l, s);
    }
    return done;
}

/* The common case: a small message that is all there, with a buffer to be had at once. Returns the
 * bytes used, 0 when it is another case. */
static uint32_t whole_in(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                         const uint8_t *p, uint32_t len)
{
    uint32_t size, b;

    if (len < MN_FRAME_PREFIX || s->prefix_have != 0) {
        return 0;
    }
    size = mn_rd32be(p);
    if (size > l->geo.buf_bytes || size > len - MN_FRAME_PREFIX) {
        return 0;
    }
    b = mn_lane_rx_quick(l, s);
    if (b == MN_NIL) {
        return 0;
    }
    memcpy(l->rx_pool + (uint64_t)b * l->geo.buf_bytes, p + MN_FRAME_PREFIX, size);
    l->rxbufs[b].len = size;
    mn_lane_deliver(l, s, b, MN_DESC_FIRST | MN_DESC_LAST);
    s->rx_msgs++;
    e->stats.msgs_delivered++;
    return MN_FRAME_PREFIX + size;
}

uint32_t mn_framing_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = &l->slots[t->slot];
    uint32_t done = 0;

    if (MN_UNLIKELY((t->flags & MN_TF_DOOMED) != 0 || (s->flags & MN_SF_CLOSED) != 0 ||
                    l->dead != 0)) {
        return len;
    }
    while (done < len) {
        if ((s->flags & MN_SF_IN_MSG) == 0) {
            uint32_t used = whole_in(e, l, s, p + done, len - done);

            if (MN_LIKELY(used > 0)) {
                done += used;
                continue;
            }
            bool begun = prefix_in(e, t, s, p + done, len - done, &used);

            done += used;
            if (!begun) {
                if ((t->flags & MN_TF_DOOMED) != 0) {
                    return len;
                }
                break;
            }
            if (!mn_lane_reserve(e, l, s)) {
                done -= keep_byte(s);
                break;
            }
            if (s->msg_len > 0) {
                continue;
            }
        } else if ((s->flags & (MN_SF_WAIT_LARGE | MN_SF_BLOCKED)) != 0 &&
                   !mn_lane_reserve(e, l, s)) {
            break;
        }
        if (MN_UNLIKELY((s->flags & MN_SF_KEPT) != 0)) {
            s->flags &= ~MN_SF_KEPT;
            done++;
        }
        done += mn_framing_body(e, l, s, p + done, len - done);
    }
    return done;
}

/* Bytes as they come, in part-filled buffers that the end of the pass delivers. */
uint32_t mn_stream_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = &l->slots[t->slot];
    uint32_t done = 0;

    if (MN_UNLIKELY((s->flags & MN_SF_CLOSED) != 0 || l->dead != 0)) {
        return len;
    }
    while (done < len) {
        struct mn_rxbuf *b = s->asm_first == MN_NIL ? NULL : &l->rxbufs[s->asm_first];

        if (b == NULL) {
            s->asm_first = mn_lane_rx_alloc(l, s);
            if (s->asm_first == MN_NIL) {
                mn_lane_rx_block(l, s);
                break;
            }
            b = &l->rxbufs[s->asm_first];
            if ((s->flags & MN_SF_OPEN) == 0) {
                s->flags |= MN_SF_OPEN;
                s->open_next = l->open.head;
                l->open.head = (uint32_t)(s - l->slots);
            }
        }
        uint32_t n = mn_min_u32(len - done, l->geo.buf_bytes - b->len);
        memcpy(l->rx_pool + (uint64_t)s->asm_first * l->geo.buf_bytes + b->len, p + done, n);
        b->len += n;
        done += n;
        if (b->len == l->geo.buf_bytes) {
            mn_stream_flush(l, s);
        }
    }
    return done;
}

void mn_stream_flush(struct mn_lane *l, struct mn_slot *s)
{
    if (s->asm_first == MN_NIL) {
        return;
    }
    uint32_t b = s->asm_first;
    s->asm_first = s->asm_last = MN_NIL;
    mn_lane_deliver(l, s, b, 0);
}

void mn_stream_flush_all(struct mn_lane *l)
{
    while (l->open.head != MN_NIL) {
        struct mn_slot *s = &l->slots[l->open.head];

        l->open.head = s->open_next;
        s->flags &= ~MN_SF_OPEN;
        if (s->proto == MN_PROTO_STREAM) {
            mn_stream_flush(l, s);
        }
    }
}
