/* SPDX-License-Identifier: MIT */
/* An engine with its NIC and up to two channels, in memory of exactly the size that each asks for;
 * and what must hold between any two calls into it. */
#ifndef FZ_HOST_H
#define FZ_HOST_H

#include "fz_in.h"
#include "fz_nic.h"
#include "machnet/stack/core/chan_app.h"
#include "machnet/stack/core/engine_int.h"

#define FZ_LANES    2u
#define FZ_START_NS UINT64_C(1000000000000)

struct fz_chan {
    struct mn_chan_geometry geo;
    struct mn_app *app; /* NULL: not attached */
    uint8_t *region;
    void *priv, *mem;
    uint64_t region_bytes;
    uint32_t lane;
    bool borrowed; /* the memory is another channel's, which goes later */
};

struct fz_host {
    struct fz_nic nic;
    struct mn_engine *e;
    struct mn_config cfg;
    struct fz_chan chans[FZ_LANES];
    uint64_t now_ns;
    uint32_t wakes;
};

#define FZ_IP(last) (0x0a000000u | (last)) /* 10.0.0.last, all on one network */

/* A small engine, so that every limit is within reach: which one is up to the input. */
void fz_host_config(struct fz_in *in, struct mn_config *cfg, uint32_t ip);
/* The message protocol's part, one byte. */
void fz_host_config_mnp(struct fz_in *in, struct mn_config *cfg);
void fz_host_open(struct fz_host *h, const struct mn_config *cfg, uint32_t mtu, uint8_t caps);
void fz_chan_geometry(struct fz_in *in, struct mn_chan_geometry *geo);
void fz_chan_open(struct fz_host *h, uint32_t i, const struct mn_chan_geometry *geo);
/* Lane `index` of a channel's memory, with this engine. */
void fz_chan_open_lane(struct fz_host *h, uint32_t i, const struct fz_chan *of, uint32_t index);
/* Detaches: the memory goes once the engine says so (fz_chan_reap). */
void fz_chan_detach(struct fz_host *h, uint32_t i, uint32_t linger_ms);
bool fz_chan_reap(struct fz_host *h, uint32_t i);
/* One pass at now_ns, and all checks. */
void fz_host_poll(struct fz_host *h);
/* Goes on to `until`, with a pass at each deadline on the way, at most `passes` of them. False: the
 * bound ended it. */
bool fz_host_run(struct fz_host *h, uint64_t until, uint32_t passes);
/* Everything must be gone: connections, blocks, ranges, timers of connections, packets. */
void fz_host_close(struct fz_host *h);

/* fz_check.c */
void fz_check_engine(const struct mn_engine *e);

#endif
