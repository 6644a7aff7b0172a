/* SPDX-License-Identifier: MIT */
/* Stream flows: accepted as they come, read in turn. */
#include <stdlib.h>

#include "shim.h"

int mn_shim_stream_add(MachnetChannelCtx_t *ctx, uint32_t id)
{
    if (ctx->n_streams == ctx->streams_cap) {
        uint32_t cap = ctx->streams_cap == 0 ? 16 : 2 * ctx->streams_cap;
        uint32_t *grown = realloc(ctx->streams, cap * sizeof(*grown));

        if (grown == NULL) {
            return -ENOMEM;
        }
        ctx->streams = grown;
        ctx->streams_cap = cap;
    }
    ctx->streams[ctx->n_streams++] = id;
    return 0;
}

void mn_shim_stream_drop(MachnetChannelCtx_t *ctx, uint32_t id)
{
    for (uint32_t i = 0; i < ctx->n_streams; i++) {
        if (ctx->streams[i] == id) {
            ctx->streams[i] = ctx->streams[--ctx->n_streams];
            return;
        }
    }
}

static void accept_all(MachnetChannelCtx_t *ctx)
{
    for (uint32_t i = 0; i < ctx->n_listeners; i++) {
        const struct mn_shim_listener *l = &ctx->listeners[i];
        int64_t id;

        while (l->stream && (id = mn_chan_accept(ctx->chan, l->id)) >= 0) {
            if (mn_shim_stream_add(ctx, (uint32_t)id) < 0) {
                (void)mn_chan_close_flow(ctx->chan, (uint32_t)id, 0);
            }
        }
    }
}

int64_t mn_shim_stream_recv(MachnetChannelCtx_t *ctx, void *buf, uint64_t size, uint32_t *id)
{
    if (ctx->n_stream_listeners != 0) {
        accept_all(ctx);
    }
    for (uint32_t tried = ctx->n_streams; size != 0 && tried > 0; tried--) {
        uint32_t at = ctx->next_stream < ctx->n_streams ? ctx->next_stream : 0;
        int64_t n;

        *id = ctx->streams[at];
        n = mn_chan_stream_recv(ctx->chan, *id, buf, size, 0);
        if (n == 0 || (n < 0 && n != -EAGAIN)) {
            mn_shim_stream_drop(ctx,
                                *id); /* the last one has come here: look at this place again */
            if (n == 0) {
                continue; /* a clean end; sending may go on */
            }
            (void)mn_shim_flow(ctx, *id); /* its addresses, before it is forgotten */
            (void)mn_chan_close_flow(ctx->chan, *id, 0);
            return n;
        }
        ctx->next_stream = at + 1;
        if (n > 0) {
            return n;
        }
    }
    return -EAGAIN;
}
