/* SPDX-License-Identifier: MIT */
/* ICMP: echo, errors about packets of ours, and the error for a UDP port that nobody serves. */
#include "handoff.h"

/* An IPv4 packet with room for `bytes` behind its header; the caller fills them and calls
 * icmp_output. */
static struct mn_pkt *icmp_alloc(struct mn_engine *e, uint32_t bytes)
{
    if (bytes + MN_IPV4_HLEN > e->nic->caps.mtu) {
        return NULL;
    }
    return mn_tx_alloc(e, MN_ETH_HLEN + MN_IPV4_HLEN + bytes);
}

static void icmp_output(struct mn_engine *e, struct mn_pkt *pkt, uint32_t dst, uint32_t bytes)
{
    struct mn_ipv4_repr ip = {.src = e->cfg.ip,
                              .dst = dst,
                              .payload_len = bytes,
                              .id = (uint16_t)mn_random(e),
                              .proto = MN_IPPROTO_ICMP,
                              .ttl = e->cfg.ttl};

    mn_ipv4_emit(pkt->data + MN_ETH_HLEN, &ip);
    pkt->len = MN_ETH_HLEN + MN_IPV4_HLEN + bytes;
    mn_ip_output(e, pkt, dst, MN_NIL);
}

static void icmp_echo(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_icmp *icmp)
{
    uint32_t bytes = MN_ICMP_HLEN + icmp->payload_len;
    struct mn_pkt *pkt = icmp_alloc(e, bytes);

    if (pkt == NULL) {
        e->stats.drop_icmp_ignored++;
        return;
    }
    mn_icmp_emit_echo_reply(pkt->data + MN_ETH_HLEN + MN_IPV4_HLEN, icmp);
    e->stats.icmp_echo_replies++;
    icmp_output(e, pkt, ip->src, bytes);
}

static void icmp_error(struct mn_engine *e, const struct mn_icmp *icmp)
{
    struct mn_icmp_quote q;

    if (mn_icmp_quote_parse(icmp->payload, icmp->payload_len, &q) < 0) {
        e->stats.drop_icmp_bad++;
        return;
    }
    if (!mn_ip_is_local(e, q.src) || (q.proto != MN_IPPROTO_TCP && q.proto != MN_IPPROTO_UDP)) {
        e->stats.drop_icmp_quote++;
        return;
    }
    if (mn_flow_find(e, q.proto, q.src, q.sport, q.dst, q.dport) == NULL &&
        mn_handoff(e, &(struct mn_tuple){q.src, q.dst, q.sport, q.dport, q.proto})) {
        return;
    }
    if (q.proto == MN_IPPROTO_TCP) {
        mn_tcp_icmp_error(e, icmp, &q);
    } else {
        mn_mnp_icmp_error(e, icmp, &q);
    }
}

void mn_icmp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const uint8_t *ip_packet)
{
    struct mn_icmp icmp;

    (void)ip_packet;
    if (mn_icmp_parse(ip->payload, ip->payload_len, &icmp) < 0) {
        e->stats.drop_icmp_bad++;
        return;
    }
    if (icmp.type == MN_ICMP_ECHO_REQUEST && icmp.code == 0) {
        icmp_echo(e, ip, &icmp);
    } else if (icmp.type == MN_ICMP_UNREACHABLE || icmp.type == MN_ICMP_TIME_EXCEEDED ||
               icmp.type == MN_ICMP_PARAMETER_PROBLEM) {
        icmp_error(e, &icmp);
    } else {
        e->stats.drop_icmp_ignored++;
    }
}

void mn_icmp_port_unreachable(struct mn_engine *e, const struct mn_ipv4 *ip,
                              const uint8_t *ip_packet)
{
    struct mn_pkt *pkt;

    if (!mn_bucket_take(e, &e->icmp_bucket, e->cfg.icmp_per_s)) {
        e->stats.drop_icmp_limited++;
        return;
    }
    pkt = icmp_alloc(e, MN_ICMP_ERROR_LEN_MAX);
    if (pkt == NULL) {
        return;
    }
    uint32_t bytes =
        mn_icmp_emit_unreachable(pkt->data + MN_ETH_HLEN + MN_IPV4_HLEN, MN_ICMP_PORT_UNREACHABLE,
                                 0, ip_packet, ip->total_len);
    e->stats.icmp_unreach_sent++;
    icmp_output(e, pkt, ip->src, bytes);
}

/* The message protocol is all that runs on UDP here; what is not its own is for nobody. An error
 * never answers a group (RFC 1122, 3.2.2). */
void mn_udp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const uint8_t *ip_packet,
               bool dst_is_group, bool csum_known)
{
    struct mn_udp udp;

    if (mn_udp_parse(ip->payload, ip->payload_len, &udp) < 0 ||
        (!csum_known && !mn_udp_csum_ok(ip->src, ip->dst, ip->payload, ip->payload_len))) {
        e->stats.drop_udp_bad++;
        return;
    }
    if (!dst_is_group && mn_mnp_rx(e, ip, &udp)) {
        return;
    }
    if (!dst_is_group &&
        mn_handoff(e, &(struct mn_tuple){ip->dst, ip->src, udp.dport, udp.sport, MN_IPPROTO_UDP})) {
        return;
    }
    e->stats.drop_udp_port++;
    if (!dst_is_group) {
        mn_icmp_port_unreachable(e, ip, ip_packet);
    }
}
