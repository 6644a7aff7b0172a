/* SPDX-License-Identifier: MIT */
/* Channels from the application's side: the calls of chan_app.h, one user at a time, and waiting.
 */
#include <sched.h>

#include "chan_int.h"

struct mn_app *mn_chan_lane_app(struct mn_chan *c, uint32_t lane)
{
    return lane < c->n_lanes ? mn_chan_at(c, lane) : NULL;
}

struct mn_app *mn_chan_flow_lane(struct mn_chan *c, uint32_t *flow)
{
    return mn_chan_flow_app(c, flow);
}

void mn_chan_look(struct mn_chan *c)
{
    (void)mn_chan_hung_up(c);
}

uint32_t mn_chan_lane_no(const struct mn_chan *c)
{
    return c->lane;
}

uint64_t mn_chan_now(const struct mn_chan *c)
{
    return c->group != NULL ? mn_group_now(c->group) : mn_host_now_ns();
}

/* Sleeps until the engine's wake-up, a signal or timeout_ns: what mn_os_poll says. */
static int chan_sleep(struct mn_chan *c, uint64_t timeout_ns)
{
    struct pollfd fd = {.fd = c->wake_fd, .events = POLLIN};
    int rc = 1;

    if (c->remote == NULL) {
        mn_os_event_clear(c->wake_fd);
    }
    /* The close of the stack raises the descriptor once: it must not be missed. */
    if (mn_chan_prepare_sleep(c) && atomic_load(&c->closing) == 0) {
        rc = c->remote != NULL ? mn_remote_poll(c, timeout_ns) : mn_os_poll(&fd, 1, timeout_ns);
    }
    mn_chan_cancel_sleep(c);
    return rc;
}

static int chan_wait_thread(struct mn_chan *c, uint64_t timeout_ns)
{
    uint64_t start_ns = mn_host_now_ns();
    uint64_t limit_ns = mn_min_u64(timeout_ns, MN_HOST_SLICE_NS);
    uint64_t waited_ns = 0;

    for (;;) {
        if (mn_chan_poll_all(c) != 0 || mn_chan_dead(c) != 0 || mn_chan_hung_up(c)) {
            return 1;
        }
        if (waited_ns >= limit_ns) {
            return waited_ns >= timeout_ns ? 0 : -EINTR;
        }
        if (atomic_load_explicit(&c->closing, memory_order_relaxed) != 0) {
            return -EINTR;
        }
        if (waited_ns < c->spin_ns) {
            if (c->spin_ns == UINT64_MAX) {
                mn_os_relax();
            } else {
                (void)sched_yield(); /* the engine may be on this core */
            }
        } else {
            int rc = chan_sleep(c, limit_ns - waited_ns);

            if (rc < 0) {
                return rc;
            }
        }
        waited_ns = mn_host_now_ns() - start_ns;
    }
}

int mn_chan_wait(struct mn_chan *c, uint64_t timeout_ns)
{
    int rc = mn_chan_take(c);

    if (rc < 0) {
        return rc;
    }
    if (c->group != NULL) {
        rc = mn_group_wait(c->group, c->stack, c->app, timeout_ns);
    } else {
        rc = chan_wait_thread(c, timeout_ns);
        if (c->fd_mode) {
            /* Waiting may have emptied the descriptor: readable again, until a look finds nothing.
             */
            mn_os_event_raise(c->wake_fd);
        }
    }
    mn_chan_leave(c);
    return rc;
}

/* The descriptor goes quiet; false when something came in meanwhile (then it is readable). */
static bool chan_arm(struct mn_chan *c)
{
    mn_os_event_clear(c->wake_fd);
    if (c->remote != NULL) {
        mn_remote_clear(c);
    }
    if (mn_chan_prepare_sleep(c)) {
        return true;
    }
    mn_os_event_raise(c->wake_fd);
    return false;
}

/* Takes in what there is, so that only what comes later makes the descriptor readable. Gives up
 * when the engine has no room for what it is owed (the descriptor stays readable, to be tried
 * again). */
