/* SPDX-License-Identifier: MIT */
/* Channels from the engine's side: attaching, detaching, and the memory in between. */
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "stack_int.h"

static void lane_mem_free(struct mn_host_lane *m)
{
    if (m->shared != NULL) {
        mn_host_shared_put(m->shared);
    } else {
        mn_os_unmap(m->region, m->region_bytes);
    }
    mn_os_unmap(m->priv, m->priv_bytes);
    *m = (struct mn_host_lane){0};
}

void mn_host_lanes_free(struct mn_stack *s)
{
    for (uint32_t i = 0; s->lanes != NULL && i < s->lanes_max; i++) {
        lane_mem_free(&s->lanes[i]);
    }
    free(s->lanes);
    s->lanes = NULL;
    s->zombies = 0;
}

void mn_host_lanes_reap(struct mn_stack *s)
{
    for (uint32_t i = 0; i < s->lanes_max; i++) {
        struct mn_host_lane *m = &s->lanes[i];

        if (m->used && m->chan == NULL && !m->lent && mn_engine_lane_free(s->engine, i) != 0) {
            lane_mem_free(m);
            s->zombies--;
        }
    }
}

void mn_host_wake(void *ctx, uint32_t lane)
{
    struct mn_stack *s = ctx;
    const struct mn_host_lane *m = &s->lanes[lane];
    struct mn_chan *c = m->chan;

    if (m->lent) {
        mn_os_wake_send(m->shared->wake_fd);
    }
    if (c == NULL) {
        return;
    }
    mn_os_event_raise(c->wake_fd);
    if (c->notify) {
        atomic_store_explicit(&c->woken, true, memory_order_relaxed);
        if (c->group != NULL) {
            c->group->wakeups++;
        }
    }
}

static void chan_kick(void *ctx)
{
    const struct mn_stack *s = ctx;

    mn_os_event_raise(s->kick_fd);
}

static void chan_link(struct mn_stack *s, struct mn_chan *c)
{
    pthread_mutex_lock(&s->chans_lock);
    c->next = s->chans;
    c->pprev = &s->chans;
    if (c->next != NULL) {
        c->next->pprev = &c->next;
    }
    s->chans = c;
    pthread_mutex_unlock(&s->chans_lock);
}

static void chan_unlink(struct mn_chan *c)
{
    *c->pprev = c->next;
    if (c->next != NULL) {
        c->next->pprev = c->pprev;
    }
}

struct attach_args {
    struct mn_chan *chan;
    struct mn_host_lane mem;
};

static int64_t call_attach(struct mn_stack *s, void *arg)
{
    struct attach_args *a = arg;
    int lane;

    if (s->zombies > 0) {
        mn_host_lanes_reap(s); /* so that no number is given out twice */
    }
    lane = mn_engine_attach(s->engine, a->mem.region, a->mem.region_bytes, a->mem.priv,
                            a->mem.priv_bytes);
    if (lane >= 0) {
        MN_ASSERT((uint32_t)lane < s->lanes_max && !s->lanes[lane].used);
        s->lanes[lane] = a->mem;
        s->lanes[lane].chan = a->chan;
        s->lanes[lane].used = true;
        a->chan->lane = (uint32_t)lane;
        chan_link(s, a->chan);
    }
    /* The engine's word for it would be taken for the process's limit of descriptors. */
    return lane == -EMFILE ? -ENOSPC : lane;
}

static int chan_prepare(struct mn_chan *c, struct attach_args *a,
                        const struct mn_chan_geometry *geo)
{
    int rc;

    a->chan = c;
    c->geo = *geo;
    a->mem.region_bytes = mn_chan_bytes(geo);
    if (a->mem.region_bytes == 0) {
        return -EINVAL;
    }
    a->mem.priv_bytes = mn_lane_priv_bytes(geo);
    a->mem.region = mn_os_map(a->mem.region_bytes);
    a->mem.priv = mn_os_map(a->mem.priv_bytes);
    c->app_bytes = mn_app_bytes(geo);
    c->app_mem = mn_os_map(c->app_bytes);
    if (a->mem.region == NULL || a->mem.priv == NULL || c->app_mem == NULL) {
        return -ENOMEM;
    }
    if (c->group == NULL || c->group->realtime) {
        c->wake_fd = mn_os_event();
        if (c->wake_fd < 0) {
            return c->wake_fd;
        }
    }
    rc = mn_chan_format(a->mem.region, a->mem.region_bytes, geo);
    if (rc < 0) {
        return rc;
    }
    return mn_app_open(&c->app, c->app_mem, c->app_bytes, a->mem.region, a->mem.region_bytes,
                       chan_kick, c->stack);
}

void mn_host_chan_release(struct mn_chan *c)
{
    if (c->remote != NULL) {
        mn_remote_release(c);
    }
    mn_os_unmap(c->app_mem, c->app_bytes);
    c->app_mem = NULL;
    c->app = NULL;
    if (c->wake_fd >= 0) {
        close(c->wake_fd);
        c->wake_fd = -1;
    }
}

