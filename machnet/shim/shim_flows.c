/* SPDX-License-Identifier: MIT */
/* From addresses, which is what programs have in their hands, to flows and back. */
#include <stdlib.h>

#include "shim.h"

#define SLOTS       65536u
#define BUCKET_BITS 14u

int mn_shim_flows_init(MachnetChannelCtx_t *ctx)
{
    int rc = mn_host_random((uint8_t *)ctx->keys, sizeof(ctx->keys));

    /* Pages that are never written take no memory. */
    ctx->flows = calloc(SLOTS, sizeof(*ctx->flows));
    ctx->buckets = calloc(1u << BUCKET_BITS, sizeof(*ctx->buckets));
    return ctx->flows == NULL || ctx->buckets == NULL ? -ENOMEM : rc;
}

/* Multiply-shift with secret factors: peers choose their addresses, not their buckets. */
static uint32_t bucket_of(const MachnetChannelCtx_t *ctx, const MachnetFlow_t *a)
{
    uint64_t ips = (uint64_t)a->src_ip << 32 | a->dst_ip;
    uint64_t ports = (uint64_t)a->src_port << 16 | a->dst_port;
    uint64_t sum =
        (ips + ctx->keys[0]) * (ctx->keys[1] | 1) + (ports + ctx->keys[2]) * (ctx->keys[3] | 1);

    return (uint32_t)((sum ^ sum >> 32) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - BUCKET_BITS));
}

static bool same(const MachnetFlow_t *a, const MachnetFlow_t *b)
{
    return a->src_ip == b->src_ip && a->dst_ip == b->dst_ip && a->src_port == b->src_port &&
           a->dst_port == b->dst_port;
}

static void forget(MachnetChannelCtx_t *ctx, struct mn_shim_flow *f)
{
    uint32_t number = (uint32_t)(f - ctx->flows) + 1;

    for (uint32_t *p = &ctx->buckets[bucket_of(ctx, &f->addr)]; *p != 0;
         p = &ctx->flows[*p - 1].next) {
        if (*p == number) {
            *p = f->next;
            break;
        }
    }
    f->known = false;
}

/* A slot has one flow after the other: a new one takes the old one's record. */
static struct mn_shim_flow *learn(MachnetChannelCtx_t *ctx, uint32_t id)
{
    struct mn_shim_flow *f = &ctx->flows[MN_FLOW_SLOT(id)];
    struct mn_app_flow_info info;
    uint32_t *bucket;

    if (mn_chan_flow_info(ctx->chan, id, &info) < 0) {
        return NULL;
    }
    if (f->known) {
        forget(ctx, f);
    }
    *f = (struct mn_shim_flow){
        .addr = {info.local_ip, info.remote_ip, info.local_port, info.remote_port},
        .id = id,
        .known = true,
        .stream = info.proto == MN_PROTO_STREAM,
    };
    bucket = &ctx->buckets[bucket_of(ctx, &f->addr)];
    f->next = *bucket;
    *bucket = MN_FLOW_SLOT(id) + 1;
    return f;
}

struct mn_shim_flow *mn_shim_flow(MachnetChannelCtx_t *ctx, uint32_t id)
{
    struct mn_shim_flow *f = &ctx->flows[MN_FLOW_SLOT(id)];

    return MN_LIKELY(f->known && f->id == id) ? f : learn(ctx, id);
}

/* The newest one of these addresses. */
static struct mn_shim_flow *look(MachnetChannelCtx_t *ctx, const MachnetFlow_t *addr)
{
    for (uint32_t n = ctx->buckets[bucket_of(ctx, addr)]; n != 0; n = ctx->flows[n - 1].next) {
        if (same(&ctx->flows[n - 1].addr, addr)) {
            return &ctx->flows[n - 1];
        }
    }
    return NULL;
}

bool mn_shim_flow_has_twin(MachnetChannelCtx_t *ctx, const struct mn_shim_flow *f)
{
    for (uint32_t n = ctx->buckets[bucket_of(ctx, &f->addr)]; n != 0; n = ctx->flows[n - 1].next) {
        const struct mn_shim_flow *other = &ctx->flows[n - 1];
        struct mn_app_flow_info info;

        if (other != f && same(&other->addr, &f->addr) &&
            mn_chan_flow_info(ctx->chan, other->id, &info) == 0 && info.live) {
            return true;
        }
    }
    return false;
}

void mn_shim_flow_forget(MachnetChannelCtx_t *ctx, uint32_t id)
{
    struct mn_shim_flow *f = &ctx->flows[MN_FLOW_SLOT(id)];

    if (f->known && f->id == id) {
        forget(ctx, f);
    }
}

static struct mn_shim_flow *look_both_ways(MachnetChannelCtx_t *ctx, const MachnetFlow_t *a)
{
    const MachnetFlow_t swapped = {a->dst_ip, a->src_ip, a->dst_port, a->src_port};
    struct mn_shim_flow *f = look(ctx, a);

    return f != NULL ? f : look(ctx, &swapped);
}

/* Flows that have brought no message yet. */
static void learn_all(MachnetChannelCtx_t *ctx)
{
    uint32_t *ids = malloc(SLOTS * sizeof(*ids));
    int64_t n;

    (void)mn_chan_ready(ctx->chan); /* takes in those that the engine has just named */
    n = ids != NULL ? mn_chan_flows(ctx->chan, ids, SLOTS) : 0;
    for (int64_t i = 0; i < n && i < SLOTS; i++) {
        (void)mn_shim_flow(ctx, ids[i]);
    }
    free(ids);
}

struct mn_shim_flow *mn_shim_flow_find(MachnetChannelCtx_t *ctx, const MachnetFlow_t *addr)
{
    struct mn_shim_flow *f = look_both_ways(ctx, addr);

    if (MN_LIKELY(f != NULL)) {
        return f;
    }
    learn_all(ctx);
    return look_both_ways(ctx, addr);
}
