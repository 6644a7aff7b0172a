/* SPDX-License-Identifier: MIT */
/*
 * Data in. What is in order goes to the user at once; what is ahead, or what the user has no room
 * for, waits in ranges of private blocks. Bytes received first win over later copies. What waits in
 * order is acknowledged and kept; what is ahead is not, and may be dropped for room.
 */
#include "engine_int.h"

static struct mn_range *range_at(const struct mn_engine *e, uint32_t i)
{
    return &e->ranges[i];
}

static void range_free(struct mn_engine *e, struct mn_tcb *t, uint32_t *link)
{
    uint32_t i = *link;
    struct mn_range *r = range_at(e, i);

    t->ooo_bytes -= r->right - r->left;
    t->ooo_count--;
    e->ooo_ranges_used--;
    mn_blocks_put(e, r->first_blk);
    *link = r->next;
    mn_pool_put(&e->range_pool, i);
}

void mn_ooo_clear(struct mn_engine *e, struct mn_tcb *t)
{
    while (t->ooo_head != MN_NIL) {
        range_free(e, t, &t->ooo_head);
    }
}

/* Room for one more block: from the channel's share, else by giving up what this connection holds
 * furthest ahead of `seq`. */
static uint32_t block_get(struct mn_engine *e, struct mn_tcb *t, uint32_t seq)
{
    uint32_t b = mn_block_get(e, t->lane);

    if (b == MN_NIL && t->ooo_head != MN_NIL) {
        uint32_t *link = &t->ooo_head;

        while (range_at(e, *link)->next != MN_NIL) {
            link = &range_at(e, *link)->next;
        }
        if (link != &t->ooo_head && mn_seq_gt(range_at(e, *link)->left, seq + MN_OOO_BLOCK_BYTES)) {
            e->stats.tcp_ooo_evicted += range_at(e, *link)->right - range_at(e, *link)->left;
            range_free(e, t, link);
            b = mn_block_get(e, t->lane);
        }
    }
    return b;
}

/* Adds bytes behind a range; returns how many found room. */
static uint32_t range_append(struct mn_engine *e, struct mn_tcb *t, struct mn_range *r,
                             const uint8_t *p, uint32_t len)
{
    uint32_t done = 0;

    while (done < len) {
        struct mn_block *b = r->last_blk == MN_NIL ? NULL : &e->blocks[r->last_blk];
        uint32_t used = b == NULL ? MN_OOO_BLOCK_BYTES : (uint32_t)b->off + b->len;

        if (used == MN_OOO_BLOCK_BYTES) {
            uint32_t i = block_get(e, t, r->right);

            if (i == MN_NIL) {
                break;
            }
            if (r->last_blk == MN_NIL) {
                r->first_blk = i;
            } else {
                e->blocks[r->last_blk].next = i;
            }
            r->last_blk = i;
            b = &e->blocks[i];
            used = 0;
        }
        uint32_t n = mn_min_u32(len - done, MN_OOO_BLOCK_BYTES - used);
        memcpy(b->data + used, p + done, n);
        b->len = (uint16_t)(b->len + n);
        r->right += n;
        t->ooo_bytes += n;
        done += n;
    }
    return done;
}

static uint32_t range_new(struct mn_engine *e, struct mn_tcb *t, uint32_t *link, uint32_t seq)
{
    uint32_t i = t->ooo_count < e->cfg.ooo_ranges_max ? mn_pool_get(&e->range_pool) : MN_NIL;

    if (i == MN_NIL) {
        return MN_NIL;
    }
    *range_at(e, i) = (struct mn_range){.left = seq,
                                        .right = seq,
                                        .next = *link,
                                        .first_blk = MN_NIL,
                                        .last_blk = MN_NIL,
                                        .stamp = ++t->ooo_stamp};
    *link = i;
    t->ooo_count++;
    e->ooo_ranges_used++;
    return i;
}

