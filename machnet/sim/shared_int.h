/* SPDX-License-Identifier: MIT */
/* What shared_nic.c, which moves frames, and shared_open.c have in common. */
#ifndef MN_SIM_SHARED_INT_H
#define MN_SIM_SHARED_INT_H

#include "handring.h"
#include "pktpool.h"
#include "shared_nic.h"

#include "machnet/stack/core/engine.h"

/* What the views share; freed with the last of them. */
struct shared_hub {
    struct mn_nic *inner;
    uint32_t n, open;
    bool soft; /* one queue: view 0 has it */
    struct mn_handring *rings;
    uint8_t *ring_mem;
    uint64_t ring_mem_bytes;
    _Atomic uint32_t *owners;
    struct mn_rss rss; /* of the dispatcher */
    struct mn_view *views;
};

struct mn_view {
    struct mn_nic nic; /* the first member: the operations find the view by it */
    struct shared_hub *hub;
    uint32_t index;
    uint32_t queue;  /* of the NIC */
    uint32_t turn;   /* which ring is looked at first */
    uint32_t wake;   /* views that got something and may sleep, a bit each */
    bool pooled;     /* packets are its own, not the NIC's */
    bool tx_blocked; /* the NIC takes no more of what others left */
    bool closed;
    uint64_t now_ns;
    struct mn_pktpool pool;
    int event_fd, epoll_fd;
    _Atomic uint64_t stats[sizeof(struct mn_shared_stats) / sizeof(uint64_t)];
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t sleeping;
};

extern const struct mn_nic_ops mn_shared_view_ops;

/* The engine on view ctx hands over a frame: mn_share.give. */
bool mn_shared_give(void *ctx, uint32_t to, const struct mn_handed *frame);

#endif
