/* SPDX-License-Identifier: MIT */
/*
 * Mutations of valid frames into a whole engine: 100,000 for each header, half of them with the
 * checksums put right afterwards, so that what lies behind is reached. Each frame that is not taken
 * must be counted, once, under the reason that a plain reading of the RFCs gives (expect_*).
 */
#include "fz_app.h"

#include <stdio.h>
#include <stdlib.h>

#define FRAMES_EACH   100000u
#define FRAMES_ENGINE 500u /* then a new engine with a new connection */
#define FRAME_MAX     256u

static uint64_t rng = 1;

static uint32_t draw(uint32_t below)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % below;
}

/* ---- what a frame is worth ---- */

#define TAKEN           UINT32_MAX       /* handed to its protocol: none of the reasons below */
#define ICMP_QUOTED     (UINT32_MAX - 1) /* an error; what it is about decides */
#define REASON(name)    ((uint32_t)offsetof(struct mn_stats, name))
#define REASON_AT(s, r) (*(const uint64_t *)(const void *)((const uint8_t *)(s) + (r)))

static const uint32_t reasons[] = {
    REASON(drop_eth_short), REASON(drop_eth_type),    REASON(drop_eth_dst),
    REASON(drop_ip_short),  REASON(drop_ip_version),  REASON(drop_ip_length),
    REASON(drop_ip_csum),   REASON(drop_ip_fragment), REASON(drop_ip_src),
    REASON(drop_ip_dst),    REASON(drop_ip_proto),    REASON(drop_arp_bad),
    REASON(drop_icmp_bad),  REASON(drop_udp_bad),     REASON(drop_udp_port),
    REASON(drop_tcp_short), REASON(drop_tcp_offset),  REASON(drop_tcp_csum),
    REASON(drop_tcp_land),
};

struct bytes {
    const uint8_t *p;
    uint32_t len;
};

static uint32_t u16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t u32(const uint8_t *p)
{
    return u16(p) << 16 | u16(p + 2);
}

FZ_NO_COVERAGE static uint32_t ones(const uint8_t *p, uint32_t len, uint32_t sum)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += (i & 1) != 0 ? p[i] : (uint32_t)p[i] << 8;
    }
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static uint32_t pseudo(const uint8_t *ip, uint32_t len)
{
    return ones(ip + 12, 8, 0) + ip[9] + len;
}

static bool martian(uint32_t ip)
{
    return ip >> 24 == 0 || ip >> 24 == 127 || ip >> 28 == 14 || ip == UINT32_MAX;
}

/* 10.0.0.1/24, and network or broadcast addresses of it. */
static bool broadcast(uint32_t ip)
{
    return ip == UINT32_MAX || (ip >> 8 == FZ_IP(0) >> 8 && ((ip & 255) == 0 || (ip & 255) == 255));
}

static uint32_t expect_tcp(const uint8_t *ip, struct bytes b)
{
    if (b.len < 20) {
        return REASON(drop_tcp_short);
    }
    if (b.p[12] >> 4 < 5 || (b.p[12] >> 4) * 4u > b.len) {
        return REASON(drop_tcp_offset);
    }
    if (ones(b.p, b.len, pseudo(ip, b.len)) != 0xffff) {
        return REASON(drop_tcp_csum);
    }
    if (u32(ip + 12) == u32(ip + 16) && u16(b.p) == u16(b.p + 2)) {
        return REASON(drop_tcp_land);
    }
    return TAKEN;
}

static uint32_t expect_udp(const uint8_t *ip, struct bytes b)
{
    uint32_t len = b.len < 8 ? 0 : u16(b.p + 4);

    if (len < 8 || len > b.len) {
        return REASON(drop_udp_bad);
    }
    if (u16(b.p + 6) != 0 && ones(b.p, len, pseudo(ip, len)) != 0xffff) {
        return REASON(drop_udp_bad);
    }
    return REASON(drop_udp_port);
}

static uint32_t expect_icmp(struct bytes b)
{
    if (b.len < 8 || ones(b.p, b.len, 0) != 0xffff) {
        return REASON(drop_icmp_bad);
    }
    return b.p[0] == 3 || b.p[0] == 11 || b.p[0] == 12 ? ICMP_QUOTED : TAKEN;
}

