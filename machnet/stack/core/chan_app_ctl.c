/* SPDX-License-Identifier: MIT */
/* The application's side of the control rings: commands and their answers, events. */
#include "chan_app_int.h"

static struct app_token *token_find(struct mn_app *a, int64_t token)
{
    uint32_t i = (uint32_t)token & ((1u << a->token_shift) - 1);
    struct app_token *t = &a->tokens[i];

    if (token <= 0 || token > UINT32_MAX || i >= a->tokens_high || t->token != (uint32_t)token ||
        t->state == APP_TOKEN_FREE) {
        return NULL;
    }
    return t;
}

static struct app_token *token_new(struct mn_app *a)
{
    uint32_t i = a->tokens_free;
    struct app_token *t;

    if (i != APP_NONE) {
        t = &a->tokens[i];
        a->tokens_free = t->next;
    } else if (a->tokens_high < a->tokens_max) {
        i = a->tokens_high++;
        t = &a->tokens[i];
        t->token = i;
    } else {
        return NULL;
    }
    /* The count of uses makes an old token unknown. It skips 0, so that a token is never 0. */
    t->token += 1u << a->token_shift;
    if (t->token >> a->token_shift == 0) {
        t->token += 1u << a->token_shift;
    }
    t->state = APP_TOKEN_PENDING;
    t->forgotten = 0;
    a->n_tokens++;
    return t;
}

static void token_free(struct mn_app *a, struct app_token *t)
{
    t->state = APP_TOKEN_FREE;
    t->next = a->tokens_free;
    a->tokens_free = (uint32_t)(t - a->tokens);
    a->n_tokens--;
}

static int take_result(struct mn_app *a, const struct mn_ctl_evt *evt)
{
    struct app_token *t = token_find(a, evt->token);
    struct app_flow *f = NULL;

    if (t == NULL || t->state != APP_TOKEN_PENDING) {
        return -EPROTO;
    }
    if (t->op == MN_CTL_CONNECT && evt->status == 0) {
        f = app_introduce(a, evt, t->proto);
        if (f == NULL) {
            return -EPROTO;
        }
        f->listener = 0;
        f->flags |= APP_F_ACCEPTED;
    } else if (t->op == MN_CTL_UNLISTEN && evt->status == 0) {
        app_drop_unaccepted(a, t->arg);
    }
    if (t->forgotten) {
        token_free(a, t);
        if (f != NULL) {
            app_close(a, f, 0);
        }
        return 0;
    }
    t->evt = *evt;
    t->state = APP_TOKEN_DONE;
    a->n_results++;
    return 0;
}

/* Framed flows have no accept call: the engine's backlog is told at once. */
static int take_accept(struct mn_app *a, const struct mn_ctl_evt *evt)
{
    struct app_flow *f = app_introduce(a, evt, evt->proto);

    if (f == NULL) {
        return -EPROTO;
    }
    if (app_is_stream(f)) {
        app_accepts_push(a, f);
    } else {
        f->flags |= APP_F_ACCEPTED;
        app_todo_add(a, f, APP_TODO_ACCEPT);
    }
    return 0;
}

static int take_event(struct mn_app *a, const struct mn_ctl_evt *evt)
{
    struct app_flow *f;

    switch (evt->kind) {
    case MN_EVT_RESULT:
        return take_result(a, evt);
    case MN_EVT_ACCEPT:
        return take_accept(a, evt);
    case MN_EVT_SOFT:
        f = app_find(a, evt->flow);
        if (f != NULL && evt->status < 0 && evt->status > -4096) {
            f->soft_error = -evt->status;
        }
        return 0;
    case MN_EVT_URGENT:
        f = app_find(a, evt->flow);
        if (f != NULL) {
            f->urgent_off = evt->value;
        }
        return 0;
    default:
        return -EPROTO;
    }
}

/* Takes in every event that is there; how many, or -EPROTO. */
int app_ctl_intake(struct mn_app *a)
{
    int64_t n = mn_ring_avail(&a->ctl_complete);

    for (int64_t i = 0; i < n; i++) {
        struct mn_ctl_evt evt;

        memcpy(&evt,
               (const struct mn_ctl_evt *)a->ctl_complete.slots +
                   (a->ctl_complete.pos & a->ctl_complete.mask),
               sizeof(evt));
        a->ctl_complete.pos++;
        if (take_event(a, &evt) < 0) {
            return -EPROTO;
        }
    }
    if (n > 0) {
        mn_ring_consume(&a->ctl_complete);
    }
    return (int)n;
}

