/* SPDX-License-Identifier: MIT */
/*
 * A hostile application. The input is what it does to its shared memory between the engine's
 * passes: nonsense in rings, indices and descriptors, or nearly right ones with buffers that it
 * does not own, chains that go in circles, flows of others. The engine may only close its channel;
 * an honest channel beside it must go on exchanging data with a peer, and nothing may be left when
 * both are gone.
 *
 * fuzz_channel_lanes: the channel has two lanes, of two engines. The nonsense is in the first one
 * and in the header, and the honest one is the second: its engine must not notice anything.
 */
#include "fz_app.h"

#define OPS_MAX    300u
#define BAD        0u /* the hostile channel */
#define GOOD       1u
#define END_PASSES 20000u
#define PEER_PORT  5000u
#define ROUND_LEN  300u
/* A full submit ring of 128 descriptors, three in each pass. */
#define READ_PASSES 50u

struct fuzz {
    struct fz_in in;
    struct fz_host host;
    struct fz_peer peer;
    struct fz_host other; /* of the second lane; the honest channel's */
    struct fz_peer other_peer;
    struct fz_app good;
    struct mn_chan_geometry geo;
    struct mn_lane_layout layout;
    uint32_t flow; /* the last that the hostile application was told of */
    uint32_t rounds;
};

static void step(struct fuzz *z)
{
    fz_host_poll(&z->host);
    fz_peer_read(&z->peer, true);
    if (FZ_CHAN_LANES) {
        z->other.now_ns = z->host.now_ns;
        fz_host_poll(&z->other);
        fz_peer_read(&z->other_peer, true);
    }
}

/* The honest channel's peer. */
static struct fz_peer *good_peer(struct fuzz *z)
{
    return FZ_CHAN_LANES ? &z->other_peer : &z->peer;
}

/* ---- the honest channel: a stream whose peer is played by hand ---- */

static struct fz_conn *good_conn(struct fuzz *z)
{
    for (uint32_t i = 0; i < FZ_CONNS; i++) {
        struct fz_conn *c = &good_peer(z)->conns[i];

        if (c->used && c->port == PEER_PORT) {
            return c;
        }
    }
    return NULL;
}

static void good_open(struct fuzz *z)
{
    struct fz_seg syn = {.flags = MN_TCP_SYN, .seq = UINT32_MAX, .wnd = 0xffff};
    struct fz_seg ack = {.flags = MN_TCP_ACK, .wnd = 0xffff};
    struct fz_peer *p = good_peer(z);

    fz_app_listen(&z->good, 0, 4);
    step(z);
    fz_app_results(&z->good);
    p->conns[0] = (struct fz_conn){.used = true,
                                   .ip = FZ_PEER_IP,
                                   .port = PEER_PORT,
                                   .engine_port = FZ_PORT_FIRST,
                                   .p_iss = UINT32_MAX};
    fz_peer_send(p, &p->conns[0], &syn);
    step(z);
    ack.seq = p->conns[0].ack;
    ack.ack = p->conns[0].nxt;
    fz_peer_send(p, &p->conns[0], &ack);
    step(z);
    step(z);
    fz_app_results(&z->good);
    FZ_CHECK(z->good.flows[0].id != MN_FLOW_NONE);
    /* Nobody else's data shall compete for the honest channel's buffers. */
    fz_app_unlisten(&z->good, 0);
    step(z);
    fz_app_results(&z->good);
}

/* Data both ways; all of it must arrive, whatever the other channel has done. */
static void good_round(struct fuzz *z)
{
    struct fz_conn *c = good_conn(z);
    struct fz_flow *f = &z->good.flows[0];
    struct fz_seg data = {
        .flags = MN_TCP_ACK, .wnd = 0xffff, .seq = c->ack, .ack = c->nxt, .len = ROUND_LEN};
    uint64_t before = z->good.received;
    uint32_t sent = c->nxt;

    z->rounds++;
    fz_peer_send(good_peer(z), c, &data);
    step(z);
    step(z);
    fz_app_receive(&z->good, ROUND_LEN);
    FZ_CHECK(z->good.received == before + ROUND_LEN);
    FZ_CHECK(fz_app_send(&z->good, f, ROUND_LEN, 0) == (int64_t)ROUND_LEN);
    step(z);
    step(z);
    FZ_CHECK(c->nxt == sent + ROUND_LEN && c->ack == data.seq + ROUND_LEN);
    struct fz_seg ack = {.flags = MN_TCP_ACK, .wnd = 0xffff, .seq = c->ack, .ack = c->nxt};
    fz_peer_send(good_peer(z), c, &ack);
    step(z);
}

/* ---- the hostile one ---- */

static struct mn_lane_shared *shared(const struct fuzz *z)
{
    return (struct mn_lane_shared *)(void *)mn_chan_lane(z->host.chans[BAD].region, &z->layout, 0);
}

