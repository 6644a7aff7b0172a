/* SPDX-License-Identifier: MIT */
/* Several engines on one NIC: n NICs (views) made of one, each for one thread. A NIC with n queues
 * gives each view one of them. Of a NIC with one queue, view 0 is the only one that touches it: it
 * spreads what comes in by a hash, and sends what the others leave in their rings. Frames for an
 * engine that another one received go through such rings too. docs/design/several-engines.md. */
#ifndef MN_SIM_SHARED_NIC_H
#define MN_SIM_SHARED_NIC_H

#include "machnet/stack/core/nic.h"
#include "machnet/stack/core/rss.h"

struct mn_stack;

#define MN_SHARED_RING_MIN_BYTES (256u << 10)
#define MN_SHARED_RING_MAX_BYTES (64u << 20)

struct mn_shared_config {
    uint32_t ring_bytes;      /* from each view to each other, a power of two; 0: 1 MiB */
    const struct mn_rss *rss; /* how a NIC with one queue is spread; NULL: mn_rss_init_default */
};

/* Of one view; counted by its thread. */
struct mn_shared_stats {
    uint64_t handed_frames;    /* given to other views */
    uint64_t handed_full;      /* not given: the ring was full */
    uint64_t taken_frames;     /* got from other views */
    uint64_t taken_no_pkt;     /* times that there was no packet for such a frame; it waits */
    uint64_t dispatched;       /* view 0: frames of the NIC for other views */
    uint64_t dispatch_dropped; /* lost: the ring was full */
    uint64_t relayed;          /* view 0: frames of other views transmitted */
    uint64_t tx_full;          /* bursts cut short because the ring to view 0 was full */
    uint64_t wakes;            /* sleeping threads woken */
};

/* Fills views[0..n-1]. The NIC stays the caller's, until all views are closed; it has one queue or
 * n. 0, -EINVAL (n not within 2 to MN_ENGINES_MAX, queues, ring_bytes, a table that names a queue
 * from n on), -ENOMEM, and what eventfd and epoll say. */
int mn_shared_nic_open(struct mn_nic **views, uint32_t n, struct mn_nic *nic,
                       const struct mn_shared_config *cfg);
/* Each view once, when its engine is closed. Memory stays until the last one. */
void mn_shared_nic_close(struct mn_nic *view);
/* The stack on this view can hand over frames; see mn_stack_join. */
int mn_shared_nic_join(struct mn_nic *view, struct mn_stack *s);
/* For mn_stack_watch_time. */
void mn_shared_nic_set_now(struct mn_nic *view, uint64_t now_ns);
void mn_shared_nic_get_stats(const struct mn_nic *view, struct mn_shared_stats *out);

#endif
