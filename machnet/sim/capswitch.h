/* SPDX-License-Identifier: MIT */
/* Middleware around a NIC with which a capture can be begun and ended while an engine runs on it.
 * While there is none, frames go straight through.
 *
 * The orders are given where the engine runs: see mn_stack_run. */
#ifndef MN_SIM_CAPSWITCH_H
#define MN_SIM_CAPSWITCH_H

#include "capture.h"

struct mn_capswitch_order {
    struct mn_nic *nic;                  /* of mn_capswitch_open */
    const struct mn_capture_config *cfg; /* mn_capswitch_on: as for mn_capture_open */
    struct mn_pcapng_stats stats;        /* filled in by the others */
};

/* *out wraps inner, which must outlive it. 0 or -ENOMEM. */
int mn_capswitch_open(struct mn_nic *inner, struct mn_nic **out);
/* No capture may be on. */
void mn_capswitch_close(struct mn_nic *nic);
/* The time of the frames from now on; the host sets it before each poll. */
void mn_capswitch_set_now(struct mn_nic *nic, uint64_t now_ns);

/* Orders; `arg` is a struct mn_capswitch_order. */
/* Begins: 0, -EBUSY (one is on), or what mn_capture_open says. */
int64_t mn_capswitch_on(void *arg);
/* Writes out what has gathered, as far as the file takes it: 0, -ENOENT (none is on), or the
 * negative errno of the file. */
int64_t mn_capswitch_flush(void *arg);
/* Ends it: 0 or -ENOENT. The writer, which may hold what the file did not take, is the caller's
 * again. */
int64_t mn_capswitch_off(void *arg);

#endif
