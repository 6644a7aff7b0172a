/* SPDX-License-Identifier: MIT */
/* What the files of the application's side share. Nobody else includes this. */
#ifndef MN_CHAN_APP_INT_H
#define MN_CHAN_APP_INT_H

#include "chan_app.h"

#define APP_NONE 0xffffffffu

/* Read, but the released ring had no room yet. Slot 65535 does not exist, so this is no flow. */
#define APP_RX_WAITING 0x0000ffffu

/* Receive buffers read and not yet told to the engine: a batch costs one store and one look. */
#define APP_RELEASE_BATCH_MAX 32u

/* A receive buffer while the application holds it. */
struct app_rx {
    uint32_t flow;     /* whose data it holds; MN_FLOW_NONE: the engine has it */
    uint32_t len;      /* first piece of a message: of the whole message; stream: in this buffer */
    uint32_t next;     /* next piece of the message, next buffer of the stream */
    uint32_t msg_next; /* first piece: next node of the channel's message queue */
};

enum {
    APP_F_ACCEPTED = 1u << 0,
    APP_F_WAITING = 1u << 1,  /* in the accept queue */
    APP_F_SHUT = 1u << 2,     /* the application sent FIN */
    APP_F_EOF = 1u << 3,      /* the peer sent FIN */
    APP_F_ENDED = 1u << 4,    /* END was taken in */
    APP_F_EVENT = 1u << 5,    /* the end is in the message queue, as the node of the flow */
    APP_F_CLOSED = 1u << 6,   /* the application gave it up */
    APP_F_RELEASED = 1u << 7, /* the engine was told, or will be, that the slot is free */
    APP_F_READY = 1u << 8,    /* counted in streams_ready */
};

/* What is still to be told to the engine, in this order. */
enum {
    APP_TODO_ACCEPT = 1u << 0,
    APP_TODO_FIN = 1u << 1,
    APP_TODO_CLOSE = 1u << 2,
    APP_TODO_RELEASE = 1u << 3,
};

struct app_flow {
    uint32_t id;      /* MN_FLOW_NONE: the slot was never used */
    int32_t send_err; /* 0, or why nothing can be sent */
    uint32_t tx_in_flight;
    uint16_t flags;
    uint8_t proto;
    uint8_t todo;
    uint32_t rx_head; /* stream: queue; else the pieces of an incomplete message; or APP_NONE */
    uint32_t rx_tail;
    union {
        uint32_t rx_off;   /* stream: bytes of the first buffer already read; 0 without one */
        uint32_t part_len; /* else: bytes of the incomplete message */
    };
    uint32_t queued;   /* messages in the channel's queue */
    uint32_t msg_next; /* next node in it, when APP_F_EVENT */
    uint32_t todo_next;
    uint32_t accept_next;
    uint32_t linger_ms; /* of the close that is still to be told */
    uint32_t local_ip;
    uint32_t remote_ip;
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t listener;
    int32_t error;
    int32_t soft_error;
    uint64_t urgent_off;
    uint64_t read_off;
};

enum { APP_TOKEN_FREE, APP_TOKEN_PENDING, APP_TOKEN_DONE };

struct app_token {
    uint32_t token; /* its index in the low bits, a count of uses above them */
    uint32_t next;  /* free list */
    uint32_t arg;   /* unlisten: the listener */
    uint8_t state;
    uint8_t op;
    uint8_t proto;
    uint8_t forgotten;
    struct mn_ctl_evt evt;
};

/* A queue threaded through the nodes' own `next` fields. */
struct app_fifo {
    uint32_t head;
    uint32_t tail;
};

