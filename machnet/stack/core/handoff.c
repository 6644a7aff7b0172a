/* SPDX-License-Identifier: MIT */
#include "handoff.h"

enum { USE_OWNER = 21 };

#define ASKED_ALL UINT16_MAX

static_assert(MN_ENGINES_MAX == 16, "a frame's set of engines has 16 bits");

/* A share of the indirection table below this part of a fair one makes ports too hard to find. */
#define FAIR_PART 8u

int mn_engine_join(struct mn_engine *e, const struct mn_share *share)
{
    const struct mn_rss *rss = e->nic->caps.rss;

    if (share->n < 1 || share->n > MN_ENGINES_MAX || share->index >= share->n ||
        (share->n > 1 && (share->give == NULL || share->owners == NULL))) {
        return -EINVAL;
    }
    e->share = *share;
    /* Engines with one secret that were opened at one moment must not draw the same numbers. */
    e->rng = mn_siphash2(e->key, e->rng, 0x656e67696e65ULL + share->index);
    e->port_offset = (uint32_t)mn_random(e);
    e->rss_useful = rss != NULL && mn_rss_least_share(rss, share->n) >=
                                       mn_max_u32(rss->table_size / (FAIR_PART * share->n), 1);
    return 0;
}

uint32_t mn_flow_home(const struct mn_engine *e, const struct mn_tuple *flow)
{
    const struct mn_rss *rss = e->nic->caps.rss;
    uint32_t need = flow->proto == MN_IPPROTO_TCP ? MN_RSS_TCP_PORTS : MN_RSS_UDP_PORTS;

    if (e->rss_useful && (rss->ports & need) != 0) {
        uint32_t hash = mn_rss_hash_ports(rss, flow->raddr, flow->laddr, flow->rport, flow->lport);

        return mn_rss_queue(rss, hash) % e->share.n;
    }
    return flow->lport % e->share.n;
}

static uint64_t owner_hash(const struct mn_engine *e, const struct mn_tuple *flow)
{
    return mn_siphash_flow(e->key, flow->laddr, flow->lport, flow->raddr, flow->rport,
                           (uint32_t)flow->proto << 8 | USE_OWNER);
}

static _Atomic uint32_t *owner_slot(const struct mn_engine *e, uint64_t hash)
{
    return &e->share.owners[hash & (MN_OWNERS - 1)];
}

/* Never 0, which is an empty slot. */
static uint32_t owner_word(uint64_t hash, uint32_t engine)
{
    return (uint32_t)(hash >> 40) << 8 | (engine + 1);
}

void mn_owner_set(struct mn_engine *e, const struct mn_tuple *flow)
{
    if (MN_UNLIKELY(e->share.n > 1)) {
        uint64_t hash = owner_hash(e, flow);

        atomic_store_explicit(owner_slot(e, hash), owner_word(hash, e->share.index),
                              memory_order_relaxed);
    }
}

void mn_owner_clear(struct mn_engine *e, const struct mn_tuple *flow)
{
    if (MN_UNLIKELY(e->share.n > 1)) {
        uint64_t hash = owner_hash(e, flow);
        uint32_t mine = owner_word(hash, e->share.index);

        (void)atomic_compare_exchange_strong_explicit(owner_slot(e, hash), &mine, 0,
                                                      memory_order_relaxed, memory_order_relaxed);
    }
}

/* Who seems to have the flow; MN_NIL: nobody. */
static uint32_t owner_find(const struct mn_engine *e, const struct mn_tuple *flow)
{
    uint64_t hash = owner_hash(e, flow);
    uint32_t word = atomic_load_explicit(owner_slot(e, hash), memory_order_relaxed);
    uint32_t engine = (word & 0xff) - 1;

    return engine < e->share.n && word == owner_word(hash, engine) ? engine : MN_NIL;
}

/* The engines that have looked at the frame. */
static uint32_t asked_before(const struct mn_engine *e)
{
    const struct mn_pkt *pkt = e->rx_pkt;

    return (pkt->flags & MN_PKT_HANDED) != 0 ? (uint32_t)pkt->asked : 0;
}

static bool was_asked(uint32_t asked, uint32_t engine)
{
    return engine == MN_NIL || (asked >> engine & 1) != 0;
}

/* The way to a full ring loses the frame, as a NIC's full queue would. */
static void give(struct mn_engine *e, uint32_t to, uint32_t asked, bool spare)
{
    const struct mn_handed frame = {
        .pkt = e->rx_pkt, .asked = (uint16_t)asked, .looped = e->rx_looped, .spare = spare};

    if (e->share.give(e->share.ctx, to, &frame)) {
        e->stats.handoff_sent++;
    } else {
        e->stats.drop_handoff_full++;
    }
}

bool mn_handoff(struct mn_engine *e, const struct mn_tuple *flow)
{
    uint32_t asked, to;

    if (MN_LIKELY(e->share.n <= 1)) {
        return false;
    }
    asked = asked_before(e) | 1u << e->share.index;
    to = owner_find(e, flow);
    if (was_asked(asked, to)) {
        to = mn_flow_home(e, flow);
    }
    for (uint32_t i = 0; was_asked(asked, to); i++) {
        if (i == e->share.n) {
            return false;
        }
        to = (e->share.index + 1 + i) % e->share.n;
    }
    give(e, to, asked, false);
    return true;
}

bool mn_handoff_opening(struct mn_engine *e, const struct mn_tuple *flow)
{
    uint32_t to;

    /* Only from the wire, so that hints which are wrong can't send it to and fro. */
    if (MN_LIKELY(e->share.n <= 1) || (e->rx_pkt->flags & MN_PKT_HANDED) != 0) {
        return false;
    }
    to = owner_find(e, flow);
    if (was_asked(1u << e->share.index, to)) {
        return false;
    }
    /* Should that engine not have it any more, we are to be asked again: our bit stays clear. */
    give(e, to, 0, false);
    return true;
}

bool mn_handoff_is_copy(const struct mn_engine *e)
{
    return e->share.n > 1 && asked_before(e) == ASKED_ALL;
}

void mn_handoff_all(struct mn_engine *e)
{
    if (e->share.n <= 1 || mn_handoff_is_copy(e)) {
        return;
    }
    for (uint32_t i = 1; i < e->share.n; i++) {
        give(e, (e->share.index + i) % e->share.n, ASKED_ALL, true);
    }
}
