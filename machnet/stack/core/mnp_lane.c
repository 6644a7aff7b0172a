/* SPDX-License-Identifier: MIT */
/* Messages of a channel and packets of the message protocol: cut on one side, put together on the
 * other. */
#include "engine_int.h"

static struct mn_slot *slot_of(const struct mn_engine *e, const struct mn_tcb *t)
{
    return &e->lanes[t->lane]->slots[t->slot];
}

void mn_mnp_queued(struct mn_engine *e, struct mn_tcb *t, uint32_t msg_len)
{
    MN_ASSERT((t->flags & MN_TF_FIN_QUEUED) == 0 && msg_len > 0);
    t->snd_end += (msg_len + t->mss - 1) / t->mss;
    mn_mcb_of(e, t)->snd_bytes += msg_len;
    mn_tcp_mark_dirty(e, t);
}

void mn_mnp_cut(struct mn_engine *e, struct mn_tcb *t, struct mn_mnp_sent *out)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    const struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);
    uint32_t left;

    MN_ASSERT(s->tx_cur != MN_NIL);
    out->msg_flags = MN_MNP_MORE;
    if (m->cut_left == 0) {
        m->cut_left = l->txbufs[s->tx_cur].msg_len;
        out->msg_flags |= MN_MNP_FIRST;
    }
    out->buf = s->tx_cur;
    out->off = (uint16_t)m->cut_off;
    out->len = (uint16_t)mn_min_u32(m->cut_left, t->mss);
    m->cut_left -= out->len;
    if (m->cut_left == 0) {
        out->msg_flags = (uint8_t)((out->msg_flags & ~MN_MNP_MORE) | MN_MNP_LAST);
    }
    for (left = out->len; left > 0;) {
        const struct mn_txbuf *b = &l->txbufs[s->tx_cur];
        uint32_t n = mn_min_u32(left, b->len - m->cut_off);

        left -= n;
        m->cut_off += n;
        if (m->cut_off == b->len) {
            s->tx_cur = b->next;
            m->cut_off = 0;
        }
    }
}

uint32_t mn_mnp_copy(struct mn_engine *e, const struct mn_tcb *t, const struct mn_mnp_sent *p,
                     uint8_t *dst, bool want_sum)
{
    const struct mn_lane *l = e->lanes[t->lane];
    uint32_t b = p->buf, off = p->off, done = 0;

    if (want_sum && p->len <= l->txbufs[b].len - off) {
        return mn_csum_copy(dst, l->tx_pool + (uint64_t)b * l->geo.buf_bytes + off, p->len, 0);
    }
    while (done < p->len) {
        uint32_t n = mn_min_u32(p->len - done, l->txbufs[b].len - off);

        memcpy(dst + done, l->tx_pool + (uint64_t)b * l->geo.buf_bytes + off, n);
        done += n;
        off = 0;
        b = l->txbufs[b].next;
    }
    return want_sum ? mn_csum_partial(dst, p->len, 0) : 0;
}

/* Of the message that begins with this packet. */
uint32_t mn_mnp_msg_len(const struct mn_engine *e, const struct mn_tcb *t,
                        const struct mn_mnp_sent *p)
{
    return e->lanes[t->lane]->txbufs[p->buf].msg_len;
}

/* Buffers in front of the first packet that is not acknowledged are done with. */
void mn_mnp_acked(struct mn_engine *e, struct mn_tcb *t)
{
    const struct mn_mcb *m = mn_mcb_of(e, t);
    const struct mn_slot *s = slot_of(e, t);
    uint32_t keep = s->tx_cur;

    if (t->snd_una != t->snd_nxt && m->sent[t->snd_una % MN_MNP_WND_MAX].buf != MN_NIL) {
        keep = m->sent[t->snd_una % MN_MNP_WND_MAX].buf;
    }
    mn_lane_tx_upto(e->lanes[t->lane], slot_of(e, t), keep);
}

/* ---- receive side --------------------------------------------------------------------------- */

static enum mn_mnp_taken broken(struct mn_engine *e, struct mn_tcb *t, int err)
{
    if (err == EPROTO) {
        e->stats.mnp_broken++;
    } else {
        e->stats.framing_errors++;
    }
    mn_tcp_doom(e, t, err);
    return MN_MNP_BROKEN;
}

/* The longest message that this channel could ever take. */
static uint32_t longest(const struct mn_lane *l)
{
    uint64_t all = (uint64_t)(l->geo.rx_bufs - l->rx_reserve) * l->geo.buf_bytes;

    return (uint32_t)mn_min_u64(all, MN_MSG_MAX_BYTES);
}

static void copy_in(struct mn_engine *e, const uint8_t *p, uint32_t blk, uint8_t *dst, uint32_t len)
{
    if (p != NULL) {
        memcpy(dst, p, len);
        return;
    }
    for (uint32_t done = 0; done < len; blk = e->blocks[blk].next) {
        memcpy(dst + done, e->blocks[blk].data, e->blocks[blk].len);
        done += e->blocks[blk].len;
    }
}

/* A message of one packet and one buffer, when there are plenty of those. */
static bool whole_in(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t blk,
                     uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);
    uint32_t b = len <= l->geo.buf_bytes ? mn_lane_rx_quick(l, s) : MN_NIL;

    if (b == MN_NIL) {
        return false;
    }
    copy_in(e, p, blk, l->rx_pool + (uint64_t)b * l->geo.buf_bytes, len);
    l->rxbufs[b].len = len;
    mn_lane_deliver(l, s, b, MN_DESC_FIRST | MN_DESC_LAST);
    s->rx_msgs++;
    e->stats.msgs_delivered++;
    return true;
}

