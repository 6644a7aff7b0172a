/* SPDX-License-Identifier: MIT */
/* Opening and closing a port, and what there is to be told of it. */
#include "dpdk_int.h"

#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_mempool.h>

/* Two ports of one interface would both receive all of its frames. */
static int check_alone(const struct mn_dpdk_config *cfg, const struct rte_eth_dev_info *info,
                       const struct dpdk_err *err)
{
    for (const struct mn_dpdk *d = mn_dpdk_ports; d != NULL; d = d->next) {
        if (!d->present) {
            continue;
        }
        if (d->port == cfg->port) {
            return mn_dpdk_fail(err, -EEXIST, "%s is open already", d->name);
        }
        if (info->if_index != 0 && d->if_index == info->if_index &&
            strcmp(d->driver, info->driver_name) == 0) {
            return mn_dpdk_fail(err, -EEXIST, "%s goes through the same interface (%s)", d->name,
                                d->interface);
        }
    }
    return 0;
}

static int check(const struct mn_dpdk_config *cfg, const struct dpdk_err *err)
{
    struct rte_eth_dev_info info;

    if (cfg->queues < 1 || cfg->queues > DPDK_QUEUES_MAX) {
        return mn_dpdk_fail(err, -EINVAL, "queues: %u is not within 1 to %u", cfg->queues,
                            DPDK_QUEUES_MAX);
    }
    if (rte_eth_dev_info_get(cfg->port, &info) != 0) {
        return mn_dpdk_fail(err, -ENODEV, "there is no port %u", cfg->port);
    }
    if (cfg->mtu < mn_max_u32(info.min_mtu, 68) ||
        cfg->mtu > mn_min_u32(info.max_mtu, UINT16_MAX - 256)) {
        return mn_dpdk_fail(err, -EINVAL, "mtu: %s takes %u to %u bytes: %u", info.driver_name,
                            mn_max_u32(info.min_mtu, 68),
                            mn_min_u32(info.max_mtu, UINT16_MAX - 256), cfg->mtu);
    }
    if (cfg->pool_mbufs > MN_DPDK_POOL_MAX) {
        return mn_dpdk_fail(err, -EINVAL, "pool_mbufs: %u is more than %u", cfg->pool_mbufs,
                            MN_DPDK_POOL_MAX);
    }
    return check_alone(cfg, &info, err);
}

/* What has been made by hand has no bus. */
static bool is_pci(const struct rte_device *device)
{
    const struct rte_bus *bus = rte_dev_bus(device);

    return bus != NULL && strcmp(rte_bus_name(bus), "pci") == 0;
}

static void name_port(struct mn_dpdk *d)
{
    struct rte_eth_dev_info info;
    const char *devargs;

    if (rte_eth_dev_info_get(d->port, &info) != 0) {
        return;
    }
    (void)snprintf(d->name, sizeof(d->name), "%s", rte_dev_name(info.device));
    (void)snprintf(d->driver, sizeof(d->driver), "%s", info.driver_name);
    d->pci = is_pci(info.device);
    if (info.if_index != 0 && if_indextoname(info.if_index, d->interface) == NULL) {
        d->interface[0] = '\0';
    }
    devargs = mn_dpdk_devargs_of(d->name);
    (void)snprintf(d->devargs, sizeof(d->devargs), "%s", devargs != NULL ? devargs : "");
}

/* Pools of a port that could not be opened: its driver may have packets of them until it is plugged
 * out. */
struct left {
    struct left *next;
    uint16_t port;
    struct rte_mempool *pools[DPDK_QUEUES_MAX];
};
static struct left *left;

static void leave_pools(struct mn_dpdk *d)
{
    struct left *l = calloc(1, sizeof(*l));

    for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
        if (l != NULL) {
            l->pools[i] = d->q[i].pool;
        }
        d->q[i].pool = NULL; /* without memory for the list they stay for ever */
    }
    if (l != NULL) {
        l->port = d->port;
        l->next = left;
        left = l;
    }
}

void mn_dpdk_free_left(uint16_t port)
{
    for (struct left **at = &left; *at != NULL;) {
        struct left *l = *at;

        if (l->port != port) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
            rte_mempool_free(l->pools[i]);
        }
        free(l);
    }
}

static void free_port(struct mn_dpdk *d)
{
    mn_dpdk_sleep_fini(d);
    if (d->pair != NULL) {
        mn_dpdk_pair_keep(d->pair, d);
        mn_dpdk_pair_left(d->pair, d->port);
    }
    for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
        rte_mempool_free(d->q[i].pool);
    }
    free(d);
}

static int open_locked(const struct mn_dpdk_config *cfg, struct mn_dpdk **out,
                       const struct dpdk_err *err)
{
    struct mn_dpdk *d;
    int rc = check(cfg, err);

    if (rc != 0) {
        return rc;
    }
    d = aligned_alloc(MN_CACHE_LINE, sizeof(*d));
    if (d == NULL) {
        return mn_dpdk_fail(err, -ENOMEM, "no memory for a port");
    }
    memset(d, 0, sizeof(*d));
    d->cfg = *cfg;
    d->port = cfg->port;
    d->cfg.nap_max_us = cfg->nap_max_us != 0 ? cfg->nap_max_us : 1000;
    d->queues = cfg->queues;
    d->nic.ops = &mn_dpdk_ops;
    d->present = true;
    mn_dpdk_forget_gone(d->port);
    d->pair = mn_dpdk_pair_of(d->port);
    name_port(d);
    rc = mn_dpdk_sleep_init(d, err);
    d->queues = 0;
    if (rc == 0) {
        rc = mn_dpdk_setup(d, err);
    }
    if (rc != 0) {
        d->pair = NULL; /* the port is still there */
        leave_pools(d);
        free_port(d);
        return rc;
    }
    if (d->pci) {
        (void)rte_dev_event_monitor_start();
    }
    d->nic.rx_fd = d->q[0].epoll_fd;
    d->next = mn_dpdk_ports;
    mn_dpdk_ports = d;
    mn_dpdk_read_link(d);
    *out = d;
    return 0;
}

