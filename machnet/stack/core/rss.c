/* SPDX-License-Identifier: MIT */
#include "rss.h"

#include "wire/eth.h"
#include "wire/ipv4.h"

/* The 32 bits of the key that begin at bit `at`; behind its end the key is zero. */
static uint32_t window(const uint8_t *key, uint32_t at)
{
    uint64_t bits = 0;

    for (uint32_t i = 0; i < 5; i++) {
        bits = bits << 8 | key[at / 8 + i];
    }
    return (uint32_t)(bits >> (8 - at % 8));
}

static void fill_lut(struct mn_rss *r)
{
    for (uint32_t byte = 0; byte < MN_ARRAY_LEN(r->lut); byte++) {
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t sum = 0;

            for (uint32_t bit = 0; bit < 8; bit++) {
                if ((value & (0x80u >> bit)) != 0) {
                    sum ^= window(r->key, 8 * byte + bit);
                }
            }
            r->lut[byte][value] = sum;
        }
    }
}

int mn_rss_init(struct mn_rss *r, const uint8_t *key, uint32_t key_bytes, const uint16_t *table,
                uint32_t table_size, uint32_t ports)
{
    if (key_bytes < MN_RSS_KEY_MIN_BYTES || key_bytes > MN_RSS_KEY_MAX_BYTES || table_size == 0 ||
        table_size > MN_RSS_TABLE_MAX || (table_size & (table_size - 1)) != 0 ||
        (ports & ~(MN_RSS_TCP_PORTS | MN_RSS_UDP_PORTS)) != 0) {
        return -EINVAL;
    }
    memset(r, 0, sizeof(*r));
    memcpy(r->key, key, key_bytes);
    r->key_bytes = key_bytes;
    r->ports = ports;
    r->table_size = table_size;
    memcpy(r->table, table, table_size * sizeof(r->table[0]));
    fill_lut(r);
    return 0;
}

int mn_rss_init_default(struct mn_rss *r, uint32_t queues)
{
    static const uint8_t key[40] = {0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67,
                                    0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
                                    0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
                                    0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};
    uint16_t table[128];

    if (queues == 0 || queues > MN_ARRAY_LEN(table)) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < MN_ARRAY_LEN(table); i++) {
        table[i] = (uint16_t)(i % queues);
    }
    return mn_rss_init(r, key, sizeof(key), table, MN_ARRAY_LEN(table),
                       MN_RSS_TCP_PORTS | MN_RSS_UDP_PORTS);
}

static uint32_t hash_word(const struct mn_rss *r, uint32_t at, uint32_t word)
{
    return r->lut[at][word >> 24] ^ r->lut[at + 1][word >> 16 & 0xff] ^
           r->lut[at + 2][word >> 8 & 0xff] ^ r->lut[at + 3][word & 0xff];
}

uint32_t mn_rss_hash_addrs(const struct mn_rss *r, uint32_t src, uint32_t dst)
{
    return hash_word(r, 0, src) ^ hash_word(r, 4, dst);
}

uint32_t mn_rss_hash_ports(const struct mn_rss *r, uint32_t src, uint32_t dst, uint16_t sport,
                           uint16_t dport)
{
    return mn_rss_hash_addrs(r, src, dst) ^ hash_word(r, 8, (uint32_t)sport << 16 | dport);
}

/* The hash is linear: it is enough that each bit of the one end counts as the same bit of the other
 * end does. */
bool mn_rss_symmetric(const struct mn_rss *r)
{
    for (uint32_t bit = 1; bit < 256; bit <<= 1) {
        for (uint32_t i = 0; i < 4; i++) {
            if (r->lut[i][bit] != r->lut[4 + i][bit]) {
                return false;
            }
        }
        for (uint32_t i = 8; i < 10; i++) {
            if (r->lut[i][bit] != r->lut[2 + i][bit]) {
                return false;
            }
        }
    }
    return true;
}

/* As hardware does it: without a look at lengths or checksums that it does not need; a fragment has
 * no ports. */
uint32_t mn_rss_frame_queue(const struct mn_rss *r, const uint8_t *p, uint32_t len)
{
    const uint8_t *ip = p + MN_ETH_HLEN;
    uint32_t hdr_len, src, dst;
    bool ports;

    if (len < MN_ETH_HLEN + MN_IPV4_HLEN || mn_rd16be(p + 12) != MN_ETHERTYPE_IPV4 ||
        ip[0] >> 4 != 4) {
        return 0;
    }
    hdr_len = (ip[0] & 0xfu) * 4;
    src = mn_rd32be(ip + 12);
    dst = mn_rd32be(ip + 16);
    ports = (ip[9] == MN_IPPROTO_TCP && (r->ports & MN_RSS_TCP_PORTS) != 0) ||
            (ip[9] == MN_IPPROTO_UDP && (r->ports & MN_RSS_UDP_PORTS) != 0);
    if (!ports || (mn_rd16be(ip + 6) & 0x3fff) != 0 || len < MN_ETH_HLEN + hdr_len + 4) {
        return mn_rss_queue(r, mn_rss_hash_addrs(r, src, dst));
    }
    return mn_rss_queue(
        r, mn_rss_hash_ports(r, src, dst, mn_rd16be(ip + hdr_len), mn_rd16be(ip + hdr_len + 2)));
}

uint32_t mn_rss_least_share(const struct mn_rss *r, uint32_t queues)
{
    uint32_t least = r->table_size;

    for (uint32_t q = 0; q < queues; q++) {
        uint32_t share = 0;

        for (uint32_t i = 0; i < r->table_size; i++) {
            share += r->table[i] == q;
        }
        least = mn_min_u32(least, share);
    }
    return least;
}
