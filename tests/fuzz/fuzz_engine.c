/* SPDX-License-Identifier: MIT */
/*
 * One engine over a hand-fed NIC. The input is a configuration and then a sequence of operations:
 * segments from other hosts (placed relative to what the engine has sent), any other frames, calls
 * of two applications, steps of time, a NIC that fails. After each pass everything that must hold
 * is checked (fz_check.c), and at the end, with everybody gone, nothing may be left.
 * Built a second time with FZ_MNP for the message protocol: the same, with its packets.
 */
#include "fz_app.h"

#include <stdlib.h>

#define OPS_MAX      400u
#define RUN_PASSES   300u
#define END_PASSES   20000u
#define AUTO_RECEIVE 1u
#define AUTO_ACCEPT  2u
#define AUTO_ARP     4u

struct fuzz {
    struct fz_in in;
    struct fz_host host;
    struct fz_peer peer;
    struct fz_app apps[FZ_LANES];
    struct mn_chan_geometry geo[FZ_LANES];
    uint8_t autos;
};

static bool known(void *ctx, uint16_t local_port, uint16_t remote_port, uint32_t remote_ip)
{
    const struct fuzz *z = ctx;

    for (uint32_t i = 0; i < FZ_CONNS; i++) {
        const struct fz_conn *c = &z->peer.conns[i];

        if (c->used && c->ip == remote_ip && c->port == remote_port &&
            c->engine_port == local_port) {
            return !c->tainted;
        }
    }
    return remote_ip == z->host.cfg.ip;
}

static void step(struct fuzz *z)
{
    fz_host_poll(&z->host);
    fz_peer_read(&z->peer, (z->autos & AUTO_ARP) != 0);
    for (uint32_t i = 0; i < FZ_LANES; i++) {
        if (z->host.chans[i].app == NULL) {
            continue;
        }
        if ((z->autos & AUTO_ACCEPT) != 0) {
            fz_app_results(&z->apps[i]);
        }
        if ((z->autos & AUTO_RECEIVE) != 0) {
            fz_app_receive(&z->apps[i], 1u << 16);
        }
        mn_app_flush(z->host.chans[i].app);
    }
}

static void op_segment(struct fuzz *z, uint8_t kind)
{
    if (FZ_MNP ? fz_mnp_segment(&z->in, &z->peer, kind) : fz_segment(&z->in, &z->peer, kind)) {
        step(z);
    }
}

/* ---- other frames ---- */

static void op_raw_frame(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in);
    uint32_t len = 1 + fz_u8(&z->in);
    struct fz_frame *f;

    if ((b & 1) != 0) { /* right addresses and IP header, anything behind */
        static const uint8_t protos[] = {MN_IPPROTO_TCP, MN_IPPROTO_ICMP, MN_IPPROTO_UDP, 4};

        f = fz_ip_frame(&z->peer, FZ_PEER_IP + (b >> 6), protos[(b >> 1) & 3], len);
        fz_bytes(&z->in, f->data + MN_ETH_HLEN + MN_IPV4_HLEN, len);
    } else {
        f = fz_frame_new(len);
        fz_bytes(&z->in, f->data, len);
        if ((b & 2) != 0 && len >= MN_ETH_HLEN) {
            memcpy(f->data, z->host.nic.nic.mac, 6);
            mn_wr16be(f->data + 12, (b & 4) != 0 ? MN_ETHERTYPE_ARP : MN_ETHERTYPE_IPV4);
        }
    }
    f->csum = (b >> 3) & 3;
    f->split = (b & 32) != 0 ? fz_u8(&z->in) : 0;
    fz_inject(&z->peer, f);
    step(z);
}

