/* SPDX-License-Identifier: MIT */
/* What every call on a chan does: taking it, finding the lane, and looking at all lanes. */
#ifndef MN_HOST_CHAN_INT_H
#define MN_HOST_CHAN_INT_H

#include "stack_int.h"

static inline void mn_chan_leave(struct mn_chan *c)
{
    if (MN_UNLIKELY(c->group != NULL && c->group->driven)) {
        mn_stack_touch(c->stack); /* the engine has to look at the rings */
    }
    atomic_store_explicit(&c->busy, 0, memory_order_release);
}

/* Takes the chan without stepping the engine. */
static inline int mn_chan_take(struct mn_chan *c)
{
    if (MN_UNLIKELY(atomic_exchange_explicit(&c->busy, 1, memory_order_acquire) != 0)) {
        return atomic_load_explicit(&c->closing, memory_order_relaxed) != 0 ? -EBADF : -EBUSY;
    }
    if (MN_UNLIKELY(atomic_load_explicit(&c->closing, memory_order_relaxed) != 0)) {
        atomic_store_explicit(&c->busy, 0, memory_order_release);
        return -EBADF;
    }
    return 0;
}

/* Takes the chan; a stepped engine does first what it has to do now. */
static inline int mn_chan_enter(struct mn_chan *c)
{
    int rc = mn_chan_take(c);

    if (rc == 0 && c->group != NULL) {
        rc = mn_group_settle(c->group);
        if (rc < 0) {
            mn_chan_leave(c);
        }
    }
    return rc;
}

/* Lanes. Only a remote chan has more than one. */
static inline struct mn_app *mn_chan_at(const struct mn_chan *c, uint32_t lane)
{
    return lane == 0 ? c->app : c->remote->apps[lane];
}

/* The lane of a flow, whose id becomes what it is there. Of no lane: one that nobody knows. */
static inline struct mn_app *mn_chan_flow_app(const struct mn_chan *c, uint32_t *flow)
{
    uint32_t lane;

    if (MN_LIKELY(c->n_lanes == 1)) {
        return c->app;
    }
    lane = MN_FLOW_SLOT(*flow) >> c->lane_shift;
    if (lane >= c->n_lanes) {
        *flow = MN_FLOW_NONE;
        return c->app;
    }
    *flow -= lane << c->lane_shift;
    return c->remote->apps[lane];
}

/* A lane's flow id as the user of the chan knows it. */
static inline uint32_t mn_chan_flow_id(const struct mn_chan *c, uint32_t lane, uint32_t flow)
{
    return flow == MN_FLOW_NONE ? flow : flow | lane << c->lane_shift;
}

/* chan_multi.c: what a remote chan of several lanes does instead of the mn_app call. */
#define MN_LISTENER_GONE 0x80000000u /* no listener's id */
int64_t mn_multi_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                        uint32_t backlog);
int64_t mn_multi_unlisten(struct mn_chan *c, uint32_t listener);
int64_t mn_multi_setopt(struct mn_chan *c, uint32_t opt, uint64_t value); /* of no flow */
int64_t mn_multi_connect(struct mn_chan *c, uint32_t local_ip, uint16_t local_port,
                         uint32_t remote_ip, uint16_t remote_port, uint32_t proto,
                         uint32_t timeout_ms);
int mn_multi_result(struct mn_chan *c, int64_t token, struct mn_ctl_evt *evt);
int mn_multi_forget(struct mn_chan *c, int64_t token);
uint32_t mn_multi_accept(struct mn_chan *c, uint32_t listener);
/* The listener that is `listener` on a lane; MN_LISTENER_GONE. */
uint32_t mn_multi_listener(struct mn_chan *c, uint32_t lane, uint32_t listener);
void mn_multi_go_on(struct mn_chan *c);
void mn_multi_free_all(struct mn_chan *c);

static inline int64_t mn_multi_token(uint32_t lane, int64_t token)
{
    return (int64_t)lane << 32 | token;
}

static inline int mn_chan_poll_all(struct mn_chan *c)
{
    int n = mn_app_poll(c->app);

    for (uint32_t i = 1; i < c->n_lanes; i++) {
        n += mn_app_poll(c->remote->apps[i]);
    }
    if (c->n_lanes > 1 && c->remote->multis != NULL) {
        mn_multi_go_on(c);
    }
    return n;
}

/* Dead in one lane is dead: nobody could tell which connections it would be without. */
static inline int mn_chan_dead(const struct mn_chan *c)
{
    int err = mn_app_dead(c->app);

    for (uint32_t i = 1; i < c->n_lanes && err == 0; i++) {
        err = mn_app_dead(c->remote->apps[i]);
    }
    return err;
}

static inline void mn_chan_cancel_sleep(struct mn_chan *c)
{
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        mn_app_cancel_sleep(mn_chan_at(c, i));
    }
}

/* As mn_app_prepare_sleep: with false nothing is set any more. */
static inline bool mn_chan_prepare_sleep(struct mn_chan *c)
{
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        if (!mn_app_prepare_sleep(mn_chan_at(c, i))) {
            while (i-- > 0) {
                mn_app_cancel_sleep(mn_chan_at(c, i));
            }
            return false;
        }
    }
    return true;
}

static inline uint32_t mn_chan_ready_all(struct mn_chan *c)
{
    uint32_t ready = mn_app_ready(c->app);

    for (uint32_t i = 1; i < c->n_lanes; i++) {
        ready |= mn_app_ready(c->remote->apps[i]);
    }
    return ready;
}

/* Whether the engines' process was found to have ended just now: then there is something new to be
 * told. For all who found nothing, and so may be looking for ever. */
static inline bool mn_chan_hung_up(struct mn_chan *c)
{
    return MN_UNLIKELY(c->remote != NULL) && mn_remote_look(c);
}

/* A look found nothing: whoever waits for the descriptor must hear of what comes next. True: it
 * came meanwhile, look again. */
bool mn_chan_look_again(struct mn_chan *c);

/* The same for calls whose waiting is nobody's business but that of users of edges. */
static inline bool mn_chan_look_again_edge(struct mn_chan *c)
{
    return c->fd_mode == MN_FD_EDGE ? mn_chan_look_again(c) : mn_chan_hung_up(c);
}

#endif