static uint32_t expect_ip_header(struct bytes b)
{
    uint32_t hdr_len, total;

    if (b.len < 20) {
        return REASON(drop_ip_short);
    }
    hdr_len = (b.p[0] & 15u) * 4;
    total = u16(b.p + 2);
    if (b.p[0] >> 4 != 4) {
        return REASON(drop_ip_version);
    }
    if (hdr_len < 20 || total < hdr_len) {
        return REASON(drop_ip_length);
    }
    if (total > b.len) {
        return REASON(drop_ip_short);
    }
    if (ones(b.p, hdr_len, 0) != 0xffff) {
        return REASON(drop_ip_csum);
    }
    if ((u16(b.p + 6) & 0x3fff) != 0) {
        return REASON(drop_ip_fragment);
    }
    return martian(u32(b.p + 12)) ? REASON(drop_ip_src) : TAKEN;
}

static uint32_t expect_ip(struct bytes b, bool to_group)
{
    uint32_t reason = expect_ip_header(b);

    if (reason != TAKEN) {
        return reason;
    }
    uint32_t src = u32(b.p + 12), dst = u32(b.p + 16), hdr_len = (b.p[0] & 15u) * 4;
    struct bytes in = {b.p + hdr_len, u16(b.p + 2) - hdr_len};
    bool group = dst >> 28 == 14 || broadcast(dst);

    if (to_group && !group) {
        return REASON(drop_eth_dst);
    }
    if (!group && dst != FZ_IP(1)) {
        return REASON(drop_ip_dst);
    }
    if (broadcast(src) || src == FZ_IP(1)) {
        return REASON(drop_ip_src);
    }
    if (group && b.p[9] != 17) {
        return REASON(drop_ip_dst);
    }
    switch (b.p[9]) {
    case 1:
        return expect_icmp(in);
    case 6:
        return expect_tcp(b.p, in);
    case 17:
        return expect_udp(b.p, in);
    default:
        return REASON(drop_ip_proto);
    }
}

static uint32_t expect_arp(struct bytes b)
{
    static const uint8_t nobody[6] = {0};

    if (b.len < 28 || u16(b.p) != 1 || u16(b.p + 2) != 0x800 || b.p[4] != 6 || b.p[5] != 4) {
        return REASON(drop_arp_bad);
    }
    uint32_t op = u16(b.p + 6), ip = u32(b.p + 14);
    if ((op != 1 && op != 2) || (b.p[8] & 1) != 0 || memcmp(b.p + 8, nobody, 6) == 0) {
        return REASON(drop_arp_bad);
    }
    if (ip != 0 && martian(ip)) { /* 0 is a probe's (RFC 5227) */
        return REASON(drop_arp_bad);
    }
    return TAKEN;
}

static uint32_t expect(const uint8_t *mac, struct bytes b)
{
    if (b.len < 14) {
        return REASON(drop_eth_short);
    }
    uint32_t type = u16(b.p + 12);
    struct bytes in = {b.p + 14, b.len - 14};
    bool group = (b.p[0] & 1) != 0;

    if (type < 0x600 || type == 0x8100 || type == 0x88a8) {
        return REASON(drop_eth_type);
    }
    if (!group && memcmp(b.p, mac, 6) != 0) {
        return REASON(drop_eth_dst);
    }
    if (type == 0x800) {
        return expect_ip(in, group);
    }
    return type == 0x806 ? expect_arp(in) : REASON(drop_eth_type);
}

/* ---- frames ---- */

struct lab {
    struct fz_host host;
    struct fz_peer peer;
    struct fz_app app;
};

