/* SPDX-License-Identifier: MIT */
/* Segments as the input describes them: a shape (a SYN, data in order, a duplicate acknowledgement,
 * ...), relative to the connection's numbers, and what is odd about it. */
#include "fz_peer.h"

struct fz_conn *fz_pick_conn(struct fz_peer *p, uint8_t b)
{
    if ((b & 8) == 0) {
        return p->conns[b & 7].used ? &p->conns[b & 7] : NULL;
    }
    /* A pair of addresses that may be new. */
    uint16_t port = (uint16_t)(FZ_PEER_PORT + (b & 3) + ((b >> 4) & 4)),
             engine_port = (uint16_t)(FZ_PORT_FIRST + ((b >> 4) & 3));
    struct fz_conn *spare = NULL;
    for (uint32_t i = 0; i < FZ_CONNS; i++) {
        struct fz_conn *c = &p->conns[i];

        if (c->used && c->port == port && c->engine_port == engine_port) {
            return c;
        }
        if (!c->used && spare == NULL) {
            spare = c;
        }
    }
    if (spare != NULL) {
        *spare = (struct fz_conn){.used = true,
                                  .ip = FZ_PEER_IP + ((b >> 6) & 1),
                                  .port = port,
                                  .engine_port = engine_port,
                                  .p_iss = UINT32_MAX};
    }
    return spare;
}

/* Sequence numbers of ours are multiples of the period, so that every connection between two ports
 * has the same bytes at the same places. */
static void new_iss(struct fz_conn *c, uint8_t b)
{
    static const uint32_t iss[] = {0, 0x80000000u, 0xfffe0000u, 0x7ffe0000u};

    c->p_iss = iss[b & 3] - 1;
    c->peer_ts = (b & 4) == 0;
}

static void syn_options(struct fz_in *in, struct fz_seg *s, const struct fz_conn *c)
{
    static const uint16_t mss[] = {1460, 536, 88, 0, 65535, 48, 1000, 8960};
    uint8_t b = fz_u8(in);

    s->opts.has_mss = (b & 1) == 0;
    s->opts.mss = mss[(b >> 4) & 7];
    s->opts.sack_permitted = (b & 2) == 0;
    s->opts.has_wscale = (b & 4) == 0;
    s->opts.wscale = (b & 8) != 0 ? 14 : (b >> 7) * 7;
    s->opts.has_ts = c->peer_ts;
}

static void sack_options(struct fz_in *in, struct fz_seg *s, const struct fz_conn *c)
{
    uint8_t b = fz_u8(in);

    s->opts.n_sack = b & 3;
    for (uint32_t i = 0; i < s->opts.n_sack; i++) {
        uint32_t at = c->una + fz_len(in);

        s->opts.sack[i].left = at;
        s->opts.sack[i].right = at + ((b & 4) != 0 ? fz_delta(in) : fz_len(in));
    }
}

/* Bits of the byte that modifies a segment. */
enum {
    MOD_NO_TS = 1,
    MOD_BAD_CSUM = 2,
    MOD_SPLIT = 4,
    MOD_WINDOW = 8,
    MOD_SACK = 16,
    MOD_TS_DELTA = 32,
    MOD_NO_POLL = 64,
    MOD_PSH = 128,
};

static void modify(struct fz_in *in, struct fz_conn *c, struct fz_seg *s, uint8_t mods)
{
    static const uint16_t windows[] = {0, 1, 100, 1460, 0xffff, 5000, 536, 2};

    s->opts.has_ts |= c->peer_ts && c->engine_ts;
    if ((mods & MOD_NO_TS) != 0) {
        s->opts.has_ts = !s->opts.has_ts;
    }
    s->bad_csum = (mods & MOD_BAD_CSUM) != 0;
    if ((mods & MOD_SPLIT) != 0) {
        s->split = 1 + fz_len(in);
    }
    s->wnd = 0xffff;
    if ((mods & MOD_WINDOW) != 0) {
        s->wnd = windows[fz_u8(in) & 7];
    }
    if ((mods & MOD_SACK) != 0) {
        sack_options(in, s, c);
    }
    if ((mods & MOD_PSH) != 0) {
        s->flags |= MN_TCP_PSH;
    }
    s->opts.tsval = c->ts += 1;
    s->opts.tsecr = c->tsval;
    if ((mods & MOD_TS_DELTA) != 0) {
        s->opts.tsval += fz_delta(in);
        s->opts.tsecr += fz_delta(in);
    }
}

