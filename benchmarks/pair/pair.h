/* SPDX-License-Identifier: MIT */
/* Two stacks back to back in one thread, over a Wire or two ports of DPDK: what the two kinds of
 * work share. */
#ifndef MN_BENCH_PAIR_H
#define MN_BENCH_PAIR_H

#include "machnet/stack/core/chan_app.h"
#include "machnet/stack/core/engine.h"
#include "machnet/stack/core/nic.h"
#include "machnet/stack/core/wire/csum.h"

#define CLIENT_IP 0x0a000001u
#define SERVER_IP 0x0a000002u
#define PORT      7000u

/* Of one lane; a flow number is 16 bits. */
#define LANE_FLOWS_MAX 60000u

struct work {
    uint32_t payload_bytes; /* of a message, without the framing prefix */
    uint32_t window_msgs;
    bool bulk; /* one way: the client writes, the server reads */
};

struct pair {
    struct work work;
    struct mn_nic *nic[2];
    struct mn_engine *engine[2];
    uint64_t now_ns;
    uint64_t msgs;   /* replies the client has had; of bulk, messages the server has read */
    uint64_t errors; /* messages that were not what was sent */
    uint32_t idle;   /* further connections, on which nothing happens */
    uint32_t cycles; /* connections to be opened and closed in turn */
};

/* How messages get in and out of a stack. */
struct mode {
    const char *name;
    void (*open)(struct pair *p);
    void (*step)(struct pair *p); /* both applications, once */
    void (*open_idle)(struct pair *p);
    void (*cycle)(struct pair *p); /* opens a connection and closes it */
};

extern const struct mode pair_raw, pair_framed;

/* What joins the stacks. */
struct link_kind {
    const char *name;
    void (*open)(struct mn_nic *nic[2]);
};

extern const struct link_kind pair_wire, pair_ring;

/* What EAL is started with; the first is a name. */
#define EAL_ARGS_MAX 32
extern char *pair_eal_args[EAL_ARGS_MAX];
extern int pair_n_eal_args;

_Noreturn void pair_fail(const char *why, int err);
void *pair_memory(uint64_t bytes);
void pair_poll(struct pair *p);

/* Message n carries its number and a pattern; the first thousand are looked at whole. */
void pair_fill(uint8_t *buf, uint32_t len, uint64_t n);
bool pair_check(const uint8_t *buf, uint32_t len, uint64_t n);

#endif
