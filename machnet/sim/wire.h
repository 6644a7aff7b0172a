/* SPDX-License-Identifier: MIT */
/* A NIC in memory, used by one thread: two back to back, or one that is fed by hand.
 *
 * The two NICs of a pair share one packet pool: what one transmits is, without a copy, what the
 * other receives. Queues are bounded; a frame that finds the queue full is lost and counted, as on
 * the receive ring of a host that does not keep up, unless tx_backpressure is on. */
#ifndef MN_SIM_WIRE_H
#define MN_SIM_WIRE_H

#include "machnet/stack/core/nic.h"
#include "machnet/stack/core/rss.h"

#include "nickit.h"

#define MN_WIRE_MTU_MIN          68u
#define MN_WIRE_MTU_MAX          65535u
#define MN_WIRE_QUEUE_FRAMES_MAX (1u << 18)

struct mn_wire_config {
    uint32_t mtu;          /* bytes, 68 to 65535; 0: 1500 */
    uint32_t queue_frames; /* bound of each queue; 0: 1024 */
    uint32_t pool_pkts;    /* shared by a pair; 0: enough to fill both queues and 256 more */
    uint32_t
        tx_max_frame;  /* bytes; 0: mtu + 14, or 65549 with tx_gso; more than mtu + 14 needs it */
    uint8_t mac[2][6]; /* of each end; all zero: 02:4d:4e:00:00:01 and ..:02 */
    /* What the wire pretends to be able to; by default it carries finished frames. A segment that
     * the sender left unfinished arrives unfinished, so in a pair these need rx_csum_trusted. */
    bool tx_csum_tcp;
    bool tx_csum_udp;
    bool tx_gso;
    bool rx_csum_trusted;
    /* A full queue takes no more frames, as the transmit ring of a device does, and loses none. */
    bool tx_backpressure;
    /* Queues of each end, 1 to 16; 0: 1. What arrives is spread over them by rss, or by
     * mn_rss_init_default; caps.rss says so unless it is hidden, as many NICs are. */
    uint32_t queues[2];
    const struct mn_rss *rss[2];
    bool rss_hidden;
};

#define MN_WIRE_QUEUES_MAX 16u

struct mn_wire_stats {
    uint64_t rx_frames; /* handed to the stack */
    uint64_t rx_bytes;
    uint64_t
        rx_drops; /* lost before the stack saw them: queue full, or no packet for an injected one */
    uint64_t tx_frames; /* taken from the stack, those that got lost included */
    uint64_t tx_bytes;
    uint64_t
        tx_drops; /* lost after the stack handed them over: no room at the other end, or nobody */
    uint64_t tx_full;   /* bursts cut short, with tx_backpressure */
    uint64_t pool_live; /* packets of the pool that are out now: queued, or held by a stack */
    uint64_t pool_high; /* packets of the pool that were ever used: the memory touched */
};

struct mn_wire;

/* 0, -EINVAL (a number out of range, capabilities that contradict each other) or -ENOMEM. */
int mn_wire_pair(const struct mn_wire_config *cfg, struct mn_wire **a, struct mn_wire **b);
int mn_wire_single(const struct mn_wire_config *cfg, struct mn_wire **out);
/* The other end of a pair stays usable: its link is down and what it transmits is lost. Packets
 * that the closed end's user still holds must have been given back before. */
void mn_wire_close(struct mn_wire *w);

struct mn_nic *mn_wire_nic(struct mn_wire *w);
/* From now on what arrives here is spread so, while caps.rss says what it said: flows move. 0, or
 * -EINVAL (the wire has one queue, or the table names one that it has not). */
int mn_wire_spread(struct mn_wire *w, const struct mn_rss *rss);
/* The time that is noted for each frame transmitted from now on. */
void mn_wire_set_now(struct mn_wire *w, uint64_t now_ns);
void mn_wire_get_stats(const struct mn_wire *w, struct mn_wire_stats *out);

/* For a single wire. Queues a copy of a frame to be received: 0, -EMSGSIZE (longer than the wire
 * carries, or empty) or -ENOBUFS (queue or pool full; counted). meta: NULL for a plain frame;
 * its offsets are checked against the length (-EINVAL). */
int mn_wire_inject(struct mn_wire *w, const uint8_t *frame, uint32_t len);
int mn_wire_inject_meta(struct mn_wire *w, const uint8_t *frame, uint32_t len,
                        const struct mn_pkt_meta *meta);
/* For a single wire. Takes the oldest frame transmitted, as it was handed over: its length; 0 when
 * there is none; -EMSGSIZE when it is longer than `size` (and stays). t_ns and meta may be NULL. */
int64_t mn_wire_drain(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns);
int64_t mn_wire_drain_meta(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns,
                           struct mn_pkt_meta *meta);
/* Frames that wait to be drained (single) or received by the other end (pair). */
uint32_t mn_wire_tx_pending(const struct mn_wire *w);
/* Frames that wait to be received. */
uint32_t mn_wire_rx_pending(const struct mn_wire *w);

#endif
