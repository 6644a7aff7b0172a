/* SPDX-License-Identifier: MIT */
/* The send scoreboard: what the peer holds behind a gap (RFC 2018, RFC 2883), and what follows from
 * it (RFC 6675). */
#include "engine_int.h"

static struct mn_range *range_at(const struct mn_engine *e, uint32_t i)
{
    return &e->ranges[i];
}

void mn_sack_clear(struct mn_engine *e, struct mn_tcb *t)
{
    while (t->sack_head != MN_NIL) {
        uint32_t next = range_at(e, t->sack_head)->next;

        mn_pool_put(&e->range_pool, t->sack_head);
        t->sack_head = next;
    }
    t->sack_count = 0;
    t->sacked_bytes = 0;
}

void mn_sack_prune(struct mn_engine *e, struct mn_tcb *t)
{
    while (t->sack_head != MN_NIL) {
        struct mn_range *r = range_at(e, t->sack_head);
        uint32_t next = r->next;

        if (mn_seq_gt(r->right, t->snd_una)) {
            if (mn_seq_lt(r->left, t->snd_una)) {
                t->sacked_bytes -= t->snd_una - r->left;
                r->left = t->snd_una;
            }
            return;
        }
        t->sacked_bytes -= r->right - r->left;
        mn_pool_put(&e->range_pool, t->sack_head);
        t->sack_head = next;
        t->sack_count--;
    }
}

/* Swallows the ranges behind r that it has grown over. */
static void range_merge(struct mn_engine *e, struct mn_tcb *t, struct mn_range *r)
{
    while (r->next != MN_NIL) {
        uint32_t i = r->next;
        struct mn_range *n = range_at(e, i);

        if (mn_seq_gt(n->left, r->right)) {
            return;
        }
        if (mn_seq_gt(n->right, r->right)) {
            t->sacked_bytes += n->right - r->right;
            r->right = n->right;
        }
        t->sacked_bytes -= n->right - n->left;
        r->next = n->next;
        t->sack_count--;
        mn_pool_put(&e->range_pool, i);
    }
}

/* Adds [left, right); true if it holds something new. A full scoreboard forgets nothing and takes
 * only what extends a range. */
static bool sack_add(struct mn_engine *e, struct mn_tcb *t, uint32_t left, uint32_t right)
{
    uint32_t *link = &t->sack_head;
    uint32_t before = t->sacked_bytes;

    while (*link != MN_NIL && mn_seq_lt(range_at(e, *link)->right, left)) {
        link = &range_at(e, *link)->next;
    }
    if (*link != MN_NIL && mn_seq_le(range_at(e, *link)->left, right)) {
        struct mn_range *r = range_at(e, *link);

        if (mn_seq_lt(left, r->left)) {
            t->sacked_bytes += r->left - left;
            r->left = left;
        }
        if (mn_seq_gt(right, r->right)) {
            t->sacked_bytes += right - r->right;
            r->right = right;
            range_merge(e, t, r);
        }
        return t->sacked_bytes != before;
    }
    if (t->sack_count >= e->cfg.sack_ranges_max) {
        return false;
    }
    uint32_t i = mn_pool_get(&e->range_pool);
    if (i == MN_NIL) {
        return false;
    }
    *range_at(e, i) = (struct mn_range){.left = left, .right = right, .next = *link};
    *link = i;
    t->sack_count++;
    t->sacked_bytes += right - left;
    return true;
}

/* RFC 2883: a first block below the acknowledgement, or inside the second, reports a duplicate. */
static bool is_dsack(const struct mn_tcb *t, const struct mn_seg *s)
{
    const struct mn_sack_block *b = s->opts.sack;

    if (mn_seq_le(b[0].right, s->ack)) {
        return s->ack - b[0].left <= t->snd_wnd_max; /* longer ago it cannot have been */
    }
    return s->opts.n_sack > 1 && mn_seq_ge(b[0].left, b[1].left) &&
           mn_seq_le(b[0].right, b[1].right);
}

bool mn_sack_update(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s)
{
    bool news = false;
    uint32_t first = 0;

    if (s->opts.n_sack == 0 || (t->flags & MN_TF_SACK) == 0) {
        return false;
    }
    if (mn_seq_lt(s->opts.sack[0].left, s->opts.sack[0].right) && is_dsack(t, s)) {
        e->stats.tcp_dsack_received++;
        first = 1;
    }
    for (uint32_t i = first; i < s->opts.n_sack; i++) {
        uint32_t left = s->opts.sack[i].left, right = s->opts.sack[i].right;

        if (!mn_seq_lt(left, right) || mn_seq_gt(right, t->snd_nxt) ||
            mn_seq_lt(right, t->snd_una) || right - left > t->snd_nxt - t->snd_una) {
            e->stats.tcp_sack_invalid++;
            continue;
        }
        left = mn_seq_max(left, t->snd_una);
        if (mn_seq_lt(left, right) && left != t->snd_una) {
            news |= sack_add(e, t, left, right);
        }
    }
    return news;
}

