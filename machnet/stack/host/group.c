/* SPDX-License-Identifier: MIT */
/* Stacks that are stepped together, in virtual or in real time. */
#include <stdlib.h>

#include "stack_int.h"

/* Rounds at one moment of virtual time: far above what any transfer needs. */
#define ROUNDS_MAX (1u << 20)
/* In real time traffic may never end: the caller gets its turn after so many rounds. */
#define REALTIME_ROUNDS_MAX 64u
/* Steps of one call; then the caller may look for signals. */
#define STEPS_MAX 4096u
/* A stack that has work but can't do it (a NIC that takes no more) is tried again after this. */
#define BLOCKED_STEP_NS (100 * MN_NS_PER_US)

struct mn_group *mn_group_new(bool realtime, uint64_t start_ns)
{
    struct mn_group *g = calloc(1, sizeof(*g));

    if (g != NULL) {
        g->realtime = realtime;
        g->now_ns = realtime ? mn_host_now_ns() : start_ns;
    }
    return g;
}

void mn_group_free(struct mn_group *g)
{
    if (g != NULL) {
        MN_ASSERT(g->n == 0);
        free(g->stacks);
        free(g);
    }
}

int mn_group_drive(struct mn_group *g, const struct mn_group_driver *driver)
{
    if (g->realtime || g->n != 0) {
        return -EINVAL;
    }
    g->driver = *driver;
    g->driven = true;
    return 0;
}

void mn_group_set_tap(struct mn_group *g, const struct mn_group_tap *tap)
{
    MN_ASSERT(!g->realtime);
    g->tapped = tap != NULL;
    if (tap != NULL) {
        g->tap = *tap;
    }
}

int mn_group_add(struct mn_group *g, struct mn_stack *s)
{
    if (g->n == g->cap) {
        uint32_t cap = g->cap == 0 ? 4 : 2 * g->cap;
        struct mn_stack **stacks = realloc(g->stacks, cap * sizeof(struct mn_stack *));

        if (stacks == NULL) {
            return -ENOMEM;
        }
        g->stacks = stacks;
        g->cap = cap;
    }
    g->stacks[g->n++] = s;
    s->group = g;
    return 0;
}

/* Keeps the order: it is part of what a run's result depends on. */
void mn_group_remove(struct mn_group *g, struct mn_stack *s)
{
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->stacks[i] == s) {
            g->n--;
            memmove(&g->stacks[i], &g->stacks[i + 1], (g->n - i) * sizeof(struct mn_stack *));
            if (g->driven) {
                g->driver.removed(g->driver.ctx, s);
            }
            return;
        }
    }
}

uint64_t mn_group_now(const struct mn_group *g)
{
    return g->realtime ? mn_host_now_ns() : g->now_ns;
}

uint64_t mn_group_deadline(const struct mn_group *g)
{
    uint64_t first = MN_NEVER;

    if (g->driven) {
        return g->driver.next(g->driver.ctx);
    }
    for (uint32_t i = 0; i < g->n; i++) {
        first = mn_min_u64(first, mn_stack_due(g->stacks[i]));
    }
    return first;
}

uint64_t mn_group_wakeups(const struct mn_group *g)
{
    return g->wakeups;
}

void mn_group_kick(struct mn_group *g)
{
    g->wakeups++;
}

static int group_settle(struct mn_group *g)
{
    uint32_t limit = g->realtime ? REALTIME_ROUNDS_MAX : ROUNDS_MAX;

    if (g->driven) {
        return g->driver.settle(g->driver.ctx);
    }
    for (uint32_t round = 0; round < limit; round++) {
        uint64_t done = 0;

        if (g->realtime) {
            g->now_ns = mn_host_now_ns();
        }
        for (uint32_t i = 0; i < g->n; i++) {
            done += mn_stack_pass(g->stacks[i], g->now_ns);
        }
        if (done == 0) {
            break;
        }
        if (round + 1 == ROUNDS_MAX) {
            return -ELOOP;
        }
    }
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->stacks[i]->zombies > 0) {
            mn_host_lanes_reap(g->stacks[i]);
        }
    }
    return 0;
}

int mn_group_settle(struct mn_group *g)
{
    int rc;

    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    rc = group_settle(g);
    mn_group_leave(g);
    return rc;
}

