/* SPDX-License-Identifier: MIT */
/*
 * The application's side of a channel: used by the Python Channel and stream sockets, by the
 * command loops and by the C shim. No system calls: what must wait is done by the caller (see
 * host/), which is told by the return values. One thread per channel.
 *
 * The engine is trusted, but nothing that it writes is used unchecked: nonsense in a ring kills the
 * channel with EPROTO, which reads like a channel that the engine closed. One mn_app is one lane; a
 * channel of several is put together by host/.
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
    int32_t error; /* 0 while it lives; ENOTCONN after a clean end by the peer; else why it ended */
    uint8_t live;  /* may be sent on */
    uint8_t eof;   /* the peer has sent FIN (and, for streams, everything before it was read) */
    uint8_t ended; /* the END mark was seen */
    uint8_t accepted;    /* taken by mn_app_accept, or connected; a framed flow is from the start */
    int32_t soft_error;  /* errno of the last soft error (ICMP, R1 exceeded), 0 if there was none;
                            advice only */
    uint64_t urgent_off; /* streams: offset just behind the peer's last urgent byte, 0 if there was
                            none */
    uint64_t
        read_off; /* streams: bytes read so far; the urgent mark is at urgent_off - read_off - 1 */
};

/* What mn_app_peek found at the head of the channel's messages. */
struct mn_app_msg {
    uint32_t flow;
    uint32_t len;   /* bytes; 0 is a message too */
    int32_t status; /* 0: a message; else the positive errno with which the flow ended (once per
                       flow; never for a clean end) */
};

struct mn_app; /* opaque; memory from the caller */

typedef void (*mn_app_kick_fn)(void *ctx);

/* Bytes of private memory for mn_app_open; 0 when geo is out of range. The memory is 8-aligned,
 * need not be zeroed, and is touched only as far as it gets used. */
uint64_t mn_app_bytes(const struct mn_chan_geometry *geo);
/* region: formatted by the engine's side. kick is called after publishing when the engine sleeps;
 * NULL means that the engine never waits for a wake-up, and saves the fences. 0, -EINVAL (memory,
 * more than one lane) or as mn_chan_check. */
int mn_app_open(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region,
                uint64_t region_bytes, mn_app_kick_fn kick, void *kick_ctx);
/* The same for lane `index` of a region of several. */
int mn_app_open_lane(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region,
                     uint64_t region_bytes, uint32_t index, mn_app_kick_fn kick, void *kick_ctx);

/* Control. Each returns a token (> 0) to poll for, or -EAGAIN (ring full, or ctl_slots answers not
 * fetched yet), -EINVAL, -EPIPE (channel closed by the engine). When an unlisten is answered,
 * stream flows of the listener that nobody accepted are reset. */
int64_t mn_app_listen(struct mn_app *a, uint32_t ip, uint16_t port, uint32_t proto,
                      uint32_t backlog);
int64_t mn_app_unlisten(struct mn_app *a, uint32_t listener);
int64_t mn_app_connect(struct mn_app *a, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                       uint16_t remote_port, uint32_t proto, uint32_t timeout_ms);
int64_t mn_app_setopt(struct mn_app *a, uint32_t flow, uint32_t opt, uint64_t value);
int64_t mn_app_getopt(struct mn_app *a, uint32_t flow, uint32_t opt);
/* 1: done, *evt filled (status, flow, value) and forgotten; 0: not yet; -ENOENT: no such token. On
 * a dead channel what was not answered is done with status -EPIPE. */
int mn_app_result(struct mn_app *a, int64_t token, struct mn_ctl_evt *evt);
/* The answer is not wanted any more (a connect that the caller stopped waiting for): a flow that it
 * brings is reset. 0 or -ENOENT. */
int mn_app_forget(struct mn_app *a, int64_t token);

/* Takes in whatever the engine published (all three rings); the calls below do so themselves when
 * they find nothing. Returns new things. */
int mn_app_poll(struct mn_app *a);

/*
 * Messages (proto tcp and udp). send: 0; -EAGAIN (no room now, nothing was sent), -EMSGSIZE (can
 * never fit), -ENOTCONN (ended, stale or closed flow), -EINVAL (a stream flow), -EPIPE (channel
 * dead, or after shutdown). The gather form takes n pieces. The last eighth of the transmit pool is
 * only for flows that have at most two buffers in use, this message included, so that a stuck flow
 * does not starve the others; more than seven eighths of the pool, or more than MN_MSG_MAX_BYTES,
 * can never fit.
 */
struct mn_app_iov {
    const void *base;
    uint64_t len;
};
int mn_app_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
int mn_app_sendv(struct mn_app *a, uint32_t flow, const struct mn_app_iov *iov, uint32_t n);
/* As send, but published only by the next mn_app_flush (or another publishing call): one publish
 * and wake-up for a batch. */
