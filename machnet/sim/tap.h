/* SPDX-License-Identifier: MIT */
/* A NIC whose other end is a Linux network interface: a TAP device, with one queue or several, each
 * for a thread of its own. Which queue gets a frame is the kernel's choice: that from which the
 * flow was last sent, else one by a hash of its own.
 *
 * With the vnet header the kernel hands over TCP segments of up to 64 KiB with unfinished
 * checksums, and takes them: one system call for each. Where the kernel refuses, the capabilities
 * say so and frames are finished ones.
 *
 * rx_burst may return fewer frames than wait, so that a single frame is not held up by the system
 * call that would find nothing behind it: a host goes on until it returns 0, and then sleeps on
 * rx_fd, level-triggered. */
#ifndef MN_SIM_TAP_H
#define MN_SIM_TAP_H

#include "machnet/stack/core/nic.h"

#define MN_TAP_NAME_MAX   15u /* bytes of an interface name */
#define MN_TAP_ERR_BYTES  256u
#define MN_TAP_QUEUES_MAX 16u

struct mn_tap_config {
    /* Of the interface, made if it is not there. Used when fd is -1. */
    const char *name;
    /* A TAP that someone opened with IFF_NO_PI (the kernel does not tell whether), or -1. Ours to
     * close from success on. */
    int fd;
    /* Wanted; 0: 1. By name: of an interface that has no more than one it gets one. */
    uint32_t queues;
    /* With fd: descriptors of the other queues of the same interface, queues - 1 of them. */
    const int *more_fds;
    uint32_t mtu;       /* 0: the interface's, 1500 where it can't be asked */
    uint8_t mac[6];     /* all zero: made from the kernel's end, so that it stays the same */
    uint32_t pool_pkts; /* of each queue, 64 KiB each, touched as they are used; 0: 256 */
    bool no_offload;    /* finished frames only, even if the kernel could do more */
    /* Address (host byte order) and prefix (1 to 32) for the kernel's end, which is then brought
     * up; by name only, needs root. 0: the kernel's end stays as it is. */
    uint32_t kernel_ip;
    uint32_t kernel_prefix;
};

struct mn_tap_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_calls;    /* reads, those that found nothing included */
    uint64_t rx_no_pkt;   /* reads not made because the pool was empty */
    uint64_t rx_bad_vnet; /* frames dropped: the vnet header contradicts the frame */
    uint64_t rx_bad_len;  /* frames dropped: shorter than their headers, or cut off */
    uint64_t rx_errors;   /* reads that failed */
    uint64_t tx_frames;   /* written */
    uint64_t tx_bytes;
    uint64_t tx_full;   /* writes put off: no room */
    uint64_t tx_errors; /* frames dropped: the write failed */
    int last_errno;     /* of the last error of either kind, 0 if there was none */
};

/* 0, or a negative errno with a message for people in err (errlen bytes, MN_TAP_ERR_BYTES do). */
int mn_tap_open(const struct mn_tap_config *cfg, struct mn_nic **out, char *err, size_t errlen);
void mn_tap_close(struct mn_nic *nic);
/* Of all queues together. */
void mn_tap_get_stats(const struct mn_nic *nic, struct mn_tap_stats *out);
/* The interface's name in its own network namespace. */
const char *mn_tap_name(const struct mn_nic *nic);
/* The address of the kernel's end; false where the kernel does not say it. */
bool mn_tap_kernel_mac(const struct mn_nic *nic, uint8_t mac[6]);

#endif
