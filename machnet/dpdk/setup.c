/* SPDX-License-Identifier: MIT */
/* From a probed port to one that runs, and back. What a driver does not have is noted and done
 * without. */
#include "dpdk_int.h"

#include "machnet/stack/core/wire/eth.h"

#include <semaphore.h>
#include <stdio.h>

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ether.h>
#include <rte_mempool.h>

/* Enough for vmxnet3, which wants 512 to transmit, and for a burst or two of any stack. */
#define DESC_DEFAULT 512u
/* What the stack and everything in front of it may hold at once, beside the descriptors. */
#define POOL_SLACK  1024u
#define POOL_CACHE  256u
#define POOL_CACHES (POOL_CACHE * 3 / 2 * 2) /* of two threads: the one before may keep its own */
/* A frame is at most so much longer than its IP packet: Ethernet and two VLAN tags. */
#define FRAME_EXTRA (MN_ETH_HLEN + 8u)

void mn_dpdk_note_missing(struct mn_dpdk *d, const char *what)
{
    for (uint32_t i = 0; i < d->n_missing; i++) {
        if (strcmp(d->missing[i], what) == 0) {
            return;
        }
    }
    if (d->n_missing < DPDK_MISSING_MAX) {
        (void)snprintf(d->missing[d->n_missing++], DPDK_MISSING_TEXT, "%s", what);
    }
}

/* ---- configuration --------------------------------------------------------------------------- */

static void choose_offloads(struct mn_dpdk *d, const struct rte_eth_dev_info *info,
                            struct rte_eth_conf *conf)
{
    const uint64_t rx = RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
    const uint64_t tx = RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM;

