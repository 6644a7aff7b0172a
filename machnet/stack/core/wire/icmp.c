/* SPDX-License-Identifier: MIT */
#include "icmp.h"

#include "csum.h"
#include "ipv4.h"

static_assert(MN_ICMP_HLEN == 2 * sizeof(uint32_t), "type, code, checksum and one word");
static_assert(MN_ICMP_ERROR_LEN_MAX == MN_ICMP_HLEN + MN_IPV4_HLEN_MAX + MN_ICMP_QUOTE_L4_LEN,
              "an error quotes one IP header and 8 bytes");

int mn_icmp_parse(const uint8_t *p, uint32_t len, struct mn_icmp *out)
{
    if (len < MN_ICMP_HLEN) {
        return MN_WIRE_TRUNCATED;
    }
    if (mn_csum_fold(mn_csum_partial(p, len, 0)) != 0) {
        return MN_WIRE_BAD_CSUM;
    }
    out->type = p[0];
    out->code = p[1];
    out->csum = mn_rd16be(p + 2);
    out->rest = mn_rd32be(p + 4);
    out->hdr_len = MN_ICMP_HLEN;
    out->payload = p + MN_ICMP_HLEN;
    out->payload_len = len - MN_ICMP_HLEN;
    return 0;
}

int mn_icmp_quote_parse(const uint8_t *p, uint32_t len, struct mn_icmp_quote *out)
{
    uint32_t hdr_len;

    if (len < MN_IPV4_HLEN) {
        return MN_WIRE_TRUNCATED;
    }
    if (p[0] >> 4 != 4) {
        return MN_WIRE_BAD_VERSION;
    }
    hdr_len = (p[0] & 15u) * 4u;
    out->total_len = mn_rd16be(p + 2);
    if (hdr_len < MN_IPV4_HLEN || out->total_len < hdr_len + MN_ICMP_QUOTE_L4_LEN) {
        return MN_WIRE_BAD_LENGTH;
    }
    if (len < hdr_len + MN_ICMP_QUOTE_L4_LEN) {
        return MN_WIRE_TRUNCATED;
    }
    if ((mn_rd16be(p + 6) & MN_IPV4_OFFSET_MASK) != 0) {
        return MN_WIRE_FRAGMENT;
    }
    out->ttl = p[8];
    out->proto = p[9];
    out->src = mn_rd32be(p + 12);
    out->dst = mn_rd32be(p + 16);
    out->hdr_len = hdr_len;
    out->payload = p + hdr_len;
    /* A quote may be longer than the packet it is of: link padding, or an RFC 4884 extension. */
    out->payload_len = mn_min_u32(len, out->total_len) - hdr_len;
    out->sport = 0;
    out->dport = 0;
    out->seq = 0;
    if (out->proto == MN_IPPROTO_TCP || out->proto == MN_IPPROTO_UDP) {
        out->sport = mn_rd16be(out->payload);
        out->dport = mn_rd16be(out->payload + 2);
    }
    if (out->proto == MN_IPPROTO_TCP) {
        out->seq = mn_rd32be(out->payload + 4);
    }
    return 0;
}

uint32_t mn_icmp_emit(uint8_t *p, const struct mn_icmp *icmp)
{
    uint32_t sum;

    p[0] = icmp->type;
    p[1] = icmp->code;
    mn_wr16be(p + 2, 0);
    mn_wr32be(p + 4, icmp->rest);
    sum = mn_csum_partial(p, MN_ICMP_HLEN, 0);
    sum = mn_csum_copy(p + MN_ICMP_HLEN, icmp->payload, icmp->payload_len, sum);
    mn_wr16be(p + 2, mn_csum_fold(sum));
    return MN_ICMP_HLEN + icmp->payload_len;
}

uint32_t mn_icmp_emit_echo_reply(uint8_t *p, const struct mn_icmp *request)
{
    struct mn_icmp reply = *request;

    reply.type = MN_ICMP_ECHO_REPLY;
    reply.code = 0;
    return mn_icmp_emit(p, &reply);
}

uint32_t mn_icmp_emit_unreachable(uint8_t *p, uint8_t code, uint16_t mtu, const uint8_t *ip,
                                  uint32_t ip_len)
{
    uint32_t hdr_len = (ip[0] & 15u) * 4u;
    struct mn_icmp error = {
        .type = MN_ICMP_UNREACHABLE,
        .code = code,
        .rest = code == MN_ICMP_FRAG_NEEDED ? mtu : 0,
        .payload = ip,
        .payload_len = mn_min_u32(ip_len, hdr_len + MN_ICMP_QUOTE_L4_LEN),
    };

    return mn_icmp_emit(p, &error);
}
