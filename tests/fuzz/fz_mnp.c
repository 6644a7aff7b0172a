/* SPDX-License-Identifier: MIT */
/*
 * The other hosts of a hand-fed engine, when they speak the message protocol: what it sends is
 * checked, and the packets that the input asks for are placed relative to it. A packet's number
 * tells its content: ours are cut so that a round of messages is a power of two of packets, and our
 * initial numbers are multiples of that.
 */
#include "fz_peer.h"

#include <stdio.h>
#include <stdlib.h>

#define MESSAGES 8u

struct round {
    uint32_t lens[MESSAGES];
    uint32_t cut, packets;
};

static const struct round rounds[] = {
    {{70000, 3, 60000, 41000, 1, 1418, 1419, 32}, 1418, 128},
    {{1, 512, 513, 100, 1418, 5, 1000, 2560}, 512, 16},
};

static const struct round *round_of(uint16_t local, uint16_t remote)
{
    return &rounds[fz_deciding(local, remote) & 1];
}

uint32_t fz_mnp_message_len(uint16_t local, uint16_t remote, uint32_t msg)
{
    return round_of(local, remote)->lens[msg % MESSAGES];
}

uint32_t fz_mnp_message_at(uint32_t msg)
{
    return msg % MESSAGES * 1021;
}

/* ---- what the engine sends ---- */

static void trace(const struct fz_peer *p, char direction, const struct fz_conn *c,
                  const struct mn_mnp *m)
{
    static int on = -1;

    if (on < 0) {
        on = getenv("FZ_TRACE") != NULL;
    }
    if (on > 0) {
        fprintf(stderr, "%12.6f %c %u-%u kind %02x msg %x seq %u ack %u wnd %u len %u\n",
                (double)(p->h->now_ns - FZ_START_NS) / 1e9, direction, c->port, c->engine_port,
                m->kind, m->msg_flags, m->seq, m->ack, m->wnd, m->payload_len);
    }
}

static const struct mn_tcb *tcb_of(const struct fz_peer *p, const struct fz_conn *c)
{
    return mn_flow_find(p->h->e, MN_IPPROTO_UDP, p->h->cfg.ip, c->engine_port, c->ip, c->port);
}

static void check_content(struct fz_conn *c, const struct mn_mnp *m)
{
    struct fz_mnp *n = &c->mnp;
    uint8_t want[MN_MNP_MSS_MAX];
    uint32_t len = fz_mnp_message_len(c->engine_port, c->port, n->tx_msg);
    bool first = n->tx_off == 0, last = n->tx_off + m->payload_len == len;

    FZ_CHECK(n->tx_off + m->payload_len <= len);
    FZ_CHECK(m->msg_flags == ((first ? MN_MNP_FIRST : 0) | (last ? MN_MNP_LAST : MN_MNP_MORE)));
    fz_content(c->engine_port, c->port, fz_mnp_message_at(n->tx_msg) + n->tx_off, want,
               m->payload_len);
    FZ_CHECK(memcmp(want, m->payload, m->payload_len) == 0);
    n->tx_off = last ? 0 : n->tx_off + m->payload_len;
    n->tx_msg += last;
}

/* A packet is the same on each copy, and a new one goes on where the last one ended. */
static void on_data(struct fz_peer *p, struct fz_conn *c, const struct mn_mnp *m)
{
    uint32_t i = m->seq % MN_MNP_WND_MAX, sum = fz_plain_sum(m->payload, m->payload_len, 0);
    bool fresh = m->seq == c->nxt;

    FZ_CHECK(m->payload_len > 0 && m->payload_len <= MN_MNP_MSS_MAX);
    if (!c->synced || p->frames_lost || c->tainted) {
        return;
    }
    FZ_CHECK(mn_seq_le(m->seq, c->nxt));
    if (fresh) {
        check_content(c, m);
    } else if (c->mnp.sent[i].len != 0 && c->mnp.sent[i].seq == m->seq) {
        FZ_CHECK(c->mnp.sent[i].len == m->payload_len && c->mnp.sent[i].sum == sum);
    }
    c->mnp.sent[i].seq = m->seq;
    c->mnp.sent[i].len = m->payload_len;
    c->mnp.sent[i].sum = sum;
}

