/* SPDX-License-Identifier: MIT */
#include "fz_peer.h"

#include <stdio.h>
#include <stdlib.h>

/* With FZ_TRACE set each segment is printed, as it is sent and as it is put into the NIC. */
static void trace(const struct fz_peer *p, char direction, uint32_t peer, const struct mn_tcp *tcp)
{
    static int on = -1;

    if (on < 0) {
        on = getenv("FZ_TRACE") != NULL;
    }
    if (on > 0) {
        fprintf(stderr, "%12.6f %c %u.%u %u-%u flags %03x seq %u ack %u wnd %u len %u\n",
                (double)(p->h->now_ns - FZ_START_NS) / 1e9, direction, (peer >> 8) & 255,
                peer & 255, tcp->sport, tcp->dport, tcp->flags, tcp->seq, tcp->ack, tcp->wnd,
                tcp->payload_len);
    }
}

static const uint32_t small_messages[FZ_MESSAGE_MAX] = {0, 5, 100, 907, 4096, 1, 1456, 124475};
static const uint32_t large_messages[FZ_MESSAGE_MAX] = {70000, 3, 0, 60000, 1000, 1, 4, 32};
static_assert(0 + 5 + 100 + 907 + 4096 + 1 + 1456 + 124475 + 8 * 4 == FZ_PERIOD, "one period");
static_assert(70000 + 3 + 0 + 60000 + 1000 + 1 + 4 + 32 + 8 * 4 == FZ_PERIOD, "one period");

static bool is_listen_port(uint16_t port)
{
    return port >= FZ_PORT_FIRST && port < FZ_PORT_FIRST + FZ_PORT_COUNT;
}

uint16_t fz_deciding(uint16_t local, uint16_t remote)
{
    return is_listen_port(local) ? local : remote;
}

bool fz_is_framed(uint16_t local, uint16_t remote)
{
    return ((fz_deciding(local, remote) - FZ_PORT_FIRST) & 2) != 0;
}

uint32_t fz_messages(uint16_t local, uint16_t remote, const uint32_t **lens)
{
    *lens = (fz_deciding(local, remote) & 1) != 0 ? small_messages : large_messages;
    return FZ_MESSAGE_MAX;
}

/* One period of each stream there is, made once. */
static uint8_t streams[3][FZ_PERIOD];

FZ_NO_COVERAGE static void make_streams(void)
{
    static const uint32_t *const lens[] = {small_messages, large_messages};

    for (uint32_t i = 0; i < FZ_PERIOD; i++) {
        streams[0][i] = streams[1][i] = streams[2][i] = (uint8_t)(1 + (i ^ i >> 7 ^ i >> 13));
    }
    for (uint32_t k = 0; k < 2; k++) {
        uint8_t *at = streams[1 + k];

        for (uint32_t m = 0; m < FZ_MESSAGE_MAX; m++) {
            mn_wr32be(at, lens[k][m]);
            at += 4 + lens[k][m];
        }
    }
}

void fz_content(uint16_t local, uint16_t remote, uint32_t off, uint8_t *out, uint32_t len)
{
    const uint8_t *stream = streams[0];

    if (streams[0][1] == 0) {
        make_streams();
    }
    if (fz_is_framed(local, remote)) {
        stream = streams[(fz_deciding(local, remote) & 1) != 0 ? 1 : 2];
    }
    while (len > 0) {
        uint32_t at = off % FZ_PERIOD, n = mn_min_u32(len, FZ_PERIOD - at);

        memcpy(out, stream + at, n);
        out += n;
        off += n;
        len -= n;
    }
}

void fz_peer_open(struct fz_peer *p, struct fz_host *h)
{
    *p = (struct fz_peer){.h = h};
}

