/* SPDX-License-Identifier: MIT */
/*
 * How a thread that found nothing to do sleeps on a port, in one of three ways:
 *   - the driver receives through sockets of the kernel (net_af_packet, net_af_xdp), which are
 * found among the process's descriptors: they poll readable;
 *   - the queue has an interrupt, which is switched on for the sleep. Should it not come, as with a
 *     driver that has one in name only, the thread looks again after 10 ms;
 *   - neither: the thread looks again after naps that get longer.
 */
#include "dpdk_int.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <linux/if_packet.h>

#include <rte_errno.h>
#include <rte_interrupts.h>

#define NAP_MIN_NS  (50 * MN_NS_PER_US)
#define DOUBT_NS    (10 * MN_NS_PER_MS)
#define SOCKETS_MAX 64u

/* ---- the driver's sockets -------------------------------------------------------------------- */

static bool claimed(int fd)
{
    for (const struct mn_dpdk *d = mn_dpdk_ports; d != NULL; d = d->next) {
        for (uint32_t i = 0; i < d->n_sockets; i++) {
            if (d->sockets[i] == fd) {
                return true;
            }
        }
    }
    return false;
}

static bool is_drivers(int fd, uint32_t if_index)
{
    int domain = 0, version = -1;
    socklen_t len = sizeof(domain);
    struct sockaddr_ll addr = {0};

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) != 0) {
        return false;
    }
    if (domain == AF_XDP) {
        return true;
    }
    len = sizeof(version);
    /* Version 2 of the ring, which the driver takes, and hardly anybody else in this process. */
    if (domain != AF_PACKET || getsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, &len) != 0 ||
        version != TPACKET_V2) {
        return false;
    }
    len = sizeof(addr);
    return getsockname(fd, (struct sockaddr *)&addr, &len) == 0 &&
           (uint32_t)addr.sll_ifindex == if_index;
}

static int by_number(const void *a, const void *b)
{
    const int *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* In the order of the queues. Their numbers are in it, unless another thread has closed a file
 * while they were made; inodes are not: each CPU has a batch of those. What a queue of
 * net_af_packet begins with is its socket, which is certain. */
static void sort_sockets(const struct mn_dpdk *d, int *fds, uint32_t n)
{
    qsort(fds, n, sizeof(*fds), by_number);
    if (strcmp(d->driver, "net_af_packet") != 0 || n != d->queues) {
        return;
    }
    for (uint32_t q = 0; q < n; q++) {
        int fd;

        memcpy(&fd, rte_eth_fp_ops[d->port].rxq.data[q], sizeof(fd));
        for (uint32_t i = q + 1; i < n; i++) {
            if (fds[i] == fd) {
                fds[i] = fds[q];
                fds[q] = fd;
            }
        }
    }
}

static uint32_t find_sockets(const struct mn_dpdk *d, int *out, uint32_t n)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    uint32_t got = 0;

    if (dir == NULL) {
        return 0;
    }
    while ((entry = readdir(dir)) != NULL && got < n) {
        int fd = atoi(entry->d_name);
        struct stat st;

        if (entry->d_name[0] != '.' && fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) &&
            !claimed(fd) && is_drivers(fd, d->if_index)) {
            out[got++] = fd;
        }
    }
    (void)closedir(dir);
    sort_sockets(d, out, got);
    return got;
}

static bool watch_fd(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static bool attach_sockets(struct mn_dpdk *d)
{
    int found[SOCKETS_MAX];
    uint32_t n;

    if (strcmp(d->driver, "net_af_packet") != 0 && strcmp(d->driver, "net_af_xdp") != 0) {
        return false;
    }
    n = find_sockets(d, found, mn_min_u32(SOCKETS_MAX, DPDK_QUEUES_MAX));
    for (uint32_t i = 0; i < n; i++) {
        d->sockets[i] = found[i];
    }
    d->n_sockets = n;
    for (uint32_t q = 0; q < d->queues; q++) {
        for (uint32_t i = 0; i < n; i++) {
            /* When it is not clear whose is whose, each wakes all. */
            if ((n != d->queues || i == q) && !watch_fd(d->q[q].epoll_fd, found[i])) {
                return false;
            }
        }
    }
    return n != 0;
}

void mn_dpdk_count_drops(struct mn_dpdk *d)
{
    for (uint32_t i = 0; i < d->n_sockets; i++) {
        struct tpacket_stats stats = {0};
        socklen_t len = sizeof(stats);

        /* Not AF_XDP: it has another level. Each drop is told once, to us or to the driver. */
        if (getsockopt(d->sockets[i], SOL_PACKET, PACKET_STATISTICS, &stats, &len) == 0) {
            d->ring_drops += stats.tp_drops;
        }
    }
}

/* ---- interrupts ------------------------------------------------------------------------------ */

static bool attach_interrupts(struct mn_dpdk *d)
{
    for (uint32_t i = 0; i < d->queues; i++) {
        int fd = rte_eth_dev_rx_intr_ctl_q_get_fd(d->port, (uint16_t)i);

        if (fd < 0 || rte_eth_dev_rx_intr_enable(d->port, (uint16_t)i) != 0) {
            return false;
        }
        (void)rte_eth_dev_rx_intr_disable(d->port, (uint16_t)i);
        d->q[i].intr_fd = fd;
    }
    for (uint32_t i = 0; i < d->queues; i++) {
        if (!watch_fd(d->q[i].epoll_fd, d->q[i].intr_fd)) {
            return false;
        }
    }
    return true;
}

void mn_dpdk_sleep_attach(struct mn_dpdk *d)
{
    d->wake = MN_DPDK_WAKE_TIMER;
    if (attach_sockets(d)) {
        d->wake = MN_DPDK_WAKE_FD;
    } else if (d->intr_on && attach_interrupts(d)) {
        d->wake = MN_DPDK_WAKE_INTERRUPT;
    }
}

void mn_dpdk_sleep_detach(struct mn_dpdk *d)
{
    for (uint32_t q = 0; q < d->queues; q++) {
        for (uint32_t i = 0; i < d->n_sockets; i++) {
            (void)epoll_ctl(d->q[q].epoll_fd, EPOLL_CTL_DEL, d->sockets[i], NULL);
        }
        if (d->q[q].intr_fd >= 0) {
            (void)epoll_ctl(d->q[q].epoll_fd, EPOLL_CTL_DEL, d->q[q].intr_fd, NULL);
            d->q[q].intr_fd = -1;
        }
    }
    d->n_sockets = 0;
    d->wake = MN_DPDK_WAKE_TIMER;
}

/* ---- going to sleep, and being awake again --------------------------------------------------- */

static void set_timer(struct dpdk_queue *q, uint64_t ns)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(ns / MN_NS_PER_S), .tv_nsec = (long)(ns % MN_NS_PER_S)}};

    (void)timerfd_settime(q->timer_fd, 0, &when, NULL);
    q->timer_on = ns != 0;
}

