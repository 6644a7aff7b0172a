/* SPDX-License-Identifier: MIT */
/* Channels from the application's side: the calls of chan_app.h, one user at a time, and waiting.
 */
#include "stack_int.h"

static inline void chan_leave(struct mn_chan *c)
{
    if (MN_UNLIKELY(c->group != NULL && c->group->driven)) {
        mn_stack_touch(c->stack); /* the engine has to look at the rings */
    }
    atomic_store_explicit(&c->busy, 0, memory_order_release);
}

/* Takes the chan without stepping the engine. */
static inline int chan_take(struct mn_chan *c)
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
static inline int chan_enter(struct mn_chan *c)
{
    int rc = chan_take(c);

    if (rc == 0 && c->group != NULL) {
        rc = mn_group_settle(c->group);
        if (rc < 0) {
            chan_leave(c);
        }
    }
    return rc;
}

struct mn_app *mn_chan_app(struct mn_chan *c)
{
    return c->app;
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

    mn_os_event_clear(c->wake_fd);
    /* The close of the stack raises the descriptor once: it must not be missed. */
    if (mn_app_prepare_sleep(c->app) && atomic_load(&c->closing) == 0) {
        rc = mn_os_poll(&fd, 1, timeout_ns);
    }
    mn_app_cancel_sleep(c->app);
    return rc;
}

static int chan_wait_thread(struct mn_chan *c, uint64_t timeout_ns)
{
    uint64_t start_ns = mn_host_now_ns();
    uint64_t limit_ns = mn_min_u64(timeout_ns, MN_HOST_SLICE_NS);
    uint64_t waited_ns = 0;

    for (;;) {
        if (mn_app_poll(c->app) != 0 || mn_app_dead(c->app) != 0) {
            return 1;
        }
        if (waited_ns >= limit_ns) {
            return waited_ns >= timeout_ns ? 0 : -EINTR;
        }
        if (atomic_load_explicit(&c->closing, memory_order_relaxed) != 0) {
            return -EINTR;
        }
        if (waited_ns < c->spin_ns) {
            mn_os_relax();
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
    int rc = chan_take(c);

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
    chan_leave(c);
    return rc;
}

/* The descriptor goes quiet; false when something came in meanwhile (then it is readable). */
static bool chan_arm(struct mn_chan *c)
{
    mn_os_event_clear(c->wake_fd);
    if (mn_app_prepare_sleep(c->app)) {
        return true;
    }
    mn_app_cancel_sleep(c->app);
    mn_os_event_raise(c->wake_fd);
    return false;
}

/* Takes in what there is, so that only what comes later makes the descriptor readable. Gives up
 * when the engine has no room for what it is owed (the descriptor stays readable, to be tried
 * again). */
static bool chan_arm_new(struct mn_chan *c)
{
    for (uint32_t i = 0; i < 8; i++) {
        (void)mn_app_poll(c->app);
        if (chan_arm(c)) {
            return true;
        }
    }
    return false;
}

static int chan_fd(struct mn_chan *c, enum mn_fd_mode mode)
{
    int rc = chan_take(c);

    if (rc < 0) {
        return rc;
    }
    if (c->wake_fd < 0) {
        c->wake_fd = mn_os_event(); /* in virtual time nobody needed it so far */
    }
    rc = c->wake_fd;
    if (rc < 0) {
        chan_leave(c);
        return rc;
    }
    if (c->fd_mode == MN_FD_NONE) {
        c->fd_mode = mode;
        mn_os_event_raise(c->wake_fd); /* until somebody has looked */
    } else if (c->fd_mode != mode) {
        rc = -EINVAL;
    }
    chan_leave(c);
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
    int rc = chan_enter(c);

    if (rc == 0) {
        rc = chan_arm_new(c) ? 1 : 0;
        chan_leave(c);
    }
    return rc;
}

int mn_chan_notify(struct mn_chan *c, bool on)
{
    int rc = chan_take(c);

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
    chan_leave(c);
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

/* A look found nothing: whoever waits for the descriptor must hear of what comes next. True: it
 * came meanwhile, look again. */
static bool chan_look_again(struct mn_chan *c)
{
    const uint32_t something = ~(uint32_t)MN_READY_SPACE;

    switch (c->fd_mode) {
    case MN_FD_LEVEL:
        return (mn_app_ready(c->app) & something) == 0 && !chan_arm(c);
    case MN_FD_EDGE:
        return !mn_app_prepare_sleep(c->app) && mn_app_dead(c->app) == 0 && mn_app_poll(c->app) > 0;
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
    int rc = chan_enter(c);

    if (MN_LIKELY(rc == 0)) {
        rc = mn_app_send(c->app, flow, buf, len);
        if (is_tapped(c) && rc == 0) {
            tell_given(c, flow, buf, len);
        }
        chan_leave(c);
    }
    return rc;
}

/* Takes or describes what mn_app_peek found. */
static int64_t chan_recv_head(struct mn_chan *c, const struct mn_app_msg *msg, void *buf,
                              uint64_t size, struct mn_chan_event *event)
{
    event->flow = msg->flow;
    event->status = msg->status;
    event->len = msg->len;
    if (MN_UNLIKELY(msg->status != 0)) {
        mn_app_skip(c->app);
        return MN_CHAN_EVENT;
    }
    if (MN_UNLIKELY(msg->len > size)) {
        return -EMSGSIZE;
    }
    mn_app_take(c->app, buf, size);
    if (is_tapped(c)) {
        tell_taken(c, msg->flow, buf, msg->len);
    }
    return ((int64_t)msg->flow << MN_CHAN_LEN_BITS) | msg->len;
}

int64_t mn_chan_recv(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_event *event)
{
    struct mn_app_msg msg;
    int64_t rc = chan_enter(c);

    if (MN_UNLIKELY(rc < 0)) {
        return rc;
    }
    do {
        rc = mn_app_peek(c->app, &msg);
    } while (rc == 0 && chan_look_again(c));
    if (rc == 1) {
        rc = chan_recv_head(c, &msg, buf, size, event);
    } else if (rc == 0) {
        rc = -EAGAIN;
    }
    chan_leave(c);
    return rc;
}

int64_t mn_chan_stream_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len,
                            uint32_t flags)
{
    int64_t rc = chan_enter(c);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = mn_app_stream_send(c->app, flow, buf, len, flags);
    } while (rc == -EAGAIN && c->fd_mode == MN_FD_EDGE && chan_look_again(c));
    if (is_tapped(c) && rc > 0) {
        tell_given(c, flow, buf, (uint64_t)rc);
    }
    chan_leave(c);
    return rc;
}

int64_t mn_chan_stream_recv(struct mn_chan *c, uint32_t flow, void *buf, uint64_t size,
                            uint32_t flags)
{
    int64_t rc = chan_enter(c);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = mn_app_stream_recv(c->app, flow, buf, size, flags);
    } while (rc == -EAGAIN && chan_look_again(c));
    if (is_tapped(c) && rc > 0 && (flags & MN_APP_PEEK) == 0) {
        tell_taken(c, flow, buf, (uint64_t)rc);
    }
    chan_leave(c);
    return rc;
}

int64_t mn_chan_accept(struct mn_chan *c, uint32_t listener)
{
    int64_t rc = chan_enter(c);
    uint32_t flow;

    if (rc < 0) {
        return rc;
    }
    do {
        flow = mn_app_accept(c->app, listener);
    } while (flow == MN_FLOW_NONE && chan_look_again(c));
    chan_leave(c);
    return flow == MN_FLOW_NONE ? -EAGAIN : (int64_t)flow;
}

int mn_chan_shutdown(struct mn_chan *c, uint32_t flow)
{
    int rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_shutdown_write(c->app, flow);
        chan_leave(c);
    }
    return rc;
}