static void body_in(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t blk,
                    uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);

    if (p != NULL) {
        (void)mn_framing_body(e, l, s, p, len);
        return;
    }
    for (; blk != MN_NIL; blk = e->blocks[blk].next) {
        (void)mn_framing_body(e, l, s, e->blocks[blk].data, e->blocks[blk].len);
    }
}

/* What the buffers of the message that is put together hold when they are full. */
static uint32_t asm_bytes(const struct mn_lane *l, const struct mn_slot *s)
{
    return (s->msg_have + l->geo.buf_bytes - 1) / l->geo.buf_bytes * l->geo.buf_bytes;
}

static bool waits(const struct mn_slot *s)
{
    return (s->flags & (MN_SF_WAIT_LARGE | MN_SF_BLOCKED)) != 0;
}

/*
 * A plain message goes beyond what it was promised, as its length is not on the wire: with the
 * place of the large one it is promised more, step by step, as long as any may become. False: not
 * yet.
 */
static bool grow(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);
    uint32_t full = asm_bytes(l, s);

    if (!m->grows) {
        l->rx_claimed -= s->reserved_bufs;
        s->reserved_bufs = 0;
        m->grows = true;
        /* To be promised: in whole buffers, the one that is part-filled is there already. */
        s->msg_len = mn_min_u32(longest(l) - mn_min_u32(longest(l), full), MN_LARGE_MSG_BYTES);
        if (s->msg_len > 0 && !mn_lane_reserve(e, l, s)) {
            return false;
        }
    } else if (waits(s) && !mn_lane_reserve(e, l, s)) {
        return false;
    }
    m->grows = false;
    s->msg_len += full;
    return true;
}

/* The first packet of a message: how long that is, or may become. It may come several times before
 * there is room, and a peer may have changed its mind meanwhile. */
static enum mn_mnp_taken begin(struct mn_engine *e, struct mn_tcb *t, bool last, uint32_t msg_len,
                               uint32_t len)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);
    bool again = (s->flags & MN_SF_IN_MSG) != 0, told = (m->feats & MN_MNP_F_MSGLEN) != 0;

    if (!told) {
        msg_len = again ? s->msg_len : last ? len : mn_min_u32(MN_LARGE_MSG_BYTES, longest(l));
    } else if (msg_len > MN_MSG_MAX_BYTES) {
        return broken(e, t, EMSGSIZE);
    }
    if ((told && last ? len != msg_len : len + !last > msg_len) ||
        (again && msg_len != s->msg_len)) {
        return broken(e, t, told ? EPROTO : EMSGSIZE);
    }
    if (!again) {
        s->flags |= MN_SF_IN_MSG;
        s->msg_len = msg_len;
        s->msg_have = 0;
        m->grows = false;
    } else if (!waits(s)) {
        return MN_MNP_TAKEN; /* promised since the last attempt */
    }
    return mn_lane_reserve(e, l, s) ? MN_MNP_TAKEN : MN_MNP_BLOCKED;
}

static enum mn_mnp_taken more(struct mn_engine *e, struct mn_tcb *t, bool last, uint32_t len)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    struct mn_slot *s = slot_of(e, t);
    uint32_t have = s->msg_have + len;

    if ((m->feats & MN_MNP_F_MSGLEN) != 0) {
        return (last ? have == s->msg_len : have < s->msg_len) ? MN_MNP_TAKEN
                                                               : broken(e, t, EPROTO);
    }
    if (m->grows || have + !last > s->msg_len) {
        if (have + !last > longest(e->lanes[t->lane])) {
            return broken(e, t, EMSGSIZE);
        }
        if (!grow(e, t)) {
            return MN_MNP_BLOCKED;
        }
    }
    return have + !last > s->msg_len ? broken(e, t, EMSGSIZE) : MN_MNP_TAKEN;
}

enum mn_mnp_taken mn_mnp_deliver(struct mn_engine *e, struct mn_tcb *t, uint8_t msg_flags,
                                 uint32_t msg_len, const uint8_t *p, uint32_t blk, uint32_t len)
{
    struct mn_lane *l = e->lanes[t->lane];
    struct mn_slot *s = slot_of(e, t);
    bool first = (msg_flags & MN_MNP_FIRST) != 0, last = (msg_flags & MN_MNP_LAST) != 0;
    bool plain = (mn_mcb_of(e, t)->feats & MN_MNP_F_MSGLEN) == 0;
    enum mn_mnp_taken taken;

    if (MN_UNLIKELY((t->flags & MN_TF_DOOMED) != 0)) {
        return MN_MNP_BROKEN;
    }
    if (MN_UNLIKELY((s->flags & MN_SF_CLOSED) != 0 || l->dead != 0)) {
        return MN_MNP_TAKEN;
    }
    /* A first packet that found neither buffers nor a block begins the message when it comes again:
     * another one in its place would have no buffers promised. */
    bool begun = (s->flags & MN_SF_IN_MSG) != 0 && s->msg_have > 0;
    if (((msg_flags & MN_MNP_MORE) != 0) == last || first == begun) {
        return broken(e, t, EPROTO);
    }
    if (MN_LIKELY(first && last && (s->flags & MN_SF_IN_MSG) == 0 && (plain || msg_len == len)) &&
        whole_in(e, t, p, blk, len)) {
        return MN_MNP_TAKEN;
    }
    taken = first ? begin(e, t, last, msg_len, len) : more(e, t, last, len);
    if (taken != MN_MNP_TAKEN) {
        return taken;
    }
    if (plain && last) {
        s->msg_len = s->msg_have + len;
    }
    body_in(e, t, p, blk, len);
    if (plain && last) {
        mn_lane_unreserve(e, l, s); /* what was promised too much */
    }
    return MN_MNP_TAKEN;
}
