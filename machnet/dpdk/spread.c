/* SPDX-License-Identifier: MIT */
/* How the port spreads frames over its queues, as far as its driver tells. */
#include "dpdk_int.h"

#include <rte_version.h>

static bool is_toeplitz(const struct rte_eth_rss_conf *conf)
{
#if RTE_VERSION >= RTE_VERSION_NUM(23, 11, 0, 0)
    return conf->algorithm == RTE_ETH_HASH_FUNCTION_DEFAULT ||
           conf->algorithm == RTE_ETH_HASH_FUNCTION_TOEPLITZ;
#else
    (void)conf;
    return true;
#endif
}

static bool read_table(const struct mn_dpdk *d, uint32_t size, uint16_t *table)
{
    struct rte_eth_rss_reta_entry64 reta[MN_RSS_TABLE_MAX / RTE_ETH_RETA_GROUP_SIZE];

    if (size == 0 || size > MN_RSS_TABLE_MAX || (size & (size - 1)) != 0) {
        return false;
    }
    memset(reta, 0, sizeof(reta));
    for (uint32_t i = 0; i < size; i++) {
        reta[i / RTE_ETH_RETA_GROUP_SIZE].mask |= UINT64_C(1) << (i % RTE_ETH_RETA_GROUP_SIZE);
    }
    if (rte_eth_dev_rss_reta_query(d->port, reta, (uint16_t)size) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < size; i++) {
        table[i] = reta[i / RTE_ETH_RETA_GROUP_SIZE].reta[i % RTE_ETH_RETA_GROUP_SIZE];
        if (table[i] >= d->queues) {
            return false;
        }
    }
    return true;
}

void mn_dpdk_read_rss(struct mn_dpdk *d)
{
    uint8_t key[MN_RSS_KEY_MAX_BYTES] = {0};
    uint16_t table[MN_RSS_TABLE_MAX];
    struct rte_eth_rss_conf conf = {.rss_key = key, .rss_key_len = sizeof(key)};
    struct rte_eth_dev_info info;
    uint32_t ports = 0;

    d->rss.table_size = 0;
    if (!d->rss_on) {
        if (d->queues > 1) {
            mn_dpdk_note_missing(d, "how it spreads flows over its queues is not known");
        }
        return;
    }
    if (rte_eth_dev_info_get(d->port, &info) == 0 && info.hash_key_size <= sizeof(key) &&
        info.hash_key_size != 0) {
        conf.rss_key_len = info.hash_key_size;
    }
    if (rte_eth_dev_rss_hash_conf_get(d->port, &conf) == 0 && is_toeplitz(&conf) &&
        read_table(d, info.reta_size, table)) {
        ports |= (conf.rss_hf & RTE_ETH_RSS_NONFRAG_IPV4_TCP) != 0 ? MN_RSS_TCP_PORTS : 0;
        ports |= (conf.rss_hf & RTE_ETH_RSS_NONFRAG_IPV4_UDP) != 0 ? MN_RSS_UDP_PORTS : 0;
        if (mn_rss_init(&d->rss, key, conf.rss_key_len, table, info.reta_size, ports) == 0) {
            return;
        }
    }
    d->rss.table_size = 0;
    mn_dpdk_note_missing(d, "it does not tell its hash key and table: flows may be handed over");
}
