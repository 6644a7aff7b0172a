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
        flow = mn_app_accept(c->app, listener);
    } while (flow == MN_FLOW_NONE && mn_chan_look_again(c));
    mn_chan_leave(c);
    return flow == MN_FLOW_NONE ? -EAGAIN : (int64_t)flow;
}

int mn_chan_flow_info(struct mn_chan *c, uint32_t flow, struct mn_app_flow_info *out)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_chan_hung_up(c);
        rc = mn_app_flow_info(c->app, flow, out);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_flows(struct mn_chan *c, uint32_t *ids, uint32_t n)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = mn_app_flows(c->app, ids, n);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                       uint32_t backlog)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = mn_app_listen(c->app, ip, port, proto, backlog);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_unlisten(struct mn_chan *c, uint32_t listener)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = mn_app_unlisten(c->app, listener);
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
        rc =
            mn_app_connect(c->app, local_ip, local_port, remote_ip, remote_port, proto, timeout_ms);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_setopt(struct mn_chan *c, uint32_t flow, uint32_t opt, uint64_t value)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = mn_app_setopt(c->app, flow, opt, value);
        mn_chan_leave(c);
    }
    return rc;
}

int64_t mn_chan_getopt(struct mn_chan *c, uint32_t flow, uint32_t opt)
{
    int64_t rc = mn_chan_enter(c);

    if (rc == 0) {
        rc = mn_app_getopt(c->app, flow, opt);
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
        rc = mn_app_result(c->app, token, evt);
    } while (rc == 0 && mn_chan_look_again_edge(c));
    mn_chan_leave(c);
    return rc;
}

int mn_chan_forget(struct mn_chan *c, int64_t token)
{
    int rc = mn_chan_enter(c);

    if (rc == 0) {
        (void)mn_app_poll(c->app); /* an answer that is there already is dealt with now */
        rc = mn_app_forget(c->app, token);
        mn_chan_leave(c);
    }
    return rc;
}
