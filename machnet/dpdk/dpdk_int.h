/* SPDX-License-Identifier: MIT */
/* What the files of the DPDK NIC share. */
#ifndef MN_DPDK_INT_H
#define MN_DPDK_INT_H

#include "dpdk.h"

#include "machnet/stack/core/rss.h"

#include <pthread.h>
#include <stdatomic.h>

#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>

#define DPDK_QUEUES_MAX   16u
#define DPDK_BURST_MAX    32u
#define DPDK_LCORE_NONE   (LCORE_ID_ANY - 1)
#define DPDK_MISSING_MAX  8u
#define DPDK_MISSING_TEXT 96u
/* A cache line, so that the frame begins at one too. */
#define DPDK_PRIV_BYTES 64u

static_assert(sizeof(struct mn_pkt) <= DPDK_PRIV_BYTES, "the packet is in the mbuf's private area");

struct dpdk_err {
    char *text;
    size_t size;
};

/* Writes the text, returns rc. */
__attribute__((format(printf, 3, 4))) int mn_dpdk_fail(const struct dpdk_err *err, int rc,
                                                       const char *fmt, ...);

/* Written by the queue's thread alone. */
struct dpdk_counts {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_bursts;
    uint64_t rx_bad;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_bursts;
    uint64_t tx_full;
    uint64_t tx_refused;
    uint64_t tx_down;
    uint64_t no_mbuf;
};

struct dpdk_queue {
    /* Whether its thread is inside a burst. The watcher wants to know before it takes the port
     * away; the fence that this takes is the watcher's (membarrier). */
    _Alignas(MN_CACHE_LINE) atomic_uint inside;
    uint32_t n_stash; /* frames that came in while it was going to sleep */
    uint32_t stash_at;
    struct rte_mempool *pool;
    /* Of the thread that EAL calls lcore: its shares of the pool that packets are taken from, and
     * of the one that the last was given back to. */
    uint32_t lcore;
    struct rte_mempool_cache *taken, *given;
    struct rte_mempool *given_pool;
    struct dpdk_counts counts;
    struct rte_mbuf *stash[DPDK_BURST_MAX];
    /* Sleeping. */
    int epoll_fd; /* of all that follows; -1: not open */
    int timer_fd;
    bool timer_on; /* it has been set since it was cleared */
    int intr_fd;
    uint64_t nap_ns;
    uint64_t seen_frames; /* when it slept last */
};

/* Rings that join two ports. A packet of one may lie in a ring, or with the other, when its port is
 * closed: rings and pools go when both are. */
struct dpdk_pair {
    struct rte_ring *rings[2][DPDK_QUEUES_MAX]; /* received from by the first port, by the second */
    struct rte_mempool *pools[2 * DPDK_QUEUES_MAX];
    uint32_t n_pools;
    uint32_t refs; /* ports that exist */
    uint16_t ports[2];
    struct dpdk_pair *next;
};

struct mn_dpdk {
    struct mn_nic nic; /* the first member: the operations find the port by it */
    uint16_t port;
    bool tx_marks;    /* the driver finishes checksums */
    bool rx_marks;    /* and verifies them */
    atomic_uint away; /* the watcher is at it, or the device has gone */
    uint16_t queues;
    int wake; /* enum mn_dpdk_wake */
    uint32_t data_room;
    struct mn_dpdk_config cfg;
    uint16_t rx_desc, tx_desc, queues_max;
    bool rss_on, promiscuous, pci;
    bool present; /* false: it was unplugged */
    uint32_t link_mbit;
    uint8_t mac_before[6]; /* the kernel's interface's, if it was given another one; else 0 */
    char interface[16];    /* of the kernel, below the driver */
    bool intr_on;          /* configured with interrupts for the queues */
    bool started;
    uint32_t n_sockets; /* of the driver, that wake the queues' threads */
    int sockets[DPDK_QUEUES_MAX];
    uint32_t if_index;
    int socket;
    uint64_t unplugged, replugged;
    uint64_t ring_drops; /* of the sockets' rings, which their driver (22.11) does not count */
    uint32_t pool_mbufs;
    struct rte_eth_stats last; /* when the device was last there, and what it had counted before */
    struct rte_eth_stats base;
    struct rte_device *device;
    struct dpdk_pair *pair; /* NULL: the port is not of a pair */
    char devargs[256];      /* how to plug it in again; empty: it can't be */
    char name[MN_DPDK_NAME_BYTES];
    char driver[MN_DPDK_NAME_BYTES];
    struct mn_rss rss;
    struct mn_dpdk *next; /* of all open ports */
    uint32_t n_missing;
    char missing[DPDK_MISSING_MAX][DPDK_MISSING_TEXT];
    struct dpdk_queue q[DPDK_QUEUES_MAX];
};

