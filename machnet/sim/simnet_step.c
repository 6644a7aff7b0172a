/* SPDX-License-Identifier: MIT */
/* Time: what happens at one moment, and which hosts are polled then. */
#include "simnet_int.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>

#define PPB 1000000000

void sim_error(struct mn_simnet *net, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(net->error, sizeof(net->error), fmt, args);
    va_end(args);
}

/* ---- clocks of hosts ----------------------------------------------------------------------- */

uint64_t sim_local(const struct simnode *node, uint64_t now_ns)
{
    if (MN_LIKELY(!node->skewed)) {
        return now_ns;
    }
    return node->local_base_ns + (uint64_t)((unsigned __int128)(now_ns - node->base_ns) *
                                            (uint64_t)(PPB + node->ppb) / PPB);
}

/* The first time at which the host's clock shows local_ns or more; MN_NEVER when it is out of
 * range. */
static uint64_t when_local(const struct simnode *node, uint64_t local_ns)
{
    uint64_t rate = (uint64_t)(PPB + node->ppb);
    unsigned __int128 after;

    if (MN_LIKELY(!node->skewed)) {
        return local_ns;
    }
    if (local_ns <= node->local_base_ns) {
        return node->base_ns;
    }
    after = (unsigned __int128)(local_ns - node->local_base_ns) * PPB;
    after = (after + rate - 1) / rate + node->base_ns;
    return after < MN_NEVER ? (uint64_t)after : MN_NEVER;
}

static void rebase(struct simnode *node, uint64_t local_ns)
{
    node->base_ns = sim_now(node->net);
    node->local_base_ns = local_ns;
    node->skewed = node->ppb != 0 || node->base_ns != local_ns;
}

int mn_simnet_skew(struct mn_simnet *net, uint32_t node, int64_t ppb, uint64_t jump_ns)
{
    struct simnode *n = sim_node(net, node);
    uint64_t local_ns;

    if (n == NULL || n->kind != NODE_HOST || ppb > SKEW_PPB_MAX || ppb < -SKEW_PPB_MAX ||
        jump_ns > SKEW_JUMP_MAX) {
        return -EINVAL;
    }
    local_ns = sim_local(n, sim_now(net));
    if (jump_ns > SIM_TIME_MAX - mn_min_u64(local_ns, SIM_TIME_MAX)) {
        return -EINVAL;
    }
    n->ppb = ppb;
    rebase(n, local_ns + jump_ns);
    mn_simq_remove(&net->q, &n->timer); /* it was for the old clock */
    sim_touch(n);
    return 0;
}

uint64_t mn_simnet_local(const struct mn_simnet *net, uint32_t node)
{
    const struct simnode *n = sim_node(net, node);

    return n != NULL ? sim_local(n, sim_now(net)) : 0;
}

uint64_t mn_simnet_when(const struct mn_simnet *net, uint32_t node, uint64_t local_ns)
{
    const struct simnode *n = sim_node(net, node);

    return n != NULL && local_ns != MN_NEVER ? when_local(n, local_ns) : MN_NEVER;
}

/* ---- hosts --------------------------------------------------------------------------------- */

void sim_touch(struct simnode *node)
{
    struct mn_simnet *net = node->net;

    if (node->listed || node->paused || node->down || node->stack == NULL) {
        return;
    }
    node->listed = true;
    node->ready_next = NULL;
    if (net->ready_head == NULL) {
        net->ready_head = node;
    } else {
        net->ready_tail->ready_next = node;
    }
    net->ready_tail = node;
}

static struct simnode *next_ready(struct mn_simnet *net)
{
    struct simnode *node;

    while ((node = net->ready_head) != NULL) {
        net->ready_head = node->ready_next;
        node->listed = false;
        if (!node->paused && !node->down && node->stack != NULL) {
            break;
        }
    }
    return node;
}

static void set_timer(struct simnode *node, uint64_t t_ns)
{
    struct mn_simq *q = &node->net->q;

    /* One that comes too early does no harm, and moving it with each frame would cost. */
    if (!mn_simev_queued(&node->timer) || t_ns < node->timer_ns) {
        node->timer_ns = t_ns;
        mn_simq_set(q, &node->timer, t_ns, q->seq++);
    }
}

static void poll_node(struct simnode *node)
{
    struct mn_stack *s = node->stack;
    uint64_t now_ns = sim_now(node->net);
    uint64_t local_ns = sim_local(node, now_ns);
    uint32_t done = mn_stack_pass(s, local_ns);
    uint64_t deadline_ns = mn_stack_due(s);

    node->net->stats.polls++;
    if (MN_UNLIKELY(node->stack != s)) {
        return; /* a rule has taken it away */
    }
    if (node->net->check != NULL) {
        sim_check_pass(node);
    }
    if (MN_UNLIKELY(s->zombies > 0)) {
        mn_host_lanes_reap(s);
    }
    if (node->rx.n > 0 || (deadline_ns <= local_ns && done > 0)) {
        sim_touch(node);
    } else if (deadline_ns <= local_ns) {
        set_timer(node, now_ns + BLOCKED_RETRY_NS);
    } else if (deadline_ns == MN_NEVER) {
        mn_simq_remove(&node->net->q, &node->timer);
    } else {
        deadline_ns = when_local(node, deadline_ns);
        if (deadline_ns != MN_NEVER) {
            set_timer(node, deadline_ns);
        }
    }
}

/* What waits for the engine is no longer for anybody. */
static void clear_rx(struct simnode *node)
{
    node->net->stats.dropped += node->rx.n;
    sim_drop_list(node->net, &node->rx);
}

