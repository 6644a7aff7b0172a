/* SPDX-License-Identifier: MIT */
/* The application's record of its flows: coming, being accepted, given up, and what the engine is
 * still to be told about them. */
#include "chan_app_int.h"

static void fifo_push_todo(struct mn_app *a, struct app_flow *f)
{
    uint32_t slot = app_slot(a, f);

    f->todo_next = APP_NONE;
    if (a->todo.head == APP_NONE) {
        a->todo.head = slot;
    } else {
        a->flows[a->todo.tail].todo_next = slot;
    }
    a->todo.tail = slot;
}

void app_accepts_push(struct mn_app *a, struct app_flow *f)
{
    uint32_t slot = app_slot(a, f);

    f->flags |= APP_F_WAITING;
    f->accept_next = APP_NONE;
    if (a->accepts.head == APP_NONE) {
        a->accepts.head = slot;
    } else {
        a->flows[a->accepts.tail].accept_next = slot;
    }
    a->accepts.tail = slot;
    a->n_accepts++;
}

/* Takes the node behind `prev` (APP_NONE: the first one) out of the accept queue. */
static struct app_flow *accepts_unlink(struct mn_app *a, uint32_t prev)
{
    uint32_t slot = prev == APP_NONE ? a->accepts.head : a->flows[prev].accept_next;
    struct app_flow *f = &a->flows[slot];

    if (prev == APP_NONE) {
        a->accepts.head = f->accept_next;
    } else {
        a->flows[prev].accept_next = f->accept_next;
    }
    if (a->accepts.tail == slot) {
        a->accepts.tail = prev;
    }
    f->flags &= (uint16_t)~APP_F_WAITING;
    a->n_accepts--;
    return f;
}

/* A slot of the ring to fill, or NULL: full, or the channel is dead. */
struct mn_ctl_cmd *app_ctl_slot(struct mn_app *a)
{
    int64_t room;

    if (a->dead != 0) {
        return NULL;
    }
    room = mn_ring_free(&a->ctl_submit, 1);
    if (room < 0) {
        (void)app_kill(a, EPROTO);
    }
    return room < 1 ? NULL
                    : (struct mn_ctl_cmd *)a->ctl_submit.slots +
                          (a->ctl_submit.pos & a->ctl_submit.mask);
}

static bool tell_ctl(struct mn_app *a, uint32_t op, uint32_t flow)
{
    struct mn_ctl_cmd *cmd = app_ctl_slot(a);

    if (cmd == NULL) {
        return false;
    }
    *cmd = (struct mn_ctl_cmd){.op = op, .flow = flow};
    a->ctl_submit.pos++;
    return true;
}

static bool tell_mark(struct mn_app *a, uint32_t flags, uint32_t len, uint32_t flow)
{
    int64_t room = mn_ring_free(&a->submit, 1);

    if (room < 0) {
        (void)app_kill(a, EPROTO);
    }
    if (room < 1) {
        return false;
    }
    app_submit(a, MN_BUF_NONE, len, flow, flags);
    return true;
}

/* False when a ring has no room; the rest stays to be done. */
static bool todo_one(struct mn_app *a, struct app_flow *f)
{
    if ((f->flags & APP_F_ENDED) != 0) {
        f->todo &= (uint8_t)~(APP_TODO_FIN | APP_TODO_CLOSE);
    }
    while (f->todo != 0) {
        uint8_t what = (uint8_t)(f->todo & -f->todo);
        bool told;

        switch (what) {
        case APP_TODO_ACCEPT:
            told = tell_ctl(a, MN_CTL_ACCEPT, f->id);
            break;
        case APP_TODO_FIN:
            told = tell_mark(a, MN_DESC_FIN, 0, f->id);
            break;
        case APP_TODO_CLOSE:
            told = tell_mark(a, MN_DESC_CLOSE, f->linger_ms, f->id);
            break;
        default:
            told = tell_ctl(a, MN_CTL_RELEASE, f->id);
            break;
        }
        if (!told) {
            return false;
        }
        f->todo &= (uint8_t)~what;
    }
    return true;
}

void app_todo_flush(struct mn_app *a)
{
    while (a->dead == 0 && a->todo.head != APP_NONE) {
        struct app_flow *f = &a->flows[a->todo.head];

        if (!todo_one(a, f)) {
            return;
        }
        a->todo.head = f->todo_next;
    }
}

/* Marks are owed by flow, so that a full ring costs no memory and loses none of them. */
void app_todo_add(struct mn_app *a, struct app_flow *f, uint8_t what)
{
    if (f->todo == 0) {
        fifo_push_todo(a, f);
    }
    f->todo |= what;
    app_todo_flush(a);
}

/* Gives the slot back once the engine and the application are both done with the flow. */
void app_settle(struct mn_app *a, struct app_flow *f)
{
    bool done = app_is_stream(f) ? (f->flags & APP_F_CLOSED) != 0
                                 : f->queued == 0 && (f->flags & APP_F_EVENT) == 0;

    if ((f->flags & (APP_F_ENDED | APP_F_RELEASED)) == APP_F_ENDED && done) {
        f->flags |= APP_F_RELEASED;
        app_todo_add(a, f, APP_TODO_RELEASE);
    }
}

/* Sets up the record of a new flow; NULL when the engine may not use this id now. */
struct app_flow *app_introduce(struct mn_app *a, const struct mn_ctl_evt *evt, uint32_t proto)
{
    uint32_t slot = MN_FLOW_SLOT(evt->flow);
    struct app_flow *f;

