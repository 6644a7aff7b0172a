/* SPDX-License-Identifier: MIT */
/* A NIC whose other end is a NIC of another process on this machine: a UNIX socket, which takes no
 * privileges. Whoever comes first listens, the other one connects; when one goes away, the other
 * one waits for the next, and a third one waits for its turn.
 *
 * Frames are finished ones, as on a cable. A burst is one message of the socket: each frame with
 * its length (16 bit, little-endian) in front. rx_burst may return fewer frames than wait: a host
 * goes on until it returns 0, and then sleeps on rx_fd, level-triggered. */
#ifndef MN_SIM_LINKNIC_H
#define MN_SIM_LINKNIC_H

#include "machnet/stack/core/nic.h"

#define MN_LINKNIC_MTU_MIN   68u
#define MN_LINKNIC_MTU_MAX   65521u
#define MN_LINKNIC_PATH_MAX  107u /* bytes of a UNIX socket's path */
#define MN_LINKNIC_ERR_BYTES 256u

struct mn_linknic_config {
    const char *path;   /* of the socket; beside it is a lock, path.lock */
    uint32_t mtu;       /* bytes; 0: 1500 */
    uint8_t mac[6];     /* all zero: a random one */
    uint32_t pool_pkts; /* of 64 KiB, touched as they are used; 0: 256 */
};

struct mn_linknic_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_msgs;   /* messages of the socket that brought them */
    uint64_t rx_no_pkt; /* frames put off because the pool was empty */
    uint64_t rx_bad;    /* messages that were none of ours: what was left of them is dropped */
    uint64_t tx_frames; /* handed to the other end */
    uint64_t tx_bytes;
    uint64_t tx_msgs;
    uint64_t tx_full;    /* bursts put off: the other end's queue is full */
    uint64_t tx_no_peer; /* frames dropped: nobody is at the other end */
    uint64_t tx_stalled; /* frames dropped: the other end took nothing for 10 ms */
    uint64_t tx_errors;  /* frames dropped: the socket refused them */
    uint64_t peers;      /* how often somebody came to the other end */
    uint32_t peer_mtu;   /* of the last one, bytes */
    int last_errno;      /* of the last failure to send, connect or listen; 0: there was none */
};

/* 0, or a negative errno with a message for people in err (errlen bytes, MN_LINKNIC_ERR_BYTES do).
 * Does not wait for the other end: the link is up once that one has been heard. */
int mn_linknic_open(const struct mn_linknic_config *cfg, struct mn_nic **out, char *err,
                    size_t errlen);
void mn_linknic_close(struct mn_nic *nic);
void mn_linknic_get_stats(const struct mn_nic *nic, struct mn_linknic_stats *out);

#endif
