/* SPDX-License-Identifier: MIT */
/* The plain byte stream: an application that is the TCP's user itself, as one on lwIP's raw API is.
 * Messages of a fixed size. */
#include "pair.h"

#include "machnet/stack/core/engine_int.h"

#define RING_BYTES (512u << 10)

/* One end's send buffer: a ring of bytes that TCP copies from until they are acknowledged. */
struct end {
    struct mn_tcb *t;
    uint8_t *ring;
    uint32_t head, used; /* offset of the byte at snd_una; bytes not acknowledged */
    uint8_t msg[65536];  /* the message that is being received */
    uint32_t have;
    bool up;
};

static struct {
    struct pair *p;
    struct end end[2];
    uint32_t msg_bytes;
    uint64_t sent, got;
} r;

static struct end *end_of(const struct mn_tcb *t)
{
    return &r.end[t == r.end[1].t];
}

static bool put(struct mn_engine *e, struct end *end, const uint8_t *p, uint32_t len)
{
    uint32_t at = (end->head + end->used) % RING_BYTES;
    uint32_t n = mn_min_u32(len, RING_BYTES - at);

    if (end->used + len > RING_BYTES) {
        return false;
    }
    memcpy(end->ring + at, p, n);
    memcpy(end->ring, p + n, len - n);
    end->used += len;
    mn_tcp_queued(e, end->t, len);
    return true;
}

static void message(struct mn_engine *e, struct end *end)
{
    if (end == &r.end[1] && !r.p->work.bulk) {
        if (!put(e, end, end->msg, r.msg_bytes)) {
            pair_fail("reply", ENOBUFS);
        }
        return;
    }
    if (!pair_check(end->msg, r.msg_bytes, r.got)) {
        r.p->errors++;
    }
    r.got++;
    r.p->msgs++;
}

static uint32_t raw_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len)
{
    struct end *end = end_of(t);
    uint32_t done = 0;

    while (done < len) {
        uint32_t n = mn_min_u32(len - done, r.msg_bytes - end->have);

        memcpy(end->msg + end->have, p + done, n);
        end->have += n;
        done += n;
        if (end->have == r.msg_bytes) {
            end->have = 0;
            message(e, end);
        }
    }
    return done;
}

static uint32_t raw_space(struct mn_engine *e, struct mn_tcb *t)
{
    (void)e;
    return t->rcv_buf;
}

static uint32_t raw_copy(struct mn_engine *e, struct mn_tcb *t, uint32_t off, uint8_t *dst,
                         uint32_t len, bool want_sum)
{
    struct end *end = end_of(t);
    uint32_t at = (end->head + off) % RING_BYTES;
    uint32_t n = mn_min_u32(len, RING_BYTES - at);

    (void)e;
    if (n == len) {
        return mn_csum_copy(dst, end->ring + at, len, 0);
    }
    memcpy(dst, end->ring + at, n);
    memcpy(dst + n, end->ring, len - n);
    return want_sum ? mn_csum_partial(dst, len, 0) : 0;
}

static void raw_acked(struct mn_engine *e, struct mn_tcb *t, uint32_t len)
{
    struct end *end = end_of(t);

    (void)e;
    end->head = (end->head + len) % RING_BYTES;
    end->used -= len;
}

static void raw_event(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_event ev, int err)
{
    (void)e;
    if (ev == MN_TCP_EV_CONNECTED) {
        end_of(t)->up = true;
    } else if (ev == MN_TCP_EV_CLOSED) {
        pair_fail("connection", err);
    }
}

static bool raw_wants(struct mn_engine *e, const struct mn_tcb *t, uint32_t held)
{
    (void)e;
    (void)t;
    return held > 0;
}

static const struct mn_tcp_user raw_user = {.rx = raw_rx,
                                            .rx_space = raw_space,
                                            .tx_copy = raw_copy,
                                            .tx_acked = raw_acked,
                                            .event = raw_event,
                                            .wants = raw_wants};

