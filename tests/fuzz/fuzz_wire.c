/* SPDX-License-Identifier: MIT */
/*
 * The views of all headers over any bytes. Each gets memory of exactly the length it is told, so
 * that a byte read beyond it is found; what it says must lie inside. What an emitter writes must be
 * read back as it was.
 */
#include "fz_nic.h"
#include "machnet/stack/core/wire/wire.h"

#include <stdlib.h>

static void inside(const uint8_t *p, uint32_t len, const uint8_t *part, uint32_t part_len)
{
    FZ_CHECK(part >= p && part_len <= len && (size_t)(part - p) <= len - part_len);
}

static void try_opts(const uint8_t *p, uint32_t len)
{
    struct mn_tcp_opts o, again;
    uint8_t out[MN_TCP_OPTS_LEN_MAX];

    (void)mn_tcp_opts_parse(p, mn_min_u32(len, MN_TCP_OPTS_LEN_MAX), &o);
    FZ_CHECK(o.n_sack <= MN_TCP_SACK_MAX);
    uint32_t n = mn_tcp_opts_emit(out, &o);
    FZ_CHECK(n <= MN_TCP_OPTS_LEN_MAX && n % 4 == 0);
    FZ_CHECK(mn_tcp_opts_parse(out, n, &again) == 0);
    FZ_CHECK(again.has_mss == o.has_mss && (!o.has_mss || again.mss == o.mss));
    FZ_CHECK(again.has_ts == o.has_ts);
    FZ_CHECK(!o.has_ts || (again.tsval == o.tsval && again.tsecr == o.tsecr));
    FZ_CHECK(again.n_sack <= o.n_sack && again.saw_unknown == 0);
}

static void try_tcp(const uint8_t *p, uint32_t len)
{
    struct mn_tcp tcp;

    if (mn_tcp_parse(p, len, &tcp) == 0) {
        inside(p, len, tcp.payload, tcp.payload_len);
        inside(p, len, tcp.opts, tcp.opts_len);
        FZ_CHECK(tcp.hdr_len + tcp.payload_len == len);
        try_opts(tcp.opts, tcp.opts_len);
    }
}

static void try_udp(const uint8_t *p, uint32_t len)
{
    struct mn_udp udp;

    if (mn_udp_parse(p, len, &udp) == 0) {
        inside(p, len, udp.payload, udp.payload_len);
        struct mn_mnp mnp;
        if (mn_mnp_parse(udp.payload, udp.payload_len, &mnp) == 0) {
            inside(udp.payload, udp.payload_len, mnp.payload, mnp.payload_len);
        }
    }
    (void)mn_udp_csum_ok(1, 2, p, len);
}

static void try_icmp(const uint8_t *p, uint32_t len)
{
    struct mn_icmp icmp;
    struct mn_icmp_quote q;

    if (mn_icmp_parse(p, len, &icmp) == 0) {
        uint8_t *reply = malloc(len);

        inside(p, len, icmp.payload, icmp.payload_len);
        FZ_CHECK(reply != NULL && mn_icmp_emit_echo_reply(reply, &icmp) == len);
        FZ_CHECK(mn_icmp_parse(reply, len, &icmp) == 0);
        free(reply);
    }
    if (mn_icmp_quote_parse(p, len, &q) == 0) {
        inside(p, len, q.payload, q.payload_len);
    }
}

static void try_arp(const uint8_t *p, uint32_t len)
{
    struct mn_arp arp, again;
    uint8_t out[MN_ARP_LEN];

    if (mn_arp_parse(p, len, &arp) == 0) {
        FZ_CHECK(mn_arp_emit(out, &arp) == MN_ARP_LEN && memcmp(out, p, MN_ARP_LEN) == 0);
        FZ_CHECK(mn_arp_parse(out, sizeof(out), &again) == 0);
    }
}

static void try_ipv4(const uint8_t *p, uint32_t len)
{
    struct mn_ipv4 ip;
    uint8_t unreach[MN_ICMP_ERROR_LEN_MAX];

    if (mn_ipv4_parse(p, len, &ip) != 0) {
        return;
    }
    inside(p, len, ip.payload, ip.payload_len);
    inside(p, len, ip.opts, ip.opts_len);
    FZ_CHECK(ip.hdr_len + ip.payload_len == ip.total_len);
    uint32_t n = mn_icmp_emit_unreachable(unreach, 3, 0, p, ip.total_len);
    FZ_CHECK(n <= sizeof(unreach));
    try_icmp(unreach, n);
    try_tcp(ip.payload, ip.payload_len);
    try_udp(ip.payload, ip.payload_len);
    try_icmp(ip.payload, ip.payload_len);
}

/* The same packet with lengths and checksum put right, so that what is behind them is reached. */
static void try_ipv4_mended(uint8_t *p, uint32_t len)
{
    if (len < MN_IPV4_HLEN) {
        return;
    }
    uint32_t hdr_len = mn_min_u32(20 + (p[0] & 15u) * 4, len & ~3u);

    hdr_len = mn_min_u32(hdr_len, MN_IPV4_HLEN_MAX);
    p[0] = (uint8_t)(0x40 | hdr_len / 4);
    mn_wr16be(p + 2, (uint16_t)mn_min_u32(len, 65535));
    mn_wr16be(p + 6, 0);
    p[12] = 10;
    mn_wr16be(p + MN_IPV4_CSUM_OFF, 0);
    mn_wr16be(p + MN_IPV4_CSUM_OFF, mn_csum_fold(mn_csum_partial(p, hdr_len, 0)));
    try_ipv4(p, len);
}

static void try_csum(const uint8_t *p, uint32_t len)
{
    uint8_t *copy = malloc(len + 1);
    uint32_t sum = 0;

    FZ_CHECK(copy != NULL);
    for (uint32_t i = 0; i < len; i++) {
        sum += (i & 1) != 0 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    FZ_CHECK(mn_csum_fold_seed(mn_csum_partial(p, len, 0)) % 0xffff == sum % 0xffff);
    FZ_CHECK(mn_csum_fold_seed(mn_csum_copy(copy, p, len, 0)) % 0xffff == sum % 0xffff);
    FZ_CHECK(memcmp(copy, p, len) == 0);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t len = (uint32_t)mn_min_u64(size, 65535);
    uint8_t *p = malloc(len == 0 ? 1 : len);
    struct mn_eth eth;

    FZ_CHECK(p != NULL);
    if (len > 0) {
        memcpy(p, data, len);
    }
    if (len > 0 && mn_eth_parse(p, len, &eth) == 0) {
        inside(p, len, eth.payload, eth.payload_len);
    }
    if (len > 0) {
        try_ipv4(p, len);
        try_arp(p, len);
        try_tcp(p, len);
        try_udp(p, len);
        try_icmp(p, len);
        try_opts(p, len);
        try_csum(p, len);
        try_ipv4_mended(p, len);
    }
    free(p);
    return 0;
}
