/* SPDX-License-Identifier: MIT */
/*
 * A hierarchical timer wheel: arm, disarm and expiry are O(1) whatever the number of timers. Ticks
 * are 1024 ns; a timer never fires early and at most one tick late. Eight levels of 64 slots cover
 * 2^48 ticks (nine years). A timer sits in the level where its distance fits and moves down as time
 * comes near, so it is touched at most eight times.
 */
#ifndef MN_TIMER_H
#define MN_TIMER_H

#include "base.h"

#define MN_TIMER_TICK_SHIFT 10
#define MN_TIMER_LEVELS     8
#define MN_TIMER_SLOT_BITS  6
#define MN_TIMER_SLOTS      (1u << MN_TIMER_SLOT_BITS)

/* Embedded in what it times; zeroed is disarmed. */
struct mn_timer {
    struct mn_timer *next;
    struct mn_timer **pprev; /* what points at this one; NULL when disarmed */
    uint64_t tick;           /* when it is due */
    uint16_t slot;           /* level * MN_TIMER_SLOTS + slot */
    uint8_t kind;            /* for the owner: which kind of object it is embedded in */
    uint8_t pad[5];
};

struct mn_wheel {
    uint64_t now_tick; /* every timer due at or before it has fired */
    uint32_t armed;
    uint64_t occupied[MN_TIMER_LEVELS]; /* bit per slot that is not empty */
    struct mn_timer *slots[MN_TIMER_LEVELS * MN_TIMER_SLOTS];
};

void mn_wheel_init(struct mn_wheel *w, uint64_t now_ns);
/* Arms or moves a timer to the first tick at or after at_ns (the next tick when that is past). */
void mn_timer_arm(struct mn_wheel *w, struct mn_timer *t, uint64_t at_ns);
void mn_timer_disarm(struct mn_wheel *w, struct mn_timer *t);
static inline bool mn_timer_armed(const struct mn_timer *t)
{
    return t->pprev != NULL;
}
/* The next timer due at now_ns, disarmed; NULL when there is none. Call until NULL. In order of due
 * time, per tick in any but a fixed order. */
struct mn_timer *mn_wheel_expire(struct mn_wheel *w, uint64_t now_ns);
/* When the wheel wants to be looked at: not after the first due time; UINT64_MAX when nothing is
 * armed. */
uint64_t mn_wheel_deadline(const struct mn_wheel *w);

#endif
