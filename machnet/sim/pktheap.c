/* SPDX-License-Identifier: MIT */
#include "pktheap.h"

#include <stdlib.h>

int mn_pktheap_init(struct mn_pktheap *h, uint32_t cap)
{
    *h = (struct mn_pktheap){.cap = cap};
    h->entries = calloc(cap, sizeof(*h->entries));
    return h->entries != NULL ? 0 : -ENOMEM;
}

void mn_pktheap_fini(struct mn_pktheap *h)
{
    free(h->entries);
    h->entries = NULL;
    h->n = 0;
}

static bool before(const struct mn_pktheap_entry *a, const struct mn_pktheap_entry *b)
{
    return a->t_ns < b->t_ns || (a->t_ns == b->t_ns && a->seq < b->seq);
}

void mn_pktheap_push(struct mn_pktheap *h, uint64_t t_ns, struct mn_pkt *pkt)
{
    struct mn_pktheap_entry entry = {.t_ns = t_ns, .seq = h->seq++, .pkt = pkt};
    uint32_t i = h->n;

    MN_ASSERT(h->n < h->cap);
    h->n++;
    for (; i > 0 && before(&entry, &h->entries[(i - 1) / 2]); i = (i - 1) / 2) {
        h->entries[i] = h->entries[(i - 1) / 2];
    }
    h->entries[i] = entry;
}

struct mn_pkt *mn_pktheap_pop(struct mn_pktheap *h)
{
    struct mn_pkt *first = mn_pktheap_top(h);
    struct mn_pktheap_entry last = h->entries[--h->n];
    uint32_t i = 0;

    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child + 1 < h->n && before(&h->entries[child + 1], &h->entries[child])) {
            child++;
        }
        if (child >= h->n || !before(&h->entries[child], &last)) {
            break;
        }
        h->entries[i] = h->entries[child];
        i = child;
    }
    h->entries[i] = last;
    return first;
}