    d->rx_marks = !d->cfg.no_offload && (info->rx_offload_capa & rx) == rx;
    d->tx_marks = !d->cfg.no_offload && (info->tx_offload_capa & tx) == tx;
    if (d->rx_marks) {
        conf->rxmode.offloads |= rx | (info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
    } else if (!d->cfg.no_offload) {
        mn_dpdk_note_missing(d, "it verifies no checksums: done in software");
    }
    if (d->tx_marks) {
        conf->txmode.offloads |= tx | (info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
    } else if (!d->cfg.no_offload) {
        mn_dpdk_note_missing(d, "it makes no checksums: done in software");
    }
    /* Frames of several pieces: what does not fit into one mbuf, and what middleware puts together.
     */
    conf->rxmode.offloads |= info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
    conf->txmode.offloads |= info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
}

static void choose_rss(struct mn_dpdk *d, const struct rte_eth_dev_info *info,
                       struct rte_eth_conf *conf)
{
    const uint64_t wanted = RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_TCP |
                            RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV4_OTHER;
    uint64_t both = info->flow_type_rss_offloads & wanted;

    d->rss_on = d->queues > 1 && both != 0;
    if (d->rss_on) {
        conf->rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
        conf->rx_adv_conf.rss_conf.rss_hf = both;
    }
}

static uint16_t choose_queues(struct mn_dpdk *d, const struct rte_eth_dev_info *info)
{
    uint32_t most =
        mn_min_u32(mn_min_u32(info->max_rx_queues, info->max_tx_queues), DPDK_QUEUES_MAX);

    d->queues_max = (uint16_t)most;
    return (uint16_t)(d->cfg.queues > most ? 1 : d->cfg.queues);
}

/* The driver of packet sockets says 1500 whatever its interface has; its ring was made for that. */
static uint32_t drivers_mtu(const struct mn_dpdk *d, const struct rte_eth_dev_info *info)
{
    const uint32_t extra = RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN;

    if (strcmp(info->driver_name, "net_af_packet") == 0 && info->max_rx_pktlen > extra) {
        return mn_min_u32(d->cfg.mtu, info->max_rx_pktlen - extra);
    }
    return d->cfg.mtu;
}

static int configure(struct mn_dpdk *d, const struct rte_eth_dev_info *info, bool interrupts)
{
    struct rte_eth_conf conf = {.rxmode.mtu = drivers_mtu(d, info)};

    conf.intr_conf.rxq = interrupts ? 1 : 0;
    choose_offloads(d, info, &conf);
    choose_rss(d, info, &conf);
    d->intr_on = interrupts;
    return rte_eth_dev_configure(d->port, d->queues, d->queues, &conf);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static uint32_t frame_bytes(const struct mn_dpdk *d, const struct rte_eth_dev_info *info)
{
    uint32_t room = mn_max_u32(d->cfg.mtu + FRAME_EXTRA, RTE_MBUF_DEFAULT_DATAROOM);

    room = mn_max_u32(room, mn_max_u32(d->cfg.frame_room, info->min_rx_bufsize));
    return mn_min_u32((room + 63) & ~63u, (UINT16_MAX & ~63u) - RTE_PKTMBUF_HEADROOM);
}

static int make_pools(struct mn_dpdk *d, const struct rte_eth_dev_info *info,
                      const struct dpdk_err *err)
{
    static uint32_t number;
    uint32_t room = frame_bytes(d, info);

    d->pool_mbufs = d->cfg.pool_mbufs != 0
                        ? d->cfg.pool_mbufs
                        : (uint32_t)d->rx_desc + d->tx_desc + POOL_CACHES + POOL_SLACK;
    d->data_room = room;
    for (uint32_t i = 0; i < d->queues; i++) {
        char name[RTE_MEMPOOL_NAMESIZE];
        uint32_t cache = mn_min_u32(POOL_CACHE, d->pool_mbufs * 2 / 3);

        if (d->q[i].pool != NULL) {
            continue; /* the port was away, and has its pools still */
        }
        (void)snprintf(name, sizeof(name), "mn_%u", number++);
        d->q[i].lcore = DPDK_LCORE_NONE;
        d->q[i].pool = rte_pktmbuf_pool_create(name, d->pool_mbufs, cache, DPDK_PRIV_BYTES,
                                               (uint16_t)(room + RTE_PKTMBUF_HEADROOM), d->socket);
        if (d->q[i].pool == NULL) {
            /* ENOBUFS: there is memory, but not in pieces that are large enough. */
            int rc = rte_errno == 0 || rte_errno == ENOBUFS ? ENOMEM : rte_errno;

            return mn_dpdk_fail(err, -rc, "%s: no memory for %u packets of %u bytes (queue %u): %s",
                                d->name, d->pool_mbufs, room, i, rte_strerror(rc));
        }
    }
    return 0;
}

/* ---- queues ---------------------------------------------------------------------------------- */

static uint16_t ring_size(uint16_t wanted, uint16_t drivers)
{
    if (wanted != 0) {
        return wanted;
    }
    return drivers != 0 ? drivers : DESC_DEFAULT;
}

/* What is asked for is had or refused; only a driver's alignment may add to it. */
static int check_desc(const struct mn_dpdk *d, const char *which, uint16_t wanted,
                      const struct rte_eth_desc_lim *lim, const struct dpdk_err *err)
{
    if (wanted != 0 && (wanted < lim->nb_min || (lim->nb_max != 0 && wanted > lim->nb_max))) {
        return mn_dpdk_fail(
            err, -EINVAL, "%s: %s takes %u to %u descriptors, in multiples of %u: %u", which,
            d->driver, lim->nb_min, lim->nb_max, mn_max_u32(lim->nb_align, 1), wanted);
    }
    return 0;
}

static int choose_desc(struct mn_dpdk *d, const struct rte_eth_dev_info *info,
                       const struct dpdk_err *err)
{
    int rc = check_desc(d, "rx_desc", d->cfg.rx_desc, &info->rx_desc_lim, err);

    if (rc == 0) {
        rc = check_desc(d, "tx_desc", d->cfg.tx_desc, &info->tx_desc_lim, err);
    }
    if (rc != 0) {
        return rc;
    }
    d->rx_desc = ring_size(d->cfg.rx_desc, info->default_rxportconf.ring_size);
    d->tx_desc = ring_size(d->cfg.tx_desc, info->default_txportconf.ring_size);
    rc = rte_eth_dev_adjust_nb_rx_tx_desc(d->port, &d->rx_desc, &d->tx_desc);
    return rc == 0 ? 0 : mn_dpdk_fail(err, rc, "%s: descriptors: %s", d->name, rte_strerror(-rc));
}

static int setup_queues(struct mn_dpdk *d, struct rte_eth_dev_info *info,
                        const struct rte_eth_conf *conf, const struct dpdk_err *err)
{
    for (uint16_t i = 0; i < d->queues; i++) {
        struct rte_eth_rxconf rx = info->default_rxconf;
        struct rte_eth_txconf tx = info->default_txconf;
        int rc;

        rx.offloads = conf->rxmode.offloads;
        tx.offloads = conf->txmode.offloads;
        rc = rte_eth_rx_queue_setup(d->port, i, d->rx_desc, (unsigned)d->socket, &rx, d->q[i].pool);
        if (rc != 0) {
            return mn_dpdk_fail(err, rc, "%s: receive queue %u of %u descriptors: %s", d->name, i,
                                d->rx_desc, rte_strerror(-rc));
        }
        rc = rte_eth_tx_queue_setup(d->port, i, d->tx_desc, (unsigned)d->socket, &tx);
        if (rc != 0) {
            return mn_dpdk_fail(err, rc, "%s: transmit queue %u of %u descriptors: %s", d->name, i,
                                d->tx_desc, rte_strerror(-rc));
        }
    }
    return 0;
}

static int start(struct mn_dpdk *d, struct rte_eth_dev_info *info, bool interrupts,
                 const struct dpdk_err *err)
{
    struct rte_eth_conf conf;
    int rc = configure(d, info, interrupts);

    if (rc != 0) {
        return mn_dpdk_fail(err, rc, "%s (%s) refuses %u queues at an MTU of %u: %s", d->name,
                            d->driver, d->queues, d->cfg.mtu, rte_strerror(-rc));
    }
    rc = choose_desc(d, info, err);
    if (rc == 0) {
        rc = make_pools(d, info, err);
    }
    if (rc == 0) {
        rc = rte_eth_dev_conf_get(d->port, &conf);
    }
    if (rc == 0) {
        rc = setup_queues(d, info, &conf, err);
    }
    if (rc != 0) {
        return rc;
    }
    rc = rte_eth_dev_start(d->port);
    if (rc != 0) {
        return mn_dpdk_fail(err, rc, "%s (%s) does not start: %s", d->name, d->driver,
                            rte_strerror(-rc));
    }
    d->started = true;
    return 0;
}

/* ---- the address ----------------------------------------------------------------------------- */

static int set_mac(struct mn_dpdk *d, const struct dpdk_err *err)
{
    static const uint8_t zero[6];
    struct rte_ether_addr addr, before;
    int rc = rte_eth_macaddr_get(d->port, &addr);

    if (rc != 0) {
        return mn_dpdk_fail(err, rc, "%s tells no address: %s", d->name, rte_strerror(-rc));
    }
    before = addr;
    memset(d->mac_before, 0, sizeof(zero));
    if (memcmp(d->cfg.mac, zero, sizeof(zero)) != 0 &&
        memcmp(d->cfg.mac, addr.addr_bytes, sizeof(zero)) != 0) {
        memcpy(addr.addr_bytes, d->cfg.mac, sizeof(zero));
        if (rte_eth_dev_default_mac_addr_set(d->port, &addr) != 0) {
            mn_dpdk_note_missing(d, "it takes no other address: it receives everything instead");
            rc = rte_eth_promiscuous_enable(d->port);
            d->promiscuous = rc == 0;
            if (rc != 0) {
                return mn_dpdk_fail(err, rc, "%s keeps its own address, and receives nothing else",
                                    d->name);
            }
        } else {
            memcpy(d->mac_before, before.addr_bytes, sizeof(zero));
        }
    }
    if (rte_is_zero_ether_addr(&addr)) { /* net_ring: nobody gave it one */
        rte_eth_random_addr(addr.addr_bytes);
        (void)rte_eth_dev_default_mac_addr_set(d->port, &addr);
    }
    memcpy(d->nic.mac, addr.addr_bytes, sizeof(d->nic.mac));
    return 0;
}

void mn_dpdk_restore_mac(struct mn_dpdk *d)
{
    struct rte_ether_addr addr;

    memcpy(addr.addr_bytes, d->mac_before, sizeof(addr.addr_bytes));
    /* Without an interface of the kernel's it is the device's own affair: it is reset. */
    if (d->if_index != 0 && !rte_is_zero_ether_addr(&addr)) {
        (void)rte_eth_dev_default_mac_addr_set(d->port, &addr);
    }
}

static void fill_caps(struct mn_dpdk *d)
{
    d->nic.caps = (struct mn_nic_caps){
        .mtu = d->cfg.mtu,
        .rx_max_frame = UINT16_MAX,
        .tx_max_frame = d->cfg.mtu + MN_ETH_HLEN,
        .queues = d->queues,
        .tx_csum_tcp = d->tx_marks,
        .tx_csum_udp = d->tx_marks,
        .rx_csum_trusted = d->rx_marks,
        .rss = d->rss.table_size != 0 ? &d->rss : NULL,
    };
}

void mn_dpdk_stop(struct mn_dpdk *d)
{
    mn_dpdk_sleep_detach(d);
    if (d->started) {
        (void)rte_eth_dev_stop(d->port);
        d->started = false;
    }
}

static void post(void *arg)
{
    (void)sem_post(arg);
}

/* Drivers handle what their devices and peers tell them in EAL's interrupt thread, and not all of
 * them (net_memif) expect to be closed meanwhile. An alarm goes off in that thread; the second one
 * in a round of its own, after all that was known when the first one was set. */
static void let_interrupts_settle(void)
{
    sem_t passed;

    if (sem_init(&passed, 0, 0) != 0) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (rte_eal_alarm_set(1, post, &passed) == 0) {
            while (sem_wait(&passed) != 0) {
            }
        }
    }
    (void)sem_destroy(&passed);
}

/* Some NICs have two ports on one function. */
static bool device_in_use(const struct mn_dpdk *d)
{
    for (const struct mn_dpdk *other = mn_dpdk_ports; other != NULL; other = other->next) {
        if (other != d && other->present && other->device == d->device) {
            return true;
        }
    }
    return false;
}

void mn_dpdk_plug_out(struct mn_dpdk *d)
{
    let_interrupts_settle();
    mn_dpdk_stop(d);
    (void)rte_eth_dev_close(d->port);
    if (d->device != NULL && !device_in_use(d)) {
        (void)rte_dev_remove(d->device);
    }
    d->device = NULL;
    mn_dpdk_free_left(d->port);
}

int mn_dpdk_setup(struct mn_dpdk *d, const struct dpdk_err *err)
{
    struct rte_eth_dev_info info;
    int rc = rte_eth_dev_info_get(d->port, &info);

    if (rc != 0) {
        return mn_dpdk_fail(err, rc, "port %u: %s", d->port, rte_strerror(-rc));
    }
    if (d->queues == 0) {
        d->queues = choose_queues(d, &info);
    }
    d->socket = rte_eth_dev_socket_id(d->port);
    d->device = info.device;
    d->if_index = info.if_index;
    /* Drivers that have no interrupts for their queues refuse at one point or the other. */
    rc = start(d, &info, true, err);
    if (rc != 0) {
        rc = start(d, &info, false, err);
    }
    if (rc == 0) {
        rc = set_mac(d, err);
    }
    if (rc != 0) {
        mn_dpdk_stop(d);
        return rc;
    }
    mn_dpdk_sleep_attach(d);
    /* What the engine was told stays, when the device comes back. */
    if (d->nic.caps.queues == 0) {
        mn_dpdk_read_rss(d);
        fill_caps(d);
    }
    return 0;
}