int mn_chan_open(struct mn_chan **out, struct mn_stack *s, const struct mn_chan_geometry *geo,
                 uint64_t spin_ns)
{
    struct mn_chan *c = calloc(1, sizeof(*c));
    struct attach_args a = {0};
    int rc;

    if (c == NULL) {
        return -ENOMEM;
    }
    c->wake_fd = -1;
    c->n_lanes = 1;
    c->lane_shift = 16;
    c->stack = s;
    c->group = s->group;
    c->spin_ns = spin_ns;
    rc = chan_prepare(c, &a, geo);
    if (rc >= 0) {
        rc = (int)mn_stack_call(s, call_attach, &a);
    }
    if (rc < 0) {
        lane_mem_free(&a.mem);
        mn_host_chan_release(c);
        free(c);
        return rc;
    }
    *out = c;
    return 0;
}

struct detach_args {
    struct mn_chan *chan;
    uint32_t linger_ms;
};

static int64_t call_detach(struct mn_stack *s, void *arg)
{
    const struct detach_args *a = arg;

    s->lanes[a->chan->lane].chan = NULL;
    s->zombies++;
    return mn_engine_detach(s->engine, a->chan->lane, a->linger_ms);
}

/* Nobody gets in any more; waits until a call that is under way has noticed. */
static void chan_take_last(struct mn_chan *c)
{
    mn_os_event_raise(c->wake_fd);
    while (atomic_exchange(&c->busy, 1) != 0) {
        sched_yield();
    }
}

/* Whether to wait for the end of calls would be to wait without end: a driven group has one thread,
 * so that a call under way is the one that has led here, by way of the driver. */
static bool chan_inside_call(const struct mn_chan *c)
{
    return c->group != NULL && c->group->driven &&
           (atomic_load(&c->busy) != 0 || atomic_load(&c->group->busy) != 0);
}

bool mn_host_chans_busy(struct mn_stack *s)
{
    bool busy = false;

    pthread_mutex_lock(&s->chans_lock);
    for (const struct mn_chan *c = s->chans; c != NULL; c = c->next) {
        busy |= atomic_load(&c->busy) != 0;
    }
    pthread_mutex_unlock(&s->chans_lock);
    return busy;
}

int mn_chan_close(struct mn_chan *c, uint32_t linger_ms)
{
    struct detach_args a = {.chan = c, .linger_ms = linger_ms};
    struct mn_stack *s = c->stack;
    int rc;

    if (s != NULL && s->threaded && getpid() != s->pid) {
        return -ECHILD;
    }
    if (atomic_load(&c->closing) == 0 && chan_inside_call(c)) {
        return -EBUSY;
    }
    if (atomic_exchange(&c->closing, 1) != 0) {
        return 0;
    }
    chan_take_last(c);
    if (c->remote != NULL) {
        mn_host_chan_release(c);
        atomic_store(&c->busy, 0);
        return 0;
    }
    mn_app_flush(c->app);
    if (linger_ms == MN_LINGER_DEFAULT) {
        a.linger_ms = s->linger_ms;
    }
    while ((rc = (int)mn_stack_call(s, call_detach, &a)) == -EBUSY) {
        sched_yield(); /* another channel of the group is in a call, which ends soon */
    }
    pthread_mutex_lock(&s->chans_lock);
    chan_unlink(c);
    pthread_mutex_unlock(&s->chans_lock);
    c->stack = NULL;
    mn_host_chan_release(c);
    atomic_store(&c->busy, 0);
    if (rc == 0 && c->group != NULL) {
        rc = mn_group_settle(c->group);
    }
    return rc == -EBUSY ? 0 : rc;
}

void mn_host_chans_shut(struct mn_stack *s)
{
    struct mn_chan *c;

    do {
        bool mine = false;

        pthread_mutex_lock(&s->chans_lock);
        c = s->chans;
        if (c != NULL && atomic_exchange(&c->closing, 1) == 0) {
            mine = true;
            chan_unlink(c);
        }
        pthread_mutex_unlock(&s->chans_lock);
        if (mine) {
            chan_take_last(c);
            c->stack = NULL;
            mn_host_chan_release(c);
            atomic_store(&c->busy, 0);
        } else if (c != NULL) {
            sched_yield(); /* its owner is closing it at this moment */
        }
    } while (c != NULL);
}

void mn_chan_free(struct mn_chan *c)
{
    bool closed = c != NULL && c->stack == NULL && c->app == NULL;

    /* One that could not be closed (in a forked child) is better lost than pulled from under its
     * stack; and so is one that another thread, which closes the stack, has not done with. */
    atomic_thread_fence(memory_order_seq_cst);
    if (closed && atomic_load(&c->busy) == 0) {
        free(c);
    }
}
