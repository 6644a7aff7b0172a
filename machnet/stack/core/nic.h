/* SPDX-License-Identifier: MIT */
/*
 * The one NIC interface. A driver (wire, tap, pcap, dpdk) fills a struct mn_nic; middleware
 * (capture, faults, trace) wraps another one and answers the same calls. The engine is the only
 * caller, from one thread per queue.
 *
 * Packet life: rx_burst hands packets to the caller, who gives each one back with pkt_free or
 * passes it to tx_burst. tx_burst owns the packets it accepts (a prefix of the array) and leaves
 * the rest with the caller.
 */
#ifndef MN_NIC_H
#define MN_NIC_H

#include "base.h"

/* State of the layer-4 checksum of a packet. */
enum mn_csum_state {
    MN_CSUM_NONE = 0,    /* rx: nobody looked at it; tx: the frame carries the finished checksum */
    MN_CSUM_PARTIAL = 1, /* the field holds the pseudo-header sum; the device finishes (tx) or the
                            sender never did (rx) */
    MN_CSUM_VALID =
        2, /* rx only: the device verified it; believed only with caps.rx_csum_trusted */
};

/* One frame, or one piece of a frame: the pieces after the first hang on `next` and hold payload
 * only. */
struct mn_pkt {
    uint8_t *data;       /* first byte of the frame (of this piece) */
    uint32_t len;        /* bytes in this piece */
    uint32_t room;       /* bytes that may be written at data */
    struct mn_pkt *next; /* next piece of the same frame, or NULL */
    uint16_t
        gso_size; /* payload bytes of each segment the frame stands for; 0: it is one wire frame */
    uint16_t
        l4_off; /* offset of the layer-4 header, valid when csum is PARTIAL or gso_size is not 0 */
    uint16_t csum_off; /* offset of the checksum field from l4_off */
    uint8_t csum;      /* enum mn_csum_state */
    uint8_t flags;     /* MN_PKT_...; 0 from a driver */
    uint64_t drv;      /* the driver's own */
    union {
        struct mn_pkt *link; /* free for whoever holds the packet: the next frame of a list */
        uint64_t asked;      /* as received with MN_PKT_HANDED: engines that have looked at it, a
                                bit each */
    };
};

/* Received from another engine of this address, not from the wire. */
#define MN_PKT_HANDED 1u
/* Handed over, and sent by an engine of this address. */
#define MN_PKT_LOOPED 2u

struct mn_nic;

struct mn_nic_ops {
    /* Up to n received frames into pkts; returns how many. Never blocks. */
    uint32_t (*rx_burst)(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n);
    /* Hands over up to n frames; returns how many were taken (a prefix). */
    uint32_t (*tx_burst)(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n);
    /* A packet with room for at least `size` bytes (at most caps.tx_max_frame), len 0; NULL when
     * there is none. */
    struct mn_pkt *(*pkt_alloc)(struct mn_nic *nic, uint32_t queue, uint32_t size);
    /* Gives a packet back with all its pieces. */
    void (*pkt_free)(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt);

    /* The rest may be NULL, and is used by hosts, never by the core. */

    /* What polls readable when a frame waits in this queue, or -1; NULL: rx_fd does. */
    int (*queue_fd)(struct mn_nic *nic, uint32_t queue);
    /* With on: the caller is about to sleep on the descriptor, which from now on wakes it; false:
     * something is to be done already. Without: it sleeps no more. NULL: the descriptor always
     * wakes. */
    bool (*rx_arm)(struct mn_nic *nic, uint32_t queue, bool on);
};

struct mn_rss;

struct mn_nic_caps {
    uint32_t mtu;             /* bytes of the IP packet: the frame without its Ethernet header */
    uint32_t rx_max_frame;    /* largest frame rx_burst may return, all pieces together */
    uint32_t tx_max_frame;    /* largest frame tx_burst takes: above mtu + 14 only with tx_gso */
    uint16_t queues;          /* receive/transmit queue pairs, at least 1 */
    bool tx_csum_tcp;         /* takes MN_CSUM_PARTIAL for TCP */
    bool tx_csum_udp;         /* takes MN_CSUM_PARTIAL for UDP */
    bool tx_gso;              /* takes TCP frames with gso_size, checksum PARTIAL */
    bool rx_csum_trusted;     /* its MN_CSUM_VALID and MN_CSUM_PARTIAL marks may be believed */
    const struct mn_rss *rss; /* how it spreads frames over its queues (rss.h); NULL: unknown. Stays
                                 as it is while the NIC is open */
};

struct mn_nic {
    const struct mn_nic_ops *ops;
    struct mn_nic_caps caps;
    uint8_t mac[6];
    uint8_t link_up;
    uint8_t pad;
    int rx_fd; /* descriptor that polls readable when a frame waits, -1 if there is none; used by
                  hosts, never by the core */
    uint64_t wake_ns; /* when it wants to be polled although no frame may have come in (it holds
                         some back); 0: never. Up to date after rx_burst and tx_burst; used by
                         hosts, never by the core */
    uint32_t moved;   /* frames that the last rx_burst dealt with itself: work done, although the
                         caller did not see them; used by hosts, never by the core */
};

#endif