static inline struct mn_pkt *dpdk_pkt(struct rte_mbuf *m)
{
    return (struct mn_pkt *)(void *)(m + 1);
}

static inline struct rte_mbuf *dpdk_mbuf(struct mn_pkt *pkt)
{
    return (struct rte_mbuf *)(void *)pkt - 1;
}

/* eal.c: one control call at a time; the open ports. */
extern pthread_mutex_t mn_dpdk_lock;
extern struct mn_dpdk *mn_dpdk_ports;
bool mn_dpdk_started(void);
/* For what a forked child is told. */
int mn_dpdk_not_ours(char *err, size_t err_bytes);
/* A thread, and those that it starts, to which signals are not delivered: they are for the
 * application's. As pthread_create. */
int mn_dpdk_thread(pthread_t *thread, void *(*fn)(void *), void *arg);
/* What a device was plugged in as, NULL: unknown. Under the lock. */
const char *mn_dpdk_devargs_of(const char *device);
int mn_dpdk_probe_locked(const char *devargs, uint16_t *ports, uint32_t n,
                         const struct dpdk_err *err);
int mn_dpdk_unprobe_locked(uint16_t port);

/* log.c */
int mn_dpdk_log_open(void);

/* port.c: the port has been plugged out, nobody has what it had. */
void mn_dpdk_free_left(uint16_t port);

/* burst.c */
extern const struct mn_nic_ops mn_dpdk_ops;
bool mn_dpdk_enter(struct mn_dpdk *d, struct dpdk_queue *q);
void mn_dpdk_leave(struct dpdk_queue *q);

/* sleep.c */
int mn_dpdk_sleep_init(struct mn_dpdk *d, const struct dpdk_err *err);
void mn_dpdk_sleep_fini(struct mn_dpdk *d);
/* The port has been started, or is about to be stopped: what wakes the queues' threads. */
void mn_dpdk_sleep_attach(struct mn_dpdk *d);
void mn_dpdk_sleep_detach(struct mn_dpdk *d);
/* Asks the driver's sockets what they have dropped since they were asked last. */
void mn_dpdk_count_drops(struct mn_dpdk *d);
int mn_dpdk_queue_fd(struct mn_nic *nic, uint32_t queue);
bool mn_dpdk_rx_arm(struct mn_nic *nic, uint32_t queue, bool on);

/* setup.c: from a probed port to one that runs, and back. */
int mn_dpdk_setup(struct mn_dpdk *d, const struct dpdk_err *err);
void mn_dpdk_stop(struct mn_dpdk *d);
/* Also the device, if no other port of it is open; the port must have been set up. */
void mn_dpdk_plug_out(struct mn_dpdk *d);
/* Gives the kernel's interface below, if there is one, the address that it had. */
void mn_dpdk_restore_mac(struct mn_dpdk *d);
void mn_dpdk_note_missing(struct mn_dpdk *d, const char *what);

/* spread.c */
void mn_dpdk_read_rss(struct mn_dpdk *d);

/* rings.c */
struct dpdk_pair *mn_dpdk_pair_of(uint16_t port);
/* Takes over the pools of a port that is closed. */
void mn_dpdk_pair_keep(struct dpdk_pair *pair, struct mn_dpdk *d);
/* The port does not exist any more. */
void mn_dpdk_pair_left(struct dpdk_pair *pair, uint16_t port);

/* watch.c */
int mn_dpdk_watch_start(void);
void mn_dpdk_watch_stop(void);
/* What was said of the port's number before does not count. */
void mn_dpdk_forget_gone(uint16_t port);
/* Under the lock. */
void mn_dpdk_read_link(struct mn_dpdk *d);
void mn_dpdk_read_stats(struct mn_dpdk *d);

#endif
