/* SPDX-License-Identifier: MIT */
#include "pktpool.h"

#include <sys/mman.h>

int mn_pktpool_init(struct mn_pktpool *pool, uint32_t pkts, uint32_t room)
{
    uint32_t slot = MN_PKT_META_BYTES + MN_PKT_HEADROOM_BYTES + room;
    uint64_t bytes;
    void *mem;

    if (pkts == 0 || pkts > MN_PKTPOOL_PKTS_MAX || room == 0 || room > MN_PKTPOOL_ROOM_MAX) {
        return -EINVAL;
    }
    slot = (slot + MN_CACHE_LINE - 1) / MN_CACHE_LINE * MN_CACHE_LINE;
    bytes = (uint64_t)slot * pkts;
    mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
               0);
    if (mem == MAP_FAILED) {
        return -ENOMEM;
    }
    /* A huge page would back two megabytes at the first touch. A kernel without them refuses, which
     * is as good. */
    (void)madvise(mem, bytes, MADV_NOHUGEPAGE);
    ASAN_POISON_MEMORY_REGION(mem, bytes);
    *pool = (struct mn_pktpool){
        .mem = mem,
        .mem_bytes = bytes,
        .slot_bytes = slot,
        .room = room,
        .pkts = pkts,
    };
    return 0;
}

void mn_pktpool_fini(struct mn_pktpool *pool)
{
    if (pool->mem == NULL) {
        return;
    }
    ASAN_UNPOISON_MEMORY_REGION(pool->mem, pool->mem_bytes);
    (void)munmap(pool->mem, pool->mem_bytes);
    *pool = (struct mn_pktpool){0};
}
