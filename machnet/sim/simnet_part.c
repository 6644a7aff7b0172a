/* SPDX-License-Identifier: MIT */
/* Pairs of nodes that nothing passes between, however they are connected. */
#include "simnet_int.h"

#include <stdlib.h>

/* Where the pair is, or where it would be. */
static uint32_t place(const struct mn_simnet *net, uint32_t from, uint32_t to)
{
    uint64_t key = (uint64_t)from << 32 | to;
    uint32_t low = 0, high = net->n_parts;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        const struct simpart *p = &net->parts[mid];

        if (((uint64_t)p->from << 32 | p->to) < key) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

static bool is_at(const struct mn_simnet *net, uint32_t i, uint32_t from, uint32_t to)
{
    return i < net->n_parts && net->parts[i].from == from && net->parts[i].to == to;
}

bool sim_parted(const struct mn_simnet *net, uint32_t from, uint32_t to)
{
    return is_at(net, place(net, from, to), from, to);
}

static int add(struct mn_simnet *net, uint32_t at, uint32_t from, uint32_t to)
{
    if (net->n_parts == net->parts_cap) {
        uint32_t cap = net->parts_cap == 0 ? 16 : 2 * net->parts_cap;
        struct simpart *parts = realloc(net->parts, cap * sizeof(*parts));

        if (parts == NULL) {
            return -ENOMEM;
        }
        net->parts = parts;
        net->parts_cap = cap;
    }
    memmove(&net->parts[at + 1], &net->parts[at], (net->n_parts - at) * sizeof(*net->parts));
    net->parts[at] = (struct simpart){.from = from, .to = to, .count = 1};
    net->n_parts++;
    return 0;
}

int mn_simnet_part(struct mn_simnet *net, uint32_t from, uint32_t to, bool on)
{
    const struct simnode *a = sim_node(net, from), *b = sim_node(net, to);
    uint32_t at = place(net, from, to);

    if (a == NULL || b == NULL || a == b || a->kind == NODE_SWITCH || b->kind == NODE_SWITCH) {
        return -EINVAL;
    }
    if (!is_at(net, at, from, to)) {
        return on ? add(net, at, from, to) : -EINVAL;
    }
    net->parts[at].count += on ? 1u : UINT32_MAX;
    if (net->parts[at].count == 0) {
        net->n_parts--;
        memmove(&net->parts[at], &net->parts[at + 1], (net->n_parts - at) * sizeof(*net->parts));
    }
    return 0;
}
