/* SPDX-License-Identifier: MIT */
#include "machnet/cli/probe_int.h"

#include "machnet/stack/core/wire/arp.h"
#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/icmp.h"
#include "machnet/stack/core/wire/ipv4.h"
#include "machnet/stack/core/wire/udp.h"

#define IP_OFF  MN_ETH_HLEN
#define L4_OFF  (MN_ETH_HLEN + MN_IPV4_HLEN)
#define OUR_TTL 64u

static void send_one(struct mn_probe *p, struct mn_pkt *pkt, uint64_t *counter)
{
    struct mn_nic *nic = p->cfg.nic;

    if (nic->ops->tx_burst(nic, 0, &pkt, 1) == 1) {
        (*counter)++;
    } else {
        p->counts.refused++;
        nic->ops->pkt_free(nic, 0, pkt);
    }
}

static struct mn_pkt *alloc(struct mn_probe *p, uint32_t len)
{
    struct mn_pkt *pkt = p->cfg.nic->ops->pkt_alloc(p->cfg.nic, 0, len);

    if (pkt != NULL) {
        pkt->len = len;
    }
    return pkt;
}

static void send_arp(struct mn_probe *p, uint16_t op, uint32_t target_ip, const uint8_t mac[6],
                     uint64_t *counter)
{
    static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct mn_arp arp = {.op = op, .sender_ip = p->cfg.ip, .target_ip = target_ip};
    struct mn_pkt *pkt = alloc(p, MN_ETH_HLEN + MN_ARP_LEN);

    if (pkt == NULL) {
        return;
    }
    memcpy(arp.sender_mac, p->cfg.nic->mac, 6);
    if (mac != NULL) {
        memcpy(arp.target_mac, mac, 6);
    }
    mn_eth_emit(pkt->data, mac != NULL ? mac : all, p->cfg.nic->mac, MN_ETHERTYPE_ARP);
    mn_arp_emit(pkt->data + MN_ETH_HLEN, &arp);
    send_one(p, pkt, counter);
}

void mn_probe_ask_arp(struct mn_probe *p)
{
    send_arp(p, MN_ARP_REQUEST, p->cfg.next_hop_ip, NULL, &p->counts.arp_requests);
}

static void emit_ip(const struct mn_probe *p, uint8_t *frame, const uint8_t mac[6], uint32_t dst,
                    uint8_t proto, uint32_t payload_len)
{
    struct mn_ipv4_repr ip = {.src = p->cfg.ip,
                              .dst = dst,
                              .payload_len = payload_len,
                              .proto = proto,
                              .ttl = OUR_TTL,
                              .df = true};

    mn_eth_emit(frame, mac, p->cfg.nic->mac, MN_ETHERTYPE_IPV4);
    mn_ipv4_emit(frame + IP_OFF, &ip);
}

static void write_mark(uint8_t mark[MN_PROBE_MARK_BYTES], uint64_t who, uint64_t seq)
{
    mn_msg_slot_write(mark, who);
    mn_msg_slot_write(mark + 8, seq);
}

struct mn_pkt *mn_probe_build(struct mn_probe *p, uint64_t seq)
{
    struct mn_pkt *pkt = alloc(p, p->cfg.frame_len);
    uint8_t mark[MN_PROBE_MARK_BYTES];
    uint8_t *l4;

    if (pkt == NULL) {
        return NULL;
    }
    l4 = pkt->data + L4_OFF;
    write_mark(mark, p->cfg.mark, seq);
    memcpy(p->payload, mark, mn_min_u32(sizeof(mark), p->payload_len));
    if (p->cfg.mode == MN_PROBE_ICMP) {
        struct mn_icmp icmp = {.type = MN_ICMP_ECHO_REQUEST,
                               .rest = (uint32_t)p->cfg.echo_id << 16 | (uint16_t)seq,
                               .payload = p->payload,
                               .payload_len = p->payload_len};

        mn_icmp_emit(l4, &icmp);
        emit_ip(p, pkt->data, p->next_hop_mac, p->cfg.target_ip, MN_IPPROTO_ICMP,
                MN_ICMP_HLEN + p->payload_len);
    } else {
        struct mn_udp_repr udp = {
            .sport = p->cfg.local_port, .dport = p->cfg.remote_port, .payload_len = p->payload_len};
        uint32_t sum = mn_csum_copy(l4 + MN_UDP_HLEN, p->payload, p->payload_len, 0);

        mn_udp_emit(l4, &udp);
        mn_udp_csum_fill(l4, p->cfg.ip, p->cfg.target_ip, sum);
        emit_ip(p, pkt->data, p->next_hop_mac, p->cfg.target_ip, MN_IPPROTO_UDP,
                MN_UDP_HLEN + p->payload_len);
    }
    return pkt;
}