/* Goes to the next deadline or to until_ns, whichever comes first; 1 when that was until_ns. */
static int group_step(struct mn_group *g, uint64_t until_ns)
{
    uint64_t next = mn_group_deadline(g);
    uint64_t to_ns;

    if (next <= g->now_ns) {
        next = g->now_ns + BLOCKED_STEP_NS;
    }
    to_ns = mn_max_u64(g->now_ns, mn_min_u64(next, until_ns));
    if (to_ns == MN_NEVER) {
        return 1; /* time stays where it is */
    }
    if (g->driven && to_ns > g->now_ns) {
        int rc = g->driver.go(g->driver.ctx, &to_ns);

        if (rc < 0) {
            g->now_ns = to_ns;
            return rc;
        }
    }
    g->now_ns = to_ns;
    return next >= until_ns ? 1 : 0;
}

int mn_group_advance(struct mn_group *g, uint64_t until_ns)
{
    uint64_t wakeups = g->wakeups;
    int rc = 0, last = 0;

    if (g->realtime) {
        return -EINVAL;
    }
    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    for (uint32_t step = 0; rc == 0; step++) {
        rc = group_settle(g);
        if (rc < 0 || last) {
            break;
        }
        if (step == STEPS_MAX || g->wakeups != wakeups) {
            rc = -EINTR;
            break;
        }
        last = group_step(g, until_ns);
        if (last < 0) {
            rc = last;
        }
    }
    mn_group_leave(g);
    return rc;
}

static int group_wait_virtual(struct mn_group *g, struct mn_app *app, uint64_t until_ns)
{
    uint64_t wakeups = g->wakeups;

    for (uint32_t step = 0;; step++) {
        int rc = group_settle(g);

        if (rc < 0) {
            return rc;
        }
        if (mn_app_poll(app) != 0 || mn_app_dead(app) != 0) {
            return 1;
        }
        if (g->now_ns >= until_ns) {
            return 0;
        }
        if (until_ns == UINT64_MAX && mn_group_deadline(g) == MN_NEVER) {
            return -EDEADLK;
        }
        if (step == STEPS_MAX || (g->driven && g->wakeups != wakeups)) {
            return -EINTR;
        }
        rc = group_step(g, until_ns);
        if (rc < 0) {
            return rc;
        }
    }
}

static bool group_arm(struct mn_group *g, bool on)
{
    bool idle = true;

    for (uint32_t i = 0; i < g->n; i++) {
        idle &= mn_stack_arm(g->stacks[i], on);
    }
    return idle;
}

/* Sleeps until a frame comes in or a timer is due, at most until until_ns. */
static int group_sleep(struct mn_group *g, uint64_t until_ns)
{
    struct pollfd fds[16];
    uint32_t n = 0;
    uint64_t deadline = mn_min_u64(mn_group_deadline(g), until_ns);
    bool blind = g->n > MN_ARRAY_LEN(fds);

    for (uint32_t i = 0; i < g->n && n < MN_ARRAY_LEN(fds); i++) {
        int fd = g->stacks[i]->nic->rx_fd;

        if (fd >= 0) {
            fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        } else {
            blind = true;
        }
    }
    if (deadline <= g->now_ns) {
        return 0;
    }
    deadline -= g->now_ns;
    if (blind) {
        deadline = mn_min_u64(deadline, MN_NS_PER_MS);
    }
    return group_arm(g, true) ? mn_os_poll(fds, n, deadline) : 0;
}

static int group_wait_real(struct mn_group *g, struct mn_app *app, uint64_t until_ns)
{
    uint64_t slice_ns = mn_host_now_ns() + MN_HOST_SLICE_NS;

    for (;;) {
        int rc = group_settle(g);

        if (rc < 0) {
            return rc;
        }
        if (mn_app_poll(app) != 0 || mn_app_dead(app) != 0) {
            return 1;
        }
        if (g->now_ns >= until_ns) {
            return 0;
        }
        if (g->now_ns >= slice_ns) {
            return -EINTR;
        }
        rc = group_sleep(g, mn_min_u64(slice_ns, until_ns));
        (void)group_arm(g, false);
        if (rc < 0) {
            return rc;
        }
    }
}

int mn_group_wait(struct mn_group *g, struct mn_stack *s, struct mn_app *app, uint64_t timeout_ns)
{
    uint64_t until_ns;
    int rc;

    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    mn_stack_touch(s); /* a loop in C may have been at the rings */
    until_ns = mn_group_now(g);
    until_ns = timeout_ns > UINT64_MAX - until_ns ? UINT64_MAX : until_ns + timeout_ns;
    rc = g->realtime ? group_wait_real(g, app, until_ns) : group_wait_virtual(g, app, until_ns);
    mn_group_leave(g);
    return rc;
}