static uint8_t *lane_at(const struct fuzz *z, uint64_t off)
{
    return mn_chan_lane(z->host.chans[BAD].region, &z->layout, 0) + off;
}

/* Looks at what the engine said, to know a flow that exists. */
static void look(struct fuzz *z)
{
    const struct mn_ctl_evt *evts = (const void *)lane_at(z, z->layout.ctl_complete_off);
    uint32_t n = atomic_load(&shared(z)->ctl_complete.tail);

    for (uint32_t i = 0; i < z->geo.ctl_slots && i < n; i++) {
        const struct mn_ctl_evt *evt = &evts[(n - 1 - i) & (z->geo.ctl_slots - 1)];

        if (evt->remote_ip != 0) {
            z->flow = evt->flow;
            return;
        }
    }
}

static uint32_t flow_id(struct fuzz *z, uint8_t b)
{
    switch (b & 3) {
    case 0:
        return z->flow;
    case 1:
        return z->flow + (b >> 2);
    case 2:
        return MN_FLOW_ID(b >> 4, (b >> 2) & 3);
    default:
        return fz_u32(&z->in);
    }
}

/* What no state of the channel makes right: it must be the end of it, once it was read. */
static void must_die(struct fuzz *z)
{
    const struct mn_lane *l = z->host.e->lanes[z->host.chans[BAD].lane];

    for (uint32_t n = 0; n < READ_PASSES && l->dead == 0; n++) {
        step(z);
    }
    FZ_CHECK(l->dead != 0);
}

static void push_desc(struct fuzz *z)
{
    struct mn_ring_idx *idx = &shared(z)->submit;
    struct mn_desc *slots = (void *)lane_at(z, z->layout.submit_off);
    uint32_t tail = atomic_load(&idx->tail);
    uint8_t a = fz_u8(&z->in), b = fz_u8(&z->in);
    uint32_t full = z->geo.buf_bytes;
    const uint32_t lens[] = {0, 1, full - 1, full, full + 1, 2 * full, UINT32_MAX, 100};

    struct mn_desc *d = &slots[tail & (z->layout.msg_slots_tx - 1)];

    *d = (struct mn_desc){
        .buf = (a & 0x80) != 0 ? MN_BUF_NONE : a & 0x7f,
        .len = lens[b & 7],
        .flow = flow_id(z, fz_u8(&z->in)),
        .flags = fz_u8(&z->in),
    };
    atomic_store(&idx->tail, tail + 1 + ((b & 0xf8) == 0xf8));
    /* The slot is one that the engine will read, unless the index was moved back before. */
    uint32_t ahead = tail - z->host.e->lanes[z->host.chans[BAD].lane]->submit.pos;
    if (ahead < z->layout.msg_slots_tx && d->buf != MN_BUF_NONE &&
        (d->buf >= z->geo.tx_bufs ||
         (d->len > full && (d->flags & (MN_DESC_FIN | MN_DESC_CLOSE)) == 0))) {
        must_die(z);
    }
}

static void push_cmd(struct fuzz *z)
{
    static const uint8_t ops[] = {MN_CTL_LISTEN,  MN_CTL_UNLISTEN, MN_CTL_CONNECT, MN_CTL_ACCEPT,
                                  MN_CTL_RELEASE, MN_CTL_SETOPT,   MN_CTL_GETOPT,  MN_CTL_CANCEL};
    struct mn_ring_idx *idx = &shared(z)->ctl_submit;
    struct mn_ctl_cmd *slots = (void *)lane_at(z, z->layout.ctl_submit_off);
    uint32_t tail = atomic_load(&idx->tail);
    uint8_t a = fz_u8(&z->in), b = fz_u8(&z->in), c = fz_u8(&z->in);

    slots[tail & (z->geo.ctl_slots - 1)] = (struct mn_ctl_cmd){
        .op = (a & 0xf8) == 0xf8 ? a : ops[a & 7],
        .token = b,
        .flow = (a & 7) == 1   ? c
                : (a & 7) == 7 ? b
                               : flow_id(z, c),
        .proto = 1 + ((a >> 3) & 3),
        .local_ip = (a & 32) != 0 ? fz_u32(&z->in) : 0,
        /* The honest channel's address and ports are among them. */
        .remote_ip = (b & 1) != 0 ? FZ_PEER_IP : z->host.cfg.ip,
        .local_port = (uint16_t)(FZ_PORT_FIRST + (b >> 6)),
        .remote_port = (uint16_t)((b & 2) != 0 ? FZ_PORT_FIRST + ((b >> 2) & 3) : PEER_PORT + 1),
        .arg = b & 15,
        .opt = c & 31,
        .value = (a & 64) != 0 ? fz_u32(&z->in) : c >> 5,
    };
    atomic_store(&idx->tail, tail + 1);
}