int mn_chan_close_flow(struct mn_chan *c, uint32_t flow, uint32_t linger_ms)
{
    int rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_close_flow(c->app, flow, linger_ms);
        chan_leave(c);
    }
    return rc;
}

int mn_chan_flow_info(struct mn_chan *c, uint32_t flow, struct mn_app_flow_info *out)
{
    int rc = chan_enter(c);

    if (rc == 0) {
        (void)mn_app_poll(c->app); /* it may have ended since anybody looked */
        rc = mn_app_flow_info(c->app, flow, out);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_flows(struct mn_chan *c, uint32_t *ids, uint32_t n)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_flows(c->app, ids, n);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_ready(struct mn_chan *c)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_ready(c->app);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_flow_ready(struct mn_chan *c, uint32_t flow)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_flow_ready(c->app, flow);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                       uint32_t backlog)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_listen(c->app, ip, port, proto, backlog);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_unlisten(struct mn_chan *c, uint32_t listener)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_unlisten(c->app, listener);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_connect(struct mn_chan *c, uint32_t local_ip, uint16_t local_port,
                        uint32_t remote_ip, uint16_t remote_port, uint32_t proto,
                        uint32_t timeout_ms)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc =
            mn_app_connect(c->app, local_ip, local_port, remote_ip, remote_port, proto, timeout_ms);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_setopt(struct mn_chan *c, uint32_t flow, uint32_t opt, uint64_t value)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_setopt(c->app, flow, opt, value);
        chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_getopt(struct mn_chan *c, uint32_t flow, uint32_t opt)
{
    int64_t rc = chan_enter(c);

    if (rc == 0) {
        rc = mn_app_getopt(c->app, flow, opt);
        chan_leave(c);
    }
    return rc;
}

int mn_chan_result(struct mn_chan *c, int64_t token, struct mn_ctl_evt *evt)
{
    int rc = chan_enter(c);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = mn_app_result(c->app, token, evt);
    } while (rc == 0 && c->fd_mode == MN_FD_EDGE && chan_look_again(c));
    chan_leave(c);
    return rc;
}

int mn_chan_forget(struct mn_chan *c, int64_t token)
{
    int rc = chan_enter(c);

    if (rc == 0) {
        (void)mn_app_poll(c->app); /* an answer that is there already is dealt with now */
        rc = mn_app_forget(c->app, token);
        chan_leave(c);
    }
    return rc;
}

int mn_chan_select(struct mn_chan *c, const uint32_t *flows, uint8_t *ready, uint32_t n)
{
    int rc = chan_enter(c);

    if (rc == 0) {
        for (uint32_t i = 0; i < n; i++) {
            ready[i] = (uint8_t)mn_app_flow_ready(c->app, flows[i]);
        }
        chan_leave(c);
    }
    return rc;
}
