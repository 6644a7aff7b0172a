/* SPDX-License-Identifier: MIT */
/* Drives any NIC with plain bytes, as an engine would: for tests, and for authors of drivers. */
#ifndef MN_SIM_NICKIT_H
#define MN_SIM_NICKIT_H

#include "machnet/stack/core/nic.h"

/* What a frame carries beside its bytes; the fields of struct mn_pkt. */
struct mn_pkt_meta {
    uint16_t gso_size;
    uint16_t l4_off;
    uint16_t csum_off;
    uint8_t csum;   /* enum mn_csum_state */
    uint8_t pieces; /* that the frame is made of; on transmit 0 counts as 1 */
};

/* A NIC's public fields, flat. */
struct mn_nic_info {
    uint32_t mtu;
    uint32_t rx_max_frame;
    uint32_t tx_max_frame;
    uint16_t queues;
    uint8_t tx_csum_tcp;
    uint8_t tx_csum_udp;
    uint8_t tx_gso;
    uint8_t rx_csum_trusted;
    uint8_t link_up;
    uint8_t mac[6];
    int rx_fd;
    uint64_t wake_ns;
};

void mn_nic_get_info(const struct mn_nic *nic, struct mn_nic_info *out);

/* Receives one frame: its length, or -EAGAIN when none waits. A frame longer than `size` is
 * dropped: -EMSGSIZE. meta may be NULL. */
int64_t mn_nic_rx_bytes(struct mn_nic *nic, uint32_t queue, uint8_t *buf, uint32_t size,
                        struct mn_pkt_meta *meta);
/* Transmits one frame, cut into pieces if meta says so (the first holds up to 128 bytes): 0;
 * -EMSGSIZE (empty, or longer than the NIC takes in this form), -EINVAL (meta that the NIC does not
 * say it takes, or that does not fit the frame), -ENOBUFS (no packet) or -EAGAIN (not taken). meta:
 * NULL for a finished frame. */
int mn_nic_tx_bytes(struct mn_nic *nic, uint32_t queue, const uint8_t *frame, uint32_t len,
                    const struct mn_pkt_meta *meta);
/* Allocates a packet of `size` and gives it back: its room, or -ENOBUFS. */
int64_t mn_nic_probe_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size);
/* As a host does before it sleeps on the descriptor, and after: true, where there is nothing to do.
 */
bool mn_nic_arm(struct mn_nic *nic, uint32_t queue, bool on);

/* Receives up to n (at most 64) frames in one burst and transmits them as they are, in one burst,
 * on `to`, which must share its packets with `from` (the same NIC, or the ends of a wire). What is
 * not taken is given back. Returns how many were taken. */
int mn_nic_forward(struct mn_nic *from, struct mn_nic *to, uint32_t n);

/* Bytes of a frame, all pieces together. */
static inline uint32_t mn_pkt_frame_len(const struct mn_pkt *pkt)
{
    uint32_t len = pkt->len;

    while (MN_UNLIKELY((pkt = pkt->next) != NULL)) {
        len += pkt->len;
    }
    return len;
}

/* Copies the first `size` bytes of a frame, or all when it is shorter; returns how many. */
uint32_t mn_pkt_copy_out(const struct mn_pkt *pkt, uint8_t *buf, uint32_t size);
/* 0, or -EINVAL when offsets lie outside a frame of `len` bytes, or the state is none. */
int mn_pkt_meta_check(const struct mn_pkt_meta *meta, uint32_t len);
void mn_pkt_meta_get(const struct mn_pkt *pkt, struct mn_pkt_meta *out);
void mn_pkt_meta_set(struct mn_pkt *pkt, const struct mn_pkt_meta *meta);

#endif