static bool chan_arm_new(struct mn_chan *c)
{
    for (uint32_t i = 0; i < 8; i++) {
        (void)mn_chan_poll_all(c);
        if (chan_arm(c)) {
            return true;
        }
    }
    return false;
}

static int chan_fd(struct mn_chan *c, enum mn_fd_mode mode)
{
    int rc = mn_chan_take(c);

    if (rc < 0) {
        return rc;
    }
    if (c->wake_fd < 0) {
        c->wake_fd = mn_os_event(); /* in virtual time nobody needed it so far */
    }
    rc = c->remote != NULL ? mn_remote_fd(c) : c->wake_fd;
    if (rc < 0) {
        mn_chan_leave(c);
        return rc;
    }
    if (c->fd_mode == MN_FD_NONE) {
        c->fd_mode = mode;
        mn_os_event_raise(c->wake_fd); /* until somebody has looked */
    } else if (c->fd_mode != mode) {
        rc = -EINVAL;
    }
    mn_chan_leave(c);
    return rc;
}

int mn_chan_fd(struct mn_chan *c)
{
    return chan_fd(c, MN_FD_LEVEL);
}

int mn_chan_edge_fd(struct mn_chan *c)
{
    return chan_fd(c, MN_FD_EDGE);
}

int mn_chan_arm(struct mn_chan *c)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = chan_arm_new(c) ? 1 : 0;
        mn_chan_leave(c);
    }
    return rc;
}

int mn_chan_notify(struct mn_chan *c, bool on)
{
    int rc = mn_chan_take(c);

    if (rc < 0) {
        return rc;
    }
    c->notify = on;
    if (on && !chan_arm_new(c)) {
        atomic_store_explicit(&c->woken, true, memory_order_relaxed);
        if (c->group != NULL) {
            c->group->wakeups++;
        }
    }
    mn_chan_leave(c);
    return 0;
}

bool mn_chan_woken(struct mn_chan *c)
{
    return atomic_exchange_explicit(&c->woken, false, memory_order_relaxed);
}

uint32_t mn_chans_woken(struct mn_chan *const *chans, uint32_t n, uint32_t *out)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (atomic_load_explicit(&chans[i]->woken, memory_order_relaxed) &&
            mn_chan_woken(chans[i])) {
            out[found++] = i;
        }
    }
    return found;
}

bool mn_chan_look_again(struct mn_chan *c)
{
    const uint32_t something = ~(uint32_t)MN_READY_SPACE;

    if (mn_chan_hung_up(c)) {
        return true;
    }
    switch (c->fd_mode) {
    case MN_FD_LEVEL:
        /* What is owed to an engine that has no room for it is no reason: it can take for ever. */
        return (mn_chan_ready_all(c) & something) == 0 && !chan_arm(c) && mn_chan_poll_all(c) > 0;
    case MN_FD_EDGE:
        if (c->remote != NULL) {
            mn_remote_clear(c); /* a socket that is full would have no more edges */
        }
        return !mn_chan_prepare_sleep(c) && mn_chan_dead(c) == 0 && mn_chan_poll_all(c) > 0;
    case MN_FD_NONE:
    default:
        return false;
    }
}

static inline bool is_tapped(const struct mn_chan *c)
{
    return MN_UNLIKELY(c->group != NULL && c->group->tapped);
}

/* The same for the life of a flow. */
static uint64_t tap_id(const struct mn_chan *c, uint32_t flow)
{
    return (uint64_t)(uintptr_t)c << 16 ^ flow;
}

static void tell_given(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len)
{
    struct mn_app_flow_info info;

    if (mn_app_flow_info(c->app, flow, &info) == 0) {
        c->group->tap.given(c->group->tap.ctx, &info, tap_id(c, flow), buf, len);
    }
}

static void tell_taken(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len)
{
    struct mn_app_flow_info info;

    if (mn_app_flow_info(c->app, flow, &info) == 0) {
        c->group->tap.taken(c->group->tap.ctx, &info, tap_id(c, flow), buf, len);
    }
}

