/* SPDX-License-Identifier: MIT */
/*
 * The DPDK NIC: poll-mode drivers behind struct mn_nic.
 *
 * EAL is started once per process and never ended before the process is. Nothing is probed at its
 * start: each device is plugged in by mn_dpdk_probe and out by mn_dpdk_close, at any time. All
 * calls but the NIC's own operations may be made from any thread, and exclude each other.
 *
 * A queue belongs to the one thread that calls its operations, as with any NIC; the thread makes
 * itself known to EAL at its first burst. What goes wrong is a negative errno and a line of text;
 * what DPDK itself had to say is in mn_dpdk_log_take.
 */
#ifndef MN_DPDK_H
#define MN_DPDK_H

#include "machnet/stack/core/nic.h"

#define MN_DPDK_ERR_BYTES  512
#define MN_DPDK_NAME_BYTES 64
#define MN_DPDK_ARGS_MAX   64
#define MN_DPDK_POOL_MAX   (1u << 20)

struct mn_dpdk_config {
    uint16_t port;       /* from mn_dpdk_probe */
    uint16_t queues;     /* wanted; there may be fewer: caps.queues */
    uint16_t rx_desc;    /* descriptors per queue; 0: the driver's choice */
    uint16_t tx_desc;    /* likewise */
    uint32_t mtu;        /* bytes of an IP packet */
    uint32_t pool_mbufs; /* per queue, at most MN_DPDK_POOL_MAX; 0: as many as the descriptors
                            need, and 1024 more */
    uint32_t nap_max_us; /* longest sleep of an idle thread on a port that can't wake it */
    uint32_t frame_room; /* bytes that an mbuf has at least; 0: what the MTU needs */
    uint8_t mac[6];      /* zero: the port's own */
    bool no_offload;     /* checksums in software */
};

/* Of one port, all queues together. The first part is counted here, the rest by the driver. */
struct mn_dpdk_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_bursts; /* that brought frames */
    uint64_t rx_bad;    /* frames without an Ethernet header, or with a wrong checksum mark */
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_bursts; /* that the driver was handed: the times that the device was told of them */
    uint64_t tx_full;   /* bursts cut short by a full transmit ring */
    uint64_t tx_refused; /* frames that the driver can't send: lost */
    uint64_t tx_down;    /* frames lost while the device was away */
    uint64_t no_mbuf;    /* times that there was no packet to be had for sending */
    uint64_t unplugged;  /* times that the device went away */
    uint64_t replugged;  /* times that it came back */
    uint64_t ipackets, opackets, ibytes, obytes;
    uint64_t imissed; /* dropped by the device: a queue was full */
    uint64_t ierrors, oerrors;
    uint64_t rx_nombuf; /* times that the driver found no mbuf to receive into */
    uint64_t mbufs;     /* of all pools */
    uint64_t mbufs_free;
};

/* How a thread that sleeps is woken. */
enum mn_dpdk_wake {
    MN_DPDK_WAKE_TIMER = 0,     /* not at all: it looks again and again */
    MN_DPDK_WAKE_FD = 1,        /* by a descriptor of the driver's */
    MN_DPDK_WAKE_INTERRUPT = 2, /* by an interrupt of the queue */
};

struct mn_dpdk_info {
    char driver[MN_DPDK_NAME_BYTES]; /* such as "net_e1000_em" */
    char device[MN_DPDK_NAME_BYTES]; /* its name on its bus */
    uint16_t port;
    uint16_t queues;
    uint16_t queues_max; /* that the driver has */
    uint16_t rx_desc, tx_desc;
    int socket; /* NUMA node, -1: unknown */
    uint32_t link_mbit;
    bool link_up;
    bool present; /* not unplugged */
    bool rss;     /* frames are spread by a hash */
    bool rss_known;
    bool promiscuous;
    int wake;            /* enum mn_dpdk_wake */
    uint32_t frame_room; /* bytes of one mbuf */
    uint32_t if_index;   /* of the kernel's interface below; 0: none */
};

/* Starts EAL with these arguments (argv[0] is a name), on a thread of its own, which it may pin:
 * the caller's stays as it is. 0; -EALREADY; what rte_errno says. log_level: 1 (emergency) to 8
 * (debug), what is kept for mn_dpdk_log_take. */
int mn_dpdk_init(int argc, char *const *argv, uint32_t log_level, char *err, size_t err_bytes);
/* Gives back what EAL holds: for the end of the process, when all ports are closed. */
void mn_dpdk_fini(void);
/* Whether EAL was started by the process that this one was forked from, whose threads, devices and
 * locks are not here: then calls fail with -ECHILD or do nothing. */
bool mn_dpdk_forked(void);
/* Version of the library that runs, as "DPDK 22.11.11". */
const char *mn_dpdk_version(void);
/* Takes the oldest line of DPDK's log: its length, without a zero byte; 0: there is none. The level
 * goes to *level (1 to 8). Lines that did not fit in 64 KiB are lost, the oldest first. */
uint32_t mn_dpdk_log_take(char *buf, uint32_t size, uint32_t *level);

/* Plugs in what a device string names ("0000:00:05.0", "net_af_packet0,iface=veth0"), and writes
 * the ids of its ports. How many (at most n); what the bus and the driver say. */
int mn_dpdk_probe(const char *devargs, uint16_t *ports, uint32_t n, char *err, size_t err_bytes);
/* Plugs a device out whose ports nobody has open. */
int mn_dpdk_unprobe(uint16_t port);
/* Its address, before it is opened: 0, or -ENODEV. */
int mn_dpdk_port_mac(uint16_t port, uint8_t mac[6]);

/* Configures and starts a port. 0; -EINVAL (a value, named in err); -EEXIST: it is open already, or
 * goes through the same interface as one that is; -ENOMEM; what the driver says. */
int mn_dpdk_open(const struct mn_dpdk_config *cfg, struct mn_nic **out, char *err,
                 size_t err_bytes);
/* Stops the port and plugs its device out. No thread may be inside an operation of it; of what is
 * not open, or is closed already, nothing. */
void mn_dpdk_close(struct mn_nic *nic);
/* What the driver did not have: a line of text for each, or NULL past the end. */
const char *mn_dpdk_missing(const struct mn_nic *nic, uint32_t i);
/* Zeros of a port that is closed, perhaps by another thread just now. */
void mn_dpdk_get_stats(struct mn_nic *nic, struct mn_dpdk_stats *out);
void mn_dpdk_get_info(struct mn_nic *nic, struct mn_dpdk_info *out);
/* The watcher looks for devices that have gone or come back, now: for tests, and after an operator
 * has changed something. It does by itself twice a second. */
void mn_dpdk_look(void);

/* Two ports joined by rings, in memory: what one sends the other receives. 0; -ENOTSUP: the library
 * has no net_ring; -ENOMEM. */
int mn_dpdk_ring_pair(uint16_t queues, uint32_t slots, uint16_t ports[2], char *err,
                      size_t err_bytes);

#endif