/* Acknowledgements never go back, and neither does what a bitmap says. */
static void on_ack(struct fz_peer *p, struct fz_conn *c, const struct mn_mnp *m,
                   const struct mn_tcb *t)
{
    const struct mn_mcb *b = mn_mcb_of(p->h->e, t);
    bool settled = t->state >= MN_TCP_ESTABLISHED && c->synced;

    if (m->kind == MN_MNP_DATA && (b->feats & MN_MNP_F_DATA_ACK) == 0) {
        FZ_CHECK(m->ack == MN_MNP_NO_ACK);
        return;
    }
    FZ_CHECK(!c->acked || !settled || mn_seq_ge(m->ack, c->ack));
    if (c->acked && settled && m->ack != c->ack) {
        c->mnp.sack_known = false;
    }
    c->acked = settled && !p->frames_lost;
    c->ack = m->ack;
    if (m->kind == MN_MNP_DATA || (b->feats & MN_MNP_F_SACK) == 0) {
        return;
    }
    for (uint32_t i = 0; i < MN_MNP_SACK_LEN && c->acked; i++) {
        FZ_CHECK(!c->mnp.sack_known || (c->mnp.sack[i] & ~m->sack[i]) == 0);
        c->mnp.sack[i] = m->sack[i];
    }
    c->mnp.sack_known = c->acked;
}

static void on_packet(struct fz_peer *p, struct fz_conn *c, const struct mn_mnp *m)
{
    const struct mn_tcb *t = tcb_of(p, c);

    FZ_CHECK(m->kind == MN_MNP_DATA || m->payload_len == 0);
    if (m->kind == MN_MNP_RST) {
        return;
    }
    c->tsval = m->tsval;
    if (m->kind == MN_MNP_SYN || m->kind == MN_MNP_SYNACK) {
        /* At one instant two connections of a pair of addresses have one initial number. */
        if (!c->synced || c->iss != m->seq || c->mnp.syn_ack != m->ack) {
            c->mnp.syn_ack = m->ack;
            memset(&c->mnp.sent, 0, sizeof(c->mnp.sent));
            c->mnp.tx_msg = c->mnp.tx_off = 0;
            c->iss = c->una = m->seq;
            c->nxt = m->seq + 1;
        }
        c->synced = true;
        c->acked = c->mnp.sack_known = false;
        c->ack = m->ack;
        return;
    }
    if (t != NULL && t->mcb != MN_NIL) {
        on_ack(p, c, m, t);
    }
    if (m->kind == MN_MNP_DATA) {
        on_data(p, c, m);
    }
    if (m->kind != MN_MNP_ACK) {
        c->nxt = mn_seq_max(c->nxt, m->seq + 1);
    }
}

void fz_mnp_read(struct fz_peer *p, const struct mn_ipv4 *ip, const struct fz_frame *f)
{
    const uint8_t *hdr = f->data + MN_ETH_HLEN;
    struct mn_udp udp;
    struct mn_mnp m;

    FZ_CHECK((hdr[6] & 0x40) != 0); /* "don't fragment" */
    FZ_CHECK(mn_udp_parse(ip->payload, ip->payload_len, &udp) == 0);
    FZ_CHECK(udp.len == ip->payload_len && udp.csum != 0);
    FZ_CHECK(f->csum != MN_CSUM_NONE || fz_plain_sum(ip->payload, ip->payload_len,
                                                     (uint32_t)fz_plain_sum(hdr + 12, 8, 0) +
                                                         MN_IPPROTO_UDP + udp.len) == 0xffff);
    FZ_CHECK(mn_mnp_parse(udp.payload, udp.payload_len, &m) == 0);
    struct fz_conn *c = fz_conn_find(p, ip->dst, udp.dport, udp.sport);
    if (c != NULL) {
        trace(p, '>', c, &m);
        on_packet(p, c, &m);
    }
}

/* ---- what it receives ---- */

/* Bits of the byte that modifies a packet. */
enum {
    MOD_NO_CSUM = 1,
    MOD_BAD_CSUM = 2,
    MOD_SPLIT = 4,
    MOD_WINDOW = 8,
    MOD_SACK = 16,
    MOD_TS_DELTA = 32,
    MOD_NO_POLL = 64,
    MOD_ODD = 128, /* one byte of the header, or the length, is another one */
};

struct packet {
    struct mn_mnp_repr r;
    uint64_t sack[MN_MNP_SACK_LEN];
    uint32_t len;
    uint32_t at; /* of fz_content */
    uint8_t mods, split, odd, odd_at, odd_value;
};