int mn_chan_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len)
{
    int rc = mn_chan_enter(c);

    if (MN_LIKELY(rc == 0)) {
        uint32_t id = flow;
        struct mn_app *app = mn_chan_flow_app(c, &id);

        rc = mn_chan_hung_up(c) ? -EPIPE : mn_app_send(app, id, buf, len);
        if (is_tapped(c) && rc == 0) {
            tell_given(c, flow, buf, len);
        }
        mn_chan_leave(c);
    }
    return rc;
}

int mn_chan_send_open(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len)
{
    uint32_t id = flow;
    struct mn_app *app;
    int rc = mn_chan_enter(c);

    if (MN_UNLIKELY(rc < 0)) {
        return rc;
    }
    app = mn_chan_flow_app(c, &id);
    if (mn_chan_hung_up(c)) {
        rc = -EPIPE;
    } else if (MN_UNLIKELY(mn_app_eof(app, id))) {
        rc = -ENOTCONN;
    } else {
        rc = mn_app_send(app, id, buf, len);
    }
    mn_chan_leave(c);
    return rc;
}

/* Takes or describes what mn_app_peek found in a lane. */
static int64_t chan_recv_head(struct mn_chan *c, struct mn_app *app, const struct mn_app_msg *msg,
                              void *buf, uint64_t size, struct mn_chan_event *event)
{
    event->flow = msg->flow;
    event->status = msg->status;
    event->len = msg->len;
    if (MN_UNLIKELY(msg->status != 0)) {
        mn_app_skip(app);
        return MN_CHAN_EVENT;
    }
    if (MN_UNLIKELY(msg->len > size)) {
        if (c->n_lanes > 1) {
            c->remote->turn--; /* it is this message that a larger buffer gets */
        }
        return -EMSGSIZE;
    }
    mn_app_take(app, buf, size);
    if (is_tapped(c)) {
        tell_taken(c, msg->flow, buf, msg->len);
    }
    return ((int64_t)msg->flow << MN_CHAN_LEN_BITS) | msg->len;
}

/* The head message of the lanes, in turn: as mn_app_peek. */
static int chan_peek_lanes(struct mn_chan *c, struct mn_app **app, struct mn_app_msg *msg)
{
    int rc = 0;

    for (uint32_t i = 0; i < c->n_lanes; i++) {
        uint32_t lane = (c->remote->turn + i) % c->n_lanes;

        *app = c->remote->apps[lane];
        rc = mn_app_peek(*app, msg);
        if (rc == 1) {
            c->remote->turn = lane + 1;
            msg->flow = mn_chan_flow_id(c, lane, msg->flow);
            return rc;
        }
    }
    if (c->remote->multis != NULL) {
        mn_multi_go_on(c);
    }
    return mn_chan_dead(c) != 0 ? -EPIPE : 0;
}

static inline int chan_peek(struct mn_chan *c, struct mn_app **app, struct mn_app_msg *msg)
{
    *app = c->app;
    return MN_LIKELY(c->n_lanes == 1) ? mn_app_peek(c->app, msg) : chan_peek_lanes(c, app, msg);
}

int64_t mn_chan_recv(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_event *event)
{
    struct mn_app_msg msg;
    struct mn_app *app;
    int64_t rc = mn_chan_enter(c);

    if (MN_UNLIKELY(rc < 0)) {
        return rc;
    }
    do {
        rc = chan_peek(c, &app, &msg);
    } while (rc == 0 && mn_chan_look_again(c));
    if (rc == 1) {
        rc = chan_recv_head(c, app, &msg, buf, size, event);
    } else if (rc == 0) {
        rc = -EAGAIN;
    }
    mn_chan_leave(c);
    return rc;
}