static void lab_open(struct lab *l)
{
    struct mn_config cfg;
    struct mn_chan_geometry geo = {1, 512, 16, 16, 6, 16};
    struct fz_in none = {NULL, NULL};
    const uint8_t mac[6] = {2, 0, 0, 0, 1, 2};
    struct fz_in syn = {(const uint8_t[]){8, 0, 0, 0}, NULL};
    struct fz_in ack = {(const uint8_t[]){0, 0}, NULL};

    syn.end = syn.p + 4;
    ack.end = ack.p + 2;
    fz_host_config(&none, &cfg, FZ_IP(1));
    fz_host_open(&l->host, &cfg, 1500, 0);
    FZ_CHECK(mn_engine_neighbor(l->host.e, FZ_PEER_IP, mac) == 0);
    fz_peer_open(&l->peer, &l->host);
    fz_chan_open(&l->host, 0, &geo);
    fz_app_open(&l->app, &l->host, 0);
    fz_app_listen(&l->app, 0, 4);
    fz_host_poll(&l->host);
    (void)fz_segment(&syn, &l->peer, 0);
    fz_host_poll(&l->host);
    fz_peer_read(&l->peer, true);
    (void)fz_segment(&ack, &l->peer, 2);
    fz_host_poll(&l->host);
    fz_peer_read(&l->peer, true);
    FZ_CHECK(mn_engine_stats(l->host.e)->tcp_established == 1);
}

static void lab_close(struct lab *l)
{
    fz_chan_detach(&l->host, 0, 0);
    FZ_CHECK(fz_host_run(&l->host, l->host.now_ns + 600 * MN_NS_PER_S, 10000));
    fz_host_close(&l->host);
}

enum header { H_ETH, H_ARP, H_IPV4, H_ICMP, H_UDP, H_TCP, HEADERS };

static const char *const names[HEADERS] = {"eth", "arp", "ipv4", "icmp", "udp", "tcp"};

static struct fz_frame *arp_frame(struct lab *l)
{
    struct fz_frame *f = fz_frame_new(MN_ETH_HLEN + MN_ARP_LEN);
    struct mn_arp arp = {.sender_ip = FZ_IP(2 + draw(3)),
                         .target_ip = FZ_IP(1),
                         .op = (uint16_t)(1 + draw(2)),
                         .sender_mac = {2, 0, 0, 0, 1, 2}};

    mn_eth_emit(f->data, l->host.nic.nic.mac, arp.sender_mac, MN_ETHERTYPE_ARP);
    mn_arp_emit(f->data + MN_ETH_HLEN, &arp);
    return f;
}

static struct fz_frame *icmp_frame(struct lab *l)
{
    const struct fz_conn *c = &l->peer.conns[0];
    uint8_t quote[MN_IPV4_HLEN + 8], msg[MN_ICMP_HLEN + sizeof(quote)];
    struct mn_ipv4_repr ip = {
        .src = FZ_IP(1), .dst = c->ip, .payload_len = 40, .proto = MN_IPPROTO_TCP, .ttl = 9};
    struct mn_icmp icmp = {.type = draw(2) == 0 ? 8 : 3,
                           .code = (uint8_t)draw(5),
                           .rest = 1400,
                           .payload = quote,
                           .payload_len = sizeof(quote)};

    mn_ipv4_emit(quote, &ip);
    mn_wr16be(quote + 20, c->engine_port);
    mn_wr16be(quote + 22, c->port);
    mn_wr32be(quote + 24, c->una);
    mn_icmp_emit(msg, &icmp);
    struct fz_frame *f = fz_ip_frame(&l->peer, FZ_PEER_IP, MN_IPPROTO_ICMP, sizeof(msg));
    memcpy(f->data + MN_ETH_HLEN + MN_IPV4_HLEN, msg, sizeof(msg));
    return f;
}

static struct fz_frame *udp_frame(struct lab *l)
{
    struct fz_frame *f = fz_ip_frame(&l->peer, FZ_PEER_IP, MN_IPPROTO_UDP, MN_UDP_HLEN + 20);
    struct mn_udp_repr udp = {.sport = 7, .dport = 9, .payload_len = 20};
    uint8_t *p = f->data + MN_ETH_HLEN + MN_IPV4_HLEN;

    mn_udp_emit(p, &udp);
    memset(p + MN_UDP_HLEN, 0x55, 20);
    mn_udp_csum_fill(p, FZ_PEER_IP, FZ_IP(1), mn_csum_partial(p + MN_UDP_HLEN, 20, 0));
    return f;
}

static struct fz_frame *tcp_frame(struct lab *l)
{
    struct fz_conn *c = &l->peer.conns[0];
    struct fz_seg s = {.seq = c->ack, .ack = c->nxt, .len = draw(60), .wnd = 5000, .urg = 3};
    static const uint16_t flags[] = {MN_TCP_ACK, MN_TCP_ACK | MN_TCP_PSH, MN_TCP_ACK | MN_TCP_URG,
                                     MN_TCP_SYN, MN_TCP_ACK | MN_TCP_FIN, MN_TCP_RST};

