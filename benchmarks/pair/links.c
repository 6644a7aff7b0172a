/* SPDX-License-Identifier: MIT */
/* What joins two stacks: a Wire, or two ports of DPDK with rings in between. */
#include "pair.h"

#include "machnet/sim/wire.h"

#include <errno.h>
#include <stdio.h>

char *pair_eal_args[EAL_ARGS_MAX] = {"pair"};
int pair_n_eal_args = 1;

static void wire_open(struct mn_nic *nic[2])
{
    struct mn_wire_config cfg = {.mtu = 1500, .queue_frames = 4096};
    struct mn_wire *wire[2];
    int err = mn_wire_pair(&cfg, &wire[0], &wire[1]);

    if (err != 0) {
        pair_fail("wire", err);
    }
    nic[0] = mn_wire_nic(wire[0]);
    nic[1] = mn_wire_nic(wire[1]);
}

const struct link_kind pair_wire = {.name = "wire", .open = wire_open};

#if PAIR_HAVE_DPDK

#include "machnet/dpdk/dpdk.h"

/* A full ring takes no more, and the engine tries again: a row's largest window fits four times. */
#define RING_SLOTS 1024u

static _Noreturn void dpdk_fail(const char *what, const char *text, int err)
{
    fprintf(stderr, "pair: %s: %s\n", what, text);
    pair_fail(what, err);
}

static void ring_open(struct mn_nic *nic[2])
{
    char text[MN_DPDK_ERR_BYTES] = "";
    uint16_t ports[2];
    int err = mn_dpdk_init(pair_n_eal_args, pair_eal_args, 5, text, sizeof(text));

    if (err != 0) {
        dpdk_fail("EAL", text, err);
    }
    err = mn_dpdk_ring_pair(1, RING_SLOTS, ports, text, sizeof(text));
    if (err != 0) {
        dpdk_fail("rings", text, err);
    }
    for (uint32_t i = 0; i < 2; i++) {
        struct mn_dpdk_config cfg = {.port = ports[i],
                                     .queues = 1,
                                     .mtu = 1500,
                                     .mac = {2, 'M', 'N', 0, 0, (uint8_t)(i + 1)}};

        err = mn_dpdk_open(&cfg, &nic[i], text, sizeof(text));
        if (err != 0) {
            dpdk_fail("port", text, err);
        }
    }
}

#else

static void ring_open(struct mn_nic *nic[2])
{
    (void)nic;
    pair_fail("built without DPDK", ENOTSUP);
}

#endif

const struct link_kind pair_ring = {.name = "ring", .open = ring_open};