/* RFC 6675 IsLost for a sequence number below the ranges from `r` on: DupThresh of them, or more
 * than (DupThresh - 1) segments in them. */
static bool lost_below(uint32_t ranges, uint32_t bytes, uint32_t mss)
{
    return ranges >= MN_DUPTHRESH || bytes > (MN_DUPTHRESH - 1) * mss;
}

bool mn_sack_head_lost(struct mn_engine *e, const struct mn_tcb *t)
{
    (void)e;
    return t->sack_count > 0 && lost_below(t->sack_count, t->sacked_bytes, t->mss);
}

/* Bytes of [a, b) that count as in the network: once if not lost, once more if sent again. */
static uint32_t gap_pipe(const struct mn_tcb *t, uint32_t a, uint32_t b, bool lost)
{
    uint32_t n = lost ? 0 : b - a;

    if (t->recovery != MN_REC_OPEN && mn_seq_lt(a, t->rtx_nxt)) {
        n += mn_seq_min(b, t->rtx_nxt) - a;
    }
    return n;
}

uint32_t mn_tcp_pipe(struct mn_engine *e, const struct mn_tcb *t)
{
    uint32_t at = t->snd_una, pipe = 0, ranges = t->sack_count, bytes = t->sacked_bytes;

    if (t->recovery == MN_REC_OPEN && t->sack_head == MN_NIL) {
        uint32_t flight = t->snd_nxt - t->snd_una;

        /* Limited transmit (RFC 3042): each of the first two duplicates lets one segment out. */
        return flight - mn_min_u32(flight, mn_min_u32(t->dupacks, 2) * t->mss);
    }
    if (t->recovery == MN_REC_FAST && (t->flags & MN_TF_SACK) == 0) {
        uint32_t flight = t->snd_nxt - t->snd_una;

        return flight - mn_min_u32(flight, t->dup_credit);
    }
    for (uint32_t i = t->sack_head; i != MN_NIL; i = range_at(e, i)->next) {
        const struct mn_range *r = range_at(e, i);

        bool lost = t->recovery == MN_REC_LOSS ? mn_seq_lt(at, t->recover)
                                               : lost_below(ranges, bytes, t->mss);
        pipe += gap_pipe(t, at, r->left, lost);
        at = r->right;
        ranges--;
        bytes -= r->right - r->left;
    }
    if (t->recovery == MN_REC_LOSS && mn_seq_lt(at, t->recover)) {
        pipe += gap_pipe(t, at, t->recover, true);
        at = t->recover;
    }
    return pipe + gap_pipe(t, at, t->snd_nxt, false);
}

bool mn_sack_next_hole(struct mn_engine *e, const struct mn_tcb *t, bool need_lost, uint32_t *left,
                       uint32_t *right)
{
    uint32_t at = mn_seq_max(t->snd_una, t->rtx_nxt);
    uint32_t ranges = t->sack_count, bytes = t->sacked_bytes;

    for (uint32_t i = t->sack_head; i != MN_NIL; i = range_at(e, i)->next) {
        const struct mn_range *r = range_at(e, i);

        if (mn_seq_lt(at, r->left)) {
            if (need_lost && !lost_below(ranges, bytes, t->mss)) {
                return false;
            }
            *left = at;
            *right = r->left;
            return true;
        }
        at = mn_seq_max(at, r->right);
        ranges--;
        bytes -= r->right - r->left;
    }
    /* Behind the highest SACKed byte nothing is known to be missing, unless all of it timed out. */
    if (t->recovery == MN_REC_LOSS && mn_seq_lt(at, t->recover)) {
        *left = at;
        *right = t->recover;
        return true;
    }
    return false;
}

bool mn_sack_last_hole(const struct mn_engine *e, const struct mn_tcb *t, uint32_t *left,
                       uint32_t *right)
{
    uint32_t at = t->snd_una;
    bool found = false;

    for (uint32_t i = t->sack_head; i != MN_NIL; i = e->ranges[i].next) {
        const struct mn_range *r = &e->ranges[i];

        if (!mn_seq_lt(at, t->recover)) {
            return found;
        }
        if (mn_seq_lt(at, r->left)) {
            *left = at;
            *right = mn_seq_lt(r->left, t->recover) ? r->left : t->recover;
            found = true;
        }
        at = mn_seq_max(at, r->right);
    }
    if (mn_seq_lt(at, t->recover)) {
        *left = at;
        *right = t->recover;
        found = true;
    }
    return found;
}