/* The range at *link swallows its successor, which begins where it ends. */
static void range_join(struct mn_engine *e, struct mn_tcb *t, struct mn_range *r)
{
    uint32_t i = r->next;
    struct mn_range *n = range_at(e, i);

    MN_ASSERT(r->right == n->left);
    if (r->last_blk == MN_NIL) {
        r->first_blk = n->first_blk;
    } else {
        e->blocks[r->last_blk].next = n->first_blk;
    }
    r->last_blk = n->last_blk;
    r->right = n->right;
    r->stamp = mn_max_u32(r->stamp, n->stamp);
    r->next = n->next;
    t->ooo_count--;
    e->ooo_ranges_used--;
    mn_pool_put(&e->range_pool, i);
}

/* Stores what is new of [seq, seq + len). Returns bytes that found no room. */
static uint32_t ooo_insert(struct mn_engine *e, struct mn_tcb *t, uint32_t seq, const uint8_t *p,
                           uint32_t len)
{
    uint32_t *link = &t->ooo_head;
    uint32_t lost = 0;

    while (*link != MN_NIL && mn_seq_lt(range_at(e, *link)->right, seq)) {
        link = &range_at(e, *link)->next;
    }
    while (len > 0) {
        struct mn_range *r = *link == MN_NIL ? NULL : range_at(e, *link);

        if (r == NULL || mn_seq_lt(seq, r->left)) {
            /* A gap before r: a range of its own, joined with r when it reaches it. */
            uint32_t n = r == NULL ? len : mn_min_u32(len, r->left - seq);
            uint32_t i = range_new(e, t, link, seq);

            if (i == MN_NIL) {
                return lost + len;
            }
            uint32_t got = range_append(e, t, range_at(e, i), p, n);
            if (got == 0) {
                range_free(e, t, link);
            } else if (range_at(e, i)->next != MN_NIL &&
                       range_at(e, i)->right == range_at(e, range_at(e, i)->next)->left) {
                range_join(e, t, range_at(e, i));
            }
            lost += n - got;
            if (got < n) {
                return lost + len - n;
            }
            seq += n;
            p += n;
            len -= n;
            continue;
        }
        /* [r->left, r->right] contains seq: what overlaps is known, what follows is added up to the
         * next range. */
        uint32_t known = mn_min_u32(len, r->right - seq);
        seq += known;
        p += known;
        len -= known;
        r->stamp = ++t->ooo_stamp;
        if (len == 0) {
            break;
        }
        uint32_t n = r->next == MN_NIL ? len : mn_min_u32(len, range_at(e, r->next)->left - seq);
        uint32_t got = range_append(e, t, r, p, n);
        if (got < n) {
            return lost + len - got;
        }
        seq += n;
        p += n;
        len -= n;
        if (r->next != MN_NIL && r->right == range_at(e, r->next)->left) {
            range_join(e, t, r);
        }
    }
    return lost;
}

static uint32_t user_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len)
{
    uint32_t n = t->user != NULL ? t->user->rx(e, t, p, len) : 0;

    MN_ASSERT(n <= len);
    t->usr_nxt += n;
    t->rcv_nxt = mn_seq_max(t->rcv_nxt, t->usr_nxt);
    return n;
}

uint32_t mn_tcp_held(const struct mn_tcb *t)
{
    return t->rcv_nxt - ((t->flags & MN_TF_FIN_RCVD) != 0) - t->usr_nxt;
}

void mn_tcp_tell_eof(struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & (MN_TF_FIN_RCVD | MN_TF_EOF_TOLD)) == MN_TF_FIN_RCVD && t->user != NULL &&
        mn_tcp_held(t) == 0) {
        t->flags |= MN_TF_EOF_TOLD;
        t->user->event(e, t, MN_TCP_EV_EOF, 0);
    }
}

