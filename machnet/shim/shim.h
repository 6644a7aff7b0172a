/* SPDX-License-Identifier: MIT */
/*
 * What the C interfaces of all three builds share. Functions return what they are for, or a
 * negative errno; machnet.c and compat.c make of it what their signatures promise.
 */
#ifndef MN_SHIM_H
#define MN_SHIM_H

#include "machnet/shim/client.h"
#include "machnet/shim/machnet.h"

/* The symbols that the library gives out; all others are hidden. */
#define MN_SHIM_API __attribute__((visibility("default")))

#define MN_SHIM_CONNECT_MS 10000u /* what a peer may take to answer */
#define MN_SHIM_COMMAND_MS 5000u  /* what the engine may take */
#define MN_SHIM_SPIN_NS    UINT64_C(20000)

/* A flow that was seen, by its slot. */
struct mn_shim_flow {
    MachnetFlow_t addr; /* this side is the source */
    uint32_t id;
    uint32_t next; /* slot + 1 of the next one in the bucket */
    bool known;
    bool stream;
};

struct mn_shim_listener {
    uint32_t ip;
    uint16_t port;
    bool stream;
    uint32_t id;
};

/* A connection to the sidecar, shared by its channels and by the process for the next ones. */
struct mn_shim_conn {
    struct mn_client *client;
    uint32_t refs;
};

struct MachnetChannelCtx {
    struct mn_chan *chan;
    struct mn_shim_conn *conn;
    uint32_t channel_id;
    uint32_t forks; /* mn_client_forks when it was made */
    int protocol;
    bool no_eintr;
    uint32_t idle; /* receives in a row that found nothing */
    uint64_t msgs; /* sent */
    _Atomic uint32_t users;

    struct mn_shim_flow *flows; /* by slot */
    uint32_t *buckets;          /* slot + 1 */
    uint64_t keys[4];

    struct mn_shim_listener *listeners;
    uint32_t n_listeners;
    uint32_t n_stream_listeners;
    uint32_t *streams; /* ids of stream flows that are to be read */
    uint32_t n_streams, streams_cap;
    uint32_t next_stream;

    struct MachnetChannelCtx *next; /* in the list of all */
    uint8_t *scratch;               /* messages on their way between pieces and a channel */
    uint64_t scratch_bytes;
};

/* Says on stderr what went wrong, if MACHNET_DEBUG asks for it. */
void mn_shim_debug(const char *call, int rc, const char *why);

/* shim.c */
int mn_shim_init(void);
/* The socket to the sidecar, -1 without one. */
int mn_shim_socket(void);
int mn_shim_attach(MachnetChannelCtx_t **out);
int mn_shim_detach(MachnetChannelCtx_t *ctx);
/* Each call on a channel is between these two. */
int mn_shim_enter(MachnetChannelCtx_t *ctx);
void mn_shim_leave(MachnetChannelCtx_t *ctx);
/* The scratch memory with room for `bytes`, or NULL. */
uint8_t *mn_shim_scratch(MachnetChannelCtx_t *ctx, uint64_t bytes);

/* shim_ctl.c. protocol: a transport, with MACHNET_NO_EINTR or without. */
int mn_shim_parse_protocol(const char *name);
bool mn_shim_protocol_ok(int protocol);
int mn_shim_listen(MachnetChannelCtx_t *ctx, const char *ip, uint16_t port, int protocol);
int mn_shim_unlisten(MachnetChannelCtx_t *ctx, const char *ip, uint16_t port);
int mn_shim_connect(MachnetChannelCtx_t *ctx, const char *local_ip, const char *remote_ip,
                    uint16_t remote_port, int protocol, MachnetFlow_t *flow);
int mn_shim_close(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow);
int mn_shim_flow_error(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow);

/* shim_flows.c */
int mn_shim_flows_init(MachnetChannelCtx_t *ctx);
/* The record of a flow that the channel has named; NULL when it does not know it any more. */
struct mn_shim_flow *mn_shim_flow(MachnetChannelCtx_t *ctx, uint32_t id);
/* The flow with these addresses, this side first or else last; NULL: there is none. */
struct mn_shim_flow *mn_shim_flow_find(MachnetChannelCtx_t *ctx, const MachnetFlow_t *addr);

/* Whether another living flow has the same addresses, which only another transport's can. */
bool mn_shim_flow_has_twin(MachnetChannelCtx_t *ctx, const struct mn_shim_flow *f);
void mn_shim_flow_forget(MachnetChannelCtx_t *ctx, uint32_t id);

/* shim_stream.c */
int mn_shim_stream_add(MachnetChannelCtx_t *ctx, uint32_t id);
void mn_shim_stream_drop(MachnetChannelCtx_t *ctx, uint32_t id);
/* Bytes of any stream flow: their number and *id; -EAGAIN; or *id's end. */
int64_t mn_shim_stream_recv(MachnetChannelCtx_t *ctx, void *buf, uint64_t size, uint32_t *id);

/* shim_msg.c. 0: a message was taken; of a stream: how many bytes were. */
int64_t mn_shim_send(MachnetChannelCtx_t *ctx, const MachnetFlow_t *flow, const void *buf,
                     uint64_t len);
int64_t mn_shim_sendmsg(MachnetChannelCtx_t *ctx, const MachnetMsgHdr_t *msg);
/* 1: a message, or bytes of a stream, of *len bytes; 0: nothing there; MN_SHIM_END: *flow has
 * ended, *len is the errno; -EMSGSIZE: the message is of *len bytes and stays. *flow is the sender,
 * zeros when it is about none. recvmsg, recv_wait: *len is msg_size. */
#define MN_SHIM_END 2
int mn_shim_recv(MachnetChannelCtx_t *ctx, void *buf, uint64_t size, MachnetFlow_t *flow,
                 uint32_t *len);
int mn_shim_recvmsg(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msg);
int mn_shim_recv_wait(MachnetChannelCtx_t *ctx, MachnetMsgHdr_t *msg, int64_t timeout_us);

#endif