int mn_dpdk_open(const struct mn_dpdk_config *cfg, struct mn_nic **out, char *err, size_t err_bytes)
{
    struct mn_dpdk *d = NULL;
    int rc;

    if (mn_dpdk_forked()) {
        return mn_dpdk_not_ours(err, err_bytes);
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    rc = open_locked(cfg, &d, &(struct dpdk_err){.text = err, .size = err_bytes});
    pthread_mutex_unlock(&mn_dpdk_lock);
    if (rc == 0) {
        *out = &d->nic;
    }
    return rc;
}

static void drop_stash(struct mn_dpdk *d)
{
    for (uint32_t i = 0; i < d->queues; i++) {
        struct dpdk_queue *q = &d->q[i];

        while (q->stash_at < q->n_stash) {
            rte_pktmbuf_free(q->stash[q->stash_at++]);
        }
    }
}

void mn_dpdk_close(struct mn_nic *nic)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;

    if (mn_dpdk_forked()) {
        return;
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    for (struct mn_dpdk **at = &mn_dpdk_ports; *at != NULL; at = &(*at)->next) {
        if (*at == d) {
            *at = d->next;
            drop_stash(d);
            if (d->present) {
                mn_dpdk_restore_mac(d);
                mn_dpdk_plug_out(d);
            }
            free_port(d);
            break;
        }
    }
    pthread_mutex_unlock(&mn_dpdk_lock);
}

/* Under the lock. What is asked of a port may be asked while another thread closes it. */
static bool is_open(const struct mn_dpdk *d)
{
    const struct mn_dpdk *one = mn_dpdk_ports;

    while (one != NULL && one != d) {
        one = one->next;
    }
    return one != NULL;
}

const char *mn_dpdk_missing(const struct mn_nic *nic, uint32_t i)
{
    const struct mn_dpdk *d = (const struct mn_dpdk *)nic;

    return i < d->n_missing ? d->missing[i] : NULL;
}

static void read_counts(struct mn_dpdk *d, struct mn_dpdk_stats *out)
{
    mn_dpdk_read_stats(d);
    for (uint32_t i = 0; i < d->queues; i++) {
        const struct dpdk_counts *c = &d->q[i].counts;

        out->rx_frames += c->rx_frames;
        out->rx_bytes += c->rx_bytes;
        out->rx_bursts += c->rx_bursts;
        out->rx_bad += c->rx_bad;
        out->tx_frames += c->tx_frames;
        out->tx_bytes += c->tx_bytes;
        out->tx_bursts += c->tx_bursts;
        out->tx_full += c->tx_full;
        out->tx_refused += c->tx_refused;
        out->tx_down += c->tx_down;
        out->no_mbuf += c->no_mbuf;
        out->mbufs += d->q[i].pool->size;
        out->mbufs_free += rte_mempool_avail_count(d->q[i].pool);
    }
    out->unplugged = d->unplugged;
    out->replugged = d->replugged;
    out->ipackets = d->base.ipackets + d->last.ipackets;
    out->opackets = d->base.opackets + d->last.opackets;
    out->ibytes = d->base.ibytes + d->last.ibytes;
    out->obytes = d->base.obytes + d->last.obytes;
    out->imissed = d->base.imissed + d->last.imissed + d->ring_drops;
    out->ierrors = d->base.ierrors + d->last.ierrors;
    out->oerrors = d->base.oerrors + d->last.oerrors;
    out->rx_nombuf = d->base.rx_nombuf + d->last.rx_nombuf;
}

void mn_dpdk_get_stats(struct mn_nic *nic, struct mn_dpdk_stats *out)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;

    memset(out, 0, sizeof(*out));
    if (mn_dpdk_forked()) {
        return;
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    if (is_open(d)) {
        read_counts(d, out);
    }
    pthread_mutex_unlock(&mn_dpdk_lock);
}

static void read_info(struct mn_dpdk *d, struct mn_dpdk_info *out)
{
    mn_dpdk_read_link(d);
    memcpy(out->driver, d->driver, sizeof(out->driver));
    memcpy(out->device, d->name, sizeof(out->device));
    out->port = d->port;
    out->queues = d->queues;
    out->queues_max = d->queues_max;
    out->rx_desc = d->rx_desc;
    out->tx_desc = d->tx_desc;
    out->socket = d->socket;
    out->link_mbit = d->link_mbit;
    out->link_up = d->nic.link_up != 0;
    out->present = d->present;
    out->rss = d->rss_on;
    out->rss_known = d->nic.caps.rss != NULL;
    out->promiscuous = d->promiscuous;
    out->wake = d->wake;
    out->frame_room = d->data_room;
    out->if_index = d->if_index;
}

void mn_dpdk_get_info(struct mn_nic *nic, struct mn_dpdk_info *out)
{
    struct mn_dpdk *d = (struct mn_dpdk *)nic;

    memset(out, 0, sizeof(*out));
    if (mn_dpdk_forked()) {
        return;
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    if (is_open(d)) {
        read_info(d, out);
    }
    pthread_mutex_unlock(&mn_dpdk_lock);
}