static void take_arp(struct mn_probe *p, const struct mn_eth *eth)
{
    struct mn_arp arp;

    if (mn_arp_parse(eth->payload, eth->payload_len, &arp) != 0) {
        p->counts.bad++;
        return;
    }
    if (arp.target_ip != p->cfg.ip) {
        p->counts.other++;
        return;
    }
    if (p->cfg.mode != MN_PROBE_BOUNCE && arp.sender_ip == p->cfg.next_hop_ip) {
        memcpy(p->next_hop_mac, arp.sender_mac, 6);
        p->resolved = true;
    }
    if (arp.op == MN_ARP_REQUEST) {
        send_arp(p, MN_ARP_REPLY, arp.sender_ip, arp.sender_mac, &p->counts.arp_replies);
    }
}

/* Whether the payload is that of our packet `seq`. */
static bool payload_right(const struct mn_probe *p, const uint8_t *data, uint32_t len, uint64_t seq)
{
    uint32_t mark_len = mn_min_u32(MN_PROBE_MARK_BYTES, len);
    uint8_t mark[MN_PROBE_MARK_BYTES];

    write_mark(mark, p->cfg.mark, seq);
    return len == p->payload_len && memcmp(data, mark, mark_len) == 0 &&
           memcmp(data + mark_len, p->payload + mark_len, len - mark_len) == 0;
}

static void take_echo_request(struct mn_probe *p, const struct mn_eth *eth,
                              const struct mn_ipv4 *ip, const struct mn_icmp *icmp)
{
    uint32_t len = MN_ICMP_HLEN + icmp->payload_len;
    struct mn_pkt *pkt;

    if (L4_OFF + len > p->cfg.nic->caps.mtu + MN_ETH_HLEN) {
        p->counts.other++;
        return;
    }
    pkt = alloc(p, L4_OFF + len);
    if (pkt == NULL) {
        return;
    }
    mn_icmp_emit_echo_reply(pkt->data + L4_OFF, icmp);
    emit_ip(p, pkt->data, eth->src, ip->src, MN_IPPROTO_ICMP, len);
    send_one(p, pkt, &p->counts.echo_replies);
}

static void take_icmp_error(struct mn_probe *p, const struct mn_ipv4 *ip,
                            const struct mn_icmp *icmp, uint64_t now_ns)
{
    struct mn_icmp_quote q;

    if (!mn_icmp_is_error(icmp->type) ||
        mn_icmp_quote_parse(icmp->payload, icmp->payload_len, &q) != 0 || q.src != p->cfg.ip ||
        q.dst != p->cfg.target_ip) {
        p->counts.other++;
        return;
    }
    p->counts.unreachable++;
    mn_probe_note(p, &(struct mn_probe_event){.kind = MN_PROBE_ERROR,
                                              .from_ip = ip->src,
                                              .at_ns = now_ns,
                                              .icmp_type = icmp->type,
                                              .icmp_code = icmp->code});
}

static void take_icmp(struct mn_probe *p, const struct mn_eth *eth, const struct mn_ipv4 *ip,
                      uint64_t now_ns)
{
    struct mn_icmp icmp;

    if (mn_icmp_parse(ip->payload, ip->payload_len, &icmp) != 0) {
        p->counts.bad++;
    } else if (icmp.type == MN_ICMP_ECHO_REQUEST && icmp.code == 0) {
        take_echo_request(p, eth, ip, &icmp);
    } else if (icmp.type == MN_ICMP_ECHO_REPLY && p->cfg.mode == MN_PROBE_ICMP &&
               icmp.rest >> 16 == p->cfg.echo_id && ip->src == p->cfg.target_ip) {
        const struct probe_slot *slot = mn_probe_slot(p, icmp.rest & 0xffff);
        struct mn_probe_event reply = {.seq = slot->seq,
                                       .at_ns = now_ns,
                                       .from_ip = ip->src,
                                       .len = ip->payload_len,
                                       .ttl = ip->ttl};

        mn_probe_answered(p, &reply, payload_right(p, icmp.payload, icmp.payload_len, slot->seq));
    } else {
        take_icmp_error(p, ip, &icmp, now_ns);
    }
}