static void op_arp(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in), who = fz_u8(&z->in);
    struct fz_frame *f = fz_frame_new(MN_ETH_HLEN + MN_ARP_LEN);
    struct mn_arp arp = {
        .sender_ip = FZ_IP(who & 31),
        .target_ip = (b & 1) != 0 ? FZ_IP(fz_u8(&z->in)) : z->host.cfg.ip,
        .op = (b & 2) != 0 ? MN_ARP_REPLY : MN_ARP_REQUEST,
        .sender_mac = {(b & 4) != 0 ? 3 : 2, 0, 0, 0, 1, (uint8_t)(who ^ (b & 8))},
    };

    mn_eth_emit(f->data, z->host.nic.nic.mac, arp.sender_mac, MN_ETHERTYPE_ARP);
    mn_arp_emit(f->data + MN_ETH_HLEN, &arp);
    fz_inject(&z->peer, f);
    step(z);
}

/* An error about something that the engine has sent, or nearly. */
static void op_icmp(struct fuzz *z)
{
    static const uint8_t types[] = {3, 3, 3, 3, 11, 12, 4, 8};
    struct fz_conn *c = fz_pick_conn(&z->peer, fz_u8(&z->in));
    uint8_t b = fz_u8(&z->in);
    uint8_t quote[MN_IPV4_HLEN + 8], msg[MN_ICMP_HLEN + sizeof(quote)];

    if (c == NULL) {
        return;
    }
    struct mn_ipv4_repr ip = {.src = z->host.cfg.ip,
                              .dst = c->ip,
                              .payload_len = MN_TCP_HLEN,
                              .proto = FZ_MNP ? MN_IPPROTO_UDP : MN_IPPROTO_TCP,
                              .ttl = 3};
    mn_ipv4_emit(quote, &ip);
    mn_wr16be(quote + MN_IPV4_HLEN, c->engine_port);
    mn_wr16be(quote + MN_IPV4_HLEN + 2, c->port);
    mn_wr32be(quote + MN_IPV4_HLEN + 4, c->una + fz_delta(&z->in));
    struct mn_icmp icmp = {.type = types[b & 7],
                           .code = (b >> 3) & 7,
                           .rest = (b & 64) != 0 ? fz_u32(&z->in) : 1000,
                           .payload = quote,
                           .payload_len = sizeof(quote)};
    mn_icmp_emit(msg, &icmp);
    struct fz_frame *f = fz_ip_frame(&z->peer, c->ip, MN_IPPROTO_ICMP, sizeof(msg));
    memcpy(f->data + MN_ETH_HLEN + MN_IPV4_HLEN, msg, sizeof(msg));
    fz_inject(&z->peer, f);
    step(z);
}

/* ---- applications ---- */

static struct fz_flow *pick_flow(struct fz_app *a, uint8_t b)
{
    for (uint32_t i = 0; i < FZ_FLOWS; i++) {
        struct fz_flow *f = &a->flows[(b + i) % FZ_FLOWS];

        if (f->id != MN_FLOW_NONE && ((b & 0x80) != 0 || !f->closed)) {
            return f;
        }
    }
    return NULL;
}

static void op_setopt(struct fuzz *z, struct fz_app *a, struct fz_flow *f)
{
    static const uint64_t values[] = {0, 1, 2048, 88, 5000, 1u << 20, 1u << 30, UINT64_MAX};
    uint8_t b = fz_u8(&z->in);
    uint32_t opt = b & 31, flow = f != NULL ? f->id : MN_FLOW_NONE;
    uint64_t value = values[b >> 5];

    if (opt == MN_OPT_ISN) {
        flow = MN_FLOW_NONE;
        value = (b >> 5) == 7 ? UINT64_MAX : 0xffffffffu - (b >> 5) * 1000u;
    }
    int64_t token = (b & 0xc0) == 0x40 ? mn_app_getopt(fz_app_chan(a), flow, opt)
                                       : mn_app_setopt(fz_app_chan(a), flow, opt, value);
    if (token > 0) {
        (void)mn_app_forget(fz_app_chan(a), token);
    }
}

