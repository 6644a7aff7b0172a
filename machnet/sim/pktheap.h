/* SPDX-License-Identifier: MIT */
/* Packets that wait for a time: a binary heap by (time, order of arrival), with room for all from
 * the start. */
#ifndef MN_SIM_PKTHEAP_H
#define MN_SIM_PKTHEAP_H

#include "machnet/stack/core/engine.h"
#include "machnet/stack/core/nic.h"

struct mn_pktheap_entry {
    uint64_t t_ns;
    uint64_t seq;
    struct mn_pkt *pkt;
};

struct mn_pktheap {
    struct mn_pktheap_entry *entries;
    uint64_t seq;
    uint32_t n, cap;
};

/* 0 or -ENOMEM. */
int mn_pktheap_init(struct mn_pktheap *h, uint32_t cap);
void mn_pktheap_fini(struct mn_pktheap *h);
/* There must be room. */
void mn_pktheap_push(struct mn_pktheap *h, uint64_t t_ns, struct mn_pkt *pkt);
/* The earliest one; of several at one time the one that came first. There must be one. */
struct mn_pkt *mn_pktheap_pop(struct mn_pktheap *h);

/* Its time; MN_NEVER when there is none. */
static inline uint64_t mn_pktheap_next(const struct mn_pktheap *h)
{
    return h->n > 0 ? h->entries[0].t_ns : MN_NEVER;
}

static inline struct mn_pkt *mn_pktheap_top(const struct mn_pktheap *h)
{
    MN_ASSERT(h->n > 0);
    return h->entries[0].pkt;
}

#endif