/* Turns a frame round, in place. The sums that its checksums cover stay the same. */
static void turn_round(struct mn_probe *p, struct mn_pkt *pkt, const struct mn_ipv4 *ip,
                       const struct mn_udp *udp)
{
    uint8_t *at = pkt->data + MN_ETH_HLEN;

    memcpy(pkt->data, pkt->data + 6, 6);
    memcpy(pkt->data + 6, p->cfg.nic->mac, 6);
    mn_wr32be(at + 12, ip->dst);
    mn_wr32be(at + 16, ip->src);
    at += ip->hdr_len;
    mn_wr16be(at, udp->dport);
    mn_wr16be(at + 2, udp->sport);
}

static bool take_udp(struct mn_probe *p, struct mn_pkt *pkt, const struct mn_ipv4 *ip,
                     uint64_t now_ns)
{
    struct mn_udp udp;
    uint64_t seq;

    if (mn_udp_parse(ip->payload, ip->payload_len, &udp) != 0 ||
        !mn_udp_csum_ok(ip->src, ip->dst, ip->payload, ip->payload_len)) {
        p->counts.bad++;
        return false;
    }
    if (p->cfg.mode == MN_PROBE_BOUNCE) {
        /* From our own port it would be another bouncer's, and go on for ever. */
        if (udp.dport != p->cfg.local_port || udp.sport == p->cfg.local_port ||
            pkt->len > p->cfg.nic->caps.mtu + MN_ETH_HLEN) {
            p->counts.other++;
            return false;
        }
        p->stats->rx_msgs++;
        p->stats->rx_bytes += pkt->len;
        turn_round(p, pkt, ip, &udp);
        return true;
    }
    if (p->cfg.mode != MN_PROBE_UDP || udp.dport != p->cfg.local_port ||
        udp.payload_len < MN_PROBE_MARK_BYTES || mn_msg_slot_read(udp.payload) != p->cfg.mark) {
        p->counts.other++;
        return false;
    }
    seq = mn_msg_slot_read(udp.payload + 8);
    mn_probe_answered(p,
                      &(struct mn_probe_event){.seq = seq,
                                               .at_ns = now_ns,
                                               .from_ip = ip->src,
                                               .len = udp.payload_len,
                                               .ttl = ip->ttl},
                      payload_right(p, udp.payload, udp.payload_len, seq));
    return false;
}

bool mn_probe_take(struct mn_probe *p, struct mn_pkt *pkt, uint64_t now_ns)
{
    struct mn_eth eth;
    struct mn_ipv4 ip;

    /* Frames in pieces are larger than any packet of ours. */
    if (pkt->next != NULL || mn_eth_parse(pkt->data, pkt->len, &eth) != 0 ||
        (!mn_eth_is_group(eth.dst) && memcmp(eth.dst, p->cfg.nic->mac, 6) != 0)) {
        p->counts.other++;
    } else if (eth.type == MN_ETHERTYPE_ARP) {
        take_arp(p, &eth);
    } else if (eth.type != MN_ETHERTYPE_IPV4 || mn_eth_is_group(eth.dst)) {
        p->counts.other++;
    } else if (mn_ipv4_parse(eth.payload, eth.payload_len, &ip) != 0) {
        p->counts.bad++;
    } else if (ip.dst != p->cfg.ip) {
        p->counts.other++;
    } else if (ip.proto == MN_IPPROTO_ICMP) {
        take_icmp(p, &eth, &ip, now_ns);
    } else if (ip.proto == MN_IPPROTO_UDP) {
        return take_udp(p, pkt, &ip, now_ns);
    } else {
        p->counts.other++;
    }
    return false;
}