static void op_connect(struct fuzz *z, struct fz_app *a)
{
    static const uint32_t timeouts[] = {0, 100, 5000, 400000};
    uint8_t b = fz_u8(&z->in);
    uint32_t ip = FZ_PEER_IP + (b & 1);
    uint16_t port = (uint16_t)(FZ_PEER_PORT + ((b >> 2) & 3)), local = 0;

    if ((b & 2) != 0) {
        ip = z->host.cfg.ip;
        port = (uint16_t)(FZ_PORT_FIRST + ((b >> 2) & 3));
    }
    if ((b & 16) != 0) {
        local = (uint16_t)(2000 + (b & 3));
    }
    if ((b & 0xe0) == 0xe0) {
        ip = fz_u32(&z->in);
    }
    fz_app_connect(a, ip, port, local, timeouts[(b >> 5) & 3]);
}

static void op_flow(struct fuzz *z, struct fz_app *a, uint8_t what)
{
    static const uint32_t lingers[] = {MN_LINGER_DEFAULT, 0, 100, 5000};
    struct fz_flow *f = pick_flow(a, fz_u8(&z->in));

    if (f == NULL) {
        return;
    }
    switch (what) {
    case 0:
    case 1: {
        uint32_t n = 1 + (fz_u8(&z->in) & 15), len = fz_len(&z->in);

        while (n-- > 0 && fz_app_send(a, f, len, what == 0 ? 0 : fz_u8(&z->in)) > 0) {
        }
        break;
    }
    case 2:
        fz_app_shutdown(a, f);
        break;
    case 3:
        fz_app_close(a, f, lingers[fz_u8(&z->in) & 3]);
        break;
    default:
        op_setopt(z, a, f);
        break;
    }
}

static void op_app(struct fuzz *z, uint8_t what)
{
    uint8_t b = fz_u8(&z->in);
    struct fz_app *a = &z->apps[b & 1];
    static const uint32_t lingers[] = {60000, 0, 100, 5000};

    if (fz_app_chan(a) == NULL) {
        if (what == 15 && fz_chan_reap(&z->host, a->chan)) {
            fz_chan_open(&z->host, a->chan, &z->geo[a->chan]);
            fz_app_open(a, &z->host, a->chan);
            a->known = known;
            a->ctx = z;
            a->mnp = FZ_MNP;
        }
        return;
    }
    switch (what) {
    case 8:
        fz_app_listen(a, (b >> 1) & 3, (b >> 3) & 3);
        break;
    case 9:
        op_connect(z, a);
        break;
    case 10:
        fz_app_results(a);
        break;
    case 11:
        fz_app_receive(a, 1 + fz_len(&z->in));
        break;
    case 12:
        fz_app_skip(a);
        break;
    case 13:
        fz_app_unlisten(a, (b >> 1) & 3);
        break;
    case 14:
        fz_chan_detach(&z->host, a->chan, lingers[(b >> 1) & 3]);
        break;
    default:
        op_flow(z, a, what);
        break;
    }
    if (fz_app_chan(a) != NULL && (b & 0x80) == 0) {
        mn_app_flush(fz_app_chan(a));
    }
    if ((b & 0x40) == 0) {
        step(z);
    }
}

/* ---- time, and the NIC ---- */

/* False: the bound on passes ended it. */
static bool run(struct fuzz *z, uint64_t until, uint32_t passes)
{
    for (; passes > 0; passes--) {
        uint64_t at = mn_engine_deadline(z->host.e);

        FZ_CHECK(at >= z->host.e->now_ns);
        if (at > until) {
            break;
        }
        z->host.now_ns = mn_max_u64(z->host.now_ns, at);
        step(z);
    }
    if (passes == 0) {
        return false;
    }
    z->host.now_ns = mn_max_u64(z->host.now_ns, until);
    step(z);
    return true;
}

