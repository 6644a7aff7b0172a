/* SPDX-License-Identifier: MIT */
/* Messages of framed flows: pieces to messages, one queue of them for the channel, and sending. */
#include "chan_app_int.h"

/* A piece that is not a message by itself. Only the last one may be less than full, so the length
 * of the message says where its bytes are. */
int app_piece_put(struct mn_app *a, struct app_flow *f, const struct mn_desc *d)
{
    bool first = (d->flags & MN_DESC_FIRST) != 0;
    bool last = (d->flags & MN_DESC_LAST) != 0;
    uint32_t before = first ? 0 : f->part_len;

    if (first != (f->rx_head == APP_NONE) || (!last && d->len != a->buf_bytes) ||
        before + d->len > MN_MSG_MAX_BYTES) {
        return -EPROTO;
    }
    if (first) {
        f->rx_head = d->buf;
    } else {
        a->rx[f->rx_tail].next = d->buf;
    }
    f->rx_tail = d->buf;
    f->part_len = before + d->len;
    a->rx[d->buf].next = APP_NONE;
    if (last) {
        a->rx[f->rx_head].len = f->part_len;
        f->queued++;
        app_msg_push(a, f->rx_head);
        f->rx_head = APP_NONE;
    }
    return 0;
}

/* The flow's end goes behind its messages. */
void app_event_put(struct mn_app *a, struct app_flow *f)
{
    f->flags |= APP_F_EVENT;
    app_msg_push(a, a->rx_bufs + app_slot(a, f));
}

/* What leaves the queue goes back to the engine; with the last of it goes an ended flow. */
static inline void node_drop(struct mn_app *a, uint32_t node)
{
    struct app_flow *f;

    a->n_msgs--;
    if (MN_LIKELY(node < a->rx_bufs)) {
        f = &a->flows[MN_FLOW_SLOT(a->rx[node].flow)];
        f->queued--;
        app_release_chain(a, node);
    } else {
        f = &a->flows[node - a->rx_bufs];
        f->flags &= (uint16_t)~APP_F_EVENT;
    }
    if (MN_UNLIKELY((f->flags & APP_F_ENDED) != 0)) {
        app_settle(a, f);
    }
}

static inline void msg_pop(struct mn_app *a)
{
    uint32_t node = a->msgs.head;

    a->msgs.head = *app_node_next(a, node);
    node_drop(a, node);
    /* The engine hears of the buffers in batches, but always before the queue runs dry: the
     * application may not call again until the peer's window has opened. */
    if (a->msgs.head == APP_NONE || a->released.pos - a->released.published >= a->release_batch ||
        a->ctl_submit.pos != a->ctl_submit.published) {
        app_publish(a);
    }
}

/* Takes everything of the flow out of the queue. */
void app_msgs_purge(struct mn_app *a, struct app_flow *f)
{
    uint32_t own = a->rx_bufs + app_slot(a, f);
    uint32_t prev = APP_NONE;
    uint32_t node = a->msgs.head;

    while (node != APP_NONE && (f->queued != 0 || (f->flags & APP_F_EVENT) != 0)) {
        uint32_t next = *app_node_next(a, node);

        if (node == own || (node < a->rx_bufs && a->rx[node].flow == f->id)) {
            if (prev == APP_NONE) {
                a->msgs.head = next;
            } else {
                *app_node_next(a, prev) = next;
            }
            if (a->msgs.tail == node) {
                a->msgs.tail = prev;
            }
            node_drop(a, node);
        } else {
            prev = node;
        }
        node = next;
    }
}

/* The head of the queue, after looking at the rings when it is empty. */
static inline uint32_t msg_head(struct mn_app *a)
{
    if (a->msgs.head == APP_NONE) {
        (void)app_intake(a);
    }
    return a->msgs.head;
}