/* What lies in order in the first range is kept whatever comes: it can be acknowledged. */
static void ooo_advance(const struct mn_engine *e, struct mn_tcb *t)
{
    if ((t->flags & MN_TF_FIN_RCVD) == 0 && t->ooo_head != MN_NIL &&
        mn_seq_le(range_at(e, t->ooo_head)->left, t->rcv_nxt)) {
        t->rcv_nxt = mn_seq_max(t->rcv_nxt, range_at(e, t->ooo_head)->right);
    }
}

/* Hands over what lies in order, as far as the user takes it. */
void mn_ooo_drain(struct mn_engine *e, struct mn_tcb *t)
{
    while (t->ooo_head != MN_NIL) {
        struct mn_range *r = range_at(e, t->ooo_head);
        uint32_t b = r->first_blk;

        if (mn_seq_gt(r->left, t->usr_nxt)) {
            break;
        }
        if (mn_seq_le(r->right, t->usr_nxt)) {
            range_free(e, t, &t->ooo_head);
            continue;
        }
        uint32_t skip = mn_min_u32(t->usr_nxt - r->left, e->blocks[b].len);
        uint32_t took = skip;
        if (skip < e->blocks[b].len) {
            uint32_t n =
                user_rx(e, t, e->blocks[b].data + e->blocks[b].off + skip, e->blocks[b].len - skip);

            if (n > 0) {
                t->flags |= MN_TF_ACK_NOW;
                mn_tcp_mark_dirty(e, t);
            }
            took += n;
        }
        e->blocks[b].off = (uint16_t)(e->blocks[b].off + took);
        e->blocks[b].len = (uint16_t)(e->blocks[b].len - took);
        r->left += took;
        t->ooo_bytes -= took;
        if (e->blocks[b].len > 0) {
            break; /* the user has no room */
        }
        r->first_blk = e->blocks[b].next;
        if (r->first_blk == MN_NIL) {
            r->last_blk = MN_NIL;
        }
        mn_block_put(e, b);
        if (r->left == r->right) {
            range_free(e, t, &t->ooo_head);
        }
    }
    ooo_advance(e, t);
    mn_tcp_tell_eof(e, t);
}

/* DSACK first (RFC 2883), then the ranges that grew last (RFC 2018 section 4). Input that only
 * waits for its user is not reported. */
uint32_t mn_ooo_sack_blocks(struct mn_engine *e, struct mn_tcb *t, struct mn_sack_block *out,
                            uint32_t max)
{
    uint32_t n = 0, below = UINT32_MAX;

    if (t->dsack_left != t->dsack_right) {
        out[n++] = (struct mn_sack_block){t->dsack_left, t->dsack_right};
        t->dsack_left = t->dsack_right = 0;
        e->stats.tcp_dsack_sent++;
    }
    while (n < max) {
        const struct mn_range *best = NULL;

        for (uint32_t i = t->ooo_head; i != MN_NIL; i = range_at(e, i)->next) {
            const struct mn_range *r = range_at(e, i);

            if (mn_seq_gt(r->left, t->rcv_nxt) && r->stamp < below &&
                (best == NULL || r->stamp > best->stamp)) {
                best = r;
            }
        }
        if (best == NULL) {
            break;
        }
        out[n++] = (struct mn_sack_block){best->left, best->right};
        below = best->stamp;
    }
    return n;
}

static void note_dsack(struct mn_tcb *t, uint32_t left, uint32_t right)
{
    if ((t->flags & MN_TF_SACK) != 0 && t->dsack_left == t->dsack_right) {
        t->dsack_left = left;
        t->dsack_right = right;
    }
}

static bool ooo_holds(const struct mn_engine *e, const struct mn_tcb *t, uint32_t left,
                      uint32_t right)
{
    for (uint32_t i = t->ooo_head; i != MN_NIL; i = range_at(e, i)->next) {
        if (mn_seq_le(range_at(e, i)->left, left) && mn_seq_ge(range_at(e, i)->right, right)) {
            return true;
        }
    }
    return false;
}

