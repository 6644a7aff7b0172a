/* SPDX-License-Identifier: MIT */
#include "udp.h"

#include "ipv4.h"

static_assert(MN_UDP_HLEN == 4 * sizeof(uint16_t), "ports, length and checksum");

int mn_udp_parse(const uint8_t *p, uint32_t len, struct mn_udp *out)
{
    if (len < MN_UDP_HLEN) {
        return MN_WIRE_TRUNCATED;
    }
    out->len = mn_rd16be(p + 4);
    if (out->len < MN_UDP_HLEN) {
        return MN_WIRE_BAD_LENGTH;
    }
    if (out->len > len) {
        return MN_WIRE_TRUNCATED;
    }
    out->sport = mn_rd16be(p);
    out->dport = mn_rd16be(p + 2);
    out->csum = mn_rd16be(p + MN_UDP_CSUM_OFF);
    out->hdr_len = MN_UDP_HLEN;
    out->payload = p + MN_UDP_HLEN;
    out->payload_len = out->len - MN_UDP_HLEN;
    return 0;
}

bool mn_udp_csum_ok(uint32_t src, uint32_t dst, const uint8_t *p, uint32_t len)
{
    struct mn_udp udp;

    if (mn_udp_parse(p, len, &udp) != 0) {
        return false;
    }
    if (udp.csum == 0) {
        return true;
    }
    return mn_csum_fold(
               mn_csum_partial(p, udp.len, mn_csum_pseudo(src, dst, MN_IPPROTO_UDP, udp.len))) == 0;
}

uint32_t mn_udp_emit(uint8_t *p, const struct mn_udp_repr *r)
{
    MN_ASSERT(r->payload_len <= UINT16_MAX - MN_UDP_HLEN);
    mn_wr16be(p, r->sport);
    mn_wr16be(p + 2, r->dport);
    mn_wr16be(p + 4, (uint16_t)(MN_UDP_HLEN + r->payload_len));
    mn_wr16be(p + MN_UDP_CSUM_OFF, 0);
    return MN_UDP_HLEN;
}

void mn_udp_csum_fill(uint8_t *p, uint32_t src, uint32_t dst, uint32_t payload_sum)
{
    uint32_t sum = mn_csum_pseudo(src, dst, MN_IPPROTO_UDP, mn_rd16be(p + 4));
    uint16_t csum = mn_csum_fold(mn_csum_partial(p, MN_UDP_HLEN, mn_csum_add(sum, payload_sum)));

    mn_wr16be(p + MN_UDP_CSUM_OFF, csum != 0 ? csum : UINT16_MAX);
}