/* Both ends connect at once: a simultaneous open needs no listener. */
static void raw_open(struct pair *p)
{
    r.p = p;
    r.msg_bytes = p->work.payload_bytes + 4;
    for (uint32_t i = 0; i < 2; i++) {
        struct end *end = &r.end[i];
        int err = mn_tcp_connect(p->engine[i], &end->t, 0, PORT, i == 0 ? SERVER_IP : CLIENT_IP,
                                 PORT, &raw_user, 0);

        if (err != 0) {
            pair_fail("connect", err);
        }
        end->t->flags |= MN_TF_NODELAY;
        end->ring = pair_memory(RING_BYTES);
    }
    for (uint32_t i = 0; i < 1000 && !(r.end[0].up && r.end[1].up); i++) {
        pair_poll(p);
    }
}

static void raw_step(struct pair *p)
{
    static uint8_t buf[65536];
    uint64_t limit = p->work.bulk ? UINT64_MAX : r.got + p->work.window_msgs;

    while (r.sent < limit && r.end[0].up) {
        if (r.end[0].used + r.msg_bytes > RING_BYTES) {
            break;
        }
        pair_fill(buf, r.msg_bytes, r.sent);
        put(p->engine[0], &r.end[0], buf, r.msg_bytes);
        r.sent++;
    }
}

/* Connections on which nothing happens. */
static struct {
    uint32_t up, closed;
} idle;

static uint32_t idle_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len)
{
    (void)e;
    (void)t;
    (void)p;
    return len;
}

static void idle_event(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_event ev, int err)
{
    (void)err;
    if (ev == MN_TCP_EV_CONNECTED) {
        idle.up++;
    } else if (ev == MN_TCP_EV_EOF && (t->flags & MN_TF_FIN_QUEUED) == 0) {
        mn_tcp_shutdown(e, t);
    } else if (ev == MN_TCP_EV_CLOSED) {
        idle.closed++;
    }
}

static const struct mn_tcp_user idle_user = {
    .rx = idle_rx, .rx_space = raw_space, .event = idle_event, .wants = raw_wants};

/* Both ends of connection n, by a simultaneous open; returns when it stands. */
static void idle_connect(struct pair *p, uint32_t n, struct mn_tcb *t[2])
{
    uint16_t ports[2] = {(uint16_t)(10000 + n % 50000), (uint16_t)(10000 + n / 50000)};
    uint32_t up = idle.up;

    for (uint32_t i = 0; i < 2; i++) {
        int err = mn_tcp_connect(p->engine[i], &t[i], 0, ports[i], i == 0 ? SERVER_IP : CLIENT_IP,
                                 ports[1 - i], &idle_user, 0);

        if (err != 0) {
            pair_fail("idle connection", err);
        }
    }
    for (uint32_t i = 0; i < 100 && idle.up < up + 2; i++) {
        pair_poll(p);
    }
    if (idle.up < up + 2) {
        pair_fail("idle connection", ETIMEDOUT);
    }
}

static void raw_open_idle(struct pair *p)
{
    for (uint32_t n = 0; n < p->idle; n++) {
        struct mn_tcb *t[2];

        idle_connect(p, n, t);
    }
}

/* The client closes first and is left in TIME-WAIT; the server answers with its own FIN. */
static void raw_cycle(struct pair *p)
{
    uint32_t closed = idle.closed;
    struct mn_tcb *t[2];

    idle_connect(p, p->idle + (uint32_t)p->msgs, t);
    mn_tcp_shutdown(p->engine[0], t[0]);
    for (uint32_t i = 0; i < 100 && idle.closed == closed; i++) {
        pair_poll(p);
    }
    if (idle.closed == closed) {
        pair_fail("close", ETIMEDOUT);
    }
    p->msgs++;
}

const struct mode pair_raw = {.name = "raw",
                              .open = raw_open,
                              .step = raw_step,
                              .open_idle = raw_open_idle,
                              .cycle = raw_cycle};