static void push_released(struct fuzz *z)
{
    struct mn_ring_idx *idx = &shared(z)->released;
    uint32_t *slots = (void *)lane_at(z, z->layout.released_off);
    uint32_t tail = atomic_load(&idx->tail), n = 1;
    uint8_t b = fz_u8(&z->in);

    slots[tail & (z->layout.ret_slots_rx - 1)] = b == 0xff ? fz_u32(&z->in) : b & 0x7f;
    if (b == 0xfe) { /* everything, in order */
        for (n = 0; n < z->geo.rx_bufs; n++) {
            slots[(tail + n) & (z->layout.ret_slots_rx - 1)] = n;
        }
    }
    atomic_store(&idx->tail, tail + n);
}

static struct mn_ring_idx *ring(const struct fuzz *z, uint8_t b)
{
    struct mn_lane_shared *sh = shared(z);
    struct mn_ring_idx *const rings[] = {&sh->submit,   &sh->completed,  &sh->deliver,
                                         &sh->released, &sh->ctl_submit, &sh->ctl_complete};

    return rings[b % MN_ARRAY_LEN(rings)];
}

/*
 * Moves an index: either side's, of any ring. More than a whole ring of news is a lie, once the
 * engine looks: it does so only when it has read all that it knew of, and by then the same index
 * may be a possible one. Nor does it see one that was moved back into what it is reading: there it
 * rests, as if that was all.
 */
static void poke_index(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in);
    struct mn_ring_idx *idx = ring(z, b >> 2);
    _Atomic uint32_t *word = (b & 1) != 0 ? &idx->tail : &idx->head;
    const struct mn_lane *l = z->host.e->lanes[z->host.chans[BAD].lane];
    const struct mn_ring_cons *const read[] = {&l->submit, &l->released};

    atomic_store(word, (b & 2) != 0 ? fz_u32(&z->in) : atomic_load(word) + fz_delta(&z->in));
    for (uint32_t i = 0; i < MN_ARRAY_LEN(read); i++) {
        uint32_t tail = atomic_load(&read[i]->idx->tail), limit = read[i]->limit;

        if (tail - limit > read[i]->mask + 1 && tail - read[i]->pos > limit - read[i]->pos) {
            must_die(z);
        }
    }
}

/* What an honest application would have read: everything. */
static void drain(struct fuzz *z)
{
    for (uint32_t i = 0; i < 3; i++) {
        struct mn_ring_idx *idx = ring(z, (uint8_t[]){1, 2, 5}[i]);

        atomic_store(&idx->head, atomic_load(&idx->tail));
    }
}

/* Any bytes anywhere in what is shared. */
static void poke_bytes(struct fuzz *z)
{
    uint32_t off = fz_u16(&z->in), n = 1 + (fz_u8(&z->in) & 31);
    uint32_t hdr = FZ_CHAN_LANES ? sizeof(struct mn_chan_hdr) : 0;

    off = off * 8 % (hdr + (uint32_t)z->layout.tx_pool_off - n);
    fz_bytes(&z->in, lane_at(z, 0) - hdr + off, n);
}

/* A segment for the hostile application's connections, so that it has some that live. */
static void op_peer(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in), kind = fz_u8(&z->in);
    struct fz_conn *c = &z->peer.conns[1 + b % (FZ_CONNS - 1)];
    struct fz_seg s = {.flags = MN_TCP_ACK, .wnd = (b & 128) != 0 ? 500 : 0xffff};

    if (!c->used) {
        *c = (struct fz_conn){.used = true,
                              .ip = FZ_PEER_IP,
                              .port = (uint16_t)(PEER_PORT + 1 + (b & 1)),
                              .engine_port = (uint16_t)(FZ_PORT_FIRST + ((b >> 4) & 3)),
                              .p_iss = UINT32_MAX};
    }
    c->tainted = true;
    s.seq = c->ack;
    s.ack = c->nxt;
    switch (kind & 7) {
    case 0:
        s.flags = MN_TCP_SYN;
        s.seq = c->p_iss;
        s.ack = 0;
        break;
    case 1:
        s.flags = MN_TCP_SYN | MN_TCP_ACK;
        s.seq = c->p_iss;
        break;
    case 2:
        s.flags |= MN_TCP_FIN;
        break;
    case 3:
        s.flags = MN_TCP_RST;
        break;
    case 4:
    case 5:
        s.len = fz_len(&z->in);
        break;
    default:
        break;
    }
    fz_peer_send(&z->peer, c, &s);
    step(z);
}

static uint64_t next_deadline(const struct fuzz *z)
{
    uint64_t at = mn_engine_deadline(z->host.e);

    return FZ_CHAN_LANES ? mn_min_u64(at, mn_engine_deadline(z->other.e)) : at;
}

