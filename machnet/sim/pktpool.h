/* SPDX-License-Identifier: MIT */
/* A pool of packets with their buffers, for NIC drivers that keep frames in ordinary memory. One
 * thread at a time.
 *
 * A slot is one mn_pkt followed by its buffer. Slots are handed out last in, first out, so that the
 * buffer used next is the one the cache still holds; slots that were never used come by a
 * high-water index, so that the kernel never has to back them with memory. */
#ifndef MN_SIM_PKTPOOL_H
#define MN_SIM_PKTPOOL_H

#include "machnet/stack/core/nic.h"

/* Bytes in front of a frame: a virtio_net_hdr goes there without moving anything. With the Ethernet
 * header behind it the IP header lies at a multiple of 8, and the payload of a TCP segment without
 * options starts on a cache line of its own. */
#define MN_PKT_HEADROOM_BYTES 10u

/* The packet structure has a cache line to itself. */
#define MN_PKT_META_BYTES 64u
static_assert(sizeof(struct mn_pkt) <= MN_PKT_META_BYTES, "a slot starts with its packet");

#define MN_PKTPOOL_PKTS_MAX (1u << 20)
#define MN_PKTPOOL_ROOM_MAX (1u << 20)

/* What `drv` of a packet says while it is in use, and while it is in the pool. */
#define MN_PKT_LIVE UINT64_C(0x6c6976652d706b74)
#define MN_PKT_FREE UINT64_C(0x667265652d706b74)

#if defined(__SANITIZE_ADDRESS__)
#define MN_PKTPOOL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MN_PKTPOOL_ASAN 1
#endif
#endif
#ifdef MN_PKTPOOL_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

struct mn_pktpool {
    struct mn_pkt *free_list; /* slots that were used before, the last returned one first */
    uint8_t *mem;
    uint64_t mem_bytes;
    uint32_t slot_bytes;
    uint32_t room; /* bytes of each frame's buffer, without the headroom */
    uint32_t pkts;
    uint32_t high; /* slots below it have been handed out at least once */
    uint32_t live; /* packets that are out now */
};

/* room: bytes that each packet can hold. 0, -EINVAL (a number out of its range) or -ENOMEM. */
int mn_pktpool_init(struct mn_pktpool *pool, uint32_t pkts, uint32_t room);
/* Gives the memory back, whatever is still out. */
void mn_pktpool_fini(struct mn_pktpool *pool);

/* An empty packet, or NULL when all are out. */
static inline struct mn_pkt *mn_pktpool_get(struct mn_pktpool *pool)
{
    struct mn_pkt *pkt = pool->free_list;

    if (MN_LIKELY(pkt != NULL)) {
        ASAN_UNPOISON_MEMORY_REGION(pkt, MN_PKT_META_BYTES + MN_PKT_HEADROOM_BYTES + pool->room);
        pool->free_list = pkt->next;
    } else {
        if (pool->high == pool->pkts) {
            return NULL;
        }
        pkt = (struct mn_pkt *)(void *)(pool->mem + (uint64_t)pool->high * pool->slot_bytes);
        pool->high++;
        ASAN_UNPOISON_MEMORY_REGION(pkt, MN_PKT_META_BYTES + MN_PKT_HEADROOM_BYTES + pool->room);
    }
    pool->live++;
    *pkt = (struct mn_pkt){
        .data = (uint8_t *)pkt + MN_PKT_META_BYTES + MN_PKT_HEADROOM_BYTES,
        .room = pool->room,
        .drv = MN_PKT_LIVE,
    };
    return pkt;
}

/* Gives back one packet, not its further pieces. */
static inline void mn_pktpool_put(struct mn_pktpool *pool, struct mn_pkt *pkt)
{
    MN_ASSERT(pkt->drv == MN_PKT_LIVE);
    pkt->drv = MN_PKT_FREE;
    pkt->next = pool->free_list;
    pool->free_list = pkt;
    pool->live--;
    ASAN_POISON_MEMORY_REGION(pkt, pool->slot_bytes);
}

/* Gives back a frame with all its pieces. */
static inline void mn_pktpool_put_frame(struct mn_pktpool *pool, struct mn_pkt *pkt)
{
    do {
        struct mn_pkt *next = pkt->next;

        mn_pktpool_put(pool, pkt);
        pkt = next;
    } while (MN_UNLIKELY(pkt != NULL));
}

/* First byte that belongs to the packet's buffer: `data` may move between it and the end. */
static inline uint8_t *mn_pktpool_buf(struct mn_pkt *pkt)
{
    return (uint8_t *)pkt + MN_PKT_META_BYTES;
}

#endif
