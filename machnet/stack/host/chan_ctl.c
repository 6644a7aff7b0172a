/* SPDX-License-Identifier: MIT */
/* Channels from the application's side: flows coming and going, and commands with their answers. */
#include "chan_int.h"

int64_t mn_chan_accept(struct mn_chan *c, uint32_t listener)
{
    int64_t rc = mn_chan_enter(c);
    uint32_t flow;

    if (rc < 0) {
        return rc;
    }
    do {
        flow = MN_LIKELY(c->n_lanes == 1) ? mn_app_accept(c->app, listener)
                                          : mn_multi_accept(c, listener);
    } while (flow == MN_FLOW_NONE && mn_chan_look_again(c));
    mn_chan_leave(c);
    return flow == MN_FLOW_NONE ? -EAGAIN : (int64_t)flow;
}

static int chan_info(struct mn_chan *c, uint32_t flow, struct mn_app_flow_info *out)
{
    uint32_t id = flow;
    struct mn_app *app = mn_chan_flow_app(c, &id);
    int rc = mn_app_flow_info(app, id, out);

    if (rc == 0 && c->n_lanes > 1) {
        out->flow = flow;
        if (out->listener != 0) {
            out->listener =
                mn_multi_listener(c, MN_FLOW_SLOT(flow) >> c->lane_shift, out->listener);
        }
    }
    return rc;
}

int mn_chan_flow_info(struct mn_chan *c, uint32_t flow, struct mn_app_flow_info *out)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_chan_hung_up(c);
        rc = chan_info(c, flow, out);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_flows(struct mn_chan *c, uint32_t *ids, uint32_t n)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        for (uint32_t i = 0; i < c->n_lanes; i++) {
            uint32_t had = mn_min_u32((uint32_t)rc, n);
            uint32_t more = mn_app_flows(mn_chan_at(c, i), ids + had, n - had);

            for (uint32_t f = had; f < had + mn_min_u32(more, n - had); f++) {
                ids[f] = mn_chan_flow_id(c, i, ids[f]);
            }
            rc += more;
        }
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                       uint32_t backlog)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = c->n_lanes == 1 ? mn_app_listen(c->app, ip, port, proto, backlog)
                             : mn_multi_listen(c, ip, port, proto, backlog);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_unlisten(struct mn_chan *c, uint32_t listener)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = c->n_lanes == 1 ? mn_app_unlisten(c->app, listener) : mn_multi_unlisten(c, listener);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_connect(struct mn_chan *c, uint32_t local_ip, uint16_t local_port,
                        uint32_t remote_ip, uint16_t remote_port, uint32_t proto,
                        uint32_t timeout_ms)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = c->n_lanes == 1 ? mn_app_connect(c->app, local_ip, local_port, remote_ip, remote_port,
                                              proto, timeout_ms)
                             : mn_multi_connect(c, local_ip, local_port, remote_ip, remote_port,
                                                proto, timeout_ms);
        mn_chan_leave(c);
    }
    return rc;
}

/* A token of the lane that mn_chan_flow_app finds. */
static int64_t chan_token(const struct mn_chan *c, uint32_t flow, int64_t token)
{
    uint32_t lane = MN_FLOW_SLOT(flow) >> c->lane_shift;

    return token > 0 && c->n_lanes > 1 && lane < c->n_lanes ? mn_multi_token(lane, token) : token;
}

int64_t mn_chan_setopt(struct mn_chan *c, uint32_t flow, uint32_t opt, uint64_t value)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        uint32_t id = flow;
        struct mn_app *app = mn_chan_flow_app(c, &id);

        rc = flow == MN_FLOW_NONE && c->n_lanes > 1
                 ? mn_multi_setopt(c, opt, value)
                 : chan_token(c, flow, mn_app_setopt(app, id, opt, value));
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_getopt(struct mn_chan *c, uint32_t flow, uint32_t opt)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        uint32_t id = flow;
        struct mn_app *app = mn_chan_flow_app(c, &id);

        rc = chan_token(c, flow, mn_app_getopt(app, id, opt));
        mn_chan_leave(c);
    }
    return rc;
}

int mn_chan_result(struct mn_chan *c, int64_t token, struct mn_ctl_evt *evt)
{
    int rc = mn_chan_enter(c);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = MN_LIKELY(c->n_lanes == 1) ? mn_app_result(c->app, token, evt)
                                        : mn_multi_result(c, token, evt);
    } while (rc == 0 && mn_chan_look_again_edge(c));
    mn_chan_leave(c);
    return rc;
}

int mn_chan_forget(struct mn_chan *c, int64_t token)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_chan_poll_all(c); /* an answer that is there already is dealt with now */
        rc = c->n_lanes == 1 ? mn_app_forget(c->app, token) : mn_multi_forget(c, token);
        mn_chan_leave(c);
    }
    return rc;
}