    s.flags = flags[draw(MN_ARRAY_LEN(flags))];
    s.opts = (struct mn_tcp_opts){.has_ts = true, .tsval = ++c->ts, .tsecr = c->tsval};
    if (s.flags == MN_TCP_SYN) {
        c = &l->peer.conns[1];
        *c = (struct fz_conn){.used = true,
                              .ip = FZ_PEER_IP,
                              .port = (uint16_t)(6000 + draw(100)),
                              .engine_port = (uint16_t)(FZ_PORT_FIRST + draw(2))};
        s.opts.has_mss = s.opts.sack_permitted = s.opts.has_wscale = true;
        s.opts.mss = 1460;
    } else if (draw(2) == 0) {
        s.opts.n_sack = 2;
        s.opts.sack[0] = (struct mn_sack_block){s.ack + 10, s.ack + 20};
        s.opts.sack[1] = (struct mn_sack_block){s.ack + 30, s.ack + 40};
    }
    fz_peer_send(&l->peer, c, &s);
    return fz_queue_get(&l->host.nic.rx);
}

static struct fz_frame *valid(struct lab *l, enum header h)
{
    switch (h) {
    case H_ARP:
        return arp_frame(l);
    case H_ICMP:
        return icmp_frame(l);
    case H_UDP:
        return udp_frame(l);
    case H_TCP:
        return tcp_frame(l);
    default:
        switch (draw(4)) {
        case 0:
            return h == H_ETH ? arp_frame(l) : icmp_frame(l);
        case 1:
            return udp_frame(l);
        default:
            return tcp_frame(l);
        }
    }
}

/* Where the mutations go: the header's first byte and its usual length. */
static void span_of(enum header h, uint32_t *at, uint32_t *len)
{
    static const uint32_t spans[HEADERS][2] = {{0, 14},  {14, 28}, {14, 20},
                                               {34, 36}, {34, 8},  {34, 60}};

    *at = spans[h][0];
    *len = spans[h][1];
}

static void mutate(uint8_t *p, uint32_t len, uint32_t at, uint32_t span)
{
    static const uint8_t edges[] = {0, 1, 4, 5, 15, 0x44, 0x45, 0x4f, 0x50, 0x7f, 0x80, 0xfe, 0xff};

    for (uint32_t n = 1 + draw(3); n > 0; n--) {
        uint32_t i = at + draw(span);

        if (i >= len) {
            continue;
        }
        switch (draw(3)) {
        case 0:
            p[i] ^= (uint8_t)(1u << draw(8));
            break;
        case 1:
            p[i] = edges[draw(sizeof(edges))];
            break;
        default:
            p[i] = (uint8_t)draw(256);
            break;
        }
    }
}

/* Right checksums again, as far as the lengths allow. */
static void mend(uint8_t *p, uint32_t len)
{
    if (len < 34 || u16(p + 12) != 0x800) {
        return;
    }
    uint8_t *ip = p + 14;
    uint32_t hdr_len = (ip[0] & 15u) * 4, total = u16(ip + 2);
    if (hdr_len < 20 || total < hdr_len || total > len - 14) {
        return;
    }
    mn_wr16be(ip + 10, 0);
    mn_wr16be(ip + 10, (uint16_t)~ones(ip, hdr_len, 0));
    uint8_t *l4 = ip + hdr_len;
    uint32_t n = total - hdr_len, at = ip[9] == 6 ? 16 : ip[9] == 17 ? 6 : 2;
    if (n >= at + 2 && (ip[9] == 1 || ip[9] == 6 || ip[9] == 17)) {
        mn_wr16be(l4 + at, 0);
        mn_wr16be(l4 + at, (uint16_t)~ones(l4, n, ip[9] == 1 ? 0 : pseudo(ip, n)));
    }
}

/* ---- the run ---- */

static struct fz_frame *mutated(struct lab *l, enum header h)
{
    struct fz_frame *f = valid(l, h);
    uint8_t p[FRAME_MAX] = {0};
    uint32_t len = mn_min_u32(f->len, FRAME_MAX), at, span;

