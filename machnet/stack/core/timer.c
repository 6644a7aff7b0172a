/* SPDX-License-Identifier: MIT */
#include "timer.h"

static uint64_t tick_of_ceil(uint64_t ns)
{
    return (ns >> MN_TIMER_TICK_SHIFT) + ((ns & ((1u << MN_TIMER_TICK_SHIFT) - 1)) != 0);
}

void mn_wheel_init(struct mn_wheel *w, uint64_t now_ns)
{
    memset(w, 0, sizeof(*w));
    w->now_tick = now_ns >> MN_TIMER_TICK_SHIFT;
}

/* The level is that of the highest bit in which due time and present differ: the slot index is then
 * above the present one of that level, so a slot holds timers of one turn only. */
static void wheel_place(struct mn_wheel *w, struct mn_timer *t)
{
    uint64_t diff = t->tick ^ w->now_tick;
    uint32_t level = 0;

    if (diff != 0) {
        level = (63u - (uint32_t)__builtin_clzll(diff)) / MN_TIMER_SLOT_BITS;
        if (level >= MN_TIMER_LEVELS) {
            level = MN_TIMER_LEVELS - 1;
        }
    }
    uint32_t slot = (uint32_t)(t->tick >> (level * MN_TIMER_SLOT_BITS)) & (MN_TIMER_SLOTS - 1);
    uint32_t at = level * MN_TIMER_SLOTS + slot;

    t->slot = (uint16_t)at;
    t->next = w->slots[at];
    t->pprev = &w->slots[at];
    if (t->next != NULL) {
        t->next->pprev = &t->next;
    }
    w->slots[at] = t;
    w->occupied[level] |= UINT64_C(1) << slot;
}

static void wheel_unlink(struct mn_wheel *w, struct mn_timer *t)
{
    uint32_t at = t->slot;

    *t->pprev = t->next;
    if (t->next != NULL) {
        t->next->pprev = t->pprev;
    }
    t->next = NULL;
    t->pprev = NULL;
    if (w->slots[at] == NULL) {
        w->occupied[at / MN_TIMER_SLOTS] &= ~(UINT64_C(1) << (at % MN_TIMER_SLOTS));
    }
}

void mn_timer_arm(struct mn_wheel *w, struct mn_timer *t, uint64_t at_ns)
{
    uint64_t tick = mn_max_u64(tick_of_ceil(at_ns), w->now_tick + 1);

    /* Beyond the wheel's reach counts as its far end; the owner looks at its deadline again when it
     * fires. */
    uint64_t reach = UINT64_C(1) << (MN_TIMER_LEVELS * MN_TIMER_SLOT_BITS);
    if (tick - w->now_tick >= reach) {
        tick = w->now_tick + reach - 1;
    }
    if (t->pprev != NULL) {
        if (t->tick == tick) {
            return;
        }
        wheel_unlink(w, t);
    } else {
        w->armed++;
    }
    t->tick = tick;
    wheel_place(w, t);
}

void mn_timer_disarm(struct mn_wheel *w, struct mn_timer *t)
{
    if (t->pprev == NULL) {
        return;
    }
    wheel_unlink(w, t);
    w->armed--;
}

/* First occupied slot at or after `from` in a level, or MN_TIMER_SLOTS. */
static uint32_t next_slot(uint64_t occupied, uint32_t from)
{
    if (from >= MN_TIMER_SLOTS) {
        return MN_TIMER_SLOTS;
    }
    uint64_t rest = occupied >> from;
    return rest == 0 ? MN_TIMER_SLOTS : from + (uint32_t)__builtin_ctzll(rest);
}

/*
 * The first event after now_tick: the tick of a level-0 slot, or the start of a higher slot whose
 * timers must move down. Lower levels always come first, since a higher slot starts behind the
 * lower level's whole turn. *level_out says which.
 */
static uint64_t wheel_next(const struct mn_wheel *w, uint32_t *level_out, uint32_t *slot_out)
{
    for (uint32_t level = 0; level < MN_TIMER_LEVELS; level++) {
        uint32_t shift = level * MN_TIMER_SLOT_BITS;
        uint32_t here = (uint32_t)(w->now_tick >> shift) & (MN_TIMER_SLOTS - 1);
        uint32_t slot = next_slot(w->occupied[level], here + 1);

        if (slot == MN_TIMER_SLOTS && level == MN_TIMER_LEVELS - 1) {
            /* The top level is a circle: what is behind the present slot comes in the next turn. */
            slot = next_slot(w->occupied[level], 0);
            if (slot > here) {
                slot = MN_TIMER_SLOTS;
            } else {
                *level_out = level;
                *slot_out = slot;
                uint64_t turn = (w->now_tick >> (shift + MN_TIMER_SLOT_BITS)) + 1;
                return ((turn << MN_TIMER_SLOT_BITS) | slot) << shift;
            }
        }
        if (slot < MN_TIMER_SLOTS) {
            *level_out = level;
            *slot_out = slot;
            uint64_t base = w->now_tick >> (shift + MN_TIMER_SLOT_BITS);
            return ((base << MN_TIMER_SLOT_BITS) | slot) << shift;
        }
    }
    return UINT64_MAX;
}

struct mn_timer *mn_wheel_expire(struct mn_wheel *w, uint64_t now_ns)
{
    uint64_t to_tick = now_ns >> MN_TIMER_TICK_SHIFT;

    for (;;) {
        uint32_t here = (uint32_t)w->now_tick & (MN_TIMER_SLOTS - 1);
        struct mn_timer *t = w->slots[here];
        uint32_t level, slot;

        if (t != NULL) {
            wheel_unlink(w, t);
            w->armed--;
            return t;
        }
        if (w->now_tick >= to_tick) {
            return NULL;
        }
        uint64_t at = w->armed == 0 ? UINT64_MAX : wheel_next(w, &level, &slot);
        if (at > to_tick) {
            w->now_tick = to_tick;
            return NULL;
        }
        w->now_tick = at;
        if (level > 0) {
            struct mn_timer *list = w->slots[level * MN_TIMER_SLOTS + slot];

            w->slots[level * MN_TIMER_SLOTS + slot] = NULL;
            w->occupied[level] &= ~(UINT64_C(1) << slot);
            while (list != NULL) {
                struct mn_timer *next = list->next;
                wheel_place(w, list);
                list = next;
            }
        }
    }
}

uint64_t mn_wheel_deadline(const struct mn_wheel *w)
{
    uint32_t level, slot;

    if (w->armed == 0) {
        return UINT64_MAX;
    }
    if (w->slots[(uint32_t)w->now_tick & (MN_TIMER_SLOTS - 1)] != NULL) {
        return w->now_tick << MN_TIMER_TICK_SHIFT;
    }
    return wheel_next(w, &level, &slot) << MN_TIMER_TICK_SHIFT;
}