static uint64_t next_nap(const struct mn_dpdk *d, struct dpdk_queue *q)
{
    uint64_t nap_ns = q->nap_ns;

    if (q->counts.rx_frames != q->seen_frames) {
        q->seen_frames = q->counts.rx_frames;
        nap_ns = NAP_MIN_NS;
    }
    q->nap_ns = mn_min_u64(2 * nap_ns, d->cfg.nap_max_us * MN_NS_PER_US);
    return nap_ns;
}

/* What came in while the interrupt was being switched on raises none. */
static bool arm(struct mn_dpdk *d, struct dpdk_queue *q, uint16_t queue)
{
    if (MN_UNLIKELY(!mn_dpdk_enter(d, q))) {
        set_timer(q, DOUBT_NS);
        return true;
    }
    if (d->wake == MN_DPDK_WAKE_INTERRUPT) {
        (void)rte_eth_dev_rx_intr_enable(d->port, queue);
    }
    q->n_stash = rte_eth_rx_burst(d->port, queue, q->stash, DPDK_BURST_MAX);
    mn_dpdk_leave(q);
    if (q->n_stash != 0) {
        return false;
    }
    if (d->wake == MN_DPDK_WAKE_INTERRUPT) {
        set_timer(q, DOUBT_NS);
    } else if (d->wake == MN_DPDK_WAKE_TIMER) {
        set_timer(q, next_nap(d, q));
    }
    return true;
}

/* A descriptor that stays readable would end every later sleep at once. */
static void quiet(const struct mn_dpdk *d, const struct dpdk_queue *q)
{
    struct epoll_event events[8];
    int n = epoll_wait(q->epoll_fd, events, (int)MN_ARRAY_LEN(events), 0);

    for (int i = 0; i < n; i++) {
        uint64_t count;
        int error;
        socklen_t len = sizeof(error);

        if (events[i].data.fd == q->intr_fd) {
            if (read(q->intr_fd, &count, sizeof(count)) < 0) {
                continue; /* somebody else has read it */
            }
        } else if (d->wake == MN_DPDK_WAKE_FD && (events[i].events & EPOLLERR) != 0) {
            /* The interface went down; reading the error takes it away. */
            (void)getsockopt(events[i].data.fd, SOL_SOCKET, SO_ERROR, &error, &len);
        }
    }
}

static void disarm(struct mn_dpdk *d, struct dpdk_queue *q, uint16_t queue)
{
    if (q->timer_on) { /* perhaps set while the device was away */
        set_timer(q, 0);
    }
    /* The driver's descriptors are closed with it: their numbers may be somebody else's then. */
    if (d->wake != MN_DPDK_WAKE_TIMER && mn_dpdk_enter(d, q)) {
        if (d->wake == MN_DPDK_WAKE_INTERRUPT) {
            (void)rte_eth_dev_rx_intr_disable(d->port, queue);
        }
        quiet(d, q);
        mn_dpdk_leave(q);
    }
}

bool mn_dpdk_rx_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;
    struct dpdk_queue *q = &d->q[queue];

    if (!on) {
        disarm(d, q, (uint16_t)queue);
        return true;
    }
    return q->n_stash == 0 && arm(d, q, (uint16_t)queue);
}

int mn_dpdk_queue_fd(struct mn_nic *nic, uint32_t queue)
{
    return ((struct mn_dpdk *)nic)->q[queue].epoll_fd;
}

void mn_dpdk_sleep_fini(struct mn_dpdk *d)
{
    for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
        struct dpdk_queue *q = &d->q[i];

        if (q->timer_fd >= 0) {
            (void)close(q->timer_fd);
        }
        if (q->epoll_fd >= 0) {
            (void)close(q->epoll_fd);
        }
        q->timer_fd = q->epoll_fd = -1;
    }
}

int mn_dpdk_sleep_init(struct mn_dpdk *d, const struct dpdk_err *err)
{
    for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
        d->q[i].epoll_fd = d->q[i].timer_fd = d->q[i].intr_fd = -1;
    }
    for (uint32_t i = 0; i < d->queues; i++) {
        struct dpdk_queue *q = &d->q[i];

        q->nap_ns = NAP_MIN_NS;
        q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        q->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (q->epoll_fd < 0 || q->timer_fd < 0 || !watch_fd(q->epoll_fd, q->timer_fd)) {
            int rc = -errno;

            mn_dpdk_sleep_fini(d);
            return mn_dpdk_fail(err, rc, "no descriptor to sleep on");
        }
    }
    return 0;
}
