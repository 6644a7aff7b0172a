/* SPDX-License-Identifier: MIT */
/*
 * The interface of the original library, for programs that were built for it: the signatures of its
 * main branch, or with MN_SHIM_COMPAT_TCP those of its TCP branch, whose listen and connect have
 * one argument more. What such programs rely on holds: -1 of a receive means that a message was
 * larger than the buffer, and gone; the end of a flow is never told; nothing is 0.
 */
#define MACHNET_TYPES_ONLY
#include <sys/types.h>

#include "shim.h"

/* What those programs see: the names are the original's. */
MN_SHIM_API extern int g_ctrl_socket;
MN_SHIM_API extern unsigned char g_app_uuid[16];
MN_SHIM_API extern char g_app_uuid_str[37];
int g_ctrl_socket = -1;
unsigned char g_app_uuid[16];
char g_app_uuid_str[37];

static int fail(const char *call, int64_t rc)
{
    mn_shim_debug(call, (int)rc, "");
    errno = (int)-rc;
    return -1;
}

/* RFC 9562, version 4, and its text form. */
static void make_uuid(void)
{
    static const char digits[] = "0123456789abcdef";
    char *to = g_app_uuid_str;

    if (g_app_uuid_str[0] != '\0' || mn_host_random(g_app_uuid, sizeof(g_app_uuid)) < 0) {
        return;
    }
    g_app_uuid[6] = (unsigned char)((g_app_uuid[6] & 0x0f) | 0x40);
    g_app_uuid[8] = (unsigned char)((g_app_uuid[8] & 0x3f) | 0x80);
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) {
            *to++ = '-';
        }
        *to++ = digits[g_app_uuid[i] >> 4];
        *to++ = digits[g_app_uuid[i] & 15];
    }
    *to = '\0';
}

MN_SHIM_API int machnet_init(void);
MN_SHIM_API int machnet_init(void)
{
    int rc = mn_shim_init();

    if (rc < 0) {
        return fail("machnet_init", rc);
    }
    make_uuid();
    g_ctrl_socket = mn_shim_socket();
    return 0;
}

MN_SHIM_API void *machnet_attach(void);
MN_SHIM_API void *machnet_attach(void)
{
    MachnetChannelCtx_t *ctx;
    int rc = mn_shim_attach(&ctx);

    if (rc == 0 && (ctx->protocol & ~MACHNET_NO_EINTR) == MACHNET_PROTO_STREAM) {
        (void)mn_shim_detach(ctx);
        mn_shim_debug("machnet_attach", -EPROTONOSUPPORT, "a stream of bytes has no messages");
        rc = -EPROTONOSUPPORT;
    }
    if (rc < 0) {
        (void)fail("machnet_attach", rc);
        return NULL;
    }
    ctx->no_eintr = true;
    g_ctrl_socket = mn_shim_socket();
    return ctx;
}

/* The original maps the descriptor of a channel with it; nothing but its own attach calls it. */
MN_SHIM_API void *machnet_bind(int fd, size_t *size);
MN_SHIM_API void *machnet_bind(int fd, size_t *size)
{
    (void)fd;
    (void)size;
    (void)fail("machnet_bind", -EOPNOTSUPP);
    return NULL;
}

/* Does nothing there, so that a program may go on using the channel; it ends with the process. */
MN_SHIM_API void machnet_detach(void *ctx);
MN_SHIM_API void machnet_detach(void *ctx)
{
    (void)ctx;
}

static int compat_listen(void *channel, const char *local_ip, uint16_t port, int protocol)
{
    MachnetChannelCtx_t *ctx = channel;
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = protocol == MACHNET_PROTO_STREAM
                 ? -EPROTONOSUPPORT
                 : mn_shim_listen(ctx, local_ip, port, protocol | MACHNET_NO_EINTR);
        mn_shim_leave(ctx);
    }
    if (rc == -EINVAL) {
        (void)fail("machnet_listen", rc);
        return -EINVAL; /* what the original returns for an address that is none */
    }
    return rc < 0 ? fail("machnet_listen", rc) : 0;
}

static int compat_connect(void *channel, const char *local_ip, const char *remote_ip, uint16_t port,
                          MachnetFlow_t *flow, int protocol)
{
    MachnetChannelCtx_t *ctx = channel;
    int rc = mn_shim_enter(ctx);

    if (rc == 0) {
        rc = protocol == MACHNET_PROTO_STREAM ? -EPROTONOSUPPORT
                                              : mn_shim_connect(ctx, local_ip, remote_ip, port,
                                                                protocol | MACHNET_NO_EINTR, flow);
        mn_shim_leave(ctx);
    }
    return rc < 0 ? fail("machnet_connect", rc) : 0;
}

#ifdef MN_SHIM_COMPAT_TCP
MN_SHIM_API int machnet_listen(void *ctx, const char *local_ip, uint16_t port, int protocol);
MN_SHIM_API int machnet_listen(void *ctx, const char *local_ip, uint16_t port, int protocol)
{
    return compat_listen(ctx, local_ip, port, protocol);
}

MN_SHIM_API int machnet_connect(void *ctx, const char *local_ip, const char *remote_ip,
                                uint16_t port, MachnetFlow_t *flow, int protocol);