static void syn(struct fz_in *in, struct fz_conn *c, struct packet *k)
{
    static const uint32_t iss[] = {0, 0x80000000u, 0xfffe0000u, 0x7ffe0000u};
    static const uint8_t versions[] = {1, 1, 2, 0};
    static const uint16_t mss[] = {1418, 512, 8900, 511, 0, 1000, 8901, 600},
                          windows[] = {256, 0, 1, 2, 300, 64, 16, 65535},
                          feats[] = {MN_MNP_F_ALL,
                                     0,
                                     MN_MNP_F_ALL & ~MN_MNP_F_SACK,
                                     MN_MNP_F_ALL & ~MN_MNP_F_WND,
                                     MN_MNP_F_ALL & ~MN_MNP_F_FIN,
                                     MN_MNP_F_ALL & ~(MN_MNP_F_MSGLEN | MN_MNP_F_REASON),
                                     MN_MNP_F_ALL & ~(MN_MNP_F_TS | MN_MNP_F_DATA_ACK),
                                     0xffff};
    uint8_t a = fz_u8(in), b = fz_u8(in);

    c->p_iss = iss[a & 3] - 1;
    c->mnp.ext = k->r.ext = (a & 4) == 0;
    k->r.seq = c->p_iss;
    k->r.version = versions[(a >> 3) & 3];
    k->r.feats = feats[a >> 5];
    k->r.mss = mss[b & 7];
    k->r.wnd = windows[(b >> 3) & 7];
    c->acked = c->mnp.sack_known = false;
}

/* The content of our packet number r.seq. */
static void data(const struct fz_conn *c, struct packet *k)
{
    const struct round *r = round_of(c->engine_port, c->port);
    uint32_t n = (k->r.seq - c->p_iss - 1) % r->packets, msg = 0;

    while (n >= (r->lens[msg] + r->cut - 1) / r->cut) {
        n -= (r->lens[msg] + r->cut - 1) / r->cut;
        msg++;
    }
    bool last = (n + 1) * r->cut >= r->lens[msg];
    k->r.kind = MN_MNP_DATA;
    k->r.msg_flags = (uint8_t)((n == 0 ? MN_MNP_FIRST : 0) | (last ? MN_MNP_LAST : MN_MNP_MORE));
    k->r.word12 = n == 0 ? r->lens[msg] : 0;
    k->len = last ? r->lens[msg] - n * r->cut : r->cut;
    k->at = fz_mnp_message_at(msg) + n * r->cut;
}

static void modify(struct fz_in *in, struct fz_conn *c, struct packet *k)
{
    static const uint16_t windows[] = {0, 1, 2, 5, 256, 257, 64, 0xffff};

    if (k->r.kind == MN_MNP_DATA && !k->r.ext) {
        k->r.ack = MN_MNP_NO_ACK;
    }
    if ((k->mods & MOD_SPLIT) != 0) {
        k->split = fz_u8(in);
    }
    if ((k->mods & MOD_WINDOW) != 0) {
        k->r.wnd = windows[fz_u8(in) & 7];
    }
    if ((k->mods & MOD_SACK) != 0) {
        for (uint32_t n = 1 + (fz_u8(in) & 3); n > 0; n--) {
            uint32_t bit = fz_u8(in), end = bit + 1 + (fz_u8(in) & 63);

            for (; bit < mn_min_u32(end, MN_MNP_WND_MAX); bit++) {
                k->sack[bit / 64] |= UINT64_C(1) << (bit % 64);
            }
        }
    }
    k->r.tsval = c->ts += 1;
    k->r.tsecr = c->tsval;
    if ((k->mods & MOD_TS_DELTA) != 0) {
        k->r.tsval += fz_delta(in);
        k->r.tsecr += fz_delta(in);
    }
    if ((k->mods & MOD_ODD) != 0) {
        k->odd = fz_u8(in);
        k->odd_at = fz_u8(in) % MN_MNP_HLEN;
        k->odd_value = fz_u8(in);
        c->tainted = true;
    }
}

static void send_packet(struct fz_peer *p, struct fz_conn *c, const struct packet *k)
{
    uint32_t cut = (k->odd & 1) != 0 ? k->odd_value : 0;
    uint32_t room = MN_UDP_HLEN + MN_MNP_HLEN + k->len;
    uint32_t len = room - mn_min_u32(cut, room - 1);
    struct fz_frame *f = fz_ip_frame(p, c->ip, MN_IPPROTO_UDP, room);
    uint8_t *ip = f->data + MN_ETH_HLEN, *udp = ip + MN_IPV4_HLEN, *mnp = udp + MN_UDP_HLEN;
    struct mn_udp_repr u = {
        .sport = c->port, .dport = c->engine_port, .payload_len = room - MN_UDP_HLEN};

    mn_udp_emit(udp, &u);
    mn_mnp_emit(mnp, &k->r);
    fz_content(c->engine_port, c->port, k->at, mnp + MN_MNP_HLEN, k->len);
    if ((k->odd & 2) != 0) {
        mnp[k->odd_at] = k->odd_value;
    }
    if ((k->odd & 1) != 0) {
        mn_wr16be(udp + 4, (uint16_t)((k->odd & 4) != 0 ? room + k->odd_value : len));
    }
    if ((k->mods & MOD_NO_CSUM) == 0) {
        uint32_t n = mn_min_u32(mn_rd16be(udp + 4), room);
        uint16_t sum = (uint16_t)~fz_plain_sum(
            udp, n, (uint32_t)fz_plain_sum(ip + 12, 8, 0) + MN_IPPROTO_UDP + n);

        sum ^= (k->mods & MOD_BAD_CSUM) != 0 ? 0x0101 : 0;
        mn_wr16be(udp + MN_UDP_CSUM_OFF, sum == 0 ? 0xffff : sum);
    }
    f->split = k->split == 0 ? 0 : 134 + k->split;
    struct mn_mnp seen;
    if (mn_mnp_parse(mnp, MN_MNP_HLEN + k->len, &seen) == 0) {
        trace(p, '<', c, &seen);
    }
    fz_inject(p, f);
}

