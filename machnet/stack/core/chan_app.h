/* SPDX-License-Identifier: MIT */
/*
 * The application's side of a channel: used by the Python Channel and stream sockets, by the command loops and by the C shim. No system
 * calls: what must wait is done by the caller (see host/), which is told by the return values. One thread per channel.
 */
#ifndef MN_CHAN_APP_H
#define MN_CHAN_APP_H

#include "channel.h"

/* One flow as the application sees it. */
struct mn_app_flow_info {
    uint32_t flow;
    uint32_t proto;
    uint32_t local_ip, remote_ip;
    uint16_t local_port, remote_port;
    uint32_t listener; /* id of the listener it came from, 0 if it was connected */
    int32_t error;     /* 0 while it lives; ENOTCONN after a clean end by the peer; else why it ended */
    uint8_t live;      /* may be sent on */
    uint8_t eof;       /* the peer has sent FIN (and, for streams, everything before it was read) */
    uint8_t ended;     /* the END mark was seen */
    uint8_t accepted;  /* taken by mn_app_accept, or connected */
};

/* What mn_app_peek found at the head of the channel's messages. */
struct mn_app_msg {
    uint32_t flow;
    uint32_t len;   /* bytes; 0 is a message too */
    int32_t status; /* 0: a message; else the positive errno with which the flow ended (once per flow; never for a clean end) */
};

struct mn_app; /* opaque; memory from the caller */

typedef void (*mn_app_kick_fn)(void *ctx);

/* Bytes of private memory for mn_app_open (8-aligned). */
uint64_t mn_app_bytes(const struct mn_chan_geometry *geo);
/* region: formatted by the engine's side. kick is called after publishing when the engine sleeps (may be NULL). 0 or as mn_chan_check. */
int mn_app_open(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region, uint64_t region_bytes, mn_app_kick_fn kick,
                void *kick_ctx);

/* Control. Each returns a token (> 0) to poll for, or -EAGAIN (ring full), -EINVAL, -EPIPE (channel closed by the engine). */
int64_t mn_app_listen(struct mn_app *a, uint32_t ip, uint16_t port, uint32_t proto, uint32_t backlog);
int64_t mn_app_unlisten(struct mn_app *a, uint32_t listener);
int64_t mn_app_connect(struct mn_app *a, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip, uint16_t remote_port,
                       uint32_t proto, uint32_t timeout_ms);
int64_t mn_app_setopt(struct mn_app *a, uint32_t flow, uint32_t opt, uint64_t value);
int64_t mn_app_getopt(struct mn_app *a, uint32_t flow, uint32_t opt);
/* 1: done, *evt filled (status, flow, value) and forgotten; 0: not yet; -ENOENT: no such token. */
int mn_app_result(struct mn_app *a, int64_t token, struct mn_ctl_evt *evt);

/* Takes in whatever the engine published (all three rings); the calls below do so themselves when they find nothing. Returns new things. */
int mn_app_poll(struct mn_app *a);

/*
 * Messages (proto tcp and udp). send: 0; -EAGAIN (no room now, nothing was sent), -EMSGSIZE (can never fit), -ENOTCONN (ended, stale or
 * closed flow), -EINVAL, -EPIPE (channel dead). The gather form takes n pieces.
 */
struct mn_app_iov {
    const void *base;
    uint64_t len;
};
int mn_app_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
int mn_app_sendv(struct mn_app *a, uint32_t flow, const struct mn_app_iov *iov, uint32_t n);
/* As send, but published only by the next mn_app_flush (or another publishing call): one publish and wake-up for a batch. */
int mn_app_send_nopub(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
void mn_app_flush(struct mn_app *a);
/* 1: *msg describes the head (its data stay until taken); 0: nothing; -EPIPE: channel dead and drained. */
int mn_app_peek(struct mn_app *a, struct mn_app_msg *msg);
/* Copies the head message into buf (size >= its len, else -EMSGSIZE and it stays) and releases it. Returns bytes; 0 also for an event. */
int64_t mn_app_take(struct mn_app *a, void *buf, uint64_t size);
/* Drops the head message or event unread. */
void mn_app_skip(struct mn_app *a);
/* Scatter-free access: the pieces of the head message, at most n; returns how many there are. Valid until take or skip. */
uint32_t mn_app_pieces(struct mn_app *a, struct mn_app_iov *iov, uint32_t n);

/* Streams. send: bytes taken (> 0), or -EAGAIN, -EPIPE (after shutdown), or the flow's error. flags: MN_APP_MORE, MN_APP_URG. */
enum { MN_APP_MORE = 1, MN_APP_URG = 2, MN_APP_PEEK = 4 };
int64_t mn_app_stream_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len, uint32_t flags);
/* bytes; 0: end of stream; -EAGAIN: nothing now; negative errno: the flow's end, after the data before it were read. */
int64_t mn_app_stream_recv(struct mn_app *a, uint32_t flow, void *buf, uint64_t size, uint32_t flags);
int mn_app_shutdown_write(struct mn_app *a, uint32_t flow); /* sends FIN behind what is queued */
/* Next accepted flow of a stream listener: its id, or MN_FLOW_NONE. (Framed flows need no accept: they show up with their first message.) */
uint32_t mn_app_accept(struct mn_app *a, uint32_t listener);

/* Gives a flow up. linger_ms 0 sends RST; MN_LINGER_DEFAULT sends what is queued, then FIN. Unread data are dropped. 0 or -ENOTCONN. */
int mn_app_close_flow(struct mn_app *a, uint32_t flow, uint32_t linger_ms);
/* 0 and *out, or -ENOENT for an id that is not known (any more). */
int mn_app_flow_info(struct mn_app *a, uint32_t flow, struct mn_app_flow_info *out);
/* Live or ended-but-unclosed flows: fills up to n ids, returns how many there are. */
uint32_t mn_app_flows(struct mn_app *a, uint32_t *ids, uint32_t n);

/* Readiness, after taking in the rings. */
enum { MN_READY_MSG = 1, MN_READY_STREAM = 2, MN_READY_ACCEPT = 4, MN_READY_RESULT = 8, MN_READY_SPACE = 16, MN_READY_DEAD = 32 };
uint32_t mn_app_ready(struct mn_app *a);
/* Per stream flow: MN_READY_STREAM when recv would not answer -EAGAIN, MN_READY_SPACE when send would not. */
uint32_t mn_app_flow_ready(struct mn_app *a, uint32_t flow);
/* Sets the sleep flag, with a full fence; returns true when nothing is waiting, so that sleeping is safe. Clear it after waking. */
bool mn_app_prepare_sleep(struct mn_app *a);
void mn_app_cancel_sleep(struct mn_app *a);
/* Free transmit buffers and bytes they hold: what a send can take now. */
uint64_t mn_app_send_room(struct mn_app *a, uint32_t flow);
int mn_app_dead(const struct mn_app *a); /* errno why the engine closed the channel, 0 while it lives */

#endif