int64_t mn_chan_send_many(struct mn_chan *c, uint32_t flow, const void *buf, const uint32_t *lens,
                          uint32_t n)
{
    int rc = mn_chan_enter(c);
    const uint8_t *at = buf;
    uint32_t id = flow, done = 0;
    struct mn_app *app;

    if (rc < 0) {
        return rc;
    }
    app = mn_chan_flow_app(c, &id);
    (void)mn_chan_hung_up(c);
    (void)mn_app_poll(app); /* the end of the flow may have been announced */
    while (done < n) {
        rc = mn_app_send_nopub(app, id, at, lens[done]);
        if (rc < 0) {
            break;
        }
        if (is_tapped(c)) {
            tell_given(c, flow, at, lens[done]);
        }
        at += lens[done++];
    }
    mn_app_flush(app);
    mn_chan_leave(c);
    return done > 0 || n == 0 ? (int64_t)done : rc;
}

int64_t mn_chan_recv_many(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_got *got,
                          uint32_t n, struct mn_chan_event *event)
{
    int64_t rc = mn_chan_enter(c);
    struct mn_app_msg msg;
    struct mn_app *app;
    uint8_t *to = buf;
    uint32_t done = 0;

    if (rc < 0) {
        return rc;
    }
    while (done < n) {
        do {
            rc = chan_peek(c, &app, &msg);
        } while (rc == 0 && done == 0 && mn_chan_look_again(c));
        if (rc != 1 || (done > 0 && (msg.status != 0 || msg.len > size))) {
            break;
        }
        rc = chan_recv_head(c, app, &msg, to, size, event);
        if (rc < 0) {
            break;
        }
        got[done++] = (struct mn_chan_got){.flow = msg.flow, .len = msg.len};
        to += msg.len;
        size -= msg.len;
    }
    mn_chan_leave(c);
    return done > 0 ? (int64_t)done : rc == 0 ? -EAGAIN : rc;
}

int64_t mn_chan_stream_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len,
                            uint32_t flags)
{
    int64_t rc = mn_chan_enter(c);
    uint32_t id = flow;
    struct mn_app *app;

    if (rc < 0) {
        return rc;
    }
    app = mn_chan_flow_app(c, &id);
    do {
        rc = mn_app_stream_send(app, id, buf, len, flags);
    } while (rc == -EAGAIN && mn_chan_look_again_edge(c));
    if (is_tapped(c) && rc > 0) {
        tell_given(c, flow, buf, (uint64_t)rc);
    }
    mn_chan_leave(c);
    return rc;
}

int64_t mn_chan_stream_recv(struct mn_chan *c, uint32_t flow, void *buf, uint64_t size,
                            uint32_t flags)
{
    int64_t rc = mn_chan_enter(c);
    uint32_t id = flow;
    struct mn_app *app;

    if (rc < 0) {
        return rc;
    }
    app = mn_chan_flow_app(c, &id);
    do {
        rc = mn_app_stream_recv(app, id, buf, size, flags);
    } while (rc == -EAGAIN && mn_chan_look_again(c));
    if (is_tapped(c) && rc > 0 && (flags & MN_APP_PEEK) == 0) {
        tell_taken(c, flow, buf, (uint64_t)rc);
    }
    mn_chan_leave(c);
    return rc;
}

int mn_chan_shutdown(struct mn_chan *c, uint32_t flow)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        struct mn_app *app = mn_chan_flow_app(c, &flow);

        rc = mn_app_shutdown_write(app, flow);
        mn_chan_leave(c);
    }
    return rc;
}

int mn_chan_close_flow(struct mn_chan *c, uint32_t flow, uint32_t linger_ms)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        struct mn_app *app = mn_chan_flow_app(c, &flow);

        rc = mn_app_close_flow(app, flow, linger_ms);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_ready(struct mn_chan *c)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_chan_hung_up(c);
        rc = mn_chan_ready_all(c);
        mn_chan_leave(c);
    }
    return rc;
}

int mn_chan_select(struct mn_chan *c, const uint32_t *flows, uint8_t *ready, uint32_t n)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_chan_hung_up(c);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t flow = flows[i];
            struct mn_app *app = mn_chan_flow_app(c, &flow);

            ready[i] = (uint8_t)mn_app_flow_ready(app, flow);
        }
        mn_chan_leave(c);
    }
    return rc;
}
