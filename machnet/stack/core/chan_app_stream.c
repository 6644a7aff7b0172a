/* SPDX-License-Identifier: MIT */
/* Byte streams: one queue of buffers per flow. */
#include "chan_app_int.h"

/* Keeps the count of streams that have something to say. */
void app_stream_update(struct mn_app *a, struct app_flow *f)
{
    bool was = (f->flags & APP_F_READY) != 0;
    bool is = (f->flags & (APP_F_ACCEPTED | APP_F_CLOSED)) == APP_F_ACCEPTED &&
              (f->rx_head != APP_NONE || (f->flags & (APP_F_EOF | APP_F_ENDED)) != 0);

    if (is && !was) {
        f->flags |= APP_F_READY;
        a->streams_ready++;
    } else if (was && !is) {
        f->flags &= (uint16_t)~APP_F_READY;
        a->streams_ready--;
    }
}

void app_stream_put(struct mn_app *a, struct app_flow *f, uint32_t buf, uint32_t len)
{
    if (len == 0) {
        app_release(a, buf);
        return;
    }
    a->rx[buf].len = len;
    a->rx[buf].next = APP_NONE;
    if (f->rx_head == APP_NONE) {
        f->rx_head = buf;
        app_stream_update(a, f);
    } else {
        a->rx[f->rx_tail].next = buf;
    }
    f->rx_tail = buf;
}

/* What a call on the stream answers whatever it wants: 0, or a negative errno. */
static int stream_refused(const struct mn_app *a, const struct app_flow *f)
{
    if (f == NULL || (f->flags & APP_F_CLOSED) != 0) {
        return a->dead != 0 ? -EPIPE : -ENOTCONN;
    }
    return app_is_stream(f) ? 0 : -EINVAL;
}

static uint32_t piece_flags(bool last, bool all, uint32_t flags)
{
    if (!last) {
        return MN_DESC_MORE;
    }
    /* Cut short for want of room: the marks belong to bytes that were not taken, and holding the
     * segment back for them could mean waiting for the room that it occupies. */
    if (!all) {
        return 0;
    }
    return ((flags & MN_APP_MORE) != 0 ? MN_DESC_MORE : 0) |
           ((flags & MN_APP_URG) != 0 ? MN_DESC_URG : 0);
}

int64_t mn_app_stream_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len,
                           uint32_t flags)
{
    struct app_flow *f;
    const uint8_t *from = buf;
    uint64_t taken = 0;
    uint32_t want, n;
    int64_t slots;
    int rc;

    app_glance(a);
    f = app_find(a, flow);
    rc = stream_refused(a, f);
    if (rc == 0) {
        rc = a->dead != 0 ? -EPIPE : f->send_err;
    }
    if (rc < 0 || len == 0) {
        return rc;
    }
    want = len > (uint64_t)a->tx_bufs << a->buf_shift
               ? a->tx_bufs
               : (uint32_t)((len + a->buf_bytes - 1) >> a->buf_shift);
    n = app_tx_get(a, f, want);
    slots = mn_ring_free(&a->submit, n);
    if (slots < 0) {
        (void)app_kill(a, EPROTO);
    }
    if (n == 0 || slots < (int64_t)n) {
        app_publish(a);
        return a->dead != 0 ? -EPIPE : -EAGAIN;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t m = (uint32_t)mn_min_u64(len - taken, a->buf_bytes);
        uint32_t b = app_tx_pop(a, f);

        memcpy(app_tx_data(a, b), from + taken, m);
        taken += m;
        app_submit(a, b, m, flow, piece_flags(i + 1 == n, taken == len, flags));
    }
    app_publish(a);
    return (int64_t)taken;
}

/* Copies from the queue; without `keep` what was copied leaves it. */
static uint64_t stream_copy(struct mn_app *a, struct app_flow *f, uint8_t *to, uint64_t size,
                            bool keep)
{
    uint32_t b = f->rx_head;
    uint32_t off = f->rx_off;
    uint64_t have = 0;

    while (b != APP_NONE && have < size) {
        uint32_t n = (uint32_t)mn_min_u64(a->rx[b].len - off, size - have);

        memcpy(to + have, app_rx_data(a, b) + off, n);
        have += n;
        off += n;
        if (off == a->rx[b].len) {
            uint32_t next = a->rx[b].next;

            if (!keep) {
                app_release(a, b);
            }
            b = next;
            off = 0;
        }
    }
    if (!keep) {
        f->rx_head = b;
        f->rx_off = off;
        f->read_off += have;
        app_stream_update(a, f);
    }
    return have;
}

int64_t mn_app_stream_recv(struct mn_app *a, uint32_t flow, void *buf, uint64_t size,
                           uint32_t flags)
{
    struct app_flow *f = app_find(a, flow);
    uint64_t have;
    int rc = stream_refused(a, f);

    if (rc < 0 || size == 0) {
        return rc;
    }
    if (f->rx_head == APP_NONE && (f->flags & APP_F_ENDED) == 0) {
        (void)app_intake(a);
    }
    if (f->rx_head == APP_NONE) {
        /* EPIPE: a reset behind the peer's FIN, which is no news to a reader. */
        if ((f->flags & APP_F_ENDED) != 0 && f->error != ENOTCONN && f->error != EPIPE) {
            return -f->error;
        }
        if ((f->flags & (APP_F_EOF | APP_F_ENDED)) != 0) {
            return 0;
        }
        return a->dead != 0 ? -EPIPE : -EAGAIN;
    }
    have = stream_copy(a, f, buf, size, (flags & MN_APP_PEEK) != 0);
    app_publish(a);
    return (int64_t)have;
}

int mn_app_shutdown_write(struct mn_app *a, uint32_t flow)
{
    struct app_flow *f;

    app_glance(a);
    f = app_find(a, flow);
    if (a->dead != 0) {
        return -EPIPE;
    }
    if (f == NULL || (f->flags & (APP_F_CLOSED | APP_F_ENDED)) != 0) {
        return -ENOTCONN;
    }
    if (f->proto == MN_PROTO_UDP) {
        return -EINVAL;
    }
    if ((f->flags & APP_F_SHUT) == 0) {
        f->flags |= APP_F_SHUT;
        f->send_err = -EPIPE;
        app_todo_add(a, f, APP_TODO_FIN);
        app_publish(a);
    }
    return 0;
}

uint32_t mn_app_flow_ready(struct mn_app *a, uint32_t flow)
{
    struct app_flow *f;

    (void)mn_app_poll(a);
    f = app_find(a, flow);
    if (a->dead != 0 || stream_refused(a, f) < 0) {
        return MN_READY_STREAM | MN_READY_SPACE;
    }
    return (f->rx_head != APP_NONE || (f->flags & (APP_F_EOF | APP_F_ENDED)) != 0 ? MN_READY_STREAM
                                                                                  : 0u) |
           (f->send_err != 0 || app_tx_allowed(a, f) > 0 ? MN_READY_SPACE : 0u);
}