/* One contiguous piece of payload. Returns true when it was in order and taken whole. */
static bool data_piece(struct mn_engine *e, struct mn_tcb *t, uint32_t seq, const uint8_t *p,
                       uint32_t len)
{
    if (mn_seq_lt(seq, t->rcv_nxt)) {
        uint32_t cut = mn_min_u32(t->rcv_nxt - seq, len);

        note_dsack(t, seq, seq + cut);
        e->stats.drop_tcp_dup += cut;
        seq += cut;
        p += cut;
        len -= cut;
    }
    if (mn_seq_gt(seq + len, t->rcv_adv)) {
        uint32_t cut = mn_min_u32(seq + len - t->rcv_adv, len);

        e->stats.drop_tcp_seq++;
        len -= cut;
    }
    if ((t->flags & MN_TF_FIN_OOO) != 0 && mn_seq_gt(seq + len, t->fin_seq)) {
        len -= mn_min_u32(seq + len - t->fin_seq, len);
    }
    if (len == 0) {
        return false;
    }
    uint32_t end = seq + len;
    if (seq == t->usr_nxt) {
        uint32_t n = user_rx(e, t, p, len);

        if (n == len) {
            return true;
        }
        seq += n;
        p += n;
        len -= n;
    } else if (ooo_holds(e, t, seq, seq + len)) {
        note_dsack(t, seq, seq + len);
        e->stats.drop_tcp_dup += len;
        return false;
    }
    e->stats.drop_tcp_nobuf += ooo_insert(e, t, seq, p, len);
    ooo_advance(e, t);
    return mn_seq_ge(t->rcv_nxt, end);
}

/* What was received behind the place where a FIN says that the stream ends is ignored. */
static void ooo_cut(struct mn_engine *e, struct mn_tcb *t, uint32_t end)
{
    uint32_t *link = &t->ooo_head;

    while (*link != MN_NIL) {
        struct mn_range *r = range_at(e, *link);

        if (mn_seq_ge(r->left, end)) {
            range_free(e, t, link);
            continue;
        }
        if (mn_seq_gt(r->right, end)) {
            uint32_t keep = end - r->left;
            uint32_t b = r->first_blk;

            while (keep > e->blocks[b].len) {
                keep -= e->blocks[b].len;
                b = e->blocks[b].next;
            }
            e->blocks[b].len = (uint16_t)keep;
            mn_blocks_put(e, e->blocks[b].next);
            e->blocks[b].next = MN_NIL;
            r->last_blk = b;
            t->ooo_bytes -= r->right - end;
            r->right = end;
        }
        link = &r->next;
    }
}

void mn_tcp_fin_in(struct mn_engine *e, struct mn_tcb *t)
{
    t->rcv_nxt++;
    t->rcv_adv = mn_seq_max(t->rcv_adv, t->rcv_nxt);
    t->flags = (t->flags | MN_TF_FIN_RCVD | MN_TF_ACK_NOW) & ~MN_TF_FIN_OOO;
    mn_tcp_mark_dirty(e, t);
    if (t->state == MN_TCP_ESTABLISHED) {
        mn_tcp_set_state(e, t, MN_TCP_CLOSE_WAIT);
    } else if (t->state == MN_TCP_FIN_WAIT_1) {
        mn_tcp_set_state(e, t, MN_TCP_CLOSING);
    }
    mn_tcp_tell_eof(e, t);
    if (t->state == MN_TCP_FIN_WAIT_2) {
        mn_tcp_enter_time_wait(e, t);
    }
}

