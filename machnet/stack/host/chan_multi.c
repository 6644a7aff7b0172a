/* SPDX-License-Identifier: MIT */
/*
 * Commands to all lanes of a channel. One that listens is a listener only when it is one on every
 * engine: what has begun on some is undone when another refuses. Each command is a record that goes
 * on by itself, whether its caller still waits or not.
 */
#include <stdlib.h>

#include "chan_int.h"

/* Tokens: a lane's own has the lane above its 32 bits; these have this bit and the record's id. */
#define MULTI_TOKEN (INT64_C(1) << 40)

enum multi_state {
    MULTI_ASKING,  /* answers are awaited */
    MULTI_UNDOING, /* lanes that listen are being told to stop */
    MULTI_DONE,    /* the answer can be fetched */
    MULTI_OPEN,    /* a listener, whose answer was fetched */
};

struct mn_multi {
    struct mn_multi *next;
    uint32_t id; /* of the token, and of the listener */
    enum mn_ctl_op op;
    enum multi_state state;
    bool forgotten;
    int32_t status;
    uint32_t asked;               /* lanes whose answer is awaited, by bit */
    uint32_t listens;             /* lanes where it listens */
    int64_t tokens[MN_LANES_MAX]; /* of those asked */
    uint32_t ids[MN_LANES_MAX];   /* of those that listen */
};

static bool has(uint32_t lanes, uint32_t lane)
{
    return (lanes >> lane & 1) != 0;
}

static struct mn_multi *multi_new(struct mn_chan *c, enum mn_ctl_op op)
{
    struct mn_multi *m = calloc(1, sizeof(*m));

    if (m != NULL) {
        c->remote->last_multi = c->remote->last_multi % 0x7fffffffu + 1;
        m->id = c->remote->last_multi;
        m->op = op;
        m->next = c->remote->multis;
        c->remote->multis = m;
    }
    return m;
}

static void multi_free(struct mn_chan *c, struct mn_multi *m)
{
    struct mn_multi **at = &c->remote->multis;

    while (*at != m) {
        at = &(*at)->next;
    }
    *at = m->next;
    free(m);
}

void mn_multi_free_all(struct mn_chan *c)
{
    while (c->remote->multis != NULL) {
        multi_free(c, c->remote->multis);
    }
}

static struct mn_multi *multi_find(const struct mn_chan *c, uint32_t id)
{
    struct mn_multi *m = c->remote->multis;

    while (m != NULL && m->id != id) {
        m = m->next;
    }
    return m;
}

static void multi_answer(struct mn_multi *m, uint32_t lane, const struct mn_ctl_evt *evt)
{
    m->asked &= ~(1u << lane);
    if (m->state == MULTI_UNDOING || m->op == MN_CTL_UNLISTEN) {
        m->listens &= ~(1u << lane);
    } else if (m->op == MN_CTL_LISTEN && evt->status == 0) {
        m->listens |= 1u << lane;
        m->ids[lane] = (uint32_t)evt->value;
    }
    if (m->state == MULTI_ASKING && evt->status < 0 && m->status == 0) {
        m->status = evt->status;
    }
}

/* Asks the lanes that listen and were not asked yet to stop; a full ring is tried again later. */
static void multi_stop(struct mn_chan *c, struct mn_multi *m)
{
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        if (has(m->listens, i) && !has(m->asked, i)) {
            m->tokens[i] = mn_app_unlisten(mn_chan_at(c, i), m->ids[i]);
            if (m->tokens[i] > 0) {
                m->asked |= 1u << i;
            } else if (m->tokens[i] != -EAGAIN) {
                m->listens &= ~(1u << i); /* a dead lane listens no more */
            }
        }
    }
}

static bool multi_moves(const struct mn_multi *m)
{
    return m->state == MULTI_ASKING || m->state == MULTI_UNDOING;
}

/* Goes on as far as the answers that are there allow; the record may be gone after this. */
static void multi_step(struct mn_chan *c, struct mn_multi *m)
{
    struct mn_ctl_evt evt;

    for (uint32_t i = 0; i < c->n_lanes; i++) {
        if (has(m->asked, i) && mn_app_result(mn_chan_at(c, i), m->tokens[i], &evt) == 1) {
            multi_answer(m, i, &evt);
        }
    }
    if (m->state == MULTI_ASKING && m->op == MN_CTL_UNLISTEN) {
        multi_stop(c, m); /* what found no room before */
    }
    if (m->state == MULTI_ASKING && m->asked == 0 &&
        (m->op != MN_CTL_UNLISTEN || m->listens == 0)) {
        bool undo = m->op == MN_CTL_LISTEN && (m->status < 0 || m->forgotten);

        m->state = undo ? MULTI_UNDOING : MULTI_DONE;
    }
    if (m->state == MULTI_UNDOING) {
        multi_stop(c, m);
        if (m->listens == 0) {
            m->state = MULTI_DONE;
        }
    }
    if (m->state == MULTI_DONE && m->forgotten) {
        multi_free(c, m);
    }
}

void mn_multi_go_on(struct mn_chan *c)
{
    struct mn_multi *m = c->remote->multis;

    while (m != NULL) {
        struct mn_multi *next = m->next;

        if (multi_moves(m)) {
            multi_step(c, m);
        }
        m = next;
    }
}

/* Tokens as mn_app_listen and the others give them: refused on one lane is refused on all. */
static int64_t multi_asked(struct mn_chan *c, struct mn_multi *m, uint32_t lane, int64_t token)
{
    if (token > 0) {
        m->tokens[lane] = token;
        m->asked |= 1u << lane;
        return 0;
    }
    m->status = (int32_t)token;
    m->forgotten = true; /* nobody gets the token; what was begun is undone */
    multi_step(c, m);
    return token;
}