/* One lane; a channel of several lanes would be an array of these behind one message queue. */
struct mn_app {
    /* What a send touches. */
    int32_t dead; /* errno, 0 while the channel lives */
    bool far;     /* the engine is in another process */
    uint32_t buf_shift;
    uint32_t buf_bytes;
    uint32_t flows_high; /* slots below it have been set up */
    struct app_flow *flows;
    uint32_t tx_sp;   /* entries of tx_free */
    uint32_t tx_high; /* buffers from here on were never used */
    uint32_t tx_bufs;
    uint32_t tx_reserve; /* the last ones */
    uint32_t tx_common;  /* all the others */
    uint32_t *tx_free;   /* stack */
    uint32_t *tx_flow;   /* who holds the buffer; MN_FLOW_NONE: on the stack */
    uint8_t *tx_pool;
    mn_app_kick_fn kick;
    void *kick_ctx;
    struct mn_ring_prod submit;
    struct mn_ring_prod released;
    struct mn_ring_prod ctl_submit;
    /* What a receive touches. */
    struct mn_ring_cons deliver;
    struct mn_ring_cons completed;
    struct mn_ring_cons ctl_complete;
    struct mn_lane_shared *sh;
    struct app_rx *rx;
    const uint8_t *rx_pool;
    struct app_fifo msgs; /* nodes: first pieces; from rx_bufs on, ends of flows by slot */
    uint32_t rx_bufs;
    uint32_t rx_high; /* records below it have been set up */
    uint32_t rx_held;
    uint32_t release_batch;
    uint32_t unreleased; /* list of buffers that the released ring had no room for */
    uint32_t n_unreleased;
    uint32_t n_msgs;
    /* The rest. */
    uint32_t flows_max;
    uint32_t streams_ready;
    struct app_fifo todo;
    struct app_fifo accepts;
    uint32_t n_accepts;
    struct app_token *tokens;
    uint32_t token_shift;
    uint32_t tokens_max;
    uint32_t tokens_high;
    uint32_t tokens_free;
    uint32_t n_tokens;
    uint32_t n_results;
};

/* chan_app.c */
int app_kill(struct mn_app *a, int err);
void app_publish(struct mn_app *a);
void app_kick(struct mn_app *a);
int app_intake(struct mn_app *a);
int app_completed(struct mn_app *a);
void app_release_later(struct mn_app *a, uint32_t buf);

/* chan_app_msg.c */
int app_piece_put(struct mn_app *a, struct app_flow *f, const struct mn_desc *d);
void app_event_put(struct mn_app *a, struct app_flow *f);
void app_msgs_purge(struct mn_app *a, struct app_flow *f);

/* chan_app_ctl.c */
int app_ctl_intake(struct mn_app *a);

/* chan_app_flow.c */
struct mn_ctl_cmd *app_ctl_slot(struct mn_app *a);
struct app_flow *app_introduce(struct mn_app *a, const struct mn_ctl_evt *evt, uint32_t proto);
void app_accepts_push(struct mn_app *a, struct app_flow *f);
void app_drop_unaccepted(struct mn_app *a, uint32_t listener);
void app_todo_add(struct mn_app *a, struct app_flow *f, uint8_t what);
void app_todo_flush(struct mn_app *a);
void app_settle(struct mn_app *a, struct app_flow *f);
void app_close(struct mn_app *a, struct app_flow *f, uint32_t linger_ms);

/* chan_app_stream.c */
void app_stream_put(struct mn_app *a, struct app_flow *f, uint32_t buf, uint32_t len);
void app_stream_update(struct mn_app *a, struct app_flow *f);

static inline uint32_t app_slot(const struct mn_app *a, const struct app_flow *f)
{
    return (uint32_t)(f - a->flows);
}

/* The record of a flow id, or NULL when the id is stale or was never given out. */
static inline struct app_flow *app_find(const struct mn_app *a, uint32_t id)
{
    uint32_t slot = MN_FLOW_SLOT(id);

    if (MN_UNLIKELY(slot >= a->flows_high || a->flows[slot].id != id)) {
        return NULL;
    }
    return &a->flows[slot];
}

static inline bool app_is_stream(const struct app_flow *f)
{
    return f->proto == MN_PROTO_STREAM;
}

static inline uint32_t app_tx_free(const struct mn_app *a)
{
    return a->tx_sp + (a->tx_bufs - a->tx_high);
}

/* Buffers that the flow may take now: all but the reserve, which is for flows that hold little. */
static inline uint32_t app_tx_allowed(const struct mn_app *a, const struct app_flow *f)
{
    uint32_t n = app_tx_free(a);
    uint32_t common = n > a->tx_reserve ? n - a->tx_reserve : 0;
    uint32_t own = f->tx_in_flight < 2 ? 2 - f->tx_in_flight : 0;

    return mn_max_u32(common, mn_min_u32(own, n));
}

/* True when `want` buffers lie ready, which any flow may take. */
static inline bool app_tx_ready(const struct mn_app *a, uint32_t want)
{
    return a->tx_sp >= want && a->tx_high - a->tx_sp + want <= a->tx_common;
}

/* How many of `want` buffers the flow may have. Completed ones are taken in first when fewer lie
 * ready: they are warm, and untouched ones stay untouched. */
static inline uint32_t app_tx_get(struct mn_app *a, const struct app_flow *f, uint32_t want)
{
    if (MN_LIKELY(app_tx_ready(a, want))) {
        return want;
    }
    (void)app_completed(a);
    return mn_min_u32(app_tx_allowed(a, f), want);
}

