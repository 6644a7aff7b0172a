/* SPDX-License-Identifier: MIT */
/* Opening and setting up a TAP device; for tap.c alone. */
#ifndef MN_SIM_TAP_OPEN_H
#define MN_SIM_TAP_OPEN_H

#include "tap.h"

/* What was found out about the device. */
struct mn_tap_dev {
    int fd;
    int more_fds[MN_TAP_QUEUES_MAX - 1]; /* of the queues behind the first */
    uint32_t queues;
    bool ours; /* the descriptors are ours to close */
    char name[MN_TAP_NAME_MAX + 1];
    uint32_t mtu;
    uint8_t kernel_mac[6];
    bool has_kernel_mac;
    bool vnet; /* each frame has a header in front */
    bool tso;  /* the kernel may hand over segments of 64 KiB */
    bool csum; /* the kernel may hand over unfinished checksums */
};

struct mn_tap_err {
    char *text;
    size_t size;
};

/* Writes the message and returns the code. */
__attribute__((format(printf, 3, 4))) int mn_tap_fail(const struct mn_tap_err *err, int rc,
                                                      const char *fmt, ...);
/* 0 or a negative errno; either way dev->fd is to be closed if dev->ours says so. */
int mn_tap_dev_open(const struct mn_tap_config *cfg, struct mn_tap_dev *dev,
                    const struct mn_tap_err *err);

#endif
