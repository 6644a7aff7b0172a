/* SPDX-License-Identifier: MIT */
/* How a NIC with several receive queues spreads frames over them: the Toeplitz hash of addresses
 * and ports under a key, then an indirection table (the scheme that Microsoft published as RSS). */
#ifndef MN_RSS_H
#define MN_RSS_H

#include "base.h"

#define MN_RSS_KEY_MIN_BYTES 16u /* for two addresses and two ports: 12 bytes and a window of 4 */
#define MN_RSS_KEY_MAX_BYTES 52u
#define MN_RSS_TABLE_MAX     512u

/* Ports are part of the hash for these; else the addresses alone. */
#define MN_RSS_TCP_PORTS 1u
#define MN_RSS_UDP_PORTS 2u

struct mn_rss {
    uint8_t key[MN_RSS_KEY_MAX_BYTES];
    uint32_t key_bytes;
    uint32_t ports; /* MN_RSS_... */
    uint32_t table_size;
    uint16_t table[MN_RSS_TABLE_MAX];
    uint32_t lut[12][256]; /* what each value of each input byte adds to the hash */
};

/* 0, or -EINVAL: key_bytes not within MN_RSS_KEY_MIN_BYTES to MN_RSS_KEY_MAX_BYTES, table_size no
 * power of two up to MN_RSS_TABLE_MAX, an unknown bit in ports. */
int mn_rss_init(struct mn_rss *r, const uint8_t *key, uint32_t key_bytes, const uint16_t *table,
                uint32_t table_size, uint32_t ports);
/* The key that driver documentation and the published vectors use, and a table in turn. */
int mn_rss_init_default(struct mn_rss *r, uint32_t queues);

/* The hash of a packet from src to dst, host byte order. */
uint32_t mn_rss_hash_ports(const struct mn_rss *r, uint32_t src, uint32_t dst, uint16_t sport,
                           uint16_t dport);
uint32_t mn_rss_hash_addrs(const struct mn_rss *r, uint32_t src, uint32_t dst);
/* Both directions of every flow have the same hash. */
bool mn_rss_symmetric(const struct mn_rss *r);

static inline uint32_t mn_rss_queue(const struct mn_rss *r, uint32_t hash)
{
    return r->table[hash & (r->table_size - 1)];
}

/* The queue for a frame of which `len` bytes lie at p; 0 for what is not IPv4. */
uint32_t mn_rss_frame_queue(const struct mn_rss *r, const uint8_t *p, uint32_t len);
/* The least share of the table that one of the first `queues` has: entries. */
uint32_t mn_rss_least_share(const struct mn_rss *r, uint32_t queues);

#endif