/* Everything from the input. */
static void anything(struct fz_in *in, struct fz_conn *c, struct packet *k)
{
    static const uint8_t kinds[] = {MN_MNP_DATA, MN_MNP_SYN, MN_MNP_ACK, MN_MNP_SYNACK,
                                    MN_MNP_FIN,  MN_MNP_RST, 5,          0xff};
    uint8_t b = fz_u8(in);

    k->r.kind = kinds[b & 7];
    k->r.msg_flags = fz_u8(in);
    k->r.seq = c->ack + fz_delta(in);
    k->r.ack = c->nxt + fz_delta(in);
    k->r.word12 = (b & 8) != 0 ? fz_u32(in) : fz_len(in);
    k->len = (b & 16) != 0 ? fz_len(in) % 8901 : 0;
    k->r.ext ^= (b & 32) != 0;
    k->r.mss = (b & 64) != 0 ? fz_u16(in) : 1418;
    k->r.feats = MN_MNP_F_ALL;
    k->r.version = 1;
    c->tainted = true;
}

/* Returns how many packets, with numbers that follow each other if it is data. */
static uint32_t shape(struct fz_in *in, struct fz_conn *c, struct packet *k, uint8_t kind)
{
    uint32_t n = 1;

    switch (kind) {
    case 0:
    case 1:
        k->r.kind = kind == 0 ? MN_MNP_SYN : MN_MNP_SYNACK;
        syn(in, c, k);
        break;
    case 2: /* acknowledges everything */
        break;
    case 3: /* data in order, and ahead or behind */
    case 4:
        k->r.kind = MN_MNP_DATA;
        k->r.seq += kind == 4 ? fz_delta(in) : 0;
        n = 1 + (fz_u8(in) & 63);
        break;
    case 5: /* FIN, in order, and ahead or behind */
    case 6:
        k->r.kind = MN_MNP_FIN;
        k->r.seq += kind == 6 ? fz_delta(in) : 0;
        break;
    case 7:
        k->r.kind = MN_MNP_RST;
        k->r.seq += fz_delta(in);
        k->r.word12 = fz_u8(in) & 15;
        break;
    case 8: /* acknowledges a part */
        k->r.ack = c->una = c->una + fz_u8(in);
        break;
    case 9: /* the same acknowledgement several times */
        k->r.ack = c->una;
        n = 1 + (fz_u8(in) & 7);
        break;
    case 10: /* data that acknowledges nothing new */
        k->r.kind = MN_MNP_DATA;
        k->r.ack = c->una;
        break;
    default:
        anything(in, c, k);
        break;
    }
    if (kind == 2 || kind == 3) {
        c->una = c->nxt;
    }
    return n;
}

bool fz_mnp_segment(struct fz_in *in, struct fz_peer *p, uint8_t kind)
{
    struct fz_conn *c = fz_pick_conn(p, fz_u8(in));
    struct packet k = {.mods = fz_u8(in)};

    if (c == NULL) {
        return false;
    }
    const struct mn_tcb *t = tcb_of(p, c);
    k.r = (struct mn_mnp_repr){.kind = MN_MNP_ACK, .seq = c->ack, .ack = c->nxt, .wnd = 256};
    k.r.ext = t != NULL && t->state >= MN_TCP_SYN_RECEIVED && t->mcb != MN_NIL
                  ? mn_mcb_of(p->h->e, t)->ext
                  : c->mnp.ext;
    uint32_t n = shape(in, c, &k, kind);
    modify(in, c, &k);
    k.r.sack = (k.mods & MOD_SACK) != 0 ? k.sack : NULL;
    for (; n > 0; n--) {
        if (kind == 3 || kind == 4 || kind == 10) {
            data(c, &k);
        }
        send_packet(p, c, &k);
        k.r.seq += k.r.kind == MN_MNP_DATA;
    }
    return (k.mods & MOD_NO_POLL) == 0;
}