int mn_app_peek(struct mn_app *a, struct mn_app_msg *msg)
{
    uint32_t node = msg_head(a);

    if (node == APP_NONE) {
        return a->dead != 0 ? -EPIPE : 0;
    }
    if (MN_LIKELY(node < a->rx_bufs)) {
        *msg = (struct mn_app_msg){.flow = a->rx[node].flow, .len = a->rx[node].len};
    } else {
        const struct app_flow *f = &a->flows[node - a->rx_bufs];

        *msg = (struct mn_app_msg){.flow = f->id, .status = f->error};
    }
    return 1;
}

int64_t mn_app_take(struct mn_app *a, void *buf, uint64_t size)
{
    uint32_t node = msg_head(a);
    uint32_t len, left;
    uint8_t *to = buf;

    if (node == APP_NONE) {
        return a->dead != 0 ? -EPIPE : -EAGAIN;
    }
    if (node >= a->rx_bufs) {
        msg_pop(a);
        return 0;
    }
    len = left = a->rx[node].len;
    if (MN_UNLIKELY(len > size)) {
        return -EMSGSIZE;
    }
    if (MN_LIKELY(len <= a->buf_bytes)) {
        left = 0;
        if (MN_LIKELY(len > 0)) {
            memcpy(to, app_rx_data(a, node), len);
        }
    }
    for (uint32_t b = node; left > 0; b = a->rx[b].next) {
        uint32_t n = mn_min_u32(left, a->buf_bytes);

        memcpy(to, app_rx_data(a, b), n);
        to += n;
        left -= n;
    }
    msg_pop(a);
    return len;
}

void mn_app_skip(struct mn_app *a)
{
    if (msg_head(a) != APP_NONE) {
        msg_pop(a);
    }
}

uint32_t mn_app_pieces(struct mn_app *a, struct mn_app_iov *iov, uint32_t n)
{
    uint32_t node = a->msgs.head;
    uint32_t left, count = 0;

    if (node == APP_NONE || node >= a->rx_bufs) {
        return 0;
    }
    left = a->rx[node].len;
    for (uint32_t b = node; left > 0; b = a->rx[b].next) {
        uint32_t len = mn_min_u32(left, a->buf_bytes);

        if (count < n) {
            iov[count] = (struct mn_app_iov){.base = app_rx_data(a, b), .len = len};
        }
        count++;
        left -= len;
    }
    return count;
}

/* Why nothing can be sent on the flow as a message, or 0. */
static inline int send_refused(const struct mn_app *a, const struct app_flow *f, uint64_t len)
{
    if (MN_UNLIKELY(a->dead != 0)) {
        return -EPIPE;
    }
    if (MN_UNLIKELY(f == NULL)) {
        return -ENOTCONN;
    }
    if (MN_UNLIKELY(app_is_stream(f))) {
        return -EINVAL;
    }
    if (MN_UNLIKELY(len == 0 && f->proto == MN_PROTO_UDP && f->send_err == 0)) {
        return -EINVAL; /* that transport has no empty messages */
    }
    return f->send_err;
}

/* Room for n buffers in pool and ring, or what to answer. Before -EAGAIN everything that waits for
 * a flush is published: the engine must get on with it to make room. */
static inline int send_room(struct mn_app *a, const struct app_flow *f, uint32_t n)
{
    int64_t slots = 0;

    if (MN_LIKELY(app_tx_get(a, f, n) >= n)) {
        slots = mn_ring_free(&a->submit, n);
        if (MN_LIKELY(slots >= (int64_t)n)) {
            return 0;
        }
    }
    if (slots < 0) {
        (void)app_kill(a, EPROTO);
    }
    app_publish(a);
    return a->dead != 0 ? -EPIPE : -EAGAIN;
}