void sim_unbind(struct simnode *node)
{
    if (node->stack != NULL) {
        node->stack->driver_slot = NULL;
        node->stack = NULL;
        if (node->net->check != NULL) {
            mn_check_forget(node->net->check, node->number);
        }
        mn_simq_remove(&node->net->q, &node->timer);
        clear_rx(node);
    }
}

int mn_simnet_bind(struct mn_simnet *net, uint32_t node, struct mn_stack *stack)
{
    struct simnode *n = sim_node(net, node);

    if (n == NULL || n->kind != NODE_HOST) {
        return -EINVAL;
    }
    if (stack == NULL) {
        sim_unbind(n);
        return 0;
    }
    if (stack->group != net->group || stack->driver_slot != NULL) {
        return -EINVAL;
    }
    if (n->stack != NULL) {
        return -EBUSY;
    }
    n->stack = stack;
    stack->driver_slot = n;
    rebase(n, sim_now(net));
    sim_touch(n);
    return 0;
}

int mn_simnet_pause(struct mn_simnet *net, uint32_t node, bool paused)
{
    struct simnode *n = sim_node(net, node);

    if (n == NULL || n->kind != NODE_HOST) {
        return -EINVAL;
    }
    n->paused = paused;
    if (paused) {
        mn_simq_remove(&net->q, &n->timer);
    } else {
        sim_touch(n);
    }
    return 0;
}

int mn_simnet_down(struct mn_simnet *net, uint32_t node, bool down)
{
    struct simnode *n = sim_node(net, node);

    if (n == NULL) {
        return -EINVAL;
    }
    n->down = down;
    n->nic.link_up = !down;
    if (down) {
        mn_simq_remove(&net->q, &n->timer);
        clear_rx(n);
        mactab_fini(&n->macs);
    } else {
        sim_touch(n);
    }
    return 0;
}

/* ---- one moment ---------------------------------------------------------------------------- */

static void dir_due(struct mn_simnet *net, struct simdir *d)
{
    struct mn_pkt *pkt = pktlist_pop(&d->way);

    if (d->way.head != NULL) {
        const struct simpkt *next = simpkt_of(d->way.head);

        mn_simq_set(&net->q, &d->ev, next->t_ns, next->seq);
    } else {
        mn_simq_remove(&net->q, &d->ev);
    }
    sim_arrive(d, pkt);
}

static void event_due(struct mn_simnet *net)
{
    const struct mn_simq_entry *top = &net->q.heap[0];
    struct mn_simq_entry e;

    if (MN_LIKELY(top->kind == MN_SIMQ_DIR)) {
        dir_due(net, ((struct mn_simev *)top->what)->what);
        return;
    }
    e = mn_simq_pop(&net->q);
    if (e.kind == MN_SIMQ_FRAME) {
        sim_arrive(&net->links[e.arg / 2]->dirs[e.arg % 2], e.what);
    } else if (e.kind == MN_SIMQ_HOST) {
        sim_touch(((struct mn_simev *)e.what)->what);
    } else {
        sim_call_run(net, ((struct mn_simev *)e.what)->what);
    }
}

/* Each event and each poll counts, so that hosts that keep each other busy are found out. */
static int count_instant(struct mn_simnet *net, uint64_t now_ns)
{
    if (net->instant_ns != now_ns) {
        net->instant_ns = now_ns;
        net->instant = 0;
    }
    if (MN_LIKELY(net->instant++ < net->instant_max)) {
        return 0;
    }
    net->instant = 0;
    sim_error(net, "more than %llu events and polls at one moment of time",
              (unsigned long long)net->instant_max);
    return -ELOOP;
}

static int step(struct mn_simnet *net)
{
    uint64_t now_ns = sim_now(net);

    for (;;) {
        struct simnode *node;
        int rc = count_instant(net, now_ns);

        if (rc < 0) {
            return rc;
        }
        if (mn_simq_next(&net->q) <= now_ns) {
            net->stats.events++;
            event_due(net);
        } else {
            node = next_ready(net);
            if (node == NULL) {
                return 0;
            }
            poll_node(node);
        }
        if (MN_UNLIKELY(net->aborted != 0)) {
            rc = net->aborted;
            net->aborted = 0;
            return rc;
        }
    }
}

static int driver_settle(void *ctx)
{
    struct mn_simnet *net = ctx;
    int rc;

    if (net->stepping) {
        return -EBUSY;
    }
    net->stepping = true;
    rc = step(net);
    net->stepping = false;
    return rc;
}

static uint64_t driver_next(void *ctx)
{
    const struct mn_simnet *net = ctx;

    return net->ready_head != NULL ? sim_now(net) : mn_simq_next(&net->q);
}

static int driver_go(void *ctx, uint64_t *to_ns)
{
    struct mn_simnet *net = ctx;
    uint64_t end_ns = net->end_ns != 0 ? net->end_ns : SIM_TIME_MAX;
    uint64_t now_ns = sim_now(net);

    if (*to_ns > end_ns) {
        *to_ns = mn_max_u64(now_ns, end_ns);
        sim_error(net, "the end of time is at %llu ns", (unsigned long long)end_ns);
        return -ETIME;
    }
    return 0;
}

static void driver_touch(void *ctx, struct mn_stack *s)
{
    (void)ctx;
    if (s->driver_slot != NULL) {
        sim_touch(s->driver_slot);
    }
}

static void driver_removed(void *ctx, struct mn_stack *s)
{
    (void)ctx;
    if (s->driver_slot != NULL) {
        sim_unbind(s->driver_slot);
    }
}

const struct mn_group_driver mn_simnet_driver = {
    .settle = driver_settle,
    .next = driver_next,
    .go = driver_go,
    .touch = driver_touch,
    .removed = driver_removed,
};

uint64_t mn_simnet_next(struct mn_simnet *net)
{
    return driver_next(net);
}
