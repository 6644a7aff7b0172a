/* SPDX-License-Identifier: MIT */
/* What a channel costs by itself: two processes, rings and buffers between them, and no transport.
 */
#ifndef BENCH_CHANNEL_H
#define BENCH_CHANNEL_H

#include "machnet/stack/core/channel.h"
#include "machnet/stack/host/host.h"

#define BENCH_FLOW MN_FLOW_ID(0, 1)

/* What the engine's end does with what it is sent. */
enum bench_job {
    BENCH_ECHO,   /* a copy of each message back */
    BENCH_SINK,   /* a copy of each message for itself */
    BENCH_SOURCE, /* messages of its own, as long as there are buffers */
};

struct bench_fds {
    int epoll; /* the engine's end */
    int wake;
    struct mn_chan_fds app;
};

_Noreturn void bench_fail(const char *why, int err);
/* Makes a channel in memory of its own, as a lender does: the region. */
void *bench_make(struct bench_fds *fds, const struct mn_chan_geometry *geo);
/* The engine's end of the channel, until the process is killed. spin_ns: how long it looks before
 * it sleeps. */
_Noreturn void bench_engine(void *region, const struct mn_chan_geometry *geo,
                            const struct bench_fds *fds, enum bench_job job, uint32_t len,
                            uint64_t spin_ns);

#endif
