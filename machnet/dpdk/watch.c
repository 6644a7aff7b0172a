/* SPDX-License-Identifier: MIT */
/*
 * The watcher: a thread that follows link states, and devices that go and come back.
 *
 * A device has gone when its driver says so (RTE_ETH_EVENT_INTR_RMV), when its bus does, or when
 * the kernel's interface below it does not exist any more. Then the port is taken away from its
 * queues' threads, who from now on receive nothing and lose what they send, is closed, and plugged
 * in again as soon as that works.
 */
#include "dpdk_int.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_errno.h>

#define LOOK_NS            (500 * MN_NS_PER_MS)
#define WITHOUT_BARRIER_US 10000

static struct {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    pthread_t thread;
    bool running, stop;
    uint64_t wanted, done; /* looks */
    int sock;              /* for ioctl */
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .sock = -1};

/* ---- what the drivers and buses say; called in EAL's interrupt thread ------------------------ */

static void look_soon(void)
{
    pthread_mutex_lock(&watch.lock);
    watch.wanted++;
    pthread_cond_broadcast(&watch.cond);
    pthread_mutex_unlock(&watch.lock);
}

/* Ports that said that they are gone; the watcher takes them down. */
static atomic_ulong gone_ports[RTE_MAX_ETHPORTS / (8 * sizeof(unsigned long)) + 1];

static void note_gone(uint16_t port)
{
    const uint32_t bits = 8 * sizeof(unsigned long);

    atomic_fetch_or(&gone_ports[port / bits], 1UL << (port % bits));
}

static bool take_gone(uint16_t port)
{
    const uint32_t bits = 8 * sizeof(unsigned long);
    unsigned long mask = 1UL << (port % bits);

    return (atomic_fetch_and(&gone_ports[port / bits], ~mask) & mask) != 0;
}

void mn_dpdk_forget_gone(uint16_t port)
{
    (void)take_gone(port);
}

static int port_event(uint16_t port, enum rte_eth_event_type type, void *arg, void *ret)
{
    (void)arg;
    (void)ret;
    if (type == RTE_ETH_EVENT_INTR_RMV) {
        note_gone(port);
    }
    look_soon();
    return 0;
}

static void device_event(const char *device, enum rte_dev_event_type type, void *arg)
{
    uint16_t port;

    (void)arg;
    if (type == RTE_DEV_EVENT_REMOVE && device != NULL &&
        rte_eth_dev_get_port_by_name(device, &port) == 0) {
        note_gone(port);
    }
    look_soon();
}

/* ---- the kernel's interface below ------------------------------------------------------------ */

/* By a socket that is there already: a process without descriptors to spare has not lost its
 * interfaces. */
static bool interface_name(uint32_t if_index, struct ifreq *req)
{
    memset(req, 0, sizeof(*req));
    req->ifr_ifindex = (int)if_index;
    return ioctl(watch.sock, SIOCGIFNAME, req) == 0;
}

static bool interface_gone(uint32_t if_index)
{
    struct ifreq req;

    return !interface_name(if_index, &req) && errno == ENODEV;
}

static bool interface_runs(uint32_t if_index)
{
    struct ifreq req;

    return interface_name(if_index, &req) && ioctl(watch.sock, SIOCGIFFLAGS, &req) == 0 &&
           (req.ifr_flags & IFF_RUNNING) != 0;
}

/* A driver on top of an interface says "up" once and for all. */
void mn_dpdk_read_link(struct mn_dpdk *d)
{
    struct rte_eth_link link = {0};
    bool up = atomic_load(&d->away) == 0 && rte_eth_link_get_nowait(d->port, &link) == 0 &&
              link.link_status == RTE_ETH_LINK_UP &&
              (d->if_index == 0 || interface_runs(d->if_index));

    d->link_mbit = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
    __atomic_store_n(&d->nic.link_up, up ? 1 : 0, __ATOMIC_RELAXED);
}

/* ---- statistics across a device's lives ------------------------------------------------------ */

static void add_stats(struct rte_eth_stats *to, const struct rte_eth_stats *more)
{
    to->ipackets += more->ipackets;
    to->opackets += more->opackets;
    to->ibytes += more->ibytes;
    to->obytes += more->obytes;
    to->imissed += more->imissed;
    to->ierrors += more->ierrors;
    to->oerrors += more->oerrors;
    to->rx_nombuf += more->rx_nombuf;
}

void mn_dpdk_read_stats(struct mn_dpdk *d)
{
    struct rte_eth_stats now;

    if (atomic_load(&d->away) == 0 && rte_eth_stats_get(d->port, &now) == 0) {
        d->last = now;
    }
    mn_dpdk_count_drops(d);
}

/* ---- away, and back -------------------------------------------------------------------------- */

