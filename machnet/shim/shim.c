/* SPDX-License-Identifier: MIT */
/* The process's connection to the sidecar, and the life of channels. */
#include "shim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mn_shim_conn *conn; /* of this process; its channels may be on older ones */
static bool inited;               /* machnet_init has succeeded here or in a parent */
static MachnetChannelCtx_t *all;  /* so that a program that ends without detaching leaks nothing */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

/* After client.c's. */
static __attribute__((constructor(201))) void watch_forks(void)
{
    (void)pthread_atfork(before_fork, after_fork, after_fork);
}

void mn_shim_debug(const char *call, int rc, const char *why)
{
    const char *set = getenv("MACHNET_DEBUG");

    if (set != NULL && set[0] != '\0' && strcmp(set, "0") != 0) {
        fprintf(stderr, "machnet: %s: %s%s%s\n", call, strerror(-rc), why[0] != '\0' ? ": " : "",
                why);
    }
}

/* Under the lock. */
static void conn_put(struct mn_shim_conn *c)
{
    if (c != NULL && --c->refs == 0) {
        mn_client_close(c->client);
        free(c);
    }
}

/* Under the lock: the process's connection is one that works. */
static int conn_ensure(void)
{
    char why[MN_CTRL_WHY_BYTES + 160];
    struct mn_shim_conn *c;
    int rc;

    if (conn != NULL && mn_client_alive(conn->client)) {
        return 0;
    }
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return -ENOMEM;
    }
    rc = mn_client_open(&c->client, NULL, NULL, why, sizeof(why));
    if (rc < 0) {
        mn_shim_debug("connecting", rc, why);
        free(c);
        return rc;
    }
    c->refs = 1;
    conn_put(conn);
    conn = c;
    return 0;
}

int mn_shim_init(void)
{
    int rc;

    pthread_mutex_lock(&lock);
    rc = conn_ensure();
    if (rc == 0) {
        inited = true;
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

int mn_shim_socket(void)
{
    int fd;

    pthread_mutex_lock(&lock);
    fd = conn != NULL ? mn_client_fd(conn->client) : -1;
    pthread_mutex_unlock(&lock);
    return fd;
}

static void ctx_free(MachnetChannelCtx_t *ctx)
{
    free(ctx->flows);
    free(ctx->buckets);
    free(ctx->listeners);
    free(ctx->streams);
    free(ctx->scratch);
    free(ctx);
}

/* Under the lock: a channel on the process's connection, a new one if the old one is gone. */
static int ctx_attach(MachnetChannelCtx_t *ctx)
{
    char why[MN_CTRL_WHY_BYTES];
    int rc = inited ? 0 : -ENOTCONN;

    if (rc < 0) {
        mn_shim_debug("attaching", rc, "machnet_init comes first");
        return rc;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        rc = conn_ensure();
        if (rc < 0) {
            return rc;
        }
        rc = mn_client_attach(conn->client, NULL, MN_SHIM_SPIN_NS, &ctx->chan, &ctx->channel_id,
                              NULL);
        if (rc != -EPIPE) {
            break;
        }
        conn_put(conn); /* the sidecar died a moment ago; there may be another one */
        conn = NULL;
    }
    if (rc == 0) {
        ctx->conn = conn;
        conn->refs++;
    } else if (conn != NULL) {
        mn_client_why(conn->client, why, sizeof(why));
        mn_shim_debug("attaching", rc, why);
    }
    return rc == -EPIPE ? -ECONNREFUSED : rc;
}

int mn_shim_attach(MachnetChannelCtx_t **out)
{
    const char *name = getenv("MACHNET_PROTOCOL");
    int protocol = mn_shim_parse_protocol(name);
    MachnetChannelCtx_t *ctx;
    int rc;

    if (protocol < 0) {
        mn_shim_debug("attaching", protocol, "MACHNET_PROTOCOL is none of udp, tcp and stream");
        return protocol;
    }
    ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL) {
        return -ENOMEM;
    }
    ctx->protocol = protocol;
    ctx->forks = mn_client_forks();
    rc = mn_shim_flows_init(ctx);
    if (rc == 0) {
        pthread_mutex_lock(&lock);
        rc = ctx_attach(ctx);
        if (rc == 0) {
            ctx->next = all;
            all = ctx;
        }
        pthread_mutex_unlock(&lock);
    }
    if (rc < 0) {
        ctx_free(ctx);
        return rc;
    }
    *out = ctx;
    return 0;
}

int mn_shim_detach(MachnetChannelCtx_t *ctx)
{
    int rc = 0;

    /* A forked child only forgets: shared memory and descriptors are the parent's affair. */
    if (ctx->forks == mn_client_forks()) {
        rc = mn_chan_close(ctx->chan, MN_LINGER_DEFAULT);
        if (rc == 0 || rc == -EPIPE) {
            rc = mn_client_detach(ctx->conn->client, ctx->channel_id, MN_LINGER_DEFAULT);
        }
        mn_chan_free(ctx->chan);
        rc = rc == -EPIPE || rc == -ENOENT ? 0 : rc; /* a dead sidecar holds no channel */
    }
    pthread_mutex_lock(&lock);
    for (MachnetChannelCtx_t **p = &all; *p != NULL; p = &(*p)->next) {
        if (*p == ctx) {
            *p = ctx->next;
            break;
        }
    }
    conn_put(ctx->conn);
    pthread_mutex_unlock(&lock);
    ctx_free(ctx);
    return rc;
}

int mn_shim_enter(MachnetChannelCtx_t *ctx)
{
    if (MN_UNLIKELY(ctx == NULL)) {
        return -EINVAL;
    }
    if (MN_UNLIKELY(ctx->forks != mn_client_forks())) {
        return -ECHILD;
    }
#ifdef MN_SHIM_CHECKED
    if (atomic_exchange_explicit(&ctx->users, 1, memory_order_acquire) != 0) {
        mn_shim_debug("threads", -EBUSY, "another thread is using this channel: attach one each");
        return -EBUSY;
    }
#endif
    return 0;
}

void mn_shim_leave(MachnetChannelCtx_t *ctx)
{
#ifdef MN_SHIM_CHECKED
    atomic_store_explicit(&ctx->users, 0, memory_order_release);
#else
    (void)ctx;
#endif
}

uint8_t *mn_shim_scratch(MachnetChannelCtx_t *ctx, uint64_t bytes)
{
    if (bytes > ctx->scratch_bytes) {
        uint8_t *grown = malloc(bytes);

        if (grown == NULL) {
            return NULL;
        }
        free(ctx->scratch);
        ctx->scratch = grown;
        ctx->scratch_bytes = bytes;
    }
    return ctx->scratch;
}