static void segment_anything(struct fz_in *in, struct fz_conn *c, struct fz_seg *s)
{
    uint8_t b = fz_u8(in);

    s->flags = fz_u8(in);
    s->seq = c->ack + fz_delta(in);
    s->ack = c->nxt + fz_delta(in);
    s->len = (b & 1) != 0 ? fz_len(in) : 0;
    s->urg = (b & 2) != 0 ? fz_u16(in) : 0;
    if ((b & 4) != 0) {
        s->raw_opts_len = (1 + (b >> 4) % 10) * 4;
        fz_bytes(in, s->raw_opts, s->raw_opts_len);
    }
    if ((s->flags & MN_TCP_SYN) != 0 || ((b & 8) != 0 && s->len > 0)) {
        c->tainted = true;
    }
}

static void shape(struct fz_in *in, struct fz_conn *c, struct fz_seg *s, uint8_t kind)
{
    s->flags = MN_TCP_ACK;
    s->seq = c->ack;
    s->ack = c->nxt;
    switch (kind) {
    case 0: /* SYN */
        new_iss(c, fz_u8(in));
        s->flags = MN_TCP_SYN;
        s->seq = c->p_iss;
        s->ack = 0;
        syn_options(in, s, c);
        break;
    case 1: /* the answer to the engine's SYN */
        new_iss(c, fz_u8(in));
        s->flags = MN_TCP_SYN | MN_TCP_ACK;
        s->seq = c->p_iss;
        syn_options(in, s, c);
        break;
    case 2: /* acknowledges everything */
        break;
    case 3: /* data in order */
        s->len = fz_len(in);
        break;
    case 4: /* data ahead, or behind */
        s->seq += fz_delta(in);
        s->len = fz_len(in);
        break;
    case 5: /* FIN, behind data or not */
        s->len = fz_len(in);
        s->flags |= MN_TCP_FIN;
        break;
    case 6: /* FIN ahead or behind */
        s->seq += fz_delta(in);
        s->flags |= MN_TCP_FIN;
        break;
    case 7: /* RST, in order or near it */
        s->flags = (fz_u8(in) & 1) != 0 ? MN_TCP_RST : MN_TCP_RST | MN_TCP_ACK;
        s->seq += fz_delta(in);
        break;
    case 8: /* acknowledges a part */
        s->ack = c->una = c->una + fz_len(in);
        break;
    case 9: /* duplicate acknowledgement */
        s->ack = c->una;
        break;
    case 10: /* urgent data */
        s->len = fz_len(in);
        s->urg = (uint16_t)fz_delta(in);
        s->flags |= MN_TCP_URG;
        break;
    default:
        segment_anything(in, c, s);
        break;
    }
    if (kind == 2 || kind == 3) {
        c->una = c->nxt;
    }
}

bool fz_segment(struct fz_in *in, struct fz_peer *p, uint8_t kind)
{
    struct fz_conn *c = fz_pick_conn(p, fz_u8(in));
    uint8_t mods = fz_u8(in);
    struct fz_seg s = {0};
    uint8_t raw[256];

    if (c == NULL) {
        return false;
    }
    shape(in, c, &s, kind);
    modify(in, c, &s, mods);
    if (kind > 10 && c->tainted && s.len > 0 && s.len <= sizeof(raw)) {
        fz_bytes(in, raw, s.len);
        s.payload = raw;
    }
    for (uint32_t n = kind == 9 ? 1 + (fz_u8(in) & 7) : 1; n > 0; n--) {
        fz_peer_send(p, c, &s);
    }
    return (mods & MOD_NO_POLL) == 0;
}
