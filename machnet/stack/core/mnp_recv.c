/* SPDX-License-Identifier: MIT */
/* DATA and FIN of the message protocol: in order to the application; what came ahead, or what there
 * is no room for, into blocks, unacknowledged. */
#include "engine_int.h"

static struct mn_mnp_held *held_at(struct mn_mcb *m, uint32_t seq)
{
    return &m->held[seq % MN_MNP_WND_MAX];
}

/* Copies into blocks of the channel's share; MN_NIL: there are not enough. */
static uint32_t blocks_fill(struct mn_engine *e, const struct mn_tcb *t, const uint8_t *p,
                            uint32_t len)
{
    uint32_t first = MN_NIL, *link = &first;

    for (uint32_t done = 0; done < len;) {
        uint32_t b = mn_block_get(e, t->lane);

        if (b == MN_NIL) {
            mn_blocks_put(e, first);
            return MN_NIL;
        }
        struct mn_block *blk = &e->blocks[b];
        blk->len = (uint16_t)mn_min_u32(len - done, MN_OOO_BLOCK_BYTES);
        memcpy(blk->data, p + done, blk->len);
        done += blk->len;
        *link = b;
        link = &blk->next;
    }
    return first;
}

static void hold(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t blk = blocks_fill(e, t, p->payload, p->payload_len);

    if (blk == MN_NIL && p->payload_len > 0) {
        e->stats.drop_mnp_nobuf++;
        return;
    }
    *held_at(m, p->seq) = (struct mn_mnp_held){
        .blk = blk,
        .msg_len = p->word12,
        .len = (uint16_t)p->payload_len,
        .msg_flags = p->msg_flags,
        .kind = p->kind == MN_MNP_FIN ? MN_MH_FIN : MN_MH_DATA,
    };
    m->n_held++;
    t->ooo_bytes += p->payload_len;
}

static void unhold(struct mn_engine *e, struct mn_tcb *t, struct mn_mnp_held *h)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    mn_blocks_put(e, h->blk);
    h->kind = MN_MH_NONE;
    m->n_held--;
    t->ooo_bytes -= h->len;
}

void mn_mnp_held_clear(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    for (uint32_t i = 0; i < MN_MNP_WND_MAX && m->n_held > 0; i++) {
        if (m->held[i].kind != MN_MH_NONE) {
            unhold(e, t, &m->held[i]);
        }
    }
}

void mn_mnp_sack_map(struct mn_engine *e, const struct mn_tcb *t, uint64_t out[MN_MNP_SACK_LEN])
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t left = m->n_held - (held_at(m, t->rcv_nxt)->kind != MN_MH_NONE);

    memset(out, 0, MN_MNP_SACK_LEN * sizeof(out[0]));
    for (uint32_t i = 0; left > 0 && i + 1 < MN_MNP_WND_MAX; i++) {
        if (held_at(m, t->rcv_nxt + 1 + i)->kind != MN_MH_NONE) {
            out[i / 64] |= UINT64_C(1) << (i % 64);
            left--;
        }
    }
}

static void ack_soon(struct mn_engine *e, struct mn_tcb *t)
{
    t->flags |= MN_TF_ACK_NOW;
    mn_tcp_mark_dirty(e, t);
}

static void step(struct mn_tcb *t)
{
    t->rcv_nxt++;
    t->usr_nxt = t->rcv_nxt;
    t->rcv_adv = mn_seq_max(t->rcv_adv, t->rcv_nxt);
}

/* A packet was taken in order. As long as the application's answers come at once they carry the
 * acknowledgement; it waits for them, but not long, nor when much hangs on it. */
static void ack_in_time(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    m->unacked++;
    if (m->answers < MN_MNP_ANSWERS || m->n_held > 0 || m->unacked >= MN_MNP_UNACKED_MAX ||
        e->cfg.mnp_delack_us == 0) {
        ack_soon(e, t);
    } else if (t->delack_at == 0) {
        mn_tcp_timer_set(e, t, &t->delack_at, e->now_ns + e->cfg.mnp_delack_us * MN_NS_PER_US);
    }
}