static void op_time(struct fuzz *z)
{
    static const uint64_t steps_us[] = {0,       1,       1000,     40000,     200000,   1000000,
                                        3000000, 6000000, 30000000, 120000000, 600000000};
    uint8_t b = fz_u8(&z->in) % (MN_ARRAY_LEN(steps_us) + 1);

    if (b == MN_ARRAY_LEN(steps_us)) { /* to the next deadline, however far */
        uint64_t at = mn_engine_deadline(z->host.e);

        (void)run(z, at == MN_NEVER ? z->host.now_ns : at, 1);
        return;
    }
    (void)run(z, z->host.now_ns + steps_us[b] * 1000, RUN_PASSES);
}

static void op_nic(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in);

    z->peer.frames_lost |= (b & 3) != 3;
    switch (b & 3) {
    case 0:
        z->host.nic.alloc_fail = b >> 4;
        break;
    case 1:
        z->host.nic.tx_stuck = b >> 4;
        break;
    case 2:
        z->host.nic.tx_limit = (b >> 2) == 0 ? UINT32_MAX : b >> 2;
        break;
    default:
        z->autos ^= (b >> 2) & 7;
        break;
    }
}

static void op(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in) & 31;

    if (b < 12) {
        op_segment(z, b);
    } else if (b == 12) {
        op_raw_frame(z);
    } else if (b == 13) {
        op_arp(z);
    } else if (b == 14) {
        op_icmp(z);
    } else if (b == 15) {
        op_nic(z);
    } else if (b < 18) {
        op_time(z);
    } else if (b < 31) {
        static const uint8_t what[] = {0, 0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 14, 15};

        op_app(z, what[b - 18]);
    } else {
        op_app(z, 13);
    }
}

/* Nobody answers any more: the engine must come to rest while the applications are still there, and
 * when they go too, whatever is left must go by itself. */
static void finish(struct fuzz *z)
{
    struct fz_host *h = &z->host;

    h->nic.alloc_fail = h->nic.tx_stuck = 0;
    h->nic.tx_limit = UINT32_MAX;
    z->autos = AUTO_RECEIVE | AUTO_ACCEPT;
    FZ_CHECK(run(z, h->now_ns + 200 * MN_NS_PER_S, END_PASSES));
    for (uint32_t i = 0; i < FZ_LANES; i++) {
        fz_chan_detach(h, i, h->cfg.app_exit_linger_ms);
    }
    z->autos = 0;
    FZ_CHECK(run(z, h->now_ns + 3600 * MN_NS_PER_S, END_PASSES));
    fz_host_close(h);
}

static void open_all(struct fuzz *z)
{
    static const uint32_t mtus[] = {1500, 576, 9000, 168};
    struct mn_config cfg;

    fz_host_config(&z->in, &cfg, FZ_IP(1));
    if (FZ_MNP) {
        fz_host_config_mnp(&z->in, &cfg);
    }
    uint8_t b = fz_u8(&z->in);
    fz_host_open(&z->host, &cfg, mtus[b & 3], (b >> 2) & 7);
    fz_peer_open(&z->peer, &z->host);
    for (uint32_t i = 0; i < FZ_LANES; i++) {
        fz_chan_geometry(&z->in, &z->geo[i]);
        fz_chan_open(&z->host, i, &z->geo[i]);
        fz_app_open(&z->apps[i], &z->host, i);
        z->apps[i].known = known;
        z->apps[i].ctx = z;
        z->apps[i].mnp = FZ_MNP;
    }
    z->autos = (uint8_t)(b >> 5) ^ 7;
    if ((b & 64) == 0) {
        const uint8_t mac[6] = {2, 0, 0, 0, 1, 2};

        FZ_CHECK(mn_engine_neighbor(z->host.e, FZ_PEER_IP, mac) == 0);
        FZ_CHECK(mn_engine_neighbor(z->host.e, FZ_PEER_IP + 1, mac) == 0);
    }
    z->peer.frames_lost = (b & 64) != 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fuzz z;

    z = (struct fuzz){.in = {data, data + size}};
    open_all(&z);
    for (uint32_t n = 0; n < OPS_MAX && fz_more(&z.in); n++) {
        op(&z);
    }
    finish(&z);
    return 0;
}
