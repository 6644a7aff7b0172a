/* SPDX-License-Identifier: MIT */
#include "vnet.h"

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/ipv4.h"
#include "machnet/stack/core/wire/tcp.h"

#include <linux/virtio_net.h>

static_assert(sizeof(struct virtio_net_hdr) == MN_VNET_HDR_BYTES, "the legacy form of the header");

/* A segment of many pieces must be TCP over IPv4 whose headers lie inside the frame: where TCP
 * starts is said three times (by the header, by IPv4, by hdr_len) and the first two must agree. */
static int check_gso(const struct virtio_net_hdr *h, const struct mn_pkt *pkt)
{
    uint32_t l4_off, hdr_len;

    if ((h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 || h->gso_size == 0 ||
        pkt->len < MN_ETH_HLEN + MN_IPV4_HLEN + MN_TCP_HLEN || h->hdr_len > pkt->len) {
        return -EINVAL;
    }
    if (mn_rd16be(pkt->data + 12) != MN_ETHERTYPE_IPV4 ||
        pkt->data[MN_ETH_HLEN + 9] != MN_IPPROTO_TCP) {
        return -EINVAL;
    }
    l4_off = MN_ETH_HLEN + (pkt->data[MN_ETH_HLEN] & 15u) * 4u;
    if (l4_off != h->csum_start || h->csum_offset != MN_TCP_CSUM_OFF ||
        l4_off + MN_TCP_HLEN > pkt->len) {
        return -EINVAL;
    }
    hdr_len = (uint32_t)(pkt->data[l4_off + 12] >> 4) * 4u;
    if (hdr_len < MN_TCP_HLEN || l4_off + hdr_len > pkt->len) {
        return -EINVAL;
    }
    return 0;
}

int mn_vnet_read(const uint8_t hdr[MN_VNET_HDR_BYTES], struct mn_pkt *pkt)
{
    struct virtio_net_hdr h;
    uint8_t type;

    memcpy(&h, hdr, sizeof(h));
    type = (uint8_t)(h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN);
    if (type != VIRTIO_NET_HDR_GSO_NONE) {
        if (type != VIRTIO_NET_HDR_GSO_TCPV4 || check_gso(&h, pkt) != 0) {
            return -EINVAL;
        }
        pkt->gso_size = h.gso_size;
    }
    if ((h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
        if (h.csum_start < MN_ETH_HLEN || (uint32_t)h.csum_start + h.csum_offset + 2u > pkt->len) {
            return -EINVAL;
        }
        pkt->csum = MN_CSUM_PARTIAL;
        pkt->l4_off = h.csum_start;
        pkt->csum_off = h.csum_offset;
    } else if ((h.flags & VIRTIO_NET_HDR_F_DATA_VALID) != 0) {
        pkt->csum = MN_CSUM_VALID;
    }
    return 0;
}

void mn_vnet_write(uint8_t hdr[MN_VNET_HDR_BYTES], const struct mn_pkt *pkt)
{
    struct virtio_net_hdr h = {0};

    if (pkt->csum == MN_CSUM_PARTIAL) {
        h.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        h.csum_start = pkt->l4_off;
        h.csum_offset = pkt->csum_off;
    }
    if (pkt->gso_size != 0) {
        const uint8_t *tcp = pkt->data + pkt->l4_off;

        MN_ASSERT(pkt->l4_off + MN_TCP_HLEN <= pkt->len);
        h.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        /* CWR belongs on the first segment only, and the kernel is told so by this bit. */
        if ((tcp[13] & MN_TCP_CWR) != 0) {
            h.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
        }
        h.gso_size = pkt->gso_size;
        h.hdr_len = (uint16_t)(pkt->l4_off + (uint32_t)(tcp[12] >> 4) * 4u);
    }
    memcpy(hdr, &h, sizeof(h));
}

int mn_vnet_check(const uint8_t *hdr, uint8_t *frame, uint32_t len, struct mn_pkt_meta *meta)
{
    struct mn_pkt pkt = {.data = frame, .len = len, .room = len};
    int rc = mn_vnet_read(hdr, &pkt);

    mn_pkt_meta_get(&pkt, meta);
    return rc;
}
