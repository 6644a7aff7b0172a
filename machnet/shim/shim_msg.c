/* SPDX-License-Identifier: MIT */
/* Messages, in one piece and in several. */
#include <sched.h>

#include "shim.h"

/* Receives in a row without a find after which each one offers the CPU to others: programs that
 * poll for ever would starve the sidecar on a machine with few of them. */
#define PATIENCE 64u

/* A wait sleeps so long at a time; a shorter one that ends early was ended by a signal. */
#define NAP_NS (50 * MN_NS_PER_MS)

int64_t mn_shim_send(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow, const void *buf,
                     uint64_t len)
{
    const struct mn_shim_flow *f = mn_shim_flow_find(ctx, flow);
    int64_t rc;

    if (MN_UNLIKELY(f == NULL)) {
        return -ENOTCONN;
    }
    if (MN_UNLIKELY(buf == NULL && len > 0)) {
        return -EFAULT;
    }
    rc = f->stream ? mn_chan_stream_send(ctx->chan, f->id, buf, len, 0)
                   : mn_chan_send_open(ctx->chan, f->id, buf, len);
    if (MN_LIKELY(rc >= 0)) {
        ctx->msgs++;
    }
    return rc;
}

/* The sum of the pieces; over the limit of a message: more than that. */
static uint64_t iov_bytes(const MachnetMsgHdr_t *msg)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        uint64_t len = msg->msg_iov[i].len;

        if (len > UINT64_MAX - sum) {
            return UINT64_MAX;
        }
        sum += len;
    }
    return sum;
}

int64_t mn_shim_sendmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msg)
{
    uint64_t total;
    uint8_t *to;

    if (msg == NULL || (msg->msg_iov == NULL && msg->msg_iovlen > 0)) {
        return -EINVAL;
    }
    total = iov_bytes(msg);
    if (total > MACHNET_MSG_MAX_LEN) {
        return -EMSGSIZE;
    }
    if (total != msg->msg_size) {
        return -EINVAL;
    }
    if (msg->msg_iovlen == 1) {
        return mn_shim_send(ctx, &msg->flow_info, msg->msg_iov[0].base, total);
    }
    to = mn_shim_scratch(ctx, total + 1);
    if (to == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        if (msg->msg_iov[i].len > 0) {
            memcpy(to, msg->msg_iov[i].base, msg->msg_iov[i].len);
            to += msg->msg_iov[i].len;
        }
    }
    return mn_shim_send(ctx, &msg->flow_info, ctx->scratch, total);
}

/* What *flow tells of the flow's other end: it is the source of what was received. */
static void tell_sender(MachnetChannelCtx_t *ctx, uint32_t id, MachnetFlow_t *flow)
{
    static const MachnetFlow_t gone;
    const struct mn_shim_flow *f = mn_shim_flow(ctx, id);
    const MachnetFlow_t *a = MN_LIKELY(f != NULL) ? &f->addr : &gone;

    *flow = (MachnetFlow_t){a->dst_ip, a->src_ip, a->dst_port, a->src_port};
}

static int recv_nothing(MachnetChannelCtx_t *ctx)
{
    if (++ctx->idle >= PATIENCE) {
        ctx->idle = PATIENCE;
        (void)sched_yield();
    }
    return 0;
}

int mn_shim_recv(MachnetChannelCtx_t *ctx, void *buf, uint64_t size, MachnetFlow_t *flow,
                 uint32_t *len)
{
    struct mn_chan_event event;
    int64_t n = mn_chan_recv(ctx->chan, buf, size, &event);
    uint32_t id = 0;

    if (MN_LIKELY(n >= 0)) {
        ctx->idle = 0;
        *len = (uint32_t)n & ((1u << MN_CHAN_LEN_BITS) - 1);
        tell_sender(ctx, (uint32_t)(n >> MN_CHAN_LEN_BITS), flow);
        return 1;
    }
    *flow = (MachnetFlow_t){0};
    *len = 0;
    if (n == MN_CHAN_EVENT || n == -EMSGSIZE) {
        tell_sender(ctx, event.flow, flow);
        *len = n == -EMSGSIZE ? event.len : (uint32_t)event.status;
        return n == -EMSGSIZE ? -EMSGSIZE : MN_SHIM_END;
    }
    if (n != -EAGAIN) {
        return (int)n;
    }
    if (ctx->n_streams == 0 && ctx->n_stream_listeners == 0) {
        return recv_nothing(ctx);
    }
    n = mn_shim_stream_recv(ctx, buf, mn_min_u64(size, INT32_MAX), &id);
    if (n == -EAGAIN) {
        return recv_nothing(ctx);
    }
    ctx->idle = 0;
    tell_sender(ctx, id, flow);
    *len = (uint32_t)(n > 0 ? n : -n);
    return n > 0 ? 1 : MN_SHIM_END;
}

static void scatter(const MachnetMsgHdr_t *msg, const uint8_t *from, uint32_t len)
{
    for (size_t i = 0; len > 0; i++) {
        uint32_t n = (uint32_t)mn_min_u64(len, msg->msg_iov[i].len);

        if (n > 0) {
            memcpy(msg->msg_iov[i].base, from, n);
            from += n;
            len -= n;
        }
    }
}

int mn_shim_recvmsg(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msg)
{
    MachnetFlow_t flow = {0};
    uint64_t room;
    uint32_t len = 0;
    uint8_t *to;
    int rc;

    room = mn_min_u64(iov_bytes(msg), MACHNET_MSG_MAX_LEN);
    if (msg->msg_iovlen == 1) {
        rc = mn_shim_recv(ctx, msg->msg_iov[0].base, room, &flow, &len);
    } else {
        to = mn_shim_scratch(ctx, room + 1);
        if (to == NULL) {
            return -ENOMEM;
        }
        rc = mn_shim_recv(ctx, to, room, &flow, &len);
        if (rc == 1) {
            scatter(msg, to, len);
        }
    }
    msg->flow_info = flow;
    msg->msg_size = len;
    return rc;
}

int mn_shim_recv_wait(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msg, int64_t timeout_us)
{
    uint64_t end_ns = UINT64_MAX;
    uint64_t left_ns = NAP_NS;
    int rc = mn_shim_recvmsg(ctx, msg);

    if (rc != 0 || timeout_us == 0) {
        return rc;
    }
    if (timeout_us > 0) {
        uint64_t ns = mn_min_u64((uint64_t)timeout_us, UINT64_MAX / 4000) * MN_NS_PER_US;

        end_ns = mn_host_now_ns() + ns;
        left_ns = ns;
    }
    for (;;) {
        uint64_t now_ns;
        int waited = mn_chan_wait(ctx->chan, mn_min_u64(left_ns, NAP_NS));

        ctx->idle = 0; /* it has slept: the CPU was free for others */
        rc = mn_shim_recvmsg(ctx, msg);
        if (rc != 0) {
            return rc;
        }
        if (waited < 0 && (waited != -EINTR || (msg->flags & MACHNET_NO_EINTR) == 0)) {
            return waited;
        }
        now_ns = mn_host_now_ns();
        if (now_ns >= end_ns) {
            return 0;
        }
        left_ns = end_ns - now_ns;
    }
}
