/* SPDX-License-Identifier: MIT */
#include "simq.h"

#include <stdlib.h>

#define CAP_MIN 64u
#define CAP_MAX (1u << 30)

static bool grow(struct mn_simq *q, uint64_t need)
{
    uint64_t cap = q->cap == 0 ? CAP_MIN : q->cap;
    struct mn_simq_entry *heap;

    while (cap < need) {
        cap *= 2;
    }
    if (cap > CAP_MAX) {
        return false;
    }
    heap = realloc(q->heap, cap * sizeof(*heap));
    if (heap == NULL) {
        return false;
    }
    q->heap = heap;
    q->cap = (uint32_t)cap;
    return true;
}

int mn_simq_reserve(struct mn_simq *q)
{
    uint64_t need = (uint64_t)q->embedded + q->frames + 1;

    if (need > q->cap && !grow(q, need)) {
        return -ENOMEM;
    }
    q->embedded++;
    return 0;
}

void mn_simq_unreserve(struct mn_simq *q)
{
    MN_ASSERT(q->embedded > 0);
    q->embedded--;
}

void mn_simq_fini(struct mn_simq *q)
{
    free(q->heap);
    *q = (struct mn_simq){0};
}

static inline bool before(const struct mn_simq_entry *a, const struct mn_simq_entry *b)
{
    return a->t_ns < b->t_ns || (a->t_ns == b->t_ns && a->seq < b->seq);
}

static inline void put(struct mn_simq *q, uint32_t i, const struct mn_simq_entry *e)
{
    q->heap[i] = *e;
    if (e->kind != MN_SIMQ_FRAME) {
        ((struct mn_simev *)e->what)->at = i + 1;
    }
}

/* The entry e goes to place i or to where it belongs above it. */
static void sift_up(struct mn_simq *q, uint32_t i, struct mn_simq_entry e)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;

        if (!before(&e, &q->heap[parent])) {
            break;
        }
        put(q, i, &q->heap[parent]);
        i = parent;
    }
    put(q, i, &e);
}

/* The same below it. */
static void sift_down(struct mn_simq *q, uint32_t i, struct mn_simq_entry e)
{
    for (;;) {
        uint32_t child = 4 * i + 1, best = child;
        uint32_t end = mn_min_u32(child + 4, q->n);

        if (child >= q->n) {
            break;
        }
        for (uint32_t c = child + 1; c < end; c++) {
            if (before(&q->heap[c], &q->heap[best])) {
                best = c;
            }
        }
        if (!before(&q->heap[best], &e)) {
            break;
        }
        put(q, i, &q->heap[best]);
        i = best;
    }
    put(q, i, &e);
}

static void place(struct mn_simq *q, uint32_t i, struct mn_simq_entry e)
{
    if (i > 0 && before(&e, &q->heap[(i - 1) / 4])) {
        sift_up(q, i, e);
    } else {
        sift_down(q, i, e);
    }
}

void mn_simq_set(struct mn_simq *q, struct mn_simev *ev, uint64_t t_ns, uint64_t seq)
{
    struct mn_simq_entry e = {.t_ns = t_ns, .seq = seq, .what = ev, .kind = ev->kind};

    if (ev->at != 0) {
        place(q, ev->at - 1, e);
    } else {
        MN_ASSERT(q->n < q->cap);
        q->n++;
        sift_up(q, q->n - 1, e);
    }
}

static void take_out(struct mn_simq *q, uint32_t i)
{
    q->n--;
    if (i < q->n) {
        place(q, i, q->heap[q->n]);
    }
}

void mn_simq_remove(struct mn_simq *q, struct mn_simev *ev)
{
    if (ev->at != 0) {
        uint32_t i = ev->at - 1;

        ev->at = 0;
        take_out(q, i);
    }
}

bool mn_simq_push(struct mn_simq *q, uint64_t t_ns, uint64_t seq, void *what, uint32_t arg)
{
    uint64_t need = (uint64_t)q->embedded + q->frames + 1;
    struct mn_simq_entry e = {
        .t_ns = t_ns, .seq = seq, .what = what, .kind = MN_SIMQ_FRAME, .arg = arg};

    if (need > q->cap && !grow(q, need)) {
        return false;
    }
    q->frames++;
    q->n++;
    sift_up(q, q->n - 1, e);
    return true;
}

struct mn_simq_entry mn_simq_pop(struct mn_simq *q)
{
    struct mn_simq_entry e;

    MN_ASSERT(q->n > 0);
    e = q->heap[0];
    if (e.kind == MN_SIMQ_FRAME) {
        q->frames--;
    } else {
        ((struct mn_simev *)e.what)->at = 0;
    }
    take_out(q, 0);
    return e;
}
