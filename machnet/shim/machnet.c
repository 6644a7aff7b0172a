/* SPDX-License-Identifier: MIT */
/* The C interface of machnet.h. */
#include "shim.h"

#ifndef MN_VERSION
#define MN_VERSION "0.1.0"
#endif

/* -1 and errno. */
static int fail(const char *call, int64_t rc)
{
    mn_shim_debug(call, (int)rc, "");
    errno = (int)-rc;
    return -1;
}

static int result(const char *call, int64_t rc)
{
    return MN_LIKELY(rc >= 0) ? (int)rc : fail(call, rc);
}

/* What a receive returns: the end of a flow is an error like others, but EMSGSIZE means a message
 * that stays. */
static int received(const char *call, int rc, uint32_t *len)
{
    if (rc == MN_SHIM_END) {
        rc = *len == EMSGSIZE ? -EPROTO : -(int)*len;
        *len = 0;
    }
    return result(call, rc);
}

static bool msghdr_ok(const MachnetMsgHdr_t *msghdr)
{
    return msghdr != NULL && (msghdr->msg_iov != NULL || msghdr->msg_iovlen == 0);
}

MN_SHIM_API int machnet_init(void)
{
    return result("machnet_init", mn_shim_init());
}

MN_SHIM_API MachnetChannelCtx_t *machnet_attach(void)
{
    MachnetChannelCtx_t *ctx;
    int rc = mn_shim_attach(&ctx);

    if (rc < 0) {
        (void)fail("machnet_attach", rc);
        return NULL;
    }
    return ctx;
}

MN_SHIM_API int machnet_detach(MachnetChannelCtx_t *ctx)
{
    int rc;

    if (ctx == NULL) {
        return fail("machnet_detach", -EINVAL);
    }
    rc = mn_shim_enter(ctx);
    /* A child of fork gives back its copy. */
    return result("machnet_detach", rc == 0 || rc == -ECHILD ? mn_shim_detach(ctx) : rc);
}

MN_SHIM_API int machnet_set_protocol(MachnetChannelCtx_t *ctx, int protocol)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        if (mn_shim_protocol_ok(protocol)) {
            ctx->protocol = protocol;
        } else {
            rc = -EINVAL;
        }
        mn_shim_leave(ctx);
    }
    return result("machnet_set_protocol", rc);
}

MN_SHIM_API int machnet_fd(MachnetChannelCtx_t *ctx)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_chan_fd(ctx->chan);
        mn_shim_leave(ctx);
    }
    return result("machnet_fd", rc);
}

MN_SHIM_API const char *machnet_version(void)
{
    return MN_VERSION;
}

MN_SHIM_API int machnet_listen_proto(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port,
                                     int protocol)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_shim_listen(ctx, local_ip, port, protocol);
        mn_shim_leave(ctx);
    }
    return result("machnet_listen", rc);
}

MN_SHIM_API int machnet_listen(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port)
{
    return machnet_listen_proto(ctx, local_ip, port, ctx != NULL ? ctx->protocol : 0);
}

MN_SHIM_API int machnet_unlisten(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_shim_unlisten(ctx, local_ip, port);
        mn_shim_leave(ctx);
    }
    return result("machnet_unlisten", rc);
}

MN_SHIM_API int machnet_connect_proto(MachnetChannelCtx_t *ctx, const char *local_ip,
                                      const char *remote_ip, uint16_t remote_port,
                                      MachnetFlow_t *flow, int protocol)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_shim_connect(ctx, local_ip, remote_ip, remote_port, protocol, flow);
        mn_shim_leave(ctx);
    }
    return result("machnet_connect", rc);
}

MN_SHIM_API int machnet_connect(MachnetChannelCtx_t *ctx, const char *local_ip,
                                const char *remote_ip, uint16_t remote_port, MachnetFlow_t *flow)
{
    int protocol = ctx != NULL ? ctx->protocol : 0;

    return machnet_connect_proto(ctx, local_ip, remote_ip, remote_port, flow, protocol);
}

MN_SHIM_API int machnet_close(MachnetChannelCtx_t *ctx, MachnetFlow_t flow)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_shim_close(ctx, &flow);
        mn_shim_leave(ctx);
    }
    return result("machnet_close", rc);
}