int mn_app_send_nopub(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
void mn_app_flush(struct mn_app *a);
/* 1: *msg describes the head (its data stay until taken); 0: nothing; -EPIPE: channel dead and
 * drained. */
int mn_app_peek(struct mn_app *a, struct mn_app_msg *msg);
/* Copies the head message into buf (size >= its len, else -EMSGSIZE and it stays) and releases it.
 * Returns bytes; 0 also for an event; -EAGAIN when there is nothing, -EPIPE when the channel is
 * dead and drained. */
int64_t mn_app_take(struct mn_app *a, void *buf, uint64_t size);
/* Drops the head message or event unread. */
void mn_app_skip(struct mn_app *a);
/* Scatter-free access: the pieces of the head message, at most n; returns how many there are. Valid
 * until take or skip. */
uint32_t mn_app_pieces(struct mn_app *a, struct mn_app_iov *iov, uint32_t n);

/* Streams. send: bytes taken (> 0, fewer than len when room is short; 0 only for len 0), or
 * -EAGAIN, -EPIPE (after shutdown or a clean end, channel dead), -ENOTCONN (stale or closed),
 * -EINVAL (not a stream), or the flow's error. flags: MN_APP_MORE, MN_APP_URG. */
enum { MN_APP_MORE = 1, MN_APP_URG = 2, MN_APP_PEEK = 4 };
int64_t mn_app_stream_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len,
                           uint32_t flags);
/* bytes; 0: end of stream (or size 0); -EAGAIN: nothing now; negative errno: the flow's end, after
 * the data before it were read; -ENOTCONN, -EINVAL, -EPIPE as above. flags: MN_APP_PEEK leaves the
 * data in place. */
int64_t mn_app_stream_recv(struct mn_app *a, uint32_t flow, void *buf, uint64_t size,
                           uint32_t flags);
/* Sends FIN behind what is queued; again: nothing. 0, -ENOTCONN (ended, stale or closed), -EINVAL
 * (proto udp), -EPIPE (channel dead). */
int mn_app_shutdown_write(struct mn_app *a, uint32_t flow);
/* Next accepted flow of a stream listener: its id, or MN_FLOW_NONE. (Framed flows need no accept:
 * they show up with their first message.) */
uint32_t mn_app_accept(struct mn_app *a, uint32_t listener);

/* Gives a flow up. linger_ms 0 sends RST; MN_LINGER_DEFAULT sends what is queued, then FIN. Unread
 * data are dropped. 0 or -ENOTCONN (stale or closed already). A stream flow must be closed, also
 * after its end; a message flow is done with its end and its last message read. */
int mn_app_close_flow(struct mn_app *a, uint32_t flow, uint32_t linger_ms);
/* Whether the peer is known to send no more on the flow. */
bool mn_app_eof(struct mn_app *a, uint32_t flow);
/* 0 and *out, or -ENOENT for an id that is not known (any more): what has ended stays known until
 * the engine uses its slot again. */
int mn_app_flow_info(struct mn_app *a, uint32_t flow, struct mn_app_flow_info *out);
/* Flows that are live or have something left for the application: fills up to n ids, returns how
 * many there are. */
uint32_t mn_app_flows(struct mn_app *a, uint32_t *ids, uint32_t n);

/* Readiness, after taking in the rings. */
enum {
    MN_READY_MSG = 1,
    MN_READY_STREAM = 2,
    MN_READY_ACCEPT = 4,
    MN_READY_RESULT = 8,
    MN_READY_SPACE = 16,
    MN_READY_DEAD = 32
};
uint32_t mn_app_ready(struct mn_app *a);
/* Per stream flow: MN_READY_STREAM when recv would not answer -EAGAIN, MN_READY_SPACE when send
 * would not. */
uint32_t mn_app_flow_ready(struct mn_app *a, uint32_t flow);
/* Publishes what is pending, sets the sleep flag, with a full fence; true when nothing came in
 * since it was last looked for, so that sleeping is safe (clear the flag after waking). False, and
 * the flag is clear, when there is something to take in first. */
bool mn_app_prepare_sleep(struct mn_app *a);
void mn_app_cancel_sleep(struct mn_app *a);
/* The engine is in another process, mostly on another core: what it gets is put where that one
 * finds it. */
void mn_app_set_far(struct mn_app *a);
/* Bytes that a send on the flow can take now; 0 for a flow that can't be sent on. */
uint64_t mn_app_send_room(struct mn_app *a, uint32_t flow);
/* The engine is gone (its process died): what it had published is taken in, then the channel is
 * dead with EPIPE. */
void mn_app_hangup(struct mn_app *a);
/* Address of the lane's engine, host order. */
uint32_t mn_app_ip(const struct mn_app *a);
int mn_app_dead(
    const struct mn_app *a); /* errno why the engine closed the channel, 0 while it lives */

/* Where the buffers are, as of the last look at the rings. tx_free + tx_in_flight is the transmit
 * pool. */
struct mn_app_stats {
    uint32_t tx_free;       /* transmit buffers that can be filled */
    uint32_t tx_in_flight;  /* submitted (or about to be) and not completed */
    uint32_t tx_touched;    /* transmit buffers ever used */
    uint32_t rx_held;       /* receive buffers with unread data */
    uint32_t rx_unreleased; /* read, and not yet told to the engine */
    uint32_t msgs;          /* messages and events to take */
    uint32_t accepts;       /* stream flows to accept */
    uint32_t results;       /* answers to fetch */
    uint32_t tokens;        /* commands not answered, or answered and not fetched */
};
void mn_app_stats(const struct mn_app *a, struct mn_app_stats *out);

#endif