int64_t mn_multi_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                        uint32_t backlog)
{
    struct mn_multi *m = multi_new(c, MN_CTL_LISTEN);

    if (m == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        struct mn_app *app = mn_chan_at(c, i);
        int64_t rc;

        if (ip != 0 && mn_app_ip(app) != ip) {
            continue;
        }
        rc = multi_asked(c, m, i, mn_app_listen(app, ip, port, proto, backlog));
        if (rc < 0) {
            return rc;
        }
    }
    if (m->asked == 0) {
        multi_free(c, m);
        return -EADDRNOTAVAIL;
    }
    return MULTI_TOKEN | m->id;
}

int64_t mn_multi_unlisten(struct mn_chan *c, uint32_t listener)
{
    struct mn_multi *m = multi_find(c, listener);

    if (m == NULL || m->state != MULTI_OPEN) {
        return -ENOENT;
    }
    m->op = MN_CTL_UNLISTEN;
    m->state = MULTI_ASKING;
    multi_stop(c, m);
    return MULTI_TOKEN | m->id;
}

int64_t mn_multi_setopt(struct mn_chan *c, uint32_t opt, uint64_t value)
{
    struct mn_multi *m = multi_new(c, MN_CTL_SETOPT);

    if (m == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        int64_t rc =
            multi_asked(c, m, i, mn_app_setopt(mn_chan_at(c, i), MN_FLOW_NONE, opt, value));

        if (rc < 0) {
            return rc;
        }
    }
    return MULTI_TOKEN | m->id;
}

int64_t mn_multi_connect(struct mn_chan *c, uint32_t local_ip, uint16_t local_port,
                         uint32_t remote_ip, uint16_t remote_port, uint32_t proto,
                         uint32_t timeout_ms)
{
    struct mn_remote *r = c->remote;
    int64_t rc = -EADDRNOTAVAIL;

    for (uint32_t i = 0; i < c->n_lanes; i++) {
        uint32_t lane = (r->connect_turn + i) % c->n_lanes;
        struct mn_app *app = mn_chan_at(c, lane);

        if (local_ip != 0 && mn_app_ip(app) != local_ip) {
            continue;
        }
        rc = mn_app_connect(app, local_ip, local_port, remote_ip, remote_port, proto, timeout_ms);
        if (rc != -EAGAIN) {
            r->connect_turn = lane + 1;
            return rc > 0 ? mn_multi_token(lane, rc) : rc;
        }
    }
    return rc;
}

/* A lane's own token; the lane. */
static struct mn_app *token_app(const struct mn_chan *c, int64_t *token, uint32_t *lane)
{
    *lane = (uint32_t)(*token >> 32);
    *token &= UINT32_MAX;
    return *lane < c->n_lanes ? mn_chan_at(c, *lane) : NULL;
}

int mn_multi_result(struct mn_chan *c, int64_t token, struct mn_ctl_evt *evt)
{
    struct mn_multi *m;

    mn_multi_go_on(c);
    if ((token & MULTI_TOKEN) == 0) {
        uint32_t lane;
        struct mn_app *app = token_app(c, &token, &lane);
        int rc = app == NULL ? -ENOENT : mn_app_result(app, token, evt);

        if (rc == 1) {
            evt->flow = mn_chan_flow_id(c, lane, evt->flow);
        }
        return rc;
    }
    m = multi_find(c, (uint32_t)token);
    if (m == NULL || m->forgotten || m->state == MULTI_OPEN) {
        return -ENOENT;
    }
    if (m->state != MULTI_DONE) {
        return 0;
    }
    *evt = (struct mn_ctl_evt){
        .kind = MN_EVT_RESULT, .flow = MN_FLOW_NONE, .status = m->status, .value = m->id};
    if (m->op == MN_CTL_LISTEN && m->status == 0) {
        m->state = MULTI_OPEN;
    } else {
        multi_free(c, m);
    }
    return 1;
}

int mn_multi_forget(struct mn_chan *c, int64_t token)
{
    struct mn_multi *m;

    if ((token & MULTI_TOKEN) == 0) {
        uint32_t lane;
        struct mn_app *app = token_app(c, &token, &lane);

        return app == NULL ? -ENOENT : mn_app_forget(app, token);
    }
    m = multi_find(c, (uint32_t)token);
    if (m == NULL || m->forgotten || m->state == MULTI_OPEN) {
        return -ENOENT;
    }
    m->forgotten = true;
    if (m->state == MULTI_DONE && m->op == MN_CTL_LISTEN) {
        m->state = MULTI_UNDOING; /* nobody knows that it listens */
    }
    multi_step(c, m);
    return 0;
}

uint32_t mn_multi_accept(struct mn_chan *c, uint32_t listener)
{
    struct mn_multi *m = multi_find(c, listener);

    for (uint32_t i = 0; m != NULL && i < c->n_lanes; i++) {
        uint32_t lane = (c->remote->accept_turn + i) % c->n_lanes;

        if (has(m->listens, lane)) {
            uint32_t flow = mn_app_accept(mn_chan_at(c, lane), m->ids[lane]);

            if (flow != MN_FLOW_NONE) {
                c->remote->accept_turn = lane + 1;
                return mn_chan_flow_id(c, lane, flow);
            }
        }
    }
    return MN_FLOW_NONE;
}

uint32_t mn_multi_listener(struct mn_chan *c, uint32_t lane, uint32_t listener)
{
    const struct mn_multi *m;

    mn_multi_go_on(c);     /* a flow may be here before the answer that its listener exists */
    m = c->remote->multis; /* records end above */
    while (m != NULL && !(has(m->listens, lane) && m->ids[lane] == listener)) {
        m = m->next;
    }
    return m != NULL ? m->id : MN_LISTENER_GONE;
}
