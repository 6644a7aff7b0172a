/* SPDX-License-Identifier: MIT */
/* Two ports joined by rings in memory: DPDK's counterpart of a pair of wires. */
#include "dpdk_int.h"

#if MN_DPDK_HAVE_RING

#include <stdio.h>
#include <stdlib.h>

#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_mempool.h>
#include <rte_ring.h>

static struct dpdk_pair *pairs;

static int make_rings(struct rte_ring **rings, uint16_t queues, uint32_t slots, uint32_t number,
                      char end)
{
    for (uint32_t i = 0; i < queues; i++) {
        char name[RTE_RING_NAMESIZE];

        (void)snprintf(name, sizeof(name), "mn_%c%u_%u", end, number, i);
        rings[i] = rte_ring_create(name, slots, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
        if (rings[i] == NULL) {
            return rte_errno != 0 ? -rte_errno : -ENOMEM;
        }
    }
    return 0;
}

static void free_pair(struct dpdk_pair *pair)
{
    for (uint32_t end = 0; end < 2; end++) {
        for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
            void *m;

            while (pair->rings[end][i] != NULL && rte_ring_dequeue(pair->rings[end][i], &m) == 0) {
                rte_pktmbuf_free(m);
            }
            rte_ring_free(pair->rings[end][i]);
        }
    }
    for (uint32_t i = 0; i < pair->n_pools; i++) {
        rte_mempool_free(pair->pools[i]);
    }
    free(pair);
}

static int make_ports(struct dpdk_pair *pair, uint16_t queues, uint32_t number)
{
    for (uint32_t end = 0; end < 2; end++) {
        char name[RTE_RING_NAMESIZE];
        int port;

        (void)snprintf(name, sizeof(name), "mn_pair%u%c", number, end == 0 ? 'a' : 'b');
        port = rte_eth_from_rings(name, pair->rings[end], queues, pair->rings[1 - end], queues, 0);
        if (port < 0) {
            return rte_errno != 0 ? -rte_errno : -EIO;
        }
        pair->ports[end] = (uint16_t)port;
        pair->refs++;
    }
    return 0;
}

static int ring_pair(uint16_t queues, uint32_t slots, uint16_t ports[2], const struct dpdk_err *err)
{
    static uint32_t number;
    struct dpdk_pair *pair = calloc(1, sizeof(*pair));
    int rc = pair == NULL ? -ENOMEM : 0;

    for (uint32_t end = 0; end < 2 && rc == 0; end++) {
        rc = make_rings(pair->rings[end], queues, slots, number, end == 0 ? 'a' : 'b');
    }
    if (rc == 0) {
        rc = make_ports(pair, queues, number);
    }
    number++;
    if (rc != 0) {
        while (pair != NULL && pair->refs > 0) {
            (void)mn_dpdk_unprobe_locked(pair->ports[--pair->refs]);
        }
        if (pair != NULL) {
            free_pair(pair);
        }
        return mn_dpdk_fail(err, rc, "a pair of rings of %u slots: %s", slots, rte_strerror(-rc));
    }
    pair->next = pairs;
    pairs = pair;
    memcpy(ports, pair->ports, sizeof(pair->ports));
    return 0;
}

struct dpdk_pair *mn_dpdk_pair_of(uint16_t port)
{
    struct dpdk_pair *pair = pairs;

    while (pair != NULL && pair->ports[0] != port && pair->ports[1] != port) {
        pair = pair->next;
    }
    return pair;
}

void mn_dpdk_pair_keep(struct dpdk_pair *pair, struct mn_dpdk *d)
{
    for (uint32_t i = 0; i < DPDK_QUEUES_MAX; i++) {
        if (d->q[i].pool != NULL) {
            pair->pools[pair->n_pools++] = d->q[i].pool;
            d->q[i].pool = NULL;
        }
    }
}

void mn_dpdk_pair_left(struct dpdk_pair *pair, uint16_t port)
{
    for (uint32_t end = 0; end < 2; end++) {
        if (pair->ports[end] == port) {
            pair->ports[end] = UINT16_MAX; /* its number may be another's from now on */
        }
    }
    if (--pair->refs > 0) {
        return;
    }
    for (struct dpdk_pair **at = &pairs; *at != NULL; at = &(*at)->next) {
        if (*at == pair) {
            *at = pair->next;
            break;
        }
    }
    free_pair(pair);
}

#else

static int ring_pair(uint16_t queues, uint32_t slots, uint16_t ports[2], const struct dpdk_err *err)
{
    (void)queues;
    (void)slots;
    (void)ports;
    return mn_dpdk_fail(err, -ENOTSUP, "machnet was built without DPDK's net_ring");
}

struct dpdk_pair *mn_dpdk_pair_of(uint16_t port)
{
    (void)port;
    return NULL;
}

void mn_dpdk_pair_keep(struct dpdk_pair *pair, struct mn_dpdk *d)
{
    (void)pair;
    (void)d;
}

void mn_dpdk_pair_left(struct dpdk_pair *pair, uint16_t port)
{
    (void)pair;
    (void)port;
}

#endif

int mn_dpdk_ring_pair(uint16_t queues, uint32_t slots, uint16_t ports[2], char *err,
                      size_t err_bytes)
{
    struct dpdk_err to = {.text = err, .size = err_bytes};
    int rc;

    if (queues < 1 || queues > DPDK_QUEUES_MAX) {
        return mn_dpdk_fail(&to, -EINVAL, "queues: %u is not within 1 to %u", queues,
                            DPDK_QUEUES_MAX);
    }
    if (mn_dpdk_forked()) {
        return mn_dpdk_not_ours(err, err_bytes);
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    rc = mn_dpdk_started() ? ring_pair(queues, slots, ports, &to)
                           : mn_dpdk_fail(&to, -EPERM, "EAL has not been started");
    pthread_mutex_unlock(&mn_dpdk_lock);
    return rc;
}
