/* SPDX-License-Identifier: MIT */
/* Which Ethernet address is behind which port: open addressing with linear probing, bounded. An
 * address that finds the table full is not learnt, and frames to it go everywhere, as in a switch
 * whose memory is full. The hash has no key, so that every run is the same. */
#include "simnet_int.h"

#include <stdlib.h>

#define SLOTS_MIN 16u
#define SLOTS_MAX (1u << 16)

struct macent {
    uint64_t mac; /* 0: free */
    uint32_t port;
};

static uint64_t mac_key(const uint8_t mac[6])
{
    return (uint64_t)mn_rd16be(mac) << 32 | mn_rd32be(mac + 2);
}

/* The place of an address, or the free one where it would go. */
static uint32_t probe(const struct mactab *t, uint64_t key)
{
    uint32_t i = (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & t->mask;

    while (t->slots[i].mac != 0 && t->slots[i].mac != key) {
        i = (i + 1) & t->mask;
    }
    return i;
}

/* Twice the table, or the first one; false when it may not grow or there is no memory. */
static bool grow(struct mactab *t)
{
    uint32_t slots = t->slots == NULL ? SLOTS_MIN : 2 * (t->mask + 1);
    struct mactab bigger = {.mask = slots - 1, .n = t->n};

    if (slots > SLOTS_MAX) {
        return false;
    }
    bigger.slots = calloc(slots, sizeof(*bigger.slots));
    if (bigger.slots == NULL) {
        return false;
    }
    for (uint32_t i = 0; t->slots != NULL && i <= t->mask; i++) {
        if (t->slots[i].mac != 0) {
            bigger.slots[probe(&bigger, t->slots[i].mac)] = t->slots[i];
        }
    }
    free(t->slots);
    *t = bigger;
    return true;
}

void mactab_learn(struct mactab *t, const uint8_t mac[6], uint32_t port)
{
    uint64_t key = mac_key(mac);
    uint32_t i;

    if (key == 0 || mn_eth_is_group(mac)) {
        return;
    }
    if (t->slots != NULL) {
        i = probe(t, key);
        if (MN_LIKELY(t->slots[i].mac == key)) {
            t->slots[i].port = port;
            return;
        }
    }
    /* Half full at most, so that a search ends soon. */
    if ((t->slots == NULL || 2 * (t->n + 1) > t->mask + 1) && !grow(t)) {
        return;
    }
    t->slots[probe(t, key)] = (struct macent){.mac = key, .port = port};
    t->n++;
}

uint32_t mactab_find(const struct mactab *t, const uint8_t mac[6])
{
    uint64_t key = mac_key(mac);
    uint32_t i;

    if (t->slots == NULL || key == 0) {
        return UINT32_MAX;
    }
    i = probe(t, key);
    return t->slots[i].mac == key ? t->slots[i].port : UINT32_MAX;
}

void mactab_fini(struct mactab *t)
{
    free(t->slots);
    *t = (struct mactab){0};
}