void mn_tcp_data_in(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s)
{
    uint32_t seq = s->seq + ((s->flags & MN_TCP_SYN) != 0);
    uint32_t before = t->rcv_nxt;
    bool gap = t->ooo_head != MN_NIL;
    bool in_order = true;

    if (t->state < MN_TCP_ESTABLISHED || t->state > MN_TCP_FIN_WAIT_2) {
        return;
    }
    if (s->len > 0 && (t->flags & MN_TF_ORPHAN) != 0 && mn_seq_gt(seq + s->len, t->rcv_nxt)) {
        /* Nobody will ever read it: say so (RFC 9293 3.6.1). */
        e->stats.drop_tcp_closed++;
        mn_tcp_abort(e, t, ECONNABORTED);
        return;
    }
    /* A FIN needs no buffer: one just behind the promised window will do. */
    if ((s->flags & MN_TCP_FIN) != 0 && mn_seq_le(seq + s->len, t->rcv_adv) &&
        mn_seq_ge(seq + s->len, t->rcv_nxt) && (t->flags & MN_TF_FIN_OOO) == 0) {
        t->flags |= MN_TF_FIN_OOO;
        t->fin_seq = seq + s->len;
        ooo_cut(e, t, t->fin_seq);
    }
    if (s->len > 0) {
        in_order = data_piece(e, t, seq, s->data, s->data_len);
        seq += s->data_len;
        uint32_t left = s->len - s->data_len; /* what follows is padding */
        for (const struct mn_pkt *more = s->more; more != NULL && left > 0; more = more->next) {
            uint32_t n = mn_min_u32(more->len, left);

            in_order &= data_piece(e, t, seq, more->data, n);
            seq += n;
            left -= n;
        }
        mn_ooo_drain(e, t);
    }
    if (s->len > 0) {
        t->unacked_bytes += t->rcv_nxt - before;
        if (!in_order || gap || t->unacked_bytes >= 2 * t->mss || e->cfg.delack_us == 0 ||
            (t->flags & MN_TF_QUICKACK) != 0) {
            t->flags |= MN_TF_ACK_NOW;
            mn_tcp_mark_dirty(e, t);
        } else if (t->delack_at == 0) {
            mn_tcp_timer_set(e, t, &t->delack_at, e->now_ns + e->cfg.delack_us * MN_NS_PER_US);
        }
    }
    if ((t->flags & MN_TF_FIN_OOO) != 0 && t->rcv_nxt == t->fin_seq) {
        mn_tcp_fin_in(e, t);
        return;
    }
    if (s->len == 0) {
        in_order = false; /* a FIN alone, behind a gap: it too tells that something is missing */
        t->flags |= MN_TF_ACK_NOW;
        mn_tcp_mark_dirty(e, t);
    }
    if (!in_order && (t->flags & MN_TF_ACK_NOW) != 0 && mn_tx_room(e, 2)) {
        mn_tcp_send_ack(e, t); /* each one counts for the peer's fast retransmit: not aggregated */
    }
}

/*
 * The window to advertise. The right edge moves only by a worthwhile step (silly-window avoidance,
 * RFC 9293 3.8.6.2.2) and never back (SHLD-14): where scaling would round it back, it is rounded
 * up.
 */
uint32_t mn_tcp_window(struct mn_engine *e, struct mn_tcb *t)
{
    uint32_t known = t->rcv_adv - t->rcv_nxt;
    uint32_t space = t->user != NULL ? t->user->rx_space(e, t) : t->rcv_buf;
    uint32_t scale = (t->flags & MN_TF_WSCALE) != 0 ? t->rcv_wscale : 0;
    uint32_t field;

    if (mn_seq_lt(t->rcv_adv, t->rcv_nxt)) {
        known = 0;
    }
    if (space > known && space - known >= mn_min_u32(t->rcv_buf / 2, t->mss)) {
        known = space;
    }
    field = mn_min_u32(known >> scale, 65535);
    if (mn_seq_lt(t->rcv_nxt + (field << scale), t->rcv_adv) && field < 65535) {
        field = mn_min_u32((t->rcv_adv - t->rcv_nxt + (1u << scale) - 1) >> scale, 65535);
    }
    t->rcv_adv = mn_seq_max(t->rcv_adv, t->rcv_nxt + (field << scale));
    return field;
}