MN_SHIM_API int machnet_connect(void *ctx, const char *local_ip, const char *remote_ip,
                                uint16_t port, MachnetFlow_t *flow, int protocol)
{
    return compat_connect(ctx, local_ip, remote_ip, port, flow, protocol);
}
#else
static int default_protocol(const MachnetChannelCtx_t *ctx)
{
    return ctx != NULL ? ctx->protocol : MACHNET_PROTO_UDP;
}

MN_SHIM_API int machnet_listen(void *ctx, const char *local_ip, uint16_t port);
MN_SHIM_API int machnet_listen(void *ctx, const char *local_ip, uint16_t port)
{
    return compat_listen(ctx, local_ip, port, default_protocol(ctx));
}

MN_SHIM_API int machnet_connect(void *ctx, const char *local_ip, const char *remote_ip,
                                uint16_t port, MachnetFlow_t *flow);
MN_SHIM_API int machnet_connect(void *ctx, const char *local_ip, const char *remote_ip,
                                uint16_t port, MachnetFlow_t *flow)
{
    return compat_connect(ctx, local_ip, remote_ip, port, flow, default_protocol(ctx));
}
#endif

MN_SHIM_API int machnet_send(const void *ctx, MachnetFlow_t flow, const void *buf, size_t len);
MN_SHIM_API int machnet_send(const void *ctx, MachnetFlow_t flow, const void *buf, size_t len)
{
    MachnetChannelCtx_t *c = (MachnetChannelCtx_t *)(uintptr_t)ctx;
    int64_t rc = mn_shim_enter(c);

    if (rc == 0) {
        rc = len == 0 ? -EINVAL : mn_shim_send(c, &flow, buf, len);
        mn_shim_leave(c);
    }
    return rc < 0 ? fail("machnet_send", rc) : 0;
}

MN_SHIM_API int machnet_sendmsg(const void *ctx, const MachnetMsgHdr_t *msghdr);
MN_SHIM_API int machnet_sendmsg(const void *ctx, const MachnetMsgHdr_t *msghdr)
{
    MachnetChannelCtx_t *c = (MachnetChannelCtx_t *)(uintptr_t)ctx;
    int64_t rc = mn_shim_enter(c);

    if (rc == 0) {
        rc = msghdr == NULL || msghdr->msg_size == 0 ? -EINVAL : mn_shim_sendmsg(c, msghdr);
        mn_shim_leave(c);
    }
    return rc < 0 ? fail("machnet_sendmsg", rc) : 0;
}

MN_SHIM_API int machnet_sendmmsg(const void *ctx, const MachnetMsgHdr_t *msghdrs, int n);
MN_SHIM_API int machnet_sendmmsg(const void *ctx, const MachnetMsgHdr_t *msghdrs, int n)
{
    int sent = 0;

    while (sent < n && machnet_sendmsg(ctx, &msghdrs[sent]) == 0) {
        sent++;
    }
    return sent;
}

/* Throws away the message at the head, which did not fit: `len` bytes. */
static void discard(MachnetChannelCtx_t *ctx, uint32_t len)
{
    uint8_t *to = mn_shim_scratch(ctx, (uint64_t)len + 1);
    MachnetFlow_t flow;

    if (to != NULL) {
        (void)mn_shim_recv(ctx, to, len, &flow, &len);
    }
}

/* Whether to look again: the ends of flows and empty messages are not told. */
static bool untold(int rc, uint32_t len)
{
    return rc == MN_SHIM_END || (rc == 1 && len == 0);
}

MN_SHIM_API ssize_t machnet_recv(const void *ctx, void *buf, size_t len, MachnetFlow_t *flow);
MN_SHIM_API ssize_t machnet_recv(const void *ctx, void *buf, size_t len, MachnetFlow_t *flow)
{
    MachnetChannelCtx_t *c = (MachnetChannelCtx_t *)(uintptr_t)ctx;
    MachnetFlow_t sender = {0};
    uint32_t got = 0;
    int rc = mn_shim_enter(c);

    if (rc < 0) {
        return fail("machnet_recv", rc);
    }
    do {
        rc = mn_shim_recv(c, buf, len, &sender, &got);
    } while (untold(rc, got));
    if (rc == -EMSGSIZE) {
        discard(c, got);
    }
    mn_shim_leave(c);
    if (rc < 0) {
        return fail("machnet_recv", rc);
    }
    if (rc == 1) {
        *flow = sender;
    }
    return rc == 1 ? (ssize_t)got : 0;
}

MN_SHIM_API int machnet_recvmsg(const void *ctx, MachnetMsgHdr_t *msghdr);
MN_SHIM_API int machnet_recvmsg(const void *ctx, MachnetMsgHdr_t *msghdr)
{
    MachnetChannelCtx_t *c = (MachnetChannelCtx_t *)(uintptr_t)ctx;
    int rc = mn_shim_enter(c);
    MachnetMsgHdr_t m;

    if (rc < 0) {
        return fail("machnet_recvmsg", rc);
    }
    m = *msghdr;
    do {
        rc = mn_shim_recvmsg(c, &m);
    } while (untold(rc, m.msg_size));
    if (rc == -EMSGSIZE) {
        discard(c, m.msg_size);
    }
    mn_shim_leave(c);
    if (rc == 1) {
        msghdr->msg_size = m.msg_size;
        msghdr->flow_info = m.flow_info;
    }
    return rc < 0 ? fail("machnet_recvmsg", rc) : rc;
}