static void op_time(struct fuzz *z)
{
    static const uint64_t steps_us[] = {1, 1000, 40000, 200000, 1000000, 10000000, 60000000, 1};
    uint64_t until = z->host.now_ns + steps_us[fz_u8(&z->in) & 7] * 1000;

    /* A channel that has something for the engine and is not served keeps it busy: allowed. */
    for (uint32_t n = 0; n < 200 && next_deadline(z) <= until; n++) {
        z->host.now_ns = mn_max_u64(z->host.now_ns, next_deadline(z));
        step(z);
    }
    z->host.now_ns = mn_max_u64(z->host.now_ns, until);
    step(z);
}

static void op(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in);

    look(z);
    switch (b & 15) {
    case 0:
    case 1:
    case 2:
        push_desc(z);
        break;
    case 3:
    case 4:
    case 5:
        push_cmd(z);
        break;
    case 6:
        push_released(z);
        break;
    case 7:
        poke_index(z);
        break;
    case 8:
        poke_bytes(z);
        break;
    case 9:
    case 10:
    case 11:
        op_peer(z);
        break;
    case 12:
        op_time(z);
        break;
    case 13:
        drain(z);
        break;
    case 14:
        atomic_store(&shared(z)->app_sleeps, fz_u8(&z->in));
        break;
    default:
        good_round(z);
        break;
    }
    if ((b & 0x80) == 0) {
        step(z);
    }
}

static void finish(struct fuzz *z)
{
    struct fz_host *h = &z->host;
    const struct mn_stats *stats = mn_engine_stats(h->e);

    good_round(z);
    FZ_CHECK(stats->lane_errors <= 1 && mn_app_dead(fz_app_chan(&z->good)) == 0);
    fz_chan_detach(z->good.h, GOOD, 0);
    h->chans[BAD].app = NULL; /* never used: the memory was the hostile application's */
    FZ_CHECK(mn_engine_detach(h->e, h->chans[BAD].lane, (z->rounds & 1) != 0 ? 0 : 1000) == 0);
    for (uint64_t until = h->now_ns + 3600 * MN_NS_PER_S; next_deadline(z) <= until;) {
        h->now_ns = mn_max_u64(h->now_ns, next_deadline(z));
        step(z);
        FZ_CHECK(z->rounds++ < END_PASSES);
    }
    if (FZ_CHAN_LANES) { /* before the memory goes, which is the other one's */
        FZ_CHECK(mn_engine_stats(z->other.e)->lane_errors == 0);
        fz_host_close(&z->other);
    }
    fz_host_close(h);
}

/* The honest channel: one of its own, or the second lane of the hostile one's memory. */
static void open_channels(struct fuzz *z, struct mn_config *cfg)
{
    struct mn_chan_geometry good = {1, 512, 16, 16, 4, 16};
    struct fz_host *h = &z->host;
    const uint8_t mac[6] = {2, 0, 0, 0, 1, 2};

    fz_chan_geometry(&z->in, &z->geo);
    z->geo.n_lanes = FZ_CHAN_LANES ? 2 : 1;
    FZ_CHECK(mn_chan_layout(&z->geo, &z->layout) == 0);
    fz_chan_open(&z->host, BAD, &z->geo);
    if (FZ_CHAN_LANES) {
        cfg->ip = FZ_IP(4);
        fz_host_open(&z->other, cfg, 1500, 0);
        FZ_CHECK(mn_engine_neighbor(z->other.e, FZ_PEER_IP, mac) == 0);
        fz_peer_open(&z->other_peer, &z->other);
        fz_chan_open_lane(&z->other, GOOD, &h->chans[BAD], 1);
        h = &z->other;
    } else {
        fz_chan_open(h, GOOD, &good);
    }
    fz_app_open(&z->good, h, GOOD);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fuzz z;
    struct mn_config cfg;
    const uint8_t mac[6] = {2, 0, 0, 0, 1, 2};

    z = (struct fuzz){.in = {data, data + size}, .flow = MN_FLOW_NONE};
    fz_host_config(&z.in, &cfg, FZ_IP(1));
    cfg.delack_us = 0; /* the honest side's exchanges are over when the engine rests */
    cfg.nagle_stream = false;
    cfg.rcv_buf_bytes = 65536;
    cfg.poll_burst = 32;
    fz_host_open(&z.host, &cfg, 1500, 0);
    FZ_CHECK(mn_engine_neighbor(z.host.e, FZ_PEER_IP, mac) == 0);
    fz_peer_open(&z.peer, &z.host);
    open_channels(&z, &cfg);
    good_open(&z);
    for (uint32_t n = 0; n < OPS_MAX && fz_more(&z.in); n++) {
        op(&z);
    }
    finish(&z);
    return 0;
}