/* Hands over what has come in order. */
void mn_mnp_drain(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);

    while (m->n_held > 0 && (t->flags & (MN_TF_FIN_RCVD | MN_TF_DOOMED)) == 0) {
        struct mn_mnp_held *h = held_at(m, t->rcv_nxt);

        if (h->kind == MN_MH_NONE) {
            return;
        }
        if (h->kind == MN_MH_FIN) {
            unhold(e, t, h);
            mn_tcp_fin_in(e, t);
            return;
        }
        if (mn_mnp_deliver(e, t, h->msg_flags, h->msg_len, NULL, h->blk, h->len) != MN_MNP_TAKEN) {
            return;
        }
        unhold(e, t, h);
        step(t);
        ack_soon(e, t);
    }
}

uint32_t mn_mnp_window(struct mn_engine *e, struct mn_tcb *t)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t space = t->rcv_buf;

    if (t->user != NULL && (t->flags & MN_TF_ORPHAN) == 0) {
        space = held_at(m, t->rcv_nxt)->kind == MN_MH_DATA ? 0 : t->user->rx_space(e, t);
    }
    uint32_t wnd = mn_min_u32(space / mn_mnp_mss(e), e->cfg.mnp_window_packets);
    m->wnd_edge = t->rcv_nxt + wnd;
    t->rcv_adv = mn_seq_max(t->rcv_adv, m->wnd_edge);
    return wnd;
}

/* In order. True: to be acknowledged at once. */
static bool in_order(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    if (p->kind == MN_MNP_FIN) {
        mn_tcp_fin_in(e, t);
        return false;
    }
    switch (mn_mnp_deliver(e, t, p->msg_flags, p->word12, p->payload, MN_NIL, p->payload_len)) {
    case MN_MNP_TAKEN:
        step(t);
        ack_in_time(e, t);
        mn_mnp_drain(e, t);
        return false;
    case MN_MNP_BLOCKED:
        hold(e, t, p);
        /* A C++ host takes any answer for a lost packet's: silence makes it try again. */
        return mn_mcb_of(e, t)->ext;
    default:
        return false;
    }
}

void mn_mnp_data_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p)
{
    struct mn_mcb *m = mn_mcb_of(e, t);
    uint32_t ahead = p->seq - t->rcv_nxt;
    bool fin = p->kind == MN_MNP_FIN;

    if (m->ext && !m->ts_pending) {
        t->ts_recent = p->tsval;
        m->ts_pending = true;
    }
    m->heard_data = true;
    if (mn_seq_lt(p->seq, t->rcv_nxt) || (t->flags & MN_TF_FIN_RCVD) != 0) {
        e->stats.drop_mnp_dup++;
        mn_mnp_ack_lost(e, m);
        ack_soon(e, t);
        return;
    }
    if (ahead >= (m->ext ? MN_MNP_WND_MAX : MN_MNP_NO_WND)) {
        e->stats.drop_mnp_seq++;
        ack_soon(e, t);
        return;
    }
    if (!fin && (p->payload_len == 0 || p->payload_len > UINT16_MAX)) {
        e->stats.mnp_broken++;
        mn_tcp_doom(e, t, EPROTO);
        return;
    }
    if (!fin && (t->flags & MN_TF_ORPHAN) != 0) {
        /* Nobody will ever read it. */
        e->stats.drop_mnp_closed++;
        mn_tcp_doom(e, t, ECONNABORTED);
        return;
    }
    if (held_at(m, p->seq)->kind != MN_MH_NONE) {
        e->stats.drop_mnp_dup++;
        if (m->ext || ahead > 0) {
            ack_soon(e, t);
        }
        return;
    }
    if (ahead == 0) {
        if (in_order(e, t, p)) {
            ack_soon(e, t);
        }
        return;
    }
    hold(e, t, p);
    ack_soon(e, t);
    if (!m->ext && mn_tx_room(e, 2)) {
        mn_mnp_send_ack(e, t); /* each one counts for a C++ host's third */
    }
}