/* Takes a buffer for the flow; the caller has made sure that there is one. */
static inline uint32_t app_tx_pop(struct mn_app *a, struct app_flow *f)
{
    uint32_t buf = MN_LIKELY(a->tx_sp > 0) ? a->tx_free[--a->tx_sp] : a->tx_high++;

    a->tx_flow[buf] = f->id;
    f->tx_in_flight++;
    return buf;
}

static inline uint8_t *app_tx_data(const struct mn_app *a, uint32_t buf)
{
    return a->tx_pool + ((uint64_t)buf << a->buf_shift);
}

static inline const uint8_t *app_rx_data(const struct mn_app *a, uint32_t buf)
{
    return a->rx_pool + ((uint64_t)buf << a->buf_shift);
}

/* Room in the submit ring is certain for data: it has a slot for every buffer. A ring that says
 * otherwise is lying or not yet read; marks wait in that case. */
static inline void app_submit(struct mn_app *a, uint32_t buf, uint32_t len, uint32_t flow,
                              uint32_t flags)
{
    *mn_desc_slot(&a->submit) = (struct mn_desc){
        .buf = buf,
        .len = len,
        .flow = flow,
        .flags = (uint16_t)flags,
    };
    a->submit.pos++;
}

/* What is about to be published moves towards the other process. */
void mn_app_hand_over(const struct mn_app *a);

/* Makes what was submitted visible, and with it whatever else waits. The fence is the producer's
 * half of the sleep protocol: the engine either sees the new index when it looks again, or its flag
 * is seen here. */
static inline void app_publish_submit(struct mn_app *a)
{
    if (MN_UNLIKELY(((a->released.pos ^ a->released.published) |
                     (a->ctl_submit.pos ^ a->ctl_submit.published)) != 0)) {
        app_publish(a);
        return;
    }
    if (MN_UNLIKELY(a->far)) {
        mn_app_hand_over(a);
    }
    if (mn_ring_publish(&a->submit) && a->kick != NULL) {
        app_kick(a);
    }
}

/* Hands a receive buffer back. The ring has a slot for each, but the engine may have read slots
 * without saying so yet: then the buffer waits on a list. */
static inline void app_release(struct mn_app *a, uint32_t buf)
{
    a->rx_held--;
    if (MN_UNLIKELY(a->unreleased != APP_NONE || mn_ring_free(&a->released, 1) < 1)) {
        app_release_later(a, buf);
        return;
    }
    a->rx[buf].flow = MN_FLOW_NONE;
    ((uint32_t *)a->released.slots)[a->released.pos++ & a->released.mask] = buf;
}

static inline void app_release_chain(struct mn_app *a, uint32_t buf)
{
    while (buf != APP_NONE) {
        uint32_t next = a->rx[buf].next;

        app_release(a, buf);
        buf = next;
    }
}

/* The message queue has two kinds of nodes: receive buffers, and behind them flows by slot. */
static inline uint32_t *app_node_next(struct mn_app *a, uint32_t node)
{
    return MN_LIKELY(node < a->rx_bufs) ? &a->rx[node].msg_next
                                        : &a->flows[node - a->rx_bufs].msg_next;
}

static inline void app_msg_push(struct mn_app *a, uint32_t node)
{
    *app_node_next(a, node) = APP_NONE;
    if (a->msgs.head == APP_NONE) {
        a->msgs.head = node;
    } else {
        *app_node_next(a, a->msgs.tail) = node;
    }
    a->msgs.tail = node;
    a->n_msgs++;
}

/* A piece of a message, usually a whole one. */
static inline int app_message_put(struct mn_app *a, struct app_flow *f, const struct mn_desc *d)
{
    const uint32_t whole = MN_DESC_FIRST | MN_DESC_LAST;

    if (MN_UNLIKELY((d->flags & whole) != whole || f->rx_head != APP_NONE)) {
        return app_piece_put(a, f, d);
    }
    a->rx[d->buf].len = d->len;
    a->rx[d->buf].next = APP_NONE;
    f->queued++;
    app_msg_push(a, d->buf);
    return 0;
}

/* True when the engine has put something into the ring since it was last looked at. */
static inline bool app_ring_news(const struct mn_ring_cons *r)
{
    return atomic_load_explicit(&r->idx->tail, memory_order_relaxed) != r->limit;
}

/* Before a send, so that it sees the end of a flow that was announced already. One load. */
static inline void app_glance(struct mn_app *a)
{
    if (MN_UNLIKELY(app_ring_news(&a->deliver)) && a->dead == 0) {
        (void)app_intake(a);
    }
}

#endif
