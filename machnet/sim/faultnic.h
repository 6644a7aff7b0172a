/* SPDX-License-Identifier: MIT */
/* Middleware around any NIC: what a bad network would do to its frames, in both directions.
 *
 * It offers no offload, so that a fault hits one wire frame; a NIC whose peer hands over segments
 * of 64 KiB (a TAP) is to be opened without offload itself. A frame that has to wait is copied to a
 * pool of this layer, so that the inner NIC's packets are held for one pass only; pool empty, the
 * frame is lost and counted.
 *
 * It keeps nic.wake_ns, so that a host polls it when a frame is due. */
#ifndef MN_SIM_FAULTNIC_H
#define MN_SIM_FAULTNIC_H

#include "machnet/stack/core/nic.h"

#include "shaper.h"

#define MN_FAULTNIC_POOL_PKTS 32768u /* default */

/* Directions. */
#define MN_FAULTNIC_TX 0u /* what the stack sends */
#define MN_FAULTNIC_RX 1u /* what it receives */

struct mn_faultnic_config {
    uint64_t seed;
    struct mn_shape tx, rx;
    uint32_t pool_pkts; /* frames that may wait, both directions together; 0: the default */
};

struct mn_faultnic_stats {
    uint64_t frames; /* offered */
    uint64_t bytes;
    uint64_t passed; /* handed on, copies included */
    uint64_t waiting;
    uint64_t dropped_pool; /* no room for a frame that had to wait */
    uint64_t dropped_size; /* received, and longer than the MTU allows */
    uint64_t refused;      /* times that the inner NIC took no more; the frame stays */
    uint64_t faults[MN_FAULT_COUNT];
};

/* 0; -EINVAL (a shape that mn_shape_check refuses, or pool_pkts) or -ENOMEM. inner must outlive it.
 */
int mn_faultnic_open(struct mn_nic *inner, const struct mn_faultnic_config *cfg,
                     struct mn_nic **out);
/* Forgets what waits. Does not close the inner NIC. */
void mn_faultnic_close(struct mn_nic *nic);
/* Takes over the inner NIC's address, where that is found out late; before a stack is opened. */
void mn_faultnic_sync(struct mn_nic *nic);
/* The time from now on, and shapes that were set; the host calls it before each poll. */
void mn_faultnic_set_now(struct mn_nic *nic, uint64_t now_ns);
/* A new shape for one direction, from the next poll on. From any thread. 0 or -EINVAL. */
int mn_faultnic_set(struct mn_nic *nic, uint32_t dir, const struct mn_shape *shape);
/* The shape that was set last. */
void mn_faultnic_get(struct mn_nic *nic, uint32_t dir, struct mn_shape *out);
void mn_faultnic_get_stats(const struct mn_nic *nic, uint32_t dir, struct mn_faultnic_stats *out);

#endif
