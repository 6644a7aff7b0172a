/* SPDX-License-Identifier: MIT */
/* Calls on schedule, lists of faults, idleness, counters. */
#include "simnet_int.h"

#include <sched.h>
#include <stdlib.h>

#define CALLS_MAX (1u << 24)
#define ONLY_MAX  (UINT64_C(1) << 20)

/* ---- calls --------------------------------------------------------------------------------- */

static int calls_grow(struct mn_simnet *net)
{
    uint32_t cap = net->calls_cap == 0 ? 16 : 2 * net->calls_cap;
    struct simcall **calls;
    uint32_t *list;

    if (cap > CALLS_MAX) {
        return -ENOMEM;
    }
    calls = realloc(net->calls, cap * sizeof(struct simcall *));
    if (calls == NULL) {
        return -ENOMEM;
    }
    net->calls = calls;
    list = realloc(net->calls_free, cap * sizeof(*list));
    if (list == NULL) {
        return -ENOMEM;
    }
    net->calls_free = list;
    net->calls_cap = cap;
    return 0;
}

/* A free one, made if need be; NULL: no memory. */
static struct simcall *call_get(struct mn_simnet *net)
{
    struct simcall *call;

    if (net->calls_free_n > 0) {
        return net->calls[net->calls_free[--net->calls_free_n]];
    }
    if (net->calls_n == net->calls_cap && calls_grow(net) < 0) {
        return NULL;
    }
    call = calloc(1, sizeof(*call));
    if (call == NULL || mn_simq_reserve(&net->q) < 0) {
        free(call);
        return NULL;
    }
    call->ev = (struct mn_simev){.kind = MN_SIMQ_CALL, .what = call};
    call->slot = net->calls_n;
    net->calls[net->calls_n++] = call;
    return call;
}

static void call_put(struct mn_simnet *net, struct simcall *call)
{
    call->live = false;
    net->calls_free[net->calls_free_n++] = call->slot;
    net->n_calls--;
}

int64_t mn_simnet_at(struct mn_simnet *net, uint64_t t_ns, void (*fn)(void *ctx, uint64_t arg),
                     void *ctx, uint64_t arg)
{
    struct simcall *call = call_get(net);

    if (call == NULL) {
        return -ENOMEM;
    }
    call->fn = fn;
    call->ctx = ctx;
    call->arg = arg;
    call->live = true;
    call->gen = (call->gen + 1) & 0x7fffffffu;
    net->n_calls++;
    mn_simq_set(&net->q, &call->ev, mn_max_u64(t_ns, sim_now(net)), net->q.seq++);
    return (int64_t)call->gen << 32 | (call->slot + 1);
}

int mn_simnet_cancel(struct mn_simnet *net, int64_t id)
{
    uint32_t slot = (uint32_t)id - 1;
    struct simcall *call = id > 0 && slot < net->calls_n ? net->calls[slot] : NULL;

    if (call == NULL || !call->live || call->gen != (uint32_t)(id >> 32)) {
        return -ENOENT;
    }
    mn_simq_remove(&net->q, &call->ev);
    call_put(net, call);
    return 0;
}

/* The group is free meanwhile, so that stacks can be opened and closed; a step is refused because
 * this one is not over. */
void sim_call_run(struct mn_simnet *net, struct simcall *call)
{
    void (*fn)(void *ctx, uint64_t arg) = call->fn;
    void *ctx = call->ctx;
    uint64_t arg = call->arg;

    call_put(net, call);
    if (fn == NULL) {
        net->group->wakeups++;
        return;
    }
    mn_group_leave(net->group);
    fn(ctx, arg);
    while (!mn_group_enter(net->group)) {
        sched_yield(); /* another thread is about to be refused */
    }
}

void sim_calls_free(struct mn_simnet *net)
{
    for (uint32_t i = 0; i < net->calls_n; i++) {
        free(net->calls[i]);
    }
    free(net->calls);
    free(net->calls_free);
}

/* ---- faults -------------------------------------------------------------------------------- */

static int fault_order(const void *a, const void *b)
{
    const struct mn_fault_id *x = a, *y = b;
    const uint64_t left[] = {x->link, x->dir, x->kind, x->frame_no};
    const uint64_t right[] = {y->link, y->dir, y->kind, y->frame_no};

    for (uint32_t i = 0; i < MN_ARRAY_LEN(left); i++) {
        if (left[i] != right[i]) {
            return left[i] < right[i] ? -1 : 1;
        }
    }
    return 0;
}

static bool listed(const struct simdir *d, enum mn_fault kind, uint64_t frame_no,
                   const struct mn_fault_id *list, uint64_t n)
{
    struct mn_fault_id id = {
        .link = d->link, .dir = d->dir, .kind = (uint32_t)kind, .frame_no = frame_no};

    return n > 0 && bsearch(&id, list, n, sizeof(id), fault_order) != NULL;
}

static bool permit(void *ctx, enum mn_fault kind, uint64_t frame_no)
{
    const struct simdir *d = ctx;

    return listed(d, kind, frame_no, d->net->only, d->net->n_only);
}

