/* SPDX-License-Identifier: MIT */
#include "nickit.h"

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/tcp.h"

/* Of a frame that is transmitted in pieces, the first has at least all headers. */
#define PIECE_HEAD_BYTES 128u

void mn_nic_get_info(const struct mn_nic *nic, struct mn_nic_info *out)
{
    const struct mn_nic_caps *caps = &nic->caps;

    *out = (struct mn_nic_info){
        .mtu = caps->mtu,
        .rx_max_frame = caps->rx_max_frame,
        .tx_max_frame = caps->tx_max_frame,
        .queues = caps->queues,
        .tx_csum_tcp = caps->tx_csum_tcp,
        .tx_csum_udp = caps->tx_csum_udp,
        .tx_gso = caps->tx_gso,
        .rx_csum_trusted = caps->rx_csum_trusted,
        .link_up = nic->link_up,
        .rx_fd = nic->rx_fd,
        .wake_ns = nic->wake_ns,
    };
    memcpy(out->mac, nic->mac, sizeof(out->mac));
}

uint32_t mn_pkt_copy_out(const struct mn_pkt *pkt, uint8_t *buf, uint32_t size)
{
    uint32_t at = 0;

    for (; pkt != NULL && at < size; pkt = pkt->next) {
        uint32_t n = mn_min_u32(pkt->len, size - at);

        memcpy(buf + at, pkt->data, n);
        at += n;
    }
    return at;
}

int mn_pkt_meta_check(const struct mn_pkt_meta *meta, uint32_t len)
{
    if (meta->csum > MN_CSUM_VALID || (meta->gso_size != 0 && meta->csum != MN_CSUM_PARTIAL)) {
        return -EINVAL;
    }
    if (meta->csum != MN_CSUM_PARTIAL) {
        return 0;
    }
    if (meta->l4_off < MN_ETH_HLEN || (uint32_t)meta->l4_off + meta->csum_off + 2u > len ||
        (meta->gso_size != 0 && meta->l4_off + MN_TCP_HLEN > len)) {
        return -EINVAL;
    }
    return 0;
}

void mn_pkt_meta_get(const struct mn_pkt *pkt, struct mn_pkt_meta *out)
{
    *out = (struct mn_pkt_meta){
        .gso_size = pkt->gso_size,
        .l4_off = pkt->l4_off,
        .csum_off = pkt->csum_off,
        .csum = pkt->csum,
    };
    for (; pkt != NULL && out->pieces < UINT8_MAX; pkt = pkt->next) {
        out->pieces++;
    }
}

void mn_pkt_meta_set(struct mn_pkt *pkt, const struct mn_pkt_meta *meta)
{
    pkt->gso_size = meta->gso_size;
    pkt->l4_off = meta->l4_off;
    pkt->csum_off = meta->csum_off;
    pkt->csum = meta->csum;
}

int64_t mn_nic_rx_bytes(struct mn_nic *nic, uint32_t queue, uint8_t *buf, uint32_t size,
                        struct mn_pkt_meta *meta)
{
    struct mn_pkt *pkt;
    int64_t len;

    if (nic->ops->rx_burst(nic, queue, &pkt, 1) == 0) {
        return -EAGAIN;
    }
    len = mn_pkt_frame_len(pkt);
    if (len > size) {
        len = -EMSGSIZE;
    } else {
        (void)mn_pkt_copy_out(pkt, buf, size);
        if (meta != NULL) {
            mn_pkt_meta_get(pkt, meta);
        }
    }
    nic->ops->pkt_free(nic, queue, pkt);
    return len;
}

/* Whether the NIC's capabilities allow what meta says about the frame. */
static int tx_meta_check(const struct mn_nic *nic, uint32_t len, const struct mn_pkt_meta *meta)
{
    const struct mn_nic_caps *caps = &nic->caps;

    if (meta->csum == MN_CSUM_VALID || mn_pkt_meta_check(meta, len) != 0) {
        return -EINVAL;
    }
    if ((meta->gso_size != 0 && !caps->tx_gso) ||
        (meta->csum == MN_CSUM_PARTIAL && !caps->tx_csum_tcp && !caps->tx_csum_udp)) {
        return -EINVAL;
    }
    return 0;
}

/* A frame in up to `pieces` pieces; NULL when the NIC has not enough packets. */
static struct mn_pkt *alloc_pieces(struct mn_nic *nic, uint32_t queue, const uint8_t *frame,
                                   uint32_t len, uint32_t pieces)
{
    uint32_t size = pieces > 1 ? mn_min_u32(len, PIECE_HEAD_BYTES) : len;
    uint32_t rest = pieces > 1 ? (len - size + pieces - 2) / (pieces - 1) : 0;
    struct mn_pkt *head = NULL, **end = &head;
    uint32_t at;

    for (at = 0; at < len; at += size, size = mn_min_u32(rest, len - at)) {
        struct mn_pkt *pkt = nic->ops->pkt_alloc(nic, queue, size);

        if (pkt == NULL) {
            if (head != NULL) {
                nic->ops->pkt_free(nic, queue, head);
            }
            return NULL;
        }
        memcpy(pkt->data, frame + at, size);
        pkt->len = size;
        *end = pkt;
        end = &pkt->next;
    }
    return head;
}

int mn_nic_tx_bytes(struct mn_nic *nic, uint32_t queue, const uint8_t *frame, uint32_t len,
                    const struct mn_pkt_meta *meta)
{
    bool gso = meta != NULL && meta->gso_size != 0;
    uint32_t max = gso ? nic->caps.tx_max_frame : nic->caps.mtu + MN_ETH_HLEN;
    struct mn_pkt *pkt;

    if (len == 0 || len > max) {
        return -EMSGSIZE;
    }
    if (meta != NULL && tx_meta_check(nic, len, meta) != 0) {
        return -EINVAL;
    }
    pkt = alloc_pieces(nic, queue, frame, len, meta != NULL ? meta->pieces : 1);
    if (pkt == NULL) {
        return -ENOBUFS;
    }
    if (meta != NULL) {
        mn_pkt_meta_set(pkt, meta);
    }
    if (nic->ops->tx_burst(nic, queue, &pkt, 1) == 0) {
        nic->ops->pkt_free(nic, queue, pkt);
        return -EAGAIN;
    }
    return 0;
}

int64_t mn_nic_probe_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_pkt *pkt = nic->ops->pkt_alloc(nic, queue, size);
    int64_t room;

    if (pkt == NULL) {
        return -ENOBUFS;
    }
    room = pkt->room;
    nic->ops->pkt_free(nic, queue, pkt);
    return room;
}

bool mn_nic_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    return nic->ops->rx_arm == NULL || nic->ops->rx_arm(nic, queue, on);
}

int mn_nic_forward(struct mn_nic *from, struct mn_nic *to, uint32_t n)
{
    struct mn_pkt *pkts[64];
    uint32_t got = from->ops->rx_burst(from, 0, pkts, mn_min_u32(n, MN_ARRAY_LEN(pkts)));
    uint32_t sent = to->ops->tx_burst(to, 0, pkts, got);

    for (uint32_t i = sent; i < got; i++) {
        to->ops->pkt_free(to, 0, pkts[i]);
    }
    return (int)sent;
}
