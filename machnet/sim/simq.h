/* SPDX-License-Identifier: MIT */
/* The queue of events: a 4-ary heap ordered by time and then by the order of queueing.
 *
 * Two sorts of events: those embedded in what they belong to (a host's timer, the first frame of a
 * direction), which can be moved and taken out and have a place reserved for them, and single
 * frames, which are only ever taken from the top. In the steady state nothing is allocated. */
#ifndef MN_SIM_SIMQ_H
#define MN_SIM_SIMQ_H

#include "machnet/stack/core/base.h"

enum mn_simq_kind {
    MN_SIMQ_FRAME = 0, /* what: a packet, arg: its direction */
    MN_SIMQ_DIR,       /* embedded; what: a direction with frames in order */
    MN_SIMQ_HOST,      /* embedded; what: a node whose engine wants to be polled */
    MN_SIMQ_CALL,      /* embedded; what: a call on schedule */
};

/* Embedded in its owner; zeroed: not queued. */
struct mn_simev {
    uint32_t at; /* index into the heap + 1 */
    uint32_t kind;
    void *what;
};

struct mn_simq_entry {
    uint64_t t_ns, seq;
    void *what; /* of an embedded event: the struct mn_simev */
    uint32_t kind;
    uint32_t arg;
};

struct mn_simq {
    struct mn_simq_entry *heap;
    uint32_t n, cap;
    uint32_t embedded; /* places reserved */
    uint32_t frames;   /* single ones in the heap */
    uint64_t seq;      /* of the next event */
};

/* Reserves the place of one embedded event: 0 or -ENOMEM. */
int mn_simq_reserve(struct mn_simq *q);
void mn_simq_unreserve(struct mn_simq *q);
void mn_simq_fini(struct mn_simq *q);
/* Queues an embedded event, or moves it to another time. */
void mn_simq_set(struct mn_simq *q, struct mn_simev *ev, uint64_t t_ns, uint64_t seq);
void mn_simq_remove(struct mn_simq *q, struct mn_simev *ev);
/* A single frame; false: no memory. */
bool mn_simq_push(struct mn_simq *q, uint64_t t_ns, uint64_t seq, void *what, uint32_t arg);
/* Takes the first event out; there must be one. */
struct mn_simq_entry mn_simq_pop(struct mn_simq *q);

/* When the first event is due; UINT64_MAX: none. */
static inline uint64_t mn_simq_next(const struct mn_simq *q)
{
    return q->n > 0 ? q->heap[0].t_ns : UINT64_MAX;
}

static inline bool mn_simev_queued(const struct mn_simev *ev)
{
    return ev->at != 0;
}

#endif