/* Plain and slow on purpose: not the code under test. */
FZ_NO_COVERAGE uint16_t fz_plain_sum(const uint8_t *p, uint32_t len, uint32_t sum)
{
    for (uint32_t i = 0; i < len; i++) {
        sum += (i & 1) != 0 ? p[i] : (uint32_t)p[i] << 8;
    }
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

static uint32_t pseudo_sum(const uint8_t *ip, uint8_t proto, uint32_t len)
{
    return (uint32_t)fz_plain_sum(ip + 12, 8, 0) + proto + len;
}

struct fz_conn *fz_conn_find(struct fz_peer *p, uint32_t ip, uint16_t port, uint16_t engine_port)
{
    struct fz_conn *spare = NULL;

    for (uint32_t i = 0; i < FZ_CONNS; i++) {
        struct fz_conn *c = &p->conns[i];

        if (c->used && c->ip == ip && c->port == port && c->engine_port == engine_port) {
            return c;
        }
        if (!c->used && spare == NULL) {
            spare = c;
        }
    }
    if (spare != NULL) {
        *spare = (struct fz_conn){
            .used = true, .ip = ip, .port = port, .engine_port = engine_port, .p_iss = UINT32_MAX};
    }
    return spare;
}

static void check_payload(struct fz_conn *c, const struct mn_tcp *tcp)
{
    uint8_t want[2048];
    uint32_t done = 0;

    while (done < tcp->payload_len) {
        uint32_t n = mn_min_u32(sizeof(want), tcp->payload_len - done);

        fz_content(c->engine_port, c->port, tcp->seq + done - c->iss - 1, want, n);
        FZ_CHECK(memcmp(want, tcp->payload + done, n) == 0);
        done += n;
    }
}

static void on_tcp(struct fz_peer *p, const struct mn_ipv4 *ip, const struct mn_tcp *tcp)
{
    struct fz_conn *c = fz_conn_find(p, ip->dst, tcp->dport, tcp->sport);
    struct mn_tcp_opts o;

    if (c == NULL || (tcp->flags & MN_TCP_RST) != 0) {
        return;
    }
    FZ_CHECK(mn_tcp_opts_parse(tcp->opts, tcp->opts_len, &o) == 0);
    if ((tcp->flags & MN_TCP_SYN) != 0) {
        /* Perhaps a new connection, perhaps with the same number (MN_OPT_ISN). */
        c->synced = true;
        c->acked = false;
        c->iss = c->una = tcp->seq;
        c->nxt = tcp->seq + 1;
        c->wscale = o.has_wscale ? o.wscale : 0;
        c->engine_ts = o.has_ts;
    }
    if (o.has_ts) {
        c->tsval = o.tsval;
    }
    c->nxt = mn_seq_max(c->nxt, tcp->seq + tcp->payload_len + ((tcp->flags & MN_TCP_FIN) != 0));
    if ((tcp->flags & MN_TCP_ACK) == 0) {
        return;
    }
    /* Until its SYN is out, a new connection may still answer what looks like the old one's. */
    const struct mn_tcb *t =
        mn_flow_find(p->h->e, MN_IPPROTO_TCP, p->h->cfg.ip, c->engine_port, c->ip, c->port);
    bool settled = t != NULL && t->state >= MN_TCP_ESTABLISHED;
    bool scaled = settled && (t->flags & MN_TF_WSCALE) != 0 && (tcp->flags & MN_TCP_SYN) == 0;
    uint32_t wnd = (uint32_t)tcp->wnd << (scaled ? c->wscale : 0);
    FZ_CHECK(!c->acked || !settled || mn_seq_ge(tcp->ack, c->ack));
    FZ_CHECK(!c->acked || !settled || mn_seq_ge(tcp->ack + wnd, c->edge));
    c->acked = settled && !p->frames_lost;
    c->ack = tcp->ack;
    c->edge = tcp->ack + wnd;
    if (c->synced && !c->tainted && !p->frames_lost) {
        check_payload(c, tcp);
    }
}

static void on_arp(struct fz_peer *p, const uint8_t *frame, uint32_t len, bool answer)
{
    struct mn_arp arp;

    FZ_CHECK(mn_arp_parse(frame + MN_ETH_HLEN, len - MN_ETH_HLEN, &arp) == 0);
    FZ_CHECK(arp.sender_ip == p->h->cfg.ip);
    if (arp.op != MN_ARP_REQUEST || !answer) {
        return;
    }
    struct fz_frame *f = fz_frame_new(MN_ETH_HLEN + MN_ARP_LEN);
    struct mn_arp reply = {.sender_ip = arp.target_ip,
                           .target_ip = arp.sender_ip,
                           .op = MN_ARP_REPLY,
                           .sender_mac = {2, 0, 0, 0, 1, (uint8_t)arp.target_ip}};
    memcpy(reply.target_mac, arp.sender_mac, 6);
    mn_eth_emit(f->data, arp.sender_mac, reply.sender_mac, MN_ETHERTYPE_ARP);
    mn_arp_emit(f->data + MN_ETH_HLEN, &reply);
    fz_inject(p, f);
}

static void on_frame(struct fz_peer *p, const struct fz_frame *f, bool arp)
{
    struct mn_eth eth;
    struct mn_ipv4 ip;
    struct mn_tcp tcp;

    FZ_CHECK(mn_eth_parse(f->data, f->len, &eth) == 0);
    FZ_CHECK(memcmp(eth.src, p->h->nic.nic.mac, 6) == 0);
    if (eth.type == MN_ETHERTYPE_ARP) {
        on_arp(p, f->data, f->len, arp);
        return;
    }
    FZ_CHECK(eth.type == MN_ETHERTYPE_IPV4);
    FZ_CHECK(mn_ipv4_parse(eth.payload, eth.payload_len, &ip) == 0);
    FZ_CHECK(ip.src == p->h->cfg.ip && ip.total_len == eth.payload_len);
    FZ_CHECK(fz_plain_sum(eth.payload, ip.hdr_len, 0) == 0xffff);
    if (ip.proto == MN_IPPROTO_ICMP) {
        FZ_CHECK(fz_plain_sum(ip.payload, ip.payload_len, 0) == 0xffff);
        return;
    }
    if (ip.proto == MN_IPPROTO_UDP) {
        fz_mnp_read(p, &ip, f);
        return;
    }
    FZ_CHECK(ip.proto == MN_IPPROTO_TCP);
    FZ_CHECK(mn_tcp_parse(ip.payload, ip.payload_len, &tcp) == 0);
    trace(p, '>', ip.dst, &tcp);
    if (f->csum == MN_CSUM_NONE) {
        FZ_CHECK(fz_plain_sum(ip.payload, ip.payload_len,
                              pseudo_sum(eth.payload, MN_IPPROTO_TCP, ip.payload_len)) == 0xffff);
    }
    on_tcp(p, &ip, &tcp);
}

void fz_peer_read(struct fz_peer *p, bool arp)
{
    struct fz_frame *f;

    while ((f = fz_queue_get(&p->h->nic.tx)) != NULL) {
        on_frame(p, f, arp);
        fz_frame_free(f);
    }
}

void fz_inject(struct fz_peer *p, struct fz_frame *f)
{
    if (p->h->nic.rx.n >= 256) {
        fz_frame_free(f);
        return;
    }
    fz_queue_put(&p->h->nic.rx, f);
}

struct fz_frame *fz_ip_frame(struct fz_peer *p, uint32_t src, uint8_t proto, uint32_t len)
{
    struct fz_frame *f = fz_frame_new(MN_ETH_HLEN + MN_IPV4_HLEN + len);
    const uint8_t mac[6] = {2, 0, 0, 0, 1, (uint8_t)src};
    struct mn_ipv4_repr ip = {.src = src,
                              .dst = p->h->cfg.ip,
                              .payload_len = len,
                              .id = (uint16_t)++p->ip_id,
                              .proto = proto,
                              .ttl = 64};

    mn_eth_emit(f->data, p->h->nic.nic.mac, mac, MN_ETHERTYPE_IPV4);
    mn_ipv4_emit(f->data + MN_ETH_HLEN, &ip);
    return f;
}

void fz_peer_send(struct fz_peer *p, struct fz_conn *c, const struct fz_seg *s)
{
    uint8_t hdr[MN_TCP_HLEN_MAX] = {0};
    struct mn_tcp_repr r = {.sport = c->port,
                            .dport = c->engine_port,
                            .seq = s->seq,
                            .ack = s->ack,
                            .flags = s->flags,
                            .wnd = s->wnd,
                            .urg = s->urg,
                            .opts = s->raw_opts_len == 0 ? &s->opts : NULL};
    uint32_t hdr_len = mn_tcp_emit(hdr, &r);

    if (s->raw_opts_len > 0) {
        hdr_len = MN_TCP_HLEN + s->raw_opts_len;
        memcpy(hdr + MN_TCP_HLEN, s->raw_opts, s->raw_opts_len);
        hdr[12] = (uint8_t)(hdr_len / 4 << 4);
    }
    if ((s->flags & MN_TCP_SYN) != 0) {
        c->acked = false;
    }
    uint32_t len = mn_min_u32(s->len, 65535 - MN_IPV4_HLEN - hdr_len);
    struct fz_frame *f = fz_ip_frame(p, c->ip, MN_IPPROTO_TCP, hdr_len + len);
    uint8_t *ip = f->data + MN_ETH_HLEN, *tcp = ip + MN_IPV4_HLEN;

    memcpy(tcp, hdr, hdr_len);
    if (s->payload != NULL) {
        memcpy(tcp + hdr_len, s->payload, len);
    } else {
        fz_content(c->engine_port, c->port, s->seq - c->p_iss - 1 + ((s->flags & MN_TCP_SYN) != 0),
                   tcp + hdr_len, len);
    }
    mn_wr16be(tcp + MN_TCP_CSUM_OFF, 0);
    uint16_t sum = fz_plain_sum(tcp, hdr_len + len, pseudo_sum(ip, MN_IPPROTO_TCP, hdr_len + len));
    mn_wr16be(tcp + MN_TCP_CSUM_OFF, (uint16_t)(~sum ^ (s->bad_csum ? 0x0101 : 0)));
    struct mn_tcp seen;
    if (mn_tcp_parse(tcp, hdr_len + len, &seen) == 0) {
        trace(p, s->bad_csum ? 'x' : '<', c->ip, &seen);
    }
    f->split = s->split == 0 ? 0 : 134 + s->split; /* behind the longest headers */
    fz_inject(p, f);
}
