/* SPDX-License-Identifier: MIT */
/*
 * The C interface of machnet: messages between applications, through the sidecar of this machine.
 *
 *     machnet_init();                                      once per process
 *     MachnetChannelCtx_t *ctx = machnet_attach();         once per thread
 *     machnet_listen(ctx, "10.0.0.2", 888);                a server,
 *     machnet_connect(ctx, "10.0.0.3", "10.0.0.2", 888, &flow);  or a client
 *     machnet_send(ctx, flow, buf, len, NULL);
 *     machnet_recv(ctx, buf, sizeof(buf), &flow);
 *
 * What fails returns -1 (a pointer: NULL) and sets errno; MACHNET_DEBUG in the environment has it
 * explained on stderr too. Addresses are strings such as "10.0.0.2"; in a MachnetFlow addresses and
 * ports are numbers in host byte order. A channel is for one thread at a time.
 *
 * Environment: MACHNET_SOCKET (the sidecar's socket), MACHNET_PROTOCOL (udp, tcp or stream: the
 * default transport of new channels), MACHNET_DEBUG.
 */
#ifndef MACHNET_H
#define MACHNET_H

#include <stddef.h>
#include <stdint.h>
#include <string.h> /* programs of the C API's documentation call strlen with this header alone */

#ifdef __cplusplus
extern "C" {
#endif

/* The largest message: 8 MiB. */
#define MACHNET_MSG_MAX_LEN (8u * 1024u * 1024u)

/* Transports. */
#define MACHNET_PROTO_UDP    0 /* machnet's own reliable messages, over UDP; the default */
#define MACHNET_PROTO_TCP    1 /* messages over TCP, each with its length in front */
#define MACHNET_PROTO_STREAM 2 /* the bytes of a TCP connection */

/* Beside a transport (machnet_set_protocol, ..._proto), or in the flags of machnet_recv_wait: a
 * signal does not end the wait with EINTR. */
#define MACHNET_NO_EINTR 0x100

/* For programs that set it in MachnetMsgHdr.flags; it has no effect. */
#define MACHNET_MSGBUF_NOTIFY_DELIVERY 0x80

/* One application thread's connection to the sidecar. */
typedef struct MachnetChannelCtx MachnetChannelCtx_t;

/* A flow by its addresses, in host byte order: source first. machnet_connect fills it with this
 * side as the source, machnet_recv with the sender. machnet_send takes either. */
struct MachnetFlow {
    uint32_t src_ip;
    uint32_t dst_ip;
    uint16_t src_port;
    uint16_t dst_port;
};
typedef struct MachnetFlow MachnetFlow_t;

/* A piece of a message. */
struct MachnetIovec {
    void *base;
    size_t len;
};
typedef struct MachnetIovec MachnetIovec_t;

/* A message in pieces. */
struct MachnetMsgHdr {
    uint32_t msg_size; /* sending: the sum of the pieces; receiving: set to the message's bytes */
    struct MachnetFlow flow_info;
    struct MachnetIovec *msg_iov;
    size_t msg_iovlen;
    uint16_t flags; /* MACHNET_NO_EINTR for machnet_recv_wait, else 0 */
};
typedef struct MachnetMsgHdr MachnetMsgHdr_t;

/* Number of a sent message: unique in its channel, never 0. */
typedef uint64_t MachnetMsgId_t;

#ifdef __cplusplus
#define MACHNET_ASSERT_(cond, text) static_assert(cond, text)
#else
#define MACHNET_ASSERT_(cond, text) _Static_assert(cond, text)
#endif
MACHNET_ASSERT_(sizeof(struct MachnetFlow) == 12, "programs and library share this layout");
MACHNET_ASSERT_(offsetof(struct MachnetFlow, dst_ip) == 4, "MachnetFlow.dst_ip");
MACHNET_ASSERT_(offsetof(struct MachnetFlow, src_port) == 8, "MachnetFlow.src_port");
MACHNET_ASSERT_(offsetof(struct MachnetFlow, dst_port) == 10, "MachnetFlow.dst_port");
#if UINTPTR_MAX > 0xffffffffu
MACHNET_ASSERT_(sizeof(struct MachnetIovec) == 16, "programs and library share this layout");
MACHNET_ASSERT_(offsetof(struct MachnetIovec, len) == 8, "MachnetIovec.len");
MACHNET_ASSERT_(sizeof(struct MachnetMsgHdr) == 40, "programs and library share this layout");
MACHNET_ASSERT_(offsetof(struct MachnetMsgHdr, flow_info) == 4, "MachnetMsgHdr.flow_info");
MACHNET_ASSERT_(offsetof(struct MachnetMsgHdr, msg_iov) == 16, "MachnetMsgHdr.msg_iov");
MACHNET_ASSERT_(offsetof(struct MachnetMsgHdr, msg_iovlen) == 24, "MachnetMsgHdr.msg_iovlen");
MACHNET_ASSERT_(offsetof(struct MachnetMsgHdr, flags) == 32, "MachnetMsgHdr.flags");
#endif

#ifndef MACHNET_TYPES_ONLY /* a program may declare the calls by itself */

/* ---- the channel ----------------------------------------------------------------------------- */

/* Connects this process to the sidecar; again: nothing, while the sidecar lives. A forked child
 * connects for itself.
 * ECONNREFUSED: there is no sidecar; EACCES: it does not want us; EPROTO: it is of another version;
 * ETIMEDOUT: it does not answer (5 s). */
int machnet_init(void);

/* A new channel, for one thread at a time, or NULL. After the sidecar died, this connects anew.
 * ENOTCONN: no machnet_init before; EINVAL: MACHNET_PROTOCOL makes no sense; EDQUOT, ENOSPC: there
 * are too many; and as machnet_init. */
MachnetChannelCtx_t *machnet_attach(void);

/* Gives the channel back, and its memory: ctx must not be used again. What was sent still goes out;
 * the flows are closed as the end of the process would close them. */
int machnet_detach(MachnetChannelCtx_t *ctx);

/* The transport of machnet_listen and machnet_connect, MACHNET_NO_EINTR beside it or not. */
int machnet_set_protocol(MachnetChannelCtx_t *ctx, int protocol);

/* A descriptor for poll, select and epoll (level-triggered): readable when machnet_recv may have
 * something, quiet once it has found nothing. It stays the channel's. */
int machnet_fd(MachnetChannelCtx_t *ctx);

/* "MAJOR.MINOR.PATCH". */
const char *machnet_version(void);

/* ---- connections ----------------------------------------------------------------------------- */

/* Takes connections on an address and port (host byte order). Their flows show up with their first
 * message. Answered at once; ETIMEDOUT after 5 s without an answer.
 * EINVAL: no address, port or transport; EADDRNOTAVAIL: not an address of the sidecar ("0.0.0.0" is
 * all of them); EADDRINUSE. */
int machnet_listen(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port);
int machnet_listen_proto(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port,
                         int protocol);

/* Takes no more of them; those that there are live on. ENOENT: this channel does not listen there.
 */
int machnet_unlisten(MachnetChannelCtx_t *ctx, const char *local_ip, uint16_t port);

/* Connects and waits for the peer's answer, 10 s at most; *flow is then the flow, this side first.
 * ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EADDRNOTAVAIL, EINVAL, EINTR. */
int machnet_connect(MachnetChannelCtx_t *ctx, const char *local_ip, const char *remote_ip,
                    uint16_t remote_port, MachnetFlow_t *flow);
int machnet_connect_proto(MachnetChannelCtx_t *ctx, const char *local_ip, const char *remote_ip,
                          uint16_t remote_port, MachnetFlow_t *flow, int protocol);

/* Gives a flow up: what was sent still goes out, then it is closed. What was not received is lost.
 * ENOTCONN: there is no such flow (any more). */
int machnet_close(MachnetChannelCtx_t *ctx, MachnetFlow_t flow);

/* 0 while the flow lives; ENOTCONN after a clean close, or when there is no such flow; else the
 * errno with which it ended. -1: EINVAL, EPIPE. */
int machnet_flow_error(MachnetChannelCtx_t *ctx, MachnetFlow_t flow);

/* ---- messages -------------------------------------------------------------------------------- */

/* Sends a message; never blocks. It is copied before this returns; that it was taken does not mean
 * that it has arrived. msg_id may be NULL. On a stream flow: returns how many bytes were taken.
 * EAGAIN: no room now, nothing was sent; EMSGSIZE: can never fit; ENOTCONN: no such flow (any
 * more), or the peer has closed it, or the errno of its end; EPIPE: the sidecar is gone. */
int machnet_send(MachnetChannelCtx_t *ctx, MachnetFlow_t flow, const void *buf, size_t len,
                 MachnetMsgId_t *msg_id);
/* The same from pieces, to msghdr->flow_info. EINVAL: msg_size is not their sum. */
int machnet_sendmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msghdr);
/* The same for n messages, up to the first that fails: how many were sent; errno says what stopped
 * it. Not for stream flows (EINVAL). */
int machnet_sendmmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msghdrs, int n);

/* Receives a message of any flow; never blocks.
 *   > 0  bytes, of *flow;
 *   0    with *flow zeroed: nothing there; with *flow filled: an empty message;
 *   -1   with *flow filled: EMSGSIZE, the message is larger than the buffer and stays; or the flow
 *        has ended (ECONNRESET, ETIMEDOUT, ...), which is reported once, behind its last message;
 *        with *flow zeroed: EPIPE, the sidecar is gone.
 * A clean close by the peer is not reported here: see machnet_flow_error. */
int machnet_recv(MachnetChannelCtx_t *ctx, void *buf, size_t buf_size, MachnetFlow_t *flow);
/* The same into pieces, with the flow in flow_info and the size in msg_size, after EMSGSIZE too: 1
 * a message, 0 nothing there, -1 as above. */
int machnet_recvmsg(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msghdr);
/* The same, but waits: timeout_us microseconds at most (then 0); negative: for ever. EINTR. */
int machnet_recv_wait(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msghdr, int64_t timeout_us);

#endif

#ifdef __cplusplus
}
#endif

#endif
