/* SPDX-License-Identifier: MIT */
/* Listeners, connects, closes. */
#include <arpa/inet.h>
#include <stdlib.h>

#include "shim.h"

/* See shim_msg.c. */
#define NAP_NS (50 * MN_NS_PER_MS)

int mn_shim_parse_protocol(const char *name)
{
    static const char *const names[] = {"udp", "tcp", "stream"};

    if (name == NULL || name[0] == '\0') {
        return MACHNET_PROTO_UDP;
    }
    for (int i = 0; i < (int)MN_ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    return -EINVAL;
}

bool mn_shim_protocol_ok(int protocol)
{
    int transport = protocol & ~MACHNET_NO_EINTR;

    return transport >= MACHNET_PROTO_UDP && transport <= MACHNET_PROTO_STREAM;
}

static int parse_ip(const char *text, uint32_t *ip)
{
    struct in_addr addr;

    if (text == NULL || inet_pton(AF_INET, text, &addr) != 1) {
        return -EINVAL;
    }
    *ip = ntohl(addr.s_addr);
    return 0;
}

/* The answer to a command: its status, or -EINTR, -ETIMEDOUT (then nobody waits for it any more).
 */
static int await(MachnetChannelCtx_t *ctx, int64_t token, struct mn_ctl_evt *evt,
                 uint32_t timeout_ms, bool no_eintr)
{
    uint64_t end_ns = mn_host_now_ns() + timeout_ms * MN_NS_PER_MS;
    bool late = false;
    int rc;

    if (token < 0) {
        return (int)token;
    }
    for (;;) {
        uint64_t now_ns;

        rc = mn_chan_result(ctx->chan, token, evt);
        if (rc != 0 || late) {
            break;
        }
        rc = mn_chan_wait(ctx->chan, NAP_NS);
        if (rc < 0 && rc != -EPIPE && (rc != -EINTR || !no_eintr)) {
            break;
        }
        now_ns = mn_host_now_ns();
        late = now_ns >= end_ns;
    }
    if (rc == 1) {
        return evt->status;
    }
    (void)mn_chan_forget(ctx->chan, token);
    return rc == 0 ? -ETIMEDOUT : rc;
}

/* Flows are told apart by addresses alone, so one address and port has one transport. */
static bool listens_there(const MachnetChannelCtx_t *ctx, uint32_t ip, uint16_t port)
{
    for (uint32_t i = 0; i < ctx->n_listeners; i++) {
        const struct mn_shim_listener *l = &ctx->listeners[i];

        if (l->port == port && (l->ip == ip || l->ip == 0 || ip == 0)) {
            return true;
        }
    }
    return false;
}

int mn_shim_listen(MachnetChannelCtx_t *ctx, const char *ip, uint16_t port, int protocol)
{
    struct mn_shim_listener *grown;
    struct mn_ctl_evt evt;
    uint32_t address;
    int transport = protocol & ~MACHNET_NO_EINTR;
    int64_t token;
    int rc;

    if (parse_ip(ip, &address) < 0 || port == 0 || !mn_shim_protocol_ok(protocol)) {
        return -EINVAL;
    }
    if (listens_there(ctx, address, port)) {
        return -EADDRINUSE;
    }
    grown = realloc(ctx->listeners, (ctx->n_listeners + 1) * sizeof(*grown));
    if (grown == NULL) {
        return -ENOMEM;
    }
    ctx->listeners = grown;
    token = mn_chan_listen(ctx->chan, address, port, (uint32_t)transport, 0);
    rc = await(ctx, token, &evt, MN_SHIM_COMMAND_MS, (protocol & MACHNET_NO_EINTR) != 0);
    if (rc < 0) {
        return rc;
    }
    grown[ctx->n_listeners++] = (struct mn_shim_listener){
        .ip = address,
        .port = port,
        .stream = transport == MACHNET_PROTO_STREAM,
        .id = (uint32_t)evt.value,
    };
    ctx->n_stream_listeners += transport == MACHNET_PROTO_STREAM;
    return 0;
}

int mn_shim_unlisten(MachnetChannelCtx_t *ctx, const char *ip, uint16_t port)
{
    struct mn_ctl_evt evt;
    uint32_t address;
    int rc = parse_ip(ip, &address);

    for (uint32_t i = 0; rc == 0 && i < ctx->n_listeners; i++) {
        struct mn_shim_listener *l = &ctx->listeners[i];

        if (l->ip == address && l->port == port) {
            rc = await(ctx, mn_chan_unlisten(ctx->chan, l->id), &evt, MN_SHIM_COMMAND_MS, true);
            if (rc == 0) {
                ctx->n_stream_listeners -= l->stream;
                *l = ctx->listeners[--ctx->n_listeners];
            }
            return rc;
        }
    }
    return rc < 0 ? rc : -ENOENT;
}

/* One connect; -EADDRINUSE when the engine chose a port with which a flow of another transport goes
 * to the same peer. */
static int connect_once(MachnetChannelCtx_t *ctx, const struct mn_ctl_cmd *to, bool no_eintr,
                        MachnetFlow_t *flow)
{
    const struct mn_shim_flow *f;
    struct mn_ctl_evt evt;
    int64_t token = mn_chan_connect(ctx->chan, to->local_ip, 0, to->remote_ip, to->remote_port,
                                    to->proto, MN_SHIM_CONNECT_MS);
    /* The engine's limit is the one that counts: it knows why. */
    int rc = await(ctx, token, &evt, MN_SHIM_CONNECT_MS + MN_SHIM_COMMAND_MS, no_eintr);

    if (rc < 0) {
        return rc;
    }
    f = mn_shim_flow(ctx, evt.flow);
    if (f == NULL) {
        rc = -ECONNRESET;
    } else if (mn_shim_flow_has_twin(ctx, f)) {
        mn_shim_flow_forget(ctx, evt.flow);
        rc = -EADDRINUSE;
    } else if (f->stream) {
        rc = mn_shim_stream_add(ctx, evt.flow);
    }
    if (rc < 0) {
        (void)mn_chan_close_flow(ctx->chan, evt.flow, 0);
        return rc;
    }
    *flow = f->addr;
    return 0;
}

int mn_shim_connect(MachnetChannelCtx_t *ctx, const char *local_ip, const char *remote_ip,
                    uint16_t remote_port, int protocol, MachnetFlow_t *flow)
{
    struct mn_ctl_cmd to = {
        .proto = (uint32_t)(protocol & ~MACHNET_NO_EINTR),
        .remote_port = remote_port,
    };
    int rc = -EADDRINUSE;

    if (parse_ip(local_ip, &to.local_ip) < 0 || parse_ip(remote_ip, &to.remote_ip) < 0 ||
        remote_port == 0 || !mn_shim_protocol_ok(protocol) || flow == NULL) {
        return -EINVAL;
    }
    for (int attempt = 0; attempt < 8 && rc == -EADDRINUSE; attempt++) {
        rc = connect_once(ctx, &to, (protocol & MACHNET_NO_EINTR) != 0, flow);
    }
    return rc;
}

int mn_shim_close(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow)
{
    const struct mn_shim_flow *f = mn_shim_flow_find(ctx, flow);

    if (f == NULL) {
        return -ENOTCONN;
    }
    if (f->stream) {
        mn_shim_stream_drop(ctx, f->id);
    }
    return mn_chan_close_flow(ctx->chan, f->id, MN_LINGER_DEFAULT);
}

int mn_shim_flow_error(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow)
{
    const struct mn_shim_flow *f = mn_shim_flow_find(ctx, flow);
    struct mn_app_flow_info info;
    int rc = f != NULL ? mn_chan_flow_info(ctx->chan, f->id, &info) : -ENOENT;

    if (rc == -ENOENT) {
        return ENOTCONN;
    }
    if (rc < 0) {
        return rc;
    }
    return info.error != 0 ? info.error : info.eof || !info.live ? ENOTCONN : 0;
}