MN_SHIM_API int machnet_flow_error(MachnetChannelCtx_t *ctx, MachnetFlow_t flow)
{
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = mn_shim_flow_error(ctx, &flow);
        mn_shim_leave(ctx);
    }
    return result("machnet_flow_error", rc);
}

MN_SHIM_API int machnet_send(MachnetChannelCtx_t *ctx, MachnetFlow_t flow, const void *buf,
                             size_t len, MachnetMsgId_t *msg_id)
{
    int64_t rc = mn_shim_enter(ctx);

    if (MN_UNLIKELY(rc < 0)) {
        return fail("machnet_send", rc);
    }
    rc = mn_shim_send(ctx, &flow, buf, len);
    if (MN_LIKELY(rc >= 0) && msg_id != NULL) {
        *msg_id = ctx->msgs;
    }
    mn_shim_leave(ctx);
    return result("machnet_send", rc);
}

MN_SHIM_API int machnet_sendmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msghdr)
{
    int64_t rc = mn_shim_enter(ctx);

    if (rc < 0) {
        return fail("machnet_sendmsg", rc);
    }
    rc = mn_shim_sendmsg(ctx, msghdr);
    mn_shim_leave(ctx);
    return result("machnet_sendmsg", rc);
}

MN_SHIM_API int machnet_sendmmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msghdrs, int n)
{
    int64_t rc = mn_shim_enter(ctx);
    int sent = 0;

    if (rc < 0 || n < 0 || (msghdrs == NULL && n > 0)) {
        if (rc == 0) {
            mn_shim_leave(ctx);
        }
        return fail("machnet_sendmmsg", rc < 0 ? rc : -EINVAL);
    }
    while (rc >= 0 && sent < n) {
        const struct mn_shim_flow *f = mn_shim_flow_find(ctx, &msghdrs[sent].flow_info);

        rc = f != NULL && f->stream ? -EINVAL : mn_shim_sendmsg(ctx, &msghdrs[sent]);
        sent += rc >= 0;
    }
    mn_shim_leave(ctx);
    if (rc < 0) {
        (void)fail("machnet_sendmmsg", rc);
    }
    return sent;
}

MN_SHIM_API int machnet_recv(MachnetChannelCtx_t *ctx, void *buf, size_t buf_size,
                             MachnetFlow_t *flow)
{
    int rc = mn_shim_enter(ctx);
    uint32_t len = 0;

    if (MN_UNLIKELY(rc < 0 || flow == NULL || (buf == NULL && buf_size > 0))) {
        if (rc == 0) {
            mn_shim_leave(ctx);
        }
        return fail("machnet_recv", rc < 0 ? rc : -EINVAL);
    }
    rc = mn_shim_recv(ctx, buf, buf_size, flow, &len);
    mn_shim_leave(ctx);
    rc = received("machnet_recv", rc, &len);
    return MN_LIKELY(rc >= 0) ? (int)len : rc;
}

MN_SHIM_API int machnet_recvmsg(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msghdr)
{
    int rc = mn_shim_enter(ctx);

    if (rc < 0 || !msghdr_ok(msghdr)) {
        if (rc == 0) {
            mn_shim_leave(ctx);
        }
        return fail("machnet_recvmsg", rc < 0 ? rc : -EINVAL);
    }
    rc = mn_shim_recvmsg(ctx, msghdr);
    mn_shim_leave(ctx);
    return received("machnet_recvmsg", rc, &msghdr->msg_size);
}

MN_SHIM_API int machnet_recv_wait(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msghdr,
                                  int64_t timeout_us)
{
    int rc = mn_shim_enter(ctx);

    if (rc < 0 || !msghdr_ok(msghdr)) {
        if (rc == 0) {
            mn_shim_leave(ctx);
        }
        return fail("machnet_recv_wait", rc < 0 ? rc : -EINVAL);
    }
    rc = mn_shim_recv_wait(ctx, msghdr, timeout_us);
    mn_shim_leave(ctx);
    return received("machnet_recv_wait", rc, &msghdr->msg_size);
}