static bool force(void *ctx, enum mn_fault kind, uint64_t frame_no)
{
    const struct simdir *d = ctx;

    return listed(d, kind, frame_no, d->net->forced, d->net->n_forced) &&
           (!d->net->only_set || permit(ctx, kind, frame_no));
}

void sim_permit_apply(struct simdir *d)
{
    d->shaper.permit = d->net->only_set ? permit : NULL;
    d->shaper.permit_ctx = d;
    d->shaper.force = d->net->n_forced > 0 ? force : NULL;
    d->shaper.force_ctx = d;
}

static void permit_apply_all(struct mn_simnet *net)
{
    for (uint32_t i = 0; i < net->n_links; i++) {
        sim_permit_apply(&net->links[i]->dirs[0]);
        sim_permit_apply(&net->links[i]->dirs[1]);
    }
}

/* A sorted copy in place of what is there. */
static int list_replace(struct mn_fault_id **there, uint64_t *n_there,
                        const struct mn_fault_id *ids, uint64_t n)
{
    struct mn_fault_id *list = NULL;

    if (n > ONLY_MAX || (ids == NULL && n > 0)) {
        return -EINVAL;
    }
    if (n > 0) {
        list = malloc(n * sizeof(*list));
        if (list == NULL) {
            return -ENOMEM;
        }
        memcpy(list, ids, n * sizeof(*list));
        qsort(list, n, sizeof(*list), fault_order);
    }
    free(*there);
    *there = list;
    *n_there = n;
    return 0;
}

int mn_simnet_only(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n)
{
    int rc = list_replace(&net->only, &net->n_only, ids, n);

    if (rc == 0) {
        net->only_set = ids != NULL;
        permit_apply_all(net);
    }
    return rc;
}

int mn_simnet_force(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n)
{
    int rc = list_replace(&net->forced, &net->n_forced, ids, n);

    if (rc == 0) {
        permit_apply_all(net);
    }
    return rc;
}

static bool faults_room(struct mn_simnet *net)
{
    uint64_t cap = net->faults_cap == 0 ? 64 : 2 * net->faults_cap;
    struct mn_fault_id *faults;

    if (net->n_faults < net->faults_cap) {
        return true;
    }
    faults = cap <= FAULTS_KEPT_MAX ? realloc(net->faults, cap * sizeof(*faults)) : NULL;
    if (faults == NULL) {
        return false;
    }
    net->faults = faults;
    net->faults_cap = cap;
    return true;
}

void sim_fault_note(struct simdir *d, const struct mn_verdict *v)
{
    for (uint32_t kind = MN_FAULT_LOSS; kind <= MN_FAULT_CORRUPT; kind++) {
        if ((v->faults & MN_FAULT_BIT(kind)) != 0 && faults_room(d->net)) {
            d->net->faults[d->net->n_faults++] = (struct mn_fault_id){
                .link = d->link, .dir = d->dir, .kind = kind, .frame_no = v->frame_no};
        }
    }
}

uint64_t mn_simnet_faults(const struct mn_simnet *net, uint64_t from, struct mn_fault_id *out,
                          uint64_t n)
{
    if (from >= net->n_faults || n == 0) {
        return 0;
    }
    n = mn_min_u64(n, net->n_faults - from);
    memcpy(out, net->faults + from, n * sizeof(*out));
    return n;
}

/* ---- idleness and counters ----------------------------------------------------------------- */

bool mn_simnet_is_idle(struct mn_simnet *net, struct mn_simnet_idle *out)
{
    *out = (struct mn_simnet_idle){.frames = net->in_flight, .calls = net->n_calls, .node = -1};
    for (uint32_t i = 0; i < net->n_nodes; i++) {
        const struct simnode *node = net->nodes[i];
        uint32_t timers;

        if (node->kind != NODE_HOST || node->paused || node->down || node->stack == NULL) {
            continue;
        }
        out->frames += node->rx.n;
        timers = mn_engine_pending(node->stack->engine);
        out->timers += timers;
        if (timers > 0 && out->node < 0) {
            out->node = (int32_t)i;
        }
    }
    return out->frames == 0 && out->calls == 0 && out->timers == 0;
}

void mn_simnet_get_stats(const struct mn_simnet *net, struct mn_simnet_stats *out)
{
    *out = net->stats;
    out->pool_live = net->pool.live;
    out->queued = net->q.n;
}

int mn_simnet_link_stats(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                         struct mn_link_stats *out)
{
    struct simdir *dirs[2];

    if (dir > 1 || sim_dirs(net, link, dir, dirs) < 0) {
        return -EINVAL;
    }
    *out = (struct mn_link_stats){
        .frames = dirs[0]->shaper.frames, .bytes = dirs[0]->bytes, .delivered = dirs[0]->delivered};
    static_assert(sizeof(out->faults) == sizeof(dirs[0]->shaper.count), "counted alike");
    memcpy(out->faults, dirs[0]->shaper.count, sizeof(out->faults));
    return 0;
}
