/* SPDX-License-Identifier: MIT */
/* The virtio_net_hdr that a TAP puts in front of each frame, and its meaning for a packet.
 *
 * It is the 10-byte form, in the machine's byte order. The 12-byte form only adds num_buffers,
 * which a read or write of one frame has no use for; and 10 bytes with the Ethernet header make 24,
 * so that the IP header stays at a multiple of 8. */
#ifndef MN_SIM_VNET_H
#define MN_SIM_VNET_H

#include "machnet/stack/core/nic.h"

#include "nickit.h"

#define MN_VNET_HDR_BYTES 10u

/* Reads the header of a received frame of which `pkt->data` and `pkt->len` say where it lies, and
 * sets csum, gso_size, l4_off and csum_off. The header comes from the kernel and is checked all the
 * same: -EINVAL when something it says does not fit the frame, or was never negotiated. */
int mn_vnet_read(const uint8_t hdr[MN_VNET_HDR_BYTES], struct mn_pkt *pkt);

/* Writes the header for a frame to transmit. Its first piece holds all headers up to TCP. */
void mn_vnet_write(uint8_t hdr[MN_VNET_HDR_BYTES], const struct mn_pkt *pkt);

/* For tests: what mn_vnet_read makes of a header and a frame; 0 or -EINVAL. */
int mn_vnet_check(const uint8_t *hdr, uint8_t *frame, uint32_t len, struct mn_pkt_meta *meta);

#endif