/* After this no thread is inside a call of the driver. */
static void take_away(struct mn_dpdk *d)
{
    atomic_store(&d->away, 1);
    /* What the threads have written before their look at `away` is seen now. */
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0 &&
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0) {
        /* A sandbox without the call: a store is not kept from other CPUs for so long. */
        (void)usleep(WITHOUT_BARRIER_US);
    }
    for (uint32_t i = 0; i < d->queues; i++) {
        while (atomic_load(&d->q[i].inside) != 0) {
            (void)usleep(50);
        }
    }
}

static void unplug(struct mn_dpdk *d)
{
    mn_dpdk_read_stats(d);
    take_away(d);
    add_stats(&d->base, &d->last);
    memset(&d->last, 0, sizeof(d->last));
    d->unplugged++;
    d->present = false;
    mn_dpdk_plug_out(d);
    mn_dpdk_read_link(d);
}

/* EAL's log would be full of failures: looks whether there is something to be had. */
static bool may_be_back(const struct mn_dpdk *d)
{
    char path[160];

    if (d->interface[0] != '\0') {
        return if_nametoindex(d->interface) != 0;
    }
    if (d->pci) {
        (void)snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", d->name);
        return access(path, F_OK) == 0;
    }
    return true;
}

static void replug(struct mn_dpdk *d)
{
    struct dpdk_err none = {0};

    if (d->devargs[0] == '\0' || !may_be_back(d) ||
        mn_dpdk_probe_locked(d->devargs, &d->port, 1, &none) != 1) {
        return;
    }
    /* The engine knows its address, and what the port could do. */
    memcpy(d->cfg.mac, d->nic.mac, sizeof(d->cfg.mac));
    if (mn_dpdk_setup(d, &none) != 0 || (d->nic.caps.tx_csum_tcp && !d->tx_marks)) {
        mn_dpdk_plug_out(d);
        return;
    }
    d->present = true;
    d->replugged++;
    (void)take_gone(d->port);
    atomic_store(&d->away, 0);
    mn_dpdk_read_link(d);
}

static void look(void)
{
    pthread_mutex_lock(&mn_dpdk_lock);
    for (struct mn_dpdk *d = mn_dpdk_ports; d != NULL; d = d->next) {
        if (!d->present) {
            replug(d);
            continue;
        }
        if (take_gone(d->port) || (d->if_index != 0 && interface_gone(d->if_index))) {
            unplug(d);
        } else {
            mn_dpdk_read_link(d);
        }
    }
    pthread_mutex_unlock(&mn_dpdk_lock);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void wait_until_wanted(void)
{
    struct timespec at;

    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += (long)LOOK_NS;
    at.tv_sec += at.tv_nsec / (long)MN_NS_PER_S;
    at.tv_nsec %= (long)MN_NS_PER_S;
    while (!watch.stop && watch.wanted == watch.done &&
           pthread_cond_timedwait(&watch.cond, &watch.lock, &at) == 0) {
    }
}

static void *watch_thread(void *arg)
{
    uint64_t answering;

    (void)arg;
    pthread_mutex_lock(&watch.lock);
    while (!watch.stop) {
        wait_until_wanted();
        answering = watch.wanted;
        pthread_mutex_unlock(&watch.lock);
        look();
        pthread_mutex_lock(&watch.lock);
        watch.done = answering;
        pthread_cond_broadcast(&watch.cond);
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

void mn_dpdk_look(void)
{
    uint64_t mine;

    if (mn_dpdk_forked()) {
        return;
    }
    pthread_mutex_lock(&watch.lock);
    mine = ++watch.wanted;
    pthread_cond_broadcast(&watch.cond);
    while (watch.running && watch.done < mine) {
        pthread_cond_wait(&watch.cond, &watch.lock);
    }
    pthread_mutex_unlock(&watch.lock);
}

int mn_dpdk_watch_start(void)
{
    pthread_condattr_t attr;
    int rc;

    (void)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    watch.sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&watch.cond, &attr);
    (void)pthread_condattr_destroy(&attr);
    watch.stop = false;
    rc = mn_dpdk_thread(&watch.thread, watch_thread, NULL);
    if (rc != 0) {
        return -rc;
    }
    (void)pthread_setname_np(watch.thread, "machnet-dpdk");
    watch.running = true;
    (void)rte_eth_dev_callback_register(RTE_ETH_ALL, RTE_ETH_EVENT_INTR_RMV, port_event, NULL);
    (void)rte_eth_dev_callback_register(RTE_ETH_ALL, RTE_ETH_EVENT_INTR_LSC, port_event, NULL);
    (void)rte_dev_event_callback_register(NULL, device_event, NULL);
    return 0;
}

void mn_dpdk_watch_stop(void)
{
    pthread_mutex_lock(&watch.lock);
    if (!watch.running) {
        pthread_mutex_unlock(&watch.lock);
        return;
    }
    watch.stop = true;
    watch.running = false;
    pthread_cond_broadcast(&watch.cond);
    pthread_mutex_unlock(&watch.lock);
    (void)pthread_join(watch.thread, NULL);
    (void)close(watch.sock);
    watch.sock = -1;
}
