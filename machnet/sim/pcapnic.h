/* SPDX-License-Identifier: MIT */
/* A NIC that receives frames from a list at their times, in virtual time, and writes what is sent
 * to a pcapng file. Reading a capture, and choosing and rewriting its frames, is the caller's.
 *
 * The first frame comes in at 1 ns at the earliest, so that applications can be set up at 0. ARP
 * queries for others than ourselves are answered by the NIC, since nobody who was captured will. */
#ifndef MN_SIM_PCAPNIC_H
#define MN_SIM_PCAPNIC_H

#include "machnet/stack/core/nic.h"

#include "pcapng.h"

#define MN_PCAPNIC_FRAME_MAX (65535u + 14u)
#define MN_PCAPNIC_MTU_MIN   68u

struct mn_pcapnic_config {
    uint32_t mtu; /* of what is sent, 68 to 65521; longer frames are received all the same */
    uint8_t mac[6];
    struct mn_pcapng *writer; /* of what is sent; NULL: nowhere. Stays the caller's. */
    uint32_t iface;           /* of the writer */
    uint64_t epoch_ns;        /* added to each time in the file */
};

struct mn_pcapnic_stats {
    uint64_t rx_frames; /* of the list */
    uint64_t rx_left;   /* still to come */
    uint64_t arp_answers;
    uint64_t tx_frames;
    uint64_t tx_bytes;
};

/* 0, -EINVAL or -ENOMEM. */
int mn_pcapnic_open(const struct mn_pcapnic_config *cfg, struct mn_nic **out);
/* Closes no writer. */
void mn_pcapnic_close(struct mn_nic *nic);
/* Puts a frame at the end of the list; before the first poll. 0; -EINVAL (a time before that of the
 * frame before), -EMSGSIZE (shorter than its Ethernet header, or longer than MN_PCAPNIC_FRAME_MAX)
 * or -ENOMEM. */
int mn_pcapnic_add(struct mn_nic *nic, uint64_t t_ns, const uint8_t *frame, uint32_t len);
/* What ARP queries for ip (host byte order) are answered with; others get 02:4d:4e:ff:ff:fe. 0 or
 * -ENOMEM. */
int mn_pcapnic_neighbor(struct mn_nic *nic, uint32_t ip, const uint8_t mac[6]);
/* The address as it is in the frames to come; before a stack is opened. */
void mn_pcapnic_set_mac(struct mn_nic *nic, const uint8_t mac[6]);
void mn_pcapnic_set_epoch(struct mn_nic *nic, uint64_t epoch_ns);
void mn_pcapnic_set_now(struct mn_nic *nic, uint64_t now_ns);
void mn_pcapnic_get_stats(const struct mn_nic *nic, struct mn_pcapnic_stats *out);

#endif
