/* SPDX-License-Identifier: MIT */
/*
 * The pool of blocks for data that came ahead of their turn, or that their application has no room
 * for. All channels share it. A quarter is promised to them in equal parts, used or not, for
 * lanes_max of them; of the rest one may have BLOCKS_SHARE times what it leaves, so that those who
 * come later find something above their promise, too.
 */
#include "engine_int.h"

#define BLOCKS_SHARE 4u

/* What belongs to no channel yet has a count of its own. */
static uint32_t *count_of(struct mn_engine *e, uint32_t lane)
{
    return &e->lane_blocks[mn_min_u32(lane, e->cfg.lanes_max)];
}

void mn_blocks_open(struct mn_engine *e)
{
    e->blocks_each = e->block_pool.cap / 4 / (e->cfg.lanes_max + 1);
    e->blocks_promised = e->blocks_each * (e->cfg.lanes_max + 1);
}

uint32_t mn_block_get(struct mn_engine *e, uint32_t lane)
{
    uint32_t left = e->block_pool.cap - mn_pool_used(&e->block_pool) - e->blocks_promised;
    uint32_t *count = count_of(e, lane);
    bool promised = *count < e->blocks_each;
    uint32_t b;

    if (!promised && (left == 0 || *count - e->blocks_each > BLOCKS_SHARE * (uint64_t)left)) {
        return MN_NIL;
    }
    b = mn_pool_get(&e->block_pool);
    if (b != MN_NIL) {
        ++*count;
        e->blocks_promised -= promised;
        e->blocks[b].next = MN_NIL;
        e->blocks[b].lane = lane;
        e->blocks[b].off = e->blocks[b].len = 0;
    }
    return b;
}

void mn_block_put(struct mn_engine *e, uint32_t b)
{
    uint32_t *count = count_of(e, e->blocks[b].lane);

    MN_ASSERT(*count > 0);
    --*count;
    e->blocks_promised += *count < e->blocks_each;
    mn_pool_put(&e->block_pool, b);
}

void mn_blocks_put(struct mn_engine *e, uint32_t b)
{
    while (b != MN_NIL) {
        uint32_t next = e->blocks[b].next;

        mn_block_put(e, b);
        b = next;
    }
}
