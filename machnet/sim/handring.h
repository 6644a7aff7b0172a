/* SPDX-License-Identifier: MIT */
/* A ring of bytes that holds copies of frames: one thread produces, one consumes, none locks. A
 * record lies in one piece; what is left before the ring's end is skipped when the next one does
 * not fit. */
#ifndef MN_SIM_HANDRING_H
#define MN_SIM_HANDRING_H

#include <stdatomic.h>

#include "machnet/stack/core/base.h"

enum mn_handrec_kind {
    MN_HANDREC_RX = 0, /* to be received */
    MN_HANDREC_TX,     /* to be transmitted */
    MN_HANDREC_SKIP,
};

/* What stands in front of a frame's bytes. */
struct mn_handrec {
    uint32_t bytes; /* of the record, this header included */
    uint32_t len;   /* of the frame */
    uint16_t gso_size, l4_off, csum_off;
    uint16_t asked;
    uint8_t csum;
    uint8_t flags;
    uint8_t kind;
    uint8_t pad[13];
};
static_assert(sizeof(struct mn_handrec) == 32, "records are multiples of it");

struct mn_handring {
    /* The producer's: where the next record goes, what of it is published, what it last saw. */
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t tail;
    uint32_t tail_own, head_seen;
    /* The consumer's. */
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t head;
    uint32_t head_own, tail_seen;
    /* Fixed. */
    _Alignas(MN_CACHE_LINE) uint8_t *mem;
    uint32_t size; /* power of two */
};

static inline uint32_t mn_handrec_bytes(uint32_t len)
{
    return (uint32_t)((len + 2 * sizeof(struct mn_handrec) - 1) & ~(sizeof(struct mn_handrec) - 1));
}

static inline struct mn_handrec *mn_handring_at(const struct mn_handring *r, uint32_t pos)
{
    return (struct mn_handrec *)(void *)(r->mem + (pos & (r->size - 1)));
}

/* Room for a frame of `len` bytes behind the record that is returned, of which bytes and len are
 * filled in; NULL when there is none. spare: half of the ring is left to others. Not seen by the
 * consumer before mn_handring_publish. */
static inline struct mn_handrec *mn_handring_reserve(struct mn_handring *r, uint32_t len,
                                                     bool spare)
{
    uint32_t need = mn_handrec_bytes(len);
    uint32_t to_end = r->size - (r->tail_own & (r->size - 1));
    uint32_t total = need <= to_end ? need : to_end + need;
    uint32_t limit = spare ? r->size / 2 : r->size;
    struct mn_handrec *rec;

    if (r->tail_own - r->head_seen + total > limit) {
        r->head_seen = atomic_load_explicit(&r->head, memory_order_acquire);
        if (r->tail_own - r->head_seen + total > limit) {
            return NULL;
        }
    }
    if (need > to_end) {
        rec = mn_handring_at(r, r->tail_own);
        rec->bytes = to_end;
        rec->kind = MN_HANDREC_SKIP;
        r->tail_own += to_end;
    }
    rec = mn_handring_at(r, r->tail_own);
    rec->bytes = need;
    rec->len = len;
    r->tail_own += need;
    return rec;
}

static inline void mn_handring_publish(struct mn_handring *r)
{
    atomic_store_explicit(&r->tail, r->tail_own, memory_order_release);
}

/* The oldest record, or NULL. */
static inline struct mn_handrec *mn_handring_peek(struct mn_handring *r)
{
    for (;;) {
        struct mn_handrec *rec;

        if (r->head_own == r->tail_seen) {
            r->tail_seen = atomic_load_explicit(&r->tail, memory_order_acquire);
            if (r->head_own == r->tail_seen) {
                return NULL;
            }
        }
        rec = mn_handring_at(r, r->head_own);
        if (rec->kind != MN_HANDREC_SKIP) {
            return rec;
        }
        r->head_own += rec->bytes;
    }
}

/* The record that mn_handring_peek gave is done with. */
static inline void mn_handring_pop(struct mn_handring *r)
{
    r->head_own += mn_handring_at(r, r->head_own)->bytes;
    atomic_store_explicit(&r->head, r->head_own, memory_order_release);
}

/* For the consumer. */
static inline bool mn_handring_empty(const struct mn_handring *r)
{
    return atomic_load_explicit(&r->tail, memory_order_acquire) == r->head_own;
}

static inline uint8_t *mn_handrec_data(struct mn_handrec *rec)
{
    return (uint8_t *)(rec + 1);
}

#endif