/* Sends a command that is answered; its token. */
static int64_t command(struct mn_app *a, const struct mn_ctl_cmd *what)
{
    struct mn_ctl_cmd *cmd;
    struct app_token *t;

    if (what->proto > MN_PROTO_STREAM) {
        return -EINVAL;
    }
    app_todo_flush(a);
    cmd = app_ctl_slot(a);
    if (cmd == NULL) {
        return a->dead != 0 ? -EPIPE : -EAGAIN;
    }
    t = token_new(a);
    if (t == NULL) {
        return -EAGAIN;
    }
    t->op = (uint8_t)what->op;
    t->proto = (uint8_t)what->proto;
    t->arg = what->flow;
    *cmd = *what;
    cmd->token = t->token;
    a->ctl_submit.pos++;
    app_publish(a);
    return t->token;
}

int64_t mn_app_listen(struct mn_app *a, uint32_t ip, uint16_t port, uint32_t proto,
                      uint32_t backlog)
{
    return command(a, &(struct mn_ctl_cmd){
                          .op = MN_CTL_LISTEN,
                          .flow = MN_FLOW_NONE,
                          .proto = proto,
                          .local_ip = ip,
                          .local_port = port,
                          .arg = backlog,
                      });
}

int64_t mn_app_unlisten(struct mn_app *a, uint32_t listener)
{
    return command(a, &(struct mn_ctl_cmd){.op = MN_CTL_UNLISTEN, .flow = listener});
}

int64_t mn_app_connect(struct mn_app *a, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                       uint16_t remote_port, uint32_t proto, uint32_t timeout_ms)
{
    return command(a, &(struct mn_ctl_cmd){
                          .op = MN_CTL_CONNECT,
                          .flow = MN_FLOW_NONE,
                          .proto = proto,
                          .local_ip = local_ip,
                          .remote_ip = remote_ip,
                          .local_port = local_port,
                          .remote_port = remote_port,
                          .arg = timeout_ms,
                      });
}

int64_t mn_app_setopt(struct mn_app *a, uint32_t flow, uint32_t opt, uint64_t value)
{
    return command(a, &(struct mn_ctl_cmd){
                          .op = MN_CTL_SETOPT,
                          .flow = flow,
                          .opt = opt,
                          .value = value,
                      });
}

int64_t mn_app_getopt(struct mn_app *a, uint32_t flow, uint32_t opt)
{
    return command(a, &(struct mn_ctl_cmd){.op = MN_CTL_GETOPT, .flow = flow, .opt = opt});
}

int mn_app_result(struct mn_app *a, int64_t token, struct mn_ctl_evt *evt)
{
    struct app_token *t = token_find(a, token);

    if (t == NULL || t->forgotten) {
        return -ENOENT;
    }
    if (t->state == APP_TOKEN_PENDING) {
        (void)app_intake(a);
    }
    if (t->state == APP_TOKEN_DONE) {
        *evt = t->evt;
        a->n_results--;
    } else if (a->dead != 0) {
        *evt = (struct mn_ctl_evt){
            .kind = MN_EVT_RESULT,
            .token = (uint32_t)token,
            .flow = MN_FLOW_NONE,
            .status = -EPIPE,
        };
    } else {
        return 0;
    }
    token_free(a, t);
    return 1;
}

int mn_app_forget(struct mn_app *a, int64_t token)
{
    struct app_token *t = token_find(a, token);
    struct app_flow *f;

    if (t == NULL || t->forgotten) {
        return -ENOENT;
    }
    if (t->state == APP_TOKEN_PENDING) {
        struct mn_ctl_cmd *cmd = t->op == MN_CTL_CONNECT ? app_ctl_slot(a) : NULL;

        t->forgotten = 1;
        if (cmd != NULL) { /* without room the connection is closed once it is there */
            *cmd = (struct mn_ctl_cmd){.op = MN_CTL_CANCEL, .flow = t->token};
            a->ctl_submit.pos++;
            app_publish(a);
        }
        return 0;
    }
    f = t->op == MN_CTL_CONNECT && t->evt.status == 0 ? app_find(a, t->evt.flow) : NULL;
    a->n_results--;
    token_free(a, t);
    if (f != NULL && (f->flags & APP_F_CLOSED) == 0) {
        app_close(a, f, 0);
        app_publish(a);
    }
    return 0;
}