/* Cuts the bytes of iov into buffers; a message without bytes is one empty buffer. */
static void send_pieces(struct mn_app *a, struct app_flow *f, const struct mn_app_iov *iov,
                        uint64_t total)
{
    uint32_t flags = MN_DESC_FIRST;
    uint64_t off = 0; /* in the first of iov */

    do {
        uint32_t len = (uint32_t)mn_min_u64(total, a->buf_bytes);
        uint32_t buf = app_tx_pop(a, f);
        uint8_t *to = app_tx_data(a, buf);
        uint32_t have = 0;

        while (have < len) {
            uint32_t n = (uint32_t)mn_min_u64(iov->len - off, len - have);

            if (n > 0) {
                memcpy(to + have, (const uint8_t *)iov->base + off, n);
            }
            have += n;
            off += n;
            if (off == iov->len) {
                iov++;
                off = 0;
            }
        }
        total -= len;
        app_submit(a, buf, len, f->id, flags | (total == 0 ? MN_DESC_LAST : 0));
        flags = 0;
    } while (total > 0);
}

/* The message's buffers, or a negative errno. */
static int message_bufs(const struct mn_app *a, uint64_t len)
{
    uint64_t n = len <= a->buf_bytes ? 1 : (len + a->buf_bytes - 1) >> a->buf_shift;

    return len > MN_MSG_MAX_BYTES || n > a->tx_common ? -EMSGSIZE : (int)n;
}

static int send_iov(struct mn_app *a, struct app_flow *f, const struct mn_app_iov *iov,
                    uint64_t total)
{
    int n = message_bufs(a, total);
    int rc = n < 0 ? n : send_room(a, f, (uint32_t)n);

    if (rc == 0) {
        send_pieces(a, f, iov, total);
    }
    return rc;
}

static inline int send_one(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len)
{
    struct app_flow *f = app_find(a, flow);
    int rc = send_refused(a, f, len);
    uint32_t b;

    if (MN_UNLIKELY(rc < 0)) {
        return rc;
    }
    if (MN_UNLIKELY(len > a->buf_bytes)) {
        return send_iov(a, f, &(struct mn_app_iov){.base = buf, .len = len}, len);
    }
    rc = send_room(a, f, 1);
    if (MN_UNLIKELY(rc < 0)) {
        return rc;
    }
    b = app_tx_pop(a, f);
    if (MN_LIKELY(len > 0)) {
        memcpy(app_tx_data(a, b), buf, len);
    }
    app_submit(a, b, (uint32_t)len, flow, MN_DESC_FIRST | MN_DESC_LAST);
    return 0;
}

int mn_app_send_nopub(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len)
{
    return send_one(a, flow, buf, len);
}

int mn_app_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len)
{
    int rc;

    app_glance(a);
    rc = send_one(a, flow, buf, len);
    if (MN_LIKELY(rc == 0)) {
        app_publish_submit(a);
    }
    return rc;
}

int mn_app_sendv(struct mn_app *a, uint32_t flow, const struct mn_app_iov *iov, uint32_t n_iov)
{
    struct app_flow *f;
    uint64_t total = 0;
    int rc;

    app_glance(a);
    f = app_find(a, flow);
    for (uint32_t i = 0; i < n_iov; i++) {
        if (iov[i].len > MN_MSG_MAX_BYTES) {
            return -EMSGSIZE;
        }
        total += iov[i].len;
    }
    rc = send_refused(a, f, total);
    if (rc < 0) {
        return rc;
    }
    rc = send_iov(a, f, iov, total);
    if (rc == 0) {
        app_publish_submit(a);
    }
    return rc;
}

uint64_t mn_app_send_room(struct mn_app *a, uint32_t flow)
{
    struct app_flow *f;
    uint64_t bytes;

    app_glance(a);
    f = app_find(a, flow);
    if (a->dead != 0 || f == NULL || f->send_err != 0) {
        return 0;
    }
    (void)app_completed(a);
    bytes = (uint64_t)app_tx_allowed(a, f) << a->buf_shift;
    return app_is_stream(f) ? bytes : mn_min_u64(bytes, MN_MSG_MAX_BYTES);
}