    memcpy(p, f->data, len);
    fz_frame_free(f);
    span_of(h, &at, &span);
    mutate(p, len, at, span);
    switch (draw(10)) {
    case 0:
        len = 1 + draw(len);
        break;
    case 1:
        len = mn_min_u32(len + draw(40), FRAME_MAX);
        break;
    default:
        break;
    }
    if (draw(2) == 0) {
        mend(p, len);
    }
    f = fz_frame_new(len);
    memcpy(f->data, p, len);
    return f;
}

static void fail(const struct mn_stats *before, const struct mn_stats *after, const uint8_t *p,
                 uint32_t len, uint32_t reason)
{
    fprintf(stderr, "expected counter at %u, frame:", reason);
    for (uint32_t i = 0; i < len; i++) {
        fprintf(stderr, "%s%02x", i % 2 == 0 ? " " : "", p[i]);
    }
    fprintf(stderr, "\n");
#define PRINT_CHANGE(name, what)                                                                   \
    if (before->name != after->name) {                                                             \
        fprintf(stderr, "  %s +%u (offset %u)\n", #name, (uint32_t)(after->name - before->name),   \
                REASON(name));                                                                     \
    }
    MN_STATS(PRINT_CHANGE)
    mn_panic(__FILE__, __LINE__, "a frame is counted under the reason it has");
}

/* All that a taken frame can change: counters but those of reception, connections, neighbours. */
FZ_NO_COVERAGE static uint64_t state_of(const struct mn_engine *e)
{
    const struct {
        const void *p;
        size_t bytes;
    } parts[] = {
        {&e->stats.tx_frames, sizeof(e->stats) - offsetof(struct mn_stats, tx_frames)},
        {e->tcbs, e->tcb_pool.high * sizeof(e->tcbs[0])},
        {e->nbrs, e->nbr_pool.high * sizeof(e->nbrs[0])},
    };
    uint64_t hash = 0;

    for (uint32_t i = 0; i < MN_ARRAY_LEN(parts); i++) {
        const uint8_t *at = parts[i].p;

        for (size_t k = 0; k + 8 <= parts[i].bytes; k += 8) {
            uint64_t word;

            memcpy(&word, at + k, 8);
            hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 29;
        }
    }
    return hash;
}

static bool one(struct lab *l, enum header h)
{
    const struct mn_stats *stats = mn_engine_stats(l->host.e);
    struct mn_stats before = *stats;
    struct fz_frame *f = mutated(l, h);
    uint8_t p[FRAME_MAX];
    uint32_t len = f->len, dropped = 0;

    memcpy(p, f->data, len);
    uint32_t reason = expect(l->host.nic.nic.mac, (struct bytes){p, len});
    uint64_t state = state_of(l->host.e);
    fz_inject(&l->peer, f);
    l->host.now_ns += 10 * MN_NS_PER_US;
    mn_engine_poll(l->host.e, l->host.now_ns);
    fz_peer_read(&l->peer, true);
    for (uint32_t i = 0; i < MN_ARRAY_LEN(reasons); i++) {
        uint64_t n = REASON_AT(stats, reasons[i]) - REASON_AT(&before, reasons[i]);

        if (n != (reasons[i] == reason) && !(reason == ICMP_QUOTED && n <= 1)) {
            fail(&before, stats, p, len, reason);
        }
        dropped += n != 0;
    }
    if (dropped > 1 || state_of(l->host.e) == state) {
        fail(&before, stats, p, len, reason);
    }
    return dropped == 0;
}

int main(void)
{
    static struct lab l;

    for (enum header h = H_ETH; h < HEADERS; h++) {
        uint32_t taken = 0;

        for (uint32_t n = 0; n < FRAMES_EACH; n++) {
            if (n % FRAMES_ENGINE == 0) {
                lab_open(&l);
            }
            taken += one(&l, h);
            if (n % 50 == 0) {
                fz_check_engine(l.host.e);
            }
            if (n % FRAMES_ENGINE == FRAMES_ENGINE - 1) {
                lab_close(&l);
            }
        }
        printf("%-4s: %u frames, %u taken, %u counted as dropped\n", names[h], FRAMES_EACH, taken,
               FRAMES_EACH - taken);
    }
    return 0;
}