    if (slot >= a->flows_max || proto > MN_PROTO_STREAM) {
        return NULL;
    }
    while (a->flows_high <= slot) {
        a->flows[a->flows_high++].id = MN_FLOW_NONE;
    }
    f = &a->flows[slot];
    if (f->id != MN_FLOW_NONE && ((f->flags & APP_F_RELEASED) == 0 || f->todo != 0)) {
        return NULL;
    }
    *f = (struct app_flow){
        .id = evt->flow,
        .proto = (uint8_t)proto,
        .rx_head = APP_NONE,
        .local_ip = evt->local_ip,
        .remote_ip = evt->remote_ip,
        .local_port = evt->local_port,
        .remote_port = evt->remote_port,
        .listener = evt->listener,
    };
    return f;
}

/* Nobody can accept these any more. */
void app_drop_unaccepted(struct mn_app *a, uint32_t listener)
{
    uint32_t slot = a->accepts.head;

    while (slot != APP_NONE) {
        struct app_flow *f = &a->flows[slot];

        slot = f->accept_next;
        if (f->listener == listener) {
            app_close(a, f, 0);
        }
    }
}

uint32_t mn_app_accept(struct mn_app *a, uint32_t listener)
{
    for (int look = 0; look < 2; look++) {
        uint32_t prev = APP_NONE;

        for (uint32_t slot = a->accepts.head; slot != APP_NONE; slot = a->flows[slot].accept_next) {
            if (a->flows[slot].listener == listener) {
                struct app_flow *f = accepts_unlink(a, prev);

                f->flags |= APP_F_ACCEPTED;
                app_stream_update(a, f);
                app_todo_add(a, f, APP_TODO_ACCEPT);
                app_publish(a);
                return f->id;
            }
            prev = slot;
        }
        if (look == 0 && app_intake(a) == 0) {
            break;
        }
    }
    return MN_FLOW_NONE;
}

bool mn_app_eof(struct mn_app *a, uint32_t flow)
{
    const struct app_flow *f;

    app_glance(a);
    f = app_find(a, flow);
    return f != NULL && (f->flags & APP_F_EOF) != 0;
}

/* Everything that the application has of the flow goes; what it has sent stays on its way. */
void app_close(struct mn_app *a, struct app_flow *f, uint32_t linger_ms)
{
    f->flags |= APP_F_CLOSED;
    f->send_err = -ENOTCONN;
    if ((f->flags & APP_F_WAITING) != 0) {
        uint32_t slot = app_slot(a, f);
        uint32_t prev = APP_NONE;

        for (uint32_t s = a->accepts.head; s != slot; s = a->flows[s].accept_next) {
            prev = s;
        }
        (void)accepts_unlink(a, prev);
        app_todo_add(a, f, APP_TODO_ACCEPT);
    }
    if (app_is_stream(f) && f->rx_head != APP_NONE && linger_ms == MN_LINGER_DEFAULT) {
        linger_ms = 0; /* data are lost, and the peer must know (RFC 9293 3.6.1, SHLD-3) */
    }
    app_release_chain(a, f->rx_head);
    f->rx_head = APP_NONE;
    if (app_is_stream(f)) {
        app_stream_update(a, f);
    }
    if ((f->flags & APP_F_ENDED) == 0) {
        f->linger_ms = linger_ms;
        app_todo_add(a, f, APP_TODO_CLOSE);
    }
    /* Also gives an ended flow back, with the last thing that leaves the queue. */
    app_msgs_purge(a, f);
    app_settle(a, f);
}

int mn_app_close_flow(struct mn_app *a, uint32_t flow, uint32_t linger_ms)
{
    struct app_flow *f;

    /* What lies in the rings is unread data too. Its flow may have ended, and have a successor. */
    (void)app_intake(a);
    f = app_find(a, flow);
    if (f == NULL || (f->flags & APP_F_CLOSED) != 0) {
        return -ENOTCONN;
    }
    app_close(a, f, linger_ms);
    app_publish(a);
    return 0;
}

int mn_app_flow_info(struct mn_app *a, uint32_t flow, struct mn_app_flow_info *out)
{
    const struct app_flow *f;
    bool ended;

    (void)app_intake(a); /* what the engine has said meanwhile counts */
    f = app_find(a, flow);
    if (f == NULL) {
        return -ENOENT;
    }
    ended = (f->flags & APP_F_ENDED) != 0;
    *out = (struct mn_app_flow_info){
        .flow = flow,
        .proto = f->proto,
        .local_ip = f->local_ip,
        .remote_ip = f->remote_ip,
        .local_port = f->local_port,
        .remote_port = f->remote_port,
        .listener = f->listener,
        .error = ended          ? f->error
                 : a->dead != 0 ? EPIPE
                                : 0,
        .live = f->send_err == 0 && a->dead == 0,
        .eof = (f->flags & APP_F_EOF) != 0 && (!app_is_stream(f) || f->rx_head == APP_NONE),
        .ended = ended,
        .accepted = (f->flags & APP_F_ACCEPTED) != 0,
        .soft_error = f->soft_error,
        .urgent_off = f->urgent_off,
        .read_off = f->read_off,
    };
    return 0;
}

uint32_t mn_app_flows(struct mn_app *a, uint32_t *ids, uint32_t n)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < a->flows_high; i++) {
        const struct app_flow *f = &a->flows[i];

        if (f->id == MN_FLOW_NONE || (f->flags & (APP_F_CLOSED | APP_F_RELEASED)) != 0) {
            continue;
        }
        if (count < n) {
            ids[count] = f->id;
        }
        count++;
    }
    return count;
}
